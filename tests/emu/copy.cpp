// Copies and fills: ranges, directions and the lifetime of host buffers are checked.
#include <cstring>

#include "stream.h"
#include "text.h"

namespace emu {
namespace {

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool to_device, from_device;
};

std::string wrong_side(const char* side, const void* p, size_t bytes, bool device) {
    const MemoryKind kind = memory_kind(p);
    if (device != (kind == MemoryKind::device))
        return strprintf("%s is %s memory", side, device ? "not device" : "device");
    const std::string wrong = kind == MemoryKind::host ? "" : check_range(p, bytes);
    return wrong.empty() ? "" : std::string(side) + " reaches " + wrong;
}

// What is wrong with a copy, or "". The default kind takes what the pointers say.
std::string check_copy(Copy& copy, cudaMemcpyKind kind) {
    copy.to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    copy.from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        copy.to_device = memory_kind(copy.to) == MemoryKind::device;
        copy.from_device = memory_kind(copy.from) == MemoryKind::device;
    }
    const std::string wrong = wrong_side("the destination", copy.to, copy.bytes, copy.to_device);
    return wrong.empty() ? wrong_side("the source", copy.from, copy.bytes, copy.from_device) : wrong;
}

}  // namespace
}  // namespace emu

using namespace emu;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
    Copy copy{to, from, bytes, false, false};
    if (bytes == 0) return pending_error();
    if (const std::string wrong = check_copy(copy, kind); !wrong.empty())
        return refuse(cudaErrorInvalidValue, strprintf("copy of %zu bytes: %s", bytes, wrong.c_str()));
    const auto stream = find_stream(handle);
    if (!stream) return refuse(cudaErrorInvalidResourceHandle);
    const bool pageable_source = !copy.from_device && memory_kind(from) == MemoryKind::host;
    const bool pageable_destination = !copy.to_device && memory_kind(to) == MemoryKind::host;
    cudaError_t error;
    if (pageable_source && !stream->capture) {
        // As on a GPU: ordinary memory is staged before the call returns, so the caller may change it at
        // once.
        const char* begin = static_cast<const char*>(from);
        error = submit(handle, [to, staged = std::vector<char>(begin, begin + bytes)] {
            std::memcpy(to, staged.data(), staged.size());
        });
    } else {
        error = submit(handle, [copy] { std::memmove(copy.to, copy.from, copy.bytes); });
    }
    if (error != cudaSuccess) return error;
    if (pageable_destination && !stream->capture) return cudaStreamSynchronize(handle);
    return pending_error();
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (spoils_capture("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    if (width > to_pitch || width > from_pitch) return refuse(cudaErrorInvalidValue);
    for (size_t row = 0; row < height; row++) {
        const cudaError_t error =
            cudaMemcpyAsync(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                            width, kind, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
    if (bytes == 0) return pending_error();
    if (const std::string wrong = wrong_side("the destination", p, bytes, true); !wrong.empty())
        return refuse(cudaErrorInvalidValue, strprintf("fill of %zu bytes: %s", bytes, wrong.c_str()));
    const cudaError_t error = submit(stream, [p, value, bytes] { std::memset(p, value, bytes); });
    return error != cudaSuccess ? error : pending_error();
}

cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    if (spoils_capture("cudaMemset")) return cudaErrorStreamCaptureUnsupported;
    return cudaMemsetAsync(p, value, bytes, nullptr);
}
