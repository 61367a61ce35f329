// Choosing the next token on a GPU, as `sample` (inference/sampler.h) does on the host: softmax(logits / temperature), the
// top_k most probable tokens, among these the most probable that together reach top_p, and from these one by the inverse of
// the cumulative distribution, with the same random numbers. Equal logits are ordered by token id.
//
// A token's key orders like its probability, and a token is searched for by its key: a pass over the logits adds up, for seven
// keys at a time, how much lies at or above each of them, which leaves an interval between two of them. When few tokens are
// left in it, each is compared with each. Passes are what takes time, for one multiprocessor does them all: so the first seven
// keys lie where tokens are (some nats below the most probable one, not spread over all numbers), and among a trained model's
// logits one or two passes are mostly enough. Probabilities are summed as integers (2^40 for the most probable token), so the
// order of the threads changes no bit. The choice may differ from that of the host, which adds in double, where the random
// number is within about 2^-22 of a boundary.
#pragma once
#ifdef TN_CUDA
#include <cstdint>

#include "ops/reduce.cuh"
#include "runtime/random.h"

namespace tapernorm {

// In device memory, so that a graph that samples serves every setting.
struct SampleSettings {
    double inverse_temperature;  // 0: greedy
    double top_p;
    unsigned top_k;         // 0: all
    uint64_t seed, stream;  // stream: the first row's; each has the next
    uint64_t first;         // number of the first choice
};

// One step of several sequences: a block chooses a token from a row of logits and writes the input of the model's next step.
template <class Real>
struct SampleStep {
    const SampleSettings* settings;
    const Real* logits;  // [rows, ld]
    size_t ld;
    unsigned V;       // ids below it can be chosen
    int* ids;         // [steps, rows]; -1 if a logit is NaN or Inf
    unsigned* steps;  // [rows], choices made so far
    int* positions;   // [rows], of the last token in its sequence; advanced by one
    Real* x;          // [rows, C] = wte at the token - wte_mean of it, where there is one, + wpe at its position
    const Real *wte, *wte_mean, *wpe;
    unsigned C, T;
};

constexpr unsigned kSampleThreads = 512, kSampleWays = 8;
using SampleSum = unsigned long long;
constexpr unsigned kSampleFew = 256;  // tokens that are compared with one another
constexpr size_t kSampleShared = (1 + 2 * kSampleFew) * sizeof(SampleSum);
static_assert(kSampleShared >= kSampleThreads / 32 * (kSampleWays - 1) * sizeof(SampleSum));

// Sums over the block, for all threads. shared [warps, n].
template <unsigned n>
__device__ void sample_totals(SampleSum (&sums)[n], SampleSum* shared) {
    for (unsigned i = 0; i < n; i++) sums[i] = warp_sum(sums[i]);
    __syncthreads();  // everyone has read what was here
    if (threadIdx.x % 32 == 0)
        for (unsigned i = 0; i < n; i++) shared[threadIdx.x / 32 * n + i] = sums[i];
    __syncthreads();
    for (unsigned i = 0; i < n; i++) {
        sums[i] = 0;
        for (unsigned w = 0; w < blockDim.x / 32; w++) sums[i] += shared[w * n + i];
    }
}

constexpr size_t kSampleIds = 1 << 16;  // ids are below this: 16 bits of a key

// Larger for a larger logit, then for a smaller id.
__device__ __forceinline__ SampleSum sample_key(float z, unsigned id) {
    unsigned bits = __float_as_uint(z + 0.0f);  // -0 becomes 0
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return SampleSum(bits) << 16 | (0xffffu - id);
}

// A row of logits, as the threads of a block see it.
template <class Real>
struct SampleRow {
    const Real* z;
    unsigned V;
    SampleSum* shared;
    float inverse_temperature, top;  // top: the largest logit
    SampleSum top_key;
    // Loads ahead in `mass` and `find`, whose arithmetic takes longer than they do.
    static constexpr unsigned kHidden = 1;

