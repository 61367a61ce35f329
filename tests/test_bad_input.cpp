// What users get wrong, disks that are full and files that are damaged: the three programs end with one clear
// line and a status that is not 0, and leave the files of before alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inference/decoder.cuh"
#include "io/safetensors.h"
#include "io/tokens.h"
#include "model/model_file.h"
#include "tests/run_program.h"
#include "train/checkpoints.h"

namespace tapernorm {

namespace {

int count_lines(const std::string& text) { return int(std::count(text.begin(), text.end(), '\n')); }

}  // namespace

// ---- bad input
// ------------------------------------------------------------------------------------------------------

TEST_CASE("train_gpt: refuses bad flags in one line") {
    const Workplace w;
    w.ok(kTiny);
    const std::pair<std::string, std::vector<std::string>> cases[] = {
        {"--gaet taper", {"--gaet", "--gate-mode"}},
        {"-sg 50", {"-sg", "--skip-grad"}},
        {"-sl 3", {"-sl", "--skip-loss-z"}},
        {"surplus", {"surplus"}},
        {"-x 0", {"--steps", "0"}},
        {"-x -5", {"--steps", "-5"}},
        {"-x 1.5", {"--steps", "1.5"}},
        {"-x 99999999999999999999999", {"--steps"}},
        {"-x", {"-x"}},
        {"-l nan", {"--lr", "nan"}},
        {"-l inf", {"--lr", "inf"}},
        {"-l -1", {"--lr"}},
        {"-q 1.5", {"--lr-final-frac"}},
        {"--beta1 1", {"--beta1"}},
        {"--clip -1", {"--clip"}},
        {"--threads 1000000", {"--threads"}},
        {"-g tapered", {"--gate-mode", "tapered", "taper"}},
        {"--gate tapered", {"--gate-mode", "tapered", "taper"}},
        {"--norm batchnorm", {"--norm", "batchnorm"}},
        {"-k sawtooth", {"--lr-schedule", "sawtooth"}},
        {"-d 33", {"--total-batch", "32", "33"}},
        {"-d 16", {"--total-batch", "32", "16"}},
        {"--n-head 3", {"--n-embd", "3", "16"}},
        {"-e d12", {"--model", "--n-layer"}},
        {"--gate-warmup 4", {"--gate-end", "4"}},
        {"--gate-warmup 5 --gate-end 3", {"--gate-end", "3", "5"}},
        {"--gate-warmup 0", {"--gate-warmup"}},
        {"--gate-warmup 120%", {"--gate-warmup", "120%"}},
        {"-g norm --scale-loss 0.1 --gate-warmup 0", {"--gate-warmup"}},
        {"-b 1048576 -t 1048576 --n-layer 1000 --n-embd 65536", {"-b"}},
        {"--init model.bin --n-layer 2", {"--init", "model.bin"}},
        {"--device cuda", {"--device"}},
    };
    for (const auto& [flags, needles] : cases) {
        if (flags == "--device cuda" && w.run(kTiny + " " + flags).status == 0) continue;  // there is one
        w.refused(kTiny + " " + flags, needles);
    }
    w.refused(kTiny + " -o ", {"--out"}, {""});
#ifndef __SANITIZE_ADDRESS__  // which reports this in words of its own
    w.refused(kTiny + " -b 1048576 -t 65536 --n-embd 64", {"out of memory", "-b"});  // more than any address space
#endif
    w.refused(kTrain + " -e d13", {"--model", "13"});
    w.refused(kTrain + " -e 12", {"--model", "12"});
}

TEST_CASE("train_gpt: refuses corpora and outputs that it cannot use") {
    const Workplace w;
    w.ok(kTiny);
    std::filesystem::create_directory(w.at("folder"));
    write_file(w.at("empty.txt"), "");
    write_file(w.at("short.txt"), "too short");
    write_file(w.at("middling.txt"), std::string(100, 'a'));  // enough to train on, its last tenth is too short
    write_file(w.at("zeros.bin"), std::string(5000, '\0'));
    write_file(w.at("torn.bin"), read_file(w.at("model.state.bin")).substr(0, 5000));
    write_token_shard(w.at("foreign.bin"), std::vector<uint16_t>(500, 60000));
    write_token_shard(w.at("shard.bin"), std::vector<uint16_t>(500, 7));
    write_file(w.at("torn_shard.bin"), read_file(w.at("shard.bin")).substr(0, 1500));
    write_file(w.at("stub_shard.bin"), read_file(w.at("shard.bin")).substr(0, 500));
    for (const std::string name : {"missing.txt", "folder", "empty.txt", "short.txt", "middling.txt", "zeros.bin",
                                   "torn.bin", "foreign.bin", "torn_shard.bin", "stub_shard.bin", "none_*.bin"})
        w.refused(kTiny + " -i " + name, {name});
    for (const std::string name : {"missing.txt", "folder", "empty.txt", "short.txt"})
        w.refused(kTiny + " -j " + name, {name});
    w.refused(kTiny + " --tokenizer nowhere", {"nowhere"});
    std::filesystem::create_hard_link(w.at("corpus.txt"), w.at("hard.bin"));
    std::filesystem::create_symlink("corpus.txt", w.at("soft.bin"));
    for (const std::string name :
         {"nowhere/model.bin", "folder/", "corpus.txt/model.bin", "hard.bin", "soft.bin", "hard"})
        w.refused(kTiny + " -o " + name, {name});
    std::filesystem::copy_file(w.at("corpus.txt"), w.at("run.bin.tapernorm-tmp"));
    for (const std::string flag : {"-i", "-j", "--init"})  // what a save of this run might remove
        w.refused(kTiny + " -o run " + flag + " run.bin.tapernorm-tmp", {"'run.bin.tapernorm-tmp'", "rename it"});
    CHECK(std::filesystem::exists(w.at("run.bin.tapernorm-tmp")));
    std::filesystem::create_symlink("run.bin.tapernorm-tmp", w.at("link.txt"));
    for (const std::string input : {"run.b*-tmp", "./*tmp", "link.txt"})
        w.refused(kTiny + " -o run -i " + input, {"--train: ", "rename it"});
    std::filesystem::copy_file(w.at("model.bin"), w.at("f.tapernorm-tmp"));
    w.refused("fold f.tapernorm-tmp f", {"'f.tapernorm-tmp' would be overwritten"});
    std::filesystem::remove(w.at("run.bin.tapernorm-tmp"));
    std::filesystem::create_symlink("nowhere", w.at("dangling"));
    for (const std::string board : {"corpus.txt", "corpus.txt/sub", "dangling"})
        w.refused(kTiny + " --tensorboard " + board,
                  {"--tensorboard", "is no folder", board.substr(0, board.find('/'))});
}

TEST_CASE("programs: control characters in flags and names stay out of the message") {
    const Workplace w;
    w.refused("train_gpt", {"--no\\x0asuch\\x1b[2Jflag"}, {"--no\nsuch\x1b[2Jflag"});
    w.refused("infer", {"mis\\x0asing"}, {"mis\nsing"});
}

TEST_CASE("train_gpt: a run that diverges says at which update, and leaves the files of before") {
    const Workplace w;
    w.ok(kTiny);
    const std::string model = read_file(w.at("model.bin")), state = read_file(w.at("model.state.bin"));
    const std::string log = read_file(w.at("model.log.jsonl"));
    const Outcome outcome = w.run(kTiny + " -l 1e30");
    CHECK(outcome.status == 1);
    CHECK_MESSAGE(outcome.err.starts_with("train_gpt: error: step 2: the loss is not finite"), outcome.err);
    CHECK(read_file(w.at("model.bin")) == model);
    CHECK(read_file(w.at("model.state.bin")) == state);
    CHECK(read_file(w.at("model.log.jsonl")) == log);
    CHECK(count_lines(read_file(w.at("model.tapernorm-log"))) == 2);  // the run's id and its first update
}

TEST_CASE("train_gpt: refuses to start from models that do not fit") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o base.bin");
    w.ok(kTiny);
    w.ok("fold model.bin folded.bin");
    std::filesystem::create_directory(w.at("folder"));
    write_token_shard(w.at("shard.bin"), std::vector<uint16_t>(500, 7));
    write_file(w.at("torn.bin"), read_file(w.at("base.bin")).substr(0, 9000));
    for (const std::string name : {"missing.bin", "folder", "corpus.txt", "torn.bin", "model.bin", "folded.bin"})
        w.refused(kTrain + " --init " + name, {name});
    const std::string init = kTrain + " --init base.bin ";
    w.refused(init + "-t 32", {"--seq-len", "16", "32", "base.bin"});
    w.refused(init + "--n-layer 2", {"--n-layer", "1", "2", "base.bin"});
    w.refused(init + "--norm rmsnorm", {"--norm", "base.bin"});
    w.refused(init + "-e d12", {"--n-layer", "base.bin"});
    w.refused(init + "-i shard.bin", {"50257", "base.bin"});
    w.ok(init + "-t 8 --n-layer 1");
}

