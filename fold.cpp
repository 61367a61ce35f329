// Folds the norms of a finished model away: ./fold model.bin folded.bin
//
// With row vectors, a site's output y goes only into the next matrix, y W + b (attn_qkv, mlp_fc, or the head). At g = 0
//
//   RMSNorm kind    y = c gamma~ h                         W' = c diag(gamma~) W                  b' = b
//   LayerNorm kind  y = c gamma~ (h - mean h) + beta~      W' = (I - 1 1^T / C) c diag(gamma~) W  b' = b + beta~ W
//
// so that y W + b = h W' + b': the centering subtracts from each column of c diag(gamma~) W its mean over the inputs.
// A bounded site (Config::bound) multiplies v = min(max(u, -B), B) in place of u. There, fold centers what writes the
// stream instead: wpe, both c_proj with their biases over the outputs, and the rows of wte (a tied one stays as it is for the head,
// and their means, wte.mean, are subtracted where a token enters the stream). So every row of the stream has mean 0, u = h, and
//
//   y = c gamma~ v + beta~          W' = c diag(gamma~) W      b' = b + beta~ W      (both kinds)
//
// follows a clamp of h at B = kappa / c, whose c stays in the file. Rows of first positions may have a factor of their own before
// the clamp (Config::first_apart): it stays in the file, too, and nothing else changes, because c gamma~ multiplies what the clamp leaves.
//
// A norm that stays (-g norm models) keeps its statistics, and only gamma and beta move: W' = diag(gamma) W,
// b' = b + beta W. The head is E^T, E [V, C], unless it has weights of its own; a final site that is folded unties it from the embedding.
//
// Everything is computed in double and rounded once. Before anything is written, both models run on the same tokens and their
// logits are compared (check). With --clamp-sample, the model before is the one with the bounds that the sample gave it.

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "inference/decoder.cuh"
#include "inference/evaluate.cuh"
#include "inference/logits.h"
#include "inference/same_model.h"
#include "io/atomic_file.h"
#include "io/claims.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/options.h"
#include "io/terminal.h"
#include "model/model_file.h"
#include "runtime/exit_status.h"

