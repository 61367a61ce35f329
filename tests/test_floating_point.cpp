#include "runtime/floating_point.h"

#include <doctest/doctest.h>

#include <future>
#include <limits>
#include <thread>

namespace tapernorm {

namespace {

// Whether a denormal number is zero as an operand and as a result, in this thread.
template <class Real>
bool flushed() {
    volatile Real least = std::numeric_limits<Real>::denorm_min(), smallest = std::numeric_limits<Real>::min(),
                  half = 0.5;
    const volatile Real read = least / smallest, written = smallest * half;
    return read == 0 && written == 0;
}

bool all_flushed() { return flushed<float>() && flushed<double>(); }

}  // namespace

#if defined(__x86_64__) || defined(__aarch64__)
TEST_CASE("denormal numbers are zero in every thread, whoever makes it") {
    CHECK(all_flushed());
    bool in_thread = false;
    std::thread([&] { in_thread = all_flushed(); }).join();
    CHECK(in_thread);
    CHECK(std::async(std::launch::async, all_flushed).get());
    int in_team = 0, team = 0;
#pragma omp parallel num_threads(4) reduction(+ : in_team, team)
    in_team += all_flushed(), team++;
    CHECK(in_team == team);
}
#endif

#ifdef __x86_64__
TEST_CASE("denormal numbers: a thread that does not flush them is noticed") {
    bool before = true, after = false;
    std::thread([&] {
        _mm_setcsr(_mm_getcsr() & ~0x8040u);
        before = flushed<float>() || flushed<double>();
        flush_denormals();
        after = all_flushed();
    }).join();
    CHECK(!before);
    CHECK(after);
}
#endif

}  // namespace tapernorm
