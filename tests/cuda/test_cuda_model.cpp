// The trainer on CUDA (train_gpt.cu without its main) against the trainer on the CPU: losses over 30 updates through all
// gate phases, in fp32 and bf16; exact resuming, equal runs, and inference from the trained and folded model.
#ifdef TN_CUDA
#define TAPERNORM_NO_MAIN
#include "data/stories.h"
#include "fold.cpp"
#include "train_gpt.cu"

#include <doctest/doctest.h>

#include <set>

#include "tests/cuda/cuda_test.h"
#include "tests/random_model.h"
#include "tests/temporary_folder.h"
#include "tests/thread_ranks.h"

namespace tapernorm::train {

namespace {

// Updates with g = 1 (a fifth of them), 0 < g < 1 and g = 0 (half of them), of two micro-batches each.
struct CudaRun {
    Settings settings;
    Config config;
    TokenSource corpus = tokens_from_text(story_corpus(20000, 3), "test stories");

    CudaRun(const std::string& folder, NormKind norm, GateMode mode, size_t C, size_t steps, double bound = 0) {
        settings.out = folder + "/model.bin";
        settings.steps = steps, settings.batch = 2, settings.T = 10, settings.total_batch = 40;
        settings.gate_warmup = updates(steps / 5), settings.gate_end = updates(steps / 2), settings.scale_loss = 0.1;
        config.first_apart = mode == GateMode::taper && bound > 0;
        settings.calibration = config.first_apart ? "channels+first" : mode == GateMode::taper ? "channels" : "scalar";
        config.V = 256, config.T = 12, config.L = 2, config.NH = 2, config.C = C;
        config.norm = norm, config.mode = mode, config.eps = default_eps(norm);
        config.bound = bound;
    }
};

// Everything that a run reports, and the parameters it ends with.
struct Trace {
    std::vector<double> loss, grad_norm, stream_scale;
    double validation = 0;
    std::vector<float> parameters;
    std::vector<TaperScale> scales;
};

template <class Device, class Real>
std::vector<float> parameters(Trainer<Device, Real>& t) {
    std::vector<float> all;
    for (size_t i = 0; i < tensor_list(t.model.config, t.model.params).size(); i++) {
        const std::vector<float> values = t.model.exact(i);
        all.insert(all.end(), values.begin(), values.end());
    }
    return all;
}

template <class Device, class Real>
Trace trace(Trainer<Device, Real>& t, const CudaRun& run) {
    Trace result;
    while (t.step < run.settings.steps) {
        const StepReport r = t.update();
        result.loss.push_back(r.loss + r.scale_loss);
        result.grad_norm.push_back(r.grad_norm);
        result.stream_scale.push_back(r.stream_scale);
        if (t.step == 4) evaluate(t, run.corpus, 2);  // must not disturb the batches under way
    }
    result.validation = evaluate(t, run.corpus, 3).value();
    result.parameters = parameters(t), result.scales = t.model.scales;
    return result;
}

template <class Device, class Real>
Trace whole_run(const CudaRun& run) {
    Device dev;
    Trainer<Device, Real> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    return trace(t, run);
}

void check_series(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance) {
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); i++) {
        INFO(what, " of update ", i + 1, ": ", got[i], " against ", expected[i]);
        REQUIRE(std::abs(got[i] - expected[i]) <= tolerance * std::abs(expected[i]));
    }
}

// fp32: both sides round at 2^-24, and 30 updates of AdamW (whose first steps divide gradients by their own size) let
// differences grow by some powers of ten. bf16: the loss is a mean over 40 tokens of sums of roundings at 2^-8.
template <class Real>
constexpr double kLossTolerance = std::is_same_v<Real, float> ? 1e-4 : 0x1p-6;

