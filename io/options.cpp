#include "io/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "io/atomic_file.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

constexpr size_t page_width = 100;  // columns of help and table

bool is_positional(const Option& o) { return o.long_name.compare(0, 2, "--") != 0; }

bool is_flag(const Option& o) { return std::holds_alternative<bool*>(o.to); }

// llm.c has flags of two letters after one dash, the parsing library only of one.
bool has_two_letters(const Option& o) { return o.short_name.size() > 2; }

std::string metavar(const Option& o) {
    if (!o.metavar.empty()) return o.metavar;
    std::string names;
    for (const std::string& choice : o.choices) names += (names.empty() ? "" : "|") + choice;
    if (!names.empty()) return names;
    if (std::holds_alternative<std::string*>(o.to)) return "TEXT";
    if (std::holds_alternative<double*>(o.to)) return "X";
    if (std::holds_alternative<Length*>(o.to)) return "N|P%";
    return "N";
}

// "--gate (-g)" or "the argument MODEL", for messages.
std::string label(const Option& o) {
    if (is_positional(o)) return "the argument " + metavar(o);
    return o.short_name.empty() ? o.long_name : o.long_name + " (" + o.short_name + ")";
}

// "gate"; "shuffle" of --no-shuffle, whose bool says whether to shuffle.
std::string setting_name(const Option& o) {
    const size_t dashes = is_positional(o) ? 0 : 2;
    const bool negated = is_flag(o) && o.long_name.compare(0, 5, "--no-") == 0;
    return o.long_name.substr(negated ? 5 : dashes);
}

std::string number_text(double x) {
    const std::string shortened = strprintf("%g", x);
    return std::strtod(shortened.c_str(), nullptr) == x ? shortened : strprintf("%.17g", x);
}

std::string value_text(const Option& o) {
    return std::visit(
        [](const auto* value) -> std::string {
            using T = std::decay_t<decltype(*value)>;
            if constexpr (std::is_same_v<T, std::string>)
                return *value;
            else if constexpr (std::is_same_v<T, bool>)
                return *value ? "yes" : "no";
            else if constexpr (std::is_same_v<T, double>)
                return number_text(*value);
            else if constexpr (std::is_same_v<T, Length>)
                return value->text();
            else
                return std::to_string(*value);
        },
        o.to);
}

std::string range_text(const Range& r) {
    std::string text;
    if (std::isfinite(r.low)) text += (r.low_open ? " above " : " of at least ") + number_text(r.low);
    if (std::isfinite(r.low) && std::isfinite(r.high)) text += " and";
    if (std::isfinite(r.high)) text += (r.high_open ? " below " : " of at most ") + number_text(r.high);
    return text;
}

bool in_range(const Range& r, double x) {
    return (r.low_open ? x > r.low : x >= r.low) && (r.high_open ? x < r.high : x <= r.high);
}

template <class Number>
bool parse_number(std::string_view text, Number* value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
    return error == std::errc() && end == text.data() + text.size();
}

// How many letters to insert, delete or replace to turn one name into the other.
size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); j++) row[j] = j;
    for (size_t i = 1; i <= a.size(); i++) {
        size_t diagonal = std::exchange(row[0], i);
        for (size_t j = 1; j <= b.size(); j++) {
            const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = std::exchange(row[j], std::min({replaced, row[j] + 1, row[j - 1] + 1}));
        }
    }
    return row[b.size()];
}

// "; did you mean X?", or nothing where no name is near.
std::string suggestion(const std::string& found, const std::vector<std::string>& names) {
    if (found.size() <= 2) return "";  // any other letter is as near
    size_t best = std::max(size_t(1), found.size() / 3) + 1;
    std::string nearest;
    for (const std::string& name : names) {
        const bool completes = found.size() >= 3 && name.compare(0, found.size(), found) == 0;
        const size_t distance = completes ? 1 : edit_distance(found, name);
        if (distance < best) best = distance, nearest = name;
    }
    return nearest.empty() ? "" : "; did you mean " + nearest + "?";
}

[[noreturn]] void fail_value(const Option& o, const std::string& expected, const std::string& found,
                             const std::string& hint = "") {
    fail("%s: expected %s, found %s%s", label(o).c_str(), expected.c_str(), in_quotes(found).c_str(), hint.c_str());
}

void set_text(const Option& o, const std::string& text, std::string* value) {
    if (text.empty()) fail_value(o, metavar(o), text);
    if (!o.choices.empty() && std::find(o.choices.begin(), o.choices.end(), text) == o.choices.end()) {
        std::string expected;
        for (size_t i = 0; i < o.choices.size(); i++) {
            if (i > 0) expected += i + 1 < o.choices.size() ? ", " : " or ";
            expected += o.choices[i];
        }
        fail_value(o, expected, text, suggestion(text, o.choices));
    }
    *value = text;
}

