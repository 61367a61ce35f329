// One table of options drives the parser, validation, --help, the settings printed at the start and files of settings.
//
//     Options options("train_gpt", "Trains a GPT-2 model that needs no normalization.");
//     options.add({.short_name = "-d", .long_name = "--total-batch", .to = &config.total_batch, .metavar = "N",
//                  .range = {.low = 1}, .help = "tokens per update"});
//     if (!options.parse(argc, argv)) return 0;  // --help or --version was printed
#pragma once
#include <map>
#include <string>
#include <vector>

#include "io/option.h"

namespace tapernorm {

class Options {
  public:
    Options(std::string program, std::string description) : program_(program), description_(description) {}
    void section(const std::string& title) { section_ = title; }
    void add(Option option);

    // Fills the targets from the command line and, where that says nothing, from the file that --config names. Where an
    // option is repeated, the last one counts. An unknown flag or a bad value is an Error of one line. Returns false where
    // --help or --version was given: that is printed, and nothing else is done.
    bool parse(int argc, const char* const* argv);
    bool given(const std::string& long_name) const { return given_.contains(long_name); }  // also by the file
    bool typed(const std::string& long_name) const { return given(long_name) && given_.at(long_name); }
    const std::vector<std::string>& arguments() const { return arguments_; }  // all that was given, in long names

    std::string help() const;
    std::string table() const;  // all settings as they are now, in aligned columns
    // All settings as they are now, as a file for --config; those of `implied` (long names) as comments.
    std::string config(const std::vector<std::string>& implied = {}) const;

  private:
    void set(const Option& o, const std::string& text, bool typed);
    void read_config(const std::string& path);

    std::string program_, description_, section_;
    std::vector<Option> rows_;
    std::map<std::string, bool> given_;  // by long name: whether on the command line itself
    std::vector<std::string> arguments_;
};

}  // namespace tapernorm
