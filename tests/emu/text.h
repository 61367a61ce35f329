// printf into a std::string.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <string>

namespace emu {

inline std::string vstrprintf(const char* format, va_list args) {
    va_list measure;
    va_copy(measure, args);
    std::string text(size_t(std::vsnprintf(nullptr, 0, format, measure)), '\0');
    va_end(measure);
    std::vsnprintf(text.data(), text.size() + 1, format, args);
    return text;
}

[[gnu::format(printf, 1, 2)]] inline std::string strprintf(const char* format, ...) {
    va_list args;
    va_start(args, format);
    std::string text = vstrprintf(format, args);
    va_end(args);
    return text;
}

}  // namespace emu
