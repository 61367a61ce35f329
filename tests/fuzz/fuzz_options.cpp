// A command line, one word per line; a state's metadata has one, too. What is taken is printed as the settings are.
#define TAPERNORM_NO_MAIN
#include <sstream>

#include "tests/fuzz/fuzz.h"
#include "train_gpt.cu"

namespace tapernorm::train {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::vector<std::string> words = {"train_gpt"};
    std::istringstream lines{std::string(as_text(data, size))};
    for (std::string line; std::getline(lines, line);) words.push_back(line);
    std::vector<const char*> pointers;
    for (const std::string& word : words) pointers.push_back(word.c_str());
    return expect_clean([&] {
        Settings s;
        Options options = make_options(s);
        if (!options.parse(int(pointers.size()), pointers.data())) return;
        require(s.gate_end.resolve(s.steps) <= std::max(s.steps, size_t(s.gate_end.value)),
                "a part is more than the whole");
        settle(s, options, options, nullptr);
        require(s.total_batch % (s.batch * s.T) == 0, "an update is no multiple of its micro-batches");
        require(!make_options(s).table().empty() && !make_options(s).common().empty(), "no settings are printed");
    });
}

}  // namespace tapernorm::train
