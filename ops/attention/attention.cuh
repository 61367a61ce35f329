// Causal self-attention with NH heads of hs = C / NH channels, in training and, with a cache of keys and values, in
// inference. No T x T tensor per head is ever held: scores live in blocks of query rows, and the backward pass computes
// them again from q, k and the saved log-sum-exp.
//
//   q, k, v = qkv[b, t, {0, 1, 2} C + h hs ..]
//   s_ij = q_i . k_j / sqrt(hs)  (j <= i),   p_i = softmax(s_i),   lse_i = log sum_j exp s_ij,   o_i = sum_j p_ij v_j
//
//   dv_j = sum_i p_ij do_i
//   dp_ij = do_i . v_j,   delta_i = do_i . o_i = sum_j p_ij dp_ij,   ds_ij = p_ij (dp_ij - delta_i) / sqrt(hs)
//   dq_i = sum_j ds_ij k_j,   dk_j = sum_i ds_ij q_i
#pragma once
#include <cstddef>

#include "ops/leaf.h"
#include "ops/math.h"
#ifndef LEAF_BUILD
#include <cmath>
#include <vector>

#include "ops/gemm.cuh"
#include "runtime/types.h"
#endif
#include "ops/attention/flash_wgmma.cuh"
#include "runtime/cuda.cuh"

namespace tapernorm {

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

// p [rows, ld]: scores in, exp(score - lse) * sum out; row r is a query that sees the keys 0 .. first + r. Columns from
// there to first + rows become 0. inverse_sum [rows].
template <class Real>
void leaf_softmax_rows(Real* p, Real* inverse_sum, size_t ld, size_t rows, size_t first) {
    for (size_t r = 0; r < rows; r++, p += ld) {
        const size_t n = first + r + 1;
        const Real top = row_max(p, n);
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < n; j++) {
            p[j] = exp_r(p[j] - top);
            sum += p[j];
        }
        for (size_t j = n; j < first + rows; j++) p[j] = 0;
        inverse_sum[r] = 1 / sum;
    }
}

// Queries that the two functions below work on at a time, side by side: no sum goes across the lanes of a vector.
constexpr size_t kQueryLanes = 16;

// s [first + queries, ld], keys by queries: scores in, exp(score - lse) * sum out; query r sees the keys 0 .. first + r, and what
// is below becomes 0. lse (may be null), inverse_sum [queries]. ld: a multiple of kQueryLanes.
template <class Real>
void leaf_softmax_causal(Real* s, Real* lse, Real* inverse_sum, size_t ld, size_t queries, size_t first) {
    const size_t keys = first + queries, whole = (queries + kQueryLanes - 1) / kQueryLanes * kQueryLanes;
    for (size_t j = 0; j < keys && queries < whole; j++)
        for (size_t r = queries; r < whole; r++) s[j * ld + r] = 0;
    for (size_t j = first + 1; j < keys; j++)
        for (size_t r = 0; r < j - first; r++) s[j * ld + r] = -Real(__builtin_inf());
    for (size_t r = 0; r < queries; r += kQueryLanes) {
        Real top[kQueryLanes], sum[kQueryLanes] = {};
        for (size_t x = 0; x < kQueryLanes; x++) top[x] = s[r + x];
        for (size_t j = 1; j < keys; j++)
            for (size_t x = 0; x < kQueryLanes; x++) {
                const Real score = s[j * ld + r + x];
                top[x] = top[x] > score ? top[x] : score;
            }
        for (size_t j = 0; j < keys; j++)
            for (size_t x = 0; x < kQueryLanes; x++) {
                Real& p = s[j * ld + r + x];
                p = exp_r(p - top[x]);
                sum[x] += p;
            }
        const size_t n = queries - r < kQueryLanes ? queries - r : kQueryLanes;
        for (size_t x = 0; x < n; x++) inverse_sum[r + x] = 1 / sum[x];
        for (size_t x = 0; x < n && lse; x++) lse[r + x] = top[x] + Real(__builtin_log(sum[x]));
    }
}

// p [first + queries, ld], keys by queries: scores in, probabilities out. ds, likewise: dp in, the gradient of q . k out.
template <class Real>
void leaf_softmax_causal_backward(Real* p, Real* ds, const Real* lse, const Real* delta, size_t ld, size_t queries,
                                  size_t first, Real inverse_sqrt_hs) {
    for (size_t j = 0; j < first + queries; j++, p += ld, ds += ld) {
        const size_t unseen = j > first ? j - first : 0;
        for (size_t r = 0; r < queries; r++) {
            p[r] = exp_r(p[r] - lse[r]);
            ds[r] = p[r] * (ds[r] - delta[r]) * inverse_sqrt_hs;
        }
        for (size_t r = 0; r < unseen; r++) p[r] = ds[r] = 0;
    }
}

}  // namespace
#else  // ---- CPU

