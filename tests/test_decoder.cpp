// Inference: sequences of different lengths together against each alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "inference/decoder.cuh"
#include "inference/evaluate.cuh"
#include "inference/generate.cuh"
#include "inference/logits.h"
#include "inference/packed_model.h"
#include "tests/errors.h"
#include "tests/random_model.h"

namespace tapernorm {

namespace {

// With a context longer than a block of rows.
Config long_config(Fold fold, GateMode mode = GateMode::taper) {
    Config c = small_config(fold, mode);
    c.T = 600;
    return c;
}

// The tokens that sequence s is fed, and in what portions: a prompt, then one at a time, and again some together.
std::vector<int> sequence_tokens(size_t s, size_t n, size_t V) {
    std::vector<int> tokens(n);
    for (size_t i = 0; i < n; i++) tokens[i] = int(random_bits(s, 77, i) % V);
    return tokens;
}

}  // namespace

TEST_CASE("decoder: an id beyond the vocabulary never reaches the embedding, in any sequence") {
    Cpu dev(1);
    const RandomModel<float> model(dev, small_config(Fold::none));
    const int V = int(model.config.V);
    Decoder<Cpu, float> decoder(dev, model.config, model.tensors, model.scales, 0, 2);
    for (const int bad : {V, V + 1000, -1}) {
        const std::vector<int> good = {0, V - 1}, wrong = {0, V - 1, bad};
        std::vector<float> logits(2 * size_t(V));
        const std::string error =
            error_of([&] { decoder.feed({{0, good.data(), 2}, {1, wrong.data(), 3}}, Logits::last, logits.data()); });
        CHECK(contains(error, strprintf("token 2 of sequence 1 is the id %d", bad)));
        decoder.rewind(0, 0), decoder.rewind(0, 1);
    }
}

TEST_CASE("decoder: sequences of different lengths, together and alone") {
    Cpu dev(2);
    // More rows than a block has, so that prompts are cut.
    const std::vector<size_t> prompts = {5, 1, 530, 64, 90};
    for (const auto& [fold, bound] : {std::pair(Fold::none, 0.0),
                                      {Fold::internal, 0.0},
                                      {Fold::none, 0.7},
                                      {Fold::internal, 0.7},
                                      {Fold::all, 0.7}}) {
        Config config = long_config(fold, fold == Fold::all ? GateMode::taper_all : GateMode::taper);
        config.bound = bound, config.first_apart = bound > 0;
        const RandomModel<double> model(dev, config);
        const size_t V = model.config.V, S = prompts.size(), steps = 3;
        std::vector<std::vector<int>> tokens;
        for (size_t s = 0; s < S; s++) tokens.push_back(sequence_tokens(s, prompts[s] + steps, V));
        auto decoder = [&](size_t sequences) {
            return Decoder<Cpu, double>(dev, model.config, model.tensors, model.scales, 0, sequences);
        };
        auto together = decoder(S);
        std::vector<TokenSpan> spans;
        for (size_t s = 0; s < S; s++) spans.push_back({s, tokens[s].data(), prompts[s]});
        std::vector<double> prefill(S * V), decode(S * V), all(690 * V);
        together.feed(spans, Logits::last, prefill.data());
        std::vector<TokenSpan> next;
        for (size_t i = 0; i < steps; i++) {  // in another order
            next.clear();
            for (size_t s = S; s-- > 0;) next.push_back({s, &tokens[s][prompts[s] + i], 1});
            together.feed(next, Logits::last, decode.data());
        }
        auto whole = decoder(S);
        whole.feed(spans, Logits::all, all.data());
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

namespace {

std::vector<float> decode_together(Cpu& dev, const RandomModel<float>& model, const PackedModel& packed,
                                   const std::vector<std::vector<int>>& tokens, const std::vector<size_t>& prompts) {
    Decoder<Cpu, float> decoder(dev, model.config, model.tensors, model.scales, 0, tokens.size(), &packed);
    const size_t V = model.config.V, S = tokens.size();
    std::vector<float> out;
    auto feed = [&](auto&& span_of) {
        std::vector<TokenSpan> spans;
        for (size_t s = 0; s < S; s++) spans.push_back(span_of(s));
        out.resize(out.size() + S * V);
        decoder.feed(spans, Logits::last, &out[out.size() - S * V]);
    };
    feed([&](size_t s) { return TokenSpan{s, tokens[s].data(), prompts[s]}; });
    for (size_t i = 0; i < 3; i++) feed([&](size_t s) { return TokenSpan{s, &tokens[s][prompts[s] + i], 1}; });
    return out;  // [prompt and 3 steps, S, V]
}

}  // namespace

TEST_CASE("decoder: with packed weights a sequence has the same bits together and alone, for any number of threads") {
    const std::vector<size_t> prompts = {5, 1, 520, 64, 90, 1, 2, 3};
    Cpu one(1), three(3);
    const RandomModel<float> model(one, long_config(Fold::none));
    const size_t V = model.config.V, S = prompts.size();
    std::vector<std::vector<int>> tokens;
    for (size_t s = 0; s < S; s++) tokens.push_back(sequence_tokens(s, prompts[s] + 3, V));
    for (WeightType type : {WeightType::fp32, WeightType::bf16, WeightType::int8}) {
        CAPTURE(int(type));

        const PackedModel packed(one, model.config, model.tensors, type);
        const std::vector<float> together = decode_together(three, model, packed, tokens, prompts);
        CHECK(decode_together(one, model, packed, tokens, prompts) == together);
        for (size_t s = 0; s < S; s++) {
            const std::vector<float> alone = decode_together(three, model, packed, {tokens[s]}, {prompts[s]});
            for (size_t i = 0; i < 4; i++)
                CHECK(std::equal(&alone[i * V], &alone[i * V] + V, &together[(i * S + s) * V]));
        }
    }
}

TEST_CASE("count_bounds: what lies outside the bound after centering, in first positions and behind them") {
    Cpu dev(2);
    Config config = small_config(Fold::none);
    config.bound = 1000;
    RandomModel<float> model(dev, config);
    const size_t C = config.C, V = config.V, sites = 2 * config.L;
    // First positions are outside in every channel, and nothing but they; all rows have a mean that must not count.
    for (size_t i = 0; i < C; i++) {
        model.tensors.wpe[i] = i % 2 ? 1e6f : -1e6f;
        for (size_t t = 0; t < config.T; t++) model.tensors.wpe[t * C + i] += 5000;
    }
    for (BlockTensors<float>& block : model.tensors.h) std::fill_n(block.attn_proj, C * C, 0.0f);
    Decoder<Cpu, float> decoder(dev, config, model.tensors, model.scales, 0);
    BoundUse first, behind;
    count_bounds(dev, decoder, first, behind);
    const std::vector<int> tokens = sequence_tokens(0, 12, V);
    std::vector<float> logits(V);
    for (int window = 1; window <= 2; window++) {
        decoder.rewind(0);
        decoder.feed(tokens.data(), 5, Logits::last, logits.data());
        decoder.feed(tokens.data() + 5, 7, Logits::last, logits.data());
        CHECK(first.numbers == window * sites * C);
        CHECK(first.clipped == window * sites * C);
        CHECK(behind.numbers == window * 11 * sites * C);
        CHECK(behind.clipped == 0);
    }
    model.tensors.wpe[2 * C + 3] += 1e6f;  // that channel, and by the row's mean all others, at all sites
    decoder.rewind(0);
    decoder.feed(tokens.data(), 5, Logits::last, logits.data());
    CHECK(behind.clipped == sites * C);
    // Single tokens, which packed weights compute on a way of their own, are counted as well.
    const PackedModel packed(dev, config, model.tensors, WeightType::fp32);
    Decoder<Cpu, float> steps(dev, config, model.tensors, model.scales, 0, 1, &packed);
    BoundUse step_first, step_behind;
    count_bounds(dev, steps, step_first, step_behind);
    for (size_t t = 0; t < 5; t++) steps.feed(&tokens[t], 1, Logits::last, logits.data());
    CHECK(step_first.clipped == sites * C);
    CHECK(step_first.numbers == sites * C);
    CHECK(step_behind.clipped == sites * C);
    CHECK(step_behind.numbers == 4 * sites * C);
    // A factor of their own brings first positions within the bound, and leaves the others.
    config.first_apart = true;
    for (TaperScale& site : model.scales) site.first = 1e-6f;
    Decoder<Cpu, float> apart(dev, config, model.tensors, model.scales, 0);
    BoundUse own_first, own_behind;
    count_bounds(dev, apart, own_first, own_behind);
    apart.feed(tokens.data(), 5, Logits::last, logits.data());
    CHECK(own_first.clipped == 0);
    CHECK(own_first.numbers == sites * C);
    CHECK(own_behind.clipped == sites * C);
}

TEST_CASE("divergence: by hand, with logits that no exponential holds, and 0 of a row from itself") {
    // p = (1/2, 1/2), q = (1/4, 3/4), whatever is added to all logits of a row: KL = log(2) / 2 + log(2/3) / 2.
    const double p[] = {1000, 1000}, q[] = {-2000, -2000 + std::log(3.0)};
    CHECK(divergence(p, q, 2) == doctest::Approx(0.5 * std::log(4.0 / 3)).epsilon(1e-12));
    CHECK(divergence(q, q, 2) == 0);
    CHECK(log_probability(q, 2, 1) == doctest::Approx(std::log(0.75)).epsilon(1e-12));
}

TEST_CASE("generation: a token that ends a text ends its sequence; with the last of them all steps end") {
    Cpu dev(1);
    Config config = small_config(Fold::internal);
    config.T = 20;
    const RandomModel<float> model(dev, config);
    const size_t B = 6, V = config.V;
    auto decoder = [&](size_t n) { return Decoder<Cpu, float>(dev, config, model.tensors, {}, 0, n); };
    auto together = decoder(B);
    Generator generator(together);
    const Sampling sampling{.temperature = 8, .seed = 4, .stream = 9};
    auto run = [&](size_t n, std::optional<int> end) {
        std::vector<std::vector<int>> tokens;
        for (size_t b = 0; b < B; b++) tokens.push_back(sequence_tokens(b, 1 + b % 3 * 9, V));
        generate_together(generator, tokens, V, n, sampling, end, "model");
        return tokens;
    };
    // More tokens than the context: sequences are read again, those that have ended need not be long enough for that.
    const auto all = run(400, std::nullopt), none = run(0, 5);
    const int end = all[0][3];
    const auto ended = run(400, end);
    for (size_t b = 0; b < B; b++) CHECK(none[b].size() == 1 + b % 3 * 9);
    size_t first = 400, last = 0;
    for (size_t b = 0; b < B; b++) {
        const size_t prompt = 1 + b % 3 * 9;
        CHECK(all[b].size() == prompt + 400);
        const auto at = std::find(all[b].begin() + ptrdiff_t(prompt), all[b].end(), end);
        CHECK(ended[b] == std::vector(all[b].begin(), at));
        first = std::min(first, size_t(at - all[b].begin())), last = std::max(last, ended[b].size());
        // Alone, with its stream, in a decoder of its own.
        auto alone = decoder(1);
        const std::vector<int> start(all[b].begin(), all[b].begin() + ptrdiff_t(prompt));
        std::vector<int> tokens = start;
        std::vector<float> logits(V);
        alone.feed(start.data(), start.size(), Logits::last, logits.data());
        Sampling own = sampling;
        own.stream += b;
        size_t steps = 0;
        Generator<Cpu, float> generator(alone);
        generate_stream(generator, logits, start, V, 400, own, end, [&](size_t, int token) {
            steps++;
            return tokens.push_back(token), true;
        });
        CHECK(tokens == ended[b]);
        CHECK(steps == tokens.size() - prompt);
    }
    CHECK(first <= 3);
    CHECK(last > 30);
    CHECK(last < 390);
    std::vector<float> logits(V);
    together.rewind(0);
    together.feed({{0, all[0].data(), 1}}, Logits::last, logits.data());
    size_t steps = 0;
    generator.generate(logits, V, 15, sampling, 0, [&](size_t, const int*) { return ++steps < 7; });
    CHECK(steps == 7);
    CHECK(together.length() == 7);
}

TEST_CASE("decoder: packed weights give the model's logits, up to the rounding of the weights") {
    Cpu dev(2);
    for (const auto& [fold, bound] : {std::pair(Fold::none, 0.0),
                                      {Fold::affine, 0.0},
                                      {Fold::internal, 0.0},
                                      {Fold::all, 0.0},
                                      {Fold::none, 0.7},
                                      {Fold::internal, 0.7},
                                      {Fold::all, 0.7}}) {
        const GateMode mode = fold == Fold::affine ? GateMode::norm
                              : fold == Fold::all  ? GateMode::taper_all
                                                   : GateMode::taper;
        Config config = small_config(fold, mode);
        config.bound = bound, config.first_apart = bound > 0;
        const RandomModel<float> model(dev, config);
        const RandomModel<double> exact(dev, model.config);
        const size_t V = model.config.V, n = 9;
        const std::vector<int> tokens = sequence_tokens(1, n, V);
        std::vector<double> expected(n * V);
        Decoder<Cpu, double>(dev, exact.config, exact.tensors, exact.scales, 0)
            .feed(tokens.data(), n, Logits::all, expected.data());
        double largest = 0;
        for (double z : expected) largest = std::max(largest, std::abs(z));
        // Relative errors of a weight: 2^-24, 2^-8, 1/254 of the column's largest, about three deviations. Errors of
        // the C-term sums of two blocks add up like a random walk; a factor of 16 is over the two blocks' growth.
        for (const auto& [type, unit] :
             {std::pair(WeightType::fp32, 0x1p-24), {WeightType::bf16, 0x1p-9}, {WeightType::int8, 3.0 / 254}}) {
            const PackedModel packed(dev, model.config, model.tensors, type);
            for (size_t prompt : {1, 4, 8}) {
                const int number = int(type);
                CAPTURE(number);
                CAPTURE(prompt);
                std::vector<float> got(V);
                Decoder<Cpu, float> decoder(dev, model.config, model.tensors, model.scales, 0, 1, &packed);
                decoder.feed(tokens.data(), prompt, Logits::none, nullptr);
                for (size_t i = prompt; i < n; i++) decoder.feed(&tokens[i], 1, Logits::last, got.data());
                double error = 0;
                for (size_t i = 0; i < V; i++)
                    error = std::max(error, std::abs(double(got[i]) - expected[(n - 1) * V + i]));
                CHECK(error <= 16 * unit * largest);
                if (type != WeightType::fp32) CHECK(error >= unit * largest / 64);  // they are rounded
            }
        }
    }
}

TEST_CASE("generation: of a sequence without end the newest tokens are kept, and little more") {
    for (const size_t prompt : {1, 3, 9}) {
        for (const size_t keep : {1, 4}) {
            std::vector<int> whole;
            for (size_t i = 0; i < prompt; i++) whole.push_back(int(i * i));
            RecentTokens recent(whole, keep);
            for (int token = 100; token < 200; token++) {
                const std::span<const int> kept = recent.all();
                CHECK(kept.size() >= std::min(keep, whole.size()));
                CHECK(kept.size() <= 2 * keep);
                CHECK(std::equal(kept.begin(), kept.end(), whole.end() - ptrdiff_t(kept.size())));
                recent.push(token), whole.push_back(token);
            }
        }
    }
}

namespace {

// The most that each number of a site's output can be, whatever the row is.
std::vector<double> most_of_site(const RandomModel<double>& m, size_t l, size_t which) {
    const Site<double> site = site_at(m.config, m.tensors, m.scales, 0, l, which);
    std::vector<double> most(m.config.C, site.bound);
    for (size_t i = 0; i < most.size() && site.phase == Phase::scale; i++)
        most[i] =
            site.bound * std::abs(site.c * site.taper_weight[i]) + (site.taper_bias ? std::abs(site.taper_bias[i]) : 0);
    return most;
}

// The most that each number of x W + b can be where no x_i is beyond most_i. W is [in, out], or transposed.
std::vector<double> most_of_linear(const std::vector<double>& most, const double* weight, const double* bias,
                                   size_t out, bool transposed = false) {
    const size_t in = most.size();
    std::vector<double> result(out);
    for (size_t j = 0; j < out; j++) {
        result[j] = bias ? std::abs(bias[j]) : 0;
        for (size_t i = 0; i < in; i++) result[j] += most[i] * std::abs(weight[transposed ? j * in + i : i * out + j]);
    }
    return result;
}

// The most that each number of the stream can be beyond what the embeddings brought, [2 L + 1, C]: where it enters each site.
// A block adds what two bounded sites make of whatever they read: attention averages values, and |gelu(x)| <= |x|.
std::vector<std::vector<double>> most_of_stream(const RandomModel<double>& m) {
    const size_t C = m.config.C;
    std::vector<std::vector<double>> all{std::vector<double>(C, 0)};
    auto add = [&](const std::vector<double>& branch) {
        all.push_back(all.back());
        for (size_t i = 0; i < C; i++) all.back()[i] += branch[i];
    };
    for (size_t l = 0; l < m.config.L; l++) {
        const BlockTensors<double>& t = m.tensors.h[l];
        std::vector<double> values = most_of_linear(most_of_site(m, l, 0), t.attn_qkv, t.attn_qkv_bias, 3 * C);
        values.erase(values.begin(), values.begin() + std::ptrdiff_t(2 * C));
        add(most_of_linear(values, t.attn_proj, t.attn_proj_bias, C));
        const auto wide = most_of_linear(most_of_site(m, l, 1), t.mlp_fc, t.mlp_fc_bias, 4 * C);
        add(most_of_linear(wide, t.mlp_proj, t.mlp_proj_bias, C));
    }
    return all;
}

}  // namespace

TEST_CASE(
    "decoder: with a bound, stream and logits stay below what the weights allow, whatever a token's embedding is") {
    Cpu dev(1);
    const int hot = 7, tokens[] = {5, hot, 9, hot, 3, 30, hot, hot};
    const size_t n = std::size(tokens);
    for (NormKind norm : {NormKind::layernorm, NormKind::rmsnorm})
        for (Fold fold : {Fold::none, Fold::all}) {
            CAPTURE(int(norm));
            CAPTURE(int(fold));
            Config config = small_config(fold, GateMode::taper_all);
            config.L = 8, config.norm = norm, config.bound = 1.5;
            const RandomModel<double> model(dev, config);
            const size_t C = config.C, V = config.V;
            for (size_t i = 0; i < C; i++) model.tensors.wte[hot * C + i] *= 1e6;

            const auto most = most_of_stream(model);
            const std::vector<double> most_logits =
                most_of_linear(most_of_site(model, config.L, 0), model.tensors.head(), model.tensors.lm_head_bias, V,
                               true);
            std::vector<double> logits(n * V);
            Decoder<Cpu, double> decoder(dev, config, model.tensors, model.scales, 0);
            size_t sites = 0;
            bool within = true;
            const double rounding = 1 + 1e-12;
            decoder.watch = [&](const Layer<double>& layer, size_t rows) {
                if (!layer.site) return;
                REQUIRE(sites < most.size());
                for (size_t row = 0; row < rows; row++)
                    for (size_t i = 0; i < C; i++) {
                        const double embedded =
                            model.tensors.wte[size_t(tokens[row]) * C + i] + model.tensors.wpe[row * C + i];
                        const double allowed = std::abs(embedded) + most[sites][i];
                        within = within && std::abs(layer.in[row * C + i]) <= allowed * rounding;
                    }
                sites++;
            };
            decoder.feed(tokens, n, Logits::all, logits.data());
            CHECK(sites == 2 * config.L + 1);
            CHECK(within);
            double largest =
                0;  // of all but the token's own logit, whose row of a tied head is as large as its embedding
            for (size_t i = 0; i < n * V; i++) {
                within = within && std::abs(logits[i]) <= most_logits[i % V] * rounding;
                if (i % V != size_t(hot)) largest = std::max(largest, most_logits[i % V]);
            }
            CHECK(within);

            // The same model without the bound runs off.
            Config without = config;
            without.bound = 0;
            Decoder<Cpu, double>(dev, without, model.tensors, model.scales, 0)
                .feed(tokens, n, Logits::all, logits.data());
            for (size_t row = 1; row < n; row++) {  // from the first such token on
                double found = 0;
                for (size_t v = 0; v < V; v++)
                    if (v != size_t(hot)) found = std::max(found, std::abs(logits[row * V + v]));
                CHECK(found > 1e4 * largest);
            }
        }
}

}  // namespace tapernorm