    // Calls use(logit, id) for this thread's part of the row. One multiprocessor reads all of it, so what counts is how many
    // bytes are on their way at a time: 16 per load, and kAhead loads before the first is used.
    template <unsigned kAhead, class Use>
    __device__ __forceinline__ void each(Use&& use) const {
        constexpr unsigned P = kVector<Real>;
        // Fewer than P logits lie before the first 16-byte boundary, as many behind the last one: threads take one each.
        const unsigned head = min(V, unsigned(-reinterpret_cast<uintptr_t>(z) % 16 / sizeof(Real)));
        const unsigned end = head + (V - head) / P * P, stride = blockDim.x * P;
        const unsigned single = threadIdx.x < head ? threadIdx.x : end + threadIdx.x - head;
        const float alone = single < V ? float(z[single]) : 0.0f;
        for (unsigned first = head + threadIdx.x * P; first < end; first += kAhead * stride) {
            Pack<Real> pack[kAhead];
#pragma unroll
            for (unsigned a = 0; a < kAhead; a++)
                if (first + a * stride < end) pack[a] = load_pack(z + first + a * stride);
#pragma unroll
            for (unsigned a = 0; a < kAhead; a++)
                if (const unsigned i = first + a * stride; i < end)
#pragma unroll
                    for (unsigned j = 0; j < P; j++) use(float(pack[a][int(j)]), i + j);
        }
        if (single < V) use(alone, single);
    }
    // The largest key; ~0 if a logit is not finite. Begins with a barrier: the caller may have used `shared` until now.
    __device__ SampleSum largest() const {
        SampleSum best = 0;
        each<4>([&](float logit, unsigned id) {
            best = max(best, fabsf(logit) < INFINITY ? sample_key(logit, id) : ~SampleSum(0));
        });
        return largest_of_block(best);
    }
    __device__ SampleSum largest_of_block(SampleSum best) const {
        for (int lanes = 16; lanes > 0; lanes /= 2) best = max(best, __shfl_xor_sync(~0u, best, lanes));
        __syncthreads();
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
        __syncthreads();
        for (unsigned w = 0; w < blockDim.x / 32; w++) best = max(best, shared[w]);
        __syncthreads();
        return best;
    }
    // A logit's share of the probability.
    __device__ SampleSum weight(float logit) const {
        return SampleSum(expf((logit - top) * inverse_temperature) * 0x1p40f);
    }
    // The weights of all keys from `cut` up.
    __device__ SampleSum mass(SampleSum cut) const {
        SampleSum sum[1] = {};
        each<kHidden>([&](float logit, unsigned id) {
            if (sample_key(logit, id) >= cut) sum[0] += weight(logit);
        });
        sample_totals(sum, shared);
        return sum[0];
    }
    // Brings the tokens with keys from low up and below high, and their amounts, to `shared`, in any order; how many there are,
    // which may be more than the kSampleFew that have room.
    __device__ unsigned collect(SampleSum low, SampleSum high, bool weighted) const {
        auto* const count = reinterpret_cast<unsigned*>(shared);
        SampleSum *const keys = shared + 1, *const amounts = keys + kSampleFew;
        __syncthreads();  // everyone has read what was here
        if (threadIdx.x == 0) *count = 0;
        __syncthreads();
        each<kHidden>([&](float logit, unsigned id) {
            const SampleSum key = sample_key(logit, id);
            if (key - low >= high - low) return;
            if (const unsigned at = atomicAdd(count, 1u); at < kSampleFew)
                keys[at] = key, amounts[at] = weighted ? weight(logit) : 1;
        });
        __syncthreads();
        return *count;
    }
    // Of the n tokens that `collect` brought, the largest key from which up there is more than target, `above` included.
    __device__ SampleSum largest_above(SampleSum target, SampleSum above, unsigned n) const {
        const SampleSum *const keys = shared + 1, *const amounts = keys + kSampleFew;
        SampleSum best = 0;
        for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
            SampleSum sum = above;
            for (unsigned j = 0; j < n; j++) sum += keys[j] >= keys[i] ? amounts[j] : 0;
            if (sum > target) best = max(best, keys[i]);
        }
        return largest_of_block(best);
    }
    // The largest key from which up the tokens, or their weights, sum to more than target.
    __device__ SampleSum find(bool weighted, SampleSum target) const {
        // From low up there is more than target, from high up there is `above`, which is not.
        SampleSum low = 0, high = top_key + 1, above = 0;
        for (bool first = V > kSampleFew;; first = false) {
            if (!first)
                if (const unsigned n = collect(low, high, weighted); n <= kSampleFew)
                    return largest_above(target, above, n);
            SampleSum cuts[kSampleWays - 1], sums[kSampleWays - 1] = {};
#pragma unroll
            for (unsigned i = 0; i < kSampleWays - 1; i++) {
                constexpr float kNats[kSampleWays - 1] = {16, 8, 5, 3, 2, 1, 0.5f};
                cuts[i] = first ? sample_key(top - kNats[i] / inverse_temperature, 0xffffu)
                                : low + (high - low) * (i + 1) / kSampleWays;
            }
            each<kHidden>([&](float logit, unsigned id) {
                const SampleSum key = sample_key(logit, id);
                if (key - low >= high - low) return;
                const SampleSum amount = weighted ? weight(logit) : 1;
#pragma unroll
                for (unsigned i = 0; i < kSampleWays - 1; i++) sums[i] += key >= cuts[i] ? amount : 0;
            });
            sample_totals(sums, shared);
#pragma unroll
            for (unsigned i = 0; i < kSampleWays - 1; i++) {  // from the lowest key up
                if (above + sums[i] <= target) {
                    high = cuts[i], above += sums[i];
                    break;
                }
                low = cuts[i];
            }
        }
    }
};

