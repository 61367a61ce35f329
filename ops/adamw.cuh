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

// *sum += it, in memory of the device.
template <class Real>
void add_sum_of_squares(Cpu& dev, double* sum, const Real* x, size_t n) {
    *sum += sum_of_squares(dev, x, n);
}

// The same, in shared scratch, as ops for all devices need it.
template <class Real>
const double* sum_of_squares_there(Cpu& dev, const Real* x, size_t n) {
    double* sum = static_cast<double*>(dev.shared_scratch(sizeof(double)));
    return *sum = sum_of_squares(dev, x, n), sum;
}

// ---- CUDA
#ifdef TN_CUDA

// Many tensors in one launch: a block finds the tensor that its index falls into and updates kAdamwChunk elements of it. The table of
// tensors is an argument of the kernel, whose arguments are at most 4 KiB: no copy, and no wait for one.
constexpr unsigned kAdamwThreads = 256, kAdamwChunk = 8192;

template <class Real>
struct AdamwEntry {
    AdamwTensor<Real> tensor;
    unsigned first_block;
    bool aligned;
};

template <class Real>
struct AdamwTable {
    static constexpr unsigned kMost = 60;
    AdamwEntry<Real> entries[kMost];
    unsigned count, blocks;
};
static_assert(sizeof(AdamwTable<float>) + sizeof(AdamwArgs<float>) <= 4096);

// A thread's elements: a 16-byte vector of each fp32 array, so that a warp reads and writes whole sectors of all of them.
constexpr unsigned kAdamwVector = kVector<float>;

template <bool whole, class Real>
__device__ __forceinline__ void adamw_vector(const AdamwTensor<Real>& t, const AdamwArgs<float>& a, size_t at,
                                             unsigned left) {
    const float step = a.lr / a.correction1, root = rsqrtf(a.correction2), shrink = 1 - a.lr * t.decay;
    float grad[kAdamwVector], w[kAdamwVector], m[kAdamwVector], v[kAdamwVector];
    load_vector(grad, t.grad + at, 0, left, whole);
    load_vector(m, t.m + at, 0, left, whole);
    load_vector(v, t.v + at, 0, left, whole);
    if (t.master)
        load_vector(w, t.master + at, 0, left, whole);
    else
        load_vector(w, t.w + at, 0, left, whole);
#pragma unroll
    for (unsigned j = 0; j < kAdamwVector; j++) {
        const float g = grad[j] * a.clip_factor;
        m[j] = a.beta1 * m[j] + (1 - a.beta1) * g;
        v[j] = a.beta2 * v[j] + (1 - a.beta2) * g * g;
        w[j] = w[j] * shrink - step * m[j] / (sqrtf(v[j]) * root + a.eps);
    }
    if (t.master) store_vector(t.master + at, w, 0, left, whole);
    store_vector(t.m + at, m, 0, left, whole);
    store_vector(t.v + at, v, 0, left, whole);
    store_vector(t.w + at, w, 0, left, whole);
}

template <class Real>
__global__ void __launch_bounds__(kAdamwThreads)
    adamw_kernel(const __grid_constant__ AdamwTable<Real> table, AdamwArgs<float> args) {
    const AdamwEntry<Real>* entries = table.entries;
    unsigned low = 0, high = table.count;  // the last entry whose first_block is not behind this block
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        (entries[middle].first_block <= blockIdx.x ? low : high) = middle;
    }
    const AdamwTensor<Real> t = entries[low].tensor;
    const size_t begin = size_t(blockIdx.x - entries[low].first_block) * kAdamwChunk;
    const size_t end = t.n - begin < kAdamwChunk ? t.n : begin + kAdamwChunk;
    for (size_t at = begin + threadIdx.x * kAdamwVector; at < end; at += kAdamwThreads * kAdamwVector) {
        const unsigned left = end - at < kAdamwVector ? unsigned(end - at) : kAdamwVector;
        if (entries[low].aligned && left == kAdamwVector)
            adamw_vector<true>(t, args, at, left);
        else
            adamw_vector<false>(t, args, at, left);
    }
}

template <class Real>
void adamw_update(Cuda& dev, const std::vector<AdamwTensor<Real>>& tensors, const AdamwArgs<float>& args) {
    AdamwTable<Real> table{};
    auto update = [&] {
        launch<adamw_kernel<Real>>(table.blocks, kAdamwThreads, 0, dev.stream, table, args);
        table = {};
    };
    for (const AdamwTensor<Real>& t : tensors) {
        if (t.n == 0) continue;
        table.entries[table.count++] = {t, table.blocks, aligned_16(t.w, t.master, t.m, t.v, t.grad)};
        table.blocks += blocks_for(t.n, kAdamwChunk);
        if (table.count == table.kMost) update();
    }
    update();
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

static __global__ void __launch_bounds__(256)
    sum_partial_kernel(double* total, const double* partial, unsigned n, bool add) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += 256) sum += partial[i];
    sum = block_sum(sum, dynamic_shared<double>());
    if (threadIdx.x == 0) *total = add ? *total + sum : sum;
}

// *total = or += the sum; null: the first number of scratch. Returns where it is.
template <class Real>
double* sum_squares(Cuda& dev, double* total, const Real* x, size_t n, bool add) {
    const size_t most = 8 * size_t(dev.multiprocessors()), vectors = (n + kVector<Real> - 1) / kVector<Real>;
    const unsigned blocks = unsigned(std::clamp<size_t>(vectors / 256, 1, most));
    double* partial = static_cast<double*>(dev.scratch((most + 1) * sizeof(double)));
    if (!total) total = partial;
    launch<sum_squares_kernel<Real>>(blocks, 256, 8 * sizeof(double), dev.stream, partial + 1, x, n, aligned_16(x));
    launch<sum_partial_kernel>(1, 256, 8 * sizeof(double), dev.stream, total, static_cast<const double*>(partial + 1),
                               blocks, add);
    return total;
}

template <class Real>
void add_sum_of_squares(Cuda& dev, double* sum, const Real* x, size_t n) {
    sum_squares(dev, sum, x, n, true);
}

// The result is there until the next kernel that needs scratch.
template <class Real>
const double* sum_of_squares_there(Cuda& dev, const Real* x, size_t n) {
    return sum_squares<Real>(dev, nullptr, x, n, false);
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
