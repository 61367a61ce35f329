// Text <-> token ids: bytes, or byte-level BPE as GPT-2 does it.
//
// Byte level: id = byte, V = 256. BPE: text is cut into words by GPT-2's regular expression; within a word the adjacent pair
// of lowest rank is merged until none is left. A vocabulary is GPT-2's pair of files (vocab.json and merges.txt) or llm.c's
// gpt2_tokenizer.bin.
//
// Any bytes can be encoded, and decode(encode(x)) == x. Where x is not UTF-8, the words are those of Python's
// x.decode("utf-8", errors="replace"), but the bytes in them are the original ones.
//
// A model file carries its tokenizer as strings in the metadata (see metadata()), so that one file is enough to run a model.
// They are not tensors, because a reader that loads every tensor of the file into a model by its name would fail.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tapernorm {

class OutputFolder;

// Immutable and cheap to copy; all members may be called from several threads at once.
class Tokenizer {
  public:
    Tokenizer();  // byte level

    // "bytes", a folder with vocab.json and merges.txt (or only tokenizer.json), a file NAMEvocab.json with NAMEmerges.txt
    // beside it, Hugging Face's tokenizer.json, or llm.c's .bin.
    static Tokenizer from_path(const std::string& path);

    // The contents of vocab.json and merges.txt; `source` names them in messages.
    static Tokenizer from_text(std::string_view vocab_json, std::string_view merges_txt, const std::string& source);

    // The tokenizer of a model file: the one stored by metadata(), otherwise vocab.json and merges.txt in the model's folder,
    // where Hugging Face's models have them.
    static Tokenizer from_metadata(const std::map<std::string, std::string>& metadata, const std::string& model_path);

    // vocab.json and merges.txt in the file's folder, where ./prepare puts them beside its shards; none without them.
    static std::optional<Tokenizer> beside(const std::string& file);

    // "bytes", "gpt2" (GPT-2's own vocabulary, whatever file it came from) or "bpe10000-5f2c90aa": V and a
    // fingerprint of tokens and merges. Equal names mean equal ids.
    const std::string& name() const;
    size_t vocab_size() const;                    // V, at most 65536
    std::optional<uint16_t> end_of_text() const;  // <|endoftext|>, where the vocabulary has it

    // <|endoftext|> in the text becomes that token only where `allow_special`; otherwise it is plain text.
    std::vector<uint16_t> encode(std::string_view text, bool allow_special = false) const;

    // The same ids, computed by several threads (0: as Cpu chooses); worth it from about a megabyte on.
    std::vector<uint16_t> encode_parallel(std::string_view text, bool allow_special = false, int threads = 0) const;

    std::string decode(std::span<const uint16_t> ids) const;
    std::string_view token(size_t id) const;  // the bytes of one id, not necessarily whole UTF-8 characters

    // {"tokenizer": name()} and, for BPE, "tokenizer.vocab" and "tokenizer.merges": the two files' contents.
    std::map<std::string, std::string> metadata() const;

    // vocab.json and merges.txt, for byte level too. Fails where the folder holds those of another tokenizer.
    void save(OutputFolder& folder) const;

  private:
    struct Tables;
    explicit Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}
    static Tokenizer from_llmc(const std::string& path);
    // Fails where the vocabulary has tokens that merges must make and none does.
    void check_merges(const std::string& source) const;
    void append(std::string_view text, std::vector<uint16_t>& ids) const;

    std::shared_ptr<const Tables> tables_;
};

// Whether a model with a vocabulary of V may be that of a tokenizer with n tokens: V may go up to the next multiple of 128 (padding
// for GPU kernels), or be larger by 1/32 (Megatron pads 50,257 to 51,200).
bool fits_vocabulary(size_t n, size_t V);

// Fails where token shards lie beside another tokenizer than the one of this name, which is used; where that is "unknown", beside
// one that fits no vocabulary of V tokens. Whether all of them lie beside a tokenizer.
bool check_shards(const char* flag, std::span<const std::string> shards, const std::string& used, size_t V);

constexpr std::string_view kEndOfText = "<|endoftext|>";

// GPT-2 writes each byte of a token as one printable character: "Ġthe" is " the".
std::string printable_from_bytes(std::string_view bytes);

// The contents of the two files for `tokens` in the order of their ids and `merges` in the order of their ranks.
std::string vocab_json_text(std::span<const std::string> tokens);
std::string merges_txt_text(std::span<const std::string> tokens, std::span<const std::pair<uint16_t, uint16_t>> merges);

}  // namespace tapernorm
