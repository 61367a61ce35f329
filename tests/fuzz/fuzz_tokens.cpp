// Token shards and texts, by bytes and by words, and the batches cut from them.
#include "io/tokens.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

template <class F>
static bool is_refused(F&& read) try {
    return read(), false;
} catch (const Error&) {
    return true;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = file_with(as_text(data, size));
    return expect_clean([&] {
        const TokenSource source = open_tokens(path);
        require(source.size() <= size, "more tokens than bytes");
        const auto [train, val] = source.split_tail(0.1);
        for (const bool shuffle : {true, false}) {
            Loader loader(train, 2, 3, {.shuffle = shuffle, .seed = size, .vocab_size = 50257});
            int inputs[6], targets[6];
            for (int i = 0; i < 4; i++) loader.next(inputs, targets);
        }
        require(source.files().size() == 1, "other files");
        if (!source.from_shards()) {
            require(tokens_from_text(std::string(as_text(data, size))).size() == source.size(),
                    "other tokens of a text");
            const Tokenize two_bytes = [](std::string_view text) { return std::vector<uint16_t>(text.size() / 2, 7); };
            require(open_tokens(path, two_bytes).size() == source.size() / 2, "other tokens");
            if (source.size() > 4096) source.fingerprint(0);  // of samples, as that of a large corpus
            const std::string shard = path + ".shard";
            write_token_shard(shard, std::vector<uint16_t>{7});
            const bool refused = is_refused([&] { open_tokens(path + "*"); });
            unlink(shard.c_str());
            require(refused, "text and shards are one corpus");
            return;
        }
        std::vector<int> ids(source.size());
        source.read(0, ids.size(), ids.data());
        const std::string again = path + ".again";
        write_token_shard(again, std::vector<uint16_t>(ids.begin(), ids.end()));
        require(open_tokens(again).fingerprint() == source.fingerprint(), "other tokens come back");
        unlink(again.c_str());
    });
}

}  // namespace tapernorm
