// Model files: what is in a model.bin or folded.bin (safetensors, Hugging Face's GPT-2 names and orientation, plus the
// tensors that TaperNorm adds), and how its metadata describes it.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/config.h"
#include "runtime/arena.h"

struct ModelInfo {
    Config config;
    double gate = 1;         // of the last update
    size_t step = 0;         // updates done
    std::map<std::string, std::string> tokenizer = {{"tokenizer", "bytes"}};  // Tokenizer::metadata()
    std::vector<float> taper_scale;  // c of every tapering site (taper_site_names); 1 before the calibration
};

// A model in host memory, as folding and inference take it.
struct HostModel {
    ModelInfo info;
    GptTensors<float> tensors{};

    // Memory for every tensor of info.config, zero.
    HostModel(Cpu& dev, ModelInfo info_);

  private:
    Arena<Cpu> arena_;
};

// A configuration as metadata, and back. State files carry it too.
std::map<std::string, std::string> config_metadata(const Config& config);
Config read_config(const SafetensorsFile& file);

// What the metadata and the shapes say, all checked against each other; every tensor of the configuration's table is
// there and has its shape and a floating-point type. Errors name the file, the tensor or key, expected and found.
ModelInfo read_model_info(const SafetensorsFile& file);

// Fills the tensors of info.config, converted to float. A number that is not finite is an error.
void read_model_tensors(const SafetensorsFile& file, const Config& config, GptTensors<float>& tensors);

std::unique_ptr<HostModel> load_model(Cpu& dev, const std::string& path);

// Replaces `path` as a whole or fails and leaves it alone. dtype: F32 or BF16.
void save_model(const std::string& path, const ModelInfo& info, const GptTensors<float>& tensors,
                Dtype dtype = Dtype::F32);

// The entry of that name ("transformer." may be missing), of that shape and a floating-point type; or an error.
const TensorEntry& checked_tensor(const SafetensorsFile& file, const std::string& name, const std::vector<size_t>& shape);

// Reads that tensor; a number that is not finite is an error. Real: float, double.
template <class Real>
void read_tensor(const SafetensorsFile& file, const std::string& name, const std::vector<size_t>& shape, Real* dst);

const char* gate_mode_name(GateMode mode);
GateMode gate_mode_from(const std::string& name);  // one of the names above
const char* norm_name(NormKind kind);
NormKind norm_from(const std::string& name);
const char* fold_name(Fold fold);

// "GPT-2, 4 layers, 128 channels, ...; LayerNorm, taper, folded (internal)": one line for people.
std::string describe(const ModelInfo& info);
