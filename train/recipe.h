// The recipe of a shape: with --model dN, all that a run from random weights is trained with and that no flag says.
// dev/guides/recipes.md has the rules in words.
#pragma once
#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "io/options.h"
#include "model/config.h"
#include "train/settings.h"

namespace tapernorm::train {

// What a recipe looks at besides the shape and the flags.
struct RecipeFacts {
    size_t V = 0, corpus_tokens = 0;  // to train on
    size_t ranks = 1;
    bool gpu = false;
    double free_bytes = 0;  // of each rank's device; 0: not known
};

// One setting and its reason. The setting is a flag's long name and its value.
struct RecipeLine {
    std::string flag, value, why;
};

// In the order in which they are to be shown. given: what has been said already, which stays, and which the rest follows.
std::vector<RecipeLine> recipe(const Settings& s, const Options& given, const RecipeFacts& facts);

// Forward and backward pass, per token: 6 per weight of the matrices, and causal attention over T positions.
double training_flops(const Config& c, size_t T);
// Floating-point operations of Muon in one update, which each rank does.
double muon_flops(const Config& c);

// How many rows of logits are held at a time at most, if --logits-rows does not say it: 4 GiB of them on a GPU, whose products over all
// rows of a micro-batch use all of it (in bf16, 42,000 rows of GPT-2's vocabulary), and fewer than 2^31; 256 MiB on a CPU.
inline size_t most_logits_rows(size_t V, bool gpu, size_t number_bytes) {
    return std::max<size_t>(((size_t(gpu ? 4096 : 256) << 20) / number_bytes - 1) / V, 64);
}
// How many of N rows are computed at a time: equal parts of at most `most`.
inline size_t logits_rows(size_t N, size_t most) {
    const size_t parts = (N + most - 1) / most;
    return (N + parts - 1) / parts;
}

// What a trainer holds, in bytes, as train_gpt.cu's Gpt and Trainer allocate it: numbers of 4 bytes, or on a GPU (bf16) of 2
// with master weights of 4. ranks: among which --zero 1 divides the optimizer's state; 1 without it.
double training_bytes(const Config& c, const Settings& s, bool gpu, size_t ranks);

// Memory that a process may still take, in bytes: what the machine has left, or less by the limits of its
// control group or its own (ulimit -v). 0: not known.
double free_memory();

}  // namespace tapernorm::train
