// One decoding step of up to four sequences as a single kernel: choose a token from the logits, embed it, pass it through the
// blocks, compute new logits. A step of few rows reads every weight once and computes next to nothing, so it takes as long as
// that reading; what a chain of kernels loses are the moments in which nothing is being read, between one kernel's last
// weights and the next one's first. Here one block of threads stays on each multiprocessor for the whole step, and
//
// * every thread knows from the start which weights it will need, in which order (WeightStream), and always has the next
//   `ahead` packs of them on their way to shared memory: also while the grid waits in a barrier, for weights depend on
//   nothing;
// * W [K, N] is shared by the grid in both directions (StepShare), as a product of one row has too few columns for all
//   multiprocessors. What each block adds to a column goes to memory; whoever needs the result as input adds these sums up in
//   their order, so that a grid of one size always gives the same bits. Residual stream, bias, and GELU are applied there, too;
// * between phases (qkv, attention, attn_proj, mlp_fc, mlp_proj) the grid meets in a barrier: 5 per block and one behind the
//   choice of the token.
//
// What folding saves here: a site that is no longer there needs no statistics, so a block of threads reads that part of its
// input alone which it multiplies, where a norm makes every block read the whole row.
//
// The residual stream and all sums are fp32; queries, keys and values are rounded to Real, as the caches hold them. Every site's
// factor rho (SiteArgs) is 1, for no token that a step reads is its sequence's first (but in sequences that nobody reads).
#pragma once
#ifdef TN_CUDA
#include <algorithm>
#include <string>
#include <vector>

#include "inference/decoder.cuh"
#include "ops/gelu.cuh"
#include "ops/sampling.cuh"
#include "runtime/grid.cuh"
#include "tapernorm.cuh"

namespace tapernorm {

constexpr unsigned kStepThreads = 384, kStepWarps = kStepThreads / 32;  // (512 leave a thread too few registers)
constexpr unsigned kStepMostRows = 4;
// Packs of weights on their way to each thread: 60 KiB per multiprocessor or, where shared memory holds as much (sm_90, 100), 180.
constexpr unsigned kStepAhead = 10, kStepFarAhead = 30;
constexpr unsigned kStepNumbers = 6400;      // fp32 numbers of a product's input in shared memory, over all rows
constexpr unsigned kStepMostLanes = 16;      // threads side by side on a row of W: 256 bytes
constexpr int kStepKeys = kStepThreads / 2;  // keys that a block looks at in one go: 4 per group of 8 lanes
constexpr int kStepMostHs = 64;

// How the blocks of a grid share a product [rows, K] W [K, N]: in units of `lanes` vectors of columns (a tile) and `span` rows
// of W (a split). Unit u is tile u % tiles and split u / tiles; block b computes units b, b + blocks, ...
struct StepShare {
    unsigned K, N;
    unsigned lanes, tiles, splits, span;
};

// The shares that cost the busiest block least, of spans that fit in shared memory. In packs of weights: those of its units; what a
// unit costs by itself (input, barriers, sums: taken for a quarter of a microsecond of reading); every split is one more sum per
// output that all blocks add up (taken for two percent); and memory is read in pieces of 64 bytes, better of 128, of which fewer
// lanes than 8 leave a part to other blocks. K must be a multiple of 4, and so is a span, N one of `vector`.
inline StepShare step_share(size_t K, size_t N, size_t rows, unsigned vector, unsigned blocks) {
    constexpr unsigned kMostSplits = 16;
    constexpr double kUnit = 400, kSplit = 0.02;
    StepShare best{};
    double least = INFINITY;
    for (unsigned lanes = kStepMostLanes; lanes >= 2; lanes /= 2)
        for (unsigned splits = 1; splits <= kMostSplits; splits++) {
            const unsigned tiles = blocks_for(N, lanes * vector), span = 4 * blocks_for(K / 4, splits);
            const double pieces = lanes >= 8 ? 1 : lanes == 4 ? 1.05 : 1.2;
            const double cost =
                blocks_for(tiles * splits, blocks) * (span * lanes * pieces + kUnit) * (1 + kSplit * splits);
            if (span * rows > kStepNumbers || cost >= least) continue;
            best = {unsigned(K), unsigned(N), lanes, tiles, blocks_for(K, span), span}, least = cost;
        }
    return best;
}

// The linear layers of a block and what they read, in device memory.
template <class Real>
struct StepLayer {
    Site<Real> sites[2];      // before qkv and mlp_fc
    const Real* weight[4];    // qkv, attn_proj, mlp_fc, mlp_proj: [K, N]
    const Real* bias[4];      // [N]
    Real *k_cache, *v_cache;  // [rows, T, C]
};

template <class Real>
struct Step {
    SampleStep<Real> sample;
    const StepLayer<Real>* layers;  // [L]
    StepShare share[4];             // of a layer's products
    Site<Real> final_site;
    const Real *head, *head_bias;  // [V, C], [V]
    float *stream, *mid;           // [rows, C]: the residual stream before a block, and behind its attention
    float* sums[4];                // [splits, rows, N] of each product
    float* parts;  // [rows, NH, splits, hs + 4]: attention's sums, their largest score, the sum of weights
    Real* logits;  // [rows, ld_logits]
    unsigned L, C, NH, hs, T, V, ld_logits, rows;
    unsigned splits;  // the most blocks that share the keys of a head
    float inverse_sqrt_hs;
};

// ---------------------------------------------------------------------------------------------------------------------
// Weights, in the order in which this thread multiplies them

// All positions are those of the pack that is requested next, `ahead` packs before it is used.
template <class Real, unsigned ahead>
class WeightStream {
  public:
    static constexpr unsigned P = kVector<Real>;

