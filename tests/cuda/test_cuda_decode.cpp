// What decodes on a GPU without the host (ops/matvec.cuh, ops/sampling.cuh, attention_step, inference/decode_graph.cuh) against
// the CPU's ops in double, the host's sampler, and the Decoder.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "inference/generate.cuh"
#include "tests/cuda/cuda_test.h"
#ifdef CUDA_EMU
#include "tests/emu/emu.h"
#endif
#include "tests/fuzz/logits_case.h"
#include "tests/random_model.h"

namespace tapernorm {

namespace {

struct MatvecCase {
    size_t rows, K, N;
    bool transposed;
};

// |got - expected| <= what rounding the result costs, and `steps` roundings of fp32 at the size of the sum's terms.
template <class Real>
void check_matvec(Cuda& dev, const MatvecCase& s, NormKind kind, Phase phase, bool gelu,
                  double kappa = std::numeric_limits<double>::infinity()) {
    Cpu cpu(1);
    const auto [rows, K, N, transposed] = s;
    CAPTURE(rows);
    CAPTURE(K);
    CAPTURE(N);
    CAPTURE(int(phase));
    const Input<Real> x(dev, rows * K, 1), w(dev, K * N, 2, 1 / std::sqrt(double(K))), bias(dev, N, 3),
        residual(dev, rows * N, 4);
    const Input<Real> weight(dev, K, 5), shift(dev, K, 6), taper(dev, K, 7), taper_shift(dev, K, 8);
    const double g = phase == Phase::blend ? double(0.37f) : phase == Phase::norm;
    const double bound = double(float(kappa / 0.75));
    Site<Real> site{kind,          phase,        1e-5f,        float(g),           0.75f,
                    weight.data(), shift.data(), taper.data(), taper_shift.data(), float(bound)};
    Site<double> site_ref{kind,
                          phase,
                          double(1e-5f),
                          g,
                          0.75,
                          weight.exact.data(),
                          shift.exact.data(),
                          taper.exact.data(),
                          taper_shift.exact.data(),
                          bound};
    if (kind == NormKind::rmsnorm) site.bias = site.taper_bias = nullptr, site_ref.bias = site_ref.taper_bias = nullptr;
    const DeviceArray<Real> out(dev, std::vector<Real>(rows * N, Real(std::numeric_limits<float>::quiet_NaN())));
    // clang-format off
    const Matvec<Real> a{.out = out.data(), .x = x.data(), .site = site, .weight = w.data(), .bias = bias.data(),
                         .residual = gelu ? nullptr : residual.data(), .gelu = gelu, .rows = unsigned(rows),
                         .K = unsigned(K), .N = unsigned(N)};
    // clang-format on
    REQUIRE(fits_matvec(a, transposed));
    matvec(dev, a, transposed);
    std::vector<double> y(rows * K), mean(rows), scale(rows), ref(rows * N);
    if (phase == Phase::folded)
        y = x.exact;
    else
        site_forward<double>(cpu, y.data(), mean.data(), scale.data(), nullptr, x.exact.data(), site_ref, rows, K);
    if (transposed)
        head_forward<double>(cpu, ref.data(), y.data(), w.exact.data(), bias.exact.data(), rows, K, N);
    else if (gelu)
        matmul_gelu_forward<double>(cpu, ref.data(), nullptr, y.data(), w.exact.data(), bias.exact.data(), rows, K, N);
    else
        matmul_forward<double>(cpu, ref.data(), y.data(), w.exact.data(), bias.exact.data(), nullptr, rows, K, N);
    if (!gelu)
        for (size_t i = 0; i < ref.size(); i++) ref[i] += residual.exact[i];
    double largest = 0;
    for (double e : ref) largest = std::max(largest, std::abs(e));
    const auto got = out.values();
    for (size_t i = 0; i < ref.size(); i++) {
        INFO("element ", i, ": ", float(got[i]), " against ", ref[i]);
        REQUIRE(std::abs(double(float(got[i])) - ref[i]) <=
                kStore<Real> * std::abs(ref[i]) + (double(K) + 64) * 0x1p-22 * largest);
    }
}

template <class Real>
void matvec_agrees() {
    Cuda dev;
    // Fewer rows than a kernel rounds up to; columns that do not fill a block; fewer k than there are threads to divide them;
    // several chunks of k (12288 / rows), of which the last is whole turns of the threads or is not.
    for (const MatvecCase& s : {MatvecCase{1, 24, 72, false},
                                {3, 32, 40, false},
                                {5, 96, 136, false},
                                {16, 648, 24, false},
                                {13, 1640, 24, false},
                                {8, 3072, 24, false},
                                {7, 1736, 40, false},
                                {4, 3080, 24, false},
                                {2, 6936, 16, false},
                                {1, 12304, 16, false},
                                {1, 24, 37, true},
                                {2, 264, 50, true},
                                {16, 656, 5, true}}) {
        check_matvec<Real>(dev, s, NormKind::layernorm, Phase::folded, false);
        check_matvec<Real>(dev, s, NormKind::layernorm, Phase::norm, !s.transposed);
        check_matvec<Real>(dev, s, NormKind::layernorm, Phase::clamp, !s.transposed, 0.8);
    }
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
        for (const Phase phase : {Phase::norm, Phase::blend, Phase::scale, Phase::unweighted})
            check_matvec<Real>(dev, {2, 32, 40, false}, kind, phase, true);
        for (const Phase phase : {Phase::blend, Phase::scale, Phase::clamp})
            check_matvec<Real>(dev, {2, 32, 40, false}, kind, phase, true, 0.8);
    }
}

// ids that the device and the host choose from the same logits, [steps].
template <class Real>
std::pair<std::vector<int>, std::vector<int>> choices(Cuda& dev, const std::vector<float>& logits, const Sampling& s,
                                                      size_t steps) {
    const size_t V = logits.size(), C = 4, T = steps + 1;
    const std::vector<Real> rounded(logits.begin(), logits.end());
    const std::vector<float> as_float(rounded.begin(), rounded.end());
    const DeviceArray<SampleSettings> on_device(dev, std::vector{sample_settings(s, 7)});
    const DeviceArray<Real> z(dev, rounded), wte(dev, std::vector<Real>(V * C, Real(1.0f))),
        wpe(dev, std::vector<Real>(T * C, Real(1.0f))), mean(dev, std::vector<Real>(V, Real(0.25f))), x(dev, C);
    const DeviceArray<int> ids(dev, steps), positions(dev, std::vector<int>{-1});
    const DeviceArray<unsigned> done(dev, std::vector<unsigned>{0});
    std::vector<int> expected;
    for (size_t i = 0; i < steps; i++) {
        sample_step<Real>(dev,
                          {on_device.data(), z.data(), V, unsigned(V), ids.data(), done.data(), positions.data(),
                           x.data(), wte.data(), mean.data(), wpe.data(), unsigned(C), unsigned(T)},
                          1);
        expected.push_back(sample(as_float.data(), V, s, 7 + i));
    }
    CHECK(positions.values()[0] == int(steps) - 1);
    CHECK(float(x.values()[C - 1]) == 1.75f);
    return {ids.values(), expected};
}

template <class Real>
void sampling_agrees() {
    Cuda dev;
    // (Of more than kSampleFew tokens only those around the choice are compared; 700 and 3000 have more equal ones than that.)
    for (const size_t V : {1, 2, 37, 100, 257, 700, 3000}) {
        std::vector<float> logits(V);
        for (size_t i = 0; i < V; i++) logits[i] = float(2 * random_normal(3, V, i));
        if (V == 100 || V == 3000)
            for (size_t i = 0; i < V; i++) logits[i] = std::round(logits[i]);  // many ties
        if (V == 700) logits.assign(V, 0.25f);
        for (const Sampling& s :
             {Sampling{.temperature = 0}, Sampling{.temperature = 1e-39}, Sampling{.temperature = 1},
              Sampling{.temperature = 0.3, .seed = 2}, Sampling{.temperature = 30, .seed = 3},
              Sampling{.temperature = 1, .top_k = 1}, Sampling{.temperature = 1, .top_k = 5, .seed = 4},
              Sampling{.temperature = 1, .top_k = 1000}, Sampling{.temperature = 1, .top_p = 0},
              Sampling{.temperature = 1, .top_p = 0.6, .seed = 5},
              Sampling{.temperature = 2, .top_k = 9, .top_p = 0.9, .seed = 6}}) {
            CAPTURE(V);
            CAPTURE(s.temperature);
            CAPTURE(s.top_k);
            CAPTURE(s.top_p);
            const auto [got, expected] = choices<Real>(dev, logits, s, 6);
            CHECK(got == expected);
        }
    }
    // top_p of 1/2 is reached exactly by two of four equal tokens: those with the smaller ids.
    const auto [halves, expected_halves] =
        choices<Real>(dev, std::vector<float>(4, 0.0f), {.temperature = 1, .top_p = 0.5, .seed = 8}, 12);
    CHECK(halves == expected_halves);
    CHECK(*std::max_element(halves.begin(), halves.end()) == 1);
    std::vector<float> logits(37, 0.0f);
    logits[20] = std::numeric_limits<float>::infinity();
    CHECK(choices<Real>(dev, logits, {}, 1).first[0] == -1);
    logits[20] = std::numeric_limits<float>::quiet_NaN();
    CHECK(choices<Real>(dev, logits, {}, 1).first[0] == -1);
}

template <class Real>
__global__ void sample_somewhere_kernel(SampleStep<Real> a, unsigned rows) {
    for (unsigned row = 0; row < rows; row++)
        if (blockIdx.x == 1 + row / 2)
            sample_row(a, row, rows, dynamic_shared<SampleSum>(),
                       [&](unsigned c, float value) { a.x[row * a.C + c] = Real(value); });
}

// Rows that begin at every residue of 16 bytes and take several trips of the loops that read them; the same choices and inputs
// where other blocks make them, with other numbers of threads and several rows by one block.
template <class Real>
void long_rows_agree() {
    Cuda dev;
    const size_t rows = 9, ld = 34201, C = 5, T = 3;
    std::vector<Real> logits(rows * ld), wte(ld * C), wpe(T * C);
    for (size_t i = 0; i < logits.size(); i++) logits[i] = Real(float(random_normal(4, 1, i)));
    // The winner of a greedy choice stands where a loop might stop short: first, last, and in between.
    for (size_t row = 0; row < rows; row++) logits[row * ld + row * (ld - 1) / (rows - 1)] = Real(9.0f);
    for (size_t i = 0; i < wte.size(); i++) wte[i] = Real(float(random_normal(4, 2, i)));
    for (size_t i = 0; i < wpe.size(); i++) wpe[i] = Real(float(random_normal(4, 3, i)));
    const std::vector<float> as_float(logits.begin(), logits.end());
    const DeviceArray<Real> z(dev, logits), e(dev, wte), p(dev, wpe);
    for (const unsigned V : {unsigned(ld), 33000u, 3u})
        for (const Sampling& s : {Sampling{.temperature = 0}, Sampling{.temperature = 0.9, .seed = 2},
                                  Sampling{.temperature = 2, .top_k = 3000, .top_p = 0.9, .seed = 3}}) {
            CAPTURE(V);
            CAPTURE(s.temperature);
            const DeviceArray<SampleSettings> settings(dev, std::vector{sample_settings(s, 2)});
            std::vector<int> ids[2], expected;
            std::vector<Real> x[2];
            for (const bool somewhere : {false, true}) {
                // The last row's context is full: it gets no input.
                std::vector<int> before(rows, 0);
                before[rows - 1] = int(T) - 1;
                const DeviceArray<Real> input(dev, std::vector<Real>(rows * C, Real(-1.0f)));
                const DeviceArray<int> chosen(dev, 2 * rows), positions(dev, before);
                const DeviceArray<unsigned> done(dev, std::vector<unsigned>(rows, 1));
                const SampleStep<Real> step{settings.data(),
                                            z.data(),
                                            ld,
                                            V,
                                            chosen.data(),
                                            done.data(),
                                            positions.data(),
                                            input.data(),
                                            e.data(),
                                            nullptr,
                                            p.data(),
                                            C,
                                            T};
                if (somewhere)
                    launch<sample_somewhere_kernel<Real>>(7, 96, kSampleShared, dev.stream, step, unsigned(rows));
                else
                    sample_step(dev, step, rows);
                ids[somewhere] = chosen.values(), x[somewhere] = input.values();
                ids[somewhere].erase(ids[somewhere].begin(), ids[somewhere].begin() + rows);
                before.assign(rows, 1), before[rows - 1] = int(T);
                CHECK(positions.values() == before);
                CHECK(done.values() == std::vector<unsigned>(rows, 2));
            }
            for (size_t row = 0; row < rows; row++) {
                Sampling of_row = s;
                of_row.stream += row;
                expected.push_back(sample(&as_float[row * ld], V, of_row, 3));
                for (size_t c = 0; c < C; c++) {
                    const float value = float(wte[size_t(expected[row]) * C + c]) + float(wpe[C + c]);
                    CHECK(float(x[0][row * C + c]) == float(row == rows - 1 ? Real(-1.0f) : Real(value)));
                }
            }
            CHECK(ids[0] == expected);
            CHECK(ids[1] == expected);
            CHECK(std::memcmp(x[0].data(), x[1].data(), x[0].size() * sizeof(Real)) == 0);
        }
}

// The logits that a prompt of each sequence leaves, [sequences, V].
template <class Device, class Real>
std::vector<float> prefill(Decoder<Device, Real>& decoder, const std::vector<std::vector<int>>& prompts, size_t V) {
    std::vector<TokenSpan> spans;
    for (size_t s = 0; s < prompts.size(); s++) spans.push_back({s, prompts[s].data(), prompts[s].size()});
    std::vector<float> logits(prompts.size() * V);
    decoder.feed(spans, Logits::last, logits.data());
    return logits;
}

std::vector<std::vector<int>> some_prompts(size_t sequences, size_t V) {
    std::vector<std::vector<int>> prompts(sequences);
    for (size_t s = 0; s < sequences; s++)
        for (size_t i = 0; i < 1 + s % 3 * 7 + (s == 1 ? 110 : 0); i++) prompts[s].push_back(int((3 + 5 * i + s) % V));
    return prompts;
}

// Whether the bound changes the logits of a random model.
bool bound_acts(const Config& config) {
    Cpu cpu(1);
    const RandomModel<float> model(cpu, config);
    const std::vector<int> tokens = {3, 1, 4, 1, 5};
    std::vector<float> logits[2];
    for (const double bound : {config.bound, 1e6}) {
        Config c = config;
        c.bound = bound;
        Decoder<Cpu, float> decoder(cpu, c, model.tensors, model.scales, 0);
        std::vector<float>& z = logits[bound == config.bound];
        z.resize(c.V);
        decoder.feed(tokens.data(), tokens.size(), Logits::last, z.data());
    }
    return max_difference(logits[0], logits[1]) > 0.1;
}

// Tokens [n, sequences] of the graph, or of one kernel per step (persistent); and, of the tokens' sequences fed to a Decoder on
// the CPU, by how much the largest logit was larger than that of the token that was chosen greedily.
template <class Real>
void greedy_agrees(const Config& config, size_t sequences, double gate, bool persistent) {
    CAPTURE(sequences);
    CAPTURE(gate);
    CAPTURE(persistent);
    Cuda dev;
    Cpu cpu(1);
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, Real> weights(dev, model.config, host);
    const size_t V = config.V, n = persistent ? 3 : 14;  // (the stand-in runs a grid of 1536 threads for each token)
    Decoder<Cuda, Real> decoder(dev, config, weights.tensors, model.scales, gate, sequences);
    Decoder<Cpu, float> reference(cpu, config, host, model.scales, gate, sequences);
    if (const size_t hs = config.C / config.NH; has_group_kernels(hs))
        CHECK(uses_wgmma(dev, hs) == (dev.sm() == 90 && std::is_same_v<Real, bf16>));
    DecodeGraph<Real> graph(decoder, persistent);
    const auto prompts = some_prompts(sequences, V);
    const std::vector<float> logits = prefill(decoder, prompts, V);
    std::vector<float> expected = prefill(reference, prompts, V);
    std::vector<int> tokens;
    graph.generate(logits, V, n, {.temperature = 0}, 0, [&](size_t i, const int* chosen) {
        CHECK(i * sequences == tokens.size());
        tokens.insert(tokens.end(), chosen, chosen + sequences);
        return true;
    });
    REQUIRE(tokens.size() == n * sequences);
    CHECK(graph.kernels() == (persistent ? 1 : 5 * config.L + 2));
    const double tolerance = std::is_same_v<Real, float> ? 0x1p-12 : 0x1p-3;
    std::vector<TokenSpan> next;
    for (size_t i = 0; i < n; i++) {
        next.clear();
        for (size_t s = 0; s < sequences; s++) {
            const int* token = &tokens[i * sequences + s];
            const float* z = &expected[s * V];
            const double short_of = *std::max_element(z, z + V) - z[*token];
            double largest = 0;
            for (size_t v = 0; v < V; v++) largest = std::max(largest, std::abs(double(z[v])));
            CHECK(short_of <= tolerance * largest);
            next.push_back({s, token, 1});
        }
        reference.feed(next, Logits::last, expected.data());
    }
    for (size_t s = 0; s < sequences; s++) CHECK(decoder.length(s) == prompts[s].size() + n - 1);
    // Numbers, not choices alone: the last token's logits see the keys and values of all that was generated.
    std::vector<float> got(sequences * V);
    decoder.feed(next, Logits::last, got.data());
    double largest = 0, worst = 0;
    for (size_t i = 0; i < got.size(); i++) {
        largest = std::max(largest, std::abs(double(expected[i])));
        worst = std::max(worst, std::abs(double(got[i]) - double(expected[i])));
    }
    CHECK(worst <= tolerance * largest);
}

template <class Real>
void generation_agrees(bool persistent) {
    auto agrees = [&](const Config& c, size_t sequences, double gate = 0) {
        greedy_agrees<Real>(c, sequences, gate, persistent);
    };
    for (const Fold fold : {Fold::none, Fold::affine, Fold::internal}) agrees(small_config(fold), 2);
    for (const double gate : {1.0, 0.37})
        if (persistent)
            agrees(small_config(Fold::none), 2, gate);  // (the products of the others have tests of their own)
    for (const size_t sequences : {1, 3}) agrees(small_config(Fold::internal), sequences);
    if (!persistent) agrees(small_config(Fold::internal), 5);
    // Bounded, and folded with clamps: of a tied head, whose tokens lose their mean where they enter the stream, and of another.
    for (const NormKind norm : {NormKind::layernorm, NormKind::rmsnorm})
        for (Config c :
             {small_config(Fold::none), small_config(Fold::internal), small_config(Fold::all, GateMode::taper_all)}) {
            c.norm = norm, c.bound = 0.3, c.first_apart = norm == NormKind::layernorm;
            CAPTURE(int(norm));
            CAPTURE(int(c.fold));
            CHECK(bound_acts(c));
            agrees(c, 2);
        }
}

// Prompts of many sequences in one pass, each as it is alone on the CPU; again, the same passes, from the third on a graph, over
// the same tokens and over others.
template <class Real>
void prompts_agree(const Config& config, size_t sequences, size_t nodes_per_block) {
    Cuda dev;
    Cpu cpu(1);
    CAPTURE(int(config.fold));
    CAPTURE(sequences);
    const size_t gelus = std::is_same_v<Real, float>;  // in fp32, GELU is a launch of its own
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, Real> weights(dev, config, host);
    const double gate = config.fold == Fold::none ? 0.37 : 0,
                 tolerance = std::is_same_v<Real, float> ? 0x1p-12 : 0x1p-3;
    Decoder<Cuda, Real> decoder(dev, config, weights.tensors, model.scales, gate, sequences);
    Decoder<Cpu, float> reference(cpu, config, model.tensors, model.scales, gate);
    std::vector<std::vector<int>> prompts(sequences);
    for (int round = 0; round < 5; round++) {
        CAPTURE(round);
        for (size_t s = 0; s < sequences; s++) {
            prompts[s].resize(2 + s % 5);
            for (size_t i = 0; i < prompts[s].size(); i++)
                prompts[s][i] = int((3 + 5 * i + s + (round == 3 ? 11 : 0)) % config.V);
            decoder.rewind(0, s);
        }
        const std::vector<float> logits = prefill(decoder, prompts, config.V);
        std::vector<float> alone(config.V);
        for (size_t s = 0; s < sequences; s++) {
            reference.rewind(0);
            reference.feed(prompts[s].data(), prompts[s].size(), Logits::last, alone.data());
            for (size_t i = 0; i < config.V; i++)
                REQUIRE(std::abs(logits[s * config.V + i] - alone[i]) <= tolerance * (1 + std::abs(alone[i])));
        }
        CHECK((decoder.recorded_nodes() > 0) == (round > 1));
    }
    if (sequences <= AttentionCached<Real>::kMost)
        CHECK(decoder.recorded_nodes() <= (nodes_per_block + gelus) * config.L + 1);
    // Other rows, and single tokens, are not what was recorded.
    std::vector<float> logits(sequences * config.V);
    std::vector<TokenSpan> next;
    for (size_t s = 0; s < sequences; s++) next.push_back({s, prompts[s].data(), 1});
    decoder.feed(next, Logits::last, logits.data());
    for (size_t s = 0; s < sequences; s++) {
        std::vector<float> alone(config.V);
        reference.rewind(0);
        reference.feed(prompts[s].data(), prompts[s].size(), Logits::none, nullptr);
        reference.feed(prompts[s].data(), 1, Logits::last, alone.data());
        for (size_t i = 0; i < config.V; i++)
            REQUIRE(std::abs(logits[s * config.V + i] - alone[i]) <= tolerance * (1 + std::abs(alone[i])));
    }
}

template <class Real>
void all_prompts_agree() {
    // A layer is its product and, with a norm or an affine map left, a site; attention is a copy into the cache and one more.
    prompts_agree<Real>(small_config(Fold::internal), 4, 6);
    prompts_agree<Real>(small_config(Fold::none), 3, 8);
    Config apart = small_config(Fold::all, GateMode::taper_all);
    apart.bound = 0.3, apart.first_apart = true;
    prompts_agree<Real>(apart, 2, 8);
    prompts_agree<Real>(small_config(Fold::internal), 70, 6);  // more than one launch takes
}

// Logits of more rows than are computed at a time.
template <class Real>
void many_logits() {
    Cuda dev;
    Cpu cpu(1);
    Config config = small_config(Fold::internal);
    config.T = 600, config.L = 1;
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, Real> weights(dev, config, host);
    Decoder<Cuda, Real> decoder(dev, config, weights.tensors, {}, 0);
    Decoder<Cpu, float> reference(cpu, config, model.tensors, {}, 0);
    std::vector<int> tokens(config.T);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = int(i * i % config.V);
    std::vector<float> got(config.T * config.V), expected(got.size());
    decoder.feed(tokens.data(), tokens.size(), Logits::all, got.data());
    reference.feed(tokens.data(), tokens.size(), Logits::all, expected.data());
    const double tolerance = std::is_same_v<Real, float> ? 0x1p-12 : 0x1p-3;
    for (size_t i = 0; i < got.size(); i++)
        REQUIRE(std::abs(got[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i])));
}

}  // namespace

