// What -fsanitize=alignment calls in front of a misaligned access, instead of the compiler's own library: the
// report then names the kernel and the thread, and the kernel can end without the process.
#include "block.h"
#include "sanitizer.h"

#if !defined(EMU_ASAN) && !defined(EMU_TSAN)
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

// The layout that GCC and Clang share (compiler-rt, ubsan_handlers.h).
struct TypeMismatch {
    struct {
        const char* file;
        uint32_t line, column;
    } location;
    const struct {
        uint16_t kind, info;
        char name[1];
    }* type;
    unsigned char log_alignment, check;
};

void misaligned(const TypeMismatch* data, uintptr_t address) {
    if (emu::Engine::of_this_host_thread().current())
        emu::misuse("misaligned access at %s:%u: address %p of type %s needs %u-byte alignment", data->location.file,
                    data->location.line, reinterpret_cast<void*>(address), data->type->name, 1u << data->log_alignment);
    std::fprintf(stderr, "%s:%u: misaligned access to type %s\n", data->location.file, data->location.line,
                 data->type->name);
    std::abort();
}

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, uintptr_t address) {
    misaligned(data, address);
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* data, uintptr_t address) {
    misaligned(data, address);
}
#endif
