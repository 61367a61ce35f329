// vocab.json, merges.txt and a text to encode, cut at bytes 0xff. A fourth part says where they are: two files in a folder (f),
// without the second (o), beside a model (b) or beside shards that should be GPT-2's (bg), in a model (m), under the name that
// the text is (n); or the first is Hugging Face's tokenizer.json (j). An input that begins with the magic number of llm.c's
// gpt2_tokenizer.bin is that file.
#include <filesystem>

#include "io/output_folder.h"
#include "io/tokenizer.h"
#include "io/words.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

static void check_roundtrips(const Tokenizer& tokenizer, std::string_view text) {
    for (const bool special : {false, true}) {
        const std::vector<uint16_t> ids = tokenizer.encode(text, special);
        for (uint16_t id : ids) require(id < tokenizer.vocab_size(), "an id beyond the vocabulary");
        require(tokenizer.decode(ids) == text, "decode(encode(text)) is another text");
        std::vector<uint16_t> cut;
        for (size_t at = 0, end; at < text.size(); at = end) {
            end = word_safe_cut(text, at + 16);
            const std::vector<uint16_t> part = tokenizer.encode(text.substr(at, end - at), special);
            cut.insert(cut.end(), part.begin(), part.end());
        }
        require(cut == ids, "other ids of a text that was cut");
    }
    try {
        tokenizer.token(tokenizer.vocab_size());
        std::abort();
    } catch (const Error&) {
    }
    require(tokenizer.end_of_text() < tokenizer.vocab_size(), "<|endoftext|> is beyond the vocabulary");
    const Tokenizer again = Tokenizer::from_metadata(tokenizer.metadata(), "/nonexistent/model.bin");
    require(again.name() == tokenizer.name(), "another tokenizer comes back from the metadata");
    require(again.encode(text) == tokenizer.encode(text), "other ids by the tokenizer from the metadata");
}

static Tokenizer read_tokenizer(const std::vector<std::string_view>& part) {
    namespace fs = std::filesystem;
    const auto is = [&](char letter) { return part[3].find(letter) != part[3].npos; };
    std::map<std::string, std::string> metadata;
    if (is('n')) metadata["tokenizer"] = std::string(part[2]);
    if (is('m')) {
        metadata["tokenizer.vocab"] = std::string(part[0]), metadata["tokenizer.merges"] = std::string(part[1]);
        return Tokenizer::from_metadata(metadata, "/nonexistent/model.bin");
    }
    if (!is('f') && !is('b') && !is('j')) return Tokenizer::from_text(part[0], part[1], "the input");
    const fs::path first = file_with(part[0], is('j') ? "tokenizer.json" : "vocab.json"), folder = first.parent_path();
    if (!is('j') && !is('o')) file_with(part[1], "merges.txt");
    struct Clean {
        fs::path folder;
        ~Clean() {
            for (const auto& entry : fs::directory_iterator(folder)) fs::remove(entry.path());
        }
    } clean{folder};
    if (is('b')) {
        const std::string model = folder / "model.bin";
        const Tokenizer tokenizer = Tokenizer::from_metadata(metadata, model);
        check_shards("--train", {{model}}, tokenizer.name(), 0);
        if (is('g')) check_shards("--train", {{model}}, "gpt2", 0);
        if (is('u')) check_shards("--train", {{model}}, "unknown", 1000);
        return tokenizer;
    }
    const Tokenizer tokenizer = Tokenizer::from_path(folder.string());
    OutputFolder saved(folder / "saved");
    tokenizer.save(saved);
    require(Tokenizer::from_path(saved.path()).name() == tokenizer.name(), "another tokenizer is saved");
    return tokenizer;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    return expect_clean([&] {
        if (input.starts_with(std::string_view("\xc8\xd7\x34\x01", 4))) {  // 20240328
            check_roundtrips(Tokenizer::from_path(file_with(input, "tokenizer.bin")), "The cat sat.");
        } else {
            const auto part = parts(input, 4);
            check_roundtrips(read_tokenizer({part.begin(), part.end()}), part[2]);
        }
    });
}

}  // namespace tapernorm
