// Where tokenizers are found: in a model file, beside one, in a folder, in Hugging Face's single tokenizer.json.
#include <filesystem>
#include <set>

#include "io/files.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "runtime/error.h"

namespace tapernorm {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr size_t kLargestFile = 64 << 20;  // of GPT-2's, and most others, the largest has 2 MB

struct TwoFiles {
    std::string vocab_json, merges_txt;
};

// A tokenizer.json can hold any of Hugging Face's tokenizers. GPT-2's has a BPE model, no normalizer, and words cut by the
// ByteLevel expression and by nothing before it. Tokens besides those of the BPE (<|endoftext|>) are in added_tokens.
TwoFiles split_tokenizer_json(const std::string& path) {
    const std::string source = in_quotes(path);
    const std::string text = read_text(path, kLargestFile);
    const json all = parse_json(text);
    if (!all.is_object()) fail("%s: expected a JSON object, found %s", source.c_str(), json_found(all, text).c_str());
    auto refuse = [&](const char* what) {
        fail("%s: %s; expected a byte-level BPE like that of GPT-2; give such a one", source.c_str(), what);
    };
    auto part = [](const json& object, const char* key) {
        const auto found = object.find(key);
        return found == object.end() ? json() : *found;
    };
    const json model = part(all, "model"), words = part(all, "pre_tokenizer");
    if (!model.is_object() || part(model, "type") != "BPE") refuse("its \"model\" is not a BPE");
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
        if (const json value = part(model, affix); !value.is_null() && value != "")
            refuse(("its \"model\" has \"" + std::string(affix) + "\"").c_str());
    if (const json value = part(model, "dropout"); !value.is_null() && value != 0)
        refuse("its \"model\" has \"dropout\"");
    if (part(model, "ignore_merges") == true) refuse("its \"model\" has \"ignore_merges\"");
    if (part(model, "byte_fallback") == true) refuse("its \"model\" has \"byte_fallback\"");
    if (!part(all, "normalizer").is_null()) refuse("it has a \"normalizer\"");
    if (!words.is_object() || part(words, "type") != "ByteLevel" || part(words, "add_prefix_space") == true ||
        part(words, "use_regex") == false)
        refuse("its \"pre_tokenizer\" is not ByteLevel without a prefix space");
    json vocab = part(model, "vocab"), merges = part(model, "merges"), added = part(all, "added_tokens");
    if (!vocab.is_object() || !merges.is_array()) refuse("its \"model\" has no \"vocab\" and \"merges\"");
    for (const json& token : added) {
        if (!token.is_object() || !part(token, "content").is_string() || !part(token, "id").is_number_unsigned())
            refuse("one of its \"added_tokens\" has no \"content\" or no \"id\"");
        vocab[part(token, "content").get<std::string>()] = part(token, "id");
    }
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
    constexpr std::string_view kVocabName = "vocab.json";
    std::error_code ignored;
    std::string vocab = path;
    if (fs::is_directory(path, ignored)) {
        vocab = (fs::path(path) / kVocabName).string();
        const std::string single = (fs::path(path) / "tokenizer.json").string();
        if (!fs::exists(vocab, ignored) && fs::exists(single, ignored)) vocab = single;
    }
    if (vocab.ends_with("tokenizer.json")) {
        const TwoFiles files = split_tokenizer_json(vocab);
        return from_text(files.vocab_json, files.merges_txt, in_quotes(vocab));
    }
    if (!vocab.ends_with(kVocabName))
        fail(
            "%s is not a tokenizer; expected \"bytes\", a folder with vocab.json and merges.txt, the vocab.json of such a "
            "pair, Hugging Face's tokenizer.json, or llm.c's gpt2_tokenizer.bin (./prepare puts GPT-2's into "
            "data/downloads/gpt2)",
            in_quotes(path).c_str());
    const std::string merges = vocab.substr(0, vocab.size() - kVocabName.size()) + "merges.txt";
    for (const std::string& file : {vocab, merges})
        if (!fs::exists(file, ignored))
            fail("the tokenizer %s needs %s, which does not exist; data/README.md says where to get GPT-2's files",
                 in_quotes(path).c_str(), in_quotes(file).c_str());
    const Tokenizer tokenizer =
        from_text(read_text(vocab, kLargestFile), read_text(merges, kLargestFile), in_quotes(path));
    tokenizer.check_merges(in_quotes(path));
    return tokenizer;
}

std::optional<Tokenizer> Tokenizer::beside(const std::string& file) {
    const fs::path parent = fs::path(file).parent_path(), folder = parent.empty() ? "." : parent;
    std::error_code ignored;
    if (!fs::exists(folder / "vocab.json", ignored) || !fs::exists(folder / "merges.txt", ignored)) return {};
    return from_path(folder.string());
}

bool fits_vocabulary(size_t n, size_t V) {
    constexpr size_t kPadding = 128;
    return n <= V && (V <= (n + kPadding - 1) / kPadding * kPadding || V - n <= n / 32);
}

bool check_shards(const char* flag, std::span<const std::string> shards, const std::string& used, size_t V) {
    std::set<fs::path> seen;
    bool all = true;
    for (const std::string& shard : shards) {
        if (!seen.insert(fs::path(shard).parent_path()).second) continue;
        const auto own = Tokenizer::beside(shard);
        all &= own.has_value();
        if (!own || own->name() == used || (used == "unknown" && fits_vocabulary(own->vocab_size(), V))) continue;
        if (used == "unknown")
            fail(
                "%s: the tokenizer beside %s (vocab.json, merges.txt) has %zu tokens, but the model's vocabulary has %zu; name "
                "shards that were made for it",
                flag, in_quotes(shard).c_str(), own->vocab_size(), V);
        else
            fail(
                "%s: the tokenizer beside %s (vocab.json, merges.txt) is %s, expected %s, which is used here; name shards "
                "that it made",
                flag, in_quotes(shard).c_str(), own->name().c_str(), used.c_str());
    }
    return all;
}

Tokenizer Tokenizer::from_metadata(const std::map<std::string, std::string>& metadata, const std::string& model_path) {
    const auto name = metadata.find("tokenizer"), vocab = metadata.find("tokenizer.vocab"),
               merges = metadata.find("tokenizer.merges");
    if (name != metadata.end() && name->second == "bytes") return Tokenizer();
    if (vocab != metadata.end() && merges != metadata.end()) {
        Tokenizer tokenizer = from_text(vocab->second, merges->second, in_quotes(model_path));
        if (name != metadata.end() && name->second != tokenizer.name())
            fail(
                "%s says that its tokenizer is %s, but it holds the vocabulary of %s; the file is damaged or was changed "
                "by another program",
                in_quotes(model_path).c_str(), in_quotes(name->second).c_str(), tokenizer.name().c_str());
        return tokenizer;
    }
    if (const std::optional<Tokenizer> found = beside(model_path)) {
        const Tokenizer& tokenizer = *found;
        if (name == metadata.end() || name->second == tokenizer.name()) return tokenizer;
        fail(
            "%s was trained with the tokenizer %s, but the one beside it is %s; name the right one with --tokenizer DIR",
            in_quotes(model_path).c_str(), in_quotes(name->second).c_str(), tokenizer.name().c_str());
    }
    fail(
        "%s: its tokenizer (%s) is not in the file, and there is no vocab.json and merges.txt beside it; name one with "
        "--tokenizer DIR%s",
        in_quotes(model_path).c_str(), name == metadata.end() ? "unknown" : name->second.c_str(),
        name == metadata.end() || name->second == "bytes" || name->second == "unknown" ? " (or --tokenizer bytes)"
                                                                                       : "");
}

}  // namespace tapernorm
