#include "io/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "io/files.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/output_folder.h"
#include "io/words.h"
#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace tapernorm {

// ----------------------------------------------------------------------------------------------------------
// GPT-2's files

namespace {

void append_utf8(std::string& text, uint32_t code) {  // code < U+0800: printable_from_bytes needs no more
    if (code < 0x80) {
        text += char(code);
    } else {
        text += char(0xC0 | code >> 6);
        text += char(0x80 | (code & 0x3F));
    }
}

// The character that stands for a byte in vocab.json and merges.txt: the byte itself where it is printable and not a space,
// otherwise the next free one from U+0100 on.
constexpr std::array<uint16_t, 256> make_byte_to_char() {
    std::array<uint16_t, 256> to_char{};
    uint16_t free = 256;
    for (size_t b = 0; b < 256; ++b) {
        const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        to_char[b] = printable ? uint16_t(b) : free++;
    }
    return to_char;
}
constexpr std::array<uint16_t, 256> kByteToChar = make_byte_to_char();

// A key of vocab.json as bytes. A key with a character that stands for no byte can only be an added token; its bytes are
// those of the key itself.
std::string bytes_from_printable(std::string_view key) {
    static const auto char_to_byte = [] {
        std::array<int, 512> to_byte;
        to_byte.fill(-1);
        for (size_t b = 0; b < 256; ++b) to_byte[kByteToChar[b]] = int(b);
        return to_byte;
    }();
    std::string bytes;
    for (size_t at = 0; at < key.size();) {
        uint32_t code = 0;
        const size_t length = utf8_char(key, at, code);
        if (!length || code >= char_to_byte.size() || char_to_byte[code] < 0) return std::string(key);
        bytes += char(char_to_byte[code]);
        at += length;
    }
    return bytes;
}

constexpr size_t kMaxVocabSize = 65536;  // ids are 16 bits in memory and in token shards

// The keys of vocab.json in the order of their ids.
std::vector<std::string> parse_vocab(std::string_view text, const std::string& source) {
    const auto json = parse_json(text);
    if (!json.is_object())
        fail("%s: expected vocab.json to be a JSON object {\"token\": id, ...}, found %s", source.c_str(),
             json_found(json, text).c_str());
    if (json.size() > kMaxVocabSize)
        fail("%s: expected a vocabulary of at most %zu tokens, because ids have 16 bits, found %zu", source.c_str(),
             kMaxVocabSize, json.size());
    std::vector<std::string> keys(json.size());
    std::vector<bool> seen(json.size());
    for (const auto& [key, id] : json.items()) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() >= keys.size() || seen[id.get<size_t>()])
            fail("%s: token %s has the id %s in vocab.json; expected each of 0 to %zu once", source.c_str(),
                 in_quotes(key).c_str(), (id.is_number() ? id.dump() : in_quotes(id.dump())).c_str(), keys.size() - 1);
        seen[id.get<size_t>()] = true;
        keys[id.get<size_t>()] = key;
    }
    return keys;
}

struct Pair {
    uint16_t left, right;
};

struct MergeLine {
    Pair pair;
    uint16_t merged;
};

std::vector<MergeLine> parse_merges(std::string_view text, const std::vector<std::string>& keys,
                                    const std::string& source) {
    std::unordered_map<std::string_view, uint16_t> ids;
    for (size_t id = 0; id < keys.size(); ++id) ids.emplace(keys[id], uint16_t(id));
    std::vector<MergeLine> merges;
    for (size_t line_number = 1, at = 0; at < text.size(); ++line_number) {
        const size_t end = std::min(text.find('\n', at), text.size());
        std::string_view line = text.substr(at, end - at);
        at = end + 1;
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        if (line.empty() || line.starts_with("#version")) continue;
        const size_t space = line.find(' ');
        if (space == 0 || space >= line.size() - 1 || line.find(' ', space + 1) != line.npos)
            fail("%s: line %zu of merges.txt is %s; expected two tokens with one space between them", source.c_str(),
                 line_number, in_quotes(line).c_str());
        const auto left = ids.find(line.substr(0, space)), right = ids.find(line.substr(space + 1));
        const auto merged = ids.find(std::string(line.substr(0, space)).append(line.substr(space + 1)));
        if (left == ids.end() || right == ids.end() || merged == ids.end())
            fail(
                "%s: line %zu of merges.txt, %s: the two tokens or the merged one are not in vocab.json; give two files that "
                "belong together",
                source.c_str(), line_number, in_quotes(line).c_str());
        merges.push_back({{left->second, right->second}, merged->second});
    }
    return merges;
}

}  // namespace

