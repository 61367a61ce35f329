#pragma once
#include <cstdio>
#include <exception>

namespace tapernorm {

// What main returns: body's result; or, if it throws, 1, after saying why.
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