// Query rows per block: enough for the matrix product to be efficient, few enough that the half of the diagonal block that
// the causal mask throws away does not matter. Scores lie by keys and queries [T, block]: then the only operands that a product has
// to transpose are the few queries of a block, not all of their keys.
inline size_t attention_block(size_t T) { return T <= 128 ? 32 : 64; }

// Memory for work on one head: blocks of scores [2, T, block] and two numbers per row.
template <class Real>
struct AttentionScratch {
    Real *scores, *gradients, *rows;
    void* pack;

    AttentionScratch(Cpu& dev, int thread, size_t T) {
        const size_t block = attention_block(T), plane = (block * T * sizeof(Real) + 63) / 64 * 64;
        char* memory =
            static_cast<char*>(dev.scratch(thread, gemm_pack_bytes<Real>() + 2 * plane + 2 * block * sizeof(Real)));
        pack = memory;
        scores = reinterpret_cast<Real*>(memory + gemm_pack_bytes<Real>());
        gradients = reinterpret_cast<Real*>(memory + gemm_pack_bytes<Real>() + plane);
        rows = reinterpret_cast<Real*>(memory + gemm_pack_bytes<Real>() + 2 * plane);
    }
};

// out [B, T, C], lse [B, NH, T] (for the backward pass; may be null), qkv [B, T, 3C]
template <class Real>
void attention_forward(Cpu& dev, Real* out, Acc<Real>* lse, const Real* qkv, size_t B, size_t T, size_t C, size_t NH) {
    const size_t hs = C / NH, block = attention_block(T);
    const Real inverse_sqrt_hs = Real(1 / std::sqrt(double(hs)));
    parallel_tasks(dev, B * NH, [&](size_t task, int thread) {
        const size_t b = task / NH, h = task % NH;
        const Real *q = qkv + b * T * 3 * C + h * hs, *k = q + C, *v = q + 2 * C;
        const AttentionScratch<Real> s(dev, thread, T);
        for (size_t first = 0; first < T; first += block) {
            const size_t rows = std::min(block, T - first), keys = first + rows;
            Real *sum = s.rows, *rows_lse = lse ? lse + task * T + first : nullptr;
            Real* o = out + (b * T + first) * C + h * hs;
            // clang-format off
            gemm_single<Real>(dev, thread, {.M = keys, .N = rows, .K = hs, .A = k, .lda = 3 * C, .trans_a = false,
                                            .B = q + first * 3 * C, .ldb = 3 * C, .trans_b = true, .C = s.scores,
                                            .ldc = block, .alpha = inverse_sqrt_hs, .pack = s.pack});
            leaf<Real>(dev).softmax_causal(s.scores, rows_lse, sum, block, rows, first);
            gemm_single<Real>(dev, thread, {.M = rows, .N = hs, .K = keys, .A = s.scores, .lda = block, .trans_a = true,
                                            .B = v, .ldb = 3 * C, .trans_b = false, .C = o, .ldc = C, .pack = s.pack});
            // clang-format on
            for (size_t r = 0; r < rows; r++)
                for (size_t i = 0; i < hs; i++) o[r * C + i] *= sum[r];
        }
    });
}

