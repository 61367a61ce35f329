// What a model's file says of where it comes from, what a log says of how its run ended, and what --info and --json print.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>

#include "io/checksum.h"
#include "io/tokens.h"
#include "model/model_file.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/read_log.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

using nlohmann::json;

json provenance_of(const std::string& path) { return json::parse(SafetensorsFile(path).metadata().at("provenance")); }

// The closing records of a log.
std::vector<json> ends_in(const std::string& path) {
    std::vector<json> ends;
    std::istringstream in(read_file(path));
    for (std::string line; std::getline(in, line);)
        if (json record = json::parse(line); record.contains("end")) ends.push_back(record);
    return ends;
}

std::time_t seconds(const std::string& date) {
    std::tm utc{};
    REQUIRE(date.size() == 20);
    REQUIRE(strptime(date.c_str(), "%Y-%m-%dT%H:%M:%SZ", &utc));
    return timegm(&utc);
}

}  // namespace

TEST_CASE("provenance: a model says what it was made from, by what, when, and how good it is") {
    const Workplace w;
    std::filesystem::create_directory(w.at("texts"));
    std::filesystem::rename(w.at("corpus.txt"), w.at("texts/corpus.txt"));
    const std::time_t before = std::time(nullptr);
    const std::string out =
        w.ok("train_gpt -i texts/corpus.txt -b 2 -x 6 --gate-warmup 2 --gate-end 4 -l 0.01 --seed 7" + kShape);
    const std::time_t after = std::time(nullptr);
    const SafetensorsFile model(w.at("model.bin"));
    model.verify();
    const json steps = provenance_of(w.at("model.bin"));
    REQUIRE(steps.size() == 1);
    const json& step = steps[0];
    CHECK(step["program"] == "train_gpt");
    CHECK(w.ok("train_gpt --version").find(step["version"].get<std::string>()) != std::string::npos);
    CHECK(seconds(step["date"]) >= before);
    CHECK(seconds(step["date"]) <= after);
    CHECK(step["settings"]["seed"] == "7");
    CHECK(step["settings"]["lr"] == "0.01");
    CHECK(step["settings"]["gate-mode"] == "taper");
    for (const char* other :
         {"resume", "dry-run", "precision", "val-every", "checkpoint-every", "gpus", "threads", "out"})
        CHECK_MESSAGE(!step["settings"].contains(other), other);
    CHECK(step["updates"] == 6);
    CHECK(step["tokens"] == 6 * 2 * 16);
    const std::string text = read_file(w.at("texts/corpus.txt"));
    const auto [train, val] = tokens_from_text(text).split_tail(0.1);
    CHECK(step["train"] ==
          json{{"name", "corpus.txt"}, {"tokens", train.size()}, {"checksum", checksum_text(train.fingerprint())}});
    CHECK(step["val"]["checksum"] == checksum_text(val.fingerprint()));
    REQUIRE(step["sessions"].size() == 1);
    CHECK(step["sessions"][0]["after_update"] == 0);
    CHECK(step["sessions"][0]["ranks"] == 1);
    CHECK(out.find("device    " + step["sessions"][0]["device"].get<std::string>() + "\n") != std::string::npos);
    CHECK(step.dump().find("texts") == std::string::npos);  // folders are nobody's business

    // The final validation: as it is printed, in the model and in the log, and measured again by another program. It has whole
    // rows of 16 tokens in pairs; with one more token behind them the others are predicted in the same windows.
    const json v = step["validation"];
    CHECK(v["update"] == 6);
    const size_t tokens = v["tokens"];
    CHECK(tokens == (val.size() - 1) / 16 / 2 * 2 * 16);
    CHECK(out.find(strprintf("\nvalidation loss %.4f (", v["loss"].get<double>())) != std::string::npos);
    CHECK(out.find(strprintf(" after 6 updates, on %zu of %zu tokens\n", tokens, val.size())) != std::string::npos);
    write_file(w.at("val.txt"), text.substr(train.size(), tokens + 1));
    const json eval = json::parse(w.run("infer model.bin --eval val.txt --json").out);
    CHECK(eval["loss"].get<double>() == doctest::Approx(v["loss"].get<double>()).epsilon(1e-5));
    const auto ends = ends_in(w.at("model.log.jsonl"));
    REQUIRE(ends.size() == 1);
    CHECK(ends[0] == json{{"end", "complete"},
                          {"updates", 6},
                          {"tokens", 192},
                          {"val_loss", v["loss"]},
                          {"val_update", 6},
                          {"val_tokens", tokens}});
    CHECK(read_file(w.at("model.log.jsonl")).ends_with("}\n"));

    // The state names this model by what it is, whenever it was made.
    CHECK(SafetensorsFile(w.at("model.state.bin")).metadata().at("model") == model.metadata().at("content"));
    CHECK(model.metadata().at("content") != model.metadata().at("checksum"));
}

