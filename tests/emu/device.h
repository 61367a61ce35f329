// Device-side CUDA for an ordinary C++ compiler: indices, barriers, shuffles, votes, atomics, cache hints,
// math. Only what the project's kernels may use; see README.md.
#pragma once
#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine.h"

// NVIDIA's host headers define some of these, differently in each version.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static thread_local  // the blocks of an ordinary launch run one after another
#undef __constant__
#define __constant__ static const

// The current CUDA thread, set at every switch. constinit: no initialization check at each access.
extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// The call site of a device function, from default arguments.
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---------------------------------------------------------------------------------------------------------------------
// Barriers and fences

inline void __syncthreads(EMU_SITE) { emu::block_barrier("__syncthreads", false, {file, line}); }
inline int __syncthreads_count(int predicate, EMU_SITE) {
    return emu::block_barrier("__syncthreads_count", predicate != 0, {file, line}).count;
}
inline int __syncthreads_or(int predicate, EMU_SITE) {
    return emu::block_barrier("__syncthreads_or", predicate != 0, {file, line}).count != 0;
}
inline int __syncthreads_and(int predicate, EMU_SITE) {
    const emu::BarrierResult result = emu::block_barrier("__syncthreads_and", predicate != 0, {file, line});
    return result.count == result.threads;
}
inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) {
    static constexpr emu::WarpOp op{"__syncwarp", nullptr, true};
    emu::warp_operation(op, mask, nullptr, {file, line});
}

// All threads share one host thread, where memory is always in order: only ThreadSanitizer must be told.
inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() {}
inline void __threadfence_system() { emu::fence(); }
inline void __nanosleep(unsigned) { emu::yield(); }
[[noreturn]] inline void __trap(EMU_SITE) { emu::misuse("__trap at %s:%d", file, line); }

// ---------------------------------------------------------------------------------------------------------------------
// Shuffles, votes, reductions

namespace emu {

// A shuffle orders no memory, so ThreadSanitizer must not see one lane write another lane's result.
#define EMU_NO_TSAN __attribute__((no_sanitize("thread")))

template <class T>
struct ShuffleLane {
    T value, result;
    unsigned source;
};

template <class T>
EMU_NO_TSAN void run_shuffle(void* const* lanes) {
    for (int i = 0; i < 32; i++) {
        if (!lanes[i]) continue;
        auto* lane = static_cast<ShuffleLane<T>*>(lanes[i]);
        lane->result = static_cast<ShuffleLane<T>*>(lanes[lane->source])->value;
    }
}

enum Shuffle { shfl, shfl_xor, shfl_down, shfl_up };
constexpr const char* shuffle_names[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync", "__shfl_up_sync"};

template <Shuffle kind, class T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
    static constexpr WarpOp op{shuffle_names[kind], run_shuffle<T>, false};
    if (!(mask >> source & 1))
        misuse("%s at %s:%d: lane %u reads lane %u, which is not in the mask %08x", op.name, site.file, site.line,
               lane_id(), source, mask);
    ShuffleLane<T> mine{value, value, source};
    warp_operation(op, mask, &mine, site);
    return mine.result;
}

// Lanes of a segment of `width` lanes: the first of this lane's segment.
inline unsigned segment_begin(int width) { return lane_id() & ~unsigned(width - 1); }

struct VoteLane {
    bool predicate;
    unsigned ballot;
};
EMU_NO_TSAN inline void run_vote(void* const* lanes) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; i++)
        if (lanes[i] && static_cast<VoteLane*>(lanes[i])->predicate) ballot |= 1u << i;
    for (int i = 0; i < 32; i++)
        if (lanes[i]) static_cast<VoteLane*>(lanes[i])->ballot = ballot;
}
inline unsigned vote(const WarpOp& op, unsigned mask, bool predicate, Site site) {
    VoteLane mine{predicate, 0};
    warp_operation(op, mask, &mine, site);
    return mine.ballot;
}

struct Add {
    static constexpr const char* name = "__reduce_add_sync";
    template <class T>
    T operator()(T a, T b) const {
        return a + b;
    }
};
struct Min {
    static constexpr const char* name = "__reduce_min_sync";
    template <class T>
    T operator()(T a, T b) const {
        return b < a ? b : a;
    }
};
struct Max {
    static constexpr const char* name = "__reduce_max_sync";
    template <class T>
    T operator()(T a, T b) const {
        return a < b ? b : a;
    }
};

