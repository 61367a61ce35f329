// How a program begins and ends: its standard streams, its exit status, and the error it prints if it fails.
//
// The exit status: 0: all that was asked for is done; 1: an error, which one line on the standard error says; 128 + N: signal N
// ended it before. (train_gpt saves a checkpoint, and says what is missing: see train/stop.h.)
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include "runtime/error.h"
#include "runtime/printable.h"

namespace tapernorm {

inline const char* running_program = "";
inline constexpr const char* kOutOfMemory =
    "out of memory; use a smaller model, batch or context, or close other programs";

inline void print_out_of_memory() {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", running_program, kOutOfMemory);
}

// Memory may also end where no exception may leave, such as in nlohmann's destructor, which allocates.
[[noreturn]] inline void end_of_program() {
    try {
        if (std::current_exception()) throw;
    } catch (const std::bad_alloc&) {
        print_out_of_memory();
        _exit(1);
    } catch (...) {  // a bug, to be seen as one
    }
    std::abort();
}

inline void watch_memory(const char* program) {
    running_program = program;
    std::set_terminate(end_of_program);
}

// For main, before anything else. Standard streams that were closed lead to /dev/null: the next file to be opened would get
// the number of one, and all that is printed with it. A limit of file sizes (ulimit -f) becomes an error of the write.
inline void start_program() {
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO) {
    }
    if (fd < 0) std::_Exit(1);
    close(fd);
    signal(SIGXFSZ, SIG_IGN);
}

// Why what was printed so far could not be written; null where it was. (A reader that has gone ends most programs by SIGPIPE.)
inline const char* output_problem() {
    errno = 0;
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return nullptr;
    return errno ? std::strerror(errno) : "it is closed, or its disk is full";
}

inline void flush_output() {
    if (const char* problem = output_problem()) fail("cannot write to the standard output: %s", problem);
}

// What main returns: the result of body, or 1 if body throws, after printing why. Output that cannot be written is an error.
template <class Body>
int exit_status(const char* program, Body&& body) {
    watch_memory(program);
    try {
        const int status = body();
        flush_output();
        return status;
    } catch (const std::bad_alloc&) {
        print_out_of_memory();
        return 1;
    } catch (const std::exception& error) {
        std::fflush(stdout);
        std::fprintf(stderr, "%s: error: %s\n", program, printable(error.what()).c_str());  // not all are Errors
        return 1;
    }
}

}  // namespace tapernorm
