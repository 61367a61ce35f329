// The Makefile compiles this file again when the commit changes or what is built in.
#include "io/version.h"

#ifdef TN_CUDA
#include <cuda_runtime_api.h>
#endif

namespace tapernorm {

// The text of a macro's value.
#define TEXT_OF(value) #value
#define VALUE_TEXT(macro) TEXT_OF(macro)
#ifndef TAPERNORM_COMMIT
#define TAPERNORM_COMMIT unknown
#endif

std::string version_text() {
    const auto part = [](bool built_in, const char* name) {
        return (built_in ? "with " : "without ") + std::string(name);
    };
    bool mpi = false, nccl = false, pcre2 = false;
    std::string cuda = part(false, "CUDA");
#ifdef TN_CUDA
    cuda =
        part(true, "CUDA ") + std::to_string(CUDART_VERSION / 1000) + '.' + std::to_string(CUDART_VERSION % 1000 / 10);
#endif
#ifdef HAVE_MPI
    mpi = true;
#endif
#ifdef HAVE_NCCL
    nccl = true;
#endif
#ifdef HAVE_PCRE2
    pcre2 = true;
#endif
#ifdef __clang__
    const char* compiler = "";  // __VERSION__ names Clang
#else
    const char* compiler = "GCC ";
#endif
    return "commit " VALUE_TEXT(TAPERNORM_COMMIT) ", " + std::string(compiler) + __VERSION__ + "; built " + cuda +
           ", " + part(mpi, "MPI") + ", " + part(nccl, "NCCL") + ", " + part(pcre2, "PCRE2");
}

}  // namespace tapernorm