// dqkv [B, T, 3C] =, from dout, out [B, T, C], lse [B, NH, T] and qkv [B, T, 3C] of the forward pass.
template <class Real>
void attention_backward(Cpu& dev, Real* dqkv, const Real* dout, const Real* out, const Acc<Real>* lse, const Real* qkv,
                        size_t B, size_t T, size_t C, size_t NH) {
    const size_t hs = C / NH, block = attention_block(T), ld = 3 * C;
    const Real inverse_sqrt_hs = Real(1 / std::sqrt(double(hs)));
    parallel_tasks(dev, B * NH, [&](size_t task, int thread) {
        const size_t b = task / NH, h = task % NH;
        const Real *q = qkv + b * T * ld + h * hs, *k = q + C, *v = q + 2 * C;
        Real *dq = dqkv + b * T * ld + h * hs, *dk = dq + C, *dv = dq + 2 * C;
        const AttentionScratch<Real> s(dev, thread, T);
        for (size_t t = 0; t < T; t++)
            for (size_t i = 0; i < hs; i++) dk[t * ld + i] = dv[t * ld + i] = 0;
        for (size_t first = 0; first < T; first += block) {
            const size_t rows = std::min(block, T - first), keys = first + rows;
            const Real *o = out + (b * T + first) * C + h * hs, *d_o = dout + (b * T + first) * C + h * hs;
            const Real* q_rows = q + first * ld;
            Real* delta = s.rows;
            for (size_t r = 0; r < rows; r++) {
                delta[r] = 0;
                for (size_t i = 0; i < hs; i++) delta[r] += d_o[r * C + i] * o[r * C + i];
            }
            auto multiply = [&](const Gemm<Real>& g) { gemm_single<Real>(dev, thread, g); };
            // s = k q^T / sqrt(hs) and dp = v do^T, both [keys, rows]
            // clang-format off
            multiply({.M = keys, .N = rows, .K = hs, .A = k, .lda = ld, .trans_a = false, .B = q_rows, .ldb = ld,
                      .trans_b = true, .C = s.scores, .ldc = block, .alpha = inverse_sqrt_hs, .pack = s.pack});
            multiply({.M = keys, .N = rows, .K = hs, .A = v, .lda = ld, .trans_a = false, .B = d_o, .ldb = C,
                      .trans_b = true, .C = s.gradients, .ldc = block, .pack = s.pack});
            leaf<Real>(dev).softmax_causal_backward(s.scores, s.gradients, lse + task * T + first, delta, block, rows,
                                                    first, inverse_sqrt_hs);
            // dq = ds^T k,  dk += ds q,  dv += p do
            multiply({.M = rows, .N = hs, .K = keys, .A = s.gradients, .lda = block, .trans_a = true, .B = k, .ldb = ld,
                      .trans_b = false, .C = dq + first * ld, .ldc = ld, .pack = s.pack});
            multiply({.M = keys, .N = hs, .K = rows, .A = s.gradients, .lda = block, .trans_a = false, .B = q_rows,
                      .ldb = ld, .trans_b = false, .C = dk, .ldc = ld, .accumulate = true, .pack = s.pack});
            multiply({.M = keys, .N = hs, .K = rows, .A = s.scores, .lda = block, .trans_a = false, .B = d_o, .ldb = C,
                      .trans_b = false, .C = dv, .ldc = ld, .accumulate = true, .pack = s.pack});
            // clang-format on
        }
    });
}

// Inference: rows row .. row + n - 1 of a batch are the queries at positions first .. first + n - 1 of one sequence, whose
// keys and values so far are rows 0 .. first - 1 of the caches [> first + n - 1, C].
template <class Real>
struct CachedRows {
    Real *k_cache, *v_cache;
    size_t row, first, n;
};

// Copies the keys and values of a part's new rows, channels [c0, c1), into its caches. qkv [N, 3C]
template <class Real>
void cache_append(const CachedRows<Real>& p, const Real* qkv, size_t C, size_t c0, size_t c1) {
    for (size_t t = 0; t < p.n; t++) {
        const Real* row = qkv + (p.row + t) * 3 * C;
        std::copy(row + C + c0, row + C + c1, p.k_cache + (p.first + t) * C + c0);
        std::copy(row + 2 * C + c0, row + 2 * C + c1, p.v_cache + (p.first + t) * C + c0);
    }
}

// Head h of a part's rows begin .. begin + attention_block - 1, on one thread.
template <class Real>
void attention_cached_head(Cpu& dev, int thread, Real* out, const CachedRows<Real>& p, size_t begin, const Real* qkv,
                           size_t C, size_t hs, size_t h) {
    const size_t T = p.first + p.n, block = attention_block(T), rows = std::min(block, p.n - begin);
    const size_t keys = p.first + begin + rows, row = p.row + begin;
    const AttentionScratch<Real> s(dev, thread, T);
    Real* o = out + row * C + h * hs;
    const Real *q = qkv + row * 3 * C + h * hs, *k = p.k_cache + h * hs, *v = p.v_cache + h * hs;
    const Real inverse_sqrt_hs = Real(1 / std::sqrt(double(hs)));
    // Few queries take the keys as rows, in place.
    const bool few = rows <= kFewRows;
    // clang-format off
    if (few) {
        gemm_single<Real>(dev, thread, {.M = rows, .N = keys, .K = hs, .A = q, .lda = 3 * C, .trans_a = false, .B = k,
                                        .ldb = C, .trans_b = true, .C = s.scores, .ldc = T, .alpha = inverse_sqrt_hs,
                                        .pack = s.pack});
        leaf<Real>(dev).softmax_rows(s.scores, s.rows, T, rows, p.first + begin);
    } else {
        gemm_single<Real>(dev, thread, {.M = keys, .N = rows, .K = hs, .A = k, .lda = C, .trans_a = false, .B = q,
                                        .ldb = 3 * C, .trans_b = true, .C = s.scores, .ldc = block,
                                        .alpha = inverse_sqrt_hs, .pack = s.pack});
        leaf<Real>(dev).softmax_causal(s.scores, nullptr, s.rows, block, rows, p.first + begin);
    }
    gemm_single<Real>(dev, thread, {.M = rows, .N = hs, .K = keys, .A = s.scores, .lda = few ? T : block,
                                    .trans_a = !few, .B = v, .ldb = C, .trans_b = false, .C = o, .ldc = C,
                                    .pack = s.pack});
    // clang-format on
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < hs; i++) o[r * C + i] *= s.rows[r];
}

