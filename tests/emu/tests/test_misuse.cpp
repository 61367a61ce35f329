// The stand-in finds wrong use of CUDA: each kernel below has one mistake, and its report must name it. None
// of them may run on a GPU.
#if defined(TN_CUDA) && defined(CUDA_EMU)
#include <doctest/doctest.h>
#include <sys/wait.h>

#include "emu.h"
#include "reports.h"
#include "runtime/grid.cuh"
#include "runtime/ptx.cuh"
#include "sanitizer.h"
#include "tests/cuda/cuda_test.h"

namespace tapernorm {

namespace {

struct Fixture {
    Quiet quiet;
    Cuda dev;
    DeviceArray<float> x{dev, std::vector<float>(64, 1)};

    // Whatever happened, the next kernel runs.
    ~Fixture() {
        try {
            launch<works>(1, 64, 0, dev.stream, x.data());
            CHECK(x.values()[63] == 5);
        } catch (const Error& e) {
            FAIL_CHECK(e.what());
        }
    }
    __global__ static void works(float* x) {
        __syncthreads();
        x[threadIdx.x] = 5;
    }
};

// ---- barriers

__global__ void return_before_barrier(float* x) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    x[threadIdx.x] = 0;
}

__global__ void two_barriers(float* x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads_or(0);
    x[threadIdx.x] = 0;
}

__global__ void barrier_against_shuffle(float* x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else if (threadIdx.x < 63)
        x[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

// ---- warp operations

__global__ void missing_lane(float* x) {
    if (threadIdx.x % 32 != 7) x[threadIdx.x] = __shfl_down_sync(~0u, 1.0f, 1);
}

__global__ void not_in_own_mask(float* x) { x[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0); }

__global__ void reads_outside_mask(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

__global__ void shuffle_meets_vote(float* x) {
    if (threadIdx.x % 2)
        x[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);
    else
        x[threadIdx.x] = float(__ballot_sync(~0u, 1));
}

__global__ void shuffle_at_two_lines(float* x) {
    if (threadIdx.x % 2)
        x[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);
    else
        x[threadIdx.x] = __shfl_sync(~0u, 1.0f, 1);
}

__global__ void half_a_warp(float* x) { x[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1); }

__global__ void unaligned_matrix_row(float* x) {
    const char* row = dynamic_shared<char>() + threadIdx.x * 16 + (threadIdx.x == 9 ? 8 : 0);
    uint32_t r[4];
    ldmatrix_x4(r, row);
    x[threadIdx.x] = float(r[0]);
}

// ---- grid barriers

using cooperative_groups::this_grid;

__global__ void meets_in_grid(float* x) {
    this_grid().sync();
    if (blockIdx.x == 0 && blockIdx.y == 0) x[threadIdx.x % 64] = 0;
}

__global__ void block_returns(float* x) {
    if (blockIdx.x == 1) return;
    this_grid().sync();
    x[threadIdx.x] = 0;
}

__global__ void block_returns_later(float* x) {
    this_grid().sync();
    if (blockIdx.x >= 2) return;
    this_grid().sync();
    x[threadIdx.x] = 0;
}

__global__ void threads_return(float* x) {
    if (threadIdx.x >= 40) return;
    this_grid().sync();
    x[threadIdx.x] = 0;
}

__global__ void grid_against_block_barrier(float* x) {
    if (threadIdx.x < 32)
        this_grid().sync();
    else
        __syncthreads();
    x[threadIdx.x] = 0;
}

__global__ void two_grid_barriers(float* x) {
    if (blockIdx.x == 0)
        this_grid().sync();
    else
        this_grid().sync();
    x[threadIdx.x] = 0;
}

__global__ void two_grid_barriers_in_block(float* x) {
    if (threadIdx.x < 32)
        this_grid().sync();
    else
        this_grid().sync();
    x[threadIdx.x] = 0;
}

__global__ void grid_against_shuffle(float* x) {
    if (threadIdx.x == 39)
        this_grid().sync();
    else
        x[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void UNCHECKED fails_after_grid_barrier(float* x) {
    this_grid().sync();
    if (blockIdx.x == 2) x[0] = dynamic_shared<float>()[threadIdx.x + 4];
}

// ---- memory

__global__ void UNCHECKED past_the_end(float* x, int i) { x[i] = 0; }

__global__ void UNCHECKED past_shared_memory(float* x) { x[threadIdx.x] = dynamic_shared<float>()[threadIdx.x + 4]; }

__global__ void UNCHECKED deep_recursion(float* x, int depth) {
    volatile float local[512];
    for (int i = 0; i < 512; i++) local[i] = float(depth);
    if (depth > 0) deep_recursion(x, depth - 1);
    x[0] = local[depth % 512];
}

struct Pointers {
    float a;
    const float* in;
    float* out;
};
__global__ void takes_struct(Pointers p) { p.out[0] = p.in[0]; }

__global__ void copies_pointer(float* to, const float* from) { to[0] = from[0]; }

__global__ void misaligned_vector(float* x) { *reinterpret_cast<float4*>(x + 1) = make_float4(1, 2, 3, 4); }

__global__ void traps() { __trap(); }

// ---- asynchronous copies

__global__ void forgotten_wait(float* x, const float* y) {
    float* shared = dynamic_shared<float>();
    cp_async<4>(shared + threadIdx.x, y + threadIdx.x);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    x[threadIdx.x] = shared[threadIdx.x];
    cp_async_wait<0>();
}

__global__ void forgotten_commit(float* x, const float* y) {
    cp_async<4>(dynamic_shared<float>() + threadIdx.x, y + threadIdx.x);
    cp_async_wait<0>();
    x[threadIdx.x] = 0;
}

__global__ void unaligned_copy(const float* y) { cp_async<16>(dynamic_shared<float>(), y + 2); }

// Fetched before the grid barrier that the source needs.
__global__ void UNCHECKED copies_too_early(float* x) {
    float* shared = dynamic_shared<float>();
    cp_async<4>(shared + threadIdx.x, x + (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x);
    cp_async_commit();
    x[blockIdx.x * blockDim.x + threadIdx.x] = float(threadIdx.x + 7);
    this_grid().sync();
    cp_async_wait<0>();
    x[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
}

// ---- values

__global__ void reads_uninitialized(float* x, const float* y) {
    x[threadIdx.x] = y[threadIdx.x];
    x[threadIdx.x + 32] = dynamic_shared<float>()[threadIdx.x];
}

// Every warp needs the sums of the others, so a barrier is missing after the first line.
__global__ void UNCHECKED missing_barrier(float* x) {
    float* shared = dynamic_shared<float>();
    shared[threadIdx.x] = float(threadIdx.x);
    x[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x] + shared[(threadIdx.x + 224) % blockDim.x];
}

// Every block needs what its neighbours wrote, so a grid barrier is missing after the first line.
__global__ void UNCHECKED missing_grid_barrier(float* x, float* y) {
    const unsigned b = blockIdx.x, blocks = gridDim.x;
    x[b * blockDim.x + threadIdx.x] = float(b);
    y[b * blockDim.x + threadIdx.x] =
        x[(b + 1) % blocks * blockDim.x + threadIdx.x] + x[(b + blocks - 1) % blocks * blockDim.x + threadIdx.x];
}

// A grid barrier serves as block barrier, but only where it stands.
__global__ void UNCHECKED missing_barrier_between_grid_barriers(float* x) {
    float* shared = dynamic_shared<float>();
    shared[threadIdx.x] = -1;
    this_grid().sync();
    shared[threadIdx.x] = float(threadIdx.x);
    x[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x] + shared[(threadIdx.x + 224) % blockDim.x];
    this_grid().sync();
}

// The same mistakes for the sanitizers, which find the line.
__global__ void race(float* x) {
    float* shared = dynamic_shared<float>();
    shared[threadIdx.x] = float(threadIdx.x);
    x[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x];  // the race
}

__global__ void no_race(float* x) {
    float* shared = dynamic_shared<float>();
    for (int i = 0; i < 3; i++) {
        shared[threadIdx.x] = float(threadIdx.x);
        __syncthreads();
        x[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x];
        __syncthreads();
    }
    shared[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    x[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void race_in_grid(float* x) {
    if (blockIdx.x == 1) x[threadIdx.x] = 2;
    __syncthreads();
    if (blockIdx.x == 0) x[threadIdx.x] += 1;  // the race
    this_grid().sync();
}

__global__ void race_after_grid_barrier(float* x) {
    this_grid().sync();
    float* shared = dynamic_shared<float>();
    shared[threadIdx.x] = float(threadIdx.x);
    if (blockIdx.x == 1) x[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x];  // the race
    this_grid().sync();
}

// Also what a fence and an atomic order, as in "the last block adds up".
__global__ void no_race_in_grid(float* x) {
    float* shared = dynamic_shared<float>();
    unsigned* const arrived = reinterpret_cast<unsigned*>(x + 32);
    shared[threadIdx.x] = 1;
    __syncthreads();
    for (unsigned i = 0; i < 3; i++) {
        if (blockIdx.x == i % 2 && threadIdx.x < 32) x[threadIdx.x] += shared[threadIdx.x + 32];
        this_grid().sync();
        shared[threadIdx.x ^ 32] = float(i);
        this_grid().sync();
    }
    if (threadIdx.x == 0) {
        x[33 + blockIdx.x] = 1;
        __threadfence();
        if (atomicInc(arrived, 1) == 1) {
            __threadfence();
            x[0] = x[33] + x[34];
        }
    }
}

// A shuffle orders no memory.
__global__ void race_in_warp(float* x) {
    float* shared = dynamic_shared<float>();
    shared[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
    x[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void overrun(float* x) { x[threadIdx.x + 1] = 1; }

__global__ void shared_overrun(float* x) { x[threadIdx.x] = dynamic_shared<float>()[threadIdx.x + 1]; }

}  // namespace

TEST_CASE("emu: barriers that not all threads reach") {
    Fixture f;
    auto run = [&]<auto kernel>() { launch<kernel>(dim3(2, 1), 64, 0, f.dev.stream, f.x.data()); };
    check_report([&] { run.template operator()<return_before_barrier>(); },
                 {"kernel return_before_barrier <<<(2, 1, 1), (64, 1, 1), 0>>>", "block (0, 0, 0)",
                  "threads returned before a block barrier", "threads 0-39 wait in __syncthreads at",
                  "test_misuse.cpp:", "threads 40-63 returned"});
    check_report([&] { run.template operator()<two_barriers>(); },
                 {"kernel two_barriers", "thread (32, 0, 0)", "two different barriers: this one in __syncthreads_or",
                  "thread 0 in __syncthreads at"});
    check_report([&] { run.template operator()<barrier_against_shuffle>(); },
                 {"deadlock", "threads 0-31 wait in __syncthreads", "threads 32-62 wait in __shfl_xor_sync",
                  "threads 63 returned"});
}

TEST_CASE("emu: warp operations with the wrong lanes") {
    Fixture f;
    auto run = [&]<auto kernel>(unsigned threads = 64) { launch<kernel>(1, threads, 512, f.dev.stream, f.x.data()); };
    check_report([&] { run.template operator()<missing_lane>(); },
                 {"lanes named in the mask of a warp operation never call it", "threads 0-6, 8-38, 40-63 wait in",
                  "__shfl_down_sync at", "threads 7, 39 returned"});
    check_report([&] { run.template operator()<not_in_own_mask>(); }, {"lane 16 is not in its own mask 0000ffff"});
    check_report([&] { run.template operator()<reads_outside_mask>(); },
                 {"lane 0 reads lane 20, which is not in the mask"});
    check_report([&] { run.template operator()<shuffle_meets_vote>(); },
                 {"two different operations: this one in __shfl_sync", "others in __ballot_sync"});
    check_report([&] { run.template operator()<shuffle_at_two_lines>(); }, {"two different operations"});
    check_report([&] { run.template operator()<half_a_warp>(48); },
                 {"names lanes that do not exist, the block has 48 threads", "thread (32, 0, 0)"});
    check_report([&] { run.template operator()<unaligned_matrix_row>(32); },
                 {"ldmatrix at", "row address of lane 9 is not 16-byte aligned"});
}

TEST_CASE("emu: invalid memory accesses") {
    Fixture f;
    const auto stream = f.dev.stream;
    float* x = f.x.data();
    check_report([&] { launch<past_the_end>(1, 1, 0, stream, x, 64); },
                 {"kernel past_the_end", "writes 0 bytes past the end of device allocation #", "of 256 bytes"});
    check_report([&] { launch<past_the_end>(1, 1, 0, stream, x, -1000); }, {"before device allocation"});
    check_report([&] { launch<past_the_end>(1, 1, 0, stream, static_cast<float*>(nullptr), 1); }, {"a null pointer"});
    check_report([&] { launch<past_shared_memory>(1, 32, 128, stream, x); },
                 {"reads 0 bytes past the end of the 128 bytes of dynamic shared memory", "thread (28, 0, 0)"});
    check_report([&] { launch<deep_recursion>(1, 1, 0, stream, x, 1000); }, {"its stack, which is full"});
    float* freed = static_cast<float*>(device_allocate(f.dev, 64, "the test"));
    device_free(f.dev, freed);
    check_report([&] { launch<past_the_end>(1, 1, 0, stream, freed, 1); }, {"byte 4 of freed device allocation"});
    check_report([&] { launch<traps>(1, 1, 0, stream); }, {"__trap at"});
}

TEST_CASE("emu: grid barriers that not all blocks reach") {
    Fixture f;
    const unsigned threads = 64;
    auto run = [&]<auto kernel>() { launch_cooperative<kernel>(dim3(2, 2), threads, 16, f.dev.stream, f.x.data()); };
    const uint64_t passed = emu::grid_barriers();
    check_report([&] { launch<meets_in_grid>(2, threads, 0, f.dev.stream, f.x.data()); },
                 {"kernel meets_in_grid <<<(2, 1, 1), (64, 1, 1), 0>>>", "block (0, 0, 0), thread (0, 0, 0)",
                  "grid_group::sync at", "test_misuse.cpp:", "in a kernel that was not launched cooperatively"});
    check_report([&] { launch_cooperative<block_returns>(4, threads, 0, f.dev.stream, f.x.data()); },
                 {"kernel block_returns <<<(4, 1, 1)",
                  "test_misuse.cpp:", ": deadlock: blocks returned before a grid barrier that others wait at",
                  "; blocks 0, 2-3 wait in grid_group::sync at", "; blocks 1 returned"});
    CHECK(emu::grid_barriers() == passed);
    check_report([&] { launch_cooperative<block_returns_later>(4, threads, 0, f.dev.stream, f.x.data()); },
                 {"; blocks 0-1 wait in grid_group::sync at", "; blocks 2-3 returned"});
    check_report([&] { run.template operator()<threads_return>(); },
                 {"block (0, 0, 0): deadlock: threads wait in a grid barrier that others of their block do not reach",
                  "; threads 0-39 wait in grid_group::sync at", "; threads 40-63 returned"});
    check_report([&] { run.template operator()<grid_against_block_barrier>(); },
                 {"threads wait in a grid barrier that others of their block do not reach",
                  "; threads 0-31 wait in grid_group::sync at", "; threads 32-63 wait in __syncthreads at"});
    check_report([&] { run.template operator()<two_grid_barriers_in_block>(); },
                 {"block (0, 0, 0), thread (32, 0, 0): threads of one grid meet in two different grid barriers: this "
                  "one in grid_group::sync at",
                  "thread 0 of block (0, 0, 0) in grid_group::sync at"});
    check_report([&] { launch_cooperative<two_grid_barriers>(3, threads, 0, f.dev.stream, f.x.data()); },
                 {"block (1, 0, 0), thread (0, 0, 0): threads of one grid meet in two different grid barriers",
                  "thread 0 of block (0, 0, 0) in grid_group::sync at"});
    check_report([&] { run.template operator()<grid_against_shuffle>(); },
                 {"lanes named in the mask of a warp operation never call it", "; threads 0-31 returned",
                  "; threads 39 wait in grid_group::sync at", "; threads 32-38, 40-63 wait in __shfl_xor_sync at"});
    check_report([&] { launch_cooperative<fails_after_grid_barrier>(4, 32, 128, f.dev.stream, f.x.data()); },
                 {"reads 0 bytes past the end of the 128 bytes of dynamic shared memory",
                  "block (2, 0, 0), thread (28, 0, 0)"});
}

#if !defined(EMU_ASAN)
TEST_CASE("emu: writes into the last unit of an allocation are found when it is freed") {
    Quiet quiet;
    Cuda dev;
    float* x = static_cast<float*>(device_allocate(dev, 20, "the test"));
    launch<past_the_end>(1, 1, 0, dev.stream, x, 5);
    dev.synchronize();
    check_report([&] { device_free(dev, x), dev.synchronize(); }, {"wrote behind the end of freed device allocation"});
}
#endif

TEST_CASE("emu: host memory in kernels and copies") {
    Fixture f;
    const auto stream = f.dev.stream;
    float local = 0;
    std::vector<float> heap(100);
    float* x = f.x.data();
    check_report([&] { launch<copies_pointer>(1, 1, 0, stream, x, &local); }, {"argument 2 points to host memory"});
    check_report([&] { launch<takes_struct>(1, 1, 0, stream, Pointers{1, heap.data(), x}); },
                 {"argument 1 (a struct, at offset 8) points to host memory"});
    launch<takes_struct>(1, 1, 0, stream, Pointers{1, x, x});
    check_report([&] { device_copy_in(f.dev, x, heap.data(), 65 * 4); }, {"the destination reaches", "past the end"});
    check_report([&] { device_copy_out(f.dev, heap.data(), x + 32, 33 * 4); }, {"the source reaches"});
    check_report([&] { device_copy_in(f.dev, heap.data(), x, 4); }, {"the destination is not device memory"});
    check_report([&] { device_copy(f.dev, x, heap.data(), 4); }, {"the source is not device memory"});
}

TEST_CASE("emu: asynchronous copies") {
    Fixture f;
    const auto stream = f.dev.stream;
    DeviceArray<float> y(f.dev, std::vector<float>(64, 2));
    launch<forgotten_wait>(1, 32, 128, stream, f.x.data(), y.data());
    CHECK(std::isnan(f.x.values()[5]));
    check_report([&] { launch<forgotten_commit>(1, 32, 128, stream, f.x.data(), y.data()); },
                 {"returns with 1 cp_async copies that it did not wait for"});
    check_report([&] { launch<unaligned_copy>(1, 1, 128, stream, y.data()); },
                 {"cp_async<16> at", "the global address is not aligned"});
    check_report([&] { launch_cooperative<copies_too_early>(2, 32, 128, stream, f.x.data()); },
                 {"block (0, 0, 0), thread (0, 0, 0): cp_async<4> at", "its source changed before the wait for it"});
}

TEST_CASE("emu: memory that nobody wrote is NaN") {
    Fixture f;
    DeviceArray<float> y(f.dev, 32);
    launch<reads_uninitialized>(1, 32, 128, f.dev.stream, f.x.data(), y.data());
    for (float value : f.x.values()) CHECK(std::isnan(value));
    Pinned<float> pinned(3);
    CHECK(std::isnan(pinned[2]));
}

TEST_CASE("emu: limits of launches") {
    Fixture f;
    auto run = [&](dim3 grid, unsigned threads, size_t smem) {
        launch<Fixture::works>(grid, threads, smem, f.dev.stream, f.x.data());
    };
    check_report([&] { run(1, 1025, 0); }, {"a block of 1025 threads", "cudaErrorInvalidConfiguration"});
    check_report([&] { run(dim3(1, 70000), 32, 0); }, {"a grid too large"});
    check_report([&] { run(1, 32, size_t(200) << 10); },
                 {"asks for 204800 bytes of shared memory, of 166912 on sm_80"});
    run(1, 64, size_t(100) << 10);  // launch() asks for permission
    CHECK(blocks_per_multiprocessor<Fixture::works>(64, size_t(100) << 10) == 1);
    emu::launch(two_barriers, "raw", "here", 1, dim3(1), dim3(32), 60000, f.dev.stream, f.x.data());
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(emu::take_diagnosis().find("60000 bytes of shared memory, but 49152 were allowed") != std::string::npos);
}

TEST_CASE("emu: a cooperative launch must fit the device") {
    Fixture f;
    auto run = [&](dim3 grid, unsigned threads, size_t smem) {
        launch_cooperative<meets_in_grid>(grid, threads, smem, f.dev.stream, f.x.data());
    };
    int cooperative = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, 0));
    CHECK(cooperative == 1);
    run(dim3(4, 2), 1024 / 16, size_t(80) << 10);
    check_report([&] { run(dim3(3, 3), 64, size_t(80) << 10); },
                 {"kernel meets_in_grid <<<(3, 3, 1), (64, 1, 1), 81920>>>", "cudaErrorCooperativeLaunchTooLarge",
                  "9 blocks in a cooperative launch, but only 8 of them fit at once, 2 on each of 4 multiprocessors",
                  "does not fit this GPU"});
    check_report([&] { run(129, 64, 0); }, {"129 blocks", "only 128 of them fit at once, 32 on each"});
    check_report([&] { run(9, 1024, 0); }, {"9 blocks", "only 8 of them fit at once, 2 on each"});
    run(0, 64, 0);  // no work
}

// In how many of the three orders run(dev) is not what n threads or blocks should get that add up their neighbours' numbers.
template <class Run>
static int wrong_orders(size_t n, size_t distance, Run&& run) {
    Quiet quiet;
    std::vector<float> expected(n);
    for (size_t i = 0; i < n; i++) expected[i] = float((i + distance) % n) + float((i + n - distance) % n);
    int wrong = 0;
    for (const emu::Order order : {emu::Order::forward, emu::Order::backward, emu::Order::random}) {
        emu::settings().order = order;
        Cuda dev;
        wrong += run(dev) != expected;
    }
    return wrong;
}

TEST_CASE("emu: a missing grid barrier shows in every order of blocks") {
    CHECK(wrong_orders(8, 1, [](Cuda& dev) {
              DeviceArray<float> x(dev, 8 * 32), y(dev, 8 * 32);
              launch_cooperative<missing_grid_barrier>(8, 32, 0, dev.stream, x.data(), y.data());
              std::vector<float> of_blocks;
              for (size_t b = 0; b < 8; b++) of_blocks.push_back(y.values()[b * 32]);
              return of_blocks;
          }) == 3);
}

TEST_CASE("emu: a missing block barrier between grid barriers shows in every order of threads") {
    CHECK(wrong_orders(256, 32, [](Cuda& dev) {
              DeviceArray<float> x(dev, 256);
              launch_cooperative<missing_barrier_between_grid_barriers>(2, 256, 256 * sizeof(float), dev.stream,
                                                                        x.data());
              return x.values();
          }) == 3);
}

TEST_CASE("emu: a missing barrier shows in some thread order") {
    CHECK(wrong_orders(256, 32, [](Cuda& dev) {
              DeviceArray<float> x(dev, 256);
              launch<missing_barrier>(1, 256, 256 * sizeof(float), dev.stream, x.data());
              return x.values();
          }) == 3);
}

TEST_CASE("emu: lazy streams show a missing wait") {
    Quiet quiet;
    emu::settings().lazy = true;
    Cuda dev;
    DeviceArray<float> y(dev, std::vector<float>(8, 7)), x(dev, 8);
    CudaEvent event;
    auto produce = [&] { device_copy(dev, y.data(), x.data(), 32); };
    device_copy_in(dev, x.data(), std::vector<float>(8, 1).data(), 32);

    // `produce` runs in dev.stream, and copy_stream reads its result without waiting for it.
    Pinned<float> host(8);
    produce();
    CUDA_CHECK(cudaMemcpyAsync(host.data(), y.data(), 32, cudaMemcpyDeviceToHost, dev.copy_stream));
    CUDA_CHECK(cudaStreamSynchronize(dev.copy_stream));
    CHECK(host[0] == 7);  // stale

    event.record(dev.stream);
    event.block(dev.copy_stream);
    CUDA_CHECK(cudaMemcpyAsync(host.data(), y.data(), 32, cudaMemcpyDeviceToHost, dev.copy_stream));
    CUDA_CHECK(cudaStreamSynchronize(dev.copy_stream));
    CHECK(host[0] == 1);

    // A pinned buffer that is refilled before its copy ran.
    host[0] = 20;
    CUDA_CHECK(cudaMemcpyAsync(y.data(), host.data(), 32, cudaMemcpyHostToDevice, dev.copy_stream));
    host[0] = 30;
    CUDA_CHECK(cudaStreamSynchronize(dev.copy_stream));
    CHECK(y.values()[0] == 30);

    // Polling makes progress, so it ends.
    produce();
    cudaEvent_t raw;
    CUDA_CHECK(cudaEventCreate(&raw));
    CUDA_CHECK(cudaEventRecord(raw, dev.stream));
    CHECK(cudaEventQuery(raw) == cudaErrorNotReady);
    while (cudaEventQuery(raw) == cudaErrorNotReady) {
    }
    CUDA_CHECK(cudaEventDestroy(raw));
    CHECK(y.values()[0] == 1);
}

TEST_CASE("emu: a lazy kernel's error comes with the synchronization") {
    Fixture f;
    emu::settings().lazy = true;
    launch<return_before_barrier>(1, 64, 0, f.dev.stream, f.x.data());
    check_report([&] { f.dev.synchronize(); }, {"kernel return_before_barrier", "threads returned before"});
}

TEST_CASE("emu: captures that are wrong") {
    Quiet quiet;
    Cuda dev;
    DeviceArray<float> x(dev, std::vector<float>(64, 1));
    CudaEvent before, fork;
    before.record(dev.copy_stream);
    CudaGraph graph;
    check_report([&] { graph.record(dev, [&] { before.block(dev.stream); }); }, {"cudaErrorStreamCaptureIsolation"});
    auto leaves_work_behind = [&] {
        fork.record(dev.stream);
        fork.block(dev.copy_stream);
        launch<Fixture::works>(1, 64, 0, dev.copy_stream, x.data());
    };
    check_report([&] { graph.record(dev, leaves_work_behind); }, {"cudaErrorStreamCaptureUnjoined"});
    CHECK(x.values()[0] == 1);
}

TEST_CASE("emu: nothing is left allocated") {
    const size_t before = emu::live_allocations();
    {
        Cuda dev;
        DeviceArray<float> x(dev, 10);
        Pinned<int> y(10);
        dev.scratch(100);
        CHECK(emu::live_allocations() == before + 4);
    }
    CHECK(emu::live_allocations() == before);
    Quiet quiet;
    int local;
    CHECK(cudaFree(&local) == cudaErrorInvalidValue);
}

#if !defined(EMU_ASAN) && !defined(EMU_TSAN)
TEST_CASE("emu: misaligned vector accesses") {
    Fixture f;
    // By -fsanitize=alignment with the source line, else by the processor if it is a vector instruction.
    check_report([&] { launch<misaligned_vector>(1, 1, 0, f.dev.stream, f.x.data()); },
                 {"kernel misaligned_vector", "misaligned"});
}
#endif

TEST_CASE("emu child: a wrong kernel, then a right one" * doctest::skip()) {
    Cuda dev;
    DeviceArray<float> x(dev, std::vector<float>(64, 1));
    launch<return_before_barrier>(1, 64, 0, dev.stream, x.data());
    MESSAGE("launch returned");
    dev.synchronize();
}

TEST_CASE("emu: SYNC_LAUNCHES names the kernel, EMU_ABORT stops at it") {
    const char* child = "emu child: a wrong kernel*";
    int status = 0;
    std::string output = run_again(child, "EMU_LAZY=1", status);
    CHECK_MESSAGE(output.find("launch returned") != std::string::npos, output);
    CHECK_MESSAGE(output.find("cudaStreamSynchronize(stream) at") != std::string::npos, output);
    output = run_again(child, "EMU_LAZY=1 SYNC_LAUNCHES=1", status);
    CHECK_MESSAGE(output.find("launch returned") == std::string::npos, output);
    CHECK_MESSAGE(output.find("CUDA: kernel return_before_barrier <<<(1, 1, 1), (64, 1, 1), 0>>> at tests/") !=
                      std::string::npos,
                  output);
    CHECK(WEXITSTATUS(status) != 0);
#if !defined(EMU_ASAN) && !defined(EMU_TSAN)
    output = run_again(child, "EMU_ABORT=1", status);
    CHECK_MESSAGE(output.find("SIGABRT") != std::string::npos, output);
#endif
}

#if defined(EMU_ASAN) || defined(EMU_TSAN)
namespace {

template <auto kernel>
void run_child() {
    Cuda dev;
    DeviceArray<float> x(dev, std::vector<float>(64, 1));
    launch<kernel>(1, 64, 64 * sizeof(float), dev.stream, x.data());
}

template <auto kernel>
void run_grid_child() {
    Cuda dev;
    DeviceArray<float> x(dev, std::vector<float>(64, 0));
    for (int i = 0; i < 2; i++) launch_cooperative<kernel>(2, 64, 64 * sizeof(float), dev.stream, x.data());
}

}  // namespace

TEST_CASE("emu child: race" * doctest::skip()) { run_child<race>(); }
TEST_CASE("emu child: no race" * doctest::skip()) { run_child<no_race>(); }
TEST_CASE("emu child: warp race" * doctest::skip()) { run_child<race_in_warp>(); }
TEST_CASE("emu child: grid race" * doctest::skip()) { run_grid_child<race_in_grid>(); }
TEST_CASE("emu child: late race" * doctest::skip()) { run_grid_child<race_after_grid_barrier>(); }
TEST_CASE("emu child: no grid race" * doctest::skip()) { run_grid_child<no_race_in_grid>(); }
TEST_CASE("emu child: overrun" * doctest::skip()) { run_child<overrun>(); }
TEST_CASE("emu child: shared overrun" * doctest::skip()) { run_child<shared_overrun>(); }

TEST_CASE("emu: sanitizers name the line of the kernel") {
#ifdef EMU_TSAN
    check_child("emu child: race", {"SUMMARY: ThreadSanitizer: data race tests/test_misuse.cpp:", "in race"});
    check_child("emu child: warp race",
                {"SUMMARY: ThreadSanitizer: data race tests/test_misuse.cpp:", "in race_in_warp"});
    check_child("emu child: no race", {"SUCCESS"});
    check_child("emu child: grid race",
                {"SUMMARY: ThreadSanitizer: data race tests/test_misuse.cpp:", "in race_in_grid"});
    check_child("emu child: late race",
                {"SUMMARY: ThreadSanitizer: data race tests/test_misuse.cpp:", "in race_after_grid_barrier"});
    check_child("emu child: no grid race", {"SUCCESS"});
#else
    check_child("emu child: overrun", {"use-after-poison", "in overrun tests/test_misuse.cpp:"});
    check_child("emu child: shared overrun", {"use-after-poison", "in shared_overrun tests/test_misuse.cpp:"});
#endif
}
#endif

}  // namespace tapernorm
#endif
