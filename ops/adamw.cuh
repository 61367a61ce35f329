// AdamW (decoupled weight decay), the update of the trainer, and the global norm of the gradient that clipping needs.
//
//   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2          g: the gradient times the clip factor
//   w -= lr * ((m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps) + decay w)
#pragma once
#include <cstddef>

#include "ops/leaf.h"
#ifndef LEAF_BUILD
#include <algorithm>
#include <vector>

#include "runtime/types.h"
#endif
#include "ops/reduce.cuh"

namespace tapernorm {

template <class Scalar>
struct AdamwArgs {
    Scalar lr, beta1, beta2, eps, decay;
    Scalar correction1, correction2;  // 1 - beta^k
    Scalar clip_factor;               // times the gradient; at most 1
};

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

template <class Real>
void leaf_adamw(Real* w, Real* m, Real* v, const Real* grad, const AdamwArgs<Real>& a, size_t n) {
    const Real step = a.lr / a.correction1, root = 1 / __builtin_sqrt(a.correction2), shrink = 1 - a.lr * a.decay;
    for (size_t i = 0; i < n; i++) {
        const Real g = grad[i] * a.clip_factor;
        m[i] = a.beta1 * m[i] + (1 - a.beta1) * g;
        v[i] = a.beta2 * v[i] + (1 - a.beta2) * g * g;
        w[i] = w[i] * shrink - step * m[i] / (__builtin_sqrt(v[i]) * root + a.eps);
    }
}

template <class Real>
double leaf_sum_squares(const Real* x, size_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += double(x[i]) * double(x[i]);
    return sum;
}

}  // namespace
#else  // ---- CPU

// One tensor to update; all arrays are [n]. master is w before rounding to Real, and the one that is updated; it is null
// where w itself is exact enough (Real is fp32 or wider).
template <class Real>
struct AdamwTensor {
    Real* w;
    Acc<Real>*master, *m, *v;
    const Real* grad;
    size_t n;
    Acc<Real> decay;
};

// args.decay is not used: each tensor has its own.
template <class Real>
void adamw_update(Cpu& dev, const std::vector<AdamwTensor<Real>>& tensors, const AdamwArgs<Real>& args) {
    for (const AdamwTensor<Real>& t : tensors) {
        AdamwArgs<Real> a = args;
        a.decay = t.decay;
        parallel_ranges(dev, t.n, 4096, [&](size_t i, size_t end, int) {
            leaf<Real>(dev).adamw(t.w + i, t.m + i, t.v + i, t.grad + i, a, end - i);
        });
    }
}

// sum x^2 over [n], in double over fixed chunks.
template <class Real>
double sum_of_squares(Cpu& dev, const Real* x, size_t n) {
    const size_t chunk = 1 << 16, chunks = (n + chunk - 1) / chunk;
    std::vector<double> partial(chunks);
    parallel_ranges(dev, chunks, 1, [&](size_t first, size_t last, int) {
        for (size_t i = first; i < last; i++)
            partial[i] = leaf<Real>(dev).sum_squares(x + i * chunk, std::min(chunk, n - i * chunk));
    });
    double sum = 0;
    for (double p : partial) sum += p;
    return sum;
}

// The same, in shared scratch, as ops for all devices need it.
template <class Real>
const double* sum_of_squares_there(Cpu& dev, const Real* x, size_t n) {
    double* sum = static_cast<double*>(dev.shared_scratch(sizeof(double)));
    return *sum = sum_of_squares(dev, x, n), sum;
}

// ---- CUDA
#ifdef TN_CUDA

// All tensors in one launch: a block finds the tensor that its index falls into and updates kAdamwChunk elements of it.
constexpr unsigned kAdamwThreads = 256, kAdamwChunk = 8192;

template <class Real>
struct AdamwEntry {
    AdamwTensor<Real> tensor;
    unsigned first_block;
    bool aligned;
};

template <class Real>
__device__ __forceinline__ void adamw_vector(const AdamwTensor<Real>& t, const AdamwArgs<float>& a, size_t at,
                                             unsigned left, bool whole) {
    constexpr unsigned P = kVector<Real>, kHalf = kVector<float>;  // a vector of bf16 is two of fp32
    const float step = a.lr / a.correction1, root = rsqrtf(a.correction2), shrink = 1 - a.lr * t.decay;
    float grad[P], rounded[P];
    load_vector(grad, t.grad + at, 0, left, whole);
#pragma unroll
    for (unsigned part = 0; part < P; part += kHalf) {
        float w[kHalf], m[kHalf], v[kHalf];
        if (t.master)
            load_vector(w, t.master + at, part, left, whole);
        else
            for (unsigned j = 0; j < kHalf; j++) w[j] = part + j < left ? float(t.w[at + part + j]) : 0.0f;
        load_vector(m, t.m + at, part, left, whole);
        load_vector(v, t.v + at, part, left, whole);
#pragma unroll
        for (unsigned j = 0; j < kHalf; j++) {
            const float g = grad[part + j] * a.clip_factor;
            m[j] = a.beta1 * m[j] + (1 - a.beta1) * g;
            v[j] = a.beta2 * v[j] + (1 - a.beta2) * g * g;
            w[j] = w[j] * shrink - step * m[j] / (sqrtf(v[j]) * root + a.eps);
            rounded[part + j] = w[j];
        }
        if (t.master) store_vector(t.master + at, w, part, left, whole);
        store_vector(t.m + at, m, part, left, whole);
        store_vector(t.v + at, v, part, left, whole);
    }
    store_vector(t.w + at, rounded, 0, left, whole);
}

