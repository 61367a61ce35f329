#include "model/model_file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "io/checksum.h"
#include "io/files.h"
#include "io/terminal.h"
#include "io/torch_file.h"
#include "model/foreign_model.h"

namespace tapernorm {

const TensorEntry* find_tensor(const TensorFile& file, const std::string& name) {
    if (const TensorEntry* entry = file.find(name)) return entry;
    const std::string prefix = "transformer.";
    return name.starts_with(prefix) ? file.find(std::string_view(name).substr(prefix.size())) : nullptr;
}

std::string full_name(const std::string& tensor) {
    return tensor.starts_with("transformer.") || tensor.starts_with("lm_head.") ? tensor : "transformer." + tensor;
}

void refuse_unread(const std::string& path, const std::set<std::string>& known,
                   const std::vector<std::string>& tensors) {
    std::set<std::string> seen;
    std::vector<std::string> unread;
    for (const std::string& tensor : tensors)
        if (const std::string name = full_name(tensor); !known.contains(name) || !seen.insert(name).second)
            unread.push_back(tensor);
    if (unread.empty()) return;
    fail(
        "%s: %zu of its tensors have no place in this model, %s the first; expected those of a GPT-2 of its layers, each once "
        "(merge adapters first, and check n_layer)",
        path.c_str(), unread.size(), in_quotes(unread[0]).c_str());
}

const TensorEntry& checked_tensor(const TensorFile& file, const std::string& name, const std::vector<size_t>& shape) {
    const TensorEntry* entry = find_tensor(file, name);
    if (!entry)
        fail("%s: tensor %s is missing; expected shape %s", file.path().c_str(), name.c_str(),
             shape_text(shape).c_str());
    if (entry->shape != shape)
        fail("%s: tensor %s: expected shape %s, found %s", file.path().c_str(), name.c_str(), shape_text(shape).c_str(),
             shape_text(entry->shape).c_str());
    if (entry->dtype != Dtype::F64 && entry->dtype != Dtype::F32 && entry->dtype != Dtype::F16 &&
        entry->dtype != Dtype::BF16)
        fail("%s: tensor %s: expected F64, F32, F16 or BF16 numbers, found %s", file.path().c_str(), name.c_str(),
             dtype_name(entry->dtype));
    return *entry;
}

// dtype: of the file's numbers, "" where that does not matter.
template <class Real>
static void require_finite(const std::string& path, const std::string& name, const Real* numbers, size_t n,
                           const std::string& dtype = "") {
    for (size_t i = 0; i < n; i++)
        if (!std::isfinite(numbers[i]))
            fail("%s: tensor %s: expected finite numbers, found %g at index %zu; %s", path.c_str(), name.c_str(),
                 double(numbers[i]), i,
                 std::isinf(numbers[i]) && dtype.starts_with("F16")
                     ? "fp16 ends at 65504: save the model in bf16 or fp32"
                     : "the file is damaged or its training diverged");
}

template <class Real>
void read_tensor(const SafetensorsFile& file, const std::string& name, const std::vector<size_t>& shape, Real* dst) {
    const TensorEntry& entry = checked_tensor(file, name, shape);
    file.read(entry, dst);
    require_finite(file.path(), name, dst, entry.count());
}
template void read_tensor<float>(const SafetensorsFile&, const std::string&, const std::vector<size_t>&, float*);
template void read_tensor<double>(const SafetensorsFile&, const std::string&, const std::vector<size_t>&, double*);

template <class Real>
void ModelFile::check_finite(const TensorSpec& spec, const Real* numbers) const {
    require_finite(path_, spec.name, numbers, spec.count(), info().dtype);
}
template void ModelFile::check_finite<float>(const TensorSpec&, const float*) const;
template void ModelFile::check_finite<double>(const TensorSpec&, const double*) const;

namespace {

// 4: with first positions apart at its sites (Config::first_apart), 3: with bounds (Config::bound), which older programs would leave out. 2: with a checksum, always. 1: some have one.
const char* const kFormatVersion = "4";

template <class Enum>
struct Named {
    const char* name;
    Enum value;
};
constexpr Named<NormKind> kNorms[] = {{"layernorm", NormKind::layernorm}, {"rmsnorm", NormKind::rmsnorm}};
// clang-format off
constexpr Named<GateMode> kModes[] = {
    {"norm", GateMode::norm}, {"taper", GateMode::taper}, {"taper-all", GateMode::taper_all}};
constexpr Named<bool> kFirstPositions[] = {{"apart", true}};
constexpr Named<bool> kHeads[] = {{"own", true}};
constexpr Named<Fold> kFolds[] = {
    {"none", Fold::none}, {"affine", Fold::affine}, {"internal", Fold::internal}, {"all", Fold::all}};
// clang-format on

template <class Enum, size_t n>
const char* name_of(const Named<Enum> (&table)[n], Enum value) {
    for (const auto& row : table)
        if (row.value == value) return row.name;
    return "?";
}

// Typed access to the metadata of one file.
class Metadata {
  public:
    explicit Metadata(const SafetensorsFile& file) : file_(file) {}

