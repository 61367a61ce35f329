// Errors that a user can cause. `fail` formats one line: which file or flag, what was expected, what was found, how to fix
// it. Programs catch Error in main, print "<program>: error: <line>" and exit with status 1.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "runtime/printable.h"

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

// "1 token", "2 tokens", "2 batches".
inline std::string counted(size_t n, std::string_view noun) {
    const char* ending = n == 1 ? "" : noun.ends_with("ch") ? "es" : "s";
    return std::to_string(n).append(" ").append(noun).append(ending);
}

// "; HINT" for the end of an error about too little memory, or nothing where the program gave no hint.
inline std::string memory_hint_text(const char* hint) { return *hint ? std::string("; ") + hint : ""; }

// Quoted for a one-line message: printable, with quotes and backslashes as \xNN too; long texts are cut in the middle.
inline std::string in_quotes(std::string_view text) {
    constexpr size_t kLongest = 160;
    std::string out = "'";
    bool cut = text.size() <= kLongest;
    for (size_t at = 0; at < text.size();) {
        if (!cut && at >= kLongest / 2) {
            cut = true;
            out += "...";
            at = text.size() - kLongest / 2;
            while (at < text.size() && (text[at] & 0xc0) == 0x80) at++;  // not within a character
            continue;
        }
        const bool plain = text[at] != '\'' && text[at] != '\\';
        const size_t length = plain ? printable_char(text, at) : 0;
        out += length ? std::string(text.substr(at, length)) : escaped_byte(text[at]);
        at += length ? length : 1;
    }
    return out + "'";
}

// Throws the formatted line as an Error. What the names of files and flags may hold becomes printable: the message stays one
// line, and cannot drive the terminal.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
    va_list args;
    va_start(args, format);
    const std::string text = vstrprintf(format, args);
    va_end(args);
    throw Error(printable(text));
}

}  // namespace tapernorm
