// Number types. A device stores activations, weights and gradients as Real, and statistics, losses and optimizer state as
// Acc<Real>.
#pragma once
#include <type_traits>

// Before a function that kernels call too.
#ifdef __CUDACC__
#define TN_HOST_DEVICE __host__ __device__
#else
#define TN_HOST_DEVICE
#endif

namespace tapernorm {

template <class Real>
using Acc = std::conditional_t<std::is_same_v<Real, double>, double, float>;

}  // namespace tapernorm