template <class Real>
void compare_with_cpu() {
    const TemporaryFolder folder;
    struct Shape {
        NormKind norm;
        GateMode mode;
        size_t C;
        double bound = 0;
        const char* optimizer = "adamw";
        size_t logits_rows = 0;
    };
    // Rows of 24 and 32 channels go through cuBLASLt, those of 14 through the plain kernels in bf16.
    for (const Shape& s :
         {Shape{NormKind::layernorm, GateMode::taper, 32}, Shape{NormKind::rmsnorm, GateMode::taper_all, 32},
          Shape{NormKind::layernorm, GateMode::norm, 24}, Shape{NormKind::layernorm, GateMode::taper_all, 14},
          Shape{NormKind::layernorm, GateMode::taper, 32, 0.8}, Shape{NormKind::rmsnorm, GateMode::taper_all, 14, 0.8},
          Shape{NormKind::layernorm, GateMode::taper_all, 24, 0.8, "muon"},
          Shape{NormKind::layernorm, GateMode::norm, 32, 0, "adamw", 7}}) {
        CAPTURE(s.C);
        CAPTURE(s.bound);
        CAPTURE(gate_mode_name(s.mode));
        CudaRun run(folder.path, s.norm, s.mode, s.C, 30, s.bound);
        run.settings.optimizer = s.optimizer, run.settings.logits_rows = s.logits_rows;
        const Trace cpu = whole_run<Cpu, float>(run), gpu = whole_run<Cuda, Real>(run);
        const double tolerance = kLossTolerance<Real>;
        check_series("loss", gpu.loss, cpu.loss, tolerance);
        check_series("gradient norm", gpu.grad_norm, cpu.grad_norm, 10 * tolerance);
        check_series("s(h)", gpu.stream_scale, cpu.stream_scale, tolerance);
        check_series("validation loss", {gpu.validation}, {cpu.validation}, tolerance);
        REQUIRE(gpu.scales.size() == cpu.scales.size());
        for (size_t i = 0; i < gpu.scales.size(); i++) {
            CHECK(std::abs(gpu.scales[i].c - cpu.scales[i].c) <= tolerance * cpu.scales[i].c);
            CHECK(std::abs(gpu.scales[i].first - cpu.scales[i].first) <= tolerance * cpu.scales[i].first);
        }
    }
}

template <class Real>
void resume_exactly() {
    const TemporaryFolder folder;
    const CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 24, 10);
    const Trace whole = whole_run<Cuda, Real>(run);
    CHECK(whole_run<Cuda, Real>(run).parameters == whole.parameters);  // two runs, the same bits
    for (size_t stop : {1, 2, 3, 7}) {
        CAPTURE(stop);
        Cuda dev;
        {
            Trainer<Cuda, Real> first(dev, run.settings, run.config, run.corpus);
            initialize(first.model, 1);
            while (first.step < stop) first.update();
            Checkpoints states(state_path(run.settings.out));
            save_state(first, {}, states);
        }
        Trainer<Cuda, Real> second(dev, run.settings, run.config, run.corpus);
        load_state(second, SafetensorsFile(state_path(run.settings.out)));
        const Trace rest = trace(second, run);
        CHECK(rest.parameters == whole.parameters);
        CHECK(rest.loss.back() == whole.loss.back());
    }
}

#ifdef CUDA_EMU
// Algorithms are timed in the first update; the same run with other times has other bits, and a run that resumes keeps its own.
void resume_tuned() {
    const TemporaryFolder folder;
    CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 24, 10);
    run.settings.tune = true;
    emu::settings().fastest = 0;
    const Trace other = whole_run<Cuda, bf16>(run);
    emu::settings().fastest = 4;
    const Trace whole = whole_run<Cuda, bf16>(run);
    CHECK(whole.parameters != other.parameters);
    check_series("loss", whole.loss, other.loss, kLossTolerance<bf16>);
    Cuda dev, later;
    Trainer<Cuda, bf16> first(dev, run.settings, run.config, run.corpus);
    initialize(first.model, 1);
    while (first.step < 3) first.update();
    Checkpoints states(state_path(run.settings.out));
    save_state(first, {}, states);
    emu::settings().fastest = 0;
    Trainer<Cuda, bf16> second(later, run.settings, run.config, run.corpus);
    load_state(second, SafetensorsFile(state_path(run.settings.out)));
    CHECK(trace(second, run).parameters == whole.parameters);
    emu::settings().fastest = -1;
}
#endif

