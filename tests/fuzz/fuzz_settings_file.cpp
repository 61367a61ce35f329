// A file of settings for --config. What is taken and written comes back the same.
#include "io/options.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    struct Values {
        std::string train = "corpus.txt", gate = "taper";
        size_t batch = 12;
        int64_t sample = -1;
        double lr = 3e-4;
        bool shuffle = true;
        Length warmup = percent_of_run(2);
    };
    const auto table = [](Values* v) {
        Options options("train_gpt", "");
        options.add({.long_name = "--train", .to = &v->train, .help = ""});
        options.add({.long_name = "--gate-mode", .to = &v->gate, .choices = {"norm", "taper"}, .help = ""});
        options.add({.long_name = "--batch", .to = &v->batch, .range = {.low = 1}, .help = ""});
        options.add({.long_name = "--seed", .to = &v->sample, .help = ""});
        options.add({.long_name = "--lr", .to = &v->lr, .range = {.low = 0}, .help = ""});
        options.add({.long_name = "--no-shuffle", .to = &v->shuffle, .help = ""});
        options.add({.long_name = "--warmup", .to = &v->warmup, .help = ""});
        return options;
    };
    const auto read = [&](const std::string& path, Values* values) {
        const char* const line[] = {"train_gpt", "--config", path.c_str()};
        table(values).parse(3, line);
        return table(values).config();
    };
    Values first, second;
    return expect_clean([&] {
        const std::string written = read(file_with(as_text(data, size)), &first);
        require(read(file_with(written), &second) == written, "other settings");
    });
}

}  // namespace tapernorm
