// The rest of the CUDA runtime: settings, errors, properties, launches, copies.
#include "runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "block.h"
#include "text.h"

namespace emu {

// ---------------------------------------------------------------------------------------------------------------------
// Settings

Settings& settings() {
    static Settings instance = [] {
        auto environment = [](const char* name) -> std::string {
            const char* value = std::getenv(name);
            return value ? value : "";
        };
        auto number = [&](const char* name, size_t otherwise) -> size_t {
            const std::string value = environment(name);
            return value.empty() ? otherwise : std::strtoull(value.c_str(), nullptr, 10);
        };
        Settings s;
        const std::string order = environment("EMU_ORDER");
        if (order == "backward") {
            s.order = Order::backward;
        } else if (!order.empty() && order != "forward") {
            s.order = Order::random;
            s.seed = std::strtoull(order.c_str(), nullptr, 10);
        }
        s.lazy = number("EMU_LAZY", 0) != 0;
        s.abort = number("EMU_ABORT", 0) != 0;
        s.sm = int(number("EMU_SM", 80));
        s.memory = number("EMU_MEMORY_MIB", 8192) << 20;
        s.devices = int(number("EMU_DEVICES", 1));
        s.fastest = environment("EMU_FASTEST").empty() ? -1 : int(number("EMU_FASTEST", 0));
        return s;
    }();
    return instance;
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors

namespace {

struct ErrorState {
    cudaError_t pending = cudaSuccess;  // from earlier work
    cudaError_t last = cudaSuccess;     // from a refused call
    cudaError_t diagnosed = cudaSuccess;
    std::string diagnosis, text;
};
thread_local ErrorState errors;
thread_local int device = 0;

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
#define EMU_ERROR(code, text) {code, #code, text}
constexpr ErrorText error_texts[] = {
    EMU_ERROR(cudaSuccess, "no error"),
    EMU_ERROR(cudaErrorInvalidValue, "invalid argument"),
    EMU_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    EMU_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    EMU_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    EMU_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    EMU_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    EMU_ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    EMU_ERROR(cudaErrorNotReady, "device not ready"),
    EMU_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    EMU_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    EMU_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    EMU_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    EMU_ERROR(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch"),
    EMU_ERROR(cudaErrorNotSupported, "operation not supported"),
    EMU_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    EMU_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    EMU_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    EMU_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    EMU_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    EMU_ERROR(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
};

const ErrorText& text_of(cudaError_t error) {
    static constexpr ErrorText unknown{cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};
    const auto* found = std::find_if(std::begin(error_texts), std::end(error_texts),
                                     [error](const ErrorText& e) { return e.error == error; });
    return found == std::end(error_texts) ? unknown : *found;
}

void diagnose(cudaError_t error, const std::string& diagnosis) {
    errors.diagnosed = error;
    errors.diagnosis = diagnosis;
    if (!settings().quiet) std::fprintf(stderr, "emu: %s\n", diagnosis.c_str());
    if (settings().abort) std::abort();
}

}  // namespace

void report(cudaError_t error, const std::string& diagnosis) {
    diagnose(error, diagnosis);
    if (errors.pending == cudaSuccess) errors.pending = error;
}

cudaError_t refuse(cudaError_t error) { return errors.last = error; }

cudaError_t refuse(cudaError_t error, const std::string& diagnosis) {
    diagnose(error, diagnosis);
    return errors.last = error;
}

cudaError_t pending_error() {
    return settings().lasting_errors ? errors.pending : std::exchange(errors.pending, cudaSuccess);
}

std::string take_diagnosis() {
    errors.pending = errors.last = errors.diagnosed = cudaSuccess;
    return std::exchange(errors.diagnosis, "");
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

namespace {

struct FunctionAttributes {
    std::mutex mutex;
    std::map<const void*, size_t> shared_memory;
};
FunctionAttributes& function_attributes() {
    static FunctionAttributes* const instance = new FunctionAttributes;
    return *instance;
}

// Per block, and per multiprocessor, as NVIDIA's programming guide lists them.
size_t shared_memory_limit() { return size_t(settings().sm >= 90 ? 227 : settings().sm == 80 ? 163 : 99) << 10; }

constexpr int multiprocessors = 4;  // few, so that small tests fill them

// By threads and shared memory alone: registers are not known here.
int resident_blocks_per_multiprocessor(size_t threads, size_t smem) {
    return int(std::min({size_t(32), 2048 / threads, (shared_memory_limit() + 1024) / (smem + 1024)}));
}

struct Refusal {
    cudaError_t error = cudaSuccess;
    std::string what;
};

Refusal wrong_shape(const Launch& l) {
    const Dim &g = l.grid, &b = l.block;
    const size_t threads = size_t(b.x) * b.y * b.z, allowed = allowed_shared_memory(l.function);
    if (threads == 0 || threads > max_threads || b.z > 64)
        return {cudaErrorInvalidConfiguration, strprintf("a block of %zu threads", threads)};
    if (g.x == 0 || g.y == 0 || g.z == 0) return {cudaErrorInvalidConfiguration, "an empty grid"};
    if (g.x > 0x7fffffff || g.y > 65535 || g.z > 65535)
        return {cudaErrorInvalidConfiguration, "a grid too large in one dimension"};
    if (l.smem > allowed)
        return {cudaErrorInvalidValue,
                strprintf("%zu bytes of shared memory, but %zu were allowed by cudaFuncSetAttribute", l.smem, allowed)};
    const size_t blocks = size_t(g.x) * g.y * g.z;
    const int resident = resident_blocks_per_multiprocessor(threads, l.smem);
    if (l.cooperative && blocks > size_t(resident) * multiprocessors)
        return {cudaErrorCooperativeLaunchTooLarge,
                strprintf("%zu blocks in a cooperative launch, but only %d of them fit at once, %d on each of %d "
                          "multiprocessors",
                          blocks, resident * multiprocessors, resident, multiprocessors)};
    return {};
}

}  // namespace

size_t allowed_shared_memory(const void* kernel) {
    FunctionAttributes& attributes = function_attributes();
    std::lock_guard lock(attributes.mutex);
    const auto found = attributes.shared_memory.find(kernel);
    return found == attributes.shared_memory.end() ? size_t(48) << 10 : found->second;
}

void submit_launch(Launch launch, void* stream) {
    if (errors.pending != cudaSuccess) return;
    if (const Refusal wrong = wrong_shape(launch); wrong.error != cudaSuccess) {
        refuse(wrong.error, strprintf("kernel %s launched at %s:%d with %s", launch.kernel.c_str(), launch.site.file,
                                      launch.site.line, wrong.what.c_str()));
        return;
    }
    auto shared = std::make_shared<const Launch>(std::move(launch));
    submit(static_cast<cudaStream_t>(stream), [shared] {
        if (errors.pending == cudaSuccess) Engine::of_this_host_thread().run(*shared);
    });
}

}  // namespace emu

// ---------------------------------------------------------------------------------------------------------------------
// CUDA runtime: errors

using namespace emu;

const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }

// With the diagnosis, if this is the error it belongs to.
const char* cudaGetErrorString(cudaError_t error) {
    if (error == cudaSuccess || error != errors.diagnosed) return text_of(error).text;
    errors.text = std::string(text_of(error).text) + ": " + errors.diagnosis;
    return errors.text.c_str();
}

cudaError_t cudaGetLastError() {
    const cudaError_t last = std::exchange(errors.last, cudaSuccess), pending = pending_error();
    return pending != cudaSuccess ? pending : last;
}

cudaError_t cudaPeekAtLastError() { return errors.pending != cudaSuccess ? errors.pending : errors.last; }

// ---------------------------------------------------------------------------------------------------------------------
// CUDA runtime: devices

cudaError_t cudaGetDeviceCount(int* count) {
    *count = settings().devices;
    return *count > 0 ? cudaSuccess : refuse(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int number) {
    if (number < 0 || number >= settings().devices) return refuse(cudaErrorInvalidDevice);
    device = number;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
    *number = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset() {
    synchronize_all();
    take_diagnosis();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int number) {
    if (number < 0 || number >= settings().devices) return refuse(cudaErrorInvalidDevice);
    *p = {};
    std::snprintf(p->name, sizeof p->name, "CPU stand-in for CUDA");
    p->totalGlobalMem = settings().memory;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = shared_memory_limit();
    p->sharedMemPerMultiprocessor = shared_memory_limit() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = max_threads;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = settings().sm / 10, p->minor = settings().sm % 10;
    p->multiProcessorCount = multiprocessors;
    p->l2CacheSize = 32 << 20;
    p->persistingL2CacheMaxSize = 16 << 20;
    p->memoryBusWidth = 256;
    p->concurrentKernels = p->unifiedAddressing = p->cooperativeLaunch = 1;
    p->asyncEngineCount = 2;
    p->totalConstMem = 64 << 10;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
    cudaDeviceProp p;
    if (const cudaError_t error = cudaGetDeviceProperties(&p, number); error != cudaSuccess) return error;
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = p.major;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
            *value = p.minor;
            return cudaSuccess;
        case cudaDevAttrMultiProcessorCount:
            *value = p.multiProcessorCount;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = int(p.sharedMemPerBlockOptin);
            return cudaSuccess;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = p.maxThreadsPerMultiProcessor;
            return cudaSuccess;
        case cudaDevAttrCooperativeLaunch:
            *value = p.cooperativeLaunch;
            return cudaSuccess;
        case cudaDevAttrL2CacheSize:
            *value = p.l2CacheSize;
            return cudaSuccess;
        case cudaDevAttrClockRate:
            *value = 1000000;
            return cudaSuccess;  // kHz
        case cudaDevAttrMemoryClockRate:
            *value = 1000000;
            return cudaSuccess;  // kHz
        case cudaDevAttrGlobalMemoryBusWidth:
            *value = p.memoryBusWidth;
            return cudaSuccess;
        default:
            return refuse(cudaErrorNotSupported);
    }
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

// ---------------------------------------------------------------------------------------------------------------------
// CUDA runtime: functions

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return refuse(cudaErrorNotSupported);
    if (value < 0 || size_t(value) > shared_memory_limit())
        return refuse(cudaErrorInvalidValue, strprintf("a kernel asks for %d bytes of shared memory, of %zu on sm_%d",
                                                       value, shared_memory_limit(), settings().sm));
    FunctionAttributes& attributes = function_attributes();
    std::lock_guard lock(attributes.mutex);
    attributes.shared_memory[kernel] = std::max(size_t(value), size_t(48) << 10);
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t smem) {
    if (threads <= 0 || threads > int(max_threads) || smem > allowed_shared_memory(kernel))
        return refuse(cudaErrorInvalidValue);
    *blocks = resident_blocks_per_multiprocessor(size_t(threads), smem);
    return cudaSuccess;
}
