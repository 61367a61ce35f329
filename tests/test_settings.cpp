// The settings of a run: the file of them beside its model, and what states of older versions say.
#define TAPERNORM_NO_MAIN
#include "train_gpt.cu"

#include <doctest/doctest.h>

#include <regex>

#include "runtime/random.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/read_log.h"
#include "tests/run_program.h"

namespace tapernorm::train {

namespace {

size_t count_of(const std::string& text, const std::string& part) {
    size_t count = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) count++;
    return count;
}

// No value is its default, but for --resume's, which excludes others.
Settings unusual_settings() {
    Settings s;
    s.train = "a b.txt", s.val = "it's \"quoted\" # text", s.out = "C:\\out\\m.bin", s.init = "[x]";
    s.overwrite = s.dry_run = true;
    s.checkpoint_every = 11, s.checkpoint_minutes = 0.5, s.keep = 3, s.seed = 12345678901234567890u, s.threads = 5,
    s.device = "cpu";
    s.precision = "fp32", s.tokenizer = "é{}", s.depth = "d12", s.L = 2, s.NH = 3, s.C = 48, s.T = 77,
    s.norm = "rmsnorm";
    s.batch = 9, s.total_batch = 1386, s.steps = 2701, s.recompute = 2, s.logits_rows = 33, s.shuffle = false;
    s.lr = 0.1 + 0.2, s.lr_final_frac = 1e-300, s.weight_decay = 1.0 / 3, s.beta1 = 0, s.beta2 = 0.999, s.clip = 1e20;
    s.warmup = updates(0), s.lr_schedule = "wsd", s.skip_loss_z = 3.5, s.skip_grad = 0, s.gate = "taper-all";
    s.gate_warmup = percent_of_run(100.0 / 7), s.gate_end = updates(123456789), s.ema_decay = 0.123456789012345678;
    s.scale_loss_kind = "relative", s.calibration = "channels+first", s.bound = 4.5, s.final_bound = 2.5;
    s.scale_loss = std::numeric_limits<double>::min(), s.freeze_gains = s.carry_moments = true, s.val_every = 0,
    s.val_batches = 1, s.distill = 0.25, s.gain = 1.5, s.lr_gains = 0.1, s.scale_target = 0.75, s.optimizer = "muon";
    s.sample_every = 4, s.tensorboard = "dir/", s.log_norms = 6, s.hellaswag = "h.jsonl", s.gpus = 2, s.zero = 1;
    s.rank_timeout = 0.5, s.tune = true;
    return s;
}

}  // namespace

TEST_CASE("train_gpt: every option comes back from a file of settings") {
    const TemporaryFolder folder;
    const std::string path = folder / "run.toml";
    Settings s = unusual_settings(), read, defaults;
    const std::string text = make_options(s).config(), table = make_options(s).table();
    std::ofstream(path, std::ios::binary) << text;
    const char* argv[] = {"train_gpt", "--config", path.c_str()};
    REQUIRE(make_options(read).parse(3, argv));
    CHECK(make_options(read).config() == text);
    CHECK(make_options(read).table() == table);
    CHECK((read.lr == s.lr && read.weight_decay == s.weight_decay && read.scale_loss == s.scale_loss));
    CHECK((read.gate_warmup.value == s.gate_warmup.value && read.ema_decay == s.ema_decay && read.seed == s.seed));
    // This test knows all options, and each is another than the default.
    const std::string help = make_options(defaults).help();
    CHECK(count_of(text, " = ") + 1 ==
          count_of(help, "\n  -") + count_of(help, "\n      --") - 3);  // --config, --version, -h
    const std::string usual = make_options(defaults).config();
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
        if (line.find(" = ") != std::string::npos) CHECK_MESSAGE(usual.find(line + "\n") == std::string::npos, line);
}

TEST_CASE("train_gpt: any bytes in any text come back from a file of settings") {
    const TemporaryFolder folder;
    const std::string path = folder / "run.toml";
    const std::string pieces[] = {"%",
                                  "\\",
                                  "\"",
                                  "'",
                                  "#",
                                  "\\u0000e9",
                                  "00",
                                  "=",
                                  "[",
                                  "\n",
                                  "\r",
                                  "é",
                                  "\xef\xbb\xbf",
                                  "\xef\xbf\xbe",
                                  "\xf0\x9f\x98\x80",
                                  "\xed\xa0\x80",
                                  "\xc3",
                                  "\xe2\x82"};
    std::string Settings::* const texts[] = {&Settings::train,     &Settings::val,        &Settings::tokenizer,
                                             &Settings::out,       &Settings::init,       &Settings::depth,
                                             &Settings::hellaswag, &Settings::tensorboard};
    for (uint64_t round = 0; round < 100; round++) {
        Settings s, read;
        for (size_t t = 0; t < std::size(texts); t++) {
            std::string& text = s.*texts[t];
            text = round == 0 ? std::string(4000, '.') : "";
            for (size_t i = 0, n = 1 + random_bits(1, t, round) % 12; i < n; i++) {
                const uint64_t bits = random_bits(2 + i, t, round);
                text += bits % 2 ? pieces[bits / 2 % std::size(pieces)] : std::string(1, char(1 + bits / 2 % 255));
            }
        }
        write_file(path, make_options(s).config());
        const char* argv[] = {"train_gpt", "--config", path.c_str()};
        REQUIRE(make_options(read).parse(3, argv));
        for (const auto text : texts) CHECK(read.*text == s.*text);
    }
    const Workplace w;
    const std::string name = "a\xe9 b.txt";
    write_file(w.at(name), read_file(w.at("corpus.txt")));
    w.ok("train_gpt -b 2 -x 2" + kShape + " -o one", {"-i", name});
    CHECK(contains(read_file(w.at("one.toml")),
                   "\n# \\u0000 and two digits stand for a byte that is not UTF-8\ntrain = \"a\\u0000e9 b.txt\"\n"));
    w.ok("train_gpt --config one.toml -o two");
    CHECK(model_in(w.at("one.bin")) == model_in(w.at("two.bin")));
}

