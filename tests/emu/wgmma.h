// The twins of runtime/wgmma.cuh, which has their documentation. Layouts and descriptors are from the PTX ISA, section "Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate Instructions". What is asynchronous is exact enough to show mistakes: see warpgroup.h.
#pragma once
#include "ptx.h"

namespace emu {

// Reports a device, or a block, that has no warpgroups.
void check_wgmma(const char* name, Site site);

// An operand in shared memory, decoded: `extent` rows of A or columns of B, by the 16 that are summed over. It consists of 16-byte
// units: of row r the units 2 r and 2 r + 1; of a product over 16 rows (`columns`) unit k extent / 8 + c has 8 columns of row k.
struct Operand {
    uint32_t start, leading, stride;  // bytes
    int extent;
    bool columns;
    const char* name;

    int units() const { return 2 * extent; }
};
Operand decode_operand(uint64_t descriptor, int extent, bool columns, const char* name, Site site);
size_t unit_offset(const Operand& operand, int unit);
// In shared memory, whose end it must not pass.
const void* operand_unit(const Operand& operand, int unit, Site site);

// A product reads shared memory for all its threads: each touches a share, which sanitizers see. (Not the unit of its own number:
// that is what it is likely to have written.)
inline void touch_operand(const Operand& operand, Site site) {
    for (int unit = int(threadIdx.x + 37) % 128; unit < operand.units(); unit += 128) {
        const auto* words = static_cast<const volatile uint32_t*>(operand_unit(operand, unit, site));
        for (int i = 0; i < 4; i++) [[maybe_unused]]
            const uint32_t word = words[i];
    }
}

// What one thread brings to a product.
struct WgmmaLane {
    float* d;           // n / 2 accumulators
    const uint32_t* a;  // 4 registers, or null
    uint64_t a_bits, b_bits;
    Operand a_operand, b_operand;
    int n;
    bool add;
};
void wgmma(const WgmmaLane& mine, Site site);

template <int N>
void wgmma(float* d, const uint32_t* a, uint64_t a_bits, uint64_t b_bits, bool columns_a, bool columns_b, bool add,
           Site site) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    check_wgmma("wgmma", site);
    WgmmaLane mine{d, a, a_bits, b_bits, {}, decode_operand(b_bits, N, columns_b, "right operand", site), N, add};
    if (!a) {
        mine.a_operand = decode_operand(a_bits, 64, columns_a, "left operand", site);
        touch_operand(mine.a_operand, site);
    }
    touch_operand(mine.b_operand, site);
    wgmma(mine, site);
}

// Registers that a fence or a wait names. The first one brings the source line, as behind a pack no default argument could.
struct Registers {
    const void* p = nullptr;
    size_t bytes = 0;
};
struct FirstRegisters : Registers {
    Site site;
    template <class T>
    FirstRegisters(T& registers, EMU_SITE) : Registers{&registers, sizeof registers}, site{file, line} {}
};
void wgmma_fence(const Registers* named, int count, Site site);
void wgmma_wait(int pending, const Registers* named, int count, Site site);
void named_barrier(int id, int threads, Site site);

}  // namespace emu

template <int N, bool columns_a, bool columns_b>
void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add, EMU_SITE) {
    emu::wgmma<N>(&d[0][0], nullptr, a, b, columns_a, columns_b, add, {file, line});
}
template <int N, bool columns_b>
void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, bool add, EMU_SITE) {
    emu::wgmma<N>(&d[0][0], a, 0, b, false, columns_b, add, {file, line});
}

inline void wgmma_fence(EMU_SITE) { emu::wgmma_fence(nullptr, 0, {file, line}); }
template <class... Rest>
void wgmma_fence(emu::FirstRegisters first, Rest&... rest) {
    const emu::Registers named[] = {first, {&rest, sizeof rest}...};
    emu::wgmma_fence(named, 1 + int(sizeof...(Rest)), first.site);
}

bool wgmma_loaded();

void wgmma_commit(EMU_SITE);

template <int pending>
void wgmma_wait(EMU_SITE) {
    emu::wgmma_wait(pending, nullptr, 0, {file, line});
}
template <int pending, class... Rest>
void wgmma_wait(emu::FirstRegisters first, Rest&... rest) {
    const emu::Registers named[] = {first, {&rest, sizeof rest}...};
    emu::wgmma_wait(pending, named, 1 + int(sizeof...(Rest)), first.site);
}

void fence_async_proxy(EMU_SITE);
inline void named_barrier(int id, int threads, EMU_SITE) { emu::named_barrier(id, threads, {file, line}); }

uint64_t wgmma_operand(const void* start, uint32_t panel = 0, EMU_SITE);
constexpr uint32_t wgmma_bytes(int bytes, EMU_SITE) {
    if (bytes < 0 || bytes % 16)
        emu::misuse("wgmma_bytes(%d) at %s:%d: operands are moved on by multiples of 16 bytes", bytes, file, line);
    return uint32_t(bytes) / 16;
}
