// Random numbers without hidden state: every value is a function of (seed, stream, index), so initial weights and samples
// depend neither on the number of threads nor on the order in which they are drawn.
#pragma once
#include <cmath>
#include <cstdint>

#include "runtime/types.h"

namespace tapernorm {

// SplitMix64's output function: a bijection of 64-bit numbers that passes BigCrush when fed with a counter.
TN_HOST_DEVICE inline uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

TN_HOST_DEVICE inline uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index) {
    return mix64(mix64(mix64(seed) ^ stream) ^ index);
}

// In (0, 1), with 53 bits.
TN_HOST_DEVICE inline double random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (double(random_bits(seed, stream, index) >> 11) + 0.5) * 0x1p-53;
}

// Standard normal (Box-Muller).
inline double random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    const double u = random_uniform(seed, stream, 2 * index), v = random_uniform(seed, stream, 2 * index + 1);
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

}  // namespace tapernorm
