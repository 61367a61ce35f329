// Model files: what is in a model.bin or folded.bin (safetensors with Hugging Face's GPT-2 names and orientation, plus the
// tensors that TaperNorm adds), how its metadata describes it, and one reader for these and for other programs' GPT-2 models.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "io/tokenizer.h"
#include "model/config.h"
#include "model/provenance.h"
#include "runtime/arena.h"

namespace tapernorm {

struct ModelInfo {
    Config config;
    double gate = 1;                                                          // g in the last update
    size_t step = 0;                                                          // updates done
    std::map<std::string, std::string> tokenizer = {{"tokenizer", "bytes"}};  // Tokenizer::metadata()
    std::vector<TaperScale> scales = {};  // of every tapering site (taper_site_names)
    std::string unread = {};              // what its file holds besides, and no model needs: "24 attention masks"
    std::string vocabulary_problem =
        {};                       // why `tokenizer` is only a name, where its file has a vocabulary that nobody can use
    std::string dtype = {};       // of its file: "F32", or "BF16 and F32"
    std::string content = {};     // of its file (content_checksum); "" where it has none
    std::string provenance = {};  // see model/provenance.h
    bool provenance_refused = false;
};

class ModelFile;

// A model in host memory, as folding and inference use it.
struct HostModel {
    ModelInfo info;
    GptTensors<float> tensors{};

    // Memory for every tensor of info.config, set to zero.
    HostModel(Cpu& dev, ModelInfo info_);

    // The model in a file, read only: tensors that the file has in fp32 stay where they are mapped, others are converted.
    HostModel(Cpu& dev, std::unique_ptr<const ModelFile> file);

  private:
    std::unique_ptr<const ModelFile> file_;
    Arena<Cpu> arena_;
};

// A configuration as metadata, and back. State files carry it too.
std::map<std::string, std::string> config_metadata(const Config& config);
Config read_config(const SafetensorsFile& file);

// Reads the tokenizer that Tokenizer::metadata() put into a file into info, whose config it must fit.
void read_tokenizer(const SafetensorsFile& file, ModelInfo& info);

// Fails unless the file has every tensor of the configuration's table, with its shape and a floating-point type. Before this
// check, a configuration may claim any size.
void check_tensors(const SafetensorsFile& file, const Config& config);

// A model in a file of any kind that we can read. Opening it checks everything that can be checked without reading the
// numbers: sizes, and the presence, shape and type of every tensor. Errors name the file, the tensor or key, what was expected
// and what was found.
class ModelFile {
  public:
    // A model written by train_gpt or fold; a Hugging Face GPT-2 (its folder, its model.safetensors or pytorch_model.bin, or
    // the index of a sharded one, with config.json beside it); or a checkpoint of llm.c.
    static std::unique_ptr<ModelFile> open(const std::string& path);
    virtual ~ModelFile() = default;

    const std::string& path() const { return path_; }
    const ModelInfo& info() const { return info_; }
    bool foreign() const { return foreign_; }  // made by another program: its tokenizer is the one beside it

    // Reads the tensor of a row of info().config's table. A NaN or Inf in it is an error.
    template <class Real>
    void read(const TensorSpec& spec, Real* dst) const {
        convert(spec, dst);
        check_finite(spec, dst);
    }

    // Where the tensor is mapped, if it can be used in place (read only and not checked), otherwise null.
    virtual const float* in_place(const TensorSpec&) const { return nullptr; }

    // Fails if a number is NaN or Inf.
    template <class Real>
    void check_finite(const TensorSpec& spec, const Real* numbers) const;

  protected:
    ModelFile(std::string path, bool foreign) : path_(std::move(path)), foreign_(foreign) {}
    virtual void convert(const TensorSpec& spec, float* dst) const = 0;
    virtual void convert(const TensorSpec& spec, double* dst) const = 0;

    std::string path_;
    ModelInfo info_;

