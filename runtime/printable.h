// Text that may go to a terminal, whoever wrote it: the name of a file, a tensor or a tokenizer, a line of a corpus, what a model
// says. Control characters could drive the terminal, and marks of direction could show a name as another one: they are
// written as \xNN, byte by byte, and so is what is not UTF-8.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace tapernorm {

// The length of the valid UTF-8 character at text[at], with its code point in `code`; 0 if there is none. Surrogates, overlong
// forms and code points above U+10FFFF are not valid.
inline size_t utf8_char(std::string_view text, size_t at, uint32_t& code) {
    const auto byte = [&](size_t i) -> uint32_t {
        return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
    };
    const auto tail = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
    const uint32_t b = byte(0);
    if (b < 0x80) {
        code = b;
        return 1;
    }
    if (b < 0xE0 && tail(1)) {
        code = (b & 0x1F) << 6 | (byte(1) & 0x3F);
        return b >= 0xC2 ? 2 : 0;
    }
    if (b >= 0xE0 && b < 0xF0 && tail(1) && tail(2)) {
        code = (b & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
        return code >= 0x800 && (code < 0xD800 || code > 0xDFFF) ? 3 : 0;
    }
    if (b >= 0xF0 && b < 0xF5 && tail(1) && tail(2) && tail(3)) {
        code = (b & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
        return code >= 0x10000 && code <= 0x10FFFF ? 4 : 0;
    }
    return 0;
}

// The length of the character at text[at]; 0 where it is no character or must not reach a terminal.
inline size_t printable_char(std::string_view text, size_t at) {
    uint32_t c = 0;
    const size_t length = utf8_char(text, at, c);
    const bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);  // C0, DEL, C1
    const bool direction =
        c == 0x61c || c == 0x200e || c == 0x200f || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
    const bool line_end = c == 0x2028 || c == 0x2029;
    return control || direction || line_end ? 0 : length;
}

inline std::string escaped_byte(char byte) {
    char text[5];
    std::snprintf(text, sizeof text, "\\x%02x", unsigned(static_cast<unsigned char>(byte)));
    return text;
}

// kept: control characters that stay, such as "\n\t" in a text of several lines.
inline std::string printable(std::string_view text, std::string_view kept = "") {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t length = kept.find(text[at]) != kept.npos ? 1 : printable_char(text, at);
        out += length ? std::string(text.substr(at, length)) : escaped_byte(text[at]);
        at += length ? length : 1;
    }
    return out;
}

// The same for a text that comes in pieces, which may end within a character.
class PrintablePieces {
  public:
    // What can be shown of all pieces so far and was not shown yet.
    std::string add(std::string_view piece) {
        held_ += piece;
        size_t end = held_.size();
        for (size_t back = 1; back <= 3 && back <= held_.size(); back++) {
            const auto byte = static_cast<unsigned char>(held_[held_.size() - back]);
            if ((byte & 0xc0) == 0x80) continue;
            const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
            if (length > back) end -= back;
            break;
        }
        return show(end);
    }
    std::string rest() { return show(held_.size()); }

  private:
    std::string show(size_t end) {
        const std::string out = printable(std::string_view(held_).substr(0, end), "\n\t");
        held_.erase(0, end);
        return out;
    }
    std::string held_;
};

}  // namespace tapernorm