CUDA_TEST("cuda prompts: many sequences in one pass, again as a graph") { FOR_BOTH_TYPES(all_prompts_agree); }
CUDA_TEST("cuda prompts: all logits of more rows than are computed at a time") { FOR_BOTH_TYPES(many_logits); }

CUDA_TEST("cuda matvec: sites, epilogues, rows") { FOR_BOTH_TYPES(matvec_agrees); }
template <class Real>
static void rows_are_independent() {
    Cuda dev;
    // One chunk of k for a single row, two to ten for more; a block takes few columns, or as many as it can.
    const size_t K = 7000, most = 16, wide = size_t(dev.multiprocessors()) * kMatvecMostLanes * kVector<Real>;
    for (const auto& [transposed, N] : {std::pair<bool, size_t>{false, 40}, {false, wide}, {true, 40}}) {
        Site<Real> none{};
        none.phase = Phase::folded;
        const Input<Real> x(dev, most * K, 1), w(dev, K * N, 2);
        const DeviceArray<Real> together(dev, most * N), alone(dev, N);
        for (const unsigned rows : {2u, 3u, 8u, 16u}) {
            CAPTURE(rows);
            // clang-format off
            const Matvec<Real> a{.out = together.data(), .x = x.data(), .site = none, .weight = w.data(),
                                 .rows = rows, .K = unsigned(K), .N = unsigned(N)};
            // clang-format on
            matvec(dev, a, transposed);
            const std::vector<Real> all = together.values();
            for (const unsigned row : {0u, rows - 1}) {
                Matvec<Real> one = a;
                one.out = alone.data(), one.x = x.data() + row * K, one.rows = 1;
                matvec(dev, one, transposed);
                const std::vector<Real> got = alone.values();
                CHECK(std::memcmp(got.data(), &all[row * N], N * sizeof(Real)) == 0);
            }
        }
    }
}
CUDA_TEST("cuda matvec: a row has the same bits alone and with others") { FOR_BOTH_TYPES(rows_are_independent); }
CUDA_TEST("cuda sampling: the host's choices") { FOR_BOTH_TYPES(sampling_agrees); }
CUDA_TEST("cuda sampling: long rows that begin anywhere, chosen by any block") { FOR_BOTH_TYPES(long_rows_agree); }
CUDA_TEST("cuda decoding: greedy tokens are the CPU's") { FOR_BOTH_TYPES(generation_agrees, false); }
CUDA_TEST("cuda decoding by one kernel: greedy tokens are the CPU's") { FOR_BOTH_TYPES(generation_agrees, true); }
CUDA_TEST("cuda decoding: after prompts by warpgroups, greedy tokens are the CPU's") {
    const OnHopper hopper;
    Config config = small_config(Fold::internal);
    config.C = 128, config.NH = 2;
    greedy_agrees<bf16>(config, 2, 0, false);
}

