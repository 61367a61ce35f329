// A run and its files: whose they are, which of them belong together, and that what is written can be read again.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include "io/atomic_file.h"
#include "io/claims.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"
#include "io/tokens.h"
#include "model/model_file.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/read_log.h"
#include "tests/run_program.h"
#include "tests/vocabulary.h"
#include "train/checkpoints.h"
#include "train/run_files.h"
#include "train/run_log.h"

namespace tapernorm::train {

namespace fs = std::filesystem;

namespace {

// The files of a run with their contents, under the names that a run `as` would give them.
std::map<std::string, std::string> run_files(const Workplace& w, const std::string& name, const std::string& as = "") {
    std::map<std::string, std::string> files;
    for (const std::string& path : existing_files(w.at(name + ".bin")))
        files[(as.empty() ? name : as) + path.substr(w.at(name).size())] = read_file(path);
    return files;
}

// A tiny run that is long enough to be interrupted.
const std::string kLong = "train_gpt -i corpus.txt -b 2 -x 100000 -v 0 -m 1" + kShape;

}  // namespace

TEST_CASE("run files: names are as different as the runs'") {
    std::set<std::string> seen;
    const std::vector<std::string> names = {"lr0.001", "lr0.002", "lr0", "a",     "a.b",
                                            "a.txt",   "a.log",   "d/a", "d.e/a", ".a"};
    for (const std::string& name : names) {
        const std::string model = model_path(name);
        CHECK(model == name + ".bin");
        CHECK(model_path(model) == model);
        for (const std::string& path : {model, state_path(model), log_path(model), settings_path(model)})
            CHECK(seen.insert(path).second);
    }
    for (const char* bad : {"", ".bin", "d/", "d/.bin", "a.state", "a.state.bin", "a.state.1", "a.state.17.bin"})
        CHECK(error_of([&] { model_path(bad); }).starts_with("--out: "));
    CHECK(model_path("estate") == "estate.bin");
    CHECK(model_path("v1.2") == "v1.2.bin");
}

TEST_CASE("numbered files: those that are there, and no other names that look like theirs") {
    const Workplace w;
    for (const char* name :
         {"a.state.bin", "a.state.1.bin", "a.state.7.bin", "a.state.99.bin", "a.state.100.bin", "a.state.101.bin",
          "a.state.0.bin", "a.state.05.bin", "a.state.+6.bin", "a.state.8.bin.x", "a.state.9", "a.state..bin",
          "a.state.10.x.bin", "aa.state.11.bin", "a.state.99999999999999999999.bin"})
        write_file(w.at(name), "");
    fs::create_symlink("nowhere", w.at("a.state.3.bin"));
    fs::create_directory(w.at("a.state.4.bin"));
    const std::vector<size_t> there = {0, 1, 3, 4, 7, 99, 100};
    CHECK(existing_numbers(w.at("a.state.bin"), 100) == there);
    CHECK(existing_numbers(w.at("a.state.bin"), 3) == std::vector<size_t>{0, 1, 3});
    CHECK(existing_numbers(w.at("b.state.bin"), 100).empty());
    CHECK(existing_numbers(w.at("none/a.state.bin"), 100).empty());
    const fs::path here = fs::current_path();
    fs::current_path(w.at(""));
    CHECK(existing_numbers("a.state.bin", 100) == there);  // without a folder in front
    fs::current_path(here);
    fs::permissions(w.at(""), fs::perms::owner_write | fs::perms::owner_exec);  // cannot be listed, but by root
    CHECK(existing_numbers(w.at("a.state.bin"), 100) == there);
    fs::permissions(w.at(""), fs::perms::owner_all);
}

TEST_CASE("run files: two runs whose names differ behind a dot keep their files apart") {
    const Workplace w;
    w.ok(kTiny + " -l 0.001 -o lr0.001");
    const auto first = run_files(w, "lr0.001");
    w.ok(kTiny + " -l 0.002 -o lr0.002");
    CHECK(first.size() == 4);
    CHECK(run_files(w, "lr0.001") == first);
    CHECK(run_files(w, "lr0.002").size() == 4);
    CHECK(metadata_of(w.at("lr0.001.state.bin"), "run") != metadata_of(w.at("lr0.002.state.bin"), "run"));
    w.ok("train_gpt -y -o lr0.001 -x 8 -k constant -l 0.001");
    CHECK(metadata_of(w.at("lr0.001.state.bin"), "run") ==
          metadata_of(w.at("lr0.001.bin").replace(w.at("lr0.001.bin").size() - 4, 4, ".state.bin"), "run"));
    CHECK(metadata_of(w.at("lr0.001.state.bin"), "step") == "8");
    CHECK(metadata_of(w.at("lr0.002.state.bin"), "step") == "6");
}

TEST_CASE("run files: a fresh run keeps those of the earlier one under another name") {
    const Workplace w;
    w.ok(kTiny + " -x 6 -n 2 -o m");
    const auto first = run_files(w, "m");
    CHECK(first.size() == 5);  // with one older state
    const std::string out = w.ok(kTiny + " -l 0.02 -o m");
    CHECK(out.find("m.bin and the files beside it are of an earlier run (6 updates)") != std::string::npos);
    CHECK(out.find("./train_gpt -y -o") != std::string::npos);
    CHECK(contains(out, "are now m.old.bin and so on; to resume that run: ./train_gpt -y -o m.old.bin\n"));
    CHECK(run_files(w, "m.old", "m") == first);
    const auto second = run_files(w, "m");
    w.ok(kTiny + " -l 0.03 -o m.bin");
    CHECK(run_files(w, "m.old", "m") == first);
    CHECK(run_files(w, "m.old2", "m") == second);
    w.ok(kTiny + " -l 0.04 -o m --overwrite");
    CHECK(run_files(w, "m.old3").empty());
    CHECK(run_files(w, "m").size() == 4);  // and of the first run no older state
    // What was set aside is a run like any other.
    Workplace whole;
    whole.ok(kTiny + " -x 6 -n 2 -o m");
    whole.ok("train_gpt -y -o m -x 8");
    w.ok("train_gpt -y -o m.old -x 8");
    CHECK(model_in(w.at("m.old.bin")) == model_in(whole.at("m.bin")));
    for (const auto& [name, contents] : w.contents()) {
        CHECK_MESSAGE(name.find(".tapernorm-") == name.npos, name);
    }
}

TEST_CASE("run files: a fresh run that ends before its first checkpoint leaves the earlier one as it was") {
    const Workplace w;
    w.ok(kTiny);
    const auto before = run_files(w, "model");
    Program killed(w.path, w.command(kLong));
    REQUIRE(killed.wait_until([](const std::string& text) { return text.find("step ") != std::string::npos; }));
    while (read_file(w.at("model.tapernorm-log")).size() < 100)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    killed.send(SIGKILL);
    killed.finish();
    CHECK(run_files(w, "model") == before);
    const std::string newer = read_file(w.at("model.tapernorm-log"));
    const Outcome earlier = w.run("train_gpt -y -x 8");  // the earlier one, and its log alone
    CHECK(earlier.status == 0);
    CHECK(earlier.err ==
          "warning: a newer run of this name (" + std::to_string(updates_in_log(w.at("model.old.log.jsonl"))) +
              " updates in its log, which is now 'model.old.log.jsonl') ended before its first checkpoint; "
              "this is the earlier one\n");
    CHECK(read_file(w.at("model.old.log.jsonl")) == newer);
    const auto log = read_log(w.at("model.log.jsonl"));
    CHECK(log.size() == 8);
    for (size_t i = 0; i < log.size(); i++) CHECK(log[i].at("step") == i + 1);
    CHECK(run_of_log(w.at("model.log.jsonl")) == metadata_of(w.at("model.state.bin"), "run"));
    w.ok("train_gpt -y -x 9");  // said once
    // A fresh run keeps both.
    const auto nine = run_files(w, "model");
    write_file(w.at("model.tapernorm-log"), newer);
    CHECK(contains(w.ok(kTiny + " -l 0.02"), "is now model.old2.log.jsonl"));
    CHECK(read_file(w.at("model.old2.log.jsonl")) == newer);
    CHECK(run_files(w, "model.old3", "model") == nine);
}

TEST_CASE("run files: of the runs that were set aside, -y finds the one of the log, else the newest, at any number") {
    const Workplace w;
    const std::string model = w.at("m.bin");
    CHECK(run_set_aside(model) == "");
    CHECK(aside_path(model) == w.at("m.old.bin"));
    w.ok(kTiny + " -o m");
    const std::string state = read_file(w.at("m.state.bin"));
    const auto hours_ago = [&](const std::string& name, int hours) {
        write_file(w.at(name), state);
        fs::last_write_time(w.at(name), fs::file_time_type::clock::now() - std::chrono::hours(hours));
    };
    hours_ago("m.old1234.state.bin", 1), hours_ago("m.old3.state.bin", 2), hours_ago("m.old.backup.state.bin", 0);
    for (const char* file : {"m.state.bin", "m.bin", "m.toml", "m.log.jsonl"})
        fs::rename(w.at(file), w.at(std::string("x") + file));
    CHECK(run_set_aside(model) == w.at("m.old1234.bin"));
    CHECK(aside_path(model) == w.at("m.old.bin"));
    hours_ago("m.old.state.bin", 0);
    CHECK(run_set_aside(model) == w.at("m.old.bin"));
    CHECK(aside_path(model) == w.at("m.old2.bin"));
}

TEST_CASE("run files: a directory that appears under the name of the settings is no reason to go without the model") {
    const Workplace w;
    Program program(w.path, w.command(kLong + " -o m"));
    REQUIRE(program.wait_until([](const std::string& text) { return text.find("step ") != std::string::npos; }));
    fs::create_directory(w.at("m.toml"));
    program.send(SIGTERM);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 128 + SIGTERM);
    CHECK(outcome.err.starts_with("warning: cannot write 'm.toml': it is a directory"));
    CHECK((fs::exists(w.at("m.bin")) && fs::is_directory(w.at("m.toml"))));
}

