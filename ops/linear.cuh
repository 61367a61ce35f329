// The linear layers of a model and their gradients, on any device: each is one or two matrix products (ops/gemm.cuh,
// ops/gemm_cublaslt.cuh).
//
//   linear    out = in W + b            in [M, C], W [C, OC] (as Hugging Face's Conv1D), M = B T tokens
//             din = dout W^T            dW (+)= in^T dout        db (+)= column sums of dout (ops/reduce.cuh)
//   head      logits = in E^T           in [M, C], E [V, C] (the token embedding, tied)
//             din = dlogits E           dE (+)= dlogits^T in
//
// Weight gradients and column sums are = or +=, as `accumulate` says; everything else is overwritten. A bias's gradient is
// taken where its dout is made, not where the weight's is: a product over M with sums in its epilogue (BGRADA) cannot split M.
#pragma once
#include "ops/gemm.cuh"
#include "ops/gemm_cublaslt.cuh"

namespace tapernorm {

template <class Real, class Device>
void matmul_forward(Device& dev,
                    Real* out,             // [M, OC]
                    const Real* in,        // [M, C]
                    const Real* weight,    // [C, OC]
                    const Real* bias,      // [OC] or null
                    const Real* residual,  // [M, OC] or null, added
                    size_t M, size_t C, size_t OC) {
    // clang-format off
    gemm<Real>(dev, {.M = M, .N = OC, .K = C,
                     .A = in, .lda = C, .trans_a = false, .B = weight, .ldb = OC, .trans_b = false,
                     .C = out, .ldc = OC, .bias = bias, .residual = residual});
    // clang-format on
}

template <class Real, class Device>
void matmul_gelu_forward(Device& dev,
                         Real* out,           // [M, OC]
                         Real* pre,           // [M, OC] or null: the value before GELU, kept for backward
                         const Real* in,      // [M, C]
                         const Real* weight,  // [C, OC]
                         const Real* bias,    // [OC] or null
                         size_t M, size_t C, size_t OC) {
    // clang-format off
    gemm<Real>(dev, {.M = M, .N = OC, .K = C,
                     .A = in, .lda = C, .trans_a = false, .B = weight, .ldb = OC, .trans_b = false,
                     .C = out, .ldc = OC, .bias = bias, .gelu = true, .pre_gelu = pre});
    // clang-format on
}

template <class Real, class Device>
void matmul_backward(Device& dev,
                     Real* din,             // [M, C] =
                     Real* din_sums,        // [C] = or +=, or null: column sums of din
                     Real* dweight,         // [C, OC] = or +=
                     const Real* dout,      // [M, OC]
                     const Real* in,        // [M, C]
                     const Real* weight,    // [C, OC]
                     const Real* gelu_pre,  // [M, C] or null: in = gelu(gelu_pre), and din is the gradient of gelu_pre
                     size_t M, size_t C, size_t OC, bool accumulate) {
    // clang-format off
    gemm<Real>(dev, {.M = M, .N = C, .K = OC,
                     .A = dout, .lda = OC, .trans_a = false, .B = weight, .ldb = OC, .trans_b = true,
                     .C = din, .ldc = C, .gelu_grad_at = gelu_pre, .c_sums = din_sums, .accumulate_sums = accumulate});
    gemm<Real>(dev, {.M = C, .N = OC, .K = M,
                     .A = in, .lda = C, .trans_a = true, .B = dout, .ldb = OC, .trans_b = false,
                     .C = dweight, .ldc = OC, .accumulate = accumulate});
    // clang-format on
}

template <class Real, class Device>
void head_forward(Device& dev,
                  Real* logits,      // [M, V], rows ld_logits apart (0: V)
                  const Real* in,    // [M, C]
                  const Real* wte,   // [V, C]
                  const Real* bias,  // [V] or null
                  size_t M, size_t C, size_t V, size_t ld_logits = 0) {
    // clang-format off
    gemm<Real>(dev, {.M = M, .N = V, .K = C,
                     .A = in, .lda = C, .trans_a = false, .B = wte, .ldb = C, .trans_b = true,
                     .C = logits, .ldc = ld_logits ? ld_logits : V, .bias = bias});
    // clang-format on
}

template <class Real, class Device>
void head_backward(Device& dev,
                   Real* din,            // [M, C] =
                   Real* dwte,           // [V, C] = or +=
                   const Real* dlogits,  // [M, V], rows ld_logits apart (0: V)
                   const Real* in,       // [M, C]
                   const Real* wte,      // [V, C]
                   size_t M, size_t C, size_t V, bool accumulate, size_t ld_logits = 0) {
    const size_t ld = ld_logits ? ld_logits : V;
    // clang-format off
    gemm<Real>(dev, {.M = M, .N = C, .K = V,
                     .A = dlogits, .lda = ld, .trans_a = false, .B = wte, .ldb = C, .trans_b = false,
                     .C = din, .ldc = C});
    gemm<Real>(dev, {.M = V, .N = C, .K = M,
                     .A = dlogits, .lda = ld, .trans_a = true, .B = in, .ldb = C, .trans_b = false,
                     .C = dwte, .ldc = C, .accumulate = accumulate});
    // clang-format on
}

}  // namespace tapernorm
