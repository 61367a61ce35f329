// One table of options drives the parser, validation, --help (which is also README's block) and the start-up
// print.
//
//     Options options("train_gpt", "Trains a GPT-2 model that needs no normalization.");
//     options.section("Data");
//     options.add({.short_name = "-i", .long_name = "--train", .to = &config.train, .metavar = "FILE",
//                  .help = "corpus to train on"});
//     options.add({.short_name = "-d", .long_name = "--total-batch", .to = &config.total_batch, .metavar =
//     "N",
//                  .range = {.low = 1}, .help = "tokens per update"});
//     if (!options.parse(argc, argv)) return 0;  // --help was printed
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <variant>
#include <vector>

namespace tapernorm {

// A number of updates: absolute (100) or a fraction of the run (5%).
struct Length {
    double value = 0;  // updates, or a fraction in [0, 1]
    bool is_fraction = false;

    size_t resolve(size_t total) const;  // in updates; a fraction to the nearest, above 0% at least 1
    std::string text() const;            // "100", "5%"
};

inline Length updates(size_t count) { return {double(count), false}; }
inline Length fraction_of_run(double fraction) { return {fraction, true}; }

struct Range {
    double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
    bool low_open = false, high_open = false;  // whether the border itself is excluded
};

// The destination's type is the option's kind: text or path (or a choice, given `choices`), whole number,
// signed whole number, real number, flag, schedule length. Its value when the option is added is the default.
using OptionTarget = std::variant<std::string*, size_t*, int64_t*, double*, bool*, Length*>;

struct Option {
    std::string short_name = {};  // "-g"; llm.c's two letters ("-sl") too; "" for none
    std::string
        long_name;    // "--gate"; without dashes ("model") it is a positional argument, required unless `optional`
    std::string alias = {};    // another long name, which --help does not show
    OptionTarget to;  // a flag flips its bool, so that --no-shuffle may point to `shuffle`
    std::string metavar = {};  // "FILE"; "" for the choices, or what suits the kind
    std::vector<std::string> choices = {};
    Range range = {};               // of a number; for a Length, of an absolute one. Fractions are 0% to 100%
    std::string default_text = {};  // in the help instead of the default's value ("4 x C")
    std::string help;
    std::string section = {};  // "" for the one begun by Options::section
    bool optional = false;     // of a positional argument: it may be left out
};

class Options {
  public:
    Options(std::string program, std::string description);

    void section(const std::string& title) { section_ = title; }
    void add(Option option);

    // Fills the destinations. An unknown flag or a bad value is an Error of one line. Where an option is
    // repeated the last one counts. Returns false where -h or --help was given: the help is printed, nothing
    // else is done.
    bool parse(int argc, const char* const* argv);

    bool given(const std::string& long_name) const { return given_.count(long_name) > 0; }  // on the command line

    std::string help() const;
    std::string table() const;  // all settings as they are now, in aligned columns

  private:
    struct Row {
        Option option;
        std::string default_value;
    };
    void set(const Row& row, const std::string& value);
    std::vector<std::string> rewritten(int argc, const char* const* argv) const;

    std::string program_, description_, section_;
    std::vector<Row> rows_;
    std::set<std::string> given_;
};

}  // namespace tapernorm