TEST_CASE("train_gpt: refuses to resume what does not fit") {
    const Workplace w;
    w.refused("train_gpt -y", {"--resume", "model.state.bin"});
    w.ok(kTiny + " -x 3");
    for (const std::string flags :
         {"--n-layer 2", "--n-embd 32", "--n-head 4", "--norm rmsnorm", "-t 32", "-g norm", "-e d12"})
        w.refused("train_gpt -y " + flags, {words(flags)[0] == "-e"   ? "--n-layer"
                                            : words(flags)[0] == "-g" ? "--gate-mode"
                                            : words(flags)[0] == "-t" ? "--seq-len"
                                                                      : words(flags)[0]});
    w.refused("train_gpt -y --init model.bin", {"--init", "--resume"});
    w.refused("train_gpt -y -x 0", {"--steps"});
    w.refused("train_gpt -y --gate-warmup 1", {"--gate-warmup"});
    const std::string state = read_file(w.at("model.state.bin"));
    std::string broken = state;
    const float nan = std::nanf("");
    std::memcpy(&broken[broken.size() - 400], &nan, sizeof nan);
    write_file(w.at("model.state.bin"), broken);
    w.refused("train_gpt -y", {"model.state.bin", "damaged", "checksum"});
    for (size_t bytes :
         {size_t(0), size_t(7), size_t(8), size_t(100), size_t(4000), state.size() / 2, state.size() - 1}) {
        write_file(w.at("model.state.bin"), state.substr(0, bytes));
        w.refused("train_gpt -y", {"model.state.bin"});
    }
    write_file(w.at("model.state.bin"), read_file(w.at("model.bin")));
    w.refused("train_gpt -y", {"model.state.bin"});
    std::filesystem::remove(w.at("model.state.bin"));
    std::filesystem::create_directory(w.at("model.state.bin"));
    w.refused("train_gpt -y", {"model.state.bin"});
    w.refused(kTiny, {"model.state.bin"});
}

