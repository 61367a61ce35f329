// ./train_gpt export and HellaSwag. tests/golden/hf/logits.json holds what Hugging Face's transformers make of the exported
// folders of tests/golden/hf/*.bin (dev/reference/check_hf.py --write).
#include "train/export.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "inference/hellaswag.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json golden() { return json::parse(read_file("tests/golden/hf/logits.json")); }

struct Exports : Workplace {
    Exports() {
        for (const std::string gate : {"norm", "taper", "taper-all"})
            fs::copy("tests/golden/hf/" + gate + ".bin", at(gate + ".bin"));
    }
    // export takes no flags of the trainer's
    Outcome run_export(const std::string& line) const {
        return run_program_in(path, words("train_gpt export " + line));
    }
    std::string ok_export(const std::string& line) const {
        const Outcome outcome = run_export(line);
        CHECK_MESSAGE(outcome.status == 0, outcome.err);
        return outcome.out;
    }
    std::vector<float> last_logits(const std::string& model, const json& tokens) const {
        std::string ids;
        for (int id : tokens) ids += strprintf(ids.empty() ? "%d" : ",%d", id);
        ok("infer " + model + " --last-token --tokens " + ids + " --dump logits.st");
        const SafetensorsFile file(at("logits.st"));
        std::vector<float> logits(file.find("logits")->count());
        file.read(*file.find("logits"), logits.data());
        return logits;
    }
};

// The logits are within `units` half-units of the largest one's last place: both sides compute in fp32, about C + 4C
// rounded additions deep.
void check_logits(const std::vector<float>& ours, const json& theirs, double units) {
    REQUIRE(ours.size() == theirs.size());
    double largest = 0, error = 0;
    for (size_t i = 0; i < ours.size(); i++) {
        largest = std::max(largest, std::abs(double(theirs[i])));
        error = std::max(error, std::abs(double(ours[i]) - double(theirs[i])));
    }
    CHECK(largest > 1);
    CHECK(error <= units * largest * 0x1p-24);
}

json config_in(const std::string& folder) { return json::parse(read_file(folder + "/config.json")); }

}  // namespace

TEST_CASE("export: the folder, read again, has the logits that transformers give it") {
    const Exports w;
    const json expected = golden();
    for (const std::string gate : {"norm", "taper", "taper-all"}) {
        CAPTURE(gate);
        const std::string out = w.ok_export(gate + ".bin hf");
        const bool plain = gate != "taper";
        CHECK((out.find(" GPT2LMHeadModel.from_pretrained(\"hf\")") != out.npos) == plain);
        const json config = config_in(w.at("hf"));
        CHECK(config["model_type"] == (plain ? "gpt2" : "tapernorm_gpt2"));
        CHECK(config["layer_norm_epsilon"] == (gate == "taper-all" ? 1e12 : 1e-5));
        CHECK(fs::exists(w.at("hf/modeling_tapernorm.py")) == !plain);
        check_logits(w.last_logits(gate + ".bin", expected["tokens"]), expected[gate], 64);
        check_logits(w.last_logits("hf", expected["tokens"]), expected[gate], 64);
        CHECK(json::parse(read_file(w.at("hf/vocab.json"))).size() == 256);
        CHECK(json::parse(read_file(w.at("hf/tokenizer_config.json")))["eos_token"].is_null());
        if (gate == "taper-all") {  // in the LN-free convention: a tapered model again, which folds and can be clamped
            w.ok("fold hf folded.bin"), w.ok("fold hf clamped.bin --clamp-sample corpus.txt");
            CHECK(SafetensorsFile(w.at("folded.bin")).metadata().at("folded") == "all");
            CHECK(SafetensorsFile(w.at("clamped.bin")).metadata().contains("bound"));
            for (const std::string model : {"folded.bin", "clamped.bin"})
                check_logits(w.last_logits(model, expected["tokens"]), expected[gate], 64);
            w.ok_export("hf again");
            CHECK(config_in(w.at("again"))["layer_norm_epsilon"] == 1e12);
            check_logits(w.last_logits("again", expected["tokens"]), expected[gate], 64);
        }
        fs::remove_all(w.at("hf"));
    }
}