TEST_CASE("run files: a directory under the name of a run's file is refused, and stays") {
    const Workplace w;
    for (const std::string name : {"m.bin", "m.state.bin", "m.state.1.bin", "m.toml", "m.log.jsonl", "m.log.1.jsonl"}) {
        fs::create_directory(w.at(name));
        w.refused(kTiny + " -o m", {name, "directory"});
        CHECK(fs::remove(w.at(name)));
    }
}

TEST_CASE("run files: nothing that has the name of the new log is written to or renamed") {
    const Workplace w;
    w.ok(kTiny + " -o m");
    const std::string name = w.at("m.tapernorm-log");
    write_file(w.at("m.log.jsonl.new"), "a user's own");
    for (int kind = 0; kind < 3; kind++) {
        if (kind == 0) fs::create_directory(name);
        if (kind == 1) fs::create_symlink("corpus.txt", name);
        if (kind == 2) REQUIRE(mkfifo(name.c_str(), 0600) == 0);
        w.refused(kTiny + " -l 0.02 -o m", {"--out", "m.tapernorm-log", "remove it"});
        fs::remove(name);
    }
    for (const std::string other : {"m.bin.tapernorm-tmp", "m.state.bin.tapernorm-tmp", "m.tapernorm-lock"}) {
        REQUIRE(mkfifo(w.at(other).c_str(), 0600) == 0);  // nobody waits for its other end
        w.refused(kTiny + " -l 0.02 -o m", {other});
        fs::remove(w.at(other));
    }
    w.ok(kTiny + " -l 0.02 -o m");
    CHECK(read_file(w.at("m.log.jsonl.new")) == "a user's own");
}

