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
    std::string why;  // which GPU, or why there is none, for the program's first line
};

// wanted: auto, cpu or cuda, the value of the program's option `flag`, which errors name; gpu: which one. Having no GPU is an
// error only where one was asked for.
inline DeviceChoice choose_device(const std::string& flag, const std::string& wanted, [[maybe_unused]] int gpu = 0) {
    if (wanted == "cpu") return {false, "as " + flag + " says"};
#ifdef TN_CUDA
    const CudaProbe probe = probe_cuda(gpu);
    if (wanted == "cuda" && !probe.usable)
        fail("%s cuda: %s; run with %s cpu", flag.c_str(), probe.description.c_str(), flag.c_str());
    return {probe.usable, probe.description};
#else
    if (wanted == "cuda")
        fail("%s cuda: this program was built without CUDA; install the CUDA Toolkit and run make again, or use %s cpu",
             flag.c_str(), flag.c_str());
    return {false, "built without CUDA"};
#endif
}

// "cpu: 8 threads, AVX-512; built without CUDA", "cpu: 2 threads (the control group's CPU quota), AVX-512; ..."
inline std::string describe(const Cpu& cpu, const DeviceChoice& choice) {
    const std::string why = *cpu.why_threads ? strprintf(" (%s)", cpu.why_threads) : "";
    return strprintf("cpu: %s%s, %s; %s", counted(size_t(cpu.threads), "thread").c_str(), why.c_str(),
                     isa_name(cpu.isa), choice.why.c_str());
}

}  // namespace tapernorm
