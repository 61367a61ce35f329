// The one kernel launch of the project: typed, named, checked.
//
//     launch<gelu_forward_kernel<bf16>>(blocks_for(n, 256), 256, 0, dev.stream, out, in, n);
//
// The kernel is a template argument, so its name is known at compile time and can be part of error messages. The argument
// list is checked against the kernel's signature: no lossy conversion, no missing argument, no default stream. A grid
// without blocks is no work, and the call returns. More than 48 KiB of dynamic shared memory needs no preparation by the
// caller. With SYNC_LAUNCHES=1 in the environment every launch waits for its kernel, so that an error names its true origin.
//
// The same sources are compiled in three ways: by nvcc (TN_CUDA), for the CPU stand-in of tests/emu (TN_CUDA and CUDA_EMU;
// see tests/emu/README.md for what kernels may use there), and as plain C++, which sees nothing of this file.
#pragma once
#ifdef TN_CUDA
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "runtime/error.h"

namespace tapernorm {

using bf16 = __nv_bfloat16;

// ---------------------------------------------------------------------------------------------------------------------
// Errors

// What a user can do about a CUDA error.
inline const char* cuda_hint(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation:
            return "end other programs that use the memory of this GPU or machine";
        case cudaErrorNoDevice:
        case cudaErrorInsufficientDriver:
            return "install or update the NVIDIA driver, or run on the CPU";
        case cudaErrorNoKernelImageForDevice:
            return "rebuild for this GPU: make clean, then make on this machine";
        case cudaErrorInvalidConfiguration:
        case cudaErrorInvalidValue:
        case cudaErrorLaunchOutOfResources:
        case cudaErrorCooperativeLaunchTooLarge:
            return "the launch does not fit this GPU; please report it with this line";
        default:
            return "run again with SYNC_LAUNCHES=1 to learn which kernel failed, or under compute-sanitizer";
    }
}

[[noreturn]] inline void cuda_failed(cudaError_t error, const char* what, const char* file, int line) {
    cudaGetLastError();  // answered here: a later launch must not see it again
    fail("CUDA: %s at %s:%d: %s (%s); %s", what, file, line, cudaGetErrorString(error), cudaGetErrorName(error),
         cuda_hint(error));
}

// A call of the CUDA runtime that must succeed.
#define CUDA_CHECK(call)                                                                               \
    do {                                                                                               \
        const cudaError_t cuda_check_error = (call);                                                   \
        if (cuda_check_error != cudaSuccess) cuda_failed(cuda_check_error, #call, __FILE__, __LINE__); \
    } while (0)

// ---------------------------------------------------------------------------------------------------------------------
// Kernel names

template <auto kernel>
const char* kernel_signature() {
    return __PRETTY_FUNCTION__;
}

// "gelu_forward_kernel<__nv_bfloat16>", taken from the compiler's "... [with auto kernel = NAME]": without what surrounds it
// and without unnamed namespaces, for which nvcc invents names such as _GLOBAL__N__5d7f3d91_11_program_cu_d6c3017b_747.
inline std::string readable_kernel_name(std::string_view signature) {
    const size_t begin = signature.find("kernel = ");
    if (begin != std::string_view::npos) signature = signature.substr(begin + 9, signature.rfind(']') - begin - 9);
    if (signature.starts_with('&')) signature.remove_prefix(1);
    std::string name(signature);
    for (const std::string_view space : {"(anonymous namespace)", "{anonymous}", "_GLOBAL__N_"})
        for (size_t at; (at = name.find(space)) != std::string::npos;) {
            const size_t end = name.find("::", at);
            if (end == std::string::npos) return name;
            name.erase(at, end + 2 - at);
        }
    return name;
}

template <auto kernel>
std::string kernel_name() {
    return readable_kernel_name(kernel_signature<kernel>());
}

// ---------------------------------------------------------------------------------------------------------------------
// Launch

// The stream of a launch, and the source line that launches on it.
struct LaunchStream {
    cudaStream_t stream;
    const char* file;
    int line;
    LaunchStream(cudaStream_t stream_, const char* file_ = __builtin_FILE(), int line_ = __builtin_LINE())
        : stream(stream_), file(file_), line(line_) {}
    LaunchStream(std::nullptr_t) = delete;  // the default stream waits for every other one
};

struct LaunchShape {
    dim3 grid, block;
    size_t smem;  // bytes of dynamic shared memory per block
};

// Blocks of `per_block` items that cover n items.
inline unsigned blocks_for(size_t n, size_t per_block) {
    const size_t blocks = (n + per_block - 1) / per_block;
    if (blocks > 0x7fffffff)
        fail("CUDA: expected a grid of at most %d blocks, found %zu; use a smaller batch", 0x7fffffff, blocks);
    return unsigned(blocks);
}

// Whether an argument may be passed for a parameter of the kernel: not if that would drop bits or change between integers and
// floating point. (A size_t passed as int is how a kernel breaks at 2^31 elements.)
template <class Argument, class Parameter>
constexpr bool passes_unchanged() {
    using A = std::decay_t<Argument>;
    using P = std::remove_cv_t<Parameter>;
    if constexpr (std::is_arithmetic_v<A> && std::is_arithmetic_v<P>)
        return std::is_floating_point_v<A> == std::is_floating_point_v<P> && sizeof(A) <= sizeof(P);
    return std::is_convertible_v<const Argument&, P>;
}

template <class... Parameters, class... Arguments>
constexpr void check_arguments(void (*)(Parameters...), const Arguments&...) {
    static_assert(sizeof...(Arguments) == sizeof...(Parameters),
                  "launch: the kernel has a different number of parameters");
    if constexpr (sizeof...(Arguments) == sizeof...(Parameters))
        static_assert((passes_unchanged<Arguments, Parameters>() && ...),
                      "launch: an argument does not have the type of its kernel parameter; convert it explicitly");
}

inline bool sync_launches() {
    static const bool on = [] {
        const char* value = std::getenv("SYNC_LAUNCHES");
        return value && *value && std::strcmp(value, "0") != 0;
    }();
    return on;
}

[[noreturn]] inline void launch_failed(cudaError_t error, const std::string& kernel, const LaunchShape& shape,
                                       const LaunchStream& on) {
    const dim3 &g = shape.grid, &b = shape.block;
    const std::string what = strprintf("kernel %s <<<(%u, %u, %u), (%u, %u, %u), %zu>>>", kernel.c_str(), g.x, g.y, g.z,
                                       b.x, b.y, b.z, shape.smem);
    cuda_failed(error, what.c_str(), on.file, on.line);
}

// Whether what is issued on the stream is recorded into a graph.
inline bool capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

// Waiting is not possible while a graph is being captured: the kernel runs when the graph does.
inline cudaError_t wait_unless_capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(stream, &status);
    if (error != cudaSuccess || status != cudaStreamCaptureStatusNone) return error;
    return cudaStreamSynchronize(stream);
}

