// AdamW (decoupled weight decay) and the global norm of the gradient that clipping needs.
//
//   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2          g already scaled by the clipping coefficient
//   w -= lr * ((m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps) + decay w)
#pragma once
#include <cstddef>

template <class Scalar>
struct AdamwArgs {
    Scalar lr, beta1, beta2, eps, decay;
    Scalar correction1, correction2;  // 1 - beta^k
    Scalar grad_scale;                // clipping coefficient
};

#include "ops/leaf.h"

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

template <class Real>
void leaf_adamw(Real* w, Real* m, Real* v, const Real* grad, const AdamwArgs<Real>& a, size_t n) {
    const Real step = a.lr / a.correction1, root = 1 / __builtin_sqrt(a.correction2), shrink = 1 - a.lr * a.decay;
    for (size_t i = 0; i < n; i++) {
        const Real g = grad[i] * a.grad_scale;
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
#include "runtime/types.h"

// w, m, v, grad [n]: one tensor.
template <class Real>
void adamw_update(Cpu& dev, Real* w, Real* m, Real* v, const Real* grad, const AdamwArgs<Real>& args, size_t n) {
    parallel_ranges(dev, n, 4096, [&](size_t i, size_t end, int) {
        leaf<Real>(dev).adamw(w + i, m + i, v + i, grad + i, args, end - i);
    });
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

#endif
