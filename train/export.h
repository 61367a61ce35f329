// ./train_gpt export MODEL DIR writes a model as a folder that Hugging Face's transformers can load; with FILE.gguf in place of DIR,
// as a file for llama.cpp (train/gguf.h).
//
// GPT2LMHeadModel has LayerNorm with one epsilon for all sites, and a head without a bias. Without any code of ours it can hold
//   * models with all their norms (gate mode norm, or any at gate 1), as they are;
//   * models of gate mode taper-all at gate 0, in the convention of the public LayerNorm-free GPT-2s: layer_norm_epsilon is 1e12 and the
//     weights are 1e6 times as large, so that a "norm" is 1e6 (h - mean h) / sqrt(var + 1e12) = h - mean h, times the
//     weight. In fp32 the root is exactly 1e6 up to a variance of 32768, half a unit in the last place of 1e12;
//   * folded models of these two kinds, with an lm_head.weight of their own. The bias b that folding gives the head moves
//     into the direction of the mean, which LayerNorm's centering leaves unused: see export_head.
// Every other LayerNorm model (one whose final norm stays while those in the blocks are gone, or with 0 < gate < 1) and every
// RMSNorm model needs the modeling file, which is then written beside it.
#pragma once
#include <string>
#include <vector>

#include "model/model_file.h"

namespace tapernorm::train {

// The subcommand; argv[0] is "export". Returns the exit status; errors are thrown.
int export_command(int argc, const char* const* argv);

bool fits_gpt2_lm_head_model(const ModelInfo& info);

// Such a model as GPT2LMHeadModel has it: the tensors of one with all its norms, and a head where it is not tied.
struct Gpt2Tensors {
    double eps;
    std::vector<TensorSpec> specs;
    std::vector<std::vector<float>> values;

    void add(const TensorSpec& spec, const std::vector<double>& exact) {
        specs.push_back(spec);
        values.emplace_back(exact.begin(), exact.end());
    }
};

// A head [V, C] without a bias and the bias [C] of the final site, such that for every z of mean 0
//     head (z + site_bias) = W z + b,        W [V, C], b [V] or null.
void export_head(std::vector<double>& head, std::vector<double>& site_bias, const float* W, const float* b, size_t V,
                 size_t C);

}  // namespace tapernorm::train
