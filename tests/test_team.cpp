// Loops on several threads: every part once, errors, what is nested, threads that are late.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include <doctest/doctest.h>

#include "runtime/cpu.h"

using namespace tapernorm;
using namespace std::chrono_literals;

namespace {

// Waits until condition(), for at most half a minute; false if it never came.
template <class F>
bool comes(F&& condition) {
    for (int i = 0; i < 30000 && !condition(); i++) std::this_thread::sleep_for(1ms);
    return condition();
}

// How often each of n things was done by parallel_ranges and parallel_tasks, whose threads must be below `threads`.
void check_loops(const Cpu& dev, size_t n, size_t grain, int threads) {
    std::vector<std::atomic<int>> in_ranges(n), in_tasks(n);
    std::atomic<bool> all_known = true, all_aligned = true;
    parallel_ranges(dev, n, grain, [&](size_t i, size_t end, int thread) {
        if (thread < 0 || thread >= threads) all_known = false;
        if (i % grain || (end % grain && end != n)) all_aligned = false;
        for (; i < end; i++) in_ranges[i]++;
    });
    parallel_tasks(dev, n, [&](size_t i, int thread) {
        if (thread < 0 || thread >= threads) all_known = false;
        in_tasks[i]++;
    });
    size_t once = 0;
    for (size_t i = 0; i < n; i++) once += in_ranges[i] == 1 && in_tasks[i] == 1;
    CAPTURE(n);
    CAPTURE(grain);
    CAPTURE(threads);
    CHECK(once == n);
    CHECK(all_known);
    CHECK(all_aligned);
}

// A machine with so many free cores, on which more threads than that wait for a time slice: calls fit.took() for one step, or for as many
// as it takes until there are `threads` threads, and returns how many.
struct Machine {
    StepThreads fit;
    size_t free_cores;

    void step() {
        const size_t count = fit.count();
        const double quick = 8e-3 / double(count);
        count <= free_cores ? fit.took(quick, 0.1 * quick) : fit.took(quick + 8e-3, 8e-3);
    }
    size_t steps_until(size_t threads) {
        size_t steps = 0;
        for (; fit.count() != threads && steps < 100000; steps++) step();
        return steps;
    }
};

void check_sizes(const Cpu& dev, int threads) {
    for (size_t n : {0, 1, 2, 3, 7, 8, 63, 64, 65, 1000})
        for (size_t grain : {1, 3, 16, 64}) check_loops(dev, n, grain, threads);
}

}  // namespace

TEST_CASE("threads: loops do every part once, in a team or without one, also of another size") {
    for (int threads : {1, 2, 3, 7}) {
        const Cpu dev(threads);
        check_sizes(dev, threads);
        with_team(dev, [&] { check_sizes(dev, threads); });
        for (int others : {1, 2, 5}) with_team(Cpu(others), [&] { check_sizes(dev, threads); });
    }
}

TEST_CASE("threads: more tasks than a job has chunks") { check_loops(Cpu(3), 3 * Team::kMostChunks + 1, 1, 3); }

TEST_CASE("threads: a thread that is late leaves its part to the others") {
    const Cpu dev(3);
    with_team(dev, [&] {
        std::atomic<size_t> done = 0;
        std::atomic<bool> all_others_came = true, late = false;
        const size_t n = 30;
        parallel_tasks(dev, n, [&](size_t, int thread) {
            if (thread == 2 && !late.exchange(true) && !comes([&] { return done == n - 1; })) all_others_came = false;
            done++;
        });
        CHECK(done == n);
        CHECK(all_others_came);
    });
}

TEST_CASE("threads: with_team returns what was computed, on the thread that called it") {
    const auto here = std::this_thread::get_id();
    const Cpu dev(2);
    CHECK(with_team(dev, [&] { return std::this_thread::get_id() == here ? std::string("here") : "elsewhere"; }) ==
          "here");
    CHECK(with_team(dev, [&] { return with_team(dev, [] { return 7; }); }) == 7);
    CHECK(Team::led_here() == nullptr);
}

TEST_CASE("threads: the error of the first part that fails is thrown, and the team goes on") {
    for (int threads : {1, 2, 3, 7}) {
        const Cpu dev(threads);
        const auto fails_from = [&](size_t first) {
            parallel_tasks(dev, 100, [&](size_t i, int) {
                if (i >= first) fail("part %zu", i);
            });
        };
        const auto check = [&] {
            for (size_t first : {0, 1, 50, 99}) {
                const std::string expected = "part " + std::to_string(first);
                CHECK_THROWS_WITH_AS(fails_from(first), expected.c_str(), Error);
            }
            check_loops(dev, 100, 1, threads);
        };
        check();
        with_team(dev, check);
        const auto alone = [&] { with_team(dev, [&] { fail("of the caller"); }); };
        CHECK_THROWS_WITH_AS(alone(), "of the caller", Error);
        const auto uncaught = [&] { with_team(dev, [&] { fails_from(3); }); };
        CHECK_THROWS_WITH_AS(uncaught(), "part 3", Error);
    }
}

