// Models of other programs: Hugging Face's GPT-2 folders and llm.c's checkpoints. dev/reference/check_hf.py compares
// the logits with transformers; here the numbers that are read are compared with those of our own file.
#include <doctest/doctest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "io/tokenizer.h"
#include "model/model_file.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "tests/vocabulary.h"

namespace tapernorm {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// kShape as transformers writes it.
json config_of_base() {
    // clang-format off
    return {{"activation_function", "gelu_new"}, {"architectures", {"GPT2LMHeadModel"}}, {"model_type", "gpt2"},
            {"layer_norm_epsilon", 1e-05}, {"n_embd", 16}, {"n_head", 2}, {"n_inner", nullptr}, {"n_layer", 1},
            {"n_positions", 16}, {"vocab_size", 256}, {"reorder_and_upcast_attn", true},
            {"scale_attn_by_inverse_layer_idx", false}, {"scale_attn_weights", true}, {"tie_word_embeddings", true}};
    // clang-format on
}

struct Base : Workplace {
    Cpu dev{1};
    Base() { ok(kTiny + " -g norm -o base.bin"); }

    // A folder as transformers writes one, with the tensors of base.bin for which `keep` is true.
    void hugging_face(const std::string& name, const json& config, const std::string& weights = "model.safetensors",
                      Dtype dtype = Dtype::F32, const std::string& drop = "",
                      const std::function<bool(size_t)>& keep = {}) {
        fs::create_directory(at(name));
        write_file(at(name + "/config.json"), config.dump());
        const SafetensorsFile from(at("base.bin"));
        std::vector<TensorOut> out;
        std::vector<std::vector<uint16_t>> rounded;
        for (size_t i = 0; i < from.entries().size(); i++) {
            const TensorEntry& e = from.entries()[i];
            if (keep && !keep(i)) continue;
            const float* data = reinterpret_cast<const float*>(from.data(e));
            rounded.emplace_back();
            for (size_t j = 0; j < e.count(); j++) rounded.back().push_back(bf16_from_float(data[j]));
            const bool same = dtype == Dtype::F32;
            out.push_back({e.name.substr(e.name.starts_with(drop) ? drop.size() : 0), dtype, e.shape,
                           same ? static_cast<const void*>(data) : rounded.back().data()});
        }
        static const float mask[16 * 16] = {};
        if (!drop.empty()) out.push_back({"h.0.attn.bias", Dtype::F32, {1, 1, 16, 16}, mask});
        write_safetensors(at(name + "/" + weights), {{"format", "pt"}}, out);
    }

    // base.bin in llm.c's layout, the vocabulary padded to 384.
    std::string llmc(int version) {
        const auto model = load_model(dev, at("base.bin"));
        std::string file;
        auto add = [&](float x) {
            const uint16_t half = bf16_from_float(x);
            version == 3 ? file.append(reinterpret_cast<const char*>(&x), 4)
                         : file.append(reinterpret_cast<const char*>(&half), 2);
        };
        const int32_t header[256] = {20240326, version, 16, 256, 1, 2, 16, 384};
        file.append(reinterpret_cast<const char*>(header), sizeof header);
        for (const auto& t : tensor_list(model->info.config, model->tensors)) {
            const bool transposed = t.spec.shape.size() == 2 && t.spec.name.find(".h.") != t.spec.name.npos;
            const size_t rows = t.spec.shape[0], columns = transposed ? t.spec.shape[1] : t.spec.count() / rows;
            if (!transposed)
                for (size_t i = 0; i < t.spec.count(); i++) add(t.data[i]);
            for (size_t o = 0; transposed && o < columns; o++)
                for (size_t i = 0; i < rows; i++) add(t.data[i * columns + o]);
            for (size_t i = 256 * 16; t.spec.name == "transformer.wte.weight" && i < 384 * 16; i++) add(1e9f);
        }
        return file;
    }

