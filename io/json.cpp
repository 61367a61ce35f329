#include "io/json.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <string>

#include "io/files.h"
#include "runtime/printable.h"

namespace tapernorm {

using nlohmann::json;

namespace {

bool too_deep(std::string_view text) {
    size_t depth = 0;
    bool in_string = false;
    for (size_t at = 0; at < text.size(); at++) {
        const char c = text[at];
        if (c == '"') in_string = !in_string;
        if (c == '\\' && in_string) at++;
        if (in_string) continue;
        if (c == '[' || c == '{') depth++;
        if ((c == ']' || c == '}') && depth > 0) depth--;
        if (depth > kDeepestJson) return true;
    }
    return false;
}

// The number of the escape at text[at], which is a backslash, u and four hexadecimal digits; 0 if there is none.
unsigned escaped_unit(std::string_view text, size_t at) {
    unsigned unit = 0;
    if (text.size() < at + 6 || text.substr(at, 2) != "\\u") return 0;
    const auto [end, error] = std::from_chars(text.data() + at + 2, text.data() + at + 6, unit, 16);
    return error == std::errc() && end == text.data() + at + 6 ? unit : 0;
}

std::string without_half_pairs(std::string_view text) {
    std::string mended;
    for (size_t at = 0; at < text.size();) {
        const unsigned unit = escaped_unit(text, at), after = escaped_unit(text, at + 6);
        const bool pair = unit >= 0xd800 && unit < 0xdc00 && after >= 0xdc00 && after < 0xe000;
        const bool half = !pair && unit >= 0xd800 && unit < 0xe000;
        const size_t length = pair ? 12 : unit ? 6 : text[at] == '\\' ? 2 : 1;
        mended += half ? "\\ufffd" : text.substr(at, length);
        at += length;
    }
    return mended;
}

}  // namespace

json parse_json(std::string_view text) {
    if (too_deep(text)) return json::value_t::discarded;
    json value = json::parse(text, nullptr, false);
    if (value.is_discarded() && text.find("\\u") != text.npos)
        value = json::parse(without_half_pairs(text), nullptr, false);
    return value;
}

std::string json_found(const json& value, std::string_view text) {
    if (!value.is_discarded()) return value.type_name();
    if (text.empty()) return "an empty file";
    if (too_deep(text)) return "more than " + std::to_string(kDeepestJson) + " levels of brackets";
    const std::string kind = kind_of_file(text);
    return kind.empty() ? "no valid JSON" : kind;
}

void print_json(const nlohmann::ordered_json& value) {
    const auto replace = json::error_handler_t::replace;
    std::string text = value.dump(-1, ' ', false, replace);
    if (isatty(STDOUT_FILENO) && printable(text) != text) text = value.dump(-1, ' ', true, replace);
    std::printf("%s\n", text.c_str());
}

}  // namespace tapernorm
