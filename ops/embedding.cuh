// Token and position embedding, the input of the first block, and its gradient.
//
//   x_bt   = wte[token_bt] + wpe[t]
//   dwte[token_bt] += dx_bt,  dwpe[t] += dx_bt
#pragma once
#include "ops/leaf.h"
#include "ops/reduce.cuh"

namespace tapernorm {

#ifndef LEAF_BUILD

// x [B, T, C] = wte [V, C] at tokens [B, T] + wpe [>= T, C]
template <class Real>
void embedding_forward(Cpu& dev, Real* x, const int* tokens, const Real* wte, const Real* wpe, size_t B, size_t T,
                       size_t C) {
    parallel_ranges(dev, B * T, 64, [&](size_t row, size_t end, int) {
        for (; row < end; row++) {
            const Real *token = wte + size_t(tokens[row]) * C, *position = wpe + row % T * C;
            for (size_t i = 0; i < C; i++) x[row * C + i] = token[i] + position[i];
        }
    });
}

// Inference: the same for rows of any sequences, each at its own position. x [N, C], tokens and positions [N]
// wte_mean [V]: what is subtracted from a token's row of wte; may be null.
template <class Real>
void embedding_forward_at(Cpu& dev, Real* x, const int* tokens, const int* positions, const Real* wte,
                          const Real* wte_mean, const Real* wpe, size_t N, size_t C) {
    parallel_ranges(dev, N, 64, [&](size_t row, size_t end, int) {
        for (; row < end; row++) {
            const Real *token = wte + size_t(tokens[row]) * C, *position = wpe + size_t(positions[row]) * C;
            const Real mean = wte_mean ? wte_mean[tokens[row]] : Real(0);
            for (size_t i = 0; i < C; i++) x[row * C + i] = token[i] - mean + position[i];
        }
    });
}

// dwte [V, C] +=, dwpe [>= T, C] +=. Threads divide the channels: no two write the same element, and each adds the tokens
// in the order of the batch, so the result does not depend on the number of threads.
template <class Real>
void embedding_backward(Cpu& dev, Real* dwte, Real* dwpe, const Real* dx, const int* tokens, size_t B, size_t T,
                        size_t C) {
    parallel_ranges(dev, C, 16, [&](size_t first, size_t last, int) {
        for (size_t row = 0; row < B * T; row++) {
            const Real* d = dx + row * C;
            Real *token = dwte + size_t(tokens[row]) * C, *position = dwpe + row % T * C;
            for (size_t i = first; i < last; i++) token[i] += d[i], position[i] += d[i];
        }
    });
}

// ---- CUDA. The gradient of wte adds rows that have the same token, and their order must not depend on which block runs
// when. So the rows are first sorted by token (stably, hence in the order of the batch), and then one block adds each
// token's rows. Sorting on the device costs one block some 100 microseconds for 32k rows and needs nothing from the host.
#ifdef TN_CUDA

// A thread computes one of the `vectors` of a row. wte_mean may be null; positions is null where row r is at position r % T.
template <class Real>
__global__ void __launch_bounds__(256)
    embedding_forward_kernel(Real* x, const int* tokens, const int* positions, const Real* wte, const Real* wte_mean,
                             const Real* wpe, size_t rows, size_t T, unsigned C, unsigned vectors, bool whole) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x, row = at / vectors;
    if (row >= rows) return;
    const unsigned i = unsigned(at % vectors) * kVector<Real>;
    float token[kVector<Real>], position[kVector<Real>];
    load_vector(token, wte + size_t(tokens[row]) * C, i, C, whole);
    load_vector(position, wpe + (positions ? size_t(positions[row]) : row % T) * C, i, C, whole);
    const float mean = wte_mean ? float(wte_mean[tokens[row]]) : 0.0f;
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) token[j] = token[j] - mean + position[j];
    store_vector(x + row * C, token, i, C, whole);
}

template <class Real>
void launch_embedding_forward(Cuda& dev, Real* x, const int* tokens, const int* positions, const Real* wte,
                              const Real* wte_mean, const Real* wpe, size_t rows, size_t T, size_t C) {
    const unsigned vectors = blocks_for(C, kVector<Real>);
    launch<embedding_forward_kernel<Real>>(blocks_for(rows * vectors, 256), 256, 0, dev.stream, x, tokens, positions,
                                           wte, wte_mean, wpe, rows, T, unsigned(C), vectors,
                                           C % kVector<Real> == 0 && aligned_16(x, wte, wpe));
}

template <class Real>
void embedding_forward(Cuda& dev, Real* x, const int* tokens, const Real* wte, const Real* wpe, size_t B, size_t T,
                       size_t C) {
    launch_embedding_forward<Real>(dev, x, tokens, nullptr, wte, nullptr, wpe, B * T, T, C);
}

template <class Real>
void embedding_forward_at(Cuda& dev, Real* x, const int* tokens, const int* positions, const Real* wte,
                          const Real* wte_mean, const Real* wpe, size_t N, size_t C) {
    launch_embedding_forward<Real>(dev, x, tokens, positions, wte, wte_mean, wpe, N, 1, C);
}

// One block sorts the rows [N] by token: least significant digit first, each pass a stable counting sort in which
// thread t counts and moves the rows [N t / threads, N (t + 1) / threads). order, spare [N]; the result is in `order`
// after an even number of passes.
constexpr unsigned kSortThreads = 512, kSortDigits = 16;
constexpr unsigned kSortPasses = 4;  // 4 bits each: token ids are below 2^16, as in the files
constexpr size_t kSortBytes = (kSortDigits * kSortThreads + kSortThreads / 32) * sizeof(unsigned);  // shared memory

