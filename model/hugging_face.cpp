// Reads GPT-2 models in Hugging Face's format.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "io/files.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/tokenizer.h"
#include "io/torch_file.h"
#include "model/foreign_model.h"

namespace tapernorm {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kConfig = "config.json";
// In this order; the second and the last are indexes of shards.
constexpr const char* kWeights[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                    "pytorch_model.bin.index.json"};
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kAdapter = "adapter_config.json";

std::string beside(const std::string& file, const char* name) { return (fs::path(file).parent_path() / name).string(); }

json json_object(const std::string& path, const std::string& text) {
    json parsed = parse_json(text);
    if (!parsed.is_object())
        fail("%s: expected a JSON object, found %s; the file is damaged or its copy is incomplete", path.c_str(),
             json_found(parsed, text).c_str());
    return parsed;
}

// Typed access to config.json. A missing key has the value that GPT2Config gives it.
class Settings {
  public:
    Settings(std::string path, const std::string& text) : path_(std::move(path)), json_(json_object(path_, text)) {}

    const std::string& path() const { return path_; }

    size_t count(const char* key, size_t standard, size_t low, size_t high) const {
        const json* value = find(key);
        if (!value) return standard;
        if (!value->is_number_unsigned() || value->get<uint64_t>() < low || value->get<uint64_t>() > high)
            refuse(key, strprintf("a whole number from %zu to %zu", low, high), *value);
        return value->get<size_t>();
    }

    double real(const char* key, double standard, double low, double high) const {
        const json* value = find(key);
        if (!value) return standard;
        if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high))
            refuse(key, strprintf("a number from %g to %g", low, high), *value);
        return value->get<double>();
    }

    bool flag(const char* key, bool standard) const {
        const json* value = find(key);
        if (!value) return standard;
        if (!value->is_boolean()) refuse(key, "true or false", *value);
        return value->get<bool>();
    }

    std::string choice(const char* key, const char* standard, std::initializer_list<const char*> names) const {
        const json* value = find(key);
        if (!value) return standard;
        std::string all;
        for (const char* name : names) {
            if (*value == name) return name;
            all += (all.empty() ? "\"" : ", \"") + std::string(name) + "\"";
        }
        refuse(key, "one of " + all, *value);
    }

    void require(const char* key, const json& expected) const {
        if (const json* value = find(key); value && *value != expected) refuse(key, expected.dump(), *value);
    }

    const json* find(const char* key) const {  // null counts as missing
        const auto found = json_.find(key);
        return found == json_.end() || found->is_null() ? nullptr : &*found;
    }

    [[noreturn]] void refuse(const char* key, const std::string& expected, const json& found) const {
        std::string text = found.dump(-1, ' ', true, json::error_handler_t::replace);
        if (text.size() > 60) text = text.substr(0, 57) + "...";
        fail("%s: \"%s\": expected %s, found %s; this program runs GPT-2 as it was published", path_.c_str(), key,
             expected.c_str(), text.c_str());
    }

  private:
    std::string path_;
    json json_;
};

// What the modeling file's TaperNormConfig adds, with its standard values.
void read_sites(const Settings& s, ModelInfo& info) {
    auto bound_of = [&](const char* key) {
        const double bound = s.real(key, 0, 0, 1e30);
        if (bound > 0 && bound < kLeastBound) s.refuse(key, strprintf("0 or at least %g", kLeastBound), bound);
        return bound;
    };
    Config& c = info.config;
    c.norm = norm_from(s.choice("norm", "layernorm", {"layernorm", "rmsnorm"}));
    c.mode = gate_mode_from(s.choice("gate_mode", "taper", {"norm", "taper", "taper-all"}));
    c.fold = fold_from(s.choice("folded", "none", {"none", "affine", "internal", "all"}));
    info.gate = s.real("gate", 0, 0, 1);
    if (c.mode == GateMode::norm) info.gate = 1;
    if (c.mode == GateMode::norm || c.fold == Fold::affine) return;
    c.bound = bound_of("bound");
    const double final_bound = bound_of("final_bound");
    if (c.mode == GateMode::taper_all && c.bound > 0 && final_bound != c.bound) c.final_bound = final_bound;
    if (c.mode == GateMode::taper_all && c.bound > 0 && final_bound == 0)
        s.refuse("final_bound", "that of the final norm, which tapers", 0);
    c.first_apart = s.flag("first_apart", false);
    if (c.first_apart && c.bound == 0) s.refuse("first_apart", "false where there is no bound", true);
}

