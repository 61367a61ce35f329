// The three programs as a user runs them: whole commands with their output, files and exit status. Input that
// is wrong is in test_bad_input.cpp.
#include <doctest/doctest.h>
#include <sys/ioctl.h>

#include <cmath>
#include <map>
#include <sstream>

#include "inference/decoder.cuh"
#include "io/safetensors.h"
#include "io/terminal.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "model/model_file.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/read_log.h"
#include "tests/vocabulary.h"

namespace tapernorm {

namespace {

// Every position's logits of a model file, computed in double.
std::vector<double> exact_logits(const std::string& path, const std::vector<int>& tokens) {
    Cpu dev(1);
    const auto model = load_model(dev, path);
    const Config& c = model->info.config;
    GptTensors<double> weights{};
    std::vector<std::vector<double>> memory;
    const auto from = tensor_list(c, model->tensors);
    visit_tensors(c, weights, [&](const TensorSpec& t, double*& slot) {
        const float* values = from[memory.size()].data;
        slot = memory.emplace_back(values, values + t.count()).data();
    });
    Decoder<Cpu, double> decoder(dev, c, weights, model->info.scales, model->info.gate);
    std::vector<double> logits(tokens.size() * c.V);
    decoder.feed(tokens.data(), tokens.size(), Logits::all, logits.data());
    return logits;
}

double largest(const std::vector<double>& x) {
    double top = 0;
    for (double v : x) top = std::max(top, std::abs(v));
    return top;
}

// The test's bound for fp32 logits: each is the end of sums over C, T, C and 4 C terms in every block, C in
// the head, and 6 norms of C terms; each term rounds once, by half a unit of the largest logit.
double rounding_bound(const std::vector<double>& exact) {
    const double C = 16, T = 16;
    return (7 * C + T + 7 * C) * 0x1p-24 * largest(exact);
}

// Compares with a tolerance; NaN and another length are never near.
bool near(const std::vector<double>& a, const std::vector<double>& b, double bound) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); i++)
        if (!(std::abs(a[i] - b[i]) <= bound)) return false;
    return true;
}

std::vector<int> byte_ids(const std::string& text) { return {text.begin(), text.end()}; }

std::vector<std::string> tensor_names(const std::string& path) {
    std::vector<std::string> names;
    const SafetensorsFile file(path);
    for (const TensorEntry& entry : file.entries()) names.push_back(entry.name);
    return names;
}

size_t count_with(const std::vector<std::string>& names, const std::string& part) {
    return size_t(std::count_if(names.begin(), names.end(),
                                [&](const std::string& name) { return name.find(part) != std::string::npos; }));
}

// What infer generated: between the first empty line and the last one.
std::string generated(const std::string& out) {
    const size_t begin = out.find("\n\n") + 2, end = out.rfind("\n\nprompt ");
    REQUIRE(end != std::string::npos);
    return out.substr(begin, end - begin);
}

}  // namespace

// ---- what must work
// -------------------------------------------------------------------------------------------------

TEST_CASE("programs: train, fold and run, in every mode and kind; logits are the model's") {
    const std::vector<int> tokens = byte_ids("The cat sat.");
    for (const std::string flags :
         {"norm", "taper --bound 0", "taper-all --bound 0", "taper --bound 0.5", "taper-all --bound 0.5",
          "taper --bound 0.5 --calibration channels+first", "taper-all --bound 0.5 --calibration channels+first"})
        for (const std::string norm : {"layernorm", "rmsnorm"}) {
            INFO(flags, " ", norm);
            const std::string gate = words(flags)[0];
            const Workplace w;
            w.ok(kTiny + " -g " + flags + " --norm " + norm);
            w.ok("fold model.bin folded.bin");
            std::vector<double> exact[2];
            for (int folded = 0; folded < 2; folded++) {
                const std::string file = folded ? "folded.bin" : "model.bin";
                w.ok("infer " + file + " -n 1 --dump all.st --prompt", {"The cat sat."});
                w.ok("infer " + file + " --last-token --dump last.st --prompt", {"The cat sat."});
                exact[folded] = exact_logits(w.at(file), tokens);
                const Dump all = read_dump(w.at("all.st")), last = read_dump(w.at("last.st"));
                CHECK(all.rows == tokens.size());
                CHECK(last.rows == 1);
                CHECK(all.V == 256);
                CHECK(near(all.logits, exact[folded], rounding_bound(exact[folded])));
                CHECK(
                    near(last.logits, {exact[folded].end() - 256, exact[folded].end()}, rounding_bound(exact[folded])));
            }
            CHECK(near(exact[0], exact[1], rounding_bound(exact[0])));
            const auto names = tensor_names(w.at("folded.bin"));
            const size_t final_norm = gate == "taper" ? (norm == "layernorm" ? 2 : 1) : 0;
            // Of a site with a bound its scale is left, which says where the stream is clamped.
            const size_t scales =
                !contains(flags, "0.5") ? 0 : count_with(tensor_names(w.at("model.bin")), ".taper_scale");
            CHECK(count_with(names, ".taper_scale") == scales);
            CHECK(count_with(names, "taper") == scales);
            const size_t apart = contains(flags, "first") ? scales : 0;
            CHECK(count_with(names, ".first_scale") == apart);
            CHECK(count_with(names, "ln_") == final_norm + scales + apart);
            CHECK(count_with(names, "ln_f.") ==
                  final_norm + (gate == "taper-all" ? size_t(scales > 0) + size_t(apart > 0) : 0));
            CHECK(count_with(names, "wte.mean") == (scales > 0 && final_norm == 2));
            for (const std::string file : {"model.bin", "folded.bin", "model.state.bin"}) {
                const auto metadata = SafetensorsFile(w.at(file)).metadata();
                const bool state = file == "model.state.bin";
                const std::string version = state ? "state_version" : "format_version";
                CHECK(metadata.at(version) == (state    ? "5"
                                               : apart  ? "4"
                                               : scales ? "3"
                                                        : "2"));  // older programs must not read it
                CHECK(metadata.contains("bound") == (scales > 0));
            }
            CHECK(count_with(names, "lm_head.weight") == (gate == "taper" ? 0 : 1));
            CHECK(SafetensorsFile(w.at("folded.bin")).metadata().at("folded") == (gate == "norm"    ? "affine"
                                                                                  : gate == "taper" ? "internal"
                                                                                                    : "all"));
        }
}

