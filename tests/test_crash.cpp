// What can happen to a run from outside: killed at any moment, checkpoints damaged, disks full, folders gone. It always
// resumes from a whole checkpoint, and ends with the bits of a run that nothing happened to.
//
// Clocks that jump are none of these: the programs read no clock but std::chrono::steady_clock, for the rates they print;
// only TensorBoard's files and a model's provenance have the time of day in them, as a label.
#include <doctest/doctest.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "io/safetensors.h"
#include "runtime/random.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "tests/small_disk.h"
#include "train/run_log.h"

namespace tapernorm {

namespace {

// Through all phases of the gate, with a checkpoint after every second update.
const std::string kRun =
    "train_gpt -i corpus.txt -b 2 -x 40 --gate-warmup 10 --gate-end 20 -v 8 -n 2 --skip-loss-z 3" + kShape;

std::string without_times(const std::string& log) {
    std::string lines;
    std::istringstream in(log);
    for (std::string line; std::getline(in, line);) {
        if (line.starts_with("{\"run\"")) continue;  // which depends on how often checkpoints are written
        const size_t begin = line.find(", \"tokens_per_second\": "), end = line.find_first_of(",}", begin + 2);
        if (begin != line.npos) line.erase(begin, end - begin);
        lines += line + "\n";
    }
    return lines;
}

// Goes on after a crash as a user does: with -y where there is a state, else from the start.
std::string next_command(const Workplace& w, const std::string& start) {
    for (const char* state : {"model.state.bin", "model.state.1.bin"})
        if (std::filesystem::exists(w.at(state))) return "train_gpt -y";
    return start;
}

// What must hold after every crash: of the states on the disk, those with a name of their own are whole.
void check_states(const Workplace& w) {
    for (const char* state : {"model.state.bin", "model.state.1.bin"})
        if (std::filesystem::exists(w.at(state))) SafetensorsFile(w.at(state)).verify();
}

void check_same_result(const Workplace& w, const Workplace& whole) {
    CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    CHECK(without_times(read_file(w.at("model.log.jsonl"))) == without_times(read_file(whole.at("model.log.jsonl"))));
    for (const auto& [name, contents] : w.contents()) CHECK_MESSAGE(!name.ends_with(".tapernorm-tmp"), name);
}

}  // namespace

namespace {

// How often one of the three tortures happens: make torture wants TORTURE of them in all, make test a few.
size_t tortures(size_t few) {
    const char* wanted = std::getenv("TORTURE");
    return wanted ? std::stoul(wanted) / 3 : few;
}

// Of the newest whole state on the disk; 0: there is none.
size_t newest_step(const Workplace& w) {
    size_t step = 0;
    for (const char* state : {"model.state.bin", "model.state.1.bin"}) try {
            const SafetensorsFile file(w.at(state));
            file.verify();
            step = std::max<size_t>(step, std::stoul(file.metadata().at("step")));
        } catch (const Error&) {
        }
    return step;
}

// Nothing but warnings, each of one line, and at most one error behind them.
void check_clean(const Outcome& outcome) {
    CAPTURE(outcome.err);
    CHECK((outcome.status == 0 || outcome.status == 1));
    std::istringstream lines(outcome.err);
    size_t errors = 0;
    for (std::string line; std::getline(lines, line);) {
        const bool error = line.starts_with("train_gpt: error: ");
        CHECK((error || line.starts_with("warning: ")));
        CHECK(std::none_of(line.begin(), line.end(), [](char c) { return (c >= 0 && c < 32) || c == 127; }));
        errors += error;
    }
    CHECK(errors == size_t(outcome.status));
    CHECK(outcome.err.find("bad_alloc") == std::string::npos);
}

// Goes on to the end as a user does: with -y where there is a state, from the start where that is refused, without the
// file that is in the way.
void finish(const Workplace& w) {
    Outcome outcome;
    for (std::string command : {next_command(w, kRun), next_command(w, kRun), kRun}) {
        outcome = w.run(command);
        check_clean(outcome);
        if (outcome.status == 0) return;
        if (outcome.err.find("model.toml") != std::string::npos) std::filesystem::remove(w.at("model.toml"));
    }
    CAPTURE(outcome.err);
    CHECK(outcome.status == 0);
}

// Kills a run several times, each after a part of the time that a whole one takes, does something to its files (after), and
// lets it go on; then undisturbed to the end (check).
void kill_runs(size_t kills, uint64_t seed, const std::function<void(const Workplace&, uint64_t attempt)>& after,
               const std::function<void(const Workplace&, const Workplace& whole)>& check) {
    const Workplace whole;
    const auto begin = std::chrono::steady_clock::now();
    whole.ok(kRun);
    std::chrono::duration<double> one_run = std::chrono::steady_clock::now() - begin;
    size_t killed = 0;
    for (uint64_t attempt = 0; killed < kills && attempt < 3 * kills + 10;) {
        const Workplace w;
        size_t confirmed = 0;
        for (int part = 0; part < 3 && killed < kills; part++, attempt++) {
            CAPTURE(attempt);
            Program program(w.path, w.command(next_command(w, kRun)));
            std::this_thread::sleep_for(one_run * random_uniform(seed, kills, attempt) * 0.7);
            program.send(SIGKILL);
            if (program.finish().status == 128 + SIGKILL)
                killed++;
            else
                one_run *= 0.9;                  // what it was measured beside has ended since
            CHECK(newest_step(w) >= confirmed);  // a checkpoint that had its name once is there, or a newer one
            after(w, attempt);
            confirmed = newest_step(w);
        }
        CAPTURE(attempt);
        finish(w);
        check(w, whole);
    }
    CHECK(killed == kills);
}

// What a power cut can leave of a file: its end is missing, or a sector is zeros.
void tear(const std::string& path, uint64_t attempt) {
    constexpr size_t kSector = 512;
    std::string bytes = read_file(path);
    const size_t sectors = (bytes.size() + kSector - 1) / kSector;
    const size_t at = random_bits(3, 0, attempt) % std::max<size_t>(sectors, 1) * kSector;
    if (random_bits(3, 1, attempt) % 2)
        bytes.resize(at);
    else
        std::fill_n(bytes.begin() + std::ptrdiff_t(at), std::min(kSector, bytes.size() - at), '\0');
    write_file(path, bytes);
}

}  // namespace

TEST_CASE("torture: kill -9 at random moments; the run resumes and ends with the bits of an undisturbed one") {
    kill_runs(tortures(10), 1, [](const Workplace& w, uint64_t) { check_states(w); }, check_same_result);
}

TEST_CASE("torture: killed, and the newest file torn; the run ends with the bits of an undisturbed one") {
    const auto tear_newest = [](const Workplace& w, uint64_t attempt) {
        std::string newest;
        std::filesystem::file_time_type time;
        for (const auto& entry : std::filesystem::directory_iterator(w.path))
            if (entry.path().filename() != "corpus.txt" && entry.file_size() > 0 &&
                (newest.empty() || entry.last_write_time() > time))
                newest = entry.path().string(), time = entry.last_write_time();
        if (!newest.empty()) tear(newest, attempt);
    };
    kill_runs(tortures(6), 2, tear_newest, [](const Workplace& w, const Workplace& whole) {
        CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
        // Lines of a torn log may be missing or damaged; what can be read is right.
        const std::string log = without_times(read_file(whole.at("model.log.jsonl")));
        std::istringstream lines(read_file(w.at("model.log.jsonl")));
        for (std::string line; std::getline(lines, line);)
            if (line.find('\0') == line.npos && nlohmann::json::accept(line))
                CHECK_MESSAGE(log.find(without_times(line)) != log.npos, line);
    });
}

namespace {

struct Fault {
    const char* call;
    int error;
};

// Runs a command with the shim of tests/torture in front of the C library: the calls number at .. at + length - 1 of this kind
// fail. at = 0: none. Returns the number of calls, too.
std::pair<Outcome, size_t> run_with_fault(const Workplace& w, const std::string& line, const Fault& fault, size_t at,
                                          size_t length) {
    const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    std::string shim = (folder / "torture_shim.so").string();
    if (!std::filesystem::exists(shim)) shim = (folder.parent_path() / "torture_shim.so").string();
    REQUIRE(std::filesystem::exists(shim));
    std::filesystem::create_symlink(shim, w.at("shim.so"));  // the variable takes no name with a space
    const std::pair<const char*, std::string> variables[] = {{"LD_PRELOAD", "./shim.so"},
                                                             {"TORTURE_CALL", fault.call},
                                                             {"TORTURE_ERROR", std::to_string(fault.error)},
                                                             {"TORTURE_AT", std::to_string(at)},
                                                             {"TORTURE_FOR", std::to_string(length)},
                                                             {"TORTURE_COUNT", w.at("calls")}};
    for (const auto& [name, value] : variables) setenv(name, value.c_str(), 1);
    const Outcome outcome = w.run(line);
    for (const auto& [name, value] : variables) unsetenv(name);
    const std::string calls = read_file(w.at("calls"));  // empty where the program ended by _exit
    std::filesystem::remove(w.at("calls")), std::filesystem::remove(w.at("shim.so"));
    return {outcome, calls.empty() ? at : std::stoul(calls)};
}

// The first call of this kind that a test may fail, from 1. With CUDA, libcudart registers the kernels before main, and uses what
// it allocates unseen: with it, the calls up to those of --version are not ours to answer for.
size_t first_call_of_ours(const char* call) {
    if (std::string(call) != "malloc") return 1;
    const auto [version, calls] = run_with_fault(Workplace(), "train_gpt --version", {call, ENOMEM}, 0, 0);
    REQUIRE(version.status == 0);
    return version.out.find("built with CUDA") == std::string::npos ? 1 : calls + 1;
}

}  // namespace

TEST_CASE(
    "torture: calls of the system that fail: one line each, and the run can go on to the bits of an undisturbed one") {
    constexpr Fault kFaults[] = {{"write", ENOSPC}, {"malloc", ENOMEM}, {"write", EIO},   {"fsync", EIO},
                                 {"rename", EIO},   {"malloc", ENOMEM}, {"open", ENOSPC}, {"write", 0}};
    const Workplace whole, killed;
    whole.ok(kRun);
    Program half(killed.path, killed.command(kRun));  // some runs begin with the checkpoints of one that was killed
    half.wait_until([&](const std::string&) { return newest_step(killed) >= 10; });
    half.send(SIGKILL), half.finish();
    std::map<std::string, std::pair<size_t, size_t>> calls;  // the first that may fail, and how many there are
    const size_t wanted = tortures(8);
    for (uint64_t attempt = 0, happened = 0; happened < wanted; attempt++) {
        REQUIRE(attempt < 4 * wanted);
        const Fault& fault = kFaults[attempt % std::size(kFaults)];
        if (!calls.count(fault.call))
            calls[fault.call] = {first_call_of_ours(fault.call), run_with_fault(Workplace(), kRun, fault, 0, 0).second};
        const auto& [first, number] = calls[fault.call];
        const size_t at = first + random_bits(4, 0, attempt) % (number - first + 1),
                     length = attempt / std::size(kFaults) % 2 ? 1 : 20;
        CAPTURE(fault.call);
        CAPTURE(fault.error);
        CAPTURE(at);
        CAPTURE(length);
        const Workplace w;
        const bool resumed = random_bits(4, 1, attempt) % 2;
        CAPTURE(resumed);
        if (resumed)
            std::filesystem::copy(killed.path, w.path,
                                  std::filesystem::copy_options::recursive |
                                      std::filesystem::copy_options::overwrite_existing);
        const size_t confirmed = newest_step(w);
        const auto [outcome, reached] = run_with_fault(w, next_command(w, kRun), fault, at, length);
        happened += reached >= at;
        check_clean(outcome);
        check_states(w);
        CHECK(newest_step(w) >= confirmed);
        if (outcome.status == 0) CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
        finish(w);
        if (outcome.err.find("cannot write the log") == std::string::npos)
            check_same_result(w, whole);
        else
            CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    }
}

TEST_CASE("torture: memory that ends before main, or while folders are read, is one line") {
    const Workplace w;
    w.ok(kTiny);
    const auto [done, calls] = run_with_fault(w, "train_gpt -y", {"malloc", ENOMEM}, 0, 0);
    CHECK(done.status == 0);
    const size_t first = first_call_of_ours("malloc");
    constexpr size_t kDensely = 1600;  // up to where the files have been found
    REQUIRE(calls > first + kDensely);
    for (size_t at = first; at < calls; at += at < first + kDensely ? 5 : 7919) {
        CAPTURE(at);
        check_clean(run_with_fault(w, "train_gpt -y", {"malloc", ENOMEM}, at, 1).first);
    }
}

#if defined(__x86_64__)
namespace {

bool changes_names(uint64_t call) {
    for (uint64_t one : {SYS_rename, SYS_renameat, SYS_renameat2, SYS_unlink, SYS_unlinkat})
        if (call == one) return true;
    return false;
}

// System calls that change files: between two of them lies every state of the disk that a crash can leave. Of several writes
// in a row, the first stands for all.
bool changes_files(uint64_t call, bool& writing) {
    const bool was_writing = std::exchange(writing, call == SYS_write);
    if (call == SYS_write) return !was_writing;
    for (uint64_t one : {SYS_openat, SYS_open, SYS_ftruncate, SYS_fsync, SYS_fchmod})
        if (call == one) return true;
    return changes_names(call);
}

// Runs a command and kills it at the entry of its call number `at` that changes files (names: that renames or removes), counted from the first checkpoint's
// temporary file. False where the program ended before; `traced` is false where the system does not allow this.
bool kill_at_call(const Workplace& w, const std::string& line, size_t at, bool& traced, bool names = false) {
    const std::vector<std::string> command = w.command(line);
    const std::string path = program_path(command[0]);
    const pid_t child = fork();
    if (child == 0) {
        const int nowhere = open("/dev/null", O_WRONLY);
        if (dup2(nowhere, 1) < 0 || dup2(nowhere, 2) < 0) _exit(126);
        std::vector<char*> argv;
        for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
        argv.push_back(nullptr);
        if (chdir(w.path.c_str()) != 0 || ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(125);
        execv(path.c_str(), argv.data());
        _exit(127);
    }
    int status = 0;
    size_t calls = 0;
    bool entry = false, writing = false;
    waitpid(child, &status, 0);  // the stop after its exec
    traced = WIFSTOPPED(status);
    if (traced) ptrace(PTRACE_SYSCALL, child, nullptr, nullptr), waitpid(child, &status, 0);
    while (WIFSTOPPED(status)) {
        struct user_regs_struct registers{};
        ptrace(PTRACE_GETREGS, child, nullptr, &registers);
        if (WSTOPSIG(status) == SIGTRAP && (entry = !entry) &&
            (names ? changes_names(registers.orig_rax) : changes_files(registers.orig_rax, writing))) {
            const bool saving = calls > 0 || std::filesystem::exists(w.at("model.state.bin.tapernorm-tmp"));
            if (saving && calls++ == at) kill(child, SIGKILL);
        }
        ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);  // fails where it is dead already, which waitpid says next
        if (waitpid(child, &status, 0) < 0) break;
    }
    return WIFSIGNALED(status);
}

}  // namespace

TEST_CASE("crash: killed at every system call of its checkpoints") {
    const std::string line = kTiny + " -x 4 -n 2";
    const Workplace whole;
    whole.ok(line);
    size_t at = 0;
    for (bool killed = true; killed; at++) {
        const Workplace w;
        bool traced = false;
        killed = kill_at_call(w, line, at, traced);
        if (!traced) {
            MESSAGE("skipped: this system does not let a process be traced");
            return;
        }
        CAPTURE(at);
        check_states(w);
        w.run(next_command(w, line));
        check_same_result(w, whole);
        REQUIRE(at < 1000);
    }
    CHECK(at > 25);  // two checkpoints of two files each
}

TEST_CASE("crash: killed at every renaming of a first checkpoint that replaces an earlier run") {
    const std::string line = kTiny + " -l 0.02 --seed 9";
    const Workplace earlier;
    earlier.ok(kTiny + " -n 2");
    write_file(earlier.at("model.log.1.jsonl"), "as it was\n");
    const std::string run = SafetensorsFile(earlier.at("model.state.bin")).metadata().at("run");
    for (const std::string how : {" --overwrite", ""}) {
        size_t at = 0, resumed = 0;
        for (bool killed = true; killed; at++) {
            const Workplace w;
            std::filesystem::copy(earlier.path, w.path,
                                  std::filesystem::copy_options::overwrite_existing |
                                      std::filesystem::copy_options::recursive);
            bool traced = false;
            killed = kill_at_call(w, line + how, at, traced, true);
            if (!traced) return;
            CAPTURE(how);
            CAPTURE(at);
            const bool has_state = std::filesystem::exists(w.at("model.state.bin"));
            const Outcome again = w.run("train_gpt -y");
            CAPTURE(again.err);
            CHECK((again.status == 0) == has_state);
            if (has_state) {
                const std::string now = SafetensorsFile(w.at("model.state.bin")).metadata().at("run");
                CHECK(train::run_of_log(w.at("model.log.jsonl")) == now);
                resumed += now == run;
                if (now == run) CHECK(model_in(w.at("model.bin")) == model_in(earlier.at("model.bin")));
            }
            if (how == "") {
                CHECK(w.run(kTiny + " -l 0.03").status == 0);
                size_t together = 0;
                for (const std::string name : {"model.old", "model.old2"}) {
                    bool all = std::filesystem::exists(w.at(name + ".bin"));
                    all = all && model_in(w.at(name + ".bin")) == model_in(earlier.at("model.bin"));
                    for (const std::string end : {".state.bin", ".state.1.bin", ".log.1.jsonl", ".log.jsonl", ".toml"})
                        all = all && read_file(w.at(name + end)) == read_file(earlier.at("model" + end));
                    together += all;
                }
                CHECK(together == 1);
            } else if (!killed) {
                CHECK(!std::filesystem::exists(w.at("model.log.1.jsonl")));
            }
            REQUIRE(at < 1000);
        }
        CHECK(resumed > 1);
        CHECK(at > 5);
    }
}
#endif

TEST_CASE("crash: a damaged newest checkpoint falls back to the one before it, and says so") {
    const Workplace whole, w;
    whole.ok(kTiny + " -k constant -u 1 -n 2");
    w.ok(kTiny + " -k constant -u 1 -n 2 -x 5");
    const std::string before = SafetensorsFile(w.at("model.state.1.bin")).metadata().at("step");
    CHECK(before == "4");
    std::string state = read_file(w.at("model.state.bin"));
    for (const size_t at : {size_t(3), size_t(200), state.size() / 2, state.size() - 3}) {
        const std::string path = w.at("model.state.bin");
        write_file(path, state.substr(0, at) + char(state[at] ^ 4) + state.substr(at + 1));
        const Outcome outcome = w.run("train_gpt -y -x 6");
        CAPTURE(at);
        CHECK(outcome.status == 0);
        CHECK_MESSAGE(outcome.err.starts_with("warning: "), outcome.err);
        CHECK(outcome.err.find("resuming from the checkpoint before it, 'model.state.1.bin'\n") != std::string::npos);
        CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
        check_same_result(w, whole);
        std::filesystem::remove(w.at("model.state.bin"));
    }
    // Alone, it is an error, and so it is with others like it.
    w.ok(kTiny + " -n 2");
    for (const char* name : {"model.state.bin", "model.state.1.bin"}) {
        std::string damaged = read_file(w.at(name));
        damaged[damaged.size() - 9] ^= 1;
        write_file(w.at(name), damaged);
    }
    w.refused("train_gpt -y", {"'model.state.bin' is damaged, or another program saved it again: expected the checksum",
                               "restore a copy", "nor can 'model.state.1.bin' be used", "start afresh without -y"});
    // Two that are damaged are both named where a third is whole.
    w.ok(kTiny + " --overwrite --keep 3 -n 2");
    for (const char* name : {"model.state.bin", "model.state.1.bin"}) {
        std::string damaged = read_file(w.at(name));
        damaged[damaged.size() - 9] ^= 1;
        write_file(w.at(name), damaged);
    }
    const std::string said = w.run("train_gpt -y").err;
    CHECK_MESSAGE(said.find("; nor can 'model.state.1.bin' be used; resuming from the checkpoint before them, "
                            "'model.state.2.bin'\n") != std::string::npos,
                  said);
    w.ok(kTiny + " --keep 1 -n 2");
    CHECK(!std::filesystem::exists(w.at("model.state.1.bin")));
    state = read_file(w.at("model.state.bin"));
    write_file(w.at("model.state.bin"), state.substr(0, state.size() - 9) + "x" + state.substr(state.size() - 8));
    w.refused("train_gpt -y", {"model.state.bin", "damaged", "checksum"});
}

TEST_CASE("crash: a state that claims to be of a folded model is refused") {
    const Workplace w;
    w.ok(kTiny);
    const std::string path = w.at("model.state.bin");
    const SafetensorsFile state(path);
    std::map<std::string, std::string> metadata = state.metadata();
    metadata["folded"] = "internal", metadata.erase("checksum");
    std::vector<TensorOut> tensors;
    for (const TensorEntry& e : state.entries()) tensors.push_back({e.name, e.dtype, e.shape, state.data(e)});
    write_safetensors(path, metadata, tensors, {.checksum = true});
    w.refused("train_gpt -y", {"model.state.bin", "\"folded\"", "expected none", "internal"});
}

TEST_CASE("crash: a checkpoint that cannot be written is a warning in the middle of a run") {
    const Workplace w;
    const std::string line = kRun + " -x 1000000 --gate-end 50000 -v 0 -n 100 -o out/model.bin";
    CHECK(w.run(line).status == 1);  // no such folder
    std::filesystem::create_directory(w.at("out"));
    Program program(w.path,
                    {"/bin/sh", "-c",
                     "exec '" + program_path("train_gpt") + "'" + line.substr(9) + " --device cpu --threads 1 2>&1"});
    REQUIRE(program.wait_until([&](const std::string&) { return std::filesystem::exists(w.at("out/model.bin")); }));
    std::filesystem::rename(w.at("out"), w.at("gone"));
    REQUIRE(program.wait_until(
        [](const std::string& out) { return contains(out, "\nwarning: no checkpoint after update "); }));
    std::filesystem::rename(w.at("gone"), w.at("out"));
    program.send(SIGTERM);
    CHECK(program.finish().status == 128 + SIGTERM);
}

TEST_CASE("crash: a read-only folder is refused before the work, and can be read from") {
    const Workplace w;
    const Disk disk(w.at("disk"));
    if (!disk.mounted) return;
    w.ok(kTiny + " -k constant -u 1 -o disk/model.bin");
    REQUIRE(disk.make_read_only());
    w.refused("train_gpt -y -o disk/model.bin -x 7", {"disk/model.bin", "Read-only file system"});
    w.refused(kTiny + " -o disk/other.bin", {"disk/other.bin", "Read-only file system"});
    w.refused("fold disk/model.bin disk/folded.bin", {"disk/folded.bin", "Read-only file system"});
    w.refused("infer disk/model.bin -n 1 --dump disk/logits.bin", {"disk/logits.bin", "Read-only file system"});
    w.ok("fold disk/model.bin folded.bin");
    w.ok("infer disk/model.bin -n 1");
}

TEST_CASE("crash: the corpus and the model may be removed under a run") {
    const Workplace whole, w;
    const std::string line =
        "train_gpt -i corpus.txt -b 2 -x 500 --gate-warmup 100 --gate-end 200 -v 1 -m 1 -n 100" + kShape;
    whole.ok(line);
    Program program(w.path, w.command(line));
    REQUIRE(program.wait_until([&](const std::string&) { return std::filesystem::exists(w.at("model.bin")); }));
    for (const char* file : {"corpus.txt", "model.bin", "model.state.bin"}) std::filesystem::remove(w.at(file));
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 0);
    CHECK(outcome.err == "");
    CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
}

}  // namespace tapernorm