std::string printable_from_bytes(std::string_view bytes) {
    std::string printable;
    for (const char b : bytes) append_utf8(printable, kByteToChar[static_cast<unsigned char>(b)]);
    return printable;
}

std::string vocab_json_text(std::span<const std::string> tokens) {
    std::string text = "{";
    for (size_t id = 0; id < tokens.size(); ++id) {
        if (id) text += ", ";
        text += nlohmann::json(printable_from_bytes(tokens[id])).dump() + ": " + std::to_string(id);
    }
    return text + "}\n";
}

std::string merges_txt_text(std::span<const std::string> tokens,
                            std::span<const std::pair<uint16_t, uint16_t>> merges) {
    std::string text = "#version: 0.2\n";
    for (const auto& [left, right] : merges)
        text += printable_from_bytes(tokens[left]) + ' ' + printable_from_bytes(tokens[right]) + '\n';
    return text;
}

// ----------------------------------------------------------------------------------------------------------
// Merging

namespace {

constexpr uint32_t kNoRank = ~0u;

// The rank of a pair (left id, right id): a hash table with open addressing, at most half full, so that a miss costs about
// one cache line.
class MergeRanks {
  public:
    explicit MergeRanks(size_t capacity) : slots_(std::bit_ceil(2 * capacity + 2)), mask_(slots_.size() - 1) {}

    // If a pair is listed twice, the later rank counts, as in Hugging Face's tokenizers.
    void insert(Pair pair, uint32_t rank) {
        const uint32_t k = key(pair);
        size_t i = home(k);
        while (slots_[i].rank != kNoRank && slots_[i].key != k) i = (i + 1) & mask_;
        slots_[i] = {k, rank};
    }

    uint32_t find(uint16_t left, uint16_t right) const {
        const uint32_t k = key({left, right});
        for (size_t i = home(k);; i = (i + 1) & mask_)
            if (slots_[i].key == k || slots_[i].rank == kNoRank) return slots_[i].rank;
    }

  private:
    struct Slot {
        uint32_t key = 0, rank = kNoRank;
    };
    static uint32_t key(Pair pair) { return uint32_t(pair.left) << 16 | pair.right; }
    size_t home(uint32_t k) const { return size_t(k * 0x9e3779b97f4a7c15u >> 32) & mask_; }

    std::vector<Slot> slots_;
    size_t mask_;
};

uint64_t load(const char* bytes, size_t count) {
    uint64_t value = 0;
    std::memcpy(&value, bytes, count);
    return value;
}

// Words are short: up to 16 bytes take two loads, which overlap if there are fewer bytes.
uint64_t hash_bytes(std::string_view bytes) {
    const size_t n = bytes.size();
    const char* p = bytes.data();
    uint64_t hash = n;
    const auto mix = [&](uint64_t value) {
        hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    };
    if (n >= 8) {
        for (size_t at = 0; at + 8 < n; at += 8) mix(load(p + at, 8));
        mix(load(p + n - 8, 8));
    } else if (n >= 4) {
        mix(load(p, 4) | load(p + n - 4, 4) << 32);
    } else if (n >= 1) {
        mix(load(p, 1) | load(p + n / 2, 1) << 8 | load(p + n - 1, 1) << 16);
    }
    return hash;
}

}  // namespace

struct Tokenizer::Tables {
    bool byte_level = false;
    std::string name;
    std::vector<std::string> tokens;  // the bytes of each id
    std::array<uint16_t, 256> byte_id{};
    std::vector<std::pair<uint16_t, uint16_t>> merges;  // by rank
    std::vector<uint16_t> merged;                       // what they merge to
    MergeRanks ranks{0};
    std::optional<uint16_t> end_of_text;