    const std::string& text(const char* key) const {
        auto it = file_.metadata().find(key);
        if (it == file_.metadata().end())
            fail(
                "%s is not a file of this program: its metadata has no \"%s\"; expected one written by train_gpt or fold",
                file_.path().c_str(), key);
        return it->second;
    }

    size_t count(const char* key, size_t low, size_t high) const {
        const std::string& s = text(key);
        char* end = nullptr;
        errno = 0;
        const unsigned long long value = std::strtoull(s.c_str(), &end, 10);
        if (s.empty() || s[0] < '0' || s[0] > '9' || *end || errno || value < low || value > high)
            fail("%s: metadata \"%s\": expected a whole number from %zu to %zu, found %s; the file is damaged",
                 file_.path().c_str(), key, low, high, in_quotes(s).c_str());
        return size_t(value);
    }

    double real(const char* key, double low, double high) const {
        const std::string& s = text(key);
        char* end = nullptr;
        const double value = std::strtod(s.c_str(), &end);
        if (s.empty() || *end || !(value >= low && value <= high))
            fail("%s: metadata \"%s\": expected a number from %g to %g, found %s; the file is damaged",
                 file_.path().c_str(), key, low, high, in_quotes(s).c_str());
        return value;
    }

    template <class Enum, size_t n>
    Enum choice(const char* key, const Named<Enum> (&table)[n]) const {
        const std::string& s = text(key);
        std::string names;
        for (const auto& row : table) {
            if (s == row.name) return row.value;
            names += (names.empty() ? "" : ", ") + std::string(row.name);
        }
        fail("%s: metadata \"%s\": expected one of %s, found %s; the file is damaged or was written by a newer version",
             file_.path().c_str(), key, names.c_str(), in_quotes(s).c_str());
    }