TEST_CASE("threads: parts with higher numbers than one that failed do not begin") {
    const Cpu dev(2);
    std::atomic<size_t> begun = 0;
    const auto loop = [&] {
        parallel_tasks(dev, 1000, [&](size_t i, int) {
            begun++;
            if (i == 0) fail("the first");
            CHECK(comes([&] { return begun > 1; }));  // so that it does not begin before
            std::this_thread::sleep_for(1ms);
        });
    };
    CHECK_THROWS_AS(loop(), Error);
    CHECK(begun < 900);
}

TEST_CASE("threads: a loop in a loop runs on its thread") {
    const Cpu dev(3);
    for (bool team : {false, true}) {
        std::atomic<size_t> done = 0, elsewhere = 0;
        const auto loops = [&] {
            parallel_tasks(dev, 20, [&](size_t, int) {
                const auto here = std::this_thread::get_id();
                parallel_ranges(dev, 10, 1, [&](size_t i, size_t end, int) {
                    done += end - i;
                    elsewhere += std::this_thread::get_id() != here;
                });
                parallel_team(dev, size_t(dev.threads), [&](const TeamMember& m) {
                    m.barrier();
                    elsewhere += m.threads != 1;
                });
            });
        };
        team ? with_team(dev, loops) : loops();
        CHECK(done == 200);
        CHECK(elsewhere == 0);
    }
}

TEST_CASE("threads: a barrier shows what the others wrote") {
    for (int threads : {1, 2, 3, 7}) {
        const Cpu dev(threads);
        std::vector<int> values(size_t(threads), 0);
        std::atomic<size_t> wrong = 0;
        parallel_team(dev, size_t(dev.threads), [&](const TeamMember& m) {
            for (int step = 1; step <= 200; step++) {
                values[m.thread] = step;
                if (step % 50 == 0 && m.thread == 0) std::this_thread::sleep_for(1ms);  // the others go to sleep
                m.barrier();
                wrong += std::accumulate(values.begin(), values.end(), 0) != step * int(m.threads);
                m.barrier();
            }
        });
        CHECK(wrong == 0);
    }
}

TEST_CASE("threads: an error between barriers reaches the caller") {
    for (int threads : {1, 2, 3, 7})
        for (int who = 0; who < threads; who++) {
            const Cpu dev(threads);
            with_team(dev, [&] {
                const auto team = [&] {
                    parallel_team(dev, size_t(dev.threads), [&](const TeamMember& m) {
                        m.barrier();
                        if (int(m.thread) == who) fail("member %d", who);
                        for (int i = 0; i < 3; i++) m.barrier();
                    });
                };
                const std::string expected = "member " + std::to_string(who);
                CHECK_THROWS_WITH_AS(team(), expected.c_str(), Error);
                std::atomic<size_t> past = 0;
                parallel_team(dev, size_t(dev.threads), [&](const TeamMember& m) { m.barrier(), past++; });
                CHECK(past == size_t(threads));
            });
        }
}

TEST_CASE("threads: work comes while members are awake, about to sleep, and asleep") {
    const Cpu dev(3);
    with_team(dev, [&] {
        size_t done = 0;
        for (int i = 0; i < 2000; i++) {
            std::atomic<size_t> parts = 0;
            parallel_ranges(dev, 12, 1, [&](size_t begin, size_t end, int) { parts += end - begin; });
            done += parts;
            if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i / 10));
        }
        CHECK(done == 2000 * 12);
    });
}

TEST_CASE("threads: one that comes when its job is over takes nothing of the next one") {
    const Cpu dev(7);  // more than the cores of most machines
    with_team(dev, [&] {
        std::vector<std::thread::id> members(7);
        parallel_team(dev, size_t(dev.threads),
                      [&](const TeamMember& m) { members[m.thread] = std::this_thread::get_id(); });
        std::atomic<size_t> others = 0;
        for (int i = 0; i < 300; i++) {
            parallel_tasks(dev, 7, [](size_t, int) {});
            parallel_team(dev, size_t(dev.threads),
                          [&](const TeamMember& m) { others += members[m.thread] != std::this_thread::get_id(); });
        }
        CHECK(others == 0);
    });
}

TEST_CASE("threads: two teams at a time, each led by its own thread") {
    std::atomic<size_t> done = 0;
    const auto lead = [&] {
        const Cpu dev(2);
        with_team(dev, [&] {
            for (int i = 0; i < 200; i++)
                parallel_ranges(dev, 8, 1, [&](size_t begin, size_t end, int) { done += end - begin; });
        });
    };
    std::thread other(lead);
    lead();
    other.join();
    CHECK(done == 2 * 200 * 8);
}