TEST_CASE("scale loss: relative above a target of 1, absolute below") {
    Settings s;
    s.scale_loss = 0.3;
    for (const double target : {0.05, 1.0, 21.0}) {
        CAPTURE(target);
        s.scale_loss_kind = "absolute";
        CHECK((scale_loss(s, target).lambda == 0.3 && scale_loss(s, target).target == target));
        s.scale_loss_kind = "relative";
        CHECK(scale_loss(s, target).lambda == doctest::Approx(target > 1 ? 0.3 / (target * target) : 0.3));
        CHECK(scale_loss(s, target).target == target);
    }
}

TEST_CASE("train_gpt: a bound stays what it was when its run began, and is none where nothing tapers") {
    const Workplace w;
    auto has_bound = [&](const std::string& file) { return SafetensorsFile(w.at(file)).metadata().contains("bound"); };
    w.ok(kTiny + " --bound 4.5 -o with.bin"), w.ok(kTiny + " --bound 0 -o without.bin"),
        w.ok(kTiny + " -g norm --bound 4.5 -o norm.bin");
    CHECK((has_bound("with.bin") && !has_bound("without.bin") && !has_bound("norm.bin")));
    auto refused = [&](const std::string& line, const std::string& why) {
        const Outcome outcome = w.run(line);
        CHECK(outcome.status == 1);
        CHECK_MESSAGE(contains(outcome.err, why), outcome.err);
    };
    refused("train_gpt -y -x 9 -o with.bin --bound 5",
            "--bound: expected 4.5, as the run in with.state.bin has it, found 5");
    refused("train_gpt -y -x 9 -o without.bin --bound 5",
            "--bound: expected 0, as the run in without.state.bin has it, found 5");
    for (const std::string line : {"train_gpt -y -x 8 -o with.bin", "train_gpt -y -x 9 -o with.bin --bound 4.5"}) {
        w.ok(line);
        CHECK(SafetensorsFile(w.at("with.bin")).metadata().at("bound") == "4.5");
    }
    w.ok(kTiny + " -o default.bin"), w.ok("train_gpt -i corpus.txt -b 2 -t 16 -x 4 --init norm.bin -o tuned.bin");
    CHECK(SafetensorsFile(w.at("default.bin")).metadata().at("bound") == "8");
    CHECK(SafetensorsFile(w.at("tuned.bin")).metadata().at("bound") == "3");
    w.ok(kTiny + " -g taper-all -o default.bin --overwrite");
    w.ok("train_gpt -i corpus.txt -b 2 -t 16 -x 4 -g taper-all --init norm.bin -o tuned.bin --overwrite");
    CHECK(SafetensorsFile(w.at("default.bin")).metadata().at("final_bound") == "1.5");
    CHECK(SafetensorsFile(w.at("tuned.bin")).metadata().at("final_bound") == "3");
    // The final site has its own, where it tapers.
    w.ok(kTiny + " -g taper-all --bound 4.5 --final-bound 2.25 -o all.bin");
    refused("train_gpt -y -x 9 -o all.bin --final-bound 2",
            "--final-bound: expected 2.25, as the run in all.state.bin has it, found 2");
    for (const std::string line :
         {"train_gpt -y -x 8 -o all.bin", "train_gpt --config all.toml --overwrite", "fold all.bin all_folded.bin"}) {
        w.ok(line);
        CHECK(SafetensorsFile(w.at("all.bin")).metadata().at("final_bound") == "2.25");
    }
    CHECK(SafetensorsFile(w.at("all_folded.bin")).metadata().at("final_bound") == "2.25");
    CHECK(!SafetensorsFile(w.at("with.bin")).metadata().contains("final_bound"));
    // A baseline does not lose the bound that its file of settings gives to a taper.
    w.ok("train_gpt -y -x 8 -o norm.bin"), w.ok("train_gpt --config norm.toml -g taper -o taper.bin");
    w.ok("train_gpt --config all.toml -g taper -o other.bin");
    CHECK(!SafetensorsFile(w.at("other.bin")).metadata().contains("final_bound"));
    CHECK(SafetensorsFile(w.at("taper.bin")).metadata().at("bound") == "4.5");
    refused(kTiny + " -g taper --final-bound 2 -o x.bin",
            "--final-bound: expected -g taper-all and a --bound above 0 with it, found -g taper and --bound 8");
    w.ok(kTiny + " -g norm --final-bound 2 -o baseline.bin");  // of a taper that it is to be compared with
    CHECK(!SafetensorsFile(w.at("baseline.bin")).metadata().contains("final_bound"));
    refused(kTiny + " -g taper-all --bound 0 --final-bound 2 -o x.bin", "found -g taper-all and --bound 0");
    refused(kTiny + " --bound 1e-7 -o tiny.bin", "--bound: expected 0 or at least 1e-06, found 1e-07");
    w.ok("train_gpt -y -x 9 -o without.bin"), w.ok("train_gpt -y -x 9 -o norm.bin");
    CHECK((!has_bound("without.bin") && !has_bound("norm.bin")));
    // The file of settings starts the same run again, and a resumed run writes the same one.
    w.ok("train_gpt --config with.toml -o again.bin");
    CHECK(SafetensorsFile(w.at("again.bin")).metadata().at("bound") == "4.5");
}

