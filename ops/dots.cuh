// Dot products of int8 numbers: rows of floats, rounded here, with panels of 64 columns of int8 weights (ops/panels.cuh).
//
// A row is cut into groups of 128 numbers (the last may be shorter), and each group is rounded with a step of its own:
//
//   step = max |x| / 127, a[k] = round(x[k] * (127 / max |x|)), to even
//   sum over k of x[k] q[k, n] ~ sum over groups of step * (sum over k of a[k] q[k, n])
//
// Processors multiply unsigned by signed bytes, and add four products to one int32. So weights are stored as u = q + 128, in
// words of 4 consecutive k, and a group's sum begins with -128 times the sum of a[k] and goes on with a[k] u[k, n]. On its
// way it is never larger than 128 * 128 * (128 + 255) < 2^23: an int32 holds it, and a float does so exactly. Then two
// roundings follow, of the product with the step and of the sum over groups, in their order; they are never fused. So the
// result has the same bits on all instruction sets, and for any number of rows, columns or threads.
//
// A group whose step would be denormal counts as zeros. One with an infinity or a NaN has the step NaN: then the whole row
// of the result is NaN.
#pragma once
#include "ops/gemm.cuh"
#if defined(LEAF_BUILD) && defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tapernorm {

constexpr size_t kDotGroup = 128, kDotColumns = 64, kDotWord = 4;

// The groups of a row of K numbers.
constexpr size_t dot_groups(size_t K) { return (K + kDotGroup - 1) / kDotGroup; }

// Bytes of K numbers of a row, rounded, in the largest of the forms below.
constexpr size_t rounded_row_bytes(size_t K) { return dot_groups(K) * (2 + kDotGroup) * sizeof(int32_t); }

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

using Floats = Simd<float>::V;
using Integers [[gnu::vector_size(kVectorBytes)]] = int32_t;
constexpr size_t kFloatLanes = Simd<float>::kLanes;

// How 4 numbers of a row times 4 weights are added to each int32 of a vector. The numbers are in kWords words, by pack().
#if defined(__AVX2__)
// VNNI, for machines that have it (Cpu::dot_instruction). As assembly, because a template cannot be compiled for more
// instructions than the rest of its file.
struct DotInstruction {
    static constexpr size_t kWords = 1, kRows = 6;
    static void pack(int32_t* words, const int32_t* a) {
        unsigned char* bytes = reinterpret_cast<unsigned char*>(words);
        for (size_t k = 0; k < kDotGroup; k++) bytes[k] = static_cast<unsigned char>(a[k]);
    }
    [[gnu::always_inline]] static inline void add(Integers& sum, const Integers& weights, const Integers (&a)[kWords]) {
#if defined(__AVX512F__)
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(a[0]));
#else
        asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(a[0]));
#endif
    }
};
#endif

#if defined(__x86_64__)
// Pairs of 16-bit numbers, which every machine of the architecture multiplies and adds: the even bytes of the words, then
// the odd ones.
struct Dot {
    static constexpr size_t kWords = 2, kRows = kVectorBytes == 64 ? 6 : 4;
    static void pack(int32_t* words, const int32_t* a) {
        for (size_t k = 0; k < kDotGroup; k += 4, words += 2)
            for (size_t odd = 0; odd < 2; odd++) words[odd] = (a[k + odd] & 0xffff) | a[k + odd + 2] << 16;
    }
    [[gnu::always_inline]] static inline Integers products(const Integers& weights, const Integers& a) {
#if defined(__AVX512F__)
        return __builtin_bit_cast(Integers, _mm512_madd_epi16(__builtin_bit_cast(__m512i, weights),
                                                              __builtin_bit_cast(__m512i, a)));
#elif defined(__AVX2__)
        return __builtin_bit_cast(Integers, _mm256_madd_epi16(__builtin_bit_cast(__m256i, weights),
                                                              __builtin_bit_cast(__m256i, a)));
#else
        return __builtin_bit_cast(Integers,
                                  _mm_madd_epi16(__builtin_bit_cast(__m128i, weights), __builtin_bit_cast(__m128i, a)));
#endif
    }
    [[gnu::always_inline]] static inline void add(Integers& sum, const Integers& weights, const Integers (&a)[kWords]) {
        using Halves [[gnu::vector_size(kVectorBytes)]] = uint16_t;
        const Halves w = __builtin_bit_cast(Halves, weights);
        sum += products(__builtin_bit_cast(Integers, w & (Halves{} + uint16_t(255))), a[0]) +
               products(__builtin_bit_cast(Integers, w >> 8), a[1]);
    }
};
#else
struct Dot {
    static constexpr size_t kWords = 4, kRows = 4;
    static void pack(int32_t* words, const int32_t* a) { copy(words, a, kDotGroup); }
    [[gnu::always_inline]] static inline void add(Integers& sum, const Integers& weights, const Integers (&a)[kWords]) {
        for (size_t i = 0; i < kWords; i++) sum += (weights >> int(8 * i) & 255) * a[i];
    }
};
#endif