TEST_CASE(
    "export: a bound needs our modeling file, and --without-bound leaves it out where there is a plain GPT-2 without") {
    Exports w;
    // No number of these tokens reaches a bound of 1e4, so that with it and without it the logits are the same.
    w.ok(kTrain + kShape + " -g taper-all --bound 1e4 --final-bound 2e4 -o bounded.bin");
    w.ok("fold bounded.bin folded.bin");
    const json tokens = {5, 70, 33, 101};
    const std::vector<float> own = w.last_logits("bounded.bin", tokens);
    for (const std::string model : {"bounded.bin", "folded.bin"}) {
        w.ok_export(model + " ours");
        CHECK(fs::exists(w.at("ours/modeling_tapernorm.py")));
        CHECK(config_in(w.at("ours"))["bound"] == 1e4);
        CHECK(config_in(w.at("ours"))["final_bound"] == 2e4);
        const Outcome plain = w.run_export(model + " plain --without-bound");
        CHECK(plain.status == 0);
        CHECK_MESSAGE(plain.err.find("its bound is left out: what is exported is another model") != plain.err.npos,
                      plain.err);
        CHECK_MESSAGE(plain.out.find(
                          "the bound clips 0% of the numbers in first positions and 0% of those behind them, and "
                          "predictions without it are 0 nats") != plain.out.npos,
                      plain.out);
        CHECK(!fs::exists(w.at("plain/modeling_tapernorm.py")));
        if (model == "bounded.bin") {
            check_logits(w.last_logits("plain", tokens), own, 64);
        } else {  // an untied head, which infer does not read: its norms divide by 1e6 what they have multiplied by 1e6
            std::vector<float> weight(16);
            read_tensor(SafetensorsFile(w.at("plain/model.safetensors")), "transformer.h.0.ln_2.weight", {16},
                        weight.data());
            CHECK(weight == std::vector<float>(16, 1e6f));
        }
        fs::remove_all(w.at("ours")), fs::remove_all(w.at("plain"));
    }
    auto refused = [&](const std::string& line, const std::string& why) {
        const Outcome outcome = w.run_export(line);
        CHECK(outcome.status == 1);
        CHECK_MESSAGE(outcome.err.find(why) != outcome.err.npos, outcome.err);
        CHECK(!fs::exists(w.at("plain")));
    };
    refused("taper-all.bin plain --without-bound", "has no bound");
    // Where bounds act, or the factor of first positions, the model without them is another one.
    w.ok(kTrain + kShape + " -g taper-all --bound 0.5 --calibration channels+first -o acts.bin");
    w.ok("fold acts.bin acts_folded.bin");
    for (const std::string model : {"acts.bin", "acts_folded.bin"})
        refused(model + " plain --without-bound", "is another model without its bound: in 4 texts of ");
    refused("acts.bin plain --without-bound", "or train it with --bound 0 --calibration channels");
    w.ok(kTrain + kShape + " -g taper --bound 4 -o one_norm.bin");
    refused("one_norm.bin plain --without-bound", "expected a LayerNorm model of -g taper-all");
}

TEST_CASE("export: taper-all weights are 1e6 c gamma~, and a folded head carries its bias in the mean direction") {
    const Exports w;
    w.ok_export("taper-all.bin plain");
    w.ok("fold taper-all.bin folded.bin");
    w.ok_export("folded.bin untied");
    CHECK(config_in(w.at("plain"))["tie_word_embeddings"] == true);
    CHECK(config_in(w.at("untied"))["tie_word_embeddings"] == false);
    Cpu dev(1);
    const auto model = load_model(dev, w.at("taper-all.bin")), folded = load_model(dev, w.at("folded.bin"));
    const size_t C = model->info.config.C, V = model->info.config.V;
    std::vector<float> weight(C);
    read_tensor(SafetensorsFile(w.at("plain/model.safetensors")), "transformer.h.0.ln_2.weight", {C}, weight.data());
    for (size_t i = 0; i < C; i++)
        CHECK(weight[i] ==
              float(1e6 * double(model->info.scales[1].c) * double(model->tensors.h[0].ln_2.taper_weight[i])));
    // head (z + bias) against W z + b, for z of mean 0: what rounding head and bias to fp32 explains, over C terms.
    const SafetensorsFile file(w.at("untied/model.safetensors"));
    std::vector<float> head(V * C), bias(C);
    read_tensor(file, "lm_head.weight", {V, C}, head.data()),
        read_tensor(file, "transformer.ln_f.bias", {C}, bias.data());
    double worst = 0, largest = 0;
    for (size_t v = 0; v < V; v++) {
        const double b = double(folded->tensors.lm_head_bias[v]);
        double carried = 0;
        for (size_t i = 0; i < C; i++) carried += double(head[v * C + i]) * double(bias[i]);
        worst = std::max(worst, std::abs(carried - b)), largest = std::max(largest, std::abs(b));
    }
    CHECK(largest > 0);
    CHECK(worst <= 4 * double(C) * 0x1p-24 * largest);
    std::vector<double> z(C);
    double mean = 0;
    for (size_t i = 0; i < C; i++) z[i] = std::sin(double(3 * i + 1)), mean += z[i] / double(C);
    for (size_t v = 0; v < V; v++) {
        double theirs = 0, ours = 0, size = 0;
        for (size_t i = 0; i < C; i++) {
            theirs += double(head[v * C + i]) * (z[i] - mean);
            ours += double(folded->tensors.lm_head[v * C + i]) * (z[i] - mean);
            size += std::abs(double(head[v * C + i])) + std::abs(double(folded->tensors.lm_head[v * C + i]));
        }
        CHECK(std::abs(theirs - ours) <= 4 * 0x1p-24 * size);
    }
}

