#include "train/run_files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "io/atomic_file.h"
#include "io/claims.h"
#include "model/model_file.h"
#include "runtime/error.h"
#include "train/checkpoints.h"
#include "train/run_log.h"

namespace tapernorm::train {

namespace fs = std::filesystem;

namespace {

// "runs/a.bin" -> "runs/a"
std::string run_name(const std::string& model) {
    return model.ends_with(".bin") ? model.substr(0, model.size() - 4) : model;
}

// Whether a run of this name would have another run's state as its model: "a.state", "a.state.1".
bool names_a_state(std::string name) {
    const size_t dot = name.find_last_of('.');
    if (dot != name.npos && dot + 1 < name.size() && name.find_first_not_of("0123456789", dot + 1) == name.npos)
        name.resize(dot);
    return name.ends_with(".state");
}

bool exists(const std::string& path) {
    std::error_code ignored;
    return fs::exists(fs::symlink_status(path, ignored));
}

// "runs/a.bin", 2 -> "runs/a.old2.bin"
std::string old_name(const std::string& model, size_t number) {
    return run_name(model) + ".old" + (number > 1 ? std::to_string(number) : "") + ".bin";
}

// The numbers under which a run may have been set aside: those of which any file is there.
std::set<size_t> numbers_set_aside(const std::string& model) {
    const std::string begin = fs::path(run_name(model)).filename().string() + ".old";
    std::set<size_t> numbers;
    const auto names = names_beside(model);
    for (const std::string& name : names.value_or(std::vector<std::string>())) {
        if (!name.starts_with(begin)) continue;
        const size_t dot = name.find('.', begin.size());
        const std::string digits = name.substr(begin.size(), dot - begin.size());
        if (dot != name.npos && digits.size() <= 9 && digits.find_first_not_of("0123456789") == digits.npos)
            numbers.insert(digits.empty() ? 1 : std::stoul(digits));
    }
    for (size_t number = 1; !names && number <= Checkpoints::kMost; number++) numbers.insert(number);
    return numbers;
}

// `path` under the name of the run `to`.
std::string moved(const std::string& path, const std::string& model, const std::string& to) {
    return run_name(to) + path.substr(run_name(model).size());
}

// Whether `path` leads to the file that is open as `fd`.
bool names_file(const std::string& path, int fd) {
    struct stat opened, named;
    return fstat(fd, &opened) == 0 && stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino &&
           opened.st_dev == named.st_dev;
}

// Of a run that was killed, or new: the number of a process or nothing (after a power cut zeros), under this name alone.
bool is_lock(int fd) {
    struct stat info;
    char text[32];
    const ssize_t size = pread(fd, text, sizeof text, 0);
    if (fstat(fd, &info) != 0 || info.st_nlink > 1 || size < 0 || size_t(size) == sizeof text) return false;
    return std::string_view(text, size_t(size)).find_first_not_of(std::string_view("0123456789\n\0", 12)) ==
           std::string_view::npos;
}

}  // namespace

std::string model_path(const std::string& out) {
    const std::string name = run_name(out);
    const std::string last = fs::path(name).filename().string();
    if (last.empty() || last == "." || last == "..")
        fail("--out: expected the name of a file, found %s", in_quotes(out).c_str());
    if (names_a_state(name))
        fail("--out: %s would be the state of another run; expected a name without .state", in_quotes(out).c_str());
    std::error_code ignored;
    if (const auto kind = fs::status(out, ignored).type();
        kind == fs::file_type::character || kind == fs::file_type::fifo || kind == fs::file_type::block ||
        kind == fs::file_type::socket)
        fail("--out: %s is not a regular file; name another", in_quotes(out).c_str());
    return name + ".bin";
}

std::string log_path(const std::string& model) { return run_name(model) + ".log.jsonl"; }
std::string settings_path(const std::string& model) { return run_name(model) + ".toml"; }
std::string new_log_path(const std::string& model) { return run_name(model) + ".tapernorm-log"; }

std::string lock_path(const std::string& model) { return run_name(model) + kLockEnding; }

std::vector<std::string> kept_logs(const std::string& model) {
    std::vector<std::string> logs;
    for (const size_t number : existing_numbers(log_path(model), Checkpoints::kMost))
        if (number > 0) logs.push_back(numbered(log_path(model), number));
    return logs;
}

std::vector<std::string> existing_files(const std::string& model) {
    std::vector<std::string> files;
    const std::string state = state_path(model);
    std::vector<size_t> numbers = existing_numbers(state, Checkpoints::kMost);
    std::reverse(numbers.begin(), numbers.end());
    for (const size_t number : numbers) files.push_back(numbered(state, number));
    const auto add = [&](const std::string& path) {
        if (exists(path)) files.push_back(path);
    };
    add(model);
    for (const std::string& log : kept_logs(model)) files.push_back(log);
    add(settings_path(model)), add(log_path(model));
    return files;
}

static std::map<std::string, std::string> all_metadata(const std::string& path) {
    try {
        return SafetensorsFile(path, FileUse::own).metadata();
    } catch (const Error&) {
        return {};
    }
}

std::string metadata_of(const std::string& path, const std::string& key) { return all_metadata(path)[key]; }
std::string content_of(const std::string& path) { return content_checksum(all_metadata(path)); }

std::string aside_path(const std::string& model) {
    const std::set<size_t> seen = numbers_set_aside(model);
    for (size_t number = 1;; number++) {
        const std::string to = old_name(model, number);
        if (!seen.contains(number) || (!exists(state_path(to)) && !exists(lock_path(to)) && existing_files(to).empty()))
            return to;
    }
}

void finish_set_aside(const std::string& model) {
    const std::set<size_t> numbers = numbers_set_aside(model);
    if (numbers.empty()) return;
    const bool here = exists(state_path(model));
    const std::string run = here ? metadata_of(state_path(model), "run") : run_of_log(log_path(model));
    if (run.empty()) return;
    for (const size_t number : numbers) {
        const std::string to = old_name(model, number);
        if (exists(lock_path(to)) || exists(state_path(to)) == here) continue;
        const std::string &from = here ? to : model, &whole = here ? model : to;
        const std::vector<std::string> files = existing_files(from);
        const std::string state = here && !files.empty() ? files.back() : state_path(to);
        const auto taken = [&](const std::string& path) { return exists(moved(path, from, whole)); };
        if (files.empty() || metadata_of(state, "run") != run || std::any_of(files.begin(), files.end(), taken))
            continue;
        return set_aside(from, whole, files);
    }
}

void name_new_log(const std::string& model) {
    const std::string log = new_log_path(model);
    if (std::rename(log.c_str(), log_path(model).c_str()) != 0 && errno != ENOENT)
        std::fprintf(stderr, "warning: cannot rename %s, the log of this run, to %s: %s\n", in_quotes(log).c_str(),
                     in_quotes(log_path(model)).c_str(), std::strerror(errno));
}

void finish_new_log(const std::string& model) {
    const std::string run = run_of_log(new_log_path(model));
    if (!run.empty() && run == metadata_of(state_path(model), "run") && run != run_of_log(log_path(model)))
        name_new_log(model);
}

std::string set_aside_new_log(const std::string& model) {
    const std::string log = new_log_path(model);
    if (!exists(log)) return "";
    const std::string to = log_path(aside_path(model));
    if (rename_to_free(log, to) != 0)
        fail("--out: cannot rename %s, the log of an earlier run, to %s: %s; move it away", in_quotes(log).c_str(),
             in_quotes(to).c_str(), std::strerror(errno));
    return to;
}

std::string run_set_aside(const std::string& model) {
    const std::string run = run_of_log(log_path(model));
    std::string newest;
    fs::file_time_type when;
    for (const size_t number : numbers_set_aside(model)) {
        const std::string to = old_name(model, number);
        std::error_code error;
        const fs::file_time_type written = fs::last_write_time(state_path(to), error);
        if (error) continue;
        if (!run.empty() && run == metadata_of(state_path(to), "run")) return to;
        if (newest.empty() || written >= when) newest = to, when = written;
    }
    return newest;
}

void set_aside(const std::string& model, const std::string& to, const std::vector<std::string>& files) {
    for (const std::string& path : files) {
        const std::string target = moved(path, model, to);
        if (rename_to_free(path, target) != 0)
            fail("cannot rename %s, a file of an earlier run, to %s: %s; move it away", in_quotes(path).c_str(),
                 in_quotes(target).c_str(), std::strerror(errno));
    }
}

// A signal that comes before the training, and saves nothing, takes the lock with it.
static char locks_to_remove[2][4096];  // the second: where a link leads to
static void end_without_lock(int signal) {
    for (const char* lock : locks_to_remove) unlink(lock);
    ::signal(signal, SIG_DFL);
    raise(signal);
}

RunLock::RunLock(const std::string& model) {
    check_writable(model);  // a folder that is missing or protected is an error of its own
    const auto claim_and_lock = [&](const std::string& name) { claim_output("--out", lock_path(name)), lock(name); };
    claim_and_lock(model);
    std::error_code error;
    const fs::path target = fs::canonical(model, error);
    if (!error && fs::is_symlink(model, error)) claim_and_lock(target.string());
    for (size_t i = 0; i < held_.size(); i++)
        if (held_[i].path.size() < sizeof locks_to_remove[i])
            held_[i].path.copy(locks_to_remove[i], held_[i].path.size());
    for (const int signal : {SIGINT, SIGTERM, SIGHUP})
        if (::signal(signal, SIG_IGN) != SIG_IGN) ::signal(signal, end_without_lock);
}

RunLock::~RunLock() {
    for (char* lock : {locks_to_remove[0], locks_to_remove[1]}) std::memset(lock, 0, sizeof locks_to_remove[0]);
    for (const Held& h : held_) {
        if (names_file(h.path, h.fd)) unlink(h.path.c_str());
        close(h.fd);
    }
}

bool RunLock::retake() {
    bool any = false;
    for (size_t i = 0, all = held_.size(); i < all; i++) {
        const std::string folder = fs::path(held_[i].path).parent_path().string();
        if (names_file(held_[i].path, held_[i].fd) || !exists(folder.empty() ? "." : folder)) continue;
        lock(std::string(held_[i].model));
        if (held_.size() == all) continue;  // the other one's
        std::swap(held_[i], held_.back());
        close(held_.back().fd);
        held_.pop_back();
        any = true;
    }
    return any;
}

void RunLock::lock(const std::string& model) {
    const std::string path = lock_path(model);
    for (const Held& h : held_)
        if (names_file(path, h.fd)) return;  // a link within the run itself
    for (;;) {
        const int fd = open_regular(path, O_RDWR | O_CREAT | O_NOFOLLOW);
        if (fd < 0)
            fail(
                "--out: cannot make %s, by which other runs see that the name is taken: %s; remove it, or give another name",
                in_quotes(path).c_str(), std::strerror(errno));
        // Some network file systems have no locks: then there is nothing to rely on but the user.
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            const std::string owner = lock_owner(fd);
            close(fd);
            fail("--out: %s is being written by another run, process %s; wait for it, or give another name",
                 in_quotes(model).c_str(), owner.c_str());
        }
        if (names_file(path, fd)) {
            if (!is_lock(fd)) {
                close(fd);
                fail("--out: %s would be overwritten, and is no lock of a run; move it away, or give another name",
                     in_quotes(path).c_str());
            }
            held_.push_back({model, path, fd});
            const std::string pid = std::to_string(getpid()) + "\n";
            (void)!ftruncate(fd, 0), (void)!pwrite(fd, pid.data(), pid.size(), 0);
            return;
        }
        close(fd);  // its owner has removed it between our open and our lock
    }
}

}  // namespace tapernorm::train