TEST_CASE("fold: with a bound, every row of a LayerNorm model's stream has mean 0, and the rest is rounded for bf16") {
    const std::vector<int> tokens = byte_ids("The cat sat.");
    for (const std::string gate : {"taper", "taper-all"}) {
        CAPTURE(gate);
        const Workplace w;
        w.ok(kTiny + " -g " + gate + " --bound 0.5");
        w.ok("fold model.bin folded.bin"), w.ok("fold model.bin half.bin --dtype bf16");
        // The largest mean of a row that enters a bounded site, against the largest number there.
        auto largest_mean = [&](const std::string& name) {
            Cpu dev(1);
            const auto model = load_model(dev, w.at(name));
            const Config& c = model->info.config;
            double mean = 0, number = 0;
            size_t sites = 0;
            Decoder<Cpu, float> decoder(dev, c, model->tensors, model->info.scales, 0);
            decoder.watch = [&](const Layer<float>& layer, size_t rows) {
                if (!layer.site || sites++ == c.tapering_sites()) return;
                for (const float* x = layer.in; x < layer.in + rows * c.C; x += c.C) {
                    double sum = 0;
                    for (size_t i = 0; i < c.C; i++)
                        sum += double(x[i]), number = std::max(number, std::abs(double(x[i])));
                    mean = std::max(mean, std::abs(sum) / double(c.C));
                }
            };
            std::vector<float> logits(tokens.size() * c.V);
            decoder.feed(tokens.data(), tokens.size(), Logits::all, logits.data());
            CHECK(sites == 2 * c.L + 1);
            return mean / number;
        };
        CHECK(largest_mean("model.bin") > 1e-3);
        // Every number is a sum of two embeddings and of C and 4 C products; each of them was rounded twice.
        CHECK(largest_mean("folded.bin") <= (2 + 16 + 64) * 2 * 0x1p-24);
        // In bf16: the same numbers, rounded; where the stream is clamped stays exact.
        const SafetensorsFile whole(w.at("folded.bin")), half(w.at("half.bin"));
        CHECK(half.metadata().at("bound") == whole.metadata().at("bound"));
        CHECK(half.entries().size() == whole.entries().size());
        for (const TensorEntry& entry : whole.entries()) {
            CAPTURE(entry.name);
            const TensorEntry* other = half.find(entry.name);
            REQUIRE(other);
            const bool scale = entry.name.ends_with(".taper_scale");
            CHECK(other->dtype == (scale ? Dtype::F32 : Dtype::BF16));
            std::vector<float> a(entry.count()), b(entry.count());
            whole.read(entry, a.data()), half.read(*other, b.data());
            for (size_t i = 0; i < a.size(); i++)
                if (!(std::abs(a[i] - b[i]) <= (scale ? 0 : 0x1p-8f * std::abs(a[i])))) FAIL(i);
        }
        w.ok("infer half.bin -n 1 --dump half.st --prompt", {"The cat sat."});
        const std::vector<double> exact = exact_logits(w.at("half.bin"), tokens);
        CHECK(near(read_dump(w.at("half.st")).logits, exact, rounding_bound(exact)));
        CHECK(!near(exact, exact_logits(w.at("folded.bin"), tokens), 0));
        CHECK(near(exact, exact_logits(w.at("folded.bin"), tokens), 0.05 * largest(exact)));
    }
}

TEST_CASE("train_gpt: bits per byte count the bytes that the tokens stand for") {
    const Workplace w;
    std::filesystem::create_directory(w.at("words"));
    save_tokenizer(Tokenizer(), w.at("words"));  // bytes, to which comes one merge: every token of the corpus is "ab"
    std::string vocab = read_file(w.at("words/vocab.json"));
    write_file(w.at("words/vocab.json"), vocab.replace(vocab.rfind('}'), 1, ", \"ab\": 256}"));
    write_file(w.at("words/merges.txt"), read_file(w.at("words/merges.txt")) + "a b\n");
    std::string text;
    for (int i = 0; i < 2000; i++) text += "ab";
    write_file(w.at("ab.txt"), text);
    const std::string out = w.ok(kTiny + " -i ab.txt --tokenizer words");
    double loss = 0, bits = 0;
    REQUIRE(std::sscanf(out.substr(out.rfind("validation loss")).c_str(), "validation loss %lf (%lf bits per byte)",
                        &loss, &bits) == 2);
    const double printed = 0.5e-4;  // both numbers are rounded to four places
    CHECK(std::abs(bits - loss / std::log(2.0) / 2) <= printed * (1 + 1 / std::log(2.0) / 2));
}

