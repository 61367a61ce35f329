// infer's modes as a user runs them (the loss of a text, many prompts at a time, weights of other types), and bench_infer.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "io/safetensors.h"
#include "io/tokenizer.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "tests/vocabulary.h"

namespace tapernorm {

namespace {

// The number behind `key` in a program's output.
double number_after(const std::string& out, const std::string& key) {
    const size_t at = out.find(key);
    INFO(out);
    REQUIRE(at != std::string::npos);
    return std::strtod(out.c_str() + at + key.size(), nullptr);
}

// -log p of the text's bytes but the first, from the logits of all positions that infer writes.
std::vector<double> losses_from_logits(const Workplace& w, const std::string& model, const std::string& text) {
    w.ok("infer " + model + " -n 0 --dump d.st --prompt", {text.substr(0, text.size() - 1)});
    const std::vector<double> z = read_dump(w.at("d.st")).logits;
    std::vector<double> losses;
    for (size_t t = 0; t + 1 < text.size(); t++) {
        double sum = 0;
        for (size_t i = 0; i < 256; i++) sum += std::exp(z[t * 256 + i]);
        losses.push_back(std::log(sum) - z[t * 256 + static_cast<unsigned char>(text[t + 1])]);
    }
    return losses;
}

}  // namespace

TEST_CASE("infer --eval: the loss of a text, by hand from the logits, and the same for the folded model") {
    const Workplace w;
    w.ok(kTiny);
    w.ok("fold model.bin folded.bin");
    const std::string text = "Once upon a time, there was a cat.";  // 34 bytes: windows of 16, 16 and 1
    write_file(w.at("text.txt"), text);
    const std::string out = w.ok("infer model.bin --eval text.txt");
    const double loss = number_after(out, "loss      ");
    std::vector<double> by_hand;
    for (const std::string& window : {text.substr(0, 17), text.substr(16, 17), text.substr(32, 2)})
        for (const double x : losses_from_logits(w, "model.bin", window)) by_hand.push_back(x);
    REQUIRE(by_hand.size() == 33);
    // 33 losses near 5, each from logits in fp32; printed with 6 digits.
    CHECK(std::abs(loss - std::accumulate(by_hand.begin(), by_hand.end(), 0.0) / 33) <= 2e-6);
    const size_t largest = size_t(std::max_element(by_hand.begin(), by_hand.end()) - by_hand.begin());
    CHECK(number_after(out, "(token ") == double(largest + 2));  // the first token is not predicted
    CHECK(number_after(out, "the largest ") == doctest::Approx(by_hand[largest]).epsilon(5e-4));  // 4 digits
    std::sort(by_hand.begin(), by_hand.end());
    CHECK(number_after(out, "median ") == doctest::Approx(by_hand[16]).epsilon(5e-4));
    CHECK(number_after(out, "99% at most ") == doctest::Approx(by_hand[32]).epsilon(5e-4));
    CHECK(number_after(out, "perplexity ") == doctest::Approx(std::exp(loss)).epsilon(1e-4));
    const size_t bits = out.rfind(", ", out.find(" bits per byte")) + 2;
    CHECK(std::stod(out.substr(bits)) == doctest::Approx(loss / std::log(2.0)).epsilon(1e-5));  // a byte is a token
    const std::string folded = w.ok("infer folded.bin --eval text.txt");
    CHECK(std::abs(number_after(folded, "loss      ") - loss) <= 2e-6);
    auto bound_line = [](const std::string& of) { return of.substr(of.find("bound     clips "), 80); };
    CHECK(bound_line(out) == bound_line(folded));
    CHECK(number_after(out, "bound     clips ") <= 1);  // 8 times a usual row's root mean square
    w.ok(kTiny + " --bound 1e-6 -o tight.bin"), w.ok(kTiny + " --bound 0 -o without.bin");
    CHECK(contains(w.ok("infer tight.bin --eval text.txt"),
                   "bound     clips 100% of the numbers in first positions, 100% of those behind them\n"));
    CHECK(!contains(w.ok("infer without.bin --eval text.txt"), "bound     "));
    write_file(w.at("two.txt"), "ab");  // a window of one token
    CHECK(contains(w.ok("infer tight.bin --eval two.txt"),
                   "bound     clips 100% of the numbers in first positions, 0% of"));

    for (const char* type : {"bf16", "int8"}) {
        const std::string rounded = w.ok(std::string("infer folded.bin --eval text.txt --weights ") + type);
        const double change = number_after(rounded, "changes it by ");
        CHECK(std::abs(number_after(rounded, "with fp32 weights ") - loss) <= 2e-6);
        CHECK(number_after(rounded, "loss      ") - loss == doctest::Approx(change).epsilon(0.01).scale(1e-4));
        CHECK(std::abs(change) <= 0.05);
    }
}

namespace {

// The texts that a run printed as JSON lines.
std::vector<nlohmann::json> json_lines(const Workplace& w, const std::string& line,
                                       const std::vector<std::string>& more = {}) {
    const Outcome outcome = w.run(line, more);
    INFO(outcome.err);
    CHECK(outcome.status == 0);
    std::vector<nlohmann::json> list;
    std::istringstream lines(outcome.out);
    for (std::string text; std::getline(lines, text);) list.push_back(nlohmann::json::parse(text));
    return list;
}

// What infer prints for one prompt: the prompt and what it generated.
std::string text_alone(const Workplace& w, const std::string& flags, const std::string& prompt) {
    const std::string alone = w.ok("infer model.bin " + flags + " --prompt", {prompt});
    const size_t begin = alone.find("\n\n") + 2, end = alone.rfind("\n\nprompt ");
    return alone.substr(begin, end - begin);
}

std::string bytes_of(const nlohmann::json& text) {
    std::string bytes;
    for (int id : text["tokens"]) bytes += char(id);
    return bytes;
}

}  // namespace

TEST_CASE("infer --prompts: every line as if it were alone, with its stream") {
    const Workplace w;
    w.ok(kTiny);
    // The third is longer than the context leaves room for: it is read again from its second half while others go on.
    const std::vector<std::string> prompts = {"T", "The cat", "Once upon a time", "A \"b\"\\", "dog"};
    std::string file;
    for (const std::string& p : prompts) file += p + "\n";
    write_file(w.at("lines.txt"), file.substr(0, file.size() - 1));
    for (const std::string flags : {"-n 20 --seed 4 --threads 2", "-n 5 --greedy --batch 2",
                                    "-n 6 --weights int8 --batch 3", "-n 4 --top-k 5 --weights bf16"}) {
        CAPTURE(flags);
        const auto all = json_lines(w, "infer model.bin --prompts lines.txt " + flags);
        REQUIRE(all.size() == prompts.size());
        for (size_t i = 0; i < prompts.size(); i++) {
            CHECK(all[i]["prompt"] == prompts[i]);
            CHECK(all[i]["stream"] == i + 1);
            const std::string stream = i ? " --stream " + std::to_string(i + 1) : "";  // the first is the default
            CHECK(text_alone(w, flags + stream, prompts[i]) == prompts[i] + bytes_of(all[i]));
        }
    }
    // The end of a file alone, with the streams that its lines have in the whole file.
    write_file(w.at("end.txt"), prompts[3] + "\n" + prompts[4]);
    const auto whole = json_lines(w, "infer model.bin --prompts lines.txt -n 9"),
               end = json_lines(w, "infer model.bin --prompts end.txt -n 9 --stream 4");
    CHECK(end == std::vector(whole.begin() + 3, whole.end()));
}

TEST_CASE("infer: equal lines and --samples have texts of their own, each of them again by its stream") {
    const Workplace w;
    w.ok(kTiny);
    write_file(w.at("equal.txt"), "cat\ncat\ncat\ncat\ncat\n");
    const auto lines = json_lines(w, "infer model.bin --prompts equal.txt -n 12 --batch 2");
    REQUIRE(lines.size() == 5);
    for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < i; j++) CHECK(lines[i]["tokens"] != lines[j]["tokens"]);
    CHECK(json_lines(w, "infer model.bin -p cat --samples 5 -n 12") == lines);
    CHECK(json_lines(w, "infer model.bin -p cat --samples 2 -n 12 --stream 4") ==
          std::vector(lines.begin() + 3, lines.end()));
    CHECK(json_lines(w, "infer model.bin --tokens 99,97,116 --samples 5 -n 12") == lines);
    // Samples of a line have streams that follow each other.
    write_file(w.at("two.txt"), "cat\nThe dog\n");
    const auto samples = json_lines(w, "infer model.bin --prompts two.txt --samples 3 -n 12 --batch 4");
    REQUIRE(samples.size() == 6);
    for (size_t i = 0; i < 6; i++) {
        const std::string prompt = i < 3 ? "cat" : "The dog", stream = std::to_string(i + 1);
        CHECK(samples[i]["stream"] == i + 1);
        CHECK(samples[i]["prompt"] == prompt);
        CHECK(text_alone(w, "-n 12 --stream " + stream, prompt) == prompt + bytes_of(samples[i]));
    }
    for (const std::string flag : {"--stream 0", "--stream -1", "--stream x", "--samples 0", "--samples 1.5"})
        w.refused("infer model.bin " + flag, {flag.substr(0, flag.find(' ')), flag.substr(flag.find(' ') + 1)});
    for (const std::string flag : {"--last-token", "--dump d.st", "--eval corpus.txt"})
        w.refused("infer model.bin --samples 2 " + flag, {"--samples", flag.substr(0, flag.find(' '))});
}