CUDA_TEST("cuda decoding: the same graph for other settings; the same tokens again; no sequence beyond its context") {
    Cuda dev;
    Cpu cpu(1);
    Config config = small_config(Fold::internal);
    config.T = 140;
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, float> weights(dev, config, host);
    Decoder<Cuda, float> decoder(dev, config, weights.tensors, {}, 0, 2);
    DecodeGraph<float> graph(decoder);
    const std::vector<std::vector<int>> prompts = {{1, 2, 3}, {4}};
    auto generate = [&](const Sampling& s, size_t n, size_t V = 0) {
        for (size_t i = 0; i < 2; i++) decoder.rewind(0, i);
        const std::vector<float> logits = prefill(decoder, prompts, config.V);
        std::vector<int> tokens;
        graph.generate(logits, V ? V : config.V, n, s, 0,
                       [&](size_t, const int* t) { return tokens.insert(tokens.end(), t, t + 2), true; });
        return tokens;
    };
    const std::vector<int> greedy = generate({.temperature = 0}, 30),
                           warm = generate({.temperature = 1.5, .seed = 3}, 30);
    CHECK(greedy != warm);
    CHECK(generate({.temperature = 0}, 30) == greedy);
    CHECK(generate({.temperature = 1.5, .seed = 3}, 30) == warm);
    // The host's loop over the same logits.
    for (size_t i = 0; i < 2; i++) decoder.rewind(0, i);
    std::vector<float> logits = prefill(decoder, prompts, config.V);
    std::vector<int> expected;
    generate_on_host(decoder, logits, config.V, 30, {.temperature = 1.5, .seed = 3}, 0,
                     [&](size_t, const int* t) { return expected.insert(expected.end(), t, t + 2), true; });
    CHECK(warm == expected);
    // Fewer tokens: another graph.
    const std::vector<int> few = generate({.temperature = 1.5, .seed = 3}, 30, 3);
    CHECK(*std::max_element(few.begin(), few.end()) == 2);
    CHECK(generate({.temperature = 0}, config.T - 3 + 1).size() == 2 * (config.T - 2));  // to the very end
    CHECK_THROWS_WITH_AS(generate({.temperature = 0}, config.T - 3 + 2), doctest::Contains("context has 140"), Error);
}

