// Input files of the data programs.
#pragma once
#include <glob.h>

#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "runtime/error.h"

namespace tapernorm::prepare {

// One file, or all that match a pattern with * ? or [ ], in the order of their names.
inline std::vector<std::string> matching_files(const std::string& pattern) {
    glob_t found{};
    const int result = glob(pattern.c_str(), GLOB_TILDE, nullptr, &found);
    const size_t count = result == 0 ? found.gl_pathc : 0;
    const std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + count);
    globfree(&found);
    if (paths.empty()) fail("no file is named %s", in_quotes(pattern).c_str());
    return paths;
}

}  // namespace tapernorm::prepare
