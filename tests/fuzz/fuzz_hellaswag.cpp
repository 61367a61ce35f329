// HellaSwag's items, JSON lines or llm.c's file: what is taken fits the model that is to score it.
#include "inference/hellaswag.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = file_with(as_text(data, size));
    constexpr size_t kVocabulary = 300, kContext = 32;
    return expect_clean([&] {
        HellaSwag scores;
        for (const Choice& c : read_hellaswag(path, Tokenizer(), kVocabulary, kContext)) {
            scores.add(c, std::vector<double>(c.endings.size(), -1));
            require(c.label < c.endings.size() && !c.context.empty(), "no right ending, or no context");
            for (const std::vector<int>& ending : c.endings) {
                require(c.context.size() + ending.size() <= kContext, "longer than the context");
                for (const int id : ending) require(id >= 0 && size_t(id) < kVocabulary, "no id of the vocabulary");
            }
        }
        scores.text();
        read_hellaswag(path, {}, kVocabulary, kContext);  // llm.c's needs no tokenizer
    });
}

}  // namespace tapernorm
