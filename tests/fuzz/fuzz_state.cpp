// A state file, as -y reads it: its checks, its flags, its numbers. One that is taken trains on, and what is saved then opens.
#define TAPERNORM_NO_MAIN
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/safetensors_mutator.h"
#include "train_gpt.cu"

namespace tapernorm::train {

namespace {

void resume(const std::string& folder, const std::string& corpus) {
    Settings s;
    s.out = folder + "/model.bin", s.resume = true;
    const Options now = make_options(s);
    Checkpoints checkpoints(state_path(s.out));
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
    check_state(*Checkpoints(state_path(s.out)).open_newest(note));
    require(note.empty(), "the state that was saved is not the newest");
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    return mutate_safetensors(data, size, max_size, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = file_with(with_checksum(safetensors_bytes(as_text(data, size))), "model.state.bin");
    const std::string corpus = file_with(
        "The cat sat on the mat. The cat sat on the mat. The cat sat on the mat. The cat sat on the mat. "
        "The cat sat on the mat. The cat sat on the mat. The cat sat on the mat.",
        "corpus.txt");
    return expect_clean([&] { resume(std::filesystem::path(path).parent_path().string(), corpus); });
}

}  // namespace tapernorm::train