TEST_CASE("run files: a name that is taken meanwhile, a user's own files, and links are not lost") {
    const Workplace w;
    write_file(w.at("m.lock"), "a user's own");
    w.ok(kTiny + " -o m");
    const auto first = run_files(w, "m");
    Program second(w.path, w.command(kLong + " -o m"));
    REQUIRE(second.wait_until([](const std::string& text) { return text.find("step ") != std::string::npos; }));
    w.ok(kTiny + " -l 0.03 -o m.old");  // the name that was free when the second began
    const auto third = run_files(w, "m.old");
    second.send(SIGTERM);
    CHECK(second.finish().status == 128 + SIGTERM);
    CHECK(run_files(w, "m.old") == third);
    CHECK(run_files(w, "m.old2", "m") == first);
    CHECK(read_file(w.at("m.lock")) == "a user's own");
    // A file that appears under the name of a run that began with none.
    Program fresh(w.path, w.command(kLong + " -o live"));
    REQUIRE(fresh.wait_until([](const std::string& text) { return text.find("step ") != std::string::npos; }));
    fs::copy_file(w.at("m.old.bin"), w.at("live.bin"));
    const std::string folded = read_file(w.at("live.bin"));
    fresh.send(SIGTERM);
    CHECK(fresh.finish().status == 128 + SIGTERM);
    CHECK(read_file(w.at("live.old.bin")) == folded);
    CHECK(fs::exists(w.at("live.log.jsonl")));
    // A state elsewhere.
    fs::create_directory(w.at("scratch"));
    w.ok(kTiny + " -o l");
    fs::rename(w.at("l.state.bin"), w.at("scratch/l.state.bin"));
    fs::create_symlink("scratch/l.state.bin", w.at("l.state.bin"));
    const auto linked = run_files(w, "l");
    w.ok(kTiny + " -l 0.03 -o l");
    CHECK(run_files(w, "l.old", "l") == linked);
    w.ok("train_gpt -y -o l.old -x 8 -k constant -l 0.01");
}

TEST_CASE("run files: killed at each renaming of an earlier run, it is whole under one of the two names or moved on") {
    const Workplace earlier;
    earlier.ok(kTiny + " -n 2 -o m");
    const auto first = run_files(earlier, "m");
    const std::vector<std::string> order = existing_files(earlier.at("m.bin"));
    REQUIRE(order.size() == 5);
    CHECK(order[0].ends_with("m.state.1.bin"));
    CHECK(order[1].ends_with("m.state.bin"));
    for (size_t moved = 1; moved < order.size(); moved++) {
        const Workplace w;
        for (const std::string& path : order) {
            const std::string name = fs::path(path).filename().string();
            const size_t place = size_t(&path - order.data());
            fs::copy_file(path, w.at(place < moved ? "m.old" + name.substr(1) : name));
        }
        if (moved == 1) {  // the newest state has not moved
            w.ok("train_gpt -y -o m");
            CHECK(run_files(w, "m") == first);
            w.ok("train_gpt -y -o m -x 8 -k constant -l 0.01");
            continue;
        }
        CAPTURE(moved);
        if (moved % 2) {  // finished by -y, or by the next start
            const std::string err = w.run("train_gpt -y -o m").err;
            CHECK(contains(err, "set aside as 'm.old.bin': ./train_gpt -y -o m.old.bin"));
            CHECK(run_files(w, "m.old", "m") == first);
        }
        w.ok(kTiny + " -l 0.03 -o m");
        CHECK(run_files(w, "m.old", "m") == first);
        w.ok("train_gpt -y -o m.old -x 8 -k constant -l 0.01");
    }
}

TEST_CASE("run files: setting aside replaces nothing, not even what appears at the last moment") {
    const Workplace w;
    write_file(w.at("a.bin"), "the earlier model"), write_file(w.at("a.old.bin"), "somebody else's");
    const std::string model = w.at("a.bin"), to = w.at("a.old.bin");
    CHECK(error_of([&] { set_aside(model, to, {model}); }).find("File exists") != std::string::npos);
    CHECK(read_file(to) == "somebody else's");
    CHECK(read_file(model) == "the earlier model");
}

TEST_CASE(
    "run files: -y of a finished run changes neither state nor model; one that is damaged or missing is written again") {
    const Workplace w;
    w.ok(kTiny + " -n 2 --keep 3");
    const auto before = run_files(w, "model");
    const auto written = fs::last_write_time(w.at("model.bin"));
    for (int i = 0; i < 3; i++) w.ok("train_gpt -y");
    CHECK(run_files(w, "model") == before);
    CHECK(fs::last_write_time(w.at("model.bin")) == written);
    const std::string model = model_in(w.at("model.bin"));
    std::string damaged = read_file(w.at("model.bin"));
    damaged.back() = char(damaged.back() ^ 1);
    for (const std::string& file : {damaged, std::string()}) {
        file.empty() ? void(fs::remove(w.at("model.bin"))) : write_file(w.at("model.bin"), file);
        CHECK(w.run("train_gpt -y").status == 0);
        CHECK(model_in(w.at("model.bin")) == model);
        CHECK(SafetensorsFile(w.at("model.bin")).metadata().at("provenance").find("validation") != std::string::npos);
    }
    w.refused("train_gpt -y --overwrite", {"--overwrite", "--resume"});
    w.refused(kTiny + " -o /dev/null", {"/dev/null"});
    for (const std::string name : {".", "..", "./..", "..bin"})
        w.refused(kTiny + " -o " + name, {"--out: expected the name of a file, found '" + name + "'"});
}

