#include "io/tokens.h"

#include <glob.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>

#include "io/atomic_file.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace tapernorm {

static_assert(std::endian::native == std::endian::little, "shards are used in place");

struct Corpus {
    // One file, or one text in memory. Either `ids` or `bytes` points to its tokens.
    struct Piece {
        std::string name;
        MappedFile file;
        std::string text;
        std::vector<uint16_t> tokens;
        const uint16_t* ids = nullptr;
        const unsigned char* bytes = nullptr;
        size_t begin = 0, count = 0;  // place in the corpus
        bool is_shard = false;
    };
    std::vector<std::unique_ptr<Piece>> pieces;
    size_t size = 0;

    void append(std::unique_ptr<Piece> piece) {
        piece->begin = size;
        size += piece->count;
        pieces.push_back(std::move(piece));
    }

    const Piece& piece_at(size_t position) const {
        auto after = std::upper_bound(pieces.begin(), pieces.end(), position,
                                      [](size_t p, const auto& piece) { return p < piece->begin; });
        return **(after - 1);
    }
};

namespace {

using Piece = Corpus::Piece;

constexpr size_t header_words = 256, header_bytes = header_words * sizeof(int32_t);
constexpr int32_t shard_magic = 20240520, shard_version = 1;
constexpr int32_t llama_magic = 20240801;  // llm.c's shards of uint32 tokens

bool has_magic(const MappedFile& file, int32_t magic) {
    return file.size() >= sizeof magic && std::memcmp(file.data(), &magic, sizeof magic) == 0;
}

void open_shard(Piece* piece) {
    const std::string name = in_quotes(piece->name);
    const size_t bytes = piece->file.size();
    if (bytes < header_bytes)
        fail("token shard %s has %zu bytes, its header alone needs %zu; it was not copied to its end", name.c_str(),
             bytes, header_bytes);
    int32_t header[3];
    std::memcpy(header, piece->file.data(), sizeof header);
    if (header[1] != shard_version)
        fail("token shard %s has version %d; expected %d (uint16 tokens)", name.c_str(), header[1], shard_version);
    const int64_t count = header[2];
    if (count < 0 || bytes - header_bytes != size_t(count) * sizeof(uint16_t))
        fail(
            "token shard %s claims %lld tokens, its size of %zu bytes fits %zu; it is damaged or was not "
            "copied to its end",
            name.c_str(), (long long)count, bytes, (bytes - header_bytes) / sizeof(uint16_t));
    piece->is_shard = true;
    piece->count = size_t(count);
    piece->ids = reinterpret_cast<const uint16_t*>(piece->file.data() + header_bytes);
}

void open_text(Piece* piece, const unsigned char* text, size_t bytes, const Tokenize& tokenize) {
    // Raw token files without a header, models and archives would train, on noise.
    const size_t looked_at = std::min(bytes, size_t(1) << 16);
    const void* zero = bytes ? std::memchr(text, 0, looked_at) : nullptr;
    if (zero)
        fail(
            "%s is neither a token shard (magic number %d) nor text: byte %zu is zero; name a text file, or "
            "make shards with llm.c's data scripts",
            in_quotes(piece->name).c_str(), shard_magic, size_t(static_cast<const unsigned char*>(zero) - text));
    if (tokenize) {
        piece->tokens = tokenize(std::string_view(reinterpret_cast<const char*>(text), bytes));
        piece->ids = piece->tokens.data();
        piece->count = piece->tokens.size();
        piece->file = MappedFile();
        piece->text.clear();
    } else {
        piece->bytes = text;
        piece->count = bytes;
    }
}

std::vector<std::string> matching_files(const std::string& pattern) {
    std::error_code ec;
    if (pattern.find_first_of("*?[") == std::string::npos || std::filesystem::exists(pattern, ec)) return {pattern};
    glob_t found = {};
    const int rc = glob(pattern.c_str(), 0, nullptr, &found);
    std::vector<std::string> names(found.gl_pathv, found.gl_pathv + (rc == 0 ? found.gl_pathc : 0));
    globfree(&found);
    if (names.empty()) fail("no file matches %s", in_quotes(pattern).c_str());
    std::sort(names.begin(), names.end());  // glob sorts by the locale
    return names;
}

uint64_t epoch_key(uint64_t seed, uint64_t epoch) { return mix64(mix64(seed) ^ epoch); }

// Where `key`'s permutation of [0, n) sends `i`: a Feistel network over the next power of four, repeated
// until it lands below n, at most about four times on average. No table, so any row of any epoch is found at
// once.
uint64_t permute(uint64_t i, uint64_t n, uint64_t key) {
    const int half = std::max(1, (int(std::bit_width(n - 1)) + 1) / 2);
    const uint64_t mask = (uint64_t(1) << half) - 1;
    constexpr int rounds = 6;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (int round = 0; round < rounds; round++) {
            const uint64_t next = left ^ (mix64(key + uint64_t(round) * 0xd1342543de82ef95u + mix64(right)) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

}  // namespace

TokenSource::TokenSource(std::shared_ptr<const Corpus> corpus, size_t begin, size_t end)
    : corpus_(std::move(corpus)), begin_(begin), end_(end) {}

void TokenSource::read(size_t begin, size_t count, int* dst) const {
    if (begin > size() || count > size() - begin)
        fail("tokens [%zu, %zu) of %s lie outside its %zu", begin, begin + count, name().c_str(), size());
    for (size_t at = begin_ + begin; count > 0;) {
        const Piece& piece = corpus_->piece_at(at);
        const size_t offset = at - piece.begin, n = std::min(count, piece.count - offset);
        if (piece.ids)
            for (size_t i = 0; i < n; i++) dst[i] = piece.ids[offset + i];
        else
            for (size_t i = 0; i < n; i++) dst[i] = piece.bytes[offset + i];
        at += n, dst += n, count -= n;
    }
}

TokenSource TokenSource::slice(size_t begin, size_t end) const {
    if (begin > end || end > size())
        fail("range [%zu, %zu) of %s lies outside its %zu tokens", begin, end, name().c_str(), size());
    return {corpus_, begin_ + begin, begin_ + end};
}

std::pair<TokenSource, TokenSource> TokenSource::split_tail(double fraction) const {
    if (!(fraction > 0 && fraction < 1))
        fail("a held-out fraction of %g; expected more than 0 and less than 1", fraction);
    const size_t border = size() - size_t(double(size()) * fraction);
    return {slice(0, border), slice(border, size())};
}

std::string TokenSource::name() const {
    const std::string first = in_quotes(corpus_->pieces.front()->name);
    const size_t more = corpus_->pieces.size() - 1;
    return more ? strprintf("%s and %zu more", first.c_str(), more) : first;
}

std::string TokenSource::where(size_t position) const {
    const size_t at = begin_ + position;
    const Piece& piece = corpus_->piece_at(at);
    return strprintf("token %zu of %s", at - piece.begin, in_quotes(piece.name).c_str());
}

bool TokenSource::from_shards() const { return corpus_->pieces.front()->is_shard; }

TokenSource tokens_from_text(std::string text, const std::string& name, const Tokenize& tokenize) {
    auto corpus = std::make_shared<Corpus>();
    auto piece = std::make_unique<Piece>();
    piece->name = name;
    piece->text = std::move(text);
    open_text(piece.get(), reinterpret_cast<const unsigned char*>(piece->text.data()), piece->text.size(), tokenize);
    corpus->append(std::move(piece));
    const size_t size = corpus->size;
    return {std::move(corpus), 0, size};
}

TokenSource open_tokens(const std::string& path_or_pattern, const Tokenize& tokenize) {
    auto corpus = std::make_shared<Corpus>();
    for (const std::string& name : matching_files(path_or_pattern)) {
        auto piece = std::make_unique<Piece>();
        piece->name = name;
        piece->file = MappedFile(name);
        if (has_magic(piece->file, llama_magic))
            fail("%s holds uint32 tokens of Llama 3 (magic number %d); only uint16 shards (%d) can be read",
                 in_quotes(name).c_str(), llama_magic, shard_magic);
        if (has_magic(piece->file, shard_magic)) {
            open_shard(piece.get());
        } else {
            open_text(piece.get(), piece->file.data(), piece->file.size(), tokenize);
        }
        if (!corpus->pieces.empty() && corpus->pieces.front()->is_shard != piece->is_shard)
            fail("%s matches token shards (%s) and text (%s); give one kind", in_quotes(path_or_pattern).c_str(),
                 in_quotes(piece->is_shard ? name : corpus->pieces.front()->name).c_str(),
                 in_quotes(piece->is_shard ? corpus->pieces.front()->name : name).c_str());
        corpus->append(std::move(piece));
    }
    const size_t size = corpus->size;
    return {std::move(corpus), 0, size};
}

void write_token_shard(const std::string& path, std::span<const uint16_t> tokens) {
    if (tokens.size() > size_t(std::numeric_limits<int32_t>::max()))
        fail("cannot write %s: %zu tokens, a shard holds at most %d; write several", in_quotes(path).c_str(),
             tokens.size(), std::numeric_limits<int32_t>::max());
    std::array<int32_t, header_words> header = {shard_magic, shard_version, int32_t(tokens.size())};
    AtomicFile file(path);
    file.write(header.data(), header_bytes);
    file.write(tokens.data(), tokens.size_bytes());
    file.commit();
}

Loader::Loader(TokenSource source, size_t B, size_t T, const LoaderOptions& options)
    : source_(std::move(source)), B_(B), T_(T), options_(options), row_(T + 1) {
    const size_t N = source_.size();
    if (B < 1 || T < 1) fail("a batch of %zu sequences of %zu tokens; both must be at least 1", B, T);
    if (N < T + 1)
        fail(
            "%s has %zu tokens, one sequence needs %zu (-t %zu and its last target); use a longer text or a "
            "smaller -t",
            source_.name().c_str(), N, T + 1, T);
    if (options.rank >= options.world_size)
        fail("rank %zu of %zu; ranks count from 0", options.rank, options.world_size);
    // Shuffled, all epochs have the same number of rows whatever their offset, so that position / rows is the
    // epoch.
    rows_ = options.shuffle ? std::max(size_t(1), N / T - 1) : (N - 1) / T;
    offsets_ = options.shuffle ? std::min(T, N - rows_ * T) : 1;
}

size_t Loader::row_begin(uint64_t position) const {
    const uint64_t epoch = position / rows_, i = position % rows_;
    if (!options_.shuffle) return size_t(i) * T_;
    const uint64_t key = epoch_key(options_.seed, epoch);
    return size_t(permute(i, rows_, key)) * T_ + size_t(mix64(~key) % offsets_);
}

void Loader::next(int* inputs, int* targets) {
    for (size_t b = 0; b < B_; b++) {
        const size_t begin = row_begin(position_ + options_.rank * B_ + b);
        source_.read(begin, T_ + 1, row_.data());
        for (size_t t = 0; t <= T_; t++)
            if (size_t(row_[t]) >= options_.vocab_size)
                fail("%s is id %d, the vocabulary has %zu; the corpus was made with another tokenizer",
                     source_.where(begin + t).c_str(), row_[t], options_.vocab_size);
        std::copy_n(row_.data(), T_, inputs + b * T_);
        std::copy_n(row_.data() + 1, T_, targets + b * T_);
    }
    position_ += options_.world_size * B_;
}

}  // namespace tapernorm