TEST_CASE("infer: a text ends at <|endoftext|>, alone and among others; --ignore-eos goes on") {
    const Workplace w;
    std::filesystem::create_directory(w.at("words"));
    save_tokenizer(Tokenizer(), w.at("words"));  // bytes, and the token 256
    std::string vocab = read_file(w.at("words/vocab.json"));
    write_file(w.at("words/vocab.json"), vocab.replace(vocab.rfind('}'), 1, ", \"<|endoftext|>\": 256}"));
    std::string text;
    for (int i = 0; i < 300; i++) text += "ab<|endoftext|>";
    write_file(w.at("ab.txt"), text);
    w.ok(kTiny + " -i ab.txt --tokenizer words");
    std::string file;
    for (int i = 0; i < 12; i++) file += "a\n";
    write_file(w.at("lines.txt"), file);
    // Beyond the context of 16, so that sequences are read again while others have ended, some of them after few tokens.
    const std::string infer = "infer model.bin -n 40 --temperature 1.5 ";
    const auto endless = json_lines(w, infer + "--prompts lines.txt --ignore-eos"),
               ended = json_lines(w, infer + "--prompts lines.txt --batch 5");
    REQUIRE(ended.size() == 12);
    size_t soon = 0, late = 0, never = 0;
    for (size_t i = 0; i < 12; i++) {
        CAPTURE(i);
        std::vector<int> tokens = endless[i]["tokens"];
        CHECK(tokens.size() == 40);
        tokens.erase(std::find(tokens.begin(), tokens.end(), 256), tokens.end());
        (tokens.size() < 6 ? soon : tokens.size() < 40 ? late : never)++;
        CHECK(ended[i]["tokens"] == tokens);
        CHECK(ended[i]["text"].get<std::string>().find("<|endoftext|>") == std::string::npos);
        const std::string stream = "--stream " + std::to_string(i + 1);
        const std::string alone = w.ok(infer + stream + " --prompt a");
        CHECK(alone.find("\n\na" + bytes_of(ended[i]) + "\n\nprompt ") != std::string::npos);
        CHECK(alone.find("; " + std::to_string(tokens.size()) + " generated in") != std::string::npos);
        CHECK(w.ok(infer + stream + " --ignore-eos --prompt a").find("; 40 generated in") != std::string::npos);
    }
    CHECK(soon > 0);
    CHECK(late > 0);
    CHECK(never > 0);
    // A prompt may hold the token: what it begins goes on.
    CHECK(json_lines(w, infer + "--samples 2 --ignore-eos --prompt", {"ab<|endoftext|>"})[0]["tokens"].size() == 40);
}

