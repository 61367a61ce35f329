// Writes the built-in corpus (data/stories.h) to a text file: to read it, or to train on more or less of it.
//   make_stories OUT.txt [--bytes N] [--seed S]
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "data/stories.h"
#include "io/files.h"
#include "io/options.h"
#include "runtime/error.h"
#include "runtime/exit_status.h"

namespace tapernorm::prepare {

// Whether a file has nothing but these stories, more or fewer of them: then it may be replaced.
static bool is_story_file(const std::string& path, const std::string& text, size_t seed) {
    const MappedFile file(path, FileUse::own);
    const std::string_view old(reinterpret_cast<const char*>(file.data()), file.size());
    if (old.size() <= text.size()) return text.starts_with(old);
    return old.starts_with(text) && story_corpus(old.size(), seed).starts_with(old);
}

// Whether `file` is the standard output, as OUT may say: with any end of it, such as >> all.txt.
static bool is_standard_output(const struct stat& file) {
    struct stat out;
    return fstat(STDOUT_FILENO, &out) == 0 && out.st_dev == file.st_dev && out.st_ino == file.st_ino;
}

// Into a pipe or a terminal; it says nothing else there.
static void write_stream(std::FILE* stream, const std::string& path, const std::string& text) {
    if (!stream) fail("cannot write %s: %s; choose another file", in_quotes(path).c_str(), std::strerror(errno));
    const bool written = std::fwrite(text.data(), 1, text.size(), stream) == text.size();
    if ((stream == stdout ? std::fflush(stream) : std::fclose(stream)) != 0 || !written)
        fail("cannot write %zu bytes to %s: %s", text.size(), in_quotes(path).c_str(), std::strerror(errno));
}

static void write_stories(const std::string& path, size_t bytes, size_t seed) {
    const std::string text = story_corpus(bytes, seed);
    struct stat file;
    const bool exists = stat(path.c_str(), &file) == 0;
    if (exists && is_standard_output(file)) return write_stream(stdout, path, text);
    if (exists && (S_ISFIFO(file.st_mode) || S_ISCHR(file.st_mode)))
        return write_stream(std::fopen(path.c_str(), "wb"), path, text);
    if (exists && S_ISREG(file.st_mode) && !is_story_file(path, text, seed))
        fail("OUT: %s exists and has other things than these stories in it; expected another name",
             in_quotes(path).c_str());
    write_text(path, text);
    std::printf("%s: %zu bytes\n", printable(path).c_str(), text.size());
}

static int run_make_stories(int argc, char** argv) {
    std::string path;
    size_t bytes = kStoryBytes, seed = kStorySeed;
    Options options("make_stories", "Writes the built-in corpus of tiny stories to a text file.");
    // clang-format off
    options.add({.long_name = "out", .to = &path, .metavar = "OUT",
                 .help = "text file to write; replaces one only if it has nothing but these stories in it"});
    options.add({.long_name = "--bytes", .to = &bytes, .range = {.low = 1, .high = 1e10},
                 .help = "stop after the story that reaches this many bytes"});
    options.add({.long_name = "--seed", .to = &seed, .help = "seed of the random numbers; each seed tells other stories"});
    // clang-format on
    return exit_status("make_stories", [&] {
        if (!options.parse(argc, argv)) return 0;
        write_stories(path, bytes, seed);
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
