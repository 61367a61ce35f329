// infer's modes as a user runs them (the loss of a text, many prompts at a time, weights of other types), and bench_infer.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/safetensors.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

// The number behind `key` in a program's output.
double number_after(const std::string& out, const std::string& key) {
    const size_t at = out.find(key);
    INFO(out);
    REQUIRE(at != std::string::npos);
    return std::strtod(out.c_str() + at + key.size(), nullptr);
}

// Sum over the text's bytes but the first of -log p, from the logits of all positions that infer writes.
double loss_from_logits(const Workplace& w, const std::string& model, const std::string& text) {
    w.ok("infer " + model + " -n 0 --dump d.st --prompt", {text.substr(0, text.size() - 1)});
    const SafetensorsFile file(w.at("d.st"));
    std::vector<double> z(file.find("logits")->count());
    file.read(*file.find("logits"), z.data());
    double loss = 0;
    for (size_t t = 0; t + 1 < text.size(); t++) {
        double sum = 0;
        for (size_t i = 0; i < 256; i++) sum += std::exp(z[t * 256 + i]);
        loss += std::log(sum) - z[t * 256 + static_cast<unsigned char>(text[t + 1])];
    }
    return loss;
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
    const double by_hand = loss_from_logits(w, "model.bin", text.substr(0, 17)) +
                           loss_from_logits(w, "model.bin", text.substr(16, 17)) +
                           loss_from_logits(w, "model.bin", text.substr(32, 2));
    // 33 losses near 5, each from logits in fp32; printed with 6 digits.
    CHECK(std::abs(loss - by_hand / 33) <= 2e-6);
    CHECK(number_after(out, "perplexity ") == doctest::Approx(std::exp(loss)).epsilon(1e-4));
    const size_t bits = out.rfind(", ", out.find(" bits per byte")) + 2;
    CHECK(std::stod(out.substr(bits)) == doctest::Approx(loss / std::log(2.0)).epsilon(1e-5));  // a byte is a token
    CHECK(std::abs(number_after(w.ok("infer folded.bin --eval text.txt"), "loss      ") - loss) <= 2e-6);

    for (const char* type : {"bf16", "int8"}) {
        const std::string rounded = w.ok(std::string("infer folded.bin --eval text.txt --weights ") + type);
        const double change = number_after(rounded, "changes it by ");
        CHECK(std::abs(number_after(rounded, "with fp32 weights ") - loss) <= 2e-6);
        CHECK(number_after(rounded, "loss      ") - loss == doctest::Approx(change).epsilon(0.01).scale(1e-4));
        CHECK(std::abs(change) <= 0.05);
    }
}

TEST_CASE("infer --prompts: every line as if it were alone") {
    const Workplace w;
    w.ok(kTiny);
    // The third is longer than the context leaves room for: it is read again from its second half while others go on.
    const std::vector<std::string> prompts = {"T", "The cat", "Once upon a time", "A \"b\"\\", "dog"};
    std::string file;
    for (const std::string& p : prompts) file += p + "\n";
    write_file(w.at("lines.txt"), file.substr(0, file.size() - 1));
    for (const char* flags : {"-n 20 --seed 4 --threads 2", "-n 5 --greedy --batch 2", "-n 6 --weights int8 --batch 3",
                              "-n 4 --top-k 5 --weights bf16"}) {
        CAPTURE(flags);
        const Outcome all = w.run(std::string("infer model.bin --prompts lines.txt ") + flags);
        CHECK(all.status == 0);
        CHECK(all.err.find("5 prompts") != std::string::npos);
        std::istringstream lines(all.out);
        for (const std::string& prompt : prompts) {
            std::string line;
            REQUIRE(std::getline(lines, line));
            const auto json = nlohmann::json::parse(line);
            CHECK(json["prompt"] == prompt);
            std::string bytes;
            for (int id : json["tokens"]) bytes += char(id);
            const std::string alone = w.ok(std::string("infer model.bin ") + flags + " --prompt", {prompt});
            const size_t begin = alone.find("\n\n") + 2, end = alone.rfind("\n\nprompt ");
            CHECK(alone.substr(begin, end - begin) == prompt + bytes);
        }
        CHECK(lines.peek() == EOF);
    }
}

TEST_CASE("bench_infer: a table of the states that the gate allows, with counts") {
    const Workplace w;
    w.ok(kTrain + " --n-layer 2 --n-embd 16 --n-head 2 -t 160");
    w.ok("fold model.bin folded.bin");
    const std::string out = w.ok("bench_infer model.bin --seconds 0");
    CHECK(out.find("| explicit scaling | folded |") != std::string::npos);
    CHECK(out.find("| normalized |") == std::string::npos);
    CHECK(out.find("last-token logits, T 128") != std::string::npos);
    CHECK(out.find("last-token logits, T 160") != std::string::npos);  // what the context allows
    CHECK(out.find("T 256") == std::string::npos);
    // A block reads and writes the stream twice around each of its two sums; a site is read by its matrix, and with its
    // mean twice more and written once. Embedding, final norm (all of its passes) and its matrix once more.
    CHECK(out.find("| explicit scaling | 30 | 1 | 10 |") != std::string::npos);
    CHECK(out.find("| folded | 18 | 1 | 10 |") != std::string::npos);
    const std::string half = w.ok("bench_infer folded.bin --seconds 0 --weights int8 --protocol decoding");
    CHECK(half.find("| folded |") != std::string::npos);
    CHECK(half.find("last-token logits") == std::string::npos);
    CHECK(half.find("decoding") != std::string::npos);
    const std::string random = w.ok("bench_infer --seconds 0 --n-layer 1 --n-embd 16 --n-head 2 --vocab 30");
    CHECK(random.find("| normalized | affine folded | explicit scaling | folded |") != std::string::npos);
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
    w.refused("infer model.bin --prompts gap.txt", {"line 2 of gap.txt"});
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
