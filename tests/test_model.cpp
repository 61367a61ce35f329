// The trainer itself (train_gpt.cu without its main): whole-model gradients, golden runs of the PyTorch reference, exact
// resuming, and the properties that the gate promises.
#define TAPERNORM_NO_MAIN
#include "data/stories.h"
#include "train_gpt.cu"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/gradient_check.h"
#include "tests/temporary_folder.h"

namespace tapernorm::train {

namespace {

Config tiny(NormKind norm, GateMode mode) {
    Config c;
    c.V = 11, c.T = 6, c.L = 2, c.NH = 2, c.C = 8;
    c.norm = norm, c.eps = default_eps(norm), c.mode = mode;
    return c;
}

// Every parameter away from its special initial value, the stream at a scale of about 1.
template <class Real>
void randomize(Gpt<Cpu, Real>& model) {
    uint64_t stream = 100;
    for (const Tensor<Real>& t : tensor_list(model.config, model.params)) {
        const auto x = normals(t.spec.count(), stream++, t.spec.shape.size() == 1 ? 0.5 : 0.3);
        for (size_t i = 0; i < x.size(); i++) t.data[i] = Real(x[i] + t.spec.init.constant);
    }
    for (size_t i = 0; i < model.scales.size(); i++)
        model.scales[i] = {0.6f + 0.2f * float(i), model.config.first_apart ? 0.5f + 0.4f * float(i) : 1};
}

// Random tokens, which the model uses while this lives.
struct RandomBatch {
    std::vector<int> tokens, targets;