namespace {

// Every `step`th bit of a file's header and some of its data, flipped one after the other: `open` must refuse each in one line.
void check_bits(const std::string& path, size_t step, const std::function<void()>& open) {
    open();
    const std::string whole = read_file(path);
    const size_t header = 8 + *reinterpret_cast<const uint64_t*>(whole.data());
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    std::vector<size_t> unnoticed;
    for (size_t bit = 0; bit < 8 * whole.size(); bit += bit < 8 * header ? step : 1777) {
        const size_t at = bit / 8;
        file.seekp(std::streamoff(at)).put(char(whole[at] ^ 1 << bit % 8)).flush();
        try {
            open();
            unnoticed.push_back(bit);
        } catch (const Error& e) {
            if (count_lines(e.what()) > 0) FAIL_CHECK(e.what());
        }
        file.seekp(std::streamoff(at)).put(whole[at]).flush();
    }
    CHECK(unnoticed == std::vector<size_t>());
    CHECK(read_file(path) == whole);
}

// As small as they can be.
const std::string kSmallest = kTrain + " --n-layer 1 --n-embd 2 --n-head 1 -t 4";

}  // namespace

TEST_CASE("states: a flipped bit anywhere is noticed") {
    const Workplace w;
    w.ok(kSmallest + " --keep 1");
    const std::string path = w.at("model.state.bin");
    check_bits(path, 37, [&] {
        std::string note;
        if (!train::Checkpoints(path).open_newest(note)) fail("missing");
    });
}

