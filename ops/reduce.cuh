// Column sums, and what the CUDA halves of the op cards share: rows read as 16-byte vectors, and sums whose order is fixed. No
// sum of floats goes through an atomic: blocks leave partial sums in scratch, and one more small kernel adds them in order, so
// that the same program on the same GPU always gives the same bits.
#pragma once
#ifndef LEAF_BUILD
#include <algorithm>

#include "runtime/cpu.h"

namespace tapernorm {

// out [C] = or += the column sums of in [N, C].
template <class Real>
void column_sums(Cpu& dev, Real* out, const Real* in, size_t N, size_t C, bool accumulate) {
    const size_t chunk = reduction_chunk(N), chunks = (N + chunk - 1) / chunk;
    Real* columns = static_cast<Real*>(dev.shared_scratch(chunks * C * sizeof(Real)));
    parallel_ranges(dev, chunks, 1, [&](size_t first, size_t last, int) {
        for (size_t j = first; j < last; j++) {
            Real* mine = columns + j * C;
            std::fill_n(mine, C, Real(0));
            size_t row = j * chunk;
            const size_t end = std::min(N, row + chunk);
            for (; row + 4 <= end; row += 4) {  // four at a time, which costs `mine` a quarter of the accesses
                const Real *r0 = in + row * C, *r1 = r0 + C, *r2 = r1 + C, *r3 = r2 + C;
                for (size_t i = 0; i < C; i++) mine[i] += (r0[i] + r1[i]) + (r2[i] + r3[i]);
            }
            for (; row < end; row++)
                for (size_t i = 0; i < C; i++) mine[i] += in[row * C + i];
        }
    });
    if (!accumulate) std::fill_n(out, C, Real(0));
    for (size_t j = 0; j < chunks; j++)
        for (size_t i = 0; i < C; i++) out[i] += columns[j * C + i];
}

}  // namespace tapernorm
#endif

#ifdef TN_CUDA
#include <cstdint>

#include "runtime/cuda.cuh"
#include "runtime/ptx.cuh"

