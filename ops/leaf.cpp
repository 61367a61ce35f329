// One copy of every CPU leaf loop, compiled once per instruction set with -DLEAF_ISA=base|avx2|avx512 (see leaf.h).
#define LEAF_BUILD
#include "ops/leaf.h"

#include "ops/adamw.cuh"
#include "ops/attention/attention.cuh"
#include "ops/channel_sums.cuh"
#include "ops/cross_entropy.cuh"
#include "ops/gelu.cuh"
#include "ops/gemm.cuh"
#include "ops/panels.cuh"
#include "tapernorm.cuh"

namespace tapernorm {

#ifndef LEAF_ISA
#error "compile with -DLEAF_ISA=base, avx2 or avx512"
#endif
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

template <class Real>
static constexpr Leaf<Real> leaf_table() {
    return {
        .site_forward = leaf_site_forward<Real>,
        .site_backward = leaf_site_backward<Real>,
        .stream_scale = leaf_stream_scale<Real>,
        .scale_loss_backward = leaf_scale_loss_backward<Real>,
        .channel_sums = leaf_channel_sums<Real>,
        .cross_entropy = leaf_cross_entropy<Real>,
        .distillation = leaf_distillation<Real>,
        .softmax_rows = leaf_softmax_rows<Real>,
        .softmax_causal = leaf_softmax_causal<Real>,
        .softmax_causal_backward = leaf_softmax_causal_backward<Real>,
        .adamw = leaf_adamw<Real>,
        .sum_squares = leaf_sum_squares<Real>,
        .gemm = leaf_gemm<Real>,
        .panel_round = leaf_panel_round,
        .panel_product = leaf_panel_product,
        .gelu_forward = leaf_gelu_forward<Real>,
        .gelu_backward = leaf_gelu_backward<Real>,
    };
}

extern const Leaf<float> JOIN(leaf_f32_, LEAF_ISA);
extern const Leaf<double> JOIN(leaf_f64_, LEAF_ISA);
const Leaf<float> JOIN(leaf_f32_, LEAF_ISA) = leaf_table<float>();
const Leaf<double> JOIN(leaf_f64_, LEAF_ISA) = leaf_table<double>();

}  // namespace tapernorm