TEST_CASE("models: a flipped bit anywhere is noticed, also where config.json makes it a model of another program") {
    const Workplace w;
    w.ok(kSmallest + " -g norm");
    w.ok("fold model.bin folded.bin");
    std::filesystem::remove(w.at("model.state.bin"));
    write_file(w.at("config.json"), R"({"vocab_size": 256, "n_layer": 1, "n_embd": 2, "n_head": 1, "n_positions": 4})");
    check_bits(w.at("model.bin"), 1, [&] { ModelFile::open(w.at("model.bin")); });
    check_bits(w.at("folded.bin"), 37, [&] { ModelFile::open(w.at("folded.bin")); });
}

TEST_CASE("a full disk: the files of before stay whole, and no temporary one is left") {
    const Workplace w;
    w.ok(kTiny);
    w.ok("fold model.bin folded.bin");
    w.ok("infer folded.bin -n 1 --prompt Once --dump logits.st");
    w.refused("fold model.bin folded.bin", {"folded.bin", "File too large"}, {}, 5000);
    w.refused("infer folded.bin -n 1 --prompt Once --dump logits.st", {"logits.st", "File too large"}, {}, 1000);
    const std::string model = read_file(w.at("model.bin")), state = read_file(w.at("model.state.bin"));
    const std::string trainer = "exec '" + program_path("train_gpt") + "'" + kTiny.substr(kTiny.find(' '));
    Program program(w.path, {"/bin/sh", "-c", trainer + " -l 0.02 --device cpu --threads 1 2>&1"}, model.size() / 2);
    REQUIRE(program.wait_until([](const std::string& out) { return out.find("trying again") != out.npos; }));
    program.send(SIGINT);  // which ends the waiting for room
    CHECK(program.finish().status == 1);
    CHECK(read_file(w.at("model.bin")) == model);
    CHECK(read_file(w.at("model.state.bin")) == state);
    for (const auto& [name, contents] : w.contents()) CHECK_MESSAGE(!name.ends_with(".tapernorm-tmp"), name);
}

TEST_CASE("fold: refuses what is not a finished model, and writes nothing") {
    const Workplace w;
    w.ok(kTiny + " -x 3 -o tapering.bin");
    w.ok(kTiny);
    w.ok("fold model.bin folded.bin");
    std::filesystem::create_directory(w.at("folder"));
    std::filesystem::create_symlink("model.bin", w.at("link.bin"));
    w.refused("fold tapering.bin folded.bin", {"tapering.bin", "0.5", "expected 0"});
    w.refused("fold folded.bin again.bin", {"folded.bin", "already folded"});
    w.refused("fold model.bin model.bin", {"FOLDED", "model.bin"});
    w.refused("fold model.bin ./model.bin", {"FOLDED", "./model.bin"});
    w.refused("fold model.bin link.bin", {"FOLDED", "link.bin"});
    w.refused("fold model.bin folder", {"folder", "directory"});
    w.refused("fold model.bin nowhere/folded.bin", {"nowhere"});
    w.refused("fold model.bin", {"FOLDED"});
    w.refused("fold", {"MODEL"});
    w.refused("fold missing.bin folded.bin", {"missing.bin"});
    w.refused("fold folder folded.bin", {"folder"});
    w.refused("fold corpus.txt folded.bin", {"corpus.txt"});
    w.refused("fold model.state.bin folded.bin", {"model.state.bin"});
    w.refused("fold model.bin folded.bin --quick", {"--quick"});
    w.refused("fold model.bin folded.bin surplus", {"surplus"});
}

