// TaperNorm (arXiv 2602.10408): a normalization layer that turns, while training, into a fixed affine map.
//
// A site maps a row h in R^C of the residual stream to y in R^C. With g the global gate (one scalar for the whole
// model, set by the update count, not learned), u the input of the linear branch and s the statistic,
//
//                   LayerNorm kind                          RMSNorm kind
//   u               z = h - mean(h)                         h
//   s               sigma = sqrt(mean(z^2) + eps)           r = sqrt(mean(h^2) + eps)
//   n               u / s                                   u / s
//
//   y = g (gamma n + beta) + (1 - g) (c gamma~ v + beta~)         (RMSNorm kind: no beta, no beta~)
//   v = min(max(rho u, -B), B),  B = kappa / c;  rho = c_0 / c in rows of first positions, else 1
//
// gamma, beta ("weight", "bias") and gamma~, beta~ ("taper_weight", "taper_bias") are trained; c ("taper_scale") is one
// scalar per site, calibrated while g = 1 and then frozen. (By channel, gamma~ and beta~ hold a fit of their own besides: see
// ChannelFit.) kappa (Config::bound) says how far from the rows it was calibrated for a row may be before the branch stops
// growing with it: without one (kappa infinite, v = u; the paper), a row that is too large comes out too large, and the next
// block makes it larger still. c_0 ("first_scale" is rho; Config::first_apart): the first row of a sequence sees no context and is, in
// pretrained models, far larger than all others, so it may have a factor of its own, which depends on the position alone. A site takes one of three code paths, chosen per update:
//   g = 1      Phase::norm    the plain norm, bit for bit: the second branch is not evaluated
//   0 < g < 1  Phase::blend   both branches
//   g = 0      Phase::scale   no statistic s anywhere. What is left of LayerNorm is the centering h - mean(h), a linear
//                             map that is the same for every token and disappears in the fold (fold.cpp); the bound
//                             stays, a clamp of the stream without a statistic
//
// Backward, d = dL/dy, k = (1 - g) c; [A] is 1 where A holds, else 0; a bar is the mean over the C channels of a row:
//   d gamma  += g sum_rows d n        d beta  += g sum_rows d
//   d gamma~ += k sum_rows d v        d beta~ += (1 - g) sum_rows d
//   p = g gamma d:               dh += (p - bar p - n bar(p n)) / s          (RMSNorm kind: no bar p, no bar q)
//   q = k rho gamma~ d [|rho u| < B]:    dh += q - bar q
//
// Sections: kinds and phases, schedule, calibration, CPU leaf loops, sites on the CPU, scale loss on the CPU,
// sites on CUDA.
#pragma once
#include <cstddef>
#ifndef LEAF_BUILD
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/leaf.h"
#endif
#include "ops/reduce.cuh"
#include "runtime/types.h"

namespace tapernorm {

// ---------------------------------------------------------------------------------------------------------------------
// Kinds and phases

enum class NormKind { layernorm, rmsnorm };

enum class Phase {
    norm,        // g = 1
    blend,       // 0 < g < 1
    scale,       // g = 0
    unweighted,  // the statistics without gamma and beta: a norm whose affine part was folded away (inference)
    clamp,   // folded, and the bound is left: v, of a stream whose rows have mean 0 in the LayerNorm kind (inference)
    folded,  // nothing is left: the site's output is its input (inference)
};

// One site in one pass. Vectors are [C]; those a phase does not use, and every bias of the RMSNorm kind, are null.
template <class Real, class Scalar>
struct SiteArgs {
    NormKind kind;
    Phase phase;
    Scalar eps;
    Scalar g;  // the gate of this update
    Scalar c;  // taper_scale
    const Real *weight, *bias;
    const Real *taper_weight, *taper_bias;
    Scalar bound = Scalar(__builtin_inf());  // B
    Scalar first = 1;                        // c_0 / c; what follows is needed where it is not 1
    const int* positions = nullptr;          // of the rows; without them, row i is at position i % T
    unsigned T = 1;
    size_t row = 0;  // number of the rows before these

