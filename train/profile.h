// Names for stretches of the time line that Nsight Systems shows; nothing in builds without CUDA.
#pragma once
#include <cstddef>

#include "runtime/error.h"
#if defined(TN_CUDA) && __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define TN_NVTX
#endif

namespace tapernorm::train {

// From here to the end of the scope: `what` of layer l.
struct ProfileRange {
#ifdef TN_NVTX
    ProfileRange(const char* what, size_t l) { nvtxRangePushA(strprintf("%s %zu", what, l).c_str()); }
    ~ProfileRange() { nvtxRangePop(); }
#else
    ProfileRange(const char*, size_t) {}
#endif
    ProfileRange(const ProfileRange&) = delete;
    ProfileRange& operator=(const ProfileRange&) = delete;
};

}  // namespace tapernorm::train
