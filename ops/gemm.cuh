// The CPU's matrix product C = epilogue(alpha op(A) op(B)), row-major: under every linear layer (ops/linear.cuh) and the
// attention of the CPU. The same product on a GPU is in ops/gemm_cublaslt.cuh.
//
// It has the usual three loops around a register tile (Goto and van de Geijn, 2008), with one twist: a tile of 6 rows
// reads A where it lies, so only B is copied (and A, when it is transposed and large). Every element of C is one chain of
// multiply-adds over k, cut into blocks of k that depend on K alone; so no bit of a result depends on the number of
// threads or on the tile that an element falls into. Up to kFewRows rows take another path, which adds in another order:
// there, the same row of A can give different last bits.
#pragma once
#include "ops/gelu.cuh"
#include "ops/leaf.h"
#include "ops/reduce.cuh"

namespace tapernorm {

// One product. op(A) is [M, K], op(B) is [K, N]; a transposed operand is stored [K, M] or [N, K]. residual,
// pre_gelu and gelu_grad_at are [M, N] with C's leading dimension; C must not overlap A or B.
//
//   value = alpha op(A) op(B) + (accumulate ? C : residual or 0) + (bias or 0)
//   C     = gelu ? gelu(value), and pre_gelu = value  :  gelu_grad_at ? value gelu'(gelu_grad_at)  :  value
template <class Real>
struct Gemm {
    size_t M, N, K;
    const Real* A;
    size_t lda;
    bool trans_a;
    const Real* B;
    size_t ldb;
    bool trans_b;
    Real* C;
    size_t ldc;
    Real alpha = Real(1);
    bool accumulate = false;
    const Real* bias = nullptr;      // [N]
    const Real* residual = nullptr;  // [M, N], not together with accumulate
    bool gelu = false;
    Real* pre_gelu = nullptr;            // [M, N], an output
    const Real* gelu_grad_at = nullptr;  // [M, N], an input
    Real* c_sums = nullptr;              // [N], an output: the column sums of the finished C, = or +=; needs ldc = N
    bool accumulate_sums = false;
    void* pack = nullptr;  // gemm_single only: gemm_pack_bytes<Real>() bytes, 64-byte aligned
};

// The part of C that one thread computes: rows [i0, i1), columns [j0, j1). j0 is a multiple of kColumnGrain.
struct Band {
    size_t i0, i1, j0, j1;
};

// Rows of a register tile, and the cache blocks: the packed block of B (kBlockK x kBlockN) stays in the second-level cache,
// six rows of A (kBlockK long) in the first. Columns are counted in floats; of doubles there are half as many.
constexpr size_t kTileRows = 6, kColumnGrain = 64;
constexpr size_t kBlockK = 384, kBlockM = 192;
// A transposed A is copied only where kBlockK of its rows are more than this: steps of k are a row apart, which must then stay in
// the second-level cache. (Measured on AVX-512: in place is 1.05 to 1.4 times as fast up to 512 columns, and slower from 1024 on.)
constexpr size_t kInPlaceBytes = kBlockK * 512 * sizeof(float);
template <class Real>
constexpr size_t kBlockN = 768 * sizeof(float) / sizeof(Real);

// With up to this many rows of A, B is read once and in place.
constexpr size_t kFewRows = 4;

template <class Real>
constexpr size_t gemm_pack_bytes() {
    return kBlockK * (kBlockN<Real> + kBlockM) * sizeof(Real);
}

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

#if defined(__AVX512F__)
constexpr size_t kVectorBytes = 64, kTileVectors = 4;  // 24 of 32 registers hold the tile
#elif defined(__AVX2__)
constexpr size_t kVectorBytes = 32, kTileVectors = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr size_t kVectorBytes = 16, kTileVectors = 4;  // 24 of 32
#else
constexpr size_t kVectorBytes = 16, kTileVectors = 2;  // 12 of 16
#endif

template <class Real>
struct Simd {
    using V [[gnu::vector_size(kVectorBytes)]] = Real;
    static constexpr size_t kLanes = kVectorBytes / sizeof(Real), kTileColumns = kTileVectors * kLanes;
};

template <class V, class Real>
[[gnu::always_inline]] inline void load(V& v, const Real* p) {
    __builtin_memcpy(&v, p, sizeof v);
}
template <class V, class Real>
[[gnu::always_inline]] inline void store(Real* p, const V& v) {
    __builtin_memcpy(p, &v, sizeof v);
}

template <class Real>
void copy(Real* to, const Real* from, size_t n) {
    __builtin_memcpy(to, from, n * sizeof(Real));
}

// One register tile over one block of k: c = alpha a b + (init or 0) + (bias or 0).
template <class Real>
struct Tile {
    size_t kc;
    const Real* a;  // row r, step k: a[r lda + k], or a[k lda + r] when transposed
    size_t lda;
    const Real* b;  // packed: b[k width + j]
    Real alpha;
    const Real* init;  // leading dimension ldc, may be c
    const Real* bias;
    Real* c;
    size_t ldc;
};

template <class Real, size_t kRows, size_t kVectors, bool kTransposedA>
void tile(const Tile<Real>& t) {
    using V = typename Simd<Real>::V;
    constexpr size_t kLanes = Simd<Real>::kLanes, kWidth = kVectors * kLanes;
    constexpr size_t kAhead = 8;  // steps of k between the prefetch of a row of b and its use
    const size_t row_stride = kTransposedA ? 1 : t.lda, k_stride = kTransposedA ? t.lda : 1;
    for (size_t r = 0; r < kRows; r++)
        for (size_t j = 0; j < kVectors; j++) __builtin_prefetch(t.c + r * t.ldc + j * kLanes);
    V sum[kRows][kVectors] = {};
    const Real *a = t.a, *b = t.b;
    for (size_t k = 0; k < t.kc; k++, a += k_stride, b += kWidth) {
        V row[kVectors];
#pragma GCC unroll 4
        for (size_t j = 0; j < kVectors; j++) {
            load(row[j], b + j * kLanes);
            __builtin_prefetch(b + kAhead * kWidth + j * kLanes);
        }
        if (kTransposedA) __builtin_prefetch(a + kAhead * k_stride);
#pragma GCC unroll 6
        for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
            for (size_t j = 0; j < kVectors; j++) sum[r][j] += row[j] * a[r * row_stride];
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (size_t j = 0; j < kVectors; j++) {
            V value = sum[r][j] * t.alpha, term;
            if (t.init) load(term, t.init + r * t.ldc + j * kLanes), value += term;
            if (t.bias) load(term, t.bias + j * kLanes), value += term;
            store(t.c + r * t.ldc + j * kLanes, value);
        }
}

template <class Real, size_t kVectors, bool kTransposedA>
void tile_of_height(size_t rows, const Tile<Real>& t) {
    switch (rows) {
        case 1:
            return tile<Real, 1, kVectors, kTransposedA>(t);
        case 2:
            return tile<Real, 2, kVectors, kTransposedA>(t);
        case 3:
            return tile<Real, 3, kVectors, kTransposedA>(t);
        case 4:
            return tile<Real, 4, kVectors, kTransposedA>(t);
        case 5:
            return tile<Real, 5, kVectors, kTransposedA>(t);
        default:
            return tile<Real, 6, kVectors, kTransposedA>(t);
    }
}

// The width of the tile for the last n columns: 1, 2 or 4 vectors.
template <class Real>
size_t tile_width(size_t n) {
    size_t width = Simd<Real>::kLanes;
    while (width < n && width < Simd<Real>::kTileColumns) width *= 2;
    return width;
}

template <class Real, bool kTransposedA>
void tile_of_size(size_t rows, size_t width, const Tile<Real>& t) {
    constexpr size_t kLanes = Simd<Real>::kLanes;
    if (width == kLanes) return tile_of_height<Real, 1, kTransposedA>(rows, t);
    if (width == 2 * kLanes) return tile_of_height<Real, 2, kTransposedA>(rows, t);
    tile_of_height<Real, kTileVectors, kTransposedA>(rows, t);
}

// A tile of which only n columns exist: computes the full tile on a padded copy, so that edges get the same arithmetic.
template <class Real, bool kTransposedA>
[[gnu::noinline]] void partial_tile(size_t rows, size_t width, size_t n, Tile<Real> t) {
    constexpr size_t kColumns = Simd<Real>::kTileColumns;
    Real c[kTileRows * kColumns] = {}, bias[kColumns] = {};
    Real* const target = t.c;
    const size_t ldc = t.ldc;
    if (t.init)
        for (size_t r = 0; r < rows; r++) copy(c + r * kColumns, t.init + r * ldc, n);
    if (t.bias) copy(bias, t.bias, n);
    t.c = c, t.ldc = kColumns, t.init = t.init ? c : nullptr, t.bias = t.bias ? bias : nullptr;
    tile_of_size<Real, kTransposedA>(rows, width, t);
    for (size_t r = 0; r < rows; r++) copy(target + r * ldc, c + r * kColumns, n);
}

// out[k width + j] = in[j ld + k] for j < n, k < kc: 4 x 4 blocks, transposed in registers.
template <class Real>
void pack_transposed(Real* out, const Real* in, size_t ld, size_t kc, size_t n, size_t width) {
    using V4 [[gnu::vector_size(4 * sizeof(Real))]] = Real;
    const size_t n4 = n / 4 * 4, k4 = kc / 4 * 4;
    for (size_t j = 0; j < n4; j += 4) {
        const Real* rows = in + j * ld;
        for (size_t k = 0; k < k4; k += 4) {
            V4 a, b, c, d;
            load(a, rows + k), load(b, rows + ld + k), load(c, rows + 2 * ld + k), load(d, rows + 3 * ld + k);
            const V4 ab01 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab23 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            const V4 cd01 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd23 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            Real* to = out + k * width + j;
            store(to, V4(__builtin_shufflevector(ab01, cd01, 0, 1, 4, 5)));
            store(to + width, V4(__builtin_shufflevector(ab01, cd01, 2, 3, 6, 7)));
            store(to + 2 * width, V4(__builtin_shufflevector(ab23, cd23, 0, 1, 4, 5)));
            store(to + 3 * width, V4(__builtin_shufflevector(ab23, cd23, 2, 3, 6, 7)));
        }
        for (size_t k = k4; k < kc; k++)
            for (size_t r = 0; r < 4; r++) out[k * width + j + r] = rows[r * ld + k];
    }
    for (size_t k = 0; k < kc; k++)
        for (size_t j = n4; j < n; j++) out[k * width + j] = in[j * ld + k];
}

// Packs kc rows of op(B), columns [j0, j1), into panels as wide as the tiles that will read them, with zeros to the right
// of the last one. The panel of column j starts at out + (j - j0) kc.
template <class Real>
void pack_panels(Real* out, const Gemm<Real>& g, size_t k0, size_t kc, size_t j0, size_t j1) {
    constexpr size_t kColumns = Simd<Real>::kTileColumns, kAhead = 8;
    const size_t full = (j1 - j0) / kColumns * kColumns, n = j1 - j0 - full, width = tile_width<Real>(n);
    Real* const tail = out + full * kc;
    if (g.trans_b) {
        for (size_t j = 0; j < full; j += kColumns)
            pack_transposed(out + j * kc, g.B + (j0 + j) * g.ldb + k0, g.ldb, kc, kColumns, kColumns);
        pack_transposed(tail, g.B + (j0 + full) * g.ldb + k0, g.ldb, kc, n, width);
    }
    for (size_t k = 0; k < kc && !g.trans_b; k++) {
        const Real* row = g.B + (k0 + k) * g.ldb + j0;
        for (size_t j = 0; j < full; j += kColumns) {
            copy(out + j * kc + k * kColumns, row + j, kColumns);
            for (size_t v = 0; v < kTileVectors; v++)
                __builtin_prefetch(row + kAhead * g.ldb + j + v * Simd<Real>::kLanes, 0, 2);
        }
        for (size_t j = 0; j < n; j++) tail[k * width + j] = row[full + j];
    }
    for (size_t k = 0; k < kc && n; k++)
        for (size_t j = n; j < width; j++) tail[k * width + j] = 0;
}

// Packs mc columns of the transposed A into slivers of kTileRows: sliver s holds out[(s kc + k) kTileRows + r]. Eight rows
// at a time, so that reads and writes both come in whole cache lines.
template <class Real>
void pack_slivers(Real* out, const Real* in, size_t ld, size_t kc, size_t mc) {
    constexpr size_t kStep = 8;
    for (size_t k0 = 0; k0 < kc; k0 += kStep) {
        const size_t k1 = k0 + kStep < kc ? k0 + kStep : kc;
        Real* to = out + k0 * kTileRows;
        size_t i = 0;
        for (; i + kTileRows <= mc; i += kTileRows, to += kc * kTileRows)
            for (size_t k = k0; k < k1; k++) {
                __builtin_prefetch(in + (k + 2 * kStep) * ld + i, 0, 2);
                copy(to + (k - k0) * kTileRows, in + k * ld + i, kTileRows);
            }
        for (size_t k = k0; k < k1; k++)
            for (size_t r = 0; i + r < mc; r++) to[(k - k0) * kTileRows + r] = in[k * ld + i + r];
    }
}

// The part of the epilogue after the sums are complete, on row i, columns [j0, j1): GELU or its derivative. It always works
// on full chunks, so that every element gets the same instructions wherever the row is cut.
template <class Real>
void finish_row(const Gemm<Real>& g, size_t i, size_t j0, size_t j1) {
    constexpr size_t kChunk = 64;
    for (size_t j = j0; j < j1; j += kChunk) {
        const size_t n = j1 - j < kChunk ? j1 - j : kChunk, at = i * g.ldc + j;
        Real value[kChunk], point[kChunk], result[kChunk];
        if (n < kChunk)
            for (size_t x = 0; x < kChunk; x++) value[x] = point[x] = 0;
        copy(value, g.C + at, n);
        if (g.gelu) {
            if (g.pre_gelu) copy(g.pre_gelu + at, value, n);
            leaf_gelu_forward(result, value, kChunk);
        } else {
            copy(point, g.gelu_grad_at + at, n);
            leaf_gelu_backward(result, value, point, kChunk);
        }
        copy(g.C + at, result, n);
    }
}

// Prefetches columns [k0, k1) of the next six rows of A, which are read in place and not in sequence.
template <class Real>
void prefetch_rows(const Real* a, size_t lda, size_t k0, size_t k1) {
    constexpr size_t kLine = 64 / sizeof(Real);
    for (size_t k = k0 / kLine * kLine; k < k1; k += kLine)
        for (size_t r = 0; r < kTileRows; r++) __builtin_prefetch(a + r * lda + k, 0, 2);
}

// All tiles of a band over one block of k. `a` is op(A) at (band.i0, k0), as Tile has it; its rows are `row_step` apart.
template <class Real, bool kTransposedA>
void multiply_block(const Gemm<Real>& g, const Real* a, size_t lda, size_t row_step, const Real* packed_b, size_t k0,
                    size_t kc, Band band) {
    constexpr size_t kColumns = Simd<Real>::kTileColumns;
    const bool first = k0 == 0, last = k0 + kc == g.K;
    const Real* init = !first || g.accumulate ? g.C : g.residual;
    for (size_t i = band.i0; i < band.i1; i += kTileRows) {
        const size_t rows = band.i1 - i < kTileRows ? band.i1 - i : kTileRows;
        const Real* sliver = a + (i - band.i0) * row_step;
        for (size_t j = band.j0; j < band.j1; j += kColumns) {
            const size_t n = band.j1 - j < kColumns ? band.j1 - j : kColumns, width = tile_width<Real>(n);
            const size_t at = i * g.ldc + j, done = j - band.j0, all = band.j1 - band.j0;
            if (!kTransposedA) prefetch_rows(sliver + kTileRows * lda, lda, kc * done / all, kc * (done + n) / all);
            const Tile<Real> t = {kc,
                                  sliver,
                                  lda,
                                  packed_b + done * kc,
                                  g.alpha,
                                  init ? init + at : nullptr,
                                  first && g.bias ? g.bias + j : nullptr,
                                  g.C + at,
                                  g.ldc};
            if (n == width)
                tile_of_size<Real, kTransposedA>(rows, width, t);
            else
                partial_tile<Real, kTransposedA>(rows, width, n, t);
        }
        if (last && (g.gelu || g.gelu_grad_at))
            for (size_t r = 0; r < rows; r++) finish_row(g, i + r, band.j0, band.j1);
    }
}

// n cut into equal blocks of at most `limit`, rounded up to a multiple of `grain`.
inline size_t even_block(size_t n, size_t limit, size_t grain) {
    const size_t blocks = (n + limit - 1) / limit;
    return blocks < 2 ? (n ? n : 1) : ((n + blocks - 1) / blocks + grain - 1) / grain * grain;
}

template <class Real>
void multiply_packed(const Gemm<Real>& g, Band band, void* pack) {
    Real* const packed_b = static_cast<Real*>(pack);
    Real* const packed_a = packed_b + kBlockK * kBlockN<Real>;
    const size_t block_k = even_block(g.K, kBlockK, 8);
    const size_t block_n = even_block(band.j1 - band.j0, kBlockN<Real>, Simd<Real>::kTileColumns);
    for (size_t j0 = band.j0; j0 < band.j1; j0 += block_n) {
        const size_t j1 = j0 + block_n < band.j1 ? j0 + block_n : band.j1;
        size_t k0 = 0;
        do {
            const size_t kc = g.K - k0 < block_k ? g.K - k0 : block_k;
            pack_panels(packed_b, g, k0, kc, j0, j1);
            const Band block = {band.i0, band.i1, j0, j1};
            if (!g.trans_a) {
                multiply_block<Real, false>(g, g.A + band.i0 * g.lda + k0, g.lda, g.lda, packed_b, k0, kc, block);
            } else if (kc * g.lda * sizeof(Real) <= kInPlaceBytes) {
                multiply_block<Real, true>(g, g.A + k0 * g.lda + band.i0, g.lda, 1, packed_b, k0, kc, block);
            } else {
                for (size_t i0 = band.i0; i0 < band.i1; i0 += kBlockM) {
                    const size_t i1 = i0 + kBlockM < band.i1 ? i0 + kBlockM : band.i1;
                    pack_slivers(packed_a, g.A + k0 * g.lda + i0, g.lda, kc, i1 - i0);
                    multiply_block<Real, true>(g, packed_a, kTileRows, kc, packed_b, k0, kc, {i0, i1, j0, j1});
                }
            }
            k0 += kc;
        } while (k0 < g.K);
    }
}

// C += alpha A B for kRows rows of A, columns [j0, j1), kDepth rows of B at a time.
template <class Real, size_t kRows, size_t kDepth>
void add_rows(const Gemm<Real>& g, size_t k, size_t j0, size_t j1) {
    using V = typename Simd<Real>::V;
    constexpr size_t kLanes = Simd<Real>::kLanes;
    const Real* b = g.B + k * g.ldb;
    Real x[kRows][kDepth];
    for (size_t i = 0; i < kRows; i++)
        for (size_t d = 0; d < kDepth; d++) x[i][d] = g.alpha * g.A[i * g.lda + k + d];
    size_t j = j0;
    for (; j + kLanes <= j1; j += kLanes) {
        V row[kDepth], c;
#pragma GCC unroll 8
        for (size_t d = 0; d < kDepth; d++) {
            load(row[d], b + d * g.ldb + j);
            __builtin_prefetch(b + (kDepth + d) * g.ldb + j, 0, 2);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < kRows; i++) {
            V sum = row[0] * x[i][0];
#pragma GCC unroll 8
            for (size_t d = 1; d < kDepth; d++) sum += row[d] * x[i][d];
            load(c, g.C + i * g.ldc + j);
            store(g.C + i * g.ldc + j, V(c + sum));
        }
    }
    for (; j < j1; j++)
        for (size_t i = 0; i < kRows; i++) {
            Real sum = b[j] * x[i][0];
            for (size_t d = 1; d < kDepth; d++) sum += b[d * g.ldb + j] * x[i][d];
            g.C[i * g.ldc + j] += sum;
        }
}

// C += alpha A B^T for kRows rows of A and kDots rows of B from row j on: dot products of contiguous rows.
template <class Real, size_t kRows, size_t kDots>
void add_dots(const Gemm<Real>& g, size_t j) {
    using V = typename Simd<Real>::V;
    constexpr size_t kLanes = Simd<Real>::kLanes;
    const Real* b = g.B + j * g.ldb;
    V sum[kRows][kDots] = {};
    size_t k = 0;
    for (; k + kLanes <= g.K; k += kLanes) {
        V row[kDots], x;
#pragma GCC unroll 4
        for (size_t d = 0; d < kDots; d++) {
            load(row[d], b + d * g.ldb + k);
            __builtin_prefetch(b + (kDots + d) * g.ldb + k);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < kRows; i++) {
            load(x, g.A + i * g.lda + k);
#pragma GCC unroll 4
            for (size_t d = 0; d < kDots; d++) sum[i][d] += row[d] * x;
        }
    }
    for (size_t i = 0; i < kRows; i++)
        for (size_t d = 0; d < kDots; d++) {
            Real total = 0;
            for (size_t lane = 0; lane < kLanes; lane++) total += sum[i][d][lane];
            for (size_t kk = k; kk < g.K; kk++) total += g.A[i * g.lda + kk] * b[d * g.ldb + kk];
            g.C[i * g.ldc + j + d] += g.alpha * total;
        }
}

// kRows rows of C, with B read once and in place.
template <class Real, size_t kRows>
void multiply_few_rows(const Gemm<Real>& g, size_t j0, size_t j1) {
    constexpr size_t kDepth = 8, kDots = 4;
    for (size_t i = 0; i < kRows; i++)
        for (size_t j = j0; j < j1; j++) {
            Real* c = g.C + i * g.ldc + j;
            *c = (g.accumulate ? *c : g.residual ? g.residual[i * g.ldc + j] : 0) + (g.bias ? g.bias[j] : 0);
        }
    if (g.trans_b) {
        size_t j = j0;
        for (; j + kDots <= j1; j += kDots) add_dots<Real, kRows, kDots>(g, j);
        for (; j < j1; j++) add_dots<Real, kRows, 1>(g, j);
    } else {
        size_t k = 0;
        for (; k + kDepth <= g.K; k += kDepth) add_rows<Real, kRows, kDepth>(g, k, j0, j1);
        for (; k < g.K; k++) add_rows<Real, kRows, 1>(g, k, j0, j1);
    }
    if (g.gelu || g.gelu_grad_at)
        for (size_t i = 0; i < kRows; i++) finish_row(g, i, j0, j1);
}

template <class Real>
void leaf_gemm(const Gemm<Real>& g, Band band, void* pack) {
    if (band.i0 == band.i1 || band.j0 == band.j1) return;
    if (g.trans_a || g.M > kFewRows) return multiply_packed(g, band, pack);
    switch (g.M) {
        case 1:
            return multiply_few_rows<Real, 1>(g, band.j0, band.j1);
        case 2:
            return multiply_few_rows<Real, 2>(g, band.j0, band.j1);
        case 3:
            return multiply_few_rows<Real, 3>(g, band.j0, band.j1);
        default:
            return multiply_few_rows<Real, 4>(g, band.j0, band.j1);
    }
}

}  // namespace
#else  // ---- CPU

// Cuts C into bands of rows, of columns or of both, one per thread, or two where there is much to do: a thread that has less of its
// core than the others leaves them one. It takes the cheapest cut, where copying an element of an operand counts as much as kCopy
// multiply-adds. Threads do not wait for one another; each copies what it needs.
template <class Real>
void gemm(Cpu& dev, const Gemm<Real>& g) {
    constexpr size_t kCopy = 8, kSmallest = 1 << 17, kLarge = 1 << 22;  // multiply-adds: worth a thread, two bands
    if (g.M == 0 || g.N == 0) return;
    const size_t row_blocks = (g.M + kTileRows - 1) / kTileRows;
    const size_t column_blocks = (g.N + kColumnGrain - 1) / kColumnGrain;
    const size_t useful = 1 + g.M * g.N * g.K / kSmallest;
    const size_t threads = useful < size_t(dev.threads) ? useful : size_t(dev.threads);
    const size_t bands = threads > 1 && g.M * g.N * g.K / threads >= kLarge ? 2 * threads : threads;
    size_t best_cost = ~size_t(0), down = 1, across = 1;
    for (size_t a = 1; a <= bands && a <= column_blocks; a++) {
        const size_t d = bands / a < row_blocks ? bands / a : row_blocks;
        const size_t rows = (row_blocks + d - 1) / d * kTileRows;
        const size_t columns = (column_blocks + a - 1) / a * kColumnGrain;
        const size_t cost = rows * columns + kCopy * (rows + columns);
        if (cost < best_cost) best_cost = cost, down = d, across = a;
    }
    parallel_ranges(dev, down * across, 1, [&](size_t part, size_t end, int thread) {
        for (; part < end; part++) {
            const size_t d = part / across, a = part % across;
            const size_t i1 = (d + 1) * row_blocks / down * kTileRows;
            const size_t j1 = (a + 1) * column_blocks / across * kColumnGrain;
            leaf<Real>(dev).gemm(g,
                                 {d * row_blocks / down * kTileRows, i1 < g.M ? i1 : g.M,
                                  a * column_blocks / across * kColumnGrain, j1 < g.N ? j1 : g.N},
                                 dev.scratch(thread, gemm_pack_bytes<Real>()));
        }
    });
    if (g.c_sums) column_sums(dev, g.c_sums, g.C, g.M, g.N, g.accumulate_sums);
}

// The same on the calling thread, for loops that are parallel already. Without g.pack it uses, and so invalidates, the
// thread's scratch.
template <class Real>
void gemm_single(Cpu& dev, int thread, const Gemm<Real>& g) {
    leaf<Real>(dev).gemm(g, {0, g.M, 0, g.N}, g.pack ? g.pack : dev.scratch(thread, gemm_pack_bytes<Real>()));
}
#endif

}  // namespace tapernorm