TEST_CASE("train_gpt: calibration by channel with --init; a run goes on with the kind that it began with") {
    const Workplace w;
    auto kind_in = [&](const std::string& state) { return SafetensorsFile(w.at(state)).metadata().at("calibration"); };
    w.ok(kTiny + " -g norm -o base");
    const std::string tuned = "train_gpt -i corpus.txt -b 2 -t 16 -x 8 --gate-warmup 2 --gate-end 6 --init base.bin";
    w.ok(tuned + " -o tuned");
    auto apart = [&](const std::string& file) {
        return SafetensorsFile(w.at(file)).metadata().contains("first_positions");
    };
    CHECK(kind_in("tuned.state.bin") == "channels+first");
    CHECK((apart("tuned.state.bin") && apart("tuned.bin")));
    w.ok(tuned + " --bound 0 -o unbounded"), w.ok(tuned + " --calibration channels -o together");
    CHECK(kind_in("unbounded.state.bin") == "channels");
    w.ok(tuned + " -g norm --bound 0 --calibration channels+first -o normed");  // a baseline takes its taper's flags
    size_t lines = 0;
    for (const nlohmann::json& line : read_log(w.at("tuned.log.jsonl"))) {
        CHECK(line.contains("transformer.h.0.ln_2.first_scale") == (line.value("step", 0) == 6));
        lines++;
    }
    CHECK(lines > 6);
    CHECK((!apart("unbounded.bin") && !apart("together.bin")));
    CHECK(model_in(w.at("tuned.bin")) != model_in(w.at("together.bin")));
    const Outcome nowhere = w.run(tuned + " --bound 0 --calibration channels+first -o x");
    CHECK(nowhere.status == 1);
    CHECK_MESSAGE(contains(nowhere.err, "--calibration channels+first: expected a --bound above 0 with it, found 0"),
                  nowhere.err);
    w.ok(tuned + " --calibration scalar -o scalar");
    CHECK(kind_in("scalar.state.bin") == "scalar");
    CHECK(model_in(w.at("tuned.bin")) != model_in(w.at("scalar.bin")));
    w.ok("fold tuned.bin folded.bin");
    CHECK(apart("folded.bin"));
    const Outcome refused = w.run("train_gpt -y -o tuned -x 9 --calibration scalar");
    CHECK(refused.status != 0);
    CHECK_MESSAGE(contains(refused.err, "--calibration: expected channels+first, as the run in tuned.state.bin"),
                  refused.err);
    w.ok("train_gpt -y -o tuned -x 9 --calibration channels+first"), w.ok("train_gpt -y -o together -x 9");
    CHECK((apart("tuned.bin") && !apart("together.bin")));
    w.ok("train_gpt -y -o unbounded -x 9");
}