// Divergences and losses of 3 updates that learn from a teacher.
template <class Device, class Real>
std::vector<double> taught(const CudaRun& run) {
    Device dev;
    Trainer<Device, Real> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    hire_teacher(t, [](const TensorSpec& spec, float* numbers) {
        for (size_t i = 0; i < spec.count(); i++)
            numbers[i] = float(spec.init.constant + 0.1 * random_normal(9, spec.count(), i));
    });
    std::vector<double> numbers;
    while (t.step < 3) {
        const StepReport r = t.update();
        numbers.insert(numbers.end(), {r.kl.value(), r.loss, r.grad_norm});
    }
    return numbers;
}

template <class Real>
void teacher_agrees() {
    const TemporaryFolder folder;
    CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 24, 6);
    run.settings.distill = 0.7, run.settings.logits_rows = 7;
    check_series("number", taught<Cuda, Real>(run), taught<Cpu, float>(run), 10 * kLossTolerance<Real>);
}

// Recomputing costs bf16 one more rounding of GELU's input, fp32 nothing of note.
template <class Real>
void recompute_agrees() {
    const TemporaryFolder folder;
    CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 24, 10);
    const Trace plain = whole_run<Cuda, Real>(run);
    for (size_t recompute : {1, 2}) {
        run.settings.recompute = recompute;
        const Trace saved = whole_run<Cuda, Real>(run);
        check_series("loss", saved.loss, plain.loss, kLossTolerance<Real>);
    }
}

// Logits of all positions, by a decoder fed in two parts.
template <class Device, class Real>
std::vector<float> logits_of(HostModel& model, const std::vector<int>& tokens) {
    Device dev;
    const DeviceWeights<Device, Real> weights(dev, model.info.config, model.tensors);
    Decoder<Device, Real> decoder(dev, model.info.config, weights.tensors, model.info.scales, model.info.gate);
    const size_t V = model.info.config.V, first = tokens.size() / 2;
    std::vector<float> logits(tokens.size() * V), last(V);
    decoder.feed(tokens.data(), first, Logits::all, logits.data());
    decoder.feed(tokens.data() + first, tokens.size() - first, Logits::all, logits.data() + first * V);
    decoder.rewind(tokens.size() - 1);
    decoder.feed(&tokens.back(), 1, Logits::last, last.data());
    // One token again gives the same numbers up to the order of sums.
    for (size_t i = 0; i < V; i++)
        REQUIRE(std::abs(last[i] - logits[(tokens.size() - 1) * V + i]) <= 0.1 * (1 + std::abs(last[i])));
    return logits;
}

// With heads of 64 channels, on a GPU that multiplies by warpgroups.
void warpgroups_agree() {
    const OnHopper hopper;
    const TemporaryFolder folder;
    const CudaRun run(folder.path, NormKind::layernorm, GateMode::taper_all, 128, 20);
    const Trace cpu = whole_run<Cpu, float>(run);
    Trace gpu;
    {
        Cuda dev;
        Trainer<Cuda, bf16> t(dev, run.settings, run.config, run.corpus);
        REQUIRE(uses_wgmma(dev, 64) == (dev.sm() == 90));
        initialize(t.model, 1);
        gpu = trace(t, run);
        Checkpoints states(state_path(run.settings.out));
        save_state(t, {}, states);
        const SafetensorsFile state(state_path(run.settings.out));
        CHECK(state.metadata().at("attention") == (dev.sm() == 90 ? "wgmma" : "mma"));
    }
    check_series("loss", gpu.loss, cpu.loss, kLossTolerance<bf16>);
    check_series("gradient norm", gpu.grad_norm, cpu.grad_norm, 10 * kLossTolerance<bf16>);
    CHECK(whole_run<Cuda, bf16>(run).parameters == gpu.parameters);  // two runs, the same bits
}

