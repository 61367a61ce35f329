// infer --bench: the two protocols of the TaperNorm paper for the states of one model side by side, with what the
// hardware allows measured in between.
//
//   last-token logits     B sequences of T tokens in, the logits of each one's last token out: tokens/s
//   decoding              greedy, with a KV cache, 128 tokens after a prompt of 32, B sequences together: ms per step
//
// each as far as the model's context goes.
//
// The states of a model differ in their norm sites alone, so they share its matrices: what is timed is the code of
// every state, on numbers that only one of them was trained for. The states of a turn run side by side, on a CPU step by
// step, and every turn begins with another one: a disturbance of the machine meets all of them. A figure is a median over
// turns, a ratio or a part of a limit one of ratios within a turn; its spread is half the distance between the quartiles.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "inference/generate.cuh"
#include "inference/sampler.h"
#include "model/model_file.h"
#include "ops/adamw.cuh"

namespace tapernorm {

// What --bench runs on: everything that a decoder needs of one model.
template <class Device, class Real>
struct BenchModel {
    Device& dev;
    Cpu& cpu;
    Config config;
    const GptTensors<Real>& weights;
    const PackedModel* packed;  // null on a GPU
    std::vector<float> taper_scale;
    double weight_bytes;  // that one decoding step reads
};

// One way to evaluate the model's norm sites.
struct BenchState {
    const char* name;
    GateMode mode;
    Fold fold;
};

// The states that the gate allows; with random weights (`any`) all four.
inline std::vector<BenchState> bench_states(const Config& c, double gate, bool any) {
    const GateMode tapered = c.mode == GateMode::norm ? GateMode::taper : c.mode;
    const BenchState normalized = {"normalized", GateMode::norm, Fold::none};
    const BenchState affine = {"affine folded", GateMode::norm, Fold::affine};
    const BenchState scaled = {"explicit scaling", tapered, Fold::none};
    const BenchState folded = {"folded", tapered, tapered == GateMode::taper ? Fold::internal : Fold::all};
    if (any) return {normalized, affine, scaled, folded};
    if (c.fold != Fold::none) return {{c.fold == Fold::affine ? "affine folded" : "folded", c.mode, c.fold}};
    if (gate == 1 || c.mode == GateMode::norm) return {normalized, affine};
    if (gate == 0) return {scaled, folded};
    return {{"tapering", c.mode, c.fold}};
}

struct Spread {
    double median = 0, half_quartiles = 0;
    size_t n = 0;
};

inline Spread spread_of(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    const size_t n = x.size();
    return {x[n / 2], (x[(3 * n) / 4] - x[n / 4]) / 2, n};
}

inline double bench_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of one turn: each state's seconds, and what the hardware allowed meanwhile.
struct Turn {
    std::vector<double> seconds;
    double limit;
};
struct Turns {
    std::vector<std::vector<double>> seconds;  // [states, turns]
    std::vector<double> limits;                // [turns]
};

// Turns turn(first) of `count` states, which begin with state `first`: 50 after 10 to warm up, or as many as fit in `budget`
// seconds for each state, at least 3 after 1.
template <class OneTurn>
Turns take_turns(size_t count, double budget, OneTurn&& turn) {
    constexpr size_t kRepetitions = 50, kWarmUps = 10, kFewest = 3;
    Turns all{std::vector<std::vector<double>>(count), {}};
    const double start = bench_seconds(), limit = budget * double(count);
    for (size_t n = 0; n == 0 || (n < kWarmUps && bench_seconds() - start < limit / 6); n++) turn(n % count);
    for (size_t n = 0; n < kFewest || (n < kRepetitions && bench_seconds() - start < limit); n++) {
        const Turn one = turn(n % count);
        for (size_t i = 0; i < count; i++) all.seconds[i].push_back(one.seconds[i]);
        all.limits.push_back(one.limit);
    }
    return all;
}

// ---- limits of the hardware, as the CPU path meets them

// GB/s at which all threads together read memory that no cache holds.
class ReadBandwidth {
  public:
    explicit ReadBandwidth(Cpu& dev) : dev_(dev), memory_(dev, "the bandwidth test") {
        memory_.add(data_, kFloats);
        memory_.allocate(true);
    }
    double measure() {
        const double start = bench_seconds();
        parallel_ranges(dev_, kFloats, 1 << 12, [&](size_t begin, size_t end, int thread) {
            const double sum = leaf<float>(dev_).sum_squares(data_ + begin, end - begin);
            static_cast<double*>(dev_.scratch(thread, sizeof(double)))[0] = sum;  // so that it is computed
        });
        return double(kFloats * sizeof(float)) / (bench_seconds() - start) * 1e-9;
    }