    // Words that are one token, found without merging: a hash table with open addressing.
    struct Word {
        uint32_t tag = 0;  // upper half of the hash
        uint32_t id = kNoRank;
    };
    std::vector<Word> words;

    void add_merge(uint16_t left, uint16_t right, uint16_t result) {
        ranks.insert({left, right}, uint32_t(merges.size()));
        merges.emplace_back(left, right);
        merged.push_back(result);
    }

    void set_tokens(std::vector<std::string> all, const std::string& source);
    void add_words();
    void finish();
    bool find_word(std::string_view word, uint16_t& id) const;
    void append_word(std::string_view word, std::vector<uint16_t>& ids) const;
    void merge_short(std::string_view word, std::vector<uint16_t>& ids) const;
    void merge_long(std::string_view word, std::vector<uint16_t>& ids) const;
};

namespace {
constexpr size_t kShortWord =
    64;  // bytes; words up to this length are merged by repeated scans, longer ones with a priority queue
}

// Merges the leftmost pair of lowest rank again and again. This is quadratic, but the fastest way for words of usual length.
void Tokenizer::Tables::merge_short(std::string_view word, std::vector<uint16_t>& ids) const {
    uint16_t id[kShortWord];
    uint32_t rank[kShortWord];  // the pair (i, i + 1)'s
    size_t n = word.size();
    for (size_t i = 0; i < n; ++i) id[i] = byte_id[static_cast<unsigned char>(word[i])];
    for (size_t i = 0; i + 1 < n; ++i) rank[i] = ranks.find(id[i], id[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; ++i)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == kNoRank) break;
        id[best] = merged[rank[best]];
        --n;
        for (size_t i = best + 1; i < n; ++i) id[i] = id[i + 1];
        for (size_t i = best + 1; i + 1 < n; ++i) rank[i] = rank[i + 1];
        if (best > 0) rank[best - 1] = ranks.find(id[best - 1], id[best]);
        if (best + 1 < n) rank[best] = ranks.find(id[best], id[best + 1]);
    }
    ids.insert(ids.end(), id, id + n);
}

// The same with a priority queue of pairs over a linked list: n log n, so that a megabyte without a space takes no longer.
void Tokenizer::Tables::merge_long(std::string_view word, std::vector<uint16_t>& ids) const {
    constexpr uint32_t kNone = ~0u;
    if (word.size() >= kNone) fail("cannot encode a word of %zu bytes; insert white space into the text", word.size());
    const auto n = uint32_t(word.size());
    std::vector<uint16_t> id(n);
    std::vector<uint32_t> previous(n), next(n);
    std::vector<bool> gone(n);  // merged into its left neighbour
    for (uint32_t i = 0; i < n; ++i) {
        id[i] = byte_id[static_cast<unsigned char>(word[i])];
        previous[i] = i ? i - 1 : kNone;
        next[i] = i + 1 < n ? i + 1 : kNone;
    }
    // The rank in the upper half, the place in the lower: the smallest element is the leftmost pair of lowest rank.
    std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue;
    const auto push = [&](uint32_t i) {
        const uint32_t rank = ranks.find(id[i], id[next[i]]);
        if (rank != kNoRank) queue.push(uint64_t(rank) << 32 | i);
    };
    for (uint32_t i = 0; i + 1 < n; ++i) push(i);
    while (!queue.empty()) {
        const auto rank = uint32_t(queue.top() >> 32), i = uint32_t(queue.top());
        queue.pop();
        const uint32_t j = gone[i] ? kNone : next[i];
        if (j == kNone || ranks.find(id[i], id[j]) != rank) continue;  // the pair has changed since
        id[i] = merged[rank];
        gone[j] = true;
        next[i] = next[j];
        if (next[i] != kNone) {
            previous[next[i]] = i;
            push(i);
        }
        if (previous[i] != kNone) push(previous[i]);
    }
    for (uint32_t i = 0; i != kNone; i = next[i]) ids.push_back(id[i]);
}

