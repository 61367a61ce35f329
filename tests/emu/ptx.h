// The functions that are inline assembly in the project (its runtime/ptx.cuh). Fragment layouts are from the PTX ISA,
// section "Matrix fragments for mma.m16n8k16" and "ldmatrix".
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.h"

namespace emu {

struct MmaLane {
    float* d;
    const uint32_t *a, *b;
};
void run_mma_m16n8k16(void* const* lanes);

// A lane reads the row whose address it passes: an access of its own, which sanitizers see. Then rows are
// distributed.
struct MatrixLane {
    uint16_t row[8];
    uint32_t* registers;
};
void run_ldmatrix(void* const* lanes, int matrices, bool transposed);

template <int matrices, bool transposed>
void run_ldmatrix(void* const* lanes) {
    run_ldmatrix(lanes, matrices, transposed);
}

template <int matrices, bool transposed>
void ldmatrix(uint32_t* registers, const void* row, Site site) {
    static constexpr WarpOp op{transposed ? "ldmatrix.trans" : "ldmatrix", run_ldmatrix<matrices, transposed>, false};
    MatrixLane mine{{}, registers};
    if (lane_id() < 8 * matrices) {
        if (reinterpret_cast<uintptr_t>(row) % 16)
            misuse("%s at %s:%d: the row address of lane %u is not 16-byte aligned", op.name, site.file, site.line,
                   lane_id());
        const auto* elements = static_cast<const uint16_t*>(row);
        for (int i = 0; i < 8; i++) mine.row[i] = elements[i];
    }
    warp_operation(op, ~0u, &mine, site);
}

}  // namespace emu

// An offset into the dynamic shared memory, for computations with addresses.
inline uint32_t shared_address(const void* p) {
    return uint32_t(static_cast<const char*>(p) - static_cast<const char*>(emu::dynamic_shared()));
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_SITE) {
    static constexpr emu::WarpOp op{"mma_m16n8k16", emu::run_mma_m16n8k16, false};
    emu::MmaLane mine{d, a, b};
    emu::warp_operation(op, ~0u, &mine, {file, line});
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMU_SITE) { emu::ldmatrix<4, false>(r, row, {file, line}); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMU_SITE) {
    emu::ldmatrix<4, true>(r, row, {file, line});
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, EMU_SITE) { emu::ldmatrix<2, false>(r, row, {file, line}); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, EMU_SITE) {
    emu::ldmatrix<2, true>(r, row, {file, line});
}

template <int bytes>
void cp_async(void* shared, const void* global, bool valid = true, EMU_SITE) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    emu::AsyncCopy& copy = emu::begin_copy(shared, global, bytes, valid, {file, line});
    const auto* source = static_cast<const volatile uint32_t*>(global);
    for (int i = 0; valid && i < bytes / 4; i++) copy.before[i] = source[i];
    // NaN until the copy is waited for. Volatile: ThreadSanitizer sees stores, but not an inlined memset.
    auto* words = static_cast<volatile uint32_t*>(shared);
    for (int i = 0; i < bytes / 4; i++) words[i] = ~0u;
}

inline void cp_async_commit() { emu::commit_copies(); }

template <int pending>
void cp_async_wait() {
    emu::AsyncCopy copy;
    while (emu::take_finished_copy(pending, copy)) {
        if (copy.valid && std::memcmp(copy.before, copy.global, size_t(copy.bytes)) != 0)
            emu::misuse("cp_async<%d> at %s:%d: its source changed before the wait for it", copy.bytes, copy.site.file,
                        copy.site.line);
        if (copy.valid)
            std::memcpy(copy.shared, copy.global, size_t(copy.bytes));
        else
            std::memset(copy.shared, 0, size_t(copy.bytes));
    }
}

inline float fast_exp2(float x) {
    const float y = std::exp2(x);
    return y < 0x1p-126f ? 0 : y;
}
// A hint, whose address must be one that could be read.
inline void prefetch_l2(const void* p) { [[maybe_unused]] const char byte = *static_cast<const volatile char*>(p); }
inline float fast_tanh(float x) { return std::tanh(x); }