// 128 numbers of a row, rounded.
template <class D>
struct DotGroup {
    float step;
    int32_t start;  // -128 times the sum of the rounded numbers
    int32_t words[kDotGroup / kDotWord * D::kWords];
};

// What is in x is rounded to float before it is used, not fused with the sum that it goes into.
template <class V>
[[gnu::always_inline]] inline void rounded(V& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#else
    asm("" : "+w"(x));
#endif
}

// x [128]
template <class D>
void round_group(DotGroup<D>& out, const float* x) {
    constexpr float kMagic =
        0x1.8p23f;  // added to a number between -2^22 and 2^22, it leaves that in the lowest bits, rounded to even
    constexpr int32_t kInfinity = 0x7f800000;
    int32_t top = 0;  // the bits of max |x|: as integers NaNs are larger than all numbers
    for (size_t k = 0; k < kDotGroup; k++) {
        const int32_t bits = __builtin_bit_cast(int32_t, x[k]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    const float largest = __builtin_bit_cast(float, top);
    const bool zero = !(largest / 127 >= __FLT_MIN__);
    out.step = top >= kInfinity ? __builtin_nanf("") : zero ? 0 : largest / 127;
    const float inverse = top >= kInfinity || zero ? 0 : 127 / largest;
    int32_t a[kDotGroup];
    Integers total{};
    for (size_t k = 0; k < kDotGroup; k += kFloatLanes) {
        Floats scaled;
        load(scaled, x + k);
        scaled *= inverse;
        rounded(scaled);
        const Integers q = __builtin_bit_cast(Integers, scaled + kMagic) << 24 >> 24;
        total += q;
        store(a + k, q);
    }
    int32_t sum = 0;
    for (size_t i = 0; i < kFloatLanes; i++) sum += total[i];
    out.start = -128 * sum;
    D::pack(out.words, a);
}

template <class D>
void round_row(DotGroup<D>* out, const float* x, size_t K) {
    for (size_t k = 0; k < K; k += kDotGroup, out++) {
        if (K - k >= kDotGroup) {
            round_group(*out, x + k);
        } else {
            float padded[kDotGroup] = {};
            copy(padded, x + k, K - k);
            round_group(*out, padded);
        }
    }
}

// sums [rows, 64] (+)= one group of each row, `groups` apart, times `words` rows of a panel; one tile of columns.
template <class D, size_t kRows>
[[gnu::always_inline]] inline void dot_tile(float* sums, const DotGroup<D>* in, size_t groups, const unsigned char* w,
                                            size_t words, bool first) {
    Integers sum[kRows][kTileVectors];
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (size_t v = 0; v < kTileVectors; v++) sum[r][v] = Integers{} + in[r * groups].start;
    for (size_t k = 0; k < words; k++, w += kDotColumns * kDotWord) {
        Integers weights[kTileVectors];
#pragma GCC unroll 4
        for (size_t v = 0; v < kTileVectors; v++)
            load(weights[v], reinterpret_cast<const int32_t*>(w + v * kVectorBytes));
#pragma GCC unroll 6
        for (size_t r = 0; r < kRows; r++) {
            Integers a[D::kWords];
#pragma GCC unroll 4
            for (size_t i = 0; i < D::kWords; i++) a[i] = Integers{} + in[r * groups].words[k * D::kWords + i];
#pragma GCC unroll 4
            for (size_t v = 0; v < kTileVectors; v++) D::add(sum[r][v], weights[v], a);
        }
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (size_t v = 0; v < kTileVectors; v++) {
            float* const to = sums + r * kDotColumns + v * kFloatLanes;
            Floats value = __builtin_convertvector(sum[r][v], Floats) * in[r * groups].step, before{};
            rounded(value);
            if (!first) load(before, to);
            store(to, before + value);
        }
}

template <class D, size_t kRows>
void dot_rows(size_t rows, float* sums, const DotGroup<D>* in, size_t groups, const unsigned char* w, size_t words,
              bool first) {
    if constexpr (kRows > 1)
        if (rows < kRows) return dot_rows<D, kRows - 1>(rows, sums, in, groups, w, words, first);
    constexpr size_t kWidth = kTileVectors * kFloatLanes;
    for (size_t j = 0; j < kDotColumns; j += kWidth)
        dot_tile<D, kRows>(sums + j, in, groups, w + j * kDotWord, words, first);
}

// sums [rows, 64] = in [rows, K] panel [K / 4, 64, 4]. A group of the panel stays in the first-level cache for all rows.
template <class D>
void dot_panel(float* sums, const DotGroup<D>* in, const unsigned char* panel, size_t K, size_t rows) {
    const size_t groups = dot_groups(K);
    for (size_t g = 0; g < groups; g++, panel += kDotGroup * kDotColumns) {
        const size_t n = K - g * kDotGroup < kDotGroup ? K - g * kDotGroup : kDotGroup;
        for (size_t r = 0; r < rows; r += D::kRows)
            dot_rows<D, D::kRows>(rows - r < D::kRows ? rows - r : D::kRows, sums + r * kDotColumns,
                                  in + r * groups + g, groups, panel, (n + kDotWord - 1) / kDotWord, g == 0);
    }
}

}  // namespace
#endif

}  // namespace tapernorm