    TN_HOST_DEVICE Scalar rho(size_t i) const {
        if (first == 1) return first;
        i += row;
        return (positions ? unsigned(positions[i]) : unsigned(i) % T) ? Scalar(1) : first;
    }
};

// v. (A NaN stays one, and so is seen.)
template <class Scalar>
TN_HOST_DEVICE static inline Scalar bounded(Scalar u, Scalar bound) {
    return u < -bound ? -bound : u > bound ? bound : u;
}
template <class Scalar>
TN_HOST_DEVICE static inline bool inside(Scalar u, Scalar bound) {
    return u > -bound && u < bound;
}

// Sums over tokens that calibration needs; the forward pass takes them while g = 1.
struct SiteSums {
    double num = 0;    // sum |gamma u|^2 / s
    double den = 0;    // sum |gamma u|^2
    double scale = 0;  // sum s
};

// Sums over tokens of the scale of the residual stream that enters the final site.
struct StreamScale {
    double sum = 0;      // sum s(h)
    double squares = 0;  // sum (s(h) - target)^2
};

#ifndef LEAF_BUILD

// The scalars of a tapering site.
struct TaperScale {
    float c = 1;      // taper_scale; 1 before calibration
    float first = 1;  // first_scale: c_0 / c
};

enum class GateMode {
    norm,       // every site stays normalized: the baseline
    taper,      // the sites inside the blocks taper; the final norm stays, as the anchor of the output's scale
    taper_all,  // the final site tapers too: no normalization anywhere (needs the scale loss)
};

// ---------------------------------------------------------------------------------------------------------------------
// Schedule

// The gate of update k, counted from 1: 1 up to warm, half a cosine down to 0 at end, 0 from there on.
inline double gate_schedule(size_t k, size_t warm, size_t end) {
    if (k <= warm) return 1;
    if (k >= end) return 0;
    return 0.5 * (1 + std::cos(M_PI * double(k - warm) / double(end - warm)));
}

inline Phase phase_of(double g) { return g == 1 ? Phase::norm : g == 0 ? Phase::scale : Phase::blend; }

// ---------------------------------------------------------------------------------------------------------------------
// Calibration

// What replaces u / s in the channels of a site calibrated by channel: a u + o, a linear regression in each channel.
struct ChannelFit {
    std::vector<double> a, o;  // [C]
};

// The fit to means [4, C] over rows of u, u^2, u^2 / s and u / s. LayerNorm kind, whose bias takes the offset:
//   a = cov(u / s, u) / var(u),  o = E[u / s] - a E[u]
// RMSNorm kind: a = E[u^2 / s] / E[u^2], o = 0. Where the least squares would all but remove a channel, or blow it up, a stays
// within a factor of 64 of the one factor that fits all channels of these rows.
inline ChannelFit fit_channel(const std::vector<double>& means, NormKind kind) {
    constexpr double kMost = 64;
    const size_t C = means.size() / 4;
    double squares = 0, ratios = 0;
    for (size_t i = 0; i < C; i++) squares += means[C + i], ratios += means[2 * C + i];
    const double c = squares > 0 ? ratios / squares : 1;
    ChannelFit fit{std::vector<double>(C, c), std::vector<double>(C, 0)};
    for (size_t i = 0; i < C; i++) {
        const double u = means[i], square = means[C + i], ratio = means[2 * C + i], n = means[3 * C + i];
        const bool offset = kind == NormKind::layernorm;
        const double covariance = ratio - (offset ? n * u : 0), variance = square - (offset ? u * u : 0);
        if (variance > 0) fit.a[i] = std::clamp(covariance / variance, c / kMost, c * kMost);
        if (offset) fit.o[i] = n - fit.a[i] * u;
    }
    return fit;
}

// Exponential moving averages of the calibration sums, kept while g = 1 and frozen at the end of update `warm`; those by channel
// are kept while g > 0, because the streams change as the sites before them taper.
struct Calibration {
    struct Ema {
        double num = 0, den = 0, scale = 0;
    };
    double decay = 0.99;
    size_t updates = 0;      // how many went into the averages
    std::vector<Ema> sites;  // one per tapering site
    double stream_scale =
        0;  // EMA, from 0 on, of the mean s(h) of the stream that enters the final site (target_scale)

    // By channel: per site the averages, from 0 on, of the means of ops/channel_sums.cuh, and the weight of all updates in them.
    // While the sites taper, the memory is that of kTaperDecay.
    static constexpr double kTaperDecay = 0.9;
    std::vector<std::vector<double>> channels;
    double channel_weight = 0;
    std::vector<ChannelFit> fits;  // what the scaling branches hold
    std::vector<double> first;     // averages like those by channel, of the mean of 1 / s over rows of first positions

    // Means over the rows of one update, [4, C] of each site; first_means: of 1 / s over those of first positions.
    void observe_channels(const std::vector<std::vector<double>>& means, const std::vector<double>& first_means,
                          bool tapering) {
        const double keep = tapering ? std::min(decay, kTaperDecay) : decay;
        channels.resize(means.size()), first.resize(means.size());
        for (size_t i = 0; i < means.size(); i++) {
            channels[i].resize(means[i].size());
            for (size_t j = 0; j < means[i].size(); j++)
                channels[i][j] = keep * channels[i][j] + (1 - keep) * means[i][j];
            first[i] = keep * first[i] + (1 - keep) * first_means[i];
        }
        channel_weight = keep * channel_weight + (1 - keep);
    }

    ChannelFit fit(size_t site, NormKind kind) const {
        std::vector<double> means = channels[site];
        for (double& x : means) x /= channel_weight;
        return fit_channel(means, kind);
    }

    // c_0: the mean of 1 / s, which says how large these rows are. It is no least-squares fit to them.
    double first_scale(size_t site) const { return first[site] / channel_weight; }

    // Means over all tokens of one update.
    void observe(const std::vector<SiteSums>& sums, double mean_stream_scale, double tokens) {
        auto average = [&](double& ema, double value) { ema = decay * ema + (1 - decay) * value; };
        for (size_t i = 0; i < sites.size(); i++) {
            average(sites[i].num, sums[i].num / tokens);
            average(sites[i].den, sums[i].den / tokens);
            average(sites[i].scale, sums[i].scale / tokens);
        }
        average(stream_scale, mean_stream_scale);
        updates++;
    }

    // The averages start at 0, so each carries the factor 1 - decay^updates, which cancels in c.
    double bias_correction() const { return 1 - std::pow(decay, double(updates)); }

    // c = argmin_c E |gamma u / s - c gamma u|^2 = E[|gamma u|^2 / s] / E[|gamma u|^2]
    double taper_scale(size_t site) const { return sites[site].den > 0 ? sites[site].num / sites[site].den : 1; }

    // s_tgt of the scale loss.
    double target_scale() const { return updates ? stream_scale / bias_correction() : 0; }
};
#endif

// ---------------------------------------------------------------------------------------------------------------------
// CPU leaf loops (compiled once per instruction set, see ops/leaf.h)
#ifdef LEAF_BUILD
namespace {

template <class Real>
[[gnu::always_inline]] inline Real row_mean(const Real* x, size_t C) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < C; i++) sum += x[i];
    return sum / Real(C);
}

