// The CPU device: its threads and instruction set, and the parallel loops that every CPU op is built on.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <latch>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/cores.h"
#include "runtime/error.h"
#include "runtime/step_threads.h"
#include "runtime/team.h"

namespace tapernorm {

// Instruction sets that ops/leaf.cpp is compiled for. `base` is what every machine of the architecture has.
enum class Isa { base, avx2, avx512 };

inline const char* isa_name(Isa isa) {
    return isa == Isa::avx512 ? "AVX-512" : isa == Isa::avx2 ? "AVX2+FMA" : "baseline";
}

// The best one that this machine has. TAPERNORM_ISA=base, avx2 or avx512 in the environment asks for a lesser one: to compare,
// or for valgrind, which does not know all instructions.
inline Isa best_isa() {
    Isa best = Isa::base;
#if defined(__x86_64__)
    // The parts of x86-64-v3 and -v4, because Clang knows the names of these levels only from version 18 on.
    __builtin_cpu_init();
    auto has_all = [](auto... has) { return (has && ...); };
    if (has_all(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("bmi"),
                __builtin_cpu_supports("bmi2")))
        best = Isa::avx2;
    if (best == Isa::avx2 && has_all(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                                     __builtin_cpu_supports("avx512cd"), __builtin_cpu_supports("avx512dq"),
                                     __builtin_cpu_supports("avx512vl")))
        best = Isa::avx512;
#endif
    const char* wanted = std::getenv("TAPERNORM_ISA");
    if (!wanted || !*wanted) return best;
    const std::string name = wanted;
    const Isa isa = name == "avx512" ? Isa::avx512 : name == "avx2" ? Isa::avx2 : Isa::base;
    if (isa > best || (isa == Isa::base && name != "base"))
        fail("TAPERNORM_ISA: expected base%s, found %s",
             best == Isa::base   ? ""
             : best == Isa::avx2 ? " or avx2"
                                 : ", avx2 or avx512",
             wanted);
    return isa;
}

// Whether this machine adds products of bytes by one instruction, as wide as the vectors of `isa` (VNNI).
inline bool has_dot_instruction([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return __builtin_cpu_supports("avx512vnni");
    unsigned a = 0, b, c, d;  // AVX-VNNI, by its number: Clang knows its name only from version 16 on
    if (isa == Isa::avx2) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
    return false;
}

// Device memory of the CPU: 64-byte aligned, contents undefined, to be freed by std::free. Large blocks ask for huge pages,
// which makes reading them a tenth faster. hint: see Cpu::memory_hint.
inline void* cpu_allocate(size_t bytes, const char* what, const char* hint = "") {
    constexpr size_t kHugePage = size_t(2) << 20;
    const size_t grain = bytes >= 16 * kHugePage ? kHugePage : 64;
    void* p = bytes ? std::aligned_alloc(grain, (bytes + grain - 1) / grain * grain) : nullptr;
#ifdef MADV_HUGEPAGE
    if (p && grain == kHugePage) madvise(p, (bytes + grain - 1) / grain * grain, MADV_HUGEPAGE);
#endif
    if (bytes && !p)
        fail("out of memory: %.1f MiB needed for %s%s", double(bytes) / 1048576, what, memory_hint_text(hint).c_str());
    return p;
}

struct Cpu {
    static constexpr size_t kVocabularyGrain = 1;  // the vocabulary is rounded up to a multiple of it in memory

    int threads;
    Isa isa;
    bool dot_instruction;          // (tests switch it off: no result depends on it)
    const char* why_threads;       // so many, where that is not the user's choice; "" for all cores
    const char* memory_hint = "";  // what this program's user can do about too little memory, for the error

    explicit Cpu(int threads_ = 0, Isa isa_ = best_isa()) : Cpu(threads_for(threads_), isa_) {}

    // Scratch memory for one thread: at least `bytes`, 64-byte aligned, valid until that thread's next call. It grows to the
    // largest need and stays, so that the training loop allocates nothing.
    void* scratch(int thread, size_t bytes) { return grow(scratch_[size_t(thread)], bytes, memory_hint); }

    // The same, shared by the threads of one op (for the partial sums of a reduction).
    void* shared_scratch(size_t bytes) { return grow(scratch_.back(), bytes, memory_hint); }

  private:
    Cpu(Cores cores, Isa isa_)
        : threads(cores.count), isa(isa_), dot_instruction(has_dot_instruction(isa_)), why_threads(cores.why),
          scratch_(size_t(threads) + 1) {}

    struct alignas(64) Scratch {
        void* data = nullptr;
        size_t bytes = 0;
        Scratch() = default;
        Scratch(const Scratch&) = delete;
        Scratch& operator=(const Scratch&) = delete;
        Scratch(Scratch&& other) noexcept : data(other.data), bytes(other.bytes) { other.data = nullptr; }
        ~Scratch() { std::free(data); }
    };
    static void* grow(Scratch& s, size_t bytes, const char* hint) {
        if (s.bytes < bytes) {
            std::free(s.data);
            s.data = nullptr, s.bytes = 0;
            s.data = cpu_allocate(bytes, "scratch memory", hint);
            s.bytes = bytes;
        }
        return s.data;
    }
    std::vector<Scratch> scratch_;
};

// Reductions over N rows (column sums, losses) run over fixed chunks of this many rows, each summed by one thread and
// then added in order: the result depends on N, not on the number of threads.
inline size_t reduction_chunk(size_t N) { return std::max<size_t>(16, (N + 63) / 64); }

// An OpenMP runtime that cannot make a thread ends the process. So as many are made here first, once: std::system_error if they cannot.
inline void require_threads(int threads) {
    static std::atomic<int> made = 1;
    if (threads <= made) return;
    std::latch all(1);
    std::vector<std::thread> others;
    const auto end = [&] {
        all.count_down();
        for (std::thread& other : others) other.join();
    };
    try {
        for (int i = 1; i < threads; i++) others.emplace_back([&] { all.wait(); });
    } catch (...) {
        end();
        throw;
    }
    end();
    made = threads;
}

// Returns f(), called on this thread with a team of dev.threads threads at hand: parallel loops in it cost less than those that open
// a team each. Exceptions pass through, and MPI may be called. Where a team is at hand already, or in a loop that is parallel (loops in
// it run on its one thread), f is just called.
template <class F>
auto with_team(const Cpu& dev, F&& f) {
    if (dev.threads == 1 || Team::led_here() || omp_in_parallel()) return f();
    if constexpr (std::is_void_v<decltype(f())>) {
        Team team(size_t(dev.threads));
        require_threads(dev.threads);
        omp_set_dynamic(0);  // OMP_DYNAMIC, and no levels, would give the team fewer threads than were chosen
        if (omp_get_max_active_levels() == 0) omp_set_max_active_levels(1);
#pragma omp parallel num_threads(dev.threads)
        if (omp_get_thread_num() == 0)
            team.lead(size_t(omp_get_num_threads()), f);
        else
            team.follow(size_t(omp_get_thread_num()));
        team.rethrow();
    } else {
        std::optional<decltype(f())> result;
        with_team(dev, [&] { result.emplace(f()); });
        return std::move(*result);
    }
}

// Calls f(chunk, thread) for every chunk in [0, chunks).
template <class F>
void parallel_chunks(const Cpu& dev, size_t chunks, F f) {
    const auto one_by_one = [&] {
        for (size_t chunk = 0; chunk < chunks; chunk++) f(chunk, 0);
    };
    if (chunks <= 1 || dev.threads == 1) return one_by_one();
    with_team(dev, [&] {
        Team* team = Team::led_here();
        if (!team) return one_by_one();
        const auto call = [](void* what, size_t chunk, size_t thread) { (*static_cast<F*>(what))(chunk, int(thread)); };
        team->run(chunks, size_t(dev.threads), call, &f);
    });
}

constexpr size_t kRangesPerThread = 4;

// Calls f(begin, end, thread) on disjoint ranges that cover [0, n); inner borders are multiples of `grain`. There are more ranges than
// threads where n allows it, so that one that is slow, or has less of its core than others, leaves some of its own to them. Ops write
// disjoint outputs per range, and reduce over fixed chunks (reduction_chunk above), so that no result depends on the number
// of threads. Little work (n <= grain) stays on the calling thread.
template <class F>
void parallel_ranges(const Cpu& dev, size_t n, size_t grain, F&& f) {
    if (n == 0) return;
    const size_t blocks = (n + grain - 1) / grain;
    const size_t ranges = std::min({blocks, size_t(dev.threads) * kRangesPerThread, Team::kMostChunks});
    if (ranges == 1 || dev.threads == 1) return f(size_t(0), n, 0);
    parallel_chunks(dev, ranges, [&](size_t i, int thread) {
        f(i * blocks / ranges * grain, std::min(n, (i + 1) * blocks / ranges * grain), thread);
    });
}

// Calls f(task, thread) for every task in [0, n): for tasks of unequal cost, which may fail (Team::run says which error is thrown).
template <class F>
void parallel_tasks(const Cpu& dev, size_t n, F&& f) {
    const size_t chunks = std::min(n, Team::kMostChunks);
    parallel_chunks(dev, chunks, [&](size_t i, int thread) {
        for (size_t task = i * n / chunks; task < (i + 1) * n / chunks; task++) f(task, thread);
    });
}

// One thread of a parallel_team.
struct TeamMember {
    size_t thread, threads;
    Team* team;

    // Waits for all others; what they wrote before the barrier is visible after it.
    void barrier() const {
        if (threads > 1) team->barrier(thread);
    }
    // This thread's part of n things: [share(n), share(n, 1)).
    size_t share(size_t n, size_t next = 0) const { return n * (thread + next) / threads; }
};

// Calls f(TeamMember) once on each of `threads` threads, or as many as there are: for many short steps, each ended by a barrier, which
// costs less than a loop per step.
template <class F>
void parallel_team(const Cpu& dev, size_t threads, F&& f) {
    if (threads <= 1) return f(TeamMember{0, 1, nullptr});
    with_team(dev, [&] {
        Team* team = Team::led_here();
        if (!team) return f(TeamMember{0, 1, nullptr});
        threads = std::min({threads, size_t(dev.threads), team->size()});
        auto member = [&](size_t thread) { f(TeamMember{thread, threads, team}); };
        const auto call = [](void* what, size_t, size_t thread) { (*static_cast<decltype(member)*>(what))(thread); };
        team->run(threads, threads, call, &member, true);
    });
}

// The same with as many threads as `fit` says, which learns from it.
template <class F>
void parallel_team(const Cpu& dev, StepThreads& fit, F&& f) {
    with_team(dev, [&] {
        const auto start = std::chrono::steady_clock::now();
        const size_t threads = fit.count();
        parallel_team(dev, threads, f);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        const Team* team = Team::led_here();
        const std::chrono::duration<double> waited =
            team && threads > 1 ? team->waited_in_job() : std::chrono::nanoseconds(0);
        fit.took(took.count(), waited.count() / double(std::max<size_t>(threads - 1, 1)));
    });
}

}  // namespace tapernorm
