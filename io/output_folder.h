// A folder for what a command writes, of which nothing is left where the command fails.
#pragma once
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "io/atomic_file.h"
#include "runtime/error.h"

namespace tapernorm {

// One process at a time has a folder (where the file system has locks; the folder itself is locked, there is no file for it).
class OutputFolder {
  public:
    // Makes it where it is missing, and its parents too where `parents` is true. Fails where another process writes to it.
    explicit OutputFolder(const std::string& path, bool parents = true) : path_(path) {
        check_place(path, path);
        while (!make_and_lock(parents)) {
        }
    }
    ~OutputFolder() {
        std::error_code ignored;
        for (const std::filesystem::path& file : files_) std::filesystem::remove(file, ignored);
        remove_empty();
        if (lock_ >= 0) close(lock_);
        ours().erase(name_);
    }
    OutputFolder(const OutputFolder&) = delete;
    OutputFolder& operator=(const OutputFolder&) = delete;

    std::string path() const { return path_.string(); }

    // The path of a file that is about to be written: removed at the end, unless `keep` was called or it is there already.
    std::string file(const std::string& name) {
        const std::filesystem::path path = path_ / name;
        std::error_code ignored;
        if (!std::filesystem::exists(std::filesystem::symlink_status(path, ignored))) files_.push_back(path);
        return path.string();
    }
    void keep() { kept_.insert(kept_.end(), files_.begin(), files_.end()), files_.clear(); }
    // What was kept so far is to be removed, too.
    void take_back() { files_.insert(files_.end(), kept_.begin(), kept_.end()), kept_.clear(); }

  private:
    // False where another process has removed the folder between the two.
    bool make_and_lock(bool parents) {
        namespace fs = std::filesystem;
        std::error_code error, ignored;
        made_.clear();
        for (fs::path p = path_; !p.empty() && !fs::exists(p, ignored); p = p.parent_path()) made_.push_back(p);
        parents ? fs::create_directories(path_, error) : fs::create_directory(path_, error);
        if (error || !fs::is_directory(path_, ignored)) {
            remove_empty();
            fail("cannot make the folder %s: %s; choose another place", in_quotes(path()).c_str(),
                 error ? error.message().c_str() : "a file has its name");
        }
        name_ = fs::canonical(path_, error).string();
        if (error) return false;
        // This process may have it already: what is downloaded may go where the shards go.
        if (!ours().insert(name_).second) return name_.clear(), true;
        lock_ = open(path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (lock_ >= 0 && flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(lock_), ours().erase(name_);
            fail("the folder %s is being written by another program; wait for it, or choose another place",
                 in_quotes(path()).c_str());
        }
        struct stat opened, named;
        if (stat(path().c_str(), &named) == 0 &&
            (lock_ < 0 ||
             (fstat(lock_, &opened) == 0 && opened.st_ino == named.st_ino && opened.st_dev == named.st_dev)))
            return true;
        if (lock_ >= 0) close(std::exchange(lock_, -1));
        ours().erase(name_);
        return false;
    }

    static std::set<std::string>& ours() {
        static std::set<std::string> locked;
        return locked;
    }
    void remove_empty() {
        std::error_code ignored;
        for (const std::filesystem::path& p : made_) std::filesystem::remove(p, ignored);  // none with anything in it
    }

    std::filesystem::path path_;
    std::string name_;  // where this has locked it
    int lock_ = -1;
    std::vector<std::filesystem::path> made_, files_, kept_;  // the innermost folder first
};

}  // namespace tapernorm