// s of a row: the root of the mean square of x - m (plus eps).
template <class Real>
[[gnu::always_inline]] inline Real row_scale(const Real* x, Real m, Real eps, size_t C) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < C; i++) sum += (x[i] - m) * (x[i] - m);
    return __builtin_sqrt(sum / Real(C) + eps);
}

template <NormKind kind, Phase phase, class Real>
void site_forward_rows(Real* y, Real* mean, Real* rscale, const Real* x, const SiteArgs<Real, Real>& a, size_t rows,
                       size_t C, SiteSums* sums) {
    constexpr bool centered = kind == NormKind::layernorm && phase != Phase::clamp;
    constexpr bool statistics = phase != Phase::scale && phase != Phase::clamp;
    const Real g = a.g, h = 1 - a.g, k = h * a.c, bound = a.bound;
    for (size_t row = 0; row < rows; row++, x += C, y += C) {
        const Real rho = a.rho(row);
        const Real m = centered ? row_mean(x, C) : Real(0);
        const Real s = statistics ? row_scale(x, m, a.eps, C) : Real(1);
        const Real r = 1 / s;
        if (centered && mean) mean[row] = m;
        if (statistics && rscale) rscale[row] = r;
        if constexpr (phase == Phase::unweighted) {
            for (size_t i = 0; i < C; i++) y[i] = (x[i] - m) * r;
        } else if constexpr (phase == Phase::norm && centered) {
            for (size_t i = 0; i < C; i++) y[i] = (x[i] - m) * r * a.weight[i] + a.bias[i];
        } else if constexpr (phase == Phase::norm) {
            for (size_t i = 0; i < C; i++) y[i] = x[i] * r * a.weight[i];
        } else if constexpr (phase == Phase::blend && centered) {
            const Real gr = g * r;
            for (size_t i = 0; i < C; i++)
                y[i] = (x[i] - m) * (gr * a.weight[i]) + bounded((x[i] - m) * rho, bound) * (k * a.taper_weight[i]) +
                       (g * a.bias[i] + h * a.taper_bias[i]);
        } else if constexpr (phase == Phase::blend) {
            const Real gr = g * r;
            for (size_t i = 0; i < C; i++)
                y[i] = x[i] * (gr * a.weight[i]) + bounded(x[i] * rho, bound) * (k * a.taper_weight[i]);
        } else if constexpr (phase == Phase::clamp) {
            for (size_t i = 0; i < C; i++) y[i] = bounded(x[i] * rho, bound);
        } else if constexpr (centered) {
            for (size_t i = 0; i < C; i++)
                y[i] = bounded((x[i] - m) * rho, bound) * (a.c * a.taper_weight[i]) + a.taper_bias[i];
        } else {
            for (size_t i = 0; i < C; i++) y[i] = bounded(x[i] * rho, bound) * (a.c * a.taper_weight[i]);
        }
        if (phase == Phase::norm && sums) {
            Real square = 0;  // |gamma u|^2
#pragma omp simd reduction(+ : square)
            for (size_t i = 0; i < C; i++) square += (a.weight[i] * (x[i] - m)) * (a.weight[i] * (x[i] - m));
            sums->num += double(square) * double(r);
            sums->den += double(square);
            sums->scale += double(s);
        }
    }
}

template <class Real>
void leaf_site_forward(Real* y, Real* mean, Real* rscale, const Real* x, const SiteArgs<Real, Real>& a, size_t rows,
                       size_t C, SiteSums* sums) {
    auto run = [&]<Phase phase>() {
        if (a.kind == NormKind::layernorm)
            site_forward_rows<NormKind::layernorm, phase>(y, mean, rscale, x, a, rows, C, sums);
        else
            site_forward_rows<NormKind::rmsnorm, phase>(y, mean, rscale, x, a, rows, C, sums);
    };
    if (a.phase == Phase::norm) run.template operator()<Phase::norm>();
    if (a.phase == Phase::blend) run.template operator()<Phase::blend>();
    if (a.phase == Phase::scale) run.template operator()<Phase::scale>();
    if (a.phase == Phase::unweighted) run.template operator()<Phase::unweighted>();
    if (a.phase == Phase::clamp) run.template operator()<Phase::clamp>();
}