    // ring: [ahead, kStepThreads] packs of shared memory; a thread reads only what it has copied itself.
    __device__ WeightStream(const Step<Real>& a, Pack<Real>* ring) : a_(a), ring_(ring + threadIdx.x) {
        seek();
        for (unsigned i = 0; i < ahead; i++) request(ring_ + i * kStepThreads);
    }

    __device__ __forceinline__ Pack<Real> take() {
        cp_async_wait<int(ahead) - 1>();
        Pack<Real>* const at = ring_ + slot_ * kStepThreads;
        const Pack<Real> w = *at;
        request(at);
        slot_ = slot_ + 1 < ahead ? slot_ + 1 : 0;
        return w;
    }

  private:
    // (Every request closes a group, also when nothing is left: `take` counts groups.)
    __device__ __forceinline__ void request(Pack<Real>* slot) {
        if (at_) {
            cp_async<16>(slot, at_);
            advance();
        }
        cp_async_commit();
    }

    __device__ __forceinline__ void advance() {
        k_ += step_;
        if (product_ < 4 * a_.L) {
            at_ += size_t(step_) * a_.share[product_ % 4].N;
            if (k_ < end_) return;
            unit_ += gridDim.x;
            seek();
        } else if (k_ < a_.C) {
            at_ += step_;
        } else {
            row_ += gridDim.x * kStepWarps;
            at_ = row_ < a_.V ? a_.head + size_t(row_) * a_.C + threadIdx.x % 32 * P : nullptr;
            k_ = threadIdx.x % 32 * P;
        }
    }

    // From unit_ of product_ on, the first unit with work for this thread; behind the last, the head's rows.
    __device__ void seek() {
        for (; product_ < 4 * a_.L; product_++, unit_ = blockIdx.x) {
            const StepShare& s = a_.share[product_ % 4];
            const unsigned lane = threadIdx.x % s.lanes, group = threadIdx.x / s.lanes;
            step_ = kStepThreads / s.lanes;
            for (; unit_ < s.tiles * s.splits; unit_ += gridDim.x) {
                const unsigned n = (unit_ % s.tiles * s.lanes + lane) * P, split = unit_ / s.tiles;
                k_ = split * s.span + group, end_ = min(s.K, (split + 1) * s.span);
                if (n >= s.N || k_ >= end_) continue;
                at_ = a_.layers[product_ / 4].weight[product_ % 4] + size_t(k_) * s.N + n;
                return;
            }
        }
        row_ = blockIdx.x * kStepWarps + threadIdx.x / 32;
        k_ = threadIdx.x % 32 * P, step_ = 32 * P;
        at_ = row_ < a_.V && k_ < a_.C ? a_.head + size_t(row_) * a_.C + k_ : nullptr;
    }