    // The file holds base.bin's numbers, rounded to bf16 or not.
    void check_same(const std::string& file, bool bf16 = false) {
        CAPTURE(file);
        const auto model = load_model(dev, at(file)), base = load_model(dev, at("base.bin"));
        CHECK(config_metadata(model->info.config) == config_metadata(base->info.config));
        CHECK(model->info.gate == 1);
        const auto a = tensor_list(model->info.config, model->tensors),
                   b = tensor_list(base->info.config, base->tensors);
        REQUIRE(a.size() == b.size());
        for (size_t i = 0; i < a.size(); i++) {
            size_t wrong = 0;
            for (size_t j = 0; j < a[i].spec.count(); j++)
                wrong += a[i].data[j] != (bf16 ? float_from_bf16(bf16_from_float(b[i].data[j])) : b[i].data[j]);
            CHECK_MESSAGE(wrong == 0, a[i].spec.name);
        }
    }
};

}  // namespace

TEST_CASE("foreign models: Hugging Face's folders and llm.c's checkpoints hold the numbers of our own file") {
    Base w;
    const json config = config_of_base();
    w.hugging_face("plain", config);
    w.check_same("plain");
    w.check_same("plain/model.safetensors");
    w.hugging_face("old", {{"n_embd", 16}, {"n_head", 2}, {"n_layer", 1}, {"n_positions", 16}, {"vocab_size", 256}},
                   "model.safetensors", Dtype::F32, "transformer.");
    w.check_same("old");
    w.hugging_face("half", config, "model.safetensors", Dtype::BF16);
    w.check_same("half", true);
    w.hugging_face("shards", config, "model-00001-of-00002.safetensors", Dtype::F32, "",
                   [](size_t i) { return i % 3 == 0; });
    w.hugging_face("shards", config, "model-00002-of-00002.safetensors", Dtype::F32, "",
                   [](size_t i) { return i % 3 != 0; });
    write_file(w.at("shards/model.safetensors.index.json"),
               R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})");
    w.check_same("shards");
    w.check_same("shards/model.safetensors.index.json");
    write_file(w.at("llmc_fp32.bin"), w.llmc(3));
    w.check_same("llmc_fp32.bin");
    write_file(w.at("llmc_bf16.bin"), w.llmc(5));
    w.check_same("llmc_bf16.bin", true);
    // The programs take them: the same logits, a fold, a run.
    w.ok("infer base.bin --tokens 1,2,3 -n 1 --dump base.st");
    for (const std::string model : {"plain", "llmc_fp32.bin"}) {
        w.ok("infer " + model + " --tokens 1,2,3 -n 1 --dump logits.st");
        CHECK(read_file(w.at("logits.st")) == read_file(w.at("base.st")));
    }
    w.ok("fold plain folded.bin");
    const std::string out = w.ok(kTrain + " --init plain --tokenizer bytes -t 8 -j corpus.txt -m 3");
    w.ok("train_gpt -y -x 7 -g taper");
    CHECK(out.find("plain/model.safetensors: validation loss ") != out.npos);
    CHECK(out.find(" before the first update\n") != out.npos);
    CHECK(out.find("context   -t 8: the first 8 of its 16 positions are trained") != out.npos);
    CHECK(w.ok(kTrain + " --init plain --tokenizer bytes -t 16 -j corpus.txt -m 3").find("context   ") == out.npos);
}

