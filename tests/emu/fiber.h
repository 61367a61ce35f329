// Fibers: one CUDA thread runs on each, until it has to wait for others.
//
// A switch costs about 10 ns with the hand-written x86-64 version, 30 times that with ucontext (a system call
// each), which serves all other machines.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

struct Fiber {
    void* context = nullptr;  // saved stack pointer (x86-64) or ucontext_t*
    char* stack = nullptr;    // lowest address; below are guard pages. Null: the host thread's own stack
    size_t stack_bytes = 0;
    void (*entry)() = nullptr;
    size_t number = 0;

    // Sanitizers must be told about every switch.
    void* asan_fake_stack = nullptr;
    const void* asan_bottom = nullptr;
    size_t asan_bytes = 0;
    void* tsan = nullptr;
};

// The host thread as a fiber: what a kernel returns to.
Fiber* fiber_of_host();

// A fiber that calls entry(), which never returns, at the first switch to it.
Fiber* fiber_create(void (*entry)(), size_t number);

// Forgets what the fiber was doing; it starts again at entry().
void fiber_restart(Fiber* fiber);

void fiber_destroy(Fiber* fiber);

void fiber_switch(Fiber* from, Fiber* to);

// Whether the address lies in the guard pages below this stack: the kernel needs more stack than there is.
bool fiber_stack_overflow(const Fiber* fiber, const void* address);

}  // namespace emu