  private:
    static constexpr size_t kFloats = size_t(128) << 20;
    Cpu& dev_;
    Arena<Cpu> memory_;
    float* data_;
};

// GFLOP/s of the project's matrix product at the model's largest layer, T rows.
inline double matmul_rate(Cpu& dev, size_t T, size_t C) {
    Arena<Cpu> memory(dev, "the matmul test");
    float *in, *out, *weight;
    memory.add(in, T * C), memory.add(weight, C * 4 * C), memory.add(out, T * 4 * C);
    memory.allocate(true);
    const double start = bench_seconds();
    matmul_forward<float, Cpu>(dev, out, in, weight, nullptr, nullptr, T, C, 4 * C);
    return 8 * double(T) * double(C) * double(C) / (bench_seconds() - start) * 1e-9;
}

// ---- the protocols

template <class Device, class Real>
class InferenceBench {
  public:
    InferenceBench(BenchModel<Device, Real> model, std::vector<BenchState> states, double budget)
        : m_(std::move(model)), states_(std::move(states)), budget_(budget) {}

    // which: "all", or one protocol.
    void run(const std::string& which) {
        if constexpr (kOnHost) bandwidth_.emplace(m_.cpu);
        std::printf("\n| protocol | B |");
        for (const BenchState& s : states_) std::printf(" %s |", s.name);
        std::printf(" last / first | limit |\n| --- | --- |");
        for (size_t i = 0; i < states_.size() + 2; i++) std::printf(" --- |");
        std::printf("\n");
        const size_t context = m_.config.T;
        for (size_t T : {128, 256, 512})
            for (size_t B : {1, 4})
                if (which != "decoding" && (T == 128 || T / 2 < context)) last_token(B, std::min(T, context));
        for (size_t B : {1, 4, 16})
            if (which != "last-token") decode(B, std::min(kPrompt, (context + 1) / 2));
        print_counts();
    }

  private:
    static constexpr bool kOnHost = std::is_same_v<Device, Cpu>;
    static constexpr size_t kPrompt = 32, kNew = 128;

    // Of one decoding step.
    struct Counts {
        double passes, regions, barriers;
    };

    // The weights as this state reads them, of a context of T tokens.
    Config config_of(const BenchState& s, size_t T) const {
        Config c = m_.config;
        c.mode = s.mode, c.fold = s.fold, c.T = T;
        return c;
    }
    std::vector<std::unique_ptr<Decoder<Device, Real>>> decoders(size_t B, size_t T) {
        std::vector<std::unique_ptr<Decoder<Device, Real>>> list;
        for (const BenchState& s : states_) {
            GptTensors<Real> t = m_.weights;
            if (!t.lm_head && config_of(s, T).untied_head()) t.lm_head = t.wte;
            std::vector<float> scale = m_.taper_scale;
            scale.resize(2 * m_.config.L + 1, 1.0f);
            list.push_back(std::make_unique<Decoder<Device, Real>>(m_.dev, config_of(s, T), t, scale,
                                                                   s.mode == GateMode::norm ? 1 : 0, B, m_.packed));
        }
        return list;
    }

    std::vector<std::vector<int>> random_tokens(size_t B, size_t n) const {
        std::vector<std::vector<int>> tokens(B, std::vector<int>(n));
        for (size_t b = 0; b < B; b++)
            for (size_t i = 0; i < n; i++) tokens[b][i] = int(random_bits(3, b, i) % m_.config.V);
        return tokens;
    }

    static std::vector<TokenSpan> spans_of(const std::vector<std::vector<int>>& tokens) {
        std::vector<TokenSpan> spans;
        for (size_t b = 0; b < tokens.size(); b++) spans.push_back({b, tokens[b].data(), tokens[b].size()});
        return spans;
    }