// Attention of every sequence against its own cache, to which the keys and values of its rows are added. out [N, C],
// qkv [N, 3C], where N counts the rows of all parts; a sequence is in one part only.
template <class Real>
void attention_cached(Cpu& dev, Real* out, const std::vector<CachedRows<Real>>& parts, const Real* qkv, size_t C,
                      size_t NH) {
    struct Task {
        const CachedRows<Real>* part;
        size_t begin;
    };
    std::vector<Task> tasks;
    for (const CachedRows<Real>& p : parts) {
        cache_append(p, qkv, C, 0, C);
        for (size_t begin = 0; begin < p.n; begin += attention_block(p.first + p.n)) tasks.push_back({&p, begin});
    }
    parallel_tasks(dev, tasks.size() * NH, [&](size_t task, int thread) {
        const Task& t = tasks[task / NH];
        attention_cached_head(dev, thread, out, *t.part, t.begin, qkv, C, C / NH, task % NH);
    });
}

#ifdef TN_CUDA  // ---- CUDA

template <class Real>
bool attention_on_tensor_cores(size_t hs) {
    return std::is_same_v<Real, bf16> && hs % 8 == 0 && hs <= 128;
}

inline void check_head_size(size_t hs) {
    if (hs > size_t(kSimpleMaxHs))
        fail("attention: expected a head size of at most %d on a GPU, found %zu; use more heads or run on the CPU",
             kSimpleMaxHs, hs);
}

// Calls f(std::integral_constant<int, HS>()) with the head size that the flash kernels round hs up to.
template <class F>
void with_flash_head_size(size_t hs, F&& f) {
    if (hs <= 32) return f(std::integral_constant<int, 32>());
    if (hs <= 64) return f(std::integral_constant<int, 64>());
    if (hs <= 96) return f(std::integral_constant<int, 96>());
    f(std::integral_constant<int, 128>());
}

// Whether there are kernels for warpgroups with this head size, and whether attention uses them (choose_attention).
inline bool has_group_kernels(size_t hs) { return hs == 64 || hs == 128; }
inline bool uses_wgmma(const Cuda& dev, size_t hs) {
    return has_group_kernels(hs) && dev.wgmma[hs / 128] == Cuda::Wgmma::yes;
}
inline void use_wgmma(Cuda& dev, size_t hs, bool use) {
    if (has_group_kernels(hs)) dev.wgmma[hs / 128] = use ? Cuda::Wgmma::yes : Cuda::Wgmma::no;
}

// Like with_flash_head_size, if attention uses them; else it returns false.
template <class F>
bool with_group_head_size(const Cuda& dev, size_t hs, F&& f) {
    if (!uses_wgmma(dev, hs)) return false;
    hs == 64 ? f(std::integral_constant<int, 64>()) : f(std::integral_constant<int, 128>());
    return true;
}

