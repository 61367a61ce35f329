// Runs grids: block after block, and in a block thread after thread until each has to wait. The blocks of a
// cooperative launch take turns: each runs until all of its threads wait in the grid barrier (or have returned).
//
// Threads start lazily. One fiber runs one thread after another, and a second one is taken only when a thread
// waits, so a kernel without barriers costs no switches. Threads that a warp operation releases go to the
// front of the ready list, those that a block barrier releases to its back: each warp runs ahead as far as it
// can, which shows missing barriers better than running all warps in step.
#include <sys/mman.h>

#include <algorithm>
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
constexpr size_t shared_mapping = (max_shared_memory + page - 1) / page * page;  // a guard page follows
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

Engine::Engine() { idle_.reserve(max_threads); }

Engine::~Engine() {
    for (Fiber* fiber : fibers_) fiber_destroy(fiber);
}

// ---------------------------------------------------------------------------------------------------------------------
// Blocks

Block::Block() {
    char* memory = static_cast<char*>(
        mmap(nullptr, shared_mapping + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, shared_mapping, PROT_READ | PROT_WRITE) != 0) {
        std::perror("emu: no memory for shared memory");
        std::exit(1);
    }
    shared = shared_end = memory + shared_mapping;
}

Block::~Block() {
    allow_access(shared_end - shared_mapping, shared_mapping + page);
    munmap(shared_end - shared_mapping, shared_mapping + page);
}

void Block::make_room(unsigned count) {
    if (threads.size() >= count) return;
    threads.resize(count);
    warps.resize((count + 31) / 32);
    copies.reset(new AsyncCopy[size_t(count) * max_copies]);
}

void Block::begin(const Launch& launch, Dim block) {
    index = block;
    thread_count = launch.block.x * launch.block.y * launch.block.z;
    make_room(thread_count);
    for (unsigned id = 0; id < thread_count; id++) {
        Thread& t = threads[id];
        t = {};
        t.id = id;
        t.index = {id % launch.block.x, id / launch.block.x % launch.block.y, id / (launch.block.x * launch.block.y)};
    }
    start_order.resize(thread_count);
    for (unsigned i = 0; i < thread_count; i++)
        start_order[i] = settings().order == Order::backward ? thread_count - 1 - i : i;
    for (Warp& warp : warps) warp.open_count = 0;
    ready.clear();
    unstarted = returned = at_barrier = at_grid_barrier = 0;
    begin_shared_memory(launch.smem);
    begin_warpgroups(launch.smem);
}

void Block::begin_shared_memory(size_t bytes) {
    char* const lowest = shared_end - max_shared_memory;
    allow_access(lowest, max_shared_memory + page);
    shared = shared_end - (bytes + 15) / 16 * 16;
    std::memset(shared, 0xff, size_t(shared_end - shared));
    forbid_access(lowest, size_t(shared - lowest));
    forbid_access(shared + bytes, page);
}

// Nothing else has a cost for those who do without.
void Block::begin_warpgroups(size_t bytes) {
    for (NamedBarrier& barrier : named) barrier.arrived = 0;
    has_warpgroups = settings().sm == 90 && thread_count % group_threads == 0;
    if (!has_warpgroups) return;
    if (!async_proxy) async_proxy = std::make_unique<AsyncProxy>();
    async_proxy->begin(shared, bytes, thread_count);
    while (warpgroups.size() < thread_count / group_threads) warpgroups.push_back(std::make_unique<Warpgroup>());
    for (size_t i = 0; i < warpgroups.size(); i++) warpgroups[i]->begin(unsigned(i) * group_threads / 32);
}

const Product* Block::unfinished_product(const Thread* t) {
    return has_warpgroups ? warpgroup(t->id).unfinished(t->id % group_threads, nullptr) : nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// Host side

bool Engine::run(const Launch& launch) {
    host_ = running_ = fiber_of_host();
    launch_ = &launch;
    launches_++;
    random_.seed(settings().seed);
    install_fault_handler();
    blockDim = dim3(launch.block.x, launch.block.y, launch.block.z);
    gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);

    const size_t blocks = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    failure_.clear();
    if (launch.cooperative)
        run_together(launch, blocks);
    else
        run_in_turn(launch, blocks);
    launch_ = nullptr;
    block_ = nullptr;
    if (failure_.empty()) return true;
    const size_t threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
    const size_t used = fiber_per_thread ? (launch.cooperative ? blocks : 1) * threads : fibers_.size();
    for (size_t i = 0; i < used; i++) fiber_restart(fibers_[i]);
    idle_.assign(fibers_.begin(), fibers_.end());
    report(cudaErrorLaunchFailure, failure_);
    return false;
}

void Engine::make_fibers(size_t count) {
    while (fibers_.size() < count) {
        fibers_.push_back(fiber_create(fiber_entry, fibers_.size()));
        idle_.push_back(fibers_.back());
    }
}

