// GELU, tanh form, as in GPT-2. y = +=: outputs are overwritten.
//
//   u = k (x + 0.044715 x^3),  k = sqrt(2 / pi)
//   y = x (1 + tanh u) / 2 = x s,  s = sigmoid(2 u) = 1 / (1 + exp(-2 u))
//   dy/dx = s + x s (1 - s) 2 k (1 + 3 * 0.044715 x^2)
#pragma once
#include "ops/leaf.h"

#ifdef LEAF_BUILD  // ---- CPU leaf loops
#include "ops/math.h"
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

#endif