TEST_CASE("programs: one of a thing is not printed as several") {
    CHECK(counted(0, "token") + counted(1, "token") + counted(2, "token") == "0 tokens1 token2 tokens");
    CHECK(counted(1, "batch") + counted(2, "batch") == "1 batch2 batches");
    const Workplace w;
    write_file(w.at("line.txt"), "a\n");
    std::string all = w.ok("train_gpt -i corpus.txt -b 1 -x 1 -g norm -v 0 --n-layer 1 --n-embd 1 --n-head 1 -t 1");
    for (const std::string line : {"train_gpt -y", "fold model.bin folded.bin", "infer folded.bin -p a -n 1",
                                   "infer folded.bin -p a --last-token", "infer folded.bin --prompts line.txt -n 1",
                                   "infer folded.bin --eval line.txt", "train_gpt -y -x 2", "train_gpt -x 0"}) {
        const Outcome outcome = w.run(line);
        all += outcome.out + outcome.err;
    }
    CHECK(all.find("1 layer, 1 head, 1 channel") != all.npos);
    for (size_t at = 0; (at = all.find(" 1 ", at)) != all.npos; at++) {
        const std::string word = all.substr(at + 3, all.find_first_of(" ,;.:)\n", at + 3) - at - 3);
        CHECK_MESSAGE((word == "is" || !word.ends_with('s')), all.substr(at, 40));
    }
}

TEST_CASE("infer: says which state of a model it runs, normalized, tapering, tapered and folded") {
    const Workplace w;
    const std::vector<int> tokens = byte_ids("Once");
    const std::string states[] = {"normalized", "tapering, gate 1", "tapering, gate 0.5",
                                  "tapered, not folded (explicit scaling)", "folded: no norm inside the blocks"};
    const std::string commands[] = {kTiny + " -g norm", kTiny + " -x 2", kTiny + " -x 3", kTiny,
                                    "fold model.bin model.st"};
    for (int i = 0; i < 5; i++) {
        w.ok(commands[i]);
        const std::string file = i == 4 ? "model.st" : "model.bin";
        const std::string out = w.ok("infer " + file + " --last-token --dump d.st --prompt Once");
        CHECK_MESSAGE(out.find(states[i]) != std::string::npos, out);
        const std::vector<double> exact = exact_logits(w.at(file), tokens);
        CHECK(near(read_dump(w.at("d.st")).logits, {exact.end() - 256, exact.end()}, rounding_bound(exact)));
    }
}

TEST_CASE("fold --clamp-sample: the model on texts like the sample, and safe on others; refuses what it does not fit") {
    const Workplace w;
    for (const std::string mode : {"taper", "taper-all"})
        for (const std::string norm : {"layernorm", "rmsnorm"}) {
            CAPTURE(mode);
            CAPTURE(norm);
            w.ok(kTiny + " --bound 0 --norm " + norm + " -g " + mode);
            w.ok("fold model.bin folded.bin");
            const std::string out = w.ok("fold model.bin clamped.bin --clamp-sample corpus.txt");
            CHECK_MESSAGE(out.find("% of those of the next ") != out.npos, out);
            auto logits = [&](const std::string& model) {
                w.ok("infer " + model + " -n 0 --dump d.st --prompt Once");
                return read_dump(w.at("d.st")).logits;
            };
            const std::vector<double> exact = exact_logits(w.at("model.bin"), byte_ids("Once"));
            const std::vector<double> clamped = logits("clamped.bin"), last(exact.end() - 256, exact.end());
            CHECK(near({clamped.end() - 256, clamped.end()}, last, rounding_bound(exact)));

            // One token that the sample has never seen, a million times too large.
            auto largest = [&](const std::string& name) {
                Cpu dev(1);
                const auto file = load_model(dev, w.at(name));
                const Config& c = file->info.config;
                HostModel model(dev, file->info);
                for (size_t i = 0; const Tensor<float>& t : tensor_list(c, file->tensors))
                    std::copy_n(t.data, t.spec.count(), tensor_list(c, model.tensors)[i++].data);
                for (size_t i = 0; i < c.C; i++) model.tensors.wte['~' * c.C + i] *= 1e6f;
                if (model.tensors.wte_mean) model.tensors.wte_mean['~'] *= 1e6f;
                std::vector<float> z(4 * c.V);
                const int tokens[] = {'~', 'a', '~', 'b'};
                Decoder<Cpu, float>(dev, c, model.tensors, model.info.scales, 0).feed(tokens, 4, Logits::all, z.data());
                // What the head makes of it, without the token's own column: the head of taper is tied to wte.
                float most = 0;
                for (size_t i = 0; i < z.size(); i++)
                    if (i % c.V != '~') most = std::max(most, std::abs(z[i]));
                return most;
            };
            // A final norm hides in taper what the blocks have done.
            if (mode == "taper-all") {
                CHECK(largest("folded.bin") > 1e4);
                CHECK(largest("clamped.bin") < 1e3);
            }
        }
    w.ok(kTiny + " --bound 4");
    w.refused("fold model.bin x.bin --clamp-sample corpus.txt", {"--clamp-sample", "model.bin", "--bound 4"});
    w.ok(kTiny + " -g norm -o norm.bin");
    w.refused("fold norm.bin x.bin --clamp-sample corpus.txt", {"--clamp-sample", "norm.bin", "leave the flag out"});
    w.ok(kTiny + " --bound 0 --overwrite");
    write_file(w.at("short.txt"), "too short");
    w.refused("fold model.bin x.bin --clamp-sample short.txt", {"--clamp-sample", "short.txt", "1000", "9"});
    w.refused("fold model.bin x.bin --clamp-sample none.txt", {"none.txt"});
    CHECK(!std::filesystem::exists(w.at("x.bin")));
}

