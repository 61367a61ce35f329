// Downloads by curl, and the bytes of files, packed or not.
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "io/files.h"
#include "io/mapped_file.h"
#include "io/output_folder.h"
#include "runtime/error.h"

extern char** environ;  // POSIX: no header declares it

namespace tapernorm::prepare {

namespace fs = std::filesystem;

// The bytes of a file, unpacked by gzip, xz or zstd according to the end of its name, or the output of a program.
class ByteSource {
  public:
    // /dev/stdin and what the shell puts in the place of <(command). Another FIFO, or a folder, is an error.
    static bool is_stream(const std::string& path) {
        return path.starts_with("/dev/") && !path.starts_with("/dev/shm/");
    }

    explicit ByteSource(const std::string& path) : name_(in_quotes(path)) {
        const bool stream = is_stream(path);
        if (!stream) file_ = MappedFile(path);
        if (path.ends_with(".gz")) {
            start({"gzip", "-dc"}, path);
        } else if (path.ends_with(".xz")) {
            start({"xz", "-dc"}, path);
        } else if (path.ends_with(".zst")) {
            start({"zstd", "-dcq"}, path);
        } else if (stream && (fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC)) < 0) {
            fail("cannot read %s: %s", name_.c_str(), std::strerror(errno));
        }
    }
    ByteSource(const std::vector<std::string>& command, const std::string& name) : name_(name) { start(command); }
    ~ByteSource() {
        if (fd_ >= 0) close(fd_);  // a program that is still writing is ended by the broken pipe
        if (child_ > 0) waitpid(child_, nullptr, 0);
    }
    ByteSource(const ByteSource&) = delete;
    ByteSource& operator=(const ByteSource&) = delete;

    const std::string& name() const { return name_; }

    // Reads up to `bytes`; fewer only at the end. Fails where the file has changed since it was opened.
    size_t read(char* dst, size_t bytes) {
        size_t have = fd_ < 0 ? std::min(bytes, file_.size() - at_) : 0;
        std::copy_n(file_.data() + at_, have, dst);
        at_ += have;
        file_.check();
        while (fd_ >= 0 && have < bytes) {
            const ssize_t got = ::read(fd_, dst + have, bytes - have);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) fail("cannot read %s: %s", name_.c_str(), std::strerror(errno));
            if (got == 0) break;
            have += size_t(got);
        }
        if (have < bytes && child_ > 0) finish();
        return have;
    }

    std::string read_all() {
        std::string all, block(1 << 16, '\0');
        while (const size_t got = read(block.data(), block.size())) all.append(block, 0, got);
        return all;
    }

  private:
    // input: the program's standard input, if any. (By its name, a program could repeat it to the terminal as it is.)
    void start(const std::vector<std::string>& command, const std::string& input = "") {
        command_ = command[0];
        int ends[2];
        if (pipe(ends) != 0) fail("cannot run %s: %s", command_.c_str(), std::strerror(errno));
        fcntl(ends[0], F_SETFD, FD_CLOEXEC);
        fcntl(ends[1], F_SETFD, FD_CLOEXEC);
        std::vector<char*> argv;
        for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
        argv.push_back(nullptr);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        if (!input.empty()) posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, input.c_str(), O_RDONLY, 0);
        const int error = posix_spawnp(&child_, argv[0], &actions, nullptr, argv.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        close(ends[1]);
        fd_ = ends[0];
        if (error) {
            close(fd_);
            fail("%s needs the program %s, which cannot run: %s; install it", name_.c_str(), command_.c_str(),
                 std::strerror(error));
        }
    }

    void finish() {
        int status = 0;
        waitpid(child_, &status, 0);
        child_ = 0;
        file_.check();
        if (WIFSIGNALED(status))
            fail("%s: %s was ended by signal %d%s; try again", name_.c_str(), command_.c_str(), WTERMSIG(status),
                 WTERMSIG(status) == SIGKILL ? " (out of memory?)" : "");
        if (status != 0)
            fail(
                "%s: %s failed (status %d, its own message is above); the file may be damaged: remove it and get it again",
                name_.c_str(), command_.c_str(), WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    }

    std::string name_, command_;
    MappedFile file_;  // where there is one
    size_t at_ = 0;    // what is before was read from it
    int fd_ = -1;      // of a stream or a program
    pid_t child_ = 0;
};

// ----------------------------------------------------------------------------------------------------------
// Downloads

inline std::string sha256_of(const std::string& path) {
    // The first program is on Linux, the second on macOS.
    const std::string program = "if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi < \"$1\"";
    return ByteSource({"sh", "-c", program, "sh", path}, in_quotes(path)).read_all().substr(0, 64);
}

