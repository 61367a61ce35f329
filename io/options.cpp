#include "io/options.h"

// toml++ asserts that it is not led astray, but some malformed values do that (3.3, Debian 12: x = 5--------- 7 =-). They are
// refused, as others are. (NDEBUG would turn its assertions into assumptions.)
namespace {
struct TomlAssertion {};
[[noreturn]] void throw_toml_assertion() { throw TomlAssertion(); }
}  // namespace
#undef NDEBUG
#define TOML_ASSERT(condition) (static_cast<bool>(condition) ? void() : throw_toml_assertion())
#include <toml++/toml.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string_view>
#include <utility>

#include "io/mapped_file.h"
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

// Arithmetic takes it for 0 (runtime/floating_point.h), and so does a comparison: by its bits.
bool counts_as_zero(double x) {
    const uint64_t bits = std::bit_cast<uint64_t>(x) << 1;
    return bits > 0 && bits < uint64_t(1) << 53;
}

// A number as the file of settings has it, without what only TOML allows.
std::string written(const std::string& file, const toml::source_region& where) {
    size_t line = 0;
    for (size_t n = 1; n < where.begin.line; n++) line = file.find('\n', line) + 1;
    std::string number = file.substr(line + where.begin.column - 1, where.end.column - where.begin.column);
    std::erase_if(number, [](char c) { return c == '_' || c == '+'; });
    return number;
}

// Each says whether the whole text is such a value, in the range. Numbers are decimal, without blanks or a plus sign.
bool read(std::string_view text, auto& number, const Range& range) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (counts_as_zero(double(number))) return false;  // it would not do what it says
    if (number == 0) number = 0;  // not -0, which a file of settings would read back as a whole number's 0
    const double x = double(number);
    return error == std::errc() && end == text.data() + text.size() && std::isfinite(x) &&
           (range.low_open ? x > range.low : x >= range.low) && (range.high_open ? x < range.high : x <= range.high);
}
bool read(std::string_view, bool&, const Range&) { return false; }
bool read(std::string_view text, std::string& value, const Range&) {
    return value = text, !text.empty() && text.find('\0') == text.npos;
}
// More than any run has, and exact in a double: a Length is one, and parts of a run are computed with it.
constexpr double kMostUpdates = 1e15;
bool read(std::string_view text, Length& length, Range range) {
    length.is_percent = text.ends_with('%');
    if (length.is_percent) return read(text.substr(0, text.size() - 1), length.value, {.low = 0, .high = 100});
    size_t count = 0;
    range.high = std::min(range.high, kMostUpdates);
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
    constexpr const char* kByType[] = {"a text that is not empty",
                                       "a whole number",
                                       "a whole number",
                                       "a number",
                                       "true or false",
                                       "a number of updates"};
    if (!o.choices.empty()) return "one of " + joined(o.choices, ", ");
    if (std::holds_alternative<std::string*>(o.to) || is_flag(o)) return kByType[o.to.index()];
    const bool is_count = std::holds_alternative<size_t*>(o.to) || std::holds_alternative<Length*>(o.to);
    const double low = is_count ? std::max(o.range.low, 0.0) : o.range.low,
                 high = std::holds_alternative<Length*>(o.to) ? std::min(o.range.high, kMostUpdates) : o.range.high;
    const bool is_whole = is_count || std::holds_alternative<int64_t*>(o.to);
    const auto limit = [&](double x) { return is_whole ? strprintf("%.0f", x) : to_text(x); };
    std::string text = kByType[o.to.index()];
    if (std::isfinite(low) && std::isfinite(high) && !o.range.low_open && !o.range.high_open) {
        text += " from " + limit(low) + " to " + limit(high);
    } else {
        if (std::isfinite(low)) text += (o.range.low_open ? " above " : " of at least ") + limit(low);
        if (std::isfinite(low) && std::isfinite(high)) text += " and";
        if (std::isfinite(high)) text += (o.range.high_open ? " below " : " of at most ") + limit(high);
    }
    return text + (std::holds_alternative<Length*>(o.to) ? ", or 0% to 100% of the run" : "");
}

// How many letters to insert, remove, replace or swap with their neighbour to make one word of the other (Damerau).
size_t edits(std::string_view a, std::string_view b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); i++)
        for (size_t j = 0; j <= b.size(); j++) {
            d[i][j] = i + j;
            if (i > 0 && j > 0)
                d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    return d[a.size()][b.size()];
}