// The key of the token, ~0 if a logit is not finite. `stream`: this row's.
template <class Real>
__device__ SampleSum sample_choice(SampleRow<Real>& row, const SampleSettings& s, uint64_t stream, unsigned step) {
    row.top_key = row.largest();
    if (row.top_key == ~SampleSum(0) || s.inverse_temperature == 0) return row.top_key;
    row.top = float(row.z[0xffffu - unsigned(row.top_key & 0xffff)]);
    row.inverse_temperature = float(s.inverse_temperature);
    SampleSum cut = s.top_k && s.top_k < row.V ? row.find(false, s.top_k - 1) : 0, mass = row.mass(cut);
    if (s.top_p < 1) {
        // The first token that brings the sum to top_p of it, and at least one.
        const SampleSum reached = SampleSum(ceil(s.top_p * double(mass)));
        cut = row.find(true, reached > 0 ? reached - 1 : 0), mass = row.mass(cut);
    }
    const double u = random_uniform(s.seed, stream, s.first + step);
    return row.find(true, min(SampleSum(u * double(mass)), mass - 1));
}

// Row `row` of a step of `rows`, by all threads of a block, any number of warps up to kSampleThreads / 32; kSampleShared bytes
// of `shared`. store(c, value) takes the next input's channels; the last choice of a full context has none.
template <class Real, class Store>
__device__ void sample_row(const SampleStep<Real>& a, unsigned row, unsigned rows, SampleSum* shared, Store&& store) {
    const unsigned step = a.steps[row], position = unsigned(a.positions[row]) + 1;
    SampleRow<Real> logits{a.logits + row * a.ld, a.V, shared, 0, 0, 0};
    const SampleSum key = sample_choice(logits, *a.settings, a.settings->stream + row, step);
    const unsigned token = key == ~SampleSum(0) ? 0 : 0xffffu - unsigned(key & 0xffff);
    if (threadIdx.x == 0) {
        a.ids[size_t(step) * rows + row] = key == ~SampleSum(0) ? -1 : int(token);
        a.steps[row] = step + 1, a.positions[row] = int(position);
    }
    if (position >= a.T) return;
    const float mean = a.wte_mean ? float(a.wte_mean[token]) : 0.0f;
    for (unsigned c = threadIdx.x; c < a.C; c += blockDim.x)
        store(c, float(a.wte[size_t(token) * a.C + c]) - mean + float(a.wpe[size_t(position) * a.C + c]));
}

template <class Real>
__global__ void __launch_bounds__(kSampleThreads) sample_kernel(const __grid_constant__ SampleStep<Real> a) {
    const unsigned row = blockIdx.x;
    sample_row(a, row, gridDim.x, dynamic_shared<SampleSum>(),
               [&](unsigned c, float value) { a.x[size_t(row) * a.C + c] = Real(value); });
}

template <class Real>
void sample_step(Cuda& dev, const SampleStep<Real>& step, size_t rows) {
    const unsigned threads = std::min(kSampleThreads, std::max(32u, (step.V + 31) / 32 * 32));
    launch<sample_kernel<Real>>(blocks_for(rows, 1), threads, kSampleShared, dev.stream, step);
}

}  // namespace tapernorm
#endif  // TN_CUDA