  private:
    bool foreign_;
};

// Fails unless the tokenizer is the model's: of its name, where the file holds or is sure of one, and of its size. model: the
// model's file, for messages.
//
// The model's vocabulary may be larger (fits_vocabulary). The ids behind the
// tokenizer's stand for no text: nothing that knows the tokenizer chooses them (ids_with_text), in a prompt of ids they are
// shown as U+FFFD, and a loss has their probabilities in its softmax, as it had in training.
void check_tokenizer(const Tokenizer& tokenizer, const ModelInfo& info, const std::string& model);

// How many ids, from 0, generation may choose from: all where no tokenizer is known.
size_t ids_with_text(const Config& config, const std::optional<Tokenizer>& tokenizer);

// The tokenizer in the model's file or beside it; fails where there is none, or none that fits.
Tokenizer model_tokenizer(const ModelInfo& info, const std::string& model);

// That of --tokenizer (named), which fails where it does not fit, else the model's own. Where that is missing there is none, and
// why_none says why: programs take ids still.
std::optional<Tokenizer> tokenizer_if_any(const std::string& named, const ModelInfo& info, const std::string& model,
                                          std::string& why_none);

// For programs that write the model again, without the vocabulary. problem: ModelInfo::vocabulary_problem; none, no warning.
void warn_of_vocabulary(const std::string& model, const std::string& problem);
// The same where the new file would carry its provenance on.
void warn_of_provenance(const std::string& model, bool refused);

// The state of the run that writes this model: "a.bin" -> "a.state.bin". Its metadata "model" is the content_checksum of the
// model that was written with it.
std::string state_path(const std::string& model);

std::unique_ptr<HostModel> load_model(Cpu& dev, const std::string& path);

// The checksum of all that a model's file says but its provenance (model/provenance.h), as its metadata has it. Older files, which
// have no provenance: that of the file.
std::string content_checksum(const std::map<std::string, std::string>& metadata);

// A checksum of a model's numbers as fp32, in the order of the table, for models of other programs.
std::string numbers_checksum(const Config& config, const GptTensors<float>& tensors);

// A model as the source of another. path: as it was named.
Source source_of(const std::string& path, const HostModel& model);

// "F32", or "BF16 and F32" of several.
std::string dtypes_of(const std::vector<TensorEntry>& entries);

// A model's file, ready to be written, with a checksum. dtype: F32 or BF16; F32 tensors must outlive the image.
class ModelImage {
  public:
    ModelImage(const ModelInfo& info, const GptTensors<float>& tensors, Dtype dtype = Dtype::F32);
    const std::string& content() const { return content_; }  // its content_checksum
    // As a whole, or leaves it as it was. ready: called when all is written but the new name.
    void write(const std::string& path, const std::function<void()>& ready = {}) const {
        image_->write(path, 1, ready);
    }

  private:
    std::vector<std::vector<uint16_t>> rounded_;
    std::vector<TaperScale> scales_;
    std::string content_;
    std::optional<SafetensorsImage> image_;
};
void save_model(const std::string& path, const ModelInfo& info, const GptTensors<float>& tensors,
                Dtype dtype = Dtype::F32);

// Writes the file again, as a whole, with another provenance. Fails where it is no longer the model with this content.
void replace_provenance(const std::string& path, const std::string& content, const std::string& provenance);

// Whether the file is whole, has this content, and was validated after so many updates.
bool is_finished_model(const std::string& path, const std::string& content, size_t updates);

// The scales of all tapering sites. file_of: the file that has a tensor of this name, or whose error says that it is missing.
std::vector<TaperScale> read_scales(const Config& config,
                                    const std::function<const TensorFile&(const std::string&)>& file_of);

// All that the file of a model has: the table and the scales.
std::set<std::string> tensor_names(const Config& config);

// Fails where a file has tensors that are not in `known` (names as in the table): what they do would be missing from every
// result. tensors: those of the file, as it spells them.
void refuse_unread(const std::string& path, const std::set<std::string>& known,
                   const std::vector<std::string>& tensors);

// The name in the table of a tensor that a file may spell without "transformer.".
std::string full_name(const std::string& tensor);

// The entry of that name, or null; in the file, "transformer." may be missing, as it is in some of Hugging Face's files.
const TensorEntry* find_tensor(const TensorFile& file, const std::string& name);

// The same; a missing entry, another shape, or a type that is not floating-point is an error.
const TensorEntry& checked_tensor(const TensorFile& file, const std::string& name, const std::vector<size_t>& shape);

// Reads that tensor; a NaN or Inf in it is an error. Real: float or double.
template <class Real>
void read_tensor(const SafetensorsFile& file, const std::string& name, const std::vector<size_t>& shape, Real* dst);

const char* gate_mode_name(GateMode mode);
GateMode gate_mode_from(const std::string& name);  // fails for an unknown name
const char* norm_name(NormKind kind);
NormKind norm_from(const std::string& name);
const char* fold_name(Fold fold);
Fold fold_from(const std::string& name);

// "GPT-2, 4 layers, 128 channels, ...; LayerNorm, taper, folded (internal)": one line for people.
std::string describe(const ModelInfo& info);

}  // namespace tapernorm