// B: sequences.
template <class Real, class Args>
void launch_attention_forward(Cuda& dev, const Args& a, size_t B) {
    const size_t hs = size_t(a.hs), queries = size_t(a.queries);
    const unsigned heads = blocks_for(B * size_t(a.NH), 1);
    check_head_size(hs);
    if constexpr (std::is_same_v<Real, bf16>) {
        if (with_group_head_size(dev, hs, [&](auto size) {
                constexpr int HS = decltype(size)::value;
                const dim3 grid(heads, blocks_for(queries, kGroupRows));
                launch<flash_wgmma_forward_kernel<HS, Args>>(grid, kGroupThreads, sizeof(GroupForwardTiles<HS>),
                                                             dev.stream, a);
            }))
            return;
        if (attention_on_tensor_cores<Real>(hs))
            return with_flash_head_size(hs, [&](auto size) {
                constexpr int HS = decltype(size)::value;
                const dim3 grid(heads, blocks_for(queries, ForwardTiles<HS>::kRows));
                launch<flash_forward_kernel<HS, Args>>(grid, kFlashThreads, sizeof(ForwardTiles<HS>), dev.stream, a);
            });
    }
    const dim3 grid(heads, blocks_for(queries, kSimpleRows));
    const size_t shared = (3 * simple_tile(a.hs) + kSimpleScores) * sizeof(float);
    launch<simple_forward_kernel<Real, Args>>(grid, kSimpleThreads, shared, dev.stream, a);
}

// out [B, T, C], lse [B, NH, T] (for the backward pass; may be null), qkv [B, T, 3C]
template <class Real>
void attention_forward(Cuda& dev, Real* out, Acc<Real>* lse, const Real* qkv, size_t B, size_t T, size_t C, size_t NH) {
    const size_t hs = C / NH;
    const AttentionForward<Real> a{
        .out = out,
        .lse = lse,
        .q = qkv,
        .k = qkv + C,
        .v = qkv + 2 * C,
        .q_stride = 3 * C,
        .kv_stride = 3 * C,
        .NH = int(NH),
        .hs = int(hs),
        .queries = int(T),
        .keys = int(T),
        .inverse_sqrt_hs = float(1 / std::sqrt(double(hs))),
    };
    launch_attention_forward<Real>(dev, a, B);
}

// dqkv [B, T, 3C] =, from dout, out [B, T, C], lse [B, NH, T] and qkv [B, T, 3C] of the forward pass.
template <class Real>
void attention_backward(Cuda& dev, Real* dqkv, const Real* dout, const Real* out, const Acc<Real>* lse, const Real* qkv,
                        size_t B, size_t T, size_t C, size_t NH) {
    const size_t hs = C / NH, count = B * T * NH;
    const unsigned heads = blocks_for(B * NH, 1);
    check_head_size(hs);
    float* delta = static_cast<float*>(dev.scratch(count * sizeof(float)));
    const AttentionBackward<Real> a{
        .dqkv = dqkv,
        .dout = dout,
        .out = out,
        .qkv = qkv,
        .lse = lse,
        .delta = delta,
        .NH = int(NH),
        .hs = int(hs),
        .T = int(T),
        .inverse_sqrt_hs = float(1 / std::sqrt(double(hs))),
    };
    if constexpr (std::is_same_v<Real, bf16>) {
        if (with_group_head_size(dev, hs, [&](auto size) {
                constexpr int HS = decltype(size)::value;
                const dim3 grid(heads, blocks_for(T, kGroupRows));
                launch<flash_wgmma_dq_kernel<HS>>(grid, kGroupThreads, sizeof(GroupQueryGradientTiles<HS>), dev.stream,
                                                  a);  // first: it computes delta
                launch<flash_wgmma_dkdv_kernel<HS>>(grid, kGroupThreads, sizeof(GroupKeyGradientTiles<HS>), dev.stream,
                                                    a);
            }))
            return;
        if (attention_on_tensor_cores<Real>(hs))
            return with_flash_head_size(hs, [&](auto size) {
                constexpr int HS = decltype(size)::value;
                const dim3 grid(heads, blocks_for(T, BackwardShape<HS>::kRows));
                launch<flash_backward_dq_kernel<HS>>(grid, kFlashThreads, sizeof(QueryGradientTiles<HS>), dev.stream,
                                                     a);  // first: it computes delta
                launch<flash_backward_dkdv_kernel<HS>>(grid, kFlashThreads, sizeof(KeyGradientTiles<HS>), dev.stream,
                                                       a);
            });
    }
    launch<attention_delta_kernel<Real>>(blocks_for(count, 32), 256, 0, dev.stream, delta, dout, out, count, int(T),
                                         int(NH), int(hs), hs % kVector<Real> == 0);
    const dim3 grid(heads, blocks_for(T, kSimpleRows));
    const size_t shared = (4 * simple_tile(a.hs) + 2 * kSimpleScores) * sizeof(float);
    launch<simple_backward_dkdv_kernel<Real>>(grid, kSimpleThreads, shared, dev.stream, a);
    launch<simple_backward_dq_kernel<Real>>(grid, kSimpleThreads, shared, dev.stream, a);
}