namespace tapernorm::fold {

using Weights = GptTensors<double>;

static Fold fold_for(GateMode mode) {
    return mode == GateMode::norm ? Fold::affine : mode == GateMode::taper ? Fold::internal : Fold::all;
}

// The affine map that a site leaves behind: y = gain (.) (h - [mean h]) + shift.
struct AffineMap {
    std::vector<double> gain, shift;  // [C]; shift is empty if there is none
    bool center;
};

static AffineMap affine_map(const Config& c, const SiteTensors<double>& site, float taper_scale) {
    const bool tapered = c.mode != GateMode::norm;
    const double* weight = tapered ? site.taper_weight : site.weight;
    const double* bias = tapered ? site.taper_bias : site.bias;
    const bool center = tapered && c.norm == NormKind::layernorm && c.bound == 0;
    AffineMap map{std::vector<double>(weight, weight + c.C), {}, center};
    if (tapered)
        for (double& x : map.gain) x *= double(taper_scale);
    if (bias) map.shift.assign(bias, bias + c.C);
    return map;
}

// out [C, OC], out_bias [OC] from weight [C, OC], bias [OC]. Strides describe both orientations of the matrix.
static void fold_linear(double* out, double* out_bias, const double* weight, const double* bias, const AffineMap& map,
                        size_t C, size_t OC, size_t in_stride, size_t out_stride) {
    for (size_t j = 0; j < OC; j++) {
        double mean = 0, shift = 0;
        for (size_t i = 0; i < C; i++) {
            const double w = weight[i * in_stride + j * out_stride];
            mean += map.gain[i] * w / double(C);
            if (!map.shift.empty()) shift += map.shift[i] * w;
        }
        for (size_t i = 0; i < C; i++) {
            const size_t at = i * in_stride + j * out_stride;
            out[at] = map.gain[i] * weight[at] - (map.center ? mean : 0);
        }
        if (out_bias) out_bias[j] = (bias ? bias[j] : 0) + shift;
    }
}

static void copy(double* to, const double* from, size_t n) { std::copy_n(from, n, to); }

// Subtracts from each of the rows [rows, C] its mean; where it goes, if anywhere: means [rows].
static void center_rows(double* x, double* means, size_t rows, size_t C) {
    for (size_t r = 0; r < rows; r++, x += C) {
        double mean = 0;
        for (size_t i = 0; i < C; i++) mean += x[i] / double(C);
        for (size_t i = 0; i < C; i++) x[i] -= mean;
        if (means) means[r] = mean;
    }
}

// What writes the stream of a folded model with clamps writes rows of mean 0.
static void center_stream(const Config& c, Weights& to) {
    const size_t C = c.C;
    if (c.centers_tokens()) {
        std::vector<double> rows(to.wte, to.wte + c.V * C);
        center_rows(rows.data(), to.wte_mean, c.V, C);
    } else {
        center_rows(to.wte, nullptr, c.V, C);
    }
    center_rows(to.wpe, nullptr, c.T, C);
    for (BlockTensors<double>& t : to.h) {
        center_rows(t.attn_proj, nullptr, C, C), center_rows(t.attn_proj_bias, nullptr, 1, C);
        center_rows(t.mlp_proj, nullptr, 4 * C, C), center_rows(t.mlp_proj_bias, nullptr, 1, C);
    }
}

static void fold_model(Model64& folded, const Model64& from, const std::vector<TaperScale>& scales) {
    const Config& config = from.config;
    const size_t C = config.C, V = config.V;
    Weights& to = folded.tensors;
    const Weights& w = from.tensors;
    copy(to.wte, w.wte, V * C), copy(to.wpe, w.wpe, config.T * C);
    auto c_at = [&](size_t i) { return scales.empty() ? 1.0f : scales[i].c; };
    for (size_t l = 0; l < config.L; l++) {
        BlockTensors<double>& t = to.h[l];
        const BlockTensors<double>& f = w.h[l];
        fold_linear(t.attn_qkv, t.attn_qkv_bias, f.attn_qkv, f.attn_qkv_bias, affine_map(config, f.ln_1, c_at(2 * l)),
                    C, 3 * C, 3 * C, 1);
        copy(t.attn_proj, f.attn_proj, C * C), copy(t.attn_proj_bias, f.attn_proj_bias, C);
        fold_linear(t.mlp_fc, t.mlp_fc_bias, f.mlp_fc, f.mlp_fc_bias, affine_map(config, f.ln_2, c_at(2 * l + 1)), C,
                    4 * C, 4 * C, 1);
        copy(t.mlp_proj, f.mlp_proj, 4 * C * C), copy(t.mlp_proj_bias, f.mlp_proj_bias, C);
    }
    if (to.lm_head) {
        const float c_final = config.final_tapers() ? c_at(2 * config.L) : 1.0f;
        fold_linear(to.lm_head, to.lm_head_bias, w.head(), nullptr, affine_map(config, w.ln_f, c_final), C, V, 1, C);
    }
    if (to.ln_f.weight) copy(to.ln_f.weight, w.ln_f.weight, C);
    if (to.ln_f.bias) copy(to.ln_f.bias, w.ln_f.bias, C);
    if (folded.config.clamps() && config.norm == NormKind::layernorm) center_stream(folded.config, to);
}

// ---- the self-check -------------------------------------------------------------------------------------------------

// With another bound of the sites, which then all have it.
template <class Real>
static std::vector<double> run(Cpu& dev, const Probe& probe, Config c, const GptTensors<Real>& weights,
                               const ModelInfo& info, double bound) {
    if (bound != c.bound) c.final_bound = 0;
    c.bound = bound;
    return probe_logits(dev, probe, c, weights, info);
}

// Mean over the rows of KL(softmax(a) || softmax(b)), in nats.
static double mean_kl(const std::vector<double>& a, const std::vector<double>& b, size_t V) {
    double kl = 0;
    for (size_t i = 0; i < a.size(); i += V) kl += divergence(&a[i], &b[i], V);
    return std::max(kl / double(a.size() / V), 0.0);
}

struct Check {
    size_t sequences, tokens;         // of each
    double difference, relative, kl;  // of both models' fp32 logits: the largest, over the largest logit; mean KL, nats
    // The largest distances from the model in double: of the unfolded, the folded, what is allowed to it, the folded in double.
    double own, error, allowed, exactness;
};

// Two things are checked. In double, the unrounded folded model must be the model: the difference may be what rounding to
// double explains, kIdentity times the largest logit. In fp32, the folded model may be as far from the exact logits as
// rounding explains (allowed_by_rounding): the unfolded model does the same number of operations without rounding
// c diag(gamma~) W.
// kappa: the bound of both models' sites; all of them have it unless it is their own.
static Check check(Cpu& dev, const HostModel& model, const Model64& exact, const HostModel& folded,
                   const Model64& folded_exact, double kappa) {
    constexpr double kIdentity = 1e-9;
    const Probe probe(exact.config);
    const std::vector<double> truth = run(dev, probe, exact.config, exact.tensors, model.info, kappa);
    const std::vector<double> identity = run(dev, probe, folded_exact.config, folded_exact.tensors, folded.info, kappa);
    const std::vector<double> before = run(dev, probe, model.info.config, model.tensors, model.info, kappa);
    const std::vector<double> after = run(dev, probe, folded.info.config, folded.tensors, folded.info, kappa);
    const double largest = max_magnitude(truth);
    const double exactness = max_difference(truth, identity), own = max_difference(truth, before);
    const double error = max_difference(truth, after), difference = max_difference(before, after);
    const double allowed = allowed_by_rounding(own, largest);
    if (!(exactness <= kIdentity * largest) || !(error <= allowed))
        fail(
            "the folded model is not the model: its logits differ by %.3g, but rounding explains only %.3g; nothing was written, "
            "please report this",
            error, allowed);
    return {probe.kSequences,
            probe.length,
            difference,
            difference / std::max(largest, 1e-300),
            mean_kl(before, after, exact.config.V),
            own,
            error,
            allowed,
            exactness};
}

static void print(const Check& c, std::FILE* text) {
    std::fprintf(text, "check     %zu x %s: max |dlogit| %.3g, relative %.3g, KL %.3g nats\n", c.sequences,
                 counted(c.tokens, "token").c_str(), c.difference, c.relative, c.kl);
    std::fprintf(
        text,
        "          against the model in double: unfolded %.3g, folded %.3g, allowed %.3g; folded in double %.3g\n",
        c.own, c.error, c.allowed, c.exactness);
}

static nlohmann::ordered_json as_json(const Check& c) {
    return {{"sequences", c.sequences},
            {"tokens", c.tokens},
            {"max_dlogit", c.difference},
            {"relative_dlogit", c.relative},
            {"kl", c.kl},
            {"error_unfolded", c.own},
            {"error_folded", c.error},
            {"error_allowed", c.allowed},
            {"error_in_double", c.exactness}};
}

// ---- a bound for a model that was trained without one ----------------------------------------------------------------

// Calls use(site, |u|) for every number u that enters a tapering site while the model reads tokens [n].
template <class Use>
static void visit_inputs(Cpu& dev, const HostModel& model, const int* tokens, size_t n, Use&& use) {
    constexpr size_t kRows = 64;  // whose logits are held at a time
    const Config& c = model.info.config;
    Decoder<Cpu, float> decoder(dev, c, model.tensors, model.info.scales, model.info.gate);
    size_t sites = 0;  // visited so far
    // Only the final site needs the logits, of all rows, to be visited.
    const Logits needed = c.final_tapers() ? Logits::all : Logits::none;
    const size_t visited = 2 * c.L + (needed == Logits::all);
    decoder.watch = [&](const Layer<float>& layer, size_t rows) {
        if (!layer.site) return;
        const size_t site = sites++ % visited;
        for (const float* x = layer.in; x < layer.in + rows * c.C; x += c.C) {
            double mean = 0;
            for (size_t i = 0; i < c.C && c.norm == NormKind::layernorm; i++) mean += double(x[i]) / double(c.C);
            for (size_t i = 0; i < c.C; i++) use(site, std::abs(double(x[i]) - mean));
        }
    };
    std::vector<float> logits(std::min(kRows, c.T) * c.V);
    for (size_t done = 0; done < n;) {
        if (done % c.T == 0) decoder.rewind(0);
        const size_t rows = std::min({kRows, n - done, c.T - done % c.T});
        decoder.feed(tokens + done, rows, needed, logits.data());
        done += rows;
    }
}

// By site, kMargin times the largest number that the first three quarters of the sample bring there. The last quarter says how
// many numbers that will clamp.
static std::vector<double> measure_bounds(Cpu& dev, const HostModel& model, const EvalTokens& sample,
                                          const std::string& path, std::FILE* text) {
    constexpr double kMargin = 1.5, kOutlier = 1000;
    const Config& c = model.info.config;
    const std::vector<std::string> sites = taper_site_names(c);
    const size_t n = std::min(sample.tokens.size(), std::max<size_t>(100'000, 2 * c.T)), measured = n - n / 4;
    std::vector<double> largest(sites.size(), 0), squares(sites.size(), 0);
    visit_inputs(dev, model, sample.tokens.data(), measured, [&](size_t site, double u) {
        largest[site] = std::max(largest[site], std::isfinite(u) ? u : INFINITY), squares[site] += u * u;
    });
    double furthest = 0;
    for (size_t i = 0; i < sites.size(); i++) {
        if (!(largest[i] >= 1e-20 && largest[i] <= 1e20))
            fail(
                "--clamp-sample %s: expected numbers from 1e-20 to 1e20 to measure, found %s%g at %s; use a model that is trained, and "
                "a text of its kind",
                path.c_str(), std::isfinite(largest[i]) ? "at most " : "", largest[i], sites[i].c_str());
        furthest = std::max(furthest, largest[i] / std::sqrt(squares[i] / double(measured * c.C)));
    }
    size_t clamped = 0, all = 0;
    visit_inputs(dev, model, sample.tokens.data() + measured, n - measured,
                 [&](size_t site, double u) { clamped += u > kMargin * largest[site], all++; });
    std::fprintf(
        text,
        "clamp     %s: at %g times the largest numbers that %s bring (at most %.3g times the site's usual number, its root mean square); "
        "%.3g%% of those of the next %s are beyond\n",
        sample.source.c_str(), kMargin, counted(measured, "token").c_str(), furthest,
        100 * double(clamped) / double(all), counted(n - measured, "token").c_str());
    if (furthest > kOutlier)
        std::fprintf(
            stderr,
            "warning: --clamp-sample %s: its largest numbers are far from all others, and the clamps with them: they may "
            "hold back little; leave out what runs off there\n",
            in_quotes(path).c_str());
    if (clamped > 0)
        std::fprintf(
            stderr,
            "warning: --clamp-sample %s: its last quarter reaches the clamps, and the model is another there; use a longer "
            "or more mixed sample\n",
            in_quotes(path).c_str());
    for (double& bound : largest) bound *= kMargin;
    return largest;
}

// The same model with a bound B at every site: kappa = 1 and c = 1 / B; what c was goes into gamma~.
static std::unique_ptr<HostModel> with_bounds(Cpu& dev, const HostModel& model, const std::vector<double>& bounds) {
    const Config& c = model.info.config;
    const std::vector<std::string> sites = taper_site_names(c);
    ModelInfo info = model.info;
    info.config.bound = 1;
    for (size_t i = 0; i < bounds.size(); i++) info.scales[i].c = float(1 / bounds[i]);
    auto bounded = std::make_unique<HostModel>(dev, info);
    GptTensors<float> tensors = model.tensors;
    const auto from = tensor_list(c, tensors), to = tensor_list(info.config, bounded->tensors);
    for (size_t i = 0; i < to.size(); i++) {
        const size_t site =
            size_t(std::find_if(sites.begin(), sites.end(),
                                [&](const std::string& name) { return to[i].spec.name == name + ".taper_weight"; }) -
                   sites.begin());
        const double factor = site < sites.size() ? double(model.info.scales[site].c) / double(info.scales[site].c) : 1;
        for (size_t j = 0; j < to[i].spec.count(); j++) to[i].data[j] = float(double(from[i].data[j]) * factor);
    }
    return bounded;
}

// path: the sample; named: --tokenizer, or empty for the model's own.
static std::unique_ptr<HostModel> with_bounds_from(Cpu& dev, const HostModel& model, const std::string& path,
                                                   const std::string& named, const std::string& in, std::FILE* text) {
    const ModelInfo& info = model.info;
    if (info.config.mode == GateMode::norm)
        fail("--clamp-sample: expected a tapered model, found %s, whose norms stay; leave the flag out", in.c_str());
    if (info.config.bound > 0)
        fail("--clamp-sample: %s was trained with --bound %g and keeps it; leave the flag out", in.c_str(),
             info.config.bound);
    std::string why_none;
    const std::optional<Tokenizer> tokenizer = tokenizer_if_any(named, info, in, why_none);
    const Tokenize encode = [&](std::string_view text) {
        if (!tokenizer) fail("%s", why_none.c_str());
        return tokenizer->encode_parallel(text, true, dev.threads);
    };
    const EvalTokens sample = read_eval_tokens("--clamp-sample", path, tokenizer, encode, info);
    const size_t least = std::max<size_t>(1000, 2 * info.config.T);  // so that every position is measured
    if (sample.tokens.size() < least)
        fail("--clamp-sample %s: expected at least %zu tokens (two contexts, and 1000), found %zu; use a longer text",
             path.c_str(), least, sample.tokens.size());
    return with_bounds(dev, model, measure_bounds(dev, model, sample, path, text));
}

// ---- the program ----------------------------------------------------------------------------------------------------

static void refuse_unfinished(const std::string& path, const ModelInfo& info) {
    if (info.config.fold != Fold::none)
        fail("%s is already folded (%s); expected a model written by train_gpt", path.c_str(),
             fold_name(info.config.fold));
    if (info.config.mode != GateMode::norm && info.gate != 0)
        fail(
            "%s: its gate is %.6g; expected 0, which it reaches when the taper ends; continue its training (./train_gpt -y "
            "-o %s) or train with a smaller --gate-end",
            path.c_str(), info.gate, shell_word(path).c_str());
}

[[maybe_unused]] static int run_program(int argc, char** argv) {
    std::string in, out, sample, tokenizer, dtype = "fp32";
    size_t threads = 0;
    bool json = false;
    Options options("fold", "Folds the norms of a finished model into the matrices that follow them.");
    options.section("Files");
    options.add(
        {.long_name = "model",
         .to = &in,
         .metavar = "MODEL",
         .help =
             "a model of train_gpt whose taper has ended (gate 0), or one trained with -g norm; or the folder of a Hugging Face "
             "GPT-2, LN-free ones included"});
    options.add({.long_name = "folded", .to = &out, .metavar = "FOLDED", .help = "the folded model to write"});
    // clang-format off
    options.add({.long_name = "--dtype", .to = &dtype, .choices = {"fp32", "bf16"},
                 .help = "number type of the weights in FOLDED; the check before writing uses fp32"});
    options.add({.long_name = "--clamp-sample", .to = &sample, .metavar = "FILE", .default_text = "none",
                 .help = "for a model without a bound (--bound 0, or an LN-free GPT-2): clamp the folded model's residual stream at 1.5 times the range that this text, "
                         "or these token shards, bring there, so that no other text can make it run off; its first 100,000 tokens count"});
    options.add({.long_name = "--tokenizer", .to = &tokenizer, .metavar = "PATH", .default_text = "the model's own",
                 .help = "with --clamp-sample and a text: bytes, a folder with vocab.json and merges.txt, a tokenizer.json, or llm.c's "
                         "gpt2_tokenizer.bin"});
    options.section("Run");
    options.add({.long_name = "--threads", .to = &threads, .range = {.high = kMostThreads}, .default_text = "the cores it may use",
                 .help = "CPU threads for the sample and the check"});
    options.add({.long_name = "--json", .to = &json,
                 .help = "print the result of the check as one JSON object; what is for people goes to the standard error"});
    // clang-format on
    if (!options.parse(argc, argv)) return 0;
    claim_output("FOLDED", out);
    check_no_run("FOLDED", out);
    std::FILE* text = json ? stderr : stdout;

    Cpu dev{int(threads)};
    dev.memory_hint = "folding holds the model twice in double and twice in fp32; use a machine with more memory";
    std::unique_ptr<HostModel> model = load_model(dev, in);
    std::fprintf(text, "read      %s: %s\n", printable(in).c_str(), describe(model->info).c_str());
    ProvenanceStep step{.program = "fold", .settings = {{"dtype", dtype}}, .model = source_of(in, *model)};
    if (!sample.empty()) step.settings.push_back({"clamp-sample", name_without_folder(sample)});
    refuse_unfinished(in, model->info);
    warn_of_vocabulary(in, model->info.vocabulary_problem);
    warn_of_provenance(in, model->info.provenance_refused);
    check_writable(out);
    check_replaceable("FOLDED", out, "a folded model", [](const SafetensorsFile& file) {
        return file.metadata().contains("format_version") && file.metadata().contains("folded") &&
               file.metadata().at("folded") != "none";
    });

    if (!tokenizer.empty() && sample.empty())
        fail("--tokenizer: expected --clamp-sample, whose text it is for, found none; leave it out");
    if (!sample.empty())
        model = with_team(dev, [&] { return with_bounds_from(dev, *model, sample, tokenizer, in, text); });

    Model64 exact(dev, *model);
    ModelInfo info = model->info;
    info.config.fold = fold_for(info.config.mode), info.config.own_head = false;
    info.unread.clear();
    if (!info.config.clamps()) info.scales.clear();
    Model64 folded_exact(dev, info.config);
    fold_model(folded_exact, exact, model->info.scales);
    HostModel folded(dev, info);
    copy_tensors(tensor_list(info.config, folded_exact.tensors), tensor_list(info.config, folded.tensors));
    const auto check_with = [&](double bound) {
        return with_team(dev, [&] { return check(dev, *model, exact, folded, folded_exact, bound); });
    };
    const Check result = check_with(info.config.bound);
    print(result, text);
    // Few rows of the probe reach the bound. A lower one, that most of them reach, must fold as well.
    if (info.config.clamps()) check_with(0.5);
    MappedFile::check_all();
    info.provenance = add_step(info.provenance, step);
    const ModelImage image(info, folded.tensors, dtype == "bf16" ? Dtype::BF16 : Dtype::F32);
    image.write(out);
    std::fprintf(text, "wrote     %s: %s\n", printable(out).c_str(), describe(info).c_str());
    if (json) print_json({{"model", in}, {"folded", out}, {"content", image.content()}, {"check", as_json(result)}});
    return 0;
}

}  // namespace tapernorm::fold

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::start_program();
    return tapernorm::exit_status("fold", [&] { return tapernorm::fold::run_program(argc, argv); });
}
#endif
