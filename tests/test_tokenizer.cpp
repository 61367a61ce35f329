// Tokenizer, vocabulary training and corpus preparation, on vocabularies whose merges are worked out by hand.
// With GPT2_TOKENIZER=DIR (vocab.json and merges.txt of GPT-2) the real one too.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <initializer_list>
#include <set>

#include "io/files.h"
#include "io/tokenizer.h"
#include "io/torch_file.h"
#include "io/words.h"
#include "runtime/random.h"
#include "tests/errors.h"
#include "tests/temporary_folder.h"
#include "tests/vocabulary.h"

// The programs as they are, without their main.
#define TAPERNORM_NO_MAIN
#include "data/bpe_train.cpp"
#include "data/prepare.cpp"

namespace tapernorm::prepare {

TEST_SUITE_BEGIN("tokenizer");

namespace {

using Ids = std::vector<uint16_t>;

// All bytes, then what `merges` make, then <|endoftext|>.
struct Files {
    std::vector<std::string> tokens;
    std::vector<std::pair<uint16_t, uint16_t>> merges;

    explicit Files(std::initializer_list<std::pair<const char*, const char*>> rules) {
        std::vector<int> order;
        for (int b = '!'; b <= '~'; ++b) order.push_back(b);
        for (int b = 0xA1; b <= 0xFF; ++b)
            if (b != 0xAD) order.push_back(b);
        for (int b = 0; b < 256; ++b)
            if (b < '!' || (b > '~' && b < 0xA1) || b == 0xAD) order.push_back(b);
        for (const int b : order) tokens.emplace_back(1, char(b));
        const auto find = [&](const std::string& token) {
            return uint16_t(std::find(tokens.begin(), tokens.end(), token) - tokens.begin());
        };
        for (const auto& [left, right] : rules) {
            merges.emplace_back(find(left), find(right));
            tokens.push_back(std::string(left) + right);
        }
        tokens.emplace_back("<|endoftext|>");
    }
    std::string vocab() const { return vocab_json_text(tokens); }
    std::string merges_text() const { return merges_txt_text(tokens, merges); }
    Tokenizer tokenizer() const { return Tokenizer::from_text(vocab(), merges_text(), "the test's vocabulary"); }
};

// he 256, ll 257, hell 258, hello 259, " w" 260, <|endoftext|> 261
const Files hello{{"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {" ", "w"}};

void write_file(const std::string& path, std::string_view text) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path, std::ios::binary).write(text.data(), std::streamsize(text.size()));
}

#if HAVE_PCRE2

// GPT-2's ids of single bytes: '!' is 0; below '!' and from 0x7F on they follow after the printable ones.
uint16_t id_of(char c) { return c == ' ' ? 220 : c == '\n' ? 198 : uint16_t(c - '!'); }

std::vector<std::string> words_of(std::string_view text) {
    std::vector<std::string> all;
    Words words(text);
    for (std::string_view word; words.next(word);) all.emplace_back(word);
    return all;
}

using Strings = std::vector<std::string>;

// Everything that may sit next to everything else, valid UTF-8 or not.
std::string random_text(uint64_t seed, size_t pieces) {
    static const char* const kinds[] =
        {"a",      "Bc",     "é",        "你",           "'s",    "'ll",    "'",
         "7",      "½",      " ",        "  ",           "\n",    "\r\n",   "\t",
         "\u00a0", "\u3000", "\u2028",   "\u180e",       "-",     "!?",     "🙂",
         "\xff",   "\xc3",   "\xe2\x82", "\xed\xa0\x80", "hello", " world", "<|endoftext|>",
         "<|endof"};
    std::string text;
    for (size_t i = 0; i < pieces; ++i) text += kinds[random_bits(seed, 0, i) % std::size(kinds)];
    return text;
}

// Runs a program's main, its output kept from the terminal. Returns {exit status, stdout and stderr
// together}.
std::pair<int, std::string> run_program(int (*program)(int, char**), std::vector<std::string> arguments) {
    const TemporaryFolder folder;
    const std::string path = folder.path + "/output";
    std::fflush(stdout);
    std::fflush(stderr);
    const int saved[2] = {dup(STDOUT_FILENO), dup(STDERR_FILENO)};
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    arguments.insert(arguments.begin(), "program");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    const int status = program(int(argv.size()), argv.data());
    std::fflush(stdout);
    std::fflush(stderr);
    dup2(saved[0], STDOUT_FILENO);
    dup2(saved[1], STDERR_FILENO);
    for (const int fd : {file, saved[0], saved[1]}) close(fd);
    return {status, read_text(path)};
}

Ids tokens_of(const std::string& pattern) {
    const TokenSource source = open_tokens(pattern);
    std::vector<int> tokens(source.size());
    source.read(0, tokens.size(), tokens.data());
    return {tokens.begin(), tokens.end()};
}

Ids joined(const std::vector<Ids>& parts) {
    Ids all;
    for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
}

#endif

}  // namespace

TEST_CASE("byte level: ids are bytes") {
    const Tokenizer tokenizer;
    std::string all;
    for (int b = 0; b < 256; ++b) all += char(b);
    const Ids ids = tokenizer.encode(all + "<|endoftext|>", true);
    REQUIRE(ids.size() == 256 + 13);
    for (size_t b = 0; b < 256; ++b) CHECK(ids[b] == b);
    CHECK(ids[256] == '<');
    CHECK(tokenizer.decode(ids) == all + "<|endoftext|>");
    CHECK(tokenizer.vocab_size() == 256);
    CHECK(tokenizer.name() == "bytes");
    CHECK(!tokenizer.end_of_text());
    CHECK(contains(error_of([&] { tokenizer.token(256); }), "token id 256 is outside the vocabulary"));
    CHECK(tokenizer.metadata() == std::map<std::string, std::string>{{"tokenizer", "bytes"}});
}

TEST_CASE("byte level survives saving as a vocabulary without merges") {
    const TemporaryFolder folder;
    save_tokenizer(Tokenizer(), folder.path);
    const Tokenizer read = Tokenizer::from_path(folder.path);
    CHECK(read.name() == "bytes");
    CHECK(read.encode("\xff a") == Ids{255, 32, 97});
}

TEST_CASE("GPT-2's characters for bytes") {
    CHECK(printable_from_bytes(" the\n") == "ĠtheĊ");
    CHECK(printable_from_bytes(std::string_view("\0\x7f\xad\xa1\xff", 5)) == "ĀġŃ¡ÿ");
}

#if HAVE_PCRE2

TEST_CASE("merges by rank, leftmost first") {
    const Tokenizer tokenizer = hello.tokenizer();
    CHECK(tokenizer.vocab_size() == 262);
    CHECK(tokenizer.end_of_text() == uint16_t(261));
    CHECK(tokenizer.encode("") == Ids{});
    CHECK(tokenizer.encode("hello") == Ids{259});
    CHECK(tokenizer.encode("hell") == Ids{258});
    CHECK(tokenizer.encode("hel") == Ids{256, id_of('l')});
    // he l l l o -> he ll l o -> hell l o: nothing merges "l o"
    CHECK(tokenizer.encode("helllo") == Ids{258, id_of('l'), id_of('o')});
    CHECK(tokenizer.encode("hello world") == Ids{259, 260, id_of('o'), id_of('r'), id_of('l'), id_of('d')});
    // Words do not merge with each other: the space belongs to "he", and nothing merges " h".
    CHECK(tokenizer.encode("ll he") == Ids{257, id_of(' '), 256});

    const Tokenizer order = Files{{"b", "c"}, {"a", "b"}}.tokenizer();
    CHECK(order.encode("abc") == Ids{id_of('a'), 256});  // "b c" comes before "a b"
    CHECK(order.encode("abbc") == Ids{257, 256});
}

TEST_CASE("short and long words merge alike, and a megabyte of one letter is no trap") {
    // aa 256, aaaa 257: of n letters every two merge, then every four, from the left.
    const Tokenizer tokenizer = Files{{"a", "a"}, {"aa", "aa"}}.tokenizer();
    for (const size_t n : {1u, 2u, 3u, 7u, 63u, 64u, 65u, 66u, 67u, 68u, 1'000'003u}) {
        CAPTURE(n);
        Ids expected(n / 4, 257);
        if (n % 4 >= 2) expected.push_back(256);
        if (n % 2) expected.push_back(id_of('a'));
        CHECK(tokenizer.encode(std::string(n, 'a')) == expected);
    }
    // The same word alone (above 64 bytes: the queue) and cut into parts that merge independently (the scan).
    const Tokenizer mixed = Files{{"a", "b"}, {"ab", "c"}, {"c", "a"}, {"b", "b"}}.tokenizer();
    std::string part = "abcabbcacabab", word;
    Ids expected;
    for (size_t i = 0; i < 10; ++i) {
        word += part + "x";
        for (const uint16_t id : mixed.encode(part + "x")) expected.push_back(id);
    }
    CHECK(mixed.encode(word) == expected);
}

TEST_CASE("<|endoftext|> is special only where allowed") {
    const Tokenizer tokenizer = hello.tokenizer();
    const std::string text = "hello<|endoftext|>hello";
    CHECK(tokenizer.encode(text, true) == Ids{259, 261, 259});
    CHECK(tokenizer.encode("<|endoftext|><|endoftext|>", true) == Ids{261, 261});
    const Ids plain = tokenizer.encode(text);
    CHECK(plain.size() == 2 + 13);  // no two of its characters merge
    CHECK(std::find(plain.begin(), plain.end(), 261) == plain.end());
    CHECK(tokenizer.decode(plain) == text);
    CHECK(tokenizer.decode(tokenizer.encode(text, true)) == text);
}

TEST_CASE("words of GPT-2's expression") {
    CHECK(words_of("I'll say don't, we've") == Strings{"I", "'ll", " say", " don", "'t", ",", " we", "'ve"});
    CHECK(words_of("DON'T") == Strings{"DON", "'", "T"});
    CHECK(words_of("a1 22b") == Strings{"a", "1", " 22", "b"});
    CHECK(words_of("½Ⅻ٣ naïve 你好") == Strings{"½Ⅻ٣", " naïve", " 你好"});
    CHECK(words_of("x = (y);\n") == Strings{"x", " =", " (", "y", ");", "\n"});
    // White space keeps its last character for the next word only if that is a single space before it.
    CHECK(words_of("a  b") == Strings{"a", " ", " b"});
    CHECK(words_of("a \n b") == Strings{"a", " \n", " b"});
    CHECK(words_of("a\n\n\nb") == Strings{"a", "\n\n", "\n", "b"});
    CHECK(words_of("a\t\tb") == Strings{"a", "\t", "\t", "b"});
    CHECK(words_of("a  ") == Strings{"a", "  "});
    CHECK(words_of("a\u00a0\u3000\u2028b") == Strings{"a", "\u00a0\u3000", "\u2028", "b"});
    // U+180E is white space to PCRE2's \s, but has not been since Unicode 6.3; U+200B and U+001F never were.
    CHECK(words_of("a \u180e\u200b\x1f b") == Strings{"a", " \u180e\u200b\x1f", " b"});
}

TEST_CASE("words of bytes that are not UTF-8 are those of the text with replacement characters") {
    CHECK(words_of("a\xff\xfe b") == Strings{"a", "\xff\xfe", " b"});
    CHECK(words_of("\xe2\x82"
                   "A") == Strings{"\xe2\x82", "A"});
    CHECK(words_of("é\xc3") == Strings{"é", "\xc3"});
    CHECK(words_of("\xed\xa0\x80z") == Strings{"\xed\xa0\x80", "z"});            // a surrogate
    CHECK(words_of("\xc0\xaf 1") == Strings{"\xc0\xaf", " 1"});                  // an overlong slash
    CHECK(words_of(" \xf4\x90\x80\x80é") == Strings{" \xf4\x90\x80\x80", "é"});  // above U+10FFFF
    CHECK(words_of("\xe2é") == Strings{"\xe2", "é"});
    const std::string zero("\0a", 2);
    CHECK(words_of(zero) == Strings{std::string(1, '\0'), "a"});
}

TEST_CASE("any bytes come back") {
    const Tokenizer tokenizer = hello.tokenizer();
    for (uint64_t seed = 0; seed < 100; ++seed) {
        const std::string text = random_text(seed, 200);
        CHECK(tokenizer.decode(tokenizer.encode(text, seed % 2)) == text);
        std::string noise;
        for (uint64_t i = 0; i < 300; ++i) noise += char(random_bits(seed, 1, i));
        CHECK(tokenizer.decode(tokenizer.encode(noise)) == noise);
    }
}

TEST_CASE("a safe cut changes no word") {
    size_t cuts = 0;
    for (uint64_t seed = 0; seed < 300; ++seed) {
        const std::string text = random_text(seed, 40);
        const size_t cut = word_safe_cut(text, text.size() / 3);
        CHECK(cut >= text.size() / 3);
        if (cut == text.size()) continue;
        ++cuts;
        Strings parts = words_of(text.substr(0, cut));
        for (const std::string& word : words_of(text.substr(cut))) parts.push_back(word);
        CAPTURE(text);
        CHECK(parts == words_of(text));
    }
    CHECK(cuts > 200);  // most texts have a place
    CHECK(word_safe_cut("aaaa", 1) == 4);
    CHECK(word_safe_cut("aa\u3000\u3000 b", 3) == 10);  // the space ends a run of white space
    CHECK(word_safe_cut("你好 b", 1) == 6);
}

TEST_CASE("several threads give the ids of one") {
    const Tokenizer tokenizer = hello.tokenizer();
    const std::string text = random_text(7, 500'000);
    REQUIRE(text.size() > 1'000'000);
    const Ids ids = tokenizer.encode(text, true);
    CHECK(tokenizer.encode_parallel(text, true, 3) == ids);
    CHECK(tokenizer.encode_parallel(text, false, 2) == tokenizer.encode(text));
    CHECK(tokenizer.encode_parallel("hello", false, 2) == Ids{259});
}

#else

TEST_CASE("without PCRE2 encoding by BPE says what is missing") {
    CHECK(contains(error_of([] { hello.tokenizer().encode("hello"); }), "PCRE2"));
    CHECK(hello.tokenizer().decode(Ids{259, 260}) == "hello w");
}

#endif

TEST_CASE("names tell vocabularies apart") {
    const std::string name = hello.tokenizer().name();
    CHECK(name.substr(0, 7) == "bpe262-");
    CHECK(hello.tokenizer().name() == name);
    Files swapped = hello;
    std::swap(swapped.merges[0], swapped.merges[1]);  // the same tokens, other ranks
    CHECK(swapped.tokenizer().name() != name);
    const Files fewer{{"h", "e"}};
    CHECK(fewer.tokenizer().name() != name);
}

TEST_CASE("files: directory, prefix, metadata") {
    const TemporaryFolder folder;
    const Tokenizer tokenizer = hello.tokenizer();
    save_tokenizer(tokenizer, folder.path);
    write_file(folder.path + "/my_vocab.json", hello.vocab());
    const std::string windows = "h e\r\nl l\r\nhe ll\r\nhell o\r\nĠ w\r\n";  // no #version, other line ends
    write_file(folder.path + "/my_merges.txt", windows);
    for (const char* path : {"", "/vocab.json", "/my_vocab.json"}) {
        CAPTURE(path);
        const Tokenizer read = Tokenizer::from_path(folder.path + path);
        CHECK(read.name() == tokenizer.name());
        CHECK(read.decode(Ids{259, 260, 261}) == "hello w<|endoftext|>");
    }
    const auto metadata = tokenizer.metadata();
    CHECK(metadata.at("tokenizer") == tokenizer.name());
    CHECK(metadata.at("tokenizer.merges") == "#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ w\n");
    const Tokenizer embedded = Tokenizer::from_metadata(metadata, "/nowhere/model.bin");
    CHECK(embedded.metadata() == metadata);

    // A checkpoint of Hugging Face has no entry; its vocabulary lies beside it.
    CHECK(Tokenizer::from_metadata({}, folder.path + "/model.safetensors").name() == tokenizer.name());
    CHECK(Tokenizer::from_metadata({{"tokenizer", "bytes"}}, folder.path + "/model.bin").name() == "bytes");
    CHECK(contains(error_of([&] { Tokenizer::from_metadata({{"tokenizer", "gpt2"}}, folder.path + "/model.bin"); }),
                   "was trained with the tokenizer 'gpt2'"));
    CHECK(contains(error_of([] { Tokenizer::from_metadata({}, "/nowhere/model.bin"); }), "--tokenizer DIR"));
    auto wrong = metadata;
    wrong["tokenizer"] = "gpt2";
    CHECK(
        contains(error_of([&] { Tokenizer::from_metadata(wrong, "model.bin"); }), "says that its tokenizer is 'gpt2'"));
}

TEST_CASE("added tokens") {
    Files files = hello;
    std::string vocab = files.vocab();
    vocab.replace(vocab.rfind('}'), 1, ", \"<pad>\": 262, \"<two words>\": 263, \"zzz\": 264}");
    const Tokenizer tokenizer = Tokenizer::from_text(vocab, files.merges_text(), "test");
    CHECK(tokenizer.decode(Ids{262, 263}) == "<pad><two words>");  // the space stands for itself: no byte's character
#if HAVE_PCRE2
    CHECK(tokenizer.encode("zzz") == Ids(3, id_of('z')));  // a word, but merging does not lead there
#endif
}

TEST_CASE("damaged vocabularies are refused with a reason") {
    const auto error = [](const std::string& vocab, const std::string& merges) {
        return error_of([&] { Tokenizer::from_text(vocab, merges, "FILE"); });
    };
    const std::string vocab = hello.vocab(), merges = hello.merges_text();
    CHECK(contains(error("[1]", merges),
                   "FILE: expected vocab.json to be a JSON object {\"token\": id, ...}, found array"));
    CHECK(contains(error(std::string(101, '['), merges), "found more than 100 levels of brackets"));
    CHECK(error("{\"a\": \"" + std::string(800'000, 'x') + "\"}", merges).size() < 400);
    CHECK(contains(error("{\"a\": 0", merges), "to be a JSON object"));
    CHECK(contains(error("{\"a\": 1}", merges), "has the id 1"));
    CHECK(contains(error("{\"a\": 0, \"b\": 0}", merges), "each of 0 to"));
    CHECK(contains(error("{\"a\": -1}", merges), "has the id -1"));
    CHECK(contains(error("{\"a\": 0}", ""), "no token for byte 0x00"));
    CHECK(contains(error(vocab, merges + "h\n"), "line 7 of merges.txt"));
    CHECK(contains(error(vocab, merges + "h e l\n"), "one space between them"));
    CHECK(contains(error(vocab, merges + "x y\n"), "files that belong together"));
    CHECK(contains(error_of([] { Tokenizer::from_path("/nowhere"); }), "is not a tokenizer; expected"));
    const TemporaryFolder folder;
    write_file(folder.path + "/vocab.json", vocab);
    CHECK(contains(error_of([&] { Tokenizer::from_path(folder.path); }), "merges.txt', which does not exist"));
    write_file(folder.path + "/merges.txt", "");
    CHECK(contains(error_of([&] { Tokenizer::from_path(folder.path); }),
                   "5 tokens of its vocabulary, such as 'he', are made by no merge: merges.txt is incomplete"));
    // Added tokens are no such ones.
    std::string more = vocab;
    more.replace(more.rfind('}'), 1, ", \"<he>\": 262, \"zzz\": 263, \"ĠĠ\": 264}");
    write_file(folder.path + "/vocab.json", more), write_file(folder.path + "/merges.txt", merges);
    CHECK(Tokenizer::from_path(folder.path).vocab_size() == 265);
}

namespace {

std::string llmc_tokenizer(const std::vector<std::string>& tokens, int version, size_t end_of_text) {
    int32_t header[256] = {20240328, version, int32_t(tokens.size()), int32_t(end_of_text)};
    std::string file(reinterpret_cast<const char*>(header), sizeof header);
    for (const std::string& token : tokens) file += char(token.size()) + token;
    return file;
}

}  // namespace

TEST_CASE("llm.c's tokenizer file: the merges follow from the tokens") {
    const TemporaryFolder folder;
    const std::string path = folder.path + "/tokenizer.bin", good = llmc_tokenizer(hello.tokens, 2, 261);
    write_file(path, good);
    CHECK(Tokenizer::from_path(path).metadata() == hello.tokenizer().metadata());

    const auto error = [&](std::string_view content) {
        write_file(path, content);
        return error_of([&] { Tokenizer::from_path(path); });
    };
    CHECK(contains(error(good.substr(0, good.size() - 1)), "ends within token 261 of 262"));
    CHECK(contains(error(good.substr(0, 100)), "is not a tokenizer of llm.c"));
    CHECK(contains(error(std::string(2000, 'x')), "is not a tokenizer of llm.c"));
    CHECK(contains(error(llmc_tokenizer(hello.tokens, 1, 0)),
                   "<|endoftext|> = 50256"));  // version 1 is GPT-2 alone
    std::vector<std::string> holes = hello.tokens;
    holes.insert(holes.end() - 1, "three");
    CHECK(contains(error(llmc_tokenizer(holes, 2, 262)), "not made of two earlier tokens"));
}

// ---- programs
// -----------------------------------------------------------------------------------------------------

#if HAVE_PCRE2

TEST_CASE("bpe_train learns the merges worked out by hand") {
    // Words: low 1, " low" 4, " lower" 2, " newest" 6, " widest" 3. Pairs by frequency, equal ones by ids
    // (d 67, e 68, i 72, l 75, n 77, o 78, s 82, t 83, w 86, space 220):
    //   e s 9 (as s t, but e < s); es t 9; l o 7 (as o w); lo w 7; of the pairs with 6 (e w, n e, w est, " "
    //   low, " " n) e w; then n ew; " " low; " " new; " new" est; of the pairs with 3 (" " w, w i, i d, d
    //   est) d est.
    const TemporaryFolder folder;
    const std::string text =
        "low low low low low lower lower newest newest newest newest newest newest widest widest widest";
    const std::string expected = "#version: 0.2\ne s\nes t\nl o\nlo w\ne w\nn ew\nĠ low\nĠ new\nĠnew est\nd est\n";
    write_file(folder.path + "/text.txt", text);
    const std::string out = folder.path + "/trained";
    CHECK(run_program(run_bpe_train, {folder.path + "/text.txt", "-o", out, "-v", "267"}).first == 0);
    CHECK(read_text(out + "/merges.txt") == expected);
    const Tokenizer tokenizer = Tokenizer::from_path(out);
    CHECK(tokenizer.vocab_size() == 267);
    CHECK(tokenizer.end_of_text() == uint16_t(266));
    CHECK(tokenizer.encode("low newest<|endoftext|>", true) == Ids{259, 264, 266});
    CHECK(tokenizer.token(220) == " ");

    // The marker cuts words like the end of a file and is not counted; with a limit of 4 all but the last are
    // learned.
    write_file(folder.path + "/a.txt", text.substr(0, 25) + "<|endoftext|>");
    write_file(folder.path + "/b.txt", text.substr(25));
    const std::string again = folder.path + "/again";  // this process has read the other folder
    const auto [status, output] = run_program(run_bpe_train, {folder.path + "/[ab].txt", "-o", again, "-v", "300",
                                                              "--min-frequency", "4", "--threads", "2"});
    CHECK(status == 0);
    CHECK(read_text(again + "/merges.txt") + "d est\n" == expected);
    CHECK(contains(output, "only 266 tokens"));

    CHECK(contains(run_program(run_bpe_train, {folder.path + "/none.txt"}).second, "bpe_train: error: cannot read"));
}

TEST_CASE("bpe_train: a pair that overlaps itself") {
    // "aaaa" 3 times, "aaa" once: a a counts 3*3 + 2 = 11; then aa aa 3, aa a 1.
    const TemporaryFolder folder;
    write_file(folder.path + "/text.txt", "aaaa\naaaa\naaaa\naaa");
    CHECK(run_program(run_bpe_train, {folder.path + "/text.txt", "-o", folder.path, "-v", "400"}).first == 0);
    CHECK(read_text(folder.path + "/merges.txt") == "#version: 0.2\na a\naa aa\n");
}

namespace {

struct PrepareFixture {
    TemporaryFolder folder;
    std::string dir = folder.path, vocabulary = dir + "/vocabulary", out = dir + "/out";

    PrepareFixture() {
        fs::create_directories(vocabulary);
        save_tokenizer(hello.tokenizer(), vocabulary);
        setenv("CURL_HOME", dir.c_str(), 1);  // no ~/.curlrc
    }
    std::pair<int, std::string> run(std::vector<std::string> arguments) {
        for (const std::string& more :
             {std::string("--out"), out, std::string("--tokenizer"), vocabulary, std::string("--downloads"),
              dir + "/downloads", std::string("--mirror"), "file://" + dir + "/mirror"})
            arguments.push_back(more);
        return run_program(run_prepare, arguments);
    }
};

}  // namespace

TEST_CASE("prepare: a mirror with control characters is refused before curl prints it") {
    const auto [status, message] =
        run_program(run_prepare, {"tinystories", "--mirror", std::string("file:///\x1b]0;X\x07")});
    CHECK(status == 1);
    CHECK(message.find("--mirror") != std::string::npos);
    CHECK(message.find('\x1b') == std::string::npos);
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: text with markers, splits and shards") {
    write_file(dir + "/tales.txt", "hello \n<|endoftext|>\n\nhell\nhe\n<|endoftext|>\n<|endoftext|>ll\n");
    const Ids all = {261, 259, 261, 258, id_of('\n'), 256, 261, 257};
    const auto [status, output] = run({dir + "/tales.txt", "--val-tokens", "3", "--shard-tokens", "2"});
    CHECK_MESSAGE(status == 0, output);
    CHECK(contains(output, "5 tokens for training, 3 for validation"));
    CHECK(contains(output, "3 documents"));
    CHECK(tokens_of(out + "/tales_val_000000.bin") == Ids{261, 259});
    CHECK(tokens_of(out + "/tales_val_000001.bin") == Ids{261});
    CHECK(tokens_of(out + "/tales_train_000003.bin") == Ids{257});
    CHECK(joined({tokens_of(out + "/tales_val_*.bin"), tokens_of(out + "/tales_train_*.bin")}) == all);
    CHECK(Tokenizer::from_path(out).name() == hello.tokenizer().name());

    const auto again = run({dir + "/tales.txt"});
    CHECK(again.first == 1);
    CHECK(contains(again.second, "exists already"));
}

TEST_CASE_FIXTURE(PrepareFixture,
                  "prepare: names of shards are as different as those of the corpora; bpe_train spares its text") {
    for (const char* name : {"a.1.txt", "a.2.txt", "a.jsonl.gz.txt"}) {
        write_file(dir + "/" + name, "hello hello hello hello\n");
        CHECK(run({dir + "/" + name, "--val-tokens", "1"}).first == 0);
    }
    for (const char* name : {"a.1", "a.2", "a.jsonl.gz"})
        CHECK_MESSAGE(fs::exists(out + "/" + name + "_val_000000.bin"), name);
    write_file(out + "/vocab.json", "hello hello hello hello\n");
    const auto [status, output] = run_program(run_bpe_train, {out + "/vocab.json", "--out", out, "-v", "260"});
    CHECK(status == 1);
    CHECK(output.find("--out: ") != std::string::npos);
    CHECK(read_text(out + "/vocab.json") == "hello hello hello hello\n");
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare and bpe_train: another tokenizer in the folder stays") {
    write_file(dir + "/a.txt", "hello hello hello hello\n");
    fs::create_directories(out);
    save_tokenizer(Tokenizer(), out);
    const std::string before = read_text(out + "/vocab.json");
    CHECK(contains(run({dir + "/a.txt", "--val-tokens", "1"}).second, "holds another tokenizer, bytes"));
    CHECK(contains(run_program(run_bpe_train, {dir + "/a.txt", "--out", out}).second, "vocab.json' exists already"));
    CHECK(read_text(out + "/vocab.json") == before);
    CHECK(!fs::exists(out + "/a_val_000000.bin"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: bytes have a blank line between documents") {
    write_file(dir + "/tales.txt", "one<|endoftext|>two");
    vocabulary = "bytes";
    CHECK(run({dir + "/tales.txt", "--val-tokens", "0"}).first == 0);
    CHECK(Tokenizer().decode(tokens_of(out + "/tales_train_*.bin")) == "one\n\ntwo");
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: a document longer than the pieces it is read in") {
    std::string text = random_text(3, 900'000);
    std::erase(text, '<');                           // no markers
    text += std::string(3'000'000, 'h') + " hello";  // a word longer than a piece
    REQUIRE(text.size() > 4 * kPassageBytes);
    write_file(dir + "/long.txt", text);
    CHECK(run({dir + "/long.txt", "--val-tokens", "0", "--threads", "3"}).first == 0);
    CHECK(tokens_of(out + "/long_train_*.bin") == joined({{261}, hello.tokenizer().encode(text)}));
    fs::remove(out + "/long_train_000001.bin");
    CHECK(run({dir + "/long.txt", "--val-tokens", "0", "--max-tokens", "1000"}).first == 0);
    CHECK(tokens_of(out + "/long_train_*.bin").size() == 1000);
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: JSON lines") {
    write_file(dir + "/lines.jsonl", "{\"id\": 1, \"story\": \"hello\"}\n\n{\"story\": \"\\u0068e\\n<|endoftext|>\"}");
    CHECK(run({dir + "/lines.jsonl", "--field", "story", "--val-tokens", "0"}).first == 0);
    const Tokenizer tokenizer = hello.tokenizer();  // in JSON the marker is text like any other
    CHECK(tokens_of(out + "/lines_train_*.bin") == joined({{261, 259, 261}, tokenizer.encode("he\n<|endoftext|>")}));
    out += "2";
    CHECK(contains(run({dir + "/lines.jsonl"}).second,
                   "line 1 has no text named 'text'; name one of these with --field: 'story'"));
    out += "4";
    write_file(dir + "/two.jsonl", "{\"a\": \"x\", \"b\": \"y\"}\n");
    CHECK(contains(run({dir + "/two.jsonl"}).second, "name one of these with --field: 'a', 'b'"));
    out += "3";
    write_file(dir + "/broken.jsonl", "{\"text\": \"a\"}\n\n{\"text\":");
    const auto [status, output] = run({dir + "/broken.jsonl"});
    CHECK(status == 1);
    CHECK(contains(output, "line 3 is not a JSON object"));
    // A line is in memory whole, and a small packed file may hold a huge one.
    std::ofstream(dir + "/long.jsonl") << "{\"text\": \"hello\"}\n{\"text\": \"" << std::string(66 << 20, 'a')
                                       << "\"}\n";
    REQUIRE(std::system(("gzip -1 '" + dir + "/long.jsonl'").c_str()) == 0);
    CHECK(contains(run({dir + "/long.jsonl.gz"}).second,
                   "line 2: expected at most 64 MiB in a line, found more; split it"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: tar archives, a document a file") {
    // Fills in the checksum of the header at `at`: POSIX, ustar: the sum of its 512 bytes, those of the checksum as blanks.
    const auto summed = [](std::string& archive, size_t at) {
        std::memset(&archive[at + 148], ' ', 8);
        unsigned sum = 0;
        for (size_t i = 0; i < 512; i++) sum += static_cast<unsigned char>(archive[at + i]);
        std::snprintf(&archive[at + 148], 8, "%06o", sum);
    };
    const auto member = [&](const char* name, char kind, const std::string& text) {
        std::string block(512 + (text.size() + 511) / 512 * 512, '\0');
        std::strcpy(&block[0], name);
        std::snprintf(&block[124], 12, "%011zo", text.size());
        block[156] = kind;
        std::memcpy(&block[257], "ustar", 5);
        std::copy(text.begin(), text.end(), block.begin() + 512);
        summed(block, 0);
        return block;
    };
    const std::string archive = member("d/", '5', "") + member("d/1.txt", '0', " hello\n\n\n\nhe ") +
                                member("d/2.txt", '0', std::string(600, '\n') + "ll") + std::string(1024, '\0');
    write_file(dir + "/texts.tar", archive);
    CHECK(run({dir + "/texts.tar", "--val-tokens", "0"}).first == 0);
    const Ids blank_line = {id_of('\n'), id_of('\n')};
    CHECK(tokens_of(out + "/texts_train_*.bin") == joined({{261, 259}, blank_line, {256, 261, 257}}));
    for (const size_t bytes : {700u, 1100u}) {  // within a header, within a file
        write_file(dir + "/torn.tar", archive.substr(0, bytes));
        out += "2";
        CHECK(contains(run({dir + "/torn.tar"}).second, "ends within a file"));
    }
    // A size that the archive does not have costs no memory, whatever it is; one that is no number is damage.
    for (const char* size : {"77777777777", "777777777777", "-1", "\xff\xff\xff\xff\xff\xff\xff\xff", "12x", "",
                             "\x80\1\1\1\1\1\1\1\1\1\1\1"}) {
        std::string lying = archive;
        std::memset(&lying[512 + 124], 0, 12);
        std::memcpy(&lying[512 + 124], size, std::strlen(size));
        summed(lying, 512);
        write_file(dir + "/lying.tar", lying);
        out += "2";
        const auto [status, output] = run({dir + "/lying.tar"});
        CHECK(status == 1);
        const bool number = size[0] == '7' || size[0] == '\x80';
        CHECK(contains(output, number ? "'d/1.txt': expected at most 64 MiB in a file, found " : "octal digits"));
    }
    for (const size_t at : {512u, 512u + 130, 512u + 150}) {  // a name, a size, the checksum itself
        std::string changed = archive;
        changed[at] ^= 1;
        write_file(dir + "/changed.tar", changed);
        out += "2";
        const auto [status, output] = run({dir + "/changed.tar"});
        CHECK(status == 1);
        CHECK(contains(output, "damaged or not a tar archive"));
    }
    write_file(dir + "/binary.tar", member("d/1.txt", '0', std::string("\x1f\x8b", 2)));
    CHECK(contains(run({dir + "/binary.tar"}).second, "binary.tar': 'd/1.txt': expected text, found packed by gzip"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: half a surrogate pair in JSON becomes U+FFFD; deep nesting is one line") {
    write_file(dir + "/half.jsonl", R"({"text": "he\ud83dll\ud83d\ude42"})");
    CHECK(run({dir + "/half.jsonl", "--val-tokens", "0"}).first == 0);
    CHECK(tokens_of(out + "/half_train_*.bin") ==
          joined({{261}, hello.tokenizer().encode("he\xef\xbf\xbdll\xf0\x9f\x99\x82")}));
    const std::string deep(300'000, '[');
    write_file(dir + "/deep.jsonl", "{\"text\": \"a\"}\n{\"x\": " + deep + std::string(300'000, ']') + "}\n");
    out += "2";
    CHECK(contains(run({dir + "/deep.jsonl"}).second, "line 2 is not a JSON object"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare and bpe_train: what is no text is refused by what it is") {
    using namespace std::string_literals;
    fs::create_directories(dir + "/folder");
    REQUIRE(mkfifo((dir + "/fifo").c_str(), 0600) == 0);
    write_file(dir + "/packed.txt", "\x1f\x8b\x08" + std::string(3000, 'x'));
    write_file(dir + "/wide.txt", "\xff\xfe"s + "a\0b\0"s);
    write_file(dir + "/packed.jsonl", "\x28\xb5\x2f\xfd" + std::string(3000, 'x'));
    write_token_shard(dir + "/shard.bin", Ids(300, 7));
    const std::pair<std::string, std::string> cases[] = {{"folder", "directory"},  {"fifo", "not a regular file"},
                                                         {"packed.txt", "gunzip"}, {"wide.txt", "iconv"},
                                                         {"packed.jsonl", "zstd"}, {"shard.bin", "token shard"}};
    for (const auto& [name, needle] : cases)
        for (const bool given : {false, true}) {
            std::vector<std::string> arguments = {dir + "/" + name};
            if (given) arguments.insert(arguments.end(), {"--val-tokens", "0"});
            const auto [status, output] = run(arguments);
            CHECK(status == 1);
            CHECK_MESSAGE(contains(output, name), output);
            if (given || name == "folder" || name == "fifo") CHECK_MESSAGE(contains(output, needle), output);
            const auto [bpe_status, bpe_output] = run_program(run_bpe_train, {dir + "/" + name, "--out", dir + "/bpe"});
            CHECK(bpe_status == 1);
            CHECK(contains(bpe_output, name));
            CHECK_MESSAGE(contains(bpe_output, needle), bpe_output);
        }
    CHECK(!fs::exists(dir + "/bpe/vocab.json"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: the command that it prints is safe to paste, whatever the folder's name") {
    write_file(dir + "/it's.txt", "hello hello hello");
    out = dir + "/my `out` $HOME \"x\" [1] \x1b[2J";
    const auto [status, output] = run({dir + "/it's.txt", "--val-tokens", "1"});
    CHECK_MESSAGE(status == 0, output);
    CHECK(printable(output, "\n\t") == output);
    // The shell gives train_gpt the pattern, which matches the shards and nothing else.
    const std::string command = output.substr(output.find("  ./train_gpt"));
    const std::string words = dir + "/words";
    const std::string as_words = "printf '%s\\n' " + command.substr(command.find("-i"));
    write_file(dir + "/run.sh", as_words.substr(0, as_words.find_last_not_of('\n') + 1) + " > " + shell_word(words));
    CHECK(std::system(("bash " + shell_word(dir + "/run.sh")).c_str()) == 0);
    std::istringstream lines(read_text(words));
    std::vector<std::string> list;
    for (std::string line; std::getline(lines, line);) list.push_back(line);
    REQUIRE(list.size() == 6);
    CHECK(matching_files(list[1]) == std::vector{out + "/it's_train_000001.bin"});
    CHECK(matching_files(list[3]) == std::vector{out + "/it's_val_000000.bin"});
    CHECK(list[5] == out);
}

static bool has_curl() {
    if (std::system("curl --version >/dev/null 2>&1") == 0) return true;
    MESSAGE("skipped: no curl");
    return false;
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: a named corpus is downloaded, continued, and split as it comes") {
    if (!has_curl()) return;
    const std::string place = "/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-";
    const std::string train = "hello\n<|endoftext|>\nhell\n";
    write_file(dir + "/mirror" + place + "valid.txt", "he\n<|endoftext|>\n");
    write_file(dir + "/mirror" + place + "train.txt", train);
    // A download that stopped within the file: what is there stays, though it is not what the host has.
    write_file(dir + "/downloads/tinystories/TinyStoriesV2-GPT4-train.txt.part", "HELLO");
    const auto [status, output] = run({"tinystories"});
    CHECK_MESSAGE(status == 0, output);
    CHECK(tokens_of(out + "/tinystories_val_000000.bin") == Ids{261, 256});
    CHECK(tokens_of(out + "/tinystories_train_000001.bin") ==
          joined({{261}, hello.tokenizer().encode("HELLO"), {261, 258}}));
    CHECK(!fs::exists(dir + "/downloads/tinystories/TinyStoriesV2-GPT4-train.txt.part"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: a download with another checksum is removed") {
    if (!has_curl()) return;
    write_file(dir + "/mirror/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", "abc");
    const auto [status, output] = run({"tinyshakespeare"});
    CHECK(status == 1);
    // SHA-256 of "abc": FIPS 180-2, appendix B.1
    CHECK(contains(output, "expected SHA-256 86c4e6aa9db7"));
    CHECK(contains(output, "found ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    CHECK(!fs::exists(dir + "/downloads/tinyshakespeare/input.txt"));
    CHECK(!fs::exists(dir + "/downloads/tinyshakespeare/input.txt.part"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: what cannot be downloaded or read") {
    if (!has_curl()) return;
    CHECK(contains(run({"openwebtext"}).second, "cannot download file://"));
    CHECK(contains(run({"fineweb-edu"}).second, "comes as tokens of GPT-2's vocabulary"));
    CHECK(contains(run({dir + "/none.txt"}).second, "no file has this name"));
    write_file(dir + "/table.parquet", "PAR1\x15\x04");
    CHECK(contains(run({dir + "/table.parquet"}).second, "Parquet"));
    write_file(dir + "/torn.txt.gz", "no gzip");
    CHECK(contains(run({dir + "/torn.txt.gz"}).second, "gzip failed"));
    write_file(dir + "/a\x1b[2J.txt.gz", "no gzip");  // whose name gzip would show as it is
    const std::string output = run({dir + "/a\x1b[2J.txt.gz"}).second;
    CHECK(contains(output, "gzip failed"));
    CHECK(printable(output, "\n\t") == output);
    write_file(dir + "/empty.txt", "");
    CHECK(contains(run({dir + "/empty.txt"}).second, "holds no text"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare and bpe_train: what a refused command made is removed, and nothing else") {
    write_file(dir + "/empty.txt", "");
    write_file(dir + "/torn.txt.gz", "no gzip");
    write_file(dir + "/packed.txt", "\x1f\x8b\x08" + std::string(3000, 'x'));
    write_file(dir + "/a_1.jsonl", R"({"text": "hello hello hello"})"
                                   "\n");
    write_file(dir + "/a_2.jsonl", "{\n");
    auto files = [&] {
        std::set<std::string> all;
        for (const auto& entry : fs::recursive_directory_iterator(dir)) all.insert(entry.path().string());
        return all;
    };
    out = dir + "/new/out";
    for (const bool there : {false, true}) {
        if (there) fs::create_directories(out);
        const auto before = files();
        for (const std::string name : {"none.txt", "empty.txt", "torn.txt.gz", "no*.txt", "a_*.jsonl"}) {
            CAPTURE(name);
            CHECK(run({dir + "/" + name, "--val-tokens", "2"}).first == 1);
            CHECK(files() == before);
        }
        for (const std::string name : {"openwebtext", "fineweb-edu"}) CHECK(run({name}).first == 1);
        CHECK(files() == before);
        for (const std::string name : {"none.txt", "packed.txt"})
            CHECK(run_program(run_bpe_train, {dir + "/" + name, "--out", out}).first == 1);
        CHECK(files() == before);
    }
    write_file(dir + "/file", "");
    CHECK(contains(run_program(run_bpe_train, {dir + "/a_1.jsonl", "--out", dir + "/file"}).second,
                   "cannot make the folder"));
    // Shards to train on that are whole are worth keeping.
    CHECK(run({dir + "/a_*.jsonl", "--val-tokens", "1", "--shard-tokens", "1"}).first == 1);
    CHECK(fs::exists(out + "/a_train_000001.bin"));
    CHECK(fs::exists(out + "/vocab.json"));
}

TEST_CASE_FIXTURE(PrepareFixture,
                  "prepare: a text that changes while it is read is refused, and no shard of it stays") {
    const std::string path = dir + "/long.txt", line = "a line of a long text\n";
    std::string text;
    while (text.size() < 4 * kPassageBytes) text += line;
    const auto error_after = [&](const std::function<void()>& change) {
        write_file(path, text);
        const auto reader = open_reader(path, "auto", "text");
        Passage passage;
        if (!reader->next(passage)) return std::string("nothing to read");
        change();
        return error_of([&] {
            while (reader->next(passage)) {
            }
        });
    };
    const std::string error = error_after([&] { std::ofstream(path, std::ios::app) << line; });
    CHECK_MESSAGE(contains(error, "long.txt' has been changed while it was in use"), error);
    CHECK(in_child([&] {  // which remembers the lost pages
        return contains(error_after([&] { fs::resize_file(path, 5000); }),
                        "long.txt' has become shorter while it was in use");
    }));
}

namespace {

// A program of this name that is found before all others, as long as this lives.
struct ProgramInFront {
    std::string path = std::getenv("PATH");
    ProgramInFront(const std::string& folder, const std::string& name, const std::string& script) {
        write_file(folder + "/" + name, "#!/bin/sh\n" + script);
        fs::permissions(folder + "/" + name, fs::perms::owner_all);
        setenv("PATH", (folder + ":" + path).c_str(), 1);
    }
    ~ProgramInFront() { setenv("PATH", path.c_str(), 1); }
};

}  // namespace

TEST_CASE_FIXTURE(PrepareFixture, "prepare: shards of a corpus that has changed are removed") {
    write_file(dir + "/a_1.txt", "hello hello hello");
    write_file(dir + "/a_2.txt.gz", "packed");
    const ProgramInFront gzip(dir + "/bin", "gzip", "echo more >> \"" + dir + "/a_2.txt.gz\"; echo hello\n");
    const auto [status, output] = run({dir + "/a_*", "--val-tokens", "1", "--shard-tokens", "1"});
    CHECK(status == 1);
    CHECK_MESSAGE(contains(output, "prepare: error: '" + dir + "/a_2.txt.gz' has been changed while it was in use"),
                  output);
    CHECK(!fs::exists(out));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare and bpe_train: a text with nothing to train on is refused") {
    write_file(dir + "/short.txt", "hello hello");
    write_file(dir + "/empty.txt", "");
    const auto [status, output] = run({dir + "/short.txt", "--val-tokens", "1000000"});
    CHECK(status == 1);
    CHECK_MESSAGE(contains(output, "prepare: error: --val-tokens: expected fewer than the "), output);
    CHECK(!fs::exists(out));
    const auto bpe = run_program(run_bpe_train, {dir + "/empty.txt", "--out", out});
    CHECK(bpe.first == 1);
    CHECK_MESSAGE(contains(bpe.second, "empty.txt' holds no text"), bpe.second);
    CHECK(!fs::exists(out));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: a tenth of the tokens is for validation, of a packed or a cut text, too") {
    std::string text;
    for (int i = 0; i < 1500; i++) text += "hello " + std::to_string(i % 7) + "\n";
    write_file(dir + "/c.txt", text);
    write_file(dir + "/packed.txt", text);
    REQUIRE(std::system(("gzip " + dir + "/packed.txt").c_str()) == 0);
    for (const auto& more : {std::vector<std::string>{}, {"--max-tokens", "1000"}, {"--shard-tokens", "70"}})
        for (const std::string name : {"c", "packed"}) {
            std::vector<std::string> arguments = {dir + "/" + name + (name == "c" ? ".txt" : ".txt.gz")};
            arguments.insert(arguments.end(), more.begin(), more.end());
            const auto [status, output] = run(arguments);
            CHECK_MESSAGE(status == 0, output);
            const size_t val = tokens_of(out + "/" + name + "_val_*.bin").size();
            const size_t all = val + tokens_of(out + "/" + name + "_train_*.bin").size();
            CHECK(val == (more.empty() || more[0] == "--max-tokens" ? all / 10 : 70));
            CHECK((all == 1000) == (!more.empty() && more[0] == "--max-tokens"));
            fs::remove_all(out);
        }
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare and bpe_train: an output folder that is a file is one line of ours") {
    write_file(dir + "/c.txt", "hello hello");
    out = dir + "/c.txt";
    for (const auto& output : {run({dir + "/c.txt"}), run_program(run_bpe_train, {dir + "/c.txt", "--out", out})}) {
        CHECK(output.first == 1);
        CHECK_MESSAGE(contains(output.second, "error: cannot make the folder '" + out), output.second);
    }
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare and bpe_train: a folder that another program writes to is refused") {
    write_file(dir + "/c.txt", "hello hello hello hello hello");
    fs::create_directory(out);
    const int other = open(out.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(flock(other, LOCK_EX) == 0);
    for (const auto& output : {run({dir + "/c.txt"}), run_program(run_bpe_train, {dir + "/c.txt", "--out", out})}) {
        CHECK(output.first == 1);
        CHECK_MESSAGE(contains(output.second, "is being written by another program; wait for it"), output.second);
    }
    close(other);
    CHECK(fs::is_empty(out));
    CHECK(run({dir + "/c.txt"}).first == 0);
}

namespace {

template <class... Numbers>
std::string int64_bytes(Numbers... numbers) {
    const int64_t all[] = {int64_t(numbers)...};
    return std::string(reinterpret_cast<const char*>(all), sizeof all);
}

}  // namespace

TEST_CASE_FIXTURE(PrepareFixture, "prepare: Parquet, as Arrow's program sends it") {
    write_file(dir + "/t.parquet", "PAR1\x15");
    const auto answer = [&](const std::string& bytes, std::vector<std::string> more = {}) {
        write_file(dir + "/answer", bytes);
        const ProgramInFront python(dir, "python3", "cat '" + dir + "/answer'");
        more.insert(more.begin(), dir + "/t.parquet");
        return run(more);
    };
    // Two batches; the offsets of the second do not begin at 0; texts without a letter are no documents.
    const auto [status, output] =
        answer(int64_bytes(3, 0, 5, 6, 8) + "hello he" + int64_bytes(1, 90, 94) + "hell", {"--val-tokens", "0"});
    CHECK_MESSAGE(status == 0, output);
    CHECK(tokens_of(out + "/t_train_000001.bin") == Ids{261, 259, 261, 256, 261, 258});
    fs::remove_all(out);
    for (const auto& [bytes, needle] : std::initializer_list<
             std::pair<std::string, const char*>>{{int64_bytes(-1) + "no column\x1b", "t.parquet': no column\\x1b"},
                                                  {int64_bytes(1, 0), "has broken off"},
                                                  {int64_bytes(2, 0, 5, 9) + "hello", "has broken off"},
                                                  {int64_bytes(257), "has broken off"},
                                                  {int64_bytes(1, 0, int64_t(1) << 40),
                                                   "expected at most 64 MiB in a text, found 1099511627776 bytes"},
                                                  {int64_bytes(1, 9, 0),
                                                   "expected at most 64 MiB in a text, found -9 bytes"},
                                                  {"abc", "has broken off"}}) {
        const auto result = answer(bytes);
        CHECK(result.first == 1);
        CHECK_MESSAGE(contains(result.second, needle), result.second);
        CHECK(!fs::exists(out));
    }
    for (const auto& [script, needle] : {std::pair("exit 3", "python3 failed (status 3"),
                                         std::pair("kill -9 $$", "python3 was ended by signal 9 (out of memory?)")}) {
        const ProgramInFront python(dir, "python3", script);
        CHECK(contains(run({dir + "/t.parquet"}).second, needle));
    }
    write_file(dir + "/t.parquet.gz", "x");
    CHECK(contains(run({dir + "/t.parquet.gz"}).second, "found one that is packed; unpack it first"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: Parquet, by Arrow itself") {
    const std::string write =
        "import pyarrow as pa, pyarrow.parquet as pq, sys\n"
        "a = ['hello', None, '', 'he'] * 150\n"
        "pq.write_table(pa.table({'n': list(range(600)), 'text': a}), sys.argv[1] + '/a.parquet', row_group_size=7)\n"
        "pq.write_table(pa.table({'text': pa.array(a).dictionary_encode()}), sys.argv[1] + '/b.parquet')\n"
        "b = [b'he\\xff', None]\n"
        "for i, column in enumerate([pa.array(b), pa.array(b, pa.large_binary()), pa.array(b).dictionary_encode(),\n"
        "                            pa.array(['hello', None], pa.large_string())]):\n"
        "    pq.write_table(pa.table({'text': column}), sys.argv[1] + '/type%d.parquet' % i)\n";
    write_file(dir + "/write.py", write);
    if (std::system(("python3 '" + dir + "/write.py' '" + dir + "' 2>/dev/null").c_str()) != 0) {
        MESSAGE("skipped: python3 has no pyarrow");
        return;
    }
    const auto [status, output] = run({dir + "/[ab].parquet", "--val-tokens", "0"});
    CHECK_MESSAGE(status == 0, output);
    Ids expected;
    for (int i = 0; i < 300; ++i) expected.insert(expected.end(), {261, 259, 261, 256});
    CHECK(tokens_of(out + "/ab_train_000001.bin") == expected);
    fs::remove_all(out);
    CHECK(
        contains(run({dir + "/a.parquet", "--field", "n"}).second,
                 "expected a column of texts named 'n' (--field), found one of type int64; columns of texts: 'text'"));
    // Bytes are kept, UTF-8 or not.
    const auto types = run({dir + "/type*.parquet", "--val-tokens", "0"});
    CHECK_MESSAGE(types.first == 0, types.second);
    CHECK(tokens_of(out + "/type_train_000001.bin") == Ids{261, 256, 187, 261, 256, 187, 261, 256, 187, 261, 259});
    fs::remove_all(out);
    write_file(dir + "/c.parquet", "PAR1\x15");
    CHECK(contains(run({dir + "/c.parquet"}).second, "expected a Parquet file, but Arrow says: "));
    fs::rename(dir + "/a.parquet", dir + "/A.PARQUET");
    CHECK(run({dir + "/A.PARQUET"}).first == 0);
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: a download ends with the program that asked for it") {
    const ProgramInFront curl(dir, "curl",
                              "echo $$ > '" + dir + "/new' && mv '" + dir + "/new' '" + dir +
                                  "/pid'; exec sleep 1000\n");
    const pid_t child = fork();
    if (child == 0) _exit(run({"openwebtext"}).first);
    for (int i = 0; i < 5000 && !fs::exists(dir + "/pid"); i++) usleep(1000);
    REQUIRE(fs::exists(dir + "/pid"));
    const pid_t pid = std::atoi(read_text(dir + "/pid").c_str());
    REQUIRE(pid > 0);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const auto runs = [&] {  // or is a zombie, where nobody waits for orphans
        std::string stat;
        std::getline(std::ifstream("/proc/" + std::to_string(pid) + "/stat"), stat);
        return !stat.empty() && stat.find(") Z") == stat.npos;
    };
    for (int i = 0; i < 5000 && runs(); i++) usleep(1000);
    CHECK(!runs());
    kill(pid, SIGKILL);
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: a model of the hub") {
    if (!has_curl()) return;
    const std::string place = dir + "/mirror/openai-community/gpt2/resolve/main/", model = dir + "/gpt2";
    const auto get = [&] {
        return run_program(run_prepare, {"gpt2", "-o", model, "--mirror", "file://" + dir + "/mirror"});
    };
    {
        const ProgramInFront curl(dir, "curl", "exit 23\n");
        CHECK(contains(get().second, "cannot write " + model + "/config.json.part; is the disk full?"));
    }
    const std::string unreachable = get().second;
    CHECK(contains(unreachable, "cannot download file://"));
    CHECK(!contains(unreachable, "yourself"));  // the folder, which says whose files these are, does not stay
    CHECK(!fs::exists(model));
    write_file(place + "config.json", "{}");
    write_file(place + "vocab.json", hello.vocab());
    write_file(place + "merges.txt", hello.merges_text());
    CHECK(contains(get().second, "model.safetensors"));  // what is there stays, and is not asked for again
    CHECK(fs::exists(model + "/config.json"));
    fs::remove(place + "config.json");
    write_file(place + "model.safetensors", "<html>");
    const std::string damaged = get().second;  // a page in place of weights
    CHECK(contains(damaged, "prepare: error: '" + model + "/"));
    CHECK(contains(damaged, "remove the folder '" + model + "', and try again"));
    // A page in place of the vocabulary.
    fs::remove_all(model);
    fs::remove_all(place), fs::create_directories(place);
    for (const auto& file : fs::directory_iterator("tests/golden/torch")) fs::copy(file, place);
    {
        const TorchFile torch(place + "pytorch_model.bin");
        std::vector<TensorOut> tensors;
        for (const TensorEntry& e : torch.entries())
            if (e.dtype == Dtype::F32 && !e.shape.empty()) tensors.push_back({e.name, e.dtype, e.shape, torch.data(e)});
        write_safetensors(place + "model.safetensors", {}, tensors);
    }
    write_file(place + "vocab.json", "<html>"), write_file(place + "merges.txt", "<html>");
    const std::string page = get().second;
    CHECK_MESSAGE(contains(page, "vocab.json"), page);
    CHECK_MESSAGE(contains(page, "remove the folder '" + model + "', and try again"), page);
    // Another model is not taken for this one, whoever made it.
    const auto other = run_program(run_prepare, {"gpt2-xl", "-o", model, "--mirror", "file://" + dir + "/mirror"});
    CHECK(contains(other.second, "expected a new folder, or one that holds gpt2-xl already"));
    const auto foreign = run_program(run_prepare, {"gpt2", "-o", vocabulary});
    CHECK(contains(foreign.second, "which holds something else"));
    CHECK(contains(run_program(run_prepare, {"gpt2", "--mirror", "mirror"}).second,
                   "--mirror: expected https://HOST or file:///DIR"));

    CHECK(
        contains(run({"gpt2-xl", "--max-tokens", "9"}).second, "--tokenizer: is for corpora, and gpt2-xl is a model"));
}

TEST_CASE_FIXTURE(PrepareFixture, "prepare: the checksums that the hub sends along") {
    // Pro Git, section 10.2 (git hash-object), and FIPS 180-2, appendix B.1
    write_file(dir + "/text", "test content\n");
    CHECK(git_blob_of(dir + "/text") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4");
    const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const auto fetch = [&](const std::string& headers, const std::string& body) {
        write_file(dir + "/body", body), write_file(dir + "/sent", headers);
        const ProgramInFront curl(dir, "curl",
                                  "while [ $# -gt 1 ]; do case $1 in --dump-header) cp '" + dir +
                                      "/sent' \"$2\";; --output) cp '" + dir + "/body' \"$2\";; esac; shift; done");
        fs::remove(dir + "/got");
        return error_of([&] { download("https://host/file", dir + "/got", "", ""); });
    };
    CHECK(fetch("x-linked-etag: \"" + abc + "\"\netag: \"123\"\n", "abc") == "");
    CHECK(contains(fetch("X-Linked-ETag: \"" + abc + "\"\n", "abd"), "expected SHA-256 " + abc + ", found "));
    CHECK(fetch("ETag: \"d670460b4b4aece5915caf5c68d12f560a9fe3e4\"\n", "test content\n") == "");
    CHECK(contains(fetch("ETag: \"d670460b4b4aece5915caf5c68d12f560a9fe3e4\"\n", "test contenu\n"),
                   "expected git's checksum d670"));
    CHECK(!fs::exists(dir + "/got"));
    CHECK(!fs::exists(dir + "/got.part"));
    CHECK(fetch("ETag: W/\"5f2c-18\"\n", "x") == "");
}

TEST_CASE("GPT-2's own vocabulary") {
    const char* path = std::getenv("GPT2_TOKENIZER");
    if (!path) {
        MESSAGE("skipped: set GPT2_TOKENIZER to a directory with GPT-2's vocab.json and merges.txt");
        return;
    }
    const Tokenizer tokenizer = Tokenizer::from_path(path);
    CHECK(tokenizer.name() == "gpt2");
    CHECK(tokenizer.vocab_size() == 50257);
    CHECK(tokenizer.end_of_text() == uint16_t(50256));
    // The ids that GPT-2's documentation and many tutorials print.
    CHECK(tokenizer.encode("Hello world") == Ids{15496, 995});
    CHECK(tokenizer.encode("Hello, I'm a language model,") == Ids{15496, 11, 314, 1101, 257, 3303, 2746, 11});
    const TemporaryFolder folder;
    std::vector<std::string> tokens;
    for (size_t id = 0; id < 50257; ++id) tokens.emplace_back(tokenizer.token(id));
    write_file(folder.path + "/gpt2_tokenizer.bin", llmc_tokenizer(tokens, 1, 50256));
    CHECK(Tokenizer::from_path(folder.path + "/gpt2_tokenizer.bin").metadata() == tokenizer.metadata());
}

#endif

TEST_SUITE_END();

}  // namespace tapernorm::prepare
