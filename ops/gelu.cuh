// GELU in its tanh form, the activation of GPT-2's MLP. Outputs are overwritten. Usually part of a
// matrix product, which uses the functions here (ops/gemm.cuh); on its own in a backward pass that computes GELU again.
//
//   u = k (x + 0.044715 x^3),  k = sqrt(2 / pi)
//   y = x (1 + tanh u) / 2 = x s,  s = sigmoid(2 u) = 1 / (1 + exp(-2 u))
//   dy/dx = s + x s (1 - s) 2 k (1 + 3 * 0.044715 x^2)
#pragma once
#include "ops/leaf.h"
#include "ops/math.h"
#include "ops/reduce.cuh"

namespace tapernorm {

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

template <class Real>
[[gnu::always_inline]] inline Real gelu_gate(Real x) {  // s above
    const Real k2 = Real(2 * 0.79788456080286535588);
    return 1 / (1 + exp_r(-k2 * (x + Real(0.044715) * x * x * x)));
}

template <class Real>
void leaf_gelu_forward(Real* out, const Real* in, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = in[i] * gelu_gate(in[i]);
}

template <class Real>
void leaf_gelu_backward(Real* din, const Real* dout, const Real* in, size_t n) {
    const Real k2 = Real(2 * 0.79788456080286535588);
    for (size_t i = 0; i < n; i++) {
        const Real x = in[i], s = gelu_gate(x);
        din[i] = dout[i] * (s + x * s * (1 - s) * k2 * (1 + Real(3 * 0.044715) * x * x));
    }
}

}  // namespace
#else  // ---- CPU

// out, in [n]
template <class Real>
void gelu_forward(Cpu& dev, Real* out, const Real* in, size_t n) {
    parallel_ranges(dev, n, 4096,
                    [&](size_t i, size_t end, int) { leaf<Real>(dev).gelu_forward(out + i, in + i, end - i); });
}

// din = dout * gelu'(in); din may be dout. All [n].
template <class Real>
void gelu_backward(Cpu& dev, Real* din, const Real* dout, const Real* in, size_t n) {
    parallel_ranges(dev, n, 4096, [&](size_t i, size_t end, int) {
        leaf<Real>(dev).gelu_backward(din + i, dout + i, in + i, end - i);
    });
}

// ---- CUDA. Where cuBLASLt can, GELU is part of a matrix product (ops/gemm_cublaslt.cuh); these serve the rest.
#ifdef TN_CUDA

__device__ __forceinline__ float gelu_gate_cuda(float x) {  // s above
    const float k2 = float(2 * 0.79788456080286535588);
    return 1 / (1 + __expf(-k2 * (x + 0.044715f * x * x * x)));
}

__device__ __forceinline__ float gelu_cuda(float x) { return x * gelu_gate_cuda(x); }

__device__ __forceinline__ float gelu_slope_cuda(float x) {
    const float k2 = float(2 * 0.79788456080286535588), s = gelu_gate_cuda(x);
    return s + x * s * (1 - s) * k2 * (1 + 3 * 0.044715f * x * x);
}

// A thread computes one vector. dout is null in the forward pass.
template <class Real>
__global__ void __launch_bounds__(256)
    gelu_kernel(Real* out, const Real* dout, const Real* in, size_t n, bool aligned) {
    const size_t first = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * kVector<Real>;
    if (first >= n) return;
    const unsigned left = n - first < kVector<Real> ? unsigned(n - first) : kVector<Real>;
    const bool whole = aligned && left == kVector<Real>;
    float x[kVector<Real>], d[kVector<Real>];
    load_vector(x, in + first, 0, left, whole);
    if (dout) load_vector(d, dout + first, 0, left, whole);
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) x[j] = dout ? d[j] * gelu_slope_cuda(x[j]) : gelu_cuda(x[j]);
    store_vector(out + first, x, 0, left, whole);
}

template <class Real>
void gelu_forward(Cuda& dev, Real* out, const Real* in, size_t n) {
    const Real* none = nullptr;
    launch<gelu_kernel<Real>>(blocks_for(n, 256 * kVector<Real>), 256, 0, dev.stream, out, none, in, n,
                              aligned_16(out, in));
}

template <class Real>
void gelu_backward(Cuda& dev, Real* din, const Real* dout, const Real* in, size_t n) {
    launch<gelu_kernel<Real>>(blocks_for(n, 256 * kVector<Real>), 256, 0, dev.stream, din, dout, in, n,
                              aligned_16(din, dout, in));
}
#endif  // TN_CUDA
#endif

}  // namespace tapernorm