    void last_token(size_t B, size_t T) {
        auto list = decoders(B, T);
        const auto tokens = random_tokens(B, T);
        std::vector<Acc<Real>> logits(B * m_.config.V);
        const size_t count = list.size();
        const auto [times, rates] = take_turns(count, budget_, [&](size_t first) {
            Turn turn{std::vector<double>(count), 0};
            std::vector<double> rate(count);
            for (size_t n = 0; n < count; n++) {
                const size_t i = (first + n) % count;
                if (kOnHost) rate[n] = matmul_rate(m_.cpu, std::min<size_t>(B * T, 512), m_.config.C);
                for (size_t b = 0; b < B; b++) list[i]->rewind(0, b);
                const double start = bench_seconds();
                list[i]->feed(spans_of(tokens), Logits::last, logits.data());
                turn.seconds[i] = bench_seconds() - start;
            }
            turn.limit = spread_of(rate).median;
            return turn;
        });
        std::printf("| last-token logits, T %zu, tokens/s | %zu |", T, B);
        for (const auto& t : times) {
            const Spread s = spread_of(t);
            std::printf(" %.0f ± %.1f%% |", double(B * T) / s.median, 100 * s.half_quartiles / s.median);
        }
        print_ratio(times);
        if (kOnHost) print_limit(times.back(), rates, flops(B, T) * 1e-9, "matmul's %.0f GFLOP/s");
        std::printf(" |\n");
        std::fflush(stdout);
    }

    // Multiplications and additions of one last-token pass: the blocks' matrices, causal attention, the head once.
    double flops(size_t B, size_t T) const {
        const double C = double(m_.config.C), L = double(m_.config.L), rows = double(B * T);
        return rows * 24 * C * C * L + rows * 2 * C * double(T + 1) * L + double(B) * 2 * C * double(m_.config.V);
    }

    void decode(size_t B, size_t prompt) {
        const size_t steps = std::min(kNew, m_.config.T - prompt), V = m_.config.V;
        if (steps == 0) return void(std::printf("| decoding | %zu | the context is one token |\n", B));
        auto list = decoders(B, prompt + steps);
        const auto prompts = random_tokens(B, prompt);
        std::vector<std::vector<Acc<Real>>> logits(list.size(), std::vector<Acc<Real>>(B * V));
        std::vector<std::unique_ptr<Generator<Device, Real>>> generators;
        for (auto& decoder : list) generators.push_back(std::make_unique<Generator<Device, Real>>(*decoder));
        counts_.assign(list.size(), {});
        auto [times, bandwidth] = take_turns(list.size(), budget_, [&](size_t first) {
            for (size_t i = 0; i < list.size(); i++) {
                for (size_t b = 0; b < B; b++) list[i]->rewind(0, b);
                list[i]->feed(spans_of(prompts), Logits::last, logits[i].data());
            }
            if constexpr (kOnHost) {
                return decode_steps(list, logits, first, steps);
            } else {
                Turn turn{std::vector<double>(list.size()), 0};
                for (size_t n = 0; n < list.size(); n++) {
                    // A first token from the prompt's logits, then as many steps as on the host.
                    const size_t i = (first + n) % list.size();
                    const double start = bench_seconds();
                    generators[i]->generate(logits[i], V, steps + 1, {.temperature = 0}, 0, [](size_t, const int*) {});
                    turn.seconds[i] = (bench_seconds() - start) / double(steps);
                    counts_[i] = {double(generators[i]->stream_passes()), double(generators[i]->launches()), 0};
                }
                return turn;
            }
        });
        std::printf("| decoding, ms per step (GB/s of weights) | %zu |", B);
        for (const auto& t : times) {
            const Spread s = spread_of(t);
            std::printf(" %.3f ± %.1f%% (%.1f) |", s.median * 1e3, 100 * s.half_quartiles / s.median,
                        m_.weight_bytes / s.median * 1e-9);
        }
        print_ratio(times);
        if constexpr (!kOnHost) bandwidth.assign(times[0].size(), device_bandwidth());
        print_limit(times.back(), bandwidth, m_.weight_bytes * 1e-9, "%.1f GB/s read");
        std::printf(" |\n");
        std::fflush(stdout);
    }

