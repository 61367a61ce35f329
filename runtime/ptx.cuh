// Instructions that CUDA C++ has no name for, and 16-byte loads and stores. All inline assembly of the project is here.
//
// Lanes of a warp are numbered 0..31; group = lane / 4, t = lane % 4. Functions that say "Warp" are called by all 32 lanes of
// a warp together.
#pragma once
#ifdef TN_CUDA
#include <cstdint>

#include "runtime/launch.cuh"

namespace tapernorm {

constexpr float kLog2e = 1.4426950408889634f;  // exp(x) = 2^(x log2e), which fast_exp2 computes

// The CPU stand-in for CUDA brings its own versions of these functions with its <cuda_runtime.h>.
#ifndef CUDA_EMU

// ---------------------------------------------------------------------------------------------------------------------
// Matrix multiplication on tensor cores

// The 32-bit address that shared memory instructions take.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Warp: D [16, 8] += A [16, 16] B [16, 8], bf16 inputs, fp32 accumulation. Fragments hold, per lane:
//   a[0] row group    columns 2t, 2t+1      a[1] row group+8  columns 2t, 2t+1
//   a[2] row group    columns 2t+8, 2t+9    a[3] row group+8  columns 2t+8, 2t+9
//   b[0] rows 2t, 2t+1    column group      b[1] rows 2t+8, 2t+9   column group
//   d[0], d[1] row group  columns 2t, 2t+1  d[2], d[3] row group+8 columns 2t, 2t+1
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Warp: loads 8x8 matrices of 16-bit elements from shared memory. Lanes 8i..8i+7 pass the addresses of the 8 rows (16 bytes
// each, 16-byte aligned) of matrix i; a lane receives, in r[i], elements 2t and 2t+1 of row `group` of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, transposed: a lane receives element `group` of rows 2t and 2t+1.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two matrices: only the addresses of lanes 0..15 are used.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Asynchronous copies from global to shared memory

// Starts the copy of `bytes` = 4, 8 or 16 bytes, with both sides aligned to as many. Unless `valid`, global memory is not read
// and zeros are written. 16-byte copies bypass L1.
template <int bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    const int size = valid ? bytes : 0;
    if constexpr (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                     "r"(size)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(shared)), "l"(global),
                     "n"(bytes), "r"(size)
                     : "memory");
}

// Closes a group: the copies that this thread started since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most the `pending` newest groups of this thread are unfinished. Other threads see the copied data after a
// barrier that follows.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Asks for the line of memory at p in L2, whoever reads it next.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p)); }

// ---------------------------------------------------------------------------------------------------------------------
// Approximate functions of the special function unit

// 2^x, relative error 2^-22, results below 2^-126 flushed to 0.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh(x), relative error 2^-11: less than the rounding of a bf16 result.
__device__ __forceinline__ float fast_tanh(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif  // CUDA_EMU

// ---------------------------------------------------------------------------------------------------------------------
// 16 bytes at a time

// 16 bytes of T, the widest access a thread can make: 4 floats or 8 bf16.
template <class T>
struct alignas(16) Pack {
    static constexpr int kSize = int(16 / sizeof(T));
    T v[kSize];
    __device__ __forceinline__ T& operator[](int i) { return v[i]; }
    __device__ __forceinline__ const T& operator[](int i) const { return v[i]; }
};

template <class T>
__device__ __forceinline__ Pack<T> as_pack(uint4 bits) {
    Pack<T> pack;
    *reinterpret_cast<uint4*>(&pack) = bits;
    return pack;
}

template <class T>
__device__ __forceinline__ uint4 pack_bits(const Pack<T>& pack) {
    return *reinterpret_cast<const uint4*>(&pack);
}

// Loads and stores of Pack<T>::kSize elements at p, 16-byte aligned. The suffix is the cache hint:
//   none        data that will be used again
//   _streaming  used once: first to be evicted from the caches (ld.cs, st.cs)
//   _l2         kept in L2 only, for data that other blocks write or read (ld.cg, st.cg)
//   _readonly   nobody writes it while the kernel runs (ld.nc)
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
    return as_pack<T>(*reinterpret_cast<const uint4*>(p));
}
template <class T>
__device__ __forceinline__ Pack<T> load_pack_streaming(const T* p) {
    return as_pack<T>(__ldcs(reinterpret_cast<const uint4*>(p)));
}
template <class T>
__device__ __forceinline__ Pack<T> load_pack_l2(const T* p) {
    return as_pack<T>(__ldcg(reinterpret_cast<const uint4*>(p)));
}
template <class T>
__device__ __forceinline__ Pack<T> load_pack_readonly(const T* p) {
    return as_pack<T>(__ldg(reinterpret_cast<const uint4*>(p)));
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
    *reinterpret_cast<uint4*>(p) = pack_bits(pack);
}
template <class T>
__device__ __forceinline__ void store_pack_streaming(T* p, const Pack<T>& pack) {
    __stcs(reinterpret_cast<uint4*>(p), pack_bits(pack));
}
template <class T>
__device__ __forceinline__ void store_pack_l2(T* p, const Pack<T>& pack) {
    __stcg(reinterpret_cast<uint4*>(p), pack_bits(pack));
}

// Two bf16 in one register, the first in the low half: what a fragment of mma_m16n8k16 is made of.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace tapernorm
#endif  // TN_CUDA
