#include "train/appended_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "io/atomic_file.h"
#include "runtime/error.h"

namespace tapernorm::train {

AppendedFile::~AppendedFile() {
    flush();
    if (fd_ >= 0) close(fd_);
}

void AppendedFile::flush() const {
    if (fd_ >= 0) (void)!fdatasync(fd_);
}

void AppendedFile::open(bool fresh) {
    fd_ = open_regular(path_, O_WRONLY | O_CREAT | O_APPEND | (fresh ? O_EXCL : 0));
    if (fd_ < 0) warn(errno == EEXIST ? "something else has its name" : std::strerror(errno));
}

bool AppendedFile::empty() const { return fd_ >= 0 && lseek(fd_, 0, SEEK_END) == 0; }

void AppendedFile::append(const std::string& text) {
    if (fd_ < 0) return;
    struct stat info;
    if (fstat(fd_, &info) == 0 && info.st_nlink == 0) return warn("it was removed");
    const off_t before = lseek(fd_, 0, SEEK_END);
    size_t written = 0;
    ssize_t done = 0;  // where only a part was written, the next call says why
    while (written < text.size() && (done = ::write(fd_, text.data() + written, text.size() - written)) > 0)
        written += size_t(done);
    if (written == text.size()) return;
    const int error = done < 0 ? errno : ENOSPC;
    // Half a text would spoil the next one, should there be space again.
    if (written > 0 && before >= 0) (void)!ftruncate(fd_, before);
    warn(std::strerror(error));
}

void AppendedFile::warn(const std::string& problem) {
    if (!warned_)
        std::fprintf(stderr, "warning: cannot write the %s %s: %s; the run continues without it\n", what_.c_str(),
                     in_quotes(path_).c_str(), problem.c_str());
    warned_ = true;
}

}  // namespace tapernorm::train
