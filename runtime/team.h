// The threads that CPU ops run on. One OpenMP region holds them for as long as a program computes (with_team in runtime/cpu.h); in
// it, work is handed out and waited for by what is here.
//
// Why not a region for every loop: at its end, threads of an OpenMP runtime spin for milliseconds. Beside a program that also
// computes, the thread that all wait for has no core, and the others spin on the one that it could have. Here a wait spins for
// kSpin, and then sleeps (dev/results/README.md has what other times, and other ways, were tried).
//
// Work comes as jobs: a loop cut into chunks. Each member of the team has its own part of them, the same one for loops over the same
// rows, so that what it left in its caches is of use, and takes from the others when it is done. The leader goes on when all chunks
// are done, whoever did them: a member that the scheduler keeps from running delays it by no more than the chunk that it has begun.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

namespace tapernorm {

class Team {
  public:
    // The most chunks of one job: a queue has 16 bits for it.
    static constexpr size_t kMostChunks = 65535;

    // Since lead() began. waited: the share of its threads' time that they had nothing to do.
    struct Counts {
        size_t jobs = 0, barriers = 0;
        double waited = 0;
    };

    // Chunk `chunk` of a job, on member `member`; what: the loop's body.
    using Call = void (*)(void* what, size_t chunk, size_t member);

    explicit Team(size_t most) : queues_(most), waits_(most) {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // The team that the calling thread leads and that has no job yet; else null.
    static Team* led_here() { return leads_ && !leads_->at_work_ ? leads_ : nullptr; }

    // Calls f() on thread 0 of a region of `size` threads, while the others follow().
    template <class F>
    void lead(size_t size, F&& f) {
        size_ = size;
        began_ = Clock::now();
        leads_ = this;
        try {
            f();
        } catch (...) {
            thrown_ = std::current_exception();
        }
        leads_ = nullptr;
        ended_.store(true, std::memory_order_relaxed);
        next_number();
        announce(false);
    }

    void follow(size_t member) {
        for (uint32_t seen = 0;;) {
            wait(job_, member, [&](uint32_t now) { return now != seen; });
            seen = job_.load(std::memory_order_acquire);
            if (ended_.load(std::memory_order_relaxed)) return;
            work(member, seen);
        }
    }

    // The error of f, after the region.
    void rethrow() {
        if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
    }

    // For the leader: calls call(what, chunk, member) for every chunk in [0, chunks), on members below `members`. together: chunk w
    // is done by member w, all at the same time, and they may use barrier(); members may then be no more than size().
    // The error of the failed chunk with the lowest number is thrown once all threads have stopped; chunks with higher numbers no
    // longer begin then. Which one that is does not depend on the number of threads.
    void run(size_t chunks, size_t members, Call call, void* what, bool together = false) {
        call_ = call, what_ = what, members_ = members < size_ ? members : size_;
        first_failed_.store(chunks, std::memory_order_relaxed);
        broken_.store(false, std::memory_order_relaxed), arrived_.store(0, std::memory_order_relaxed);
        left_.store(uint32_t(chunks), std::memory_order_relaxed);
        next_number();
        for (size_t w = 0; w < members_; w++)
            queues_[w].state.store(uint64_t(number_) << 32 | (w + 1) * chunks / members_ << 16 | w * chunks / members_,
                                   std::memory_order_relaxed);
        if (together)
            for (size_t w = 0; w < members_; w++) waits_[w].in_job.store(0, std::memory_order_relaxed);
        at_work_ = true;
        counts_.jobs++;
        // Without all members, one whose number is too high could take a chunk.
        announce(!together && members_ == size_);
        work(0, job_.load(std::memory_order_relaxed));
        wait(left_, 0, [](uint32_t now) { return now == 0; }, &Waits::in_job);
        at_work_ = false;
        rethrow();
    }

    // In a job whose members work together: waits for all of them. What they wrote before is visible after it.
    void barrier(size_t member) {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (broken_.load(std::memory_order_relaxed)) throw Abandoned();
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
            arrived_.store(0, std::memory_order_relaxed);
            counts_.barriers++;
            phase_.fetch_add(1);
            phase_.notify_all();
        } else {
            wait(phase_, member, [&](uint32_t now) { return now != phase; }, &Waits::in_job);
            if (broken_.load(std::memory_order_relaxed)) throw Abandoned();
        }
    }

    size_t size() const { return size_; }

    // How long the members of the last job that worked together waited in it, added up: at its barriers, and the leader at its end.
    // Of the leader, between jobs.
    std::chrono::nanoseconds waited_in_job() const {
        int64_t ns = 0;
        for (size_t w = 0; w < members_; w++) ns += waits_[w].in_job.load(std::memory_order_relaxed);
        return std::chrono::nanoseconds(ns);
    }

