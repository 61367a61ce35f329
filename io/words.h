// GPT-2's words, the parts of a text within which a byte-level BPE merges. Bytes that are not UTF-8 count as Python's
// replacement character does: neither letter nor number nor space.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/printable.h"  // utf8_char

namespace tapernorm {

// The words of a text one by one, by GPT-2's regular expression; joined they are the text.
class Words {
  public:
    explicit Words(std::string_view text);  // fails in a build without PCRE2
    ~Words();
    Words(const Words&) = delete;
    Words& operator=(const Words&) = delete;

    bool next(std::string_view& word);

  private:
    std::string_view text_;
    std::string masked_;        // where the text is not UTF-8: a copy with stand-ins for its invalid bytes
    std::string_view subject_;  // what the expression sees: text_ or masked_
    size_t position_ = 0;
    void* match_data_ = nullptr;
};

// The place of the first byte at or after `at` that is not UTF-8; text.size() if there is none.
size_t find_invalid_utf8(std::string_view text, size_t at);

// The first place at or after `at` where a text can be cut so that the two parts have the words of the whole; text.size()
// if there is none.
size_t word_safe_cut(std::string_view text, size_t at);

}  // namespace tapernorm
