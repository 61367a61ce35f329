// Blocks: their threads, who waits for what. Inside of the stand-in only.
#pragma once
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"
#include "warpgroup.h"

namespace emu {

constexpr unsigned max_threads = 1024, max_warps = max_threads / 32;
constexpr size_t max_shared_memory = 227 << 10;  // the largest of the imitated architectures
constexpr int max_copies = 256;                  // cp.async in flight, per thread

struct Thread {
    enum class State {
        waiting_to_start,
        ready,
        at_barrier,
        at_grid_barrier,
        at_warp_op,
        at_product,
        at_named_barrier,
        returned
    };
    State state;
    unsigned id;  // x + blockDim.x * (y + blockDim.y * z)
    Dim index;
    Fiber* fiber;
    const char* waits_in;  // name and line of what it waits in
    Site site;
    int copies, copy_group;
};

// A warp operation that waits for lanes.
struct OpenOp {
    const WarpOp* op;
    unsigned mask, arrived;
    Site site;
    void* lanes[32];
};

struct Warp {
    int open_count;
    OpenOp open[32];  // disjoint masks
    // Two synchronization objects for ThreadSanitizer per lowest lane of a mask, used in turns: a lane may
    // enter the next
    // __syncwarp before others have left this one.
    char sync[32][2];
    unsigned char turn[32];
};

// Those that have arrived, by warps.
struct NamedBarrier {
    unsigned expected = 0, arrived = 0, turn = 0;
    std::vector<unsigned> lanes;
    Site first;
    char sync[2] = {0, 0};  // as in Warp
};

// Threads that can continue.
class ReadyList {
  public:
    bool empty() const { return count_ == 0; }
    unsigned size() const { return count_; }
    void clear() { count_ = 0; }
    void push_front(Thread* t) { slots_[--first_ % capacity] = t, count_++; }
    void push_back(Thread* t) { slots_[(first_ + count_++) % capacity] = t; }
    Thread* pop_front() {
        count_--;
        return slots_[first_++ % capacity];
    }
    void swap_to_front(unsigned i) { std::swap(slots_[first_ % capacity], slots_[(first_ + i) % capacity]); }

  private:
    static constexpr unsigned capacity = max_threads;
    Thread* slots_[capacity];
    unsigned first_ = 0, count_ = 0;
};

// What belongs to one block. An ordinary launch uses one of these for block after block, a cooperative launch
// has one for each of its blocks.
struct Block {
    Block();
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void make_room(unsigned threads);
    void begin(const Launch& launch, Dim block);
    // Of dynamic shared memory, filled with NaN.
    void begin_shared_memory(size_t bytes);
    void begin_warpgroups(size_t bytes);
    const Product* unfinished_product(const Thread* t);  // null if there is none
    Warpgroup& warpgroup(unsigned thread) { return *warpgroups[thread / group_threads]; }
    AsyncProxy& proxy() { return *async_proxy; }
    AsyncCopy* copies_of(const Thread* t) { return &copies[size_t(t->id) * max_copies]; }

    Dim index{};
    unsigned thread_count = 0, unstarted = 0, returned = 0, at_grid_barrier = 0;
    std::vector<Thread> threads;
    std::vector<unsigned> start_order;
    std::vector<Warp> warps;
    std::unique_ptr<AsyncCopy[]> copies;  // memory that no cp.async uses is never touched
    ReadyList ready;
    size_t first_fiber = 0;  // where each thread has a fiber of its own: that of thread 0

    // The block barrier. Counters and synchronization objects are used in turns, as in Warp.
    unsigned at_barrier = 0;
    unsigned turn = 0;
    int count[2] = {0, 0};
    char sync[2] = {0, 0};
    Thread* first_at_barrier = nullptr;

    NamedBarrier named[16];

    // Only of blocks that can use them: on sm_90, in whole warpgroups.
    std::vector<std::unique_ptr<Warpgroup>> warpgroups;
    std::unique_ptr<AsyncProxy> async_proxy;
    bool has_warpgroups = false;

    char* shared_end = nullptr;  // guard page
    char* shared = nullptr;
};

class Engine {
  public:
    static Engine& of_this_host_thread();
    ~Engine();

    // Executes a whole grid. False: wrong use was found, see runtime.h for its text.
    bool run(const Launch& launch);

    // From CUDA threads.
    BarrierResult barrier(const char* name, bool predicate, Site site);
    void grid_barrier(const char* name, Site site);
    void fence();
    void warp_operation(const WarpOp& op, unsigned mask, void* mine, Site site);
    void named_barrier(int id, int threads, Site site);
    void wgmma(const WgmmaLane& mine, Site site);
    AsyncCopy& begin_copy(const AsyncCopy& copy);
    bool take_finished_copy(int pending_groups, AsyncCopy& copy);
    void yield();
    void found(const std::string& diagnosis);  // wrong use by the current thread,
    [[noreturn]] void leave();                 // which then leaves the kernel
    static inline const char unknown_address[1] = {};
    [[noreturn]] void fault(const void* address, bool writes);  // the same, from a signal handler

    Thread* current() { return current_; }  // null outside of kernels
    Block& block() { return *block_; }
    const Launch& launch() const { return *launch_; }
    void* shared_memory() const { return block_->shared; }
    std::string where() const;  // "kernel k <<<...>>> launched at file:line, block (0, 0, 0), thread (1, 0, 0)"
    uint64_t switches() const { return switches_; }
    uint64_t launches() const { return launches_; }
    uint64_t grid_barriers() const { return grid_barriers_; }

  private:
    Engine();
    void make_fibers(size_t count);
    Block& begin_block(size_t number, const Launch& launch, size_t linear_index);
    void run_in_turn(const Launch& launch, size_t blocks);
    void run_together(const Launch& launch, size_t blocks);
    bool run_block(Block& block);
    bool release_grid_barrier(size_t blocks);
    void diagnose_deadlock();
    void diagnose_grid_deadlock(size_t blocks);
    void diagnose_fault();

    static void fiber_entry();
    void run_thread();
    Fiber* next_fiber();
    void set_current(Thread* t);
    void wait_here(Thread::State state, const char* name, Site site);
    void switch_to(Fiber* to);

    void release_barrier();
    void release_named_barrier(NamedBarrier& barrier, int id, Site site);
    static void make_all_ready(Block& block);
    OpenOp& open_op(Warp& warp, const WarpOp& op, unsigned mask, Site site);
    void release_lanes(unsigned warp, unsigned lanes);
    void check_mask(const WarpOp& op, unsigned mask, Site site);

    Fiber* host_ = nullptr;
    std::vector<Fiber*> fibers_, idle_;
    const Launch* launch_ = nullptr;
    std::vector<std::unique_ptr<Block>> blocks_;
    Block* block_ = nullptr;  // the running one
    Thread* current_ = nullptr;
    Fiber* running_ = nullptr;
    std::mt19937_64 random_;
    std::string failure_;
    struct {
        Thread* thread;  // null: no fault
        Fiber* fiber;
        const void* address;
        bool writes;
    } fault_{};
    uint64_t switches_ = 0, launches_ = 0, grid_barriers_ = 0;
    char begin_sync_ = 0, end_sync_ = 0;

    // The grid barrier: who came first, and synchronization objects used in turns.
    const Block* first_block_at_grid_barrier_ = nullptr;
    const Thread* first_at_grid_barrier_ = nullptr;
    unsigned grid_turn_ = 0;
    char grid_sync_[2] = {0, 0}, fence_sync_ = 0;
};

}  // namespace emu