TEST_CASE("infer: generates from a text or ids, greedily or by seed, beyond the context") {
    const Workplace w;
    w.ok(kTiny);
    w.ok("fold model.bin folded.bin");
    const std::string infer = "infer folded.bin ";
    // Greedy: the same tokens as the most probable ones here, one after the other.
    Cpu dev(1);
    const auto model = load_model(dev, w.at("folded.bin"));
    Decoder<Cpu, float> decoder(dev, model->info.config, model->tensors, model->info.scales, 0);
    std::string expected = "The cat";
    std::vector<int> next = byte_ids(expected);
    std::vector<float> logits(256);
    for (int i = 0; i < 9; i++) {
        decoder.feed(next.data(), next.size(), Logits::last, logits.data());
        next = {int(std::max_element(logits.begin(), logits.end()) - logits.begin())};
        expected += char(next[0]);
    }
    CHECK(generated(w.ok(infer + "-n 9 --greedy --prompt", {"The cat"})) == expected);
    CHECK(generated(w.ok(infer + "-n 9 --temperature 0 --tokens 84,104,101,32,99,97,116")) == expected);
    CHECK(generated(w.ok(infer + "-n 9 --top-k 1 --prompt", {"The cat"})) == expected);
    CHECK(generated(w.ok(infer + "-n 9 --top-p 0 --prompt", {"The cat"})) == expected);

    const std::string first = generated(w.ok(infer + "-n 40 --seed 5 --prompt T"));
    CHECK(first.size() == 41);
    CHECK(generated(w.ok(infer + "-n 40 --seed 5 --prompt T")) == first);
    CHECK(generated(w.ok(infer + "-n 40 --seed 6 --prompt T")) != first);
    // Without a prompt, an opening of our own, cut to the context of 16.
    CHECK(generated(w.ok(infer + "-n 4")).starts_with("Once upon a time"));
    CHECK(w.ok(infer + "--last-token --show 3").find("16 tokens: Once upon a time\n") != std::string::npos);
}

TEST_CASE("train_gpt: a sample ends at <|endoftext|>, as a text of infer does") {
    const Workplace w;
    write_vocabulary(w.at("words"));
    std::string text;
    for (int i = 0; i < 300; i++) text += "\n<|endoftext|>";
    write_file(w.at("ends.txt"), text);
    const std::string out = w.ok("train_gpt -i ends.txt --tokenizer words -b 2 -x 60 -l 0.03 -s 60 -v 0" + kShape);
    CHECK_MESSAGE(out.find("<|endoftext|>") == std::string::npos, out);
    CHECK(w.ok("infer model.bin -n 9 --temperature 0.7 --prompt", {"\n"}).find("; 0 generated in") !=
          std::string::npos);
}

TEST_CASE("train_gpt: the log has one JSON line per update") {
    const Workplace w;
    const std::string out = w.ok(kTiny + " -v 3 -s 4 -n 2 --scale-loss 0.1");
    const auto log = read_log(w.at("model.log.jsonl"));
    REQUIRE(log.size() == 6);
    const double g[] = {1, 1, 0.5, 0, 0, 0};
    for (size_t k = 1; k <= 6; k++) {
        const auto& line = log[k - 1];
        CHECK(line.at("step") == k);
        CHECK(line.at("tokens") == 32 * k);
        CHECK(line.at("g").get<double>() == doctest::Approx(g[k - 1]).epsilon(1e-12));
        for (const char* key : {"loss", "scale_loss", "lr", "grad_norm", "stream_scale", "tokens_per_second"})
            CHECK(line.at(key).is_number());
        CHECK(line.contains("val_loss") == (k % 3 == 0));
        CHECK(line.contains("scale_target") == (k == 2));
        CHECK(line.contains("transformer.h.0.ln_2.taper_scale") == (k == 2));
        CHECK((line.at("scale_loss") > 0) == (k > 2));
    }
    CHECK(log[5].at("loss") < log[0].at("loss"));
    CHECK(w.ok(kTiny + " -o -foo").find("next: ./fold ./-foo.bin ./-foo.folded.bin && ./infer ./-foo.folded.bin ") !=
          std::string::npos);
    for (const char* text : {"validation loss", "step 6/6", "next: ./fold model.bin folded.bin"})
        CHECK_MESSAGE(out.find(text) != std::string::npos, text);
    CHECK(count_with(tensor_names(w.at("model.state.bin")), "v.transformer.wte.weight") == 1);
    w.ok(kTiny);  // a fresh run begins a fresh log
    CHECK(read_log(w.at("model.log.jsonl")).size() == 6);
}

