// What --version prints.
#pragma once
#include <string>

namespace tapernorm {

// "commit 1a2b3c4, GCC 12.2.0; built without CUDA, with MPI, without NCCL, with PCRE2"; the commit is "unknown" if the build was
// not made in a git checkout.
std::string version_text();

}  // namespace tapernorm
