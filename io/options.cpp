#include "io/options.h"

#include <toml++/toml.h>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <utility>

#include "io/atomic_file.h"
#include "io/version.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

using Names = std::vector<std::string>;
constexpr size_t kPageWidth = 100;

std::string to_text(const std::string& value) { return value; }
std::string to_text(bool value) { return value ? "yes" : "no"; }
std::string to_text(auto whole) { return std::to_string(whole); }
std::string to_text(double x) {  // reads back to the same bits
    const std::string shortened = strprintf("%g", x);
    return std::strtod(shortened.c_str(), nullptr) == x ? shortened : strprintf("%.17g", x);
}

// Each says whether the whole text is such a value, in the range. Numbers are decimal, without blanks or a plus sign.
bool read(std::string_view text, auto& number, const Range& range) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const double x = double(number);
    return error == std::errc() && end == text.data() + text.size() && std::isfinite(x) &&
           (range.low_open ? x > range.low : x >= range.low) && (range.high_open ? x < range.high : x <= range.high);
}
bool read(std::string_view, bool&, const Range&) { return false; }
bool read(std::string_view text, std::string& value, const Range&) { return value = text, !text.empty(); }
bool read(std::string_view text, Length& length, const Range& range) {
    length.is_percent = text.ends_with('%');
    if (length.is_percent) return read(text.substr(0, text.size() - 1), length.value, {.low = 0, .high = 100});
    size_t count = 0;
    return read(text, count, range) && (length.value = double(count), true);
}

bool is_positional(const Option& o) { return !o.long_name.starts_with("--"); }
bool is_flag(const Option& o) { return std::holds_alternative<bool*>(o.to); }
bool flag_sets(const Option& o) { return !o.long_name.starts_with("--no-"); }
std::string key(const Option& o) { return o.long_name.substr(is_positional(o) ? 0 : 2); }
std::string value_text(const Option& o) {
    return std::visit([](const auto* value) { return to_text(*value); }, o.to);
}

std::string joined(const Names& items, const char* between) {
    std::string text;
    for (const std::string& item : items) text += (text.empty() ? "" : between) + item;
    return text;
}

std::string metavar(const Option& o) {
    constexpr const char* kByType[] = {"TEXT", "N", "N", "X", "", "N|P%"};
    if (!o.metavar.empty()) return o.metavar;
    return o.choices.empty() ? kByType[o.to.index()] : joined(o.choices, "|");
}

// "--gate-mode (-g)", "MODEL"
std::string label(const Option& o) {
    const std::string also = o.short_name.empty() ? "" : " (" + o.short_name + ")";
    return (is_positional(o) ? metavar(o) : o.long_name) + also;
}

std::string expected(const Option& o) {
    constexpr const char* kByType[] = {"",         "a whole number", "a whole number",
                                       "a number", "no value",       "a number of updates"};
    const auto [low, high, low_open, high_open] = o.range;
    if (!o.choices.empty()) return "one of " + joined(o.choices, ", ");
    std::string text = kByType[o.to.index()];
    if (std::isfinite(low)) text += (low_open ? " above " : " of at least ") + to_text(low);
    if (std::isfinite(low) && std::isfinite(high)) text += " and";
    if (std::isfinite(high)) text += (high_open ? " below " : " of at most ") + to_text(high);
    if (std::holds_alternative<Length*>(o.to)) text += " (100) or a part of the run (5%)";
    return text.empty() ? metavar(o) : text;
}

// "; did you mean X?" for the name that is nearest to the one found, at its beginning or as a whole; "" where none is near.
std::string suggestion(std::string_view found, const Names& names) {
    const auto distance = [&](std::string_view name) {  // between what the two begin with and what they end with
        const size_t shorter = std::min(found.size(), name.size());
        size_t front = 0, back = 0;
        while (front < shorter && found[front] == name[front]) front++;
        while (back < shorter - front && found.rbegin()[back] == name.rbegin()[back]) back++;
        return std::max(found.size(), name.size()) - front - back;
    };
    const size_t letters = found.size() - std::min(found.size(), found.find_first_not_of('-'));
    size_t limit = std::min<size_t>(2, letters / 2) + 1;
    std::string nearest;
    for (const std::string& name : names)
        for (const size_t length : {name.size(), found.size()})
            if (const size_t d = distance(std::string_view(name).substr(0, length)); d < limit)
                limit = d, nearest = "; did you mean " + name + "?";
    return nearest;
}

[[noreturn]] void fail_value(const Option& o, const std::string& found) {
    fail("%s: expected %s, found %s%s", label(o).c_str(), expected(o).c_str(), in_quotes(found).c_str(),
         suggestion(found, o.choices).c_str());
}

std::string padded(std::string text, size_t width) {
    text.resize(std::max(width, text.size()), ' ');
    return text;
}

