// The kernels of ops/attention/attention.cuh that need no tensor cores: "simple" ones for any number type and head size up to 256
// (they serve fp32 runs and odd head sizes, and are the ones to read first), and one query against a cache.
//
// Blocks never add into the same memory, and all sums have a fixed order: runs give the same bits.
#pragma once
#ifdef TN_CUDA
#include <cmath>

#include "ops/reduce.cuh"

namespace tapernorm {

// One sequence, as a forward kernel sees it. Query r is at position keys - queries + r, and sees the keys up to there.
template <class Real>
struct AttentionRows {
    Real* out;              // [queries, C]
    float* lse;             // [NH, queries], may be null
    const Real *q, *k, *v;  // [queries or keys, NH hs], rows q_stride and kv_stride elements apart
    int queries, keys;
};

// Sequences of the same length.
template <class Real>
struct AttentionForward {
    Real* out;              // [B, queries, C]
    float* lse;             // [B, NH, queries], may be null
    const Real *q, *k, *v;  // [B, queries or keys, NH hs] with rows this many elements apart:
    size_t q_stride, kv_stride;
    int NH, hs, queries, keys;
    float inverse_sqrt_hs;

    __device__ __forceinline__ AttentionRows<Real> rows(unsigned b) const {
        const size_t first = size_t(b) * size_t(queries), key = size_t(b) * size_t(keys) * kv_stride;
        return {out + first * size_t(NH) * size_t(hs),
                lse ? lse + first * size_t(NH) : nullptr,
                q + first * q_stride,
                k + key,
                v + key,
                queries,
                keys};
    }
};

// Inference: rows of sequences of any lengths against their caches.
template <class Real>
struct AttentionCached {
    static constexpr unsigned kMost = 64;  // an argument of a kernel, of at most 4 KiB
    struct Part {
        Real *k_cache, *v_cache;  // [> first + n - 1, C]
        unsigned row, first, n;   // rows row .. row + n - 1 of the batch are positions first .. first + n - 1
    };
    Real* out;        // [N, C]
    const Real* qkv;  // [N, 3C]
    size_t q_stride, kv_stride;
    int NH, hs, queries;  // queries: the most that a part has
    float inverse_sqrt_hs;
    unsigned count;
    Part parts[kMost];

    __device__ __forceinline__ AttentionRows<Real> rows(unsigned b) const {
        const Part& p = parts[b];
        return {out + size_t(p.row) * kv_stride,
                nullptr,
                qkv + size_t(p.row) * q_stride,
                p.k_cache,
                p.v_cache,
                int(p.n),
                int(p.first + p.n)};
    }
};
template <class Real>
struct AttentionBackward {
    Real* dqkv;                    // [B, T, 3C]
    const Real *dout, *out, *qkv;  // [B, T, C], [B, T, C], [B, T, 3C]
    const float* lse;              // [B, NH, T]
    float* delta;                  // [B, NH, T]: dout . out
    int NH, hs, T;
    float inverse_sqrt_hs;