// "; did you mean X?" for the name that is nearest to the one found, as a whole or in its first word; "" where none is near.
std::string suggestion(std::string_view found, const Names& names) {
    const size_t letters = found.size() - std::min(found.size(), found.find_first_not_of('-'));
    if (letters == 0 || letters > 40) return "";
    size_t fewest = letters / 3 + 1;
    std::string nearest;
    for (const std::string& name : names) {
        const size_t first_word = name.find('-', 2);
        const size_t n =
            name.starts_with(found) ? 0 : std::min(edits(found, name), edits(found, name.substr(0, first_word)));
        if (n < fewest) fewest = n, nearest = "; did you mean " + name + "?";
    }
    return nearest;
}

[[noreturn]] void fail_value(const Option& o, const std::string& found) {
    double x = 0;
    std::from_chars(found.data(), found.data() + found.size(), x);
    fail("%s: expected %s, found %s%s%s", label(o).c_str(), expected(o).c_str(), in_quotes(found).c_str(),
         suggestion(found, o.choices).c_str(), counts_as_zero(x) ? "; numbers below 2.3e-308 count as 0 here" : "");
}

std::string padded(std::string text, size_t width) {
    text.resize(std::max(width, text.size()), ' ');
    return text;
}

// In quotes, with TOML's escapes. TOML has none for a byte that is not UTF-8; a text of ours never has a zero, so that one with
// two hexadecimal digits can stand for such a byte. named_bytes: whether there is any.
std::string toml_string(const std::string& text, bool& named_bytes) {
    std::string quoted = "\"";
    for (size_t i = 0, length; i < text.size(); i += std::max<size_t>(length, 1)) {
        const unsigned byte = static_cast<unsigned char>(text[i]);
        uint32_t code = 0;
        length = utf8_char(text, i, code);
        named_bytes |= length == 0;
        if (length == 0)
            quoted += strprintf("\\u0000%02x", byte);
        else if (byte < 32 || byte == 127)
            quoted += strprintf("\\u%04x", byte);
        else
            quoted.append(byte == '"' || byte == '\\' ? "\\" : "").append(text, i, length);
    }
    return quoted + "\"";
}

// The byte at `at` and two hexadecimal digits become the byte of these digits, where they are there.
void replace_hex(std::string& text, size_t at) {
    unsigned byte = 0;
    const char* digits = text.data() + at + 1;
    if (at + 2 < text.size() && std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2)
        text.replace(at, 3, 1, char(byte));
}

// The text that toml_string wrote, after TOML's own escapes.
std::string with_named_bytes(std::string text) {
    for (size_t at = 0; (at = text.find('\0', at)) != text.npos; at++) replace_hex(text, at);
    return text;
}