#ifdef CUDA_EMU
void ranks_agree_on_attention() {
    const OnHopper hopper;
    using enum WgmmaFinding::Kind;
    const WgmmaFinding can{works, ""}, cannot{unfit, "it is too old"}, wrong{broken, "lse differs"};
    struct Case {
        WgmmaFinding on[3];
        WgmmaFinding::Kind kind;
        int speaker;
        std::string why;  // the speaker's; "": every rank's own
    };
    for (const Case& c : {Case{{can, can, can}, works, -1, ""}, Case{{cannot, cannot, cannot}, unfit, -1, ""},
                          Case{{can, cannot, cannot}, broken, 1, "rank 1 of 3: it is too old"},
                          Case{{cannot, can, can}, broken, 0, "rank 0 of 3: it is too old"},
                          Case{{cannot, can, wrong}, broken, 2, "rank 2 of 3: lse differs"},
                          Case{{wrong, wrong, wrong}, broken, 0, "rank 0 of 3: lse differs"}}) {
        WgmmaFinding results[3];
        bool speaks[3] = {};
        const auto errors = on_ranks(3, [&](Ranks& ranks) {
            const size_t r = size_t(ranks.rank);
            results[r] = agree_on_wgmma(c.on[r], ranks, speaks[r]);
        });
        CHECK(all_well(errors));
        for (int r = 0; r < 3; r++) {
            CHECK(results[r].kind == c.kind);
            if (c.speaker < 0) {
                CHECK(results[r].why_not == c.on[r].why_not);
                continue;
            }
            CHECK(speaks[r] == (r == c.speaker));
            CHECK(results[r].why_not == (speaks[r] ? c.why : c.why.substr(0, 11) + " cannot use them"));
            Cuda dev;
            CHECK(settle_attention(dev, 64, results[r]).find(results[r].why_not) != std::string::npos);
            CHECK(!uses_wgmma(dev, 64));
        }
    }
    bool uses[2] = {};
    const auto errors = on_ranks(2, [&](Ranks& ranks) {
        Cuda dev;
        choose_attention<bf16>(dev, 64, ranks);
        choose_attention<bf16>(dev, 64, single_rank());  // of a teacher, asks nobody
        uses[ranks.rank] = uses_wgmma(dev, 64);
    });
    CHECK(all_well(errors));
    CHECK(uses[0]);
    CHECK(uses[1]);
}
#endif

// |got - expected| <= tolerance times the largest logit.
void check_logits(const std::vector<float>& got, const std::vector<float>& expected, double tolerance) {
    REQUIRE(got.size() == expected.size());
    double largest = 0;
    for (float z : expected) largest = std::max(largest, std::abs(double(z)));
    for (size_t i = 0; i < got.size(); i++)
        REQUIRE(std::abs(double(got[i]) - double(expected[i])) <= tolerance * largest);
}

}  // namespace

CUDA_TEST("cuda trainer: 30 updates through all gate phases agree with the CPU") { FOR_BOTH_TYPES(compare_with_cpu); }
CUDA_TEST("cuda trainer: runs are equal and resuming is exact, to the bit") { FOR_BOTH_TYPES(resume_exactly); }
#ifdef CUDA_EMU
CUDA_TEST("cuda trainer: a run with --tune resumes with its own algorithms") { resume_tuned(); }
#endif
CUDA_TEST("cuda trainer: with a teacher") { FOR_BOTH_TYPES(teacher_agrees); }
CUDA_TEST("cuda trainer: attention by warpgroups agrees with the CPU") { warpgroups_agree(); }
#ifdef CUDA_EMU
CUDA_TEST("cuda trainer: attention by warpgroups, if all ranks can") { ranks_agree_on_attention(); }
#endif
CUDA_TEST("cuda trainer: recomputation") { FOR_BOTH_TYPES(recompute_agrees); }

