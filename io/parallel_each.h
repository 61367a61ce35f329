// A parallel loop whose tasks may fail: the first error is thrown to the caller once all threads have
// stopped.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>

#include "runtime/cpu.h"

// Calls f(task, thread) for every task in [0, n); after an error the tasks that have not begun are left out.
template <class F>
void parallel_each(int threads, size_t n, F&& f) {
    std::exception_ptr problem;
    std::atomic<bool> failed = false;
    parallel_tasks(Cpu(threads), n, [&](size_t task, int thread) {
        if (failed) return;
        try {
            f(task, thread);
        } catch (...) {
            if (!failed.exchange(true)) problem = std::current_exception();
        }
    });
    if (problem) std::rethrow_exception(problem);
}
