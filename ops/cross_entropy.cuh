// Softmax cross-entropy, the loss of the language model, row by row; the gradient replaces the logits.
//
//   p = softmax(z),  loss = -log p_y = logsumexp(z) - z_y,  dz = (p - onehot(y)) * weight
#pragma once
#include "ops/leaf.h"
#include "ops/math.h"
#ifndef LEAF_BUILD
#include <algorithm>

#include "runtime/types.h"
#endif
#include "ops/reduce.cuh"

namespace tapernorm {

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

// The row's loss; with dz (which may be z), also its gradient times `weight`.
template <class Real>
Real leaf_cross_entropy(Real* dz, const Real* z, size_t target, Real weight, size_t V) {
    const Real top = row_max(z, V), z_y = z[target];
    Real sum = 0;
    if (!dz) {
#pragma omp simd reduction(+ : sum)
        for (size_t i = 0; i < V; i++) sum += exp_r(z[i] - top);
        return __builtin_log(sum) + (top - z_y);
    }
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < V; i++) {
        const Real e = exp_r(z[i] - top);
        dz[i] = e;
        sum += e;
    }
    const Real factor = weight / sum;
    for (size_t i = 0; i < V; i++) dz[i] *= factor;
    dz[target] -= weight;
    return __builtin_log(sum) + (top - z_y);
}

}  // namespace
#else  // ---- CPU

// *loss_sum += the sum over rows of the cross-entropy of logits [N, V] at targets [N]; with `gradient`, the logits become
// weight * dloss/dlogits. Rows are ld apart (0: V), and what lies between V and ld gets the gradient 0. losses [N] receives
// the losses of the rows.
template <class Real>
void cross_entropy(Cpu& dev, double* loss_sum, Acc<Real>* losses, Real* logits, const int* targets, double weight,
                   size_t N, size_t V, bool gradient, size_t ld = 0) {
    if (ld == 0) ld = V;
    parallel_ranges(dev, N, 1, [&](size_t row, size_t end, int) {
        for (; row < end; row++) {
            Real* z = logits + row * ld;
            losses[row] =
                leaf<Real>(dev).cross_entropy(gradient ? z : nullptr, z, size_t(targets[row]), Real(weight), V);
            if (gradient) std::fill(z + V, z + ld, Real(0));
        }
    });
    double sum = 0;
    for (size_t row = 0; row < N; row++) sum += double(losses[row]);
    *loss_sum += sum;
}

// ---- CUDA. A block computes a row: it reads the logits once for both the maximum and the sum of exponentials, and again,
// now from the second-level cache, for the gradient. loss_sum is in device memory.
#ifdef TN_CUDA

constexpr unsigned kSoftmaxThreads = 512;  // the most; a small vocabulary has fewer

// The maximum and the sum of exp(z - top) so far.
struct Softmax {
    float top, sum;
    __device__ void add(const Softmax& other) {
        const float both = fmaxf(top, other.top);
        // exp(-inf - -inf) would be NaN: a part without elements (sum 0) adds nothing.
        sum = (sum == 0 ? 0 : sum * __expf(top - both)) + (other.sum == 0 ? 0 : other.sum * __expf(other.top - both));
        top = both;
    }
};

template <class Real>
__device__ Softmax row_softmax(const Real* z, unsigned V, bool aligned, Softmax* shared) {
    Softmax mine{-INFINITY, 0};
    float v[kVector<Real>];
    for (unsigned i = threadIdx.x * kVector<Real>; i < V; i += blockDim.x * kVector<Real>) {
        load_vector(v, z, i, V, aligned && i + kVector<Real> <= V);
        float top = v[0];
#pragma unroll
        for (unsigned j = 1; j < kVector<Real>; j++) top = i + j < V ? fmaxf(top, v[j]) : top;
        Softmax part{top, 0};
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) part.sum += i + j < V ? __expf(v[j] - top) : 0.0f;
        mine.add(part);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        mine.add({__shfl_xor_sync(~0u, mine.top, lanes), __shfl_xor_sync(~0u, mine.sum, lanes)});
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
    __syncthreads();
    Softmax all = shared[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) all.add(shared[w]);
    return all;
}

template <class Real, bool gradient>
__global__ void __launch_bounds__(kSoftmaxThreads)
    cross_entropy_kernel(float* losses, Real* logits, const int* targets, float weight, unsigned V, unsigned ld,
                         bool aligned) {
    const size_t row = blockIdx.x;
    Real* const z = logits + row * ld;
    const unsigned target = unsigned(targets[row]);
    const float z_y = float(z[target]);  // read now, as it may be overwritten after the barrier in row_softmax
    const Softmax s = row_softmax(z, V, aligned, dynamic_shared<Softmax>());
    if (threadIdx.x == 0) losses[row] = logf(s.sum) + (s.top - z_y);
    if (!gradient) return;
    const float factor = weight / s.sum;
    float v[kVector<Real>];
    for (unsigned i = threadIdx.x * kVector<Real>; i < ld; i += blockDim.x * kVector<Real>) {
        const bool whole = aligned && i + kVector<Real> <= ld;
        load_vector(v, z, i, ld, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++)
            v[j] = i + j < V ? __expf(v[j] - s.top) * factor - (i + j == target ? weight : 0.0f) : 0.0f;
        store_vector(z, v, i, ld, whole);
    }
}

template <class Real>
void cross_entropy(Cuda& dev, double* loss_sum, float* losses, Real* logits, const int* targets, double weight,
                   size_t N, size_t V, bool gradient, size_t ld = 0) {
    if (ld == 0) ld = V;
    const bool aligned = aligned_16(logits) && ld % kVector<Real> == 0;
    const unsigned warps = std::min(blocks_for(V, 32 * kVector<Real>), kSoftmaxThreads / 32);
    auto run = [&]<bool with_gradient>() {
        launch<cross_entropy_kernel<Real, with_gradient>>(blocks_for(N, 1), 32 * warps, warps * sizeof(Softmax),
                                                          dev.stream, losses, logits, targets, float(weight),
                                                          unsigned(V), unsigned(ld), aligned);
    };
    if (gradient)
        run.template operator()<true>();
    else
        run.template operator()<false>();
    sum_rows<1>(dev, loss_sum, losses, N);
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