    // What differs from head to head: pointers to row 0 of the head that a block works on.
    struct Head {
        const Real *q, *k, *v, *dout, *out;
        Real *dq, *dk, *dv;
        const float* lse;
        float* delta;
    };
    __device__ __forceinline__ Head head(unsigned index) const {
        const size_t b = index / unsigned(NH), h = index % unsigned(NH), C = size_t(NH) * size_t(hs);
        const size_t row = b * size_t(T), wide = row * 3 * C + h * size_t(hs);
        const size_t statistics = size_t(index) * size_t(T);
        const Real* q = qkv + wide;
        Real* dq = dqkv + wide;
        return {q,
                q + C,
                q + 2 * C,
                dout + row * C + h * size_t(hs),
                out + row * C + h * size_t(hs),
                dq,
                dq + C,
                dq + 2 * C,
                lse + statistics,
                delta + statistics};
    }
};

// Over each `lanes` neighbouring lanes of a warp.
template <int lanes>
__device__ __forceinline__ float group_sum(float x) {
#pragma unroll
    for (int i = lanes / 2; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}
template <int lanes>
__device__ __forceinline__ float group_max(float x) {
#pragma unroll
    for (int i = lanes / 2; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

// delta [B, NH, T] = dout . out, both [B, T, NH, hs]: 8 lanes for each of the `count` = B T NH rows of hs. `whole`: the
// rows are multiples of 16 bytes.
template <class Real>
__global__ void __launch_bounds__(256) attention_delta_kernel(float* delta, const Real* dout, const Real* out,
                                                              size_t count, int T, int NH, int hs, bool whole) {
    constexpr int kWidth = kVector<Real>;
    const size_t i = (size_t(blockIdx.x) * 256 + threadIdx.x) / 8, row = i * size_t(hs);
    float sum = 0, x[kWidth], y[kWidth];
    for (int c = int(threadIdx.x % 8) * kWidth; i < count && c < hs; c += 8 * kWidth) {
        load_vector(x, dout + row, unsigned(c), unsigned(hs), whole);
        load_vector(y, out + row, unsigned(c), unsigned(hs), whole);
#pragma unroll
        for (int j = 0; j < kWidth; j++) sum += x[j] * y[j];
    }
    sum = group_sum<8>(sum);
    const size_t token = i / size_t(NH), h = i % size_t(NH), b = token / size_t(T), t = token % size_t(T);
    if (i < count && threadIdx.x % 8 == 0) delta[(b * size_t(NH) + h) * size_t(T) + t] = sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Simple kernels: 16 x 16 threads, tiles of 16 rows of floats. Thread (y, x) computes the score of row y of the block
// against row x of the passing tile, and accumulates channels x, x + 16, .. of row y.

constexpr int kSimpleRows = 16, kSimpleThreads = 256, kSimpleMaxHs = 256;
constexpr int kSimpleChannels = kSimpleMaxHs / 16;  // per thread

// An odd row length: 16 threads that read one column meet 16 banks.
__host__ __device__ constexpr int simple_stride(int hs) { return hs | 1; }
__host__ __device__ constexpr size_t simple_tile(int hs) { return size_t(kSimpleRows) * size_t(simple_stride(hs)); }
constexpr int kSimpleScores = kSimpleRows * (kSimpleRows + 1);

// Block: rows from `rows` on become zero.
template <class Real>
__device__ void simple_load(float* tile, const Real* from, size_t stride, int rows, int hs) {
    for (int i = int(threadIdx.x); i < kSimpleRows * hs; i += kSimpleThreads) {
        const int row = i / hs, c = i % hs;
        tile[row * simple_stride(hs) + c] = row < rows ? float(from[size_t(row) * stride + size_t(c)]) : 0;
    }
}

__device__ __forceinline__ float simple_dot(const float* x, const float* y, int hs) {
    float sum = 0;
    for (int c = 0; c < hs; c++) sum += x[c] * y[c];
    return sum;
}

// sum [the channels of this thread] = factor sum + weights [16] tile [16, hs]
__device__ __forceinline__ void simple_add(float (&sum)[kSimpleChannels], float factor, const float* weights,
                                           const float* tile, int hs) {
    const int x = int(threadIdx.x % 16);
#pragma unroll
    for (int i = 0; i < kSimpleChannels; i++) {
        if (x + 16 * i >= hs) break;
        float total = sum[i] * factor;
        for (int j = 0; j < kSimpleRows; j++) total += weights[j] * tile[j * simple_stride(hs) + x + 16 * i];
        sum[i] = total;
    }
}

template <class Real>
__device__ __forceinline__ void simple_store(Real* to, const float (&sum)[kSimpleChannels], float factor, int hs) {
    const int x = int(threadIdx.x % 16);
#pragma unroll
    for (int i = 0; i < kSimpleChannels; i++)
        if (x + 16 * i < hs) to[x + 16 * i] = Real(sum[i] * factor);
}

// Rows are queries, keys pass. Args: AttentionForward or AttentionCached. A block whose rows its sequence does not have returns.
template <class Real, class Args>
__global__ void __launch_bounds__(kSimpleThreads) simple_forward_kernel(const __grid_constant__ Args a) {
    float *q = dynamic_shared<float>(), *k = q + simple_tile(a.hs), *v = k + simple_tile(a.hs),
          *weights = v + simple_tile(a.hs);
    const int x = int(threadIdx.x % 16), y = int(threadIdx.x / 16), ld = simple_stride(a.hs);
    const size_t h = blockIdx.x % unsigned(a.NH), head = h * size_t(a.hs);
    const AttentionRows<Real> s = a.rows(blockIdx.x / unsigned(a.NH));
    const int row = int(gridDim.y - 1 - blockIdx.y) * kSimpleRows, position = s.keys - s.queries + row + y;
    if (row >= s.queries) return;
    float* mine = weights + y * (kSimpleRows + 1);  // [16]
    float top = -INFINITY, sum = 0, out[kSimpleChannels] = {};
    simple_load(q, s.q + size_t(row) * a.q_stride + head, a.q_stride, s.queries - row, a.hs);
    for (int key = 0; key < min(s.keys, position - y + kSimpleRows); key += kSimpleRows) {
        const size_t from = size_t(key) * a.kv_stride + head;
        __syncthreads();  // everyone has left the tile before
        simple_load(k, s.k + from, a.kv_stride, s.keys - key, a.hs);
        simple_load(v, s.v + from, a.kv_stride, s.keys - key, a.hs);
        __syncthreads();
        const float score =
            key + x <= position ? simple_dot(q + y * ld, k + x * ld, a.hs) * a.inverse_sqrt_hs : -INFINITY;
        const float new_top = fmaxf(top, group_max<16>(score));
        const float p = expf(score - new_top), rescale = expf(top - new_top);
        top = new_top;
        sum = sum * rescale + group_sum<16>(p);
        mine[x] = p;
        __syncwarp();  // the 16 threads of a row are in one warp
        simple_add(out, rescale, mine, v, a.hs);
    }
    if (row + y >= s.queries) return;
    simple_store(s.out + size_t(row + y) * size_t(a.NH) * size_t(a.hs) + head, out, 1 / sum, a.hs);
    if (s.lse && x == 0) s.lse[h * size_t(s.queries) + size_t(row + y)] = top + logf(sum);
}

// p and ds of one pair of query and key; zero where the key comes after the query, or where there is no such query.
struct ScoreGradient {
    float p, ds;
};
template <class Real>
__device__ __forceinline__ ScoreGradient simple_score_gradient(const AttentionBackward<Real>& a, const float* lse,
                                                               const float* delta, const float* q, const float* k,
                                                               const float* dout, const float* v, int query, int key) {
    if (query >= a.T || key > query) return {0, 0};
    const float p = expf(simple_dot(q, k, a.hs) * a.inverse_sqrt_hs - lse[query]);
    return {p, p * (simple_dot(dout, v, a.hs) - delta[query])};
}

// Rows are keys, queries pass.
template <class Real>
__global__ void __launch_bounds__(kSimpleThreads) simple_backward_dkdv_kernel(AttentionBackward<Real> a) {
    const size_t tile = simple_tile(a.hs), C = size_t(a.NH) * size_t(a.hs);
    float *k = dynamic_shared<float>(), *v = k + tile, *q = v + tile, *dout = q + tile, *p = dout + tile,
          *ds = p + kSimpleScores;
    const int x = int(threadIdx.x % 16), y = int(threadIdx.x / 16), ld = simple_stride(a.hs);
    const int key = int(blockIdx.y) * kSimpleRows, mine = y * (kSimpleRows + 1);
    const auto head = a.head(blockIdx.x);
    float dk[kSimpleChannels] = {}, dv[kSimpleChannels] = {};
    simple_load(k, head.k + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
    simple_load(v, head.v + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
    for (int query = key; query < a.T; query += kSimpleRows) {
        __syncthreads();  // everyone has left the tile before
        simple_load(q, head.q + size_t(query) * 3 * C, 3 * C, a.T - query, a.hs);
        simple_load(dout, head.dout + size_t(query) * C, C, a.T - query, a.hs);
        __syncthreads();
        const ScoreGradient gradient = simple_score_gradient(a, head.lse, head.delta, q + x * ld, k + y * ld,
                                                             dout + x * ld, v + y * ld, query + x, key + y);
        p[mine + x] = gradient.p, ds[mine + x] = gradient.ds;
        __syncwarp();  // the 16 threads of a row are in one warp
        simple_add(dv, 1, p + mine, dout, a.hs);
        simple_add(dk, 1, ds + mine, q, a.hs);
    }
    if (key + y >= a.T) return;
    simple_store(head.dk + size_t(key + y) * 3 * C, dk, a.inverse_sqrt_hs, a.hs);
    simple_store(head.dv + size_t(key + y) * 3 * C, dv, 1, a.hs);
}

// Rows are queries, keys pass.
template <class Real>
__global__ void __launch_bounds__(kSimpleThreads) simple_backward_dq_kernel(AttentionBackward<Real> a) {
    const size_t tile = simple_tile(a.hs), C = size_t(a.NH) * size_t(a.hs);
    float *q = dynamic_shared<float>(), *dout = q + tile, *k = dout + tile, *v = k + tile, *ds = v + tile;
    const int x = int(threadIdx.x % 16), y = int(threadIdx.x / 16), ld = simple_stride(a.hs);
    const int query = int(gridDim.y - 1 - blockIdx.y) * kSimpleRows, mine = y * (kSimpleRows + 1);
    const auto head = a.head(blockIdx.x);
    float dq[kSimpleChannels] = {};
    simple_load(q, head.q + size_t(query) * 3 * C, 3 * C, a.T - query, a.hs);
    simple_load(dout, head.dout + size_t(query) * C, C, a.T - query, a.hs);
    for (int key = 0; key < min(a.T, query + kSimpleRows); key += kSimpleRows) {
        __syncthreads();  // everyone has left the tile before
        simple_load(k, head.k + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
        simple_load(v, head.v + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
        __syncthreads();
        const ScoreGradient gradient = simple_score_gradient(a, head.lse, head.delta, q + y * ld, k + x * ld,
                                                             dout + y * ld, v + x * ld, query + y, key + x);
        ds[mine + x] = gradient.ds;
        __syncwarp();  // the 16 threads of a row are in one warp
        simple_add(dq, 1, ds + mine, k, a.hs);
    }
    if (query + y < a.T) simple_store(head.dq + size_t(query + y) * 3 * C, dq, a.inverse_sqrt_hs, a.hs);
}

// ---------------------------------------------------------------------------------------------------------------------
// Inference

template <class Real>
struct AttentionDecode {
    Real* out;                // [C]
    float* partial;           // [NH, splits, hs + 2]: sums, their largest score and the sum of weights
    Real *k_cache, *v_cache;  // [>= keys, C]
    const Real* qkv;          // [3C], of the last key
    int NH, hs, keys;
    float inverse_sqrt_hs;
};

// The keys and values of the new rows of part blockIdx.y, to its caches.
template <class Real>
__global__ void __launch_bounds__(256) cache_append_kernel(const __grid_constant__ AttentionCached<Real> a) {
    const auto& p = a.parts[blockIdx.y];
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x, C = a.kv_stride;
    if (i >= p.n * C) return;
    const Real* row = a.qkv + (p.row + i / C) * a.q_stride + i % C;
    p.k_cache[p.first * C + i] = row[C], p.v_cache[p.first * C + i] = row[2 * C];
}

constexpr int kDecodeThreads = 128, kDecodeGroups = kDecodeThreads / 8, kDecodeKeys = 128;

// Adds the weighted sums of `count` parts in order, after multiplying them to match their common largest score. part(i, c)
// is element c of the i-th [hs + 2], as in `partial`. With `divide` the result is divided by the sum of weights, which
// makes it final; otherwise that sum and the largest score are written behind it.
template <class Out, class Part>
__device__ __forceinline__ void combine_parts(Out* out, Part&& part, int count, int hs, bool divide) {
    float top = -INFINITY, weight = 0;
    for (int i = 0; i < count; i++) top = fmaxf(top, part(i, hs));
    for (int i = 0; i < count; i++) weight += part(i, hs + 1) * fast_exp2(part(i, hs) - top);
    for (int c = int(threadIdx.x); c < hs; c += int(blockDim.x)) {
        float sum = 0;
        for (int i = 0; i < count; i++) sum += part(i, c) * fast_exp2(part(i, hs) - top);
        out[c] = Out(divide ? sum / weight : sum);
    }
    if (!divide && threadIdx.x == 0) out[hs] = Out(top), out[hs + 1] = Out(weight);
}

// One head's query q [hs] against the keys and values [begin, end), whose rows are C apart, by a block of so many threads. Groups
// of 8 lanes take keys in turn, kAhead at a time, each group with a softmax of its own; a lane holds 16 bytes of channels out of
// every 128, `packs` times. Loads depend on no condition, so that many can be in flight: lanes without a channel or a key read
// another's and give it the weight 0. Scores are in units of log 2: exp2_factor is log2e / sqrt(hs). Leaves a part per group; of
// more groups than kDecodeGroups, a part per warp.
template <class Real, int packs, int threads = kDecodeThreads>
__device__ void decode_keys_of_head(float* parts, const Real* q_row, const Real* k, const Real* v, size_t C, int hs,
                                    int begin, int end, float exp2_factor) {
    constexpr int kWidth = kVector<Real>, kAhead = 4, kGroups = threads / 8;
    const int group = int(threadIdx.x / 8), lane = int(threadIdx.x % 8) * kWidth;
    auto channel = [&](int i) { return lane + 8 * kWidth * i < hs ? size_t(lane + 8 * kWidth * i) : 0; };
    float q[packs][kWidth] = {}, out[packs][kWidth] = {}, top = -INFINITY, sum = 0, x[kWidth];
#pragma unroll
    for (int i = 0; i < packs; i++)
        if (lane + 8 * kWidth * i < hs) load_vector(q[i], q_row + channel(i), 0, kWidth, true);
    for (int key = begin + group; key - group < end; key += kGroups * kAhead) {
        float s[kAhead] = {}, new_top = top;
#pragma unroll
        for (int i = 0; i < kAhead * packs; i++) {
            const int j = i / packs, row = min(key + j * kGroups, end - 1);
            load_vector(x, k + size_t(row) * C + channel(i % packs), 0, kWidth, true);
#pragma unroll
            for (int w = 0; w < kWidth; w++) s[j] += q[i % packs][w] * x[w];
        }
#pragma unroll
        for (int j = 0; j < kAhead; j++) {
            s[j] = group_sum<8>(s[j]) * exp2_factor;
            if (key + j * kGroups >= end) s[j] = -INFINITY;
            new_top = fmaxf(new_top, s[j]);
        }
        const float shift = new_top == -INFINITY ? 0 : new_top, rescale = fast_exp2(top - shift);
        top = new_top, sum *= rescale;
#pragma unroll
        for (int j = 0; j < kAhead; j++) s[j] = fast_exp2(s[j] - shift), sum += s[j];
#pragma unroll
        for (int i = 0; i < packs * kWidth; i++) out[i / kWidth][i % kWidth] *= rescale;
#pragma unroll
        for (int i = 0; i < kAhead * packs; i++) {
            const int j = i / packs, row = min(key + j * kGroups, end - 1);
            load_vector(x, v + size_t(row) * C + channel(i % packs), 0, kWidth, true);
#pragma unroll
            for (int w = 0; w < kWidth; w++) out[i % packs][w] += s[j] * x[w];
        }
    }
    float* mine = parts + group * (hs + 2);
    bool writes = true;
    if constexpr (kGroups > kDecodeGroups) {
        mine = parts + group / 4 * (hs + 2), writes = group % 4 == 0;
        const float common = fmaxf(fmaxf(top, __shfl_xor_sync(~0u, top, 8)),
                                   fmaxf(__shfl_xor_sync(~0u, top, 16), __shfl_xor_sync(~0u, top, 24)));
        const float factor = top == -INFINITY ? 0 : fast_exp2(top - common);  // (0: of a group without a key)
        auto add_groups = [&](float& value) {
            value *= factor;
            value += __shfl_xor_sync(~0u, value, 8);
            value += __shfl_xor_sync(~0u, value, 16);
        };
#pragma unroll
        for (int i = 0; i < packs * kWidth; i++) add_groups(out[i / kWidth][i % kWidth]);
        add_groups(sum), top = common;
    }
#pragma unroll
    for (int i = 0; i < packs * kWidth; i++) {
        const int c = lane + 8 * kWidth * (i / kWidth) + i % kWidth;
        if (writes && c < hs) mine[c] = out[i / kWidth][i % kWidth];
    }
    if (writes && lane == 0) mine[hs] = top, mine[hs + 1] = sum;
}

// Block: adds the head's key and value of a row of qkv to its cache, at `position`.
template <class Real>
__device__ __forceinline__ void decode_append(Real* k, Real* v, const Real* qkv, size_t C, int hs, int position) {
    for (int c = int(threadIdx.x); c < hs; c += kDecodeThreads) {
        k[size_t(position) * C + size_t(c)] = qkv[C + size_t(c)];
        v[size_t(position) * C + size_t(c)] = qkv[2 * C + size_t(c)];
    }
}

// Block (x, y): head x, the y-th group of 128 keys.
template <class Real, int packs>
__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(AttentionDecode<Real> a) {
    const int begin = int(blockIdx.y) * kDecodeKeys, end = min(a.keys, begin + kDecodeKeys), hs = a.hs;
    const size_t C = size_t(a.NH) * size_t(hs), head = size_t(blockIdx.x) * size_t(hs);
    Real *k = a.k_cache + head, *v = a.v_cache + head;
    float* const parts = dynamic_shared<float>();
    if (end == a.keys) decode_append(k, v, a.qkv + head, C, hs, end - 1);
    __syncthreads();  // the new key and value are in the cache
    decode_keys_of_head<Real, packs>(parts, a.qkv + head, k, v, C, hs, begin, end, a.inverse_sqrt_hs * kLog2e);
    __syncthreads();
    auto part = [&](int i, int c) { return parts[i * (hs + 2) + c]; };
    const size_t split = size_t(blockIdx.x) * gridDim.y + blockIdx.y;
    if (gridDim.y == 1)
        combine_parts(a.out + head, part, kDecodeGroups, hs, true);
    else
        combine_parts(a.partial + split * size_t(hs + 2), part, kDecodeGroups, hs, false);
}

// Block: one head. Combines what decode_kernel left of every 128 keys into the head's output.
template <class Real>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_combine_kernel(Real* out, const float* partial, int splits, int hs) {
    const size_t head = blockIdx.x;
    const float* parts = partial + head * size_t(splits) * size_t(hs + 2);
    combine_parts(out + head * size_t(hs), [&](int i, int c) { return parts[i * (hs + 2) + c]; }, splits, hs, true);
}

// One new token of each of several sequences, at positions that only the device knows.
template <class Real>
struct AttentionStep {
    Real* out;                // [rows, C]
    float* partial;           // [rows, NH, splits of T keys, hs + 2]
    unsigned* finished;       // [rows, NH]: 0 before and after
    Real *k_cache, *v_cache;  // [rows, T, C]
    const Real* qkv;          // [rows, 3C]
    const int* positions;     // [rows]
    int NH, hs, T;
    float inverse_sqrt_hs;
};

// Block (x, y, z): head x of sequence z, the y-th group of 128 keys if there are that many. The last block of a head to
// finish adds up what all of them left.
template <class Real, int packs>
__global__ void __launch_bounds__(kDecodeThreads) decode_step_kernel(const __grid_constant__ AttentionStep<Real> a) {
    const int keys = a.positions[blockIdx.z] + 1, splits = (keys + kDecodeKeys - 1) / kDecodeKeys, hs = a.hs;
    const int begin = int(blockIdx.y) * kDecodeKeys, end = min(keys, begin + kDecodeKeys);
    if (begin >= keys) return;  // the whole block
    const size_t C = size_t(a.NH) * size_t(hs), head = size_t(blockIdx.x) * size_t(hs), row = blockIdx.z;
    const size_t cache = row * size_t(a.T) * C + head, task = row * size_t(a.NH) + blockIdx.x;
    const Real* qkv = a.qkv + row * 3 * C + head;
    float* const parts = dynamic_shared<float>();
    if (end == keys) decode_append(a.k_cache + cache, a.v_cache + cache, qkv, C, hs, end - 1);
    __syncthreads();  // the new key and value are in the cache
    decode_keys_of_head<Real, packs>(parts, qkv, a.k_cache + cache, a.v_cache + cache, C, hs, begin, end,
                                     a.inverse_sqrt_hs * kLog2e);
    __syncthreads();
    auto part = [&](int i, int c) { return parts[i * (hs + 2) + c]; };
    Real* const out = a.out + row * C + head;
    if (splits == 1) return combine_parts(out, part, kDecodeGroups, hs, true);
    float* const partial = a.partial + task * gridDim.y * size_t(hs + 2);
    combine_parts(partial + blockIdx.y * size_t(hs + 2), part, kDecodeGroups, hs, false);
    __threadfence();  // what each thread wrote is visible to all blocks
    __syncthreads();  // and so is what the whole block wrote
    bool last = false;
    if (threadIdx.x == 0) last = atomicInc(&a.finished[task], unsigned(splits - 1)) == unsigned(splits - 1);
    if (!__syncthreads_or(last)) return;
    __threadfence();  // nothing below is read before the counter
    combine_parts(out, [&](int i, int c) { return __ldcg(&partial[i * (hs + 2) + c]); }, splits, hs, true);
}

}  // namespace tapernorm
#endif  // TN_CUDA
