// What bench_infer measures: the two protocols of the TaperNorm paper for the states of one model side by side, with what
// the hardware allows measured in between.
//
//   last-token logits     B sequences of T tokens in, the logits of each one's last token out: tokens/s
//   decoding              greedy, with a KV cache, 128 tokens after a prompt of 32, B sequences together: ms per step; on a GPU,
//                         which chooses the tokens, also one sequence as infer samples by default
//
// each as far as the model's context reaches.
//
// The states of a model differ only in their norm sites, so they share its matrices: the code of every state is timed, on
// numbers that only one of them was trained for. "clamped" is "folded" for a model with a bound, which leaves a clamp at each
// site. In every turn the states run side by side, on a CPU step by step, and every turn begins with another one: a disturbance
// of the machine meets all of them. A figure is a median over turns; a ratio, or a fraction of a limit, is a median of ratios
// within a turn. The spread is half the distance between the quartiles.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "inference/engine.cuh"
#include "inference/generate.cuh"
#include "inference/sampler.h"
#include "ops/adamw.cuh"

namespace tapernorm::bench {

// One way to evaluate the model's norm sites.
struct BenchState {
    const char* name;
    GateMode mode;
    Fold fold;
    bool clamps = false;  // folded with a bound

    bool folded() const { return fold == Fold::internal || fold == Fold::all; }
};

// The states that the gate allows; with random weights (`any`) all five.
inline std::vector<BenchState> bench_states(const Config& c, double gate, bool any) {
    const GateMode tapered = c.mode == GateMode::norm ? GateMode::taper : c.mode;
    const BenchState normalized = {"normalized", GateMode::norm, Fold::none};
    const BenchState affine = {"affine folded", GateMode::norm, Fold::affine};
    const BenchState scaled = {"explicit scaling", tapered, Fold::none};
    const BenchState folded = {"folded", tapered, tapered == GateMode::taper ? Fold::internal : Fold::all};
    const BenchState clamped = {"clamped", folded.mode, folded.fold, true};
    if (any) return {normalized, affine, scaled, clamped, folded};
    if (c.fold == Fold::affine) return {affine};
    if (c.fold != Fold::none) return {{"clamped", c.mode, c.fold, true}, {"folded", c.mode, c.fold}};
    if (gate == 1 || c.mode == GateMode::norm) return {normalized, affine};
    if (gate == 0) return {scaled, clamped, folded};
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

inline double now() {  // seconds
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One turn: each state's seconds, and what the hardware allowed meanwhile.
struct Turn {
    std::vector<double> seconds;
    double limit;
};
struct Turns {
    std::vector<std::vector<double>> seconds;  // [states, turns]
    std::vector<double> limits;                // [turns]
};

// Calls turn(first) again and again; a turn runs `count` states, beginning with state `first`. 50 turns after 10 to warm up, or
// as many as fit in `budget` seconds per state, at least 3 after 1.
template <class OneTurn>
Turns take_turns(size_t count, double budget, OneTurn&& turn) {
    constexpr size_t kRepetitions = 50, kWarmUps = 10, kFewest = 3;
    Turns all{std::vector<std::vector<double>>(count), {}};
    const double start = now(), limit = budget * double(count);
    for (size_t n = 0; n == 0 || (n < kWarmUps && now() - start < limit / 6); n++) turn(n % count);
    for (size_t n = 0; n < kFewest || (n < kRepetitions && now() - start < limit); n++) {
        const Turn one = turn(n % count);
        for (size_t i = 0; i < count; i++) all.seconds[i].push_back(one.seconds[i]);
        all.limits.push_back(one.limit);
    }
    return all;
}

// ---- limits of the hardware, as the CPU path meets them

// GB/s at which all threads together read as many bytes as decoding reads before it meets the same weights again: from memory, or
// from a cache where one holds them all.
class ReadBandwidth {
  public:
    ReadBandwidth(Cpu& dev, double bytes)
        : dev_(dev), memory_(dev, "the bandwidth test"), floats_(size_t(std::min(bytes, kMost)) / sizeof(float)) {
        memory_.add(data_, floats_);
        memory_.allocate(true);
    }
    double measure() {
        // Else what decoding has left in the caches would decide. A last-level cache keeps what was used again and again before it
        // takes what is read once or twice.
        for (int i = 0; i < 8; i++) read();
        const double start = now();
        read();
        return double(floats_ * sizeof(float)) / (now() - start) * 1e-9;
    }

  private:
    static constexpr double kMost = 512 << 20;  // more than caches hold
    void read() {
        parallel_ranges(dev_, floats_, 1 << 12, [&](size_t begin, size_t end, int thread) {
            const double sum = leaf<float>(dev_).sum_squares(data_ + begin, end - begin);
            static_cast<double*>(dev_.scratch(thread, sizeof(double)))[0] = sum;  // so that it is computed
        });
    }
    Cpu& dev_;
    Arena<Cpu> memory_;
    size_t floats_;
    float* data_;
};

// GFLOP/s of the project's matrix product at the model's largest layer, T rows.
inline double matmul_rate(Cpu& dev, size_t T, size_t C) {
    Arena<Cpu> memory(dev, "the matmul test");
    float *in, *out, *weight;
    memory.add(in, T * C), memory.add(weight, C * 4 * C), memory.add(out, T * 4 * C);
    memory.allocate(true);
    const double start = now();
    matmul_forward<float, Cpu>(dev, out, in, weight, nullptr, nullptr, T, C, 4 * C);
    return 8 * double(T) * double(C) * double(C) / (now() - start) * 1e-9;
}

// ---- the protocols

template <class Device, class Real>
class InferenceBench {
  public:
    // persistent: also decode by the kernel of a whole step, where it takes the model.
    InferenceBench(const Engine<Device, Real>& engine, std::vector<BenchState> states, double budget, bool persistent)
        : e_(engine), states_(std::move(states)), budget_(budget), persistent_(persistent), scales_(engine.info.scales),
          launches_(states_.size()), memory_(engine.dev, "the means of tokens") {
        const Config& c = e_.info.config;
        memory_.add(no_means_, c.V);
        memory_.allocate(true);
        scales_.resize(2 * c.L + 1);
        const size_t matrices = c.V * c.C + 12 * c.C * c.C * c.L;
        weight_bytes_ = e_.packed ? double(e_.packed->bytes()) : double(matrices * sizeof(Real));
    }

    // which: "all", or one protocol.
    void run(const std::string& which) {
        if constexpr (kOnHost) bandwidth_.emplace(e_.cpu, weight_bytes_);
        std::printf("\n| protocol | B |");
        for (const BenchState& s : states_) std::printf(" %s |", s.name);
        for (const size_t i : compared())
            std::printf(" %s / first |", i + 1 < states_.size() ? states_[i].name : "last");
        std::printf(" limit |\n| --- | --- |");
        for (size_t i = 0; i < states_.size() + compared().size() + 1; i++) std::printf(" --- |");
        std::printf("\n");
        const size_t context = e_.info.config.T;
        for (size_t T : {128, 256, 512})
            for (size_t B : {1, 4})
                if (which != "decoding" && (T == 128 || T / 2 < context)) last_token(B, std::min(T, context));
        for (size_t B : {1, 4, 16}) {
            if (which == "last-token") break;
            const size_t prompt = std::min(kPrompt, (context + 1) / 2);
            for (const bool persistent : {false, true}) {
                if (persistent && !persistent_) continue;
                const std::string why_not =
                    persistent ? Generator<Device, Real>::why_not_persistent(e_.dev, e_.info.config, B) : "";
                if (!why_not.empty()) {
                    std::printf("| decoding by one kernel: %s | %zu |\n", why_not.substr(0, why_not.find(';')).c_str(),
                                B);
                    continue;
                }
                decode(B, prompt, persistent, 0);
                if (!kOnHost && B == 1) decode(B, prompt, persistent, 0.8);
            }
        }
        if (which != "last-token" && context > 1) print_counts();
    }

  private:
    static constexpr bool kOnHost = std::is_same_v<Device, Cpu>;
    static constexpr size_t kPrompt = 32, kNew = 128;

    // The model's sizes as this state reads it, with a context of T tokens.
    Config config_of(const BenchState& s, size_t T) const {
        Config c = e_.info.config;
        c.mode = s.mode, c.fold = s.fold, c.T = T;
        if (s.folded()) {
            c.first_apart =
                s.clamps && (c.first_apart || c.bound == 0);  // a clamp of the bench's own: the costlier kind
            c.bound = !s.clamps ? 0 : c.bound > 0 ? c.bound : 1;
        }
        return c;
    }
    GptTensors<Real> tensors_of(const BenchState& s) const {
        GptTensors<Real> t = e_.weights;
        if (!t.lm_head && config_of(s, 1).untied_head()) t.lm_head = t.wte;
        if (!config_of(s, 1).centers_tokens()) t.wte_mean = nullptr;
        if (!t.wte_mean && config_of(s, 1).centers_tokens()) t.wte_mean = no_means_;
        return t;
    }
    static double gate_of(const BenchState& s) { return s.mode == GateMode::norm ? 1 : 0; }

    // The states whose speed is printed as a multiple of the first one's: the clamped and the last.
    std::vector<size_t> compared() const {
        std::vector<size_t> list;
        for (size_t i = 1; i < states_.size(); i++)
            if (states_[i].clamps) list.push_back(i);
        list.push_back(states_.size() - 1);
        return list;
    }

    std::vector<std::unique_ptr<Decoder<Device, Real>>> decoders(size_t B, size_t T) {
        std::vector<std::unique_ptr<Decoder<Device, Real>>> list;
        for (const BenchState& s : states_)
            list.push_back(std::make_unique<Decoder<Device, Real>>(e_.dev, config_of(s, T), tensors_of(s), scales_,
                                                                   gate_of(s), B, e_.packed));
        return list;
    }

    std::vector<std::vector<int>> random_tokens(size_t B, size_t n) const {
        std::vector<std::vector<int>> tokens(B, std::vector<int>(n));
        for (size_t b = 0; b < B; b++)
            for (size_t i = 0; i < n; i++) tokens[b][i] = int(random_bits(3, b, i) % e_.info.config.V);
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
        std::vector<Acc<Real>> logits(B * e_.info.config.V);
        const size_t count = list.size();
        const auto [times, rates] = take_turns(count, budget_, [&](size_t first) {
            Turn turn{std::vector<double>(count), 0};
            std::vector<double> rate(count);
            for (size_t n = 0; n < count; n++) {
                const size_t i = (first + n) % count;
                if (kOnHost) rate[n] = matmul_rate(e_.cpu, std::min<size_t>(B * T, 512), e_.info.config.C);
                for (size_t b = 0; b < B; b++) list[i]->rewind(0, b);
                const double start = now();
                list[i]->feed(spans_of(tokens), Logits::last, logits.data());
                turn.seconds[i] = now() - start;
            }
            turn.limit = spread_of(rate).median;
            return turn;
        });
        std::printf("| last-token logits, T %zu, tokens/s | %zu |", T, B);
        for (const auto& t : times) {
            const Spread s = spread_of(t);
            std::printf(" %.0f ± %.1f%% |", double(B * T) / s.median, 100 * s.half_quartiles / s.median);
        }
        print_ratios(times);
        if (kOnHost) print_limit(times.back(), rates, flops(B, T) * 1e-9, "matmul's %.0f GFLOP/s");
        std::printf(" |\n");
        std::fflush(stdout);
    }

    // Multiplications and additions of one last-token pass: the blocks' matrices, causal attention, the head once.
    double flops(size_t B, size_t T) const {
        const double C = double(e_.info.config.C), L = double(e_.info.config.L), rows = double(B * T);
        return rows * 24 * C * C * L + rows * 2 * C * double(T + 1) * L + double(B) * 2 * C * double(e_.info.config.V);
    }

    void decode(size_t B, size_t prompt, bool persistent, double temperature) {
        const size_t steps = std::min(kNew, e_.info.config.T - prompt), V = e_.info.config.V;
        if (steps == 0) return void(std::printf("| decoding | %zu | the context is one token |\n", B));
        auto list = decoders(B, prompt + steps);
        const auto prompts = random_tokens(B, prompt);
        std::vector<std::vector<Acc<Real>>> logits(list.size(), std::vector<Acc<Real>>(B * V));
        std::vector<std::unique_ptr<Generator<Device, Real>>> generators;
        for (auto& decoder : list)
            generators.push_back(std::make_unique<Generator<Device, Real>>(*decoder, persistent));
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
                    const double start = now();
                    generators[i]->generate(logits[i], V, steps + 1, {.temperature = temperature}, 0,
                                            [](size_t, const int*) { return true; });
                    turn.seconds[i] = (now() - start) / double(steps);
                    if (!persistent) launches_[i] = generators[i]->kernels();
                }
                return turn;
            }
        });
        std::printf("| decoding%s%s, ms per step (GB/s of weights) | %zu |", persistent ? " by one kernel" : "",
                    temperature > 0 ? " at temperature 0.8" : "", B);
        for (const auto& t : times) {
            const Spread s = spread_of(t);
            std::printf(" %.3f ± %.1f%% (%.1f) |", s.median * 1e3, 100 * s.half_quartiles / s.median,
                        weight_bytes_ / s.median * 1e-9);
        }
        print_ratios(times);
        if constexpr (!kOnHost) bandwidth.assign(times[0].size(), device_bandwidth());
        print_limit(times.back(), bandwidth, weight_bytes_ * 1e-9, "%.1f GB/s read");
        std::printf(" |\n");
        std::fflush(stdout);
    }

    // Greedy steps of all states, one step of each after the other; seconds of one, and the bandwidth between them.
    Turn decode_steps(std::vector<std::unique_ptr<Decoder<Device, Real>>>& list,
                      std::vector<std::vector<Acc<Real>>>& logits, size_t first, size_t steps) {
        const size_t count = list.size(), V = e_.info.config.V, B = logits[0].size() / V;
        constexpr size_t kBetween = 8;
        Turn turn{std::vector<double>(count), 0};
        std::vector<double> bandwidth;
        std::vector<int> next(B);
        for (size_t step = 0; step < steps; step++) {
            if (step % kBetween == 0) bandwidth.push_back(bandwidth_->measure());
            for (size_t n = 0; n < count; n++) {
                const size_t i = (first + step + n) % count;
                const double start = now();
                std::vector<TokenSpan> spans;
                for (size_t b = 0; b < B; b++) {
                    next[b] = int(argmax(&logits[i][b * V], V));
                    spans.push_back({b, &next[b], 1});
                }
                list[i]->feed(spans, Logits::last, logits[i].data());
                turn.seconds[i] += (now() - start) / double(steps);
            }
        }
        turn.limit = spread_of(bandwidth).median;
        return turn;
    }

    // GB/s at which a GPU sums up memory that its caches do not hold, waiting for the sum included.
    double device_bandwidth() {
        const size_t n = std::min(size_t(1) << 30, size_t(8 * weight_bytes_ / sizeof(Real)));
        Arena<Device> memory(e_.dev, "the bandwidth test");
        Real* x = nullptr;
        memory.add(x, n);
        memory.allocate(true);
        std::vector<double> result;
        for (int i = 0; i < 10; i++) {
            const double start = now();
            sum_of_squares(e_.dev, x, n);
            result.push_back(double(n * sizeof(Real)) / (now() - start) * 1e-9);
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
        if (s.median > 1)
            std::printf(kOnHost ? " (above 100%%: measured at another moment or, matmul's, of another shape)"
                                : " (above 100%%: the limit is memory's, and caches hold some of the weights)");
    }

    // Speeds of states over the first's: the median over neighbours in time; and the repetitions.
    void print_ratios(const std::vector<std::vector<double>>& times) const {
        for (const size_t state : compared()) {
            std::vector<double> ratios;
            for (size_t i = 0; i < times[0].size(); i++) ratios.push_back(times[0][i] / times[state][i]);
            const Spread s = spread_of(ratios);
            std::printf(" %.3f ± %.1f%% (n %zu) |", s.median, 100 * s.half_quartiles / s.median, s.n);
        }
    }

    // How often one decoding step of a state passes over the residual stream of its rows, reading or writing: the embedding
    // writes it, a block adds to it twice (a read and a write each), and the matrix behind a site reads it. A norm reads it
    // again for its mean and for its scale; where it is not fused into that matrix's kernel, it also reads it to write a copy.
    size_t stream_passes(const BenchState& s, bool fused) const {
        const Config c = config_of(s, e_.info.config.T);
        const GptTensors<Real> t = tensors_of(s);
        auto of_site = [&](size_t l) {
            const Site<Real> site = site_at(c, t, scales_, gate_of(s), l, 0);
            if (site.phase == Phase::folded) return size_t(1);
            if (site.phase == Phase::clamp) return size_t(1 + (fused ? 0 : 2));
            return size_t(1 + (site.kind == NormKind::layernorm) + (site.phase != Phase::scale) + (fused ? 0 : 2));
        };
        return 1 + c.L * (4 + 2 * of_site(0)) + of_site(c.L);
    }

    // What one decoding step does, by the model's sizes: on the CPU one parallel region, with a barrier behind each of a
    // block's five stages (Decoder::step); on a GPU the kernels that the recorded graph has.
    void print_counts() const {
        std::printf(
            "\nOne decoding step:\n\n| state | passes over the residual stream | %s | barriers | MB of weights |\n"
            "| --- | --- | --- | --- | --- |\n",
            kOnHost ? "parallel regions" : "kernels in the graph");
        for (size_t i = 0; i < states_.size(); i++)
            std::printf("| %s | %zu | %zu | %zu | %.1f |\n", states_[i].name,
                        stream_passes(states_[i], launches_[i] > 0), kOnHost ? 1 : launches_[i],
                        kOnHost ? 5 * e_.info.config.L : 0, weight_bytes_ * 1e-6);
    }

    const Engine<Device, Real>& e_;
    std::vector<BenchState> states_;
    double budget_;
    bool persistent_;
    std::vector<TaperScale> scales_;  // for every site that could taper
    double weight_bytes_ = 0;         // read by one decoding step
    std::vector<size_t> launches_;    // kernels in each state's recorded step; 0 where none is recorded
    std::optional<ReadBandwidth> bandwidth_;
    Arena<Device> memory_;
    Real* no_means_;  // [V], zeros, for a clamped state of a model that has no means of its tokens
};

}  // namespace tapernorm::bench