CUDA_TEST("cuda trainer: a state of one number type resumes in the other, its weights whole") {
    const TemporaryFolder folder;
    const CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 24, 10);
    Cuda dev;
    std::vector<float> expected;
    {
        Trainer<Cuda, bf16> first(dev, run.settings, run.config, run.corpus);
        initialize(first.model, 1);
        while (first.step < 3) first.update();
        expected = parameters(first);
        Checkpoints states(state_path(run.settings.out));
        save_state(first, {}, states);
    }
    Cpu cpu;
    Trainer<Cpu, float> second(cpu, run.settings, run.config, run.corpus);
    load_state(second, SafetensorsFile(state_path(run.settings.out)));
    CHECK(parameters(second) == expected);
}

CUDA_TEST("cuda: the model file of a GPU run, normalized, tapering, tapered and folded, infers alike on both devices") {
    const TemporaryFolder folder;
    std::vector<int> tokens(11);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = int(97 + i * 7 % 26);
    for (const auto& [steps, bound] : {std::pair<size_t, double>{2, 0}, {4, 0}, {10, 0}, {4, 0.8}, {10, 0.8}}) {
        CAPTURE(steps);
        CAPTURE(bound);
        const CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 32, 10, bound);
        {
            Cuda dev;
            Trainer<Cuda, bf16> t(dev, run.settings, run.config, run.corpus);
            initialize(t.model, 1);
            while (t.step < steps) t.update();
            Run files{run.corpus, run.corpus, {{"tokenizer", "bytes"}}, std::nullopt, ""};
            files.checkpoints = Checkpoints(state_path(run.settings.out));
            save_checkpoint(t, files);
        }
        Cpu cpu;
        const auto model = load_model(cpu, run.settings.out);
        const std::vector<float> expected = logits_of<Cpu, float>(*model, tokens);
        // 2 blocks of about 20 roundings each, at 2^-24 and 2^-8.
        check_logits(logits_of<Cuda, float>(*model, tokens), expected, 64 * 0x1p-24 * 32);
        check_logits(logits_of<Cuda, bf16>(*model, tokens), expected, 16 * 0x1p-8);
        if (steps < 10) continue;
        // Tapered: it folds, and the folded model is the same function on both devices.
        const std::string folded_path = folder.path + strprintf("/folded-%g.bin", bound);
        const char* arguments[] = {"fold", run.settings.out.c_str(), folded_path.c_str()};
        REQUIRE(fold::run_program(3, const_cast<char**>(arguments)) == 0);
        const auto folded = load_model(cpu, folded_path);
        CHECK(folded->info.config.fold == Fold::internal);
        CHECK(folded->info.config.clamps() == (bound > 0));
        check_logits(logits_of<Cpu, float>(*folded, tokens), expected, 64 * 0x1p-24 * 32);
        check_logits(logits_of<Cuda, float>(*folded, tokens), expected, 64 * 0x1p-24 * 32);
        check_logits(logits_of<Cuda, bf16>(*folded, tokens), expected, 16 * 0x1p-8);
    }
}

