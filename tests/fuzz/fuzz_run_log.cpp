// A log that a resumed run goes on with: what stays are whole lines of it, and a line can be added.
#include <fstream>
#include <iterator>

#include "io/atomic_file.h"
#include "tests/fuzz/fuzz.h"
#include "train/run_log.h"

namespace tapernorm::train {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    const std::string path = file_with(input), old = numbered(path, 1);
    static FILE* silent = std::fopen("/dev/null", "w");
    unlink(old.c_str());
    return expect_clean([&] {
        run_of_log(path);
        std::swap(stderr, silent);  // its warnings; a sanitizer's reports do not go through it
        RunLog(path, 5).write(6, {{"loss", 1.5}});
        std::swap(stderr, silent);
        std::ifstream file(path, std::ios::binary);
        const std::string text(std::istreambuf_iterator<char>(file), {});
        std::ifstream as_it_was(old, std::ios::binary);
        if (as_it_was)
            require(input == std::string(std::istreambuf_iterator<char>(as_it_was), {}), "no copy of the log");
        const std::string last = "{\"step\": 6, \"loss\": 1.5}\n";
        require(text.ends_with(last), "the new line is not the last");
        size_t from = 0;  // every line that stayed is in the input, in its order
        for (size_t begin = 0, end; begin + last.size() < text.size(); begin = end + 1) {
            end = text.find('\n', begin);
            from = input.find(std::string_view(text).substr(begin, end - begin), from);  // the last may have had no end
            require(from != std::string_view::npos, "a line that was not there");
        }
    });
}

}  // namespace tapernorm::train
