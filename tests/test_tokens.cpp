// Corpora and the loader: which token goes where, in which epoch, on which rank.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "io/tokens.h"
#include "runtime/error.h"
#include "tests/errors.h"
#include "tests/temporary_folder.h"

namespace tapernorm {

namespace fs = std::filesystem;

namespace {

void write_bytes(const std::string& path, const std::string& bytes) {
    fs::remove(path);  // some file systems flush a file that is emptied and written again: slow in loops
    std::ofstream(path, std::ios::binary) << bytes;
}

// llm.c's format, written by hand.
std::string shard_bytes(int32_t magic, int32_t version, int32_t count, const std::vector<uint16_t>& tokens) {
    std::vector<int32_t> header(256, 0);
    header[0] = magic, header[1] = version, header[2] = count;
    std::string bytes(reinterpret_cast<const char*>(header.data()), 1024);
    return bytes + std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
}

std::vector<uint16_t> counting(size_t begin, size_t end) {
    std::vector<uint16_t> tokens;
    for (size_t i = begin; i < end; i++) tokens.push_back(uint16_t(i));
    return tokens;
}

std::vector<int> all(const TokenSource& source) {
    std::vector<int> tokens(source.size());
    source.read(0, source.size(), tokens.data());
    return tokens;
}

// A corpus whose token at place i is i, so that a batch shows where it was cut.
TokenSource places(size_t n) {
    return tokens_from_text(" ", "places", [n](std::string_view) { return counting(0, n); });
}

struct Batch {
    std::vector<int> inputs, targets;
};

Batch next(Loader& loader, size_t B, size_t T) {
    Batch batch{std::vector<int>(B * T, -1), std::vector<int>(B * T, -1)};
    loader.next(batch.inputs.data(), batch.targets.data());
    return batch;
}

}  // namespace

TEST_CASE("tokens: text in memory and in a file are their bytes, or what the tokenizer makes of them") {
    TemporaryFolder dir;
    CHECK(all(tokens_from_text("ab\xff")) == std::vector<int>{97, 98, 255});
    write_bytes(dir / "a.txt", "hi\n");
    CHECK(all(open_tokens(dir / "a.txt")) == std::vector<int>{104, 105, 10});
    CHECK(!open_tokens(dir / "a.txt").from_shards());
    const Tokenize lengths = [](std::string_view text) { return std::vector<uint16_t>(2, uint16_t(text.size())); };
    CHECK(all(open_tokens(dir / "a.txt", lengths)) == std::vector<int>{3, 3});
    write_bytes(dir / "b.txt", "");
    write_bytes(dir / "c.txt", "c");
    CHECK(all(open_tokens(dir / "?.txt")) == std::vector<int>{104, 105, 10, 99});
    write_bytes(dir / "[x].txt", "x");  // a name that is also a pattern
    CHECK(all(open_tokens(dir / "[x].txt")) == std::vector<int>{120});
}

TEST_CASE("tokens: shards are concatenated in the order of their names") {
    TemporaryFolder dir;
    write_bytes(dir / "train_000002.bin", shard_bytes(20240520, 1, 2, {50256, 65535}));
    write_bytes(dir / "train_000001.bin", shard_bytes(20240520, 1, 3, {7, 8, 9}));
    write_token_shard(dir / "train_000003.bin", counting(1, 4));
    const TokenSource source = open_tokens(dir / "train_*.bin");
    CHECK(source.from_shards());
    CHECK(all(source) == std::vector<int>{7, 8, 9, 50256, 65535, 1, 2, 3});
    int middle[4];
    source.slice(1, 8).read(1, 4, middle);
    CHECK((middle[0] == 9 && middle[1] == 50256 && middle[2] == 65535 && middle[3] == 1));
    CHECK(contains(source.slice(1, 8).where(3), "token 1 of "));
    CHECK(contains(source.slice(1, 8).where(3), "train_000002.bin"));
    CHECK(contains(source.name(), "train_000001.bin' and 2 more"));
    CHECK(error_of([&] { source.slice(2, 4).read(1, 2, middle); }) != "");

    std::ifstream file(dir / "train_000003.bin", std::ios::binary);
    const std::string written{std::istreambuf_iterator<char>(file), {}};
    CHECK(written == shard_bytes(20240520, 1, 3, {1, 2, 3}));
}

TEST_CASE("tokens: a held-out tail") {
    const auto [train, val] = places(101).split_tail(0.1);
    CHECK(train.size() == 91);
    CHECK(val.size() == 10);
    CHECK(all(val).front() == 91);
    CHECK(all(val).back() == 100);
    CHECK(all(train).back() == 90);
    CHECK(error_of([] { places(10).split_tail(1.0); }) != "");
    CHECK(error_of([] { places(10).split_tail(std::nan("")); }) != "");
}

TEST_CASE("tokens: a fingerprint tells corpora apart by every token; huge ones by their length and by samples") {
    auto text = [](size_t size) { return std::string(size, 'a'); };
    auto fingerprint = [](const std::string& bytes) { return tokens_from_text(bytes).fingerprint(); };
    for (size_t size : {size_t(1), size_t(4096), size_t(4097), size_t(12345), size_t(2) << 20}) {
        CAPTURE(size);
        const std::string plain = text(size);
        const uint64_t sum = fingerprint(plain);
        CHECK(fingerprint(plain) == sum);
        CHECK(fingerprint(text(size + 1)) != sum);
        std::string other = plain;
        size_t changes = 0, noticed = 0;
        for (size_t at = 0; at < size; at += std::max<size_t>(1, size / 31), changes++) {
            other[at] = 'b', noticed += fingerprint(other) != sum, other[at] = 'a';
        }
        other[size - 1] = 'b';
        CHECK(fingerprint(other) != sum);
        CHECK(noticed == changes);
    }
    auto sampled = [](const std::string& bytes) { return tokens_from_text(bytes).fingerprint(1 << 20); };
    const std::string large = text(20000000);  // of which 4096 * 4096 tokens count
    std::string other = large;
    const uint64_t sum = sampled(large);
    CHECK(sampled(text(large.size() + 1)) != sum);
    size_t noticed = 0;
    for (size_t at : {size_t(0), size_t(4500), large.size() - 1})  // the second lies between samples
        other[at] = 'b', noticed += sampled(other) != sum, other[at] = 'a';
    CHECK(noticed == 2);
    // The same tokens are the same corpus, whatever holds them, and at any place.
    const TemporaryFolder dir;
    std::vector<uint16_t> ids(10000, 'a');
    ids.back() = 'b';
    write_token_shard(dir.path + "/part1.bin", std::span(ids).first(5001));
    write_token_shard(dir.path + "/part2.bin", std::span(ids).subspan(5001));
    CHECK(open_tokens(dir.path + "/part*.bin").fingerprint() == fingerprint(text(9999) + 'b'));
    CHECK(tokens_from_text("").fingerprint() == tokens_from_text("").fingerprint());
    const TokenSource both = tokens_from_text("abab");
    CHECK(both.slice(0, 2).fingerprint() == both.slice(2, 4).fingerprint());
    CHECK(both.slice(0, 2).fingerprint() != both.slice(1, 3).fingerprint());
}

TEST_CASE("tokens: bad files are refused in one line") {
    TemporaryFolder dir;
    const std::string path = dir / "bad.bin";
    const auto error = [&](const std::string& bytes) {
        write_bytes(path, bytes);
        const std::string message = error_of([&] { open_tokens(path); });
        CHECK(!contains(message, "\n"));
        CHECK(contains(message, "bad.bin"));
        return message;
    };
    CHECK(contains(error(shard_bytes(20240520, 2, 1, {1})), "found 2"));
    CHECK(contains(error(shard_bytes(20240520, 1, 2, {1})), "says that it holds 2,"));
    CHECK(contains(error(shard_bytes(20240520, 1, 1, {1, 2})), "says that it holds 1,"));
    CHECK(contains(error(shard_bytes(20240520, 1, -1, {})), "says that it holds -1,"));
    CHECK(contains(error(shard_bytes(20240520, 1, 1, {1}).substr(0, 1000)), "bytes of a header"));
    CHECK(contains(error(shard_bytes(20240801, 7, 1, {1, 0})), "uint32"));
    CHECK(contains(error(std::string("\x07\x00\x08\x00", 4)), "byte 1 is zero"));
    const std::string whole = shard_bytes(20240520, 1, 4, {1, 2, 3, 4});
    for (size_t n = 1; n < whole.size(); n++) {
        // Three bytes and less are not a magic number; they hold no zero and so are text.
        write_bytes(path, whole.substr(0, n));
        REQUIRE((error_of([&] { open_tokens(path); }) != "") == (n > 3));
    }
    CHECK(contains(error_of([&] { open_tokens(dir / "nothing*.bin"); }), "no file matches"));
    CHECK(contains(error_of([&] { open_tokens(dir / "nothing.bin"); }), "No such file"));
    CHECK(contains(error_of([&] { open_tokens(dir.path); }), "directory"));
    write_bytes(dir / "m1.x", "text");
    write_bytes(dir / "m2.x", whole);
    const std::string mixed = error_of([&] { open_tokens(dir / "m*.x"); });
    CHECK(contains(mixed, "shards ('" + (dir / "m2.x")));
    CHECK(contains(mixed, "text ('" + (dir / "m1.x")));
    CHECK(contains(error_of([&] { write_token_shard(dir / "no/such.bin", counting(0, 3)); }), "mkdir"));
}

TEST_CASE("loader: in sequence, B rows are one window of B*T + 1 tokens") {
    const size_t B = 2, T = 3;
    Loader loader(places(20), B, T);  // 19 targets: 6 rows of 3
    CHECK(loader.rows_per_epoch() == 6);
    for (const int begin : {0, 6, 12, 0, 6}) {
        const Batch batch = next(loader, B, T);
        for (int i = 0; i < 6; i++) {
            CHECK(batch.inputs[size_t(i)] == begin + i);
            CHECK(batch.targets[size_t(i)] == begin + i + 1);
        }
    }
    CHECK(loader.position() == 10);

    Loader odd(places(16), 2, 3);  // 5 rows: the third batch is the last row and the first
    CHECK(odd.rows_per_epoch() == 5);
    next(odd, 2, 3), next(odd, 2, 3);
    CHECK(next(odd, 2, 3).inputs == std::vector<int>{12, 13, 14, 0, 1, 2});
    CHECK(next(odd, 2, 3).inputs == std::vector<int>{3, 4, 5, 6, 7, 8});
}

TEST_CASE("loader: shuffled epochs visit every row once, in another order and with other borders each time") {
    const size_t T = 5;
    for (const size_t N : {size_t(6), size_t(9), size_t(10), size_t(11), size_t(64), size_t(333)}) {
        CAPTURE(N);
        Loader loader(places(N), 1, T, {.shuffle = true, .seed = 3});
        const size_t rows = loader.rows_per_epoch();
        CHECK(rows >= 1);
        CHECK(rows * T + 2 * T > N - 1);  // less than two rows are left out
        std::set<std::vector<int>> orders;
        std::set<size_t> offsets;
        for (size_t epoch = 0; epoch < 40; epoch++) {
            std::set<size_t> begins;
            std::vector<int> order;
            for (size_t i = 0; i < rows; i++) {
                const size_t begin = loader.row_begin(loader.position());
                const Batch row = next(loader, 1, T);
                REQUIRE(begin + T < N);
                for (size_t t = 0; t < T; t++) {
                    REQUIRE(row.inputs[t] == int(begin + t));
                    REQUIRE(row.targets[t] == int(begin + t + 1));
                }
                begins.insert(begin);
                order.push_back(int(begin / T));
            }
            const size_t offset = *begins.begin();
            REQUIRE(begins.size() == rows);
            REQUIRE(*begins.rbegin() == offset + (rows - 1) * T);
            REQUIRE(offset < T);
            offsets.insert(offset);
            orders.insert(order);
        }
        CHECK(offsets.size() == std::min(T, N - rows * T));
        if (rows >= 11) CHECK(orders.size() == 40);
    }
}

TEST_CASE("loader: the permutation is uniform") {
    // Where each of 7 rows comes, over 7000 epochs: every place is expected 1000 times. The sum over one
    // row's places of (count - 1000)^2 / 1000 has 6 degrees of freedom; above 30 has probability 4e-5, for 7
    // rows 3e-4.
    const size_t T = 1, rows = 7, epochs = 7000;
    Loader loader(places(rows + 1), 1, T, {.shuffle = true, .seed = 1});
    REQUIRE(loader.rows_per_epoch() == rows);
    std::vector<std::vector<double>> count(rows, std::vector<double>(rows, 0));
    for (size_t i = 0; i < rows * epochs; i++) count[loader.row_begin(i)][i % rows]++;
    for (const auto& of_row : count) {
        double chi2 = 0;
        for (const double n : of_row) chi2 += (n - 1000) * (n - 1000) / 1000;
        CHECK(chi2 <= 30);
    }
    // Neighbours are torn apart: of 1000 rows about one is followed by its successor.
    Loader large(places(1001), 1, T, {.shuffle = true, .seed = 1});
    size_t followed = 0;
    for (size_t i = 0; i + 1 < 1000; i++) followed += large.row_begin(i) + 1 == large.row_begin(i + 1);
    CHECK(followed < 10);
}

TEST_CASE("loader: seek reaches any position, with any batch size and any number of ranks") {
    const size_t T = 4;
    for (const bool shuffle : {false, true}) {
        const LoaderOptions one = {.shuffle = shuffle, .seed = 9};
        Loader reference(places(103), 1, T, one);
        std::vector<std::vector<int>> rows;
        for (size_t i = 0; i < 120; i++) rows.push_back(next(reference, 1, T).inputs);

        Loader resumed(places(103), 3, T, one);
        resumed.seek(37);
        for (size_t begin = 37; begin + 3 <= 120; begin += 3) {
            const Batch batch = next(resumed, 3, T);
            for (size_t b = 0; b < 3; b++)
                for (size_t t = 0; t < T; t++) REQUIRE(batch.inputs[b * T + t] == rows[begin + b][t]);
        }
        for (size_t rank = 0; rank < 3; rank++) {
            Loader ranked(places(103), 2, T, {.shuffle = shuffle, .seed = 9, .rank = rank, .world_size = 3});
            for (size_t step = 0; step < 20; step++) {
                CHECK(ranked.position() == step * 6);
                const Batch batch = next(ranked, 2, T);
                for (size_t b = 0; b < 2; b++)
                    for (size_t t = 0; t < T; t++) REQUIRE(batch.inputs[b * T + t] == rows[step * 6 + rank * 2 + b][t]);
            }
        }
    }
    Loader a(places(103), 1, T, {.shuffle = true, .seed = 1}), b(places(103), 1, T, {.shuffle = true, .seed = 2});
    size_t same = 0;
    for (size_t i = 0; i < 20; i++) same += a.row_begin(i) == b.row_begin(i);
    CHECK(same < 10);
}

TEST_CASE("loader: what it refuses") {
    CHECK(contains(error_of([] { Loader(places(5), 1, 5); }), "'places' has 5 tokens, but one sequence needs 6"));
    Loader(places(6), 4, 5);
    CHECK(error_of([] { Loader(places(6), 0, 5); }) != "");
    CHECK(error_of([] { Loader(places(6), 1, 5, {.rank = 1}); }) != "");
    Loader loader(places(20), 1, 4, {.vocab_size = 10});
    next(loader, 1, 4), next(loader, 1, 4);  // ids up to 8
    const std::string message = error_of([&] { next(loader, 1, 4); });
    CHECK(contains(message, "token 10 of 'places' is the id 10, but the vocabulary has 10"));
}

}  // namespace tapernorm
