// A small model, tokens and the way they are fed, from any bytes: so that a fuzzer chooses the shape, the norm, the gate,
// what is folded and whether there is a bound, and different programs can compute the same logits.
#pragma once
#include <string_view>
#include <vector>

#include "inference/decoder.cuh"
#include "tests/random_model.h"

namespace tapernorm {

struct LogitsCase {
    Config config;
    double gate;
    std::vector<int> tokens;  // at most config.T
    size_t prompt;            // how many of them are fed at once; the others follow one by one

    explicit LogitsCase(std::string_view bytes) {
        size_t at = 0;
        const auto below = [&](size_t limit) {
            return at < bytes.size() ? static_cast<unsigned char>(bytes[at++]) % limit : 0;
        };
        // From 1 to `usual`, one time in 16 up to `limit`: tails and blocks of every size, and most cases quick.
        const auto size = [&](size_t usual, size_t limit) {
            const size_t byte = below(256);
            return byte < 240 ? 1 + byte % usual : usual + (byte - 239) * (limit - usual) / 16;
        };
        config.L = size(2, 3), config.NH = size(3, 4), config.C = config.NH * size(9, 20);
        // A norm of one or two channels is a step, from -1 to 1 where the first is zero: there rounding has no bound.
        if (config.C < 3) config.C = 3 * config.NH;
        config.V = 1 + size(35, 150), config.T = size(24, 200);
        config.norm = NormKind(below(2)), config.mode = GateMode(below(3));
        const size_t fold = below(8);
        config.fold = Fold(fold % 4);
        if (fold / 4) config.bound = 0.3, config.first_apart = config.V % 2;  // acts on most rows
        // Of a few channels all may be almost zero, and a norm magnifies their rounding by up to 1 / sqrt(eps).
        config.eps = config.C < 8 ? 0.1f : default_eps(config.norm);
        gate = double(below(3)) / 2;
        prompt = 1 + below(config.T);
        do tokens.push_back(int(below(config.V)));
        while (at < bytes.size() && tokens.size() < config.T);
    }

    // The logits of all tokens.
    template <class Device, class Real>
    std::vector<double> logits(Device& dev, const GptTensors<Real>& weights, const std::vector<TaperScale>& scales,
                               const PackedModel* packed = nullptr) const {
        Decoder<Device, Real> decoder(dev, config, weights, scales, gate, 1, packed);
        std::vector<Acc<Real>> out(tokens.size() * config.V);
        const size_t first = std::min(prompt, tokens.size());
        decoder.feed(tokens.data(), first, Logits::all, out.data());
        for (size_t i = first; i < tokens.size(); i++)
            decoder.feed(&tokens[i], 1, Logits::last, out.data() + i * config.V);
        return {out.begin(), out.end()};
    }
};

// A case's logits by double, of weights that fp32 can hold, and how far those of fp32 may be from them.
struct ExactLogits {
    std::vector<double> logits;
    double allowed;
};

// Rounding every weight once, by at most half a unit, changes the logits by `once`: one sample of how much these norms magnify
// rounding. fp32 rounds not only the weights but each of its results, hundreds of them after each other: 4 times `once` is usual, 27
// times one case in 10,000 (60,000 changed inputs; at most 52).
inline ExactLogits exact_logits(Cpu& dev, const LogitsCase& c) {
    constexpr double kRoundings = 256;
    RandomModel<double> model(dev, c.config);
    const std::vector<double> unrounded = c.logits<Cpu, double>(dev, model.tensors, model.scales);
    for (const Tensor<double>& t : tensor_list(c.config, model.tensors))
        for (size_t i = 0; i < t.spec.count(); i++) t.data[i] = float(t.data[i]);
    ExactLogits exact{c.logits<Cpu, double>(dev, model.tensors, model.scales), 0};
    double once = 0;
    for (size_t i = 0; i < unrounded.size(); i++)
        once = std::max({once, std::abs(exact.logits[i] - unrounded[i]), 0x1p-24 * std::abs(unrounded[i])});
    exact.allowed = kRoundings * once;
    return exact;
}

}  // namespace tapernorm
