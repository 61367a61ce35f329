// Token and position embedding, the input of the first block, and its gradient.
//
//   x_bt   = wte[token_bt] + wpe[t]
//   dwte[token_bt] += dx_bt,  dwpe[t] += dx_bt
#pragma once
#ifndef LEAF_BUILD
#include <algorithm>
#include <vector>
#endif

#include "ops/leaf.h"
#include "ops/reduce.cuh"

namespace tapernorm {

#ifndef LEAF_BUILD

// The rows of a batch [N] by their tokens, which embedding_backward needs on a GPU: there, rows with the same token are added up by
// the same block, in the order of the batch, so that no sum depends on which block runs when. The host sorts them, while the GPU
// works on the batch before. `data`, in device memory, has order [N] (row numbers), splits [N / kRunRows] and runs; see
// sort_rows_by_token.
struct TokenRun {
    int token;
    unsigned begin, end;  // its rows are order[begin, end)
    unsigned partial;     // number of the partial sum that they make; kWholeRun: all rows of the token
};
struct SplitToken {  // a frequent one, with the partial sums [first, end)
    int token;
    unsigned first, end;
};
struct TokenRows {
    const unsigned* data = nullptr;
    unsigned runs = 0, splits = 0, partials = 0;

    static size_t splits_at(size_t N) { return N; }
    static size_t runs_at(size_t N) { return N + (N / kRunRows + 1) * sizeof(SplitToken) / sizeof(unsigned); }
    static size_t most(size_t N) { return runs_at(N) + N * sizeof(TokenRun) / sizeof(unsigned); }
    size_t size(size_t N) const { return runs_at(N) + runs * sizeof(TokenRun) / sizeof(unsigned); }

    static constexpr unsigned kRunRows = 64, kWholeRun = ~0u;
};

// Sorts the rows of tokens [N], stably, into data [TokenRows::most(N)], of which size(N) are used then. counts is scratch.
inline TokenRows sort_rows_by_token(unsigned* data, const int* tokens, size_t N, std::vector<unsigned>& counts) {
    counts.assign(N ? size_t(*std::max_element(tokens, tokens + N)) + 2 : 0, 0);
    for (size_t i = 0; i < N; i++) counts[size_t(tokens[i]) + 1]++;
    TokenRows rows{.data = data};
    auto* splits = reinterpret_cast<SplitToken*>(data + TokenRows::splits_at(N));
    auto* runs = reinterpret_cast<TokenRun*>(data + TokenRows::runs_at(N));
    for (size_t token = 0; token + 1 < counts.size(); token++) {
        const unsigned begin = counts[token], end = counts[token + 1] += begin;
        const bool split = end - begin > TokenRows::kRunRows;
        const unsigned first = rows.partials;
        for (unsigned at = begin; at < end; at += TokenRows::kRunRows)
            runs[rows.runs++] = {int(token), at, std::min(end, at + TokenRows::kRunRows),
                                 split ? rows.partials++ : TokenRows::kWholeRun};
        if (split) splits[rows.splits++] = {int(token), first, rows.partials};
    }
    for (size_t i = 0; i < N; i++) data[counts[size_t(tokens[i])]++] = unsigned(i);
    return rows;
}

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

// dwte [V, C] +=, dwpe [>= T, C] = or += in its first T rows. rows: of these tokens, on a GPU. Threads divide the channels: no two write the same element, and each adds the tokens
// in the order of the batch, so the result does not depend on the number of threads.
template <class Real>
void embedding_backward(Cpu& dev, Real* dwte, Real* dwpe, const Real* dx, const int* tokens, const TokenRows&, size_t B,
                        size_t T, size_t C, bool accumulate) {
    parallel_ranges(dev, C, 16, [&](size_t first, size_t last, int) {
        for (size_t t = 0; t < T && !accumulate; t++) std::fill(dwpe + t * C + first, dwpe + t * C + last, Real(0));
        for (size_t row = 0; row < B * T; row++) {
            const Real* d = dx + row * C;
            Real *token = dwte + size_t(tokens[row]) * C, *position = dwpe + row % T * C;
            for (size_t i = first; i < last; i++) token[i] += d[i], position[i] += d[i];
        }
    });
}

// ---- CUDA
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

// Rows of x [., C] and their positions, side by side: out [rows, C], out_positions [rows].
struct RowNumbers {
    static constexpr unsigned kMost = 512;  // an argument of a kernel, of at most 4 KiB
    unsigned row[kMost];
};
template <class Real>
__global__ void __launch_bounds__(256)
    gather_rows_kernel(Real* out, int* out_positions, const Real* x, const int* positions,
                       const __grid_constant__ RowNumbers numbers, unsigned C) {
    const unsigned row = numbers.row[blockIdx.x], c = blockIdx.y * 256 + threadIdx.x;
    if (c < C) out[size_t(blockIdx.x) * C + c] = x[size_t(row) * C + c];
    if (c == 0) out_positions[blockIdx.x] = positions[row];
}
template <class Real>
void gather_rows(Cuda& dev, Real* out, int* out_positions, const Real* x, const int* positions,
                 const std::vector<unsigned>& rows, size_t C) {
    for (size_t first = 0; first < rows.size(); first += RowNumbers::kMost) {
        const size_t n = std::min<size_t>(RowNumbers::kMost, rows.size() - first);
        RowNumbers numbers{};
        std::copy_n(rows.begin() + ptrdiff_t(first), n, numbers.row);
        launch<gather_rows_kernel<Real>>(dim3(unsigned(n), blocks_for(C, 256)), 256, 0, dev.stream, out + first * C,
                                         out_positions + first, x, positions, numbers, unsigned(C));
    }
}

// A block adds up the rows of dx of one run, to the token's row of dwte or to a partial sum [partials, C]. It is 32 vectors of
// columns wide, with 8 threads per vector.
template <class Real>
__global__ void __launch_bounds__(256)
    embedding_backward_kernel(Real* dwte, float* partial, const Real* dx, const unsigned* order, const TokenRun* runs,
                              unsigned C, bool whole) {
    float* const shared = dynamic_shared<float>();  // [8, 32 vectors]
    const TokenRun run = runs[blockIdx.x];
    const unsigned lane = threadIdx.x % 32, group = threadIdx.x / 32, i = (blockIdx.y * 32 + lane) * kVector<Real>;
    float sum[kVector<Real>] = {}, v[kVector<Real>];
    if (i < C)
#pragma unroll 4
        for (unsigned at = run.begin + group; at < run.end; at += 8) {
            load_vector(v, dx + size_t(order[at]) * C, i, C, whole);
#pragma unroll
            for (unsigned j = 0; j < kVector<Real>; j++) sum[j] += v[j];
        }
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) shared[(group * kVector<Real> + j) * 32 + lane] = sum[j];
    __syncthreads();
    if (group > 0 || i >= C) return;
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++)
        for (unsigned g = 1; g < 8; g++) sum[j] += shared[(g * kVector<Real> + j) * 32 + lane];
    if (run.partial != TokenRows::kWholeRun) {
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++)
            if (i + j < C) partial[size_t(run.partial) * C + i + j] = sum[j];
        return;
    }
    Real* out = dwte + size_t(run.token) * C;
    load_vector(v, out, i, C, whole);
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) v[j] += sum[j];
    store_vector(out, v, i, C, whole);
}