Block& Engine::begin_block(size_t number, const Launch& launch, size_t linear_index) {
    const size_t plane = size_t(launch.grid.x) * launch.grid.y;
    if (number == blocks_.size()) blocks_.push_back(std::make_unique<Block>());
    Block& block = *blocks_[number];
    block.begin(launch, {unsigned(linear_index % launch.grid.x), unsigned(linear_index % plane / launch.grid.x),
                         unsigned(linear_index / plane)});
    if (settings().order == Order::random) std::shuffle(block.start_order.begin(), block.start_order.end(), random_);
    block.first_fiber = number * block.thread_count;
    make_fibers(fiber_per_thread ? block.first_fiber + block.thread_count : 1);
    return block;
}

// One block after another, so one of ours serves them all.
void Engine::run_in_turn(const Launch& launch, size_t blocks) {
    const size_t start = settings().order == Order::random ? random_() % blocks : 0;
    for (size_t i = 0; i < blocks && failure_.empty(); i++) {
        const size_t b = settings().order == Order::backward ? blocks - 1 - i : (start + i) % blocks;
        Block& block = begin_block(0, launch, b);
        happens_release(&begin_sync_);
        run_block(block);
        happens_acquire(&end_sync_);
    }
}

// All blocks exist; each runs as far as it can, then the next. Between blocks nothing but grid barriers orders
// memory, which ThreadSanitizer is told by the host's not taking part before the end.
void Engine::run_together(const Launch& launch, size_t blocks) {
    std::vector<Block*> order(blocks);
    for (size_t b = 0; b < blocks; b++)
        order[settings().order == Order::backward ? blocks - 1 - b : b] = &begin_block(b, launch, b);
    first_at_grid_barrier_ = nullptr;
    happens_release(&begin_sync_);
    do {
        if (settings().order == Order::random) std::shuffle(order.begin(), order.end(), random_);
        for (size_t i = 0; i < blocks && failure_.empty(); i++) run_block(*order[i]);
    } while (failure_.empty() && release_grid_barrier(blocks));
    happens_acquire(&end_sync_);
}

// Until each of its threads has returned or waits in a grid barrier.
bool Engine::run_block(Block& block) {
    block_ = &block;
    blockIdx = {block.index.x, block.index.y, block.index.z};
    switch_to(next_fiber());  // returns when no thread can continue
    if (fault_.thread) diagnose_fault();
    const bool stands = block.returned == block.thread_count || block.at_grid_barrier == block.thread_count;
    if (failure_.empty() && !stands) diagnose_deadlock();
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
    if (const Product* p = block_->unfinished_product(current_)) {
        found(
            strprintf("the thread returns before a wgmma_wait() for the product at %s:%d", p->site.file, p->site.line));
        leave();
    }
    current_->state = Thread::State::returned;
    block_->returned++;
    if (!fiber_per_thread) idle_.push_back(running_);
    switch_to(next_fiber());
}

void Engine::set_current(Thread* t) {
    current_ = t;
    threadIdx = {t->index.x, t->index.y, t->index.z};
}

// The fiber to continue with: of a thread that can continue, else of a new thread, else the host.
Fiber* Engine::next_fiber() {
    Block& block = *block_;
    const bool can_start = block.unstarted < block.thread_count;
    bool start = block.ready.empty();
    if (settings().order == Order::random && (can_start || !block.ready.empty())) {
        const unsigned choice = unsigned(random_() % (block.ready.size() + can_start));
        start = choice == block.ready.size();
        if (!start) block.ready.swap_to_front(choice);
    }
    if (!start) {
        set_current(block.ready.pop_front());
        return current_->fiber;
    }
    if (!can_start) {
        current_ = nullptr;
        return host_;
    }
    set_current(&block.threads[block.start_order[block.unstarted++]]);
    current_->state = Thread::State::ready;
    if (fiber_per_thread) return current_->fiber = fibers_[block.first_fiber + current_->id];
    if (idle_.empty()) make_fibers(fibers_.size() + 1);
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
    block_->ready.push_back(current_);
    switch_to(next_fiber());
}

// ---------------------------------------------------------------------------------------------------------------------
// Asynchronous copies

AsyncCopy& Engine::begin_copy(const AsyncCopy& copy) {
    Thread* t = current_;
    const char* wrong = nullptr;
    if (reinterpret_cast<uintptr_t>(copy.shared) % unsigned(copy.bytes)) wrong = "the shared address is not aligned";
    if (copy.valid && reinterpret_cast<uintptr_t>(copy.global) % unsigned(copy.bytes))
        wrong = "the global address is not aligned";
    if (t->copies == max_copies) wrong = "too many copies in flight";
    if (wrong) misuse("cp_async<%d> at %s:%d: %s", copy.bytes, copy.site.file, copy.site.line, wrong);
    AsyncCopy& slot = block_->copies_of(t)[t->copies++];
    slot = copy;
    slot.group = t->copy_group;
    if (block_->has_warpgroups) block_->async_proxy->copy_begins(t->id, copy);
    return slot;
}