TEST_CASE("provenance: the same run again is the same model but for its provenance") {
    const Workplace w;
    for (const std::string flags : {" -o a.bin", " -o b.bin --val-every 1", " -o c.bin --seed 2"}) w.ok(kTiny + flags);
    CHECK(model_in(w.at("a.bin")) == model_in(w.at("b.bin")));
    CHECK(model_in(w.at("a.bin")) != model_in(w.at("c.bin")));
    const auto content = [&](const char* name) { return SafetensorsFile(w.at(name)).metadata().at("content"); };
    CHECK(content("a.bin") == content("b.bin"));
    CHECK(content("a.bin") != content("c.bin"));
    // What a model does not depend on is not among its settings.
    const auto settings = [&](const char* name) { return provenance_of(w.at(name))[0]["settings"]; };
    CHECK(settings("a.bin") == settings("b.bin"));
    CHECK(settings("a.bin") != settings("c.bin"));
}

TEST_CASE("provenance: lengths are the updates that they came to") {
    const Workplace w;
    // Of 30 updates: a warm-up of 50, as if the run were longer; gate-warmup 50% is 15 and gate-end 80% is 24, or as said.
    const auto lengths = [&](const std::string& flags) {
        w.ok("train_gpt -i corpus.txt -b 2 -x 30 --overwrite" + kShape + flags);
        const json s = provenance_of(w.at("model.bin"))[0]["settings"];
        return s["warmup"].get<std::string>() + " " + s["gate-warmup"].get<std::string>() + " " +
               s["gate-end"].get<std::string>();
    };
    CHECK(lengths("") == "50 15 24");
    CHECK(lengths(" -u 10%") == "3 15 24");
    CHECK(lengths(" -u 7 --gate-warmup 20% --gate-end 40%") == "7 6 12");
    CHECK(lengths(" -u 0 --gate-warmup 9 --gate-end 50%") == "0 9 15");
}

