// One row of the table of options: its names, the variable that it sets, and the values that it takes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "io/values.h"
#include "runtime/error.h"

namespace tapernorm {

struct Option {
    std::string short_name = {};  // "-g", or ""
    std::string long_name;        // "--gate-mode"; without dashes, a positional argument
    // The value when the option is added is the default. A flag makes it true; one that begins with --no- makes it false.
    std::variant<std::string*, size_t*, int64_t*, double*, bool*, Length*> to;
    std::string metavar = {};  // "FILE"; "" for the choices, or what suits the type
    std::vector<std::string> choices = {};
    Range range = {};               // of a number; for a Length, of an absolute one. Fractions are 0% to 100%
    std::string default_text = {};  // in the help instead of the default's value ("4 x C")
    std::string help;
    std::string section = {};  // "" for the one begun by Options::section
    bool optional = false;     // whether a positional argument may be left out
    std::string alias = {};    // an old long name, which works and is not shown
    std::string retired = {};  // an old name that no longer works: the error says the long name
};

inline bool is_positional(const Option& o) { return !o.long_name.starts_with("--"); }
inline bool is_flag(const Option& o) { return std::holds_alternative<bool*>(o.to); }
inline bool flag_sets(const Option& o) { return !o.long_name.starts_with("--no-"); }
inline std::string value_text(const Option& o) {
    return std::visit([](const auto* value) { return to_text(*value); }, o.to);
}
inline std::string metavar(const Option& o) {
    constexpr const char* kByType[] = {"TEXT", "N", "N", "X", "", "N|P%"};
    if (!o.metavar.empty()) return o.metavar;
    return o.choices.empty() ? kByType[o.to.index()] : joined(o.choices, "|");
}

// "--gate-mode (-g): expected one of norm, taper, taper-all, found 'tapper'; did you mean taper?"
[[noreturn]] inline void fail_value(const Option& o, const std::string& found) {
    constexpr const char* kByType[] = {"",         "a whole number", "a whole number",
                                       "a number", "no value",       "a number of updates"};
    std::string expected = kByType[o.to.index()] + o.range.text();
    if (!o.choices.empty()) expected = "one of " + joined(o.choices, ", ");
    if (std::holds_alternative<Length*>(o.to)) expected += " (100) or a part of the run (5%)";
    if (expected.empty()) expected = metavar(o);
    fail("%s%s: expected %s, found %s%s", (is_positional(o) ? metavar(o) : o.long_name).c_str(),
         o.short_name.empty() ? "" : (" (" + o.short_name + ")").c_str(), expected.c_str(), in_quotes(found).c_str(),
         suggestion(found, o.choices).c_str());
}

// CLI11's own conversions are not used: they read 010 as 8, round a real number twice and differ between its versions.
inline void set_value(const Option& o, const std::string& text) {
    const bool known = o.choices.empty() || std::ranges::count(o.choices, text) > 0;
    const auto read = [&](auto* target) {
        auto value = *target;
        if (!known || !from_text(text, value) || !o.range.contains(value)) fail_value(o, text);
        *target = value;
    };
    if (is_flag(o))
        *std::get<bool*>(o.to) = flag_sets(o);
    else
        std::visit(read, o.to);
}

}  // namespace tapernorm