// columns [4, C] +=: sum_rows of d n, d v and d, for the vectors' gradients, and of the finished dx.
template <NormKind kind, Phase phase, bool accumulate, class Real>
void site_backward_rows(Real* dx, Real* columns, const Real* dy, const Real* x, const Real* mean, const Real* rscale,
                        const SiteArgs<Real, Real>& a, size_t rows, size_t C) {
    constexpr bool centered = kind == NormKind::layernorm;
    constexpr bool normed = phase != Phase::scale, scaled = phase != Phase::norm;
    const Real g = a.g, k = (1 - a.g) * a.c, bound = a.bound;
    Real *dn_sum = columns, *dv_sum = columns + C, *d_sum = columns + 2 * C, *dx_sum = columns + 3 * C;
    for (size_t row = 0; row < rows; row++, x += C, dy += C, dx += C) {
        const Real m = centered ? mean[row] : Real(0);
        const Real r = normed ? rscale[row] : Real(0), rho = a.rho(row), k_row = k * rho;
        Real p_bar = 0, pn_bar = 0, q_bar = 0;
#pragma omp simd reduction(+ : p_bar, pn_bar, q_bar)
        for (size_t i = 0; i < C; i++) {
            const Real u = x[i] - m;
            if constexpr (normed) {
                const Real p = g * a.weight[i] * dy[i];
                p_bar += p;
                pn_bar += p * (u * r);
                dn_sum[i] += dy[i] * (u * r);
            }
            if constexpr (scaled) {
                q_bar += inside(u * rho, bound) ? k_row * a.taper_weight[i] * dy[i] : Real(0);
                dv_sum[i] += dy[i] * bounded(u * rho, bound);
            }
            if constexpr (centered) d_sum[i] += dy[i];
        }
        p_bar /= Real(C), pn_bar /= Real(C), q_bar /= Real(C);
        for (size_t i = 0; i < C; i++) {
            Real dh = accumulate ? dx[i] : Real(0);
            if constexpr (normed)
                dh += (g * a.weight[i] * dy[i] - (centered ? p_bar : Real(0)) - (x[i] - m) * r * pn_bar) * r;
            if constexpr (scaled)
                dh += (inside((x[i] - m) * rho, bound) ? k_row * a.taper_weight[i] * dy[i] : Real(0)) -
                      (centered ? q_bar : Real(0));
            dx[i] = dh;
            dx_sum[i] += dh;
        }
    }
}

template <class Real>
void leaf_site_backward(Real* dx, Real* columns, const Real* dy, const Real* x, const Real* mean, const Real* rscale,
                        const SiteArgs<Real, Real>& a, size_t rows, size_t C, bool accumulate) {
    auto run = [&]<NormKind kind, Phase phase>() {
        if (accumulate)
            site_backward_rows<kind, phase, true>(dx, columns, dy, x, mean, rscale, a, rows, C);
        else
            site_backward_rows<kind, phase, false>(dx, columns, dy, x, mean, rscale, a, rows, C);
    };
    auto run_phase = [&]<NormKind kind>() {
        if (a.phase == Phase::norm) run.template operator()<kind, Phase::norm>();
        if (a.phase == Phase::blend) run.template operator()<kind, Phase::blend>();
        if (a.phase == Phase::scale) run.template operator()<kind, Phase::scale>();
    };
    if (a.kind == NormKind::layernorm) run_phase.template operator()<NormKind::layernorm>();
    if (a.kind == NormKind::rmsnorm) run_phase.template operator()<NormKind::rmsnorm>();
}

template <class Real>
void leaf_stream_scale(StreamScale* out, const Real* x, NormKind kind, Real eps, Real target, size_t rows, size_t C) {
    for (size_t row = 0; row < rows; row++, x += C) {
        const Real m = kind == NormKind::layernorm ? row_mean(x, C) : Real(0);
        const double s = double(row_scale(x, m, eps, C));
        out->sum += s;
        out->squares += (s - double(target)) * (s - double(target));
    }
}

// dx += factor (s - target) / s u
template <class Real>
void leaf_scale_loss_backward(Real* dx, const Real* x, NormKind kind, Real eps, Real target, Real factor, size_t rows,
                              size_t C) {
    for (size_t row = 0; row < rows; row++, x += C, dx += C) {
        const Real m = kind == NormKind::layernorm ? row_mean(x, C) : Real(0);
        const Real s = row_scale(x, m, eps, C);
        const Real f = factor * (s - target) / s;
        for (size_t i = 0; i < C; i++) dx[i] += f * (x[i] - m);
    }
}

}  // namespace
#else

// ---------------------------------------------------------------------------------------------------------------------
// Sites on the CPU

template <class Real>
using Site = SiteArgs<Real, Acc<Real>>;

// The site of the rows from `row` on.
template <class Args>
Args from_row(Args site, size_t row) {
    site.row += row;
    return site;
}

// y [N, C] = the site applied to every row of x [N, C].
// mean, rscale [N]: the row's mean (LayerNorm kind) and 1 / s, kept for the backward pass; may be null.
// sums: calibration sums (+=), only in Phase::norm; may be null.
template <class Real>
void site_forward(Cpu& dev, Real* y, Acc<Real>* mean, Acc<Real>* rscale, SiteSums* sums, const Real* x,
                  const Site<Real>& site, size_t N, size_t C) {
    const size_t chunk = reduction_chunk(N), chunks = (N + chunk - 1) / chunk;
    std::vector<SiteSums> partial(sums ? chunks : 0);
    parallel_ranges(dev, chunks, 1, [&](size_t first, size_t last, int) {
        for (size_t i = first; i < last; i++) {
            const size_t row = i * chunk, rows = std::min(chunk, N - row);
            leaf<Real>(dev).site_forward(y + row * C, mean ? mean + row : nullptr, rscale ? rscale + row : nullptr,
                                         x + row * C, from_row(site, row), rows, C, sums ? &partial[i] : nullptr);
        }
    });
    for (const SiteSums& p : partial) sums->num += p.num, sums->den += p.den, sums->scale += p.scale;
}

// y [N, C] = the site applied to every row of x [N, C], on any device, with nothing kept for a backward pass.
template <class Real, class Device>
void apply_site(Device& dev, Real* y, const Real* x, const Site<Real>& site, size_t N, size_t C) {
    site_forward<Real>(dev, y, nullptr, nullptr, nullptr, x, site, N, C);
}

// Gradients of a site's vectors, [C] each, = or +=; null where the site has no such vector.
template <class Real>
struct SiteGrads {
    Real *weight, *bias, *taper_weight, *taper_bias;
    Real* dx_sums =
        nullptr;  // column sums of the finished dx: the gradient of a bias that was added to the stream before x
    bool accumulate = true;
};

