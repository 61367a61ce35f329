// vocab.json, merges.txt and a text to encode, cut at bytes 0xff; or, where the input begins with the magic number of
// llm.c's gpt2_tokenizer.bin, that file.
#include "io/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

static void check_roundtrips(const Tokenizer& tokenizer, std::string_view text) {
    for (const bool special : {false, true}) {
        const std::vector<uint16_t> ids = tokenizer.encode(text, special);
        for (uint16_t id : ids) require(id < tokenizer.vocab_size(), "an id beyond the vocabulary");
        require(tokenizer.decode(ids) == text, "decode(encode(text)) is another text");
    }
    const Tokenizer again = Tokenizer::from_metadata(tokenizer.metadata(), "/nonexistent/model.bin");
    require(again.name() == tokenizer.name(), "another tokenizer comes back from the metadata");
    require(again.encode(text) == tokenizer.encode(text), "other ids by the tokenizer from the metadata");
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    return expect_clean([&] {
        if (input.starts_with(std::string_view("\xc8\xd7\x34\x01", 4))) {  // 20240328
            check_roundtrips(Tokenizer::from_path(file_with(input, "tokenizer.bin")), "The cat sat.");
        } else {
            const auto part = parts(input, 3);
            check_roundtrips(Tokenizer::from_text(part[0], part[1], "the input"), part[2]);
        }
    });
}

}  // namespace tapernorm
