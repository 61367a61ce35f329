// Number types. Real is what a device stores activations, weights and gradients in; Acc<Real> is what statistics,
// losses and optimizer state are kept in.
#pragma once
#include <type_traits>

namespace tapernorm {

template <class Real>
using Acc = std::conditional_t<std::is_same_v<Real, double>, double, float>;

}  // namespace tapernorm
