// Corpora as one long row of token ids, and the loader that cuts training batches from them.
//
// A token shard has llm.c's format: 256 little-endian int32 (magic 20240520, version 1, count, zeros), then `count` uint16
// ids. Shards and bytes of text are mapped, not read: a corpus larger than memory costs no time at the start.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/error.h"

namespace tapernorm {

using Tokenize = std::function<std::vector<uint16_t>(std::string_view)>;

// Fails unless every id is one of a vocabulary of V tokens: whatever ids come from (a corpus, a prompt, a test's items) goes
// through here before a model sees it. where(i) names the id i, for the message: "token 17 of 'FILE'".
template <class Where>
void check_ids(std::span<const int> ids, size_t V, Where&& where) {
    for (size_t i = 0; i < ids.size(); i++)
        if (ids[i] < 0 || size_t(ids[i]) >= V)
            fail("%s is the id %d, but the vocabulary has %zu tokens; it was made with a different tokenizer",
                 std::string(where(i)).c_str(), ids[i], V);
}

struct Corpus;  // the mapped files or the text itself

// A range of a corpus. Copies are cheap and share the corpus.
class TokenSource {
  public:
    TokenSource(std::shared_ptr<const Corpus> corpus, size_t begin, size_t end);

    size_t size() const { return end_ - begin_; }

    // Tokens [begin, begin + count) of this range.
    void read(size_t begin, size_t count, int* dst) const;

    TokenSource slice(size_t begin, size_t end) const;

    // {all but the tail, the tail of floor(fraction * size) tokens}: for training and for validation.
    std::pair<TokenSource, TokenSource> split_tail(double fraction) const;

    // "FILE" or "FILE and 3 more", and "token 17 of FILE", for messages.
    std::string name() const;
    std::string where(size_t position) const;

    // A checksum of the size and of all tokens. Of more than `whole` (256 MB of ids, a tenth of a second once they are in
    // memory), only of 4096 samples of 4096 tokens at fixed places, the first and the last tokens among them: a change
    // between the samples of such a corpus goes unnoticed.
    uint64_t fingerprint(size_t whole = size_t(1) << 27) const;

    // Whether the tokens come from shards, already made by some tokenizer, rather than from text.
    bool from_shards() const;
    std::vector<std::string> files() const;

  private:
    // Calls with(run, offset, n) for the parts of [begin, begin + count) that lie in one run each.
    template <class With>
    void visit(size_t begin, size_t count, With&& with) const;

    std::shared_ptr<const Corpus> corpus_;
    size_t begin_, end_;
};

// Text held in memory; without `tokenize`, its bytes are the tokens.
TokenSource tokens_from_text(std::string text, const std::string& name = "the built-in text",
                             const Tokenize& tokenize = nullptr);

// One file, or all files that match a pattern (matching_files), as one corpus. A file's magic number says whether it is a
// shard; anything else must be text, which `tokenize` turns into tokens (without it, its bytes are the tokens).
TokenSource open_tokens(const std::string& path_or_pattern, const Tokenize& tokenize = nullptr);

bool is_token_shard(const std::string& path);  // by its magic number
void write_token_shard(const std::string& path, std::span<const uint16_t> tokens);

// Fails unless it has the tokens of a sequence of T inputs and their targets.
void check_holds_sequence(const TokenSource& source, size_t T);

struct LoaderOptions {
    bool shuffle = false;
    uint64_t seed = 0;
    size_t vocab_size = 65536;  // a larger or equal id is an error that names its file and place
    size_t rank = 0, world_size = 1;
};

// Batches of B sequences of T inputs and their T targets, the same tokens one place later.
//
// An epoch is a number of rows of T + 1 tokens; neighbouring rows of the corpus share one token, so that every token is a
// target at most once. Without shuffling, row i is tokens [i*T, (i+1)*T], and B rows are llm.c's window of B*T + 1 tokens.
// With it, (seed, epoch) alone determine a permutation of the rows and an offset below T, by which all rows are shifted. A
// batch that meets the end of an epoch continues with the next one, so that an epoch leaves out no row.
class Loader {
  public:
    Loader(TokenSource source, size_t B, size_t T, const LoaderOptions& options = {});

    // inputs [B, T], targets [B, T] of this rank; all ranks advance together by world_size * B rows.
    void next(int* inputs, int* targets);

    // Rows consumed by all ranks since the start: enough to resume exactly, even with another B or world size.
    uint64_t position() const { return position_; }
    void seek(uint64_t position) { position_ = position; }

    size_t rows_per_epoch() const { return rows_; }

    // The first token, within the source, of the row at `position`.
    size_t row_begin(uint64_t position) const;

  private:
    TokenSource source_;
    size_t B_, T_;
    LoaderOptions options_;
    size_t rows_;
    size_t offsets_;  // how many offsets leave room for `rows_` rows
    uint64_t position_ = 0;
    std::vector<int> row_;  // [T + 1]
};

}  // namespace tapernorm
