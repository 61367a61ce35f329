// Choosing the next token from logits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "ops/math.h"
#include "runtime/random.h"

struct Sampling {
    double temperature = 1;  // 0: greedy
    size_t top_k = 0;        // only the k most probable tokens; 0: all
    double top_p = 1;        // only the most probable tokens that together reach p
    uint64_t seed = 1;
};

constexpr uint64_t kSampleStream = 0x5a3b1e;  // of random numbers

struct TokenProbability {
    int token;
    double probability;
};

// The first of the largest.
inline size_t argmax(const float* x, size_t n) {
    const float top = row_max(x, n);
    return size_t(std::find(x, x + n, top) - x);
}

// Tokens by falling probability of softmax(logits / temperature), equal logits by token id. Only as many are put in order
// as are looked at: few, in general. Weights are exp((logit - largest) / temperature).
class RankedTokens {
  public:
    RankedTokens(const float* logits, size_t V, double temperature) : logits_(logits), weights_(V), order_(V) {
        const float top = row_max(logits, V), scale = float(1 / temperature);
        float* const w = weights_.data();
#pragma omp simd
        for (size_t i = 0; i < V; i++) w[i] = exp_r((logits[i] - top) * scale);
        std::iota(order_.begin(), order_.end(), 0);
    }
    size_t token(size_t rank) {
        if (rank >= sorted_) {
            const size_t n = std::min(order_.size(), std::max<size_t>(rank + 1, 8 * std::max<size_t>(sorted_, 8)));
            auto before = [&](int a, int b) { return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b); };
            const auto begin = order_.begin() + ptrdiff_t(sorted_), end = order_.begin() + ptrdiff_t(n);
            if (n < order_.size()) std::nth_element(begin, end, order_.end(), before);
            std::sort(begin, end, before);
            sorted_ = n;
        }
        return size_t(order_[rank]);
    }
    double weight(size_t rank) { return double(weights_[token(rank)]); }

    // Of the first `keep` weights.
    double sum(size_t keep) {
        double total = 0;
        if (keep < weights_.size()) {
            for (size_t i = 0; i < keep; i++) total += weight(i);
            return total;
        }
        constexpr size_t kBlock = 256;  // added in fp32
        for (size_t i = 0; i < keep; i += kBlock) {
            const float* const w = &weights_[i];
            const size_t n = std::min(kBlock, keep - i);
            float part = 0;
#pragma omp simd reduction(+ : part)
            for (size_t j = 0; j < n; j++) part += w[j];
            total += double(part);
        }
        return total;
    }

  private:
    const float* logits_;
    std::vector<float> weights_;
    std::vector<int> order_;
    size_t sorted_ = 0;
};

// The tokens that may be sampled, most probable first, with their probabilities: softmax(logits / temperature), cut by
// top_k, then by top_p (at least one token stays), renormalized.
inline std::vector<TokenProbability> candidates(const float* logits, size_t V, const Sampling& s) {
    if (s.temperature == 0) return {{int(argmax(logits, V)), 1.0}};
    RankedTokens ranked(logits, V, s.temperature);
    const size_t keep = s.top_k ? std::min(s.top_k, V) : V;
    const double sum = ranked.sum(keep);
    std::vector<TokenProbability> result;
    double kept_sum = 0;
    while (result.size() < keep && (result.empty() || kept_sum < s.top_p)) {
        result.push_back({int(ranked.token(result.size())), ranked.weight(result.size()) / sum});
        kept_sum += result.back().probability;
    }
    for (auto& candidate : result) candidate.probability /= kept_sum;
    return result;
}

// The token for the step-th choice of this seed (inverse of the cumulative distribution over the candidates).
inline int sample(const float* logits, size_t V, const Sampling& s, uint64_t step) {
    if (s.temperature == 0) return int(argmax(logits, V));
    double u = random_uniform(s.seed, kSampleStream, step);
    if (s.top_p >= 1) {  // no need to know all candidates
        RankedTokens ranked(logits, V, s.temperature);
        const size_t keep = s.top_k ? std::min(s.top_k, V) : V;
        u *= ranked.sum(keep);
        size_t rank = 0;  // stays at the last token that has a weight, where rounding leaves u behind all of them
        while ((u -= ranked.weight(rank)) >= 0 && rank + 1 < keep && ranked.weight(rank + 1) > 0) rank++;
        return int(ranked.token(rank));
    }
    const std::vector<TokenProbability> choice = candidates(logits, V, s);
    for (const TokenProbability& c : choice)
        if ((u -= c.probability) < 0) return c.token;
    return choice.back().token;
}
