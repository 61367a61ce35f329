// What can happen to a run from outside: killed at any moment, checkpoints damaged, disks full, folders gone. It always
// resumes from a whole checkpoint, and ends with the bits of a run that nothing happened to.
//
// Clocks that jump are none of these: the programs read no clock but std::chrono::steady_clock, for the rates they print;
// only TensorBoard's files have the time of day in them, as a label.
#include <doctest/doctest.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "io/safetensors.h"
#include "runtime/random.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

// Through all phases of the gate, with a checkpoint after every second update.
const std::string kRun =
    "train_gpt -i corpus.txt -b 2 -x 40 --gate-warmup 10 --gate-end 20 -v 8 -n 2 --skip-loss-z 3" + kShape;

std::string without_times(const std::string& log) {
    std::string lines;
    std::istringstream in(log);
    for (std::string line; std::getline(in, line);) {
        const size_t begin = line.find(", \"tokens_per_second\": "), end = line.find_first_of(",}", begin + 2);
        lines += line.erase(begin, end - begin) + "\n";
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
    CHECK(read_file(w.at("model.bin")) == read_file(whole.at("model.bin")));
    CHECK(without_times(read_file(w.at("model.log.jsonl"))) == without_times(read_file(whole.at("model.log.jsonl"))));
    for (const auto& [name, contents] : w.contents()) CHECK_MESSAGE(!name.ends_with(".tmp"), name);
}

}  // namespace

TEST_CASE("crash: kill -9 at random moments; the run resumes and ends with the bits of an undisturbed one") {
    const char* wanted = std::getenv("CRASH_KILLS");  // make crash-test: 200
    const size_t kills = wanted ? std::stoul(wanted) : 10;
    const Workplace whole;
    const auto begin = std::chrono::steady_clock::now();
    whole.ok(kRun);
    const std::chrono::duration<double> one_run = std::chrono::steady_clock::now() - begin;
    size_t killed = 0;
    for (uint64_t attempt = 0; killed < kills && attempt < 3 * kills + 10;) {
        const Workplace w;
        std::string command = kRun;
        // Several kills a run, each after a part of the time that a whole run takes; then undisturbed to the end.
        for (int part = 0; part < 3 && killed < kills; part++, attempt++) {
            Program program(w.path, w.command(command));
            std::this_thread::sleep_for(one_run * random_uniform(1, kills, attempt) * 0.7);
            program.send(SIGKILL);
            if (program.finish().status == 128 + SIGKILL) killed++;
            check_states(w);
            command = next_command(w, kRun);
        }
        CAPTURE(attempt);
        const Outcome last = w.run(command);
        CAPTURE(last.err);
        CHECK(last.status == 0);  // a kill between two renames leaves no newest state, which is said in one line
        CHECK((last.err == "" || last.err.starts_with("warning: 'model.state.bin' is missing; resuming from")));
        check_same_result(w, whole);
    }
    CHECK(killed == kills);
}