TEST_CASE("run files: -y refuses the log of another run") {
    const Workplace w;
    w.ok(kTiny + " -o a");
    w.ok(kTiny + " -l 0.02 -o b");
    const std::string own = read_file(w.at("a.log.jsonl"));
    fs::copy_file(w.at("b.log.jsonl"), w.at("a.log.jsonl"), fs::copy_options::overwrite_existing);
    w.refused("train_gpt -y -o a -x 8", {"a.log.jsonl", "another run"});
    write_file(w.at("a.log.jsonl"), own.substr(own.find('\n') + 1));  // of a version that did not say
    w.warned("train_gpt -y -o a -x 8", "the log 'a.log.jsonl' does not say of which run it is");
    fs::remove(w.at("a.log.jsonl"));
    w.warned("train_gpt -y -o a -x 9",
             "the run's log, 'a.log.jsonl', is not there: what it had of 8 updates is missing");
    CHECK(run_of_log(w.at("a.log.jsonl")) == metadata_of(w.at("a.state.bin"), "run"));
    // A copy under another name goes on under that name.
    for (const char* end : {".bin", ".state.bin"})
        fs::copy_file(w.at(std::string("a") + end), w.at(std::string("c") + end));
    w.warned("train_gpt -y -o c -x 10", "'c.log.jsonl', is not there");
    CHECK(metadata_of(w.at("a.state.bin"), "step") == "9");
    // In another folder the corpus is not where it was.
    fs::create_directory(w.at("sub"));
    for (const char* end : {".bin", ".state.bin", ".log.jsonl"})
        fs::copy_file(w.at(std::string("a") + end), w.at(std::string("sub/a") + end));
    const Outcome moved = run_program_in(w.at("sub"), words("train_gpt -y -o a -x 10"));
    CHECK(moved.status == 1);
    CHECK(contains(moved.err, "'corpus.txt': No such file or directory"));
    CHECK(contains(moved.err,
                   "the run in 'a.state.bin' has its paths relative to the current folder: if you are in another "
                   "now, give --train\n"));
    CHECK(run_program_in(w.at("sub"), words("train_gpt -y -o a -x 10 -i ../corpus.txt")).status == 0);
}

TEST_CASE(
    "runs: how to go on names the rate of the last update, also where -y has nothing to do under another schedule") {
    const Workplace w;
    const auto next = [](const std::string& out) { return out.substr(std::min(out.find("\nnext: "), out.size())); };
    const std::string out = next(w.ok(kTiny + " -x 6 --gate-warmup 4 --gate-end 20 -o m"));
    CHECK_MESSAGE(contains(out, "continue: ./train_gpt -y -o m.bin -x 20 -k constant -u 0 -l "), out);
    CHECK(next(w.ok("train_gpt -y -o m -x 5 -l 0.5")) == out);
}

TEST_CASE("run files: a model that was saved alone, newer than the state, is not lost when the run goes on") {
    const Workplace w;
    w.ok(kTiny + " -x 3 -o a");
    const std::string state = read_file(w.at("a.state.bin"));
    w.ok("train_gpt -y -x 6 -k constant -l 0.01 -o a");
    const std::string newest = read_file(w.at("a.bin"));
    write_file(w.at("a.state.bin"), state);  // as where the disk had room for the model alone
    for (const std::string line : {"fold a.bin folded.bin", "infer a.bin -n 1 --prompt a"})
        w.warned(line, "'a.bin' (update 6) is newer than the newest checkpoint, 'a.state.bin' (update 3)");
    const Outcome outcome = w.run("train_gpt -y -x 4 -k constant -l 0.01 -o a");
    CHECK(outcome.status == 0);
    CHECK(contains(outcome.out, "the newer model is now a.old.bin; delete it"));
    CHECK_MESSAGE(contains(outcome.err,
                           "warning: the run's model (6 updates) is newer than its newest state (3 updates), from "
                           "which it goes on; at the first checkpoint that model becomes 'a.old.bin'\n"),
                  outcome.err);
    CHECK(read_file(w.at("a.old.bin")) == newest);
    CHECK(metadata_of(w.at("a.bin"), "step") == "4");
}

TEST_CASE("run files: -y does not replace the model of another run, and says what its log has lost") {
    const Workplace w;
    w.ok(kTiny + " -x 3 -o a");
    const auto copy = [&](const std::string& from, const std::string& to) {
        fs::copy_file(w.at(from), w.at(to), fs::copy_options::overwrite_existing);
    };
    w.ok(kTiny + " --seed 5 -o b");
    w.ok("fold b.bin folded.bin"), w.ok(kTiny + " -x 3 --seed 5 -o b.old");
    copy("a.state.bin", "b.state.bin"), fs::remove(w.at("b.log.jsonl"));
    w.refused("train_gpt -y -x 4 -o b", {"--resume", "b.bin", "another name"});
    copy("a.log.jsonl", "b.log.jsonl"), copy("folded.bin", "b.bin");
    w.refused("train_gpt -y -x 4 -o b", {"--resume", "b.bin"});
    copy("b.old.bin", "b.bin");  // of the same shape: the log does not say that it is this run's
    w.refused("train_gpt -y -x 4 -o b", {"--resume", "b.bin", "another name"});
    // One that was killed between its state and its model; a model that is damaged.
    copy("a.bin", "older.bin");
    w.ok("train_gpt -y -x 4 -k constant -l 0.01 -o a");
    fs::remove(w.at("a.log.jsonl")), copy("older.bin", "a.bin");
    w.warned("train_gpt -y -o a", "'a.log.jsonl', is not there");
    write_file(w.at("a.bin"), read_file(w.at("a.bin")).substr(0, 3000));
    w.warned("train_gpt -y -o a", "'a.log.jsonl', is not there");
    // The log of a run that an editor had open.
    w.ok(kTiny + " -o c");
    const std::string log = read_file(w.at("c.log.jsonl"));
    write_file(w.at("c.log.jsonl"), log + "my notes\n");
    const Outcome outcome = w.run("train_gpt -y -x 7 -o c");
    CHECK(outcome.status == 0);
    CHECK_MESSAGE(outcome.err.starts_with("warning: the log 'c.log.jsonl': lines left out"), outcome.err);
    CHECK(contains(outcome.err, "it is now 'c.log.1.jsonl')\n"));
    CHECK(read_file(w.at("c.log.1.jsonl")) == log + "my notes\n");
    CHECK(read_log(w.at("c.log.jsonl")).size() == 7);
}

