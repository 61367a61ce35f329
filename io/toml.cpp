#include "io/toml.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <sstream>

#include "io/atomic_file.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

constexpr std::string_view kBlanks = " \t\r", kEscapes = "btnfr\"\\", kEscaped = "\b\t\n\f\r\"\\";

std::string utf8(unsigned code) {
    if (code < 0x80) return {char(code)};
    std::string text;
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // bytes after the first one
    for (int i = 0; i < more; i++, code >>= 6) text.insert(text.begin(), char(0x80 | (code & 0x3f)));
    constexpr unsigned kLead[] = {0xc0, 0xe0, 0xf0};
    return char(kLead[more - 1] | code) + text;
}

// What begins with a quotation mark, up to the one that ends it; `rest` becomes what follows. False where it is malformed.
bool read_string(std::string_view& rest, std::string& value) {
    const char quote = rest.front();
    for (rest.remove_prefix(1); !rest.empty(); rest.remove_prefix(1)) {
        const char c = rest.front();
        if (c == quote) return rest.remove_prefix(1), true;
        if (c != '\\' || quote == '\'') {
            value += c;
            continue;
        }
        if (rest.size() < 2) return false;
        rest.remove_prefix(1);
        if (const size_t at = kEscapes.find(rest.front()); at != rest.npos) {
            value += kEscaped[at];
            continue;
        }
        const size_t digits = rest.front() == 'u' ? 4 : rest.front() == 'U' ? 8 : 0;
        unsigned code = 0;
        if (digits == 0 || rest.size() <= digits) return false;
        const auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + 1 + digits, code, 16);
        if (error != std::errc() || end != rest.data() + 1 + digits || code == 0 || code > 0x10ffff) return false;
        value += utf8(code);
        rest.remove_prefix(digits);
    }
    return false;
}

bool is_key(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(),
                                        [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_'; });
}

std::string_view trimmed(std::string_view text) {
    const size_t begin = text.find_first_not_of(kBlanks), end = text.find_last_not_of(kBlanks);
    return begin == text.npos ? "" : text.substr(begin, end - begin + 1);
}

}  // namespace

std::vector<TomlEntry> read_toml(std::string_view text) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark
    std::istringstream in{std::string(text)};
    std::vector<TomlEntry> entries;
    std::string line;
    for (size_t number = 1; std::getline(in, line); number++) {
        std::string_view rest = trimmed(line);
        if (rest.empty() || rest.front() == '#') continue;
        const size_t equals = rest.find('=');
        const std::string key(trimmed(rest.substr(0, equals)));
        if (equals == rest.npos || !is_key(key))
            fail("line %zu: expected KEY = VALUE, found %s", number, in_quotes(rest).c_str());
        rest = trimmed(rest.substr(equals + 1));
        std::string value;
        bool good = !rest.empty();
        if (good && (rest.front() == '"' || rest.front() == '\'')) {
            good = read_string(rest, value);
        } else {
            value = rest.substr(0, rest.find_first_of(" \t#[]{},\"'"));
            rest.remove_prefix(value.size());
            good = !value.empty();
        }
        rest = trimmed(rest);
        if (!good || !(rest.empty() || rest.front() == '#'))
            fail("line %zu: %s: expected a number, true, false or a string in quotes on this line, found %s", number,
                 key.c_str(), in_quotes(trimmed(std::string_view(line).substr(line.find('=') + 1))).c_str());
        for (const TomlEntry& before : entries)
            if (before.key == key)
                fail("line %zu: %s: expected one value, found another in line %zu", number, key.c_str(), before.line);
        entries.push_back({key, value, number});
    }
    return entries;
}

std::string toml_string(std::string_view text) {
    std::string quoted = "\"";
    for (const char c : text) {
        const size_t at = kEscaped.find(c);
        const unsigned byte = static_cast<unsigned char>(c);
        if (at != kEscaped.npos)
            quoted += {'\\', kEscapes[at]};
        else
            quoted += byte < 32 || byte == 127 ? strprintf("\\u%04x", byte) : std::string(1, c);
    }
    return quoted + "\"";
}

}  // namespace tapernorm
