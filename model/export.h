// ./train_gpt export MODEL DIR: a folder that Hugging Face's transformers open.
//
// GPT2LMHeadModel is LayerNorm with one epsilon for all sites and a head without a bias. It holds, with no code of ours:
//   * models with all their norms (-g norm, or any at gate 1): as they are;
//   * -g taper-all at gate 0, in the convention of the public LayerNorm-free GPT-2s: layer_norm_epsilon is 1e12 and the
//     weights are 1e6 times as large, so that a "norm" is 1e6 (h - mean h) / sqrt(var + 1e12) = h - mean h, times the
//     weight. In fp32 the root is exactly 1e6 up to a variance of 32768, half a unit in the last place of 1e12;
//   * folded models of these two, with lm_head.weight of its own. What folding leaves as the head's bias b moves into the
//     mean direction, which LayerNorm's centering keeps free: see export_head.
// Every other LayerNorm model (the final norm stays while those in the blocks are gone; 0 < gate < 1) and every RMSNorm
// model needs the modeling file that is then written beside it.
#pragma once
#include <string>
#include <vector>

#include "model/model_file.h"

namespace tapernorm {

// The subcommand: argv[0] is "export". Returns the exit status; errors are thrown.
int export_command(int argc, const char* const* argv);

bool fits_gpt2_lm_head_model(const ModelInfo& info);

// A head [V, C] without a bias and the bias [C] of the final site, such that for every z of mean 0
//     head (z + site_bias) = W z + b,        W [V, C], b [V] or null.
void export_head(std::vector<double>& head, std::vector<double>& site_bias, const float* W, const float* b, size_t V,
                 size_t C);

}  // namespace tapernorm
