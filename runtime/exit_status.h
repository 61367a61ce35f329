// How a program ends: its exit status, and the error it prints if it fails.
#pragma once
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

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

// What main returns: the result of body, or 1 if body throws, after printing why.
template <class Body>
int exit_status(const char* program, Body&& body) {
    watch_memory(program);
    try {
        return body();
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