TEST_CASE("run files: a name has one run at a time") {
    const Workplace w;
    fs::create_directory(w.at("d"));
    Program first(w.path, w.command(kLong + " -o run"));
    REQUIRE(first.wait_until([](const std::string& text) { return text.find("step ") != std::string::npos; }));
    for (const std::string name : {"run", "run.bin", "./run", "d/../run.bin"}) {
        const Outcome second = w.run(kLong + " -o " + name);
        CHECK(second.status == 1);
        CHECK(second.err.find("process " + std::to_string(first.pid())) != std::string::npos);
    }
    CHECK(w.run("train_gpt -y -o run").status == 1);
    // Nor does another program write what it will write, though it is not there yet.
    w.ok(kTiny + " -o other");
    const std::string owner = "process " + std::to_string(first.pid());
    for (const std::string name : {"run.bin", "run.state.1.bin", "run.log.2.jsonl", "run.toml", "./run.bin"})
        for (const std::string line : {"fold other.bin ", "infer other.bin --dump "}) {
            const Outcome refused = w.run(line + name);
            CHECK(refused.status == 1);
            CHECK_MESSAGE(refused.err.find("'" + name + "' belongs to a run that is going on, " + owner) !=
                              std::string::npos,
                          refused.err);
            CHECK(!fs::exists(w.at(name)));
        }
    for (const std::string name : {"run.folded.bin", "run.1.bin", "run", "run.old.bin", "xrun.bin", "run.states.bin"}) {
        w.ok("fold other.bin " + name);
        fs::remove(w.at(name));
    }
    first.send(SIGKILL);
    first.finish();
    CHECK(fs::exists(lock_path(w.at("run.bin"))));
    w.ok(kTiny + " -o run");  // the dead one holds nothing
    CHECK(!fs::exists(lock_path(w.at("run.bin"))));
    // Through a link, it is the run that the link leads to.
    fs::create_symlink("run.bin", w.at("link.bin"));
    const RunLock lock(w.at("run.bin"));
    CHECK(w.run(kTiny + " -o link").status == 1);
}

TEST_CASE("run files: a signal that comes before the training leaves no lock") {
    const Workplace w;
    w.ok(kTiny + " -o run");
    fs::create_symlink("run.bin", w.at("link.bin"));
    for (const int signal : {SIGINT, SIGTERM, SIGHUP})
        for (const std::string name : {"run.bin", "link.bin"}) {
            const pid_t child = fork();
            if (child == 0) {
                const RunLock lock(w.at(name));
                for (const std::string& locked : {std::string("run.bin"), name})
                    if (!fs::exists(lock_path(w.at(locked)))) _exit(1);
                raise(signal);
                _exit(2);
            }
            int status = 0;
            waitpid(child, &status, 0);
            CHECK((WIFSIGNALED(status) && WTERMSIG(status) == signal));
            for (const std::string locked : {"run.bin", "link.bin"}) CHECK(!fs::exists(lock_path(w.at(locked))));
        }
}

TEST_CASE("run files: a run whose folder was moved takes nothing from the one that has its name now") {
    const Workplace w;
    const auto move_away = [&](const std::string& to) {
        fs::rename(w.at("d"), w.at(to)), fs::create_directory(w.at("d"));
    };
    fs::create_directory(w.at("d"));
    const std::string model = w.at("d/run.bin");
    {
        RunLock first(model);
        CHECK(!first.retake());
        move_away("d1");
        {
            const RunLock second(model);
            CHECK(contains(error_of([&] { first.retake(); }), "another run, process"));
        }
        CHECK(first.retake());
        CHECK(!first.retake());
        move_away("d2");
        write_file(lock_path(model), "a third one's");
    }
    CHECK(read_file(lock_path(model)) == "a third one's");
    fs::remove(lock_path(model));
    Program first(w.path, w.command(kLong + " -o d/run"));
    REQUIRE(first.wait_until([](const std::string& text) { return text.find("step ") != std::string::npos; }));
    while (read_file(log_path(model)).size() < 100) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    move_away("d3");
    w.ok(kTiny + " -o d/run");
    const auto second = run_files(w, "d/run");
    first.send(SIGTERM);
    CHECK(first.finish().status == 128 + SIGTERM);
    CHECK(run_files(w, "d/run.old", "d/run") == second);
    CHECK(!fs::exists(lock_path(model)));
}

TEST_CASE("run files: what is no lock or temporary file of a run and has the name of one stays as it is") {
    const Workplace w;
    const std::string lock = w.at("m.tapernorm-lock");
    fs::copy_file(w.at("corpus.txt"), lock);
    for (const std::string& line : {kTiny, kTrain + kShape + " -i m.tapernorm-lock", std::string("train_gpt -y")})
        w.refused(line + " -o m", {"--out", "m.tapernorm-lock", "no lock of a run", "move it away"});
    fs::remove(lock);
    write_file(w.at("number"), "12\n"), write_file(w.at("empty"), "");
    for (const std::string linked : {"corpus.txt", "number", "empty"}) {
        for (const std::string name : {"m.tapernorm-lock", "m.bin.tapernorm-tmp", "m.state.bin.tapernorm-tmp"}) {
            fs::create_hard_link(w.at(linked), w.at(name));
            w.refused(kTiny + " -v 0 -o m", {name, name.ends_with("-tmp") ? "remove what is there" : "move it away"});
            fs::remove(w.at(name));
        }
    }
    write_file(lock, "12\n");
    w.ok(kTiny + " -o m");
    CHECK(!fs::exists(lock));
}

