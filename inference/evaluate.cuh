// The loss of a model on a text.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "inference/engine.cuh"
#include "inference/logits.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "ops/cross_entropy.cuh"

namespace tapernorm {

struct Evaluation {
    double loss_sum = 0;         // nats
    std::vector<double> losses;  // of the tokens but the first, in their order

    double loss() const { return loss_sum / double(losses.size()); }

    // The loss that a share of the tokens does not exceed.
    double quantile(double share) const {
        std::vector<double> sorted = losses;
        const size_t rank = std::max<size_t>(size_t(std::ceil(share * double(sorted.size()))), 1) - 1;
        std::nth_element(sorted.begin(), sorted.begin() + ptrdiff_t(rank), sorted.end());
        return sorted[rank];
    }
};

// Cross-entropy of tokens [n >= 2]. Each token but the first is predicted once, from those before it in its window of
// config.T tokens. cpu computes the losses from the logits.
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
            e.losses.insert(e.losses.end(), losses.begin(), losses.begin() + ptrdiff_t(n));
        }
    }
    return e;
}

// How many of the numbers that enter a model's sites lie outside its bound.
struct BoundUse {
    std::atomic<size_t> clipped = 0, numbers = 0;

    double share() const { return double(clipped) / double(std::max<size_t>(numbers, 1)); }

    // The rows x [rows, C] that enter a site.
    template <class Real>
    void add(Cpu& cpu, const Site<Real>& site, const Real* x, size_t rows, size_t C) {
        const bool centered = site.kind == NormKind::layernorm && site.phase != Phase::clamp;
        parallel_ranges(cpu, rows, 1, [&](size_t first, size_t last, int) {
            size_t outside = 0;
            for (size_t r = first; r < last; r++) {
                const Real* row = x + r * C;
                const Real rho = site.rho(r);
                const Real mean = centered ? std::accumulate(row, row + C, Real(0)) / Real(C) : Real(0);
                for (size_t i = 0; i < C; i++) outside += !inside(rho * (row[i] - mean), Real(site.bound));
            }
            clipped += outside, numbers += (last - first) * C;
        });
    }
};

// Counts what decoder clips from now on; first positions, whose rows are unlike all others, apart.
template <class Real>
void count_bounds(Cpu& cpu, Decoder<Cpu, Real>& decoder, BoundUse& first, BoundUse& behind) {
    decoder.watch = [&](const Layer<Real>& layer, size_t rows) {
        if (!layer.site || !std::isfinite(layer.site->bound)) return;
        const size_t C = decoder.config().C, begin = decoder.length() == rows;  // rows of first positions: 0 or 1
        first.add(cpu, *layer.site, layer.in, begin, C);
        behind.add(cpu, from_row(*layer.site, begin), layer.in + begin * C, rows - begin, C);
    };
}

// What --eval measures: the tokens of a text or of token shards, all of the model's vocabulary.
struct EvalTokens {
    std::string source;  // "text      'FILE'", for the report
    std::vector<int> tokens;
    size_t bytes = 0, first_bytes = 0;  // that all tokens and the first stand for; 0 where there is no tokenizer
};

// flag: that named the path, for messages. encode: null where bytes are tokens.
inline EvalTokens read_eval_tokens(const char* flag, const std::string& path, const std::optional<Tokenizer>& tokenizer,
                                   const Tokenize& encode, const ModelInfo& info) {
    const TokenSource source = open_tokens(path, encode);
    bool known = true;
    if (source.from_shards())
        known = check_shards(flag, source.files(), tokenizer ? tokenizer->name() : info.tokenizer.at("tokenizer"),
                             info.config.V);
    if (source.size() < 2)
        fail("%s %s: expected a text of at least 2 tokens, found %zu", flag, path.c_str(), source.size());
    EvalTokens eval{(source.from_shards() ? "shards    " : "text      ") + source.name(), {}};
    if (!known) eval.source += " (no tokenizer beside the shards: taken for the model's)";
    eval.tokens.resize(source.size());
    source.read(0, source.size(), eval.tokens.data());
    check_ids(eval.tokens, info.config.V, [&](size_t i) { return source.where(i); });
    auto bytes_of = [&](int id) {
        return size_t(id) < tokenizer->vocab_size() ? tokenizer->token(size_t(id)).size() : 0;
    };
    if (!tokenizer) return eval;
    eval.first_bytes = bytes_of(eval.tokens[0]);
    for (int id : eval.tokens) eval.bytes += bytes_of(id);
    return eval;
}