TEST_CASE("threads: what a team did is counted") {
    const Cpu dev(2);
    with_team(dev, [&] {
        for (int i = 0; i < 5; i++) parallel_ranges(dev, 8, 1, [](size_t, size_t, int) {});
        parallel_team(dev, size_t(dev.threads), [](const TeamMember& m) { m.barrier(), m.barrier(); });
        std::this_thread::sleep_for(100ms);  // the other member has nothing to do, which is half of the team's time
        parallel_team(dev, size_t(dev.threads),
                      [](const TeamMember& m) { m.barrier(); });  // it comes, and has noted down how long it waited
        const Team::Counts counts = Team::led_here()->counts();
        CHECK(counts.jobs == 7);
        CHECK(counts.barriers == 3);
        CHECK(counts.waited > 0.2);
        CHECK(counts.waited <= 1);
    });
}

TEST_CASE("threads: how long the members of a job waited in it") {
    const Cpu dev(2);
    with_team(dev, [&] {
        const Team* team = Team::led_here();
        parallel_team(dev, 2, [](const TeamMember& m) {
            if (m.thread == 1) std::this_thread::sleep_for(20ms);  // the leader waits at the end
        });
        CHECK(team->waited_in_job() >= 15ms);
        parallel_team(dev, 2, [](const TeamMember& m) {
            if (m.thread == 0) std::this_thread::sleep_for(20ms);
            m.barrier();  // the other one waits here
        });
        CHECK(team->waited_in_job() >= 15ms);
        const auto start = std::chrono::steady_clock::now();
        parallel_team(dev, 2, [](const TeamMember& m) { m.barrier(); });
        CHECK(team->waited_in_job() <= 2 * (std::chrono::steady_clock::now() - start));
    });
}

TEST_CASE("threads: as many as were chosen, whatever OpenMP's variables say") {
    size_t size = 0;
    std::thread([&] {                  // its settings are its own
        omp_set_dynamic(1);            // OMP_DYNAMIC=true: fewer on a busy machine
        omp_set_max_active_levels(0);  // OMP_MAX_ACTIVE_LEVELS=0: one
        with_team(Cpu(7), [&] { size = Team::led_here()->size(); });
    })
        .join();
    CHECK(size == 7);
}

TEST_CASE("threads: steps take as many as are fast") {
    Machine m{StepThreads(16), 16};
    CHECK(m.fit.count() == 16);
    size_t others = 0;
    for (int i = 0; i < 1000; i++) m.step(), others += m.fit.count() != 16;
    CHECK(others == 0);  // quiet: no tries
    m.free_cores = 12;
    CHECK(m.steps_until(12) < 500);
    others = 0;
    size_t tries = 0;
    for (int i = 0; i < 20000; i++) m.step(), others += m.fit.count() != 12, tries += m.fit.count() == 13;
    CHECK(others < 400);  // less than 2% of the steps
    CHECK(tries > 0);
    CHECK(others == tries);
    m.free_cores = 16;
    CHECK(m.steps_until(16) < 5000);
    m.free_cores = 1;
    CHECK(m.steps_until(1) < 5000);
    m.free_cores = 16;
    CHECK(m.steps_until(16) < 5000);
    Machine one{StepThreads(1), 0};
    for (int i = 0; i < 1000; i++) one.step();
    CHECK(one.fit.count() == 1);
    // Threads that wait, and would be slower without one: they are left as they are, but for tries.
    StepThreads slow(2);
    others = 0;
    for (int i = 0; i < 10000; i++) {
        slow.count() == 2 ? slow.took(5e-3, 2e-3) : slow.took(8e-3, 0);
        others += slow.count() != 2;
    }
    CHECK(others > 0);
    CHECK(others < 200);
}

TEST_CASE("threads: steps that wait for one of them take a thread less, and do every part once") {
    const Cpu dev(3);
    with_team(dev, [&] {
        StepThreads fit(3);
        size_t least = 3, once = 0;
        for (int step = 0; step < 40; step++) {  // 2 ms each, and windows of 20 ms
            std::vector<int> done(30, 0);
            const size_t threads = fit.count();
            parallel_team(dev, fit, [&](const TeamMember& m) {
                if (m.threads != threads) return;
                if (m.thread == 2) std::this_thread::sleep_for(2ms);
                m.barrier();
                for (size_t i = m.share(30); i < m.share(30, 1); i++) done[i]++;
            });
            least = std::min(least, fit.count());
            once += std::count(done.begin(), done.end(), 1) == 30;
        }
        CHECK(least < 3);
        CHECK(once == 40);
    });
}