    const Step<Real>& a_;
    Pack<Real>* ring_;
    const Real* at_ = nullptr;  // null: nothing is left
    unsigned slot_ = 0, product_ = 0, unit_ = blockIdx.x, row_ = 0, k_ = 0, end_ = 0, step_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Inputs of the products, four channels at a time

// gelu(sum of `splits` sums + bias) + residual; what is null or 0 is left out.
template <class Real>
struct StepInput {
    const float* sums;  // [splits, rows, n]
    unsigned splits, n;
    const Real* bias;       // [n]
    const float* residual;  // [rows, n]
    bool gelu;
    float* keep;  // [rows, n]: where one block leaves each value for phases to come
};

template <class Real>
__device__ __forceinline__ void step_value(float (&v)[4], const StepInput<Real>& in, unsigned rows, unsigned row,
                                           unsigned k) {
    for (unsigned j = 0; j < 4; j++) v[j] = 0;
    const float* p = in.sums + size_t(row) * in.n + k;
#pragma unroll 8
    for (unsigned s = 0; s < in.splits; s++, p += size_t(rows) * in.n) {
        const Pack<float> sum = load_pack_l2(p);
        for (unsigned j = 0; j < 4; j++) v[j] += sum[int(j)];
    }
    if (in.bias) {
        float bias[4];
        load_vector(bias, in.bias, k, in.n, true);
        for (unsigned j = 0; j < 4; j++) v[j] += bias[j];
    }
    if (in.gelu)
        for (unsigned j = 0; j < 4; j++) v[j] = gelu_cuda(v[j]);
    if (in.residual) {
        const Pack<float> x = load_pack_l2(in.residual + size_t(row) * in.n + k);
        for (unsigned j = 0; j < 4; j++) v[j] += x[int(j)];
    }
}

// The input of the p-th product, of which four belong to a block and the last is the head; but that of attn_proj is attention's.
template <class Real>
__device__ __forceinline__ StepInput<Real> step_input(const Step<Real>& a, unsigned p) {
    if (p == 0) return {nullptr, 0, a.C, nullptr, a.stream, false, nullptr};
    const unsigned before = (p - 1) % 4;
    const bool mlp = before == 2;
    return {a.sums[before],
            a.share[before].splits,
            mlp ? 4 * a.C : a.C,
            a.layers[(p - 1) / 4].bias[before],
            mlp           ? nullptr
            : before == 1 ? a.stream
                          : a.mid,
            mlp,
            mlp           ? nullptr
            : before == 1 ? a.mid
                          : a.stream};
}

template <class Real>
__device__ __forceinline__ const Site<Real>& step_site(const Step<Real>& a, unsigned p) {
    return p == 4 * a.L ? a.final_site : a.layers[p / 4].sites[p % 4 / 2];
}

// How the keys of one sequence are shared: `count` parts of `span` keys, the last one's being fewer.
struct StepKeys {
    int keys, span, count;
};
template <class Real>
__device__ __forceinline__ StepKeys step_keys(const Step<Real>& a, unsigned row) {
    const int keys = __ldcg(&a.sample.positions[row]) + 1,
              wanted = min(int(a.splits), (keys + kStepKeys - 1) / kStepKeys);
    constexpr int kGroups = kStepThreads / 8;
    const int span = (keys + wanted * kGroups - 1) / (wanted * kGroups) * kGroups;
    return {keys, span, (keys + span - 1) / span};
}

// Channels k .. k + 3 of the attention's output, from the parts that blocks left.
template <class Real>
__device__ __forceinline__ void step_attended(float (&v)[4], const Step<Real>& a, unsigned row, unsigned k) {
    const int count = step_keys(a, row).count;
    const size_t width = a.hs + 4;
    const float* const parts = a.parts + (size_t(row) * a.NH + k / a.hs) * a.splits * width;
    float top = -INFINITY, weight = 0;
    for (int i = 0; i < count; i++) top = fmaxf(top, __ldcg(&parts[size_t(i) * width + a.hs]));
    for (unsigned j = 0; j < 4; j++) v[j] = 0;
    for (int i = 0; i < count; i++) {
        const float* const part = parts + size_t(i) * width;
        const float factor = fast_exp2(__ldcg(&part[a.hs]) - top);
        const Pack<float> sum = load_pack_l2(part + k % a.hs);
        weight += factor * __ldcg(&part[a.hs + 1]);
        for (unsigned j = 0; j < 4; j++) v[j] += factor * sum[int(j)];
    }
    for (unsigned j = 0; j < 4; j++) v[j] /= weight;
}

// shared [rows, ld] = value(v, row, k) for k in k0 .. k0 + count; all threads.
template <class Value>
__device__ __forceinline__ void step_stage(float* shared, unsigned ld, unsigned rows, unsigned k0, unsigned count,
                                           Value&& value) {
    const unsigned vectors = count / 4;
    for (unsigned at = threadIdx.x; at < rows * vectors; at += kStepThreads) {
        const unsigned row = at / vectors, k = at % vectors * 4;
        float v[4];
        value(v, row, k0 + k);
        store_vector(shared + row * ld, v, k, ld, true);
    }
}

template <Phase phase, class Real>
__device__ __forceinline__ void step_apply_site(float* shared, const float2* statistics, const Step<Real>& a,
                                                const Site<Real>& site) {
    constexpr unsigned P = kVector<Real>;
    const unsigned vectors = a.C / P;
    for (unsigned at = threadIdx.x; at < a.rows * vectors; at += kStepThreads) {
        const unsigned row = at / vectors, k = at % vectors * P;
        float u[P], gain[P];
        for (unsigned j = 0; j < P; j++) u[j] = shared[row * a.C + k + j] - statistics[row].x;
        site_vector<phase>(u, gain, site, statistics[row].y, 1.0f, k, a.C, true);
        for (unsigned j = 0; j < P; j++) shared[row * a.C + k + j] = u[j];
    }
}

// shared [rows, C] = the p-th product's input behind its site, whole rows.
template <class Real>
__device__ void step_stage_rows(float* shared, float2* statistics, const Step<Real>& a, unsigned p) {
    const StepInput<Real> in = step_input(a, p);
    const Site<Real>& site = step_site(a, p);
    step_stage(shared, a.C, a.rows, 0, a.C, [&](float (&v)[4], unsigned row, unsigned k) {
        step_value(v, in, a.rows, row, k);
        if (in.keep && k / 4 % gridDim.x == blockIdx.x) store_vector(in.keep + size_t(row) * a.C, v, k, a.C, true);
    });
    __syncthreads();
    if (site.phase == Phase::folded) return;
    const bool fixed = site.phase == Phase::clamp;
    if (const unsigned row = threadIdx.x / 32; row < a.rows) {
        const float* x = shared + row * a.C;
        const float m = !fixed && site.kind == NormKind::layernorm ? row_mean_warp(x, a.C, true) : 0.0f;
        const float s = fixed || site.phase == Phase::scale ? 1.0f : row_scale_warp(x, m, site.eps, a.C, true);
        if (threadIdx.x % 32 == 0) statistics[row] = {m, 1 / s};
    }
    __syncthreads();
    auto apply = [&]<Phase phase>() { step_apply_site<phase>(shared, statistics, a, site); };
    if (site.phase == Phase::norm) apply.template operator()<Phase::norm>();
    if (site.phase == Phase::blend) apply.template operator()<Phase::blend>();
    if (site.phase == Phase::scale) apply.template operator()<Phase::scale>();
    if (site.phase == Phase::unweighted) apply.template operator()<Phase::unweighted>();
    if (site.phase == Phase::clamp) apply.template operator()<Phase::clamp>();
    __syncthreads();
}

// Brings the vectors of block l to L2, or those of the final site: biases, gains. A phase can ask for them only behind its barrier, and
// they are no longer in L2: a step's weights have pushed them out. By the blocks of threads from `first` on, which have nothing
// else to do.
template <class Real>
__device__ void step_prefetch(const Step<Real>& a, unsigned l, unsigned first) {
    constexpr unsigned kLine = 128 / sizeof(Real);
    if (threadIdx.x >= 12 || blockIdx.x < first) return;
    const unsigned i = threadIdx.x, of_site = i % 4;
    const Site<Real>& site = l == a.L ? a.final_site : a.layers[l].sites[i / 4 % 2];
    const Real* vector = of_site == 0   ? site.weight
                         : of_site == 1 ? site.bias
                         : of_site == 2 ? site.taper_weight
                                        : site.taper_bias;
    unsigned n = a.C;
    if (i >= 8) vector = l == a.L ? nullptr : a.layers[l].bias[of_site], n = a.share[of_site].N;
    const unsigned step = (gridDim.x - first) * kLine;
    for (unsigned at = (blockIdx.x - first) * kLine; vector && at < n; at += step) prefetch_l2(vector + at);
}

// ---------------------------------------------------------------------------------------------------------------------
// The phases

// Shared memory, in this order.
struct StepShared {
    float2 statistics[kStepMostRows];
    float numbers[kStepNumbers];                                       // inputs of products; attention; sampling
    float sums[kStepWarps * kStepMostLanes * kVector<__nv_bfloat16>];  // of one row
};

// The keys of part `split` of a head, if there are any; the last part appends the new key and value to the cache first.
template <class Real>
__device__ void step_attention(const Step<Real>& a, const StepLayer<Real>& layer, float* shared) {
    const unsigned heads = a.rows * a.NH, hs = a.hs;
    for (unsigned task = blockIdx.x; task < heads * a.splits; task += gridDim.x) {
        const unsigned row = task % heads / a.NH, head = task % heads % a.NH, split = task / heads;
        const StepKeys k = step_keys(a, row);
        if (int(split) >= k.count) continue;  // the whole block
        const int begin = int(split) * k.span, end = min(k.keys, begin + k.span);
        const size_t cache = size_t(row) * a.T * a.C + head * hs;
        Real* const qkv = reinterpret_cast<Real*>(shared);  // [3, hs]
        float* const parts = shared + 3 * hs;
        const StepInput<Real> in{a.sums[0], a.share[0].splits, 3 * a.C, layer.bias[0], nullptr, false, nullptr};
        for (unsigned at = threadIdx.x; at < (end == k.keys ? 3 : 1) * hs / 4; at += kStepThreads) {
            const unsigned which = at / (hs / 4), c = at % (hs / 4) * 4;
            float v[4];
            step_value(v, in, a.rows, row, which * a.C + head * hs + c);
            Real* const kept = (which == 1 ? layer.k_cache : layer.v_cache) + cache + size_t(k.keys - 1) * a.C + c;
            for (unsigned j = 0; j < 4; j++) {
                qkv[which * hs + c + j] = Real(v[j]);
                if (which) kept[j] = Real(v[j]);
            }
        }
        __syncthreads();  // the query is there, and the new key and value are in the cache
        decode_keys_of_head<Real, kStepMostHs / (8 * int(kVector<Real>)), int(kStepThreads)>(parts, qkv,
                                                                                             layer.k_cache + cache,
                                                                                             layer.v_cache + cache, a.C,
                                                                                             int(hs), begin, end,
                                                                                             a.inverse_sqrt_hs *
                                                                                                 kLog2e);
        __syncthreads();
        combine_parts(
            a.parts + ((size_t(row) * a.NH + head) * a.splits + split) * (hs + 4),
            [&](int i, int c) { return parts[i * int(hs + 2) + c]; }, int(kStepWarps), int(hs), false);
        // (No barrier: the next task first writes the query, which was last read before the barrier above, and then waits.)
    }
}

// This block's units of a product. Its input is in `shared` as whole rows [rows, K] (staged), or stage(tile, k0, count) makes all
// threads bring it there for k0 .. k0 + count, as [rows, span].
template <int R, class Real, unsigned ahead, class Stage>
__device__ __forceinline__ void step_product(float* sums, const StepShare& s, unsigned rows,
                                             WeightStream<Real, ahead>& weights, StepShared& shared, bool staged,
                                             Stage&& stage) {
    constexpr unsigned P = kVector<Real>;
    const unsigned lane = threadIdx.x % s.lanes, group = threadIdx.x / s.lanes, groups = kStepThreads / s.lanes;
    const unsigned ld = staged ? s.K : s.span;
    for (unsigned unit = blockIdx.x; unit < s.tiles * s.splits; unit += gridDim.x) {
        const unsigned tile = unit % s.tiles, split = unit / s.tiles;
        const unsigned begin = split * s.span, end = min(s.K, begin + s.span), n = (tile * s.lanes + lane) * P;
        const float* const x = shared.numbers;
        const unsigned first = staged ? 0 : begin;  // x's k
        float sum[R][P] = {};
        if (!staged) stage(tile, begin, end - begin);
        __syncthreads();  // the input is there
        for (unsigned k = begin + group; n < s.N && k < end; k += groups) {
            const Pack<Real> w = weights.take();
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (unsigned j = 0; j < P; j++) sum[r][j] += x[unsigned(r) * ld + k - first] * float(w[int(j)]);
        }
        for (unsigned lanes = s.lanes; lanes < 32; lanes *= 2)
#pragma unroll
            for (int i = 0; i < R * int(P); i++)
                sum[i / P][i % P] += __shfl_xor_sync(~0u, sum[i / P][i % P], int(lanes));
        const unsigned width = s.lanes * P;
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (unsigned(r) >= rows) break;
            if (threadIdx.x % 32 < s.lanes)
#pragma unroll
                for (unsigned j = 0; j < P; j++)
                    shared.sums[threadIdx.x / 32 * width + threadIdx.x % 32 * P + j] = sum[r][j];
            __syncthreads();
            if (const unsigned c = threadIdx.x; c < width && tile * width + c < s.N) {
                float total = 0;
                for (unsigned w = 0; w < kStepWarps; w++) total += shared.sums[w * width + c];
                sums[(size_t(split) * rows + unsigned(r)) * s.N + tile * width + c] = total;
            }
            __syncthreads();
        }
    }
}

// The head's rows, one per warp at a time, against the rows [rows, C] in `shared`.
template <int R, class Real, unsigned ahead>
__device__ __forceinline__ void step_head(const Step<Real>& a, WeightStream<Real, ahead>& weights,
                                          const float* shared) {
    constexpr unsigned P = kVector<Real>;
    for (unsigned n = blockIdx.x * kStepWarps + threadIdx.x / 32; n < a.V; n += gridDim.x * kStepWarps) {
        float sum[R] = {};
        const float bias = a.head_bias ? float(a.head_bias[n]) : 0.0f;  // requested before what takes time
        for (unsigned k = threadIdx.x % 32 * P; k < a.C; k += 32 * P) {
            const Pack<Real> w = weights.take();
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (unsigned j = 0; j < P; j++) sum[r] += shared[unsigned(r) * a.C + k + j] * float(w[int(j)]);
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float total = warp_sum(sum[r]);
            if (threadIdx.x % 32 == 0 && unsigned(r) < a.rows)
                a.logits[size_t(r) * a.ld_logits + n] = Real(total + bias);
        }
    }
}

// The sequences' next tokens and, as the residual stream, their embeddings. (A function of its own: inlined, its registers would
// come on top of those of the weights on their way, and spill.)
template <class Real>
__device__ __attribute__((noinline)) void step_choose(const Step<Real>& a, SampleSum* shared) {
    for (unsigned row = blockIdx.x; row < a.rows; row += gridDim.x)
        sample_row(a.sample, row, a.rows, shared, [&](unsigned c, float x) { a.stream[size_t(row) * a.C + c] = x; });
}

// R >= a.rows. One block per multiprocessor.
template <class Real, int R, unsigned ahead>
__global__ void __launch_bounds__(kStepThreads, 1) step_kernel(const __grid_constant__ Step<Real> a) {
    StepShared& shared = *dynamic_shared<StepShared>();
    WeightStream<Real, ahead> weights(a, reinterpret_cast<Pack<Real>*>(&shared + 1));
    const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    step_choose(a, reinterpret_cast<SampleSum*>(shared.numbers));
    step_prefetch(a, 0, a.rows);
    if (blockIdx.x + 1 == gridDim.x)  // the table itself
        for (unsigned l = threadIdx.x; l < a.L; l += kStepThreads)
            prefetch_l2(&a.layers[l]), prefetch_l2(&a.layers[l].bias);
    grid.sync();
    for (unsigned p = 0; p < 4 * a.L; p++) {
        const unsigned which = p % 4;
        const StepLayer<Real>& layer = a.layers[p / 4];
        if (which == 1) {
            step_attention(a, layer, shared.numbers);
            step_prefetch(a, p / 4 + 1, a.rows * a.NH * a.splits);
            grid.sync();
        }
        const StepInput<Real> in = step_input(a, p);
        const Site<Real>& site = step_site(a, p);
        const bool has_site = which % 2 == 0;
        const bool staged = has_site && site.phase != Phase::folded && site.phase != Phase::clamp;
        if (staged) step_stage_rows(shared.numbers, shared.statistics, a, p);
        step_product<R>(a.sums[which], a.share[which], a.rows, weights, shared, staged,
                        [&](unsigned tile, unsigned k0, unsigned count) {
                            auto value = [&](float (&v)[4], unsigned row, unsigned k) {
                                if (which == 1) return step_attended(v, a, row, k);
                                step_value(v, in, a.rows, row, k);
                                if (tile == 0 && in.keep) store_vector(in.keep + size_t(row) * in.n, v, k, in.n, true);
                                if (!has_site || site.phase == Phase::folded) return;
                                for (unsigned j = 0; j < 4; j++) v[j] = bounded(v[j], site.bound);
                            };
                            step_stage(shared.numbers, a.share[which].span, a.rows, k0, count, value);
                        });
        grid.sync();
    }
    step_stage_rows(shared.numbers, shared.statistics, a, 4 * a.L);
    step_head<R>(a, weights, shared.numbers);
}

// ---------------------------------------------------------------------------------------------------------------------
// The host's side

// Owns what the steps of a decoder's sequences need besides the decoder's own memory.
template <class Real>
class PersistentStep {
  public:
    // "" where the kernel takes such a model and so many sequences on this GPU; else what it takes, what was found, what to do.
    static std::string why_not(const Cuda& dev, const Config& c, size_t rows) {
        const size_t hs = c.C / c.NH, P = kVector<Real>, most = dev.properties.sharedMemPerBlockOptin;
        if (hs > size_t(kStepMostHs))
            return strprintf("expected heads of at most %d numbers, found %zu; leave it out", kStepMostHs, hs);
        if (hs % P)
            return strprintf("expected heads of a multiple of %zu numbers, found %zu; %sleave it out", P, hs,
                             hs % 4 == 0 ? "use --precision fp32 or " : "");
        if (c.C > kStepNumbers)
            return strprintf("expected a width of at most %u, found %zu; leave it out", kStepNumbers, c.C);
        if (c.V > kSampleIds)
            return strprintf("expected at most %zu token ids, found %zu; leave it out", kSampleIds, c.V);
        if (!dev.properties.cooperativeLaunch)
            return "expected a GPU with cooperative launches, found one without; leave it out";
        if (shared_bytes(kStepAhead) > most)
            return strprintf("expected a GPU with %zu bytes of shared memory per block, found %zu; leave it out",
                             shared_bytes(kStepAhead), most);
        if (rows > kStepMostRows)
            return strprintf("expected at most %u texts at a time, found %zu; use --batch %u", kStepMostRows, rows,
                             kStepMostRows);
        if (rounded(rows) * c.C > kStepNumbers)
            return strprintf("expected one text at a time for a width of %zu, found %zu; use --batch 1", c.C, rows);
        return "";
    }

