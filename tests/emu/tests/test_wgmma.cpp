// Products of warpgroups on the stand-in: every form of operand against three nested loops.
#if defined(TN_CUDA) && defined(CUDA_EMU)
#include <doctest/doctest.h>

#include "emu.h"
#include "runtime/ptx.cuh"
#include "runtime/wgmma.cuh"
#include "sanitizer.h"
#include "tests/cuda/cuda_test.h"

namespace tapernorm {
namespace {

// Any numbers that bf16 holds, the same on both sides.
__host__ __device__ float number(int which, int i, int j) {
    const uint32_t mixed = uint32_t(which * 7919 + i * 131 + j) * 2654435761u;
    return float(int(mixed >> 24) - 128) / float(1 << (mixed >> 8 & 7));
}

// The byte of an element in panels [rows, 64], as runtime/wgmma.cuh describes them.
__host__ __device__ int byte_of(int rows, int row, int column) {
    const int panel = column / 64, unit = column % 64 / 8;
    return panel * rows * 128 + row * 128 + (unit ^ row % 8) * 16 + column % 8 * 2;
}

constexpr int kDepth = 64;  // what is summed over: four products

// d [64, N] = a [64, 64] b [64, N], for each warpgroup with numbers of its own; `add`: to numbers that d has before.
template <int N, bool columns_a, bool columns_b, bool registers>
__global__ void multiply(float* out, bool add) {
    constexpr int kA = 64 * 128, kB = N * 128;
    const int lane = int(threadIdx.x) % 128, group = int(threadIdx.x) / 128, t = lane % 4;
    char* const a = dynamic_shared<char>() + group * (kA + kB);
    char* const b = a + kA;
    for (int i = lane; i < 64 * kDepth; i += 128) {
        const int m = i / kDepth, k = i % kDepth;
        *reinterpret_cast<bf16*>(a + (columns_a ? byte_of(kDepth, k, m) : byte_of(64, m, k))) =
            bf16(number(3 * group, m, k));
    }
    for (int i = lane; i < N * kDepth; i += 128) {
        const int n = i / kDepth, k = i % kDepth;
        *reinterpret_cast<bf16*>(b + (columns_b ? byte_of(kDepth, k, n) : byte_of(N, n, k))) =
            bf16(number(3 * group + 1, k, n));
    }
    uint32_t left[kDepth / 16][4];
    for (int i = 0; registers && i < kDepth / 4; i++) {
        const int m = lane / 32 * 16 + lane % 32 / 4 + i % 2 * 8, k = i / 4 * 16 + i / 2 % 2 * 8 + 2 * t;
        left[i / 4][i % 4] = pack_bf16(number(3 * group, m, k), number(3 * group, m, k + 1));
    }
    float d[N / 8][4];
    auto place = [&](int i, int& m, int& n) {
        m = lane / 32 * 16 + lane % 32 / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + 2 * t + i % 2;
    };
    for (int i = 0, m, n; i < N / 2; i++) place(i, m, n), d[i / 4][i % 4] = number(3 * group + 2, m, n);

    fence_async_proxy();
    __syncthreads();
    wgmma_fence(d, left);
    const uint64_t a_operand = wgmma_operand(a), b_operand = wgmma_operand(b, columns_b ? kDepth * 128 : 0);
    for (int k = 0; k < kDepth / 16; k++) {
        const uint64_t a_at = a_operand + wgmma_bytes(k * (columns_a ? 2048 : 32));
        const uint64_t b_at = b_operand + wgmma_bytes(k * (columns_b ? 2048 : 32));
        if constexpr (registers)
            wgmma<N, columns_b>(d, left[k], b_at, add || k > 0);
        else
            wgmma<N, columns_a, columns_b>(d, a_at, b_at, add || k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(d, left);
    for (int i = 0, m, n; i < N / 2; i++) place(i, m, n), out[(group * 64 + m) * N + n] = d[i / 4][i % 4];
}

struct Sm90 {
    emu::Settings saved = emu::settings();
    Sm90() { emu::settings().sm = 90; }
    ~Sm90() { emu::settings() = saved; }
};

template <int N, bool columns_a, bool columns_b, bool registers>
void check_product() {
    Cuda dev;
    for (int groups = 1; groups <= 2; groups++)
        for (const bool add : {false, true}) {
            DeviceArray<float> out(dev, size_t(groups * 64 * N));
            launch<multiply<N, columns_a, columns_b, registers>>(2, unsigned(groups * 128),
                                                                 size_t(groups * (64 + N) * 128), dev.stream,
                                                                 out.data(), add);
            const std::vector<float> result = out.values();
            int wrong = 0;
            for (int i = 0; i < groups * 64 * N; i++) {
                const int group = i / (64 * N), m = i / N % 64, n = i % N;
                float sum = add ? number(3 * group + 2, m, n) : 0;
                for (int k = 0; k < kDepth; k++) sum += number(3 * group, m, k) * number(3 * group + 1, k, n);
                wrong += result[size_t(i)] != sum;
            }
            CHECK(wrong == 0);
        }
}

}  // namespace

TEST_CASE("wgmma: every form of operand") {
    Sm90 device;
    check_product<64, false, false, false>();
    check_product<64, false, true, false>();
    check_product<64, true, false, false>();
    check_product<64, true, true, false>();
    check_product<128, false, false, false>();
    check_product<128, false, true, false>();
    check_product<128, true, false, false>();
    check_product<128, true, true, false>();
    check_product<64, false, false, true>();
    check_product<64, false, true, true>();
    check_product<128, false, false, true>();
    check_product<128, false, true, true>();
}

}  // namespace tapernorm
#endif