// ---- one kernel per step

// Every weight of a product belongs to one unit, and every unit's input fits.
TEST_CASE("cuda decoding by one kernel: every weight has one block") {
    for (const unsigned blocks : {1, 4, 20, 108, 132, 148})
        for (const unsigned vector : {4, 8})
            for (const size_t rows : {1, 2, 4})
                for (const size_t C : {8, 24, 104, 768, 1280, 1536, 1600, 6144}) {
                    if (rows * C > kStepNumbers) continue;
                    for (const auto& [K, N] : {std::pair{C, 3 * C}, {C, C}, {C, 4 * C}, {4 * C, C}}) {
                        CAPTURE(blocks);
                        CAPTURE(K);
                        CAPTURE(N);
                        const StepShare s = step_share(K, N, rows, vector, blocks);
                        CHECK(s.K == K);
                        CHECK(s.N == N);
                        CHECK(kStepThreads % s.lanes == 0);
                        CHECK(32 % s.lanes == 0);
                        CHECK(s.lanes <= kStepMostLanes);
                        CHECK(s.span % 4 == 0);
                        CHECK(s.span * rows <= kStepNumbers);
                        CHECK(size_t(s.tiles) * s.lanes * vector >= N);
                        CHECK((size_t(s.tiles) - 1) * s.lanes * vector < N);
                        CHECK(size_t(s.splits) * s.span >= K);
                        CHECK((size_t(s.splits) - 1) * s.span < K);
                    }
                }
    // 124M on an H100: no block has more than an eighth above its part of the weights.
    for (const auto& [K, N] : {std::pair{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}}) {
        const StepShare s = step_share(size_t(K), size_t(N), 1, 8, 132);
        CHECK(double(blocks_for(s.tiles * s.splits, 132)) * s.span * s.lanes * 8 * 132 <= 1.125 * K * N);
    }
}