template <class Whole>
void set_whole(const Option& o, const std::string& text, Whole* value) {
    Whole parsed;
    if (!parse_number(text, &parsed) || !in_range(o.range, double(parsed)))
        fail_value(o, "a whole number" + range_text(o.range), text);
    *value = parsed;
}

void set_real(const Option& o, const std::string& text, double* value) {
    double parsed;
    if (!parse_number(text, &parsed) || !std::isfinite(parsed) || !in_range(o.range, parsed))
        fail_value(o, "a number" + range_text(o.range), text);
    *value = parsed;
}

void set_length(const Option& o, const std::string& text, Length* value) {
    double percent;
    if (text.size() > 1 && text.back() == '%' && parse_number(text.substr(0, text.size() - 1), &percent) &&
        percent >= 0 && percent <= 100) {
        *value = fraction_of_run(percent / 100);
        return;
    }
    size_t count;
    if (!parse_number(text, &count) || !in_range(o.range, double(count)))
        fail_value(o, "a number of updates" + range_text(o.range) + " (100) or a part of the run (5%)", text);
    *value = updates(count);
}

// Breaks text at spaces into lines of at most `width` columns (a longer word stays whole).
std::vector<std::string> wrapped(const std::string& text, size_t width) {
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

std::string padded(std::string text, size_t width) {
    text.resize(std::max(width, text.size()), ' ');
    return text;
}

}  // namespace

size_t Length::resolve(size_t total) const {
    if (!is_fraction) return size_t(value);
    return value > 0 ? std::max<size_t>(1, size_t(std::llround(value * double(total)))) : 0;
}

std::string Length::text() const { return is_fraction ? strprintf("%g%%", value * 100) : strprintf("%.0f", value); }

Options::Options(std::string program, std::string description)
    : program_(std::move(program)), description_(std::move(description)) {}

void Options::add(Option option) {
    if (option.section.empty()) option.section = section_;
    std::string default_value = value_text(option);
    rows_.push_back({std::move(option), std::move(default_value)});
}

// The arguments as the parsing library takes them. Forms it would misread are rejected here.
std::vector<std::string> Options::rewritten(int argc, const char* const* argv) const {
    std::vector<std::string> args(argv + std::min(argc, 1), argv + argc);
    for (std::string& arg : args) {
        if (arg == "--") break;
        const std::string name = arg.substr(0, arg.find('='));
        for (const Row& row : rows_) {
            const Option& o = row.option;
            if (is_positional(o)) continue;
            if (has_two_letters(o) && arg == o.short_name) arg = o.long_name;
            if ("-" + arg == o.long_name && !has_two_letters(o))
                fail("unknown flag %s; did you mean %s?", arg.c_str(), o.long_name.c_str());
            if (name != o.long_name || name == arg) continue;
            if (is_flag(o)) fail("%s takes no value, found %s", label(o).c_str(), in_quotes(arg).c_str());
            if (name.size() + 1 == arg.size()) fail_value(o, metavar(o), "");
        }
    }
    return args;
}

bool Options::parse(int argc, const char* const* argv) {
    CLI::App app;
    app.set_help_flag("");
    app.allow_extras();
    const CLI::Option* help_flag = app.add_flag("-h,--help");
    std::vector<CLI::Option*> parsed;
    std::vector<std::string> flags = {"-h", "--help"};
    for (const Row& row : rows_) {
        const Option& o = row.option;
        const bool letter = !o.short_name.empty() && !has_two_letters(o);
        const std::string names = letter ? o.short_name + "," + o.long_name : o.long_name;
        parsed.push_back(is_flag(o) ? app.add_flag(names)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
                                    : app.add_option(names));
        parsed.back()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
        if (is_positional(o)) continue;
        flags.push_back(o.long_name);
        if (!o.short_name.empty()) flags.push_back(o.short_name);
    }

    std::vector<std::string> args = rewritten(argc, argv);
    const std::string last = args.empty() ? "" : args.back();
    std::reverse(args.begin(), args.end());  // the order the library wants them in
    try {
        app.parse(args);
    } catch (const CLI::ArgumentMismatch&) {
        fail("%s needs a value; see --help", last.c_str());
    } catch (const CLI::Error& e) {
        fail("the command line could not be parsed: %s", in_quotes(e.what()).c_str());
    }
    if (help_flag->count() > 0) {
        std::fputs(help().c_str(), stdout);
        return false;
    }

    std::vector<std::string> extras = app.remaining();
    const auto mark = std::find(extras.begin(), extras.end(), "--");  // what follows it is no flag
    for (auto extra = extras.begin(); extra != mark; ++extra) {
        const std::string name = extra->substr(0, extra->find('='));
        if (extra->size() > 1 && extra->front() == '-')
            fail("unknown flag %s%s (--help lists all)", name.c_str(), suggestion(name, flags).c_str());
    }
    if (mark != extras.end()) extras.erase(mark);
    for (size_t i = 0; i < rows_.size(); i++) {
        const Option& o = rows_[i].option;
        if (parsed[i]->count() == 0) {
            if (is_positional(o) && !o.optional)
                fail("%s is missing: %s (see --help)", label(o).c_str(), o.help.c_str());
            continue;
        }
        const std::string value = is_flag(o) ? "" : parsed[i]->results().back();
        if (!is_flag(o) && !is_positional(o) && std::find(flags.begin(), flags.end(), value) != flags.end())
            fail("%s needs a value, found the flag %s", label(o).c_str(), value.c_str());
        set(rows_[i], value);
        given_.insert(o.long_name);
    }
    if (!extras.empty()) fail("unexpected argument %s; see --help", in_quotes(extras.front()).c_str());
    return true;
}

