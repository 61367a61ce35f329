// Which updates stand out from those before them, so that the trainer can leave them out.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>

#include "runtime/median.h"

namespace tapernorm::train {

// The z-score of the newest loss among the last 128, to recognise spikes.
struct LossWindow {
    static constexpr size_t kSize = 128;
    std::deque<double> losses;

    // 0 until the window is full.
    double z_score(double loss) const {
        if (losses.size() < kSize) return 0;
        double mean = 0, square = 0;
        for (double x : losses) mean += x / kSize;
        for (double x : losses) square += (x - mean) * (x - mean) / kSize;
        return square > 0 ? (loss - mean) / std::sqrt(square) : 0;
    }
    void add(double loss) {
        losses.push_back(loss);
        if (losses.size() > kSize) losses.pop_front();
    }
};

// The newest gradient norm against the median of the last 32. A z-score would not do: where single sequences run off in
// blocks without norms, norms of 1e30 occur, and one such value in the window would let all others pass. A median follows
// a new level within 16 updates, so nothing is left out for good.
struct GradientWindow {
    static constexpr size_t kSize = 32, kLeast = 16;
    std::deque<double> norms;

    // Infinite for a norm that is NaN or Inf; 0 until there are kLeast norms, or if half of them are NaN or Inf.
    double over_median(double norm) const {
        if (norms.size() < kLeast) return 0;
        const double usual = median({norms.begin(), norms.end()});
        if (!std::isfinite(usual) || usual == 0) return 0;
        return std::isfinite(norm) ? norm / usual : INFINITY;
    }
    void add(double norm) {
        norms.push_back(std::isfinite(norm) ? norm : INFINITY);
        if (norms.size() > kSize) norms.pop_front();
    }
};

}  // namespace tapernorm::train
