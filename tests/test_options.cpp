// The command line: one table in, settings and messages out.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "io/options.h"
#include "runtime/error.h"
#include "tests/temporary_folder.h"

namespace tapernorm {

namespace {

struct Settings {
    std::string train = "data/corpus.txt", out = "model.bin", init;
    std::string gate = "taper";
    size_t batch = 12, seed = 42;
    int64_t sample = -1;
    double lr = 3e-4, beta1 = 0.9;
    bool resume = false, shuffle = true;
    Length warmup = percent_of_run(2), val_every = updates(250);
};

Options table_of(Settings* s) {
    Options options("train_gpt", "Trains a GPT-2 model.");
    options.section("Data");
    options.add({.short_name = "-i", .long_name = "--train", .to = &s->train, .metavar = "FILE", .help = "corpus"});
    options.add({.short_name = "-o", .long_name = "--out", .to = &s->out, .metavar = "FILE", .help = "model"});
    options.add({.long_name = "--init", .to = &s->init, .metavar = "FILE", .help = "weights to start from"});
    options.add({.long_name = "--no-shuffle", .to = &s->shuffle, .help = "read the corpus in sequence"});
    options.section("Optimizer");
    options.add({.short_name = "-b", .long_name = "--batch", .to = &s->batch, .range = {.low = 1}, .help = "rows"});
    options.add({.short_name = "-l", .long_name = "--lr", .to = &s->lr, .range = {.low = 0}, .help = "rate"});
    options.add({.long_name = "--beta1",
                 .to = &s->beta1,
                 .range = {.low = 0, .high = 1, .high_open = true},
                 .help = "decay of the first moment"});
    options.add({.short_name = "-u", .long_name = "--warmup", .to = &s->warmup, .help = "updates of warm-up"});
    options.add({.long_name = "--seed", .to = &s->seed, .help = "of all random numbers"});
    options.section("TaperNorm");
    options.add({.short_name = "-g",
                 .long_name = "--gate-mode",
                 .to = &s->gate,
                 .choices = {"norm", "taper", "taper-all"},
                 .help = "which sites taper",
                 .alias = "--gate"});
    options.section("Run");
    options.add({.short_name = "-y", .long_name = "--resume", .to = &s->resume, .help = "continue"});
    options.add({.short_name = "-v",
                 .long_name = "--val-every",
                 .to = &s->val_every,
                 .range = {.low = 1},
                 .help = "updates between evaluations"});
    options.add({.long_name = "--sample-length", .to = &s->sample, .help = "tokens", .retired = "-sl"});
    return options;
}

bool parse(Options& options, std::vector<const char*> args) {
    args.insert(args.begin(), "./train_gpt");
    return options.parse(int(args.size()), args.data());
}

// The settings that a command line gives.
Settings parsed(const std::vector<const char*>& args) {
    Settings s;
    Options options = table_of(&s);
    REQUIRE(parse(options, args));
    return s;
}

std::string error_of(const std::vector<const char*>& args) {
    Settings s;
    Options options = table_of(&s);
    try {
        parse(options, args);
    } catch (const Error& e) {
        const std::string message = e.what();
        CHECK(message.find('\n') == std::string::npos);
        return message;
    }
    return "";
}

}  // namespace

TEST_CASE("options: defaults stay, given values arrive") {
    CHECK(parsed({}).batch == 12);
    CHECK(parsed({"-b", "16"}).batch == 16);
    CHECK(parsed({"-b16"}).batch == 16);
    CHECK(parsed({"--batch", "16"}).batch == 16);
    CHECK(parsed({"--batch=16"}).batch == 16);
    CHECK(parsed({"-b", "16", "--batch", "17"}).batch == 17);
    CHECK(parsed({"--seed", "18446744073709551615"}).seed == 18446744073709551615u);
    CHECK(parsed({"-l", "1e-3"}).lr == 1e-3);
    CHECK(parsed({"--lr=.5"}).lr == 0.5);
    CHECK(parsed({"-g", "taper-all"}).gate == "taper-all");
    CHECK(parsed({"--sample-length", "64"}).sample == 64);
    CHECK(parsed({"--sample-length", "-1"}).sample == -1);
    CHECK(parsed({"--sample-length=-20"}).sample == -20);
    CHECK(parsed({"--gate", "norm"}).gate == "norm");
    CHECK(parsed({"--gate=norm"}).gate == "norm");
    CHECK(parsed({"--gate-mode", "norm"}).gate == "norm");
    CHECK(parsed({"-b", "010"}).batch == 10);  // not octal
    CHECK(parsed({"-y"}).resume == true);
    CHECK(parsed({"-y", "--resume"}).resume == true);
    CHECK(parsed({}).shuffle == true);
    CHECK(parsed({"--no-shuffle"}).shuffle == false);
    CHECK(parsed({"-yb3"}).batch == 3);
    for (const char* path : {"a b", "[x,y].bin", "\"q\"", "{}", "%{x}", "a=b", "-", "-x.bin", "++"})
        CHECK(parsed({"-i", path}).train == path);
    CHECK(parsed({"--train=--x"}).train == "--x");

    Settings s;
    Options options = table_of(&s);
    REQUIRE(parse(options, {"-b", "12"}));
    CHECK(options.given("--batch"));
    CHECK(options.typed("--batch"));
    CHECK(!options.given("--lr"));
    CHECK(!options.typed("--lr"));
    for (const char* name : {"-g", "--gate", "--gate-mode"}) {
        Options again = table_of(&s);
        REQUIRE(parse(again, {name, "norm", "-y"}));
        CHECK(again.given("--gate-mode"));
        CHECK(again.arguments() == std::vector<std::string>{"--gate-mode=norm", "--resume"});
    }
}

TEST_CASE("options: schedule lengths are counts or parts of the run") {
    CHECK(parsed({}).warmup.resolve(1000) == 20);
    CHECK(parsed({"-u", "5%"}).warmup.resolve(1000) == 50);
    CHECK(parsed({"-u", "5%"}).warmup.resolve(2000) == 100);
    CHECK(parsed({"-u", "0.5%"}).warmup.resolve(300) == 2);  // 1.5, to the nearest
    CHECK(parsed({"-u", "100%"}).warmup.resolve(7) == 7);
    CHECK(parsed({"-u", "5%"}).warmup.resolve(5) == 1);  // 0.25: a part of a run is never nothing
    CHECK(parsed({"-u", "0%"}).warmup.resolve(7) == 0);
    CHECK(parsed({"-u", "100"}).warmup.resolve(7) == 100);
    CHECK(to_text(parsed({"-u", "5%"}).warmup) == "5%");
    CHECK(to_text(parsed({"-u", "1234567"}).warmup) == "1234567");
    for (const char* bad :
         {"0.05", "5 %", "1000000000000001", "18446744073709551615", "-1", "101%", "%", "x", "nan%", "1e3"})
        CHECK(
            error_of({"-u", bad}) ==
            "--warmup (-u): expected a number of updates from 0 to 1000000000000000, or 0% to 100% of the run, found '" +
                std::string(bad) + "'");
    CHECK(error_of({"-v", "0"}) != "");
}

TEST_CASE("options: messages name the flag, what was expected and what was found") {
    CHECK(error_of({"--gatee", "taper"}) == "unknown flag '--gatee'; did you mean --gate-mode? (--help lists all)");
    CHECK(error_of({"--gatee=taper"}) == "unknown flag '--gatee'; did you mean --gate-mode? (--help lists all)");
    CHECK(error_of({"--val"}) == "unknown flag '--val'; did you mean --val-every? (--help lists all)");
    CHECK(error_of({"--something-else"}) == "unknown flag '--something-else' (--help lists all)");
    CHECK(error_of({"-batch", "3"}) == "unknown flag '-batch'; did you mean --batch?");
    CHECK(error_of({"-W"}) == "unknown flag '-W' (--help lists all)");
    CHECK(error_of({"-b", "0"}) == "--batch (-b): expected a whole number of at least 1, found '0'");
    for (const char* bad : {"-3", "2.5", "1e3", "twelve", "18446744073709551616", " 1", "0x10"})
        CHECK(error_of({"-b", bad}) ==
              "--batch (-b): expected a whole number of at least 1, found '" + std::string(bad) + "'");
    CHECK(
        error_of({"--beta1", "1e-310"}) ==
        "--beta1: expected a number of at least 0 and below 1, found '1e-310'; numbers below 2.3e-308 count as 0 here");
    for (const char* bad : {"1", "-0.1", "nan", "inf", "0.9x"})
        CHECK(error_of({"--beta1", bad}) ==
              "--beta1: expected a number of at least 0 and below 1, found '" + std::string(bad) + "'");
    CHECK(error_of({"-sl"}) == "unknown flag '-sl'; did you mean --sample-length?");
    CHECK(error_of({"-sl", "3"}) == "unknown flag '-sl'; did you mean --sample-length?");
    CHECK(error_of({"--x"}) == "unknown flag '--x' (--help lists all)");
    CHECK(error_of({"-g", "tapper"}) ==
          "--gate-mode (-g): expected one of norm, taper, taper-all, found 'tapper'; did you mean taper?");
    CHECK(error_of({"--gate", "x"}) == "--gate-mode (-g): expected one of norm, taper, taper-all, found 'x'");
    CHECK(error_of({"-g", ""}).find("--gate-mode (-g): expected") == 0);
    CHECK(error_of({"-i", ""}) == "--train (-i): expected a text that is not empty, found ''");
    CHECK(error_of({"--train="}) == "--train (-i): expected a text that is not empty, found ''");
    CHECK(error_of({"-y", "-b"}) == "--batch (-b) needs a value; see --help");
    CHECK(error_of({"--sample-length"}) == "--sample-length needs a value; see --help");
    CHECK(error_of({"--out", "--batch", "3"}) ==
          "--out (-o) needs a value, found the flag --batch (if that is the value: --out=--batch)");
    CHECK(error_of({"-y", "1"}) == "unexpected argument '1'; see --help");
    CHECK(error_of({"--resume=no"}) == "--resume (-y): expected true or false, found 'no'");
    CHECK(error_of({"file"}) == "unexpected argument 'file'; see --help");
    CHECK(error_of({"--", "-b"}) == "unexpected argument '-b'; see --help");
    CHECK(parsed({"-i", "a\nb"}).train == "a\nb");
    CHECK(error_of({"-y=3"}) == "'-y=3': after -y expected a value without =, or --resume=3");
    CHECK(error_of({"-o=a.bin"}) == "'-o=a.bin': after -o expected a value without =, or --out=a.bin");
    CHECK(error_of({"-out=a.bin"}) == "unknown flag '-out=a.bin'; did you mean --out?");
    CHECK(error_of({"-o", "--seed=4"}).starts_with("--out (-o) needs a value, found the flag --seed=4"));
    CHECK(error_of({"-gate", "norm"}) == "unknown flag '-gate'; did you mean --gate-mode?");
    CHECK(parsed({"--out==x"}).out == "=x");
    CHECK(parsed({"-y", "--resume=false"}).resume == false);
    CHECK(parsed({"--no-shuffle", "--no-shuffle=false"}).shuffle == true);
    CHECK(error_of({"-y\xc3\xa9"}) == "unknown flag '-y\xc3\xa9' (--help lists all)");
    CHECK(error_of({("--" + std::string(100000, 'x')).c_str()}).size() < 300);
    CHECK(error_of({"--sede"}) == "unknown flag '--sede'; did you mean --seed? (--help lists all)");
    CHECK(error_of({"--hepl"}) == "unknown flag '--hepl'; did you mean --help? (--help lists all)");
    CHECK(error_of({"--file"}) == "unknown flag '--file' (--help lists all)");
    CHECK(error_of({"--seed", "-1"}) == "--seed: expected a whole number of at least 0, found '-1'");
    CHECK(error_of({"--config", ""}) == "--config: expected a text that is not empty, found ''");
    CHECK(error_of({"a\nb"}) == "unexpected argument 'a\\x0ab'; see --help");
}

TEST_CASE("options: positional arguments are required, in order") {
    std::string in, out;
    bool quick = false;
    const auto fold = [&] {
        Options options("fold", "Folds a model.");
        options.add({.long_name = "model", .to = &in, .metavar = "MODEL", .help = "the model to fold"});
        options.add({.long_name = "output", .to = &out, .metavar = "OUTPUT", .help = "the folded model"});
        options.add({.long_name = "--quick", .to = &quick, .help = "no check"});
        return options;
    };
    Options options = fold();
    CHECK(parse(options, {"a.bin", "--quick", "b.bin"}));
    CHECK((in == "a.bin" && out == "b.bin" && quick));
    CHECK(options.given("model"));
    CHECK(options.help().find("usage: fold MODEL OUTPUT [options]\n") == 0);
    const auto error = [&](const std::vector<const char*>& args) -> std::string {
        Options again = fold();
        try {
            parse(again, args);
        } catch (const Error& e) {
            return e.what();
        }
        return "";
    };
    CHECK(error({"a.bin"}) == "the argument OUTPUT is missing: the folded model (see --help)");
    CHECK(error({"a", "b", "c"}) == "unexpected argument 'c'; see --help");
    CHECK(error({"--quik", "a", "b"}) == "unknown flag '--quik'; did you mean --quick? (--help lists all)");
    CHECK(error({"--", "--quick", "-b"}) == "");  // after -- nothing is a flag
    CHECK((in == "--quick" && out == "-b"));
}

TEST_CASE("options: a file of settings, which the command line overrides") {
    const TemporaryFolder folder;
    const std::string path = folder.path + "/run.toml";
    const auto parsed_with = [&](const std::string& text, std::vector<const char*> args, Settings& s) {
        std::ofstream(path, std::ios::binary) << text;
        Options options = table_of(&s);
        args.insert(args.begin(), {"--config", path.c_str()});
        parse(options, args);
        return options;
    };
    Settings s;
    Options options = parsed_with("batch = 7\nlr = 0.25 # high\ngate = \"norm\"\nno-shuffle = true\nresume = false\n",
                                  {"-l", "1e-3"}, s);
    CHECK((s.batch == 7 && s.lr == 1e-3 && s.gate == "norm" && !s.shuffle && !s.resume));
    CHECK((options.given("--batch") && options.given("--lr") && options.given("--gate-mode")));
    CHECK((!options.typed("--batch") && options.typed("--lr") && options.given("--resume")));
    CHECK(options.arguments() ==
          std::vector<std::string>{"--batch=7", "--gate-mode=norm", "--no-shuffle", "--resume=false", "--lr=1e-3"});

    Settings all = {.train = "a \"b\" \\ 'c' # d",
                    .out = "[x, y].bin",
                    .init = "\u00e9",
                    .gate = "taper-all",
                    .batch = 3,
                    .seed = 18446744073709551615u,
                    .sample = -20,
                    .lr = 0.1 + 0.2,
                    .beta1 = 1e-17,
                    .resume = true,
                    .shuffle = false,
                    .warmup = percent_of_run(100.0 / 300),
                    .val_every = updates(12345678)};
    Settings again;
    const std::string text = table_of(&all).config();
    parsed_with(text, {}, again);
    CHECK(table_of(&again).config() == text);
    CHECK((again.train == all.train && again.out == all.out && again.init == all.init && again.gate == all.gate));
    CHECK((again.batch == all.batch && again.seed == all.seed && again.sample == all.sample && again.lr == all.lr));
    CHECK((again.beta1 == all.beta1 && again.resume && !again.shuffle && again.val_every.value == 12345678));
    CHECK((again.warmup.is_percent && again.warmup.value == percent_of_run(100.0 / 300).value));
    CHECK(text.find("\n# Optimizer\nbatch = 3\n") != std::string::npos);
    const std::string defaults = table_of(&(all = {})).config();
    for (const char* off : {"init", "resume", "shuffle"}) CHECK(defaults.find(off) == std::string::npos);

    const auto error = [&](const std::string& lines, const std::vector<const char*>& args = {}) -> std::string {
        try {
            parsed_with(lines, args, again);
        } catch (const Error& e) {
            REQUIRE(std::string(e.what()).starts_with(path + ": "));
            return std::string(e.what()).substr(path.size() + 2);
        }
        return "";
    };
    CHECK(error("batch = 7\nbath = 3") == "line 2: unknown setting 'bath'; did you mean batch? (--help lists all)");
    CHECK(error("b = 3") == "line 1: unknown setting 'b'; did you mean batch? (--help lists all)");
    CHECK(error("x = 3") == "line 1: unknown setting 'x' (--help lists all)");
    CHECK(error("config = 'x'") == "line 1: unknown setting 'config' (--help lists all)");
    CHECK(error("batch = 0") == "line 1: --batch (-b): expected a whole number of at least 1, found '0'");
    CHECK(error("batch = 0", {"-b", "3"}) == error("batch = 0"));  // whether overridden or not
    CHECK(error("warmup = 0.05") != "");
    parsed_with("out = 'false'\ntrain = \"true\"", {}, again);
    CHECK((again.out == "false" && again.train == "true"));
    CHECK(error("init = ''") == "line 1: --init: expected a text that is not empty, found ''");
    CHECK(error("resume = 1") == "line 1: --resume (-y): expected true or false, found '1'");
    CHECK(error("lr = true") == "line 1: --lr (-l): expected a number of at least 0, found 'true'");
    CHECK(error("lr = [1, 2]") == "line 1: lr: expected NAME = VALUE, found a table or a list");
    CHECK(error("seed = 18446744073709551616").starts_with("line 1: "));
    CHECK(
        error("\n[files]\nlr = 1") ==
        "line 2: expected NAME = VALUE, with texts and percentages in quotes (gate-mode = \"taper\"), found '[files]'");
    CHECK(error("batch = 1\nbatch = 2").starts_with("line 2: "));
    CHECK(error("batch = 3\n\nlr 3").starts_with("line 3: "));
    CHECK(error("gate = 'norm'\ngate-mode = 'taper'") ==
          "line 2: --gate-mode (-g): expected one value, found another in line 1");
    CHECK(
        error("gate-mode = taper").starts_with("line 1: expected NAME = VALUE, with texts and percentages in quotes"));
    CHECK(error("seed = 3\nwarmup = 5%").starts_with("line 2: expected NAME = VALUE, with texts and percentages"));
    CHECK(error("seed = 'x'\nbatch = 0").starts_with("line 1: --seed"));  // the first line, not the first name
    CHECK(error("train = 2020-01-01") == "line 1: --train (-i): expected a text in quotes, found '2020-01-01'");
    CHECK(error("out = \"a\\u0000b\"") == "line 1: --out (-o): expected a text that is not empty, found 'a\\x00b'");
    CHECK(error("lr = 0.1e") != "");
    CHECK(error("beta1 = 1.1") == "line 1: --beta1: expected a number of at least 0 and below 1, found '1.1'");
    for (const char* tiny : {"1e-310", "-1e-310", "0.0000001e-310"})
        CHECK(error("\nlr = " + std::string(tiny)) == "line 2: --lr (-l): expected a number of at least 0, found '" +
                                                          std::string(tiny) +
                                                          "'; numbers below 2.3e-308 count as 0 here");
    CHECK(error("lr = 1e-400") != "");
    for (const char* zero : {"0.0", "+0.0", "-0.0", "0e5", "0.0_0"}) {
        CHECK(error("lr = " + std::string(zero)) == "");
        CHECK(again.lr == 0);
    }
    CHECK(error("batch = \"false\"") == "line 1: --batch (-b): expected a whole number of at least 1, found 'false'");
    for (const char* hostile :
         {"[.]", "[=", "\xef\xbb\xbf[\\", "[#", "[[[", "[\n", " [", "a = [.", "a = { . = 1 }", "a = { [ = 1 }",
          "a.[ = 1", "train = [[}", "\"a=\" = [}", "a =--g{\"\u0120@", "\u0120 = 1"})
        CHECK(error(hostile).starts_with("line 1: "));
    CHECK(error("lr = 1\nbatch = 5--------- 7 =-") ==  // an assertion of toml++ 3.3
          "line 2: expected NAME = VALUE, with texts and percentages in quotes (gate-mode = \"taper\"), found "
          "'batch = 5--------- 7 =-'");
    CHECK(error("train = false") == "line 1: --train (-i): expected a text in quotes, found 'false'");
    parsed_with("no-shuffle = true", {"--no-shuffle=false"}, again);
    CHECK(again.shuffle == true);
    parsed_with("train = \"~\xff~ff\" # \xff", {}, again);  // not UTF-8, and yet the name of a file
    CHECK(again.train == "~\xff~ff");
    all = {}, all.train = "\xff.txt";
    parsed_with(table_of(&all).config().c_str(), {}, again);
    CHECK(again.train == "\xff.txt");
    parsed_with("lr = -0.0", {}, again);
    CHECK(!std::signbit(again.lr));
    parsed_with("batch = 0x10", {}, again);
    CHECK(again.batch == 16);
    CHECK(error("lr = 1\n\xff").starts_with("line "));
    CHECK(error("lr = 1 # \u0120\nse\u0120 = \"\u0120\"").find("line 2: expected NAME = VALUE") == 0);
    CHECK(error("lr = 0\"\u0120\"").find("line 1: expected NAME = VALUE") == 0);
    parsed_with("train = \"\\\"\u0120\" # it's \u0120\nout = '\u0120'", {}, again);
    CHECK((again.train == "\"\u0120" && again.out == "\u0120"));
    CHECK(error_of({"--config", "/nowhere/run.toml"}).find("/nowhere/run.toml") != std::string::npos);
    CHECK(error_of({"--config", folder.path.c_str()}).find(folder.path) != std::string::npos);
    CHECK(error_of({"--config"}) == "--config needs a value; see --help");
    CHECK(error_of({"--config="}) != "");
}

TEST_CASE("options: help and table come from the same rows") {
    Settings s;
    Options options = table_of(&s);
    const std::string help = options.help();
    CHECK(help.find("usage: train_gpt [options]\nTrains a GPT-2 model.\n\nData\n") == 0);
    CHECK(help.find("  -i, --train FILE ") != std::string::npos);
    CHECK(help.find("      --no-shuffle ") != std::string::npos);
    CHECK(help.find("read the corpus in sequence\n") != std::string::npos);
    CHECK(help.find("  -g, --gate-mode norm|taper|taper-all") != std::string::npos);
    CHECK(help.find("which sites taper (default taper)\n") != std::string::npos);
    CHECK(help.find("rate (default 0.0003)\n") != std::string::npos);
    CHECK(help.find("updates of warm-up (default 2%)\n") != std::string::npos);
    CHECK(help.find("weights to start from\n") != std::string::npos);
    CHECK(help.find("\n\nTaperNorm\n") != std::string::npos);
    CHECK(help.find("  -h, --help ") != std::string::npos);
    REQUIRE(parse(options, {"-b", "7", "--no-shuffle", "-o", "a long name that nobody would choose/model.bin"}));
    CHECK(options.help() == help);  // shows defaults, not what was given

    const std::string table = options.table();
    for (const char* row : {"batch    7", "shuffle  no", "init     -", "lr         0.0003", "gate-mode  taper"})
        CHECK_MESSAGE(table.find(row) != std::string::npos, table);
    for (const std::string* text : {&help, &table}) {
        size_t begin = 0;
        for (size_t end; (end = text->find('\n', begin)) != std::string::npos; begin = end + 1) {
            CHECK(end - begin <= 100);
            if (end > begin) CHECK((*text)[end - 1] != ' ');
        }
        CHECK(begin == text->size());
    }
}

}  // namespace tapernorm