namespace tapernorm {

// ---------------------------------------------------------------------------------------------------------------------
// Rows as vectors: a vector is as many elements as 16 bytes hold

template <class Real>
constexpr unsigned kVector = Pack<Real>::kSize;

// Whether all these addresses allow 16-byte accesses (null counts as such).
template <class... Pointer>
bool aligned_16(const Pointer*... p) {
    return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

// 8 bytes of T, where lanes that take 16 would leave gaps between them.
template <class T>
struct alignas(8) HalfPack {
    static constexpr int kSize = int(8 / sizeof(T));
    T v[kSize];
    __device__ __forceinline__ T& operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};
template <class T>
__device__ __forceinline__ HalfPack<T> load_half(const T* p) {
    HalfPack<T> pack;
    *reinterpret_cast<uint2*>(&pack) = *reinterpret_cast<const uint2*>(p);
    return pack;
}
template <class T>
__device__ __forceinline__ void store_half(T* p, const HalfPack<T>& pack) {
    *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(&pack);
}

// Elements i .. i + N of a row of n, with 0 beyond its end; N is kVector<Real> or half of it. `whole`: n is a multiple of N and
// the row is 16-byte aligned, which is the fast case.
template <unsigned N, class Real>
__device__ __forceinline__ void load_vector(float (&v)[N], const Real* row, unsigned i, unsigned n, bool whole) {
    auto take = [&](const auto& pack) {
#pragma unroll
        for (unsigned j = 0; j < N; j++) v[j] = float(pack[int(j)]);
    };
    if (!whole) {
#pragma unroll
        for (unsigned j = 0; j < N; j++) v[j] = i + j < n ? float(row[i + j]) : 0.0f;
    } else if constexpr (N == kVector<Real>) {
        take(load_pack(row + i));
    } else {
        static_assert(2 * N == kVector<Real>);
        take(load_half(row + i));
    }
}

template <unsigned N, class Real>
__device__ __forceinline__ void store_vector(Real* row, const float (&v)[N], unsigned i, unsigned n, bool whole) {
    auto fill = [&](auto pack) {
#pragma unroll
        for (unsigned j = 0; j < N; j++) pack[int(j)] = Real(v[j]);
        return pack;
    };
    if (!whole) {
#pragma unroll
        for (unsigned j = 0; j < N; j++)
            if (i + j < n) row[i + j] = Real(v[j]);
    } else if constexpr (N == kVector<Real>) {
        store_pack(row + i, fill(Pack<Real>()));
    } else {
        store_half(row + i, fill(HalfPack<Real>()));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Warps and blocks

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
    return x;
}

// The sum over a block of any multiple of 32 threads, for thread 0. shared: one T per warp.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    T total = 0;
    if (threadIdx.x == 0)
        for (unsigned w = 0; w < blockDim.x / 32; w++) total += shared[w];
    return total;
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over rows of a few numbers each: sums[k] += sum_row values[row, k], in double

template <unsigned K>
__global__ void __launch_bounds__(1024) sum_rows_kernel(double* sums, const float* values, size_t rows) {
    double* shared = dynamic_shared<double>();  // [K, 32]
    double mine[K] = {};
#pragma unroll 4
    for (size_t row = threadIdx.x; row < rows; row += blockDim.x)
        for (unsigned k = 0; k < K; k++) mine[k] += double(values[row * K + k]);
    for (unsigned k = 0; k < K; k++) {
        const double total = block_sum(mine[k], shared + 32 * k);
        if (threadIdx.x == 0) sums[k] += total;
    }
}

template <unsigned K>
void sum_rows(Cuda& dev, double* sums, const float* values, size_t rows) {
    const unsigned threads = rows > 256 ? 1024 : 128;
    launch<sum_rows_kernel<K>>(1, threads, K * 32 * sizeof(double), dev.stream, sums, values, rows);
}

// ---------------------------------------------------------------------------------------------------------------------
// Column sums: blocks hold partial sums over their rows, columns_reduce adds those in order

// How a kernel of column sums cuts [N, C]: a block owns a strip of columns and a range of rows. Within it a thread owns one
// vector of columns, and `groups` threads divide the rows.
struct ColumnGrid {
    unsigned vectors;  // per strip
    unsigned groups, strips, blocks;
    bool whole;                                // 16-byte accesses, see load_vector
    static constexpr unsigned kThreads = 512;  // of kernels that do not say otherwise

    // A block takes as many rows at a time as it has warps.
    template <class Real>
    static ColumnGrid of(const Cuda& dev, size_t N, size_t C, bool aligned, unsigned threads = kThreads) {
        ColumnGrid g;
        const unsigned all = unsigned((C + kVector<Real> - 1) / kVector<Real>), tile = threads / 32;
        g.strips = (all + threads - 1) / threads;
        g.vectors = (all + g.strips - 1) / g.strips;
        g.groups = threads / g.vectors < tile ? threads / g.vectors : tile;
        const size_t tiles = (N + tile - 1) / tile, wanted = 2 * size_t(dev.multiprocessors());
        g.blocks = unsigned(tiles < wanted ? tiles : wanted);
        g.whole = aligned && C % kVector<Real> == 0;
        return g;
    }
    dim3 grid() const { return {blocks, strips, 1}; }
    // The rows of this block are [first, end).
    __device__ size_t first(size_t N) const { return N * blockIdx.x / gridDim.x; }
    __device__ size_t end(size_t N) const { return N * (blockIdx.x + 1) / gridDim.x; }
};

// Adds one partial sum over the groups of this block into columns [C]: `mine` belongs to column i and the following ones.
// shared [groups, vectors * kVector]. All threads call it.
template <unsigned kWidth>
__device__ __forceinline__ void store_columns(float* columns, float* shared, const float (&mine)[kWidth],
                                              unsigned group, unsigned i, unsigned first_column, const ColumnGrid& grid,
                                              unsigned C) {
    const unsigned width = grid.vectors * kWidth;
    if (group < grid.groups)
        for (unsigned j = 0; j < kWidth; j++) shared[group * width + i - first_column + j] = mine[j];
    __syncthreads();
    for (unsigned c = threadIdx.x; c < width && first_column + c < C; c += blockDim.x) {
        float total = 0;
        for (unsigned g = 0; g < grid.groups; g++) total += shared[g * width + c];
        columns[first_column + c] = total;
    }
    __syncthreads();
}

// Where the sums go: out[t] (+)= factor[t] * sum number source[t].
template <class Real>
struct ColumnTargets {
    static constexpr unsigned kMost = 5;
    Real* out[kMost];
    float factor[kMost];
    unsigned source[kMost];
    unsigned count;

    void add(Real* out_, float factor_, unsigned source_) {
        out[count] = out_, factor[count] = factor_, source[count] = source_, count++;
    }
};

// columns [parts, sums, C]. A block finishes 32 columns of target blockIdx.y, with 8 threads per column.
template <class Real>
__global__ void __launch_bounds__(256)
    columns_reduce_kernel(const __grid_constant__ ColumnTargets<Real> targets, const float* columns, unsigned parts,
                          unsigned sums, unsigned C, bool accumulate) {
    float* shared = dynamic_shared<float>();  // [8, 32]
    const unsigned lane = threadIdx.x % 32, group = threadIdx.x / 32, c = blockIdx.x * 32 + lane, t = blockIdx.y;
    float sum = 0;
    if (c < C)
#pragma unroll 8
        for (unsigned p = group; p < parts; p += 8) sum += columns[(size_t(p) * sums + targets.source[t]) * C + c];
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (group == 0 && c < C) {
        for (unsigned g = 1; g < 8; g++) sum += shared[g * 32 + lane];
        Real* out = targets.out[t] + c;
        *out = Real((accumulate ? float(*out) : 0.0f) + targets.factor[t] * sum);
    }
}

template <class Real>
void columns_reduce(Cuda& dev, const ColumnTargets<Real>& targets, const float* columns, size_t parts, size_t sums,
                    size_t C, bool accumulate) {
    launch<columns_reduce_kernel<Real>>(dim3(blocks_for(C, 32), targets.count), 256, 256 * sizeof(float), dev.stream,
                                        targets, columns, unsigned(parts), unsigned(sums), unsigned(C), accumulate);
}

// columns [blocks, C]: sums over the block's rows of in [N, C].
template <class Real>
__global__ void __launch_bounds__(ColumnGrid::kThreads)
    column_sums_kernel(float* columns, const Real* in, size_t N, unsigned C, ColumnGrid grid) {
    float* shared = dynamic_shared<float>();
    const unsigned group = threadIdx.x / grid.vectors, first_column = blockIdx.y * grid.vectors * kVector<Real>;
    const unsigned i = first_column + threadIdx.x % grid.vectors * kVector<Real>;
    float sum[kVector<Real>] = {}, v[kVector<Real>];
    if (group < grid.groups && i < C)
#pragma unroll 4
        for (size_t row = grid.first(N) + group; row < grid.end(N); row += grid.groups) {
            load_vector(v, in + row * C, i, C, grid.whole);
#pragma unroll
            for (unsigned j = 0; j < kVector<Real>; j++) sum[j] += v[j];
        }
    store_columns(columns + size_t(blockIdx.x) * C, shared, sum, group, i, first_column, grid, C);
}

template <class Real>
void column_sums(Cuda& dev, Real* out, const Real* in, size_t N, size_t C, bool accumulate) {
    const ColumnGrid grid = ColumnGrid::of<Real>(dev, N, C, aligned_16(in));
    float* columns = static_cast<float*>(dev.scratch(grid.blocks * C * sizeof(float)));
    launch<column_sums_kernel<Real>>(grid.grid(), ColumnGrid::kThreads,
                                     grid.groups * grid.vectors * kVector<Real> * sizeof(float), dev.stream, columns,
                                     in, N, unsigned(C), grid);
    ColumnTargets<Real> targets{};
    targets.add(out, 1, 0);
    columns_reduce(dev, targets, columns, grid.blocks, 1, C, accumulate);
}

}  // namespace tapernorm
#endif  // TN_CUDA
