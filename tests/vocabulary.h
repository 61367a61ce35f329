// A small vocabulary on the disk, for tests of programs.
#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "io/output_folder.h"
#include "io/tokenizer.h"
#include "tests/run_program.h"

namespace tapernorm {

inline void save_tokenizer(const Tokenizer& tokenizer, const std::string& path) {
    OutputFolder folder(path);
    tokenizer.save(folder);
    folder.keep();
}

// 256 bytes, "he", "the", <|endoftext|>, then `more` tokens that are never used.
inline void write_vocabulary(const std::string& folder, size_t more = 0) {
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; b++) tokens.emplace_back(1, char(b));
    tokens.insert(tokens.end(), {"he", "the", std::string(kEndOfText)});
    for (size_t i = 0; i < more; i++) tokens.push_back("<more " + std::to_string(i) + ">");
    const std::vector<std::pair<uint16_t, uint16_t>> merges = {{'h', 'e'}, {'t', 256}};
    std::filesystem::create_directory(folder);
    write_file(folder + "/vocab.json", vocab_json_text(tokens));
    write_file(folder + "/merges.txt", merges_txt_text(tokens, merges));
}

}  // namespace tapernorm