// What every program has, and parse() itself acts on.
const std::vector<Option> kGeneral = {
    {.long_name = "--config",
     .to = static_cast<std::string*>(nullptr),
     .metavar = "FILE",
     .help = "read settings from FILE, one per line, such as seed = 4; flags given here override them",
     .section = "General"},
    {.long_name = "--version",
     .to = static_cast<bool*>(nullptr),
     .help = "print the commit, the compiler and the optional features, and exit",
     .section = "General"},
    {.short_name = "-h",
     .long_name = "--help",
     .to = static_cast<bool*>(nullptr),
     .help = "print this help and exit",
     .section = "General"},
};

}  // namespace

size_t Length::resolve(size_t total) const {
    if (!is_percent) return size_t(value);
    return value > 0 ? std::max<size_t>(1, size_t(std::llround(value / 100 * double(total)))) : 0;
}

std::string to_text(const Length& length) {
    return length.is_percent ? to_text(length.value) + "%" : strprintf("%.0f", length.value);
}

void Options::add(Option o) {
    if (o.section.empty()) o.section = section_;
    if (o.default_text.empty() && !is_positional(o) && !is_flag(o)) o.default_text = value_text(o);
    rows_.push_back(std::move(o));
}

void Options::set(const Option& o, const std::string& text, bool typed) {
    const auto assign = [&](auto* target) {
        auto value = *target;
        const bool known = o.choices.empty() || std::ranges::count(o.choices, text) > 0;
        if (!known || text.find('\n') != text.npos || !read(text, value, o.range)) fail_value(o, text);
        *target = value;
    };
    if (is_flag(o))
        *std::get<bool*>(o.to) = flag_sets(o);
    else
        std::visit(assign, o.to);
    given_[o.long_name] = typed;
    arguments_.push_back(is_positional(o) ? text : is_flag(o) ? o.long_name : o.long_name + "=" + text);
}

void Options::read_config(const std::string& path) {
    const MappedFile file(path);
    const auto fail_at = [&](const toml::source_region& place, const std::string& text) {
        fail("%s: line %u: %s", path.c_str(), unsigned(place.begin.line), text.c_str());
    };
    toml::table table;
    try {
        table = toml::parse(std::string_view(reinterpret_cast<const char*>(file.data()), file.size()));
    } catch (const toml::parse_error& error) {
        fail_at(error.source(), std::string(error.description()));
    }
    Names keys;
    for (const Option& o : rows_) keys.push_back(key(o));
    std::map<std::string, std::string> names;  // by long name: what the file calls it
    for (const auto& [entry, node] : table) {
        const std::string name(entry.str());
        const auto o = std::ranges::find_if(rows_, [&](const Option& row) {
            return row.long_name == "--" + name || row.alias == "--" + name;
        });
        if (o == rows_.end())
            fail_at(entry.source(),
                    "unknown setting " + in_quotes(name) + suggestion(name, keys) + " (--help lists all)");
        std::ostringstream found;
        if (node.is_string())
            found << node.ref<std::string>();
        else
            node.visit([&](const auto& value) { found << value; });
        if (node.is_table() || node.is_array() || is_flag(*o) != node.is_boolean())
            fail_at(entry.source(), label(*o) + ": expected " + (is_flag(*o) ? "true or false" : expected(*o)) +
                                        ", found " + in_quotes(found.str()));
        if (const auto [other, fresh] = names.try_emplace(o->long_name, name); !fresh)
            fail_at(entry.source(), name + ": expected one value, found another as " + other->second);
        if (!given(o->long_name) && found.str() != "false") try {
                set(*o, found.str(), false);
            } catch (const Error& error) {
                fail_at(entry.source(), error.what());
            }
    }
}

