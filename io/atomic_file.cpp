#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "io/claims.h"
#include "runtime/error.h"

namespace tapernorm {

namespace fs = std::filesystem;
using namespace std::string_literals;

namespace {

struct FileBusy : Error {
    using Error::Error;
};

std::string remedy(int error) {
    switch (error) {
        case ENOSPC:
        case EDQUOT:
            return "free some space or choose another place";
        case EFBIG:
            return strprintf(
                "the file system or the shell's limit (ulimit -f) allows no file of this size; prlimit --pid %d "
                "--fsize=unlimited lifts the limit",
                int(getpid()));
        case EACCES:
        case EPERM:
        case EROFS:
            return "choose a place you may write to";
        case ENOENT:
            return "create its directory first (mkdir -p)";
        case ENOTDIR:
            return "a part of the path is a file, not a directory";
        case ENAMETOOLONG:
            return "choose a shorter name";
        default:
            return "check the disk, or choose another place";
    }
}

std::string resolve_links(const std::string& path) {
    std::error_code ec;
    if (!fs::is_symlink(path, ec)) return path;
    const fs::path target = fs::canonical(path, ec);
    if (ec)
        fail("cannot write %s: it is a symbolic link to a file that does not exist; remove the link",
             in_quotes(path).c_str());
    return target.string();
}

std::string directory_of(const std::string& path) {
    const std::string parent = fs::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

}  // namespace

void check_place(const std::string& path, const std::string& folder) {
    std::error_code ignored;
    const std::string place = fs::weakly_canonical(fs::absolute(folder, ignored), ignored).string();
    for (const char* kernel : {"/dev", "/proc"})
        if ((place + "/").starts_with(kernel + "/"s) && !(place + "/").starts_with("/dev/shm/"))
            fail("cannot write %s: in '%s' are devices and processes, no files; name another place",
                 in_quotes(path).c_str(), kernel);
}

void check_folder(const std::string& path, const std::string& folder) {
    std::error_code ignored;
    if (!fs::exists(folder, ignored))
        fail("cannot write %s: the directory %s does not exist; create it first (mkdir -p)", in_quotes(path).c_str(),
             in_quotes(folder).c_str());
}

int open_regular(const std::string& path, int flags) {
    const int fd = open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0666);
    struct stat info;
    if (fd < 0 || (fstat(fd, &info) == 0 && S_ISREG(info.st_mode))) return fd;
    close(fd);
    errno = EEXIST;
    return -1;
}

int rename_to_free(const std::string& from, const std::string& to) {
    if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -1;
    struct stat info;  // some file systems cannot
    if (lstat(to.c_str(), &info) == 0) return errno = EEXIST, -1;
    return rename(from.c_str(), to.c_str());
}

namespace {

// Opens the temporary file for one writer. A temporary file left by a crash is taken over; one that is being written is not. On failure
// returns -1 with errno set, to EWOULDBLOCK where another process holds the file.
int open_temporary(const std::string& temporary) {
    for (;;) {
        const int fd = open_regular(temporary, O_WRONLY | O_CREAT | O_NOFOLLOW);
        if (fd < 0) return -1;
        if (struct stat info; fstat(fd, &info) == 0 && info.st_nlink > 1) {  // no program made it: a user's own
            close(fd);
            errno = EEXIST;
            return -1;
        }
        // Some network file systems have no locks; there, renaming still keeps readers safe.
        const bool busy = flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        struct stat opened, named;
        const bool same = fstat(fd, &opened) == 0 && stat(temporary.c_str(), &named) == 0 &&
                          opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
        if (!busy && same && ftruncate(fd, 0) == 0) return fd;
        const int error = busy ? EWOULDBLOCK : errno;
        close(fd);
        if (busy || same) {
            errno = error;
            return -1;
        }
        // The previous owner renamed or removed the file between our open and our lock: try again.
    }
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, double patience) : path_(path) {
    if (path.empty()) fail("cannot write a file without a name");
    check_place(path, directory_of(path));
    target_ = resolve_links(path);
    temporary_ = target_ + kTemporaryEnding;
    struct stat info;
    const bool exists = stat(target_.c_str(), &info) == 0;
    if (fs::path(path).extension().string().starts_with(".tapernorm-"))
        fail("cannot write %s: the programs keep this ending for files of theirs that are in use; give another name",
             in_quotes(path).c_str());
    if (exists && S_ISDIR(info.st_mode))
        fail("cannot write %s: it is a directory; name a file in it", in_quotes(path).c_str());
    if (exists && !S_ISREG(info.st_mode))
        fail("cannot write %s: it is not a regular file; name another", in_quotes(path).c_str());
    if (exists && access(target_.c_str(), W_OK) != 0)
        fail("cannot write %s: the file is write-protected (%s); name another, or chmod u+w it",
             in_quotes(path).c_str(), std::strerror(errno));
    check_place(path, directory_of(target_));
    if (!exists && target_.back() == '/')
        fail("cannot write %s: it names a directory; name a file in it", in_quotes(path).c_str());

    check_folder(path, directory_of(target_));
    check_no_input("cannot write " + in_quotes(path), temporary_);
    const auto begin = std::chrono::steady_clock::now();
    while ((fd_ = open_temporary(temporary_)) < 0 && errno == EWOULDBLOCK) {
        if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() >= patience)
            throw FileBusy(strprintf(
                "cannot write %s: another process is still writing it after %g seconds; wait for it, or give another name",
                in_quotes(path).c_str(), patience));
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    if (fd_ < 0 && (errno == EEXIST || errno == EISDIR || errno == ELOOP || errno == ENXIO))
        fail(
            "cannot write %s: could not create %s: %s; the programs keep this name for themselves: remove what is there",
            in_quotes(path).c_str(), in_quotes(temporary_).c_str(), std::strerror(errno));
    if (fd_ < 0) fail_with(errno, ("create " + in_quotes(temporary_)).c_str());
    if (exists) (void)!fchmod(fd_, info.st_mode & 07777);  // keeps the old file's permissions if allowed to
}

AtomicFile::~AtomicFile() {
    if (fd_ < 0) return;
    unlink(temporary_.c_str());
    close(fd_);
}

void AtomicFile::fail_with(int error, const char* action) {
    try {
        fail("cannot write %s: could not %s: %s; %s", in_quotes(path_).c_str(), action, std::strerror(error),
             remedy(error).c_str());
    } catch (const Error& e) {
        if (error == ENOSPC || error == EDQUOT) throw DiskFull(e.what());
        throw;
    }
}

void AtomicFile::write(const void* data, size_t bytes) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t done = ::write(fd_, next, std::min(bytes, size_t(1) << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) fail_with(errno, "write the data (the old file is untouched)");
        next += done;
        bytes -= size_t(done);
    }
}

void AtomicFile::commit(size_t keep) {
    if (fsync(fd_) != 0) fail_with(errno, "flush to the disk (the old file is untouched)");
    for (size_t i = target_ == path_ ? keep : 0; i-- > 1;)
        if (rename(numbered(path_, i - 1).c_str(), numbered(path_, i).c_str()) != 0 && errno != ENOENT)
            fail_with(errno, "rename the old file");
    if (rename(temporary_.c_str(), target_.c_str()) != 0) fail_with(errno, "rename the finished file");
    // Network file systems may report a failed write only here, but fsync has already reported all of them.
    close(std::exchange(fd_, -1));

    // The new name survives a power cut once its directory is on the disk; some file systems cannot flush a directory.
    const int directory = open(directory_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return;
    const bool flushed = fsync(directory) == 0 || errno == EINVAL;
    const int error = errno;
    close(directory);
    if (!flushed) fail_with(error, "flush its directory to the disk (the new file is in place)");
}

std::string numbered(const std::string& path, size_t number) {
    if (number == 0) return path;
    const fs::path p(path);
    return (p.parent_path() / p.stem()).string() + "." + std::to_string(number) + p.extension().string();
}

std::optional<std::vector<std::string>> names_beside(const std::string& path) {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator file(directory_of(path), error), end; !error && file != end; file.increment(error))
        names.push_back(file->path().filename().string());
    if (error) return {};
    return names;
}

std::vector<size_t> existing_numbers(const std::string& path, size_t most) {
    std::vector<size_t> numbers;
    const auto names = names_beside(path);
    if (!names) {
        std::error_code ignored;
        for (size_t number = 0; number <= most; number++)
            if (fs::exists(fs::symlink_status(numbered(path, number), ignored))) numbers.push_back(number);
        return numbers;
    }
    const std::string file = fs::path(path).filename().string(), begin = fs::path(path).stem().string() + ".";
    for (const std::string& name : *names) {
        const char* const end = name.data() + name.size();
        size_t number = 0;
        if (name == file)
            numbers.push_back(0);
        else if (name.starts_with(begin) &&
                 std::from_chars(name.data() + begin.size(), end, number).ec == std::errc() && number > 0 &&
                 number <= most && name == numbered(file, number))
            numbers.push_back(number);
    }
    std::sort(numbers.begin(), numbers.end());
    return numbers;
}

void check_writable(const std::string& path) {
    try {
        AtomicFile probe(path, 0);
    } catch (const FileBusy&) {
        // Another process will be done with it before long.
    }
}

}  // namespace tapernorm