void Options::set(const Row& row, const std::string& text) {
    const Option& o = row.option;
    std::visit(
        [&](auto* value) {
            using T = std::decay_t<decltype(*value)>;
            if constexpr (std::is_same_v<T, std::string>)
                set_text(o, text, value);
            else if constexpr (std::is_same_v<T, bool>)
                *value = row.default_value == "no";
            else if constexpr (std::is_same_v<T, double>)
                set_real(o, text, value);
            else if constexpr (std::is_same_v<T, Length>)
                set_length(o, text, value);
            else
                set_whole(o, text, value);
        },
        o.to);
}

std::string Options::help() const {
    std::string usage = "usage: " + program_;
    size_t short_width = 2, left_width = 0;
    bool only_arguments = true;
    for (const Row& row : rows_) {
        if (is_positional(row.option))
            usage += row.option.optional ? " [" + metavar(row.option) + "]" : " " + metavar(row.option);
        else
            only_arguments = false, short_width = std::max(short_width, row.option.short_name.size());
    }
    const auto left = [&](const Option& o) {
        if (is_positional(o)) return "  " + metavar(o);
        const std::string letters = o.short_name.empty() ? "" : o.short_name + ",";
        return "  " + padded(letters, short_width + 2) + o.long_name + (is_flag(o) ? "" : " " + metavar(o));
    };
    constexpr size_t widest = 34;  // a longer left side takes a line of its own
    for (const Row& row : rows_)
        if (left(row.option).size() <= widest) left_width = std::max(left_width, left(row.option).size());
    left_width += 2;

    std::string text = usage + (only_arguments ? "\n" : " [options]\n") + description_ + "\n";
    const std::string* section = nullptr;
    for (const Row& row : rows_) {
        const Option& o = row.option;
        if (!section || *section != o.section) text += "\n" + (o.section.empty() ? "" : o.section + "\n");
        section = &o.section;
        const std::string& shown = o.default_text.empty() ? row.default_value : o.default_text;
        const bool has_default = !is_positional(o) && !is_flag(o) && !shown.empty();
        const std::string help = o.help + (has_default ? " (default " + shown + ")" : "");
        std::string line = left(o);
        if (line.size() + 2 > left_width) text += line + "\n", line = "";
        for (const std::string& part : wrapped(help, page_width - left_width)) {
            text += padded(line, left_width) + part + "\n";
            line = "";
        }
    }
    return text + padded("  " + padded("-h,", short_width + 2) + "--help", left_width) + "this text\n";
}

// Read downwards, column by column; as many columns as fit the page, three at most.
std::string Options::table() const {
    std::vector<std::pair<std::string, std::string>> settings;
    for (const Row& row : rows_) {
        const std::string value = value_text(row.option);
        settings.emplace_back(setting_name(row.option), value.empty() ? "-" : value);
    }
    for (size_t columns = 3; columns >= 1; columns--) {
        const size_t lines = (settings.size() + columns - 1) / columns;
        std::vector<std::string> text(lines);
        size_t width = 0;
        for (size_t begin = 0; begin < settings.size(); begin += lines) {
            const size_t end = std::min(begin + lines, settings.size());
            size_t name_width = 0;
            for (size_t i = begin; i < end; i++) name_width = std::max(name_width, settings[i].first.size());
            const size_t indent = begin == 0 ? 0 : width + 4;
            for (size_t i = begin; i < end; i++) {
                std::string& line = text[i - begin];
                line = padded(line, indent) + padded(settings[i].first, name_width + 2) + settings[i].second;
                width = std::max(width, line.size());
            }
        }
        if (width > page_width && columns > 1) continue;
        std::string joined;
        for (const std::string& line : text) joined += line + "\n";
        return joined;
    }
    return "";
}

}  // namespace tapernorm