bool Tokenizer::Tables::find_word(std::string_view word, uint16_t& id) const {
    const uint64_t hash = hash_bytes(word);
    for (size_t i = hash & (words.size() - 1);; i = (i + 1) & (words.size() - 1)) {
        if (words[i].id == kNoRank) return false;
        if (words[i].tag != uint32_t(hash >> 32) || tokens[words[i].id] != word) continue;
        id = uint16_t(words[i].id);
        return true;
    }
}

void Tokenizer::Tables::append_word(std::string_view word, std::vector<uint16_t>& ids) const {
    uint16_t id;
    if (find_word(word, id)) {
        ids.push_back(id);
    } else if (word.size() <= kShortWord) {
        merge_short(word, ids);
    } else {
        merge_long(word, ids);
    }
}

void Tokenizer::append(std::string_view text, std::vector<uint16_t>& ids) const {
    Words words(text);
    for (std::string_view word; words.next(word);) tables_->append_word(word, ids);
}

// ----------------------------------------------------------------------------------------------------------
// Building the tables

void Tokenizer::Tables::set_tokens(std::vector<std::string> all, const std::string& source) {
    tokens = std::move(all);
    std::array<bool, 256> have{};
    for (size_t id = 0; id < tokens.size(); ++id) {
        if (tokens[id] == kEndOfText) end_of_text = uint16_t(id);
        if (tokens[id].size() != 1) continue;
        const auto byte = static_cast<unsigned char>(tokens[id][0]);
        byte_id[byte] = uint16_t(id);
        have[byte] = true;
    }
    for (size_t b = 0; b < 256; ++b)
        if (!have[b])
            fail(
                "%s: the vocabulary has no token for byte 0x%02zx; expected a byte-level BPE, with one for each of the 256 bytes",
                source.c_str(), b);
}

// Leaves out tokens that merging their own bytes does not lead to (added ones such as <|endoftext|>).
void Tokenizer::Tables::add_words() {
    words.assign(std::bit_ceil(2 * tokens.size()), Word{});
    std::vector<uint16_t> ids;
    for (size_t id = 0; id < tokens.size(); ++id) {
        if (tokens[id].empty()) continue;
        ids.clear();
        tokens[id].size() <= kShortWord ? merge_short(tokens[id], ids) : merge_long(tokens[id], ids);
        if (ids.size() != 1 || ids[0] != id) continue;
        const uint64_t hash = hash_bytes(tokens[id]);
        size_t i = hash & (words.size() - 1);
        while (words[i].id != kNoRank) i = (i + 1) & (words.size() - 1);
        words[i] = {uint32_t(hash >> 32), uint32_t(id)};
    }
}

void Tokenizer::Tables::finish() {
    byte_level = merges.empty() && tokens.size() == 256;
    for (size_t b = 0; b < 256; ++b) byte_level = byte_level && byte_id[b] == b;
    add_words();
    uint64_t print = mix64(tokens.size());
    for (const std::string& token : tokens) {
        print = mix64(print ^ token.size());
        for (const char c : token) print = mix64(print ^ static_cast<unsigned char>(c));
    }
    for (const auto& [left, right] : merges) print = mix64(print ^ (uint64_t(left) << 16 | right));
    // The fingerprint of the published files: sha256 196139668be6... (vocab.json, encoder.json), 1ce1664773c5... (merges.txt).
    constexpr uint64_t kGpt2Fingerprint = 0x3c2c6330150eae58u;
    name = byte_level                  ? "bytes"
           : print == kGpt2Fingerprint ? "gpt2"
                                       : strprintf("bpe%zu-%08x", tokens.size(), unsigned(print >> 32));
}

Tokenizer::Tokenizer() {
    static const std::shared_ptr<const Tables> bytes = [] {
        auto tables = std::make_shared<Tables>();
        std::vector<std::string> tokens;
        for (size_t b = 0; b < 256; ++b) tokens.emplace_back(1, char(b));
        tables->set_tokens(std::move(tokens), "bytes");
        tables->finish();
        return tables;
    }();
    tables_ = bytes;
}

