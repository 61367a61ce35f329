// Central differences in double, for the tests of hand-derived gradients.
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/random.h"

namespace tapernorm {

// Pseudo-random normal numbers; every call site has its own stream.
inline std::vector<double> normals(size_t n, uint64_t stream, double std = 1) {
    std::vector<double> x(n);
    for (size_t i = 0; i < n; i++) x[i] = std * random_normal(42, stream, i);
    return x;
}

// dL/dx_i by the fourth-order formula: truncation h^4, rounding 1e-16 / h, both near 1e-12 for h = 1e-3 and L, x ~ 1.
inline double central_difference(const std::function<double()>& loss, double& x, double h = 1e-3) {
    const double x0 = x;
    auto at = [&](double step) {
        x = x0 + step;
        return loss();
    };
    const double slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    x = x0;
    return slope;
}

// Compares up to `samples` elements of the gradient, spread over it, with central differences of `loss`: the error must be
// below 1e-6 of the element, or of the gradient's largest element where that is larger by more than a thousand (an
// element that is nearly 0 by cancellation has only the absolute accuracy of the others). Returns how many were compared:
// `loss` may set *kink where it met one, whose other side has another slope.
inline size_t check_gradient(const std::string& what, double* x, const double* gradient, size_t n,
                             const std::function<double()>& loss, size_t samples = 12, double h = 1e-3,
                             bool* kink = nullptr) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = std::max(largest, std::abs(gradient[i]));
    size_t compared = 0;
    for (size_t s = 0; s < std::min(n, samples); s++) {
        const size_t i = n <= samples ? s : random_bits(1, n, s) % n;
        const double expected = central_difference(loss, x[i], h);
        if (kink && std::exchange(*kink, false)) continue;
        const double tolerance = 1e-6 * std::max({std::abs(expected), 1e-3 * largest, 1e-6});
        INFO(what, " [", i, "]: gradient ", gradient[i], ", central difference ", expected);
        CHECK(std::abs(gradient[i] - expected) <= tolerance);
        compared++;
    }
    return compared;
}

}  // namespace tapernorm
