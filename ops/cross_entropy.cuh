// Softmax cross-entropy, the loss of the language model, row by row; the gradient replaces the logits.
//
//   p = softmax(z),  loss = -log p_y = logsumexp(z) - z_y,  dz = (p - onehot(y)) * weight
//
// Distillation: beside it the divergence from a teacher's predictions, q = softmax(t), of which the sum takes the share W:
//
//   KL(q || p) = sum_i q_i (log q_i - log p_i),  dz of (1 - W) loss + W KL:  (p - (1 - W) onehot(y) - W q) * weight
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

// The row's loss; *kl its divergence from the teacher's t. z becomes the gradient, t the teacher's exponentials.
template <class Real>
Real leaf_distillation(Real* kl, Real* z, Real* t, size_t target, Real weight, Real share, size_t V) {
    const Real top_p = row_max(z, V), top_q = row_max(t, V), z_y = z[target];
    Real sum_p = 0, sum_q = 0, distance = 0;
#pragma omp simd reduction(+ : sum_p, sum_q, distance)
    for (size_t i = 0; i < V; i++) {
        const Real log_p = z[i] - top_p, log_q = t[i] - top_q, p = exp_r(log_p), q = exp_r(log_q);
        distance += q > 0 ? q * (log_q - log_p) : 0;
        sum_p += p, sum_q += q;
        z[i] = p, t[i] = q;
    }
    // Divisions, because no compiler makes one rounding of such a difference: it is 0 where the student is its teacher.
    for (size_t i = 0; i < V; i++) z[i] = weight * (z[i] / sum_p - share * (t[i] / sum_q));
    z[target] -= weight * (1 - share);
    *kl = distance / sum_q + (__builtin_log(sum_p) - __builtin_log(sum_q));
    return __builtin_log(sum_p) + (top_p - z_y);
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

// sums[0] += the sum of the cross-entropies, sums[1] += that of the divergences from the teacher's logits [N, V], which become
// scratch. The logits become weight * d((1 - share) cross-entropy + share KL)/dlogits. losses [N, 2] receives both of the rows.
template <class Real>
void distillation(Cpu& dev, double* sums, Acc<Real>* losses, Real* logits, Real* teacher, const int* targets,
                  double weight, double share, size_t N, size_t V, size_t ld = 0) {
    if (ld == 0) ld = V;
    parallel_ranges(dev, N, 1, [&](size_t row, size_t end, int) {
        for (; row < end; row++) {
            Real* z = logits + row * ld;
            losses[2 * row] = leaf<Real>(dev).distillation(&losses[2 * row + 1], z, teacher + row * ld,
                                                           size_t(targets[row]), Real(weight), Real(share), V);
            std::fill(z + V, z + ld, Real(0));
        }
    });
    for (size_t i = 0; i < 2 * N; i++) sums[i % 2] += double(losses[i]);
}

// ---- CUDA. A block computes a row: it reads the logits once for both the maximum and the sum of exponentials, and again,
// now from the second-level cache, for the gradient. loss_sum is in device memory.
#ifdef TN_CUDA

constexpr unsigned kSoftmaxThreads = 512;  // the most; a small vocabulary has fewer

// exp(z - top). (With log2(e) top known it would be one instruction less, and wrong where logits are large.)
__device__ __forceinline__ float exp_below(float z, float top) { return fast_exp2((z - top) * kLog2e); }

// The maximum and the sum of exp(z - top) so far.
struct Softmax {
    float top, sum;
    __device__ void add(const Softmax& other) {
        const float both = fmaxf(top, other.top);
        // exp(-inf - -inf) would be NaN: a part without elements, or whose elements are -inf (sum 0), adds nothing.
        sum =
            (sum == 0 ? 0 : sum * exp_below(top, both)) + (other.sum == 0 ? 0 : other.sum * exp_below(other.top, both));
        top = both;
    }
};

// How many of the first n elements of a row are read as whole vectors, without a test for each; the rest are read one by one.
template <class Real>
__device__ __forceinline__ unsigned in_vectors(unsigned n, bool aligned) {
    return aligned ? n / kVector<Real> * kVector<Real> : 0;
}

template <class Real>
__device__ Softmax row_softmax(const Real* z, unsigned V, bool aligned, Softmax* shared) {
    Softmax mine{-INFINITY, 0};
    const unsigned whole = in_vectors<Real>(V, aligned);
    float v[kVector<Real>];
    for (unsigned i = threadIdx.x * kVector<Real>; i < whole; i += blockDim.x * kVector<Real>) {
        load_vector(v, z, i, V, true);
        float top = mine.top;
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) top = fmaxf(top, v[j]);
        const float shift = top == -INFINITY ? 0 : top;
        mine.sum *= exp_below(mine.top, shift), mine.top = top;
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) mine.sum += exp_below(v[j], shift);
    }
    for (unsigned i = whole + threadIdx.x; i < V; i += blockDim.x) {
        const float one = float(z[i]);
        mine.add({one, one == -INFINITY ? 0.0f : 1.0f});
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
    const unsigned whole = in_vectors<Real>(V, aligned);
    float v[kVector<Real>];
    for (unsigned i = threadIdx.x * kVector<Real>; i < whole; i += blockDim.x * kVector<Real>) {
        load_vector(v, z, i, V, true);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) v[j] = exp_below(v[j], s.top) * factor;
        if (target - i < kVector<Real>)
#pragma unroll
            for (unsigned j = 0; j < kVector<Real>; j++) v[j] -= i + j == target ? weight : 0.0f;
        store_vector(z, v, i, V, true);
    }
    for (unsigned i = whole + threadIdx.x; i < ld; i += blockDim.x)
        z[i] = Real(i < V ? exp_below(float(z[i]), s.top) * factor - (i == target ? weight : 0.0f) : 0.0f);
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