    // layers: the linear layers of the block diagram, four per block and the head. caches: of keys and values, per block.
    PersistentStep(Cuda& dev, const Config& c, const std::vector<Layer<Real>>& layers,
                   const std::vector<Real*>& k_cache, const std::vector<Real*>& v_cache, size_t rows)
        : dev_(dev), memory_(dev, "the kernel of a decoding step") {
        const unsigned blocks = unsigned(dev.multiprocessors());
        const Layer<Real>& head = layers.back();
        a_.final_site = *head.site;
        a_.head = head.weight, a_.head_bias = head.bias, a_.logits = head.out, a_.ld_logits = unsigned(head.ld_out);
        a_.L = unsigned(c.L), a_.C = unsigned(c.C), a_.NH = unsigned(c.NH), a_.hs = unsigned(c.C / c.NH);
        a_.T = unsigned(c.T), a_.V = unsigned(c.V), a_.rows = unsigned(rows);
        a_.splits = std::max(1u, std::min(blocks / unsigned(rows * c.NH), blocks_for(c.T, kStepKeys)));
        a_.inverse_sqrt_hs = float(1 / std::sqrt(double(a_.hs)));
        for (size_t i = 0; i < 4; i++) {
            a_.share[i] = step_share(layers[i].K, layers[i].N, rounded(rows), kVector<Real>, blocks);
            memory_.add(a_.sums[i], a_.share[i].splits * rows * layers[i].N);
        }
        StepLayer<Real>* table = nullptr;
        memory_.add(a_.stream, rows * c.C), memory_.add(a_.mid, rows * c.C), memory_.add(table, c.L);
        memory_.add(a_.parts, rows * c.NH * a_.splits * (a_.hs + 4));
        memory_.allocate(false);
        std::vector<StepLayer<Real>> list(c.L);
        for (size_t l = 0; l < c.L; l++) {
            for (size_t i = 0; i < 4; i++)
                list[l].weight[i] = layers[4 * l + i].weight, list[l].bias[i] = layers[4 * l + i].bias;
            list[l].sites[0] = *layers[4 * l].site, list[l].sites[1] = *layers[4 * l + 2].site;
            list[l].k_cache = k_cache[l], list[l].v_cache = v_cache[l];
        }
        device_copy_in(dev, table, list.data(), c.L * sizeof list[0]);
        a_.layers = table;
    }

