// What the kernels of all ranks must have in common.
//
// Attention by warpgroups, where the GPUs of all ranks can (ops/attention/choice.cuh).
//
// --tune: which of cuBLASLt's algorithms multiplies matrices of which shape is found by timing in the first update. Bits depend on
// it: all ranks take rank 0's choices, and a state keeps them for the run that resumes from it.
#pragma once
#include <algorithm>
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
template <class Real>
std::string attention_kernels(const Cpu&, size_t) {
    return "";
}
inline void begin_tuning(Cpu&) {}
template <class Real>
void end_tuning(Trainer<Cpu, Real>&) {}
inline std::string tuned_products(Cpu&) { return ""; }
inline void adopt_products(Cpu&, const std::string&) {}

#ifdef TN_CUDA
// What holds for all ranks: the kernels work where they do on every one. Else the first rank where they do not, and should rather than
// need not, knows the reason: it speaks.
inline WgmmaFinding agree_on_wgmma(const WgmmaFinding& mine, Ranks& ranks, bool& speaks) {
    using enum WgmmaFinding::Kind;
    std::vector<double> kinds(size_t(ranks.size));
    kinds[size_t(ranks.rank)] = double(mine.kind);
    ranks.sum(kinds, "the kernels of attention");
    const auto [least, most] = std::minmax_element(kinds.begin(), kinds.end());
    const int speaker = int(std::find(kinds.begin(), kinds.end(), *most) - kinds.begin());
    speaks = speaker == ranks.rank;
    if (ranks.size == 1 || (*least == *most && mine.kind != broken)) return mine;
    const std::string where = strprintf("rank %d of %d", speaker, ranks.size);
    return {broken, where + (speaks ? ": " + mine.why_not : " cannot use them")};
}

template <class Real>
void choose_attention(Cuda& dev, size_t hs, Ranks& ranks) {
    if (attention_is_chosen<Real>(dev, hs)) return;
    bool speaks = true;
    const WgmmaFinding finding = agree_on_wgmma(find_wgmma_attention(dev, hs), ranks, speaks);
    const std::string note = settle_attention(dev, hs, finding);
    if (speaks) std::fputs(note.c_str(), stderr);
}

// Which kernels a run's bits come from, where there are two kinds: "wgmma" or "mma"; else "".
template <class Real>
std::string attention_kernels(const Cuda& dev, size_t hs) {
    if (!std::is_same_v<Real, bf16> || !has_group_kernels(hs)) return "";
    return uses_wgmma(dev, hs) ? "wgmma" : "mma";
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

template <class Device, class Real>
std::string attention_kernels(const Trainer<Device, Real>& t) {
    return attention_kernels<Real>(t.model.dev, t.model.config.C / t.model.config.NH);
}
inline std::string attention_in_words(const std::string& kernels) {
    return kernels == "wgmma" ? "warpgroups (wgmma)" : "single warps (mma.sync)";
}

}  // namespace tapernorm::train