TEST_CASE("provenance: a run that is interrupted, resumed and moved") {
    const Workplace w;
    // Waits in the terminal's small pipe; ends by the signal.
    Program program(w.path,
                    w.command("train_gpt -i corpus.txt -b 2 -x 4000 --gate-warmup 2 --gate-end 4 -v 5 -m 1" + kShape));
    REQUIRE(program.wait_until([](const std::string& out) { return out.find("validation loss") != out.npos; }));
    program.send(SIGINT);
    CHECK(program.finish().status == 130);
    auto ends = ends_in(w.at("model.log.jsonl"));
    REQUIRE(ends.size() == 1);
    const size_t updates = read_log(w.at("model.log.jsonl")).size();
    CHECK(ends[0]["end"] == "interrupted");
    CHECK(ends[0]["updates"] == updates);
    REQUIRE(ends[0].contains("val_loss"));
    const size_t validated = ends[0]["val_update"];
    CHECK(validated % 5 == 0);
    CHECK(read_log(w.at("model.log.jsonl"))[validated - 1]["val_loss"] == ends[0]["val_loss"]);
    CHECK(provenance_of(w.at("model.bin"))[0]["validation"]["loss"] == ends[0]["val_loss"]);

    const std::string more = "train_gpt -y -x " + std::to_string(updates + 2);
    w.ok(more);
    ends = ends_in(w.at("model.log.jsonl"));
    REQUIRE(ends.size() == 1);
    CHECK(ends[0]["end"] == "complete");
    CHECK(ends[0]["updates"] == updates + 2);
    CHECK(provenance_of(w.at("model.bin"))[0]["sessions"].size() == 1);
    const std::string model = model_in(w.at("model.bin"));
    const auto loss = [&] { return provenance_of(w.at("model.bin"))[0]["validation"]["loss"]; };
    const json first = loss();
    w.ok(more);  // there is nothing to do but to validate again
    CHECK(model_in(w.at("model.bin")) == model);
    CHECK(loss() == first);
    CHECK(ends_in(w.at("model.log.jsonl")) == ends);

    w.ok("train_gpt -y --threads 2 -x " + std::to_string(updates + 4));
    const json sessions = provenance_of(w.at("model.bin"))[0]["sessions"];
    REQUIRE(sessions.size() == 2);
    CHECK(sessions[1]["after_update"] == updates + 2);
    CHECK(sessions[1]["device"] != sessions[0]["device"]);
    // No validation, no loss.
    Program other(w.path, w.command("train_gpt -i corpus.txt -b 2 -x 4000 -v 0 -o other.bin" + kShape));
    REQUIRE(other.wait_until([](const std::string& out) { return out.find("step ") != out.npos; }));
    other.send(SIGINT);
    CHECK(other.finish().status == 130);
    REQUIRE(ends_in(w.at("other.log.jsonl")).size() == 1);
    CHECK_FALSE(ends_in(w.at("other.log.jsonl"))[0].contains("val_loss"));
    CHECK_FALSE(provenance_of(w.at("other.bin"))[0].contains("validation"));
}

TEST_CASE("provenance: the closing record has the scores of HellaSwag, and TensorBoard the final numbers") {
    const Workplace w;
    write_file(w.at("items.jsonl"), "{\"ctx\": \"The cat\", \"endings\": [\"sat\", \"ran\"], \"label\": 0}\n");
    const std::string out = w.ok(kTiny + " --hellaswag items.jsonl --tensorboard board -v 3");
    const auto ends = ends_in(w.at("model.log.jsonl"));
    REQUIRE(ends.size() == 1);
    CHECK(out.find(strprintf("\nhellaswag: 1 item: acc %.4f, acc_norm %.4f", ends[0]["hellaswag_acc"].get<double>(),
                             ends[0]["hellaswag_acc_norm"].get<double>())) != out.npos);
    const std::string board = read_file(w.at("board/events.out.tfevents.0000000001.train_gpt"));
    // Protobuf: the tag, and behind it field 2, four bytes.
    const auto point = [&](const std::string& tag) {
        const size_t at = board.find(tag + "\x15");
        REQUIRE(at != board.npos);
        CHECK(board.find(tag, at + 1) == board.npos);  // one point
        float value;
        std::memcpy(&value, board.data() + at + tag.size() + 1, sizeof value);
        return value;
    };
    CHECK(point("final_val_loss") == ends[0]["val_loss"].get<float>());
    CHECK(point("final_hellaswag_acc_norm") == ends[0]["hellaswag_acc_norm"].get<float>());
}