// Sequences of different lengths together, then one token each, against each alone. The other orders of sums of products
// with more rows cost two blocks of about 20 roundings each.
template <class Real>
static void batch_agrees() {
    Cuda dev;
    Cpu cpu;
    const RandomModel<float> model(cpu, small_config(Fold::internal));
    GptTensors<float> host = model.tensors;
    const DeviceWeights<Cuda, Real> weights(dev, model.config, host);
    const size_t V = model.config.V;
    const std::vector<std::vector<int>> tokens = {{3, 1, 4, 1, 5, 9}, {2}, {35, 36, 0}};
    Decoder<Cuda, Real> together(dev, model.config, weights.tensors, {}, 0, tokens.size());
    std::vector<TokenSpan> prompts, next;
    for (size_t s = 0; s < tokens.size(); s++) prompts.push_back({s, tokens[s].data(), tokens[s].size()});
    for (size_t s = 0; s < tokens.size(); s++) next.push_back({s, &tokens[s][0], 1});
    std::vector<float> got(2 * tokens.size() * V), expected;
    together.feed(prompts, Logits::last, got.data());
    together.feed(next, Logits::last, &got[tokens.size() * V]);
    for (const auto& extra : {0, 1})
        for (std::vector<int> sequence : tokens) {
            if (extra) sequence.push_back(sequence[0]);
            Decoder<Cuda, Real> alone(dev, model.config, weights.tensors, {}, 0);
            expected.resize(expected.size() + V);
            alone.feed(sequence.data(), sequence.size(), Logits::last, &expected[expected.size() - V]);
        }
    check_logits(got, expected, std::is_same_v<Real, float> ? 64 * 0x1p-24 * 32 : 16 * 0x1p-8);
}

CUDA_TEST("cuda: sequences of different lengths, together and alone") { FOR_BOTH_TYPES(batch_agrees); }

CUDA_TEST("cuda trainer: a loss that is not finite stops the run before anything changes") {
    const TemporaryFolder folder;
    const CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 24, 10);
    Cuda dev;
    Trainer<Cuda, bf16> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    t.update();
    const bf16 infinity = bf16(std::numeric_limits<float>::infinity());
    device_copy_in(dev, t.model.params.h[1].mlp_fc_bias, &infinity, sizeof infinity);
    const auto before = parameters(t);
    CHECK_THROWS_WITH_AS(t.update(), doctest::Contains("step 2"), Error);
    CHECK(parameters(t) == before);
}

#ifdef CUDA_EMU
CUDA_TEST("cuda trainer: out of memory says for what, how much, and which flags help; nothing stays allocated") {
    const TemporaryFolder folder;
    CudaRun run(folder.path, NormKind::layernorm, GateMode::taper, 32, 10);
    run.settings.batch = 64, run.settings.total_batch = 640;
    size_t whole = 0;
    {
        Cuda dev;
        Trainer<Cuda, bf16> t(dev, run.settings, run.config, run.corpus);
        for (const auto& [purpose, bytes] : memory_table(t)) whole += bytes;
    }
    const size_t memory = emu::settings().memory, living = emu::live_allocations();
    std::set<std::string> named;
    for (size_t part = 0; part <= 20; part++) {  // whatever the GPU's memory, training works or ends with that error
        emu::settings().memory = whole * part / 20;
        try {
            Cuda dev(0, kMemoryHint);
            Trainer<Cuda, bf16> t(dev, run.settings, run.config, run.corpus);
            CHECK(part == 20);
        } catch (const Error& e) {
            const std::string message = e.what(), begin = "out of memory on GPU 0: ";
            CHECK_MESSAGE(message.starts_with(begin), message);
            CHECK_MESSAGE(
                message.find(
                    "use a smaller -b (batch), -t (sequence length) or --logits-rows, or recompute more (-r 1, -r 2)") !=
                    std::string::npos,
                message);
            const size_t what = message.find(" for ") + 5;
            named.insert(message.substr(what, message.find(", ") - what));
        }
        emu::settings().memory = memory;
        CHECK(emu::live_allocations() == living);
    }
    CHECK(named.contains("workspace of matrix products"));
    CHECK(named.contains("activations"));
}
#endif

CUDA_TEST("cuda trainer: samples") {
    const TemporaryFolder folder;
    const CudaRun run(folder.path, NormKind::rmsnorm, GateMode::taper, 32, 10);
    Cuda dev;
    Trainer<Cuda, bf16> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    t.update();
    const std::string text = sample_text(t, Tokenizer::from_path("bytes"), "Once", 6);
    CHECK(text.starts_with("Once"));
    CHECK(text.size() > 4);
}

}  // namespace tapernorm::train
#endif  // TN_CUDA
