// JSON from files of any origin.
#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tapernorm {

// Levels of brackets: code that walks through many more of them could overflow its stack.
constexpr size_t kDeepestJson = 100;

// The value of a text; discarded (is_discarded()) where it is no JSON or nests deeper than kDeepestJson. One half of a
// surrogate pair, as Python writes it for what it could not decode, becomes U+FFFD.
nlohmann::json parse_json(std::string_view text);

// What `text`, of which parse_json made `value`, is instead of what was expected: "array", "more than 100 levels of brackets".
std::string json_found(const nlohmann::json& value, std::string_view text);

// A line of JSON on the standard output. What a terminal must not get is escaped there.
void print_json(const nlohmann::ordered_json& value);

}  // namespace tapernorm