// By one kernel per token: the tokens of the graph of kernels and the same bits again; and how it went.
template <class Real>
static void persistent_agrees(const Config& config, const std::vector<size_t>& prompts, size_t n) {
    Cuda dev;
    Cpu cpu(1);
    CAPTURE(config.C);
    CAPTURE(config.NH);
    CAPTURE(prompts.size());
    const size_t rows = prompts.size(), V = config.V;
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, Real> weights(dev, config, host);
    Decoder<Cuda, Real> decoder(dev, config, weights.tensors, model.scales, 0, rows);
    Decoder<Cpu, float> reference(cpu, config, host, model.scales, 0, rows);
    std::vector<std::vector<int>> texts(rows);
    for (size_t s = 0; s < rows; s++)
        for (size_t i = 0; i < prompts[s]; i++) texts[s].push_back(int((3 + 5 * i * i + s) % V));
    DecodeGraph<Real> step(decoder, true);
    std::vector<int> tokens[2];
    std::vector<float> after[2];
    for (int again = 0; again < 2; again++) {
        for (size_t s = 0; s < rows; s++) decoder.rewind(0, s);
        const std::vector<float> logits = prefill(decoder, texts, V);
#ifdef CUDA_EMU
        const uint64_t launches = emu::launches(), barriers = emu::grid_barriers();
#endif
        step.generate(logits, V, n, {.temperature = 0.7, .seed = 3}, 0, [&](size_t, const int* chosen) {
            return tokens[again].insert(tokens[again].end(), chosen, chosen + rows), true;
        });
#ifdef CUDA_EMU
        CHECK(emu::launches() - launches == n);  // the last one chooses a token
        CHECK(emu::grid_barriers() - barriers == (n - 1) * (5 * config.L + 1));
#endif
        after[again] = prefill(decoder, std::vector<std::vector<int>>(rows, {1}), V);
    }
    CHECK(tokens[0] == tokens[1]);
    // (In bf16, logits differ by more than a random number may lie from a boundary.)
    if constexpr (std::is_same_v<Real, float>) {
        DecodeGraph<Real> graph(decoder);
        std::vector<int> expected;
        for (size_t s = 0; s < rows; s++) decoder.rewind(0, s);
        graph.generate(prefill(decoder, texts, V), V, n, {.temperature = 0.7, .seed = 3}, 0,
                       [&](size_t, const int* chosen) {
                           return expected.insert(expected.end(), chosen, chosen + rows), true;
                       });
        CHECK(tokens[0] == expected);
    }
    CHECK(std::memcmp(after[0].data(), after[1].data(), after[0].size() * sizeof(float)) == 0);
    // The same tokens on the CPU: what follows them sees all keys and values.
    prefill(reference, texts, V);
    for (size_t i = 0; i + 1 < n; i++) {
        std::vector<std::vector<int>> next;
        for (size_t s = 0; s < rows; s++) next.push_back({tokens[0][i * rows + s]});
        prefill(reference, next, V);
    }
    const std::vector<float> expected = prefill(reference, std::vector<std::vector<int>>(rows, {1}), V);
    const double tolerance = std::is_same_v<Real, float> ? 0x1p-12 : 0x1p-3;
    double largest = 0;
    for (const float z : expected) largest = std::max(largest, std::abs(double(z)));
    CHECK(max_difference(after[0], expected) <= tolerance * largest);
}

