// Writes the built-in corpus (data/stories.h) to a text file: to read it, or to train on more or less of it.
//   make_stories OUT.txt [--bytes N] [--seed S]
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "data/stories.h"
#include "runtime/error.h"

namespace tapernorm::prepare {

static void write_text(const std::string& path, const std::string& text) {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (!file) fail("cannot create %s: %s; choose another file", path.c_str(), std::strerror(errno));
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = std::fclose(file) == 0;
    if (!written || !closed) fail("cannot write %zu bytes to %s: %s", text.size(), path.c_str(), std::strerror(errno));
}

static int run_make_stories(int argc, char** argv) {
    std::string path;
    size_t bytes = kStoryBytes;
    uint64_t seed = kStorySeed;
    CLI::App app("Writes the built-in corpus of tiny stories to a text file.", "make_stories");
    app.add_option("out", path, "text file to write")->required();
    app.add_option("--bytes", bytes, "stop after the story that reaches this many bytes")
        ->capture_default_str()
        ->check(CLI::Range(1.0, 1e10));
    app.add_option("--seed", seed, "seed of the random numbers: each seed tells other stories")->capture_default_str();
    try {
        app.parse(argc, argv);
        const std::string text = story_corpus(bytes, seed);
        write_text(path, text);
        std::printf("%s: %zu bytes\n", path.c_str(), text.size());
    } catch (const CLI::CallForHelp& help) {
        return app.exit(help);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "make_stories: error: %s\n", error.what());
        return 1;
    }
    return 0;
}

}  // namespace tapernorm::prepare

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) { return tapernorm::prepare::run_make_stories(argc, argv); }
#endif