// dwte[token] += its partial sums, in their order. A thread adds up one column.
template <class Real>
__global__ void __launch_bounds__(256)
    embedding_split_kernel(Real* dwte, const float* partial, const SplitToken* splits, unsigned C) {
    const SplitToken split = splits[blockIdx.x];
    const unsigned c = blockIdx.y * 256 + threadIdx.x;
    if (c >= C) return;
    float sum = 0;
#pragma unroll 8
    for (unsigned p = split.first; p < split.end; p++) sum += partial[size_t(p) * C + c];
    Real* out = dwte + size_t(split.token) * C + c;
    *out = Real(float(*out) + sum);
}

// dwpe[t] = or += the rows dx[b, t] over the batch. A thread adds one vector of one position.
template <class Real>
__global__ void __launch_bounds__(256)
    position_backward_kernel(Real* dwpe, const Real* dx, size_t B, size_t T, unsigned C, unsigned vectors, bool whole,
                             bool accumulate) {
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
    if (accumulate) load_vector(v, dwpe + t * C, i, C, whole);
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) sum[j] += accumulate ? v[j] : 0.0f;
    store_vector(dwpe + t * C, sum, i, C, whole);
}

template <class Real>
void embedding_backward(Cuda& dev, Real* dwte, Real* dwpe, const Real* dx, const int*, const TokenRows& rows, size_t B,
                        size_t T, size_t C, bool accumulate) {
    const size_t N = B * T;
    const auto* splits = reinterpret_cast<const SplitToken*>(rows.data + TokenRows::splits_at(N));
    const auto* runs = reinterpret_cast<const TokenRun*>(rows.data + TokenRows::runs_at(N));
    float* partial = static_cast<float*>(dev.scratch(rows.partials * C * sizeof(float)));
    const unsigned vectors = blocks_for(C, kVector<Real>);
    const bool whole = C % kVector<Real> == 0 && aligned_16(dwte, dwpe, dx);
    launch<embedding_backward_kernel<Real>>(dim3(rows.runs, blocks_for(vectors, 32)), 256,
                                            256 * kVector<Real> * sizeof(float), dev.stream, dwte, partial, dx,
                                            rows.data, runs, unsigned(C), whole);
    launch<embedding_split_kernel<Real>>(dim3(rows.splits, blocks_for(C, 256)), 256, 0, dev.stream, dwte,
                                         static_cast<const float*>(partial), splits, unsigned(C));
    launch<position_backward_kernel<Real>>(blocks_for(T * vectors, 256), 256, 0, dev.stream, dwpe, dx, B, T,
                                           unsigned(C), vectors, whole, accumulate);
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
