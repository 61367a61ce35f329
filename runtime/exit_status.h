// How a program begins and ends: its standard streams, its exit status, and the error it prints if it fails.
//
// The exit status: 0: all that was asked for is done; 1: an error, which one line on the standard error says; 128 + N: signal N
// ended it before. (train_gpt saves a checkpoint, and says what is missing: see train/stop.h.)
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <system_error>

#include "runtime/error.h"
#include "runtime/floating_point.h"
#include "runtime/printable.h"

namespace tapernorm {

inline constexpr const char* kOutOfMemory =
    "out of memory; use a smaller model, batch, context or input, or close other programs";

// The line for what was thrown. An Error has it; what the standard library throws says neither where nor what to do.
inline std::string error_text(const std::exception& error) {
    if (dynamic_cast<const Error*>(&error)) return printable(error.what());
    if (dynamic_cast<const std::bad_alloc*>(&error)) return kOutOfMemory;
    if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error))
        return strprintf("cannot use %s: %s; check the path", in_quotes(file->path1().string()).c_str(),
                         file->code().message().c_str());
    if (const auto* system = dynamic_cast<const std::system_error*>(&error))
        return strprintf(
            "the system gives no thread or memory: %s; use fewer --threads, or raise its limits (ulimit -a)",
            system->code().message().c_str());
    return strprintf("an error inside of this program, which is a bug: %s", printable(error.what()).c_str());
}

// A terminal on standard output shows a line that has not ended: what is said next begins on another.
inline bool line_is_open = false;

inline void print_error(const char* program, const char* text) {
    if (line_is_open) std::fputc('\n', stdout);
    std::fflush(stdout);
    std::fprintf(stderr, "%s: error: %s\n", program, text);
}

// Memory may also end where no exception may leave: in nlohmann's destructor, which allocates, in a noexcept function of the
// standard library (GCC 12 calls std::terminate there without a current exception), in what is initialized before main.
inline std::atomic<bool> memory_ended = false;

[[noreturn]] inline void end_of_program() {
    bool out_of_memory = memory_ended && std::uncaught_exceptions() > 0;
    try {
        if (std::current_exception()) throw;
    } catch (const std::bad_alloc&) {
        out_of_memory = true;
    } catch (...) {  // a bug, to be seen as one
        out_of_memory = false;
    }
    if (!out_of_memory) std::abort();
    print_error(program_invocation_short_name, kOutOfMemory);
    _exit(1);
}

[[gnu::constructor(101)]] inline void watch_memory() {  // 101: before all that C++ initializes
    std::set_terminate(end_of_program);
    std::set_new_handler([] {
        memory_ended = true;
        throw std::bad_alloc();
    });
}

// For main, before anything else. Standard streams that were closed lead to /dev/null: the next file to be opened would get
// the number of one, and all that is printed with it. What is printed to a closed standard output is lost, and so its writes
// still fail. A limit of file sizes (ulimit -f) becomes an error of the write. Denormal numbers are zero.
inline void start_program() {
    flush_denormals();
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) != -1 || open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_RDWR) == fd) continue;
        std::fprintf(stderr,
                     "%s: error: a standard stream is closed, and /dev/null cannot be opened in its place: %s\n",
                     program_invocation_short_name, std::strerror(errno));
        std::_Exit(1);
    }
    signal(SIGXFSZ, SIG_IGN);
}

// Why what was printed so far could not be written; null where it was. (A reader that has gone ends most programs by SIGPIPE.)
inline const char* output_problem() {
    errno = 0;
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return nullptr;
    if (errno == EBADF) return "it is closed";
    return errno ? std::strerror(errno) : "it is closed, or its disk is full";
}

inline void flush_output() {
    if (const char* problem = output_problem()) fail("cannot write to the standard output: %s", problem);
}

// What main returns: the result of body, or 1 if body throws, after printing why. Output that cannot be written is an error.
template <class Body>
int exit_status(const char* program, Body&& body) {
    try {
        const int status = body();
        flush_output();
        return status;
    } catch (const std::bad_alloc&) {
        print_error(program, kOutOfMemory);
        return 1;
    } catch (const std::exception& error) {
        print_error(program, error_text(error).c_str());
        return 1;
    }
}

}  // namespace tapernorm
