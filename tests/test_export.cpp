// ./train_gpt export and HellaSwag. tests/golden/hf/logits.json holds what Hugging Face's transformers make of the exported
// folders of tests/golden/hf/*.bin (dev/reference/check_hf.py --write).
#include "train/export.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "inference/hellaswag.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "tests/vocabulary.h"

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
    std::vector<double> last_logits(const std::string& model, const json& tokens) const {
        std::string ids;
        for (int id : tokens) ids += strprintf(ids.empty() ? "%d" : ",%d", id);
        ok("infer " + model + " --last-token --tokens " + ids + " --dump logits.st");
        return read_dump(at("logits.st")).logits;
    }
};

// The logits are within `units` half-units of the largest one's last place: both sides compute in fp32, about C + 4C
// rounded additions deep.
void check_logits(const std::vector<double>& ours, const json& theirs, double units) {
    REQUIRE(ours.size() == theirs.size());
    double largest = 0, error = 0;
    for (size_t i = 0; i < ours.size(); i++) {
        largest = std::max(largest, std::abs(double(theirs[i])));
        error = std::max(error, std::abs(ours[i] - double(theirs[i])));
    }
    CHECK(largest > 1);
    CHECK(error <= units * largest * 0x1p-24);
}

// A model card: front matter that is YAML of the simplest kind, how to load it, and every fact of the provenance.
void check_card(const std::string& card, const std::string& info, bool plain) {
    CHECK(card.starts_with(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpt2\n- tapernorm\n---\n"));
    CHECK((card.find("trust_remote_code=True") == card.npos) == plain);
    std::istringstream lines(info);
    size_t facts = 0;
    for (std::string line; std::getline(lines, line);) {
        if (!line.starts_with("  ")) continue;
        facts++;
        CHECK_MESSAGE(card.find("\n    " + line + "\n") != card.npos, line);
    }
    CHECK(facts >= 2);  // the model that was exported, and how
    CHECK(card.find("## License\n\nNone was chosen") != card.npos);
}

json config_in(const std::string& folder) { return json::parse(read_file(folder + "/config.json")); }

}  // namespace

TEST_CASE("export: the folder, read again, has the logits that transformers give it") {
    const Exports w;
    const json expected = golden();
    for (const std::string gate : {"norm", "taper", "taper-all"}) {
        CAPTURE(gate);
        const std::string out = w.ok("train_gpt export " + gate + ".bin hf");
        const bool plain = gate != "taper";
        CHECK((out.find(" GPT2LMHeadModel.from_pretrained(\"hf\")") != out.npos) == plain);
        const json config = config_in(w.at("hf"));
        CHECK(config["model_type"] == (plain ? "gpt2" : "tapernorm_gpt2"));
        CHECK(config["layer_norm_epsilon"] == (gate == "taper-all" ? 1e12 : 1e-5));
        CHECK(fs::exists(w.at("hf/modeling_tapernorm.py")) == !plain);
        check_logits(w.last_logits(gate + ".bin", expected["tokens"]), expected[gate], 64);
        check_logits(w.last_logits("hf", expected["tokens"]), expected[gate], 64);
        // Of a byte model the zero byte begins, ends and pads: by its own name, since U+0100 is a letter.
        const json vocabulary = json::parse(read_file(w.at("hf/vocab.json")));
        const std::string zero(1, '\0');
        CHECK(vocabulary.size() == 256);
        CHECK(vocabulary.at(zero) == 0);
        CHECK(vocabulary.at("\u0101") == 1);
        CHECK(Tokenizer::from_path(w.at("hf")).name() == "bytes");
        for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"})
            CHECK(json::parse(read_file(w.at("hf/tokenizer_config.json")))[key] == zero);
        for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
            CHECK(config[key] == 0);
            CHECK(json::parse(read_file(w.at("hf/generation_config.json")))[key] == 0);
        }
        check_card(read_file(w.at("hf/README.md")), w.ok("infer hf --info"), plain);
        if (gate == "taper-all") {  // in the LN-free convention: a tapered model again, which folds and can be clamped
            w.ok("fold hf folded.bin"), w.ok("fold hf clamped.bin --clamp-sample corpus.txt");
            CHECK(SafetensorsFile(w.at("folded.bin")).metadata().at("folded") == "all");
            CHECK(SafetensorsFile(w.at("clamped.bin")).metadata().contains("bound"));
            for (const std::string model : {"folded.bin", "clamped.bin"})
                check_logits(w.last_logits(model, expected["tokens"]), expected[gate], 64);
            w.ok("train_gpt export hf again");
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
    const std::vector<double> own = w.last_logits("bounded.bin", tokens);
    for (const std::string model : {"bounded.bin", "folded.bin"}) {
        w.ok("train_gpt export " + model + " ours");
        CHECK(fs::exists(w.at("ours/modeling_tapernorm.py")));
        CHECK(config_in(w.at("ours"))["bound"] == 1e4);
        CHECK(config_in(w.at("ours"))["final_bound"] == 2e4);
        const Outcome plain = w.run("train_gpt export " + model + " plain --without-bound");
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
        } else {  // its norms divide by 1e6 what they have multiplied by 1e6
            check_logits(w.last_logits("plain", tokens), own, 64);
            std::vector<float> weight(16);
            read_tensor(SafetensorsFile(w.at("plain/model.safetensors")), "transformer.h.0.ln_2.weight", {16},
                        weight.data());
            CHECK(weight == std::vector<float>(16, 1e6f));
        }
        fs::remove_all(w.at("ours")), fs::remove_all(w.at("plain"));
    }
    auto refused = [&](const std::string& line, const std::string& why) {
        const Outcome outcome = w.run("train_gpt export " + line);
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

TEST_CASE("export: --hf-code writes the modeling file for a plain GPT-2 too, without numbers that fp16 cannot hold") {
    const Exports w;
    const json expected = golden();
    w.ok("train_gpt export taper-all.bin plain");
    w.ok("fold taper-all.bin folded.bin"), w.ok("fold norm.bin norm-folded.bin");
    const std::pair<std::string, std::string> cases[] = {{"norm.bin", "norm"},
                                                         {"norm-folded.bin", "norm"},
                                                         {"taper-all.bin", "taper-all"},
                                                         {"folded.bin", "taper-all"},
                                                         {"plain", "taper-all"}};
    for (const auto& [model, kind] : cases) {
        CAPTURE(model);
        const std::string out = w.ok("train_gpt export " + model + " code --hf-code");
        CHECK(out.find("cannot hold") == out.npos);
        CHECK(out.find("trust_remote_code=True") != out.npos);
        CHECK(fs::exists(w.at("code/modeling_tapernorm.py")));
        CHECK(config_in(w.at("code"))["model_type"] == "tapernorm_gpt2");
        CHECK(config_in(w.at("code"))["layer_norm_epsilon"] == 1e-5);
        CHECK(config_in(w.at("code"))["gate_mode"] == kind);
        check_logits(w.last_logits("code", expected["tokens"]), expected[kind], 64);
        Cpu dev(1);
        const auto code = load_model(dev, w.at("code"));
        for (const auto& t : tensor_list(code->info.config, code->tensors))
            for (size_t i = 0; i < t.spec.count(); i++) CHECK(std::abs(t.data[i]) < 65504);
        fs::remove_all(w.at("code"));
    }
    CHECK(contains(w.run("train_gpt export norm.bin", {"two \"words\""}).out, R"(from_pretrained("two \"words\""))"));
    CHECK(
        contains(w.run("train_gpt export taper.bin", {"\x1b\\\xc3\xa9"}).out, R"(from_pretrained("\u001b\\\u00e9", )"));
    CHECK(w.ok("train_gpt export taper-all.bin hinted").find("--hf-code") != std::string::npos);
    CHECK(w.ok("train_gpt export norm.bin plainer").find("--hf-code") == std::string::npos);
    w.refused("train_gpt export norm.bin m.gguf --hf-code", {"--hf-code", "m.gguf", "folder"});
}

TEST_CASE("export: what would be another model is refused before anything is written") {
    const Exports w;
    w.ok("train_gpt export taper-all.bin large");
    // A stream of size 1e6: sqrt(var + 1e12) is far from 1e6, and the exact map that infer and fold read is not what
    // GPT2LMHeadModel computes.
    {
        std::vector<TensorOut> out;
        const SafetensorsFile file(w.at("taper-all.bin"));
        SafetensorsFile plain(w.at("large/model.safetensors"));
        std::vector<float> wte(plain.find("transformer.wte.weight")->count());
        plain.read(*plain.find("transformer.wte.weight"), wte.data());
        for (float& x : wte) x *= 1e6f;
        for (const TensorEntry& e : plain.entries())
            out.push_back({e.name, e.dtype, e.shape,
                           e.name == "transformer.wte.weight" ? static_cast<const void*>(wte.data()) : plain.data(e)});
        fs::create_directory(w.at("larger"));
        write_safetensors(w.at("larger/model.safetensors"), {}, out);
        fs::copy(w.at("large/config.json"), w.at("larger/config.json"));
    }
    for (const char* out : {"out --tokenizer bytes", "out.gguf --tokenizer bytes"})
        w.refused("train_gpt export larger " + std::string(out),
                  {"larger", "is not the model", "nothing was written", "--hf-code"});
    w.ok("train_gpt export larger out --hf-code");
}

TEST_CASE("export: taper-all weights are 1e6 c gamma~, and a folded head carries its bias in the mean direction") {
    const Exports w;
    w.ok("train_gpt export taper-all.bin plain");
    w.ok("fold taper-all.bin folded.bin");
    w.ok("train_gpt export folded.bin untied");
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

namespace {

// A GGUF file, read as its specification says (ggml, docs/gguf.md), with all lengths checked.
struct Gguf {
    struct Tensor {
        std::vector<uint64_t> dimensions;  // the fastest first
        uint32_t type;
        std::string data;
    };
    std::map<std::string, json> keys;
    std::map<std::string, Tensor> tensors;
    std::vector<std::string> order;  // of the keys

    explicit Gguf(const std::string& path) : bytes_(read_file(path)) {
        REQUIRE(take(4) == "GGUF");
        CHECK(take<uint32_t>() == 3);
        const uint64_t count = take<uint64_t>(), key_count = take<uint64_t>();
        for (uint64_t i = 0; i < key_count; i++) {
            order.push_back(text());
            CHECK(keys.emplace(order.back(), value(take<uint32_t>())).second);
        }
        std::vector<std::pair<std::string, uint64_t>> places;
        for (uint64_t i = 0; i < count; i++) {
            places.emplace_back(text(), 0);
            Tensor& t = tensors[places.back().first];
            t.dimensions.resize(take<uint32_t>());
            for (uint64_t& n : t.dimensions) n = take<uint64_t>();
            t.type = take<uint32_t>();
            places.back().second = take<uint64_t>();
        }
        CHECK(tensors.size() == count);
        const size_t data = (at_ + 31) / 32 * 32;
        size_t end = data;
        for (const auto& place : places) {  // one after the other, each aligned
            Tensor& t = tensors[place.first];
            size_t size = t.type == 30 ? 2 : 4;
            for (const uint64_t n : t.dimensions) size *= n;
            CHECK(data + place.second == end);
            t.data = bytes_.substr(end, size);
            CHECK(t.data.size() == size);
            end += (size + 31) / 32 * 32;
        }
        CHECK(bytes_.size() == end);
    }

  private:
    std::string take(size_t n) {
        REQUIRE(n <= bytes_.size() - at_);
        at_ += n;
        return bytes_.substr(at_ - n, n);
    }
    template <class T>
    T take() {
        T x;
        std::memcpy(&x, take(sizeof x).data(), sizeof x);
        return x;
    }
    std::string text() { return take(take<uint64_t>()); }
    json value(uint32_t type) {
        if (type == 4) return take<uint32_t>();
        if (type == 5) return take<int32_t>();
        if (type == 6) return take<float>();
        if (type == 7) return take<uint8_t>() == 1;
        if (type == 8) return text();
        REQUIRE(type == 9);
        json list = json::array();
        const uint32_t of = take<uint32_t>();
        for (uint64_t n = take<uint64_t>(); n > 0; n--) list.push_back(value(of));
        return list;
    }

    std::string bytes_;
    size_t at_ = 0;
};

// The tensors of the folder that is exported from the same model, which transformers reads (above), by llama.cpp's names:
// their numbers, bit for bit, matrices of blocks transposed; with bf16, vectors and positions stay fp32.
void check_same_tensors(const Gguf& gguf, const std::string& folder, const std::string& folder_fp32, size_t layers) {
    const SafetensorsFile file(folder + "/model.safetensors"), exact(folder_fp32 + "/model.safetensors");
    CHECK(gguf.tensors.size() == file.entries().size());
    std::vector<std::array<std::string, 3>> names = {{"transformer.wte.weight", "token_embd.weight", "matrix"},
                                                     {"transformer.wpe.weight", "position_embd.weight", "exact"},
                                                     {"transformer.ln_f.weight", "output_norm.weight", "exact"},
                                                     {"transformer.ln_f.bias", "output_norm.bias", "exact"},
                                                     {"lm_head.weight", "output.weight", "matrix"}};
    for (size_t l = 0; l < layers; l++)
        for (const auto& [theirs, ours, kind] :
             std::vector<std::array<std::string, 3>>{{"ln_1.weight", "attn_norm.weight", "exact"},
                                                     {"ln_1.bias", "attn_norm.bias", "exact"},
                                                     {"attn.c_attn.weight", "attn_qkv.weight", "block"},
                                                     {"attn.c_attn.bias", "attn_qkv.bias", "exact"},
                                                     {"attn.c_proj.weight", "attn_output.weight", "block"},
                                                     {"attn.c_proj.bias", "attn_output.bias", "exact"},
                                                     {"ln_2.weight", "ffn_norm.weight", "exact"},
                                                     {"ln_2.bias", "ffn_norm.bias", "exact"},
                                                     {"mlp.c_fc.weight", "ffn_up.weight", "block"},
                                                     {"mlp.c_fc.bias", "ffn_up.bias", "exact"},
                                                     {"mlp.c_proj.weight", "ffn_down.weight", "block"},
                                                     {"mlp.c_proj.bias", "ffn_down.bias", "exact"}})
            names.push_back({strprintf("transformer.h.%zu.", l) + theirs, strprintf("blk.%zu.", l) + ours, kind});
    size_t found = 0;
    for (const auto& row : names) {
        const std::string &theirs = row[0], &ours = row[1], &kind = row[2];
        const SafetensorsFile& source = kind == "exact" ? exact : file;
        const TensorEntry* e = source.find(theirs);
        if (!e) continue;  // a tied head
        INFO(theirs);
        REQUIRE(gguf.tensors.count(ours) == 1);
        found++;
        const Gguf::Tensor& t = gguf.tensors.at(ours);
        CHECK(t.type == (e->dtype == Dtype::BF16 ? 30 : 0));
        std::vector<uint64_t> shape(t.dimensions.rbegin(), t.dimensions.rend());
        std::string data(reinterpret_cast<const char*>(source.data(*e)), e->end - e->begin);
        if (kind == "block") {
            std::swap(shape[0], shape[1]);  // now [in, out], as the folder has it
            const size_t size = dtype_bytes(e->dtype);
            std::string rows;
            for (size_t o = 0; o < shape[1]; o++)
                for (size_t i = 0; i < shape[0]; i++) rows += data.substr((i * shape[1] + o) * size, size);
            data = rows;
        }
        CHECK(shape == std::vector<uint64_t>(e->shape.begin(), e->shape.end()));
        CHECK(t.data == data);
    }
    CHECK(found == file.entries().size());
}

}  // namespace

TEST_CASE("export: a GGUF file has the numbers of the folder, the tokenizer, and what llama.cpp asks for") {
    const Exports w;
    w.ok("fold norm.bin norm-folded.bin"), w.ok("fold taper-all.bin free-folded.bin");
    for (const std::string model : {"norm.bin", "taper-all.bin", "norm-folded.bin", "free-folded.bin"})
        for (const std::string dtype : {"fp32", "bf16"}) {
            CAPTURE(model);
            CAPTURE(dtype);
            w.ok("train_gpt export " + model + " exact"),
                w.ok("train_gpt export " + model + " folder --dtype " + dtype);
            CHECK(w.ok("train_gpt export " + model + " m.gguf --dtype " + dtype)
                      .find("wrote     m.gguf: GGUF, " + dtype) != std::string::npos);
            const Gguf gguf(w.at("m.gguf"));
            check_same_tensors(gguf, w.at("folder"), w.at("exact"), 1);
            CHECK(gguf.tensors.count("output.weight") == (model.find("folded") != model.npos));
            auto key = [&](const char* name) { return gguf.keys.at(name); };
            CHECK(gguf.order[0] == "general.architecture");
            CHECK(key("general.architecture") == "gpt2");
            CHECK(key("general.file_type") == (dtype == "fp32" ? 0 : 32));
            const json config = config_in(w.at("folder"));
            CHECK(key("gpt2.block_count") == config["n_layer"]);
            CHECK(key("gpt2.context_length") == config["n_positions"]);
            CHECK(key("gpt2.embedding_length") == config["n_embd"]);
            CHECK(key("gpt2.feed_forward_length") == 4 * config["n_embd"].get<size_t>());
            CHECK(key("gpt2.attention.head_count") == config["n_head"]);
            CHECK(key("gpt2.attention.layer_norm_epsilon").get<float>() == config["layer_norm_epsilon"].get<float>());
            CHECK(json::parse(key("tapernorm.provenance").get<std::string>()).back()["program"] == "train_gpt export");
            // Bytes: no merges, and texts end at byte 0.
            CHECK(key("tokenizer.ggml.model") == "gpt2");
            CHECK(key("tokenizer.ggml.pre") == "gpt-2");
            CHECK(key("tokenizer.ggml.merges") == json::array());
            CHECK(key("tokenizer.ggml.eos_token_id") == 0);
            CHECK(key("tokenizer.ggml.add_bos_token") == false);
            const json vocab = json::parse(read_file(w.at("folder/vocab.json")));
            REQUIRE(key("tokenizer.ggml.tokens").size() == 256);
            CHECK(key("tokenizer.ggml.tokens")[0] == "\u0100");  // in the folder's it has another name
            for (size_t id = 1; id < 256; id++)
                CHECK(vocab.at(key("tokenizer.ggml.tokens")[id].get<std::string>()) == id);
            for (size_t id = 0; id < 256; id++) CHECK(key("tokenizer.ggml.token_type")[id] == (id == 0 ? 3 : 1));
            for (const char* made : {"exact", "folder", "m.gguf"}) fs::remove_all(w.at(made));
        }
    // A BPE, in a vocabulary that is padded.
    write_vocabulary(w.at("words"));
    w.ok(kTiny + " -g norm --tokenizer words -o words.bin");
    w.ok("train_gpt export words.bin words.gguf"), w.ok("train_gpt export words.bin hf");
    const Gguf gguf(w.at("words.gguf"));
    const json vocab = json::parse(read_file(w.at("hf/vocab.json"))), tokens = gguf.keys.at("tokenizer.ggml.tokens");
    REQUIRE(tokens.size() == 259);
    for (size_t id = 0; id < 259; id++) CHECK(vocab.at(tokens[id].get<std::string>()) == id);
    CHECK(gguf.keys.at("tokenizer.ggml.merges") == json::array({"h e", "t he"}));
    CHECK(gguf.keys.at("tokenizer.ggml.eos_token_id") == 258);
    CHECK(gguf.keys.at("tokenizer.ggml.token_type")[258] == 3);
    json config = config_in(w.at("hf"));
    config["vocab_size"] = 384;
    std::vector<TensorOut> padded;
    std::vector<float> wte(384 * 16, 0.5f);
    {
        const SafetensorsFile file(w.at("hf/model.safetensors"));
        for (const TensorEntry& e : file.entries()) padded.push_back({e.name, e.dtype, e.shape, file.data(e)});
        for (TensorOut& t : padded)
            if (t.name == "transformer.wte.weight") t.shape = {384, 16}, t.data = wte.data();
        fs::create_directory(w.at("padded"));
        write_safetensors(w.at("padded/model.safetensors"), {}, padded);
    }
    for (const char* name : {"vocab.json", "merges.txt"}) fs::copy(w.at("hf/") + name, w.at("padded/") + name);
    write_file(w.at("padded/config.json"), config.dump());
    w.ok(kTrain + " -g norm --n-layer 2 --n-embd 16 --n-head 2 -t 16 -o two.bin");
    w.ok("train_gpt export two.bin two.gguf"), w.ok("train_gpt export two.bin two");
    check_same_tensors(Gguf(w.at("two.gguf")), w.at("two"), w.at("two"), 2);
    w.ok("train_gpt export padded padded.gguf");
    const Gguf more(w.at("padded.gguf"));
    REQUIRE(more.keys.at("tokenizer.ggml.tokens").size() == 384);
    CHECK(more.keys.at("tokenizer.ggml.tokens")[383] == "[PAD383]");
    CHECK(more.keys.at("tokenizer.ggml.token_type")[383] == 5);
    CHECK(more.tensors.at("token_embd.weight").dimensions == std::vector<uint64_t>{16, 384});
}

TEST_CASE("export: what a GGUF file cannot hold is refused with the reason; nothing is overwritten or left behind") {
    const Exports w;
    w.ok("fold taper.bin taper-folded.bin");
    w.ok(kTiny + " -g norm --norm rmsnorm -o rms.bin"),
        w.ok(kTiny + " -g taper-all --bound 1e4 --final-bound 2e4 -o bounded.bin");
    fs::copy("tests/golden/torch", w.at("nameless"));
    write_file(w.at("there.gguf"), "mine");
    const auto before = w.contents();
    // clang-format off
    const std::pair<std::string, std::vector<std::string>> cases[] = {
        {"taper.bin m.gguf", {"taper.bin", "only the final norm stays", "-g norm", "export MODEL DIR"}},
        {"taper-folded.bin m.gguf", {"taper-folded.bin", "only the final norm stays"}},
        {"rms.bin m.gguf", {"rms.bin", "LayerNorm, not RMSNorm"}}, {"bounded.bin m.gguf", {"bounded.bin", "no bound", "--without-bound"}},
        {"nameless m.gguf", {"nameless", "--tokenizer"}}, {"norm.bin there.gguf", {"there.gguf", "exists", "a new file"}},
        {"norm.bin nowhere/m.gguf", {"nowhere/m.gguf"}}};
    // clang-format on
    for (const auto& [command, needles] : cases) w.refused("train_gpt export " + command, needles);
    CHECK(run_program_in(w.path, words("train_gpt export norm.bin m.gguf"), 5000).status == 1);  // a full disk
    CHECK(w.contents() == before);
    CHECK(w.run("train_gpt export bounded.bin free.gguf --without-bound").status == 0);
    CHECK(Gguf(w.at("free.gguf")).keys.at("gpt2.attention.layer_norm_epsilon") == 1e12f);
    w.ok("train_gpt export nameless named.gguf --tokenizer bytes");
}

TEST_CASE("export: bf16, another tokenizer, and what it refuses") {
    const Exports w;
    w.ok("train_gpt export norm.bin half --dtype bf16");
    CHECK(SafetensorsFile(w.at("half/model.safetensors")).entries()[0].dtype == Dtype::BF16);
    CHECK(config_in(w.at("half"))["torch_dtype"] == "bfloat16");
    w.ok("fold taper.bin folded.bin --dtype bf16");
    CHECK(SafetensorsFile(w.at("folded.bin")).entries()[0].dtype == Dtype::BF16);
    w.ok("infer folded.bin -n 1 --tokens 1");
    // clang-format off
    const std::pair<std::string, std::vector<std::string>> cases[] = {
        {"", {"MODEL"}}, {"norm.bin", {"DIR"}}, {"missing.bin out", {"missing.bin"}}, {"corpus.txt out", {"corpus.txt"}},
        {"norm.bin half", {"half", "new"}}, {"norm.bin corpus.txt", {"corpus.txt", "new"}},
        {"norm.bin nowhere/out", {"nowhere/out"}}, {"norm.bin out --dtype int8", {"--dtype", "int8"}},
        {"norm.bin out --tokenizer nowhere", {"nowhere"}}, {"norm.bin out surplus", {"surplus"}}};
    // clang-format on
    for (const auto& [command, needles] : cases) w.refused("train_gpt export " + command, needles);
    // A disk that is full: nothing is left, whether the folder was there or not.
    for (const bool there : {false, true}) {
        if (there) std::filesystem::create_directory(w.at("out"));
        const auto files = w.contents();
        CHECK(run_program_in(w.path, words("train_gpt export norm.bin out"), 5000).status == 1);
        CHECK(w.contents() == files);
    }
    CHECK(w.ok("train_gpt export --help").find("usage: train_gpt export MODEL DIR") != std::string::npos);
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
