#include "io/words.h"

#include <algorithm>
#include <cstring>

#include "io/mapped_file.h"
#include "runtime/error.h"

#if HAVE_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

namespace tapernorm {

namespace {

// Unicode's White_Space property, which is the meaning of \s in the expression.
bool is_white_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

}  // namespace

// A word never has white space after its first character unless it is all white space. So a text can be cut before white
// space that follows anything else.
size_t word_safe_cut(std::string_view text, size_t at) {
    for (at = std::max<size_t>(at, 1); at < text.size(); ++at) {
        const auto here = static_cast<unsigned char>(text[at]);
        if (here >= 0x80 || !is_white_space(here)) continue;
        size_t before = at - 1;
        while (before > 0 && at - before < 4 && (text[before] & 0xC0) == 0x80) --before;
        uint32_t code = 0;
        if (utf8_char(text, before, code) == at - before && !is_white_space(code)) return at;
    }
    return text.size();
}

size_t find_invalid_utf8(std::string_view text, size_t at) {
    while (at < text.size()) {
        uint64_t eight;
        if (at + 8 <= text.size() && (std::memcpy(&eight, &text[at], 8), !(eight & 0x8080808080808080u))) {
            at += 8;
            continue;
        }
        uint32_t code = 0;
        const size_t length = utf8_char(text, at, code);
        if (!length) return at;
        at += length;
    }
    return at;
}

#if HAVE_PCRE2

namespace {

// A copy in which each invalid byte is replaced by U+0001. To the expression below it is like Python's replacement character
// U+FFFD, neither letter nor number nor space, but it has one byte, so that places in the copy are places in the text.
std::string mask_invalid_utf8(std::string_view text, size_t invalid) {
    std::string masked(text);
    for (; invalid < text.size(); invalid = find_invalid_utf8(text, invalid + 1)) masked[invalid] = '\x01';
    return masked;
}

// GPT-2's expression, '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, with two
// changes that leave the matches the same: `++` where giving characters back cannot help, and White_Space written out,
// because PCRE2's \s includes U+180E too.
#define WHITE R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"
constexpr const char* kWordPattern = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^)" WHITE R"(\p{L}\p{N}]++|[)" WHITE
                                     R"(]+(?![^)" WHITE R"(])|[)" WHITE "]+";
#undef WHITE

const pcre2_code* word_expression() {
    static const pcre2_code* const compiled = [] {
        int error;
        PCRE2_SIZE place;
        pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(kWordPattern), PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_UCP, &error, &place, nullptr);
        if (!code)
            fail("PCRE2 rejects GPT-2's expression (error %d at %zu); install a PCRE2 with Unicode support", error,
                 size_t(place));
        // Where the system forbids generated code, matching works without it, but several times slower.
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
        return code;
    }();
    return compiled;
}

void no_word(size_t position, int result) {
    MappedFile::check_all();
    fail("PCRE2 cannot cut the text into words at byte %zu (result %d)", position, result);
}

}  // namespace

Words::Words(std::string_view text) : text_(text), subject_(text) {
    const size_t invalid = find_invalid_utf8(text, 0);
    if (invalid < text.size()) {
        masked_ = mask_invalid_utf8(text, invalid);
        subject_ = masked_;
    }
    match_data_ = pcre2_match_data_create_from_pattern(word_expression(), nullptr);
    if (!match_data_) fail("out of memory while cutting a text into words");
}

Words::~Words() { pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_)); }

bool Words::next(std::string_view& word) {
    if (position_ == subject_.size()) return false;
    auto* match = static_cast<pcre2_match_data*>(match_data_);
    const int result = pcre2_match(word_expression(), reinterpret_cast<PCRE2_SPTR>(subject_.data()), subject_.size(),
                                   position_, PCRE2_NO_UTF_CHECK, match, nullptr);
    const PCRE2_SIZE* place = pcre2_get_ovector_pointer(match);
    // Every character starts a word, so a match is always found, and at this place, unless the text has changed meanwhile.
    if (result < 1 || place[0] != position_ || place[1] <= position_) no_word(position_, result);
    word = text_.substr(position_, place[1] - position_);
    position_ = place[1];
    return true;
}

#else

Words::Words(std::string_view) {
    fail(
        "this program was built without PCRE2 and cannot encode text with BPE; install it (Debian: libpcre2-dev; macOS: "
        "brew install pcre2) and build again, or use the tokenizer bytes");
}
Words::~Words() = default;
bool Words::next(std::string_view&) { return false; }

#endif

}  // namespace tapernorm