TEST_CASE("provenance: each program that makes a model of another adds itself") {
    const Workplace w;
    w.ok(kTiny + " -g norm -o base.bin");
    w.ok(kTrain + " -g taper-all --bound 0 --init base.bin -o tuned.bin");
    w.ok("fold tuned.bin folded.bin --dtype bf16");
    w.ok("train_gpt export folded.bin hf");
    w.ok("fold base.bin affine.bin");
    w.ok("train_gpt export base.bin plain");
    w.ok("fold plain again.bin");
    const auto content = [&](const char* name) { return SafetensorsFile(w.at(name)).metadata().at("content"); };
    const json steps = provenance_of(w.at("hf/model.safetensors"));
    REQUIRE(steps.size() == 4);
    const char* programs[] = {"train_gpt", "train_gpt", "fold", "train_gpt export"};
    for (size_t i = 0; i < 4; i++) CHECK(steps[i]["program"] == programs[i]);
    CHECK(steps[1]["model"] == json{{"name", "base.bin"}, {"checksum", content("base.bin")}});
    CHECK(steps[2]["model"] == json{{"name", "tuned.bin"}, {"checksum", content("tuned.bin")}});
    CHECK(steps[2]["settings"]["dtype"] == "bf16");
    CHECK(steps[3]["model"] == json{{"name", "folded.bin"}, {"checksum", content("folded.bin")}});
    CHECK(steps[0] == provenance_of(w.at("base.bin"))[0]);
    // By way of a folder of Hugging Face, whose model is known by its numbers.
    const json again = provenance_of(w.at("again.bin"));
    REQUIRE(again.size() == 3);
    Cpu dev(1);
    const auto base = load_model(dev, w.at("base.bin"));
    CHECK(again[2]["model"] ==
          json{{"name", "plain"}, {"checksum", numbers_checksum(base->info.config, base->tensors)}});
    // A state keeps what its run began from, whose file may be gone.
    w.ok(kTrain + " --init base.bin -o part.bin -x 3");
    std::filesystem::remove(w.at("base.bin"));
    w.ok("train_gpt -y -o part.bin -x 4");
    CHECK(provenance_of(w.at("part.bin"))[1]["model"] == steps[1]["model"]);
    CHECK(provenance_of(w.at("part.bin")).size() == 2);
}

TEST_CASE("provenance: one that cannot be read is no reason to refuse a model, and reaches no terminal") {
    const Workplace w;
    w.ok(kTiny);
    const std::string deep(1000, '[');
    for (const std::string& bad : {std::string("made by hand"), std::string("[1]"), std::string("{}"), deep,
                                   std::string("[{\"program\": 1}]"), "[\"" + std::string(2 << 20, 'x') + "\"]"}) {
        with_metadata(w.at("model.bin"), w.at("bad.bin"), {{"provenance", bad}});
        const std::string info = w.ok("infer bad.bin --info");
        CHECK(info.find("does not say where it comes from") != std::string::npos);
        CHECK(info.find("\nnote      its provenance cannot be read") != std::string::npos);
        const json object = json::parse(w.ok("infer bad.bin --info --json"));
        CHECK(object["provenance"].empty());
        CHECK(object.contains("provenance_problem"));
        w.warned("fold bad.bin folded.bin", "bad.bin': its provenance cannot be read");
        CHECK(provenance_of(w.at("folded.bin")).size() == 1);
    }
    with_metadata(w.at("model.bin"), w.at("bad.bin"),
                  {{"provenance",
                    json({{{"program", "\x1b[2J"}, {"\x1b]0;", {"\x07", 1, nullptr}}, {"sessions", 5}}}).dump()}});
    const std::string info = w.ok("infer bad.bin --info");
    CHECK(std::none_of(info.begin(), info.end(), [](char c) { return c != '\n' && c < ' '; }));
    CHECK(info.find("\\x1b[2J") != std::string::npos);

    // In a state, whose run goes on.
    for (const std::string& bad :
         {std::string("[]"), json({{{"program", "x"}, {"model", 1}, {"sessions", {1, {{"ranks", -1}}}}}}).dump()}) {
        const Workplace other;
        other.ok(kTiny + " -x 4");
        with_metadata(other.at("model.state.bin"), other.at("model.state.bin"), {{"provenance", bad}});
        other.ok("train_gpt -y -x 6");
        CHECK(provenance_of(other.at("model.bin")).size() == 1);
        with_metadata(other.at("model.state.bin"), other.at("model.state.bin"), {{"provenance", "{}"}});
        other.warned("train_gpt -y -x 8", "model.state.bin': its provenance cannot be read");
    }
    // None at all, and an empty list, are nothing to speak of.
    for (const std::string& none : {std::string(), std::string("[]")}) {
        with_metadata(w.at("model.bin"), w.at("none.bin"), {{"provenance", none}});
        CHECK(w.ok("infer none.bin --info").find("note") == std::string::npos);
        w.ok("fold none.bin folded.bin");
    }
    // Where a model is carried on by others.
    w.ok(kTiny + " -g norm -o base.bin");
    with_metadata(w.at("base.bin"), w.at("bad.bin"), {{"provenance", "{}"}});
    w.warned(kTrain + " --init bad.bin -o tuned.bin", "bad.bin': its provenance");
    const Outcome exported = run_program_in(w.path, {"train_gpt", "export", "bad.bin", "hf"});
    CHECK(exported.status == 0);
    CHECK(exported.err.find("bad.bin': its provenance") != std::string::npos);
}