TEST_CASE("train_gpt: --gain and --scale-target can be changed until they are put in place") {
    const Workplace w;
    w.ok(kTiny + " --gate-warmup 4 --gate-end 5 --gain 2 -o m");  // of 6 updates
    w.ok("train_gpt -y -o m -x 8 --gain 2"), w.ok("train_gpt -y -o m -x 9");
    for (const std::string flag : {"--gain", "--scale-target"}) {
        const Outcome late = w.run("train_gpt -y -o m -x 10 " + flag + " 3");
        CHECK(late.status == 1);
        CHECK_MESSAGE(contains(late.err, flag + ": the run in m.state.bin is at update 9, and " +
                                             (flag == "--gain" ? "2" : "1") +
                                             " was put in place at update 4; found 3; leave it out"),
                      late.err);
    }
    w.ok(kTiny + " --gate-warmup 8 --gate-end 9 -o early");
    w.ok("train_gpt -y -o early -x 9 --gain 3 --scale-target 2");
    w.ok("train_gpt -y -o early -x 10 --scale-loss 0");  // which has no use for the target that the run has
    CHECK(contains(w.run(kTiny + " --scale-loss 0 --scale-target 2 -o x").err,
                   "--scale-target: expected a --scale-loss above 0 with it, found 0; leave it out"));
    CHECK(contains(w.run(kTiny + " --calibration channels --gain 2 -o x").err,
                   "--gain: expected --calibration scalar with it, found --calibration channels"));
    // Flags override what a file has, also where they exclude it.
    w.ok(kTiny + " --gain 2 --scale-target 2 -o both");
    for (const char* flags : {"-g norm", "--scale-loss 0", "--calibration channels"})
        w.ok("train_gpt --config both.toml --overwrite -o other " + std::string(flags));
    CHECK(contains(w.run(kTiny + " -g norm --gate-warmup 0 --gain 2 -o x").err,
                   "--gate-warmup: expected at least 1 update before --gain, found 0"));
    // What would begin behind the last of 6 updates.
    for (const char* mode : {"norm", "taper"})
        for (const auto& [flag, first] :
             {std::pair("--gain=2", 7), {"--scale-loss=2", 6}, {"--freeze-gains", 6}, {"--carry-moments", 6}})
            for (const int warmup : {5, 6, 7}) {  // (what --gain does at the end of the last update is in the model)
                const std::string name = std::string(flag).substr(0, std::string(flag).find('='));
                if (name == "--carry-moments" && mode == std::string("norm")) continue;  // refused
                const std::string out = w.ok(kTiny + " --overwrite -o late -g " + mode + " --scale-loss 0 " + flag +
                                             strprintf(" --gate-warmup %d --gate-end 9", warmup));
                const std::string said =
                    strprintf("without effect in this run: %s, from the end of update %d on", name.c_str(), warmup);
                CHECK_MESSAGE(contains(out, said) == (warmup >= first), out);
            }
    CHECK(contains(w.run(kTiny + " -g norm --carry-moments -o x").err,
                   "--carry-moments: expected -g taper or taper-all with it, found -g norm; leave it out"));
    CHECK(contains(w.run(kTiny + " --freeze-gains --carry-moments -o x").err,
                   "--carry-moments: expected no --freeze-gains with it"));
    CHECK(contains(
        w.run("train_gpt -y -o m -x 12 --carry-moments").err,
        "--carry-moments: the run in m.state.bin is at update 9, and 0 was put in place at update 4; found 1"));
}

TEST_CASE("train_gpt: a flag that does nothing beside another is named") {
    const Workplace w;
    const std::string plain = "train_gpt -i corpus.txt -b 2 -x 6 -l 0.01 --overwrite" + kShape + " ";
    for (const auto& [flag, other] : {std::pair("--gate-end 5", "-g norm"),
                                      {"--calibration channels", "-g norm"},
                                      {"--bound 4", "-g norm"},
                                      {"--final-bound 2", "-g norm"},
                                      {"--ema-decay 0.5", "-g norm --scale-loss 0"},
                                      {"--gate-warmup 2", "-g norm --scale-loss 0"},
                                      {"--scale-loss-kind relative", "--scale-loss 0"},
                                      {"--lr-final-frac 0.5", "-k constant"},
                                      {"--carry-moments", "--lr-gains 0"}}) {
        const std::string name = std::string(flag).substr(0, std::string(flag).find(' '));
        const std::string out = w.ok(plain + "-o with " + flag + " " + other);
        CHECK_MESSAGE(contains(out, "note: " + name + " (beside -"), out);
        w.ok(plain + "-o without " + other);
        CHECK_MESSAGE(content_of(w.at("with.bin")) == content_of(w.at("without.bin")), flag);  // as it says
    }
    for (const std::string flags :
         {"--bound 0 -g norm", "--ema-decay 0.5 -g norm --scale-loss 0.1", "--gate-warmup 3 -g norm --gain 2",
          "--gate-warmup 3 --gate-end 5 --bound 4", "--lr-final-frac 0.5", "-g norm"})
        CHECK(!contains(w.ok(plain + "-o m " + flags), "note: "));
    CHECK(contains(w.ok(plain + "-o m --tune"), "note: --tune has no effect on a CPU"));
}

TEST_CASE("train_gpt: the warm-up of the rate by default") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o m");
    for (const auto& [flags, warmup] : {std::pair(" -x 49", "50"),
                                        {" -x 999", "20"},
                                        {" -x 1000", "10%"},
                                        {" -x 1000 -u 3%", "3%"},
                                        {" -x 1000 --init m.bin", "2%"},
                                        {" -x 1000 --freeze-gains", "5%"},
                                        {" -x 1000 --freeze-gains --init m.bin", "2%"},
                                        {" -x 1000 --freeze-gains --optimizer muon", "2%"},
                                        {" -x 1000 --optimizer muon", "2%"},
                                        {" -x 49 --init m.bin", "2%"}}) {
        const std::string out = w.ok("train_gpt -i corpus.txt -b 2 --dry-run" + kShape + flags);
        CHECK_MESSAGE(std::regex_search(out, std::regex(std::string("\\swarmup +") + warmup + "\\s")), out);
    }
}

