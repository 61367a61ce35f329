#include "io/files.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "io/atomic_file.h"
#include "runtime/error.h"

namespace tapernorm {

std::vector<std::string> matching_files(const std::string& pattern) {
    std::error_code ec;
    const bool plain = pattern.find_first_of("*?[") == std::string::npos && !pattern.starts_with('~');
    if (plain || std::filesystem::exists(pattern, ec)) return {pattern};
    glob_t found = {};
    const int rc = glob(pattern.c_str(), GLOB_TILDE, nullptr, &found);
    std::vector<std::string> names(found.gl_pathv, found.gl_pathv + (rc == 0 ? found.gl_pathc : 0));
    globfree(&found);
    if (names.empty()) fail("no file matches %s; check the path", in_quotes(pattern).c_str());
    std::sort(names.begin(), names.end());  // glob sorts by the locale
    return names;
}

std::string read_text(const std::string& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.data()), file.size()};
}

void write_text(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}

}  // namespace tapernorm
