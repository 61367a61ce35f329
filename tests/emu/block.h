// The running block: its threads, who waits for what. Inside of the stand-in only.
#pragma once
#include <random>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace emu {

constexpr unsigned max_threads = 1024, max_warps = max_threads / 32;
constexpr size_t max_shared_memory = 227 << 10;  // the largest of the imitated architectures
constexpr int max_copies = 256;                  // cp.async in flight, per thread

struct Thread {
    enum class State { waiting_to_start, ready, at_barrier, at_warp_op, returned };
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

class Engine {
  public:
    static Engine& of_this_host_thread();
    ~Engine();

    // Executes a whole grid. False: wrong use was found, see runtime.h for its text.
    bool run(const Launch& launch);

    // From CUDA threads.
    BarrierResult barrier(const char* name, bool predicate, Site site);
    void warp_operation(const WarpOp& op, unsigned mask, void* mine, Site site);
    void begin_copy(const AsyncCopy& copy, Site site);
    bool take_finished_copy(int pending_groups, AsyncCopy& copy);
    void yield();
    void found(const std::string& diagnosis);  // wrong use by the current thread,
    [[noreturn]] void leave();                 // which then leaves the kernel
    static inline const char unknown_address[1] = {};
    [[noreturn]] void fault(const void* address, bool writes);  // the same, from a signal handler

    Thread* current() { return current_; }  // null outside of kernels
    void* shared_memory() const { return shared_; }
    std::string where() const;  // "kernel k <<<...>>> launched at file:line, block (0, 0, 0), thread (1, 0, 0)"
    uint64_t switches() const { return switches_; }

  private:
    Engine();
    void make_fibers(unsigned threads);
    void begin_block(const Launch& launch, Dim block);
    bool run_block();
    void diagnose_deadlock();
    void diagnose_fault();

    static void fiber_entry();
    void run_thread();
    Fiber* next_fiber();
    void set_current(Thread* t);
    void wait_here(Thread::State state, const char* name, Site site);
    void switch_to(Fiber* to);

    void release_barrier();
    OpenOp& open_op(Warp& warp, const WarpOp& op, unsigned mask, Site site);
    void release_lanes(unsigned warp, unsigned lanes);
    void check_mask(const WarpOp& op, unsigned mask, Site site);
    AsyncCopy* copies_of(const Thread* t) { return &copies_[t->id * max_copies]; }

    Fiber* host_ = nullptr;
    std::vector<Fiber*> fibers_, idle_;
    const Launch* launch_ = nullptr;
    unsigned thread_count_ = 0, unstarted_ = 0;
    std::vector<Thread> threads_;
    std::vector<unsigned> start_order_;
    std::vector<Warp> warps_;
    std::vector<AsyncCopy> copies_;
    ReadyList ready_;
    Thread* current_ = nullptr;
    Fiber* running_ = nullptr;
    unsigned returned_ = 0;
    std::mt19937_64 random_;
    std::string failure_;
    struct {
        Thread* thread;  // null: no fault
        Fiber* fiber;
        const void* address;
        bool writes;
    } fault_{};
    uint64_t switches_ = 0;

    // The block barrier. Counters and synchronization objects are used in turns, as in Warp.
    unsigned at_barrier_ = 0;
    unsigned turn_ = 0;
    int count_[2] = {0, 0};
    char sync_[2] = {0, 0}, begin_sync_ = 0, end_sync_ = 0;
    Thread* first_at_barrier_ = nullptr;

    char* shared_end_ = nullptr;  // guard page
    char* shared_ = nullptr;      // the running block's
};

}  // namespace emu
