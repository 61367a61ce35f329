#include "io/tokens.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "io/atomic_file.h"
#include "io/checksum.h"
#include "io/files.h"
#include "io/mapped_file.h"
#include "runtime/error.h"
#include "runtime/random.h"

namespace tapernorm {

static_assert(std::endian::native == std::endian::little, "shards are used in place");

struct Corpus {
    // A run of tokens: one file, or one text in memory. Either `ids` or `bytes` points to the tokens.
    struct Run {
        std::string name;
        MappedFile file;
        std::string text;
        std::vector<uint16_t> tokens;
        const uint16_t* ids = nullptr;
        const unsigned char* bytes = nullptr;
        size_t begin = 0, count = 0;  // place in the corpus
        bool is_shard = false;
    };
    std::vector<std::unique_ptr<Run>> runs;
    size_t size = 0;

    void append(std::unique_ptr<Run> run) {
        run->begin = size;
        size += run->count;
        runs.push_back(std::move(run));
    }

    const Run& run_at(size_t position) const {
        auto after = std::upper_bound(runs.begin(), runs.end(), position,
                                      [](size_t p, const auto& run) { return p < run->begin; });
        return **(after - 1);
    }
};

namespace {

using Run = Corpus::Run;

constexpr size_t kHeaderWords = 256, kHeaderBytes = kHeaderWords * sizeof(int32_t);
constexpr int32_t kShardMagic = 20240520, kShardVersion = 1;

bool is_shard(const MappedFile& file) {
    return file.size() >= sizeof kShardMagic && std::memcmp(file.data(), &kShardMagic, sizeof kShardMagic) == 0;
}

void open_shard(Run* run) {
    const std::string name = in_quotes(run->name);
    const size_t bytes = run->file.size();
    if (bytes < kHeaderBytes)
        fail(
            "token shard %s: expected at least the %zu bytes of a header, found %zu; the copy is incomplete, copy it again",
            name.c_str(), kHeaderBytes, bytes);
    int32_t header[3];
    std::memcpy(header, run->file.data(), sizeof header);
    if (header[1] != kShardVersion)
        fail("token shard %s: expected version %d (uint16 tokens), found %d; make the shard again", name.c_str(),
             kShardVersion, header[1]);
    const int64_t count = header[2];
    if (count < 0 || bytes - kHeaderBytes != size_t(count) * sizeof(uint16_t))
        fail(
            "token shard %s: its header says that it holds %lld, but its %zu bytes have room for %zu; it is damaged or its copy is "
            "incomplete",
            name.c_str(), (long long)count, bytes, (bytes - kHeaderBytes) / sizeof(uint16_t));
    run->is_shard = true;
    run->count = size_t(count);
    run->ids = reinterpret_cast<const uint16_t*>(run->file.data() + kHeaderBytes);
}

void open_text(Run* run, std::string_view bytes, const Tokenize& tokenize) {
    const std::string_view text = check_text(in_quotes(run->name), bytes);
    warn_unless_utf8(in_quotes(run->name), text);
    if (tokenize) {
        run->tokens = tokenize(text);
        run->file.check();
        run->ids = run->tokens.data();
        run->count = run->tokens.size();
        run->file = MappedFile();
        run->text.clear();
    } else {
        run->bytes = reinterpret_cast<const unsigned char*>(text.data());
        run->count = text.size();
    }
}

uint64_t epoch_key(uint64_t seed, uint64_t epoch) { return mix64(mix64(seed) ^ epoch); }

// Where the permutation of [0, n) given by `key` sends `i`: a Feistel network over the next power of four, repeated until it
// lands below n, at most about four times on average. There is no table, so any row of any epoch is found at once.
uint64_t permute(uint64_t i, uint64_t n, uint64_t key) {
    const int half = std::max(1, (int(std::bit_width(n - 1)) + 1) / 2);
    const uint64_t mask = (uint64_t(1) << half) - 1;
    constexpr int kRounds = 6;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (int round = 0; round < kRounds; round++) {
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

template <class With>
void TokenSource::visit(size_t begin, size_t count, With&& with) const {
    if (begin > size() || count > size() - begin)
        fail("tokens [%zu, %zu) of %s lie outside its %s", begin, begin + count, name().c_str(),
             counted(size(), "token").c_str());
    for (size_t at = begin_ + begin; count > 0;) {
        const Run& run = corpus_->run_at(at);
        const size_t offset = at - run.begin, n = std::min(count, run.count - offset);
        with(run, offset, n);
        run.file.check();
        at += n, count -= n;
    }
}

void TokenSource::read(size_t begin, size_t count, int* dst) const {
    visit(begin, count, [&](const Run& run, size_t offset, size_t n) {
        if (run.ids)
            for (size_t i = 0; i < n; i++) dst[i] = run.ids[offset + i];
        else
            for (size_t i = 0; i < n; i++) dst[i] = run.bytes[offset + i];
        dst += n;
    });
}

TokenSource TokenSource::slice(size_t begin, size_t end) const {
    if (begin > end || end > size())
        fail("range [%zu, %zu) of %s lies outside its %s", begin, end, name().c_str(),
             counted(size(), "token").c_str());
    return {corpus_, begin_ + begin, begin_ + end};
}

std::pair<TokenSource, TokenSource> TokenSource::split_tail(double fraction) const {
    if (!(fraction > 0 && fraction < 1))
        fail("held-out fraction: expected more than 0 and less than 1, found %g", fraction);
    const size_t border = size() - size_t(double(size()) * fraction);
    return {slice(0, border), slice(border, size())};
}

std::string TokenSource::name() const {
    const std::string first = in_quotes(corpus_->runs.front()->name);
    const size_t more = corpus_->runs.size() - 1;
    return more ? strprintf("%s and %zu more", first.c_str(), more) : first;
}

std::string TokenSource::where(size_t position) const {
    const size_t at = begin_ + position;
    const Run& run = corpus_->run_at(at);
    return strprintf("token %zu of %s", at - run.begin, in_quotes(run.name).c_str());
}

uint64_t TokenSource::fingerprint(size_t whole) const {
    constexpr size_t kSamples = 4096, kTokens = 4096;
    const uint64_t count = size();
    Checksum sum;
    sum.add(&count, sizeof count);
    auto add = [&](const Run& run, size_t offset, size_t n) {
        if (run.ids) return sum.add(run.ids + offset, n * sizeof(uint16_t));
        for (uint16_t ids[kTokens]; n > 0;) {  // the same tokens as those of a shard
            const size_t part = std::min(n, kTokens);
            std::copy_n(run.bytes + offset, part, ids);
            sum.add(ids, part * sizeof(uint16_t));
            offset += part, n -= part;
        }
    };
    if (size() <= std::max(whole, kTokens)) {
        visit(0, size(), add);
    } else {
        for (size_t i = 0; i < kSamples; i++)  // evenly, from the first tokens to the last
            visit((size() - kTokens) * i / (kSamples - 1), kTokens, add);
    }
    return sum.value();
}

bool TokenSource::from_shards() const { return corpus_->runs.front()->is_shard; }

std::vector<std::string> TokenSource::files() const {
    std::vector<std::string> names;
    for (const auto& run : corpus_->runs) names.push_back(run->name);
    return names;
}

TokenSource tokens_from_text(std::string text, const std::string& name, const Tokenize& tokenize) {
    auto corpus = std::make_shared<Corpus>();
    auto run = std::make_unique<Run>();
    run->name = name;
    run->text = std::move(text);
    open_text(run.get(), run->text, tokenize);
    corpus->append(std::move(run));
    const size_t size = corpus->size;
    return {std::move(corpus), 0, size};
}

TokenSource open_tokens(const std::string& path_or_pattern, const Tokenize& tokenize) {
    auto corpus = std::make_shared<Corpus>();
    for (const std::string& name : matching_files(path_or_pattern)) {
        auto run = std::make_unique<Run>();
        run->name = name;
        run->file = MappedFile(name);
        if (is_shard(run->file)) {
            open_shard(run.get());
        } else {
            open_text(run.get(), {reinterpret_cast<const char*>(run->file.data()), run->file.size()}, tokenize);
        }
        if (!corpus->runs.empty() && corpus->runs.front()->is_shard != run->is_shard)
            fail("%s matches token shards (%s) and text (%s); give one kind", in_quotes(path_or_pattern).c_str(),
                 in_quotes(run->is_shard ? name : corpus->runs.front()->name).c_str(),
                 in_quotes(run->is_shard ? corpus->runs.front()->name : name).c_str());
        corpus->append(std::move(run));
    }
    const size_t size = corpus->size;
    return {std::move(corpus), 0, size};
}

bool is_token_shard(const std::string& path) { return is_shard(MappedFile(path)); }

void write_token_shard(const std::string& path, std::span<const uint16_t> tokens) {
    if (tokens.size() > size_t(std::numeric_limits<int32_t>::max()))
        fail("cannot write %s: it would have %zu tokens, but a shard holds at most %d; write several",
             in_quotes(path).c_str(), tokens.size(), std::numeric_limits<int32_t>::max());
    std::array<int32_t, kHeaderWords> header = {kShardMagic, kShardVersion, int32_t(tokens.size())};
    AtomicFile file(path);
    file.write(header.data(), kHeaderBytes);
    file.write(tokens.data(), tokens.size_bytes());
    file.commit();
}

void check_holds_sequence(const TokenSource& source, size_t T) {
    if (source.size() < T + 1)
        fail(
            "%s has %s, but one sequence needs %zu (%zu and the last target); use a longer text or shorter "
            "sequences (-t)",
            source.name().c_str(), counted(source.size(), "token").c_str(), T + 1, T);
}

Loader::Loader(TokenSource source, size_t B, size_t T, const LoaderOptions& options)
    : source_(std::move(source)), B_(B), T_(T), options_(options), row_(T + 1) {
    const size_t N = source_.size();
    if (B < 1 || T < 1)
        fail("expected batches of at least 1 sequence of at least 1 token, found %s of %s",
             counted(B, "sequence").c_str(), counted(T, "token").c_str());
    check_holds_sequence(source_, T);
    if (options.rank >= options.world_size)
        fail("expected a rank below the number of ranks, found rank %zu of %zu; ranks count from 0", options.rank,
             options.world_size);
    // When shuffled, all epochs have the same number of rows whatever their offset, so that position / rows is the epoch.
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
        check_ids(row_, options_.vocab_size, [&](size_t t) { return source_.where(begin + t); });
        std::copy_n(row_.data(), T_, inputs + b * T_);
        std::copy_n(row_.data() + 1, T_, targets + b * T_);
    }
    position_ += options_.world_size * B_;
}

}  // namespace tapernorm
