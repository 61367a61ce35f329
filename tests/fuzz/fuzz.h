// What the fuzz targets share. Each is one reader of the project, fed with libFuzzer's bytes: it may refuse them with an
// Error of one clean line, or take them; anything else (a crash, a sanitizer's report, an allocation beyond the limits in the
// Makefile, another exception) ends the run. `make fuzz` builds and runs them.
#pragma once
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "io/checksum.h"
#include "runtime/error.h"
#include "runtime/floating_point.h"
#include "tests/temporary_folder.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// libFuzzer's main calls this first.
extern "C" __attribute__((used)) inline int LLVMFuzzerInitialize(int*, char***) { return flush_denormals(), 0; }

inline std::string_view as_text(const uint8_t* data, size_t size) {
    return {reinterpret_cast<const char*>(data), size};
}

// A file of the fuzzer's bytes, in a folder of this process.
inline std::string file_with(std::string_view bytes, const std::string& name = "input") {
    static const TemporaryFolder folder;
    const std::string path = folder / name;
    FILE* file = std::fopen(path.c_str(), "wb");
    if (!file || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::abort();
    std::fclose(file);
    return path;
}

// The parts of an input: cut at the first bytes 0xff, which no UTF-8 text holds; `n` parts, the last with the rest.
inline std::vector<std::string_view> parts(std::string_view input, size_t n) {
    std::vector<std::string_view> list;
    while (list.size() + 1 < n) {
        const size_t end = std::min(input.find('\xff'), input.size());
        list.push_back(input.substr(0, end));
        input.remove_prefix(std::min(end + 1, input.size()));
    }
    list.push_back(input);
    return list;
}

// A safetensors file: an input that begins with '{' lacks the 8 bytes of the header's length; its header ends before the
// first 0xff. So that the fuzzer need not guess a number for every change of the header.
inline std::string safetensors_bytes(std::string_view input) {
    if (!input.starts_with('{')) return std::string(input);
    const auto part = parts(input, 2);
    const uint64_t length = part[0].size();
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    return bytes.append(part[0]).append(part[1]);
}

// With the right checksum in the place of its own, which no fuzzer guesses.
inline std::string with_checksum(std::string bytes) {
    const std::string key = "\"checksum\":\"";
    const size_t place = bytes.find(key) + key.size(), digits = 16;
    if (place < key.size() || place + digits > bytes.size()) return bytes;
    bytes.replace(place, digits, digits, '0');
    Checksum sum;
    sum.add(bytes.data(), bytes.size());
    return bytes.replace(place, digits, strprintf("%016llx", (unsigned long long)sum.value()));
}

inline size_t inputs_read = 0, inputs_taken = 0;  // by a reader

// Runs a reader. Its error message must be one line without control characters, whatever the file held.
template <class F>
int expect_clean(F&& read) {
    inputs_read++;
    try {
        read();
        inputs_taken++;
    } catch (const Error& e) {
        if (printable(e.what()) != e.what()) {
            std::fprintf(stderr, "control character in the message: %s\n", e.what());
            std::abort();
        }
    }
    return 0;
}

inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

}  // namespace tapernorm
