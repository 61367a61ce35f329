#include "io/claims.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "runtime/error.h"

namespace tapernorm {

namespace {

using File = std::pair<dev_t, ino_t>;

struct Claims {
    std::mutex mutex;
    std::map<File, std::string> inputs;
    std::map<File, std::pair<std::string, std::string>> outputs;  // flag, path
};

Claims& claims() {
    static Claims all;
    return all;
}

// Once a file is gone, its inode number is given to a new one, which nobody has claimed.
bool still_names(const std::string& path, const File& file) {
    struct stat info;
    return stat(path.c_str(), &info) == 0 && File(info.st_dev, info.st_ino) == file;
}

[[noreturn]] void refuse(const std::string& flag, const std::string& output, const std::string& input) {
    const std::string as = input == output ? "" : ", as " + in_quotes(input);
    fail("%s: %s would be overwritten, and is read by this program%s; expected another name", flag.c_str(),
         in_quotes(output).c_str(), as.c_str());
}

// "a" of a.bin, a.state.bin, a.state.2.bin, a.log.jsonl, a.log.1.jsonl and a.toml; "" where no file of a run has this name.
std::string_view run_of(std::string_view path) {
    const auto drop = [&](std::string_view end) {
        const bool found = path.ends_with(end);
        if (found) path.remove_suffix(end.size());
        return found;
    };
    if (drop(".toml")) return path;
    const char* const kind = drop(".jsonl") ? ".log" : drop(".bin") ? ".state" : nullptr;
    if (!kind) return "";
    const std::string_view model = path;
    path = path.substr(0, path.find_last_not_of("0123456789") + 1);
    if (path.size() < model.size() && !drop(".")) path = model;
    return drop(kind) ? path : model;
}

}  // namespace

std::string lock_owner(int fd) {
    char text[32] = {};
    const ssize_t size = pread(fd, text, sizeof text - 1, 0);
    const std::string owner(text, size > 0 ? std::strspn(text, "0123456789") : 0);
    return owner.empty() ? "unknown" : owner;
}

void check_no_run(const std::string& flag, const std::string& path) {
    const std::string run(run_of(path)), lock = run + kLockEnding;
    if (const int fd = open(lock.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW); fd >= 0) {
        const bool held = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        const std::string owner = held ? lock_owner(fd) : "";
        close(fd);
        if (held)
            fail("%s: %s belongs to a run that is going on, process %s; give another name", flag.c_str(),
                 in_quotes(path).c_str(), owner.c_str());
    }
    const size_t ending = path.ends_with(".bin") ? 4 : path.ends_with(".jsonl") ? 6 : 0;
    if (ending > 0 && run.size() != path.size() - ending)
        fail("%s: %s would be taken for a file of the run %s; expected a name without %s", flag.c_str(),
             in_quotes(path).c_str(), in_quotes(run).c_str(), ending == 4 ? ".state" : ".log");
}

void claim_input(const std::string& path, int fd) {
    struct stat info;
    if (fstat(fd, &info) != 0) return;
    const File file(info.st_dev, info.st_ino);
    const std::lock_guard lock(claims().mutex);
    if (const auto found = claims().outputs.find(file);
        found != claims().outputs.end() && still_names(found->second.second, file))
        refuse(found->second.first, found->second.second, path);
    std::string& name = claims().inputs[file];
    if (!still_names(name, file)) name = path;
}

void check_no_input(const std::string& what, const std::string& path) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return;
    const File file(info.st_dev, info.st_ino);
    const std::lock_guard lock(claims().mutex);
    if (const auto found = claims().inputs.find(file);
        found != claims().inputs.end() && still_names(found->second, file))
        refuse(what, path, found->second);
}

void claim_output(const std::string& flag, const std::string& path) {
    check_no_input(flag, path);
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return;
    const std::lock_guard lock(claims().mutex);
    const File file(info.st_dev, info.st_ino);
    std::pair<std::string, std::string>& claim = claims().outputs[file];
    if (!still_names(claim.second, file)) claim = {flag, path};
}

}  // namespace tapernorm
