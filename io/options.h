// One table of options drives the parser, validation, --help, the settings printed at the start and files of settings.
//
//     Options options("train_gpt", "Trains a GPT-2 model that needs no normalization.");
//     options.add({.short_name = "-d", .long_name = "--total-batch", .to = &config.total_batch, .metavar = "N",
//                  .range = {.low = 1}, .help = "tokens per update"});
//     if (!options.parse(argc, argv)) return 0;  // --help or --version was printed
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tapernorm {

// A number of updates: absolute ("100") or a part of the run ("5%").
struct Length {
    double value = 0;  // updates, or percent of the run
    bool is_percent = false;

    size_t resolve(size_t total) const;  // in updates: percents to the nearest, but above 0% at least 1
};
inline Length updates(size_t count) { return {double(count), false}; }
inline Length percent_of_run(double percent) { return {percent, true}; }
std::string to_text(const Length& length);

struct Range {
    double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
    bool low_open = false, high_open = false;  // whether the border itself is excluded
};

struct Option {
    std::string short_name = {};  // "-g", or ""
    std::string long_name;        // "--gate-mode"; without dashes, a positional argument
    // What the option sets. Its value when the option is added is the default. A flag (bool) makes it true, one that begins
    // with --no- false; --flag=false undoes it.
    std::variant<std::string*, size_t*, int64_t*, double*, bool*, Length*> to;
    std::string metavar = {};  // "FILE"; "" for the choices, or what suits the type
    std::vector<std::string> choices = {};
    Range range = {};               // for numbers and absolute Lengths
    std::string default_text = {};  // in the help instead of the default's value ("4 x C")
    std::string help;
    std::string section = {};  // "" for the one begun by Options::section
    bool per_rank = false;     // whether the ranks of a run may differ in it, because it does not enter the numbers
    bool optional = false;     // whether a positional argument may be left out
    std::string alias = {};    // an old long name, which works and is not shown
    std::string retired = {};  // an old name that no longer works: the error says the long name
};

class Options {
  public:
    Options(std::string program, std::string description) : program_(program), description_(description) {}
    void section(const std::string& title) { section_ = title; }
    void add(Option option);
    // `one` and each of the others exclude one another: a typed one replaces that of a file of settings; else two of them are
    // an Error.
    void exclude(const std::string& one, const std::vector<std::string>& others);

    // Fills the targets from the command line and, where that says nothing, from the file that --config names. Where an
    // option is repeated, the last one counts. An unknown flag or a bad value is an Error of one line. Returns false where
    // --help or --version was given: that is printed, and nothing else is done.
    bool parse(int argc, const char* const* argv);
    bool given(const std::string& long_name) const { return given_.contains(long_name); }  // also by the file
    bool typed(const std::string& long_name) const { return given(long_name) && given_.at(long_name); }
    // As if the file of settings had said it.
    void choose(const std::string& long_name, const std::string& text);
    const std::vector<std::string>& arguments() const { return arguments_; }  // all that was given, in long names

    // Name and value of all settings as they are now, but for those that are per_rank.
    std::vector<std::pair<std::string, std::string>> common() const;

    std::string help() const;
    std::string table() const;  // all settings as they are now, in aligned columns
    // All settings as they are now but flags that are off and empty texts, as a file for --config; those of `implied` (long
    // names) as comments.
    std::string config(const std::vector<std::string>& implied = {}) const;

  private:
    void set(const Option& o, const std::string& text, bool typed);  // text of a flag: "true" or "false"
    // Fills in the file's settings but for those that one of `typed` excludes.
    void read_config(const std::string& path, const std::vector<std::string>& typed);
    bool in_force(const std::string& long_name) const;  // given, and as a flag not =false

    std::string program_, description_, section_;
    std::vector<Option> rows_;
    std::vector<std::pair<std::string, std::string>> exclusions_;
    std::map<std::string, bool> given_;  // what was given, by long name: whether on the command line itself
    std::vector<std::string> arguments_;
};

}  // namespace tapernorm
