#include "io/options.h"

#include <CLI/CLI.hpp>
#include <cstdio>

#include "io/atomic_file.h"
#include "io/columns.h"
#include "io/toml.h"
#include "io/version.h"

namespace tapernorm {

using Names = std::vector<std::string>;

void Options::add(Option o) {
    if (o.section.empty()) o.section = section_;
    if (o.default_text.empty() && !is_positional(o) && !is_flag(o)) o.default_text = value_text(o);
    rows_.push_back(std::move(o));
}

void Options::set(const Option& o, const std::string& text, bool typed) {
    if (text.find('\n') != text.npos) fail_value(o, text);  // a state keeps arguments as lines
    set_value(o, text);
    given_[o.long_name] = typed;
    arguments_.push_back(is_positional(o) ? text : is_flag(o) ? o.long_name : o.long_name + "=" + text);
}

// CLI11's own reader of files is not used: that of 2.1 (Debian 12) cuts a string at '#' and knows no escapes.
void Options::read_config(const std::string& path) {
    const MappedFile file(path);
    try {
        std::map<std::string, size_t> seen;
        for (const TomlEntry& e : read_toml({reinterpret_cast<const char*>(file.data()), file.size()})) {
            const auto o = std::ranges::find_if(rows_, [name = "--" + e.key](const Option& row) {
                return row.long_name == name || row.alias == name;
            });
            if (o == rows_.end()) {
                Names keys;
                for (const Option& row : rows_) keys.push_back(row.long_name.substr(is_positional(row) ? 0 : 2));
                const std::string hint = suggestion(e.key, keys);
                fail("line %zu: unknown setting %s%s", e.line, e.key.c_str(),
                     hint.empty() ? " (--help lists all)" : hint.c_str());
            }
            const bool off = is_flag(*o) && e.value == "false";
            if (is_flag(*o) && !off && e.value != "true")
                fail("line %zu: %s: expected true or false, found %s", e.line, e.key.c_str(),
                     in_quotes(e.value).c_str());
            if (const auto [other, fresh] = seen.try_emplace(o->long_name, e.line); !fresh)
                fail("line %zu: %s: expected one value, found another in line %zu", e.line, e.key.c_str(),
                     other->second);
            if (!off && !given(o->long_name)) try {
                    set(*o, e.value, false);
                } catch (const Error& error) {
                    fail("line %zu: %s", e.line, error.what());
                }
        }
    } catch (const Error& error) {
        fail("%s: %s", path.c_str(), error.what());
    }
}

bool Options::parse(int argc, const char* const* argv) {
    CLI::App app;
    app.allow_extras()->set_help_flag("");
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_flag_callback("-h,--help", [] { throw CLI::CallForHelp(); })->trigger_on_parse();
    app.set_version_flag("--version", program_ + " " + version_text())->trigger_on_parse();
    const CLI::Option* config = app.add_option("--config");
    std::vector<const CLI::Option*> parsed;
    Names flags = {"-h", "--help", "--version", "--config"}, args(argv + std::min(argc, 1), argv + argc);
    for (const Option& o : rows_) {
        const std::string names = o.long_name + "," + o.short_name + "," + o.alias;
        parsed.push_back(is_flag(o) ? app.add_flag(names) : app.add_option(names));
        if (!is_positional(o)) flags.insert(flags.end(), {o.long_name, o.short_name});
        for (const std::string& arg : args) {  // what CLI11 would take for something else
            if (arg == "--") break;
            if (arg.size() > 2 && ((!o.retired.empty() && arg.starts_with(o.retired)) || "-" + arg == o.long_name))
                fail("unknown flag %s; did you mean %s?", arg.c_str(), o.long_name.c_str());
            const std::string name = o.long_name + "=";
            if (arg.starts_with(name) && (is_flag(o) || arg == name)) fail_value(o, arg.substr(name.size()));
        }
    }
    std::erase(flags, "");
    const std::string last = args.empty() ? "" : args.back();
    try {
        app.parse(Names(args.rbegin(), args.rend()));
    } catch (const CLI::CallForHelp&) {
        return std::fputs(help().c_str(), stdout), false;
    } catch (const CLI::CallForVersion& version) {
        return std::printf("%s\n", version.what()), false;
    } catch (const CLI::Error&) {
        fail("%s needs a value; see --help", last.c_str());
    }
    const std::string file = config->empty() ? "" : config->results().back();
    if (!config->empty() && (file.empty() || std::ranges::count(flags, file)))
        fail("--config needs a value, found %s", file.empty() ? "none" : ("the flag " + file).c_str());
    const Names extras = app.remaining();
    const auto mark = std::ranges::find(extras, "--");  // what follows it is no flag
    for (auto extra = extras.begin(); extra != mark; ++extra)
        if (const std::string name = extra->substr(0, extra->find('=')); name.size() > 1 && name[0] == '-')
            fail("unknown flag %s%s (--help lists all)", name.c_str(), suggestion(name, flags).c_str());
    for (size_t i = 0; i < rows_.size(); i++) {
        const Option& o = rows_[i];
        if (is_positional(o) && !o.optional && parsed[i]->empty())
            fail("the argument %s is missing: %s (see --help)", metavar(o).c_str(), o.help.c_str());
        if (parsed[i]->empty()) continue;
        const std::string& value = parsed[i]->results().back();
        if (!is_positional(o) && std::ranges::count(flags, value))
            fail("%s%s needs a value, found the flag %s", o.long_name.c_str(),
                 o.short_name.empty() ? "" : (" (" + o.short_name + ")").c_str(), value.c_str());
        set(o, value, true);
    }
    for (const std::string& extra : extras)
        if (extra != "--") fail("unexpected argument %s; see --help", in_quotes(extra).c_str());
    if (!config->empty()) read_config(file);
    return true;
}

std::string Options::help() const {
    constexpr size_t kLeft = 36;  // the width of the left column; a longer left side takes a line of its own
    std::string usage = "usage: " + program_, text, section = "-";
    const auto add_line = [&](std::string left, const std::string& help) {
        if (left.size() + 2 > kLeft) text += std::exchange(left, "") + "\n";
        for (const std::string& part : wrapped(help, kPageWidth - kLeft))
            text += padded(std::exchange(left, ""), kLeft) + part + "\n";
    };
    for (const Option& o : rows_) {
        if (is_positional(o)) usage += o.optional ? " [" + metavar(o) + "]" : " " + metavar(o);
        if (section != o.section) text += "\n" + o.section + (o.section.empty() ? "" : "\n");
        section = o.section;
        const std::string names = padded(o.short_name + (o.short_name.empty() ? "" : ","), 4) + o.long_name;
        add_line("  " + (is_positional(o) ? metavar(o) : names + (is_flag(o) ? "" : " ") + metavar(o)),
                 o.help + (o.default_text.empty() ? "" : " (default " + o.default_text + ")"));
    }
    if (rows_.size() > 0) text += "\nGeneral\n";
    add_line("      --config FILE",
             "read settings from FILE, one per line, such as seed = 4; flags given here override them");
    add_line("      --version", "print the commit, the compiler and the optional features, and exit");
    add_line("  -h, --help", "print this help and exit");
    return usage + " [options]\n" + description_ + "\n" + text;
}

std::string Options::table() const {
    std::vector<std::pair<std::string, std::string>> settings;
    for (const Option& o : rows_) {
        const size_t prefix = is_positional(o) ? 0 : flag_sets(o) ? 2 : 5;  // "--", "--no-"
        settings.emplace_back(o.long_name.substr(prefix), value_text(o).empty() ? "-" : value_text(o));
    }
    return in_columns(settings);
}

std::string Options::config(const Names& implied) const {
    std::string text, section;
    for (const Option& o : rows_) {
        std::string value = value_text(o);
        if (is_flag(o)) value = *std::get<bool*>(o.to) == flag_sets(o) ? "true" : "";
        if (value.empty() || is_positional(o)) continue;  // flags that are off and empty texts are left out
        if (o.section != section) text += "\n# " + o.section + "\n";
        section = o.section;
        const bool quoted = std::holds_alternative<std::string*>(o.to) || value.ends_with('%');
        if (std::ranges::count(implied, o.long_name)) text += "# ";
        text += o.long_name.substr(2) + " = " + (quoted ? toml_string(value) : value) + "\n";
    }
    return text;
}

}  // namespace tapernorm
