// AtomicFile writes a file that is either the old one or the new one, never half of each: under a temporary
// name in the same directory (PATH.tapernorm-tmp, which no other program uses), flushed to the disk, renamed.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "runtime/error.h"

namespace tapernorm {

// There is no room for the file (ENOSPC, EDQUOT).
struct DiskFull : Error {
    using Error::Error;
};

class AtomicFile {
  public:
    // Fails at once if the directory is missing or not writable, or if `path` is a directory, a device or a write-protected
    // file. A symbolic link is followed: its target is replaced, and the link stays. Where another process is writing the same
    // file, waits for it up to `patience` seconds.
    explicit AtomicFile(const std::string& path, double patience = 60);
    ~AtomicFile();  // without commit(): removes the temporary, the old file stays as it was
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* data, size_t bytes);

    // keep > 1: the previous file gets the number 1 (numbered(path, 1)), 1 becomes 2 and so on; keep - 1 of them stay. All
    // of this is renaming, done once the new file is on the disk: at any moment, every name holds a whole file. (Through a
    // symbolic link, which may lead to another file system, nothing is kept.)
    void commit(size_t keep = 1);

  private:
    [[noreturn]] void fail_with(int error, const char* action);

    std::string path_;    // as given, for messages
    std::string target_;  // symbolic links resolved
    std::string temporary_;
    int fd_ = -1;
};

// Fails if `path`, to be written in `folder`, would be among devices or processes (/dev/shm holds files like any disk).
void check_place(const std::string& path, const std::string& folder);
// Fails if that folder does not exist.
void check_folder(const std::string& path, const std::string& folder);

// Like open() and rename(), with -1 and errno, for the few files that AtomicFile is not for. Another thing than a regular file
// is EEXIST, and no pipe makes the program wait.
int open_regular(const std::string& path, int flags);
// EEXIST where there is anything of the name `to`.
int rename_to_free(const std::string& from, const std::string& to);

// "model.state.bin", 2 -> "model.state.2.bin"; number 0 is the file itself.
std::string numbered(const std::string& path, size_t number);
// The numbers up to `most` of the numbered files that are there, ascending; 0 is `path` itself. A link counts wherever it leads.
std::vector<size_t> existing_numbers(const std::string& path, size_t most);
// The names in the folder of `path`; none where it cannot be listed. Asking for each of a hundred names in turn takes as many
// trips to the server where the folder is on a network, and listing it one or two.
std::optional<std::vector<std::string>> names_beside(const std::string& path);

// Fails if writing `path` would, before hours of work depend on it. Leaves no trace.
void check_writable(const std::string& path);

}  // namespace tapernorm
