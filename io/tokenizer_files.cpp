// Where tokenizers lie: beside a model, in a folder, in Hugging Face's single tokenizer.json.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "io/tokenizer.h"
#include "runtime/error.h"

namespace tapernorm {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::string read_file(const std::string& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.data()), file.size()};
}

struct TwoFiles {
    std::string vocab_json, merges_txt;
};

// A tokenizer.json holds any tokenizer of Hugging Face's. GPT-2's: a BPE model, no normalizer, words cut by the
// ByteLevel expression and by nothing before it. Tokens beside the BPE's (<|endoftext|>) are in added_tokens.
TwoFiles split_tokenizer_json(const std::string& path) {
    const std::string source = in_quotes(path);
    const json all = json::parse(read_file(path), nullptr, false);
    auto refuse = [&](const char* what) {
        fail("%s: %s; expected a byte-level BPE as GPT-2 has it; vocab.json and merges.txt of such a one work too",
             source.c_str(), what);
    };
    if (!all.is_object()) refuse("it is no JSON object");
    auto part = [](const json& object, const char* key) {
        const auto found = object.find(key);
        return found == object.end() ? json() : *found;
    };
    const json model = part(all, "model"), words = part(all, "pre_tokenizer");
    if (!model.is_object() || part(model, "type") != "BPE") refuse("its \"model\" is no BPE");
    if (!part(all, "normalizer").is_null()) refuse("it has a \"normalizer\"");
    if (!words.is_object() || part(words, "type") != "ByteLevel" || part(words, "add_prefix_space") == true ||
        part(words, "use_regex") == false)
        refuse("its \"pre_tokenizer\" is not ByteLevel without a prefix space");
    json vocab = part(model, "vocab"), merges = part(model, "merges"), added = part(all, "added_tokens");
    if (!vocab.is_object() || !merges.is_array()) refuse("its \"model\" has no \"vocab\" and \"merges\"");
    for (const json& token : added)
        if (token.is_object() && part(token, "content").is_string() && part(token, "id").is_number_unsigned())
            vocab[part(token, "content").get<std::string>()] = part(token, "id");
    TwoFiles files{vocab.dump(), "#version: 0.2\n"};
    for (const json& merge : merges) {  // "a b", in newer files ["a", "b"]
        const bool pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
        if (!pair && !merge.is_string()) refuse("one of its \"merges\" is not a pair of tokens");
        files.merges_txt +=
            pair ? merge[0].get<std::string>() + ' ' + merge[1].get<std::string>() : merge.get<std::string>();
        files.merges_txt += '\n';
    }
    return files;
}

}  // namespace

Tokenizer Tokenizer::from_path(const std::string& path) {
    if (path == "bytes") return Tokenizer();
    if (path.ends_with(".bin")) return from_llmc(path);
    constexpr std::string_view vocab_name = "vocab.json";
    std::error_code ignored;
    std::string vocab = path;
    if (fs::is_directory(path, ignored)) {
        vocab = (fs::path(path) / vocab_name).string();
        const std::string single = (fs::path(path) / "tokenizer.json").string();
        if (!fs::exists(vocab, ignored) && fs::exists(single, ignored)) vocab = single;
    }
    if (vocab.ends_with("tokenizer.json")) {
        const TwoFiles files = split_tokenizer_json(vocab);
        return from_text(files.vocab_json, files.merges_txt, in_quotes(vocab));
    }
    if (!vocab.ends_with(vocab_name))
        fail(
            "%s is no tokenizer: expected \"bytes\", a directory with vocab.json and merges.txt, one of "
            "these two's vocab.json, Hugging Face's tokenizer.json, or llm.c's gpt2_tokenizer.bin (./prepare puts GPT-2's into "
            "data/downloads/gpt2)",
            in_quotes(path).c_str());
    const std::string merges = vocab.substr(0, vocab.size() - vocab_name.size()) + "merges.txt";
    for (const std::string& file : {vocab, merges})
        if (!fs::exists(file, ignored))
            fail(
                "the tokenizer %s needs %s, which does not exist; data/README.md says where GPT-2's files "
                "are",
                in_quotes(path).c_str(), in_quotes(file).c_str());
    return from_text(read_file(vocab), read_file(merges), in_quotes(path));
}

Tokenizer Tokenizer::from_metadata(const std::map<std::string, std::string>& metadata, const std::string& model_path) {
    const auto name = metadata.find("tokenizer"), vocab = metadata.find("tokenizer.vocab"),
               merges = metadata.find("tokenizer.merges");
    if (name != metadata.end() && name->second == "bytes") return Tokenizer();
    if (vocab != metadata.end() && merges != metadata.end()) {
        Tokenizer tokenizer = from_text(vocab->second, merges->second, in_quotes(model_path));
        if (name != metadata.end() && name->second != tokenizer.name())
            fail(
                "%s says its tokenizer is %s, but the vocabulary in it is %s; the file is damaged, or "
                "another program changed it",
                in_quotes(model_path).c_str(), in_quotes(name->second).c_str(), tokenizer.name().c_str());
        return tokenizer;
    }
    const fs::path parent = fs::path(model_path).parent_path();
    const fs::path directory = parent.empty() ? fs::path(".") : parent;
    std::error_code ignored;
    if (fs::exists(directory / "vocab.json", ignored) && fs::exists(directory / "merges.txt", ignored)) {
        Tokenizer tokenizer = from_path(directory.string());
        if (name == metadata.end() || name->second == tokenizer.name()) return tokenizer;
        fail(
            "%s was trained with the tokenizer %s, but beside it is %s; pass the right one by --tokenizer "
            "DIR",
            in_quotes(model_path).c_str(), in_quotes(name->second).c_str(), tokenizer.name().c_str());
    }
    fail(
        "%s holds no tokenizer and has no vocab.json and merges.txt beside it; pass one by --tokenizer DIR "
        "(or --tokenizer bytes)",
        in_quotes(model_path).c_str());
}

}  // namespace tapernorm
