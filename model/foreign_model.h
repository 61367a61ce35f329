// GPT-2s that other programs have written, as models with all their norms (-g norm, LayerNorm). See ModelFile::open.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "model/model_file.h"

namespace tapernorm {

// ---- Hugging Face: config.json beside model.safetensors, or beside model.safetensors.index.json and its shards

// The file of weights (or the index of its shards) that `path` means: itself, or one in it where it is a folder. A folder
// without one and a file of PyTorch are errors that say what to do.
std::string hugging_face_weights(const std::string& path);

// weights: one of hugging_face_weights. Settings of config.json that make another function of the same weights are errors;
// buffers such as attn.bias are left alone.
std::unique_ptr<ModelFile> open_hugging_face(const std::string& weights);

// ---- llm.c: 256 int32 (magic 20240326, version 3 for fp32 or 5 for bf16, T, V, L, NH, C, Vp), then each kind of tensor
// for all layers: wte [Vp, C], wpe, ln_1 weight, bias, ... Matrices are [out, in], and transposed on reading.

bool is_llmc_checkpoint(const std::string& path);
std::unique_ptr<ModelFile> open_llmc_checkpoint(const std::string& path);

// ---- both

// The tokenizer whose files lie in the folder of that file, as a model file carries it (Tokenizer::metadata). Where there
// is none: only a name, "gpt2" for a vocabulary of GPT-2's size (also padded to 50304), else "unknown".
std::map<std::string, std::string> tokenizer_beside(const std::string& file, size_t V);

}  // namespace tapernorm