constexpr const char* kTaperNorm = "tapernorm_gpt2";

ModelInfo read_settings(const Settings& s) {
    const bool sites = s.choice("model_type", "gpt2", {"gpt2", kTaperNorm}) == kTaperNorm;
    s.require("scale_attn_weights", true);
    s.require("scale_attn_by_inverse_layer_idx", false);
    s.require("add_cross_attention", false);
    if (const json* q = s.find("quantization_config"))
        s.refuse("quantization_config", "none (weights as they are)", *q);
    if (const json* f = s.find("activation_function"); f && *f != "gelu_new" && *f != "gelu_pytorch_tanh")
        s.refuse("activation_function", "\"gelu_new\"", *f);
    ModelInfo info;
    Config& c = info.config;
    c.V = s.count("vocab_size", 50257, 2, 1 << 24);
    c.T = s.count("n_positions", 1024, 1, 1 << 24);
    c.L = s.count("n_layer", 12, 1, 100000);
    c.C = s.count("n_embd", 768, 1, 1 << 20);
    c.NH = s.count("n_head", 12, 1, c.C);
    c.eps = s.real("layer_norm_epsilon", 1e-5, 0, 1e30);
    if (const size_t inner = s.count("n_inner", 4 * c.C, 1, 1 << 24); inner != 4 * c.C)
        s.refuse("n_inner", strprintf("4 x n_embd = %zu", 4 * c.C), inner);
    if (c.C % c.NH)
        fail("%s: expected n_embd to be a multiple of n_head (%zu), found %zu", s.path().c_str(), c.NH, c.C);
    c.norm = NormKind::layernorm, c.mode = GateMode::norm;
    if (sites) {
        read_sites(s, info);
    } else if (c.eps >= kLnFreeEps) {
        info.gate = 0, c.mode = GateMode::taper_all;
        info.scales.assign(2 * c.L + 1, {float(kLnFreeUnit / std::sqrt(c.eps)), 1});
        c.eps = default_eps(c.norm);
    }
    return info;
}

// The files that an index names. They are beside it: a name with a folder in it is not the name of a shard.
std::vector<std::string> shards(const std::string& index) {
    const json parsed = json_object(index, read_text(index, 10 << 20));
    const auto map = parsed.find("weight_map");
    std::set<std::string> names;
    if (map != parsed.end() && map->is_object())
        for (const auto& [tensor, file] : map->items()) {
            if (!file.is_string())
                fail("%s: \"weight_map\": %s: expected the name of a file, found %s", index.c_str(),
                     in_quotes(tensor).c_str(), in_quotes(file.dump()).c_str());
            names.insert(file.get<std::string>());
        }
    if (names.empty())
        fail("%s: expected \"weight_map\": {tensor: file, ...}, found none; it is not an index of shards",
             index.c_str());
    std::vector<std::string> files;
    for (const std::string& name : names) {
        if (name.empty() || name.find('/') != name.npos || name.find('\0') != name.npos ||
            !(name.ends_with(".safetensors") || name.ends_with(".bin")))
            fail("%s: a shard is called %s; expected the name of a .safetensors or .bin file beside it", index.c_str(),
                 in_quotes(name).c_str());
        files.push_back(beside(index, name.c_str()));
    }
    return files;
}

// Names of tensors hold those of the modules that wrap a model, or a part of it, while it is trained: DataParallel's, torch.compile's,
// FSDP's, and that of checkpointed activations. "module._orig_mod.transformer.wte.weight" is "transformer.wte.weight".
std::string without_wrappers(const std::string& tensor) {
    std::string name;
    for (size_t at = 0; at < tensor.size();) {
        const size_t end = std::min(tensor.find('.', at), tensor.size() - 1) + 1;
        const std::string_view part = std::string_view(tensor).substr(at, end - at);
        if (part != "module." && part != "_orig_mod." && part != "_fsdp_wrapped_module." &&
            part != "_checkpoint_wrapped_module.")
            name += part;
        at = end;
    }
    return name;
}

TensorFile open_tensors(const std::string& path) {
    TensorFile file = is_torch_file(path) ? TensorFile(TorchFile(path)) : TensorFile(SafetensorsFile(path));
    file.rename(without_wrappers);
    return file;
}

