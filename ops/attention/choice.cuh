// Which of the attention kernels run on this GPU. Those for Hopper's warpgroups do where their code was loaded and gives, on the first
// tiles of a small sequence, what the kernels for single warps give; ATTENTION=mma in the environment turns them off.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <string>
#include <string_view>

#include "ops/attention/attention.cuh"
#include "runtime/cpu.h"
#ifdef TN_CUDA
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "runtime/arena.h"
#include "runtime/random.h"
#endif

namespace tapernorm {

// What ATTENTION in the environment asks for: "mma", "wgmma" or, where it is not set, "".
inline std::string_view wanted_attention() {
    const char* value = std::getenv("ATTENTION");
    const std::string_view wanted = value ? value : "";
    if (!wanted.empty() && wanted != "mma" && wanted != "wgmma")
        fail(
            "ATTENTION in the environment: expected mma or wgmma, found %s; unset it for the faster of the two that works",
            in_quotes(wanted).c_str());
    return wanted;
}

template <class Real>
void choose_attention(Cpu&, size_t) {}

#ifdef TN_CUDA

// Forward, with a cache and backward, of two heads and 250 positions: two blocks, and a last tile that is not quite full.
struct AttentionTrial {
    static constexpr size_t T = 250, NH = 2;
    Arena<Cuda> memory;
    bf16 *qkv = nullptr, *dout = nullptr, *out = nullptr, *cached = nullptr, *k_cache = nullptr, *v_cache = nullptr,
         *dqkv = nullptr;
    float* lse = nullptr;
    size_t hs, C;

    // The results, one after another: rows of which each has `width` elements, `stride` after those of the row before.
    struct Part {
        const char* name;
        size_t first, rows, width, stride;
    };
    static std::array<Part, 6> parts(size_t hs) {
        const size_t C = NH * hs, gradients = NH * T + 2 * T * C;
        return {{{"lse", 0, NH * T, 1, 1},
                 {"out", NH * T, T, C, C},
                 {"out with a cache", NH * T + T * C, T, C, C},
                 {"dq", gradients, T, C, 3 * C},
                 {"dk", gradients + C, T, C, 3 * C},
                 {"dv", gradients + 2 * C, T, C, 3 * C}}};
    }

    AttentionTrial(Cuda& dev, size_t hs_) : memory(dev, "trying attention"), hs(hs_), C(NH * hs_) {
        memory.add(qkv, 3 * T * C), memory.add(dout, T * C), memory.add(out, T * C), memory.add(cached, T * C);
        memory.add(k_cache, T * C), memory.add(v_cache, T * C), memory.add(dqkv, 3 * T * C), memory.add(lse, NH * T);
        memory.allocate(true);
        std::vector<bf16> values(4 * T * C);
        for (size_t i = 0; i < values.size(); i++) values[i] = bf16(float(random_normal(1, 0, i)));
        device_copy_in(dev, qkv, values.data(), 3 * T * C * sizeof(bf16));
        device_copy_in(dev, dout, values.data() + 3 * T * C, T * C * sizeof(bf16));
    }

