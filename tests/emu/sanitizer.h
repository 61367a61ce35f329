// Which sanitizer this file is built for, and the hooks that the stand-in calls.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN
#endif
#endif

// The stand-in itself is not instrumented for ThreadSanitizer, or its bookkeeping would count as
// synchronization between CUDA threads; the build says with -DEMU_TSAN that the kernels are.
#ifdef EMU_TSAN
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

// "What happened before release(p) is visible after acquire(p)", told to ThreadSanitizer.
inline void happens_release([[maybe_unused]] void* p) {
#ifdef EMU_TSAN
    __tsan_release(p);
#endif
}
inline void happens_acquire([[maybe_unused]] void* p) {
#ifdef EMU_TSAN
    __tsan_acquire(p);
#endif
}

// While one exists, ThreadSanitizer does not look. It would take what the C library does for the stand-in (memcpy, free) for accesses
// by the running CUDA thread.
class Unseen {
  public:
    Unseen() { set(true); }
    ~Unseen() { set(false); }
    // For who leaves the kernel, without destructors.
    static void end() { set(false); }

  private:
    static void set([[maybe_unused]] bool on) {
#ifdef EMU_TSAN
        static thread_local bool is_on = false;
        if (on == is_on) return;
        is_on = on;
        (on ? AnnotateIgnoreReadsBegin : AnnotateIgnoreReadsEnd)(__FILE__, __LINE__);
        (on ? AnnotateIgnoreWritesBegin : AnnotateIgnoreWritesEnd)(__FILE__, __LINE__);
#endif
    }
};

// Makes AddressSanitizer report accesses to [p, p + bytes), or stop doing so.
inline void forbid_access([[maybe_unused]] const void* p, [[maybe_unused]] unsigned long bytes) {
#ifdef EMU_ASAN
    __asan_poison_memory_region(p, bytes);
#endif
}
inline void allow_access([[maybe_unused]] const void* p, [[maybe_unused]] unsigned long bytes) {
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(p, bytes);
#endif
}

}  // namespace emu
