// A state file, as -y reads it: its checks, its flags, its numbers. One that is taken trains on, and what is saved then opens.
// Letters in front of it say what else there is: an older state (o), a log (l), a corpus that has changed (c); or that it is not
// -y that finds it, but a fresh run (f), or one that replaces it (r); that the corpus is a shard (s) or too short (v); that another
// run starts from the model that was saved (i), has left its model (m) or its log (n); that the log does not say whose it is (k);
// that this run has left a newer model (w); that -y finds a teacher (d); that the state is gone (g). Capital letters are flags beside -y (kFlags).
#define TAPERNORM_NO_MAIN
#include <nlohmann/json.hpp>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/safetensors_mutator.h"
#include "train_gpt.cu"

namespace tapernorm::train {

namespace {

using Letters = std::string_view;
bool has(Letters letters, char letter) { return letters.find(letter) != letters.npos; }

Letters letters_of(std::string_view input) {
    return input.substr(0, input.find_first_not_of("cdfgiklmnorsvwABEGLNRTW"));
}

const std::pair<char, const char*> kFlags[] =
    {{'A', "--norm=rmsnorm"},         {'B', "--bound=0.5"},    {'E', "--gate-end=1000"},
     {'G', "--gate-mode=norm"},       {'L', "--n-layer=9"},    {'N', "--norm=layernorm"},
     {'R', "--tensorboard=/nowhere"}, {'T', "--seq-len=5000"}, {'W', "--gate-warmup=2"}};

// A model as another run left it; its checksum, and for a newer one of this run, agree with none of the state's. Written anew after
// it was opened: what was read may not be written (io/claims.h).
void leave_model(const std::string& path, const ModelInfo& info, Dtype dtype = Dtype::F32) {
    Cpu dev(1, Isa::base);
    const HostModel model(dev, info);
    save_model(path, info, model.tensors, dtype);
    ModelFile::open(path);
    save_model(path, info, model.tensors, dtype);
}

// Of the sizes in the state, which may be one that nothing accepts.
void leave_models_of(const std::string& state, const std::string& folder, Letters letters) try {
    const SafetensorsFile file(state, FileUse::own);
    check_state(file);
    ModelInfo info;
    info.config = read_config(file);
    info.scales.resize(info.config.tapering_sites());
    info.step = 1000000;
    if (has(letters, 'w')) {
        leave_model(folder + "/model.bin", info);
        const auto run = file.metadata().find("run");
        const std::string id = run == file.metadata().end() ? "" : run->second;
        file_with(nlohmann::json{{"run", id}}.dump() + "\n{\"step\": 1}\n", "model.log.jsonl");
    }
    if (has(letters, 'd')) {
        ModelInfo teacher;
        teacher.config = info.config;
        teacher.config.mode = GateMode::norm, teacher.config.bound = teacher.config.final_bound = 0;
        teacher.config.first_apart = false;
        leave_model(folder + "/teacher.bin", teacher);
    }
} catch (const Error&) {
}

void run_on(const std::string& folder, const std::string& corpus, Letters letters) {
    Settings s;
    s.out = folder + "/model.bin", s.resume = !has(letters, 'f') && !has(letters, 'r'), s.overwrite = has(letters, 'r');
    s.train = corpus, s.T = 8, s.batch = 1, s.C = 2, s.NH = 1, s.L = 1, s.threads = 1, s.val_batches = 1;
    Options now = make_options(s);
    std::vector<const char*> flags = {"train_gpt"};
    for (const auto& [letter, flag] : kFlags)
        if (has(letters, letter)) flags.push_back(flag);
    now.parse(int(flags.size()), flags.data());
    std::vector<std::string> arguments = now.arguments();
    Checkpoints checkpoints(state_path(s.out));
    Start start = find_start(s, now, arguments, checkpoints, single_rank());
    // Other files than the state itself, and sizes that its flags ask for, are the user's.
    s.train = corpus, s.val = s.tokenizer = s.hellaswag = "";
    s.batch = 1, s.T = std::min<size_t>(s.T, 8), s.total_batch = s.T, s.keep = 2;
    if (has(letters, 'd') && s.resume) s.init = folder + "/teacher.bin", s.distill = 1;
    check_outputs(s);
    Run run = open_run(s, std::move(start));
    s.distill = 0;
    run.arguments = arguments, run.checkpoints = checkpoints, run.computed_with = "base";
    check_run(s, run);
    Cpu dev(1, Isa::base);
    Trainer<Cpu, float> t(dev, s, run.config, run.train);
    initialize(t.model, 1);
    if (run.state) load_state(t, *run.state);
    space_warning(s.out, bytes_to_write(t));
    t.update();
    save_checkpoint(t, run, true);
    std::string note;
    check_state(*Checkpoints(state_path(s.out)).open_newest(note));
    require(note.empty(), "the state that was saved is not the newest");
    ModelFile::open(s.out);
    if (!has(letters, 'i')) return;
    Settings next = s;
    next.init = s.out, next.out = folder + "/next.bin", next.resume = next.overwrite = false;
    std::vector<std::string> none;
    open_run(next, find_start(next, now, none, checkpoints, single_rank()));
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    return mutate_safetensors(data, size, max_size, seed, letters_of(as_text(data, size)).size());
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    namespace fs = std::filesystem;
    const std::string_view input = as_text(data, size);
    const Letters letters = letters_of(input);
    const std::string state = with_checksum(safetensors_bytes(input.substr(letters.size())));
    const std::string path = file_with(state, "model.state.bin"), folder = fs::path(path).parent_path().string();
    if (has(letters, 'o'))
        file_with(state, "model.state.1.bin"), file_with(state.substr(0, size / 2), "model.state.bin");
    if (has(letters, 'g')) fs::remove(path);
    if (has(letters, 'l')) file_with("{\"run\": \"0123456789abcdef\"}\n{\"step\": 1}\n", "model.log.jsonl");
    if (has(letters, 'n')) file_with("{\"run\": \"0\"}\n{\"step\": 1}\n", "model.tapernorm-log");
    if (has(letters, 'm')) {
        ModelInfo info;
        info.config.V = 256, info.config.T = info.config.L = info.config.NH = info.config.C = 2;
        info.scales.resize(info.config.tapering_sites());
        leave_model(folder + "/model.bin", info, Dtype::BF16);
    }
    if (has(letters, 'k')) file_with("{\"step\": 1}\n", "model.log.jsonl");
    if (has(letters, 'w') || has(letters, 'd')) leave_models_of(path, folder, letters);
    std::string text;
    for (int i = 0; i < (has(letters, 'v') ? 2 : has(letters, 'c') ? 8 : 7); i++) text += "The cat sat on the mat. ";
    const std::string corpus = file_with(text, "corpus.txt");
    if (has(letters, 's')) write_token_shard(corpus, std::vector<uint16_t>(text.begin(), text.end()));
    const int status = expect_clean([&] { run_on(folder, corpus, letters); });
    for (const auto& entry : fs::directory_iterator(folder)) fs::remove(entry.path());
    return status;
}

}  // namespace tapernorm::train