TEST_CASE("claims: no program writes what it reads, by whatever name") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o base");
    w.ok(kTiny + " -o m");
    w.ok("fold m.bin folded.bin");
    write_token_shard(w.at("part_1.bin"), std::vector<uint16_t>(900, 7));
    write_token_shard(w.at("part_2.bin"), std::vector<uint16_t>(900, 8));
    write_file(w.at("prompts.txt"), "Once\n");
    fs::create_hard_link(w.at("folded.bin"), w.at("hard.bin"));
    fs::create_symlink("corpus.txt", w.at("soft.bin"));
    const std::string shards = kTiny + " -n 1 -t 4 --n-embd 8 -i part_*.bin";
    w.refused(shards + " -o part_2", {"--train", "'part_*.bin' also matches 'part_2.bin'"});
    w.refused(kTiny + " -o soft", {"--out", "soft.bin"});
    w.refused(kTrain + " --init base.bin -o base", {"--out", "base.bin"});
    w.refused(kTiny + " -o base --tokenizer base.log.jsonl", {"base.log.jsonl"});
    w.refused(kTiny + " -i m.log.jsonl -o m", {"--out", "m.log.jsonl"});
    w.refused(kTiny + " -j m.toml -o m", {"--out", "m.toml"});
    write_file(w.at("m.tapernorm-log"), read_file(w.at("corpus.txt")));
    w.refused(kTiny + " -i m.tapernorm-log -o m", {"--out", "m.tapernorm-log"});
    fs::remove(w.at("m.tapernorm-log"));
    for (const std::string name : {"m.state.7.bin", "none.state.bin", "m.log.jsonl", "none.log.2.jsonl"}) {
        const std::string part = name.find(".state") != name.npos ? "without .state" : "without .log";
        w.refused("fold m.bin " + name, {"FOLDED", name, part});
        w.refused("infer m.bin -n 1 --dump " + name, {"--dump", name});
    }
    fs::copy_file(w.at("m.bin"), w.at("m2.tapernorm-tmp"));
    w.refused("infer m2.tapernorm-tmp -n 1 --dump m2", {"'m2'", "m2.tapernorm-tmp", "is read by this program"});
    w.refused("fold m2.tapernorm-tmp m2", {"'m2'", "m2.tapernorm-tmp", "is read by this program"});
    fs::remove(w.at("m2.tapernorm-tmp"));
    write_token_shard(w.at("part.state.1.bin"), std::vector<uint16_t>(900, 9));
    w.refused(kTiny + " -n 1 -t 4 --n-embd 8 -i part.state.1.bin -o part", {"--out", "part.state.1.bin"});
    w.refused(kTiny + " -i data.* -o data", {"'data.*' also matches 'data.bin'"});
    w.refused(kTiny + " -i data.tapernorm-* -o data", {"data.tapernorm-lock"});
    w.refused("fold m.bin m.bin", {"FOLDED", "m.bin"});
    w.refused("infer folded.bin -n 1 --dump hard.bin", {"--dump", "hard.bin"});
    // Nor what it did not make.
    for (const std::string name : {"m.state.bin", "base.bin", "corpus.txt", "m.log.jsonl", "part_1.bin"}) {
        w.refused("fold m.bin " + name, {"FOLDED", name});
        w.refused("infer folded.bin -n 1 --dump " + name, {"--dump", name});
    }
    w.refused(kTiny + " -o part_1", {"--out", "part_1.bin"});
    w.ok("fold m.bin folded.bin");
    w.ok("infer folded.bin -n 1 --prompt a --dump logits.st");
    w.ok("infer folded.bin -n 1 --prompt b --dump logits.st");
}

TEST_CASE("checkpoints: a gradient that was no number does not end up as a state that cannot be read") {
    const Workplace w;
    const std::string line =
        "train_gpt --n-layer 2 --n-head 1 --n-embd 16 -t 16 -b 2 -v 0 -m 1 -x 60 -u 60 -l 20 -i corpus.txt -o j";
    const Outcome run = w.run(line);
    CHECK(run.status == 0);
    CHECK(run.out.find("| skipped") != std::string::npos);
    CHECK(w.run("train_gpt -y -x 61 -o j").status == 0);
    CHECK(metadata_of(w.at("j.state.bin"), "step") == "61");
}

TEST_CASE("checkpoints: parameters that are not finite end the run, and the checkpoint before them stays") {
    const Workplace w;
    w.ok(kTiny);
    const auto before = run_files(w, "model");
    for (const std::string name : {"model", "fresh"}) {  // found before a checkpoint, on the way or at the end
        const Outcome outcome =
            w.run(kTiny + " -u 0 -l 1e300 -o " + name + (name == "model" ? " -n 1" : " -x 1 --gate-mode norm"));
        CHECK(outcome.status == 1);
        CHECK_MESSAGE(outcome.err.find("train_gpt: error: step 1: the parameters are not finite") == 0, outcome.err);
        CHECK(outcome.err.find('\n') + 1 == outcome.err.size());
    }
    CHECK(run_files(w, "model") == before);
    CHECK(!fs::exists(w.at("fresh.bin")));
}

TEST_CASE("checkpoints: -y falls back to the state before one that is whole and cannot be loaded") {
    const Workplace w, whole;
    w.ok(kTiny + " -n 2"), whole.ok(kTiny);
    const SafetensorsFile state(w.at("model.state.bin"), FileUse::own);
    const std::vector<std::pair<std::string, float>> damages = {{"transformer.wte.weight", NAN},
                                                                {"m.transformer.wpe.weight", NAN},
                                                                {"transformer.wpe.weight", INFINITY}};
    for (const auto& [name, value] : damages) {
        std::vector<TensorOut> tensors;
        std::vector<std::string> memory;
        for (const TensorEntry& e : state.entries())
            memory.emplace_back(reinterpret_cast<const char*>(state.data(e)), e.end - e.begin);
        for (size_t i = 0; i < memory.size(); i++) {
            const TensorEntry& e = state.entries()[i];
            if (e.name == name && e.dtype == Dtype::F32) std::memcpy(memory[i].data() + 4, &value, 4);
            const double wide = value;
            if (e.name == name && e.dtype == Dtype::F64) std::memcpy(memory[i].data() + 8, &wide, 8);
            tensors.push_back({e.name, e.dtype, e.shape, memory[i].data()});
        }
        const Workplace damaged;
        for (const auto& entry : fs::directory_iterator(w.path))
            fs::copy(entry.path(), damaged.path, fs::copy_options::overwrite_existing);
        write_safetensors(damaged.at("model.state.bin"), state.metadata(), tensors, {.checksum = true});
        const Outcome resumed = damaged.run("train_gpt -y");
        CAPTURE(resumed.err);
        CHECK(resumed.status == 0);
        CHECK(resumed.err.find("model.state.1.bin") != std::string::npos);
        CHECK(resumed.err.find(name) != std::string::npos);
        CHECK(model_in(damaged.at("model.bin")) == model_in(whole.at("model.bin")));
    }
}

