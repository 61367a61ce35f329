// Errors that a user can cause. `fail` formats one line: which file or flag, what was expected, what was found, how to fix
// it. Programs catch Error in main, print "<program>: error: <line>" and exit with status 1.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tapernorm {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::string vstrprintf(const char* format, va_list args) {
    va_list measure;
    va_copy(measure, args);
    std::string text(size_t(std::vsnprintf(nullptr, 0, format, measure)), '\0');
    va_end(measure);
    std::vsnprintf(text.data(), text.size() + 1, format, args);
    return text;
}

// printf into a std::string.
[[gnu::format(printf, 1, 2)]] inline std::string strprintf(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = vstrprintf(format, args);
    va_end(args);
    return text;
}

// "; HINT" for the end of an error about too little memory, or nothing where the program gave no hint.
inline std::string memory_hint_text(const char* hint) { return *hint ? std::string("; ") + hint : ""; }

// Quoted for a one-line message: control characters and quotes as \xNN, long texts cut in the middle.
inline std::string in_quotes(std::string_view text) {
    constexpr size_t kLongest = 160;
    std::string out = "'";
    for (size_t i = 0; i < text.size(); i++) {
        if (text.size() > kLongest && i == kLongest / 2) {
            out += "...";
            i = text.size() - kLongest / 2;
        }
        const unsigned char c = static_cast<unsigned char>(text[i]);
        out += c < 0x20 || c == 0x7f || c == '\'' || c == '\\' ? strprintf("\\x%02x", unsigned(c))
                                                               : std::string(1, char(c));
    }
    return out + "'";
}

// Throws the formatted line as an Error. Control characters, which the names of files and flags may have, become \xNN: the
// message stays one line, and cannot drive the terminal.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
    va_list args;
    va_start(args, format);
    const std::string text = vstrprintf(format, args);
    va_end(args);
    std::string line;
    for (const char c : text) {
        const unsigned char byte = static_cast<unsigned char>(c);
        line += byte < 32 || byte == 127 ? strprintf("\\x%02x", unsigned(byte)) : std::string(1, c);
    }
    throw Error(line);
}

}  // namespace tapernorm
