// Runs grids: block after block, and in a block thread after thread until each has to wait.
//
// Threads start lazily. One fiber runs one thread after another, and a second one is taken only when a thread
// waits, so a kernel without barriers costs no switches. Threads that a warp operation releases go to the
// front of the ready list, those that a block barrier releases to its back: each warp runs ahead as far as it
// can, which shows missing barriers better than running all warps in step.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "block.h"
#include "device.h"
#include "runtime.h"
#include "sanitizer.h"
#include "text.h"

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace emu {
namespace {

constexpr size_t page = 4096;
// ThreadSanitizer takes every fiber for a thread, so each CUDA thread needs its own, always the same.
#ifdef EMU_TSAN
constexpr bool fiber_per_thread = true;
#else
constexpr bool fiber_per_thread = false;
#endif

std::string text_of(const Dim& d) { return strprintf("(%u, %u, %u)", d.x, d.y, d.z); }

}  // namespace

Engine& Engine::of_this_host_thread() {
    static thread_local Engine engine;
    return engine;
}

Engine::Engine() : threads_(max_threads), warps_(max_warps), copies_(size_t(max_threads) * max_copies) {
    idle_.reserve(max_threads);
    char* memory =
        static_cast<char*>(mmap(nullptr, max_shared_memory + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    const size_t bytes = (max_shared_memory + page - 1) / page * page;
    if (memory == MAP_FAILED || mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) {
        std::perror("emu: no memory for shared memory");
        std::exit(1);
    }
    shared_ = shared_end_ = memory + bytes;
}

Engine::~Engine() {
    for (Fiber* fiber : fibers_) fiber_destroy(fiber);
    const size_t bytes = (max_shared_memory + page - 1) / page * page;
    allow_access(shared_end_ - bytes, bytes);
    munmap(shared_end_ - bytes, bytes + page);
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

bool Engine::run(const Launch& launch) {
    host_ = running_ = fiber_of_host();
    launch_ = &launch;
    thread_count_ = launch.block.x * launch.block.y * launch.block.z;
    random_.seed(settings().seed);
    make_fibers(fiber_per_thread ? thread_count_ : 1);
    install_fault_handler();
    blockDim = dim3(launch.block.x, launch.block.y, launch.block.z);
    gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);

    const size_t plane = size_t(launch.grid.x) * launch.grid.y, blocks = plane * launch.grid.z;
    const size_t start = settings().order == Order::random ? random_() % blocks : 0;
    failure_.clear();
    for (size_t i = 0; i < blocks && failure_.empty(); i++) {
        const size_t b = settings().order == Order::backward ? blocks - 1 - i : (start + i) % blocks;
        begin_block(launch, {unsigned(b % launch.grid.x), unsigned(b % plane / launch.grid.x), unsigned(b / plane)});
        run_block();
    }
    launch_ = nullptr;
    if (failure_.empty()) return true;
    for (Fiber* fiber : fibers_) fiber_restart(fiber);
    idle_.assign(fibers_.begin(), fibers_.end());
    report(cudaErrorLaunchFailure, failure_);
    return false;
}

void Engine::make_fibers(unsigned count) {
    while (fibers_.size() < count) {
        fibers_.push_back(fiber_create(fiber_entry, fibers_.size()));
        idle_.push_back(fibers_.back());
    }
}

void Engine::begin_block(const Launch& launch, Dim block) {
    blockIdx = {block.x, block.y, block.z};
    for (unsigned id = 0; id < thread_count_; id++) {
        Thread& t = threads_[id];
        t = {};
        t.id = id;
        t.index = {id % launch.block.x, id / launch.block.x % launch.block.y, id / (launch.block.x * launch.block.y)};
    }
    start_order_.resize(thread_count_);
    for (unsigned i = 0; i < thread_count_; i++)
        start_order_[i] = settings().order == Order::backward ? thread_count_ - 1 - i : i;
    if (settings().order == Order::random) std::shuffle(start_order_.begin(), start_order_.end(), random_);
    for (Warp& warp : warps_) warp.open_count = 0;
    ready_.clear();
    unstarted_ = returned_ = at_barrier_ = 0;

    allow_access(shared_end_ - max_shared_memory, max_shared_memory + page);
    shared_ = shared_end_ - (launch.smem + 15) / 16 * 16;
    std::memset(shared_, 0xff, size_t(shared_end_ - shared_));
    forbid_access(shared_end_ - max_shared_memory, size_t(shared_ - (shared_end_ - max_shared_memory)));
    forbid_access(shared_ + launch.smem, page);
}

bool Engine::run_block() {
    happens_release(&begin_sync_);
    switch_to(next_fiber());  // returns when no thread can continue
    happens_acquire(&end_sync_);
    if (fault_.thread) diagnose_fault();
    if (failure_.empty() && returned_ < thread_count_) diagnose_deadlock();
    return failure_.empty();
}

// ---------------------------------------------------------------------------------------------------------------------
// Scheduling

void Engine::fiber_entry() {
    Engine& engine = of_this_host_thread();
    for (;;) engine.run_thread();
}

void Engine::run_thread() {
    happens_acquire(&begin_sync_);
    launch_->body();
    if (current_->copies) {
        found(strprintf("the thread returns with %d cp_async copies that it did not wait for", current_->copies));
        leave();
    }
    current_->state = Thread::State::returned;
    returned_++;
    if (!fiber_per_thread) idle_.push_back(running_);
    switch_to(next_fiber());
}

void Engine::set_current(Thread* t) {
    current_ = t;
    threadIdx = {t->index.x, t->index.y, t->index.z};
}

// The fiber to continue with: of a thread that can continue, else of a new thread, else the host.
Fiber* Engine::next_fiber() {
    const bool can_start = unstarted_ < thread_count_;
    bool start = ready_.empty();
    if (settings().order == Order::random && (can_start || !ready_.empty())) {
        const unsigned choice = unsigned(random_() % (ready_.size() + can_start));
        start = choice == ready_.size();
        if (!start) ready_.swap_to_front(choice);
    }
    if (!start) {
        set_current(ready_.pop_front());
        return current_->fiber;
    }
    if (!can_start) {
        current_ = nullptr;
        return host_;
    }
    set_current(&threads_[start_order_[unstarted_++]]);
    current_->state = Thread::State::ready;
    if (fiber_per_thread) return current_->fiber = fibers_[current_->id];
    if (idle_.empty()) make_fibers(unsigned(fibers_.size()) + 1);
    current_->fiber = idle_.back();
    idle_.pop_back();
    return current_->fiber;
}

void Engine::switch_to(Fiber* to) {
    if (to == running_) return;
    Fiber* from = running_;
    running_ = to;
    switches_++;
    happens_release(&end_sync_);  // for the host, which continues when this thread may not
    fiber_switch(from, to);
}

void Engine::wait_here(Thread::State state, const char* name, Site site) {
    current_->state = state;
    current_->waits_in = name;
    current_->site = site;
    switch_to(next_fiber());
}

void Engine::yield() {
    ready_.push_back(current_);
    switch_to(next_fiber());
}

// ---------------------------------------------------------------------------------------------------------------------
// Asynchronous copies

void Engine::begin_copy(const AsyncCopy& copy, Site site) {
    Thread* t = current_;
    const char* wrong = nullptr;
    if (reinterpret_cast<uintptr_t>(copy.shared) % unsigned(copy.bytes)) wrong = "the shared address is not aligned";
    if (copy.valid && reinterpret_cast<uintptr_t>(copy.global) % unsigned(copy.bytes))
        wrong = "the global address is not aligned";
    if (t->copies == max_copies) wrong = "too many copies in flight";
    if (wrong) misuse("cp_async<%d> at %s:%d: %s", copy.bytes, site.file, site.line, wrong);
    AsyncCopy& slot = copies_of(t)[t->copies++];
    slot = copy;
    slot.group = t->copy_group;
}

bool Engine::take_finished_copy(int pending_groups, AsyncCopy& copy) {
    Thread* t = current_;
    AsyncCopy* all = copies_of(t);
    // Copies are in the order of their groups. Group g is closed when g < copy_group.
    if (t->copies == 0 || all[0].group >= t->copy_group - pending_groups) return false;
    copy = all[0];
    std::memmove(all, all + 1, size_t(--t->copies) * sizeof *all);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Diagnosis

void Engine::found(const std::string& diagnosis) { failure_ = where() + ": " + diagnosis; }

// No destructor on this stack will run: callers hold no memory.
void Engine::leave() {
    current_ = nullptr;
    switch_to(host_);
    std::abort();
}

std::string Engine::where() const {
    if (!launch_) return "host code";
    std::string text =
        strprintf("kernel %s <<<%s, %s, %zu>>> launched at %s:%d, block %s", launch_->kernel.c_str(),
                  text_of(launch_->grid).c_str(), text_of(launch_->block).c_str(), launch_->smem, launch_->site.file,
                  launch_->site.line, text_of({blockIdx.x, blockIdx.y, blockIdx.z}).c_str());
    if (current_) text += ", thread " + text_of(current_->index);
    return text;
}

// Nobody can continue and somebody has not returned. Says who waits where.
void Engine::diagnose_deadlock() {
    unsigned waits[5] = {};
    std::map<std::string, std::string> groups;  // what they do -> "0-31, 64-95"
    for (unsigned first = 0, next; first < thread_count_; first = next) {
        auto doing = [&](unsigned id) -> std::string {
            const Thread& t = threads_[id];
            if (t.state == Thread::State::returned) return "returned";
            return strprintf("wait in %s at %s:%d", t.waits_in, t.site.file, t.site.line);
        };
        const std::string what = doing(first);
        for (next = first; next < thread_count_ && doing(next) == what; next++) waits[int(threads_[next].state)]++;
        std::string& ranges = groups[what];
        if (ranges.size() > 60) {
            if (!ranges.ends_with("...")) ranges += ", ...";
            continue;
        }
        ranges += strprintf("%s%u", ranges.empty() ? "" : ", ", first);
        if (next > first + 1) ranges += strprintf("-%u", next - 1);
    }
    std::string text = "deadlock: ";
    if (waits[int(Thread::State::at_warp_op)])
        text += "lanes named in the mask of a warp operation never call it";
    else
        text += "threads returned before a block barrier that others wait at";
    for (const auto& [what, ranges] : groups) text += "; threads " + ranges + " " + what;
    failure_ = where() + ": " + text;
}

void Engine::fault(const void* address, bool writes) {
    fault_ = {current_, running_, address, writes};
    leave();
}

void Engine::diagnose_fault() {
    const char* p = static_cast<const char*>(fault_.address);
    std::string what = describe_address(p);
    if (p == unknown_address)
        what = "through a misaligned vector access, or what is no address";
    else if (fiber_stack_overflow(fault_.fiber, p))
        what = "the guard pages of its stack, which is full";
    else if (p >= shared_end_ && p < shared_end_ + page)
        what = strprintf("%zu bytes past the end of the %zu bytes of dynamic shared memory",
                         size_t(p - shared_) - launch_->smem, launch_->smem);
    else if (reinterpret_cast<uintptr_t>(p) < page)
        what = "a null pointer";
    else if (what.empty())
        what = "no device memory";
    current_ = fault_.thread;
    found(strprintf("the thread %s %s (address %p)", fault_.writes ? "writes" : "reads", what.c_str(), fault_.address));
    current_ = nullptr;
    fault_ = {};
}

// ---------------------------------------------------------------------------------------------------------------------
// Interface of kernels

unsigned lane_id() { return Engine::of_this_host_thread().current()->id % 32; }

void* dynamic_shared() { return Engine::of_this_host_thread().shared_memory(); }

void begin_copy(void* shared, const void* global, int bytes, bool valid, Site site) {
    Engine::of_this_host_thread().begin_copy({shared, global, bytes, valid, 0}, site);
}

void commit_copies() { Engine::of_this_host_thread().current()->copy_group++; }

bool take_finished_copy(int pending_groups, AsyncCopy& copy) {
    return Engine::of_this_host_thread().take_finished_copy(pending_groups, copy);
}

void yield() { Engine::of_this_host_thread().yield(); }

uint64_t switches() { return Engine::of_this_host_thread().switches(); }

void misuse(const char* format, ...) {
    Engine& engine = Engine::of_this_host_thread();
    {
        va_list args;
        va_start(args, format);
        const std::string text = vstrprintf(format, args);
        va_end(args);
        if (!engine.current()) throw std::runtime_error("emu: host code called a device function: " + text);
        engine.found(text);
    }
    engine.leave();
}

}  // namespace emu
