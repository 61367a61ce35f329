// Runs the built programs as a user does: a process of its own in a folder of its own, its two outputs
// captured. The programs are those in the folder TAPERNORM_BIN, by default the current one.
#pragma once
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/temporary_folder.h"

namespace tapernorm {

// "fold a.bin b.bin" as its words.
inline std::vector<std::string> words(const std::string& line) {
    std::istringstream in(line);
    std::vector<std::string> list;
    for (std::string word; in >> word;) list.push_back(word);
    return list;
}

// The program of this name that is tested.
inline std::string program_path(const std::string& name) {
    const char* bin = std::getenv("TAPERNORM_BIN");
    const std::string path = (std::filesystem::absolute(bin ? bin : ".") / name).string();
    if (access(path.c_str(), X_OK) != 0)
        throw std::runtime_error(path + " is missing: build it first, or set TAPERNORM_BIN");
    return path;
}

// The program of this name for GPUs: beside this test, where the stand-in's is built, else the usual one.
inline std::string gpu_program(const std::string& name) {
    const std::filesystem::path beside = std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
    return std::filesystem::exists(beside) ? beside.string() : name;
}

struct Outcome {
    int status = -1;  // the exit status; 128 + signal where one ended the program, the time limit's SIGKILL among them
    std::string out, err;
};

class Program {
  public:
    // file_limit: bytes that a file may grow to (RLIMIT_FSIZE), as if the disk were full there; 0: none. terminal: standard
    // output is one. keyboard: so is standard input, the same one, and it sends the program its signals.
    Program(const std::string& folder, const std::vector<std::string>& command, size_t file_limit = 0,
            bool terminal = false, bool keyboard = false) {
        const std::string path = program_path(command.at(0));
        std::vector<char*> argv;
        for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
        argv.push_back(nullptr);
        int out[2], err[2];
        if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
        // The smallest pipe: a program that prints more than this waits to be read. So one that prints a line for each update
        // cannot have ended before the test has done to it what it waited for.
        fcntl(out[1], F_SETPIPE_SZ, 4096);
        if (terminal) {
            close(out[0]), close(out[1]);
            out[0] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
            if (out[0] < 0 || grantpt(out[0]) != 0 || unlockpt(out[0]) != 0) throw std::runtime_error("no terminal");
            out[1] = open(ptsname(out[0]), O_RDWR | O_NOCTTY | O_CLOEXEC);
        }
        pid_ = fork();
        if (pid_ < 0) throw std::runtime_error("no process");
        if (pid_ == 0) {
            const struct rlimit limit = {file_limit, file_limit}, no_core = {0, 0};
            setrlimit(RLIMIT_CORE, &no_core);
            if (file_limit) setrlimit(RLIMIT_FSIZE, &limit);
            if (keyboard && (setsid() < 0 || ioctl(out[1], TIOCSCTTY, 0) != 0 || dup2(out[1], 0) < 0)) _exit(126);
            if (chdir(folder.c_str()) != 0 || dup2(out[1], 1) < 0 || dup2(err[1], 2) < 0) _exit(126);
            execv(path.c_str(), argv.data());
            _exit(127);
        }
        close(out[1]), close(err[1]);
        fds_[0] = out[0], fds_[1] = err[0];
    }
    ~Program() {
        if (pid_ > 0) kill(pid_, SIGKILL), waitpid(pid_, nullptr, 0);
        for (int fd : fds_)
            if (fd >= 0) close(fd);
    }
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // Reads until standard output is as `enough` wants it; false where the program ends before.
    bool wait_until(const std::function<bool(const std::string&)>& enough) {
        while (!enough(outcome_.out))
            if (!read_some()) return false;
        return true;
    }

    void send(int signal) const { kill(pid_, signal); }
    // Into its terminal.
    void type(const std::string& keys) const {
        if (write(fds_[0], keys.data(), keys.size()) != ssize_t(keys.size())) throw std::runtime_error("cannot type");
    }
    // Whether its terminal shows what is typed, and hands it on line by line, as a shell leaves it.
    bool terminal_is_plain() const {
        termios mode{};
        return tcgetattr(fds_[0], &mode) == 0 && (mode.c_lflag & ICANON) && (mode.c_lflag & ECHO);
    }
    pid_t pid() const { return pid_; }

    Outcome finish() {
        while (read_some()) {
        }
        int status = 0;
        while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
        }
        pid_ = -1;
        outcome_.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        return outcome_;
    }

  private:
    // Waits for output; false once both ends are closed. A program that takes longer than any may is killed.
    bool read_some() {
        using namespace std::chrono;
        struct pollfd poll_fds[2] = {{fds_[0], POLLIN, 0}, {fds_[1], POLLIN, 0}};
        if (fds_[0] < 0 && fds_[1] < 0) return false;
        const auto left = duration_cast<milliseconds>(start_ + seconds(120) - steady_clock::now()).count();
        if (left <= 0) kill(pid_, SIGKILL);
        if (poll(poll_fds, 2, left > 0 ? int(left) : -1) <= 0) return true;
        for (int i = 0; i < 2; i++) {
            if (!poll_fds[i].revents) continue;
            char buffer[4096];
            const ssize_t n = read(fds_[i], buffer, sizeof buffer);
            if (n > 0) (i == 0 ? outcome_.out : outcome_.err).append(buffer, size_t(n));
            if (n == 0 || (n < 0 && errno == EIO)) close(std::exchange(fds_[i], -1));  // EIO: a terminal's end
        }
        return true;
    }