// "pytorch_model-00001-of-00002.bin" has a part of a model's tensors.
void refuse_shard(const std::string& path) {
    const std::string stem = fs::path(path).stem().string();
    unsigned long number = 0, all = 0;
    int end = 0;
    const size_t at = stem.size() - std::min(stem.size(), std::string_view("-00001-of-00002").size());
    if (std::sscanf(stem.c_str() + at, "-%5lu-of-%5lu%n", &number, &all, &end) == 2 && !stem[at + size_t(end)] &&
        all > 1)
        fail("%s is one of the %lu files of a model; name its folder, or %s in it", path.c_str(), all,
             in_quotes(stem.substr(0, at) + fs::path(path).extension().string() + ".index.json").c_str());
}

class HuggingFaceModel : public ModelFile {
  public:
    explicit HuggingFaceModel(const std::string& weights) : ModelFile(weights, true) {
        refuse_shard(weights);
        const bool sharded = weights.ends_with(".json");
        for (const std::string& file : sharded ? shards(weights) : std::vector{weights})
            files_.push_back(open_tensors(file));
        const std::string config = beside(weights, kConfig);
        std::error_code ignored;
        if (!fs::exists(config, ignored))
            fail(
                "%s is not a model of this program (its metadata has no \"format_version\"), and a Hugging Face GPT-2 would "
                "need %s, which does not exist",
                weights.c_str(), config.c_str());
        if (const std::string adapter = beside(weights, kAdapter); fs::exists(adapter, ignored))
            fail(
                "%s: an adapter (LoRA) belongs to this model, and would be left out; merge it first: merge_and_unload() of "
                "peft, then save_pretrained",
                adapter.c_str());
        const Settings settings(config, read_text(config, 1 << 20));
        info_ = read_settings(settings);
        free_ = !info_.scales.empty();
        check_tensors();
        find_head(settings);
        if (!free_)
            info_.scales =
                read_scales(info_.config, [&](const std::string& name) -> const TensorFile& { return file_of(name); });
        find_unread();
        std::vector<TensorEntry> entries;
        for (const TensorFile& file : files_)
            entries.insert(entries.end(), file.entries().begin(), file.entries().end());
        info_.dtype = dtypes_of(entries);
        info_.provenance = read_provenance(files_.front().metadata(), &info_.provenance_refused);
        find_tokenizer_beside(weights, info_);
    }

    const float* in_place(const TensorSpec& t) const override {
        const std::string name = name_in_file(t.name);
        const TensorFile& file = file_of(name);
        return in_other_unit(t) ? nullptr : file.in_place(checked_tensor(file, name, t.shape));
    }

  private:
    // Where a file in the LN-free convention has a tensor of a site: "ln_1.taper_weight" is its "ln_1.weight".
    std::string name_in_file(std::string name) const {
        if (const size_t at = name.find(".taper_"); free_ && at != name.npos) name.replace(at, 7, ".");
        return name;
    }

    // gamma and gamma~ are both there, from one tensor.
    bool in_other_unit(const TensorSpec& t) const {
        return free_ && t.name.find(".ln_") != t.name.npos && t.name.ends_with("weight");
    }

    // The file that has the tensor; if none has it, the first, whose error then says what is missing.
    const TensorFile& file_of(const std::string& name) const {
        for (const TensorFile& file : files_)
            if (find_tensor(file, name)) return file;
        return files_.front();
    }

    void check_tensors() const {
        size_t tensors = 0;
        for (const TensorFile& file : files_) tensors += file.entries().size();
        if (info_.config.L > tensors)  // checked before it costs anything
            fail("%s: expected the tensors of %s (\"n_layer\" in %s), found %s; it is not the whole model",
                 path_.c_str(), counted(info_.config.L, "layer").c_str(), kConfig, counted(tensors, "tensor").c_str());
        GptTensors<float> none{};
        visit_tensors(info_.config, none, [&](const TensorSpec& t, float*&) {
            const std::string name = name_in_file(t.name);
            checked_tensor(file_of(name), name, t.shape);
        });
    }