// What every program has, and parse() itself acts on.
const std::vector<Option> kGeneral = {
    {.long_name = "--config",
     .to = static_cast<std::string*>(nullptr),
     .metavar = "FILE",
     .help =
         "read settings from FILE, one per line, such as seed = 4 or train = \"corpus.txt\"; flags given here override "
         "them",
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

void Options::exclude(const std::string& one, const Names& others) {
    for (const std::string& other : others) exclusions_.push_back({one, other});
}

bool Options::in_force(const std::string& long_name) const {
    const auto o = std::ranges::find(rows_, long_name, &Option::long_name);
    return given(long_name) && !(is_flag(*o) && *std::get<bool*>(o->to) != flag_sets(*o));
}

void Options::set(const Option& o, const std::string& text, bool typed) {
    const auto assign = [&](auto* target) {
        auto value = *target;
        const bool known = o.choices.empty() || std::ranges::count(o.choices, text) > 0;
        if (!known || !read(text, value, o.range)) fail_value(o, text);
        *target = value;
    };
    if (is_flag(o) && text != "true" && text != "false") fail_value(o, text);
    if (is_flag(o))
        *std::get<bool*>(o.to) = flag_sets(o) == (text == "true");
    else
        std::visit(assign, o.to);
    given_[o.long_name] = typed;
    if (!is_positional(o))
        std::erase_if(arguments_, [&](const std::string& a) { return a.substr(0, a.find('=')) == o.long_name; });
    arguments_.push_back(is_positional(o)               ? text
                         : is_flag(o) && text == "true" ? o.long_name
                                                        : o.long_name + "=" + text);
}

void Options::choose(const std::string& long_name, const std::string& text) {
    set(*std::ranges::find(rows_, long_name, &Option::long_name), text, false);
}

// toml++ is given ASCII alone: its tables of letters (3.3, Debian 12) have holes, which are undefined behaviour. Other bytes, and ~
// itself, become ~ and two hexadecimal digits, which may stand where those bytes may: in texts and comments.
static std::string only_ascii(std::string_view text) {
    std::string ascii;
    for (const char c : text) {
        const unsigned byte = static_cast<unsigned char>(c);
        ascii += byte >= 0x80 || c == '~' ? strprintf("~%02x", byte) : std::string(1, c);
    }
    return ascii;
}

static std::string from_ascii(std::string text) {
    for (size_t at = 0; (at = text.find('~', at)) != text.npos; at++) replace_hex(text, at);
    return text;
}

void Options::read_config(const std::string& path, const Names& typed) {
    const MappedFile file(path, FileUse::own);  // a run started again by its own settings writes them again
    const auto fail_at = [&](size_t line, const std::string& text) {
        fail("%s: line %zu: %s", path.c_str(), line, text.c_str());
    };
    std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // the byte order mark of UTF-8
    const std::string expected_line =
        "expected NAME = VALUE, with texts and percentages in quotes (gate-mode = \"taper\")";
    // Names and single values alone, which is all that we need: toml++ 3.3 (Debian 12) aborts on some tables and lists that are
    // malformed, and overflows the stack where the dots of a name nest them deeply.
    constexpr std::string_view kBlanks = " \t\r";
    constexpr std::string_view kNameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    std::istringstream file_lines{std::string(text)};
    size_t number = 1;
    for (std::string line; std::getline(file_lines, line); number++) {
        const auto after = [&](std::string_view letters, size_t at) {
            return std::min(line.find_first_not_of(letters, at), line.size());
        };
        const size_t name = after(kBlanks, 0), name_end = after(kNameLetters, name), equals = after(kBlanks, name_end);
        if (name == line.size() || line[name] == '#') continue;
        if (name_end == name || equals == line.size() || line[equals] != '=')
            fail_at(number, expected_line + ", found " + in_quotes(line));
        if (const char value = line.c_str()[after(kBlanks, equals + 1)]; value == '[' || value == '{')
            fail_at(number, line.substr(name, name_end - name) + ": expected NAME = VALUE, found a table or a list");
        try {
            static_cast<void>(toml::parse(only_ascii(line)));
        } catch (const toml::parse_error&) {  // below, with all lines
        } catch (const TomlAssertion&) {
            fail_at(number, expected_line + ", found " + in_quotes(line));
        }
    }
    toml::table table;
    const std::string ascii = only_ascii(text);
    try {
        table = toml::parse(ascii);
    } catch (const toml::parse_error& error) {
        fail_at(error.source().begin.line, expected_line + "; " + from_ascii(std::string(error.description())));
    } catch (const TomlAssertion&) {
        fail("%s: %s, found a malformed value", path.c_str(), expected_line.c_str());
    }
    std::map<size_t, std::pair<std::string, const toml::node*>> settings;  // by line
    for (const auto& [name, node] : table)
        settings[name.source().begin.line] = {from_ascii(std::string(name.str())), &node};
    Names keys;
    for (const Option& o : rows_)
        if (!is_positional(o)) keys.push_back(key(o));
    std::map<std::string, size_t> lines;  // by long name
    for (const auto& [line, setting] : settings) {
        const auto& [name, node] = setting;
        const auto o = std::ranges::find_if(rows_, [flag = "--" + name](const Option& row) {
            return row.long_name == flag || row.alias == flag;
        });
        if (o == rows_.end())
            fail_at(line, "unknown setting " + in_quotes(name) + suggestion(name, keys) + " (--help lists all)");
        if (const auto [other, fresh] = lines.try_emplace(o->long_name, line); !fresh)
            fail_at(line, label(*o) + ": expected one value, found another in line " + std::to_string(other->second));
        std::ostringstream found;
        if (node->is_string())
            found << with_named_bytes(from_ascii(node->ref<std::string>()));
        else if (node->is_integer())
            found << node->ref<int64_t>();  // in decimal, whatever it was written in
        else if (const auto* x = node->as_floating_point())
            found << (x->get() == 0 ? written(ascii, node->source()) : to_text(x->get()));  // 1e-400 is to be refused
        else
            node->visit([&](const auto& value) { found << value; });
        if (!(is_flag(*o) ? node->is_boolean() : node->is_string() || node->is_number()))
            fail_at(line, label(*o) + ": expected " +
                              (std::holds_alternative<std::string*>(o->to) ? "a text in quotes" : expected(*o)) +
                              ", found " + in_quotes(found.str()));
        const bool excluded = std::ranges::any_of(exclusions_, [&](const auto& pair) {
            return (pair.first == o->long_name && std::ranges::count(typed, pair.second)) ||
                   (pair.second == o->long_name && std::ranges::count(typed, pair.first));
        });
        if (excluded) continue;
        try {
            set(*o, found.str(), false);
        } catch (const Error& error) {
            fail_at(line, error.what());
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
        const size_t equals = std::min(word.find('='), word.size());
        const std::string with_dash = std::string("-").append(word, 0, equals);  // -gate: --gate was meant
        for (const Option& o : rows) {
            const bool is_retired = !o.retired.empty() && word.starts_with(o.retired);
            if (equals > 2 && (is_retired || with_dash == o.long_name || with_dash == o.alias))
                fail("unknown flag %s; did you mean %s?", in_quotes(word).c_str(), o.long_name.c_str());
        }
        const bool is_long = word[1] == '-';
        const size_t end = is_long ? equals : 2;
        std::string name = word.substr(0, end), value = word.substr(end);
        auto entry = row_of.find(name);
        while (!is_long && !value.empty() && entry != row_of.end() && is_flag(rows[entry->second])) {
            if (value[0] == '=') break;
            found[entry->second] = "true";  // -yb3 is -y -b3
            name = std::string("-") + value[0], value.erase(0, 1);
            entry = row_of.find(name);
        }
        if (entry == row_of.end())
            fail("unknown flag %s%s (--help lists all)", in_quotes(is_long ? name : word).c_str(),
                 suggestion(name, names).c_str());
        const Option& o = rows[entry->second];
        if (!is_long && value.starts_with('='))
            fail("%s: after %s expected a value without =, or %s%s", in_quotes(word).c_str(), name.c_str(),
                 o.long_name.c_str(), value.c_str());
        if (is_long && !value.empty()) {
            value.erase(0, 1);  // the =
        } else if (is_flag(o)) {
            value = "true";
        } else if (value.empty()) {
            if (++i == words.size()) fail("%s needs a value; see --help", label(o).c_str());
            value = words[i];
            if (row_of.contains(value.substr(0, value.find('='))))
                fail("%s needs a value, found the flag %s (if that is the value: %s=%s)", label(o).c_str(),
                     value.c_str(), o.long_name.c_str(), value.c_str());
        }
        if (value.empty()) fail_value(o, value);
        found[entry->second] = value;
        if (found.contains(help_row)) return std::fputs(help().c_str(), stdout), false;
        if (found.contains(version)) return std::printf("%s %s\n", program_.c_str(), version_text().c_str()), false;
    }

    Names typed;
    for (const auto& [row, text] : found)
        if (!is_flag(rows[row]) || text == "true") typed.push_back(rows[row].long_name);
    if (found.contains(config)) read_config(found[config], typed);
    for (size_t row = 0; row < rows_.size(); row++)
        if (const Option& o = rows_[row]; found.contains(row))
            set(o, found[row], true);
        else if (is_positional(o) && !o.optional)
            fail("the argument %s is missing: %s (see --help)", metavar(o).c_str(), o.help.c_str());
    for (const auto& [one, other] : exclusions_)
        if (in_force(one) && in_force(other))
            fail("%s and %s: expected one of them, found both", one.c_str(), other.c_str());
    return true;
}

std::vector<std::pair<std::string, std::string>> Options::common() const {
    std::vector<std::pair<std::string, std::string>> list;
    for (const Option& o : rows_)
        if (!o.per_rank)
            list.push_back({label(o), is_flag(o) ? to_text(*std::get<bool*>(o.to) == flag_sets(o)) : value_text(o)});
    return list;
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
            const std::string value = printable(value_text(rows_[row]));
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
        const bool above_int64 =  // TOML's integers end there
            std::holds_alternative<size_t*>(o.to) &&
            *std::get<size_t*>(o.to) > size_t(std::numeric_limits<int64_t>::max());
        if (value.empty() || off || is_positional(o)) continue;
        if (o.section != section) text << "\n# " << o.section << "\n";
        section = o.section;
        bool named_bytes = false;
        std::string written = is_flag(o) ? "true" : value;
        if (std::holds_alternative<std::string*>(o.to) || value.ends_with('%') || above_int64)
            written = toml_string(value, named_bytes);
        if (named_bytes) text << "# \\u0000 and two digits stand for a byte that is not UTF-8\n";
        text << (std::ranges::count(implied, o.long_name) ? "# " : "") << key(o) << " = " << written << "\n";
    }
    return text.str();
}

}  // namespace tapernorm