// dx [N, C] = (accumulate ? dx : 0) + the gradient with respect to x: the residual stream goes around the site, so its
// gradient is already in dx, except at the final site. The gradients of the branch that the phase does not evaluate are 0.
template <class Real>
void site_backward(Cpu& dev, Real* dx, const SiteGrads<Real>& grads, const Real* dy, const Real* x,
                   const Acc<Real>* mean, const Acc<Real>* rscale, const Site<Real>& site, size_t N, size_t C,
                   bool accumulate) {
    const size_t chunk = reduction_chunk(N), chunks = (N + chunk - 1) / chunk;
    Real* columns = static_cast<Real*>(dev.shared_scratch(chunks * 4 * C * sizeof(Real)));
    parallel_ranges(dev, chunks, 1, [&](size_t first, size_t last, int) {
        for (size_t i = first; i < last; i++) {
            const size_t row = i * chunk, rows = std::min(chunk, N - row);
            Real* mine = columns + i * 4 * C;
            std::fill(mine, mine + 4 * C, Real(0));
            leaf<Real>(dev).site_backward(dx + row * C, mine, dy + row * C, x + row * C, mean ? mean + row : nullptr,
                                          rscale ? rscale + row : nullptr, from_row(site, row), rows, C, accumulate);
        }
    });
    const Real g = Real(site.g), h = 1 - g;
    auto finish = [&](Real* out, Real factor, size_t which) {
        if (!out) return;
        for (size_t i = 0; i < C; i++) {
            Real sum = 0;
            for (size_t j = 0; j < chunks; j++) sum += columns[(j * 4 + which) * C + i];
            out[i] = (grads.accumulate ? out[i] : 0) + factor * sum;
        }
    };
    finish(grads.weight, g, 0), finish(grads.taper_weight, h * Real(site.c), 1);
    finish(grads.bias, g, 2), finish(grads.taper_bias, h, 2);
    finish(grads.dx_sums, 1, 3);
}

// ---------------------------------------------------------------------------------------------------------------------
// Scale loss on the CPU: lambda mean_tokens (s(h) - s_tgt)^2, h the residual stream that enters the final site. Its relative
// kind is this with lambda / s_tgt^2 (train/schedules.h).

// out += the scale of the stream x [N, C]; the log shows it as s(h), with or without a scale loss.
template <class Real>
void stream_scale(Cpu& dev, StreamScale* out, const Real* x, NormKind kind, double eps, double target, size_t N,
                  size_t C) {
    const size_t chunk = reduction_chunk(N), chunks = (N + chunk - 1) / chunk;
    std::vector<StreamScale> partial(chunks);
    parallel_ranges(dev, chunks, 1, [&](size_t first, size_t last, int) {
        for (size_t i = first; i < last; i++) {
            const size_t row = i * chunk, rows = std::min(chunk, N - row);
            leaf<Real>(dev).stream_scale(&partial[i], x + row * C, kind, Real(eps), Real(target), rows, C);
        }
    });
    for (const StreamScale& p : partial) out->sum += p.sum, out->squares += p.squares;
}