    RandomBatch(Gpt<Cpu, double>& model, uint64_t seed) : tokens(model.B * model.T), targets(model.B * model.T) {
        for (size_t i = 0; i < tokens.size(); i++) {
            tokens[i] = int(random_bits(seed, 1, i) % model.config.V);
            targets[i] = int(random_bits(seed, 2, i) % model.config.V);
        }
        model.use_batch({tokens.data(), targets.data()});
    }
};

// What a first micro-batch finds: the gradients of another update. (Positions that no sequence reaches never have one.)
void spoil_gradients(Gpt<Cpu, double>& model) {
    for (const Tensor<double>& t : tensor_list(model.config, model.grads))
        std::fill_n(t.data, t.data == model.grads.wpe ? model.T * model.config.C : t.spec.count(), std::nan(""));
}

// Cross-entropy plus scale loss at this gate.
double total_loss(Gpt<Cpu, double>& model, double g, const ScaleLoss& anchor) {
    const double tokens = double(model.B * model.T);
    model.begin_sums();
    model.forward({g, false}, anchor.target);
    model.classify(false, 0, false);
    return (*model.act.loss + anchor.lambda * model.act.stream->squares) / tokens;
}

const NormKind kKinds[] = {NormKind::layernorm, NormKind::rmsnorm};
const GateMode kModes[] = {GateMode::norm, GateMode::taper, GateMode::taper_all};

}  // namespace

TEST_CASE("model: gradients of every tensor in every phase, mode and kind") {
    Cpu dev(1);
    for (NormKind kind : kKinds)
        for (GateMode mode : kModes)
            for (double g : {1.0, 0.37, 0.0})
                for (double lambda : {0.0, 0.3}) {
                    if (mode == GateMode::norm && g != 1) continue;
                    INFO(norm_name(kind), " ", gate_mode_name(mode), ", g ", g, ", lambda ", lambda);
                    const Config config = tiny(kind, mode);
                    Gpt<Cpu, double> model(dev, config, 2, 5, 0, true);  // T below the longest context
                    model.chunk = 4;                                     // several chunks, the last one short
                    randomize(model);
                    const RandomBatch batch(model, 3);
                    const ScaleLoss anchor{lambda, 0.8};
                    model.begin_sums(), spoil_gradients(model);
                    model.forward({g, false}, anchor.target);
                    model.classify(true, 0.1, false);
                    model.backward(g, anchor, 10, false);
                    auto loss = [&] { return total_loss(model, g, anchor); };
                    const auto grads = tensor_list(config, model.grads);
                    auto params = tensor_list(config, model.params);
                    for (size_t i = 0; i < params.size(); i++)
                        check_gradient(params[i].spec.name, params[i].data, grads[i].data, params[i].spec.count(), loss,
                                       6);
                }
}

namespace {

// For each number that enters a tapering site, on which side of its bound it is: -1, 0 (inside) or 1.
std::vector<int> sides_of_bounds(const Gpt<Cpu, double>& model, double g) {
    const size_t C = model.config.C;
    std::vector<int> sides;
    for (size_t i = 0; i < model.config.tapering_sites(); i++) {
        const size_t l = i / 2, which = i % 2;
        const double* x = which ? model.act.h[l].mid : model.stream_into(l);
        const auto site = model.site(g, l, which);
        for (size_t row = 0; row < model.B * model.T; row++, x += C) {
            double mean = 0;
            for (size_t j = 0; j < C && model.config.norm == NormKind::layernorm; j++) mean += x[j] / double(C);
            const double rho = row % model.T == 0 ? site.first : 1;
            for (size_t j = 0; j < C; j++) {
                const double u = rho * (x[j] - mean);
                sides.push_back(u < -site.bound ? -1 : u > site.bound);
            }
        }
    }
    return sides;
}

}  // namespace

TEST_CASE("model: gradients of every tensor with a bound that acts") {
    Cpu dev(1);
    for (NormKind kind : kKinds)
        for (GateMode mode : {GateMode::taper, GateMode::taper_all})
            for (double g : {0.37, 0.0}) {
                INFO(norm_name(kind), " ", gate_mode_name(mode), ", g ", g);
                Config config = tiny(kind, mode);
                config.bound = 1, config.final_bound = 0.6, config.first_apart = true;
                Gpt<Cpu, double> model(dev, config, 2, 5, 0, true);
                model.chunk = 4;
                randomize(model);
                const RandomBatch batch(model, 3);
                const ScaleLoss anchor{0.3, 0.8};
                model.begin_sums();
                model.forward({g, false}, anchor.target);
                model.classify(true, 0.1, false);
                model.backward(g, anchor, 10, false);
                const std::vector<int> sides = sides_of_bounds(model, g);
                for (int side : {-1, 0, 1})
                    CHECK(size_t(std::count(sides.begin(), sides.end(), side)) > sides.size() / 10);
                // At a number that the step takes across its bound, the differences are not a derivative.
                bool crossed = false;
                auto loss = [&] {
                    const double value = total_loss(model, g, anchor);
                    crossed = crossed || sides_of_bounds(model, g) != sides;
                    return value;
                };
                const auto grads = tensor_list(config, model.grads);
                auto params = tensor_list(config, model.params);
                for (size_t i = 0; i < params.size(); i++)
                    CHECK(check_gradient(params[i].spec.name, params[i].data, grads[i].data, params[i].spec.count(),
                                         loss, 8, 1e-4, &crossed) >= 4);
            }
}

TEST_CASE("model: gradients accumulate over micro-batches, and recomputation changes no bit") {
    Cpu dev(2);
    Config config = tiny(NormKind::layernorm, GateMode::taper);
    SUBCASE("without a bound") {}
    SUBCASE("with one") { config.bound = 1; }
    auto gradients = [&](int recompute) {
        Gpt<Cpu, double> model(dev, config, 2, 6, recompute, true);
        randomize(model);
        model.begin_sums();
        for (int micro = 0; micro < 2; micro++) {
            const RandomBatch batch(model, uint64_t(micro));
            model.forward({0.4, false}, 0.7);
            model.classify(true, 1.0 / 24, micro > 0);
            model.backward(0.4, {0.1, 0.7}, 24, micro > 0);
        }
        std::vector<double> all;
        for (const auto& t : tensor_list(config, model.grads)) all.insert(all.end(), t.data, t.data + t.spec.count());
        return all;
    };
    const auto plain = gradients(0);
    CHECK(gradients(1) == plain);
    CHECK(gradients(2) == plain);
    // Against the two micro-batches one at a time.
    std::vector<double> sum(plain.size(), 0.0);
    for (int micro = 0; micro < 2; micro++) {
        Gpt<Cpu, double> model(dev, config, 2, 6, 0, true);
        randomize(model);
        model.begin_sums();
        const RandomBatch batch(model, uint64_t(micro));
        model.forward({0.4, false}, 0.7);
        model.classify(true, 1.0 / 24, false);
        model.backward(0.4, {0.1, 0.7}, 24, false);
        size_t at = 0;
        for (const auto& t : tensor_list(config, model.grads))
            for (size_t i = 0; i < t.spec.count(); i++) sum[at++] += t.data[i];
    }
    for (size_t i = 0; i < plain.size(); i++) CHECK(std::abs(plain[i] - sum[i]) <= 1e-14);
}

TEST_CASE("model: gradients with a teacher, which is the plain model in the memory of one block") {
    Cpu dev(1);
    const Config config = tiny(NormKind::layernorm, GateMode::taper), plain = tiny(NormKind::layernorm, GateMode::norm);
    Gpt<Cpu, double> model(dev, config, 2, 5, 0, true), teacher(dev, plain, 2, 5, 2, false),
        whole(dev, plain, 2, 5, 0, true);
    model.chunk = 4;
    randomize(model), initialize(teacher, 5), initialize(whole, 5);
    CHECK(teacher.act_memory.bytes() < whole.act_memory.bytes());
    const RandomBatch batch(model, 3);
    for (auto* other : {&teacher, &whole}) {
        other->use_batch({batch.tokens.data(), batch.targets.data()});
        other->begin_sums(), other->forward({}, 0);
    }
    CHECK(std::equal(teacher.act.ln_f, teacher.act.ln_f + 10 * plain.C, whole.act.ln_f));
    auto gradients = [&](double g, const ScaleLoss& anchor, const Gpt<Cpu, double>& from, double share) {
        model.begin_sums();
        model.forward({g, false}, anchor.target);
        model.classify(true, 0.1, false, &from, share);
        model.backward(g, anchor, 10, false);
        return tensor_list(config, model.grads);
    };
    for (double share : {0.4, 1.0}) {
        CAPTURE(share);
        const ScaleLoss anchor{0.3, 0.8};
        const auto grads = gradients(0.37, anchor, teacher, share);
        auto loss = [&] {
            model.begin_sums();
            model.forward({0.37, false}, anchor.target);
            model.classify(false, 0, false, &teacher, share);
            const Sums s = model.sums_of(model.read_sums());
            return ((1 - share) * s.loss + share * s.kl + anchor.lambda * s.stream.squares) / 10;
        };
        auto params = tensor_list(config, model.params);
        for (size_t i = 0; i < params.size(); i++)
            check_gradient(params[i].spec.name, params[i].data, grads[i].data, params[i].spec.count(), loss, 6);
    }
    // Nothing is to be learned from an equal.
    initialize(model, 5);
    for (const auto& t : gradients(1, {}, teacher, 1))
        CHECK(std::all_of(t.data, t.data + t.spec.count(), [](double x) { return x == 0; }));
    CHECK(model.sums_of(model.read_sums()).kl == 0);
}

TEST_CASE("model: at g = 1 a tapering model is the plain model, bit for bit") {
    Cpu dev(2);
    for (NormKind kind : kKinds) {
        std::vector<std::vector<double>> outputs;
        for (GateMode mode : kModes) {
            Gpt<Cpu, double> model(dev, tiny(kind, mode), 2, 6, 0, true);
            initialize(model, 5);
            const RandomBatch batch(model, 1);
            if (mode != GateMode::norm)  // the second branch must not be evaluated
                for (auto& t : tensor_list(model.config, model.params))
                    if (t.spec.name.find(".taper_") != std::string::npos)
                        std::fill(t.data, t.data + t.spec.count(), std::nan(""));
            model.begin_sums();
            model.forward({1, true}, 0);
            outputs.emplace_back(model.act.ln_f, model.act.ln_f + 12 * model.config.C);
        }
        CHECK(outputs[1] == outputs[0]);
        CHECK(outputs[2] == outputs[0]);
    }
}

TEST_CASE("model: at g = 0 nothing depends on the normalizing branch") {
    Cpu dev(1);
    for (NormKind kind : kKinds) {
        Gpt<Cpu, double> model(dev, tiny(kind, GateMode::taper_all), 2, 6, 0, true);
        randomize(model);
        const RandomBatch batch(model, 1);
        const double before = total_loss(model, 0, {});
        for (auto& t : tensor_list(model.config, model.params))
            if (t.spec.name.ends_with("ln_1.weight") || t.spec.name.ends_with("ln_2.bias") ||
                t.spec.name.ends_with("ln_f.weight"))
                std::fill(t.data, t.data + t.spec.count(), std::nan(""));
        CHECK(total_loss(model, 0, {}) == before);
    }
}

namespace {

nlohmann::json read_json(const std::string& path) {
    std::ifstream file(path);
    REQUIRE(file.good());
    return nlohmann::json::parse(file);
}

TokenSource golden_tokens(const nlohmann::json& ids) {
    return tokens_from_text("x", "golden tokens", [&](std::string_view) { return ids.get<std::vector<uint16_t>>(); });
}

Settings golden_settings(const nlohmann::json& golden) {
    const auto &m = golden["model"], &t = golden["train"];
    Settings s;
    s.T = m["T"], s.batch = t["B"], s.total_batch = s.batch * s.T * size_t(t["micro_batches"]);
    s.steps = t["updates"], s.shuffle = false;
    s.lr = t["lr"], s.warmup = updates(t["lr_warmup"]), s.lr_final_frac = t["lr_final_frac"];
    s.beta1 = t["beta1"], s.beta2 = t["beta2"], s.weight_decay = t["weight_decay"], s.clip = t["clip"];
    s.gate_warmup = updates(t["k_warm"]), s.gate_end = updates(t["k_end"]);
    s.ema_decay = t["ema_decay"], s.scale_loss = t["scale_loss"], s.scale_loss_kind = t["scale_loss_kind"];
    s.calibration = t["calibration"], s.optimizer = t.value("optimizer", s.optimizer);
    s.gate = m["mode"], s.norm = m["norm"];
    return s;
}

Config golden_config(const nlohmann::json& golden) {
    const auto& m = golden["model"];
    Config c;
    c.V = m["V"], c.T = m["T"], c.L = m["L"], c.NH = m["NH"], c.C = m["C"], c.eps = m["norm_eps"];
    c.norm = norm_from(m["norm"]), c.mode = gate_mode_from(m["mode"]);
    c.bound = m.value("bound", 0.0), c.final_bound = m.value("final_bound", 0.0);
    c.first_apart = golden["train"]["calibration"] == "channels+first";
    return c;
}

// |a - b| <= tolerance |b|, for a named series.
void check_series(const std::string& what, double value, double expected, double tolerance) {
    INFO(what, ": ", value, " against ", expected);
    CHECK(std::abs(value - expected) <= tolerance * std::max(std::abs(expected), 1e-3));
}

// A golden run: the reference's float64 numbers, printed with 10 digits. Every tolerance is relative.
template <class Real>
void check_golden(const std::string& path, double tolerance) {
    CAPTURE(path);
    const nlohmann::json golden = read_json(path), tokens = read_json("tests/golden/" + std::string(golden["tokens"]));
    Cpu dev(2);
    const Config config = golden_config(golden);
    const TokenSource train = golden_tokens(tokens["train"]), val = golden_tokens(tokens["val"]);
    Trainer<Cpu, Real> t(dev, golden_settings(golden), config, train);
    const SafetensorsFile weights("tests/golden/" + std::string(golden["weights"]));
    initialize(t.model, 1);
    initialize_from(t.model, [&](const TensorSpec& spec, auto* numbers) {
        read_tensor(weights, spec.name, spec.shape, numbers);
        if (spec.name.ends_with("wte.weight") || spec.name.ends_with("wpe.weight"))
            for (size_t i = 0; i < spec.count(); i++) numbers[i] *= golden["embedding_factor"].get<float>();
    });
    for (size_t k = 1; k <= t.settings.steps; k++) {
        CAPTURE(k);
        const StepReport r = t.update();
        check_series("gate", r.g, golden["g"][k - 1], 1e-9);
        check_series("learning rate", r.lr, golden["lr"][k - 1], 1e-9);
        check_series("cross-entropy", r.loss, golden["ce"][k - 1], tolerance);
        check_series("loss", r.loss + r.scale_loss, golden["loss"][k - 1], tolerance);
        check_series("gradient norm", r.grad_norm, golden["grad_norm"][k - 1], 10 * tolerance);
        check_series("s(h)", r.stream_scale, golden["s"][k - 1], tolerance);
        check_series("validation loss", evaluate(t, val, SIZE_MAX).value(), golden["val_loss"][k - 1], tolerance);
    }
    if (!golden["s_tgt"].is_null()) check_series("target", t.scale_target, golden["s_tgt"], tolerance);
    const auto names = taper_site_names(config);
    CHECK(golden["c"].size() == names.size());
    for (size_t i = 0; i < names.size(); i++)
        check_series(names[i] + " c", double(t.model.scales[i].c), golden["c"][names[i]], std::max(tolerance, 1e-7));
    for (const Tensor<Real>& tensor : tensor_list(config, t.model.params)) {
        if (tensor.spec.name.ends_with("c_attn.bias")) continue;  // the key part's gradient is rounding noise only
        double sum = 0, square = 0;
        for (size_t i = 0; i < tensor.spec.count(); i++) {
            sum += double(tensor.data[i]);
            square += double(tensor.data[i]) * double(tensor.data[i]);
        }
        const auto& expected = golden["tensors"][tensor.spec.name];
        INFO(tensor.spec.name);
        check_series("sum of squares", square, expected[1], 10 * tolerance);
        CHECK(std::abs(sum - double(expected[0])) <= 10 * tolerance * std::sqrt(square * double(tensor.spec.count())));
    }
}

}  // namespace

TEST_CASE("model: golden runs of the independent reference, 20 updates through all phases") {
    size_t runs = 0;
    for (const auto& entry : std::filesystem::directory_iterator("tests/golden")) {
        const std::string path = entry.path().string();
        if (!path.ends_with(".json") || path.ends_with("_tokens.json")) continue;
        check_golden<double>(path, 1e-7);
        check_golden<float>(path, 1e-5);
        runs++;
    }
    CHECK(runs == 40);
}

namespace {

struct TinyRun {
    Settings settings;
    Config config;
    TokenSource corpus = tokens_from_text(story_corpus(20000, 3), "test stories");

