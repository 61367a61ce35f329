// Watching the residual stream: s(h) of the stream into every norm site, and which site left its scale first.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "model/config.h"

namespace tapernorm::train {

// A factor by which a stream may leave the scale that it was calibrated at before the trainer warns.
constexpr double kDrift = 4;

// The stream that enters one norm site.
struct SiteScale {
    std::string site;
    double now;         // mean s(h) over the rows
    double calibrated;  // what it was on average when the site was calibrated; 0: not known
};

// streams: [N, C] into every site, in the order of the forward pass, 2 L + 1 of them. scratch: on the device, room for one.
// averages: Calibration's mean s(h) of the tapering sites, empty before there are any.
template <class Device, class Real>
std::vector<SiteScale> measure_site_scales(Device& dev, const Config& c, const std::vector<const Real*>& streams,
                                           StreamScale* scratch, const std::vector<double>& averages, size_t N) {
    const std::vector<std::string> names = site_names(c);
    std::vector<SiteScale> scales;
    for (size_t i = 0; i < streams.size(); i++) {
        StreamScale sum;
        device_copy_in(dev, scratch, &sum, sizeof sum);
        stream_scale(dev, scratch, streams[i], c.norm, c.eps, 0, N, c.C);
        device_copy_out(dev, &sum, scratch, sizeof sum);
        scales.push_back({names[i], sum.sum / double(N), i < averages.size() ? averages[i] : 0});
    }
    return scales;
}

// How far from its calibration: a factor of at least 1; infinite if s(h) is NaN or Inf; 1 if it was never calibrated.
inline double moved_by(const SiteScale& s) {
    if (!std::isfinite(s.now)) return INFINITY;
    if (!(s.calibrated > 0)) return 1;
    return s.now > 0 ? std::max(s.now / s.calibrated, s.calibrated / s.now) : INFINITY;
}

// One clause for a message: the first site, in the order of the forward pass, that is off its calibration by more than
// `limit`; where none is, the one that is furthest off, and without a calibration, the largest.
inline std::string which_moved_first(const std::vector<SiteScale>& scales, double limit) {
    const SiteScale* found = &scales[0];
    auto further = [](const SiteScale& a, const SiteScale& b) {
        return std::pair(moved_by(a), a.now) > std::pair(moved_by(b), b.now);
    };
    for (const SiteScale& s : scales) {
        if (further(s, *found)) found = &s;
        if (moved_by(s) > limit) break;
    }
    if (!std::isfinite(found->now))
        return strprintf("the stream into %s is the first that is not finite", found->site.c_str());
    const std::string calibrated = found->calibrated > 0 ? strprintf(", calibrated at %.3g", found->calibrated) : "";
    return strprintf("%s %s: s(h) %.3g%s",
                     moved_by(*found) > limit ? "the first site to leave its scale is"
                     : found->calibrated > 0  ? "furthest off its scale is"
                                              : "the largest stream is that into",
                     found->site.c_str(), found->now, calibrated.c_str());
}

}  // namespace tapernorm::train