TEST_CASE("bench_infer: a table of the states that the gate allows, with counts") {
    const Workplace w;
    w.ok(kTrain + " --n-layer 2 --n-embd 16 --n-head 2 -t 160");
    w.ok("fold model.bin folded.bin");
    const std::string out = w.ok("bench_infer model.bin --seconds 0");
    CHECK(out.find("| explicit scaling | clamped | folded | clamped / first | last / first |") != std::string::npos);
    CHECK(out.find("| normalized |") == std::string::npos);
    CHECK(out.find("last-token logits, T 128") != std::string::npos);
    CHECK(out.find("last-token logits, T 160") != std::string::npos);  // what the context allows
    CHECK(out.find("T 256") == std::string::npos);
    // A block reads and writes the stream twice around each of its two sums; a site is read by its matrix, and with its
    // mean twice more and written once. Embedding, final norm (all of its passes) and its matrix once more.
    CHECK(out.find("| explicit scaling | 30 | 1 | 10 |") != std::string::npos);
    CHECK(out.find("| clamped | 26 | 1 | 10 |") != std::string::npos);
    CHECK(out.find("| folded | 18 | 1 | 10 |") != std::string::npos);
    const std::string half = w.ok("bench_infer folded.bin --seconds 0 --weights int8 --protocol decoding");
    CHECK(half.find("| clamped | folded | last / first |") != std::string::npos);
    CHECK(half.find("last-token logits") == std::string::npos);
    CHECK(half.find("decoding") != std::string::npos);
    const std::string random = w.ok("bench_infer --seconds 0 --n-layer 1 --n-embd 16 --n-head 2 --vocab 30");
    CHECK(random.find("| normalized | affine folded | explicit scaling | clamped | folded |") != std::string::npos);
    CHECK(random.find("last-token logits, T 512") != std::string::npos);
    CHECK(random.find("decoding") != std::string::npos);
}

