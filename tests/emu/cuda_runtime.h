// Found before NVIDIA's header of this name (-I tests/emu comes first), which it includes: types, enums and
// signatures are NVIDIA's, so the compiler checks our calls against them. What nvcc adds for device code is
// in device.h, inline assembly in ptx.h and wgmma.h; NVIDIA's functions are implemented by the other files of this directory.
#pragma once
#ifndef CUDA_EMU
#error "the CPU stand-in for CUDA needs -DCUDA_EMU"
#endif
#include_next <cuda_runtime.h>

#include "device.h"
#include "ptx.h"
#include "wgmma.h"