bool Options::parse(int argc, const char* const* argv) {
    std::vector<Option> rows = rows_;
    rows.insert(rows.end(), kGeneral.begin(), kGeneral.end());
    const size_t config = rows_.size(), version = config + 1, help_row = config + 2;
    std::map<std::string, size_t> row_of;
    Names names;
    for (size_t row = 0; row < rows.size(); row++)
        for (const std::string& name : {rows[row].long_name, rows[row].short_name, rows[row].alias}) {
            if (name.empty() || is_positional(rows[row])) continue;
            row_of[name] = row;
            if (name != rows[row].alias) names.push_back(name);
        }

    std::map<size_t, std::string> found;  // by row
    const Names words(argv + std::min(argc, 1), argv + argc);
    bool flags_end = false;
    for (size_t i = 0; i < words.size(); i++) {
        const std::string& word = words[i];
        if (word == "--" && !flags_end) {
            flags_end = true;
            continue;
        }
        if (flags_end || word.size() < 2 || word[0] != '-') {
            size_t row = 0;
            while (row < rows.size() && (!is_positional(rows[row]) || found.contains(row))) row++;
            if (row == rows.size()) fail("unexpected argument %s; see --help", in_quotes(word).c_str());
            found[row] = word;
            continue;
        }
        for (const Option& o : rows)
            if (word.size() > 2 && ((!o.retired.empty() && word.starts_with(o.retired)) || "-" + word == o.long_name))
                fail("unknown flag %s; did you mean %s?", word.c_str(), o.long_name.c_str());
        const bool is_long = word[1] == '-';
        const size_t end = is_long ? std::min(word.find('='), word.size()) : 2;
        std::string name = word.substr(0, end), value = word.substr(end);
        auto entry = row_of.find(name);
        while (!is_long && !value.empty() && entry != row_of.end() && is_flag(rows[entry->second])) {
            found[entry->second] = "";  // -yb3 is -y -b3
            name = std::string("-") + value[0], value.erase(0, 1);
            entry = row_of.find(name);
        }
        if (entry == row_of.end())
            fail("unknown flag %s%s (--help lists all)", name.c_str(), suggestion(name, names).c_str());
        const Option& o = rows[entry->second];
        if (is_long && !value.empty()) {
            value.erase(0, 1);  // the =
            if (value.empty() || is_flag(o)) fail_value(o, value);
        } else if (value.empty() && !is_flag(o)) {
            if (++i == words.size()) fail("%s needs a value; see --help", label(o).c_str());
            value = words[i];
            if (row_of.contains(value)) fail("%s needs a value, found the flag %s", label(o).c_str(), value.c_str());
        }
        found[entry->second] = value;
        if (found.contains(help_row)) return std::fputs(help().c_str(), stdout), false;
        if (found.contains(version)) return std::printf("%s %s\n", program_.c_str(), version_text().c_str()), false;
    }

    for (size_t row = 0; row < rows_.size(); row++)
        if (const Option& o = rows_[row]; found.contains(row))
            set(o, found[row], true);
        else if (is_positional(o) && !o.optional)
            fail("the argument %s is missing: %s (see --help)", metavar(o).c_str(), o.help.c_str());
    if (found.contains(config)) read_config(found[config]);
    return true;
}

std::string Options::help() const {
    constexpr size_t kLeft = 36;  // the width of the left column; a longer left side takes a line of its own
    std::string usage = "usage: " + program_, text, section = "-";
    std::vector<Option> rows = rows_;
    rows.insert(rows.end(), kGeneral.begin(), kGeneral.end());
    for (const Option& o : rows) {
        if (is_positional(o)) usage += o.optional ? " [" + metavar(o) + "]" : " " + metavar(o);
        if (section != o.section) text += "\n" + o.section + (o.section.empty() ? "" : "\n");
        section = o.section;
        const std::string names = padded(o.short_name + (o.short_name.empty() ? "" : ","), 4) + o.long_name;
        std::string line = "  " + (is_positional(o) ? metavar(o) : names + (is_flag(o) ? "" : " ") + metavar(o));
        if (line.size() + 2 > kLeft) text += std::exchange(line, "") + "\n";
        line = padded(line, kLeft);
        std::istringstream words(o.help + (o.default_text.empty() ? "" : " (default " + o.default_text + ")"));
        for (std::string word; words >> word; line += word) {
            if (line.size() > kLeft && line.size() + 1 + word.size() > kPageWidth)
                text += std::exchange(line, padded("", kLeft)) + "\n";
            if (line.size() > kLeft) line += " ";
        }
        text += line + "\n";
    }
    return usage + " [options]\n" + description_ + "\n" + text;
}

std::string Options::table() const {
    for (size_t columns = 3;; columns--) {  // read downwards; fewer where they are wider than the page
        const size_t height = (rows_.size() + columns - 1) / columns;
        Names lines(height);
        size_t width = 0, indent = 0, name_width = 0;
        for (size_t row = 0; row < rows_.size(); row++) {
            const auto name = [&](size_t r) { return key(rows_[r]).substr(flag_sets(rows_[r]) ? 0 : 3); };
            if (row % height == 0) {
                indent = row == 0 ? 0 : width + 4, name_width = 0;
                for (size_t r = row; r < std::min(row + height, rows_.size()); r++)
                    name_width = std::max(name_width, name(r).size());
            }
            std::string& line = lines[row % height];
            const std::string value = value_text(rows_[row]);
            line = padded(line, indent) + padded(name(row), name_width + 2) + (value.empty() ? "-" : value);
            width = std::max(width, line.size());
        }
        if (width <= kPageWidth || columns == 1) return joined(lines, "\n") + "\n";
    }
}

std::string Options::config(const Names& implied) const {
    std::ostringstream text;
    std::string section;
    for (const Option& o : rows_) {
        const std::string value = value_text(o);
        const bool off = is_flag(o) && *std::get<bool*>(o.to) != flag_sets(o);
        if (value.empty() || off || is_positional(o)) continue;
        if (o.section != section) text << "\n# " << o.section << "\n";
        section = o.section;
        text << (std::ranges::count(implied, o.long_name) ? "# " : "") << key(o) << " = ";
        if (is_flag(o))
            text << "true\n";
        else if (std::holds_alternative<std::string*>(o.to) || value.ends_with('%') || value.size() > 18)  // > int64
            text << toml::toml_formatter(toml::value<std::string>(value), toml::format_flags::none) << "\n";
        else
            text << value << "\n";
    }
    return text.str();
}

}  // namespace tapernorm
