// Calibration by channel (--calibration channels): the scaling branches follow the fits of tapernorm.cuh until the gate is 0.
//
// With a fit a u + o of n, a branch is y = gamma~ (a u + o) + beta~. No tensor is added for it: the parameters hold
// gamma~ a / c as taper_weight, and beta~ + gamma~ o as taper_bias, so that folding, inference and export know nothing of it.
#pragma once
#include <vector>

#include "model/config.h"
#include "ops/channel_sums.cuh"
#include "tapernorm.cuh"
#include "train/ranks/shards.h"
#include "train/trainer.h"

namespace tapernorm::train {

// Whether update k takes sums by channel: every one whose gate is above 0.
template <class Device, class Real>
bool sums_channels(const Trainer<Device, Real>& t, size_t k) {
    return t.settings.calibration != "scalar" && t.model.config.mode != GateMode::norm && k < t.gate_end;
}

// channels [sites, 4, C] and behind them [sites] += the sums by channel, and those of 1 / s over first positions, of the
// micro-batch that the forward pass has just been through.
template <class Device, class Real>
void add_channel_sums(Gpt<Device, Real>& m, Acc<Real>* channels) {
    const Config& c = m.config;
    const size_t N = m.B * m.T;
    const bool centered = c.norm == NormKind::layernorm;
    size_t site = 0;
    Acc<Real>* const first = channels + c.tapering_sites() * kChannelSums * c.C;
    auto add = [&](const Real* x, const Acc<Real>* mean, const Acc<Real>* rscale) {
        sum_first(m.dev, first + site, rscale, N, m.T);
        channel_sums<Real>(m.dev, channels + site++ * kChannelSums * c.C, x, centered ? mean : nullptr, rscale, N, m.T,
                           c.C);
    };
    for (size_t l = 0; l < c.L; l++) {
        const auto& a = m.act.h[l];
        add(m.stream_into(l), a.ln_1_mean, a.ln_1_rscale);
        add(a.mid, a.ln_2_mean, a.ln_2_rscale);
    }
    if (c.final_tapers()) add(m.stream_into(c.L), m.act.ln_f_mean, m.act.ln_f_rscale);
}

// Appends this rank's sums, site by site.
template <class Device, class Real>
void add_channel_totals(Gpt<Device, Real>& m, std::vector<double>& totals) {
    std::vector<Acc<Real>> sums(m.channel_numbers());
    device_copy_out(m.dev, sums.data(), m.act.channels, sums.size() * sizeof(sums[0]));
    totals.insert(totals.end(), sums.begin(), sums.end());
}

// totals [sites, 4, C] and [sites], of all ranks.
template <class Device, class Real>
void observe_channels(Trainer<Device, Real>& t, size_t k, const double* totals) {
    const size_t width = kChannelSums * t.model.config.C;
    const double rows = double(channel_rows(t.settings.total_batch, t.model.T));
    const size_t sites = t.model.scales.size();
    std::vector<std::vector<double>> means;
    std::vector<double> first(totals + sites * width, totals + sites * width + sites);
    for (double& mean : first) mean /= double(t.settings.total_batch / t.model.T);
    for (size_t i = 0; i < sites; i++) {
        means.emplace_back(totals + i * width, totals + (i + 1) * width);
        for (double& mean : means.back()) mean /= rows;
    }
    t.calibration.observe_channels(means, first, k > t.gate_warmup);
}

template <class Device, class Real>
std::vector<ChannelFit> channel_fits(const Trainer<Device, Real>& t) {
    std::vector<ChannelFit> fits;
    for (size_t i = 0; i < t.model.scales.size(); i++) fits.push_back(t.calibration.fit(i, t.model.config.norm));
    return fits;
}

// Moves the scaling branches to the newest fits. Before the first, they hold c u. All ranks call this.
template <class Device, class Real>
void follow_channels(Trainer<Device, Real>& t) {
    Gpt<Device, Real>& m = t.model;
    const size_t C = m.config.C;
    const std::vector<ChannelFit> next = channel_fits(t);
    const auto numbers = tensor_numbers(m.config);
    const auto names = taper_site_names(m.config);
    for (size_t i = 0; i < names.size(); i++) {
        const double c = double(m.scales[i].c);
        if (m.config.first_apart) m.scales[i].first = float(t.calibration.first_scale(i) / c);
        const ChannelFit before = t.calibration.fits.empty()
                                      ? ChannelFit{std::vector<double>(C, c), std::vector<double>(C, 0)}
                                      : t.calibration.fits[i];
        const size_t weight_number = numbers.at(names[i] + ".taper_weight");
        std::vector<Acc<Real>> weight = t.from_rank_0(m.exact(weight_number));
        if (const auto bias = numbers.find(names[i] + ".taper_bias"); bias != numbers.end()) {
            std::vector<Acc<Real>> values = t.from_rank_0(m.exact(bias->second));
            for (size_t j = 0; j < C; j++)
                values[j] += Acc<Real>(double(weight[j]) * c / before.a[j] * (next[i].o[j] - before.o[j]));
            m.set_tensor(bias->second, values);
        }
        for (size_t j = 0; j < C; j++) weight[j] = Acc<Real>(double(weight[j]) * next[i].a[j] / before.a[j]);
        m.set_tensor(weight_number, weight);
    }
    t.calibration.fits = next;
}

}  // namespace tapernorm::train