Tokenizer Tokenizer::from_text(std::string_view vocab_json, std::string_view merges_txt, const std::string& source) {
    const std::vector<std::string> keys = parse_vocab(vocab_json, source);
    const std::vector<MergeLine> merges = parse_merges(merges_txt, keys, source);
    auto tables = std::make_shared<Tables>();
    std::vector<std::string> tokens;
    for (const std::string& key : keys) tokens.push_back(bytes_from_printable(key));
    tables->set_tokens(std::move(tokens), source);
    tables->ranks = MergeRanks(merges.size());
    for (const MergeLine& merge : merges) tables->add_merge(merge.pair.left, merge.pair.right, merge.merged);
    tables->finish();
    return Tokenizer(std::move(tables));
}

// The file has 256 int32: magic 20240328, version 1 or 2, V, and in version 2 the id of <|endoftext|>; then, for each token, a
// length byte and the token's bytes. The merges are not in the file. But in such a vocabulary each token is made by one merge
// and ids are in the order of the merges, so merging a token's bytes by all earlier merges leaves the two parts of its own.
Tokenizer Tokenizer::from_llmc(const std::string& path) {
    const MappedFile file(path);
    int32_t header[256] = {};
    std::memcpy(header, file.data(), std::min(sizeof header, file.size()));
    const std::string source = in_quotes(path);
    if (file.size() < sizeof header || header[0] != 20240328 || header[1] < 1 || header[1] > 2)
        fail("%s is not a tokenizer of llm.c; expected a header of 1024 bytes with magic 20240328 and version 1 or 2",
             source.c_str());
    const size_t V = size_t(std::max(header[2], 0));
    const size_t end_of_text = header[1] == 1 ? 50256 : size_t(std::max(header[3], 0));
    if (V > kMaxVocabSize || end_of_text >= V)
        fail("%s: expected V of at most %zu and <|endoftext|> below V, found V = %d and <|endoftext|> = %zu",
             source.c_str(), kMaxVocabSize, header[2], end_of_text);
    std::vector<std::string> tokens(V);
    size_t at = sizeof header;
    for (size_t id = 0; id < V; ++id) {
        const size_t length = at < file.size() ? file.data()[at] : 0;
        if (length == 0 || at + 1 + length > file.size())
            fail("%s ends within token %zu of %zu; the copy is incomplete, get it again", source.c_str(), id, V);
        tokens[id].assign(reinterpret_cast<const char*>(file.data()) + at + 1, length);
        at += 1 + length;
    }
    // In some versions of llm.c's file its text looks empty; the header says which token it is.
    tokens[end_of_text] = kEndOfText;
    auto tables = std::make_shared<Tables>();
    tables->set_tokens(std::move(tokens), source);
    tables->ranks = MergeRanks(V);
    std::vector<uint16_t> parts;
    for (size_t id = 0; id < V; ++id) {
        const std::string& token = tables->tokens[id];
        if (token.size() < 2 || id == end_of_text) continue;
        parts.clear();
        token.size() <= kShortWord ? tables->merge_short(token, parts) : tables->merge_long(token, parts);
        if (parts.size() != 2)
            fail(
                "%s: token %zu, %s, is not made of two earlier tokens, so the merges cannot be found; use vocab.json and "
                "merges.txt instead",
                source.c_str(), id, in_quotes(token).c_str());
        tables->add_merge(parts[0], parts[1], uint16_t(id));
    }
    tables->finish();
    return Tokenizer(std::move(tables));
}

// ----------------------------------------------------------------------------------------------------------
// Encoding and decoding

const std::string& Tokenizer::name() const { return tables_->name; }
size_t Tokenizer::vocab_size() const { return tables_->tokens.size(); }
std::optional<uint16_t> Tokenizer::end_of_text() const { return tables_->end_of_text; }

std::vector<uint16_t> Tokenizer::encode(std::string_view text, bool allow_special) const {
    std::vector<uint16_t> ids;
    if (tables_->byte_level) {
        ids.assign(reinterpret_cast<const unsigned char*>(text.data()),
                   reinterpret_cast<const unsigned char*>(text.data()) + text.size());
        return ids;
    }
    ids.reserve(text.size() / 4 + 8);  // English has 4.3 bytes per token with GPT-2's vocabulary
    const bool special = allow_special && tables_->end_of_text;
    for (size_t at = 0;;) {
        const size_t end = special ? std::min(text.find(kEndOfText, at), text.size()) : text.size();
        append(text.substr(at, end - at), ids);
        if (end == text.size()) return ids;
        ids.push_back(*tables_->end_of_text);
        at = end + kEndOfText.size();
    }
}

