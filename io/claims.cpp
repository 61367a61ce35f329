#include "io/claims.h"

#include <sys/stat.h>

#include <map>
#include <mutex>
#include <utility>

#include "runtime/error.h"

namespace tapernorm {

namespace {

struct Claims {
    using File = std::pair<dev_t, ino_t>;
    std::mutex mutex;
    std::map<File, std::string> inputs;
    std::map<File, std::pair<std::string, std::string>> outputs;  // flag, path
};

Claims& claims() {
    static Claims all;
    return all;
}

[[noreturn]] void refuse(const std::string& flag, const std::string& output, const std::string& input) {
    const std::string as = input == output ? "" : ", as " + in_quotes(input);
    fail("%s: %s would be overwritten, and is read by this program%s; expected another name", flag.c_str(),
         in_quotes(output).c_str(), as.c_str());
}

}  // namespace

void claim_input(const std::string& path, int fd) {
    struct stat info;
    if (fstat(fd, &info) != 0) return;
    const std::lock_guard lock(claims().mutex);
    if (const auto found = claims().outputs.find({info.st_dev, info.st_ino}); found != claims().outputs.end())
        refuse(found->second.first, found->second.second, path);
    claims().inputs.emplace(Claims::File(info.st_dev, info.st_ino), path);
}

void claim_output(const std::string& flag, const std::string& path) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return;
    const std::lock_guard lock(claims().mutex);
    if (const auto found = claims().inputs.find({info.st_dev, info.st_ino}); found != claims().inputs.end())
        refuse(flag, path, found->second);
    claims().outputs.emplace(Claims::File(info.st_dev, info.st_ino), std::pair(flag, path));
}

}  // namespace tapernorm
