// The signals that ask a run to end; it saves a checkpoint first, and its exit status is 128 + the signal. They are: Ctrl-C;
// SIGTERM; SIGHUP, by a terminal that is closed; SIGUSR1, SIGUSR2 and SIGXCPU, by batch systems, ahead of the end of a job's
// time (sbatch --signal).
#pragma once
#include <signal.h>

namespace tapernorm::train {

inline volatile sig_atomic_t stop_signal = 0;  // the one that came; 0: none

// Calls `handler` for them. What this process was told to ignore by who started it (nohup, the & of a script) stays ignored.
// once: a second SIGINT or SIGTERM ends the program at once. The others come again by themselves: SIGXCPU every second,
// SIGHUP from the shell and from the system.
// A blocked write is broken off (no SA_RESTART): a reader of our output that sleeps must not keep us from saving.
inline void on_stop_signals(void (*handler)(int), bool once) {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU}) {
        struct sigaction action{};
        sigaction(signal, nullptr, &action);
        if (action.sa_handler == SIG_IGN) continue;
        action = {};
        action.sa_handler = handler;
        if (once && (signal == SIGINT || signal == SIGTERM)) action.sa_flags = int(SA_RESETHAND);
        sigaction(signal, &action, nullptr);
    }
}

// From here on they set stop_signal.
inline void watch_stop_signals() {
    on_stop_signals([](int signal) { stop_signal = signal; }, true);
}

}  // namespace tapernorm::train