template <class Real>
static void persistent_steps_agree() {
    // (Two blocks: what attention and products of the first leave is in the second one's keys and values.)
    // Keys for several blocks of a head, of sequences of different lengths; heads of 24 numbers.
    Config c = small_config(Fold::internal);
    c.T = 600, c.NH = 1;
    persistent_agrees<Real>(c, {3, 400}, 3);
    persistent_agrees<Real>(c, {598}, 2);  // and a last token to the end of the context
    // Of a norm's output, so that scores, and the largest of them in each part, are not alike.
    Config normed = c;
    normed.mode = GateMode::norm, normed.fold = Fold::none;
    persistent_agrees<Real>(normed, {555}, 3);
    // More rows of the head than the grid has warps.
    c = small_config(Fold::internal);
    c.V = 203;
    persistent_agrees<Real>(c, {5, 2, 9}, 3);
    // More columns than a unit has, heads of 64 numbers.
    c = small_config(Fold::none);
    c.T = 16, c.C = 256, c.NH = 4;
    persistent_agrees<Real>(c, {1, 2, 3, 4}, 2);
    c.fold = Fold::internal, c.bound = 0.3, c.first_apart = true;
    persistent_agrees<Real>(c, {1, 2, 3}, 2);
#ifdef CUDA_EMU
    // A GPU whose shared memory holds more weights ahead.
    const int sm = std::exchange(emu::settings().sm, 90);
    persistent_agrees<Real>(c, {4}, 2);
    emu::settings().sm = sm;
#endif
}
CUDA_TEST("cuda decoding by one kernel: the same bits again, the logits of the CPU") {
    FOR_BOTH_TYPES(persistent_steps_agree);
}
// (What ThreadSanitizer has time for.)
CUDA_TEST("cuda decoding by one kernel: two tokens") {
    Config c = small_config(Fold::none);
    c.L = 1, c.C = 16, c.NH = 2;
    persistent_agrees<float>(c, {2}, 2);
}

