// Prompts from what a user gives: a text, ids, or a file of lines. A prompt fits the model, or it is an error.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/tokenizer.h"
#include "model/model_file.h"

namespace tapernorm {

struct Prompt {
    std::vector<int> tokens;
    std::string text;  // empty where ids were given and there is no vocabulary
};

// Reads prompts for one model. Everything it is given must outlive it.
class PromptReader {
  public:
    // model: the model's file, for messages. why_none: why there is no tokenizer, where there is none.
    PromptReader(const std::string& model, const ModelInfo& info, const std::optional<Tokenizer>& tokenizer,
                 std::string why_none = "")
        : model_(model), info_(info), tokenizer_(tokenizer), why_none_(std::move(why_none)) {}

    const Tokenizer& require_tokenizer() const;
    Prompt from_ids(const std::string& list) const;                 // "1,2,3"
    Prompt from_text(const std::string& text) const;                // an error where it is longer than the context
    Prompt from_opening(const std::string& text) const;             // the same, cut where it is longer
    std::vector<Prompt> from_lines(const std::string& path) const;  // the last line may lack its line feed

  private:
    // Fails where the model cannot take these tokens. what: "the prompt", for messages.
    void check(const std::string& what, const std::vector<int>& tokens) const;

    const std::string& model_;
    const ModelInfo& info_;
    const std::optional<Tokenizer>& tokenizer_;
    std::string why_none_;
};

}  // namespace tapernorm