TEST_CASE("infer: refuses modes and files that do not go together, in one line") {
    const Workplace w;
    w.ok(kTiny);
    write_file(w.at("empty.txt"), "");
    write_file(w.at("gap.txt"), "one\n\ntwo\n");
    write_file(w.at("long.txt"), "one\nseventeen letters\n");
    w.refused("infer", {"MODEL"});
    w.refused("infer --eval text.txt", {"MODEL"});
    w.refused("infer model.bin --eval missing.txt", {"missing.txt"});
    w.refused("infer model.bin --eval empty.txt", {"--eval", "empty.txt", "2 tokens", "found 0"});
    w.refused("infer model.bin --prompts missing.txt", {"missing.txt"});
    w.refused("infer model.bin --prompts empty.txt", {"--prompts", "empty.txt"});
    w.refused("infer model.bin --prompts gap.txt", {"line 2 of gap.txt", "empty", "remove it"});
    w.refused("infer model.bin --prompts long.txt", {"line 2 of long.txt", "17", "16"});
    w.refused("infer model.bin --prompts long.txt --prompt x", {"--prompt", "--prompts"});
    w.refused("infer model.bin --eval long.txt --last-token", {"--last-token", "--eval"});
    w.refused("infer --bench --model d12", {"--bench", "make bench_infer && ./bench_infer"});
    w.refused("infer model.bin --weights fp16", {"--weights", "fp16", "bf16"});
}

TEST_CASE("bench_infer: refuses sizes that do not go together or with a model, in one line") {
    const Workplace w;
    w.ok(kTiny);
    w.refused("bench_infer missing.bin", {"missing.bin"});
    w.refused("bench_infer model.bin --weights fp16", {"--weights", "fp16", "bf16"});
    w.refused("bench_infer model.bin --protocol half", {"--protocol", "half", "decoding"});
    w.refused("bench_infer model.bin --n-layer 3", {"--n-layer", "model.bin"});
    w.refused("bench_infer model.bin --model d12", {"--model", "model.bin"});
    w.refused("bench_infer --model d13", {"--model", "13", "d12"});
    w.refused("bench_infer --model d12 --n-embd 64", {"--model", "--n-embd"});
    w.refused("bench_infer --n-embd 100 --n-head 3", {"--n-embd", "3", "100"});
}

}  // namespace tapernorm