namespace {

// The number in the last whole line of a run's output that reports an update; 0: none yet.
size_t last_step(const std::string& out) {
    const size_t end = out.rfind('\n'), begin = end == std::string::npos ? end : out.rfind("\nstep ", end);
    return begin == std::string::npos ? 0 : std::stoul(out.substr(begin + 6));
}

// -x changes neither the gate nor the learning rate.
const std::string kAbsolute =
    "train_gpt -i corpus.txt -b 2 --gate-warmup 4 --gate-end 8 -k constant -u 3 -v 5 --skip-loss-z 3" + kShape;

}  // namespace

TEST_CASE("train_gpt: the screen's loss is the log's, with the scale loss beside it") {
    const Workplace w;
    const std::string out = w.ok(kTiny + " --scale-loss 100");
    double loss = 0, scale_loss = 0;
    REQUIRE(std::sscanf(out.substr(out.find("step 6/6")).c_str(), "step 6/6 | loss %lf | scale loss %lf", &loss,
                        &scale_loss) == 2);
    const auto log = read_log(w.at("model.log.jsonl"));
    CHECK(loss == doctest::Approx(log.back()["loss"].get<double>()).epsilon(1e-4));
    CHECK(scale_loss == doctest::Approx(log.back()["scale_loss"].get<double>()).epsilon(1e-2));
}

TEST_CASE("train_gpt: resuming at any update writes the same bytes as a run without a stop") {
    for (const std::string mode :
         {" -g taper", " -g taper-all --scale-loss 0.1 --norm rmsnorm", " -g norm --no-shuffle"}) {
        INFO(mode);
        const Workplace whole, w;
        whole.ok(kAbsolute + mode + " -x 12");
        const std::string model = model_in(whole.at("model.bin"));
        const bool all = mode == " -g taper";
        for (int stop : all ? std::vector{1, 3, 4, 5, 7, 8, 11} : std::vector{2, 4, 6}) {
            INFO(stop);
            w.ok(kAbsolute + mode + " -x " + std::to_string(stop));
            w.ok("train_gpt -y -x 12");
            CHECK(model_in(w.at("model.bin")) == model);
            CHECK(log_without_times(w) == log_without_times(whole));
        }
        // A state that was resumed can be resumed again; one that is complete stays as it is.
        w.ok(kAbsolute + mode + " -x 2");
        w.ok("train_gpt -y -x 6");
        w.ok("train_gpt -y -x 12");
        CHECK(model_in(w.at("model.bin")) == model);
        CHECK(w.ok("train_gpt -y").find("complete  update 12 is done and -x is 12") != std::string::npos);
        CHECK(model_in(w.at("model.bin")) == model);
    }
}

TEST_CASE("train_gpt: a longer run keeps the gate closed") {
    const Workplace w;
    w.ok("train_gpt -i corpus.txt -b 2 -x 20 --gate-warmup 10% --gate-end 40%" + kShape);
    w.ok("train_gpt -y -x 100");
    const auto log = read_log(w.at("model.log.jsonl"));
    REQUIRE(log.size() == 100);
    for (size_t k = 8; k <= 100; k++) CHECK(log[k - 1].at("g") == 0);
    w.ok("fold model.bin folded.bin");
    w.refused("train_gpt -y -x 100 --gate-warmup 30", {"--gate-warmup"});
    w.refused("train_gpt -y -x 200 --gate-end 150", {"--gate-end"});
}

TEST_CASE("train_gpt: the default schedule fits a run of a few updates") {
    for (size_t steps : {1, 2, 5}) {  // half of these, rounded, calibrates
        const Workplace w;
        w.ok("train_gpt -i corpus.txt -b 2 -x " + std::to_string(steps) + kShape);
        const auto log = read_log(w.at("model.log.jsonl"));
        REQUIRE(log.size() == steps);
        for (size_t k = 1; k <= steps; k++) CHECK(log[k - 1].at("g") == (k <= (steps + 1) / 2 ? 1 : 0));
    }
    const Workplace w;
    w.refused("train_gpt -i corpus.txt -b 2 -x 5 --gate-warmup 60% --gate-end 40%" + kShape, {"--gate-end", "3", "2"});
}

TEST_CASE("train_gpt: without the scale loss the default schedule is a late one; what is given stays") {
    const Workplace w;
    struct Case {
        std::string flags;
        int calibration, end;  // last update at gate 1, first at 0, of 200
    };
    for (const Case& c :
         {Case{"", 10, 80}, Case{" --scale-loss 0", 40, 160}, Case{" --scale-loss 0 --gate-warmup 9", 9, 160},
          Case{" --scale-loss 0 --gate-end 50%", 40, 100}}) {
        CAPTURE(c.flags);
        w.ok("train_gpt -i corpus.txt -b 1 -v 0 -m 1 -x 200 -l 1e-4" + kShape + c.flags);
        const auto log = read_log(w.at("model.log.jsonl"));
        REQUIRE(log.size() == 200);
        for (int k = 1; k <= 200; k++) {
            CHECK((log[k - 1].at("g") == 1) == (k <= c.calibration));
            CHECK((log[k - 1].at("g") == 0) == (k >= c.end));
        }
    }
}