static __global__ void __launch_bounds__(kSortThreads)
    sort_rows_kernel(unsigned* order, unsigned* spare, const int* tokens, unsigned N, unsigned passes) {
    unsigned* const counts = dynamic_shared<unsigned>();  // [kSortDigits, kSortThreads]
    unsigned* const warp_totals = counts + kSortDigits * kSortThreads;
    const unsigned t = threadIdx.x, lane = t % 32, warp = t / 32;
    const unsigned first = unsigned(size_t(N) * t / kSortThreads), end = unsigned(size_t(N) * (t + 1) / kSortThreads);
    for (unsigned pass = 0; pass < passes; pass++) {
        unsigned *from = pass % 2 ? spare : order, *to = pass % 2 ? order : spare;
        auto row_at = [&](unsigned i) { return pass == 0 ? i : from[i]; };
        auto digit = [&](unsigned row) { return unsigned(tokens[row]) >> 4 * pass & (kSortDigits - 1); };
        for (unsigned d = 0; d < kSortDigits; d++) counts[d * kSortThreads + t] = 0;
        for (unsigned i = first; i < end; i++) counts[digit(row_at(i)) * kSortThreads + t]++;
        __syncthreads();
        // Exclusive sums over [kSortDigits, kSortThreads] in that order: where each thread's rows of each digit go.
        unsigned* const mine = counts + t * kSortDigits;
        unsigned sum = 0;
        for (unsigned d = 0; d < kSortDigits; d++) sum += mine[d];
        unsigned before = sum;
        for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
            const unsigned left = __shfl_up_sync(~0u, before, lanes);
            if (lane >= lanes) before += left;
        }
        if (lane == 31) warp_totals[warp] = before;
        before -= sum;
        __syncthreads();
        for (unsigned w = 0; w < warp; w++) before += warp_totals[w];
        for (unsigned d = 0; d < kSortDigits; d++) {
            const unsigned count = mine[d];
            mine[d] = before, before += count;
        }
        __syncthreads();
        for (unsigned i = first; i < end; i++) {
            const unsigned row = row_at(i);
            to[counts[digit(row) * kSortThreads + t]++] = row;
        }
        __syncthreads();
    }
}

// dwte[token] += the rows of dx with this token: the block at the first of them in `order` [N] adds them all, and
// the others have nothing to do. A block is 32 vectors of columns wide, with 8 threads per vector.
template <class Real>
__global__ void __launch_bounds__(256)
    embedding_backward_kernel(Real* dwte, const Real* dx, const int* tokens, const unsigned* order, size_t N,
                              unsigned C, bool whole) {
    float* const shared = dynamic_shared<float>();  // [8, 32 vectors]
    const size_t begin = blockIdx.x;
    const int token = tokens[order[begin]];
    if (begin > 0 && tokens[order[begin - 1]] == token) return;  // the whole block
    const unsigned lane = threadIdx.x % 32, group = threadIdx.x / 32, i = (blockIdx.y * 32 + lane) * kVector<Real>;
    float sum[kVector<Real>] = {}, v[kVector<Real>];
#pragma unroll 4
    for (size_t at = begin + group; at < N; at += 8) {
        const unsigned row = order[at];
        if (tokens[row] != token) break;
        if (i < C) load_vector(v, dx + size_t(row) * C, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) sum[j] += i < C ? v[j] : 0.0f;
    }
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) shared[(group * kVector<Real> + j) * 32 + lane] = sum[j];
    __syncthreads();
    if (group > 0 || i >= C) return;
    Real* out = dwte + size_t(token) * C;
    load_vector(v, out, i, C, whole);
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) {
        for (unsigned g = 1; g < 8; g++) sum[j] += shared[(g * kVector<Real> + j) * 32 + lane];
        v[j] += sum[j];
    }
    store_vector(out, v, i, C, whole);
}

// dwpe[t] += the rows dx[b, t] over the batch. A thread adds one vector of one position.
template <class Real>
__global__ void __launch_bounds__(256)
    position_backward_kernel(Real* dwpe, const Real* dx, size_t B, size_t T, unsigned C, unsigned vectors, bool whole) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x, t = at / vectors;
    if (t >= T) return;
    const unsigned i = unsigned(at % vectors) * kVector<Real>;
    float sum[kVector<Real>] = {}, v[kVector<Real>];
#pragma unroll 4
    for (size_t b = 0; b < B; b++) {
        load_vector(v, dx + (b * T + t) * C, i, C, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) sum[j] += v[j];
    }
    load_vector(v, dwpe + t * C, i, C, whole);
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) v[j] += sum[j];
    store_vector(dwpe + t * C, v, i, C, whole);
}

template <class Real>
void embedding_backward(Cuda& dev, Real* dwte, Real* dwpe, const Real* dx, const int* tokens, size_t B, size_t T,
                        size_t C) {
    const size_t N = B * T;
    unsigned *order = static_cast<unsigned*>(dev.scratch(2 * N * sizeof(unsigned))), *spare = order + N;
    const unsigned vectors = blocks_for(C, kVector<Real>);
    const bool whole = C % kVector<Real> == 0 && aligned_16(dwte, dwpe, dx);
    launch<sort_rows_kernel>(1, kSortThreads, kSortBytes, dev.stream, order, spare, tokens, unsigned(N), kSortPasses);
    launch<embedding_backward_kernel<Real>>(dim3(blocks_for(N, 1), blocks_for(vectors, 32)), 256,
                                            256 * kVector<Real> * sizeof(float), dev.stream, dwte, dx, tokens, order, N,
                                            unsigned(C), whole);
    launch<position_backward_kernel<Real>>(blocks_for(T * vectors, 256), 256, 0, dev.stream, dwpe, dx, B, T,
                                           unsigned(C), vectors, whole);
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