TEST_CASE("export: bf16, another tokenizer, and what it refuses") {
    const Exports w;
    w.ok_export("norm.bin half --dtype bf16");
    CHECK(SafetensorsFile(w.at("half/model.safetensors")).entries()[0].dtype == Dtype::BF16);
    CHECK(config_in(w.at("half"))["torch_dtype"] == "bfloat16");
    w.ok("fold taper.bin folded.bin --dtype bf16");
    CHECK(SafetensorsFile(w.at("folded.bin")).entries()[0].dtype == Dtype::BF16);
    w.ok("infer folded.bin -n 1 --tokens 1");
    const auto before = w.contents();
    // clang-format off
    const std::pair<std::string, std::vector<std::string>> cases[] = {
        {"", {"MODEL"}}, {"norm.bin", {"DIR"}}, {"missing.bin out", {"missing.bin"}}, {"corpus.txt out", {"corpus.txt"}},
        {"norm.bin half", {"half", "new"}}, {"norm.bin corpus.txt", {"corpus.txt", "new"}},
        {"norm.bin nowhere/out", {"nowhere/out"}}, {"norm.bin out --dtype int8", {"--dtype", "int8"}},
        {"norm.bin out --tokenizer nowhere", {"nowhere"}}, {"norm.bin out surplus", {"surplus"}}};
    // clang-format on
    for (const auto& [line, needles] : cases) {
        const Outcome outcome = w.run_export(line);
        CAPTURE(line);
        CAPTURE(outcome.err);
        CHECK(outcome.status == 1);
        CHECK(outcome.err.starts_with("train_gpt: error: "));
        for (const std::string& needle : needles) CHECK(outcome.err.find(needle) != std::string::npos);
        CHECK(w.contents() == before);
    }
    // A disk that is full: nothing is left, whether the folder was there or not.
    for (const bool there : {false, true}) {
        if (there) std::filesystem::create_directory(w.at("out"));
        const auto files = w.contents();
        CHECK(run_program_in(w.path, words("train_gpt export norm.bin out"), 5000).status == 1);
        CHECK(w.contents() == files);
    }
    CHECK(w.ok_export("--help").find("usage: train_gpt export MODEL DIR") != std::string::npos);
}

namespace {

// The items, as bytes, in llm.c's layout.
std::string hellaswag_bin(const std::vector<Choice>& choices) {
    std::vector<uint16_t> stream;
    for (size_t i = 0; i < choices.size(); i++) {
        const Choice& c = choices[i];
        std::vector<uint16_t> one =
            {65535, 0, uint16_t(i), uint16_t(c.label), uint16_t(c.endings.size()), uint16_t(c.context.size())};
        one.insert(one.end(), c.context.begin(), c.context.end());
        for (const auto& ending : c.endings) {
            one.push_back(uint16_t(ending.size()));
            one.insert(one.end(), ending.begin(), ending.end());
        }
        one[1] = uint16_t(2 * one.size());
        stream.insert(stream.end(), one.begin(), one.end());
    }
    const int32_t header[256] = {20240522, 1, int32_t(choices.size()), 0};
    std::string file(reinterpret_cast<const char*>(header), sizeof header);
    return file.append(reinterpret_cast<const char*>(stream.data()), 2 * stream.size());
}

}  // namespace

