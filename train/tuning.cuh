// What the kernels of all ranks must have in common.
//
// Attention by warpgroups, where the GPUs of all ranks can (ops/attention/choice.cuh).
//
// --tune: which of cuBLASLt's algorithms multiplies matrices of which shape is found by timing in the first update. Bits depend on
// it: all ranks take rank 0's choices, and a state keeps them for the run that resumes from it.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "ops/attention/choice.cuh"
#include "runtime/cpu.h"
#include "train/trainer.h"
#ifdef TN_CUDA
#include "runtime/cuda.cuh"
#endif

namespace tapernorm::train {

template <class Real>
void choose_attention(Cpu& dev, size_t hs, Ranks&) {
    tapernorm::choose_attention<Real>(dev, hs);
}
inline void begin_tuning(Cpu&) {}
template <class Real>
void end_tuning(Trainer<Cpu, Real>&) {}
inline std::string tuned_products(Cpu&) { return ""; }
inline void adopt_products(Cpu&, const std::string&) {}

#ifdef TN_CUDA
// What all ranks found: they work only where they do on every rank.
inline WgmmaFinding agree_on_wgmma(WgmmaFinding mine, Ranks& ranks) {
    std::vector<double> can = {double(mine.kind == WgmmaFinding::works)};
    ranks.sum(can, "the kernels of attention");
    if (can[0] == 0 || can[0] == ranks.size) return mine;
    const std::string others = strprintf("%.0f of %d ranks cannot use them", ranks.size - can[0], ranks.size);
    return {WgmmaFinding::broken, mine.why_not.empty() ? others : others + ", this one because " + mine.why_not};
}

template <class Real>
void choose_attention(Cuda& dev, size_t hs, Ranks& ranks) {
    if (attention_is_chosen<Real>(dev, hs)) return;
    const WgmmaFinding finding = agree_on_wgmma(find_wgmma_attention(dev, hs), ranks);
    const std::string note = settle_attention(dev, hs, finding);
    if (ranks.first()) std::fputs(note.c_str(), stderr);
}

inline void begin_tuning(Cuda& dev) { dev.plans.tune(true); }

// At the end of the first update. Shapes that come later are not timed, because ranks may meet them at different times.
template <class Real>
void end_tuning(Trainer<Cuda, Real>& t) {
    MatmulPlans& plans = t.model.dev.plans;
    if (!plans.tuning()) return;
    plans.tune(false);
    std::string choices = plans.choices();
    uint64_t bytes = choices.size();
    t.model.ranks.broadcast(&bytes, sizeof bytes, "the algorithms of matrix products");
    choices.resize(bytes);
    t.model.ranks.broadcast(choices.data(), bytes, "the algorithms of matrix products");
    plans.adopt(choices);
}

// What the choices hold for, in the first line: the GPU and the library.
inline std::string products_of(Cuda& dev) {
    return strprintf("%s, %d multiprocessors, cuBLASLt %zu\n", dev.properties.name, dev.multiprocessors(),
                     cublasLtGetVersion());
}
inline std::string tuned_products(Cuda& dev) { return products_of(dev) + dev.plans.choices(); }
inline void adopt_products(Cuda& dev, const std::string& text) {
    const std::string first = products_of(dev);
    if (text.starts_with(first)) dev.plans.adopt(text.substr(first.size()));
}
#endif

}  // namespace tapernorm::train