TEST_CASE("checkpoints: paths with any bytes in them come back from the state") {
    for (const std::string name : {"a\nb", "gr\xfc\xdf", "50%25", "q'\"\\q", "Ü"}) {
        const Workplace w;
        fs::rename(w.at("corpus.txt"), w.at(name + ".txt"));
        std::vector<std::string> command =
            w.command("train_gpt -b 2 -x 4 --gate-warmup 1 --gate-end 3" + kShape, {"-i", name + ".txt", "-o", name});
        CAPTURE(name);
        CHECK(run_program_in(w.path, command).status == 0);
        const Outcome resumed = run_program_in(w.path, w.command("train_gpt -y -x 6 -o", {name}));
        CHECK_MESSAGE(resumed.status == 0, resumed.err);
        CHECK(metadata_of(w.at(name + ".state.bin"), "step") == "6");
        if (name == "gr\xfc\xdf") continue;  // no text of TOML: --config says so
        const Outcome again =
            run_program_in(w.path, w.command("train_gpt -o other --config", {name + ".toml", "-i", name + ".txt"}));
        CHECK_MESSAGE(again.status == 0, again.err);
    }
    for (const std::string text : {"", "plain", "a\nb", "100%", "%41", "\xff\x01%"}) {
        CHECK(unescaped(escaped(text)) == text);
        CHECK(escaped(text).find_first_of("\n\xff") == std::string::npos);
    }
}

TEST_CASE("checkpoints: -y does not need the folder of the tokenizer") {
    const Workplace w, whole;
    for (const Workplace* in : {&w, &whole}) {
        write_vocabulary(in->at("words"));
        in->ok(
            "train_gpt -i corpus.txt -b 2 -x 4 --gate-warmup 1 --gate-end 3 --tokenizer words -t 8 --n-layer 1 --n-embd 16 --n-head 2");
    }
    fs::remove_all(w.at("words"));
    w.ok("train_gpt -y -x 6"), whole.ok("train_gpt -y -x 6");
    CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
}

TEST_CASE("checkpoints: -y says what is not as it was") {
    const Workplace w;
    w.ok(kTiny + " -o m");
    const std::string corpus = read_file(w.at("corpus.txt"));
    std::string changed = corpus;
    changed[100] = changed[100] == 'x' ? 'y' : 'x';
    write_file(w.at("corpus.txt"), changed);
    CHECK(w.run("train_gpt -y -x 8 -k constant -o m").err.find("warning: --train: 'corpus.txt' is not what") == 0);
    write_file(w.at("corpus.txt"), changed + changed);
    const Outcome longer = w.run("train_gpt -y -x 9 -k constant -o m");
    CHECK(longer.err.find("warning: --train: ") != std::string::npos);
    CHECK(longer.err.find("warning: --val: ") != std::string::npos);
    // The rate of a longer run.
    write_file(w.at("corpus.txt"), corpus);
    w.ok(kTiny + " -o n -x 20");
    const std::string out = w.ok("train_gpt -y -o n -x 4000");
    const size_t at = out.find("to go on at the old rate:");
    REQUIRE(at != std::string::npos);
    w.ok(kTiny + " -o n2 -x 20");
    const std::string flags = out.substr(at + 25, out.find('\n', at) - at - 25);
    CHECK(flags.find("-k constant -u 0") != std::string::npos);
    CHECK(w.ok("train_gpt -y -o n2 -x 4000 " + flags).find("at the next") == std::string::npos);
    const double before = read_log(w.at("n2.log.jsonl"))[19].at("lr"),
                 after = read_log(w.at("n2.log.jsonl"))[20].at("lr");
    CHECK(after == doctest::Approx(before).epsilon(0.01));
    // Another instruction set.
    if (best_isa() == Isa::base) return;
    w.ok(kTiny + " -o i");
    setenv("TAPERNORM_ISA", "base", 1);
    CHECK(w.run("train_gpt -y -o i -x 8 -k constant").err.find("computed with") != std::string::npos);
    unsetenv("TAPERNORM_ISA");
}

TEST_CASE("run files: a run's id depends on the numbers of the model that --init names, not only on its name") {
    const Workplace w;
    std::vector<std::string> ids;
    for (const std::string base : {"1", "2", "1"}) {
        w.ok(kTiny + " -g norm -x 1 --gate-warmup 0 -v 0 --overwrite -o base.bin --seed " + base);
        w.ok(kTrain + " --init base.bin --overwrite -o run.bin");
        ids.push_back(run_of_log(w.at("run.log.jsonl")));
    }
    CHECK(ids[0] != "");
    CHECK(ids[0] != ids[1]);
    CHECK(ids[0] == ids[2]);
}