std::vector<uint16_t> Tokenizer::encode_parallel(std::string_view text, bool allow_special, int threads) const {
    constexpr size_t kPartBytes = 1 << 18;  // small enough to balance the threads
    if (tables_->byte_level || text.size() < 2 * kPartBytes) return encode(text, allow_special);
    std::vector<size_t> cuts = {0};  // the marker has no white space, so no cut is inside one
    while (cuts.back() < text.size()) cuts.push_back(word_safe_cut(text, cuts.back() + kPartBytes));
    const size_t parts = cuts.size() - 1;
    std::vector<std::vector<uint16_t>> ids(parts);
    parallel_tasks(Cpu(threads), parts,
                   [&](size_t i, int) { ids[i] = encode(text.substr(cuts[i], cuts[i + 1] - cuts[i]), allow_special); });
    std::vector<uint16_t> all;
    size_t total = 0;
    for (const auto& part : ids) total += part.size();
    all.reserve(total);
    for (const auto& part : ids) all.insert(all.end(), part.begin(), part.end());
    return all;
}

std::string_view Tokenizer::token(size_t id) const {
    if (id >= vocab_size())
        fail(
            "token id %zu is outside the vocabulary of the tokenizer %s (%zu tokens); the model or the token file belongs to "
            "another tokenizer",
            id, name().c_str(), vocab_size());
    return tables_->tokens[id];
}

std::string Tokenizer::decode(std::span<const uint16_t> ids) const {
    std::string text;
    for (const uint16_t id : ids) text += token(id);
    return text;
}

// In a whole vocabulary, a merge makes each token that two others join to. Added tokens seldom are such: runs of white space, and
// perhaps one in a hundred others.
void Tokenizer::check_merges(const std::string& source) const {
    const std::vector<std::string>& tokens = tables_->tokens;
    const std::unordered_set<std::string_view> all(tokens.begin(), tokens.end());
    std::unordered_set<std::string_view> made;
    for (const uint16_t id : tables_->merged) made.insert(tokens[id]);
    constexpr size_t kLongest = 128;  // of GPT-2's; what is longer would only cost time
    const auto two_join = [&](std::string_view token) {
        if (token.size() > kLongest) return false;
        for (size_t at = 1; at < token.size(); ++at)
            if (all.contains(token.substr(0, at)) && all.contains(token.substr(at))) return true;
        return false;
    };
    size_t missing = 0, first = 0;
    for (size_t id = tokens.size(); id-- > 0;)
        if (!made.contains(tokens[id]) && tokens[id].find_first_not_of(" \t\r\n") != std::string::npos &&
            !(tokens[id].starts_with("<") && tokens[id].ends_with(">")) && two_join(tokens[id]))
            missing++, first = id;
    if (missing > tokens.size() / 100)
        fail(
            "%s: %zu tokens of its vocabulary, such as %s, are made by no merge: merges.txt is incomplete; get it again",
            source.c_str(), missing, in_quotes(tokens[first]).c_str());
}

std::map<std::string, std::string> Tokenizer::metadata() const {
    if (tables_->byte_level) return {{"tokenizer", name()}};
    return {{"tokenizer", name()},
            {"tokenizer.vocab", vocab_json_text(tables_->tokens)},
            {"tokenizer.merges", merges_txt_text(tables_->tokens, tables_->merges)}};
}

void Tokenizer::save(OutputFolder& folder) const {
    const std::string vocab = folder.file("vocab.json"), merges = folder.file("merges.txt");
    if (const auto there = beside(vocab); there && there->name() != name())
        fail("%s holds another tokenizer, %s; expected a folder without one or with %s",
             in_quotes(folder.path()).c_str(), there->name().c_str(), name().c_str());
    write_text(vocab, vocab_json_text(tables_->tokens));
    write_text(merges, merges_txt_text(tables_->tokens, tables_->merges));
}

}  // namespace tapernorm