    std::vector<float> run(Cuda& dev, bool wgmma) {
        use_wgmma(dev, hs, wgmma);
        std::vector<float> result(NH * T);
        std::vector<bf16> rounded(5 * T * C);
        for (bf16* part : {out, cached}) device_zero(dev, part, T * C * sizeof(bf16));
        device_zero(dev, dqkv, 3 * T * C * sizeof(bf16));
        attention_forward(dev, out, lse, qkv, 1, T, C, NH);
        attention_cached(dev, cached, {{k_cache, v_cache, 0, 0, T}}, qkv, C, NH);
        attention_backward(dev, dqkv, dout, out, lse, qkv, 1, T, C, NH);
        device_copy_out(dev, result.data(), lse, NH * T * sizeof(float));
        device_copy_out(dev, rounded.data(), out, T * C * sizeof(bf16));
        device_copy_out(dev, rounded.data() + T * C, cached, T * C * sizeof(bf16));
        device_copy_out(dev, rounded.data() + 2 * T * C, dqkv, 3 * T * C * sizeof(bf16));
        result.insert(result.end(), rounded.begin(), rounded.end());
        return result;
    }
};

// Where `got` is farther from `expected` than two results can be that round the same sums: "" if nowhere. Weights, their gradients and
// results are rounded to bf16 (2^-9 relative), at most all of them differently, so a position's elements differ by a few 2^-9 of the
// largest of them, and where its terms cancel by what rounding to fp32 (2^-24) makes of the tensor's terms; a wrong fragment, tile or
// mask changes them by as much as they are.
inline std::string attention_differs(const std::vector<float>& got, const std::vector<float>& expected, size_t hs) {
    constexpr double kOfPosition = 0x1p-5, kOfTensor = 0x1p-15;
    for (const AttentionTrial::Part& part : AttentionTrial::parts(hs)) {
        double largest = 0;
        std::vector<double> worst(part.rows), tops(part.rows);
        for (size_t row = 0; row < part.rows; row++) {
            const size_t begin = part.first + row * part.stride;
            for (size_t i = begin; i < begin + part.width; i++) {
                const double d = std::abs(double(got[i]) - double(expected[i]));
                if (!(d <= worst[row])) worst[row] = std::isnan(d) ? INFINITY : d;
                tops[row] = std::max(tops[row], std::abs(double(expected[i])));
            }
            largest = std::max(largest, tops[row]);
        }
        if (largest == 0) return strprintf("%s is 0 everywhere", part.name);
        for (size_t row = 0; row < part.rows; row++)
            if (const double most = kOfPosition * tops[row] + kOfTensor * largest; !(worst[row] <= most))
                return strprintf("%s of position %zu differs by %.2g, expected at most %.2g", part.name,
                                 row % AttentionTrial::T, worst[row], most);
    }
    return "";
}

// Whether the kernels for warpgroups can be used for one head size.
struct WgmmaFinding {
    enum Kind { works, unfit, broken } kind;  // broken: though this GPU should
    std::string why_not;
};

// Asks the GPU. Leaves in `dev` that nobody has asked.
inline WgmmaFinding try_wgmma_attention(Cuda& dev, size_t hs) {
    using enum WgmmaFinding::Kind;
    if (!has_group_kernels(hs)) return {unfit, strprintf("they have head sizes of 64 and 128, found %zu", hs)};
    if (dev.sm() != 90)
        return {unfit, strprintf("they need an H100 or H200 and code for it (make GPU=90), found an sm_%d", dev.sm())};
    int has = 0;
    {
        int* found = nullptr;
        Arena<Cuda> memory(dev, "the kind of the loaded code");
        memory.add(found, 1);
        memory.allocate(true);
        launch<has_wgmma_kernel<int>>(1, 1, 0, dev.stream, found);
        device_copy_out(dev, &has, found, sizeof has);
    }
    if (!has) return {broken, "they need code for this GPU, sm_90a, found only another's; build with make GPU=90"};
    AttentionTrial trial(dev, hs);
    const std::vector<float> expected = trial.run(dev, false);
    std::string wrong;
    try {
        wrong = attention_differs(trial.run(dev, true), expected, hs);
    } catch (const Error& error) {
        wrong = error.what();
        // After most errors of a kernel nothing more runs in this process.
        if (cudaStreamSynchronize(dev.stream) != cudaSuccess)
            fail(
                "set ATTENTION=mma in the environment: the attention kernels for warpgroups do not run on this GPU: %s",
                error.what());
    }
    dev.wgmma[hs / 128] = Cuda::Wgmma::unasked;
    return wrong.empty() ? WgmmaFinding{works, ""} : WgmmaFinding{broken, "in a trial of both, " + wrong};
}

// The same, unless the environment has answered already.
inline WgmmaFinding find_wgmma_attention(Cuda& dev, size_t hs) {
    if (wanted_attention() == "mma") return {WgmmaFinding::unfit, "ATTENTION=mma in the environment turns them off"};
    return try_wgmma_attention(dev, hs);
}

// Whether nothing is to be chosen, or has been. A wrong ATTENTION fails in any case.
template <class Real>
bool attention_is_chosen(const Cuda& dev, size_t hs) {
    wanted_attention();
    return !std::is_same_v<Real, bf16> || (has_group_kernels(hs) && dev.wgmma[hs / 128] != Cuda::Wgmma::unasked);
}

// Returns what the user should know about it, "" for nothing.
inline std::string settle_attention(Cuda& dev, size_t hs, const WgmmaFinding& finding) {
    if (finding.kind != WgmmaFinding::works && wanted_attention() == "wgmma")
        fail("ATTENTION=wgmma in the environment: these kernels cannot be used (unset it, then others are): %s",
             finding.why_not.c_str());
    use_wgmma(dev, hs, finding.kind == WgmmaFinding::works);
    if (finding.kind != WgmmaFinding::broken) return "";
    return strprintf(
        "note: attention with heads of %zu channels by single warps (mma.sync), not by warpgroups (wgmma): %s\n", hs,
        finding.why_not.c_str());
}

// Chooses for models of this head size, before they allocate much and before their first op.
template <class Real>
void choose_attention(Cuda& dev, size_t hs) {
    if (!attention_is_chosen<Real>(dev, hs))
        std::fputs(settle_attention(dev, hs, find_wgmma_attention(dev, hs)).c_str(), stderr);
}

#endif  // TN_CUDA

}  // namespace tapernorm
