// What a kernel needs that launch_cooperative starts: cooperative_groups::this_grid(), whose sync() all threads of all blocks
// reach, num_blocks() and block_rank(). What was written to global memory before a sync() is visible after it.
//
// Not in launch.cuh, because NVIDIA's header costs each file that includes it a second (nvcc -O0, 5 seconds without).
#pragma once
#ifdef TN_CUDA
#include <cooperative_groups.h>

#include "runtime/launch.cuh"
#endif  // TN_CUDA
