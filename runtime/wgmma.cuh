// Products of a warpgroup: four neighbouring warps, 128 threads, the first of which is a multiple of 128. They are Hopper's own
// (sm_90a, which newer architectures do not run): PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
//
// A product is asynchronous in two ways. Its registers, the accumulators and a left operand, may not be touched between the
// product and a wgmma_wait for its group. And it reads shared memory by a way of its own, the asynchronous proxy: what threads
// or cp.async wrote there can be seen after fence_async_proxy() by the writer and a barrier. So:
//
//     cp_async_wait<0>(), fence_async_proxy(), __syncthreads();                // the tiles are there
//     wgmma_fence(d, a);                                                      // the registers have their values
//     for (int k = 0; k < 4; k++) wgmma<64, false>(d, a[k], b + k * kStep, true);   // operands: see wgmma_operand
//     wgmma_commit();                                                         // closes the group
//     wgmma_wait<0>(d, a);                                                    // d can be read, a and the tiles changed
#pragma once
#ifdef TN_CUDA
#include <cstdint>

#include "runtime/ptx.cuh"

namespace tapernorm {

// Whether the code that is being compiled may use them. Elsewhere products, their fences and waits end the kernel.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CUDA_EMU)
constexpr bool kWgmma = true;
#else
constexpr bool kWgmma = false;
#endif

// A matrix descriptor from its lower half, which holds all that differs between operands: where the operand starts (to which the
// bytes may be added by which it starts later) and how far apart its panels are. In the upper half: rows of 128 bytes in groups of 8,
// swizzled.
__host__ __device__ constexpr uint64_t wgmma_operand_of(uint32_t lower) {
    constexpr uint64_t kSwizzle128 = 1, kEightRows = 1024;
    return lower | kEightRows >> 4 << 32 | kSwizzle128 << 62;
}

// The CPU stand-in for CUDA brings its own versions of these functions.
#ifndef CUDA_EMU

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define WGMMA_ASM(...) __trap()
#endif

// A bf16 operand in shared memory, made of panels [rows, 64]: a row has 128 bytes, of which the 16-byte unit u lies at unit
// u ^ (row % 8). Panels begin at multiples of 1024 bytes, the operand at a multiple of 8 rows. Either
//   its rows are rows of A, or columns of B (the product is with B^T): then it begins at a multiple of 16 channels, which are
//   those that are summed over, and a product takes 16 of them; the next 16 are 32 bytes away; or
//   its columns are (`columns`): then a product sums over 16 rows, the next of which are 2048 bytes away, and takes all 64 columns
//   of as many panels as it needs, `panel` bytes apart.
__device__ __forceinline__ uint64_t wgmma_operand(const void* start, uint32_t panel = 0) {
    return wgmma_operand_of((shared_address(start) & 0x3ffff) >> 4 | panel >> 4 << 16);
}

// Whether the code that was loaded has them: a GPU may run another architecture's, and its own number does not tell.
__device__ __forceinline__ bool wgmma_loaded() { return kWgmma; }

// What to add to an operand, or to its lower half, to begin so many bytes later.
__host__ __device__ constexpr uint32_t wgmma_bytes(int bytes) { return uint32_t(bytes) >> 4; }

// What is done to registers before stays before, and after stays after: the compiler moves what it takes for plain arithmetic.
__device__ __forceinline__ void wgmma_keep(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ __forceinline__ void wgmma_keep(uint32_t& x) { asm volatile("" : "+r"(x)::"memory"); }
template <class T, size_t n>
__device__ __forceinline__ void wgmma_keep(T (&x)[n]) {
#pragma unroll
    for (size_t i = 0; i < n; i++) wgmma_keep(x[i]);
}

// Warpgroup: before the first product, and before each one that takes registers (named here) which other instructions have read or
// written since, accumulators that it does not add to among them. Products that add to the same accumulators one after another need
// none in between.
template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
    (wgmma_keep(registers), ...);
    WGMMA_ASM("wgmma.fence.sync.aligned;\n" :: : "memory");
}

// Warpgroup: closes a group, of the products since the last one.
__device__ __forceinline__ void wgmma_commit() { WGMMA_ASM("wgmma.commit_group.sync.aligned;\n" :: : "memory"); }

// Warpgroup: waits until at most the `pending` newest groups are unfinished. Names the registers that may be used from here on.
template <int pending, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
    WGMMA_ASM("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
    (wgmma_keep(registers), ...);
}

// What this thread and its cp.async copies (waited for) wrote to shared memory can be read by products, after a barrier.
__device__ __forceinline__ void fence_async_proxy() { WGMMA_ASM("fence.proxy.async.shared::cta;\n" :: : "memory"); }

// `threads` threads of the block, whole warps, meet at barrier `id`: 1..15, where __syncthreads is 0.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Warpgroup: d [64, N] (+)= a [64, 16] b [16, N]; `add` says which. N: 64 or 128. Warp w of the four has rows 16 w .. 16 w + 15,
// in the fragments of mma_m16n8k16: d[n] are the four of columns 8 n .. 8 n + 7, a those of 16 columns. a may be an operand in
// shared memory instead. columns_a, columns_b: see wgmma_operand.
#define WGMMA_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WGMMA_D32(i)                                                                                                   \
    WGMMA_D4(i), WGMMA_D4(i + 1), WGMMA_D4(i + 2), WGMMA_D4(i + 3), WGMMA_D4(i + 4), WGMMA_D4(i + 5), WGMMA_D4(i + 6), \
        WGMMA_D4(i + 7)
#define WGMMA_0_31                                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_32_63                                                                                        \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
    "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

template <int N, bool columns_a, bool columns_b>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add) {
    static_assert(N == 64 || N == 128);
    if constexpr (N == 64)
        WGMMA_ASM(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{" WGMMA_0_31 "}, %32, %33, p, 1, 1, %35, %36;\n}\n" : WGMMA_D32(0) : "l"(a),
            "l"(b), "r"(int(add)), "n"(columns_a), "n"(columns_b));
    else
        WGMMA_ASM(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{" WGMMA_0_31 ", " WGMMA_32_63 "}, %64, %65, p, 1, 1, %67, %68;\n}\n" : WGMMA_D32(0),
            WGMMA_D32(8) : "l"(a), "l"(b), "r"(int(add)), "n"(columns_a), "n"(columns_b));
}

template <int N, bool columns_b>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, bool add) {
    static_assert(N == 64 || N == 128);
    if constexpr (N == 64)
        WGMMA_ASM(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{" WGMMA_0_31 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n" : WGMMA_D32(0) : "r"(a[0]),
            "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(columns_b));
    else
        WGMMA_ASM(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{" WGMMA_0_31 ", " WGMMA_32_63 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n" : WGMMA_D32(0),
            WGMMA_D32(8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(columns_b));
}
#undef WGMMA_ASM
#undef WGMMA_D4
#undef WGMMA_D32
#undef WGMMA_0_31
#undef WGMMA_32_63
#endif  // CUDA_EMU

template <class Int>
__global__ void has_wgmma_kernel(Int* found) {
    *found = Int(wgmma_loaded());
}

}  // namespace tapernorm
#endif  // TN_CUDA