namespace {

struct Rewritten {
    std::map<std::string, std::string> metadata;
    std::vector<TensorOut> tensors;
};

// A copy of a model file after `change`; the tensors' data are in memory that may be written.
void rewrite(const std::string& from, const std::string& to, const std::function<void(Rewritten&)>& change) {
    const SafetensorsFile file(from);
    std::vector<std::string> memory;
    Rewritten r{file.metadata(), {}};
    for (const TensorEntry& e : file.entries())
        memory.emplace_back(reinterpret_cast<const char*>(file.data(e)), e.end - e.begin);
    for (size_t i = 0; i < memory.size(); i++)
        r.tensors.push_back(
            {file.entries()[i].name, file.entries()[i].dtype, file.entries()[i].shape, memory[i].data()});
    change(r);
    r.metadata.erase("checksum");
    write_safetensors(to, r.metadata, r.tensors, {.checksum = true});
}

TensorOut& tensor(Rewritten& r, const std::string& name) {
    for (TensorOut& t : r.tensors)
        if (t.name == name) return t;
    throw std::runtime_error("no tensor " + name);
}

}  // namespace

TEST_CASE("fold and infer: refuse models whose tensors or numbers are wrong") {
    const Workplace w;
    w.ok(kTiny);
    w.ok("fold model.bin folded.bin");
    auto both_refuse = [&](const std::vector<std::string>& needles, const std::function<void(Rewritten&)>& change) {
        rewrite(w.at("model.bin"), w.at("bad.bin"), change);
        w.refused("fold bad.bin folded.bin", needles);
        w.refused("infer bad.bin --last-token", needles);
    };
    // One number that is not finite, wherever it is: also where no probe looks.
    for (const std::string name : {"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight",
                                   "transformer.h.0.ln_2.taper_weight", "transformer.h.0.mlp.c_fc.bias",
                                   "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.bias"})
        for (float value : {std::nanf(""), INFINITY})
            both_refuse({"bad.bin", name, "finite"}, [&](Rewritten& r) {
                const TensorOut& t = tensor(r, name);
                std::memcpy(const_cast<char*>(static_cast<const char*>(t.data)) + 12, &value, sizeof value);
            });
    both_refuse({"bad.bin", "h.0.ln_1.taper_scale"}, [&](Rewritten& r) {
        static const float zero = 0;
        tensor(r, "transformer.h.0.ln_1.taper_scale").data = &zero;
    });
    w.ok(kTiny + " --calibration channels+first -o apart.bin");
    for (const float factor : {-1.0f, 0.0f, INFINITY}) {
        rewrite(w.at("apart.bin"), w.at("bad.bin"),
                [&](Rewritten& r) { tensor(r, "transformer.h.0.ln_2.first_scale").data = &factor; });
        w.refused("fold bad.bin folded.bin", {"bad.bin", "h.0.ln_2.first_scale", "above 0"});
    }
    rewrite(w.at("apart.bin"), w.at("bad.bin"), [](Rewritten& r) { r.metadata["first_positions"] = "nowhere"; });
    w.refused("fold bad.bin folded.bin", {"bad.bin", "first_positions", "apart", "nowhere"});
    both_refuse({"bad.bin", "wpe", "missing"}, [](Rewritten& r) {
        std::erase_if(r.tensors, [](const TensorOut& t) { return t.name == "transformer.wpe.weight"; });
    });
    both_refuse({"bad.bin", "c_fc.weight", "[16, 64]", "[64, 16]"},
                [](Rewritten& r) { tensor(r, "transformer.h.0.mlp.c_fc.weight").shape = {64, 16}; });
    both_refuse({"bad.bin", "ln_f.weight", "I32"},
                [](Rewritten& r) { tensor(r, "transformer.ln_f.weight").dtype = Dtype::I32; });
    for (const auto& [key, value] :
         std::vector<std::pair<std::string, std::string>>{{"n_layer", "2"},
                                                          {"n_layer", "1000000"},
                                                          {"n_layer", "-1"},
                                                          {"n_embd", "8"},
                                                          {"n_head", "3"},
                                                          {"n_head", "0"},
                                                          {"n_positions", "99999999999999999999"},
                                                          {"vocab_size", "255"},
                                                          {"vocab_size", "257"},
                                                          {"norm", "rms"},
                                                          {"norm_eps", "nan"},
                                                          {"norm_eps", "-1"},
                                                          {"gate", "2"},
                                                          {"gate", ""},
                                                          {"step", "1e3"},
                                                          {"folded", "maybe"},
                                                          {"folded", "all"},
                                                          {"bound", "nan"},
                                                          {"bound", "-1"},
                                                          {"bound", "0"},
                                                          {"bound", ""},
                                                          {"final_bound", "nan"},
                                                          {"final_bound", "0"},
                                                          {"format_version", "5"}}) {
        CAPTURE(key);
        both_refuse({"bad.bin"}, [&](Rewritten& r) { r.metadata[key] = value; });
    }
    for (const std::string key : {"n_layer", "vocab_size", "norm", "gate", "folded", "tokenizer", "format_version"})
        both_refuse({"bad.bin", key}, [&](Rewritten& r) { r.metadata.erase(key); });
    for (const char* value : {"nan", "-1", "0", "1e40", ""}) {  // of a folded model's clamps
        rewrite(w.at("folded.bin"), w.at("bad.bin"), [&](Rewritten& r) { r.metadata.at("bound") = value; });
        w.refused("infer bad.bin --last-token", {"bad.bin", "bound"});
    }
    // Numbers that are finite, and overflow on the way to the logits.
    rewrite(w.at("model.bin"), w.at("bad.bin"), [](Rewritten& r) {
        const TensorOut& t = tensor(r, "transformer.ln_f.weight");
        for (size_t i = 0; i < 16; i++) {
            const float huge = 3e38f;
            std::memcpy(const_cast<char*>(static_cast<const char*>(t.data)) + 4 * i, &huge, sizeof huge);
        }
        auto* wte = reinterpret_cast<float*>(const_cast<void*>(tensor(r, "transformer.wte.weight").data));
        for (size_t i = 0; i < 256 * 16; i++) wte[i] *= 1000;
    });
    w.refused("fold bad.bin folded.bin", {"folded"});
    w.refused("infer bad.bin --last-token", {"bad.bin", "finite"});
    w.refused("infer bad.bin -n 3", {"bad.bin", "finite"});
}