  private:
    const SafetensorsFile& file_;
};

}  // namespace

std::vector<TaperScale> read_scales(const Config& config,
                                    const std::function<const TensorFile&(const std::string&)>& file_of) {
    auto read = [&](const std::string& name, float& x) {
        const TensorFile& file = file_of(name);
        file.read(checked_tensor(file, name, {1}), &x);
        if (!(x > 0 && x < 1e30f))
            fail(
                "%s: tensor %s: expected a number above 0 and below 1e30, found %g; the file is damaged or its training diverged",
                file.path().c_str(), name.c_str(), double(x));
    };
    std::vector<TaperScale> scales;
    for (const std::string& site : taper_site_names(config)) {
        TaperScale& own = scales.emplace_back();
        read(site + ".taper_scale", own.c);
        if (config.first_apart) read(site + ".first_scale", own.first);
    }
    return scales;
}

std::set<std::string> tensor_names(const Config& config) {
    std::set<std::string> names;
    GptTensors<float> none{};
    visit_tensors(config, none, [&](const TensorSpec& t, float*&) { names.insert(t.name); });
    for (const std::string& site : taper_site_names(config)) {
        names.insert(site + ".taper_scale");
        if (config.first_apart) names.insert(site + ".first_scale");
    }
    return names;
}

template <class Enum, size_t n>
static Enum value_of(const Named<Enum> (&table)[n], const std::string& name) {
    for (const auto& row : table)
        if (name == row.name) return row.value;
    fail("the name \"%s\" is unknown", name.c_str());
}

GateMode gate_mode_from(const std::string& name) { return value_of(kModes, name); }
NormKind norm_from(const std::string& name) { return value_of(kNorms, name); }
const char* gate_mode_name(GateMode mode) { return name_of(kModes, mode); }
const char* norm_name(NormKind kind) { return name_of(kNorms, kind); }
const char* fold_name(Fold fold) { return name_of(kFolds, fold); }
Fold fold_from(const std::string& name) { return value_of(kFolds, name); }

HostModel::HostModel(Cpu& dev, ModelInfo info_) : info(std::move(info_)), arena_(dev, "the model's parameters") {
    visit_tensors(info.config, tensors, [&](const TensorSpec& spec, float*& slot) { arena_.add(slot, spec.count()); });
    arena_.allocate(true);
}

void check_tensors(const SafetensorsFile& file, const Config& config) {
    // Every block has its own tensors, so a damaged number of layers is found before it costs anything.
    if (config.L > file.entries().size())
        fail("%s: metadata \"n_layer\" says %s, but the file has only %s; the file is damaged", file.path().c_str(),
             counted(config.L, "layer").c_str(), counted(file.entries().size(), "tensor").c_str());
    GptTensors<float> none{};
    visit_tensors(config, none, [&](const TensorSpec& spec, float*&) { checked_tensor(file, spec.name, spec.shape); });
}

// Whether all numbers are finite, checked quickly: x - x is 0 for a finite number and NaN otherwise.
static bool all_finite(Cpu& dev, const float* x, size_t n) {
    constexpr size_t kChunk = 1 << 16;
    std::vector<char> bad((n + kChunk - 1) / kChunk, 0);
    parallel_ranges(dev, bad.size(), 1, [&](size_t chunk, size_t last, int) {
        for (; chunk < last; chunk++) {
            float sum[16] = {};
            const size_t begin = chunk * kChunk, end = std::min(n, begin + kChunk);
            for (size_t i = begin; i < end; i++) sum[i % 16] += x[i] - x[i];
            for (float s : sum) bad[chunk] |= s != 0;
        }
    });
    return std::find(bad.begin(), bad.end(), char(1)) == bad.end();
}

HostModel::HostModel(Cpu& dev, std::unique_ptr<const ModelFile> file)
    : info(file->info()), file_(std::move(file)), arena_(dev, "the model's parameters") {
    visit_tensors(info.config, tensors, [&](const TensorSpec& spec, float*& slot) {
        slot = const_cast<float*>(file_->in_place(spec));
        if (!slot) arena_.add(slot, spec.count());
    });
    arena_.allocate(false);
    for (const Tensor<float>& t : tensor_list(info.config, tensors))
        if (t.data != file_->in_place(t.spec))
            file_->read(t.spec, t.data);
        else if (!all_finite(dev, t.data, t.spec.count()))
            file_->check_finite(t.spec, t.data);
}

std::map<std::string, std::string> config_metadata(const Config& c) {
    std::map<std::string, std::string> metadata = {
        {"n_layer", std::to_string(c.L)},        {"n_head", std::to_string(c.NH)},      {"n_embd", std::to_string(c.C)},
        {"n_positions", std::to_string(c.T)},    {"vocab_size", std::to_string(c.V)},   {"norm", norm_name(c.norm)},
        {"norm_eps", strprintf("%.17g", c.eps)}, {"gate_mode", gate_mode_name(c.mode)}, {"folded", fold_name(c.fold)},
    };
    if (c.bound > 0) metadata["bound"] = strprintf("%.17g", c.bound);
    if (c.bound > 0 && c.final_bound > 0) metadata["final_bound"] = strprintf("%.17g", c.final_bound);
    if (c.first_apart) metadata["first_positions"] = "apart";
    if (c.own_head) metadata["head"] = "own";
    return metadata;
}

Config read_config(const SafetensorsFile& file) {
    const Metadata meta(file);
    Config c;
    c.L = meta.count("n_layer", 1, 100000);
    c.C = meta.count("n_embd", 1, 1 << 20);
    c.NH = meta.count("n_head", 1, c.C);
    c.T = meta.count("n_positions", 1, 1 << 24);
    c.V = meta.count("vocab_size", 2, 1 << 24);
    c.norm = meta.choice("norm", kNorms);
    c.eps = meta.real("norm_eps", 0, 1e30);
    c.mode = meta.choice("gate_mode", kModes);
    c.fold = meta.choice("folded", kFolds);
    const bool bounded = c.mode != GateMode::norm && c.fold != Fold::affine;
    if (bounded && file.metadata().contains("bound")) c.bound = meta.real("bound", kLeastBound, 1e30);
    if (bounded && file.metadata().contains("final_bound")) c.final_bound = meta.real("final_bound", kLeastBound, 1e30);
    if (c.bound > 0 && file.metadata().contains("first_positions"))
        c.first_apart = meta.choice("first_positions", kFirstPositions);
    if (c.fold == Fold::none && file.metadata().contains("head")) c.own_head = meta.choice("head", kHeads);
    if (c.C % c.NH)
        fail("%s: n_embd (%zu) is not a multiple of n_head (%zu); the file is damaged", file.path().c_str(), c.C, c.NH);
    return c;
}

void read_tokenizer(const SafetensorsFile& file, ModelInfo& info) {
    constexpr size_t kLongestName = 100;  // they are printed; ours have at most 20
    const std::string& name = Metadata(file).text("tokenizer");
    if (name.size() > kLongestName)
        fail("%s: metadata \"tokenizer\": expected a name of at most %zu bytes, found %zu; the file is damaged",
             file.path().c_str(), kLongestName, name.size());
    std::map<std::string, std::string> whole = {{"tokenizer", name}};
    info.tokenizer = whole;
    if (name == "bytes") return;
    for (const char* part : {"tokenizer.vocab", "tokenizer.merges"})
        if (auto it = file.metadata().find(part); it != file.metadata().end()) whole.insert(*it);
    if (whole.size() == 1) return;
    try {
        if (whole.size() == 2)
            fail("%s: metadata: expected \"tokenizer.vocab\" and \"tokenizer.merges\", found only one of them",
                 in_quotes(file.path()).c_str());
        check_tokenizer(Tokenizer::from_metadata(whole, file.path()), info, file.path());
        info.tokenizer = whole;
    } catch (const Error& e) {
        info.vocabulary_problem = e.what();
    }
}

// Fails for a version that we do not know, and for bytes that are not those that were written.
static void check_whole(const SafetensorsFile& file) {
    const std::string& version = Metadata(file).text("format_version");
    if (version.size() != 1 || version < "1" || version > kFormatVersion)
        fail("%s: format version: expected 1 to %s, found %s; use the version of this program that wrote the file",
             file.path().c_str(), kFormatVersion, in_quotes(version).c_str());
    if (version != "1" || file.metadata().contains("checksum")) file.verify();
}

// What the metadata and the shapes say, checked against each other.
static ModelInfo read_model_info(const SafetensorsFile& file) {
    const Metadata meta(file);
    ModelInfo info;
    info.config = read_config(file);
    const Config& c = info.config;
    info.gate = meta.real("gate", 0, 1);
    info.step = meta.count("step", 0, SIZE_MAX / 2);
    read_tokenizer(file, info);
    if (info.tokenizer["tokenizer"] == "bytes" && c.V < 256)
        fail("%s: a byte-level model: expected vocab_size of at least 256, found %zu; the file is damaged",
             file.path().c_str(), c.V);
    check_tensors(file, c);
    info.scales = read_scales(c, [&](const std::string&) -> const TensorFile& { return file; });
    std::vector<std::string> tensors;
    for (const TensorEntry& e : file.entries()) tensors.push_back(e.name);
    refuse_unread(file.path(), tensor_names(c), tensors);
    info.dtype = dtypes_of(file.entries());
    info.content = content_checksum(file.metadata());
    info.provenance = read_provenance(file.metadata(), &info.provenance_refused);
    return info;
}

std::string state_path(const std::string& model) {
    return (model.ends_with(".bin") ? model.substr(0, model.size() - 4) : model) + ".state.bin";
}

// A run that is killed between its two files leaves a state that names a newer model.
static void warn_if_older_than_state(const SafetensorsFile& model) {
    const std::string path = state_path(model.path());
    std::map<std::string, std::string> state;
    try {
        state = SafetensorsFile(path, FileUse::own).metadata();
    } catch (const Error&) {
        return;  // most models have no state beside them
    }
    if (!state.contains("model") || state["model"] == content_checksum(model.metadata())) return;
    const auto number = [](const std::string& text) {
        return text.size() > 20 || text.find_first_not_of("0123456789") != text.npos ? in_quotes(text) : text;
    };
    const std::string mine = number(Metadata(model).text("step")), newest = number(state["step"]);
    if (std::strtoull(mine.c_str(), nullptr, 10) > std::strtoull(newest.c_str(), nullptr, 10)) {
        std::fprintf(
            stderr,
            "warning: %s (update %s) is newer than the newest checkpoint, %s (update %s): it was written alone, where "
            "the disk was full, or is of another run; ./train_gpt -y -o %s goes on from the checkpoint, and keeps this "
            "model under another name\n",
            in_quotes(model.path()).c_str(), mine.c_str(), in_quotes(path).c_str(), newest.c_str(),
            shell_word(model.path()).c_str());
        return;
    }
    const auto before = state.find("model_before");
    const bool of_the_run = before != state.end() && before->second == content_checksum(model.metadata());
    const std::string name = shell_word(model.path());
    std::fprintf(
        stderr, "warning: %s (update %s) is not the model of the newest checkpoint, %s (update %s)%s\n",
        in_quotes(model.path()).c_str(), mine.c_str(), in_quotes(path).c_str(), newest.c_str(),
        (of_the_run ? "; ./train_gpt -y -o " + name + " writes that"
                    : ", nor the one before it: it may be of another run; to have that model, move this one away, then "
                      "./train_gpt -y -o " +
                          name)
            .c_str());
}

namespace {

// A file written by train_gpt or fold.
class OurModel : public ModelFile {
  public:
    explicit OurModel(SafetensorsFile file) : ModelFile(file.path(), false), file_(std::move(file)) {
        check_whole(file_);
        info_ = read_model_info(file_);
        if (file_.metadata().contains("checksum")) warn_if_older_than_state(file_);
    }
    const float* in_place(const TensorSpec& t) const override {
        return file_.in_place(checked_tensor(file_, t.name, t.shape));
    }