CUDA_TEST("cuda decoding by one kernel: what it does not take") {
    Cuda dev;
    Cpu cpu(1);
    const Config config = small_config(Fold::internal);
    auto why_not = [&](size_t C, size_t NH, size_t sequences) {
        Config c = config;
        c.C = C, c.NH = NH;
        return PersistentStep<bf16>::why_not(dev, c, sequences);
    };
    CHECK(why_not(24, 3, 4) == "");
    CHECK(why_not(1536, 24, 4) == "");
    CHECK(why_not(1600, 25, 4) == "");
    CHECK(why_not(2048, 32, 4) == "expected one text at a time for a width of 2048, found 4; use --batch 1");
    CHECK(why_not(72, 1, 1) == "expected heads of at most 64 numbers, found 72; leave it out");
    CHECK(why_not(36, 3, 1) ==
          "expected heads of a multiple of 8 numbers, found 12; use --precision fp32 or leave it out");
    CHECK(why_not(21, 3, 1) == "expected heads of a multiple of 8 numbers, found 7; leave it out");
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, float> weights(dev, config, host);
    Decoder<Cuda, float> decoder(dev, config, weights.tensors, {}, 0, 5);
    CHECK_THROWS_WITH_AS((Generator<Cuda, float>(decoder, true)),
                         "--persistent: expected at most 4 texts at a time, found 5; use --batch 4", Error);
}

CUDA_TEST("cuda decoding: an error in the middle leaves no copy on its way to memory that is gone") {
    Cuda dev;
    Cpu cpu(1);
    const Config config = small_config(Fold::internal);
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, float> weights(dev, config, host);
    Decoder<Cuda, float> decoder(dev, config, weights.tensors, {}, 0, 1);
    const std::vector<float> logits = prefill(decoder, {{1, 2, 3}}, config.V);
    CHECK_THROWS_WITH_AS(DecodeGraph<float>(decoder).generate(logits, config.V, config.T - 3, {.temperature = 0}, 0,
                                                              [](size_t, const int*) -> bool { fail("enough"); }),
                         "enough", Error);
    dev.synchronize();
    CHECK(cudaStreamSynchronize(dev.copy_stream) == cudaSuccess);
}