// The report of --eval: the loss, and what bf16 or int8 weights change about it; for people to `text`, and returned for --json.
template <class Device, class Real>
nlohmann::ordered_json report_loss(const Engine<Device, Real>& engine, const EvalTokens& eval, std::FILE* text) {
    const Config& c = engine.info.config;
    const std::vector<int>& tokens = eval.tokens;
    auto decoder = engine.decoder();
    BoundUse first, behind;
    if constexpr (std::is_same_v<Device, Cpu>)
        if (c.bound > 0) count_bounds(engine.cpu, decoder, first, behind);
    const auto start = std::chrono::steady_clock::now();
    const Evaluation e = evaluate_tokens(engine.cpu, decoder, c, tokens);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    require_finite(engine.name, {float(e.loss())});
    const char* unit = eval.bytes ? "byte" : "token";
    const double bits =
                     e.loss_sum / std::log(2.0) / double(eval.bytes ? eval.bytes - eval.first_bytes : e.losses.size()),
                 speed = double(e.losses.size()) / seconds;
    std::fprintf(text, "%s: %s, %s; windows of %s\n", eval.source.c_str(), counted(tokens.size(), "token").c_str(),
                 eval.bytes ? counted(eval.bytes, "byte").c_str() : "no tokenizer", counted(c.T, "token").c_str());
    std::fprintf(text, "loss      %.6f nats per token, perplexity %s, %.6f bits per %s; %.0f tokens/s\n", e.loss(),
                 strprintf(e.loss() < 20 ? "%.4f" : "%.4g", std::exp(e.loss())).c_str(), bits, unit, speed);
    // Of a model that runs off on single tokens the mean says little.
    const auto largest = std::max_element(e.losses.begin(), e.losses.end());
    const size_t worst = size_t(largest - e.losses.begin()) + 2;  // the text's first token is not predicted
    std::fprintf(text,
                 "          by token: median %.4g, 99%% at most %.4g, 99.9%% %.4g, the largest %.4g (token %zu)\n",
                 e.quantile(0.5), e.quantile(0.99), e.quantile(0.999), *largest, worst);
    nlohmann::ordered_json result = {{"tokens", tokens.size()},          {"loss", e.loss()},
                                     {"perplexity", std::exp(e.loss())}, {strprintf("bits_per_%s", unit), bits},
                                     {"loss_median", e.quantile(0.5)},   {"loss_p99", e.quantile(0.99)},
                                     {"loss_p999", e.quantile(0.999)},  {"loss_max", *largest},
                                     {"loss_max_token", worst},          {"tokens_per_second", speed}};
    if (eval.bytes) result["bytes"] = eval.bytes;
    if (behind.numbers + first.numbers > 0) {
        std::fprintf(text, "bound     clips %.3g%% of the numbers in first positions, %.3g%% of those behind them\n",
                     100 * first.share(), 100 * behind.share());
        result["clipped_first"] = first.share(), result["clipped"] = behind.share();
    }
    if constexpr (std::is_same_v<Device, Cpu>)
        if (engine.packed->type != WeightType::fp32) {
            const PackedModel exact(engine.cpu, c, engine.weights, WeightType::fp32);
            Engine<Cpu, float> fp32 = engine;
            fp32.packed = &exact;
            auto reference = fp32.decoder();
            const double loss = evaluate_tokens(engine.cpu, reference, c, tokens).loss();
            std::fprintf(text, "          with fp32 weights %.6f: --weights %s changes it by %+.6f (%+.4f%%)\n", loss,
                         weight_type_name(engine.packed->type), e.loss() - loss, 100 * (e.loss() - loss) / loss);
            result["loss_fp32"] = loss;
        }
    return result;
}

}  // namespace tapernorm
