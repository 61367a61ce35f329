// Elementary functions for the leaf loops: plain arithmetic that compilers turn into vector code.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tapernorm {

namespace {

[[gnu::always_inline]] inline double exp_r(double x) { return __builtin_exp(x); }

// exp(x): a relative error below 3e-7 for x in [-87.3, 88.3]; 0 below, where exp(x) < 1.3e-38; the value at 88.3 above; NaN
// stays NaN. x = n ln2 + r with |r| <= ln2 / 2; e^r by a degree-6 polynomial (minimax, Remez), then n goes into the exponent.
// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer: one of the reasons why fast-math is never used. Far below
// the range the exponent means nothing and is not used; it is unsigned because it overflows there.
[[gnu::always_inline]] constexpr float exp_r(float x) {
    const float kRound = 12582912.0f, kLow = -87.3f, kHigh = 88.3f;
    const float clamped = x > kHigh ? kHigh : x;
    const float shifted = clamped * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const uint32_t bits = (__builtin_bit_cast(uint32_t, shifted) << 23) + 0x3f800000u;
    const float power = __builtin_bit_cast(float, bits);
    return x < kLow ? 0.0f : p * power;
}

template <class Real>
[[gnu::always_inline]] inline Real row_max(const Real* z, size_t V) {
    Real top = z[0];
#pragma omp simd reduction(max : top)
    for (size_t i = 0; i < V; i++) top = top > z[i] ? top : z[i];
    return top;
}

}  // namespace

}  // namespace tapernorm