CUDA_TEST("cuda decoding: each sequence has a stream of its own, ends at the end token, and again without the others") {
    Cuda dev;
    Cpu cpu(1);
    Config config = small_config(Fold::internal);
    config.T = 20, config.L = 1;
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, float> weights(dev, config, host);
    const size_t sequences = 3, n = 24;  // tokens: more than the context, which is read again
    Decoder<Cuda, float> decoder(dev, config, weights.tensors, {}, 0, sequences);
    Decoder<Cpu, float> reference(cpu, config, host, {}, 0, sequences);
    Generator graph(decoder);
    Generator expected(reference);
    auto texts = [&](auto& generator, size_t first, size_t count, std::optional<int> end) {
        std::vector<std::vector<int>> tokens(count, std::vector<int>{7});  // all the same
        const Sampling s{.temperature = 6, .seed = 2, .stream = 3 + first};
        generate_together(generator, tokens, config.V, n, s, end, "model");
        return tokens;
    };
    const auto all = texts(graph, 0, sequences, std::nullopt);
    CHECK(all == texts(expected, 0, sequences, std::nullopt));
    for (size_t s = 0; s < sequences; s++) {
        CHECK(all[s].size() == 1 + n);
        for (size_t other = 0; other < s; other++) CHECK(all[s] != all[other]);
    }
    const int end = all[1][3];  // soon, for one of them at least
    const auto ended = texts(graph, 0, sequences, end);
    for (size_t s = 0; s < sequences; s++)
        CHECK(ended[s] == std::vector(all[s].begin(), std::find(all[s].begin() + 1, all[s].end(), end)));
    CHECK(texts(graph, 1, 1, end)[0] == ended[1]);
    // Where all have ended, the graph stops, and what it had run ahead harms nothing that follows.
    std::vector<float> logits = prefill(decoder, some_prompts(1, config.V), config.V);
    size_t steps = 0;
    graph.generate(logits, config.V, 19, {}, 0, [&](size_t, const int*) { return ++steps < 2; });
    CHECK(steps == 2);
    CHECK(texts(graph, 0, sequences, end) == ended);
}

CUDA_TEST("cuda decoding: a head size that the kernels do not take goes through the host") {
    Cuda dev;
    Cpu cpu(1);
    Config config = small_config(Fold::internal);
    config.C = 21;  // heads of 7
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, float> weights(dev, config, host);
    Decoder<Cuda, float> decoder(dev, config, weights.tensors, {}, 0);
    Decoder<Cpu, float> reference(cpu, config, host, {}, 0);
    Generator<Cuda, float> generator(decoder);
    Generator<Cpu, float> expected_generator(reference);
    std::vector<float> logits = prefill(decoder, {{1, 2}}, config.V),
                       expected_logits = prefill(reference, {{1, 2}}, config.V);
    std::vector<int> tokens, expected;
    generator.generate(logits, config.V, 9, {.temperature = 0}, 0,
                       [&](size_t, const int* t) { return tokens.push_back(*t), true; });
    expected_generator.generate(expected_logits, config.V, 9, {.temperature = 0}, 0,
                                [&](size_t, const int* t) { return expected.push_back(*t), true; });
    CHECK(generator.kernels() == 0);
    CHECK(tokens == expected);
}

CUDA_TEST("cuda decoding: more sequences than a step has rows for go through the host") {
    Cuda dev;
    Cpu cpu(1);
    Config config = small_config(Fold::internal);
    config.T = 4, config.L = 1;
    const RandomModel<float> model(cpu, config);
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, float> weights(dev, config, host);
    const size_t sequences = 600;
    std::vector<std::vector<int>> prompts;
    for (size_t s = 0; s < sequences; s++) prompts.push_back({int(s % config.V)});
    auto tokens_of = [&](auto& device, const GptTensors<float>& tensors) {
        Decoder decoder(device, config, tensors, {}, 0, sequences);
        Generator generator(decoder);
        std::vector<float> logits = prefill(decoder, prompts, config.V);
        std::vector<int> tokens;
        generator.generate(logits, config.V, 3, {.temperature = 3}, 0,
                           [&](size_t, const int* t) { return tokens.insert(tokens.end(), t, t + sequences), true; });
        return tokens;
    };
    CHECK(tokens_of(dev, weights.tensors) == tokens_of(cpu, host));
}

CUDA_TEST("cuda decoding: the models of the fuzz target instruction_sets give the logits of double, within its bound") {
    Cuda dev;
    Cpu cpu(1);
    std::vector<std::string> cases;
    for (uint64_t i = 0; i < 24; i++) {  // bytes as the fuzzer makes them: shapes, norms, gates, folds
        cases.emplace_back();
        for (uint64_t byte = 0; byte < 30; byte++) cases.back() += char(random_bits(9, i, byte));
    }
    for (const std::string& bytes : cases) {
        const LogitsCase c(bytes);
        const RandomModel<float> model(cpu, c.config);
        GptTensors<float> host = model.tensors;
        const DeviceWeights<Cuda, float> weights(dev, c.config, host);
        const ExactLogits exact = exact_logits(cpu, c);
        const std::vector<double> found = c.logits<Cuda, float>(dev, weights.tensors, model.scales);
        CAPTURE(c.config.C);
        CAPTURE(c.config.NH);
        CAPTURE(int(c.config.fold));
        CHECK(max_difference(found.data(), exact.logits.data(), found.size()) <= exact.allowed);
    }
}

}  // namespace tapernorm
#endif  // TN_CUDA