TEST_CASE("train_gpt: a run keeps its optimizer, and Muon needs whole matrices") {
    const Workplace w;
    w.ok(kTiny + " --optimizer muon -o m"), w.ok(kTiny + " -o a");
    for (const auto& [run, own, other] : {std::array{"m", "muon", "adamw"}, {"a", "adamw", "muon"}}) {
        const std::string again = std::string("train_gpt -y -x 8 -o ") + run + " --optimizer ";
        const Outcome refused = w.run(again + other);
        CHECK(refused.status == 1);
        CHECK_MESSAGE(contains(refused.err, std::string("--optimizer: expected ") + own + ", as the run in " + run +
                                                ".state.bin has it, found " + other + "; leave the flag out"),
                      refused.err);
        const Outcome by_file =
            w.run(std::string("train_gpt -y -x 8 -o ") + run + " --config " + (*run == 'm' ? "a" : "m") + ".toml");
        CHECK_MESSAGE(contains(by_file.err, std::string("found ") + other + "; leave it out of the file of --config"),
                      by_file.err);
        w.ok(again + own), w.ok(std::string("train_gpt -y -x 9 -o ") + run);
    }
    CHECK(model_in(w.at("m.bin")) != model_in(w.at("a.bin")));
    const SafetensorsFile adamw(w.at("a.state.bin")), muon(w.at("m.state.bin"));
    CHECK(adamw.metadata().at("state_version") == "5");
    CHECK(muon.metadata().at("state_version") == "6");  // older programs must not read it
    for (const char* moment : {"m.", "v."})
        for (const char* tensor : {"transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"}) {
            const std::string name = std::string(moment) + tensor;
            CHECK(adamw.find(name));
            CHECK(bool(muon.find(name)) == (name != "v.transformer.h.0.mlp.c_fc.weight"));
        }
    CHECK(contains(w.run(kTiny + " --optimizer muon -z 1 -o x").err, "--optimizer muon: expected -z 0 with it"));
}

TEST_CASE("train_gpt: --init's default rate follows the width, and a run keeps the one that it began with") {
    const Workplace w;
    auto rate = [&](const std::string& out) {
        return std::stod(SafetensorsFile(w.at(out + ".state.bin")).metadata().at("peak_lr"));
    };
    const std::string small = "train_gpt -i corpus.txt -b 1 -t 8 -x 2 -v 0 -m 1 --n-layer 1 --n-head 2 --threads 1";
    for (const auto& [C, expected] : {std::pair(16, 0.003), {230, 0.002}}) {
        const std::string base = "base" + std::to_string(C), tuned = "tuned" + std::to_string(C);
        w.ok(small + " --n-embd " + std::to_string(C) + " -g norm -o " + base);
        CHECK(rate(base) == 0.003);
        w.ok("train_gpt -i corpus.txt -b 1 -t 8 -x 2 -v 0 -m 1 --init " + base + ".bin -o " + tuned);
        CHECK(rate(tuned) == expected);
        w.ok("train_gpt -y -x 3 -o " + tuned);
        CHECK(rate(tuned) == expected);
        w.ok("train_gpt -y -x 4 -l 0.001 -o " + tuned);
        CHECK(rate(tuned) == 0.001);
        w.ok("train_gpt -y -x 5 -o " + tuned);
        CHECK(rate(tuned) == 0.001);
    }
}

TEST_CASE("train_gpt: the kind of the scale loss: relative with --init, and what the state says where a run goes on") {
    const Workplace w;
    auto kind_in = [&](const std::string& state) {
        return SafetensorsFile(w.at(state)).metadata().at("scale_loss_kind");
    };
    w.ok(kTiny + " -g norm -o base");
    CHECK(kind_in("base.state.bin") == "absolute");
    w.ok("train_gpt -i corpus.txt -b 2 -t 16 -x 4 --init base.bin -o tuned");
    CHECK(kind_in("tuned.state.bin") == "relative");
    w.ok("train_gpt -i corpus.txt -b 2 -t 16 -x 4 --init base.bin --scale-loss-kind absolute -o old");
    CHECK(kind_in("old.state.bin") == "absolute");
    w.ok("train_gpt -y -o tuned -x 6");
    CHECK(kind_in("tuned.state.bin") == "relative");
    w.ok("train_gpt -y -o tuned -x 8 --scale-loss-kind absolute");
    CHECK(kind_in("tuned.state.bin") == "absolute");
    // States of versions that knew one kind only do not say it.
    for (const char* kind : {"", "relative"}) {
        Settings s;
        const char* argv[] = {"train_gpt", "--resume"};
        Options now = make_options(s);
        REQUIRE(now.parse(2, argv));
        std::vector<std::string> arguments = now.arguments();
        SavedSettings saved{.path = "state",
                            .arguments = "--init=base.bin\n",
                            .gate_warmup = "1",
                            .gate_end = "2",
                            .total_batch = ""};
        saved.kept = {{"--scale-loss-kind", *kind ? kind : "absolute"}, {"--bound", *kind ? "5" : "0"}};
        if (*kind) saved.lr = "0.0006";
        settle(s, now, resume_settings(s, now, arguments, saved), nullptr);
        CHECK(s.scale_loss_kind == (*kind ? kind : "absolute"));
        CHECK(s.bound == (*kind ? 5 : 0));
        CHECK(s.lr == (*kind ? 0.0006 : 0.003));  // 0.003: the width of these settings is 128
    }
}

