// What the parts of the stand-in's runtime share: errors, memory, streams. Inside of the stand-in only.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <string>

#include "emu.h"
#include "engine.h"

namespace emu {

// ---------------------------------------------------------------------------------------------------------------------
// Errors. An error is reported once on its host thread: by the next call that can fail because of earlier
// work. (On a GPU some errors stay for good; here the next test starts clean.)

// Records and prints a diagnosis; later calls return `error`, and its text carries the diagnosis.
void report(cudaError_t error, const std::string& diagnosis);

// For a call that fails itself: remembers the error for cudaGetLastError, and returns it.
cudaError_t refuse(cudaError_t error);
cudaError_t refuse(cudaError_t error, const std::string& diagnosis);

// The error of earlier work, if any, which is thereby reported.
cudaError_t pending_error();

// ---------------------------------------------------------------------------------------------------------------------
// Memory

enum class MemoryKind { host, device, pinned };

MemoryKind memory_kind(const void* p);

// "" if [p, p + bytes) lies inside one living allocation, else what is wrong.
std::string check_range(const void* p, size_t bytes);

// What an address is: "4 bytes past the end of device allocation #7 of 1024 bytes", or "" if it is unknown.
std::string describe_address(const void* p);

// ---------------------------------------------------------------------------------------------------------------------
// Streams

// Puts work into a stream: it runs at once, or when someone waits for it (Settings::lazy), or is recorded
// into a graph.
cudaError_t submit(cudaStream_t stream, std::function<void()> work);

void synchronize_all();

// Whether this host thread records a graph, in which case `call`, which would wait or allocate, spoils it.
bool spoils_capture(const char* call);

// ---------------------------------------------------------------------------------------------------------------------
// Kernels

// Catches invalid memory accesses while a kernel runs.
void install_fault_handler();

size_t allowed_shared_memory(const void* kernel);

}  // namespace emu
