// A model's shape by its depth: --model dN instead of --n-layer, --n-head and --n-embd.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <string>
#include <utility>

#include "io/options.h"
#include "runtime/error.h"

namespace tapernorm {

// The sizes of OpenAI's and llm.c's models, by depth ("d12"), as the option --model takes them.
inline void set_shape_by_depth(const std::string& depth, size_t& L, size_t& NH, size_t& C) {
    struct Shape {
        size_t L, C, NH;
    };
    static const Shape kShapes[] = {{6, 384, 6}, {12, 768, 12}, {24, 1024, 16}, {36, 1280, 20}, {48, 1600, 25}};
    const long layers = depth[0] == 'd' ? std::strtol(depth.c_str() + 1, nullptr, 10) : 0;
    if (layers < 1 || layers > 1000 || depth.substr(1) != std::to_string(layers))
        fail("--model: expected d and a number of layers, such as d12, found %s", in_quotes(depth).c_str());
    for (const Shape& s : kShapes)
        if (s.L == size_t(layers)) return void((L = s.L, NH = s.NH, C = s.C));
    fail(
        "--model: expected d6, d12, d24, d36 or d48, found d%ld; set other shapes with --n-layer, --n-head and --n-embd",
        layers);
}

// The same for --model's value; "": it has none. A size that was typed wins over the --model of a file of settings, and a
// --model that was typed over the sizes there; both in one place are an Error.
inline void set_shape(const Options& now, const std::string& depth, size_t& L, size_t& NH, size_t& C) {
    if (depth.empty()) return;
    size_t own[] = {L, NH, C}, *sizes[] = {&L, &NH, &C};
    const char* flags[] = {"--n-layer", "--n-head", "--n-embd"};
    set_shape_by_depth(depth, L, NH, C);
    for (size_t i = 0; i < 3; i++) {
        if (!now.given("--model") || !now.given(flags[i])) continue;
        if (now.typed("--model") == now.typed(flags[i]))
            fail("--model and %s: expected one of them, found both", flags[i]);
        if (now.typed(flags[i])) *sizes[i] = own[i];
    }
}

}  // namespace tapernorm