template <class Real>
__global__ void __launch_bounds__(kSoftmaxThreads)
    distillation_kernel(float* losses, Real* logits, const Real* teacher, const int* targets, float weight, float share,
                        unsigned V, unsigned ld, bool aligned) {
    const size_t row = blockIdx.x;
    Real* const z = logits + row * ld;
    const Real* const t = teacher + row * ld;
    const unsigned target = unsigned(targets[row]), warps = blockDim.x / 32;
    const float z_y = float(z[target]);  // read before the barrier, as in cross_entropy_kernel
    Softmax* const shared = dynamic_shared<Softmax>();
    const Softmax p = row_softmax(z, V, aligned, shared), q = row_softmax(t, V, aligned, shared + warps);
    const float of_p = 1 / p.sum, of_q = 1 / q.sum, at_target = weight * (1 - share);
    float distance = 0;
    // The gradient of one logit.
    auto gradient = [&](float z_i, float t_i, unsigned i) {
        const float log_p = z_i - p.top, log_q = t_i - q.top, e = exp_below(t_i, q.top);
        if (e > 0) distance += e * (log_q - log_p);
        // __fmul_rn: as on the CPU, the difference is 0 where the student is its teacher.
        const float difference = __fmul_rn(exp_below(z_i, p.top), of_p) - share * __fmul_rn(e, of_q);
        return weight * difference - (i == target ? at_target : 0.0f);
    };
    const unsigned whole = in_vectors<Real>(V, aligned);
    float v[kVector<Real>], u[kVector<Real>];
    for (unsigned i = threadIdx.x * kVector<Real>; i < whole; i += blockDim.x * kVector<Real>) {
        load_vector(v, z, i, V, true);
        load_vector(u, t, i, V, true);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) v[j] = gradient(v[j], u[j], i + j);
        store_vector(z, v, i, V, true);
    }
    for (unsigned i = whole + threadIdx.x; i < ld; i += blockDim.x)
        z[i] = Real(i < V ? gradient(float(z[i]), float(t[i]), i) : 0.0f);
    distance = block_sum(distance, reinterpret_cast<float*>(shared + 2 * warps));
    if (threadIdx.x != 0) return;
    losses[2 * row] = logf(p.sum) + (p.top - z_y);
    losses[2 * row + 1] = distance / q.sum + (logf(p.sum) - logf(q.sum));
}

template <class Real>
void distillation(Cuda& dev, double* sums, float* losses, Real* logits, Real* teacher, const int* targets,
                  double weight, double share, size_t N, size_t V, size_t ld = 0) {
    if (ld == 0) ld = V;
    const bool aligned = aligned_16(logits, teacher) && ld % kVector<Real> == 0;
    const unsigned warps = std::min(blocks_for(V, 32 * kVector<Real>), kSoftmaxThreads / 32);
    launch<distillation_kernel<Real>>(blocks_for(N, 1), 32 * warps, warps * (2 * sizeof(Softmax) + sizeof(float)),
                                      dev.stream, losses, logits, teacher, targets, float(weight), float(share),
                                      unsigned(V), unsigned(ld), aligned);
    sum_rows<2>(dev, sums, losses, N);
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
