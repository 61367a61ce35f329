// How a program ends: its exit status, and the error it prints if it fails.
#pragma once
#include <cstdio>
#include <exception>

namespace tapernorm {

// What main returns: the result of body, or 1 if body throws, after printing why.
template <class Body>
int exit_status(const char* program, Body&& body) {
    try {
        return body();
    } catch (const std::exception& error) {
        std::fflush(stdout);
        std::fprintf(stderr, "%s: error: %s\n", program, error.what());
        return 1;
    }
}

}  // namespace tapernorm
