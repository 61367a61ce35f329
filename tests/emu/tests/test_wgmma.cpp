// Products of warpgroups on the stand-in: every form of operand against three nested loops, then kernels with one mistake each: 61 of
// one warpgroup (Mistake), 4 of two (Shared, Ring), 3 of named barriers; and 8 launches that are wrong themselves. All but three must
// be reported, those must give wrong numbers. None may run on a GPU.
#if defined(TN_CUDA) && defined(CUDA_EMU)
#include <doctest/doctest.h>

#include <algorithm>

#include "emu.h"
#include "reports.h"
#include "runtime/grid.cuh"
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

// The byte of an element in panels [rows, 64], as runtime/wgmma.cuh describes them. Between panels is a gap, so that they are where
// the operand says, not where they could be expected.
__host__ __device__ constexpr int panel_bytes(int rows) { return (rows + 8) * 128; }
__host__ __device__ int byte_of(int rows, int row, int column) {
    const int panel = column / 64, unit = column % 64 / 8;
    return panel * panel_bytes(rows) + row * 128 + (unit ^ row % 8) * 16 + column % 8 * 2;
}

constexpr int kDepth = 64;  // what is summed over: four products

// Of B, by rows or by columns.
template <int N>
constexpr int tile_bytes() {
    return std::max(N * 128, N / 64 * panel_bytes(kDepth));
}

// d [64, N] = a [64, 64] b [64, N], for each warpgroup with numbers of its own; `add`: to numbers that d has before.
template <int N, bool columns_a, bool columns_b, bool registers>
__global__ void multiply(float* out, bool add) {
    constexpr int kA = 64 * 128, kB = tile_bytes<N>();
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
    const uint64_t a_operand = wgmma_operand(a), b_operand = wgmma_operand(b, columns_b ? panel_bytes(kDepth) : 0);
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
    Sm90() {
        emu::take_diagnosis();
        emu::settings().sm = 90;
    }
    ~Sm90() { emu::settings() = saved; }
};