TEST_CASE("foreign models: text is cut by the tokenizer beside the model, which the new model then carries") {
    const Workplace w;
    write_vocabulary(w.at("words"));
    w.ok(kTiny + " -g norm --tokenizer words -o base.bin");
    json config = config_of_base();
    config["vocab_size"] = 259;
    fs::create_directory(w.at("model"));
    write_file(w.at("model/config.json"), config.dump());
    {
        const SafetensorsFile from(w.at("base.bin"));
        std::vector<TensorOut> out;
        for (const TensorEntry& e : from.entries()) out.push_back({e.name, e.dtype, e.shape, from.data(e)});
        write_safetensors(w.at("model/model.safetensors"), {}, out);
    }
    const std::string name = Tokenizer::from_path(w.at("words")).name();
    w.refused(kTrain + " --init model -o new.bin", {"--tokenizer", "model/model.safetensors", "vocab.json"});
    // Hugging Face's newer folders have one file.
    // clang-format off
    json single = {{"model", {{"type", "BPE"}, {"vocab", json::parse(read_file(w.at("words/vocab.json")))},
                              {"merges", json::parse(R"([["h", "e"], ["t", "he"]])")}}},
                   {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                   {"added_tokens", {{{"id", 258}, {"content", "<|endoftext|>"}}}}};
    // clang-format on
    single["model"]["vocab"].erase("<|endoftext|>");
    write_file(w.at("model/tokenizer.json"), single.dump());
    CHECK(Tokenizer::from_path(w.at("model")).name() == name);
    single["model"]["merges"] = json::array({"h e", "t he"});
    write_file(w.at("model/tokenizer.json"), single.dump());
    CHECK(w.ok(kTrain + " --init model -o new.bin -x 4 -s 2").find("vocabulary 259 (" + name + ")") !=
          std::string::npos);
    CHECK(w.ok("infer model -n 2 --prompt the").find("prompt 1 token ") != std::string::npos);
    for (const char* part : {"normalizer", "pre_tokenizer", "model"}) {
        json other = single;
        other[part] = {{"type", "Sequence"}};
        write_file(w.at("model/tokenizer.json"), other.dump());
        w.refused("infer model -n 2", {"model/tokenizer.json", part});
    }
    for (const auto& [key, value] :
         std::initializer_list<std::pair<const char*, json>>{{"end_of_word_suffix", "</w>"},
                                                             {"continuing_subword_prefix", "##"},
                                                             {"dropout", 0.1},
                                                             {"ignore_merges", true},
                                                             {"byte_fallback", true}}) {
        json other = single;
        other["model"][key] = value;
        write_file(w.at("model/tokenizer.json"), other.dump());
        w.refused("infer model -n 2", {"model/tokenizer.json", "expected a byte-level BPE"});
        other["model"][key] = value.is_string() ? json("") : json();
        write_file(w.at("model/tokenizer.json"), other.dump());
        w.ok("infer model -n 2");
    }
    for (const json& token : {json{{"id", -1}, {"content", "a"}}, json{{"id", 1}}, json(7)}) {
        json other = single;
        other["added_tokens"].push_back(token);
        write_file(w.at("model/tokenizer.json"), other.dump());
        w.refused("infer model -n 2", {"model/tokenizer.json", "added_tokens"});
    }
    write_file(w.at("model/tokenizer.json"), single.dump());
    // To resume, neither the folder nor the flag is needed.
    fs::rename(w.at("model"), w.at("gone"));
    w.ok("train_gpt -y -o new.bin -x 6");
    CHECK(w.ok("infer new.bin -n 2 --prompt the").find("prompt 1 token ") != std::string::npos);
    w.refused(kTrain + " --init new.bin", {"--init", "new.bin", "tapered"});
    w.ok(kTrain + " --init base.bin -o again.bin");
    w.refused(kTrain + " --init base.bin --tokenizer bytes", {"--tokenizer", name, "bytes"});
    w.ok(kTiny + " -g norm -o bytes.bin");
    w.refused(kTrain + " --init bytes.bin --tokenizer words", {"--tokenizer: expected bytes", "bytes.bin", name});
}

TEST_CASE("foreign models: settings of config.json that we do not have are refused by name") {
    Base w;
    const json good = config_of_base();
    w.hugging_face("hf", good);
    auto refuse = [&](const std::string& text, std::vector<std::string> needles) {
        write_file(w.at("hf/config.json"), text);
        needles.push_back("hf/");
        w.refused("infer hf -n 1", needles);
    };
    // clang-format off
    const std::vector<std::pair<std::string, json>> settings = {
        {"model_type", "llama"}, {"activation_function", "relu"}, {"scale_attn_by_inverse_layer_idx", true},
        {"scale_attn_weights", false}, {"add_cross_attention", true}, {"n_inner", 32}, {"n_embd", -16}, {"n_embd", 1e9},
        {"n_head", 0}, {"n_head", "2"}, {"n_layer", 99999}, {"n_positions", 1.5}, {"vocab_size", 1}, {"vocab_size", nullptr},
        {"layer_norm_epsilon", "small"}, {"quantization_config", {{"quant_method", "gptq"}}}, {"tie_word_embeddings", 1}, {"n_layer", 2}, {"n_positions", 32}};
    // clang-format on
    for (const auto& [key, value] : settings) {
        json bad = good;
        bad[key] = value;
        const bool shape = value == 2 || value == 32 || value.is_null();
        refuse(bad.dump(), {shape && key != "n_inner" ? "tensor" : key});
    }
    json untied = good;
    untied["tie_word_embeddings"] = false;
    refuse(untied.dump(), {"lm_head.weight"});
    const std::string text = good.dump();
    for (size_t bytes = 0; bytes < text.size(); bytes += 29) refuse(text.substr(0, bytes), {"config.json"});
    refuse("[]", {"config.json", "array"});
    refuse("{\"n_layer\": \xff}", {"config.json"});
    fs::remove(w.at("hf/config.json"));
    w.refused("infer hf -n 1", {"hf/model.safetensors", "hf/config.json"});
    fs::remove(w.at("hf/model.safetensors"));
    write_file(w.at("hf/config.json"), text);
    w.refused("fold hf out.bin", {"hf", "model.safetensors"});
    for (const std::string index : {"{}", "{\"weight_map\": {\"a\": 1}}", "{\"weight_map\": {\"a\": \"../base.bin\"}}",
                                    "{\"weight_map\": {\"a\": \"none.safetensors\"}}", "{\"weight_map\": "}) {
        write_file(w.at("hf/model.safetensors.index.json"), index);
        w.refused("infer hf -n 1", {"hf/"});
    }
    // Free of norms already: there is nothing to taper.
    json free = good;
    free["layer_norm_epsilon"] = 1e12;
    w.hugging_face("free", free);
    w.ok("infer free --tokens 1 -n 1");
    w.refused("train_gpt --init free", {"--init", "free/model.safetensors", "epsilon"});
    w.ok("fold free folded.bin --clamp-sample corpus.txt --tokenizer bytes");
    w.refused("fold free folded.bin --clamp-sample corpus.txt --tokenizer none", {"none"});
    free["layer_norm_epsilon"] = 4e12;
    w.hugging_face("freer", free);
    CHECK(ModelFile::open(w.at("freer"))->info().scales[0].c == 5e-7f * 0x1p20f);
    free["layer_norm_epsilon"] = 100;
    w.hugging_face("nearly", free);
    w.refused("train_gpt --init nearly", {"--init", "nearly/model.safetensors", "epsilon"});
}

TEST_CASE("foreign models: tensors that nobody would read are refused by name; masks are none of the model") {
    Base w;
    const json config = config_of_base();
    w.hugging_face("hf", config);
    const std::string weights = w.at("hf/model.safetensors");
    w.ok("infer base.bin --tokens 1,2,3 -n 1 --dump base.st");
    const SafetensorsFile base(w.at("base.bin"));
    auto with = [&](const std::vector<std::pair<std::string, std::string>>& more,
                    const json& settings) {  // name, copied from
        std::vector<TensorOut> out;
        for (const TensorEntry& e : base.entries()) out.push_back({e.name, e.dtype, e.shape, base.data(e)});
        for (const auto& [name, from] : more) {
            const TensorEntry& e = *base.find(from);
            out.push_back({name, e.dtype, e.shape, base.data(e)});
        }
        write_safetensors(weights, {}, out);
        write_file(w.at("hf/config.json"), settings.dump());
    };
    const std::string wte = "transformer.wte.weight", fc = "transformer.h.0.mlp.c_fc.weight";
    // A layer more than config.json has, adapters, other heads, a tensor that is there twice, in both of its spellings.
    for (const std::string name :
         {"transformer.h.1.mlp.c_fc.weight", "h.7.mlp.c_fc.weight",
          "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", "transformer.h.0.crossattention.c_attn.weight",
          "transformer.h.1.attn.bias", "h.0.crossattention.attn.bias", "adapter.attn.masked_bias", "h.01.attn.bias",
          "lm_head.bias", "score.weight", "v_head.summary.weight", "wte.weight"}) {
        with({{name, fc}}, config);
        w.refused("infer hf -n 1", {"hf/model.safetensors", name});
    }
    w.refused("fold hf out.bin", {"wte.weight"});
    w.refused(kTrain + " --init hf", {"wte.weight"});
    // A head of its own, whatever config.json says; the same numbers as wte are no other head.
    for (const bool tied : {true, false}) {
        json settings = config;
        settings["tie_word_embeddings"] = tied;
        with({{"lm_head.weight", wte}}, settings);
        w.check_same("hf");
        std::string changed = read_file(weights);
        changed.back() = char(changed.back() ^ 1);  // the last tensor's last number
        write_file(weights, changed);
        if (tied) {
            w.refused("infer hf -n 1", {"lm_head.weight", "true", "write false there"});
            continue;
        }
        // Folded and exported in either layout, it is the same model; there is no trainer for it.
        w.ok("infer hf --tokens 1,2,3 -n 1 --dump own.st"), w.ok("fold hf folded.bin");
        CHECK(read_file(w.at("own.st")) != read_file(w.at("base.st")));
        for (const char* flags : {"", " --hf-code"}) {
            fs::remove_all(w.at("out"));
            REQUIRE(w.run(std::string("train_gpt export hf out --tokenizer bytes") + flags).status == 0);
            w.ok("infer out --tokens 1,2,3 -n 1 --dump again.st");
            CHECK(read_dump(w.at("again.st")).logits == read_dump(w.at("own.st")).logits);
        }
        w.ok("infer out/model.safetensors --info"), w.ok("infer folded.bin -n 1 --tokens 1");
        for (const char* model : {"hf", "out"})
            w.refused(kTrain + " --init " + model + " --tokenizer bytes", {"--init", "lm_head.weight"});
    }
    with({{"transformer.h.0.attn.bias", fc}, {"transformer.h.0.attn.masked_bias", fc}}, config);
    w.check_same("hf");
    CHECK(w.ok("infer hf -n 1 --tokens 97").find("without its 2 attention masks") != std::string::npos);
    // An adapter beside the model belongs to it.
    with({}, config);
    w.ok("infer hf -n 1 --tokens 97");
    write_file(w.at("hf/adapter_config.json"), "{}");
    w.refused("infer hf -n 1", {"hf/adapter_config.json", "merge"});
    // The same for a file of our own.
    std::vector<TensorOut> out;
    for (const TensorEntry& e : base.entries()) out.push_back({e.name, e.dtype, e.shape, base.data(e)});
    out.push_back({"transformer.h.1.ln_1.bias", Dtype::F32, {16}, base.data(base.entries()[0])});
    auto metadata = base.metadata();
    metadata.erase("checksum");
    write_safetensors(w.at("more.bin"), metadata, out, {.checksum = true});
    w.refused("infer more.bin -n 1", {"more.bin", "transformer.h.1.ln_1.bias"});
}

TEST_CASE("foreign models: names of tensors may have those of wrappers in them (DataParallel, torch.compile, FSDP)") {
    Base w;
    w.hugging_face("hf", config_of_base());
    const SafetensorsFile base(w.at("base.bin"));
    const auto with = [&](const std::function<std::string(std::string)>& new_name) {
        std::vector<TensorOut> out;
        for (const TensorEntry& e : base.entries()) out.push_back({new_name(e.name), e.dtype, e.shape, base.data(e)});
        write_safetensors(w.at("hf/model.safetensors"), {}, out);
    };
    for (const std::string wrapper : {"module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."}) {
        with([&](const std::string& name) { return wrapper + name; });
        w.check_same("hf");
        with([&](const std::string& name) {
            return wrapper + name.substr(name.find('.') + 1);
        });  // without "transformer."
        w.check_same("hf");
    }
    // Of a block alone.
    with([](std::string name) {
        return name.starts_with("transformer.h.0.")
                   ? "transformer.h.0._orig_mod._checkpoint_wrapped_module." + name.substr(16)
                   : name;
    });
    w.check_same("hf");
    // None of these is a wrapper's, and a tensor under two names is there twice.
    for (const std::string other : {"model.", "my_module.", "_orig_mod_."}) {
        with([&](const std::string& name) { return other + name; });
        w.refused("infer hf -n 1", {"hf/model.safetensors", "missing"});
    }
    std::vector<TensorOut> out;
    for (const TensorEntry& e : base.entries()) out.push_back({e.name, e.dtype, e.shape, base.data(e)});
    out.push_back(out[0]), out.back().name = "module." + out[0].name;
    write_safetensors(w.at("hf/model.safetensors"), {}, out);
    w.refused("infer hf -n 1", {"hf/model.safetensors", out[0].name, "each once"});
}

TEST_CASE("foreign models: a part of a model, and what is in its place, is said to be that") {
    Base w;
    const std::string config = config_of_base().dump();
    w.hugging_face("hf", config_of_base());
    for (const std::string name : {"model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"}) {
        fs::copy(w.at("hf/model.safetensors"), w.at("hf/" + name));
        const size_t number = name.find("-0000");
        w.refused("infer hf/" + name + " -n 1",
                  {"hf/" + name, "one of the 2 files",
                   "'" + name.substr(0, number) + name.substr(name.rfind('.')) + ".index.json'"});
    }
    fs::copy(w.at("hf/model.safetensors"), w.at("hf/model-00001-of-00001.safetensors"));
    w.check_same("hf/model-00001-of-00001.safetensors");
    // What clones and downloads leave, with and without the model's other file; also as a shard.
    const std::pair<std::string, std::string> instead[] =
        {{"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"},
         {"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "a text that begins with '<!DOCTYPE html>'"},
         {"Entry not found", "'Entry not found'"},
         {"\x1f\x8b rest of it", "gzip"},
         {"", "0 bytes"}};
    for (const auto& [bytes, needle] : instead)
        for (const std::string name : {"model.safetensors", "pytorch_model.bin"})
            for (const std::string folder : {"alone", "both", "shards"}) {
                fs::create_directory(w.at(folder));
                if (folder != "alone") write_file(w.at(folder + "/config.json"), config);
                write_file(w.at(folder + "/" + name), bytes);
                if (folder == "shards")
                    write_file(w.at("shards/model.safetensors.index.json"),
                               "{\"weight_map\": {\"a\": \"" + name + "\"}}");
                w.refused("infer " + folder + (folder == "shards" ? "/model.safetensors.index.json" : "/" + name) +
                              " -n 1",
                          {folder + "/" + name, needle});
            }
    for (const auto& [bytes, needle] : instead) {
        write_file(w.at("hf/config.json"), bytes);
        w.refused("infer hf -n 1", {"hf/config.json", bytes.empty() ? "an empty file" : needle});
    }
    w.refused("train_gpt -i alone/pytorch_model.bin", {"alone/pytorch_model.bin"});
    write_file(w.at("corpus.txt"), instead[0].first);
    w.refused("train_gpt -i corpus.txt", {"corpus.txt", "git lfs pull"});
    // No tensors: the weights are not whole, whatever config.json says.
    w.hugging_face("hf", config_of_base());
    write_safetensors(w.at("hf/model.safetensors"), {}, {});
    w.refused("infer hf -n 1", {"hf/model.safetensors: expected the tensors of 1 layer", "found 0 tensors"});
}

namespace {

// What transformers' save_pretrained leaves of an exported folder: the tensors, in one file or in two with an index, without our
// metadata; settings.
void save_again(const std::string& from, const std::string& to, size_t files, const json& changes = json::object()) {
    fs::remove_all(to), fs::create_directory(to);
    json config = json::parse(read_file(from + "/config.json")), index;
    config.update(changes);
    write_file(to + "/config.json", config.dump());
    const SafetensorsFile file(from + "/model.safetensors");
    for (size_t i = 0; i < files; i++) {
        const std::string name = files == 1 ? "model.safetensors" : strprintf("model-%zu.safetensors", i);
        std::vector<TensorOut> out;
        for (size_t j = i; j < file.entries().size(); j += files) {
            const TensorEntry& e = file.entries()[j];
            out.push_back({e.name, e.dtype, e.shape, file.data(e)});
            index["weight_map"][e.name] = name;
        }
        write_safetensors(to + "/" + name, {{"format", "pt"}}, out);
    }
    if (files > 1) write_file(to + "/model.safetensors.index.json", index.dump());
    for (const char* name : {"vocab.json", "merges.txt"}) fs::copy(from + "/" + name, to + "/" + name);
}

}  // namespace

TEST_CASE("foreign models: a number that fp16 could not hold is said to be that") {
    Base w;
    w.hugging_face("half", config_of_base(), "model.safetensors", Dtype::F16);
    std::string file = read_file(w.at("half/model.safetensors"));
    uint64_t header = 0;
    std::memcpy(&header, file.data(), sizeof header);
    const size_t first = 8 + header;
    CHECK(w.run("infer half --last-token --tokens 1").status == 0);
    file[first] = 0, file[first + 1] = 0x7c;  // infinity
    write_file(w.at("half/model.safetensors"), file);
    w.refused("infer half --last-token --tokens 1", {"half/model.safetensors", "found inf", "fp16 ends at 65504"});
    file[first + 1] = 0x7e;  // NaN
    write_file(w.at("half/model.safetensors"), file);
    w.refused("infer half --last-token --tokens 1", {"half/model.safetensors", "found nan", "damaged"});
}

TEST_CASE("foreign models: what transformers saves of an export is the model that was exported") {
    const Workplace w;
    const std::string kinds[] = {"-g taper",
                                 "-g taper-all --calibration channels+first",
                                 "-g taper-all --bound 0 --norm rmsnorm",
                                 "-g taper --bound 0",
                                 "-g norm --norm rmsnorm",
                                 "-g taper --gate-end 9"};
    for (const std::string& kind : kinds) {
        CAPTURE(kind);
        for (const char* made : {"a.bin", "a.state.bin", "a.toml", "a.log.jsonl"}) fs::remove(w.at(made));
        const bool blends = kind.ends_with("9");
        w.ok(kTiny + " -o a.bin " + kind);
        if (!blends) w.ok("fold a.bin b.bin");
        for (const std::string model : {"a.bin", "b.bin"}) {
            if (blends && model == "b.bin") continue;
            fs::remove_all(w.at("hf"));
            w.ok("train_gpt export " + model + " hf");
            w.ok("infer " + model + " --tokens 1,2,3 -n 1 --dump own.st");
            const auto own = ModelFile::open(w.at(model));
            for (const size_t files : {1, 2}) {
                save_again(w.at("hf"), w.at("back"), files);
                const auto back = ModelFile::open(w.at("back"));
                CHECK(config_metadata(back->info().config) == config_metadata(own->info().config));
                CHECK(back->info().gate == own->info().gate);
                w.ok("infer back --tokens 1,2,3 -n 1 --dump back.st");
                CHECK(read_file(w.at("back.st")) == read_file(w.at("own.st")));
            }
            fs::remove_all(w.at("out"));
            w.ok("train_gpt export back out");
            CHECK(read_file(w.at("out/config.json")) == read_file(w.at("hf/config.json")));
        }
        if (blends) continue;
        fs::remove_all(w.at("hf")), fs::remove(w.at("c.bin"));
        w.ok("train_gpt export a.bin hf");
        save_again(w.at("hf"), w.at("back"), 2);
        w.ok("fold back c.bin");
        CHECK(SafetensorsFile(w.at("c.bin")).metadata().at("content").size() > 0);
        w.ok("infer b.bin --tokens 1,2,3 -n 1 --dump own.st"), w.ok("infer c.bin --tokens 1,2,3 -n 1 --dump back.st");
        CHECK(read_file(w.at("back.st")) == read_file(w.at("own.st")));
    }
    // Settings that make no model, and those that make another one of the same tensors.
    w.ok(kTiny + " -g taper-all -o d.bin"), w.ok("fold d.bin e.bin");
    for (const std::string model : {"d", "e"}) w.ok("train_gpt export " + model + ".bin " + model);
    // clang-format off
    const std::vector<std::tuple<std::string, std::string, json>> settings = {
        {"d", "norm", "batchnorm"}, {"d", "gate_mode", "tapered"}, {"d", "folded", 1}, {"d", "gate", 1.5}, {"d", "gate", "0"},
        {"d", "bound", -1}, {"d", "bound", 1e-30}, {"d", "final_bound", 0}, {"d", "first_apart", 1}, {"e", "tie_word_embeddings", true}};
    // clang-format on
    for (const auto& [model, key, value] : settings) {
        save_again(w.at(model), w.at("bad"), 1, {{key, value}});
        w.refused("infer bad -n 1", {"bad/config.json", key});
    }
    for (const auto& [key, value] : std::vector<std::pair<std::string, json>>{{"first_apart", true},
                                                                              {"folded", "all"},
                                                                              {"gate_mode", "norm"},
                                                                              {"norm", "rmsnorm"}}) {
        save_again(w.at("d"), w.at("bad"), 1, {{key, value}});
        w.refused("infer bad -n 1", {"bad/", ""});
    }
    save_again(w.at("d"), w.at("bad"), 1);
    w.refused(kTrain + " --init bad --tokenizer bytes",
              {"--init", "bad/model.safetensors", "start from a -g norm model"});
}

TEST_CASE("foreign models: a damaged llm.c checkpoint is one clear line") {
    Base w;
    const std::string good = w.llmc(3);
    auto refuse = [&](const std::string& bytes) {
        write_file(w.at("bad.bin"), bytes);
        try {
            load_model(w.dev, w.at("bad.bin"));
            FAIL_CHECK("accepted");
        } catch (const Error& e) {
            CHECK(std::string(e.what()).find("bad.bin") != std::string::npos);
            CHECK(std::string(e.what()).find('\n') == std::string::npos);
        }
    };
    for (size_t bytes = 0; bytes < good.size(); bytes += bytes < 1040 ? 13 : 997) refuse(good.substr(0, bytes));
    refuse(good + "x");
    for (int place = 0; place < 8; place++)
        for (int32_t value : {-1, 0, 1, 3, 255, 1 << 20, INT32_MAX}) {
            int32_t header[8];
            std::memcpy(header, good.data(), sizeof header);
            // One head is as good as two, and a smaller vocabulary is more padding.
            if (header[place] == value || (place == 5 && value == 1) || (place == 3 && (value == 3 || value == 255)))
                continue;
            std::string bad = good;
            std::memcpy(&bad[size_t(place) * 4], &value, 4);
            refuse(bad);
        }
    std::string nan = good;
    std::memset(&nan[1024 + 40], 0xff, 4);
    refuse(nan);
    write_file(w.at("bad.bin"), good.substr(0, 5000));
    w.refused("infer bad.bin -n 1", {"bad.bin", "llm.c"});
    w.refused("train_gpt --init bad.bin", {"bad.bin", "llm.c"});
}

}  // namespace tapernorm