    TinyRun(const std::string& folder, GateMode mode) {
        settings.out = folder + "/model.bin";
        settings.steps = 12, settings.batch = 2, settings.T = 8, settings.total_batch = 32;
        settings.gate_warmup = updates(4), settings.gate_end = updates(8), settings.scale_loss = 0.1;
        settings.skip_loss_z = 3;
        settings.calibration = mode == GateMode::taper ? "channels+first" : "scalar";
        config.V = 256, config.T = 8, config.L = 2, config.NH = 2, config.C = 16, config.mode = mode;
        config.bound = mode == GateMode::norm ? 0 : 1.5, config.first_apart = mode == GateMode::taper;
    }
};

std::vector<float> parameters(Trainer<Cpu, float>& t) {
    std::vector<float> all;
    for (const TaperScale& site : t.model.scales) all.insert(all.end(), {site.c, site.first});
    for (const auto& tensor : tensor_list(t.model.config, t.model.params))
        all.insert(all.end(), tensor.data, tensor.data + tensor.spec.count());
    return all;
}

}  // namespace

TEST_CASE("trainer: resuming at any update gives the same bits, and so does another number of threads") {
    const TemporaryFolder folder;
    for (const auto& [mode, optimizer] :
         {std::pair(GateMode::taper, "adamw"), {GateMode::taper_all, "adamw"}, {GateMode::taper, "muon"}}) {
        TinyRun run(folder.path, mode);
        run.settings.optimizer = optimizer;
        Cpu dev(1);
        Trainer<Cpu, float> whole(dev, run.settings, run.config, run.corpus);
        initialize(whole.model, 1);
        while (whole.step < run.settings.steps) whole.update();
        const std::vector<float> expected = parameters(whole);
        for (size_t stop = 1; stop < run.settings.steps; stop++) {
            CAPTURE(stop);
            {
                Trainer<Cpu, float> first(dev, run.settings, run.config, run.corpus);
                initialize(first.model, 1);
                while (first.step < stop) first.update();
                Checkpoints states(state_path(run.settings.out));
                save_state(first, {}, states);
            }
            Cpu other(int(1 + stop % 3));
            Trainer<Cpu, float> second(other, run.settings, run.config, run.corpus);
            load_state(second, SafetensorsFile(state_path(run.settings.out)));
            CHECK(second.step == stop);
            CHECK(second.losses.losses.size() == stop);
            CHECK(second.gradients.norms.size() == (stop < 4 ? stop : stop - 4));  // begun anew at the taper start
            while (second.step < run.settings.steps) second.update();
            CHECK(parameters(second) == expected);
        }
    }
}

TEST_CASE("trainer: whatever state it is in, saved, loaded and saved again it has the same bytes") {
    const TemporaryFolder folder;
    Cpu dev(1);
    for (uint64_t trial = 0; trial < 30; trial++) {
        CAPTURE(trial);
        const GateMode modes[] = {GateMode::norm, GateMode::taper, GateMode::taper_all};
        const TinyRun run(folder.path, modes[trial % 3]);
        uint64_t drawn = 0;
        auto below = [&](uint64_t n) { return uint64_t(random_uniform(trial, 1, drawn++) * double(n)); };
        // From the smallest denormal to the largest number, with zeros of both signs.
        auto any_number = [&]<class Real>(Real) {
            const Real extremes[] = {0,
                                     Real(-0.0),
                                     std::numeric_limits<Real>::denorm_min(),
                                     std::numeric_limits<Real>::max(),
                                     std::numeric_limits<Real>::lowest(),
                                     std::numeric_limits<Real>::min()};
            return below(4) ? Real(random_normal(trial, 2, drawn++)) : extremes[below(6)];
        };
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
        initialize(t.model, trial);
        for (uint64_t updates = below(4); updates-- > 0;) t.update();
        for (const auto& tensor : tensor_list(run.config, t.model.params))
            for (size_t i = 0; i < tensor.spec.count(); i++) tensor.data[i] = any_number(float());
        for (size_t i = 0; i < t.m.size(); i++)
            for (size_t j = 0; j < t.model.shards.parts()[i].count; j++)
                t.m[i][j] = any_number(float()), t.v[i][j] = below(9) ? std::abs(any_number(float())) : INFINITY;
        for (TaperScale& site : t.model.scales) site.c = any_number(float());
        for (auto& site : t.calibration.sites)
            site = {any_number(double()), any_number(double()), any_number(double())};
        t.calibration.stream_scale = any_number(double()), t.scale_target = any_number(double());
        t.calibration.updates = below(1 << 20);
        for (uint64_t n = below(2 * LossWindow::kSize); n-- > 0;) t.losses.add(any_number(double()));
        for (uint64_t n = below(2 * GradientWindow::kSize); n-- > 0;)
            t.gradients.add(below(3) ? std::abs(any_number(double())) : INFINITY);
        t.step = below(1 << 30);
        t.batches.seek(below(uint64_t(1) << 40));

        const std::string path = state_path(run.settings.out);
        auto bytes = [&] {
            std::ifstream file(path, std::ios::binary);
            return std::string(std::istreambuf_iterator<char>(file), {});
        };
        Checkpoints states(path);
        const std::vector<std::string> arguments = {"--train=a\nb\xff%0A"};
        save_state(t, arguments, states);
        const std::string saved = bytes();
        Trainer<Cpu, float> again(dev, run.settings, run.config, run.corpus);
        {
            std::string note;
            const auto file = Checkpoints(path).open_newest(note, check_state);
            REQUIRE(file);
            load_state(again, *file);
        }
        save_state(again, arguments, states);
        CHECK(bytes() == saved);
    }
}

TEST_CASE("trainer: a validation of a part of its text has batches from all over it") {
    const TemporaryFolder folder;
    const TinyRun run(folder.path, GateMode::taper);  // batches of 2 x 8 tokens
    Cpu dev(1);
    Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    for (int k = 0; k < 3; k++) t.update();
    const TokenSource text = run.corpus.slice(1000, 1000 + 10 * 16 + 1 + 11);  // 10 batches, and a row that fills none
    const auto batch = [&](size_t i) { return evaluate(t, text.slice(16 * i, 16 * i + 17), 1).value(); };
    for (const std::vector<size_t>& places :
         std::vector<std::vector<size_t>>{{0}, {0, 5}, {0, 3, 6}, {0, 2, 5, 7}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}) {
        double mean = 0;
        for (size_t i : places) mean += batch(i) / double(places.size());
        CHECK(evaluate(t, text, places.size()).value() == doctest::Approx(mean).epsilon(1e-12));
        CHECK(t.validation->tokens == 16 * places.size());
    }
    CHECK(evaluate(t, text, 1000).value() == evaluate(t, text, 10).value());
    CHECK(t.validation->tokens == 160);

    // Of a text that fills no batch, every row counts once.
    TinyRun wide(folder.path, GateMode::taper);
    wide.settings.batch = 4;
    Trainer<Cpu, float> u(dev, wide.settings, wide.config, wide.corpus);
    initialize(u.model, 1);
    const TokenSource four = run.corpus.slice(1000, 1000 + 4 * 8 + 1), three = run.corpus.slice(1000, 1000 + 3 * 8 + 1);
    const double all = evaluate(u, four, 1).value(), last = evaluate(u, four.slice(24, 33), 1).value();
    CHECK(u.validation->tokens == 8);
    CHECK(evaluate(u, three, 5).value() == doctest::Approx((4 * all - last) / 3).epsilon(1e-6));
    CHECK(u.validation->tokens == 24);
}

TEST_CASE("trainer: a loss that is not finite stops the run before anything changes") {
    const TemporaryFolder folder;
    const TinyRun run(folder.path, GateMode::taper);
    Cpu dev(1);
    Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    t.update();
    t.model.params.h[1].mlp_fc_bias[3] = std::numeric_limits<float>::infinity();
    const auto before = parameters(t);
    CHECK_THROWS_WITH_AS(t.update(), doctest::Contains("step 2"), Error);
    CHECK(parameters(t) == before);
    CHECK(t.step == 1);
    // So does a teacher's divergence.
    Trainer<Cpu, float> pupil(dev, run.settings, run.config, run.corpus);
    initialize(pupil.model, 1);
    hire_teacher(pupil, [](const TensorSpec& spec, float* numbers) { std::fill_n(numbers, spec.count(), 1e38f); });
    CHECK_THROWS_WITH_AS(pupil.update(), doctest::Contains("step 1: the loss is not finite"), Error);
}

TEST_CASE("trainer: the step line has the log's loss, the scale loss where it counts, and why an update was skipped") {
    StepReport
        r{.step = 3, .loss = 2.5, .scale_loss = 0.002, .g = 1, .lr = 1e-3, .grad_norm = 7.6284, .stream_scale = 0.048};
    CHECK(step_line(r, 10, {1000}) ==
          "step  3/10 | loss 2.5000 | g 1.000 | lr 1.00e-03 | grad norm  7.628 | s(h)  0.048 |   1000 tok/s");
    r.kl = 0.04849;
    CHECK(step_line(r, 10, {1000}).starts_with("step  3/10 | loss 2.5000 | kl 0.0485 | scale loss 0.002 | g 1.000"));
    r.kl.reset();
    r.scale_loss = 5.2, r.grad_norm = 1.5e30, r.stream_scale = 2e-7, r.skipped = true, r.why_skipped = "because";
    CHECK(
        step_line(r, 10, {1000}) ==
        "step  3/10 | loss 2.5000 | scale loss 5.2 | g 1.000 | lr 1.00e-03 | grad norm 1.5e+30 | s(h)  2e-07 |   1000 tok/s | "
        "skipped: because");
    r.skipped = false;
    CHECK(step_line(r, 10, {1000}, "3m05s").starts_with("step  3/10 | 3m05s left | loss 2.5000 | "));
    // 94.3 GFLOPs per token x 1000 tokens/s = 94.3 TFLOP/s, 30.2% of 312.
    CHECK(in_words(Speed{1000, 94.3e9, 0}) == "  1000 tok/s, 94.3 TFLOP/s");
    CHECK(in_words(Speed{1000, 94.3e6, 0}) == "  1000 tok/s, 94.3 GFLOP/s");
    CHECK(in_words(Speed{1000, 9.43e6, 0}) == "  1000 tok/s, 9.43 GFLOP/s");
    CHECK(in_words(Speed{1000, 943e6, 0}) == "  1000 tok/s,  943 GFLOP/s");  // no wider, no narrower
    CHECK(in_words(Speed{1000, 94.3e9, 312e12}) == "  1000 tok/s, MFU 30.2%");
    CHECK(peak_flops("cuda: NVIDIA A100-SXM4-80GB (sm_80, 79.3 GiB), bf16") == 312e12);
    CHECK(peak_flops("cuda: NVIDIA H100 PCIe (sm_90, 79.3 GiB), bf16") == 756e12);
    CHECK(peak_flops("cuda: NVIDIA H100 80GB HBM3 (sm_90, 79.3 GiB), bf16") == 989e12);
    CHECK(peak_flops("cuda: NVIDIA H200 NVL (sm_90, 139.8 GiB), bf16") == 835e12);
    CHECK(peak_flops("cuda: NVIDIA H100 80GB HBM3 (sm_90, 79.3 GiB), fp32") == 0);
    CHECK(peak_flops("cuda: NVIDIA GeForce RTX 4090 Laptop GPU (sm_89, 15.7 GiB), bf16") == 0);
    CHECK(peak_flops("cpu: 8 threads, AVX2; built without CUDA") == 0);
}

TEST_CASE("trainer: a loss spike is skipped where asked") {
    LossWindow window;
    for (int i = 0; i < 127; i++) window.add(i % 2 ? 1.0 : 3.0);
    CHECK(window.z_score(100) == 0);  // not full yet
    window.add(3.0);
    CHECK(window.z_score(5) == doctest::Approx((5 - (64 * 3.0 + 63 * 1.0 + 1 * 1.0) / 128)).epsilon(0.02));
}

TEST_CASE("trainer: a gradient norm is measured by the median of those before it") {
    GradientWindow window;
    for (int i = 0; i < 15; i++) window.add(2);
    CHECK(window.over_median(1e9) == 0);  // too few to say
    window.add(2);
    CHECK(window.over_median(30) == 15);
    CHECK(window.over_median(NAN) == INFINITY);
    for (int i = 0; i < 15; i++) window.add(i % 3 ? 1e30 : NAN);  // 16 of 31 are usual still
    CHECK(window.over_median(30) == 15);
    for (int i = 0; i < 32; i++) window.add(i);
    CHECK(window.over_median(160) == 10);  // the median of 0 .. 31 is the upper of the middle two, 16
    // A new level is followed before the window is full of it; one of NaN or Inf is not.
    for (int i = 0; i < 17; i++) window.add(1000);
    CHECK(window.over_median(3000) == 3);
    for (int i = 0; i < 17; i++) window.add(INFINITY);
    CHECK(window.over_median(1) == 0);
}

TEST_CASE("trainer: updates with a gradient far above the usual one are skipped where asked") {
    const TemporaryFolder folder;
    TinyRun run(folder.path, GateMode::taper);
    run.settings.steps = 100, run.settings.skip_loss_z = 0;
    run.settings.gate_warmup = updates(20), run.settings.gate_end = updates(30);
    run.settings.skip_grad = 50;
    Cpu dev(1);
    Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
    initialize(t.model, 1);
    auto update_with = [&](float bias) {  // sets one channel of the second block, then restores it
        float& b = t.model.params.h[1].mlp_proj_bias[3];
        const float was = b;
        b = bias;
        const std::vector<float> before = parameters(t);
        const StepReport r = t.update();
        CHECK((parameters(t) == before) == r.skipped);
        if (r.skipped) b = was;
        return r;
    };
    while (t.step < 17) CHECK_FALSE(t.update().skipped);
    // In the calibration: nothing of the update is left, but its number.
    const auto site = t.calibration.sites[2];
    const StepReport infinite = update_with(INFINITY);
    CHECK(infinite.skipped);
    CHECK(std::string(infinite.why_skipped).find("not a finite number") != std::string::npos);
    CHECK(t.step == 18);
    CHECK(t.calibration.sites[2].num == site.num);
    CHECK(t.calibration.updates == 17);
    // With the taper the window begins anew.
    while (t.step < 20 + GradientWindow::kLeast) CHECK_FALSE(t.update().skipped);
    const StepReport high = update_with(1e4f);  // the scale loss's gradient
    CHECK(high.skipped);
    CHECK(std::string(high.why_skipped).find("far above the median") != std::string::npos);
    CHECK(high.stream_scale > 1000);
    CHECK_FALSE(drifted(t, high));
    StepReport low = high;
    low.skipped = false, low.stream_scale = 1e-9;
    CHECK(drifted(t, low));
    CHECK(drift_warning(t, low).find("the stream has shrunk since: use a lower --lr") != std::string::npos);
    CHECK_FALSE(t.update().skipped);
    // One after another they are not left out for good: the level is a new one or, if it is NaN or Inf, the run has diverged.
    t.model.params.h[1].mlp_proj_bias[3] = INFINITY;
    size_t skipped = 0;
    auto run_on = [&] {
        while (skipped < 100) skipped += t.update().skipped;
    };
    CHECK_THROWS_WITH_AS(run_on(), doctest::Contains("the run diverged"), Error);
    CHECK(skipped > 8);
    CHECK(skipped <= 17);
    // --skip-loss-z alone is for losses that are numbers: no gradient of this update is.
    t.settings.skip_grad = 0, t.settings.skip_loss_z = 3;
    t.model.params.h[1].mlp_proj_bias[3] = 1e25f;
    for (size_t i = 0; i < LossWindow::kSize; i++) t.losses.add(i % 2 ? 0.1 : 0.2);
    CHECK_THROWS_WITH_AS(t.update(), doctest::Contains("the run diverged"), Error);
}

TEST_CASE("trainer: --freeze-gains leaves the blocks' gains alone once the gate warm-up has ended") {
    const TemporaryFolder folder;
    for (GateMode mode : {GateMode::norm, GateMode::taper, GateMode::taper_all}) {
        TinyRun run(folder.path, mode);
        run.settings.freeze_gains = true;
        run.settings.calibration = "scalar";  // by channel, the scalings follow their fits
        Cpu dev(1);
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
        initialize(t.model, 1);
        std::map<std::string, std::vector<float>> before;
        while (t.step < run.settings.steps) {
            t.update();
            size_t gains = 0;
            for (const auto& tensor : tensor_list(run.config, t.model.params)) {
                const TensorSpec& spec = tensor.spec;
                std::vector<float>& was = before[spec.name];
                const std::vector<float> now(tensor.data, tensor.data + spec.count());
                const bool gain =
                    spec.name.starts_with("transformer.h.") && spec.name.find(".ln_") != std::string::npos;
                const bool untouched = t.gate(t.step) == 1 && spec.name.find("taper_") != std::string::npos;
                CAPTURE(spec.name);
                CAPTURE(t.step);
                if (t.step > 4 && gain) CHECK(now == was);
                if (t.step > 1 && !(t.step > 4 && gain) && !untouched && t.step < 8) CHECK(now != was);
                gains += gain;
                was = now;
            }
            CHECK(gains == size_t(mode == GateMode::norm ? 8 : 16));
        }
    }
}

TEST_CASE("trainer: --lr-gains is the rate of the blocks' gains and biases alone, times -l") {
    const TemporaryFolder folder;
    for (GateMode mode : {GateMode::norm, GateMode::taper_all}) {
        const TinyRun run(folder.path, mode);
        std::map<double, std::vector<float>>
            moved;  // by factor: how far each parameter goes in the first update, which is the rate
        Cpu dev(1);
        for (double factor : {1.0, 0.25, 0.0}) {
            Settings s = run.settings;
            s.lr_gains = factor, s.weight_decay = 0;
            Trainer<Cpu, float> t(dev, s, run.config, run.corpus);
            initialize(t.model, 1);
            const std::vector<float> before = parameters(t);
            t.update();
            const std::vector<float> after = parameters(t);
            for (size_t i = 0; i < after.size(); i++) moved[factor].push_back(after[i] - before[i]);
        }
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
        size_t i = t.model.scales.size() * 2, gains = 0;
        for (const auto& tensor : tensor_list(run.config, t.model.params)) {
            const std::string& name = tensor.spec.name;
            CAPTURE(name);
            const bool gain = name.starts_with("transformer.h.") && name.find(".ln_") != std::string::npos;
            gains += gain;
            for (size_t j = 0; j < tensor.spec.count(); j++, i++) {
                const double step = moved[1][i], expected = gain ? step / 4 : step;
                // A gain is near 1, so that its difference is rounded at 2^-24.
                REQUIRE(std::abs(moved[0.25][i] - expected) <= (gain ? 0x1p-23 : 0));
                REQUIRE(moved[0][i] == (gain ? 0 : step));
            }
        }
        CHECK(i == moved[1].size());
        CHECK(gains == size_t(mode == GateMode::norm ? 8 : 16));
    }
}

TEST_CASE("trainer: --optimizer muon takes other steps in the matrices of the blocks, and nowhere else") {
    const TemporaryFolder folder;
    const TinyRun run(folder.path, GateMode::taper);
    Cpu dev(1);
    std::vector<std::vector<float>> after;
    for (const char* optimizer : {"adamw", "muon"}) {
        Settings s = run.settings;
        s.optimizer = optimizer;
        Trainer<Cpu, float> t(dev, s, run.config, run.corpus);
        initialize(t.model, 1);
        t.update();
        after.push_back(parameters(t));
    }
    Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
    size_t i = t.model.scales.size() * 2, matrices = 0;
    for (const auto& tensor : tensor_list(run.config, t.model.params)) {
        const std::string& name = tensor.spec.name;
        CAPTURE(name);
        bool matrix = false;
        for (const char* end : {"c_attn.weight", "c_proj.weight", "c_fc.weight"}) matrix |= name.ends_with(end);
        matrices += matrix;
        const size_t end = i + tensor.spec.count();
        CHECK(std::equal(&after[0][i], &after[0][end], &after[1][i]) == !matrix);
        i = end;
    }
    CHECK(matrices == 8);
}

TEST_CASE("trainer: --carry-moments hands the normalizing branches' moments to the scaling ones at the taper start") {
    const TemporaryFolder folder;
    for (GateMode mode : {GateMode::taper, GateMode::taper_all})
        for (bool carry : {false, true}) {
            TinyRun run(folder.path, mode);
            run.settings.carry_moments = carry;
            Cpu dev(1);
            Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
            initialize(t.model, 1);
            while (t.step < 4) t.update();
            const auto list = tensor_list(run.config, t.model.params);
            std::map<std::string, size_t> numbers;
            for (const auto& tensor : list) numbers.emplace(tensor.spec.name, numbers.size());
            size_t branches = 0;
            for (const auto& named : numbers) {
                const std::string& name =
                    named.first;  // Clang 14 has no structured bindings in lambdas, nor in CAPTURE
                const size_t i = named.second, at = name.find("taper_");
                if (at == std::string::npos) continue;
                branches++;
                CAPTURE(name);
                const size_t from = numbers.at(name.substr(0, at) + name.substr(at + 6)), count = list[i].spec.count();
                for (const auto& moments : {t.m, t.v}) {
                    const std::vector<float> taper(moments[i], moments[i] + count);
                    const std::vector<float> norm(moments[from], moments[from] + count);
                    CHECK(norm != std::vector<float>(count, 0));
                    CHECK(taper == (carry ? norm : std::vector<float>(count, 0)));
                }
            }
            CHECK(branches == size_t(mode == GateMode::taper ? 8 : 10));
        }
}

TEST_CASE("trainer: --gain and --scale-target change what starts when the gate warm-up has ended, and nothing else") {
    const TemporaryFolder folder;
    for (GateMode mode : {GateMode::norm, GateMode::taper, GateMode::taper_all}) {
        CAPTURE(gate_mode_name(mode));
        TinyRun run(folder.path, mode);
        run.settings.calibration = "scalar", run.config.first_apart = false;
        Cpu dev(1);
        Trainer<Cpu, float> plain(dev, run.settings, run.config, run.corpus);
        run.settings.gain = 4, run.settings.scale_target = 0.25;
        Trainer<Cpu, float> changed(dev, run.settings, run.config, run.corpus);
        for (auto* t : {&plain, &changed}) {
            initialize(t->model, 1);
            while (t->step < 3) t->update();
        }
        CHECK(parameters(plain) == parameters(changed));
        plain.update(), changed.update();
        CHECK(changed.scale_target == plain.scale_target / 4);
        for (size_t i = 0; i < plain.model.scales.size(); i++)  // of the blocks' 4 sites, and not of the final one
            CHECK(changed.model.scales[i].c == (i < 4 ? 4 : 1) * plain.model.scales[i].c);
        const auto a = tensor_list(run.config, plain.model.params), b = tensor_list(run.config, changed.model.params);
        size_t larger = 0;
        for (size_t i = 0; i < a.size(); i++) {
            CAPTURE(a[i].spec.name);
            const bool gamma = a[i].spec.name.ends_with(".ln_1.weight") || a[i].spec.name.ends_with(".ln_2.weight");
            const float factor = mode == GateMode::norm && gamma ? 4 : 1;
            for (size_t j = 0; j < a[i].spec.count(); j++) REQUIRE(b[i].data[j] == factor * a[i].data[j]);
            larger += factor == 4;
        }
        CHECK(larger == (mode == GateMode::norm ? 4 : 0));
    }
}

TEST_CASE("schedules: learning rate") {
    Settings s;
    s.lr = 2, s.lr_final_frac = 0.1, s.steps = 100, s.warmup = updates(10);
    CHECK(lr_schedule(s, 1) == doctest::Approx(0.2));
    CHECK(lr_schedule(s, 10) == doctest::Approx(2));
    CHECK(lr_schedule(s, 55) == doctest::Approx(1.1));
    CHECK(lr_schedule(s, 100) == doctest::Approx(0.2));
    s.lr_schedule = "linear";
    CHECK(lr_schedule(s, 55) == doctest::Approx(1.1));
    CHECK(lr_schedule(s, 100) == doctest::Approx(0.2));
    s.lr_schedule = "constant";
    CHECK(lr_schedule(s, 100) == 2);
    s.lr_schedule = "wsd";
    CHECK(lr_schedule(s, 80) == doctest::Approx(2));
    CHECK(lr_schedule(s, 90) == doctest::Approx(1.1));
    CHECK(lr_schedule(s, 100) == doctest::Approx(0.2));
}

TEST_CASE("trainer: without the scale loss a norm-free model's stream grows, with it the target holds") {
    const TemporaryFolder folder;
    TinyRun run(folder.path, GateMode::taper_all);
    run.settings.steps = 150, run.settings.gate_warmup = updates(20), run.settings.gate_end = updates(40);
    run.settings.lr = 5e-3, run.settings.skip_loss_z = 0;
    double drift[2];
    for (int anchored = 0; anchored < 2; anchored++) {
        run.settings.scale_loss = anchored ? 10.0 : 0.0;
        Cpu dev(1);
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus);
        initialize(t.model, 1);
        StepReport r;
        while (t.step < run.settings.steps) r = t.update();
        drift[anchored] = r.stream_scale / t.scale_target;
    }
    CHECK(drift[0] > 1.5);
    CHECK(std::abs(drift[1] - 1) < 0.2);
}

}  // namespace tapernorm::train
