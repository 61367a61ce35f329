// Kernels of the kinds the project has, on whatever executes CUDA here: a GPU, or the stand-in of tests/emu.
// Streams, events, graphs and memory as the programs use them.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include "runtime/ptx.cuh"
#include "tests/cuda/cuda_test.h"

namespace tapernorm {

namespace {

constexpr double bf16_epsilon = 0x1p-8, float_epsilon = 0x1p-24;  // unit roundoff

__device__ float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// ---------------------------------------------------------------------------------------------------------------------
// A warp per row: y = (x - mean) / sqrt(var + eps), x [N, C], C a multiple of 256.

__global__ void __launch_bounds__(128) normalize_kernel(bf16* y, const bf16* x, int N, int C, float eps) {
    const int row = int(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = int(threadIdx.x % 32);
    if (row >= N) return;  // whole warps, and no block barrier follows
    x += size_t(row) * size_t(C), y += size_t(row) * size_t(C);
    float sum = 0, squares = 0;
    for (int i = lane * 8; i < C; i += 256) {
        const Pack<bf16> pack = load_pack(x + i);
        for (int j = 0; j < 8; j++) sum += float(pack[j]);
    }
    const float mean = warp_sum(sum) / float(C);
    for (int i = lane * 8; i < C; i += 256) {
        const Pack<bf16> pack = load_pack_readonly(x + i);
        for (int j = 0; j < 8; j++) squares += (float(pack[j]) - mean) * (float(pack[j]) - mean);
    }
    const float r = rsqrtf(warp_sum(squares) / float(C) + eps);
    for (int i = lane * 8; i < C; i += 256) {
        Pack<bf16> pack = load_pack_streaming(x + i);
        for (int j = 0; j < 8; j++) pack[j] = bf16((float(pack[j]) - mean) * r);
        store_pack_streaming(y + i, pack);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Column sums through shared and global atomics: sums [C] += of x [N, C].

__global__ void column_sum_kernel(float* sums, const float* x, int N, int C) {
    float* shared = dynamic_shared<float>();
    const int threads = int(blockDim.x), thread = int(threadIdx.x);
    for (int c = thread; c < C; c += threads) shared[c] = 0;
    __syncthreads();
    for (int i = int(blockIdx.x) * threads + thread; i < N * C; i += threads * int(gridDim.x))
        atomicAdd(&shared[i % C], x[i]);
    __syncthreads();
    for (int c = thread; c < C; c += threads) atomicAdd(&sums[c], shared[c]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sum of x [n] in one kernel: every block leaves a partial sum, the one that finishes last adds them in
// order.

__global__ void last_block_sum_kernel(float* total, float* partial, unsigned* finished, const float* x, size_t n) {
    float* shared = dynamic_shared<float>();
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0;
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) sum += x[i];
    sum = warp_sum(sum);
    if (lane == 0) shared[warp] = sum;
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        sum = 0;
        for (unsigned w = 0; w < blockDim.x / 32; w++) sum += shared[w];
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
    }
    if (!__syncthreads_or(last)) return;
    if (threadIdx.x == 0) {
        sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) sum += __ldcg(&partial[b]);
        *total = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix product on tensor cores: D [M, N] = A [M, K] B, all row-major, B given as [K, N] or transposed as
// [N, K]. A block of 4 warps computes 64 x 16; K in steps of 32 through two stages of cp.async.

constexpr int tile_m = 64, tile_n = 16, tile_k = 32;

struct MatmulTiles {
    bf16 a[2][tile_m][tile_k + 8];  // rows are padded by 16 bytes against bank conflicts
    bf16 b[2][tile_k][tile_k + 8];  // [tile_n][tile_k + 8] or [tile_k][tile_n + 8]
};

template <bool b_transposed>
__device__ void load_tiles(MatmulTiles& tiles, int stage, const bf16* A, const bf16* B, int m, int n, int k, int M,
                           int N, int K) {
    for (int i = int(threadIdx.x); i < tile_m * tile_k / 8; i += 128) {
        const int row = i / (tile_k / 8), column = i % (tile_k / 8) * 8;
        const bool valid = m + row < M;
        cp_async<16>(&tiles.a[stage][row][column], A + (valid ? (m + row) * K + k + column : 0), valid);
    }
    constexpr int rows = b_transposed ? tile_n : tile_k, columns = b_transposed ? tile_k : tile_n;
    for (int i = int(threadIdx.x); i < rows * columns / 8; i += 128) {
        const int row = i / (columns / 8), column = i % (columns / 8) * 8;
        const bf16* from = b_transposed ? B + (n + row) * K + k + column : B + (k + row) * N + n + column;
        cp_async<16>(&tiles.b[stage][row][column], from);
    }
}

template <bool b_transposed>
__global__ void __launch_bounds__(128) matmul_kernel(float* D, const bf16* A, const bf16* B, int M, int N, int K) {
    MatmulTiles& tiles = *dynamic_shared<MatmulTiles>();
    const int m = int(blockIdx.y) * tile_m, n = int(blockIdx.x) * tile_n;
    const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32), group = lane / 4, t = lane % 4;
    float d[2][4] = {};
    load_tiles<b_transposed>(tiles, 0, A, B, m, n, 0, M, N, K);
    cp_async_commit();
    for (int k = 0; k < K; k += tile_k) {
        const int stage = k / tile_k % 2;
        if (k + tile_k < K) load_tiles<b_transposed>(tiles, 1 - stage, A, B, m, n, k + tile_k, M, N, K);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        for (int kk = 0; kk < tile_k; kk += 16) {
            uint32_t a[4];
            ldmatrix_x4(a, &tiles.a[stage][warp * 16 + lane % 16][kk + lane / 16 * 8]);
            for (int half = 0; half < 2; half++) {
                uint32_t b[2];
                if (b_transposed)
                    ldmatrix_x2(b, &tiles.b[stage][half * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
                else
                    ldmatrix_x2_trans(b, &tiles.b[stage][kk + lane % 16][half * 8]);
                mma_m16n8k16(d[half], a, b);
            }
        }
        __syncthreads();
    }
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 4; i++) {
            const int row = m + warp * 16 + group + i / 2 * 8, column = n + half * 8 + 2 * t + i % 2;
            if (row < M) D[row * N + column] = d[half][i];
        }
}

// A B and, for the error bound, |A| |B|.
void matmul_ref(std::vector<double>& D, std::vector<double>& magnitude, const std::vector<bf16>& A,
                const std::vector<bf16>& B, bool b_transposed, size_t M, size_t N, size_t K) {
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++)
            for (size_t k = 0; k < K; k++) {
                const double product = double(float(A[m * K + k])) * float(b_transposed ? B[n * K + k] : B[k * N + n]);
                D[m * N + n] += product;
                magnitude[m * N + n] += std::abs(product);
            }
}

template <bool b_transposed>
void check_matmul(size_t M, size_t N, size_t K) {
    Cuda dev;
    const auto A = random_values<bf16>(M * K, 1), B = random_values<bf16>(K * N, 2);
    DeviceArray<bf16> a(dev, A), b(dev, B);
    DeviceArray<float> d(dev, M * N);
    launch<matmul_kernel<b_transposed>>(dim3(unsigned(N) / tile_n, blocks_for(M, tile_m)), 128, sizeof(MatmulTiles),
                                        dev.stream, d.data(), a.data(), b.data(), int(M), int(N), int(K));
    std::vector<double> expected(M * N), magnitude(M * N);
    matmul_ref(expected, magnitude, A, B, b_transposed, M, N, K);
    const std::vector<float> got = d.values();
    for (size_t i = 0; i < M * N; i++) {
        // Products are exact; tensor cores may truncate, hence 2 units per addition.
        const double tolerance = 2 * double(K) * float_epsilon * magnitude[i];
        INFO("element ", i, ": ", got[i], " instead of ", expected[i]);
        REQUIRE(std::abs(got[i] - expected[i]) <= tolerance);
    }
}

__global__ void fill_kernel(float* x, float value, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i] = value;
}

__global__ void add_kernel(float* x, const float* y, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i] += y[i];
}

template <int n>
__global__ void warp_functions_kernel(int* results) {
    const int lane = int(threadIdx.x);
    int* mine = results + lane * n;
    mine[0] = __shfl_sync(~0u, lane * 10, 5);
    mine[1] = __shfl_sync(~0u, lane, 3, 8);
    mine[2] = __shfl_up_sync(~0u, lane, 2);
    mine[3] = __shfl_down_sync(~0u, lane, 4, 16);
    mine[4] = __shfl_xor_sync(~0u, lane, 24);
    mine[5] = int(__ballot_sync(~0u, lane % 3 == 0));
    mine[6] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31);
    mine[7] = __reduce_max_sync(~0u, lane * (31 - lane));
    mine[8] = lane < 16 ? __shfl_xor_sync(0xffffu, lane, 1) : -1;
    mine[9] = __syncthreads_count(lane < 7);
}

}  // namespace

CUDA_TEST("cuda: a warp normalizes a row") {
    for (const size_t N : {size_t(1), size_t(7)}) {
        const size_t C = 768;
        Cuda dev;
        const auto x = random_values<bf16>(N * C, 3);
        DeviceArray<bf16> in(dev, x), out(dev, N * C);
        launch<normalize_kernel>(blocks_for(N, 4), 128, 0, dev.stream, out.data(), in.data(), int(N), int(C), 1e-5f);
        const std::vector<bf16> got = out.values();
        for (size_t row = 0; row < N; row++) {
            double mean = 0, square = 0;
            for (size_t i = 0; i < C; i++) mean += float(x[row * C + i]) / double(C);
            for (size_t i = 0; i < C; i++) square += std::pow(float(x[row * C + i]) - mean, 2) / double(C);
            for (size_t i = 0; i < C; i++) {
                const double expected = (float(x[row * C + i]) - mean) / std::sqrt(square + 1e-5);
                // one rounding to bf16, and sums of C floats
                REQUIRE(std::abs(float(got[row * C + i]) - expected) <=
                        bf16_epsilon * std::abs(expected) + 4 * double(C) * float_epsilon);
            }
        }
    }
}

CUDA_TEST("cuda: shared and global atomics add columns") {
    const size_t N = 100, C = 33;
    Cuda dev;
    const auto x = random_values<float>(N * C, 4);
    DeviceArray<float> in(dev, x), sums(dev, C);
    device_zero(dev, sums.data(), C * sizeof(float));
    launch<column_sum_kernel>(3, 96, C * sizeof(float), dev.stream, sums.data(), in.data(), int(N), int(C));
    const std::vector<float> got = sums.values();
    for (size_t c = 0; c < C; c++) {
        double expected = 0, magnitude = 0;
        for (size_t i = c; i < N * C; i += C) expected += x[i], magnitude += std::abs(x[i]);
        CHECK(std::abs(got[c] - expected) <= double(N) * float_epsilon * magnitude);
    }
}

CUDA_TEST("cuda: the last block reduces, again and again") {
    const size_t n = 10007;
    const unsigned blocks = 5;
    Cuda dev;
    const auto x = random_values<float>(n, 5);
    DeviceArray<float> in(dev, x), partial(dev, blocks), total(dev, 1);
    DeviceArray<unsigned> finished(dev, 1);
    device_zero(dev, finished.data(), sizeof(unsigned));
    double expected = 0, magnitude = 0;
    for (float v : x) expected += v, magnitude += std::abs(v);
    for (int repeat = 0; repeat < 3; repeat++) {
        launch<last_block_sum_kernel>(blocks, 256, 8 * sizeof(float), dev.stream, total.data(), partial.data(),
                                      finished.data(), in.data(), n);
        CHECK(std::abs(total.values()[0] - expected) <= double(n) * float_epsilon * magnitude);
    }
}

CUDA_TEST("cuda: tensor core matmul through cp.async and ldmatrix") {
    check_matmul<true>(64, 16, 64);
    check_matmul<true>(100, 48, 96);  // M is no multiple of the tile
    check_matmul<false>(64, 16, 64);
    check_matmul<false>(77, 32, 128);
}

CUDA_TEST("cuda: shuffles, votes, reductions of a warp") {
    constexpr int n = 10;
    Cuda dev;
    DeviceArray<int> out(dev, 32 * n);
    launch<warp_functions_kernel<n>>(1, 32, 0, dev.stream, out.data());
    const std::vector<int> got = out.values();
    for (int lane = 0; lane < 32; lane++) {
        const int* mine = &got[size_t(lane) * n];
        CHECK(mine[0] == 50);
        CHECK(mine[1] == lane / 8 * 8 + 3);
        CHECK(mine[2] == (lane < 2 ? lane : lane - 2));
        CHECK(mine[3] == (lane % 16 < 12 ? lane + 4 : lane));
        CHECK(mine[4] == (lane ^ 24));
        CHECK(mine[5] == 0x49249249);
        CHECK(mine[6] == 1);
        CHECK(mine[7] == 15 * 16);
        CHECK(mine[8] == (lane < 16 ? lane ^ 1 : -1));
        CHECK(mine[9] == 7);
    }
}

CUDA_TEST("cuda: an empty grid is no work; names, sites and limits are in the error") {
    Cuda dev;
    DeviceArray<float> x(dev, 4);
    launch<fill_kernel>(0, 32, 0, dev.stream, x.data(), 1.0f, 4);
    std::string error;
    try {
        launch<fill_kernel>(1, 2048, 0, dev.stream, x.data(), 1.0f, 4);
    } catch (const Error& e) {
        error = e.what();
    }
    for (const char* part :
         {"kernel fill_kernel <<<(1, 1, 1), (2048, 1, 1), 0>>>", "test_cuda_runtime.cpp:", "does not fit this GPU"})
        CHECK_MESSAGE(error.find(part) != std::string::npos, error);
    const char* const signatures[] = {
        "const char* kernel_signature() [with auto kernel = {anonymous}::fill_kernel]",
        "const char *kernel_signature() [kernel = &(anonymous namespace)::fill_kernel]",
        "const char *kernel_signature<kernel>() [with auto kernel = _GLOBAL__N__5d_12_test_cuda_runtime_cpp_d6_747::fill_kernel]"};
    for (const char* signature : signatures) CHECK(readable_kernel_name(signature) == "fill_kernel");
    launch<fill_kernel>(1, 32, 0, dev.stream, x.data(), 2.0f, 4);  // the refused launch leaves nothing behind
    CHECK(x.values() == std::vector<float>{2, 2, 2, 2});
}

CUDA_TEST("cuda: events order streams, pinned buffers are reused after one") {
    const int n = 1000;
    const unsigned blocks = blocks_for(n, 128);
    Cuda dev;
    CudaEvent uploaded, consumed;
    Pinned<float> host(n);
    DeviceArray<float> staging(dev, n), sum(dev, n);
    device_zero(dev, sum.data(), n * sizeof(float));
    for (int step = 1; step <= 3; step++) {
        uploaded.synchronize();  // the last step's: the copy out of `host` is done
        for (size_t i = 0; i < size_t(n); i++) host[i] = float(step);
        consumed.block(dev.copy_stream);
        CUDA_CHECK(
            cudaMemcpyAsync(staging.data(), host.data(), n * sizeof(float), cudaMemcpyHostToDevice, dev.copy_stream));
        uploaded.record(dev.copy_stream);
        uploaded.block(dev.stream);
        launch<add_kernel>(blocks, 128, 0, dev.stream, sum.data(), staging.data(), n);
        consumed.record(dev.stream);
    }
    CHECK(sum.values() == std::vector<float>(n, 6));
}

CUDA_TEST("cuda: a graph repeats what was recorded") {
    const int n = 64;
    Cuda dev;
    DeviceArray<float> x(dev, n), one(dev, std::vector<float>(n, 1));
    launch<fill_kernel>(1, 64, 0, dev.stream, x.data(), 10.0f, n);
    CudaGraph graph;
    CHECK(!graph);
    CudaEvent fork, join;
    graph.record(dev, [&] {
        launch<add_kernel>(1, 64, 0, dev.stream, x.data(), one.data(), n);
        fork.record(dev.stream);
        fork.block(dev.copy_stream);
        launch<add_kernel>(1, 64, 0, dev.copy_stream, x.data(), one.data(), n);
        join.record(dev.copy_stream);
        join.block(dev.stream);
    });
    CHECK(bool(graph));
    CHECK(x.values()[0] == 10);  // recorded, not executed
    for (int i = 0; i < 5; i++) graph.launch(dev);
    CHECK(x.values() == std::vector<float>(n, 20));
}

CUDA_TEST("cuda: what a graph cannot hold spoils its recording, and nothing else") {
    Cuda dev;
    DeviceArray<float> x(dev, 4);
    CudaGraph graph;
    dev.scratch(64);
    for (const size_t bytes : {32, 1 << 20})  // which it has, and which it would have to free that for
        CHECK_THROWS_WITH_AS(graph.record(dev, [&] { dev.scratch(bytes); }), doctest::Contains("expected no graph"),
                             Error);
    CHECK_THROWS_AS(graph.record(dev, [&] { dev.synchronize(); }), Error);
    CHECK(!graph);
    launch<fill_kernel>(1, 32, 0, dev.stream, x.data(), 3.0f, 4);
    CHECK(x.values()[3] == 3);
}

CUDA_TEST("cuda: out of memory is an error with numbers, and leaves the device usable") {
    Cuda dev;
    std::string error;
    try {
        device_allocate(dev, size_t(1) << 50, "the test");
    } catch (const Error& e) {
        error = e.what();
    }
    CHECK_MESSAGE(error.find("1073741824.0 MiB needed for the test") != std::string::npos, error);
    DeviceArray<float> x(dev, std::vector<float>{1, 2});
    CHECK(x.values()[1] == 2);
    CHECK(dev.scratch(100) != nullptr);
    CHECK(dev.scratch(50) == dev.scratch(100));
}

}  // namespace tapernorm
#endif  // TN_CUDA
