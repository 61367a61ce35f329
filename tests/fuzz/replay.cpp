// A fuzz target without libFuzzer, for `make test`: every file of some folders, then RUNS changed ones, always the
// same.
//
//   fuzz_state RUNS FOLDER...
//
// A tenth of the first folder, the seeds, must be whole files that are taken: what is damaged from the start reaches little.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "runtime/exit_status.h"
#include "runtime/random.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

namespace {

const std::string_view kWords[] = {"0",     "-1",   "4294967296", "18446744073709551615",
                                   "1e308", "nan",  "[[[[",       "{\"a\":",
                                   "\"",    "\xff", "\\u0000",    "\n",
                                   "%"};

// Random numbers below a limit, one after the other.
struct Random {
    uint64_t run, count = 0;
    size_t below(size_t limit) { return limit ? size_t(random_bits(1, run, count++) % limit) : 0; }
};

std::string bytes_of(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

// What goes wrong with files, and what probes a reader: bits flipped, bytes cut out, moved, repeated, other numbers.
void change(std::string& text, const std::vector<std::string>& seeds, Random& random) {
    const size_t at = random.below(text.size() + 1),
                 length = std::min(text.size() - at, 1 + random.below(1 + random.below(64)));
    switch (random.below(7)) {
        case 0:
            if (length) text[at] = char(text[at] ^ 1 << random.below(8));
            break;
        case 1:
            text.erase(at, length);
            break;
        case 2:
            text.insert(random.below(text.size() + 1), text.substr(at, length));
            break;
        case 3:
            text.replace(at, random.below(2) * length, kWords[random.below(std::size(kWords))]);
            break;
        case 4:
            for (size_t i = 0; i < std::min<size_t>(length, 8); i++)
                text[at + i] = char(random.below(2) ? 0xff : random.below(256));
            break;
        case 5: {  // another digit: sizes, offsets, flags
            const size_t digit = text.find_first_of("0123456789", at);
            if (digit != std::string::npos) text[digit] = char('0' + random.below(10));
            break;
        }
        case 6: {
            const std::string& other = seeds[random.below(seeds.size())];
            text = text.substr(0, at) + other.substr(std::min(at, other.size()));
            break;
        }
    }
}

void run(const std::string& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

constexpr size_t kMostBytes = 1 << 20;

std::string changed(std::string text, const std::vector<std::string>& seeds, Random& random) {
    for (size_t changes = 1 + random.below(4); changes > 0; changes--) change(text, seeds, random);
    return text;
}

Random* mutation;  // of LLVMFuzzerMutate

}  // namespace

// A target's own mutator, where it has one; and libFuzzer's, which that one may call.
extern "C" [[gnu::weak]] size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) {
    const std::string text(as_text(data, size)), other = changed(text, {text}, *mutation).substr(0, max_size);
    std::copy(other.begin(), other.end(), data);
    return other.size();
}

}  // namespace tapernorm

using namespace tapernorm;

int main(int argc, char** argv) {
    start_program();
    if (argc < 3) return std::fprintf(stderr, "usage: %s RUNS FOLDER...\n", argv[0]), 1;
    std::error_code missing;  // not every target has a kept corpus
    std::vector<std::string> seeds;
    for (int i = 2; i < argc; i++) {
        std::vector<std::filesystem::path> paths;
        for (const auto& entry : std::filesystem::directory_iterator(argv[i], missing)) paths.push_back(entry.path());
        std::sort(paths.begin(), paths.end());
        for (const auto& path : paths) run(seeds.emplace_back(bytes_of(path)));
        if (seeds.empty()) return std::fprintf(stderr, "%s: no file\n", argv[2]), 1;
        if (i == 2 && inputs_taken * 10 < inputs_read)
            return std::fprintf(stderr, "%s: expected a tenth of its files to be taken, found %zu of %zu\n", argv[2],
                                inputs_taken, inputs_read),
                   1;
    }
    const size_t runs = std::stoul(argv[1]);
    for (size_t i = 0; i < runs; i++) {
        Random random{i};
        std::string input = seeds[random.below(seeds.size())];
        if (LLVMFuzzerCustomMutator && random.below(2)) {
            mutation = &random;
            const size_t size = input.size();
            input.resize(std::max(size, kMostBytes));
            input.resize(LLVMFuzzerCustomMutator(reinterpret_cast<uint8_t*>(input.data()), size, input.size(),
                                                 unsigned(random.below(1 << 30))));
        } else {
            input = changed(input, seeds, random);
        }
        run(input);
    }
    std::fprintf(stderr, "%s: %zu files, %zu changed ones; %zu taken\n", argv[0], seeds.size(), runs, inputs_taken);
}
