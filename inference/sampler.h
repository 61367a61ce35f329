// Choosing the next token from logits.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "ops/math.h"
#include "runtime/random.h"

namespace tapernorm {

struct Sampling {
    double temperature = 1;  // see is_greedy
    size_t top_k = 0;        // only the k most probable tokens; 0: all
    double top_p = 1;        // only the most probable tokens that together reach p
    uint64_t seed = 1;
    uint64_t stream = 1;  // of random numbers; of several sequences, the first one's, and each has the next

    // Always the most probable token: at temperature 0, and near it, where 1 / temperature would not fit into a float.
    bool is_greedy() const { return !(temperature >= 1e-6); }
};

// Stream n, from 1, as random_bits counts them: away from those of the initial weights.
constexpr uint64_t sample_stream(uint64_t n) { return 0x5a3b1d + n; }

struct TokenProbability {
    int token;
    double probability;
};

// The index of the largest number, the first one if there are several.
inline size_t argmax(const float* x, size_t n) {
    const float top = row_max(x, n);
    return size_t(std::find(x, x + n, top) - x);
}

// exp((logit - largest) / temperature), [V]
inline std::vector<float> sampling_weights(const float* logits, size_t V, double temperature) {
    const float top = row_max(logits, V), inverse_temperature = float(1 / temperature);
    std::vector<float> w(V);
    float* const to = w.data();
#pragma omp simd
    for (size_t i = 0; i < V; i++) to[i] = exp_r((logits[i] - top) * inverse_temperature);
    return w;
}

// The tokens that may be sampled, most probable first, with their probabilities: softmax(logits / temperature), cut by
// top_k, then by top_p (at least one token stays), renormalized. Equal logits are ordered by token id.
inline std::vector<TokenProbability> candidates(const float* logits, size_t V, const Sampling& s) {
    if (s.is_greedy()) return {{int(argmax(logits, V)), 1.0}};
    const std::vector<float> w = sampling_weights(logits, V, s.temperature);
    std::vector<int> order(V);
    std::iota(order.begin(), order.end(), 0);
    const size_t keep = s.top_k ? std::min(s.top_k, V) : V;
    std::partial_sort(order.begin(), order.begin() + ptrdiff_t(keep), order.end(),
                      [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
    double sum = 0, kept_sum = 0;
    for (size_t i = 0; i < keep; i++) sum += double(w[size_t(order[i])]);
    std::vector<TokenProbability> result;
    while (result.size() < keep && (result.empty() || kept_sum < s.top_p)) {
        const int token = order[result.size()];
        result.push_back({token, double(w[size_t(token)]) / sum});
        kept_sum += result.back().probability;
    }
    for (auto& candidate : result) candidate.probability /= kept_sum;
    return result;
}

// Looks for a token by the sum of the weights down to it, without putting all of them in order: the upper half of a weight's
// bits is its bucket, and only one bucket is sorted.
class WeightBuckets {
  public:
    WeightBuckets(const float* logits, size_t V, double temperature)
        : logits_(logits), weights_(sampling_weights(logits, V, temperature)), sums_(bucket(1.0f) + 1, 0.0) {
        for (const float w : weights_) sums_[bucket(w)] += double(w);
        for (const double x : sums_) total_ += x;
    }
    double total() const { return total_; }

    struct Place {
        size_t token;
        double sum;  // the sum of the weights down to it, its own included
    };
    // The most probable token for which that sum reaches `target`; the least probable one where none does.
    Place find(double target) const {
        size_t b = sums_.size() - 1;
        double sum = 0;
        while (b > 0 && (sums_[b] == 0 || sum + sums_[b] < target)) sum += sums_[b--];
        while (sums_[b] == 0) b++;  // rounding: the last one that has any, again
        std::vector<size_t> tokens;
        for (size_t i = 0; i < weights_.size(); i++)
            if (bucket(weights_[i]) == b && weights_[i] > 0) tokens.push_back(i);
        if (tokens.empty()) return {0, sum};  // the logits are NaN or Inf
        std::sort(tokens.begin(), tokens.end(),
                  [&](size_t x, size_t y) { return logits_[x] > logits_[y] || (logits_[x] == logits_[y] && x < y); });
        size_t i = 0;
        while ((sum += double(weights_[tokens[i]])) < target && i + 1 < tokens.size()) i++;
        return {tokens[i], sum};
    }

  private:
    static size_t bucket(float w) { return w >= 0 && w <= 1 ? std::bit_cast<uint32_t>(w) >> 16 : 0; }

    const float* logits_;
    std::vector<float> weights_;
    std::vector<double> sums_;
    double total_ = 0;
};

// The token for the step-th choice of this seed and stream (inverse of the cumulative distribution over the candidates).
inline int sample(const float* logits, size_t V, const Sampling& s, uint64_t step) {
    if (s.is_greedy()) return int(argmax(logits, V));
    double u = random_uniform(s.seed, sample_stream(s.stream), step);
    if (s.top_k == 0 || s.top_k >= V) {
        const WeightBuckets buckets(logits, V, s.temperature);
        const double total = buckets.total();
        return int(buckets.find(u * (s.top_p < 1 ? buckets.find(s.top_p * total).sum : total)).token);
    }
    const std::vector<TokenProbability> choice = candidates(logits, V, s);
    for (const TokenProbability& c : choice)
        if ((u -= c.probability) < 0) return c.token;
    return choice.back().token;
}

}  // namespace tapernorm