TEST_CASE("hellaswag: the scores of transformers, from JSON lines and from llm.c's file") {
    const Exports w;
    fs::copy("tests/golden/hf/hellaswag.jsonl", w.at("items.jsonl"));
    const std::vector<Choice> choices = read_hellaswag(w.at("items.jsonl"), Tokenizer(), 256, 48);
    REQUIRE(choices.size() == 6);
    CHECK(choices[4].label == 3);
    CHECK(choices[5].context.size() + choices[5].endings[2].size() == 48);  // the context's end
    write_file(w.at("items.bin"), hellaswag_bin(choices));
    const json expected = golden()["hellaswag"];
    const std::string text =
        strprintf("6 items: acc %.4f, acc_norm %.4f, log-likelihood ", double(expected[0]), double(expected[1]));
    std::string all[2];
    for (const std::string name : {"items.jsonl", "items.bin"}) {
        const std::string out = w.ok("infer norm.bin --hellaswag " + name);
        CHECK_MESSAGE(out.find(text) != out.npos, out);
        const double likelihood = std::strtod(out.c_str() + out.find("log-likelihood ") + 15, nullptr);
        CHECK(std::abs(likelihood - double(expected[2])) <= 2e-5);  // printed with 5 digits
    }
    const std::string out = w.ok(kTiny + " -t 48 -j corpus.txt -v 3 --hellaswag items.jsonl");
    CHECK(out.find("step 3 | hellaswag: 6 items: acc ") != out.npos);
    CHECK(read_file(w.at("model.log.jsonl")).find("hellaswag_acc_norm") != std::string::npos);
}

TEST_CASE("hellaswag: counted by hand; damaged files are one line") {
    HellaSwag result;
    const Choice choice{{1}, {{1, 2}, {1, 2, 3, 4}}, 1};
    result.add(choice, {-3, -4});  // the sum prefers the first, the mean the second
    result.add({{1}, {{1}, {2}}, 0}, {-1, -1});
    CHECK(result.correct == 1);
    CHECK(result.correct_norm == 2);
    CHECK(result.log_likelihood == -2);

    const Exports w;
    fs::copy("tests/golden/hf/hellaswag.jsonl", w.at("items.jsonl"));
    const std::string good = hellaswag_bin(read_hellaswag(w.at("items.jsonl"), Tokenizer(), 256, 48));
    auto refuse = [&](const std::string& contents, const std::string& needle = "") {
        write_file(w.at("bad"), contents);
        try {
            read_hellaswag(w.at("bad"), Tokenizer(), 256, 48);
            FAIL_CHECK("accepted: ", contents.size());
        } catch (const Error& e) {
            CHECK(std::string(e.what()).find("bad") != std::string::npos);
            CHECK(std::string(e.what()).find('\n') == std::string::npos);
            CHECK(std::string(e.what()).find(needle) != std::string::npos);
        }
    };
    for (size_t bytes = 0; bytes < good.size(); bytes += bytes < 1060 ? 7 : 31) refuse(good.substr(0, bytes));
    refuse(good + "xx", "2 bytes follow");
    for (size_t at : {4, 8, 1024, 1026, 1028, 1032, 1034}) {
        std::string bad = good;
        bad[at] = char(bad[at] ^ 0x40);
        refuse(bad);
    }
    std::string foreign = good;
    foreign[1036 + 1] = 1;  // the first token of the first context: 256 and more
    refuse(foreign, "the vocabulary has 256");
    for (const std::string line :
         {"", "\n\n", "[]", "{}", R"({"ctx": "a", "endings": ["b"], "label": 1})",
          R"({"ctx": "a", "endings": [], "label": 0})", R"({"ctx": "", "endings": ["b"], "label": 0})",
          R"({"ctx": "a", "endings": [1], "label": 0})", R"({"ctx": "a", "endings": ["b"]})",
          R"({"ctx": 1, "endings": ["b"], "label": 0})", R"({"ctx": "a", "end)"})
        refuse(line);
    refuse(R"({"ctx": "a", "endings": [")" + std::string(47, 'x') + R"("], "label": 0})", "48");
    w.refused("infer norm.bin --hellaswag corpus.txt", {"corpus.txt", "line 1"});
    w.refused("infer norm.bin --hellaswag none.bin", {"none.bin"});
    w.refused(kTiny + " --hellaswag none.bin", {"none.bin"});
}

}  // namespace tapernorm