TEST_CASE("train_gpt: a run that resumes keeps its warm-up, whose default would be another with what is given now") {
    const auto warmup = [](const std::string& arguments, const std::string& kept, std::vector<const char*> argv) {
        Settings s;
        argv.insert(argv.begin(), {"train_gpt", "--resume"});
        Options now = make_options(s);
        REQUIRE(now.parse(int(argv.size()), argv.data()));
        std::vector<std::string> given = now.arguments();
        SavedSettings saved{.path = "state",
                            .arguments = arguments,
                            .gate_warmup = "45",
                            .gate_end = "360",
                            .total_batch = ""};
        saved.kept = {{"--warmup", kept}};
        const CompleteSettings complete = settle(s, now, resume_settings(s, now, given, saved), nullptr);
        const bool open = std::ranges::count(complete.implied, "--warmup") > 0;
        return to_text(s.warmup) + (open ? ", by default" : "");
    };
    CHECK(warmup("--steps=900\n", "20", {}) == "20, by default");
    CHECK(warmup("--steps=900\n", "20", {"-x", "950"}) == "20, by default");
    CHECK(warmup("--steps=900\n", "20", {"-x", "1200"}) == "20");
    CHECK(warmup("--steps=900\n", "20", {"-x", "1200", "-u", "10%"}) == "10%");
    CHECK(warmup("--steps=2000\n", "10%", {"-x", "900"}) == "10%");
    CHECK(warmup("--steps=2000\n", "10%", {"--freeze-gains"}) == "10%");
    CHECK(warmup("--steps=2000\n", "2%", {"--freeze-gains"}) == "2%");  // of a program whose default it was
    CHECK(warmup("--steps=2000\n--freeze-gains\n", "2%", {"-x", "4000"}) == "2%");
    CHECK(warmup("--steps=2000\n--freeze-gains\n", "5%", {"-x", "4000"}) == "5%, by default");
}

TEST_CASE("train_gpt: a shape that is not --init's is blamed on the flag that gave it") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o m");
    for (const auto& [flags, said] :
         {std::pair("-e d12", "--model d12: --n-layer: expected 1, which m.bin has, found 12"),
          {"--n-layer 2", "error: --n-layer: expected 1, which m.bin has, found 2"}}) {
        const Outcome refused = w.run("train_gpt -i corpus.txt --init m.bin -o x " + std::string(flags));
        CHECK(refused.status == 1);
        CHECK_MESSAGE(contains(refused.err, std::string(said) + "; leave the flag out"), refused.err);
    }
}

TEST_CASE("train_gpt: where the flags of ranks differ, the one that was given is named, not what follows from it") {
    const auto facts = [](std::vector<const char*> argv) {
        argv.insert(argv.begin(), "train_gpt");
        Settings s;
        Options now = make_options(s);
        REQUIRE(now.parse(int(argv.size()), argv.data()));
        settle(s, now, now, nullptr);
        return common_settings(s, Start{});
    };
    const auto plain = facts({"-x", "2000"});
    for (const auto& [flag, value] :
         {std::pair("--freeze-gains", ""), {"--optimizer", "muon"}, {"--steps", "90"}, {"--warmup", "7"}}) {
        const auto other = facts(*value ? std::vector{"-x", "2000", flag, value} : std::vector{"-x", "2000", flag});
        REQUIRE(other.size() == plain.size());
        size_t i = 0;
        while (i < plain.size() && plain[i].value == other[i].value) i++;
        REQUIRE(i < plain.size());
        CHECK_MESSAGE(plain[i].name.starts_with(flag), plain[i].name);
    }
}

TEST_CASE("train_gpt: the settings beside a model train it again, to the bit") {
    for (const std::string flags : {" -g taper -u 5% --no-shuffle -d 64", " -g norm",
                                    " -g taper-all --scale-loss 0 --skip-grad 50", " --init base.bin"}) {
        INFO(flags);
        const Workplace w;
        w.ok(kTiny + " -g norm -o base.bin");
        w.ok("train_gpt -i corpus.txt -b 2 -x 6" + (flags.ends_with("base.bin") ? " -t 16" : kShape) + flags);
        const std::string model = model_in(w.at("model.bin"));
        const std::string settings = read_file(w.at("model.toml"));
        for (const char* name : {"model.bin", "model.state.bin", "model.log.jsonl"})
            std::filesystem::remove(w.at(name));
        w.ok("train_gpt --config model.toml");
        CHECK(model_in(w.at("model.bin")) == model);
        CHECK(read_file(w.at("model.toml")) == settings);
        w.ok("train_gpt --config model.toml -o other.bin --seed 2");  // the command line wins
        CHECK(model_in(w.at("model.bin")) == model);
        CHECK(model_in(w.at("other.bin")) != model);
        CHECK(read_file(w.at("other.toml")).find("seed = 2\n") != std::string::npos);
    }
}

