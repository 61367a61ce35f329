// The loss of a model on a text.
#pragma once
#include <cmath>
#include <vector>

#include "inference/decoder.cuh"
#include "ops/cross_entropy.cuh"

namespace tapernorm {

struct Evaluation {
    double loss_sum = 0;   // nats
    size_t predicted = 0;  // tokens: all but the first

    double loss() const { return loss_sum / double(predicted); }
};

// Cross-entropy of tokens [n >= 2], each but the first predicted once: from those before it in its window of config.T
// tokens. cpu computes the losses from the logits.
template <class Device, class Real>
Evaluation evaluate_tokens(Cpu& cpu, Decoder<Device, Real>& decoder, const Config& config,
                           const std::vector<int>& tokens) {
    constexpr size_t kRows = 256;  // whose logits are held at a time
    std::vector<Acc<Real>> logits(std::min(kRows, config.T) * config.V), losses(kRows);
    Evaluation e;
    for (size_t window = 0; window + 1 < tokens.size(); window += config.T) {
        const size_t end = std::min(window + config.T, tokens.size() - 1);
        decoder.rewind(0);
        for (size_t first = window; first < end; first += kRows) {
            const size_t n = std::min(kRows, end - first);
            decoder.feed(&tokens[first], n, Logits::all, logits.data());
            cross_entropy(cpu, &e.loss_sum, losses.data(), logits.data(), &tokens[first + 1], 0, n, config.V, false);
            e.predicted += n;
        }
    }
    return e;
}

}  // namespace tapernorm
