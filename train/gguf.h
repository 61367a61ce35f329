// ./train_gpt export MODEL FILE.gguf writes a model for llama.cpp and what runs it (Ollama, LM Studio): a GGUF file, version 3,
// little endian.
//
//     "GGUF", uint32 3, uint64 tensors, uint64 keys
//     each key      text, uint32 type, value          (a text: uint64 bytes, then these)
//     each tensor   text, uint32 dimensions, uint64 each, the fastest first; uint32 type, uint64 place in the data
//     the data      from the next multiple of 32 on, and so each tensor
//
// The architecture is llama.cpp's "gpt2", which is what GPT2LMHeadModel computes: LayerNorm with one epsilon, no op that clips,
// no bias at the head. So it holds the models that fit_gpt2_lm_head_model; matrices are [out, in] there.
#pragma once
#include <string>

#include "io/tokenizer.h"
#include "train/export.h"

namespace tapernorm::train {

// name: the model's, for people. dtype: that of the matrices, F32 or BF16; vectors and position embeddings are F32, as llama.cpp
// wants them. The file must not be there yet.
//
// The vocabulary is GPT-2's byte-level BPE; that of a byte model is the 256 bytes and no merges. A text ends at <|endoftext|> or,
// where the vocabulary has none, at the zero byte, which no text has: without a token given, llama.cpp would end texts at id 11.
void write_gguf(const std::string& path, const std::string& name, const ModelInfo& info, const Gpt2Tensors& model,
                Dtype dtype, const Tokenizer& tokenizer);

}  // namespace tapernorm::train
