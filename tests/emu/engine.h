// What kernels need from the stand-in: barriers, warp operations, shared memory, asynchronous copies, the
// launch itself.
//
// The threads of a block are fibers that run one at a time until they have to wait. Blocks run one after
// another on the host thread that executes the stream; those of a cooperative launch take turns, from grid
// barrier to grid barrier. See engine.cpp (scheduling), collective.cpp (barriers and warp operations).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace emu {

// A source line of the kernel.
struct Site {
    const char* file = nullptr;
    int line = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Block barrier

struct BarrierResult {
    int threads;  // in the block
    int count;    // those with a true predicate
};

BarrierResult block_barrier(const char* name, bool predicate, Site site);

// Of all blocks of a cooperative launch.
void grid_barrier(const char* name, Site site);

// What a thread wrote before its fence can be seen by those that fence later.
void fence();

// ---------------------------------------------------------------------------------------------------------------------
// Warp operations: every lane named in the mask brings its data; the lane that arrives last computes all
// results.

struct WarpOp {
    const char* name;
    void (*run)(void* const* lanes);  // [32], null for lanes outside the mask; null: nothing to compute
    bool orders_memory;               // only __syncwarp does
};

void warp_operation(const WarpOp& op, unsigned mask, void* mine, Site site);

// The calling thread's.
unsigned lane_id();

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory, asynchronous copies, errors

// 16-byte aligned; ends at a guard page; contents are NaN at the start of each block.
void* dynamic_shared();

// A copy from global to shared memory is done when it is waited for: who forgets to wait reads the poison
// that the start of the copy left there. A GPU may read the source at any time until then, so it must not change.
struct AsyncCopy {
    void* shared;
    const void* global;
    int bytes;
    bool valid;
    int group;
    Site site;
    uint32_t before[4];  // the source when the copy began; the caller of begin_copy fills it
};
AsyncCopy& begin_copy(void* shared, const void* global, int bytes, bool valid, Site site);
void commit_copies();
bool take_finished_copy(int pending_groups, AsyncCopy& copy);  // false when none is left

// Reports wrong use by the calling CUDA thread and ends the kernel.
[[noreturn, gnu::format(printf, 1, 2)]] void misuse(const char* format, ...);

// Lets other threads of the block run: for loops that poll memory.
void yield();

// ---------------------------------------------------------------------------------------------------------------------
// Launch

struct Dim {
    unsigned x, y, z;
};

struct Launch {
    std::string kernel;
    Site site;
    const void* function = nullptr;
    Dim grid, block;
    size_t smem = 0;
    bool cooperative = false;    // all blocks exist at once and may meet in grid barriers
    std::function<void()> body;  // runs the kernel for the current thread
};

// Checks the shape against the device's limits and submits the launch to its stream (a cudaStream_t).
void submit_launch(Launch launch, void* stream);

// A pointer argument, or the words of a struct argument, must not point to ordinary host memory.
void check_argument(const Launch& launch, size_t index, const void* bytes, size_t size, bool is_struct);

template <class T>
void check_kernel_argument(const Launch& launch, size_t index, const T& value) {
    if constexpr (std::is_pointer_v<T>) {
        if constexpr (!std::is_function_v<std::remove_pointer_t<T>>)
            check_argument(launch, index, &value, sizeof value, false);
    } else if constexpr (std::is_class_v<T> && sizeof(T) >= sizeof(void*)) {
        // Old pointers in the gaps would be found. (In a copy: GCC 12 clears some members of arrays of structs, too.)
        alignas(T) unsigned char bytes[sizeof(T)];
        std::memcpy(bytes, &value, sizeof value);
#if defined(__GNUC__) && !defined(__clang__)
        __builtin_clear_padding(reinterpret_cast<T*>(bytes));
#endif
        check_argument(launch, index, bytes, sizeof value, true);
    }
}

template <bool cooperative = false, class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::string name, const char* file, int line, const auto& grid,
            const auto& block, size_t smem, void* stream, const Arguments&... arguments) {
    std::tuple<std::remove_cv_t<Parameters>...> values(static_cast<Parameters>(arguments)...);
    Launch launch;
    launch.kernel = std::move(name);
    launch.site = {file, line};
    launch.function = reinterpret_cast<const void*>(kernel);
    launch.grid = {grid.x, grid.y, grid.z};
    launch.block = {block.x, block.y, block.z};
    launch.smem = smem;
    launch.cooperative = cooperative;
    [&]<size_t... i>(std::index_sequence<i...>) {
        (check_kernel_argument(launch, i, std::get<i>(values)), ...);
    }(std::index_sequence_for<Parameters...>());
    launch.body = [kernel, values] { std::apply(kernel, values); };
    submit_launch(std::move(launch), stream);
}

}  // namespace emu
