// The signals that ask a run to end; it saves a checkpoint first, and its exit status is 128 + the signal. They are: Ctrl-C;
// SIGTERM; SIGHUP, by a terminal that is closed; SIGUSR1, SIGUSR2 and SIGXCPU, by batch systems, ahead of the end of a job's
// time (sbatch --signal).
#pragma once
#include <signal.h>
#include <time.h>

#include <atomic>
#include <cstdint>

namespace tapernorm::train {

inline volatile sig_atomic_t stop_signal = 0;  // the one that came; 0: none

// Calls `handler` for them. What this process was told to ignore by who started it (nohup, the & of a script) stays ignored.
// A blocked write is broken off (no SA_RESTART): a reader of our output that sleeps must not keep us from saving.
inline void on_stop_signals(void (*handler)(int)) {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU}) {
        struct sigaction action{};
        sigaction(signal, nullptr, &action);
        if (action.sa_handler == SIG_IGN) continue;
        action = {};
        action.sa_handler = handler;
        sigaction(signal, &action, nullptr);
    }
}

// From here on they set stop_signal. A second SIGINT or SIGTERM ends the program at once, if it comes a second after the first:
// sooner it is no person's second thought but the same wish by another way, as timeout sends it to its child and to the child's
// group, and mpirun passes on what the terminal has sent to all. The others come again by themselves at any time: SIGXCPU every
// second, SIGHUP from the shell and from the system.
inline void watch_stop_signals() {
    constexpr int64_t kSame = 1'000'000'000;  // ns
    static std::atomic<int64_t> since[2];     // when SIGINT, SIGTERM came first; 0: not yet
    static_assert(std::atomic<int64_t>::is_always_lock_free, "a signal handler may use nothing else");
    since[0] = since[1] = 0;
    on_stop_signals([](int signal) {
        stop_signal = signal;
        if (signal != SIGINT && signal != SIGTERM) return;
        timespec now{};
        clock_gettime(CLOCK_MONOTONIC, &now);
        const int64_t time = int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
        int64_t first = 0;
        if (since[signal == SIGTERM].compare_exchange_strong(first, time) || time - first < kSame) return;
        ::signal(signal, SIG_DFL), raise(signal);  // when this function returns
    });
}

}  // namespace tapernorm::train