  private:
    void convert(const TensorSpec& t, float* dst) const override {
        file_.read(checked_tensor(file_, t.name, t.shape), dst);
    }
    void convert(const TensorSpec& t, double* dst) const override {
        file_.read(checked_tensor(file_, t.name, t.shape), dst);
    }

    SafetensorsFile file_;
};

}  // namespace

std::unique_ptr<ModelFile> ModelFile::open(const std::string& path) {
    const std::string weights = hugging_face_weights(path);
    if (weights.ends_with(".json")) return open_hugging_face(weights);
    if (is_llmc_checkpoint(weights)) return open_llmc_checkpoint(weights);
    if (is_torch_file(weights)) return open_hugging_face(weights);
    SafetensorsFile file(weights);
    if (file.metadata().contains("state_version"))
        fail("%s is the state of a run, which is for resuming it; expected the model beside it", path.c_str());
    for (const char* ours : {"format_version", "gate_mode"})  // damage may have changed one key
        if (file.metadata().contains(ours)) return std::make_unique<OurModel>(std::move(file));
    return open_hugging_face(weights);
}

std::unique_ptr<HostModel> load_model(Cpu& dev, const std::string& path) {
    return std::make_unique<HostModel>(dev, ModelFile::open(path));
}

void check_tokenizer(const Tokenizer& tokenizer, const ModelInfo& info, const std::string& model) {
    const std::string& own = info.tokenizer.at("tokenizer");
    const size_t n = tokenizer.vocab_size(), V = info.config.V;
    const bool sure = own == "bytes" || info.tokenizer.contains("tokenizer.vocab");  // otherwise often a guess
    if (sure && tokenizer.name() != own)
        fail("--tokenizer: expected %s, which %s was trained with, found %s", own.c_str(), model.c_str(),
             tokenizer.name().c_str());
    if (!fits_vocabulary(n, V))
        fail(
            "the tokenizer %s has %zu tokens, but the vocabulary of %s has %zu (its tokenizer is %s); name the one that it "
            "was trained with: --tokenizer DIR",
            tokenizer.name().c_str(), n, model.c_str(), V, own.c_str());
}

size_t ids_with_text(const Config& config, const std::optional<Tokenizer>& tokenizer) {
    return tokenizer ? std::min(config.V, tokenizer->vocab_size()) : config.V;
}

Tokenizer model_tokenizer(const ModelInfo& info, const std::string& model) {
    try {
        const Tokenizer tokenizer = Tokenizer::from_metadata(info.tokenizer, model);
        check_tokenizer(tokenizer, info, model);
        return tokenizer;
    } catch (const Error&) {
        if (info.vocabulary_problem.empty()) throw;
        const bool said = info.vocabulary_problem.find("--tokenizer DIR") != std::string::npos;
        fail("%s%s", info.vocabulary_problem.c_str(), said ? "" : " (give a good one with --tokenizer DIR)");
    }
}

std::optional<Tokenizer> tokenizer_if_any(const std::string& named, const ModelInfo& info, const std::string& model,
                                          std::string& why_none) {
    if (!named.empty()) {
        Tokenizer tokenizer = Tokenizer::from_path(named);
        check_tokenizer(tokenizer, info, model);
        return tokenizer;
    }
    try {
        return model_tokenizer(info, model);
    } catch (const Error& error) {
        why_none = error.what();
        return std::nullopt;
    }
}

void warn_of_provenance(const std::string& model, bool refused) {
    if (refused) std::fprintf(stderr, "warning: %s: %s\n", in_quotes(model).c_str(), kProvenanceRefused);
}

void warn_of_vocabulary(const std::string& model, const std::string& problem) {
    if (problem.empty()) return;
    std::fprintf(
        stderr,
        "warning: %s: its vocabulary cannot be used, and what is written goes without: %s (infer, train_gpt and "
        "export take a good one with --tokenizer DIR)\n",
        in_quotes(model).c_str(), problem.c_str());
}

ModelImage::ModelImage(const ModelInfo& info, const GptTensors<float>& tensors, Dtype dtype) : scales_(info.scales) {
    const Config& c = info.config;
    std::map<std::string, std::string> metadata = config_metadata(c);
    metadata["format_version"] = c.first_apart ? "4" : c.bound > 0 ? "3" : "2";
    metadata["gate"] = strprintf("%.17g", info.gate);
    metadata["step"] = std::to_string(info.step);
    metadata.insert(info.tokenizer.begin(), info.tokenizer.end());
    std::vector<TensorOut> out;
    GptTensors<float> t = tensors;
    visit_tensors(c, t, [&](const TensorSpec& spec, float*& slot) {
        const void* data = slot;
        if (dtype == Dtype::BF16) {
            auto& copy = rounded_.emplace_back(spec.count());
            for (size_t i = 0; i < copy.size(); i++) copy[i] = bf16_from_float(slot[i]);
            data = copy.data();
        }
        out.push_back({spec.name, dtype, spec.shape, data});
    });
    const std::vector<std::string> sites = taper_site_names(c);
    for (size_t i = 0; i < sites.size(); i++) {
        out.push_back({sites[i] + ".taper_scale", Dtype::F32, {1}, &scales_[i].c});
        if (c.first_apart) out.push_back({sites[i] + ".first_scale", Dtype::F32, {1}, &scales_[i].first});
    }
    metadata["content"] = content_ = SafetensorsImage("the model", metadata, out, true).checksum();
    if (!info.provenance.empty()) metadata["provenance"] = info.provenance;
    image_.emplace("the model", metadata, std::move(out), true);
}

std::string content_checksum(const std::map<std::string, std::string>& metadata) {
    for (const char* key : {"content", "checksum"})
        if (const auto found = metadata.find(key); found != metadata.end()) return found->second;
    return "";
}

std::string numbers_checksum(const Config& config, const GptTensors<float>& tensors) {
    Checksum sum;
    GptTensors<float> t = tensors;
    for (const Tensor<float>& row : tensor_list(config, t)) sum.add(row.data, row.spec.count() * sizeof(float));
    return checksum_text(sum.value());
}

Source source_of(const std::string& path, const HostModel& model) {
    const std::string& content = model.info.content;
    return {name_without_folder(path), content.empty() ? numbers_checksum(model.info.config, model.tensors) : content};
}

std::string dtypes_of(const std::vector<TensorEntry>& entries) {
    std::set<std::string> names;
    for (const TensorEntry& entry : entries) names.insert(dtype_name(entry.dtype));
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : " and ") + name;
    return text;
}

