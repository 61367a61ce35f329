// Choosing the next token on a GPU, as `sample` (inference/sampler.h) does on the host: softmax(logits / temperature), the
// top_k most probable tokens, among these the most probable that together reach top_p, and from these one by the inverse of
// the cumulative distribution, with the same random numbers. Equal logits are ordered by token id.
//
// Nothing is sorted. A token's key orders like its probability, and a token is searched for by its key: a pass over the
// logits adds up, for seven keys at a time, how much lies at or above each of them, which narrows the interval to an
// eighth. Probabilities are summed as integers (2^40 for the most probable token), so the order of the threads changes no
// bit. The choice may differ from that of the host, which adds in double, where the random number is within about 2^-22 of
// a boundary.
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

// One step of several sequences: each block of the kernel chooses a token from a row of logits and writes the input of the
// model's next step.
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

constexpr unsigned kSampleThreads = 1024, kSampleWays = 8;
using SampleSum = unsigned long long;
constexpr size_t kSampleShared = kSampleThreads / 32 * (kSampleWays - 1) * sizeof(SampleSum);

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

    // The largest key; ~0 if a logit is not finite.
    __device__ SampleSum largest() const {
        SampleSum best = 0;
        auto look = [&](float logit, unsigned id) {
            best = max(best, fabsf(logit) < INFINITY ? sample_key(logit, id) : ~SampleSum(0));
        };
        // All that a greedy choice reads: 16 bytes at a time where the row allows it.
        constexpr unsigned P = kVector<Real>;
        const unsigned whole = reinterpret_cast<uintptr_t>(z) % 16 == 0 ? V / P * P : 0;
        for (unsigned i = threadIdx.x * P; i < whole; i += blockDim.x * P) {
            const Pack<Real> pack = load_pack(z + i);
#pragma unroll
            for (unsigned j = 0; j < P; j++) look(float(pack[int(j)]), i + j);
        }
        for (unsigned i = whole + threadIdx.x; i < V; i += blockDim.x) look(float(z[i]), i);
        for (int lanes = 16; lanes > 0; lanes /= 2) best = max(best, __shfl_xor_sync(~0u, best, lanes));
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
        for (unsigned i = threadIdx.x; i < V; i += blockDim.x)
            if (const float logit = float(z[i]); sample_key(logit, i) >= cut) sum[0] += weight(logit);
        sample_totals(sum, shared);
        return sum[0];
    }
    // The largest key from which up the tokens, or their weights, sum to more than target.
    __device__ SampleSum find(bool weighted, SampleSum target) const {
        SampleSum low = 0, high = top_key + 1;  // from low up there is more than target, from high up there is not
        while (high - low > 1) {
            auto split = [&](unsigned way) { return low + (high - low) * way / kSampleWays; };
            SampleSum sums[kSampleWays - 1] = {};
            for (unsigned i = threadIdx.x; i < V; i += blockDim.x) {
                const float logit = float(z[i]);
                const SampleSum key = sample_key(logit, i), amount = weighted ? weight(logit) : 1;
#pragma unroll
                for (unsigned way = 1; way < kSampleWays; way++) sums[way - 1] += key >= split(way) ? amount : 0;
            }
            sample_totals(sums, shared);
            SampleSum next_low = low, next_high = high;
            for (unsigned way = kSampleWays - 1; way > 0; way--)
                if (sums[way - 1] > target) {
                    next_low = split(way);
                    break;
                } else {
                    next_high = split(way);
                }
            low = next_low, high = next_high;
        }
        return low;
    }
};

template <class Real>
__device__ SampleSum sample_choice(SampleRow<Real>& row, const SampleSettings& s, unsigned step) {
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
    const double u = random_uniform(s.seed, s.stream + blockIdx.x, s.first + step);
    return row.find(true, min(SampleSum(u * double(mass)), mass - 1));
}

template <class Real>
__global__ void __launch_bounds__(kSampleThreads) sample_kernel(const __grid_constant__ SampleStep<Real> a) {
    const unsigned row = blockIdx.x, step = a.steps[row], position = unsigned(a.positions[row]) + 1;
    SampleRow<Real> logits{a.logits + row * a.ld, a.V, dynamic_shared<SampleSum>(), 0, 0, 0};
    const SampleSum key = sample_choice(logits, *a.settings, step);
    const unsigned token = key == ~SampleSum(0) ? 0 : 0xffffu - unsigned(key & 0xffff);
    if (threadIdx.x == 0) {
        a.ids[size_t(step) * gridDim.x + row] = key == ~SampleSum(0) ? -1 : int(token);
        a.steps[row] = step + 1, a.positions[row] = int(position);
    }
    if (position >= a.T) return;  // the last choice of a full context: no step follows
    const float mean = a.wte_mean ? float(a.wte_mean[token]) : 0.0f;
    for (unsigned c = threadIdx.x; c < a.C; c += blockDim.x)
        a.x[size_t(row) * a.C + c] =
            Real(float(a.wte[size_t(token) * a.C + c]) - mean + float(a.wpe[size_t(position) * a.C + c]));
}

template <class Real>
void sample_step(Cuda& dev, const SampleStep<Real>& step, size_t rows) {
    const unsigned threads = std::min(kSampleThreads, std::max(32u, (step.V + 31) / 32 * 32));
    launch<sample_kernel<Real>>(blocks_for(rows, 1), threads, kSampleShared, dev.stream, step);
}

}  // namespace tapernorm
#endif  // TN_CUDA
