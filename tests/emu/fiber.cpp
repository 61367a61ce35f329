#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "sanitizer.h"

#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#include <ucontext.h>
#define EMU_USE_UCONTEXT
#endif

namespace emu {
namespace {

#if defined(EMU_ASAN)
constexpr size_t stack_size = 512 << 10;  // red zones around every local
#else
constexpr size_t stack_size = 128 << 10;  // only touched pages take memory
#endif
constexpr size_t page = 4096, guard = 16 * page;  // a large frame must not step over the guard

thread_local Fiber host;
thread_local Fiber* switched_from = nullptr;

// Called on the stack of the fiber that has just been switched to.
void arrived([[maybe_unused]] Fiber* self) {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(self->asan_fake_stack, &switched_from->asan_bottom, &switched_from->asan_bytes);
    self->asan_fake_stack = nullptr;
#endif
}

thread_local Fiber* switched_to = nullptr;

[[noreturn]] void start() {
    Fiber* self = switched_to;
    arrived(self);
    self->entry();
    std::abort();
}

}  // namespace

#ifdef EMU_USE_UCONTEXT
namespace {

void prepare(Fiber* fiber) {
    auto* context = static_cast<ucontext_t*>(fiber->context);
    if (!context) fiber->context = context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = fiber->stack;
    context->uc_stack.ss_size = fiber->stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, start, 0);
}

void release(Fiber* fiber) { delete static_cast<ucontext_t*>(fiber->context); }

void exchange(Fiber* from, Fiber* to) {
    if (!from->context) from->context = new ucontext_t;
    swapcontext(static_cast<ucontext_t*>(from->context), static_cast<ucontext_t*>(to->context));
}

}  // namespace
#else

// void emu_exchange_stacks(void** save, void* load): callee-saved registers go onto the old stack and come
// from the new one. Floating-point control words are not saved: kernels do not change them.
asm(R"(
.text
.globl emu_exchange_stacks
.hidden emu_exchange_stacks
.type emu_exchange_stacks, @function
emu_exchange_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_exchange_stacks, .-emu_exchange_stacks
)");
extern "C" void emu_exchange_stacks(void** save, void* load);

namespace {

void prepare(Fiber* fiber) {
    // If every stack began at the same offset in its page, all of them would compete for the same few cache
    // sets.
    const size_t colour = fiber->number * 192 % page;
    auto top = reinterpret_cast<uintptr_t>(fiber->stack + fiber->stack_bytes - colour) & ~uintptr_t(15);
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // the return address of start(), which also aligns its frame
    *--sp = reinterpret_cast<void*>(&start);
    for (int saved = 0; saved < 6; saved++) *--sp = nullptr;
    fiber->context = sp;
}

void release(Fiber*) {}

void exchange(Fiber* from, Fiber* to) { emu_exchange_stacks(&from->context, to->context); }

}  // namespace
#endif

Fiber* fiber_of_host() {
#ifdef EMU_TSAN
    host.tsan = __tsan_get_current_fiber();
#endif
    return &host;
}

Fiber* fiber_create(void (*entry)(), size_t number) {
    auto* fiber = new Fiber;
    void* memory = mmap(nullptr, stack_size + guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + guard, stack_size, PROT_READ | PROT_WRITE) != 0) {
        std::perror("emu: no memory for the stack of a CUDA thread");
        std::exit(1);
    }
    fiber->stack = static_cast<char*>(memory) + guard;
    fiber->stack_bytes = stack_size;
    fiber->entry = entry;
    fiber->number = number;
    fiber->asan_bottom = fiber->stack;
    fiber->asan_bytes = stack_size;
    fiber_restart(fiber);
    return fiber;
}

void fiber_restart(Fiber* fiber) {
    allow_access(fiber->stack, fiber->stack_bytes);
    fiber->asan_fake_stack = nullptr;
#ifdef EMU_TSAN
    if (fiber->tsan) __tsan_destroy_fiber(fiber->tsan);
    fiber->tsan = __tsan_create_fiber(0);
#endif
    prepare(fiber);
}

void fiber_destroy(Fiber* fiber) {
#ifdef EMU_TSAN
    if (fiber->tsan) __tsan_destroy_fiber(fiber->tsan);
#endif
    allow_access(fiber->stack, fiber->stack_bytes);
    release(fiber);
    munmap(fiber->stack - guard, fiber->stack_bytes + guard);
    delete fiber;
}

void fiber_switch(Fiber* from, Fiber* to) {
    switched_from = from;
    switched_to = to;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from->asan_fake_stack, to->asan_bottom, to->asan_bytes);
#endif
#ifdef EMU_TSAN
    constexpr unsigned no_sync = 1;  // a switch does not order memory: only barriers do
    __tsan_switch_to_fiber(to->tsan, no_sync);
#endif
    exchange(from, to);
    arrived(from);
}

bool fiber_stack_overflow(const Fiber* fiber, const void* address) {
    const char* p = static_cast<const char*>(address);
    return fiber && fiber->stack && p >= fiber->stack - guard && p < fiber->stack;
}

}  // namespace emu
