// A state file, as -y reads it: its checks, its flags, its numbers. One that is taken trains on, and what is saved then opens.
#define TAPERNORM_NO_MAIN
#include "io/checksum.h"
#include "tests/fuzz/fuzz.h"
#include "train_gpt.cu"

namespace tapernorm::train {

namespace {

// With the right checksum in the place of its own, which no fuzzer guesses.
std::string with_checksum(std::string bytes) {
    const std::string key = "\"checksum\":\"";
    const size_t place = bytes.find(key) + key.size(), digits = 16;
    if (place < key.size() || place + digits > bytes.size()) return bytes;
    bytes.replace(place, digits, digits, '0');
    Checksum sum;
    sum.add(bytes.data(), bytes.size());
    return bytes.replace(place, digits, strprintf("%016llx", (unsigned long long)sum.value()));
}

void resume(const std::string& folder, const std::string& corpus) {
    Settings s;
    s.out = folder + "/model.bin", s.resume = true;
    const Options now = make_options(s);
    Checkpoints checkpoints(state_path(s));
    std::vector<std::string> arguments = {"-y"};
    Start start = find_start(s, now, arguments, checkpoints, single_rank());
    // Other files than the state itself, and sizes that its flags ask for, are the user's.
    s.train = corpus, s.val = s.tokenizer = s.hellaswag = "";
    s.batch = 1, s.T = std::min<size_t>(s.T, 8), s.total_batch = s.T, s.keep = 1;
    Run run = open_run(s, std::move(start));
    Cpu dev(1, Isa::base);
    Trainer<Cpu, float> t(dev, s, run.config, run.train);
    load_state(t, *run.state);
    t.update();
    save_state(t, arguments, checkpoints, run.tokenizer);
    std::string note;
    check_state(*Checkpoints(state_path(s)).open_newest(note));
    require(note.empty(), "the state that was saved is not the newest");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = file_with(with_checksum(safetensors_bytes(as_text(data, size))), "model.state.bin");
    const std::string corpus = file_with(
        "The cat sat on the mat. The cat sat on the mat. The cat sat on the mat. The cat sat on the mat. "
        "The cat sat on the mat. The cat sat on the mat. The cat sat on the mat.",
        "corpus.txt");
    return expect_clean([&] { resume(std::filesystem::path(path).parent_path().string(), corpus); });
}

}  // namespace tapernorm::train
