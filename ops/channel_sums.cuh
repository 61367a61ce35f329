// Sums by channel over the rows of a residual stream x, for calibration by channel (tapernorm.cuh: fit_channel). With
// u = x - mean and 1 / s of its row (mean: null for the RMSNorm kind, whose u is x),
//   sums [4, C] += sum u, sum u^2, sum u^2 / s, sum u / s
// over all rows but every sequence's first, where it has another: the first position of a pretrained GPT-2 is far larger than the
// others, and what the fit would make of it is right for neither.
#pragma once
#include <cstddef>
#ifndef LEAF_BUILD
#include <algorithm>

#include "ops/leaf.h"
#include "runtime/types.h"
#endif
#include "ops/reduce.cuh"

namespace tapernorm {

constexpr size_t kChannelSums = 4;

#ifdef LEAF_BUILD
namespace {

// columns [4, C] +=. first: the number of the first of these rows.
template <class Real>
void leaf_channel_sums(Real* columns, const Real* x, const Real* mean, const Real* rscale, size_t first, size_t T,
                       size_t rows, size_t C) {
    Real *u_sum = columns, *square_sum = columns + C, *ratio_sum = columns + 2 * C, *n_sum = columns + 3 * C;
    for (size_t row = 0; row < rows; row++, x += C) {
        if (T > 1 && (first + row) % T == 0) continue;
        const Real m = mean ? mean[row] : Real(0), r = rscale[row];
        for (size_t i = 0; i < C; i++) {
            const Real u = x[i] - m;
            u_sum[i] += u, square_sum[i] += u * u, ratio_sum[i] += u * u * r, n_sum[i] += u * r;
        }
    }
}

}  // namespace
#else

// How many rows of N, in sequences of T, the sums are over.
inline size_t channel_rows(size_t N, size_t T) { return T > 1 ? N - N / T : N; }

// x [N, C] in sequences of T rows, mean and rscale = 1 / s [N]; sums [4, C] +=, rounded as Acc<Real>.
template <class Real>
void channel_sums(Cpu& dev, Acc<Real>* sums, const Real* x, const Acc<Real>* mean, const Acc<Real>* rscale, size_t N,
                  size_t T, size_t C) {
    const size_t chunk = reduction_chunk(N), chunks = (N + chunk - 1) / chunk, width = kChannelSums * C;
    Real* columns = static_cast<Real*>(dev.shared_scratch(chunks * width * sizeof(Real)));
    parallel_ranges(dev, chunks, 1, [&](size_t first, size_t last, int) {
        for (size_t i = first; i < last; i++) {
            const size_t row = i * chunk;
            std::fill_n(columns + i * width, width, Real(0));
            leaf<Real>(dev).channel_sums(columns + i * width, x + row * C, mean ? mean + row : nullptr, rscale + row,
                                         row, T, std::min(chunk, N - row), C);
        }
    });
    for (size_t i = 0; i < width; i++) {
        double sum = 0;
        for (size_t j = 0; j < chunks; j++) sum += double(columns[j * width + i]);
        sums[i] += Acc<Real>(sum);
    }
}

// sum += 1 / s of the rows of first positions; rscale = 1 / s [N], in sequences of T rows.
template <class Acc>
void sum_first(Cpu&, Acc* sum, const Acc* rscale, size_t N, size_t T) {
    double total = 0;
    for (size_t row = 0; row < N; row += T) total += double(rscale[row]);
    *sum += Acc(total);
}

#ifdef TN_CUDA

// One warp.
static __global__ void __launch_bounds__(32) sum_first_kernel(float* sum, const float* rscale, size_t N, size_t T) {
    float total = 0;
    for (size_t row = threadIdx.x * T; row < N; row += 32 * T) total += rscale[row];
    total = warp_sum(total);
    if (threadIdx.x == 0) *sum += total;
}

inline void sum_first(Cuda& dev, float* sum, const float* rscale, size_t N, size_t T) {
    launch<sum_first_kernel>(1, 32, 0, dev.stream, sum, rscale, N, T);
}

// columns [blocks, 4, C]: sums over the block's rows.
template <class Real>
__global__ void __launch_bounds__(ColumnGrid::kThreads)
    channel_sums_kernel(float* columns, const Real* x, const float* mean, const float* rscale, size_t N, unsigned T,
                        unsigned C, ColumnGrid grid) {
    constexpr unsigned P = kVector<Real>;
    float* shared = dynamic_shared<float>();
    const unsigned group = threadIdx.x / grid.vectors, first_column = blockIdx.y * grid.vectors * P;
    const unsigned i = first_column + threadIdx.x % grid.vectors * P;
    float sums[kChannelSums][P] = {}, u[P];
    if (group < grid.groups && i < C)
        for (size_t row = grid.first(N) + group; row < grid.end(N); row += grid.groups) {
            if (T > 1 && unsigned(row) % T == 0) continue;  // a division of 64 bits spills registers
            const float m = mean ? mean[row] : 0.0f, r = rscale[row];
            load_vector(u, x + row * C, i, C, grid.whole);
#pragma unroll
            for (unsigned j = 0; j < P; j++) {
                u[j] -= m;
                sums[0][j] += u[j], sums[1][j] += u[j] * u[j];
                sums[2][j] += u[j] * u[j] * r, sums[3][j] += u[j] * r;
            }
        }
    columns += size_t(blockIdx.x) * kChannelSums * C;
#pragma unroll
    for (unsigned k = 0; k < kChannelSums; k++)
        store_columns(columns + size_t(k) * C, shared, sums[k], group, i, first_column, grid, C);
}

template <class Real>
void channel_sums(Cuda& dev, float* sums, const Real* x, const float* mean, const float* rscale, size_t N, size_t T,
                  size_t C) {
    const ColumnGrid grid = ColumnGrid::of<Real>(dev, N, C, aligned_16(x));
    float* columns = static_cast<float*>(dev.scratch(grid.blocks * kChannelSums * C * sizeof(float)));
    launch<channel_sums_kernel<Real>>(grid.grid(), ColumnGrid::kThreads,
                                      grid.groups * grid.vectors * kVector<Real> * sizeof(float), dev.stream, columns,
                                      x, mean, rscale, N, unsigned(T), unsigned(C), grid);
    ColumnTargets<float> targets{};
    for (unsigned k = 0; k < kChannelSums; k++) targets.add(sums + k * C, 1, k);
    columns_reduce(dev, targets, columns, grid.blocks, kChannelSums, C, true);
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
