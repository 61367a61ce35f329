// Which device a program runs on.
#pragma once
#include <string>

#include "runtime/cpu.h"
#ifdef TN_CUDA
#include "runtime/cuda.cuh"
#endif

namespace tapernorm {

struct DeviceChoice {
    bool cuda = false;
    std::string why;  // the GPU, or why there is none, for the program's first line
};

// wanted: auto, cpu or cuda; gpu: which one. Having no GPU is an error only where one was asked for.
inline DeviceChoice choose_device(const std::string& wanted, [[maybe_unused]] int gpu = 0) {
    if (wanted == "cpu") return {false, "as --device says"};
#ifdef TN_CUDA
    const CudaProbe probe = probe_cuda(gpu);
    if (wanted == "cuda" && !probe.usable) fail("--device cuda: %s; run with --device cpu", probe.description.c_str());
    return {probe.usable, probe.description};
#else
    if (wanted == "cuda")
        fail(
            "--device cuda: this program was built without CUDA; install the CUDA Toolkit and run make again, or use "
            "--device cpu");
    return {false, "built without CUDA"};
#endif
}

// "cpu: 8 threads, AVX-512; built without CUDA"
inline std::string describe(const Cpu& cpu, const DeviceChoice& choice) {
    return strprintf("cpu: %d threads, %s; %s", cpu.threads, isa_name(cpu.isa), choice.why.c_str());
}

}  // namespace tapernorm