// Where in d [64, 8 n] the i-th accumulator of this thread lies.
__device__ int place_of(int i, int n) {
    const int lane = int(threadIdx.x) % 128;
    return (lane / 32 * 16 + lane % 32 / 4 + i / 2 % 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2;
}

template <int N, bool columns_a, bool columns_b, bool registers>
void check_product() {
    Cuda dev;
    for (int groups = 1; groups <= 2; groups++)
        for (const bool add : {false, true}) {
            DeviceArray<float> out(dev, size_t(groups * 64 * N));
            launch<multiply<N, columns_a, columns_b, registers>>(2, unsigned(groups * 128),
                                                                 size_t(groups * (64 * 128 + tile_bytes<N>())),
                                                                 dev.stream, out.data(), add);
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

// ---------------------------------------------------------------------------------------------------------------------
// Two tiles of shared memory, A [64, 64] and B [64, 64] by rows, and out = A B^T, with one mistake or another

enum class Mistake {
    none,
    none_with_grid_barrier,
    none_named_in_parts,
    none_with_left_that_stays,
    none_with_new_left,
    // of the asynchronous proxy
    no_proxy_fence,
    no_proxy_fence_after_stores,
    proxy_fence_before_wait,
    proxy_fence_before_stores,
    proxy_fence_of_one_before_stores,
    proxy_fence_of_lane_0_before_stores,
    proxy_fence_of_half_the_threads,
    no_barrier,
    no_barrier_after_stores,
    store_after_barrier,
    barrier_before_proxy_fence,
    named_barrier_of_others,
    copies_in_flight,
    // of registers
    no_fence,
    sums_never_named,
    sums_written_after_fence,
    left_never_named,
    left_written_after_fence,
    left_written_before_wait,
    sums_written_before_wait,
    sums_scaled_before_wait,
    sums_written_between_products,
    sums_written_before_new_ones,
    part_of_pending_sums,
    // of waiting
    tile_stored_before_wait,
    tile_copied_before_wait,
    tile_stored_before_others_wait,
    no_commit,
    too_many_pending,
    more_than_can_be_pending,
    no_wait,
    neither_commit_nor_wait,
    left_pending_when_named,
    sums_not_named,
    part_of_sums_not_named,
    // of a warpgroup
    warp_missing,
    lane_missing_in_commit,
    different_operands,
    different_left_operands,
    different_add,
    two_lines,
    different_groups,
    different_waits,
    // of operands
    no_swizzle_mode,
    base_offset,
    stray_bits,
    not_at_8_rows,
    not_at_16_channels,
    not_at_panel,
    stepped_back,
    wrong_stride,
    no_stride,
    no_panel_stride,
    odd_panel_stride,
    past_the_end,
    outside,
    unaligned_operand,
    unaligned_step,
    // that give wrong numbers
    read_before_wait,
    tile_without_swizzle,
    wrong_major,
};

template <Mistake mistake>
__global__ void UNCHECKED wrong(float* out, const bf16* in) {
    using enum Mistake;
    auto is = [](auto... those) { return ((mistake == those) || ...); };
    const int t = int(threadIdx.x), warp = t / 32;
    char *const tiles = dynamic_shared<char>(), *const b = tiles + 64 * 128;

    // The tiles arrive.
    if (is(proxy_fence_before_stores) || (is(proxy_fence_of_one_before_stores) && t == 0) ||
        (is(proxy_fence_of_lane_0_before_stores) && t % 32 == 0))
        fence_async_proxy();
    for (int i = t; i < 1024; i += 128) {
        char* to = tiles + (is(tile_without_swizzle) ? i * 16 : byte_of(128, i / 8, i % 8 * 8));
        if (is(no_proxy_fence_after_stores, proxy_fence_before_stores, proxy_fence_of_one_before_stores,
               proxy_fence_of_lane_0_before_stores, no_barrier_after_stores))
            store_pack(reinterpret_cast<bf16*>(to), load_pack(in + i * 8));
        else
            cp_async<16>(to, in + i * 8);
    }
    cp_async_commit();
    if (is(proxy_fence_before_wait)) fence_async_proxy();
    if (!is(copies_in_flight)) cp_async_wait<0>();
    if (is(barrier_before_proxy_fence)) __syncthreads();
    if (!is(no_proxy_fence, no_proxy_fence_after_stores, proxy_fence_before_wait, proxy_fence_before_stores,
            proxy_fence_of_one_before_stores, proxy_fence_of_lane_0_before_stores) &&
        (!is(proxy_fence_of_half_the_threads, barrier_before_proxy_fence) || t < 64))
        fence_async_proxy();
    if (is(named_barrier_of_others))
        named_barrier(1 + warp / 2, 64);
    else if (is(none_with_grid_barrier))
        cooperative_groups::this_grid().sync();
    else if (!is(no_barrier, no_barrier_after_stores, barrier_before_proxy_fence))
        __syncthreads();
    if (is(store_after_barrier) && t == 1) tiles[9000] ^= 1;

    // Registers.
    float d[8][4] = {}, more[16][4] = {};
    uint32_t left[4] = {};
    uint64_t at_a = wgmma_operand(tiles), at_b = wgmma_operand(is(outside) ? reinterpret_cast<const char*>(in) : b);
    if (is(odd_panel_stride)) at_b = wgmma_operand(b, 8);
    if (is(stepped_back)) at_b = wgmma_operand(b + 64) + (wgmma_bytes(0) - wgmma_bytes(64));  // not of 64 bits
    if (is(wrong_stride)) at_b += uint64_t(1) << 32;
    if (is(no_stride)) at_a &= ~(uint64_t(0x3fff) << 32);
    if (is(unaligned_operand)) at_a = wgmma_operand(tiles + 8);
    if (is(no_swizzle_mode)) at_a &= ~(uint64_t(3) << 62);
    if (is(base_offset)) at_b |= uint64_t(1) << 49;
    if (is(stray_bits)) at_b += uint64_t(1) << 14;
    if (is(not_at_8_rows)) at_a = wgmma_operand(tiles + 4 * 128);
    if (is(not_at_16_channels)) at_a += wgmma_bytes(16);
    if (is(past_the_end)) at_b = wgmma_operand(b + 8 * 128);
    if (is(different_operands) && t == 77) at_b += wgmma_bytes(32);
    if (is(different_left_operands) && t == 77) at_a += wgmma_bytes(32);
    if (is(sums_never_named, left_never_named))
        wgmma_fence();
    else if (!is(no_fence))
        wgmma_fence(d, left, more);
    if (is(left_written_after_fence)) left[3] = 1;
    if (is(sums_written_after_fence)) d[7][3] = 1;

    // Products.
    if (is(warp_missing) && warp == 2) return;
    if (is(different_groups) && warp == 3) wgmma_commit();
    if (is(left_never_named, left_written_after_fence, left_written_before_wait, none_with_left_that_stays,
           none_with_new_left))
        wgmma<64, false>(d, left, at_b, false);
    if (is(not_at_panel)) wgmma<64, false, true>(d, at_a, at_b + wgmma_bytes(128), false);
    if (is(no_panel_stride)) wgmma<128, false, true>(more, at_a, at_b, true);
    if (is(part_of_pending_sums)) wgmma<128, false, false>(more, at_a, wgmma_operand(tiles), true);
    for (int k = 0; is(more_than_can_be_pending) && k < 64; k++) wgmma<64, false, false>(d, at_a, at_b, true);
    for (int k = 0; k < 4; k++) {
        const uint64_t step = wgmma_bytes(is(unaligned_step) ? 8 * k : 32 * k);
        const bool add = k > 0 || is(sums_never_named, sums_written_after_fence) || (is(different_add) && t == 99);
        if (is(two_lines) && warp == 1)
            wgmma<64, false, false>(d, at_a + step, at_b + step, add);
        else if (is(wrong_major))
            wgmma<64, false, true>(d, at_a + step, at_b + wgmma_bytes(2048 * k), add);
        else if (is(part_of_pending_sums))
            wgmma<64, false, false>(reinterpret_cast<float (&)[8][4]>(more[4]), at_a + step, at_b + step, add);
        else
            wgmma<64, false, false>(d, at_a + step, at_b + step, add);
        if (is(sums_written_between_products) && k == 1) d[0][0] = 0;
        if (is(different_waits) && k == 1) {
            wgmma_commit();
            if (warp == 1) wgmma_wait<0>(d);
        }
    }
    if (is(neither_commit_nor_wait)) return;
    if (!is(no_commit) && !(is(lane_missing_in_commit) && t == 5)) wgmma_commit();
    if (is(no_wait)) return;
    if (is(left_written_before_wait)) left[0]++;
    if (is(sums_written_before_wait)) d[3][1] = 0;
    for (int i = 0; is(sums_scaled_before_wait) && i < 32; i++) d[i / 4][i % 4] *= 2;
    if (is(tile_stored_before_wait) && t == 9) tiles[1000] ^= 1;
    if (is(tile_copied_before_wait) && t == 9) cp_async<16>(b, in);
    if (is(read_before_wait)) {
        for (int i = 0; i < 32; i++) out[place_of(i, 64)] = d[i / 4][i % 4];
        wgmma_wait<0>(d);
        return;
    }
    if (is(left_pending_when_named)) {
        wgmma_fence(left);
        wgmma<64, false>(d, left, at_b, true);
        wgmma_commit();
        wgmma_wait<1>(left);
    }
    if (is(too_many_pending))
        wgmma_wait<1>(d);
    else if (is(sums_not_named))
        wgmma_wait<0>(left);
    else if (is(part_of_sums_not_named))
        wgmma_wait<0>(d[0], d[1], d[2], d[3], d[5], d[6], d[7], left);
    else if (is(none_named_in_parts))
        wgmma_wait<0>(d[7], d[1], d[2], d[4], d[3], d[5], d[6], d[0]);
    else if (is(none_with_left_that_stays))
        wgmma_wait<0>(d);
    else
        wgmma_wait<0>(d, left);
    if (is(none_named_in_parts)) wgmma_wait<0>();      // finishes nothing
    if (is(none_with_new_left)) left[2] = 0x80008000;  // zeros, too
    if (is(none_with_left_that_stays, none_with_new_left)) {
        wgmma_fence(left);
        wgmma<64, false>(d, left, at_b, true);  // adds nothing
        wgmma_commit();
        wgmma_wait<0>(d);
    }
    if (is(sums_written_before_new_ones)) {
        d[2][1] *= 3;
        wgmma<64, false, false>(d, at_a, at_b, false);
        wgmma_commit();
        wgmma_wait<0>(d);
    }
    if (is(tile_stored_before_others_wait) && t % 32 == 0) tiles[1000] ^= 1;
    cp_async_wait<0>();
    for (int i = 0; i < 32; i++) out[place_of(i, 64)] = d[i / 4][i % 4];
}

// f in one order of threads after another.
template <class F>
void for_orders(F&& f) {
    for (uint64_t seed = 0; seed < 8; seed++) {
        emu::settings().order = seed == 0 ? emu::Order::forward : seed == 1 ? emu::Order::backward : emu::Order::random;
        emu::settings().seed = seed;
        CAPTURE(seed);
        f();
    }
}

// What the tests of mistakes share.
struct Tiles {
    Quiet quiet;
    Cuda dev;
    std::vector<float> expected;
    DeviceArray<float> out{dev, 64 * 64};
    DeviceArray<bf16> in{dev, 128 * 64};

    Tiles() {
        emu::settings().sm = 90;
        std::vector<bf16> values(128 * 64);
        for (int i = 0; i < 128 * 64; i++) values[size_t(i)] = bf16(number(0, i / 64, i % 64));
        device_copy_in(dev, in.data(), values.data(), values.size() * sizeof(bf16));
        for (int m = 0; m < 64; m++)
            for (int n = 0; n < 64; n++) {
                float sum = 0;
                for (int k = 0; k < 64; k++) sum += number(0, m, k) * number(0, 64 + n, k);
                expected.push_back(sum);
            }
    }
    template <Mistake mistake>
    void run(unsigned threads = 128, size_t smem = 128 * 128) {
        launch<wrong<mistake>>(1, threads, smem, dev.stream, out.data(), in.data());
    }
    template <Mistake mistake = Mistake::none>
    int wrong_numbers() {
        run<mistake>();
        const std::vector<float> result = out.values();
        int count = 0;
        for (size_t i = 0; i < result.size(); i++) count += result[i] != expected[i];
        return count;
    }
    // The mistake is reported, in every order of threads, and the next kernel runs.
    template <Mistake mistake>
    void reports(std::initializer_list<const char*> parts) {
        for (const emu::Order order : {emu::Order::forward, emu::Order::backward, emu::Order::random}) {
            emu::settings().order = order;
            CAPTURE(int(order));
            check_report([&] { run<mistake>(); }, parts);
            CHECK(wrong_numbers() == 0);
        }
    }
};

// ---- what is right

// Warp groups with an A each and one B. out: [group][d, e, f][64, 64], where d = 2 A B^T, e = A B^T, f = A' B^T with A' = -A.
__global__ void two_groups(float* out, const bf16* in) {
    const int group = int(threadIdx.x) / 128, lane = int(threadIdx.x) % 128;
    char *const a = dynamic_shared<char>() + group * 8192, *const b = dynamic_shared<char>() + 16384;
    for (int i = int(threadIdx.x); i < 512; i += 256) {
        const int row = i / 8, column = i % 8 * 8;
        cp_async<16>(b + byte_of(64, row, column), in + (64 + row) * 64 + column);
    }
    cp_async_commit();
    auto store = [&](float sign) {
        for (int i = lane; i < 4096; i += 128)
            *reinterpret_cast<bf16*>(a + byte_of(64, i / 64, i % 64)) = bf16(sign * __bfloat162float(in[i]));
    };
    store(1);
    cp_async_wait<0>();
    __syncthreads();
    fence_async_proxy();  // by all that read: as good as by those that wrote, before the barrier

    float d[8][4] = {}, e[8][4] = {};
    auto multiply = [&](float (&sum)[8][4], bool add) {
        for (int k = 0; k < 4; k++) {
            const uint64_t step = wgmma_bytes(32 * k);
            wgmma<64, false, false>(sum, wgmma_operand(a) + step, wgmma_operand(b) + step, add || k > 0);
        }
        wgmma_commit();
    };
    auto write = [&](float (&sum)[8][4], int which) {
        for (int i = 0; i < 32; i++) out[(group * 3 + which) * 4096 + place_of(i, 64)] = sum[i / 4][i % 4];
    };
    wgmma_fence(d, e);
    multiply(d, false);
    multiply(e, false);
    wgmma_wait<1>(d);
    multiply(d, true);  // what is as a product left it needs no new fence
    wgmma_wait<0>(d, e);
    write(d, 0), write(e, 1);
    named_barrier(1 + group, 128);
    store(-1);
    fence_async_proxy();
    named_barrier(1 + group, 128);
    wgmma_fence(e);  // it was read
    multiply(e, false);
    wgmma_wait<0>(e);
    write(e, 2);
}

// The second warpgroup fetches tiles, of which the first adds up the products: d = 3 A B^T.
__global__ void producer(float* out, const bf16* in, int rounds) {
    char* const tiles = dynamic_shared<char>();
    if (threadIdx.x >= 128) {
        for (int round = 0; round < rounds; round++) {
            if (round > 0) named_barrier(2, 256);  // they are no longer read
            for (int i = int(threadIdx.x) - 128; i < 1024; i += 128)
                cp_async<16>(tiles + byte_of(128, i / 8, i % 8 * 8), in + i * 8);
            cp_async_commit();
            cp_async_wait<0>();
            fence_async_proxy();
            named_barrier(1, 256);
        }
        return;
    }
    float d[8][4] = {};
    wgmma_fence(d);
    for (int round = 0; round < rounds; round++) {
        named_barrier(1, 256);
        for (int k = 0; k < 4; k++) {
            const uint64_t step = wgmma_bytes(32 * k);
            wgmma<64, false, false>(d, wgmma_operand(tiles) + step, wgmma_operand(tiles + 8192) + step, true);
        }
        wgmma_commit();
        wgmma_wait<0>(d);
        if (round + 1 < rounds) named_barrier(2, 256);
    }
    for (int i = 0; i < 32; i++) out[place_of(i, 64)] = d[i / 4][i % 4];
}

// ---- two warpgroups, with one mistake or another

enum class Shared { none, refill, no_fence };

// Both multiply the tiles A and B. `guilty` has no wgmma_fence, or it stores to B when it alone has waited for its products.
template <Shared mistake, int guilty>
__global__ void UNCHECKED two_share(float* out, const bf16* in) {
    using enum Shared;
    const int group = int(threadIdx.x) / 128;
    char *const tiles = dynamic_shared<char>(), *const b = tiles + 8192;
    for (int i = int(threadIdx.x); i < 1024; i += 256) cp_async<16>(tiles + byte_of(128, i / 8, i % 8 * 8), in + i * 8);
    cp_async_commit();
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();
    float d[8][4] = {};
    if (mistake != no_fence || group != guilty) wgmma_fence(d);
    for (int k = 0; k < 4; k++) {
        const uint64_t step = wgmma_bytes(32 * k);
        wgmma<64, false, false>(d, wgmma_operand(tiles) + step, wgmma_operand(b) + step, k > 0);
    }
    wgmma_commit();
    // What is missing is a barrier between the wait of the other warpgroup and the refill. Those around the refill do not help; they
    // make it come between product and wait in every order of threads. Without them it would in hardly any: one warpgroup runs until it
    // has to wait for the other, and by then it has finished its products, or has not begun.
    if (mistake == refill) __syncthreads();
    if (mistake == refill && group != guilty) named_barrier(1, 256);
    wgmma_wait<0>(d);
    if (mistake == refill && group == guilty) {
        named_barrier(2, 128);  // its own warps have waited
        for (int i = int(threadIdx.x) % 128; i < 512; i += 128)
            store_pack(reinterpret_cast<bf16*>(b + i * 16), load_pack(in + i * 8));
        named_barrier(1, 256);
    }
    for (int i = 0; i < 32; i++) out[group * 4096 + place_of(i, 64)] = d[i / 4][i % 4];
}

enum class Ring { right, too_many_pending, no_barrier };

// A ring of two tiles: while one is multiplied, the next one arrives. in: A_0, A_1, then B_k; out[group] = A_group (B_0 + B_1 + ..)^T.
template <Ring ring>
__global__ void UNCHECKED ring_of_two(float* out, const bf16* in, int tiles) {
    const int group = int(threadIdx.x) / 128;
    char *const a = dynamic_shared<char>(), *const b = a + 2 * 8192;
    auto copy = [&](char* to, int which) {
        for (int i = int(threadIdx.x); i < 512; i += 256)
            cp_async<16>(to + byte_of(64, i / 8, i % 8 * 8), in + which * 4096 + i * 8);
        cp_async_commit();
    };
    copy(a, 0), copy(a + 8192, 1), copy(b, 2);
    float d[8][4] = {};
    wgmma_fence(d);
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<0>();
        fence_async_proxy();
        __syncthreads();
        for (int k = 0; k < 4; k++) {
            const uint64_t step = wgmma_bytes(32 * k);
            wgmma<64, false, false>(d, wgmma_operand(a + group * 8192) + step,
                                    wgmma_operand(b + tile % 2 * 8192) + step, true);
        }
        wgmma_commit();
        wgmma_wait<ring == Ring::too_many_pending ? 2 : 1>();  // for the tile before, whose place is taken next
        if (ring != Ring::no_barrier) __syncthreads();
        if (tile + 1 < tiles) copy(b + (tile + 1) % 2 * 8192, 2 + tile + 1);
    }
    wgmma_wait<0>(d);
    for (int i = 0; i < 32; i++) out[group * 4096 + place_of(i, 64)] = d[i / 4][i % 4];
}

// ---- named barriers

__global__ void barrier_with(float* out, int id, int threads) {
    named_barrier(id, threads);
    out[threadIdx.x] = 1;
}

__global__ void two_counts(float* out) {
    if (threadIdx.x < 32)
        named_barrier(3, 64);
    else
        named_barrier(3, 96);
    out[threadIdx.x] = 1;
}

__global__ void lane_missing(float* out, int missing) {
    if (int(threadIdx.x) != missing) named_barrier(3, 128);
    out[threadIdx.x] = 1;
}

// Three warps come to a barrier for two.
__global__ void too_many(float* out) {
    if (threadIdx.x < 96) named_barrier(3, 64);
    out[threadIdx.x] = 1;
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

TEST_CASE("wgmma: groups that are pending, groups of warps that go their own ways") {
    Tiles tiles;
    // The first `times` chains of products, added up one after another.
    auto expected = [&](size_t i, float sign, int times) {
        float sum = 0;
        for (int j = 0; j < times * 64; j++)
            sum += sign * number(0, int(i / 64), j % 64) * number(0, 64 + int(i % 64), j % 64);
        return sum;
    };
    for_orders([&] {
        DeviceArray<float> out(tiles.dev, 6 * 4096);
        launch<two_groups>(2, 256, 3 * 8192, tiles.dev.stream, out.data(), tiles.in.data());
        const std::vector<float> result = out.values();
        int wrong = 0;
        for (size_t i = 0; i < result.size(); i++) {
            const size_t which = i / 4096 % 3;
            wrong += result[i] != expected(i % 4096, which == 2 ? -1 : 1, which == 0 ? 2 : 1);
        }
        CHECK(wrong == 0);
        launch<producer>(1, 256, 2 * 8192, tiles.dev.stream, tiles.out.data(), tiles.in.data(), 3);
        const std::vector<float> sums = tiles.out.values();
        for (size_t i = 0; i < sums.size(); i++) wrong += sums[i] != expected(i, 1, 3);
        CHECK(wrong == 0);
    });
}

TEST_CASE("wgmma: mistakes of the asynchronous proxy") {
    Tiles tiles;
    using enum Mistake;
    CHECK(tiles.wrong_numbers() == 0);
    CHECK(tiles.wrong_numbers<none_named_in_parts>() == 0);
    CHECK(tiles.wrong_numbers<none_with_left_that_stays>() == 0);
    CHECK(tiles.wrong_numbers<none_with_new_left>() == 0);
    launch_cooperative<wrong<none_with_grid_barrier>>(2, 128, 128 * 128, tiles.dev.stream, tiles.out.data(),
                                                      tiles.in.data());
    tiles.reports<no_proxy_fence>(
        {"wrong", "block (0, 0, 0), thread (", "wgmma at tests/test_wgmma.cpp:",
         "byte 0 of shared memory, in its left operand, was written by thread 0's cp_async at tests/",
         "must call fence_async_proxy() after it"});
    tiles.reports<no_proxy_fence_after_stores>(
        {"in its left operand, was written by a store: the thread must call fence"});
    tiles.reports<proxy_fence_before_wait>({"thread 0's cp_async at", "must call fence_async_proxy() after it"});
    tiles.reports<proxy_fence_before_stores>(
        {"was written by a store: the thread must call fence_async_proxy() after it"});
    tiles.reports<proxy_fence_of_one_before_stores>({"was written by a store: the thread must call fence_async_proxy"});
    tiles.reports<proxy_fence_of_lane_0_before_stores>(
        {"was written by a store: the thread must call fence_async_proxy"});
    tiles.reports<proxy_fence_of_half_the_threads>(
        {"byte 1024 of shared memory", "thread 64's cp_async at", "must call fence_async_proxy() after it"});
    tiles.reports<barrier_before_proxy_fence>({"no barrier lies between fence_async_proxy() and the product"});
    tiles.reports<copies_in_flight>({"thread 0's cp_async at", ", which is not waited for"});
#ifndef EMU_TSAN
    tiles.reports<named_barrier_of_others>({"no barrier lies between fence_async_proxy() and the product"});
    tiles.reports<store_after_barrier>(
        {"byte 9000 of shared memory, in its right operand, was written by a store: the thread must"});
    tiles.reports<no_barrier>({"no barrier lies between fence_async_proxy() and the product"});
    tiles.reports<no_barrier_after_stores>({"no barrier lies between fence_async_proxy() and the product"});
#endif
}

TEST_CASE("wgmma: mistakes with registers") {
    Tiles tiles;
    using enum Mistake;
    tiles.reports<no_fence>({"wgmma at", "no wgmma_fence() before the first product of the block's warp 0"});
    tiles.reports<sums_never_named>({"the accumulators of thread 0 were never named by a wgmma_fence()"});
    tiles.reports<sums_written_after_fence>(
        {"the accumulators of thread 0 changed after the last wgmma_fence() that named them"});
    tiles.reports<left_never_named>({"the left operand's registers of thread 0 were never named"});
    tiles.reports<left_written_after_fence>(
        {"the left operand's registers of thread 0 changed after the last wgmma_fence()"});
    tiles.reports<left_written_before_wait>(
        {"its left operand's registers (thread ", ") changed before the wait for it"});
    tiles.reports<sums_written_before_wait>(
        {"its accumulators (element 13 of thread ", ") were written before the wait for it"});
    tiles.reports<sums_scaled_before_wait>(
        {"its accumulators (element 0 of thread ", ") were written before the wait for it"});
    tiles.reports<sums_written_between_products>(
        {"its accumulators (element 0 of thread 0) were written before the wait for it"});
    tiles.reports<sums_written_before_new_ones>(
        {"the accumulators of thread 0 changed after the last wgmma_fence() that named them"});
    tiles.reports<part_of_pending_sums>({"its accumulators are in part those of the pending product at tests/"});
}

TEST_CASE("wgmma: mistakes of waiting") {
    Tiles tiles;
    using enum Mistake;
    tiles.reports<no_commit>(
        {"wgmma_wait<0> at tests/", "names registers of the product at tests/", ", which was not committed"});
    tiles.reports<too_many_pending>({"wgmma_wait<1> at tests/", ", which is still pending"});
    tiles.reports<more_than_can_be_pending>(
        {"wgmma at tests/", "64 products are pending, more than the stand-in holds"});
    tiles.reports<left_pending_when_named>({"wgmma_wait<1> at tests/", ", which is still pending"});
    tiles.reports<sums_not_named>(
        {"wgmma_wait<0> at tests/", " finishes the product at tests/", " without naming its"});
    tiles.reports<part_of_sums_not_named>({" finishes the product at tests/", " without naming its accumulators"});
    tiles.reports<no_wait>({"the thread returns before a wgmma_wait() for the product at tests/"});
    tiles.reports<neither_commit_nor_wait>({"the thread returns before a wgmma_wait() for the product at tests/"});
#ifndef EMU_TSAN
    tiles.reports<tile_stored_before_wait>(
        {"its left operand in shared memory (16 bytes at 992) changed before the wait for it"});
    tiles.reports<tile_copied_before_wait>(
        {"its right operand in shared memory (16 bytes at 8192) changed before the wait"});
    // In some orders all warps have waited before the first of them stores.
    for (const emu::Order order : {emu::Order::forward, emu::Order::backward}) {
        emu::settings().order = order;
        check_report([&] { tiles.run<tile_stored_before_others_wait>(); },
                     {"its left operand in shared memory (16 bytes at 992) changed before the wait"});
    }
#endif
}

TEST_CASE("wgmma: what the threads of a warpgroup must do together") {
    Tiles tiles;
    using enum Mistake;
    tiles.reports<warp_missing>({"deadlock: threads of a warpgroup never come to a product that others of it wait in",
                                 "; threads 0-63, 96-127 wait in wgmma at tests/", "; threads 64-95 returned"});
    tiles.reports<lane_missing_in_commit>({"lanes of one warp meet in two different operations: this one in wgmma_"});
    tiles.reports<different_operands>({"threads of one warpgroup bring different right operands"});
    tiles.reports<different_left_operands>({"threads of one warpgroup bring different left operands"});
    tiles.reports<different_add>({"threads of one warpgroup bring different forms of it, or `add`"});
    tiles.reports<two_lines>({"threads of one warpgroup meet in two different products: this one in wgmma at tests/"});
    tiles.reports<different_groups>({"the block's warp 0 has committed 0 groups, warp 3 of the same warpgroup 1"});
    tiles.reports<different_waits>(
        {"the block's warp 0 has waited for 0 products, warp 1 of the same warpgroup for 2"});
    check_report([&] { tiles.run<none>(96); },
                 {"a block of 96 threads does not consist of warpgroups, which have 128"});
    emu::settings().sm = 80;
    check_report([&] { tiles.run<none>(); },
                 {"fence_async_proxy at", "it needs sm_90a, this device is sm_80 (EMU_SM)"});
}

TEST_CASE("wgmma: two warpgroups and the tiles that both read") {
    Tiles tiles;
    DeviceArray<float> out(tiles.dev, 2 * 4096);
    auto run = [&]<Shared mistake, int guilty>() {
        launch<two_share<mistake, guilty>>(1, 256, 2 * 8192, tiles.dev.stream, out.data(), tiles.in.data());
    };
    using enum Shared;
    for_orders([&] {
        run.operator()<none, 0>();
        const std::vector<float> result = out.values();
        int wrong = 0;
        for (size_t i = 0; i < result.size(); i++) wrong += result[i] != tiles.expected[i % 4096];
        CHECK(wrong == 0);
        check_report([&] { run.operator()<no_fence, 0>(); },
                     {"wgmma at tests/", "no wgmma_fence() before the first product of the block's warp 0"});
        check_report([&] { run.operator()<no_fence, 1>(); },
                     {"wgmma at tests/", "no wgmma_fence() before the first product of the block's warp 4"});
#ifndef EMU_TSAN
        const char* refilled = "its right operand in shared memory (16 bytes at 8192) changed before the wait for it";
        check_report([&] { run.operator()<refill, 0>(); }, {"wgmma at tests/", refilled});
        check_report([&] { run.operator()<refill, 1>(); }, {"wgmma at tests/", refilled});
#endif
    });
}

TEST_CASE("wgmma: a ring of tiles") {
    Quiet quiet;
    Cuda dev;
    emu::settings().sm = 90;
    constexpr int kTiles = 5;
    auto element = [](int tile, int i) { return number(tile, i / 64, i % 64); };
    std::vector<bf16> values;
    for (int i = 0; i < (2 + kTiles) * 4096; i++) values.push_back(bf16(element(i / 4096, i % 4096)));
    const DeviceArray<bf16> in(dev, values);
    DeviceArray<float> out(dev, 2 * 4096);
    std::vector<float> expected;
    for (int i = 0; i < 2 * 4096; i++) {
        float sum = 0;
        for (int k = 0; k < kTiles * 64; k++)
            sum += element(i / 4096, i % 4096 / 64 * 64 + k % 64) * element(2 + k / 64, i % 64 * 64 + k % 64);
        expected.push_back(sum);
    }
    auto run = [&]<Ring ring>() {
        launch<ring_of_two<ring>>(1, 256, 4 * 8192, dev.stream, out.data(), in.data(), kTiles);
    };
    for_orders([&] {
        run.operator()<Ring::right>();
        CHECK(out.values() == expected);
        const char* refilled = "its right operand in shared memory (16 bytes at ";
        check_report([&] { run.operator()<Ring::too_many_pending>(); },
                     {"wgmma at tests/", refilled, "16384) changed before the wait for it"});
#ifndef EMU_TSAN
        check_report([&] { run.operator()<Ring::no_barrier>(); },
                     {"wgmma at tests/", refilled, ") changed before the wait for it"});
#endif
    });
}

TEST_CASE("wgmma: operands that are none") {
    Tiles tiles;
    using enum Mistake;
    tiles.reports<no_swizzle_mode>({"its left operand, descriptor 0000004000000000: ", "do not say 128-byte swizzle"});
    tiles.reports<base_offset>({"its right operand, descriptor 4002004000000200: its descriptor has a base offset"});
    tiles.reports<stray_bits>({"has bits where none may be"});
    tiles.reports<not_at_8_rows>({"its left operand, ", "it does not begin at a multiple of 8 rows"});
    tiles.reports<not_at_16_channels>({"it does not begin at a multiple of 16 channels"});
    tiles.reports<not_at_panel>(
        {"its right operand, ", "it does not begin with its panel, at a multiple of 1024 bytes"});
    const char* stride =
        "its right operand, descriptor 4000004100000200: the next 8 rows are not a multiple of 1024 bytes";
    tiles.reports<stepped_back>({stride});
    tiles.reports<wrong_stride>({stride});
    tiles.reports<no_stride>({"its left operand, ", "the next 8 rows are not a multiple of 1024 bytes away"});
    tiles.reports<no_panel_stride>({"its right operand, ", "its panels are not a multiple of 1024 bytes apart"});
    tiles.reports<past_the_end>(
        {"its right operand reads ", " bytes past the end of the 16384 bytes of dynamic shared memory"});
    tiles.reports<outside>({"wgmma_operand at tests/", "it begins ", " the 16384 bytes of dynamic shared memory"});
    tiles.reports<unaligned_operand>({"wgmma_operand at tests/", "it begins at byte 8"});
    tiles.reports<odd_panel_stride>({"wgmma_operand at tests/", "with panels 8 bytes apart: not multiples of 16"});
    tiles.reports<unaligned_step>({"wgmma_bytes(8) at tests/", "multiples of 16 bytes"});
    check_report([&] { tiles.run<none>(128, 128 * 128 + 16); },
                 {"dynamic shared memory does not begin at a multiple of 1024 bytes: launch with a multiple of 1024"});
}

TEST_CASE("wgmma: mistakes that show in the numbers") {
    Tiles tiles;
    using enum Mistake;
    CHECK(tiles.wrong_numbers<read_before_wait>() == 64 * 64);
    CHECK(std::isnan(tiles.out.values()[0]));
    CHECK(tiles.wrong_numbers<tile_without_swizzle>() > 3000);
    CHECK(tiles.wrong_numbers<wrong_major>() > 3000);
    CHECK(tiles.wrong_numbers() == 0);
}

TEST_CASE("emu: named barriers with the wrong threads") {
    Quiet quiet;
    Cuda dev;
    DeviceArray<float> out(dev, 128);
    auto run = [&](int id, int threads) { launch<barrier_with>(1, 128, 0, dev.stream, out.data(), id, threads); };
    run(15, 128), run(1, 32);
    check_report([&] { run(0, 128); }, {"named_barrier(0, 128) at tests/", "barrier 0 is the one of __syncthreads()"});
    check_report([&] { run(16, 128); }, {"there are barriers 1 to 15"});
    check_report([&] { run(1, 100); }, {"the threads are not a multiple of 32"});
    check_report([&] { run(1, 160); }, {"the block has fewer threads"});
    check_report([&] { run(2, 96); }, {"threads wait in a named barrier that too few reach",
                                       "threads 96-127 wait in named_barrier 2 at tests/", "threads 0-95 returned"});
    check_report([&] { launch<two_counts>(1, 128, 0, dev.stream, out.data()); },
                 {"named_barrier(3, 96) at tests/", "it is for 64 threads"});
    check_report([&] { launch<lane_missing>(1, 128, 0, dev.stream, out.data(), 40); },
                 {"named barrier that too few reach", "threads 0-39, 41-127 wait in named_barrier 3",
                  "threads 40 returned"});
    check_report([&] { launch<lane_missing>(1, 160, 0, dev.stream, out.data(), 40); },
                 {"of warp 1 only lanes fffffeff are among its threads"});
    check_report([&] { launch<too_many>(1, 128, 0, dev.stream, out.data()); },
                 {"threads 64-95 wait in named_barrier 3 at"});
}

#ifdef EMU_TSAN
namespace {

// Whoever copies has waited for and fenced it, but other threads read it: the race.
template <bool barrier>
__global__ void race_with_product(const bf16* in) {
    char* const tiles = dynamic_shared<char>();
    for (int i = int(threadIdx.x); i < 1024; i += 128)
        store_pack(reinterpret_cast<bf16*>(tiles + i * 16), load_pack(in + i * 8));
    fence_async_proxy();
    if (barrier) __syncthreads();
    float d[8][4] = {};
    wgmma_fence(d);
    wgmma<64, false, false>(d, wgmma_operand(tiles), wgmma_operand(tiles + 8192), false);
    wgmma_commit();
    wgmma_wait<0>(d);
    if (barrier) __syncthreads();
    for (int i = int(threadIdx.x); i < 1024; i += 128)
        store_pack(reinterpret_cast<bf16*>(tiles + i * 16), load_pack(in));
}

__global__ void race_with_named_barrier(float* out, int id) {
    float* const x = dynamic_shared<float>();
    x[threadIdx.x] = 1;
    if (id) named_barrier(id, 128);
    out[threadIdx.x] = x[(threadIdx.x + 32) % 128];
}

template <bool barrier>
void run_race() {
    Sm90 device;
    Cuda dev;
    DeviceArray<bf16> in(dev, std::vector<bf16>(128 * 64));
    launch<race_with_product<barrier>>(1, 128, 128 * 128, dev.stream, in.data());
}

void run_named_race(int id) {
    Cuda dev;
    DeviceArray<float> out(dev, 128);
    launch<race_with_named_barrier>(1, 128, 512, dev.stream, out.data(), id);
}

}  // namespace

TEST_CASE("wgmma child: race" * doctest::skip()) { run_race<false>(); }
TEST_CASE("wgmma child: no race" * doctest::skip()) { run_race<true>(); }
TEST_CASE("wgmma child: named race" * doctest::skip()) { run_named_race(0); }
TEST_CASE("wgmma child: no named race" * doctest::skip()) { run_named_race(1); }

TEST_CASE("wgmma: ThreadSanitizer sees what a product reads") {
    check_child("wgmma child: race", {"SUMMARY: ThreadSanitizer: data race", "race_with_product<false>"});
    check_child("wgmma child: no race", {"SUCCESS"});
    check_child("wgmma child: named race", {"SUMMARY: ThreadSanitizer: data race", "race_with_named_barrier"});
    check_child("wgmma child: no named race", {"SUCCESS"});
}
#endif

}  // namespace tapernorm
#endif