    pid_t pid_ = -1;
    int fds_[2] = {-1, -1};
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    Outcome outcome_;
};

// What a child process does, which must return true.
inline bool in_child(const std::function<bool()>& body) {
    const pid_t child = fork();
    if (child == 0) _exit(body() ? 0 : 1);
    int status = 1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Leaves this process `more` bytes of address space beyond what it has; false if that cannot be done. For in_child.
inline bool limit_address_space(size_t more) {
    size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t most = pages * size_t(sysconf(_SC_PAGESIZE)) + more;
    const rlimit limit = {most, most};
    return setrlimit(RLIMIT_AS, &limit) == 0;
}

inline Outcome run_program_in(const std::string& folder, const std::vector<std::string>& command,
                              size_t file_limit = 0) {
    return Program(folder, command, file_limit).finish();
}

// ---- for tests of whole commands
// -------------------------------------------------------------------------------------

// The smallest run through all phases of the gate: g = 1, 1, 0.5, 0, 0, 0.
inline const std::string kShape = " --n-layer 1 --n-embd 16 --n-head 2 -t 16";
inline const std::string kTrain = "train_gpt -i corpus.txt -b 2 -x 6 --gate-warmup 2 --gate-end 4 -l 0.01 -u 2%";
inline const std::string kTiny = kTrain + kShape;

inline std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(const std::string& path, const std::string& text) {
    std::ofstream out(path, std::ios::binary);
    out << text;
    if (!out.flush()) throw std::runtime_error("cannot write " + path);
}

// A folder with a corpus, in which commands run.
struct Workplace : TemporaryFolder {
    Workplace() {
        std::string text;
        for (int i = 0; i < 40; i++)
            text += "The cat number " + std::to_string(i) + " sat on the mat and saw " + std::to_string(7 * i) +
                    " birds.\n";
        write_file(at("corpus.txt"), text);
    }
    std::string at(const std::string& name) const { return path + "/" + name; }

    // The words of a line and some that may have spaces; on one thread of the CPU, also where there is a GPU.
    static std::vector<std::string> command(const std::string& line, const std::vector<std::string>& more = {}) {
        std::vector<std::string> all = words(line);
        const bool exports = all.size() > 1 && all[1] == "export";  // which has neither flag
        if (!exports) all.insert(all.begin() + 1, {"--threads", "1"});
        if (!exports && all[0] != "fold") all.insert(all.begin() + 1, {"--device", "cpu"});
        all.insert(all.end(), more.begin(), more.end());
        return all;
    }

    Outcome run(const std::string& line, const std::vector<std::string>& more = {}, size_t file_limit = 0) const {
        return run_program_in(path, command(line, more), file_limit);
    }

    // Runs a command that must succeed in silence on standard error; returns its standard output.
    std::string ok(const std::string& line, const std::vector<std::string>& more = {}) const {
        const Outcome outcome = run(line, more);
        INFO(line);
        CHECK(outcome.err == "");
        CHECK(outcome.status == 0);
        return outcome.out;
    }

    // Runs a command that must succeed with one warning, which has `needle` in it; returns its standard output.
    std::string warned(const std::string& line, const std::string& needle) const {
        const Outcome outcome = run(line);
        CAPTURE(line);
        CAPTURE(outcome.err);
        CHECK(outcome.status == 0);
        CHECK(outcome.err.starts_with("warning: "));
        CHECK(outcome.err.find('\n') + 1 == outcome.err.size());
        CHECK(outcome.err.find(needle) != std::string::npos);
        return outcome.out;
    }

    // All files and what is in them.
    std::map<std::string, std::string> contents() const {
        std::map<std::string, std::string> files;
        for (const auto& entry : std::filesystem::recursive_directory_iterator(path))
            files[entry.path().string()] = entry.is_regular_file() ? read_file(entry.path().string()) : "";
        return files;
    }

    // Runs a command that must fail with one clear line and change no file.
    void refused(const std::string& line, const std::vector<std::string>& needles,
                 const std::vector<std::string>& more = {}, size_t file_limit = 0) const {
        const auto before = contents();
        const Outcome outcome = run(line, more, file_limit);
        std::string all = line;
        for (const std::string& word : more) all += " '" + word + "'";
        CAPTURE(all);
        CAPTURE(outcome.err);
        CHECK(outcome.status == 1);
        CHECK(outcome.err.starts_with(words(line)[0] + ": error: "));
        CHECK(outcome.err.find('\n') + 1 == outcome.err.size());
        for (const std::string& needle : needles) CHECK(outcome.err.find(needle) != std::string::npos);
        CHECK_MESSAGE(contents() == before, "a file has changed");
    }
};

}  // namespace tapernorm
