// The part of TOML that a file of settings needs: one `key = value` per line, and comments. A value is a string ("..." with
// escapes, '...' without), a number, true or false.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tapernorm {

struct TomlEntry {
    std::string key, value;  // the value of a string without its quotes and escapes, others as they stand
    size_t line;
};

// Errors name the line, not the file.
std::vector<TomlEntry> read_toml(std::string_view text);

// In quotes, with escapes. Bytes above 127 stay as they are: UTF-8 in, UTF-8 out.
std::string toml_string(std::string_view text);

}  // namespace tapernorm
