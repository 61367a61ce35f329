// A whole file mapped into memory, to be read.
//
// A map is not a copy: who shortens the file under it would end the program by SIGBUS, and who writes to it changes what was
// read. (Reading by pread would need a copy of every model and corpus; files that are replaced by renaming, as most programs
// do, disturb neither.) Pages that are gone, or that the disk cannot read, become pages of zeros instead, so that the program
// goes on to the next check(), which is an error with the file's name. So is a file that has changed in place.
#pragma once
#include <cstddef>
#include <string>

#include "runtime/error.h"

namespace tapernorm {

struct FileChanged : Error {
    using Error::Error;
};

// Whether a file is only read, or one that this program may also replace (see io/claims.h).
enum class FileUse { input, own };

class MappedFile {
  public:
    MappedFile() = default;
    // Fails unless `path` is a readable regular file.
    explicit MappedFile(const std::string& path, FileUse use = FileUse::input);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;

    const unsigned char* data() const { return data_; }
    size_t size() const { return size_; }

    // To be called after reading, before anything relies on what was read: fails if it may not be what the file had when it
    // was opened.
    void check() const;

    // check() of all files that are open. And of all that were, as far as pages have been lost.
    static void check_all();

  private:
    struct Place;  // in the table of all maps

    unsigned char* data_ = nullptr;
    size_t size_ = 0;
    Place* place_ = nullptr;
};

}  // namespace tapernorm