TEST_CASE("train_gpt: a file of settings and the state of a run") {
    const Workplace w, whole;
    write_file(w.at("run.toml"),
               "train = 'corpus.txt'\nbatch = 2\nn-layer = 1\nn-embd = 16\nn-head = 2\nseq-len = 16\n"
               "gate-warmup = 2\ngate-end = 4\nlr = 0.01\ngate = 'taper'\n");
    w.ok("train_gpt --config run.toml -x 3 -k constant -u 2");
    std::filesystem::remove(w.at("run.toml"));  // the state has all of it
    w.ok("train_gpt -y -x 6");
    whole.ok(kTiny + " -k constant -u 2");
    CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    CHECK(read_file(w.at("model.toml")) == read_file(whole.at("model.toml")));
    w.ok("train_gpt -y --config model.toml -x 8");  // as flags given now
    w.refused("train_gpt -y --config model.toml -g norm", {"--gate-mode", "taper"});
    write_file(w.at("small.toml"), "batch = 3\n");
    w.ok("train_gpt -y --config small.toml -d 48 -x 9");
    CHECK(read_file(w.at("model.toml")).find("\nbatch = 3\n# total-batch = 48\n") != std::string::npos);
    whole.ok(kTiny + " -g taper --no-shuffle -o later.bin -x 4 --gate-warmup 1 --gate-end 8");
    write_file(whole.at("later.toml.txt"), "gate-end = 9\nno-shuffle = false\n");
    const std::string out = whole.ok("train_gpt -y -o later.bin -x 12 --config later.toml.txt");
    CHECK_MESSAGE(out.find("0 from update 9 on") != std::string::npos, out);
    CHECK_MESSAGE(read_file(whole.at("later.toml")).find("no-shuffle") == std::string::npos, out);
}

TEST_CASE("train_gpt: percentages from a file of settings count when a run resumes, unless they are the run's own") {
    const Workplace w;
    w.ok("train_gpt -i corpus.txt -b 2 -x 10 -g norm -u 10% --gate-end 60%" + kShape);
    write_file(w.at("own.toml"), "gate-warmup = '50%'\ngate-end = '60.0%'\n");  // one is the default
    write_file(w.at("other.toml"), "gate-end = '90%'\nwarmup = '50%'\n");
    const auto gate_end = [&](const std::string& flags) {
        w.ok("train_gpt -y " + flags);
        return SafetensorsFile(w.at("model.state.bin")).metadata().at("gate_end");
    };
    CHECK(gate_end("-x 11") == "6");
    CHECK(gate_end("-x 12 --config model.toml") == "6");
    CHECK(gate_end("-x 20 --config own.toml") == "6");
    CHECK(gate_end("-x 30 --config other.toml") == "27");
    CHECK(read_file(w.at("model.toml")).find("\nwarmup = \"50%\"\n") != std::string::npos);
    CHECK(gate_end("-x 40") == "27");
    CHECK(gate_end("-x 41 --config other.toml") == "27");
    CHECK(gate_end("-x 50 --gate-end 90%") == "45");
}

TEST_CASE("programs: what is typed wins over what excludes it in a file of settings") {
    const Workplace w;
    write_file(w.at("depth.toml"), "model = 'd6'\n");
    write_file(w.at("both.toml"), "model = 'd6'\nn-layer = 3\n");
    w.refused("train_gpt --config both.toml", {"--model", "--n-layer"});
    for (const std::string name : {"d06", "d+6", "d", "6", "d6 "})
        w.refused("train_gpt --model", {"--model", "such as d12", "'" + name + "'"}, {name});
    w.refused("train_gpt --config depth.toml --n-layer 1000 -t 1048576 -b 1048576", {"1000 layers of 384 channels"});
    w.ok("train_gpt --config depth.toml --n-layer 1 --n-head 2 --n-embd 16 -t 16 -b 2 -i corpus.txt -x 6");
    write_file(w.at("again.toml"), "overwrite = true\ninit = 'model.bin'\n");
    w.ok("train_gpt -y -x 7 --config again.toml");
    w.ok("train_gpt --resume=false -x 6 -n 3 --overwrite --config model.toml");
    write_file(w.at("fresh.toml"), "resume = true\nout = 'model.bin'\n");
    w.ok("train_gpt --overwrite -x 6 --config fresh.toml -i corpus.txt" + kShape);
    w.refused("train_gpt -y --overwrite", {"--resume and --overwrite: expected one of them, found both"});
    write_file(w.at("eval.toml"), "eval = 'corpus.txt'\nlast-token = false\n");
    CHECK(w.ok("infer model.bin --config eval.toml").find("bits per byte") != std::string::npos);
    CHECK(w.ok("infer model.bin --config eval.toml --tokens 1,2 -n 3").find("; 3 generated") != std::string::npos);
    CHECK(w.ok("infer model.bin --config eval.toml --last-token").find("last-token mode") != std::string::npos);
    write_file(w.at("two.toml"), "eval = 'corpus.txt'\nprompt = 'a'\n");
    w.refused("infer model.bin --config two.toml", {"--eval and --prompt: expected one of them, found both"});
    w.refused("infer model.bin --samples 2 --last-token", {"--samples and --last-token"});
}