    // Greedy steps of all states, one step of each after the other; seconds of one, and the bandwidth between them.
    Turn decode_steps(std::vector<std::unique_ptr<Decoder<Device, Real>>>& list,
                      std::vector<std::vector<Acc<Real>>>& logits, size_t first, size_t steps) {
        const size_t count = list.size(), V = m_.config.V, B = logits[0].size() / V;
        constexpr size_t kBetween = 8;
        Turn turn{std::vector<double>(count), 0};
        std::vector<double> bandwidth;
        std::vector<int> next(B);
        for (size_t step = 0; step < steps; step++) {
            if (step % kBetween == 0) bandwidth.push_back(bandwidth_->measure());
            for (size_t n = 0; n < count; n++) {
                const size_t i = (first + step + n) % count, passes = list[i]->stream_passes();
                const size_t regions = m_.cpu.regions, barriers = m_.cpu.barriers;
                const double start = bench_seconds();
                std::vector<TokenSpan> spans;
                for (size_t b = 0; b < B; b++) {
                    next[b] = int(argmax(&logits[i][b * V], V));
                    spans.push_back({b, &next[b], 1});
                }
                list[i]->feed(spans, Logits::last, logits[i].data());
                turn.seconds[i] += (bench_seconds() - start) / double(steps);
                counts_[i] = {double(list[i]->stream_passes() - passes), double(m_.cpu.regions - regions),
                              double(m_.cpu.barriers - barriers)};
            }
        }
        turn.limit = spread_of(bandwidth).median;
        return turn;
    }

    // GB/s at which a GPU sums up memory that its caches do not hold, waiting for the sum included.
    double device_bandwidth() {
        const size_t n = std::min(size_t(1) << 30, size_t(8 * m_.weight_bytes / sizeof(Real)));
        Arena<Device> memory(m_.dev, "the bandwidth test");
        Real* x = nullptr;
        memory.add(x, n);
        memory.allocate(true);
        std::vector<double> result;
        for (int i = 0; i < 10; i++) {
            const double start = bench_seconds();
            sum_of_squares(m_.dev, x, n);
            result.push_back(double(n * sizeof(Real)) / (bench_seconds() - start) * 1e-9);
        }
        return spread_of(result).median;
    }

    // What part of a limit the last state reached: the median over turns of `work` in its time against the limit measured
    // in the same turn. format: prints the limit's median.
    static void print_limit(const std::vector<double>& times, const std::vector<double>& limits, double work,
                            const char* format) {
        std::vector<double> parts;
        for (size_t i = 0; i < times.size(); i++) parts.push_back(work / times[i] / limits[i]);
        const Spread s = spread_of(parts);
        std::printf(" %.0f%% ± %.0f%% of ", 100 * s.median, 100 * s.half_quartiles);
        std::printf(format, spread_of(limits).median);
    }

    // Speed of the last state over the first's: the median over neighbours in time; and the repetitions.
    static void print_ratio(const std::vector<std::vector<double>>& times) {
        std::vector<double> ratios;
        for (size_t i = 0; i < times[0].size(); i++) ratios.push_back(times[0][i] / times.back()[i]);
        const Spread s = spread_of(ratios);
        std::printf(" %.3f ± %.1f%% (n %zu) |", s.median, 100 * s.half_quartiles / s.median, s.n);
    }

    void print_counts() {
        if (counts_.empty()) return;
        std::printf(
            "\nOne decoding step, counted while it ran:\n\n| state | passes over the residual stream | %s | barriers | MB "
            "of weights |\n| --- | --- | --- | --- | --- |\n",
            kOnHost ? "parallel regions" : "kernels in the graph");
        for (size_t i = 0; i < states_.size(); i++)
            std::printf("| %s | %.0f | %.0f | %.0f | %.1f |\n", states_[i].name, counts_[i].passes, counts_[i].regions,
                        counts_[i].barriers, m_.weight_bytes * 1e-6);
    }

    BenchModel<Device, Real> m_;
    std::vector<BenchState> states_;
    double budget_;
    std::optional<ReadBandwidth> bandwidth_;
    std::vector<Counts> counts_;
};

}  // namespace tapernorm
