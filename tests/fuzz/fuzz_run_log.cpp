// A log that a resumed run goes on with: what stays are whole lines of it, and a line can be added.
#include <fstream>
#include <iterator>

#include "tests/fuzz/fuzz.h"
#include "train/run_log.h"

namespace tapernorm::train {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    const std::string path = file_with(input);
    return expect_clean([&] {
        run_of_log(path);
        RunLog(path, 5).write(6, {{"loss", 1.5}});
        std::ifstream file(path, std::ios::binary);
        const std::string text(std::istreambuf_iterator<char>(file), {});
        const std::string last = "{\"step\": 6, \"loss\": 1.5}\n";
        require(text.ends_with(last), "the new line is not the last");
        size_t from = 0;  // every line that stayed is in the input, in its order
        for (size_t begin = 0, end; begin + last.size() < text.size(); begin = end + 1) {
            end = text.find('\n', begin);
            from = input.find(std::string_view(text).substr(begin, end + 1 - begin), from);
            require(from != std::string_view::npos, "a line that was not there");
        }
    });
}

}  // namespace tapernorm::train
