// Choosing the next token from logits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

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

// The tokens that may be sampled, most probable first, with their probabilities: softmax(logits / temperature), cut by
// top_k, then by top_p (at least one token stays), renormalized. Equal logits are ordered by token id.
inline std::vector<TokenProbability> candidates(const float* logits, size_t V, const Sampling& s) {
    std::vector<int> order(V);
    std::iota(order.begin(), order.end(), 0);
    auto before = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
    const size_t keep = s.temperature == 0 ? 1 : s.top_k ? std::min(s.top_k, V) : V;
    if (keep < V)
        std::partial_sort(order.begin(), order.begin() + ptrdiff_t(keep), order.end(), before);
    else
        std::sort(order.begin(), order.end(), before);
    std::vector<TokenProbability> result(keep);
    if (s.temperature == 0) return {{order[0], 1.0}};
    double sum = 0;
    for (size_t i = 0; i < keep; i++) {
        result[i] = {order[i], std::exp((double(logits[order[i]]) - double(logits[order[0]])) / s.temperature)};
        sum += result[i].probability;
    }
    double total = 0, kept_sum = 0;
    size_t kept = 0;
    while (kept < keep && (kept == 0 || total < s.top_p)) {
        total += result[kept].probability / sum;
        kept_sum += result[kept++].probability;
    }
    result.resize(kept);
    for (auto& candidate : result) candidate.probability /= kept_sum;
    return result;
}

// The token for the step-th choice of this seed (inverse of the cumulative distribution).
inline int sample(const float* logits, size_t V, const Sampling& s, uint64_t step) {
    const std::vector<TokenProbability> choice = candidates(logits, V, s);
    double u = random_uniform(s.seed, kSampleStream, step);
    for (const TokenProbability& c : choice)
        if ((u -= c.probability) < 0) return c.token;
    return choice.back().token;
}