TEST_CASE("models: a flipped byte is noticed, and so is a model that is older than its state") {
    const Workplace w;
    w.ok(kTiny + " -x 6 -n 3 -g norm");
    const std::string model = read_file(w.at("model.bin"));
    for (const double part : {0.4, 0.7, 0.999}) {
        std::string damaged = model;
        damaged[size_t(part * double(model.size()))] ^= 1;
        write_file(w.at("bad.bin"), damaged);
        w.refused("fold bad.bin folded.bin", {"bad.bin", "checksum"});
        w.refused("infer bad.bin -n 1", {"bad.bin", "checksum"});
        CHECK(run_program_in(w.path, {"train_gpt", "export", "bad.bin", "folder"}).err.find("checksum") !=
              std::string::npos);
        w.refused(kTrain + " --init bad.bin -o new", {"bad.bin", "checksum"});
    }
    const std::string older = model;
    w.ok("train_gpt -y -x 9 -k constant");
    CHECK(w.ok("infer model.bin -n 1 --prompt a").find("update") == std::string::npos);
    write_file(w.at("model.bin"), older);
    for (const std::string line : {"infer model.bin -n 1 --prompt a", "fold model.bin folded.bin"}) {
        const Outcome outcome = w.run(line);
        CHECK(outcome.status == 0);
        CHECK(outcome.err.find("warning: 'model.bin' (update 6)") == 0);
        CHECK(contains(outcome.err, "(update 9); ./train_gpt -y -o model.bin writes that\n"));
    }
    w.ok("train_gpt -y");
    CHECK(w.run("infer model.bin -n 1 --prompt a").err == "");
    w.ok(kTiny + " -x 9 --seed 2 -o other");
    write_file(w.at("model.bin"), read_file(w.at("other.bin")));
    const std::string err = w.run("infer model.bin -n 1 --prompt a").err;
    CHECK_MESSAGE(
        contains(err,
                 "'model.state.bin' (update 9), nor the one before it: it may be of another run; to have that "
                 "model, move this one away, then ./train_gpt -y -o model.bin\n"),
        err);
    w.refused("train_gpt -y -o model.bin", {"model.bin", "move it away"});
    fs::rename(w.at("model.bin"), w.at("away.bin"));
    w.ok("train_gpt -y -o model.bin");
    CHECK(w.run("infer model.bin -n 1 --prompt a").err == "");
}

// A new file is often given the inode number of one that is gone; another name of it has the same number for certain.
TEST_CASE("claims: a file that is gone claims its number no longer") {
    const TemporaryFolder dir;
    const std::string a = dir / "a", b = dir / "b", c = dir / "c", d = dir / "d";
    write_file(a, "text"), fs::create_hard_link(a, b);
    MappedFile{a};
    CHECK(contains(error_of([&] { claim_output("--out", b); }), "is read by this program"));
    fs::remove(a);
    claim_output("--out", b);
    CHECK(contains(error_of([&] { MappedFile{b}; }), "would be overwritten"));
    fs::create_hard_link(b, c), fs::remove(b);
    MappedFile{c};
    fs::create_hard_link(c, d);
    CHECK(contains(error_of([&] { claim_output("--out", d); }), "as '" + c + "'"));
    fs::remove(c);
    claim_output("--out", d), fs::create_hard_link(d, c);
    CHECK(contains(error_of([&] { MappedFile{c}; }), "'" + d + "' would be overwritten"));
}

TEST_CASE("runs: folders of devices and processes are no places for files") {
    const Workplace w;
    w.refused(kTiny + " -o /dev/fd/77", {"cannot write '/dev/fd/77.bin': in '/proc'", "no files; name another place"});
    w.refused(kTiny + " -o /proc/self/x", {"cannot write '/proc/self/x.bin': in '/proc'"});
    w.refused(kTiny + " -o /dev/stdout.bin", {"cannot write '/dev/stdout.bin': in '/dev' are devices"});
    w.ok(kTiny);
    CHECK(contains(run_program_in(w.path, words("train_gpt export model.bin /dev/x")).err,
                   "cannot write '/dev/x': in '/dev' are devices"));
    w.refused(kTiny + " -o y --tensorboard /dev/x", {"cannot write '/dev/x': in '/dev' are devices"});
    w.refused("fold model.bin /dev/x.bin", {"cannot write '/dev/x.bin': in '/dev' are devices"});
    w.refused("infer model.bin -n 1 --dump /dev/stdout", {"cannot write '/dev/stdout': in '/dev' are devices"});
}

TEST_CASE("runs: a pattern of the corpus that matches the run's own files is refused at once, with advice that works") {
    const Workplace w;
    std::vector<uint16_t> ids(200, 7);
    write_token_shard(w.at("c_1.bin"), ids);
    write_token_shard(w.at("c_2.bin"), ids);
    std::filesystem::create_directory(w.at("d"));
    const std::string flags = " --tokenizer bytes -b 2 -x 2" + kShape;
    for (const std::string& pattern : {std::string("*.bin"), std::string("./*n"), w.at("*.bin"), std::string("?*")})
        w.refused("train_gpt" + flags + " -o run -i " + pattern,
                  {"--train: '", "also matches 'run.", "such as 'train_*.bin'", "another folder"});
    w.refused("train_gpt" + flags + " -o run -i c_1.bin -j r*.state.1.bin",
              {"--val: 'r*.state.1.bin' also matches 'run.st"});
    w.refused("train_gpt" + flags + " -o d/run -i */run.*", {"also matches 'd/run."});
    write_token_shard(w.at("d/c_1.bin"), ids);
    for (const char* board : {"d", "new"})  // which is made later
        w.refused("train_gpt" + flags + " -o run -i */* --tensorboard " + board,
                  {"--train: '*/*' also matches '" + std::string(board) + "/events.out.tfevents.0000000001"});
    w.ok("train_gpt" + flags + " -o d/run -i *.bin --tensorboard d");
    w.ok("train_gpt" + flags + " -o run -i c_*.bin");
    w.refused("train_gpt -y -x 3 -o run -i *.bin", {"also matches 'run.bin', which this run writes"});
    w.ok("train_gpt -y -x 3 -o run");
}

}  // namespace tapernorm::train