template <class T, class F>
EMU_NO_TSAN void run_reduce(void* const* lanes) {
    bool first = true;
    T total{};
    for (int i = 0; i < 32; i++) {
        if (!lanes[i]) continue;
        const T value = *static_cast<T*>(lanes[i]);
        total = first ? value : F()(total, value);
        first = false;
    }
    for (int i = 0; i < 32; i++)
        if (lanes[i]) *static_cast<T*>(lanes[i]) = total;
}
template <class F, class T>
T reduce(unsigned mask, T value, Site site) {
    static constexpr WarpOp op{F::name, run_reduce<T, F>, false};
    warp_operation(op, mask, &value, site);
    return value;
}

}  // namespace emu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_SITE) {
    const unsigned from = emu::segment_begin(width) | (unsigned(source) & unsigned(width - 1));
    return emu::shuffle<emu::shfl>(mask, value, from, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_SITE) {
    const unsigned from = emu::lane_id() ^ unsigned(lanes);
    const bool inside = from < emu::segment_begin(width) + unsigned(width);
    return emu::shuffle<emu::shfl_xor>(mask, value, inside ? from : emu::lane_id(), {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
    const unsigned from = emu::lane_id() + delta;
    const bool inside = from < emu::segment_begin(width) + unsigned(width);
    return emu::shuffle<emu::shfl_down>(mask, value, inside ? from : emu::lane_id(), {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
    const bool inside = emu::lane_id() >= emu::segment_begin(width) + delta;
    return emu::shuffle<emu::shfl_up>(mask, value, inside ? emu::lane_id() - delta : emu::lane_id(), {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
    static constexpr emu::WarpOp op{"__ballot_sync", emu::run_vote, false};
    return emu::vote(op, mask, predicate != 0, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, EMU_SITE) {
    static constexpr emu::WarpOp op{"__any_sync", emu::run_vote, false};
    return emu::vote(op, mask, predicate != 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_SITE) {
    static constexpr emu::WarpOp op{"__all_sync", emu::run_vote, false};
    return emu::vote(op, mask, predicate != 0, {file, line}) == mask;
}

// Integers only, as in hardware (sm_80).
template <class T>
T __reduce_add_sync(unsigned mask, T value, EMU_SITE) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);
    return emu::reduce<emu::Add>(mask, value, {file, line});
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, EMU_SITE) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);
    return emu::reduce<emu::Min>(mask, value, {file, line});
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, EMU_SITE) {
    static_assert(std::is_integral_v<T> && sizeof(T) == 4);
    return emu::reduce<emu::Max>(mask, value, {file, line});
}

// ---------------------------------------------------------------------------------------------------------------------
// Atomics: real ones, so that ThreadSanitizer knows them; relaxed, as in CUDA.

namespace emu {

// *p = f(*p) for any 2-, 4- or 8-byte type; returns the old value.
template <class T, class F>
T atomic_update(T* p, F f) {
    using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
    static_assert(sizeof(T) == sizeof(Bits));
    auto* word = reinterpret_cast<Bits*>(p);
    Bits old = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        T value;
        std::memcpy(&value, &old, sizeof value);
        const T changed = f(value);
        Bits next;
        std::memcpy(&next, &changed, sizeof next);
        if (__atomic_compare_exchange_n(word, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return value;
    }
}

template <class T>
constexpr bool atomic_integer =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

}  // namespace emu

// float, double, int, unsigned, unsigned long long, __nv_bfloat16, __nv_bfloat162.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
    return emu::atomic_update(p, [&](T old) { return T(old + value); });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> value) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
    return emu::atomic_update(p, [&](T old) { return T(old - value); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
    static_assert(emu::atomic_integer<T>);
    return emu::atomic_update(p, [&](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
    static_assert(emu::atomic_integer<T>);
    return emu::atomic_update(p, [&](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
    return emu::atomic_update(p, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    static_assert(emu::atomic_integer<T> || std::is_same_v<T, unsigned short>);
    return emu::atomic_update(p, [&](T old) { return old == expected ? value : old; });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> value) {
    static_assert(emu::atomic_integer<T>);
    return emu::atomic_update(p, [&](T old) { return T(old & value); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value) {
    static_assert(emu::atomic_integer<T>);
    return emu::atomic_update(p, [&](T old) { return T(old | value); });
}
template <class T>
T atomicXor(T* p, std::type_identity_t<T> value) {
    static_assert(emu::atomic_integer<T>);
    return emu::atomic_update(p, [&](T old) { return T(old ^ value); });
}
// Counts 0, 1, ..., limit, 0, 1, ...: a "last block" counter that resets itself.
inline unsigned atomicInc(unsigned* p, unsigned limit) {
    return emu::atomic_update(p, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// ---------------------------------------------------------------------------------------------------------------------
// Loads and stores with cache hints

template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldca(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
    *p = value;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
    *p = value;
}
template <class T>
void __stwt(T* p, std::type_identity_t<T> value) {
    *p = value;
}

// ---------------------------------------------------------------------------------------------------------------------
// Math that the C library does not have. It is more exact here than on a GPU: tolerances must be set for the
// GPU.

#if !defined(__GLIBC_PREREQ) || !__GLIBC_PREREQ(2, 42)
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
#endif
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanhf(float x) { return std::tanh(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<unsigned long long>(Wide(x) * y >> 64);
}

// Equal types only: what mixed types convert to differs between compilers.
#define EMU_MIN_MAX(T)                               \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
