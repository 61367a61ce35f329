// HellaSwag: which of several endings continues a context? Scored as in llm.c: the log-likelihood of each ending's tokens
// after the context, summed (acc) and divided by their number (acc_norm).
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizer.h"

namespace tapernorm {

struct Choice {
    std::vector<int> context;
    std::vector<std::vector<int>> endings;
    size_t label;  // the right ending
};

struct HellaSwag {
    size_t items = 0, correct = 0, correct_norm = 0;
    double log_likelihood = 0;  // nats per token of the right ending, summed over the items

    double acc() const { return double(correct) / double(items); }
    double acc_norm() const { return double(correct_norm) / double(items); }
    std::string text() const;  // one line for people

    // scores: log-likelihood of each ending.
    void add(const Choice& choice, const std::vector<double>& scores);
};

// llm.c's file: 256 int32 (magic 20240522, version 1, number of items, bytes of the longest), then per item as uint16:
// 65535, its bytes, its number, label, number of endings, and the context and each ending as a count and ids.
//
// Anything else must be the original JSON lines ({"ctx": "...", "endings": ["...", ...], "label": 0}), which the tokenizer
// turns into ids: the context as it is, an ending after a space. V: the model's vocabulary; T: its context.
std::vector<Choice> read_hellaswag(const std::string& path, const std::optional<Tokenizer>& tokenizer, size_t V,
                                   size_t T);

}  // namespace tapernorm