void replace_provenance(const std::string& path, const std::string& content, const std::string& provenance) {
    const SafetensorsFile file(path, FileUse::own);
    file.verify();
    std::map<std::string, std::string> metadata = file.metadata();
    if (content_checksum(metadata) != content)
        fail("%s is no longer the model that was written there: expected the content %s, found %s",
             in_quotes(path).c_str(), content.c_str(), in_quotes(content_checksum(metadata)).c_str());
    metadata["provenance"] = provenance;
    std::vector<TensorOut> tensors;
    for (const TensorEntry& e : file.entries()) tensors.push_back({e.name, e.dtype, e.shape, file.data(e)});
    write_safetensors(path, metadata, tensors, {.checksum = true});
}

bool is_finished_model(const std::string& path, const std::string& content, size_t updates) try {
    const SafetensorsFile file(path, FileUse::own);
    file.verify();
    return content_checksum(file.metadata()) == content &&
           validated_update(read_provenance(file.metadata())) == updates;
} catch (const Error&) {
    return false;
}

void save_model(const std::string& path, const ModelInfo& info, const GptTensors<float>& tensors, Dtype dtype) {
    ModelImage(info, tensors, dtype).write(path);
}

std::string describe(const ModelInfo& info) {
    const Config& c = info.config;
    std::string state;
    if (c.fold == Fold::affine) state = "norms kept, their weights folded away";
    if (c.fold == Fold::internal) state = "folded: no norm inside the blocks, the final norm kept";
    if (c.fold == Fold::all) state = "folded: no norm anywhere";
    if (c.fold == Fold::none)
        state = c.mode == GateMode::norm ? "normalized"
                : info.gate == 0         ? "tapered, not folded (explicit scaling)"
                                         : strprintf("tapering, gate %.4g", info.gate);
    if (c.bound > 0) state += c.clamps() ? ", the stream clamped" : strprintf(", bound %g", c.bound);
    if (c.bound > 0 && c.final_tapers() && c.final_bound > 0) state += strprintf(" (final %g)", c.final_bound);
    if (c.first_apart) state += ", first positions apart";
    if (c.own_head) state += ", a head of its own";
    return strprintf(
        "GPT-2, %s, %s, %s, context %zu, vocabulary %zu (%s), %.2fM parameters; "
        "%s, -g %s, step %zu; %s%s%s",
        counted(c.L, "layer").c_str(), counted(c.NH, "head").c_str(), counted(c.C, "channel").c_str(), c.T, c.V,
        printable(info.tokenizer.at("tokenizer")).c_str(), double(parameter_count(c)) * 1e-6,
        c.norm == NormKind::layernorm ? "LayerNorm" : "RMSNorm", gate_mode_name(c.mode), info.step, state.c_str(),
        info.unread.empty() ? "" : "; without ", printable(info.unread).c_str());
}

}  // namespace tapernorm