    // Of the leader, between jobs.
    Counts counts() const {
        Counts c = counts_;
        int64_t waited = 0;
        for (const Waits& w : waits_) waited += w.ns.load(std::memory_order_relaxed);
        c.waited = double(waited) / double(nanoseconds_since(began_)) / double(size_);
        return c;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::microseconds kSpin{50};

    // Another member has failed, and will not come to the barrier.
    struct Abandoned {};

    // The chunks of a member that nobody has begun: the job's number (32 bits), the end, the next one (16 bits each). A thread that
    // has slept through the job's end finds another number, and takes nothing. Who knows the number has it from job_, and with it
    // what the leader wrote before.
    struct alignas(64) Queue {
        std::atomic<uint64_t> state = 0;

        bool take(uint32_t number, size_t& chunk) {
            uint64_t s = state.load(std::memory_order_relaxed);
            for (;;) {
                const size_t next = s & 0xffff, end = s >> 16 & 0xffff;
                if (s >> 32 != number || next == end) return false;
                chunk = next;
                if (state.compare_exchange_weak(s, s + 1, std::memory_order_relaxed)) return true;
            }
        }
    };

    struct alignas(64) Waits {
        std::atomic<int64_t> ns = 0, in_job = 0;
    };

    void next_number() { number_ = (number_ + 1) & 0x7fffffff; }

    void announce(bool shared) {
        job_.store(number_ << 1 | uint32_t(shared));
        job_.notify_all();
    }

    // All that is left for this member to do in a job.
    void work(size_t member, uint32_t job) {
        uint32_t done = 0;
        const size_t queues = job & 1 ? size_ : 1;
        for (size_t i = 0; i < queues; i++)
            for (size_t chunk; queues_[(member + i) % size_].take(job >> 1, chunk); done++) attempt(chunk, member);
        if (done && left_.fetch_sub(done) == done) left_.notify_one();
    }

    void attempt(size_t chunk, size_t member) {
        if (chunk > first_failed_.load(std::memory_order_relaxed)) return;
        try {
            call_(what_, chunk, member);
        } catch (const Abandoned&) {
        } catch (...) {
            const std::lock_guard lock(mutex_);
            if (chunk < first_failed_) first_failed_ = chunk, thrown_ = std::current_exception();
            broken_.store(true, std::memory_order_relaxed);
            phase_.fetch_add(1);
            phase_.notify_all();
        }
    }

    // also: another count that the time belongs to.
    template <class Ready>
    void wait(std::atomic<uint32_t>& word, size_t member, Ready ready, std::atomic<int64_t> Waits::* also = nullptr) {
        uint32_t now = word.load(std::memory_order_acquire);
        if (ready(now)) return;
        const auto start = Clock::now();
        do {
            for (int i = 0; i < 32 && !ready(now); i++) {
                pause();
                now = word.load(std::memory_order_acquire);
            }
        } while (!ready(now) && Clock::now() - start < kSpin);
        for (; !ready(now); now = word.load(std::memory_order_acquire)) word.wait(now);
        const int64_t waited = nanoseconds_since(start);
        for (auto count : {&Waits::ns, also})  // only this thread writes to them
            if (count) {
                std::atomic<int64_t>& ns = waits_[member].*count;
                ns.store(ns.load(std::memory_order_relaxed) + waited, std::memory_order_relaxed);
            }
    }

    static int64_t nanoseconds_since(Clock::time_point start) {
        return std::chrono::nanoseconds(Clock::now() - start).count();
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    static inline thread_local Team* leads_ = nullptr;

    // Written by the leader between jobs.
    size_t size_ = 0, members_ = 0;
    Call call_ = nullptr;
    void* what_ = nullptr;
    uint32_t number_ = 0;
    bool at_work_ = false;
    Clock::time_point began_;
    Counts counts_;

    std::vector<Queue> queues_;
    std::vector<Waits> waits_;
    std::mutex mutex_;           // of thrown_, in a job
    std::exception_ptr thrown_;  // of first_failed_, or of the leader's f
    std::atomic<size_t> first_failed_ = 0;
    std::atomic<bool> ended_ = false, broken_ = false;
    alignas(64) std::atomic<uint32_t> job_ = 0;   // 2 number_ + whether members may take from one another
    alignas(64) std::atomic<uint32_t> left_ = 0;  // chunks that are not done
    alignas(64) std::atomic<uint32_t> arrived_ = 0, phase_ = 0;
};

}  // namespace tapernorm