TEST_CASE("train_gpt: Ctrl-C in every phase of the gate writes a checkpoint, and the printed command goes on") {
    const std::string line =
        "train_gpt -i corpus.txt -b 2 -x 4000 --gate-warmup 700 --gate-end 1700 -l 1e-3 -v 1 -m 1" + kShape + " -o";
    const std::string out = "my model.bin";
    const Workplace whole, w;
    whole.ok(line, {out});
    std::vector<std::string> command = w.command(line, {out});
    size_t before = 0;
    for (size_t stop : {200, 1000, 1800}) {
        Program program(w.path, command);
        REQUIRE(program.wait_until([&](const std::string& text) { return last_step(text) >= stop; }));
        program.send(SIGINT);
        const Outcome outcome = program.finish();
        CHECK(outcome.err == "");
        CHECK(outcome.status == 130);
        const std::string said = "resume with: ./train_gpt -y -o 'my model.bin'\n";
        CHECK_MESSAGE(outcome.out.ends_with(said), outcome.out);
        const size_t step = std::stoul(SafetensorsFile(w.at(out)).metadata().at("step"));
        CHECK(step > before);
        CHECK(step <= 4000);
        before = step;
        command = w.command("train_gpt -y -o", {out});
    }
    CHECK(run_program_in(w.path, command).status == 0);
    CHECK(model_in(w.at(out)) == model_in(whole.at(out)));
    CHECK(read_log(w.at("my model.log.jsonl")).size() == 4000);
}

TEST_CASE("train_gpt: a run that is killed resumes from its last checkpoint") {
    const std::string line =
        "train_gpt -i corpus.txt -b 2 -x 1500 --gate-warmup 300 --gate-end 600 -v 1 -m 1 -n 400" + kShape;
    const Workplace whole, w;
    whole.ok(line);
    Program program(w.path, w.command(line));
    REQUIRE(program.wait_until([](const std::string& text) { return last_step(text) >= 500; }));
    program.send(SIGKILL);
    CHECK(program.finish().status == 128 + SIGKILL);
    const size_t step = std::stoul(SafetensorsFile(w.at("model.state.bin")).metadata().at("step"));
    CHECK(step % 400 == 0);
    CHECK(step >= 400);
    w.ok("train_gpt -y");
    CHECK(model_in(w.at("model.bin")) == model_in(whole.at("model.bin")));
    CHECK(log_without_times(w) == log_without_times(whole));
}

TEST_CASE("train_gpt: accumulated micro-batches are one batch") {
    const Workplace w;
    w.ok(kTiny + " -b 8");
    const auto one = read_log(w.at("model.log.jsonl"));
    w.ok(kTiny + " -d 128");
    const auto four = read_log(w.at("model.log.jsonl"));
    REQUIRE(four.size() == 6);
    for (size_t k = 0; k < 6; k++) {
        CHECK(four[k].at("tokens") == one[k].at("tokens"));
        for (const char* key : {"loss", "grad_norm", "stream_scale"})
            CHECK(std::abs(double(four[k].at(key)) - double(one[k].at(key))) <= 1e-4 * double(one[k].at(key)));
    }
}

