// Writes the built-in corpus (data/stories.h) to a text file: to read it, or to train on more or less of it.
//   make_stories OUT.txt [--bytes N] [--seed S]
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "data/stories.h"
#include "io/options.h"
#include "runtime/error.h"
#include "runtime/exit_status.h"

namespace tapernorm::prepare {

// Not through a temporary file, so that OUT may be /dev/stdout.
static void write_text(const std::string& path, const std::string& text) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file) fail("cannot create %s: %s; choose another file", path.c_str(), std::strerror(errno));
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = std::fclose(file) == 0;
    if (!written || !closed) fail("cannot write %zu bytes to %s: %s", text.size(), path.c_str(), std::strerror(errno));
}

static int run_make_stories(int argc, char** argv) {
    std::string path;
    size_t bytes = kStoryBytes, seed = kStorySeed;
    Options options("make_stories", "Writes the built-in corpus of tiny stories to a text file.");
    // clang-format off
    options.add({.long_name = "out", .to = &path, .metavar = "OUT", .help = "text file to write"});
    options.add({.long_name = "--bytes", .to = &bytes, .range = {.low = 1, .high = 1e10},
                 .help = "stop after the story that reaches this many bytes"});
    options.add({.long_name = "--seed", .to = &seed, .help = "seed of the random numbers; each seed tells other stories"});
    // clang-format on
    return exit_status("make_stories", [&] {
        if (!options.parse(argc, argv)) return 0;
        const std::string text = story_corpus(bytes, seed);
        write_text(path, text);
        std::printf("%s: %zu bytes\n", printable(path).c_str(), text.size());
        return 0;
    });
}

}  // namespace tapernorm::prepare

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::start_program();
    return tapernorm::prepare::run_make_stories(argc, argv);
}
#endif