TEST_CASE("provenance: it is replaced in the model that it belongs to, or not at all") {
    const Workplace w;
    w.ok(kTiny);
    w.ok(kTiny + " --seed 2 -o other.bin");
    const std::string path = w.at("model.bin"), model = model_in(path),
                      content = SafetensorsFile(path).metadata().at("content");
    replace_provenance(path, content, "[{\"program\":\"me\"}]");
    CHECK(model_in(path) == model);
    CHECK(provenance_of(path)[0]["program"] == "me");
    w.ok("infer model.bin -n 1");
    const std::string other = read_file(w.at("other.bin"));
    CHECK(error_of([&] { replace_provenance(w.at("other.bin"), content, "[]"); }).find("is no longer the model") !=
          std::string::npos);
    CHECK(read_file(w.at("other.bin")) == other);
    std::string damaged = other;
    damaged.back() ^= 1;
    write_file(w.at("other.bin"), damaged);
    CHECK(error_of([&] {
              replace_provenance(w.at("other.bin"), SafetensorsFile(w.at("other.bin")).metadata().at("content"), "[]");
          }).find("is damaged") != std::string::npos);
    CHECK(read_file(w.at("other.bin")) == damaged);
}

TEST_CASE("infer --info: what a model is, of any kind, without running it") {
    const Workplace w;
    w.ok(kTiny + " -g taper-all");
    w.ok("fold model.bin folded.bin --dtype bf16");
    w.ok(kTiny + " -g norm -o base.bin");
    w.ok("train_gpt export base.bin hf");
    const json info = json::parse(w.ok("infer folded.bin --info --json"));
    const json expected = {{"model", "folded.bin"},
                           {"foreign", false},
                           {"n_layer", 1},
                           {"n_embd", 16},
                           {"n_head", 2},
                           {"n_positions", 16},
                           {"vocab_size", 256},
                           {"tokenizer", "bytes"},
                           {"norm", "layernorm"},
                           {"gate_mode", "taper-all"},
                           {"gate", 0},
                           {"step", 6},
                           {"folded", "all"},
                           {"bound", 8},
                           {"final_bound", 1.5},
                           {"dtype", "BF16 and F32"}};
    for (const auto& [key, value] : expected.items()) CHECK_MESSAGE(info.at(key) == value, info.dump());
    // wte and an untied head with its bias, wpe, and a block of 12 C^2 + 9 C; no norm has a weight.
    CHECK(info["parameters"] == 2 * 256 * 16 + 256 + 16 * 16 + 12 * 16 * 16 + 9 * 16);
    CHECK(info["provenance"] == provenance_of(w.at("folded.bin")));
    const json foreign = json::parse(w.ok("infer hf --info --json"));
    CHECK(foreign["foreign"] == true);
    CHECK(foreign["dtype"] == "F32");
    CHECK_FALSE(foreign.contains("content"));
    const std::string text = w.ok("infer folded.bin --info");
    for (const char* needle : {"file      folded.bin\n", "GPT-2, 1 layer, 2 heads, 16 channels", "folded: all",
                               "\ntrain_gpt, 2", "\nfold, 2", "  settings  ", "seed 1", "validation loss "})
        CHECK_MESSAGE(text.find(needle) != text.npos, needle);
    w.refused("infer model.bin --info --eval corpus.txt", {"--info", "--eval"});
    w.refused("infer model.state.bin --info", {"model.state.bin", "state of a run"});
    std::string damaged = read_file(w.at("model.bin"));
    damaged.back() ^= 1;
    write_file(w.at("model.bin"), damaged);
    w.refused("infer model.bin --info", {"model.bin", "is damaged"});
}