    // A folded model may have a head of its own, which the table has. One that is not folded has it where lm_head.weight is not
    // wte.weight; what such a file is where config.json says that they are one, transformers decides by its version.
    void find_head(const Settings& settings) {
        Config& c = info_.config;
        const bool tied = settings.flag("tie_word_embeddings", true);
        if (c.untied_head() && tied)
            settings.refuse("tie_word_embeddings", "false for a folded model with a head", true);
        if (c.untied_head() || (tied && !find_tensor(file_of(kHead), kHead))) return;
        const TensorSpec wte{"transformer.wte.weight", {c.V, c.C}, {}, true};
        const TensorSpec head{kHead, wte.shape, {}, true};
        std::vector<float> a(wte.count()), b(a.size());
        convert(wte, a.data()), convert(head, b.data());
        if (a == b) return;
        if (tied)
            fail(
                "%s: lm_head.weight is not wte.weight, but %s says \"tie_word_embeddings\": true; expected the same numbers; where the "
                "head is to be another, write false there, else remove lm_head.weight",
                path_.c_str(), kConfig);
        if (c.fold != Fold::none)
            settings.refuse("tie_word_embeddings", "true for a model folded but for its final norm", false);
        c.own_head = true;
    }

    void find_unread() {
        std::set<std::string> known = {kHead}, mask_names;
        for (size_t l = 0; l < info_.config.L; l++)  // older files have the causal masks of all heads: not weights
            for (const char* mask : {"bias", "masked_bias"})
                mask_names.insert(strprintf("transformer.h.%zu.attn.%s", l, mask));
        for (const std::string& name : tensor_names(info_.config))
            if (!free_ || !name.ends_with(".taper_scale")) known.insert(name_in_file(name));
        std::vector<std::string> tensors;
        size_t masks = 0;
        for (const TensorFile& file : files_)
            for (const TensorEntry& e : file.entries())
                if (mask_names.contains(full_name(e.name)))
                    masks++;
                else
                    tensors.push_back(e.name);
        refuse_unread(path_, known, tensors);
        if (masks) info_.unread = "its " + counted(masks, "attention mask");
    }

    template <class Real>
    void read_from(const TensorSpec& t, Real* dst) const {
        const std::string name = name_in_file(t.name);
        const TensorFile& file = file_of(name);
        file.read(checked_tensor(file, name, t.shape), dst);
        if (in_other_unit(t))
            for (size_t i = 0; i < t.count(); i++) dst[i] *= Real(1 / kLnFreeUnit);
    }
    void convert(const TensorSpec& t, float* dst) const override { read_from(t, dst); }
    void convert(const TensorSpec& t, double* dst) const override { read_from(t, dst); }

    std::vector<TensorFile> files_;
    bool free_ = false;  // in the LN-free convention
};

}  // namespace

std::string hugging_face_weights(const std::string& path) {
    std::error_code ignored;
    std::string weights = path;
    if (fs::is_directory(path, ignored)) {
        for (const char* name : kWeights)
            if (weights == path && fs::exists(fs::path(path) / name, ignored))
                weights = (fs::path(path) / name).string();
        if (weights == path)
            fail("%s is a folder without %s or %s; expected a model file or the folder of a Hugging Face GPT-2%s",
                 path.c_str(), kWeights[0], kWeights[2],
                 fs::exists(fs::path(path) / kAdapter, ignored) ? ", not of an adapter: merge it into its model first"
                                                                : "");
    }
    return weights;
}

ModelInfo read_hugging_face_config(const std::string& path, const std::string& json) {
    return read_settings(Settings(path, json));
}

std::unique_ptr<ModelFile> open_hugging_face(const std::string& weights) {
    return std::make_unique<HuggingFaceModel>(weights);
}

void find_tokenizer_beside(const std::string& file, ModelInfo& info) {
    info.tokenizer = {{"tokenizer", info.config.V == 50257 || info.config.V == 50304 ? "gpt2" : "unknown"}};
    for (const char* name : {"vocab.json", "tokenizer.json", "gpt2_tokenizer.bin"}) {
        const std::string path = beside(file, name);
        std::error_code ignored;
        if (!fs::exists(path, ignored)) continue;
        try {
            const Tokenizer tokenizer = Tokenizer::from_path(path);
            check_tokenizer(tokenizer, info, file);
            info.tokenizer = tokenizer.metadata();
        } catch (const Error& e) {
            info.vocabulary_problem = e.what();
        }
        return;
    }
}

}  // namespace tapernorm