TEST_CASE("train_gpt -y: refuses a state with averages or a weight of them that no run has") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o base.bin");
    w.ok("train_gpt -i corpus.txt -b 2 -t 16 -x 4 --init base.bin -o tuned.bin --keep 1");
    const std::string state = w.at("tuned.state.bin"), whole = read_file(state);
    const auto refused_with = [&](size_t from_end, double value) {
        write_file(state, whole);
        rewrite(state, state, [&](Rewritten& r) {
            const TensorOut& t = tensor(r, "state.channels");
            double* values = static_cast<double*>(const_cast<void*>(t.data));
            values[t.shape[0] - 1 - from_end] = value;
        });
        w.refused("train_gpt -y -o tuned.bin -x 6", {"tuned.state.bin", "state.channels"});
    };
    for (double weight : {0.0, -0.5, 1.5, double(NAN)}) refused_with(0, weight);
    // Of the last site's means [4, C], those of u^2 and u^2 / s.
    const size_t C = 16;
    for (size_t from_end : {C + 1, 2 * C, 2 * C + 1, 3 * C})
        for (double mean : {-1e-3, double(NAN)}) refused_with(from_end, mean);
    write_file(state, whole);
    w.ok("train_gpt -y -o tuned.bin -x 6");
}

TEST_CASE(
    "models: cut at any length an error in one line; of version 1, with a byte of the header flipped, an error or a model "
    "that runs") {
    const Workplace w;
    Cpu dev(1);
    const int tokens[] = {84, 104, 101};
    size_t errors = 0, models = 0;
    auto try_model = [&](const std::string& path) {
        try {
            const auto model = load_model(dev, path);
            const Config& c = model->info.config;
            Decoder<Cpu, float> decoder(dev, c, model->tensors, model->info.scales, model->info.gate);
            std::vector<float> logits(c.V);
            decoder.feed(tokens, std::min<size_t>(3, c.T), Logits::last, logits.data());
            models++;
        } catch (const Error& e) {
            CHECK_MESSAGE(std::string(e.what()).find('\n') == std::string::npos, e.what());
            CHECK_MESSAGE(std::string(e.what()).find(path) != std::string::npos, e.what());
            errors++;
        }
    };
    for (const std::string name : {"model.bin", "folded.bin"}) {  // without checksums
        const std::string whole = read_file("tests/museum/1/" + name), bad = w.at("bad.bin");
        const size_t header = 8 + *reinterpret_cast<const uint64_t*>(whole.data());
        for (size_t bytes = 0; bytes < whole.size(); bytes += bytes < header ? 37 : 401) {
            write_file(bad, whole.substr(0, bytes));
            try_model(bad);
        }
        CHECK(models == 0);
        write_file(bad, whole);
        std::fstream file(bad, std::ios::binary | std::ios::in | std::ios::out);
        for (size_t at = 0; at < header; at += 3)
            for (int mask : {0x01, 0x80}) {
                file.seekp(std::streamoff(at)).put(char(whole[at] ^ mask)).flush();
                try_model(bad);
                file.seekp(std::streamoff(at)).put(whole[at]).flush();
            }
        CHECK(models > 0);  // a digit of eps or of the step
        CHECK(errors > header / 2);
        models = 0;
    }
    // A few of today's through the programs.
    w.ok(kTiny);
    const std::string whole = read_file(w.at("model.bin"));
    for (size_t at = 3; at < whole.size(); at += 3001) {
        std::string flipped = whole;
        flipped[at] = char(flipped[at] ^ 1);
        write_file(w.at("bad.bin"), flipped);
        for (const std::string command :
             {"infer bad.bin --last-token", "fold bad.bin out.bin", "train_gpt --init bad.bin"})
            w.refused(command, {"bad.bin"});
    }
}

