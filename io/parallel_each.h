// A parallel loop whose tasks may fail: once all threads have stopped, the error of the failed task with the lowest number is
// thrown to the caller. Which one that is does not depend on the number of threads.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>

#include "runtime/cpu.h"

namespace tapernorm {

// Calls f(task, thread) for every task in [0, n). Once a task has failed, tasks with higher numbers no longer begin.
template <class F>
void parallel_each(int threads, size_t n, F&& f) {
    std::exception_ptr problem;
    std::atomic<size_t> first_failed = n;
    std::mutex mutex;
    parallel_tasks(Cpu(threads), n, [&](size_t task, int thread) {
        if (task > first_failed) return;
        try {
            f(task, thread);
        } catch (...) {
            const std::lock_guard lock(mutex);
            if (task < first_failed) first_failed = task, problem = std::current_exception();
        }
    });
    if (problem) std::rethrow_exception(problem);
}

}  // namespace tapernorm