TEST_CASE("train_gpt: defaults that follow from other settings stay open in the file of settings") {
    const Workplace w;
    const std::string run = "train_gpt -i corpus.txt -b 2 -x 20" + kShape;
    w.ok(run + " -g norm -o base.bin");
    CHECK(read_file(w.at("base.toml")).find("\n# scale-loss = 0\n") != std::string::npos);
    w.ok("train_gpt --config base.toml -g taper -o taper.bin");
    w.ok(run + " -g taper -o plain.bin");
    CHECK(model_in(w.at("taper.bin")) == model_in(w.at("plain.bin")));
    CHECK(read_file(w.at("taper.toml")).find("\n# scale-loss = 0.1\n") != std::string::npos);
    w.ok("train_gpt --config base.toml -b 4 -o wide.bin");  // and so does the total batch
    // With its own file of settings a run resumes, also where its schedule is in parts of the run or it began from a model.
    w.ok("train_gpt -y -o taper.bin --config taper.toml -x 40");
    w.ok(run + " -g taper --gate-warmup 10% --gate-end 40% -o part.bin");
    w.ok("train_gpt -y -o part.bin --config part.toml -x 40");
    w.ok(run + " -g taper -o tuned.bin --init base.bin");
    w.ok("train_gpt -y -o tuned.bin --config tuned.toml -x 40");
}

TEST_CASE("train_gpt: refuses files of settings in one line that names them") {
    const Workplace w;
    write_file(w.at("twice.toml"), "gate = 'norm'\ngate-mode = 'taper'\n");
    w.refused("train_gpt --config twice.toml", {"twice.toml", "line 2", "line 1"});
    write_file(w.at("mark.toml"), "\xef\xbb\xbflr = -1\n");
    w.refused("train_gpt --config mark.toml", {"mark.toml", "line 1", "--lr"});
    w.refused("train_gpt --config -o x.bin", {"--config", "-o"});
    w.refused(kTiny + " -sg=3", {"-sg=3", "--skip-grad"});
    std::filesystem::create_directory(w.at("folder"));
    write_file(w.at("key.toml"), "lr = 1\nlrr = 2\n");
    write_file(w.at("value.toml"), "lr = true\n");
    write_file(w.at("line.toml"), "lr = 1\n[Files]\n");
    w.refused("train_gpt --config missing.toml", {"missing.toml"});
    w.refused("train_gpt --config folder", {"folder"});
    w.refused("train_gpt --config key.toml", {"key.toml", "line 2", "lrr", "did you mean lr"});
    w.refused("train_gpt --config value.toml", {"value.toml", "--lr", "true"});
    w.refused("train_gpt --config line.toml", {"line.toml", "line 2", "Files"});
    w.refused("train_gpt --config", {"--config"});
    // The run would overwrite what somebody wrote.
    write_file(w.at("model.toml"), "lr = 1\n");
    w.refused(kTiny, {"--out", "model.toml"});
    w.refused("train_gpt --config model.toml", {"--out", "model.toml"});
    // A shape by depth on the command line wins over sizes in the file, and is refused beside sizes on the command line.
    write_file(w.at("sizes.toml"), "n-layer = 2\nn-embd = 12\n");
    w.refused("train_gpt --config sizes.toml -e d12 -t 1048576 -b 1048576", {"12 layers", "768 channels"});
    w.refused("train_gpt --config sizes.toml -e d12 --n-layer 3", {"--model", "--n-layer"});
}

TEST_CASE("train_gpt: states of older versions resume with the flags in them that have other names now") {
    const Workplace w, whole;
    w.ok(kTiny + " -k constant -u 2 -x 3");
    {
        const SafetensorsFile state(w.at("model.state.bin"));
        std::map<std::string, std::string> metadata = state.metadata();
        metadata.erase("checksum");
        metadata["arguments"] =
            "-i\ncorpus.txt\n-b\n2\n-x\n3\n--gate-warmup\n2\n--gate-end\n4\n-l\n0.01\n--n-layer\n1\n--n-embd\n16\n--n-head\n2\n"
            "-t\n16\n-k\nconstant\n-u\n2\n--gate\ntaper\n-sg\n50\n-sl\n3\n";
        std::vector<TensorOut> tensors;
        for (const TensorEntry& e : state.entries()) tensors.push_back({e.name, e.dtype, e.shape, state.data(e)});
        Checkpoints(w.at("old.state.bin")).write(metadata, tensors, 1);
    }
    const std::string out = w.warned("train_gpt -y -o old.bin -x 6", "'old.log.jsonl', is not there");
    CHECK(read_file(w.at("old.toml")).find("\nskip-loss-z = 3\nskip-grad = 50\n") != std::string::npos);
    CHECK(read_file(w.at("old.toml")).find("\ngate-mode = \"taper\"\n") != std::string::npos);
    whole.ok(kTiny + " -k constant -u 2 --skip-grad 50 --skip-loss-z 3");
    CHECK(model_in(w.at("old.bin")) == model_in(whole.at("model.bin")));
    w.ok("train_gpt -y -o old.bin -x 7");  // what it wrote has the present names
}

TEST_CASE("programs: --version is one line with the program's name") {
    const Workplace w;
    for (const std::string program : {"train_gpt", "fold", "infer"}) {
        const Outcome outcome = run_program_in(w.path, {program, "--version"});
        CHECK(outcome.status == 0);
        CHECK(outcome.err == "");
        CHECK(outcome.out.starts_with(program + " "));
        CHECK(count_of(outcome.out, "\n") == 1);
    }
}

}  // namespace tapernorm::train
