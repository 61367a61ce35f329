// What tests of the stand-in's reports share.
#pragma once
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>
#include <initializer_list>
#include <string>

#include "emu.h"
#include "runtime/error.h"

namespace tapernorm {

// AddressSanitizer and ThreadSanitizer end the process at their first report; those kernels that they would
// catch are kept from them.
#define UNCHECKED __attribute__((no_sanitize("address"), no_sanitize("thread")))

// Settings of one test: those that its expected reports are for, whatever the environment says.
struct Quiet {
    emu::Settings saved = emu::settings();
    Quiet() {
        emu::take_diagnosis();
        emu::settings() = {};
        emu::settings().quiet = true;
    }
    ~Quiet() { emu::settings() = saved; }
};

// Runs f, which must throw an Error with all the parts.
template <class F>
void check_report(F&& f, std::initializer_list<const char*> parts) {
    std::string message = "(no error)";
    try {
        f();
    } catch (const Error& e) {
        message = e.what();
    }
    for (const char* part : parts) CHECK_MESSAGE(message.find(part) != std::string::npos, message, " / ", part);
    CHECK(message.find('\n') == std::string::npos);
}

// Runs one hidden test case of this program in another process; returns what it printed and its exit status.
inline std::string run_again(const char* test_case, const char* environment, int& status) {
    char self[4096];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    REQUIRE(length > 0);
    const std::string command =
        strprintf("%s '%.*s' --no-skip -tc='%s' 2>&1", environment, int(length), self, test_case);
    std::FILE* pipe = popen(command.c_str(), "r");
    REQUIRE(pipe);
    std::string output;
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.append(buffer, n);
    status = pclose(pipe);
    return output;
}

// Runs a hidden test case again; a single part says that nothing may be found.
inline void check_child(const char* name, std::initializer_list<const char*> parts) {
    int status = 0;
    const std::string output = run_again(name, "", status);
    for (const char* part : parts) CHECK_MESSAGE(output.find(part) != std::string::npos, output, " / ", part);
    CHECK((status == 0) == (parts.size() == 1));
}

}  // namespace tapernorm