bool Engine::take_finished_copy(int pending_groups, AsyncCopy& copy) {
    Thread* t = current_;
    AsyncCopy* all = block_->copies_of(t);
    // Copies are in the order of their groups. Group g is closed when g < copy_group.
    if (t->copies == 0 || all[0].group >= t->copy_group - pending_groups) return false;
    copy = all[0];
    std::memmove(all, all + 1, size_t(--t->copies) * sizeof *all);
    if (block_->has_warpgroups) block_->async_proxy->copy_ends(t->id, copy);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Diagnosis

void Engine::found(const std::string& diagnosis) { failure_ = where() + ": " + diagnosis; }

// No destructor on this stack will run: callers hold no memory.
void Engine::leave() {
    Unseen::end();
    current_ = nullptr;
    switch_to(host_);
    std::abort();
}

std::string Engine::where() const {
    if (!launch_) return "host code";
    std::string text = strprintf("kernel %s <<<%s, %s, %zu>>> launched at %s:%d", launch_->kernel.c_str(),
                                 text_of(launch_->grid).c_str(), text_of(launch_->block).c_str(), launch_->smem,
                                 launch_->site.file, launch_->site.line);
    if (block_) text += ", block " + text_of(block_->index);
    if (current_) text += ", thread " + text_of(current_->index);
    return text;
}

namespace {

std::string doing(const Thread& t) {
    if (t.state == Thread::State::returned) return "returned";
    return strprintf("wait in %s at %s:%d", t.waits_in, t.site.file, t.site.line);
}

// "; blocks 0-31, 64-95 wait in ...; blocks 32-63 returned", for `who` = "blocks" and what each of them does.
template <class F>
std::string who_does_what(const char* who, size_t count, F&& does) {
    std::map<std::string, std::string> groups;  // what they do -> "0-31, 64-95"
    for (size_t first = 0, next; first < count; first = next) {
        const std::string what = does(first);
        for (next = first + 1; next < count && does(next) == what;) next++;
        std::string& ranges = groups[what];
        if (ranges.size() > 60) {
            if (!ranges.ends_with("...")) ranges += ", ...";
            continue;
        }
        ranges += strprintf("%s%zu", ranges.empty() ? "" : ", ", first);
        if (next > first + 1) ranges += strprintf("-%zu", next - 1);
    }
    std::string text;
    for (const auto& [what, ranges] : groups) text += strprintf("; %s %s %s", who, ranges.c_str(), what.c_str());
    return text;
}

}  // namespace

// No thread of the block can continue, and they have neither all returned nor all reached a grid barrier. Says
// who waits where.
void Engine::diagnose_deadlock() {
    const Block& block = *block_;
    auto some_are = [&](Thread::State state) {
        return std::any_of(block.threads.begin(), block.threads.begin() + block.thread_count,
                           [state](const Thread& t) { return t.state == state; });
    };
    std::string text = "deadlock: ";
    if (some_are(Thread::State::at_warp_op))
        text += "lanes named in the mask of a warp operation never call it";
    else if (some_are(Thread::State::at_product))
        text += "threads of a warpgroup never come to a product that others of it wait in";
    else if (some_are(Thread::State::at_named_barrier))
        text += "threads wait in a named barrier that too few reach";
    else if (block.at_grid_barrier)
        text += "threads wait in a grid barrier that others of their block do not reach";
    else
        text += "threads returned before a block barrier that others wait at";
    text += who_does_what("threads", block.thread_count, [&](size_t id) { return doing(block.threads[id]); });
    failure_ = where() + ": " + text;
}

// The same for the blocks of a grid, each of which has returned or waits in the grid barrier.
void Engine::diagnose_grid_deadlock(size_t blocks) {
    block_ = nullptr;
    failure_ = where() + ": deadlock: blocks returned before a grid barrier that others wait at" +
               who_does_what("blocks", blocks, [&](size_t b) { return doing(blocks_[b]->threads[0]); });
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
    else if (p >= block_->shared_end && p < block_->shared_end + page)
        what = strprintf("%zu bytes past the end of the %zu bytes of dynamic shared memory",
                         size_t(p - block_->shared) - launch_->smem, launch_->smem);
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

void* dynamic_shared() {
    if (!Engine::of_this_host_thread().current()) misuse("dynamic_shared");
    return Engine::of_this_host_thread().shared_memory();
}

AsyncCopy& begin_copy(void* shared, const void* global, int bytes, bool valid, Site site) {
    return Engine::of_this_host_thread().begin_copy({shared, global, bytes, valid, 0, site, {}});
}

void commit_copies() { Engine::of_this_host_thread().current()->copy_group++; }

bool take_finished_copy(int pending_groups, AsyncCopy& copy) {
    return Engine::of_this_host_thread().take_finished_copy(pending_groups, copy);
}

void yield() { Engine::of_this_host_thread().yield(); }

uint64_t launches() { return Engine::of_this_host_thread().launches(); }

uint64_t grid_barriers() { return Engine::of_this_host_thread().grid_barriers(); }

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
