// What an update of a run is made with, as functions of its settings: the learning rate, the scale loss. The gate's schedule is
// part of the method (tapernorm.cuh).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "train/settings.h"

namespace tapernorm::train {

// The learning rate of update k, counted from 1, of `steps`.
inline double lr_schedule(const Settings& s, size_t k) {
    const size_t warmup = s.warmup.resolve(s.steps);
    if (k <= warmup) return s.lr * double(k) / double(warmup);
    const double last = s.lr * s.lr_final_frac;
    const double done = s.steps > warmup ? double(k - warmup) / double(s.steps - warmup) : 1;  // in (0, 1]
    if (s.lr_schedule == "constant") return s.lr;
    if (s.lr_schedule == "linear") return s.lr + (last - s.lr) * done;
    if (s.lr_schedule == "wsd") {
        const double decay = double(s.steps) * 0.2, left = double(s.steps - k);
        return left >= decay ? s.lr : last + (s.lr - last) * left / decay;
    }
    return last + (s.lr - last) * 0.5 * (1 + std::cos(M_PI * done));
}

// lambda mean_tokens (s(h) - target)^2, h the residual stream that enters the final site; lambda = 0: none.
struct ScaleLoss {
    double lambda = 0, target = 0;
};

// Relative: --scale-loss times mean (s / s_tgt - 1)^2, in which a pretrained stream of s = 20 weighs what one of s = 1 does. Below
// s_tgt = 1 both kinds are the same: a run of few updates calibrates on s = 0.05, and may grow from there.
inline ScaleLoss scale_loss(const Settings& s, double target) {
    const double unit = s.scale_loss_kind == "relative" ? std::max(target, 1.0) : 1.0;
    return {s.scale_loss / (unit * unit), target};
}

}  // namespace tapernorm::train