#if defined(__x86_64__)
namespace {

// System calls that change files: between two of them lies every state of the disk that a crash can leave. Of several writes
// in a row, the first stands for all.
bool changes_files(uint64_t call, bool& writing) {
    const bool was_writing = std::exchange(writing, call == SYS_write);
    if (call == SYS_write) return !was_writing;
    for (uint64_t one : {SYS_openat, SYS_open, SYS_rename, SYS_renameat, SYS_renameat2, SYS_unlink, SYS_unlinkat,
                         SYS_ftruncate, SYS_fsync, SYS_fchmod})
        if (call == one) return true;
    return false;
}

// Runs a command and kills it at the entry of its call number `at` that changes files, counted from the first checkpoint's
// temporary file. False where the program ended before; `traced` is false where the system does not allow this.
bool kill_at_call(const Workplace& w, const std::string& line, size_t at, bool& traced) {
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
        if (WSTOPSIG(status) == SIGTRAP && (entry = !entry) && changes_files(registers.orig_rax, writing)) {
            const bool saving = calls > 0 || std::filesystem::exists(w.at("model.state.bin.tmp"));
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
    // Alone, it is an error.
    w.ok(kTiny + " --keep 1 -n 2");
    CHECK(!std::filesystem::exists(w.at("model.state.1.bin")));
    state = read_file(w.at("model.state.bin"));
    write_file(w.at("model.state.bin"), state.substr(0, state.size() - 9) + "x" + state.substr(state.size() - 8));
    w.refused("train_gpt -y", {"model.state.bin", "damaged", "checksum"});
}

TEST_CASE("crash: a checkpoint that cannot be written is a warning in the middle of a run, an error at its end") {
    const Workplace w;
    Program program(w.path, w.command(kRun + " -x 100000 --gate-end 50000 -v 0 -n 100 -o out/model.bin"));
    CHECK(program.finish().status == 1);  // no such folder
    std::filesystem::create_directory(w.at("out"));
    Program moved(w.path, w.command(kRun + " -x 100000 --gate-end 50000 -v 0 -n 100 -o out/model.bin"));
    REQUIRE(moved.wait_until([&](const std::string&) { return std::filesystem::exists(w.at("out/model.bin")); }));
    std::filesystem::rename(w.at("out"), w.at("gone"));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    moved.send(SIGTERM);
    const Outcome outcome = moved.finish();
    CHECK(outcome.status == 1);
    CHECK_MESSAGE(outcome.err.find("warning: no checkpoint after update ") == 0, outcome.err);
    const size_t last = outcome.err.rfind('\n', outcome.err.size() - 2) + 1;
    CHECK_MESSAGE(outcome.err.substr(last).starts_with("train_gpt: error: cannot write 'out/model.state.bin'"),
                  outcome.err);
}

namespace {

// A small disk of its own in a folder, for as long as this lives.
struct Disk {
    std::string path;
    bool mounted;

    explicit Disk(const std::string& path_) : path(path_) {
        std::filesystem::create_directory(path);
        mounted = mount("tapernorm-test", path.c_str(), "tmpfs", 0, "size=2m") == 0;
        if (!mounted) MESSAGE("skipped: this process may not mount a file system (", std::strerror(errno), ")");
    }
    ~Disk() {
        if (mounted) umount2(path.c_str(), MNT_DETACH);
    }
    bool make_read_only() const { return mount(nullptr, path.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0; }
};

}  // namespace

TEST_CASE("crash: a disk that is full leaves the older files whole; with room again, the run continues") {
    const Workplace whole, w;
    const Disk disk(w.at("disk"));
    if (!disk.mounted) return;
    const std::string line = kTiny + " -k constant -u 1 -n 2 ";
    whole.ok(line + "-x 12");
    w.ok(line + "-o disk/model.bin");
    std::map<std::string, std::string> before;
    for (const char* file : {"model.bin", "model.state.bin", "model.state.1.bin"})
        before[file] = read_file(disk.path + "/" + file);
    // Room for the log, not for a model.
    const std::string filler = disk.path + "/filler";
    std::ofstream(filler, std::ios::binary) << std::string(4 << 20, 'x');
    std::filesystem::resize_file(filler, std::filesystem::file_size(filler) - 16384);
    REQUIRE(before["model.bin"].size() > 16384);

    const Outcome outcome = w.run("train_gpt -y -o disk/model.bin -x 12");
    CHECK(outcome.status == 1);
    CHECK_MESSAGE(outcome.err.starts_with("warning: no checkpoint after update 8: cannot write"), outcome.err);
    CHECK_MESSAGE(outcome.err.find("\ntrain_gpt: error: cannot write 'disk/model.state.bin'") != std::string::npos,
                  outcome.err);
    CHECK(outcome.err.find("No space left on device") != std::string::npos);
    for (const auto& [file, bytes] : before) CHECK_MESSAGE(read_file(disk.path + "/" + file) == bytes, file);
    CHECK(!std::filesystem::exists(disk.path + "/model.state.bin.tmp"));

    std::filesystem::remove(filler);
    w.ok("train_gpt -y -o disk/model.bin -x 12");
    CHECK(read_file(disk.path + "/model.bin") == read_file(whole.at("model.bin")));
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
        "train_gpt -i corpus.txt -b 2 -x 2000 --gate-warmup 100 --gate-end 200 -v 500 -n 100" + kShape;
    whole.ok(line);
    Program program(w.path, w.command(line));
    REQUIRE(program.wait_until([&](const std::string&) { return std::filesystem::exists(w.at("model.bin")); }));
    for (const char* file : {"corpus.txt", "model.bin", "model.state.bin"}) std::filesystem::remove(w.at(file));
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 0);
    CHECK(outcome.err == "");
    CHECK(read_file(w.at("model.bin")) == read_file(whole.at("model.bin")));
}

namespace {

// Waits until the program has a handler for a signal, or has none. (Between fork and exec it has doctest's.)
void wait_for_handler(const Program& program, int signal, bool wanted) {
    for (int waited = 0;; waited++) {
        const std::string status = read_file("/proc/" + std::to_string(program.pid()) + "/status");
        const size_t caught = status.find("SigCgt:");
        REQUIRE(caught != std::string::npos);
        const bool has = std::strtoull(status.c_str() + caught + 7, nullptr, 16) >> (signal - 1) & 1;
        if (status.starts_with("Name:\ttrain_gpt\n") && has == wanted) return;
        REQUIRE(waited < 60000);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace

TEST_CASE("crash: SIGTERM saves as Ctrl-C does; a second Ctrl-C ends the run at once") {
    const std::string line =
        "train_gpt -i corpus.txt -b 2 -x 3000 --gate-warmup 100 --gate-end 200 -v 0 -m 100000" + kShape;
    const Workplace whole, w;
    whole.ok(line + " -m 1");
    Program program(w.path, w.command(line + " -m 1"));
    REQUIRE(program.wait_until([](const std::string& out) { return out.find("\nstep ") != std::string::npos; }));
    program.send(SIGTERM);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 128 + SIGTERM);
    CHECK(outcome.err == "");
    w.ok("train_gpt -y");
    CHECK(read_file(w.at("model.bin")) == read_file(whole.at("model.bin")));

    // The second one while an update, far too long to end by itself, is under way.
    Program twice(w.path, w.command(line + " --seed 2 -d 32000000"));
    for (const bool caught : {true, false}) {
        wait_for_handler(twice, SIGINT, caught);
        twice.send(SIGINT);
    }
    const Outcome ended = twice.finish();
    CHECK(ended.status == 128 + SIGINT);
    CHECK_MESSAGE(ended.out.find("resume with") == std::string::npos, ended.out);
    check_states(w);
    w.ok(next_command(w, line) + " -x 3000 -m 1");
}

}  // namespace tapernorm
