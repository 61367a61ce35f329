// The leaf loops of the CPU path: single-threaded inner loops on plain arrays, where the time goes.
//
// ops/leaf.cpp is compiled once per instruction set and defines one table of them per number type; an op asks
// leaf<Real>(dev) for the table of the machine it runs on. Each op card holds its leaf loops in a section guarded by
// LEAF_BUILD, as functions in an anonymous namespace. They must have internal linkage and may use nothing from the standard
// library that could be emitted out of line: otherwise the linker would merge copies made for different instruction sets,
// and an old machine would run code that it cannot execute.
//
// Real = double exists for the gradient checks: the very code that trains, in a precision where central differences
// can tell a right gradient from a nearly right one.
#pragma once
#include <cstddef>
#ifndef LEAF_BUILD
#include "runtime/cpu.h"
#endif

namespace tapernorm {

// Defined in the cards that use them.
enum class NormKind;
struct SiteSums;
struct StreamScale;
template <class Real, class Scalar>
struct SiteArgs;
template <class Scalar>
struct AdamwArgs;

template <class Real>
struct Gemm;
struct Band;
struct Panels;
struct PanelProduct;

template <class Real>
struct Leaf {
    // tapernorm.cuh
    void (*site_forward)(Real* y, Real* mean, Real* rscale, const Real* x, const SiteArgs<Real, Real>& args,
                         size_t rows, size_t C, SiteSums* sums);
    void (*site_backward)(Real* dx, Real* columns, const Real* dy, const Real* x, const Real* mean, const Real* rscale,
                          const SiteArgs<Real, Real>& args, size_t rows, size_t C, bool accumulate);
    void (*stream_scale)(StreamScale* out, const Real* x, NormKind kind, Real eps, Real target, size_t rows, size_t C);
    void (*scale_loss_backward)(Real* dx, const Real* x, NormKind kind, Real eps, Real target, Real factor, size_t rows,
                                size_t C);
    // ops/channel_sums.cuh
    void (*channel_sums)(Real* columns, const Real* x, const Real* mean, const Real* rscale, size_t first, size_t T,
                         size_t rows, size_t C);
    // ops/cross_entropy.cuh
    Real (*cross_entropy)(Real* dz, const Real* z, size_t target, Real weight, size_t V);
    Real (*distillation)(Real* kl, Real* z, Real* t, size_t target, Real weight, Real share, size_t V);
    // ops/attention/attention.cuh
    void (*softmax_rows)(Real* p, Real* inverse_sum, size_t ld, size_t rows, size_t first);
    void (*softmax_causal)(Real* s, Real* lse, Real* inverse_sum, size_t ld, size_t queries, size_t first);
    void (*softmax_causal_backward)(Real* p, Real* ds, const Real* lse, const Real* delta, size_t ld, size_t queries,
                                    size_t first, Real inverse_sqrt_hs);
    // ops/adamw.cuh
    void (*adamw)(Real* w, Real* m, Real* v, const Real* grad, const AdamwArgs<Real>& args, size_t n);
    double (*sum_squares)(const Real* x, size_t n);
    // ops/gemm.cuh
    void (*gemm)(const Gemm<Real>& g, Band band, void* pack);
    // ops/panels.cuh, fp32 in both tables
    void (*panel_round)(const PanelProduct& p, size_t first, size_t last, bool instruction);
    void (*panel_product)(const PanelProduct& p, size_t first, size_t last, bool instruction, void* scratch);
    // ops/gelu.cuh
    void (*gelu_forward)(Real* out, const Real* in, size_t n);
    void (*gelu_backward)(Real* din, const Real* dout, const Real* in, size_t n);
};

#ifndef LEAF_BUILD

extern const Leaf<float> leaf_f32_base, leaf_f32_avx2, leaf_f32_avx512;
extern const Leaf<double> leaf_f64_base, leaf_f64_avx2, leaf_f64_avx512;

template <class Real>
const Leaf<Real>& leaf(const Cpu& dev);

template <>
inline const Leaf<float>& leaf<float>([[maybe_unused]] const Cpu& dev) {
#if defined(__x86_64__)
    if (dev.isa == Isa::avx512) return leaf_f32_avx512;
    if (dev.isa == Isa::avx2) return leaf_f32_avx2;
#endif
    return leaf_f32_base;
}

template <>
inline const Leaf<double>& leaf<double>([[maybe_unused]] const Cpu& dev) {
#if defined(__x86_64__)
    if (dev.isa == Isa::avx512) return leaf_f64_avx512;
    if (dev.isa == Isa::avx2) return leaf_f64_avx2;
#endif
    return leaf_f64_base;
}
#endif

}  // namespace tapernorm
