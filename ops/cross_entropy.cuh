// Softmax cross-entropy, row by row, gradient in place.
//
//   p = softmax(z),  loss = -log p_y = logsumexp(z) - z_y,  dz = (p - onehot(y)) * weight
#pragma once
#include "ops/leaf.h"

#ifdef LEAF_BUILD  // ---- CPU leaf loops
#include "ops/math.h"
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
    const Real scale = weight / sum;
    for (size_t i = 0; i < V; i++) dz[i] *= scale;
    dz[target] -= weight;
    return __builtin_log(sum) + (top - z_y);
}

}  // namespace
#else  // ---- CPU
#include "runtime/types.h"

// *loss_sum += the sum over rows of the cross-entropy of logits [N, V] at targets [N]; with `gradient`, the logits become
// weight * dloss/dlogits. losses [N]: room for the rows' losses.
template <class Real>
void cross_entropy(Cpu& dev, double* loss_sum, Acc<Real>* losses, Real* logits, const int* targets, double weight,
                   size_t N, size_t V, bool gradient) {
    parallel_ranges(dev, N, 1, [&](size_t row, size_t end, int) {
        for (; row < end; row++) {
            Real* z = logits + row * V;
            losses[row] = leaf<Real>(dev).cross_entropy(gradient ? z : nullptr, z, size_t(targets[row]), Real(weight), V);
        }
    });
    double sum = 0;
    for (size_t row = 0; row < N; row++) sum += double(losses[row]);
    *loss_sum += sum;
}

#endif
