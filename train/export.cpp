#include "train/export.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "inference/decoder.cuh"
#include "inference/evaluate.cuh"
#include "inference/logits.h"
#include "inference/same_model.h"
#include "inference/sampler.h"
#include "io/files.h"
#include "io/mapped_file.h"
#include "io/options.h"
#include "io/output_folder.h"
#include "io/tokenizer.h"
#include "model/foreign_model.h"
#include "runtime/random.h"
#include "train/gguf.h"
#include "train/modeling_tapernorm.h"

namespace tapernorm::train {

namespace fs = std::filesystem;
using nlohmann::json;

static bool normed(const ModelInfo& info) { return info.config.mode == GateMode::norm || info.gate == 1; }

bool fits_gpt2_lm_head_model(const ModelInfo& info) {
    const Config& c = info.config;
    const bool fixed = c.mode == GateMode::taper_all && info.gate == 0 && c.bound == 0;
    return c.norm == NormKind::layernorm && (normed(info) || fixed);
}

// A constant may be added to a row of W, because z has mean 0: head = W - mean(row) + s b 1^T. Then head z = W z, and if every
// element of site_bias is 1 / (C s), head site_bias = b. s, a power of two, makes the two terms equally large, so that
// rounding to fp32 harms neither of them.
void export_head(std::vector<double>& head, std::vector<double>& site_bias, const float* W, const float* b, size_t V,
                 size_t C) {
    head.assign(W, W + V * C);
    site_bias.assign(C, 0);
    double squares = 0, bias_squares = 0;
    for (size_t v = 0; v < V; v++) {
        double mean = 0;
        for (size_t i = 0; i < C; i++) mean += head[v * C + i] / double(C);
        for (size_t i = 0; i < C; i++)
            head[v * C + i] -= mean, squares += head[v * C + i] * head[v * C + i] / double(C);
        if (b) bias_squares += double(b[v]) * double(b[v]);
    }
    if (bias_squares == 0 || squares == 0) return;
    const double s = std::exp2(std::round(std::log2(std::sqrt(squares / bias_squares))));
    for (size_t v = 0; v < V; v++)
        for (size_t i = 0; i < C; i++) head[v * C + i] += s * double(b[v]);
    site_bias.assign(C, 1 / (double(C) * s));
}

namespace {

constexpr double kFixedSigma = 1e6;  // what a LayerNorm with kLnFreeEps divides every row by (see export.h)

// The weight and bias of a site as nn.LayerNorm has them.
void add_site(Gpt2Tensors& out, const std::string& name, const ModelInfo& info, const SiteTensors<float>& site,
              double c) {
    const size_t C = info.config.C;
    std::vector<double> weight(C, 1), bias(C, 0);
    const float* w = normed(info) ? site.weight : site.taper_weight;  // null where folded
    const float* b = normed(info) ? site.bias : site.taper_bias;
    if (w) weight.assign(w, w + C);
    if (b) bias.assign(b, b + C);
    if (!normed(info))
        for (double& x : weight) x *= c * kFixedSigma;
    out.add({name + ".weight", {C}, {}, false}, weight);
    out.add({name + ".bias", {C}, {}, false}, bias);
}

Gpt2Tensors as_gpt2(const HostModel& model) {
    const ModelInfo& info = model.info;
    const Config& c = info.config;
    Gpt2Tensors out{normed(info) ? c.eps : kLnFreeEps, {}, {}};
    auto scale = [&](size_t site) { return info.scales.empty() ? 1.0 : double(info.scales[site].c); };
    GptTensors<float> tensors = model.tensors;
    visit_tensors(c, tensors, [&](const TensorSpec& t, float*& data) {
        const bool of_site = t.name.find(".ln_") != t.name.npos, head = t.name.starts_with("lm_head");
        if (!of_site && !head) out.add(t, {data, data + t.count()});
    });
    for (size_t l = 0; l < c.L; l++) {
        const std::string h = "transformer.h." + std::to_string(l);
        add_site(out, h + ".ln_1", info, tensors.h[l].ln_1, scale(2 * l));
        add_site(out, h + ".ln_2", info, tensors.h[l].ln_2, scale(2 * l + 1));
    }
    add_site(out, "transformer.ln_f", info, tensors.ln_f, c.final_tapers() ? scale(2 * c.L) : 1);
    if (c.own_head) {
        out.add({"lm_head.weight", {c.V, c.C}, {}, true}, {tensors.lm_head, tensors.lm_head + c.V * c.C});
    } else if (tensors.lm_head) {
        std::vector<double> head, bias;
        export_head(head, bias, tensors.lm_head, tensors.lm_head_bias, c.V, c.C);
        out.values.back().assign(bias.begin(), bias.end());
        out.add({"lm_head.weight", {c.V, c.C}, {}, true}, head);
    }
    return out;
}

void write_gpt2(const std::string& path, const Gpt2Tensors& model, Dtype dtype, const std::string& provenance) {
    std::vector<TensorOut> out;
    std::vector<std::vector<uint16_t>> rounded(model.specs.size());
    for (size_t i = 0; i < model.specs.size(); i++) {
        const std::vector<float>& values = model.values[i];
        if (dtype == Dtype::BF16)
            for (float x : values) rounded[i].push_back(bf16_from_float(x));
        const void* data = dtype == Dtype::BF16 ? static_cast<const void*>(rounded[i].data()) : values.data();
        out.push_back({model.specs[i].name, dtype, model.specs[i].shape, data});
    }
    write_safetensors(path, {{"format", "pt"}, {"provenance", provenance}}, out);
}

// The id of the token at which texts end, if there is one: <|endoftext|>, or of a byte model the zero byte, which no text has.
std::optional<size_t> end_id(const std::optional<Tokenizer>& tokenizer) {
    if (!tokenizer) return std::nullopt;
    if (tokenizer->name() == "bytes") return 0;
    return tokenizer->end_of_text();
}

// Beginning, end and padding are one token, as in GPT-2: evaluators ask for all three.
void add_end(json& object, const json& end) {
    for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) object[key] = end;
}

json config_json(const ModelInfo& info, double eps, bool plain, Dtype dtype, const json& end) {
    const Config& c = info.config;
    json config = {{"model_type", "gpt2"},
                   {"architectures", {"GPT2LMHeadModel"}},
                   {"activation_function", "gelu_new"},
                   {"attn_pdrop", 0.0},
                   {"embd_pdrop", 0.0},
                   {"resid_pdrop", 0.0},
                   {"layer_norm_epsilon", eps},
                   {"n_embd", c.C},
                   {"n_head", c.NH},
                   {"n_inner", nullptr},
                   {"n_layer", c.L},
                   {"n_positions", c.T},
                   {"tie_word_embeddings", !c.untied_head()},
                   {"torch_dtype", dtype == Dtype::BF16 ? "bfloat16" : "float32"},
                   {"use_cache", true},
                   {"vocab_size", c.V}};
    add_end(config, end);
    if (plain) return config;
    config["model_type"] = "tapernorm_gpt2";
    config["architectures"] = {"TaperNormGPT2LMHeadModel"};
    config["auto_map"] = {{"AutoConfig", "modeling_tapernorm.TaperNormConfig"},
                          {"AutoModelForCausalLM", "modeling_tapernorm.TaperNormGPT2LMHeadModel"}};
    config["norm"] = norm_name(c.norm);
    config["gate_mode"] = gate_mode_name(c.mode);
    config["gate"] = info.gate;
    config["folded"] = fold_name(c.fold);
    config["bound"] = c.bound;
    config["final_bound"] = c.bound_at(true);
    config["first_apart"] = c.first_apart;
    return config;
}

// Writes vocab.json, merges.txt and the settings with which GPT2Tokenizer makes our ids. GPT2Tokenizer looks for special tokens in the
// text itself. So the zero byte of a byte model is called "\0" in place of U+0100, which stands for it in byte-level
// vocabularies and is a letter of Latvian: every text is its bytes still.
void write_tokenizer(OutputFolder& folder, const Tokenizer& tokenizer, size_t context) {
    json end;
    if (tokenizer.name() == "bytes") {
        end = std::string(1, '\0');
        nlohmann::ordered_json vocabulary = {{end, 0}};
        for (size_t id = 1; id < tokenizer.vocab_size(); id++)
            vocabulary[printable_from_bytes(tokenizer.token(id))] = id;
        write_text(folder.file("vocab.json"), vocabulary.dump() + "\n");
        write_text(folder.file("merges.txt"), merges_txt_text({}, {}));
    } else {
        tokenizer.save(folder);
        if (tokenizer.end_of_text()) end = kEndOfText;
    }
    // clang-format off
    const json settings = {{"tokenizer_class", "GPT2Tokenizer"}, {"add_prefix_space", false}, {"model_max_length", context},
                           {"bos_token", end}, {"eos_token", end}, {"unk_token", end}, {"pad_token", end}};
    // clang-format on
    write_text(folder.file("tokenizer_config.json"), settings.dump(2) + "\n");
}

// The model card. All in it is known: what the model is, and its provenance.
std::string card(const std::string& name, const ModelInfo& info, bool plain,
                 const std::optional<Tokenizer>& tokenizer) {
    const std::string remote = plain ? "" : ", trust_remote_code=True";
    std::string history;
    std::istringstream lines(provenance_text(info.provenance));
    for (std::string line; std::getline(lines, line);) history += "    " + line + "\n";
    std::string text =
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpt2\n- tapernorm\n---\n\n# " +
        printable(name) + "\n\n" + describe(info) + ".\n\n";
    if (!plain)
        text +=
            "Its norms are those of TaperNorm ([arXiv 2602.10408](https://arxiv.org/abs/2602.10408)), which GPT2LMHeadModel does "
            "not have: `modeling_tapernorm.py` in this folder has. Read it before you trust it.\n\n";
    text +=
        "## Load\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(\"FOLDER\"" +
        remote + ")\n";
    if (tokenizer) text += "tokenizer = AutoTokenizer.from_pretrained(\"FOLDER\"" + remote + ")\n";
    text += "```\n\nFOLDER is this one, or its name on the hub. The model continues texts of at most " +
            counted(info.config.T, "token") + "; it is no chat model.\n\n";
    if (tokenizer && tokenizer->name() == "bytes")
        text +=
            "Tokens are bytes. Texts end at byte 0, which no text holds; beginning and padding are the same token.\n\n";
    if (!tokenizer)
        text += "Its tokenizer is not in this folder: it is known by name only, " +
                in_quotes(info.tokenizer.at("tokenizer")) + ".\n\n";
    return text +
           "## How it was made\n\nOne step for each program, the oldest first. Losses are in nats per token; checksums are those that "
           "`train_gpt`, `fold` and `infer --info` print.\n\n" +
           history +
           "\n## License\n\nNone was chosen. Whoever publishes the model names one here, and as `license: ...` between the lines of dashes on top.\n";
}

// ---- what was exported is what others will run

struct NamedNumbers {
    std::vector<size_t> shape;
    const float* numbers;
};
using NamedTensors = std::map<std::string, NamedNumbers>;

NamedTensors named(const Gpt2Tensors& gpt2) {
    NamedTensors all;
    for (size_t i = 0; i < gpt2.specs.size(); i++)
        all[gpt2.specs[i].name] = {gpt2.specs[i].shape, gpt2.values[i].data()};
    return all;
}

NamedTensors named(const HostModel& model) {
    NamedTensors all;
    GptTensors<float> tensors = model.tensors;
    const Config& c = model.info.config;
    for (const Tensor<float>& t : tensor_list(c, tensors)) all[t.spec.name] = {t.spec.shape, t.data};
    const std::vector<std::string> sites = taper_site_names(c);
    for (size_t i = 0; i < sites.size(); i++) {
        all[sites[i] + ".taper_scale"] = {{1}, &model.info.scales[i].c};
        if (c.first_apart) all[sites[i] + ".first_scale"] = {{1}, &model.info.scales[i].first};
    }
    return all;
}

// The model that transformers makes of a config.json and these tensors: GPT2LMHeadModel has a LayerNorm at every site, with the
// epsilon that stands there, however large. Tensors that nobody asks for are errors, as they are for from_pretrained's reader.
std::unique_ptr<HostModel> as_transformers_reads(Cpu& dev, const json& config, const NamedTensors& tensors) {
    ModelInfo info = read_hugging_face_config("config.json", config.dump());
    Config& c = info.config;
    if (config["model_type"] == "gpt2") {
        c.mode = GateMode::norm, c.eps = config["layer_norm_epsilon"];
        info.gate = 1, info.scales.clear();
    }
    c.own_head = c.fold == Fold::none && !config["tie_word_embeddings"].get<bool>();
    std::set<std::string> unread;
    for (const auto& [name, numbers] : tensors) unread.insert(name);
    auto find = [&](const std::string& name, const std::vector<size_t>& shape) {
        const auto found = tensors.find(name);
        if (found == tensors.end() || found->second.shape != shape)
            fail("export: expected the tensor %s with the shape %s, found %s; nothing was written, please report this",
                 name.c_str(), shape_text(shape).c_str(),
                 found == tensors.end() ? "none" : shape_text(found->second.shape).c_str());
        unread.erase(name);
        return found->second.numbers;
    };
    for (const std::string& site : taper_site_names(c)) {
        const float scale = *find(site + ".taper_scale", {1});
        info.scales.push_back({scale, c.first_apart ? *find(site + ".first_scale", {1}) : 1});
    }
    auto model = std::make_unique<HostModel>(dev, info);
    for (const Tensor<float>& t : tensor_list(c, model->tensors))
        std::copy_n(find(t.spec.name, t.spec.shape), t.spec.count(), t.data);
    if (!unread.empty())
        fail("export: nobody would read the tensor %s; nothing was written, please report this",
             unread.begin()->c_str());
    return model;
}

// Before anything is written: what transformers will make of it has the logits of the model, as fold requires it. In fp32:
// --dtype bf16 rounds afterwards.
void check_same_logits(Cpu& dev, const std::string& in, const HostModel& model, const json& config,
                       const NamedTensors& tensors) {
    const std::unique_ptr<HostModel> theirs = as_transformers_reads(dev, config, tensors);
    const Model64 exact(dev, model);
    const Probe probe(exact.config);
    const std::vector<double> truth = probe_logits(dev, probe, exact.config, exact.tensors, model.info);
    const std::vector<double> before = probe_logits(dev, probe, exact.config, model.tensors, model.info);
    const std::vector<double> after = probe_logits(dev, probe, theirs->info.config, theirs->tensors, theirs->info);
    const double own = max_difference(truth, before), error = max_difference(truth, after);
    // GPT2LMHeadModel centers the rows that enter folded matrices, of which nothing is left to center but where the matrices were
    // rounded: a folded model's own file may have them in 8 or 11 bits, and its logits are no more exact than that.
    const Config& c = model.info.config;
    const std::string& dtype = model.info.dtype;
    const bool centers = c.fold != Fold::none && config["model_type"] == "gpt2";
    const double unit = !centers                           ? 0x1p-24
                        : dtype.find("BF16") != dtype.npos ? 0x1p-9
                        : dtype.find("F16") != dtype.npos  ? 0x1p-12
                                                           : 0x1p-24;
    const double allowed = allowed_by_rounding(own, max_magnitude(truth), unit);
    if (!(error <= allowed))
        fail(
            "%s: what would be exported is not the model: its logits differ by %.3g, but rounding explains only %.3g; nothing was written%s",
            in.c_str(), error, allowed,
            theirs->info.config.eps >= kLnFreeEps
                ? "; its stream is too large for GPT2LMHeadModel's norms with epsilon 1e12: --hf-code exports it without these"
                : ", please report this");
    std::printf(
        "check     %zu x %s: max |dlogit| %.3g; against the model in double: %.3g, exported %.3g, allowed %.3g\n",
        probe.kSequences, counted(probe.length, "token").c_str(), max_difference(before, after), own, error, allowed);
}

void check_new(const std::string& out, bool gguf) {
    std::error_code ignored;
    const bool empty_folder = !gguf && fs::is_directory(out, ignored) && fs::is_empty(out, ignored);
    if (!empty_folder && fs::exists(fs::symlink_status(out, ignored)))
        fail("%s exists already%s; expected the name of a new %s", out.c_str(),
             gguf ? "" : " and is not an empty folder", gguf ? "file" : "folder");
}

// Why GPT-2 as others run it cannot hold the model.
const char* what_gpt2_lacks(const ModelInfo& info) {
    return info.config.norm == NormKind::rmsnorm ? "has LayerNorm, not RMSNorm"
           : info.gate > 0                       ? "has no gate"
           : info.config.mode == GateMode::taper
               ? "has all norms or none, and here only the final norm stays"
               : "has no bound; --without-bound leaves it out, where it changes nothing";
}

void check_fits_gguf(const std::string& in, const ModelInfo& info, const std::string& why_no_tokenizer) {
    if (!fits_gpt2_lm_head_model(info))
        fail(
            "%s: a GGUF file cannot hold this model, because the architecture gpt2 of llama.cpp %s; expected a LayerNorm model of -g "
            "norm, or of -g taper-all at gate 0 without a bound; a folder (export MODEL DIR) holds any model, for transformers",
            in.c_str(), what_gpt2_lacks(info));
    if (!why_no_tokenizer.empty())
        fail("%s: a GGUF file needs the model's tokenizer; name it with --tokenizer (%s)", in.c_str(),
             why_no_tokenizer.c_str());
}

void print_result(const std::string& dir, const ModelInfo& info, bool plain, double eps) {
    const std::string python = json(dir).dump(-1, ' ', printable(dir) != dir, json::error_handler_t::replace);
    if (plain) {
        std::printf("load      GPT2LMHeadModel.from_pretrained(%s)\n", python.c_str());
        if (eps >= kLnFreeEps)
            std::printf(
                "          (Its LayerNorms divide by 1e6 what their weights multiply by 1e6: fp16 makes it NaN, and fine-tuning "
                "hardly moves them. --hf-code exports a folder without that.)\n");
        return;
    }
    std::printf("load      AutoModelForCausalLM.from_pretrained(%s, trust_remote_code=True)\n", python.c_str());
    if (!fits_gpt2_lm_head_model(info))
        std::printf(
            "          (GPT2LMHeadModel cannot hold this model: it %s. The folder's modeling_tapernorm.py can.)\n",
            what_gpt2_lacks(info));
}

// Leaves out the bound, and what goes with it, of a model that is nearly the same without. That is measured on texts which the
// model writes itself: they are of the kind that it was trained on, whatever that was.
void leave_out_bound(Cpu& dev, HostModel& model, const std::string& in) {
    constexpr size_t kTexts = 4, kLength = 64;
    constexpr double kMostKl = 0.01;  // nats; tapering a pretrained model costs 0.02 at the least that was seen
    ModelInfo &info = model.info, without = info;
    const Config& c = info.config;
    if (c.bound == 0) fail("--without-bound: %s has no bound to leave out", in.c_str());
    without.config.bound = 0, without.config.first_apart = false;
    if (c.fold != Fold::none) without.scales.clear();  // only the clamps had need of it
    if (!fits_gpt2_lm_head_model(without))
        fail(
            "--without-bound: expected a LayerNorm model of -g taper-all whose gate is 0, which GPT2LMHeadModel can hold, found %s; "
            "export MODEL DIR, without the flag, writes a folder whose modeling file can hold it, bound and all",
            describe(info).c_str());

    Decoder<Cpu, float> own(dev, c, model.tensors, info.scales, info.gate);
    Decoder<Cpu, float> other(dev, without.config, model.tensors, without.scales, info.gate);
    BoundUse first, behind;
    count_bounds(dev, own, first, behind);
    const size_t length = std::min(c.T, kLength);
    std::vector<float> logits(c.V), changed(c.V);
    double kl = 0;
    for (size_t text = 0; text < kTexts; text++) {
        own.rewind(0), other.rewind(0);
        int token = int(random_bits(7, text, 0) % c.V);
        for (size_t t = 0; t < length; t++) {
            own.feed(&token, 1, Logits::last, logits.data()), other.feed(&token, 1, Logits::last, changed.data());
            require_finite(in, logits);
            kl += divergence(logits.data(), changed.data(), c.V) / double(kTexts * length);
            token = sample(logits.data(), c.V, {.stream = text + 1}, t);
        }
    }
    const std::string found = strprintf(
        "in %zu texts of %s which it wrote, the bound clips %.3g%% of the numbers in first positions and %.3g%% of those "
        "behind them, and predictions without it are %.3g nats from those with it (KL)",
        kTexts, counted(length, "token").c_str(), 100 * first.share(), 100 * behind.share(), std::max(kl, 0.0));
    if (!(kl <= kMostKl))
        fail(
            "--without-bound: %s is another model without its bound: %s; expected at most %g. export MODEL DIR, without the "
            "flag, writes a folder whose modeling file can hold it, bound and all; or train it with --bound 0%s",
            in.c_str(), found.c_str(), kMostKl, c.first_apart ? " --calibration channels" : "");
    std::printf("check     %s\n", found.c_str());
    std::fprintf(
        stderr,
        "warning: %s: its bound is left out%s: what is exported is another model where a text reaches the bound\n",
        in_quotes(in).c_str(), c.first_apart ? ", and its factor of first positions" : "");
    info = without;
}

}  // namespace

