// Inference: sequences of different lengths together against each alone.
#include <doctest/doctest.h>

#include "model/decoder.cuh"
#include "tests/random_model.h"

namespace {

// The tokens that sequence s is fed, and in what portions: a prompt, then one at a time, and again some together.
std::vector<int> sequence_tokens(size_t s, size_t n, size_t V) {
    std::vector<int> tokens(n);
    for (size_t i = 0; i < n; i++) tokens[i] = int(random_bits(s, 77, i) % V);
    return tokens;
}

}  // namespace

TEST_CASE("decoder: sequences of different lengths, together and alone") {
    Cpu dev(2);
    // More rows than a block has, so that prompts are cut.
    const std::vector<size_t> prompts = {5, 1, 130, 64, 90};
    for (Fold fold : {Fold::none, Fold::internal}) {
        const RandomModel<double> model(dev, small_config(fold));
        const size_t V = model.config.V, S = prompts.size(), steps = 3;
        std::vector<std::vector<int>> tokens;
        for (size_t s = 0; s < S; s++) tokens.push_back(sequence_tokens(s, prompts[s] + steps, V));
        auto decoder = [&](size_t sequences) {
            return Decoder<Cpu, double>(dev, model.config, model.tensors, model.taper_scale, 0, sequences);
        };
        auto together = decoder(S);
        std::vector<Piece> pieces;
        for (size_t s = 0; s < S; s++) pieces.push_back({s, tokens[s].data(), prompts[s]});
        std::vector<double> prefill(S * V), decode(S * V), all(290 * V);
        together.feed(pieces, Logits::last, prefill.data());
        std::vector<Piece> next;
        for (size_t i = 0; i < steps; i++) {  // in another order
            next.clear();
            for (size_t s = S; s-- > 0;) next.push_back({s, &tokens[s][prompts[s] + i], 1});
            together.feed(next, Logits::last, decode.data());
        }
        auto whole = decoder(S);
        whole.feed(pieces, Logits::all, all.data());
        size_t row = 0;
        for (size_t s = 0; s < S; s++) {
            CAPTURE(s);
            CHECK(together.length(s) == prompts[s] + steps);
            auto alone = decoder(1);
            std::vector<double> expected((prompts[s] + steps) * V);
            alone.feed(tokens[s].data(), prompts[s] + steps, Logits::all, expected.data());
            const double* last = &expected[(prompts[s] - 1) * V];
            CHECK(max_difference(&prefill[s * V], last, V) <= 1e-12);
            CHECK(max_difference(&all[row * V], expected.data(), prompts[s] * V) <= 1e-12);
            CHECK(max_difference(&decode[(S - 1 - s) * V], &expected[(prompts[s] + steps - 1) * V], V) <= 1e-12);
            row += prompts[s];
        }
        together.rewind(2, 2);  // one sequence goes back, the others do not notice
        together.feed({{2, &tokens[2][2], 1}}, Logits::last, decode.data());
        CHECK(max_difference(decode.data(), &all[(prompts[0] + prompts[1] + 2) * V], V) <= 1e-12);
        CHECK(together.length(2) == 3);
        CHECK(together.length(3) == prompts[3] + steps);
    }
}
