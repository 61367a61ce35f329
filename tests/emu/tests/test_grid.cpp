// Cooperative launches: blocks that exist at once and meet in grid barriers.
#if defined(TN_CUDA) && defined(CUDA_EMU)
#include <doctest/doctest.h>

#include <algorithm>

#include "emu.h"
#include "runtime/grid.cuh"
#include "runtime/ptx.cuh"
#include "tests/cuda/cuda_test.h"

namespace tapernorm {
namespace {

using cooperative_groups::this_grid;

// Runs f in every order of blocks and threads, in streams that run at once and late.
template <class F>
void in_all_orders(F&& f) {
    const emu::Settings saved = emu::settings();
    for (const emu::Order order : {emu::Order::forward, emu::Order::backward, emu::Order::random})
        for (const bool lazy : {false, true}) {
            emu::settings().order = order;
            emu::settings().lazy = lazy;
            CAPTURE(int(order));
            CAPTURE(lazy);
            f();
        }
    emu::settings() = saved;
}

// x[i] moves on by one block in each round: block b takes what block b - 1 had.
__global__ void rotate_blocks(float* x, float* y, int rounds) {
    const unsigned blocks = unsigned(this_grid().num_blocks()), b = unsigned(this_grid().block_rank());
    const unsigned from = (b + blocks - 1) % blocks * blockDim.x + threadIdx.x, to = b * blockDim.x + threadIdx.x;
    for (int i = 0; i < rounds; i++) {
        y[to] = x[from];
        this_grid().sync();
        x[to] = y[to];
        this_grid().sync();
    }
}

// What a block has in shared memory stays there while it waits, and copies into it go on.
__global__ void keeps_shared_memory(float* sums, float* seen, const float* weights, int rounds) {
    const unsigned t = threadIdx.x, b = blockIdx.x, T = blockDim.x, blocks = gridDim.x;
    float* mine = dynamic_shared<float>();
    float* weight = mine + T;
    const bool fresh = std::isnan(mine[t]) && std::isnan(weight[t]);
    mine[t] = fresh ? float(b * T + t) : 0;
    for (int round = 0; round < rounds; round++) {
        cp_async<4>(weight + t, weights + (unsigned(round) * blocks + b) * T + t);
        cp_async_commit();
        seen[b * T + t] = mine[t];
        this_grid().sync();
        cp_async_wait<0>();
        __syncthreads();
        mine[t] += weight[(t + 1) % T] + seen[(b + 1) % blocks * T + t];
        this_grid().sync();
    }
    sums[b * T + t] = mine[t];
}

// As many block barriers as the block has numbers, and warps that shuffle, between two grid barriers.
__global__ void blocks_differ(int* x) {
    int* shared = dynamic_shared<int>();
    shared[threadIdx.x] = int(threadIdx.x);
    for (unsigned i = 0; i < blockIdx.x; i++) {
        __syncthreads();
        const int next = shared[(threadIdx.x + 1) % blockDim.x];
        __syncthreads();
        shared[threadIdx.x] = next;
    }
    x[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
    this_grid().sync();
    int sum = 0;
    for (unsigned b = blockIdx.x % 2; b < gridDim.x; b++)
        sum += __shfl_xor_sync(~0u, x[b * blockDim.x + threadIdx.x], 1);
    this_grid().sync();
    x[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Who came as which one in each round.
__global__ void records_turns(unsigned* turns, unsigned* arrived, int rounds) {
    for (int round = 0; round < rounds; round++) {
        if (threadIdx.x == 0) turns[atomicAdd(arrived, 1)] = blockIdx.x;
        this_grid().sync();
    }
}

__global__ void adds_one(int* x) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const int neighbour = x[(i + blockDim.x) % (gridDim.x * blockDim.x)];
    this_grid().sync();
    x[i] = neighbour + 1;
}

}  // namespace

TEST_CASE("emu: a grid barrier orders what blocks write") {
    in_all_orders([] {
        Cuda dev;
        constexpr size_t blocks = 6, threads = 40, n = blocks * threads;
        std::vector<float> values(n);
        for (size_t i = 0; i < n; i++) values[i] = float(i);
        DeviceArray<float> x(dev, values), y(dev, n);
        const uint64_t launches = emu::launches(), barriers = emu::grid_barriers();
        launch_cooperative<rotate_blocks>(dim3(2, 1, 3), 40, 0, dev.stream, x.data(), y.data(), 4);
        const std::vector<float> got = x.values();
        for (size_t i = 0; i < n; i++) CHECK(got[(i + 4 * threads) % n] == float(i));
        CHECK(emu::launches() == launches + 1);
        CHECK(emu::grid_barriers() == barriers + 8);
    });
}

TEST_CASE("emu: blocks take turns in the order asked for, a random one is new in each round") {
    const emu::Settings saved = emu::settings();
    constexpr unsigned blocks = 16, rounds = 3;
    auto turns = [](emu::Order order) {
        emu::settings().order = order;
        Cuda dev;
        DeviceArray<unsigned> x(dev, blocks * rounds), arrived(dev, std::vector<unsigned>(1, 0));
        launch_cooperative<records_turns>(blocks, 32, 0, dev.stream, x.data(), arrived.data(), int(rounds));
        return x.values();
    };
    const std::vector<unsigned> forward = turns(emu::Order::forward), backward = turns(emu::Order::backward),
                                random = turns(emu::Order::random);
    for (unsigned i = 0; i < blocks * rounds; i++) {
        CHECK(forward[i] == i % blocks);
        CHECK(backward[i] == blocks - 1 - i % blocks);
    }
    auto round = [&](unsigned r) {
        return std::vector<unsigned>(random.begin() + r * blocks, random.begin() + (r + 1) * blocks);
    };
    CHECK(round(0) != round(1));
    CHECK(round(1) != round(2));
    std::vector<unsigned> sorted = round(2);
    std::sort(sorted.begin(), sorted.end());
    for (unsigned b = 0; b < blocks; b++) CHECK(sorted[b] == b);
    emu::settings() = saved;
}

TEST_CASE("emu: shared memory and copies into it outlast grid barriers") {
    in_all_orders([] {
        Cuda dev;
        constexpr size_t blocks = 5, T = 64, rounds = 3, n = blocks * T;
        const std::vector<float> weights = random_values<float>(rounds * n, 1);
        DeviceArray<float> sums(dev, n), seen(dev, n), w(dev, weights);
        launch_cooperative<keeps_shared_memory>(blocks, T, 2 * T * sizeof(float), dev.stream, sums.data(), seen.data(),
                                                w.data(), int(rounds));
        std::vector<float> expected(n);
        for (size_t i = 0; i < n; i++) expected[i] = float(i);
        for (size_t round = 0; round < rounds; round++) {
            const std::vector<float> before = expected;
            for (size_t b = 0; b < blocks; b++)
                for (size_t t = 0; t < T; t++)
                    expected[b * T + t] +=
                        weights[(round * blocks + b) * T + (t + 1) % T] + before[(b + 1) % blocks * T + t];
        }
        CHECK(sums.values() == expected);
    });
}

TEST_CASE("emu: between grid barriers blocks go their own ways") {
    in_all_orders([] {
        Cuda dev;
        constexpr int blocks = 7, T = 64;
        DeviceArray<int> x(dev, blocks * T);
        launch_cooperative<blocks_differ>(blocks, T, T * sizeof(int), dev.stream, x.data());
        const std::vector<int> got = x.values();
        for (int b = 0; b < blocks; b++)
            for (int t = 0; t < T; t++) {
                int sum = 0;
                for (int other = b % 2; other < blocks; other++) sum += ((t ^ 1) + other) % T;
                CHECK(got[size_t(b * T + t)] == sum);
            }
    });
}

TEST_CASE("emu: a graph holds cooperative launches, which fill the device") {
    in_all_orders([] {
        Cuda dev;
#ifdef EMU_TSAN
        const unsigned T = 64, blocks = 16;  // it takes 0.8 MB for each thread that exists
#else
        const unsigned T = 64, blocks = 4 * unsigned(blocks_per_multiprocessor<adds_one>(int(T), 0));
#endif
        DeviceArray<int> x(dev, std::vector<int>(blocks * T, 0));
        CudaGraph graph;
        graph.record(dev, [&] {
            for (int i = 0; i < 2; i++) launch_cooperative<adds_one>(blocks, T, 0, dev.stream, x.data());
        });
        CHECK(graph.nodes() == 2);
        const uint64_t launches = emu::launches(), barriers = emu::grid_barriers();
        for (int i = 0; i < 3; i++) graph.launch(dev);
        CHECK(x.values() == std::vector<int>(blocks * T, 6));
        CHECK(emu::launches() == launches + 6);
        CHECK(emu::grid_barriers() == barriers + 6);
    });
}

}  // namespace tapernorm
#endif