// dx [N, C] += dL/dh, L = lambda / tokens * sum (s - target)^2;  ds/dh = u / (C s).
template <class Real>
void scale_loss_backward(Cpu& dev, Real* dx, const Real* x, NormKind kind, double eps, double target, double lambda,
                         double tokens, size_t N, size_t C) {
    const Real factor = Real(2 * lambda / (tokens * double(C)));
    parallel_ranges(dev, N, 16, [&](size_t row, size_t end, int) {
        leaf<Real>(dev).scale_loss_backward(dx + row * C, x + row * C, kind, Real(eps), Real(target), factor, end - row,
                                            C);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Sites on CUDA: the functions above for another device. A warp computes a row in fp32; a row that was read once is in the
// first-level cache when it is read again.
#ifdef TN_CUDA

constexpr unsigned kSiteWarps = 8;  // rows per block

template <class Real>
__device__ __forceinline__ float row_mean_warp(const Real* x, unsigned C, bool whole) {
    float sum = 0, v[kVector<Real>];
    for (unsigned i = threadIdx.x % 32 * kVector<Real>; i < C; i += 32 * kVector<Real>) {
        load_vector(v, x, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) sum += v[j];
    }
    return warp_sum(sum) / float(C);
}

// s of a row: the root of the mean square of x - m (plus eps).
template <class Real>
__device__ __forceinline__ float row_scale_warp(const Real* x, float m, float eps, unsigned C, bool whole) {
    float sum = 0, v[kVector<Real>];
    for (unsigned i = threadIdx.x % 32 * kVector<Real>; i < C; i += 32 * kVector<Real>) {
        load_vector(v, x, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++)
            if (i + j < C) sum += (v[j] - m) * (v[j] - m);
    }
    return sqrtf(warp_sum(sum) / float(C) + eps);
}

// One vector of columns of a row: u becomes y. gain: what the normalizing branch multiplies u with, 1 / s among it; r = 1 / s;
// rho: the row's.
template <Phase phase, class Real>
__device__ __forceinline__ void site_vector(float (&u)[kVector<Real>], float (&gain)[kVector<Real>],
                                            const SiteArgs<Real, float>& a, float r, float rho, unsigned i, unsigned C,
                                            bool whole) {
    constexpr bool normed = phase == Phase::norm || phase == Phase::blend;
    constexpr bool scaled = phase == Phase::scale || phase == Phase::blend;
    const float g = a.g, h = 1 - a.g;
    float v[kVector<Real>], y[kVector<Real>] = {};
    auto each = [&](const Real* vector, auto&& use) {
        load_vector(v, vector, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) use(j);
    };
    // In this order, no more than three vectors need registers at a time. (A bias may be null, a weight that the phase uses
    // may not.)
    if (normed && a.bias) each(a.bias, [&](unsigned j) { y[j] += g * v[j]; });
    if (scaled && a.taper_bias) each(a.taper_bias, [&](unsigned j) { y[j] += h * v[j]; });
    if constexpr (scaled)
        each(a.taper_weight, [&](unsigned j) { y[j] += bounded(rho * u[j], a.bound) * (h * a.c * v[j]); });
    const float factor = phase == Phase::norm ? r : g * r;
    if constexpr (normed) each(a.weight, [&](unsigned j) { gain[j] = factor * v[j], y[j] += u[j] * gain[j]; });
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) {
        if constexpr (phase == Phase::unweighted) gain[j] = r, y[j] = u[j] * r;
        if constexpr (phase == Phase::clamp) y[j] = bounded(rho * u[j], a.bound);
        u[j] = y[j];
    }
}

// calibration [N, 3]: the row's |gamma u|^2 / s, |gamma u|^2 and s; may be null, as mean and rscale may.
template <class Real, Phase phase>
__global__ void __launch_bounds__(kSiteWarps * 32)
    site_forward_kernel(Real* y, float* mean, float* rscale, float* calibration, const Real* x,
                        SiteArgs<Real, float> site, size_t N, unsigned C, bool whole) {
    const size_t row = size_t(blockIdx.x) * kSiteWarps + threadIdx.x / 32;
    if (row >= N) return;  // a whole warp, and no barrier follows
    constexpr bool statistics = phase != Phase::scale && phase != Phase::clamp;
    const bool centered = site.kind == NormKind::layernorm && phase != Phase::clamp, first = threadIdx.x % 32 == 0;
    x += row * C, y += row * C;
    const float m = centered ? row_mean_warp(x, C, whole) : 0.0f;
    const float s = statistics ? row_scale_warp(x, m, site.eps, C, whole) : 1.0f;
    const float r = 1 / s, rho = site.rho(row);
    if (first && centered && mean) mean[row] = m;
    if (first && statistics && rscale) rscale[row] = r;
    float square = 0, u[kVector<Real>], y_vector[kVector<Real>], gain[kVector<Real>];
    for (unsigned i = threadIdx.x % 32 * kVector<Real>; i < C; i += 32 * kVector<Real>) {
        load_vector(u, x, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) u[j] -= m, y_vector[j] = u[j];
        site_vector<phase>(y_vector, gain, site, r, rho, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) {
            const float product = u[j] * gain[j];  // at g = 1: gamma n
            if (phase == Phase::norm && i + j < C) square += product * product;
        }
        store_vector(y, y_vector, i, C, whole);
    }
    if (phase != Phase::norm || !calibration) return;
    square = warp_sum(square) * s * s;
    if (first) calibration[3 * row] = square * r, calibration[3 * row + 1] = square, calibration[3 * row + 2] = s;
}

template <class Real>
bool site_aligned(const Site<Real>& s) {
    return aligned_16(s.weight, s.bias, s.taper_weight, s.taper_bias);
}

template <class Real>
void site_forward(Cuda& dev, Real* y, float* mean, float* rscale, SiteSums* sums, const Real* x, const Site<Real>& site,
                  size_t N, size_t C) {
    const bool whole = C % kVector<Real> == 0 && aligned_16(x, y) && site_aligned<Real>(site);
    if (site.phase != Phase::norm) sums = nullptr;
    float* calibration = sums ? static_cast<float*>(dev.scratch(3 * N * sizeof(float))) : nullptr;
    auto run = [&]<Phase phase>() {
        launch<site_forward_kernel<Real, phase>>(blocks_for(N, kSiteWarps), kSiteWarps * 32, 0, dev.stream, y, mean,
                                                 rscale, calibration, x, site, N, unsigned(C), whole);
    };
    if (site.phase == Phase::norm) run.template operator()<Phase::norm>();
    if (site.phase == Phase::blend) run.template operator()<Phase::blend>();
    if (site.phase == Phase::scale) run.template operator()<Phase::scale>();
    if (site.phase == Phase::unweighted) run.template operator()<Phase::unweighted>();
    if (site.phase == Phase::clamp) run.template operator()<Phase::clamp>();
    static_assert(sizeof(SiteSums) == 3 * sizeof(double));
    if (sums) sum_rows<3>(dev, reinterpret_cast<double*>(sums), calibration, N);
}

// What the gradient of a row needs to know about it: dx = d (g r gamma + k rho gamma~ [|rho u| < B]) - u slope - offset.
struct SiteRow {
    float m, r, slope, offset;
};

// p_bar, pn_bar and q_bar of a row (top of this file), by one warp.
template <Phase phase, class Real>
__device__ __forceinline__ SiteRow site_row(const Real* dy, const Real* x, float m, float r, float rho,
                                            const SiteArgs<Real, float>& a, unsigned C, bool whole) {
    const float g = a.g, k = (1 - a.g) * a.c * rho;
    // The RMSNorm kind has no use for q_bar, and need not read x for it.
    const bool mean_of_q = phase != Phase::norm && a.kind == NormKind::layernorm;
    float p_bar = 0, pn_bar = 0, q_bar = 0, d[kVector<Real>], u[kVector<Real>], w[kVector<Real>];
    for (unsigned i = threadIdx.x % 32 * kVector<Real>; i < C; i += 32 * kVector<Real>) {
        load_vector(d, dy, i, C, whole);
        load_vector(u, x, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) u[j] -= m;
        if constexpr (phase != Phase::scale) {
            load_vector(w, a.weight, i, C, whole);
#pragma unroll
            for (unsigned j = 0; j < kVector<Real>; j++) {
                const float p = g * w[j] * d[j];  // 0 beyond the row's end
                p_bar += p, pn_bar += p * (u[j] * r);
            }
        }
        if (mean_of_q) {
            load_vector(w, a.taper_weight, i, C, whole);
#pragma unroll
            for (unsigned j = 0; j < kVector<Real>; j++) q_bar += inside(rho * u[j], a.bound) ? k * w[j] * d[j] : 0.0f;
        }
    }
    p_bar = phase != Phase::scale ? warp_sum(p_bar) / float(C) : 0;
    pn_bar = phase != Phase::scale ? warp_sum(pn_bar) / float(C) : 0;
    q_bar = phase != Phase::norm ? warp_sum(q_bar) / float(C) : 0;
    return {m, r, r * r * pn_bar, a.kind == NormKind::layernorm ? r * p_bar + q_bar : 0.0f};
}

// Threads of a block, of which an SM holds two where the registers allow it: one works while the other waits at its barriers.
template <Phase phase, bool whole>
constexpr unsigned kSiteBackwardThreads = whole && phase != Phase::blend ? 384 : 512;

// A block takes as many rows at a time as it has warps: first one warp per row for the row's sums, then one thread per vector of columns
// for dx and for the column sums, which stay in registers. whole: see load_vector; as a constant, it lets loads come before
// what is done with them. columns [blocks, 4, C]: sums of d n, d v, d and dx over the
// rows of the block, those that the phase needs. At g = 0, the RMSNorm kind has no row sums and no barriers.
template <class Real, Phase phase, bool whole>
__global__ void __launch_bounds__(kSiteBackwardThreads<phase, whole>, kSiteBackwardThreads<phase, whole> == 384 ? 2 : 1)
    site_backward_kernel(Real* dx, float* columns, const Real* dy, const Real* x, const float* mean,
                         const float* rscale, SiteArgs<Real, float> site, size_t N, unsigned C, ColumnGrid grid,
                         bool accumulate) {
    constexpr bool normed = phase != Phase::scale, scaled = phase != Phase::norm;
    constexpr unsigned P = kVector<Real>, kTile = kSiteBackwardThreads<phase, whole> / 32;
    const bool centered = site.kind == NormKind::layernorm, row_sums = normed || centered;
    SiteRow* const rows = dynamic_shared<SiteRow>();  // [kTile]
    float* const shared = reinterpret_cast<float*>(rows + kTile);
    const unsigned group = threadIdx.x / grid.vectors, first_column = blockIdx.y * grid.vectors * P;
    const unsigned i = first_column + threadIdx.x % grid.vectors * P, warp = threadIdx.x / 32;
    const bool mine = group < grid.groups && i < C;
    const float g = site.g, k = (1 - site.g) * site.c;
    float dn_sum[P] = {}, dv_sum[P] = {}, d_sum[P] = {}, dx_sum[P] = {}, w[P] = {}, tw[P] = {};
    if (normed && mine) load_vector(w, site.weight, i, C, whole);
    if (scaled && mine) load_vector(tw, site.taper_weight, i, C, whole);
    const size_t end = grid.end(N);
    for (size_t tile = grid.first(N); tile < end; tile += kTile) {
        const size_t row = tile + warp;
        if (row_sums && row < end) {
            const SiteRow sums = site_row<phase>(dy + row * C, x + row * C, centered ? mean[row] : 0.0f,
                                                 normed ? rscale[row] : 0.0f, site.rho(row), site, C, whole);
            if (threadIdx.x % 32 == 0) rows[warp] = sums;
        }
        if (row_sums) __syncthreads();
        for (size_t at = tile + group; mine && at < end && at < tile + kTile; at += grid.groups) {
            float d[P], u[P], out[P] = {};
            const float rho = scaled ? site.rho(at) : 1.0f, k_row = k * rho;
            const SiteRow t = row_sums ? rows[at - tile] : SiteRow{0, 0, 0, 0};
            load_vector(d, dy + at * C, i, C, whole);
            load_vector(u, x + at * C, i, C, whole);
            if (accumulate) load_vector(out, dx + at * C, i, C, whole);
#pragma unroll
            for (unsigned j = 0; j < P; j++) {
                u[j] -= t.m;
                if constexpr (normed)
                    dn_sum[j] += d[j] * (u[j] * t.r), out[j] += g * t.r * w[j] * d[j] - u[j] * t.slope;
                if constexpr (scaled) dv_sum[j] += d[j] * bounded(rho * u[j], site.bound);
                if constexpr (scaled) out[j] += inside(rho * u[j], site.bound) ? k_row * tw[j] * d[j] : 0.0f;
                d_sum[j] += d[j], out[j] -= t.offset, dx_sum[j] += out[j];
            }
            store_vector(dx + at * C, out, i, C, whole);
        }
        if (row_sums) __syncthreads();
    }
    columns += size_t(blockIdx.x) * 4 * C;
    if (normed) store_columns(columns, shared, dn_sum, group, i, first_column, grid, C);
    if (scaled) store_columns(columns + C, shared, dv_sum, group, i, first_column, grid, C);
    if (centered) store_columns(columns + 2 * C, shared, d_sum, group, i, first_column, grid, C);
    store_columns(columns + 3 * C, shared, dx_sum, group, i, first_column, grid, C);
}

template <class Real>
void site_backward(Cuda& dev, Real* dx, const SiteGrads<Real>& grads, const Real* dy, const Real* x, const float* mean,
                   const float* rscale, const Site<Real>& site, size_t N, size_t C, bool accumulate) {
    const bool aligned = C % kVector<Real> == 0 && aligned_16(dx, dy, x) && site_aligned<Real>(site);
    float* columns = nullptr;
    size_t blocks = 0;
    auto run = [&]<Phase phase, bool whole>() {
        constexpr unsigned threads = kSiteBackwardThreads<phase, whole>;
        const ColumnGrid grid = ColumnGrid::of<Real>(dev, N, C, aligned, threads);
        const size_t smem = threads / 32 * sizeof(SiteRow) + grid.groups * grid.vectors * kVector<Real> * sizeof(float);
        blocks = grid.blocks, columns = static_cast<float*>(dev.scratch(blocks * 4 * C * sizeof(float)));
        launch<site_backward_kernel<Real, phase, whole>>(grid.grid(), threads, smem, dev.stream, dx, columns, dy, x,
                                                         mean, rscale, site, N, unsigned(C), grid, accumulate);
    };
    auto run_phase = [&]<Phase phase>() {
        aligned ? run.template operator()<phase, true>() : run.template operator()<phase, false>();
    };
    if (site.phase == Phase::norm) run_phase.template operator()<Phase::norm>();
    if (site.phase == Phase::blend) run_phase.template operator()<Phase::blend>();
    if (site.phase == Phase::scale) run_phase.template operator()<Phase::scale>();
    ColumnTargets<Real> targets{};
    const bool normed = site.phase != Phase::scale, scaled = site.phase != Phase::norm;
    const unsigned evaluated = normed ? 0 : 1;  // what a factor of 0 goes with: no other sum need be there
    auto add = [&](Real* out, bool there, float factor, unsigned source) {
        if (out && (there || !grads.accumulate)) targets.add(out, there ? factor : 0, there ? source : evaluated);
    };
    add(grads.weight, normed, site.g, 0), add(grads.taper_weight, scaled, (1 - site.g) * site.c, 1);
    add(grads.bias, normed, site.g, 2), add(grads.taper_bias, scaled, 1 - site.g, 2);
    add(grads.dx_sums, true, 1, 3);
    columns_reduce(dev, targets, columns, blocks, 4, C, grads.accumulate);
}

// values [N, 2]: s and (s - target)^2 of every row.
template <class Real>
__global__ void __launch_bounds__(kSiteWarps * 32)
    stream_scale_kernel(float* values, const Real* x, NormKind kind, float eps, float target, size_t N, unsigned C,
                        bool whole) {
    const size_t row = size_t(blockIdx.x) * kSiteWarps + threadIdx.x / 32;
    if (row >= N) return;  // a whole warp, and no barrier follows
    x += row * C;
    const float m = kind == NormKind::layernorm ? row_mean_warp(x, C, whole) : 0.0f;
    const float s = row_scale_warp(x, m, eps, C, whole);
    if (threadIdx.x % 32 == 0) values[2 * row] = s, values[2 * row + 1] = (s - target) * (s - target);
}

template <class Real>
void stream_scale(Cuda& dev, StreamScale* out, const Real* x, NormKind kind, double eps, double target, size_t N,
                  size_t C) {
    static_assert(sizeof(StreamScale) == 2 * sizeof(double));
    float* values = static_cast<float*>(dev.scratch(2 * N * sizeof(float)));
    launch<stream_scale_kernel<Real>>(blocks_for(N, kSiteWarps), kSiteWarps * 32, 0, dev.stream, values, x, kind,
                                      float(eps), float(target), N, unsigned(C),
                                      C % kVector<Real> == 0 && aligned_16(x));
    sum_rows<2>(dev, reinterpret_cast<double*>(out), values, N);
}

template <class Real>
__global__ void __launch_bounds__(kSiteWarps * 32)
    scale_loss_backward_kernel(Real* dx, const Real* x, NormKind kind, float eps, float target, float factor, size_t N,
                               unsigned C, bool whole) {
    const size_t row = size_t(blockIdx.x) * kSiteWarps + threadIdx.x / 32;
    if (row >= N) return;  // a whole warp, and no barrier follows
    x += row * C, dx += row * C;
    const float m = kind == NormKind::layernorm ? row_mean_warp(x, C, whole) : 0.0f;
    const float s = row_scale_warp(x, m, eps, C, whole);
    const float f = factor * (s - target) / s;
    float v[kVector<Real>], d[kVector<Real>];
    for (unsigned i = threadIdx.x % 32 * kVector<Real>; i < C; i += 32 * kVector<Real>) {
        load_vector(v, x, i, C, whole);
        load_vector(d, dx, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) d[j] += f * (v[j] - m);
        store_vector(dx, d, i, C, whole);
    }
}

template <class Real>
void scale_loss_backward(Cuda& dev, Real* dx, const Real* x, NormKind kind, double eps, double target, double lambda,
                         double tokens, size_t N, size_t C) {
    launch<scale_loss_backward_kernel<Real>>(blocks_for(N, kSiteWarps), kSiteWarps * 32, 0, dev.stream, dx, x, kind,
                                             float(eps), float(target), float(2 * lambda / (tokens * double(C))), N,
                                             unsigned(C), C % kVector<Real> == 0 && aligned_16(dx, x));
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