int export_command(int argc, const char* const* argv) {
    std::string in, out, dtype_text = "fp32", tokenizer_path;
    bool without_bound = false, hf_code = false;
    Options options(
        "train_gpt export",
        "Writes a model as a folder that Hugging Face's transformers can load, or as a GGUF file for llama.cpp, Ollama and "
        "LM Studio.");
    options.section("Files");
    // clang-format off
    options.add({.long_name = "model", .to = &in, .metavar = "MODEL",
                 .help = "a model written by train_gpt or fold, a Hugging Face GPT-2 (its folder), or a checkpoint of llm.c"});
    options.add({.long_name = "folder", .to = &out, .metavar = "DIR|FILE.gguf", .help = "the folder to create; or the file, if its name ends in .gguf"});
    options.add({.long_name = "--tokenizer", .to = &tokenizer_path, .metavar = "PATH", .default_text = "the model's own",
                 .help = "the tokenizer to write: bytes, or a folder with vocab.json and merges.txt"});
    // clang-format on
    options.add(
        {.long_name = "--without-bound",
         .to = &without_bound,
         .help =
             "leave out the bound of a -g taper-all model's sites, so that GPT2LMHeadModel and GGUF can hold it; refused where that "
             "changes what the model predicts"});
    options.add(
        {.long_name = "--hf-code",
         .to = &hf_code,
         .help =
             "a folder with the modeling file also where GPT2LMHeadModel can hold the model: what it holds of -g taper-all, by an epsilon "
             "of 1e12, is NaN in fp16, and fine-tuning hardly moves the weights of its norms"});
    options.add(
        {.long_name = "--dtype", .to = &dtype_text, .choices = {"fp32", "bf16"}, .help = "number type of the weights"});
    if (!options.parse(argc, argv)) return 0;

    std::string ending = out.substr(out.size() - std::min<size_t>(out.size(), 5));
    for (char& c : ending) c = char(std::tolower(static_cast<unsigned char>(c)));
    const bool gguf = ending == ".gguf";
    if (gguf && hf_code)
        fail("--hf-code: expected a folder to export to, found %s; a GGUF file holds no code", out.c_str());
    Cpu dev;
    dev.memory_hint = "the check before writing holds the model in double, too; use a machine with more memory";
    const std::unique_ptr<HostModel> model = load_model(dev, in);
    ModelInfo& info = model->info;
    std::printf("read      %s: %s\n", printable(in).c_str(), describe(info).c_str());
    std::string why_none;
    const std::optional<Tokenizer> tokenizer = tokenizer_if_any(tokenizer_path, info, in, why_none);
    if (!tokenizer && !gguf) warn_of_vocabulary(in, info.vocabulary_problem);
    warn_of_provenance(in, info.provenance_refused);
    check_new(out, gguf);
    ProvenanceStep step{.program = "train_gpt export",
                        .settings = {{"dtype", dtype_text}},
                        .model = source_of(in, *model)};
    if (without_bound) step.settings.push_back({"without-bound", "yes"});
    if (hf_code) step.settings.push_back({"hf-code", "yes"});
    if (without_bound) leave_out_bound(dev, *model, in);
    info.provenance = add_step(info.provenance, step);
    const Dtype dtype = dtype_text == "bf16" ? Dtype::BF16 : Dtype::F32;
    if (gguf) check_fits_gguf(in, info, why_none);
    const bool plain = fits_gpt2_lm_head_model(info) && !hf_code;
    const std::optional<size_t> end = end_id(tokenizer);
    const Gpt2Tensors gpt2 = plain ? as_gpt2(*model) : Gpt2Tensors{info.config.eps, {}, {}};
    const json config = config_json(info, gpt2.eps, plain, dtype, end ? json(*end) : json());
    check_same_logits(dev, in, *model, config, plain ? named(gpt2) : named(*model));
    if (gguf) {
        write_gguf(out, printable(fs::path(in).stem().string()), info, gpt2, dtype, *tokenizer);
        std::printf("wrote     %s: GGUF, %s\n", printable(out).c_str(), dtype_text.c_str());
        return 0;
    }
    OutputFolder folder(out, false);
    if (plain) {
        write_gpt2(folder.file("model.safetensors"), gpt2, dtype, info.provenance);
    } else {
        // The modeling file uses our names of the tensors.
        save_model(folder.file("model.safetensors"), info, model->tensors, dtype);
        write_text(folder.file("modeling_tapernorm.py"), kModelingTapernormPy);
    }
    if (tokenizer)
        write_tokenizer(folder, *tokenizer, info.config.T);
    else
        std::printf("note      no tokenizer was written: %s\n", why_none.c_str());
    json generation = json::object();
    if (end) add_end(generation, *end);
    write_text(folder.file("generation_config.json"), generation.dump(2) + "\n");
    write_text(folder.file("README.md"), card(name_without_folder(out), info, plain, tokenizer));
    MappedFile::check_all();
    // Written last, because only with it is the folder a model.
    write_text(folder.file("config.json"), config.dump(2) + "\n");
    folder.keep();
    std::printf("wrote     %s: %s, %s\n", printable(out).c_str(),
                plain ? "GPT2LMHeadModel" : "TaperNormGPT2LMHeadModel", dtype_text.c_str());
    print_result(out, info, plain, gpt2.eps);
    return 0;
}

}  // namespace tapernorm::train