    void launch(const SampleStep<Real>& sample) {
        a_.sample = sample;
        if (a_.rows == 1)
            launch_step<1>();
        else
            launch_step<4>();
    }

  private:
    static constexpr size_t shared_bytes(unsigned ahead) {
        return sizeof(StepShared) + ahead * kStepThreads * sizeof(Pack<Real>);
    }
    template <int R>
    void launch_step() {
        auto with = [&](auto ahead) {
            launch_cooperative<step_kernel<Real, R, decltype(ahead)::value>>(unsigned(dev_.multiprocessors()),
                                                                             kStepThreads, shared_bytes(ahead),
                                                                             dev_.stream, a_);
        };
        if constexpr (sizeof(Real) == 2)  // (few decode in fp32: a program need not be larger for them)
            if (shared_bytes(kStepFarAhead) <= dev_.properties.sharedMemPerBlockOptin)
                return with(std::integral_constant<unsigned, kStepFarAhead>());
        with(std::integral_constant<unsigned, kStepAhead>());
    }
    static size_t rounded(size_t rows) { return rows == 1 ? 1 : kStepMostRows; }

    Cuda& dev_;
    Arena<Cuda> memory_;
    Step<Real> a_{};
};

}  // namespace tapernorm
#endif  // TN_CUDA
