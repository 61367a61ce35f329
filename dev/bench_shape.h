// The size of a model with random weights: flags that the benchmarks share.
#pragma once
#include <string>

#include "io/options.h"

namespace tapernorm {

inline void add_shape_options(Options& o, std::string& depth, size_t& L, size_t& NH, size_t& C, size_t& V) {
    // clang-format off
    o.add({.short_name = "-e", .long_name = "--model", .to = &depth, .metavar = "dN", .default_text = "d12",
           .help = "a GPT-2 shape by its depth, as in train_gpt"});
    o.add({.long_name = "--n-layer", .to = &L, .metavar = "L", .range = {.low = 1, .high = 1000},
           .help = "number of blocks"});
    o.add({.long_name = "--n-head", .to = &NH, .metavar = "NH", .range = {.low = 1, .high = 1024},
           .help = "number of attention heads"});
    o.add({.long_name = "--n-embd", .to = &C, .metavar = "C", .range = {.low = 1, .high = 1 << 16},
           .help = "number of channels, a multiple of --n-head"});
    o.add({.long_name = "--vocab", .to = &V, .metavar = "V", .range = {.low = 1, .high = 1 << 16},
           .help = "number of tokens in the vocabulary"});
    // clang-format on
}

}  // namespace tapernorm
