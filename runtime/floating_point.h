// How the processor computes with numbers that are almost zero.
#pragma once
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include <cstdint>

namespace tapernorm {

// From here on denormal numbers (below 1.2e-38 in fp32, 2.2e-308 in fp64) count as zero where they are read and where they would
// be written, in this thread and in all that it starts. A processor takes some hundred cycles for each of them, and a model that
// has learned makes ever more: in the tails of GELU and of softmax, in the gradients behind them, in moments of AdamW that shrink.
inline void flush_denormals() {
#if defined(__x86_64__)
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr(_mm_getcsr() | kFlushToZero | kDenormalsAreZero);
#elif defined(__aarch64__)
    constexpr uint64_t kFlushToZero = 1 << 24;  // both ways
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    asm volatile("msr fpcr, %0" : : "r"(control | kFlushToZero));
#endif
}

}  // namespace tapernorm
