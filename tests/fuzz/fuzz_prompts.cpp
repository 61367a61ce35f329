// Prompts: a list of ids, a text and a file of lines, cut at bytes 0xff.
#include "inference/prompts.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto part = parts(as_text(data, size), 3);
    ModelInfo info;
    info.config.V = 200, info.config.T = 16;  // fewer ids than bytes: some do not fit
    const std::string model = "model.bin", lines = file_with(part[2]);
    const std::optional<Tokenizer> tokenizer = Tokenizer();
    const PromptReader reader(model, info, tokenizer);
    const auto check = [&](auto&& read) {
        expect_clean([&] {
            for (const Prompt& p : read()) {
                require(!p.tokens.empty() && p.tokens.size() <= info.config.T, "no prompt for this model");
                for (const int id : p.tokens) require(id >= 0 && size_t(id) < info.config.V, "no id of the vocabulary");
            }
        });
    };
    check([&] { return std::vector{reader.from_ids(std::string(part[0]))}; });
    check([&] { return std::vector{reader.from_text(std::string(part[1]))}; });
    check([&] { return std::vector{reader.from_opening(std::string(part[1]))}; });
    check([&] { return reader.from_lines(lines); });
    return 0;
}

}  // namespace tapernorm