TEST_CASE("--json: one object on standard output with the numbers of the report, which goes to standard error") {
    const Workplace w;
    w.ok(kTiny);
    const auto both = [&](const std::string& line) {
        const Outcome plain = w.run(line), json_run = w.run(line + " --json");
        CHECK(json_run.status == 0);
        CHECK(json_run.out.find('\n') + 1 == json_run.out.size());
        CHECK(json_run.err.substr(0, 40) == plain.out.substr(0, 40));
        return std::pair(plain.out, json::parse(json_run.out));
    };
    const auto [eval, e] = both("infer model.bin --eval corpus.txt --weights int8");
    CHECK(eval.find(strprintf("loss      %.6f nats per token, perplexity %.4f, %.6f bits per byte; ",
                              e["loss"].get<double>(), e["perplexity"].get<double>(),
                              e["bits_per_byte"].get<double>())) != eval.npos);
    CHECK(e["tokens"] == read_file(w.at("corpus.txt")).size());
    CHECK(e["perplexity"].get<double>() == doctest::Approx(std::exp(e["loss"].get<double>())));
    CHECK(eval.find(strprintf("with fp32 weights %.6f", e["loss_fp32"].get<double>())) != eval.npos);
    CHECK(e["content"] == SafetensorsFile(w.at("model.bin")).metadata().at("content"));

    const auto [last, l] = both("infer model.bin --last-token --prompt The --show 256");
    CHECK(l["next"].size() == 256);
    double sum = 0;
    for (const json& row : l["next"]) sum += row["probability"].get<double>();
    CHECK(sum == doctest::Approx(1).epsilon(1e-6));
    CHECK(l["prompt"] == "The");
    CHECK(l["prompt_tokens"] == json({'T', 'h', 'e'}));
    CHECK(last.find(strprintf("%6.2f%%  %6d", 100 * l["next"][0]["probability"].get<double>(),
                              l["next"][0]["token"].get<int>())) != last.npos);

    write_file(w.at("items.jsonl"), "{\"ctx\": \"The cat\", \"endings\": [\"sat\", \"ran\"], \"label\": 0}\n");
    const auto [swag, h] = both("infer model.bin --hellaswag items.jsonl");
    CHECK(swag.find(strprintf("1 item: acc %.4f, acc_norm %.4f, log-likelihood %.5f", h["acc"].get<double>(),
                              h["acc_norm"].get<double>(), h["log_likelihood"].get<double>())) != swag.npos);

    const auto [fold, f] = both("fold model.bin folded.bin");
    CHECK(fold.find(strprintf("max |dlogit| %.3g, relative %.3g, KL %.3g nats", f["check"]["max_dlogit"].get<double>(),
                              f["check"]["relative_dlogit"].get<double>(), f["check"]["kl"].get<double>())) !=
          fold.npos);
    CHECK(f["check"]["error_folded"] <= f["check"]["error_allowed"]);
    CHECK(f["content"] == SafetensorsFile(w.at("folded.bin")).metadata().at("content"));

    w.refused("infer model.bin --json", {"--json", "--last-token", "--eval"});
    const Outcome failed = w.run("infer model.bin --eval nowhere.txt --json");
    CHECK(failed.status == 1);
    CHECK(failed.out == "");
    CHECK(failed.err.starts_with("infer: error: "));
}

TEST_CASE("provenance: one that would be too long for its readers loses its oldest steps, not its newest") {
    ProvenanceStep step;
    step.program = "fold";
    for (const size_t length : {1000, 1048500, 1048576 - 40}) {
        const std::string long_one = "[{\"program\":\"x\",\"a\":\"" + std::string(length, 'z') + "\"}]";
        const std::string next = read_provenance({{"provenance", add_step(long_one, step)}});
        CHECK(next.find("\"fold\"") != std::string::npos);
        CHECK((next.find("zzz") != std::string::npos) == (length == 1000));
    }
}

}  // namespace tapernorm
