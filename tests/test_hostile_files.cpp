// Files that are not what they should be, and names made to deceive: every program says so in one line, and nothing that a file
// or a name holds reaches a terminal as a control character.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "io/files.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/terminal.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "tests/vocabulary.h"

namespace tapernorm {

namespace {

namespace fs = std::filesystem;

// ESC, a C1 control (CSI in UTF-8), the mark that turns the direction of what follows, a byte that is not UTF-8.
const std::string kHostile = "a\x1b[2J\xc2\x9b\x33m\xe2\x80\xae\x62\xff";

bool is_printable(const std::string& text) { return printable(text, "\n\t") == text; }

std::string brackets(size_t n) { return std::string(n, '['); }

double loss_in(const std::string& out) {
    const size_t at = out.find("loss      ");
    INFO(out);
    REQUIRE(at != out.npos);
    return std::strtod(out.c_str() + at + 10, nullptr);
}

}  // namespace

// ---- terminals

TEST_CASE("printable: control characters, marks of direction and bytes that are not UTF-8 become \\xNN") {
    CHECK(printable("plain, \xc3\xa9, \xe4\xbd\xa0, \xf0\x9f\x99\x82 'quoted' \\x41") ==
          "plain, \xc3\xa9, \xe4\xbd\xa0, \xf0\x9f\x99\x82 'quoted' \\x41");
    CHECK(printable(kHostile) == "a\\x1b[2J\\xc2\\x9b3m\\xe2\\x80\\xaeb\\xff");
    CHECK(printable("a\n\tb\r\x7f", "\n\t") == "a\n\tb\\x0d\\x7f");
    CHECK(printable("a\n\tb") == "a\\x0a\\x09b");
    for (uint32_t c = 0x80; c < 0x3000; c++) {
        const std::string text =
            c < 0x800 ? std::string{char(0xc0 | c >> 6), char(0x80 | (c & 63))}
                      : std::string{char(0xe0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
        const bool hidden = c < 0xa0 || c == 0x61c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
                            (c >= 0x2066 && c <= 0x2069);
        if ((printable(text) != text) != hidden) FAIL_CHECK(c);
    }
    CHECK(in_quotes(kHostile + "'\\") == "'a\\x1b[2J\\xc2\\x9b3m\\xe2\\x80\\xaeb\\xff\\x27\\x5c'");
    std::string umlauts;
    for (int i = 0; i < 200; i++) umlauts += "\xc3\xa4";
    CHECK(in_quotes(umlauts).find("\\x") == std::string::npos);  // cut between characters
    CHECK(in_quotes(umlauts).size() < 180);

    // In pieces of any length the same.
    const std::string text = "\xe4\xbd\xa0" + kHostile + "\xf0\x9f\x99\x82\n\xe4\xbd";
    for (size_t n = 1; n < 6; n++) {
        PrintablePieces pieces;
        std::string all;
        for (size_t at = 0; at < text.size(); at += n) all += pieces.add(text.substr(at, n));
        CHECK(all + pieces.rest() == printable(text, "\n\t"));
    }
}

TEST_CASE("shell_word: what the shell makes of it is the path") {
    const TemporaryFolder folder;
    for (const std::string& path :
         {std::string("plain-1.bin"), std::string("my model's \"$HOME\" `id` \\ *.bin"),
          std::string("a;b|c&d<e>f(g)#h!i~"), std::string(""), "dir/" + kHostile + "\n'\\end"}) {
        const std::string word = shell_word(path), out = folder / "out";
        CHECK(printable(word) == word);
        CHECK(std::system(("bash -c " + shell_word("printf %s " + word + " > " + out)).c_str()) == 0);
        CHECK(read_file(out) == path);
    }
    CHECK(shell_word("-x.bin") == "./-x.bin");
    CHECK(shell_word("-x y") == "'./-x y'");
}

TEST_CASE("programs: hostile names of files are printable on success, too") {
    const Workplace w;
    auto quiet = [&](const std::string& line, const std::vector<std::string>& more) {
        const Outcome outcome = w.run(line, more);
        CAPTURE(outcome.out);
        CAPTURE(outcome.err);
        CHECK(outcome.status == 0);
        CHECK(is_printable(outcome.out));
        CHECK(is_printable(outcome.err));
        return outcome.out;
    };
    const std::string model = kHostile + ".bin", folded = kHostile + ".folded", text = "a\x1b[2J\xc2\x9b.txt";
    fs::copy_file(w.at("corpus.txt"), w.at(text));
    const std::string out = quiet("train_gpt -b 2 -x 6 --gate-warmup 2 --gate-end 4 -s 3 -v 3" + kShape,
                                  {"-i", text, "-j", text, "-o", model});
    CHECK(contains(out, "next: ./fold $'a\\x1b"));
    quiet("train_gpt -y -x 7", {"-o", model});
    quiet("fold", {model, folded});
    const Outcome exported = run_program_in(w.path, {"train_gpt", "export", model, kHostile + ".hf"});
    CHECK(exported.status == 0);
    CHECK(is_printable(exported.out));
    quiet("infer -n 0 --tokens 97 --dump", {kHostile + ".st", folded});
    quiet("infer --eval", {text, folded});
    quiet("infer --last-token --show 256 --prompt", {"\x1b[2J", folded});
    // The name of a tokenizer is whatever the file says.
    with_metadata(w.at(folded), w.at("named.bin"), {{"tokenizer", kHostile}});
    CHECK(contains(quiet("infer named.bin --tokens 97 -n 0", {}), "(a\\x1b[2J"));
    with_metadata(w.at(folded), w.at("long.bin"), {{"tokenizer", std::string(101, 'a')}});
    for (const std::string line : {"infer long.bin -n 1", "fold long.bin out.bin"})
        w.refused(line, {"long.bin: metadata \"tokenizer\": expected a name of at most 100 bytes, found 101"});
    // Commands in errors can be pasted as well.
    with_metadata(w.at(model), w.at("$(id) \x1b.bin"), {{"gate", "0.5"}});
    w.refused("fold", {"-o $'\\x24\\x28id\\x29\\x20\\x1b.bin'"}, {"$(id) \x1b.bin", "out.bin"});
    fs::create_directory(w.at("it's $(id)"));
    write_file(w.at("it's $(id)/pytorch_model.bin"),
               "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19");  // of an old PyTorch
    write_file(w.at("it's $(id)/config.json"), "{}");
    w.refused("fold", {"'it'\\''s $(id)/pytorch_model.bin'"}, {"it's $(id)", "out.bin"});
    // Exceptions of the library name paths as they are.
    const Outcome thrown = run_program_in(w.path, {"train_gpt", "export", model, "corpus.txt/" + kHostile});
    CHECK(thrown.status == 1);
    CHECK(is_printable(thrown.err));
}

TEST_CASE("infer: generated text is printable on a terminal, and every byte in a pipe") {
    const Workplace w;
    w.ok(kTiny + " -x 1");  // of all bytes, control characters among them
    const std::string line = "infer model.bin -n 200 --temperature 100 --seed 3";
    const std::string prompt = "tab\tESC\x1b[2J";
    const std::string raw = w.ok(line + " --prompt", {prompt});
    CHECK(contains(raw, prompt));
    CHECK(!is_printable(raw));
    Program shown(w.path, Workplace::command(line + " --prompt", {prompt}), 0, true);
    std::string terminal = shown.finish().out;
    std::erase(terminal, '\r');  // the terminal's own
    CHECK(is_printable(terminal));
    CHECK(contains(terminal, "tab\tESC\\x1b[2J"));

    write_file(w.at("lines.txt"), "a\x7f\x1b[2J\n");
    const std::string lines = "infer model.bin -n 100 --temperature 100 --prompts lines.txt";
    Program json(w.path, Workplace::command(lines), 0, true);
    std::string shown_json = json.finish().out;
    std::erase(shown_json, '\r');
    CHECK(is_printable(shown_json));
    const auto parsed = nlohmann::json::parse(shown_json);
    CHECK(parsed == nlohmann::json::parse(w.run(lines).out));
    CHECK(parsed["prompt"] == "a\x7f\x1b[2J");
}

// ---- texts

TEST_CASE("texts: packed files, models, shards and other encodings are refused by what they are, in every program") {
    const Workplace w;
    w.ok(kTiny);
    using namespace std::string_literals;
    const std::string model = read_file(w.at("model.bin"));
    write_token_shard(w.at("shard.bin"), std::vector<uint16_t>(500, 7));
    std::string tar(600, 'x'), llama = "\xa1\xd9\x34\x01" + std::string(2000, '\1');
    tar.replace(257, 5, "ustar");
    const std::vector<std::pair<std::string, std::string>> kinds = {{"\x1f\x8b\x08"s, "gunzip"},
                                                                    {"\x1f\x9d\x90"s, "compress"},
                                                                    {std::string(2 << 20, 'x') + '\0',
                                                                     "byte 2097152 is zero"},
                                                                    {"\x28\xb5\x2f\xfd"s, "zstd"},
                                                                    {"BZh91AY&SY"s, "bunzip2"},
                                                                    {"\xfd"s + "7zXZ\0"s, "unxz"},
                                                                    {"PK\3\4"s, "zip"},
                                                                    {"PAR1\x15\4"s, "Parquet"},
                                                                    {"%PDF-1.7"s, "pdftotext"},
                                                                    {"\xff\xfe" + "a\0b\0"s, "UTF-16"},
                                                                    {"\xfe\xff\0a\0b"s, "UTF-16"},
                                                                    {"\xff\xfe\0\0a\0\0\0"s, "UTF-32"},
                                                                    {"\0\0\xfe\xff\0\0\0a"s, "UTF-32"},
                                                                    {model, "model"},
                                                                    {tar, "tar"},
                                                                    {llama, "Llama 3"},
                                                                    {"a text with a zero\0"s, "byte 18 is zero"}};
    for (const auto& [begin, needle] : kinds) {
        write_file(w.at("corpus.x"), begin + std::string(4000, 'x'));
        CHECK(contains(error_of([&] { TextFile file(w.at("corpus.x")); }), needle));
    }
    CHECK(contains(error_of([&] { TextFile file(w.at("shard.bin")); }), "a token shard"));
    // The programs all read texts that way (prepare and bpe_train: test_tokenizer.cpp).
    write_file(w.at("corpus.gz"), "\x1f\x8b\x08" + std::string(4000, 'x'));
    for (const std::string& line :
         {kTiny + " -i corpus.gz", kTiny + " -j corpus.gz", kTiny + " --hellaswag corpus.gz",
          std::string("infer model.bin --eval corpus.gz"), std::string("infer model.bin --prompts corpus.gz"),
          std::string("infer model.bin --hellaswag corpus.gz")})
        w.refused(line, {"corpus.gz", "gunzip"});
    w.refused("infer corpus.gz", {"corpus.gz", "packed by gzip"});
    w.refused("infer shard.bin", {"shard.bin", "a token shard"});
    w.refused("infer model.bin --eval model.state.bin", {"model.state.bin", "a state"});
    w.refused("infer model.bin --prompts shard.bin", {"shard.bin", "token shard", "--eval"});
    fs::create_directory(w.at("vocabulary"));
    write_file(w.at("vocabulary/vocab.json"), "\x1f\x8b\x08");
    write_file(w.at("vocabulary/merges.txt"), "");
    w.refused("infer model.bin --prompt x --tokenizer vocabulary", {"vocab.json", "gunzip"});
}

TEST_CASE("texts: a byte order mark is no token; other encodings than UTF-8 are one warning") {
    const Workplace w;
    w.ok(kTiny);
    write_file(w.at("mark.txt"), "\xef\xbb\xbfThe cat sat on the mat.\n");
    CHECK(contains(w.ok("infer model.bin --eval mark.txt"), "24 tokens"));
    CHECK(TextFile(w.at("mark.txt")).text().starts_with("The"));
    const std::string latin = "Der K\xe4se schl\xe4gt den M\xf6nch.\n";
    for (const std::string name : {"latin_1.txt", "latin_2.txt"}) write_file(w.at(name), latin);
    const Outcome outcome = w.run("infer model.bin --eval latin_*.txt");
    CHECK(outcome.status == 0);
    CHECK(outcome.err.starts_with("warning: 'latin_1.txt': byte 5 is not UTF-8"));
    CHECK(contains(outcome.err, "iconv"));
    CHECK(outcome.err.find('\n') + 1 == outcome.err.size());
}

// ---- tokens

TEST_CASE("infer --eval: token shards are read as tokens") {
    const Workplace w;
    w.ok(kTiny);
    const std::string text = read_file(w.at("corpus.txt")).substr(0, 300);
    write_file(w.at("text.txt"), text);
    const std::vector<uint16_t> ids = Tokenizer().encode(text);
    write_token_shard(w.at("a_0.bin"), {ids.data(), 200});
    write_token_shard(w.at("a_1.bin"), {ids.data() + 200, 100});
    const std::string of_text = w.ok("infer model.bin --eval text.txt"),
                      of_shards = w.ok("infer model.bin --eval a_*.bin");
    CHECK(contains(of_text, "text      'text.txt': 300 tokens, 300 bytes"));
    CHECK(contains(
        of_shards,
        "shards    'a_0.bin' and 1 more (no tokenizer beside the shards: taken for the model's): 300 tokens, 300 bytes"));
    CHECK(loss_in(of_shards) == loss_in(of_text));
    // Without a tokenizer, bits are those of a token.
    with_metadata(w.at("model.bin"), w.at("unknown.bin"), {{"tokenizer", "unknown"}});
    const std::string bare = w.ok("infer unknown.bin --eval a_*.bin");
    CHECK(loss_in(bare) == loss_in(of_text));
    CHECK(contains(bare, "bits per token"));
    w.refused("infer unknown.bin --eval text.txt", {"unknown.bin", "--tokenizer"});
    write_token_shard(w.at("b.bin"), std::vector<uint16_t>{1, 2, 300, 4});
    w.refused("infer model.bin --eval b.bin", {"token 2 of 'b.bin'", "300", "256"});
}

TEST_CASE("infer: a tokenizer that is not the model's is refused, by size and by name") {
    const Workplace w;
    write_vocabulary(w.at("words"));
    write_vocabulary(w.at("more"), 141);  // 400 tokens
    write_vocabulary(w.at("large"), 1000);
    write_vocabulary(w.at("padded"), 125);  // 384 tokens: as large as the vocabulary of 259 may be for padding
    w.ok(kTiny + " --tokenizer words -o words.bin");
    w.ok(kTiny + " -o bytes.bin");
    w.ok(kTiny + " --tokenizer large -o large.bin");
    write_file(w.at("item.jsonl"), R"({"ctx": "the", "endings": ["cat", "dog"], "label": 0})");
    write_file(w.at("lines.txt"), "the cat\n");
    for (const std::string mode :
         {"--eval corpus.txt", "--prompt the", "--prompts lines.txt", "--hellaswag item.jsonl", "-n 2", "--tokens 1"})
        for (const auto& [model, tokenizer] : std::map<std::string, std::string>{{"words.bin", "large"},
                                                                                 {"bytes.bin", "words"},
                                                                                 {"large.bin", "words"},
                                                                                 {"large.bin ", "bytes"}})
            w.refused("infer " + model + " " + mode + " --tokenizer " + tokenizer, {words(model)[0], "tokenizer"});
    w.ok("infer words.bin --eval corpus.txt --tokenizer words");
    for (const std::string tokenizer : {"large", "more", "bytes"})
        w.refused("train_gpt -y -o words.bin -x 7 --tokenizer " + tokenizer, {"words.state.bin"});
    const Outcome exported = run_program_in(w.path, words("train_gpt export words.bin out --tokenizer more"));
    CHECK(contains(exported.err, "--tokenizer: expected bpe259-"));
    // Where the name is a guess, the size decides: up to a multiple of 128 is padding.
    auto guess = [&](const std::string& from, const std::string& to) {
        const SafetensorsFile file(w.at(from));
        std::map<std::string, std::string> metadata = file.metadata();
        metadata["tokenizer"] = "unknown";
        metadata.erase("tokenizer.vocab"), metadata.erase("tokenizer.merges"), metadata.erase("checksum");
        std::vector<TensorOut> out;
        for (const TensorEntry& e : file.entries()) out.push_back({e.name, e.dtype, e.shape, file.data(e)});
        write_safetensors(w.at(to), metadata, out, {.checksum = true});
    };
    w.ok(kTiny + " --tokenizer padded -o padded.bin");
    guess("padded.bin", "guess.bin");
    w.ok("infer guess.bin --eval corpus.txt --tokenizer words");
    w.refused("infer guess.bin --eval corpus.txt --tokenizer more", {"400", "384", "guess.bin"});
    w.refused("infer guess.bin --eval corpus.txt --tokenizer bytes", {"256", "384", "guess.bin"});
    w.refused("infer guess.bin -n 1 --tokens 383,384", {"384"});
    // The model's own, where it does not fit: ids still work, and text says what is wrong.
    std::map<std::string, std::string> own = Tokenizer::from_path(w.at("large")).metadata();
    with_metadata(w.at("words.bin"), w.at("wrong.bin"), own);
    w.ok("infer wrong.bin -n 1 --tokens 258");
    for (const std::string mode : {"--eval corpus.txt", "--prompt the", "--prompts lines.txt"})
        w.refused("infer wrong.bin " + mode, {"1259", "259", "wrong.bin"});
}

TEST_CASE("a broken vocabulary in a model or beside it is named by whoever needs it or writes the model again") {
    const Workplace w;
    write_vocabulary(w.at("words"));
    write_vocabulary(w.at("large"), 1000);
    w.ok(kTiny + " -g norm --tokenizer words -o good.bin");
    write_token_shard(w.at("a.bin"), Tokenizer::from_path(w.at("words")).encode(read_file(w.at("corpus.txt"))));
    const std::map<std::string, std::string> large = Tokenizer::from_path(w.at("large")).metadata();
    const std::string bad_json = "{\"a\": 1";
    for (const auto& [changes, needle] :
         std::vector<std::pair<std::map<std::string, std::string>, std::string>>{{{{"tokenizer.vocab", bad_json}},
                                                                                  "vocab.json"},
                                                                                 {{{"tokenizer.merges", "he"}},
                                                                                  "merges.txt"},
                                                                                 {{{"tokenizer", "bpe259-00000000"}},
                                                                                  "bpe259-00000000"},
                                                                                 {large, "1259"}}) {
        CAPTURE(needle);
        with_metadata(w.at("good.bin"), w.at("bad.bin"), changes);
        auto warned = [&](const std::string& line) {
            const Outcome outcome = run_program_in(w.path, words(line));
            CAPTURE(line);
            CAPTURE(outcome.err);
            CHECK(outcome.status == 0);
            CHECK(outcome.err.starts_with("warning: 'bad.bin': its vocabulary cannot be used"));
            CHECK(contains(outcome.err, needle));
            CHECK(contains(outcome.err, "--tokenizer DIR"));
            CHECK(outcome.err.find('\n') + 1 == outcome.err.size());
        };
        warned("fold bad.bin folded.bin");
        warned("train_gpt export bad.bin out");
        fs::remove_all(w.at("out"));
        warned("train_gpt -i a.bin --init bad.bin -b 2 -x 1 -v 0 -t 16 --gate-warmup 0 -g norm -o new.bin");
        for (const std::string model : {"folded.bin", "new.bin"}) {
            CHECK(!SafetensorsFile(w.at(model)).metadata().contains("tokenizer.vocab"));
            w.ok("infer " + model + " -n 1 --prompt the --tokenizer words");
        }
        w.refused("infer bad.bin --prompt the", {needle, "--tokenizer DIR"});
        const std::string said = run_program_in(w.path, words("infer bad.bin --prompt the")).err;
        CHECK_MESSAGE(said.find("--tokenizer DIR") == said.rfind("--tokenizer DIR"), said);
        w.ok("infer bad.bin -n 1 --prompt the --tokenizer words");
        w.refused(kTrain + " --init bad.bin -o text.bin", {"--tokenizer", needle});
    }
    // The same in the state of a run,
    {
        const SafetensorsFile state(w.at("good.state.bin"));
        std::map<std::string, std::string> metadata = state.metadata();
        metadata.erase("checksum"), metadata["tokenizer.vocab"] = bad_json;
        std::vector<TensorOut> tensors;
        for (const TensorEntry& e : state.entries()) tensors.push_back({e.name, e.dtype, e.shape, state.data(e)});
        write_safetensors(w.at("run.state.bin"), metadata, tensors, {.checksum = true});
    }
    fs::rename(w.at("words"), w.at("gone"));
    w.refused("train_gpt -y -o run.bin -x 7", {"words"});
    w.warned("train_gpt -y -o run.bin -x 7 --tokenizer gone", "'run.log.jsonl', is not there");
    CHECK(SafetensorsFile(w.at("run.bin")).metadata().contains("tokenizer.vocab"));
    // and beside a model of another program.
    fs::create_directory(w.at("hf"));
    fs::copy_file(w.at("good.bin"), w.at("hf/model.safetensors"));
    const SafetensorsFile good(w.at("good.bin"));
    std::vector<TensorOut> out;
    for (const TensorEntry& e : good.entries()) out.push_back({e.name, e.dtype, e.shape, good.data(e)});
    write_safetensors(w.at("hf/model.safetensors"), {}, out);
    write_file(w.at("hf/config.json"),
               R"({"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 259})");
    write_file(w.at("hf/vocab.json"), bad_json), write_file(w.at("hf/merges.txt"), "");
    CHECK(contains(w.run("fold hf folded.bin").err, "hf/vocab.json"));
    w.refused("infer hf --prompt the", {"hf/vocab.json"});
    w.ok("infer hf -n 1 --prompt the --tokenizer gone");
    w.ok("infer hf -n 1 --tokens 258");
}

TEST_CASE("infer: ids behind the tokenizer's are never chosen and have U+FFFD as their text") {
    const Workplace w;
    write_vocabulary(w.at("hf"), 21);  // 280 tokens
    w.ok(
        "train_gpt -i corpus.txt -b 2 -x 1 -g norm --gate-warmup 0 -v 0 --n-layer 1 --n-embd 2 --n-head 1 -t 16 -o a.bin");
    {
        const SafetensorsFile from(w.at("a.bin"));
        std::vector<TensorOut> out;
        for (const TensorEntry& e : from.entries()) out.push_back({e.name, e.dtype, e.shape, from.data(e)});
        // Of any vector of two numbers, four of the last rows make four huge logits, one of them positive.
        std::vector<float> wte(300 * 2, 0.01f);
        for (size_t i = 280; i < 300; i++) wte[2 * i] = i % 2 ? 9 : -9, wte[2 * i + 1] = i % 4 < 2 ? 9 : -9;
        for (TensorOut& t : out)
            if (t.name == "transformer.wte.weight") t.shape = {300, 2}, t.data = wte.data();
        write_safetensors(w.at("hf/model.safetensors"), {}, out);
    }
    write_file(w.at("hf/config.json"),
               R"({"n_embd": 2, "n_head": 1, "n_layer": 1, "n_positions": 16, "vocab_size": 300})");
    write_file(w.at("lines.txt"), "the\nhe\n");
    for (const std::string how : {"--greedy", "--top-k 5", "--top-p 0.9", "--temperature 2"}) {
        w.ok("infer hf -p the -n 20 " + how);  // to print an id without text would be an error
        const Outcome outcome = w.run("infer hf --prompts lines.txt -n 20 " + how);
        CHECK(outcome.status == 0);
        std::istringstream lines(outcome.out);
        size_t tokens = 0, padding = 0;
        for (std::string line; std::getline(lines, line);) {
            const std::vector<size_t> ids = nlohmann::json::parse(line)["tokens"];
            for (const size_t id : ids) tokens++, padding += id >= 280;
        }
        CHECK(padding == 0);
        CHECK(tokens > 0);
    }
    const std::string next = w.ok("infer hf -p the --last-token --show 300");
    CHECK(contains(next, "%     279  "));
    CHECK(!contains(next, "%     280  "));
    CHECK(contains(w.ok("infer hf --tokens 257,290 -n 1"), "the\xef\xbf\xbd"));
    // Without a tokenizer there are only ids, and all of them are.
    fs::rename(w.at("hf/vocab.json"), w.at("vocab.json"));
    const std::string ids = w.ok("infer hf --tokens 257 -n 20 --greedy");
    CHECK((contains(ids, ",29") || contains(ids, ",28")));
}

TEST_CASE("shards beside another tokenizer are refused, and their own is train_gpt's default") {
    const Workplace w;
    const std::string text = read_file(w.at("corpus.txt"));
    for (const auto& [folder, tokens] : std::map<std::string, size_t>{{"words", 0}, {"more", 141}}) {
        write_vocabulary(w.at(folder), tokens);
        write_token_shard(w.at(folder + "/a.bin"), Tokenizer::from_path(w.at(folder)).encode(text));
    }
    w.ok("train_gpt -i words/a.bin -b 2 -x 6 --gate-warmup 2 --gate-end 4" + kShape + " -o words.bin");
    CHECK(SafetensorsFile(w.at("words.bin")).metadata().at("tokenizer") == Tokenizer::from_path(w.at("words")).name());
    w.ok("infer words.bin --eval words/a.bin");
    w.ok("train_gpt -y -o words.bin -x 7");
    w.ok(kTiny + " --tokenizer more -g norm -o more.bin");
    w.refused("infer more.bin --eval words/a.bin", {"--eval", "words/a.bin", "bpe259", "bpe400"});
    w.refused("train_gpt -i words/a.bin --tokenizer more" + kShape, {"--train", "words/a.bin"});
    w.refused("train_gpt -i words/a.bin --init more.bin", {"--train", "words/a.bin"});
    w.refused(kTiny + " --tokenizer more -j words/a.bin", {"--val", "words/a.bin"});
    std::filesystem::create_directory(w.at("bytes"));
    save_tokenizer(Tokenizer(), w.at("bytes"));
    write_token_shard(w.at("bytes/a.bin"), Tokenizer().encode(text));
    w.ok("train_gpt -i bytes/a.bin -b 2 -x 6 --gate-warmup 2 --gate-end 4" + kShape + " -o bytes.bin");
    w.ok("train_gpt -y -o bytes.bin -x 7");
    CHECK(contains(w.ok("infer bytes.bin --eval bytes/a.bin"), "bits per byte"));
    // Models that do not say what their tokenizer is, of 256 ids.
    w.ok("train_gpt -i bytes/a.bin -b 2 -x 6 -g norm" + kShape + " -o norm.bin");
    fs::create_directory(w.at("unknown"));
    with_metadata(w.at("norm.bin"), w.at("unknown/m.bin"), {{"tokenizer", "unknown"}});
    w.ok("infer unknown/m.bin --eval bytes/a.bin");
    for (const std::string shards : {"words", "more"}) {
        const std::string shard = shards + "/a.bin";
        w.refused("infer unknown/m.bin --eval " + shard, {"--eval", shard, "but the model's vocabulary has 256"});
        w.refused("train_gpt -i " + shard + " --init unknown/m.bin -b 2 -x 6 -t 16", {"--train", shard, "has 256"});
    }
}

// ---- JSON and settings

TEST_CASE("parse_json: what nests deeper than 100 levels is refused; half surrogates are mended") {
    const std::string ends(200, ']');
    CHECK(!parse_json(brackets(100) + ends.substr(0, 100)).is_discarded());
    CHECK(parse_json(brackets(101) + ends.substr(0, 101)).is_discarded());
    CHECK(parse_json("\"" + brackets(300) + "\\\"[\"") == brackets(300) + "\"[");  // in a text they nest nothing
    CHECK(parse_json(brackets(300'000)).is_discarded());
    std::string objects;
    for (int i = 0; i < 101; i++) objects += "{\"a\":";
    CHECK(parse_json(objects + "1" + std::string(101, '}')).is_discarded());
    CHECK(parse_json(R"("a\ud83d\ude42b")") ==
          "a\xf0\x9f\x99\x82"
          "b");
    CHECK(parse_json(R"("\ud83d \ude42 \ud83d\ud83d\ude42 \\ud83d \u00e9")") ==
          "\xef\xbf\xbd \xef\xbf\xbd \xef\xbf\xbd\xf0\x9f\x99\x82 \\ud83d \xc3\xa9");
    CHECK(parse_json(R"("\ud83")").is_discarded());
    CHECK(parse_json(R"("\u0000")") == std::string(1, '\0'));
}

TEST_CASE("programs: 300,000 brackets, wherever JSON or TOML is read, are one clear line") {
    const Workplace w;
    w.ok(kTiny + " -g norm");
    const std::string deep = brackets(300'000), reason = "more than 100 levels of brackets";
    for (const std::string key : {"n_layer", "model_type", "tie_word_embeddings", "x"}) {
        fs::create_directory(w.at("hf"));
        fs::copy_file(w.at("model.bin"), w.at("hf/model.safetensors"), fs::copy_options::overwrite_existing);
        with_metadata(w.at("model.bin"), w.at("hf/model.safetensors"), {});
        write_file(w.at("hf/config.json"), "{\"" + key + "\": " + deep + std::string(300'000, ']') + "}");
        write_safetensors(w.at("hf/model.safetensors"), {}, {});
        w.refused("infer hf -n 1", {"hf/config.json", reason});
    }
    w.refused("fold hf out.bin", {"hf/config.json"});
    w.refused(kTiny + " --init hf", {"hf/config.json"});
    fs::remove(w.at("hf/model.safetensors"));
    write_file(w.at("hf/config.json"), "{}");
    for (const std::string& index :
         {deep, "{\"weight_map\": " + deep, "{\"weight_map\": {\"a\": " + deep + std::string(300'000, ']') + "}}"}) {
        write_file(w.at("hf/model.safetensors.index.json"), index);
        w.refused("infer hf -n 1", {"model.safetensors.index.json", reason});
    }
    write_file(w.at("hf/model.safetensors.index.json"), std::string(11 << 20, ' '));
    w.refused("infer hf -n 1", {"model.safetensors.index.json", "at most"});

    const std::string closed = deep + std::string(300'000, ']');
    fs::create_directory(w.at("words"));
    for (const std::string& text : {"{\"model\": " + closed + "}", "{\"model\": {\"type\": " + closed + "}}", deep}) {
        write_file(w.at("words/tokenizer.json"), text);
        w.refused("infer model.bin --prompt x --tokenizer words", {"words/tokenizer.json", reason});
    }
    write_file(w.at("words/merges.txt"), "");
    write_file(w.at("words/vocab.json"), "{\"a\": " + closed + "}");
    w.refused("infer model.bin --prompt x --tokenizer words", {"words", "vocab.json", reason});
    with_metadata(w.at("model.bin"), w.at("meta.bin"),
                  {{"tokenizer", "x"}, {"tokenizer.vocab", "{\"a\": " + closed + "}"}, {"tokenizer.merges", ""}});
    w.refused("infer meta.bin --prompt x", {"meta.bin", "vocab.json"});
    const std::string header = "{\"__metadata__\": {\"a\": " + closed + "}}";
    const uint64_t length = header.size();
    write_file(w.at("header.bin"), std::string(reinterpret_cast<const char*>(&length), 8) + header);
    w.refused("infer header.bin -n 1", {"header.bin"});
    write_file(w.at("items.jsonl"), "{\"ctx\": " + closed + "}\n");
    w.refused("infer model.bin --hellaswag items.jsonl", {"items.jsonl: line 1", reason});

    std::string dots = "a", objects;
    for (int i = 0; i < 300'000; i++) dots += ".a";
    for (const std::string& text : {dots + " = 1\n", "x = {" + dots + " = 1}\n", "x = " + deep + "\n", deep + "\n"}) {
        write_file(w.at("deep.toml"), text);
        w.refused("train_gpt --config deep.toml", {"deep.toml", "line 1"});
    }
    // A line of a log that is no line of ours is left out on resuming.
    w.ok(kTiny + " -o run.bin");
    write_file(w.at("run.log.jsonl"), read_file(w.at("run.log.jsonl")) + "{\"step\": " + closed + "}\n");
    const Outcome resumed = w.run("train_gpt -y -o run.bin -x 7");
    CHECK(resumed.status == 0);
    CHECK_MESSAGE(resumed.err.starts_with("warning: the log 'run.log.jsonl': lines left out"), resumed.err);
}

// ---- what is not a file

TEST_CASE("programs: a FIFO, a folder or a device in place of any file that is read is one line") {
    const Workplace w;
    w.ok(kTiny);
    w.ok(kTiny + " -o other.bin");
    write_vocabulary(w.at("words"));
    REQUIRE(mkfifo(w.at("fifo").c_str(), 0600) == 0);
    fs::create_directory(w.at("folder"));
    const std::vector<std::string> readers = {"infer @ -n 1",
                                              "infer model.bin --eval @",
                                              "infer model.bin --prompts @",
                                              "infer model.bin --hellaswag @",
                                              "infer model.bin -n 1 --tokenizer @",
                                              "fold @ out.bin",
                                              kTiny + " -i @",
                                              kTiny + " -j @",
                                              kTiny + " --hellaswag @",
                                              kTiny + " --init @",
                                              "train_gpt --config @",
                                              kTiny + " --tokenizer @"};
    for (const std::string& reader : readers)
        for (const std::string file : {"fifo", "folder", "/dev/zero"}) {
            std::string line = reader;
            line.replace(line.find('@'), 1, file);
            w.refused(line, {file});
        }
    // The same for files that are found beside others.
    auto replaced = [&](const std::string& name, const std::string& line) {
        fs::remove(w.at(name));
        REQUIRE(mkfifo(w.at(name).c_str(), 0600) == 0);
        w.refused(line, {name});
        fs::remove(w.at(name));
    };
    for (const std::string name : {"hf/model.safetensors", "hf/config.json"}) {
        fs::create_directory(w.at("hf"));
        write_file(w.at("hf/config.json"), "{}");
        write_safetensors(w.at("hf/model.safetensors"), {}, {});
        replaced(name, "infer hf -n 1");
    }
    write_file(w.at("hf/config.json"), "{}");
    fs::remove(w.at("hf/model.safetensors"));
    replaced("hf/model.safetensors.index.json", "fold hf out.bin");
    replaced("words/merges.txt", "infer model.bin --prompt x --tokenizer words");
    replaced("words/vocab.json", "infer model.bin --prompt x --tokenizer words/vocab.json");
    replaced("words/tokenizer.json", "infer model.bin --prompt x --tokenizer words");
    replaced("words/llmc.bin", "infer model.bin --prompt x --tokenizer words/llmc.bin");
    replaced("model.state.bin", "train_gpt -y -x 7");
    replaced("other.toml", kTiny + " -o other.bin");
}

}  // namespace tapernorm