// Calls f(std::integral_constant<int, packs>()) with the fewest packs that have room for the head size.
template <class Real, int packs, class F>
void with_decode_packs(int hs, F&& f) {
    constexpr int kChannels = 8 * int(kVector<Real>) * packs;
    if constexpr (kChannels < kSimpleMaxHs)
        if (hs > kChannels) return with_decode_packs<Real, 2 * packs>(hs, f);
    f(std::integral_constant<int, packs>());
}

// Whether n rows of a sequence go through attention_decode.
template <class Real>
bool attention_decodes(size_t n, size_t hs) {
    return n == 1 && hs % kVector<Real> == 0;
}

// One query: one block per head and 128 keys; where a head has several blocks, their results are combined.
template <class Real>
void attention_decode(Cuda& dev, Real* out, Real* k_cache, Real* v_cache, const Real* qkv, size_t keys, size_t C,
                      size_t NH) {
    const size_t hs = C / NH;
    const unsigned splits = blocks_for(keys, kDecodeKeys), heads = blocks_for(NH, 1);
    float* partial = nullptr;
    if (splits > 1) partial = static_cast<float*>(dev.scratch(NH * splits * (hs + 2) * sizeof(float)));
    const AttentionDecode<Real> a{
        .out = out,
        .partial = partial,
        .k_cache = k_cache,
        .v_cache = v_cache,
        .qkv = qkv,
        .NH = int(NH),
        .hs = int(hs),
        .keys = int(keys),
        .inverse_sqrt_hs = float(1 / std::sqrt(double(hs))),
    };
    const dim3 grid(heads, splits);
    const size_t shared = size_t(kDecodeGroups) * size_t(a.hs + 2) * sizeof(float);
    with_decode_packs<Real, 1>(a.hs, [&](auto packs) {
        launch<decode_kernel<Real, decltype(packs)::value>>(grid, kDecodeThreads, shared, dev.stream, a);
    });
    if (splits > 1)
        launch<decode_combine_kernel<Real>>(heads, kDecodeThreads, 0, dev.stream, out, partial, int(splits), int(hs));
}

// As on the CPU. Single rows go one by one, whatever else is there: a sequence's bits must not depend on it.
template <class Real>
void attention_cached(Cuda& dev, Real* out, const std::vector<CachedRows<Real>>& parts, const Real* qkv, size_t C,
                      size_t NH) {
    const size_t hs = C / NH;
    check_head_size(hs);
    AttentionCached<Real> a{};
    auto begin = [&] {
        a = {.out = out,
             .qkv = qkv,
             .q_stride = 3 * C,
             .kv_stride = C,
             .NH = int(NH),
             .hs = int(hs),
             .queries = 0,
             .inverse_sqrt_hs = float(1 / std::sqrt(double(hs))),
             .count = 0,
             .parts = {}};
    };
    auto end = [&] {
        if (a.count == 0) return;
        launch<cache_append_kernel<Real>>(dim3(blocks_for(size_t(a.queries) * C, 256), a.count), 256, 0, dev.stream, a);
        launch_attention_forward<Real>(dev, a, a.count);
        begin();
    };
    begin();
    for (const CachedRows<Real>& p : parts) {
        if (attention_decodes<Real>(p.n, hs)) {
            attention_decode(dev, out + p.row * C, p.k_cache, p.v_cache, qkv + p.row * 3 * C, p.first + 1, C, NH);
            continue;
        }
        a.parts[a.count++] = {p.k_cache, p.v_cache, unsigned(p.row), unsigned(p.first), unsigned(p.n)};
        a.queries = std::max(a.queries, int(p.n));
        if (a.count == a.kMost) end();
    }
    end();
}

// One new token of each of `rows` sequences against its cache; see AttentionStep. Head sizes must be multiples of 16 bytes.
template <class Real>
void attention_step(Cuda& dev, const AttentionStep<Real>& a, size_t rows) {
    check_head_size(size_t(a.hs));
    const dim3 grid(unsigned(a.NH), blocks_for(size_t(a.T), kDecodeKeys), unsigned(rows));
    const size_t shared = size_t(kDecodeGroups) * size_t(a.hs + 2) * sizeof(float);
    with_decode_packs<Real, 1>(a.hs, [&](auto packs) {
        launch<decode_step_kernel<Real, decltype(packs)::value>>(grid, kDecodeThreads, shared, dev.stream, a);
    });
}
#endif          // TN_CUDA
#endif

}  // namespace tapernorm