// What git calls a file with these bytes: SHA-1 of "blob SIZE", a zero byte, and the bytes.
inline std::string git_blob_of(const std::string& path) {
    const std::string program =
        "{ printf 'blob %s\\0' \"$2\"; cat \"$1\"; } | "
        "if command -v sha1sum >/dev/null; then sha1sum; else shasum; fi";
    const std::string size = std::to_string(fs::file_size(path));
    return ByteSource({"sh", "-c", program, "sh", path, size}, in_quotes(path)).read_all().substr(0, 40);
}

// The last value of a header, in lower case, among those that curl saved, where each redirection has its own set; "" if
// there is none.
inline std::string header_value(const std::string& path, const std::string& header) {
    if (!fs::exists(path)) return "";
    std::istringstream file(read_text(path));
    std::string value;
    for (std::string line; std::getline(file, line);) {
        std::transform(line.begin(), line.end(), line.begin(), [](unsigned char c) { return char(std::tolower(c)); });
        if (!line.starts_with(header + ":")) continue;
        value = line.substr(header.size() + 1);
        std::erase_if(value, [](char c) { return std::isspace(static_cast<unsigned char>(c)) || c == '"'; });
    }
    return value;
}

inline int run_curl(const std::string& url, const std::string& part, const std::string& headers) {
    std::fprintf(stderr, "downloading %s\n", printable(url).c_str());
    const std::string meter = isatty(STDERR_FILENO) ? "--progress-bar" : "--silent";
    std::vector<std::string> command =
        {"curl",          "--fail", "--location",    "--show-error", meter,      "--retry", "5",
         "--continue-at", "-",      "--dump-header", headers,        "--output", part,      url};
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    constexpr int kCannotRun = 127;
    const pid_t child = fork();
    if (child < 0) fail("downloads need the program curl, which cannot run: %s", std::strerror(errno));
    if (child == 0) {
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGTERM);  // else it would go on writing where the next prepare begins
#endif
        execvp("curl", argv.data());
        _exit(kCannotRun);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == kCannotRun)
        fail("downloads need the program curl, which cannot run; install it");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Downloads to `path` unless it exists. An interrupted download continues from `path`.part. The checksum is ours or the
// one that Hugging Face sends along (SHA-256 with large files, git's with small ones); without either, only the length is checked.
// by_hand: whether the file may be put there by hand instead.
inline void download(std::string url, const std::string& path, std::string sha256, const std::string& mirror,
                     bool by_hand = true) {
    if (fs::exists(path)) return;
    if (!mirror.empty()) url = mirror + url.substr(url.find('/', url.find("//") + 2));
    OutputFolder folder(fs::path(path).parent_path().string());
    const std::string part = path + ".part", headers = folder.file(fs::path(path).filename().string() + ".headers");
    int status = run_curl(url, part, headers);
    constexpr int kBadRange = 33, kBadResume = 36, kHttpError = 22, kCannotWrite = 23;  // curl's exit codes
    if ((status == kBadRange || status == kBadResume || status == kHttpError) && fs::exists(part) &&
        fs::file_size(part) > 0) {
        std::fprintf(stderr, "the download cannot be continued; starting over\n");
        fs::remove(part);
        status = run_curl(url, part, headers);
    }
    if (status == kCannotWrite)
        fail("cannot download %s: cannot write %s; is the disk full? What is there stays: make room and try again",
             url.c_str(), part.c_str());
    if (status != 0 || !fs::exists(part))
        fail(
            "cannot download %s (curl's status %d); try again, which continues where it stopped, or %sname another host "
            "with --mirror",
            url.c_str(), status, by_hand ? ("put the file at " + path + " yourself, or ").c_str() : "");
    std::string expected = std::move(sha256);
    if (expected.empty()) expected = header_value(headers, "x-linked-etag");
    if (expected.empty()) expected = header_value(headers, "etag");
    fs::remove(headers);
    const bool git = expected.size() == 40, known = git || expected.size() == 64;
    if (!known || expected.find_first_not_of("0123456789abcdef") != expected.npos) {
        std::fprintf(stderr, "%s: no checksum is known; only the length was checked\n", printable(path).c_str());
    } else if (const std::string actual = git ? git_blob_of(part) : sha256_of(part); actual != expected) {
        fs::remove(part);
        fail(
            "%s: expected %s %s, found %s; the download was damaged or the host's file has changed; it was removed, try again",
            url.c_str(), git ? "git's checksum" : "SHA-256", expected.c_str(), actual.c_str());
    }
    fs::rename(part, path);
}

}  // namespace tapernorm::prepare
