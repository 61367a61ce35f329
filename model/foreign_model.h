// GPT-2 models written by other programs: with LayerNorm and all their norms (gate mode norm), or in the convention of the
// public LN-free GPT-2s (see kLnFreeEps: gate mode taper-all at gate 0). See ModelFile::open.
#pragma once
#include <memory>
#include <string>

#include "model/model_file.h"

namespace tapernorm {

// ---- Hugging Face: GPT-2, or the class of the modeling file that export writes (train/modeling_tapernorm.h), as transformers
// saves either: config.json beside model.safetensors or pytorch_model.bin, or beside an index (model.safetensors.index.json,
// pytorch_model.bin.index.json) and its shards

// A layer_norm_epsilon that leaves no norm: sqrt(var + 1e12) is 1e6 in fp32 for any stream whose variance is below 32768, so a
// LayerNorm with it is 1e-6 weight (h - mean h) + bias, a site at gate 0 with c = 1e-6. It is read with c = kLnFreeUnit 1e-6 and
// weights divided by that power of two, so that no bit of a product changes and both are numbers that fp16 can hold.
constexpr double kLnFreeEps = 1e12, kLnFreeUnit = 0x1p20;

// The file of weights (or the index of its shards) that `path` names: itself, or one in it if it is a folder. A folder without
// one is an error.
std::string hugging_face_weights(const std::string& path);

// weights: a result of hugging_face_weights. Settings in config.json with which the same weights would compute another function
// are errors, and so are tensors that this program would not read; masks such as attn.bias hold no weights and are left out.
std::unique_ptr<ModelFile> open_hugging_face(const std::string& weights);

// What a config.json says of a model, but for what only its tensors can: scales, and whether a head is wte. json: its text; path: its
// name, for messages.
ModelInfo read_hugging_face_config(const std::string& path, const std::string& json);

// ---- llm.c: 256 int32 (magic 20240326, version 3 for fp32 or 5 for bf16, T, V, L, NH, C, Vp), then each kind of tensor
// for all layers: wte [Vp, C], wpe, ln_1 weight, bias, ... Matrices are [out, in] and transposed while reading.

bool is_llmc_checkpoint(const std::string& path);
std::unique_ptr<ModelFile> open_llmc_checkpoint(const std::string& path);

// ---- both

// Sets info's tokenizer to the one whose files are in the same folder as that file. If there is none that fits info.config, it
// is only a name: "gpt2" for a vocabulary of GPT-2's size (or that padded to 50304), otherwise "unknown".
void find_tokenizer_beside(const std::string& file, ModelInfo& info);

}  // namespace tapernorm