// The shared memory a block may use without asking; more must be requested once per kernel and device.
constexpr size_t kDefaultSharedMemory = 48 * 1024;

template <auto kernel>
cudaError_t allow_shared_memory(size_t smem) {
    if (smem <= kDefaultSharedMemory) return cudaSuccess;
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                int(smem));
}

#ifndef CUDA_EMU
// With pointers to values of the parameters' own types: nothing converts them on the way.
template <class... Parameters, class... Arguments>
void start_cooperatively(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                         const Arguments&... arguments) {
    std::tuple<std::remove_cv_t<Parameters>...> values(static_cast<Parameters>(arguments)...);
    std::apply(
        [&](auto&... value) {
            void* pointers[] = {&value..., nullptr};
            cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), shape.grid, shape.block, pointers,
                                        shape.smem, stream);
        },
        values);
}
#endif

template <auto kernel, bool cooperative, class... Arguments>
void launch_checked(const LaunchShape& shape, const LaunchStream& on, const Arguments&... arguments) {
    check_arguments(kernel, arguments...);
    const dim3 &grid = shape.grid, &block = shape.block;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    cudaError_t error = allow_shared_memory<kernel>(shape.smem);
    if (error == cudaSuccess) {
#ifdef CUDA_EMU
        emu::launch<cooperative>(kernel, kernel_name<kernel>(), on.file, on.line, grid, block, shape.smem, on.stream,
                                 arguments...);
#else
        if constexpr (cooperative)
            start_cooperatively(kernel, shape, on.stream, arguments...);
        else
            kernel<<<grid, block, shape.smem, on.stream>>>(arguments...);
#endif
        error = cudaGetLastError();
    }
    if (error == cudaSuccess && sync_launches()) error = wait_unless_capturing(on.stream);
    if (error != cudaSuccess) launch_failed(error, kernel_name<kernel>(), shape, on);
}

template <auto kernel, class... Arguments>
void launch(dim3 grid, dim3 block, size_t smem, LaunchStream on, const Arguments&... arguments) {
    launch_checked<kernel, false>({grid, block, smem}, on, arguments...);
}

// All blocks exist at once, so that they may meet in cooperative_groups::this_grid().sync() (runtime/grid.cuh). It fails if the
// GPU cannot hold that many: blocks_per_multiprocessor on each.
template <auto kernel, class... Arguments>
void launch_cooperative(dim3 grid, dim3 block, size_t smem, LaunchStream on, const Arguments&... arguments) {
    launch_checked<kernel, true>({grid, block, smem}, on, arguments...);
}

// How many blocks of this shape one multiprocessor can hold at a time.
template <auto kernel>
int blocks_per_multiprocessor(int threads, size_t smem) {
    int blocks = 0;
    CUDA_CHECK(allow_shared_memory<kernel>(smem));
    CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, reinterpret_cast<const void*>(kernel), threads, smem));
    return blocks;
}

// ---------------------------------------------------------------------------------------------------------------------
// Inside kernels

// The dynamic shared memory of this block; the launch's third argument gives its size. It begins at a multiple of 1024 bytes, which
// tiles of warpgroups need (runtime/wgmma.cuh); on the CPU stand-in only if its size is one.
#ifndef CUDA_EMU
extern __shared__ __align__(1024) uint4 dynamic_shared_memory[];
#endif
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef CUDA_EMU
    return static_cast<T*>(emu::dynamic_shared());
#else
    return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

}  // namespace tapernorm
#endif  // TN_CUDA
