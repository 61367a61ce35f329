// How runs end: standard streams that are full, closed or gone, signals, full disks, files that change while they are in use.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <thread>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/safetensors.h"
#include "io/tokens.h"
#include "runtime/exit_status.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/read_log.h"
#include "tests/run_program.h"
#include "tests/small_disk.h"
#include "train/checkpoints.h"

namespace tapernorm {

namespace {

// Runs a line of a shell; in it, $train_gpt, $fold, $infer and so on are the programs.
Outcome shell(const Workplace& w, const std::string& line) {
    const std::string folder = std::filesystem::path(program_path("train_gpt")).parent_path();  // may have a space
    std::string programs = "PATH='" + folder + "':$PATH; ";
    for (const char* name : {"train_gpt", "fold", "infer", "prepare", "bpe_train", "make_stories"})
        programs += name + std::string("=") + name + "; ";
    return run_program_in(w.path, {"/bin/sh", "-c", programs + line});
}

bool one_line(const std::string& text) { return !text.empty() && text.find('\n') + 1 == text.size(); }

bool has_step(const std::string& out) { return contains(out, "\nstep "); }

std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> pids;
    std::istringstream in(
        read_file("/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent) + "/children"));
    for (pid_t pid; in >> pid;) pids.push_back(pid);
    return pids;
}

void wait_for_file(const std::string& path) {
    for (int waited = 0; !std::filesystem::exists(path); waited++) {
        REQUIRE(waited < 60000);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

// How long it has computed.
long cpu_ticks(const Program& program) {
    const std::string stat = read_file("/proc/" + std::to_string(program.pid()) + "/stat");
    std::istringstream fields(stat.substr(stat.rfind(')') + 2));
    std::string field;
    for (int number = 3; number <= 14; number++) fields >> field;
    return std::stol(field);
}

const std::string kRest = " --device cpu --threads 1";

// Waits until the program has a handler for a signal. (Between fork and exec it has doctest's.)
void wait_for_handler(const Program& program, int signal) {
    for (int waited = 0;; waited++) {
        const std::string status = read_file("/proc/" + std::to_string(program.pid()) + "/status");
        const size_t caught = status.find("SigCgt:");
        REQUIRE(caught != std::string::npos);
        const bool has = std::strtoull(status.c_str() + caught + 7, nullptr, 16) >> (signal - 1) & 1;
        if (status.starts_with("Name:\ttrain_gpt\n") && has) return;
        REQUIRE(waited < 60000);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace

// ---- standard streams

TEST_CASE("endings: closed standard streams lead to /dev/null, and no file gets their numbers") {
    for (const std::vector<int>& closed : {std::vector<int>{}, {0}, {1}, {2}, {0, 2}, {0, 1, 2}})
        CHECK(in_child([&] {
            for (int fd : closed) close(fd);
            start_program();
            struct stat null, stream;
            if (stat("/dev/null", &null) != 0) return false;
            for (int fd : closed)
                if (fstat(fd, &stream) != 0 || stream.st_rdev != null.st_rdev || (write(fd, "x", 1) == 1) == (fd == 1))
                    return false;
            return open("/dev/null", O_RDONLY) > 2;
        }));
}

TEST_CASE("endings: with closed standard streams the log of a run is the log of any run") {
    const Workplace open, w;
    open.ok(kTiny);
    CHECK(shell(w, "exec $" + kTiny + kRest + " <&- >&- 2>&-").status == 0);
    CHECK(log_without_times(w) == log_without_times(open));
    CHECK(model_in(w.at("model.bin")) == model_in(open.at("model.bin")));
}

TEST_CASE("endings: output that cannot be written is an error where it is what the program is for") {
    const bool full = access("/dev/full", W_OK) == 0;
    const Workplace w;
    w.ok(kTiny), w.ok(kTiny + " -g norm -o base.bin");
    write_file(w.at("lines.txt"), "one\ntwo\n");
    const std::vector<std::string> lines = {"train_gpt --help",
                                            "train_gpt --version",
                                            "train_gpt export --help",
                                            "fold --help",
                                            "fold --version",
                                            "infer --help",
                                            "infer --version",
                                            "train_gpt --dry-run -i corpus.txt -b 2 -x 2" + kShape,
                                            "train_gpt export base.bin",
                                            "infer model.bin --info",
                                            "infer model.bin --info --json",
                                            "fold model.bin folded.bin",
                                            "infer model.bin -n 3",
                                            "infer model.bin -n 1000000000",
                                            "infer model.bin --last-token",
                                            "infer model.bin --eval corpus.txt",
                                            "infer model.bin --prompts lines.txt -n 3"};
    for (const std::string& line : lines) {
        for (const std::string to : {">&-", ">/dev/full"}) {
            if (to == ">/dev/full" && !full) continue;
            CAPTURE(line);
            CAPTURE(to);
            std::filesystem::remove_all(w.at("exported"));
            const std::string last = line.find(" export base.bin") != line.npos ? " exported" : "";
            const Outcome outcome = shell(w, "exec $" + line + last + " " + to);
            CHECK(outcome.status == 1);
            CHECK_MESSAGE(outcome.err.find(line.substr(0, line.find(' ')) +
                                           ": error: cannot write to the standard output: ") != std::string::npos,
                          outcome.err);
            if (line.find("--prompts") == line.npos) CHECK(one_line(outcome.err));
        }
    }
    // A run's result is its files: it goes on, and says so.
    for (const std::string to : {">&-", ">/dev/full"}) {
        if (to == ">/dev/full" && !full) continue;
        const Outcome outcome = shell(w, "exec $" + kTiny + kRest + " --overwrite " + to);
        CHECK(outcome.status == 0);
        CHECK(one_line(outcome.err));
        CHECK(outcome.err.starts_with("warning: cannot write to the standard output: "));
    }
}

TEST_CASE("endings: whatever is thrown becomes a line that says what to do") {
    CHECK(error_text(Error("x: y")) == "x: y");
    CHECK(error_text(std::bad_alloc()) == kOutOfMemory);
    const std::error_code no_thread(EAGAIN, std::generic_category());
    CHECK(
        error_text(std::system_error(no_thread)) ==
        "the system gives no thread or memory: Resource temporarily unavailable; use fewer --threads, or raise its limits "
        "(ulimit -a)");
    CHECK(error_text(std::filesystem::filesystem_error("x", "a\nb", no_thread)) ==
          "cannot use 'a\\x0ab': Resource temporarily unavailable; check the path");
    CHECK(error_text(std::runtime_error("odd")) == "an error inside of this program, which is a bug: odd");
}

TEST_CASE("endings: an error behind an unfinished text on a terminal begins a line") {
    const Workplace w;
    w.ok(kTiny + " --n-embd 64");
    Program program(w.path, w.command("infer model.bin -p The -n 1000000000"), 0, true);
    REQUIRE(program.wait_until([](const std::string& out) { return out.size() > 400; }));
    std::filesystem::resize_file(w.at("model.bin"), 4096);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 1);
    CHECK(outcome.out.ends_with("\n"));
    CHECK(one_line(outcome.err));
}

TEST_CASE("endings: a reader that has gone ends infer in silence") {
    const Workplace w;
    w.ok(kTiny);
    for (const std::string line : {"$infer model.bin -n 1000000000", "$train_gpt --help", "$infer --help"}) {
        const Outcome outcome = shell(w, "{ " + line + "; echo $? >status; } | true; cat status");
        CHECK(outcome.err == "");
        // What fits the pipe may have been written before the reader went.
        if (line.find("model") != line.npos) CHECK(outcome.out == std::to_string(128 + SIGPIPE) + "\n");
    }
}

// ---- files that change while they are in use

TEST_CASE("mapped files: lost pages read as zeros and a change in place is noticed, replacing a file is not one") {
    const TemporaryFolder folder;
    const std::string path = folder.path + "/file";
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), size = 4 * page + 100;
    const auto write_it = [&] { write_file(path, std::string(size, 'x')); };

    write_it();
    const MappedFile replaced(path);
    write_file(path + ".new", "another");
    std::filesystem::rename(path + ".new", path);
    CHECK(replaced.data()[size - 1] == 'x');
    replaced.check();
    std::filesystem::remove(path);
    replaced.check();

    write_it();
    const MappedFile changed(path);
    {
        std::fstream file(path, std::ios::in | std::ios::out);
        file << "y" << std::flush;
    }
    struct timespec later[2] = {{0, UTIME_NOW}, {2000000000, 0}};  // clocks of file systems are coarse
    REQUIRE(utimensat(AT_FDCWD, path.c_str(), later, 0) == 0);
    CHECK(error_of([&] { changed.check(); }).find("/file' has been changed while it was in use") != std::string::npos);
    CHECK(error_of([&] { MappedFile::check_all(); }).find("/file'") != std::string::npos);
    replaced.check();

    // Another time is no change, the same bytes written again are none, more bytes are one; so in files that are sampled.
    for (const size_t bytes : {size, size_t(5 << 20)}) {
        write_file(path + ".new", std::string(bytes, 'x'));
        std::filesystem::rename(path + ".new", path);
        const MappedFile touched(path);
        const auto now = [&](time_t seconds) {
            struct timespec times[2] = {{0, UTIME_NOW}, {seconds, 0}};
            REQUIRE(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
        };
        now(1000000000);
        touched.check();
        std::fstream(path, std::ios::in | std::ios::out) << std::string(bytes, 'x');
        now(1500000000);
        touched.check();
        {
            const MappedFile longer(path);
            std::ofstream(path, std::ios::app) << "x";
            CHECK(contains(error_of([&] { longer.check(); }), "/file' has been changed while it was in use"));
            std::filesystem::resize_file(path, bytes);
        }
        std::fstream(path, std::ios::in | std::ios::out) << std::string(bytes - 1, 'x') << 'y';
        now(2000000000);
        CHECK(contains(error_of([&] { touched.check(); }), "/file' has been changed while it was in use"));
    }

    // What was lost stays known, for the whole process.
    CHECK(in_child([&] {
        write_it();
        MappedFile first(path);
        const MappedFile shortened = std::move(first);
        std::filesystem::resize_file(path, page + 1);
        const unsigned char* data = shortened.data();
        if (data[page] != 'x' || data[page + 1] != 0 || data[2 * page] != 0 || data[size - 1] != 0) return false;
        const std::string error = error_of([&] { shortened.check(); });
        return error.find("/file' has become shorter while it was in use") != std::string::npos &&
               error_of([] { MappedFile::check_all(); }) == error;
    }));
    CHECK(in_child([&] {
        write_it();
        std::optional<MappedFile> gone(path);
        std::filesystem::resize_file(path, 1);
        (void)*const_cast<volatile const unsigned char*>(gone->data() + 3 * page);
        gone.reset();
        return error_of([] { MappedFile::check_all(); }).find("/file' has become shorter") != std::string::npos;
    }));
    // A SIGBUS that is nobody's map ends the process as ever.
    CHECK_FALSE(in_child([&] {
        write_it();
        const MappedFile any(path);
        return raise(SIGBUS), true;
    }));
}

TEST_CASE("endings: infer says that its model has been cut off, and ends") {
    const Workplace w;
    w.ok(kTiny + " --n-embd 64");
    Program program(w.path, w.command("infer model.bin -n 1000000000"));
    REQUIRE(program.wait_until([](const std::string& out) { return out.size() > 400; }));
    std::filesystem::resize_file(w.at("model.bin"), 4096);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 1);
    CHECK(one_line(outcome.err));
    CHECK_MESSAGE(outcome.err.find("infer: error: 'model.bin' has ") == 0, outcome.err);
}

TEST_CASE(
    "endings: a corpus that is cut off or written to under a run ends it with a checkpoint; touch and rsync do not") {
    std::string text;
    for (int i = 0; i < 4000; i++) text += "line " + std::to_string(i * 7919) + " of a text of several pages\n";
    const std::string line = "train_gpt -i corpus.txt -b 2 -x 1000 --gate-warmup 100 --gate-end 200 -v 1 -m 1" + kShape;
    const Workplace whole;
    write_file(whole.at("corpus.txt"), text);
    whole.ok(line);
    {
        const Workplace w;
        write_file(w.at("corpus.txt"), text);
        Program program(w.path, w.command(line));
        REQUIRE(program.wait_until(has_step));
        write_file(w.at("new.txt"), "another text");
        std::filesystem::last_write_time(w.at("corpus.txt"), std::filesystem::file_time_type());  // touch
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::filesystem::rename(w.at("new.txt"), w.at("corpus.txt"));  // rsync
        const Outcome outcome = program.finish();
        CHECK(outcome.err == "");
        CHECK(outcome.status == 0);
        CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    }
    for (const bool cut : {true, false}) {
        const Workplace w;
        write_file(w.at("corpus.txt"), text);
        Program program(w.path, w.command(line));
        REQUIRE(program.wait_until(has_step));
        if (cut)
            std::filesystem::resize_file(w.at("corpus.txt"), 5000);
        else
            std::fstream(w.at("corpus.txt"), std::ios::in | std::ios::out) << "other";
        const Outcome outcome = program.finish();
        CHECK(outcome.status == 1);
        CHECK(one_line(outcome.err));
        CHECK_MESSAGE(outcome.err.find("train_gpt: error: 'corpus.txt' has ") == 0, outcome.err);
        CHECK(contains(outcome.err, "; the run is saved after update "));
        CHECK(contains(outcome.err, "; once that is mended, ./train_gpt -y -o model.bin resumes it\n"));
        write_file(w.at("corpus.txt"), text);
        CHECK(w.run("train_gpt -y").status == 0);
        CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    }
}

TEST_CASE("endings: an id beyond the vocabulary, deep in a shard, ends the run with a checkpoint") {
    const Workplace w;
    std::vector<uint16_t> ids(2000);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = uint16_t(i % 250);
    write_token_shard(w.at("val.bin"), ids);
    ids[1800] = 60000;
    write_token_shard(w.at("train.bin"), ids);
    const std::string line =
        "train_gpt --tokenizer bytes -j val.bin -b 2 --no-shuffle -x 1000 --gate-warmup 10 --gate-end 20 -v 0" + kShape;
    Outcome outcome = w.run(line + " -i train.bin");
    CHECK(outcome.status == 1);
    CHECK(one_line(outcome.err));
    CHECK_MESSAGE(contains(outcome.err, "token 1800 of 'train.bin' is the id 60000, but the vocabulary has 256 tokens"),
                  outcome.err);
    CHECK(contains(outcome.err, "; the run is saved after update 56;"));  // of 32 tokens
    CHECK(SafetensorsFile(w.at("model.state.bin")).metadata().at("step") == "56");
    // In what is validated on, too. At the start there is nothing to save.
    outcome = w.run(line + " -i val.bin -j train.bin -v 5 -m 100 -o other.bin");
    CHECK(contains(outcome.err, "token 1800 of 'train.bin'"));
    CHECK(contains(outcome.err, "; the run is saved after update 5;"));
    ids[3] = 300;
    write_token_shard(w.at("train.bin"), ids);
    w.refused(line + " -i train.bin -o third.bin", {"token 3 of 'train.bin' is the id 300"});
}

// ---- who reads a run's output

TEST_CASE("endings: a run goes on where its output cannot be written, and says so once") {
    const Workplace whole;
    whole.ok(kTiny + " -x 200");
    for (const std::string reader : {"| head -n 1 >/dev/null", ">/dev/full"}) {
        CAPTURE(reader);
        if (reader == ">/dev/full" && access("/dev/full", W_OK) != 0) continue;
        const Workplace w;
        const Outcome outcome = shell(w, "{ $" + kTiny + " -x 200" + kRest + "; echo $? >status; } " + reader);
        CHECK(read_file(w.at("status")) == "0\n");
        CHECK_MESSAGE(outcome.err.starts_with("warning: cannot write to the standard output: "), outcome.err);
        CHECK(one_line(outcome.err));
        CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
        CHECK(log_without_times(w) == log_without_times(whole));
    }
}

TEST_CASE("endings: Ctrl-C that ends the reader of a pipe too saves the run") {
    const Workplace w;
    Program program(w.path, {"/bin/sh", "-c",
                             "trap '' INT; { trap - INT; '" + program_path("train_gpt") + "' " + kTiny.substr(10) +
                                 kRest + " -x 1000000; echo $? >status; } | (trap - INT; exec cat)"});
    REQUIRE(program.wait_until(has_step));
    for (const pid_t child : children_of(program.pid())) {
        if (read_file("/proc/" + std::to_string(child) + "/comm") == "cat\n") kill(child, SIGKILL);
        for (const pid_t run : children_of(child)) kill(run, SIGTERM);
    }
    program.finish();
    CHECK(read_file(w.at("status")) == std::to_string(128 + SIGTERM) + "\n");
    SafetensorsFile(w.at("model.state.bin")).verify();
}

// ---- signals

TEST_CASE("endings: every signal that asks for the end saves the run; it resumes to the bit") {
    const std::string line = "train_gpt -i corpus.txt -b 2 -x 1500 --gate-warmup 100 --gate-end 200 -v 1 -m 1" + kShape;
    const Workplace whole, w;
    whole.ok(line);
    std::string command = line;
    for (const int signal : {SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU, SIGTERM}) {
        CAPTURE(signal);
        Program program(w.path, w.command(command));
        REQUIRE(program.wait_until(has_step));
        program.send(signal), program.send(signal);  // they come twice
        const Outcome outcome = program.finish();
        CHECK(outcome.status == 128 + signal);
        CHECK(outcome.err == "");
        CHECK(contains(outcome.out, "resume with: ./train_gpt -y -o model.bin\n"));
        command = "train_gpt -y";
    }
    w.ok(command);
    CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    auto log = log_without_times(w), whole_log = log_without_times(whole);
    for (auto* lines : {&log, &whole_log})
        for (auto& line : *lines) line.erase("val_loss");  // a validation that a signal ends is not repeated
    CHECK_MESSAGE(log == whole_log, "the log is another");
}

TEST_CASE("endings: a signal that is ignored from the start (nohup, &) stays ignored") {
    const Workplace w;
    Program program(w.path, {"/bin/sh", "-c",
                             "trap '' HUP INT USR1; exec '" + program_path("train_gpt") + "' " + kTiny.substr(10) +
                                 kRest + " -x 2000"});
    REQUIRE(program.wait_until(has_step));
    for (const int signal : {SIGHUP, SIGINT, SIGUSR1}) program.send(signal);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 0);
    CHECK(contains(outcome.out, "after 2000 updates"));
}

TEST_CASE("endings: a signal in a long update leaves it out, and where nothing was done it changes no file") {
    const Workplace w;
    w.ok(kTiny + " -x 4");
    const auto before = w.contents();
    Program program(w.path, w.command("train_gpt -y -x 6 -d 32000000"));
    wait_for_handler(program, SIGUSR1);
    program.send(SIGINT);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 128 + SIGINT);
    CHECK(outcome.err == "");
    CHECK_MESSAGE(contains(outcome.out, "\ninterrupted before update 5; no file has changed\n"), outcome.out);
    CHECK(w.contents() == before);
}

TEST_CASE("endings: timeout, which sends its signal twice, ends a run with a checkpoint") {
    const Workplace w;
    for (const std::string signal : {"TERM", "INT"}) {
        for (const char* file : {"model.bin", "model.state.bin"}) std::filesystem::remove(w.at(file));
        Program program(w.path, {"/bin/sh", "-c",
                                 "timeout -s " + signal + " 2 '" + program_path("train_gpt") + "' " + kTiny.substr(10) +
                                     kRest + " -x 100000000"});
        const Outcome outcome = program.finish();
        CHECK(outcome.status == 124);  // timeout's
        CHECK_MESSAGE(contains(outcome.out, "\ninterrupted after update "), outcome.out);
        SafetensorsFile(w.at("model.state.bin")).verify();
    }
}

TEST_CASE("endings: a second Ctrl-C ends the run at once, if it comes a second after the first") {
    const Workplace w;
    write_file(w.at("corpus.txt"), std::string(100000, 'x'));
    // A micro-batch that is far too long to end by itself.
    Program program(w.path,
                    w.command("train_gpt -i corpus.txt -b 16 --n-layer 1 --n-head 1 --n-embd 16 -t 8192 -x 10"));
    wait_for_handler(program, SIGUSR1);
    for (const long begin = cpu_ticks(program); cpu_ticks(program) < begin + 10;)  // it has begun
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (int i = 0; i < 10; i++) {
        program.send(SIGINT);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    const long before = cpu_ticks(program);
    std::this_thread::sleep_for(std::chrono::milliseconds(1000));
    CHECK(cpu_ticks(program) > before);  // it goes on
    program.send(SIGINT);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 128 + SIGINT);
    CHECK(!contains(outcome.out, "interrupted"));
}

TEST_CASE("endings: a signal ends a validation, a sample and the wait for the last validation") {
    const Workplace w;
    write_file(w.at("long.txt"), std::string(8000000, 'x'));
    const std::string line = kTiny + " -j long.txt -m 100000000 -v ";
    for (const bool last : {false, true}) {
        Program program(w.path, w.command(line + (last ? "0" : "1 -x 1000000 --gate-warmup 10 --gate-end 20")));
        if (last)
            wait_for_file(w.at("model.bin"));
        else
            REQUIRE(program.wait_until(has_step));
        program.send(SIGTERM);
        const Outcome outcome = program.finish();
        CHECK(outcome.status == 128 + SIGTERM);
        CHECK(outcome.err == "");
        CHECK(!contains(outcome.out, "validation loss"));
        CHECK_MESSAGE(contains(outcome.out, "\ninterrupted after update "), outcome.out);
        const std::string missing = std::string(", without its validation") + (last ? "" : ", not repeated later");
        CHECK_MESSAGE(contains(outcome.out, missing + "; resume with: "), outcome.out);
        if (!last)
            for (const char* file : {"model.bin", "model.state.bin"}) std::filesystem::remove(w.at(file));
    }
}

TEST_CASE("endings: a signal in the last HellaSwag is no success, and -y prints the scores") {
    const Workplace w;
    const std::string item = "{\"ctx\": \"ab\", \"endings\": [\"cd\", \"ef\"], \"label\": 0}\n";
    std::string items;
    for (int i = 0; i < 200000; i++) items += item;
    write_file(w.at("items.jsonl"), items);
    Program program(w.path, w.command(kTiny + " -v 0 --hellaswag items.jsonl"));
    REQUIRE(program.wait_until([](const std::string& out) { return contains(out, "\nvalidation loss "); }));
    program.send(SIGTERM);
    const Outcome outcome = program.finish();
    CHECK(outcome.status == 128 + SIGTERM);
    CHECK(outcome.err == "");
    CHECK_MESSAGE(outcome.out.ends_with("\ninterrupted after update 6, without its HellaSwag scores; resume with: "
                                        "./train_gpt -y -o model.bin\n"),
                  outcome.out);
    write_file(w.at("items.jsonl"), item);
    CHECK(contains(w.ok("train_gpt -y"), "\nhellaswag: "));
}

TEST_CASE("endings: --checkpoint-minutes saves a run that nothing else would have saved") {
    const Workplace w;
    Program program(w.path, w.command(kTiny + " -x 1000000 -v 0 --checkpoint-minutes 0.0001"));
    wait_for_file(w.at("model.bin"));
    program.send(SIGKILL);
    CHECK(program.finish().status == 128 + SIGKILL);
    CHECK(w.run("train_gpt -y -x 1").status == 0);
    // 0 switches it off. (A run of some milliseconds meets no other limit.)
    const Workplace off;
    off.ok(kTiny + " --checkpoint-minutes 0");
    CHECK(!std::filesystem::exists(off.at("model.state.1.bin")));
    off.refused(kTiny + " --checkpoint-minutes -1", {"--checkpoint-minutes"});
}

// ---- full disks

TEST_CASE("endings: a disk that is full at the end: older checkpoints go, then the run waits, or gives up by Ctrl-C") {
    const Workplace whole, w;
    const Disk disk(w.at("disk"));
    if (!disk.mounted) return;
    const std::string line = kTiny + " -k constant -u 1 -n 2 ";
    whole.ok(line + "-x 12");
    w.ok(line + "-o disk/model.bin");
    const std::string filler = disk.path + "/filler", older = disk.path + "/model.state.1.bin";
    const auto leave = [&](size_t bytes) {
        std::ofstream(filler, std::ios::binary) << std::string(4 << 20, 'x');
        std::filesystem::resize_file(filler, std::filesystem::file_size(filler) - bytes);
    };
    // Room for the log, not for a model.
    REQUIRE(std::filesystem::file_size(disk.path + "/model.bin") > 16384);
    leave(16384);
    Outcome outcome = w.run("train_gpt -y -o disk/model.bin -x 10");
    CHECK(outcome.status == 0);
    CHECK_MESSAGE(contains(outcome.err, "warning: no checkpoint after update 8: cannot write"), outcome.err);
    CHECK(contains(outcome.err, "No space left on device"));
    CHECK(contains(outcome.err, "; the older checkpoints of this run are removed\n"));
    CHECK(SafetensorsFile(disk.path + "/model.state.bin").metadata().at("step") == "10");
    CHECK(!std::filesystem::exists(older));

    // Nothing left to give up.
    std::filesystem::remove(filler);
    leave(16384);
    const std::string state = read_file(disk.path + "/model.state.bin");
    for (const bool gives_up : {true, false}) {
        // Its log appears with the first update; the warning is its last word before it waits.
        Program program(w.path, {"/bin/sh", "-c",
                                 "exec '" + program_path("train_gpt") + "' -y -o disk/model.bin --keep 1 -x 12 -n 100" +
                                     kRest + " 2>&1"});
        REQUIRE(program.wait_until(
            [](const std::string& out) { return contains(out, "trying again until it can be written"); }));
        CHECK(read_file(disk.path + "/model.state.bin") == state);
        if (gives_up)
            program.send(SIGINT);
        else
            std::filesystem::remove(filler);
        outcome = program.finish();
        CHECK(outcome.status == (gives_up ? 1 : 0));
        CHECK_MESSAGE(contains(outcome.out, gives_up ? "train_gpt: error: cannot write 'disk/model.state.bin'"
                                                     : "\nstate and model are written now\n"),
                      outcome.out);
    }
    for (const auto& [file, bytes] : w.contents()) CHECK_MESSAGE(!file.ends_with("-tmp"), file);
    CHECK(model_in(disk.path + "/model.bin") == model_in(whole.at("model.bin")));
}

TEST_CASE("endings: what of the state and the model cannot be written is tried again, whatever prevents it") {
    // (In a process of its own, which it makes watch signals.)
    CHECK(in_child([] {
        train::Checkpoints checkpoints("");
        std::string order;
        const auto state = [&] {
            order += "s";
            if (order.size() == 1) throw DiskFull("no room");
            if (order.size() == 3) fail("no folder");
            if (order.size() == 4) throw std::bad_alloc();
        };
        train::write_last(checkpoints, state, [&] { order += "m"; });
        return order == "smsss";
    }));
    CHECK(in_child([] {
        train::Checkpoints checkpoints("");
        std::string order;
        const auto model = [&] {
            order += "m";
            if (order.size() < 4) fail("no folder");
        };
        train::write_last(checkpoints, [&] { order += "s"; }, model);
        return order == "smmm";
    }));
}

TEST_CASE("endings: a last save that is not possible loses nothing: it waits until it is, or for Ctrl-C") {
    const std::string line =
        "-i corpus.txt -b 2 -x 3000 -v 0 -m 1 --gate-warmup 2 --gate-end 4 -l 0.01" + kShape + kRest;
    struct Obstacle {
        std::function<void(const Workplace&)> put, remove;
        std::string problem, written;
    };
    const Obstacle obstacles[] = {{[](const Workplace& w) { std::filesystem::rename(w.at("d"), w.at("e")); },
                                   [](const Workplace& w) { std::filesystem::rename(w.at("e"), w.at("d")); },
                                   "the directory 'd' does not exist", "neither state nor model is written"},
                                  {[](const Workplace& w) {
                                       std::filesystem::create_directory(w.at("d/run.state.bin"));
                                   },
                                   [](const Workplace& w) { std::filesystem::remove(w.at("d/run.state.bin")); },
                                   "it is a directory", "the model alone is written"}};
    for (const Obstacle& obstacle : obstacles) {
        CAPTURE(obstacle.problem);
        for (const bool gives_up : {false, true}) {
            const Workplace w;
            std::filesystem::create_directory(w.at("d"));
            Program program(w.path, {"/bin/sh", "-c",
                                     "exec '" + program_path("train_gpt") + "' " + line + " -x 1000000 -o d/run 2>&1"});
            REQUIRE(program.wait_until(has_step));
            obstacle.put(w);
            program.send(SIGTERM);
            REQUIRE(program.wait_until([](const std::string& out) { return contains(out, "trying again until"); }));
            if (gives_up)
                program.send(SIGINT);
            else
                obstacle.remove(w);
            const Outcome outcome = program.finish();
            CAPTURE(outcome.out);
            CHECK(outcome.status == (gives_up ? 1 : 128 + SIGTERM));
            CHECK(contains(outcome.out, obstacle.problem));
            CHECK(contains(outcome.out,
                           "; " + obstacle.written + "; trying again until it can be written (Ctrl-C gives up)\n"));
            if (gives_up) continue;
            CHECK(!std::filesystem::exists(w.at("d/run.old.state.bin")));
            CHECK(contains(outcome.out, "resume with: ./train_gpt -y -o d/run.bin\n"));
            SafetensorsFile(w.at("d/run.state.bin")).verify();
            SafetensorsFile(w.at("d/run.bin")).verify();
        }
    }
}

TEST_CASE(
    "endings: a state too large for the shell's limit is said at the start, and the model is written at the end") {
    const Workplace w;
    Program program(w.path,
                    {"/bin/sh", "-c",
                     "exec '" + program_path("train_gpt") + "' " + kTiny.substr(10) + kRest + " -o run 2>&1"},
                    60 * 1024);
    REQUIRE(program.wait_until([](const std::string& out) { return contains(out, "trying again until"); }));
    program.send(SIGINT);
    const Outcome outcome = program.finish();
    CAPTURE(outcome.out);
    CHECK(outcome.status == 1);
    CHECK(contains(outcome.out,
                   "warning: the shell's limit (ulimit -f) allows files of 60 KiB, and the checkpoints of "));
    CHECK(contains(outcome.out,
                   "'run.state.bin': could not write the data (the old file is untouched): File too large; "));
    CHECK(contains(outcome.out, "; the model alone is written; trying again"));
    CHECK(contains(outcome.out, "\ntrain_gpt: error: cannot write 'run.state.bin'"));
    SafetensorsFile(w.at("run.bin")).verify();
}

TEST_CASE("endings: too little room is said at the start, with both numbers") {
    const TemporaryFolder folder;
    CHECK(train::space_warning(folder.path + "/model.bin", {1, 1}) == "");
    const std::string warning = train::space_warning(folder.path + "/model.bin", {1e18, 1});
    CHECK(contains(warning, "warning: the disk of '"));
    CHECK(contains(warning, " MiB free, and this run may need 953674316406.2 MiB"));
    const Workplace w;
    const Disk disk(w.at("disk"));
    if (!disk.mounted) return;
    const Outcome outcome = w.run(kTiny + " --keep 50 -o disk/model.bin");
    CHECK(outcome.status == 0);
    CHECK_MESSAGE(outcome.err.starts_with("warning: the disk of 'disk/model.bin' has "), outcome.err);
    CHECK(one_line(outcome.err));
}

}  // namespace tapernorm