template <class Real>
__global__ void __launch_bounds__(kAdamwThreads)
    adamw_kernel(const AdamwEntry<Real>* entries, unsigned count, AdamwArgs<float> args) {
    unsigned low = 0, high = count;  // the last entry whose first_block is not behind this block
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        (entries[middle].first_block <= blockIdx.x ? low : high) = middle;
    }
    const AdamwTensor<Real> t = entries[low].tensor;
    const size_t begin = size_t(blockIdx.x - entries[low].first_block) * kAdamwChunk;
    const size_t end = t.n - begin < kAdamwChunk ? t.n : begin + kAdamwChunk;
    for (size_t at = begin + threadIdx.x * kVector<Real>; at < end; at += kAdamwThreads * kVector<Real>) {
        const unsigned left = end - at < kVector<Real> ? unsigned(end - at) : kVector<Real>;
        adamw_vector(t, args, at, left, entries[low].aligned && left == kVector<Real>);
    }
}

template <class Real>
void adamw_update(Cuda& dev, const std::vector<AdamwTensor<Real>>& tensors, const AdamwArgs<float>& args) {
    std::vector<AdamwEntry<Real>> entries;
    unsigned blocks = 0;
    for (const AdamwTensor<Real>& t : tensors) {
        if (t.n == 0) continue;
        entries.push_back({t, blocks, aligned_16(t.w, t.master, t.m, t.v, t.grad)});
        blocks += blocks_for(t.n, kAdamwChunk);
    }
    auto* table = static_cast<AdamwEntry<Real>*>(dev.scratch(entries.size() * sizeof(AdamwEntry<Real>)));
    device_copy_in(dev, table, entries.data(), entries.size() * sizeof(AdamwEntry<Real>));
    launch<adamw_kernel<Real>>(blocks, kAdamwThreads, 0, dev.stream, table, unsigned(entries.size()), args);
}

template <class Real>
__global__ void __launch_bounds__(256) sum_squares_kernel(double* partial, const Real* x, size_t n, bool aligned) {
    double sum = 0;
    float v[kVector<Real>];
#pragma unroll 4
    for (size_t at = (size_t(blockIdx.x) * 256 + threadIdx.x) * kVector<Real>; at < n;
         at += size_t(gridDim.x) * 256 * kVector<Real>) {
        const unsigned left = n - at < kVector<Real> ? unsigned(n - at) : kVector<Real>;
        load_vector(v, x + at, 0, left, aligned && left == kVector<Real>);
        float squares = 0;
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) squares += v[j] * v[j];
        sum += double(squares);
    }
    sum = block_sum(sum, dynamic_shared<double>());
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(256) sum_partial_kernel(double* total, const double* partial, unsigned n) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += 256) sum += partial[i];
    sum = block_sum(sum, dynamic_shared<double>());
    if (threadIdx.x == 0) *total = sum;
}

// The result is there, in scratch, until the next kernel that needs some.
template <class Real>
const double* sum_of_squares_there(Cuda& dev, const Real* x, size_t n) {
    const size_t most = 8 * size_t(dev.multiprocessors()), vectors = (n + kVector<Real> - 1) / kVector<Real>;
    const unsigned blocks = unsigned(std::clamp<size_t>(vectors / 256, 1, most));
    double* partial = static_cast<double*>(dev.scratch((most + 1) * sizeof(double)));
    launch<sum_squares_kernel<Real>>(blocks, 256, 8 * sizeof(double), dev.stream, partial + 1, x, n, aligned_16(x));
    launch<sum_partial_kernel>(1, 256, 8 * sizeof(double), dev.stream, partial, partial + 1, blocks);
    return partial;
}

// Waits for the result.
template <class Real>
double sum_of_squares(Cuda& dev, const Real* x, size_t n) {
    double sum = 0;
    device_copy_out(dev, &sum, sum_of_squares_there(dev, x, n), sizeof sum);
    return sum;
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