TEST_CASE("infer: refuses bad prompts, flags and files in one line") {
    const Workplace w;
    w.ok(kTiny);
    std::filesystem::create_directory(w.at("folder"));
    write_file(w.at("empty.bin"), "");
    const std::string infer = "infer model.bin ";
    w.refused(infer + "--tokens 1,256", {"256"});
    w.refused(infer + "--last-token --tokens 70000", {"70000"});
    for (const std::string ids : {"1,,2", "a", "1,2,", "-1", "99999999999999"})
        w.refused(infer + "--tokens " + ids, {"--tokens"});
    w.refused(infer + "--tokens 1 --prompt x", {"--tokens", "--prompt"});
    w.refused(infer + "--prompt", {"17", "16", "model.bin"}, {"seventeen letters"});
    w.refused(infer + "--tokens 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", {"17", "16"});
    w.refused(infer + "--prompt", {"--prompt"}, {""});
    w.refused(infer + "--prompt", {"--prompt"});
    for (const std::string value : {"-1", "-1e-9", "nan", "inf", "-inf", "101", "1e999", "x"})
        w.refused(infer + "--temperature " + value, {"--temperature", "from 0 to 100", value});
    w.refused(infer + "--top-p 2", {"--top-p"});
    w.refused(infer + "--top-k x", {"--top-k"});
    w.refused(infer + "--show 0", {"--show"});
    w.refused(infer + "--tempreature 1", {"--tempreature", "--temperature"});
    w.refused(infer + "--dump nowhere/logits.st", {"nowhere"});
    w.refused(infer + "--dump folder", {"folder"});
    w.refused(infer + "--dump ./model.bin", {"--dump", "model.bin"});
    for (const std::string file : {"missing.bin", "folder", "empty.bin", "corpus.txt"})
        w.refused("infer " + file + " --last-token", {file});
    w.refused("infer", {"MODEL"});
}

}  // namespace tapernorm
