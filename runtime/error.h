// Errors that a user can cause. `fail` formats one line: which file or flag, what was expected, what was
// found, how to fix it. Programs catch Error in main, print "<program>: error: <line>" and exit with status 1.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

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

// Control characters, which names of files and flags may have, become \xNN: the message stays one line, and cannot drive
// the terminal.
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