TEST_CASE("train_gpt: learning rates follow the schedule") {
    const Workplace w;
    const std::map<std::string, std::vector<double>> expected = {
        {"constant", {0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
        {"linear", {0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2}},
        {"wsd", {0.5, 1, 1, 1, 1, 1, 1, 1, 0.6, 0.2}},
        {"cosine", {0.5, 1, 0, 0, 0, 0.6, 0, 0, 0, 0.2}},  // 0: not looked at
    };
    for (const auto& [name, lr] : expected) {
        w.ok(kTiny + " -x 10 -u 2 -q 0.2 -l 0.001 -k " + name);
        const auto log = read_log(w.at("model.log.jsonl"));
        REQUIRE(log.size() == 10);
        for (size_t k = 0; k < 10; k++) {
            CAPTURE(k);
            if (lr[k] > 0) CHECK(std::abs(double(log[k].at("lr")) - 0.001 * lr[k]) <= 1e-12);
        }
    }
}

TEST_CASE("train_gpt: starts from a model, reads in sequence or shuffled, recomputes to the same bytes") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o base.bin");
    const std::string base = read_file(w.at("base.bin"));
    // With a learning rate of 0, training leaves the weights as --init gave them. The shape is the file's.
    w.ok(kTrain + " --init base.bin -l 0 -q 0");
    const SafetensorsFile from(w.at("base.bin")), to(w.at("model.bin"));
    for (const TensorEntry& entry : from.entries()) {
        const TensorEntry* same = to.find(entry.name);
        REQUIRE(same);
        CHECK(std::memcmp(from.data(entry), to.data(*same), entry.end - entry.begin) == 0);
    }
    auto trained = [&](const std::string& flags) {
        w.ok(kTrain + " --init base.bin " + flags);
        return model_in(w.at("model.bin"));
    };
    CHECK(trained("--seed 1") == trained("--seed 1 -r 2"));
    CHECK(trained("--seed 1") != trained("--seed 2"));
    CHECK(trained("--seed 1 --no-shuffle") == trained("--seed 2 --no-shuffle"));
    // Resuming does not need the model to start from.
    w.refused(kTrain + " --init base.bin -o base.bin", {"--out", "base.bin"});
    w.ok(kTrain + " --init base.bin -o tuned.bin -x 3 -k constant -u 0");
    std::filesystem::remove(w.at("base.bin"));
    w.ok("train_gpt -y -o tuned.bin -x 6");
    write_file(w.at("base.bin"), base);
    w.ok(kTrain + " --init base.bin -o again.bin -k constant -u 0");
    CHECK(model_in(w.at("tuned.bin")) == model_in(w.at("again.bin")));
}

TEST_CASE("train_gpt: token shards and a validation text of its own") {
    const Workplace w;
    std::vector<uint16_t> ids(600);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = uint16_t(i * i % 50257);
    write_token_shard(w.at("part_1.bin"), ids);
    write_token_shard(w.at("part_2.bin"), ids);
    const std::string out = w.ok(kTiny + " -i part_*.bin -j part_1.bin -x 3 --gate-end 3 -t 4 --n-embd 8 -m 1");
    CHECK(out.find("1200 tokens to train on") != std::string::npos);
    CHECK(out.find("600 to validate") != std::string::npos);
    CHECK(contains(out, "(no tokenizer beside the shards: taken for ids of gpt2; --tokenizer names another)\n"));
    const std::string shards = " -i part_*.bin -j part_1.bin -b 2 -t 4 -x 3 -m 1";
    w.ok("train_gpt --n-layer 1 --n-embd 8 --n-head 2 -g norm -o base.bin" + shards);
    CHECK(contains(w.ok("train_gpt --init base.bin -o tuned.bin" + shards), "taken for ids of the model of --init;"));
    w.ok("fold model.bin folded.bin");
    CHECK(out.find("&& ./infer folded.bin --last-token --tokens 0\n") != std::string::npos);  // it cannot read text
    w.ok("infer folded.bin --last-token --tokens 0");
    w.refused("infer folded.bin --last-token", {"(gpt2)", "--tokenizer DIR; or give ids with --tokens"});  // bytes: no
    const std::string last_token = w.ok("infer folded.bin --last-token --tokens 50256,1,2");
    CHECK(last_token.find("last-token mode") != std::string::npos);
    const size_t repetitions = last_token.find("median of ");
    REQUIRE(repetitions != std::string::npos);
    CHECK(std::stoul(last_token.substr(repetitions + 10)) >= 1);
    CHECK(generated(w.ok("infer folded.bin -n 3 --greedy --tokens 50256,1,2")).find(',') != std::string::npos);
    w.refused("infer folded.bin --prompt hello", {"folded.bin", "gpt2", "--tokens"});
    w.refused("infer folded.bin --tokens 50257", {"50257"});
    w.refused(kTiny + " -i part_1.bin -j corpus.txt", {"--val", "corpus.txt"});
    w.refused(kTiny + " -j part_1.bin", {"--val", "part_1.bin"});
    CHECK(!contains(w.ok(kTiny + " -j corpus.txt"), "taken for ids"));
    CHECK(read_log(w.at("model.log.jsonl")).size() == 6);
}

// ---- infer at a terminal

namespace {

// A command at a terminal that libedit knows, without settings of whoever runs the tests.
std::vector<std::string> at_xterm(const Workplace& w, const std::string& line) {
    std::vector<std::string> command = Workplace::command(line);
    command[0] = program_path(command[0]);
    command.insert(command.begin(), {"/usr/bin/env", "TERM=xterm", "HOME=" + w.path});
    return command;
}

// infer at a terminal of its own.
struct Talk {
    Talk(const Workplace& w, const std::string& line) : program(w.path, at_xterm(w, line), 0, true, true) {}
    // Waits for `text`, behind what was waited for before.
    void expect(const std::string& text) {
        size_t found = std::string::npos;
        CAPTURE(text);
        program.wait_until(
            [&](const std::string& out) { return all = out, (found = out.find(text, seen)) != out.npos; });
        INFO(all);
        REQUIRE(found != std::string::npos);
        seen = found + text.size();
    }
    Program program;
    std::string all;
    size_t seen = 0;
};

}  // namespace

TEST_CASE("infer at a terminal: prompts in a loop, until Ctrl-D; each text is that of its prompt and stream alone") {
    const Workplace w;
    w.ok(kTiny);
    Talk talk(w, "infer model.bin -n 9 --seed 4");
    talk.expect("each begins a text of its own, of 9 tokens");
    std::vector<std::string> prompts = {"The cat", "caf\xc3\xa9", "The cat"};
    for (size_t i = 0; i < 3; i++) {
        talk.expect("> ");
        if (i == 1) talk.program.type("\n"), talk.expect("> ");  // nothing typed, nothing said
        talk.program.type(prompts[i] + "\n");
        talk.expect("9 generated in");
        std::string alone =
            w.ok("infer model.bin -n 9 --seed 4 --stream " + std::to_string(i + 1) + " -p", {prompts[i]});
        alone = alone.substr(alone.find("\n\n") + 2);
        alone = printable(alone.substr(0, alone.rfind("\n\n")), "\n\t");
        std::string shown = talk.all;
        std::erase(shown, '\r');
        CHECK_MESSAGE(shown.find("\n" + alone + "\n\n") != std::string::npos, alone);
    }
    talk.program.type("\x04");
    const Outcome outcome = talk.program.finish();
    CHECK(outcome.status == 0);
    CHECK(outcome.err == "");
    CHECK(outcome.out.ends_with("\n"));
}

TEST_CASE(
    "infer at a terminal: Ctrl-C stops a text and gives up a line; an error ends neither the program nor the loop") {
    const Workplace w;
    w.ok(kTiny + " -x 1");  // of all bytes, control characters among them
    Talk talk(w, "infer model.bin -n 100000000 --temperature 100");
    for (int i = 0; i < 2; i++) {
        talk.expect("> ");
        talk.program.type("The\n");
        talk.program.wait_until([&](const std::string& out) { return out.size() > talk.seen + 2000; });
        talk.program.type("\x03");
        talk.expect(" generated in ");
    }
    talk.expect("> ");
    talk.program.type("given up");
    talk.expect("given up");
    talk.program.type("\x03");
    talk.expect("> ");
    talk.program.type(std::string(17, 'x') + "\n");  // the context has 16
    talk.expect("> ");
    talk.program.type("\x04");
    const Outcome outcome = talk.program.finish();
    CHECK(outcome.status == 0);
    CHECK(outcome.err ==
          "infer: error: the prompt: expected at most 16 tokens (the context of model.bin), found 17; shorten it\n");
    const size_t from = outcome.out.find("> ");
    const size_t text = outcome.out.find("\nThe", from), end = outcome.out.find(" generated in ", from);
    REQUIRE(text < end);
    std::string shown = outcome.out.substr(text, end - text);
    std::erase(shown, '\r');
    CHECK(printable(shown, "\n\t") == shown);
    CHECK(shown.find("\\x") != std::string::npos);
}

TEST_CASE("infer at a terminal: Ctrl-Space within a line does nothing") {
    const Workplace w;
    w.ok(kTiny);
    Talk talk(w, "infer model.bin -n 9 --seed 4");
    talk.expect("> ");
    talk.program.type("The cat");
    talk.expect("cat");
    talk.program.type(std::string("\x01\0\n", 3));  // Ctrl-A: at the first letter
    talk.expect("\nThe cat");
    talk.expect("9 generated in");
    talk.expect("> ");
    talk.program.type("\x04");
    CHECK(talk.program.finish().status == 0);
}

TEST_CASE("infer at a terminal: Ctrl-D typed while a text is printed ends the program behind it") {
    const Workplace w;
    w.ok(kTiny);
    Talk talk(w, "infer model.bin -n 30000");
    talk.expect("> ");
    talk.program.type("The\n");
    talk.program.wait_until([&](const std::string& out) { return out.size() > talk.seen + 50; });
    CHECK(talk.program.terminal_is_plain());  // so that the terminal keeps the key as the end of a line
    talk.program.type("\x04");
    talk.expect("30000 generated in");
    CHECK(talk.program.finish().status == 0);
}

TEST_CASE("infer at a terminal: a signal that ends it leaves the terminal as it was") {
    const Workplace w;
    w.ok(kTiny);
    for (const int signal : {SIGTERM, SIGHUP, SIGQUIT}) {
        CAPTURE(signal);
        Talk talk(w, "infer model.bin -n 9");
        talk.expect("> ");
        talk.program.type("half a line");
        talk.expect("half a line");
#ifdef HAVE_LIBEDIT
        for (int i = 0; i < 2000 && talk.program.terminal_is_plain(); i++) usleep(5000);
        CHECK(!talk.program.terminal_is_plain());
#endif
        talk.program.send(signal);
        for (int i = 0; i < 2000 && !talk.program.terminal_is_plain(); i++) usleep(5000);
        CHECK(talk.program.terminal_is_plain());
        CHECK(talk.program.finish().status == 128 + signal);
    }
}

TEST_CASE("infer at a terminal: no loop where something else was asked for, or the output goes elsewhere") {
    const Workplace w;
    w.ok(kTiny);
    for (const std::string flags :
         {" -p The", " --tokens 1", " --last-token", " --samples 2", " --eval corpus.txt", " --info"}) {
        Program program(w.path, at_xterm(w, "infer model.bin -n 2" + flags), 0, true, true);
        const Outcome outcome = program.finish();
        CAPTURE(flags);
        CHECK(outcome.status == 0);
        CHECK(outcome.out.find("> ") == std::string::npos);
    }
    Program file(w.path,
                 {"/bin/sh", "-c",
                  "TERM=xterm HOME=. " + program_path("infer") + " model.bin -n 2 --device cpu >out.txt"},
                 0, true, true);
    CHECK(file.finish().status == 0);
    CHECK(read_file(w.at("out.txt")).find("2 generated in") != std::string::npos);
}

TEST_CASE("a progress line on a terminal is no longer than its row") {
    int pair[2] = {posix_openpt(O_RDWR | O_NOCTTY), -1};
    REQUIRE(pair[0] >= 0);
    REQUIRE((grantpt(pair[0]) == 0 && unlockpt(pair[0]) == 0));
    pair[1] = open(ptsname(pair[0]), O_RDWR | O_NOCTTY);
    const struct winsize size = {24, 20, 0, 0};
    REQUIRE(ioctl(pair[1], TIOCSWINSZ, &size) == 0);
    std::FILE* terminal = fdopen(pair[1], "w");
    const std::string line =
        "0123456789\xc3\xa9"
        "123456789abcdef";
    {
        LiveLine live(true, terminal);
        live.show(line, false), live.show(line, true), live.show("short", false);
        live.show("step 3 | loss 2.5678 | g 1", false);
    }
    std::fclose(terminal);
    std::string shown;
    char buffer[1000];  // read may return a part; after the last, EIO, as nobody has the terminal open
    for (ssize_t n; (n = read(pair[0], buffer, sizeof buffer)) > 0;) shown.append(buffer, size_t(n));
    close(pair[0]);
    CHECK(shown ==
          "\r\033[K0123456789\xc3\xa9"
          "12345678"
          "\r\033[K" +
              line + "\r\n\r\033[Kshort\r\033[Kstep 3\r\n");
}

}  // namespace tapernorm
