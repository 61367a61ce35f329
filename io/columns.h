// Text for a terminal: lines that fit its width, tables of names and values.
#pragma once
#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace tapernorm {

constexpr size_t kPageWidth = 100;

inline std::string padded(std::string text, size_t width) {
    text.resize(std::max(width, text.size()), ' ');
    return text;
}

// Breaks text at spaces into lines of at most `width` columns (a longer word stays whole).
inline std::vector<std::string> wrapped(const std::string& text, size_t width) {
    std::vector<std::string> lines = {""};
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find(' ', at), text.size());
        const std::string word = text.substr(at, end - at);
        if (!lines.back().empty() && lines.back().size() + 1 + word.size() > width) lines.push_back("");
        lines.back() += (lines.back().empty() ? "" : " ") + word;
        at = end + 1;
    }
    return lines;
}

// Aligned columns of names and values, read downwards: as many columns as fit the page, three at most.
inline std::string in_columns(const std::vector<std::pair<std::string, std::string>>& pairs) {
    for (size_t columns = 3;; columns--) {
        const size_t height = (pairs.size() + columns - 1) / columns;
        std::vector<std::string> lines(height);
        size_t width = 0;
        for (size_t begin = 0; begin < pairs.size(); begin += height) {
            const size_t end = std::min(begin + height, pairs.size()), indent = begin == 0 ? 0 : width + 4;
            size_t name_width = 0;
            for (size_t i = begin; i < end; i++) name_width = std::max(name_width, pairs[i].first.size());
            for (size_t i = begin; i < end; i++) {
                std::string& line = lines[i - begin];
                line = padded(line, indent) + padded(pairs[i].first, name_width + 2) + pairs[i].second;
                width = std::max(width, line.size());
            }
        }
        if (width > kPageWidth && columns > 1) continue;
        std::string text;
        for (const std::string& line : lines) text += line + "\n";
        return text;
    }
}

}  // namespace tapernorm
