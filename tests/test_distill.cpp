// --distill: runs of train_gpt that learn from the model that they began from.
#include "tests/model_in.h"
#include "tests/read_log.h"

namespace tapernorm {

namespace {

// A base model with all its norms, which knows the corpus. It has no state, of which another model of its name were not the one.
void train_base(const Workplace& w, const std::string& more = "") {
    w.ok("train_gpt -i corpus.txt -b 4 -x 300 -g norm -l 0.01 -u 0 -o base.bin" + kShape + more);
    std::filesystem::remove(w.at("base.state.bin"));
}

// 12 updates whose first are the same in a run that ends earlier.
const std::string kTaught =
    "train_gpt -i corpus.txt -b 2 -x 12 --gate-warmup 2 --gate-end 4 -l 0.003 -u 0 -k constant --init base.bin "
    "--distill 1";

}  // namespace

TEST_CASE("distill: the divergence from the base model falls while the norms go, beside the loss in line and log") {
    const Workplace w;
    train_base(w);
    const std::string out = w.ok(kTaught + " -x 80 --gate-end 10");
    CHECK(out.find(" teacher 0.") != std::string::npos);  // in the table of memory
    CHECK(out.find(" | kl 0.0000 | ") != std::string::npos);
    const auto log = read_log(w.at("model.log.jsonl"));
    REQUIRE(log.size() == 80);
    CHECK((double(log[0].at("kl")) == 0 && double(log[0].at("grad_norm")) == 0));  // the model is still its teacher
    double highest = 0, last = 0;
    for (size_t i = 10; i < 20; i++) highest = std::max(highest, double(log[i].at("kl")));
    for (size_t i = 70; i < 80; i++) last += double(log[i].at("kl")) / 10;
    CAPTURE(highest);
    CHECK(double(log[79].at("g")) == 0);
    CHECK(last > 0);
    CHECK(last < highest / 2);
    CHECK(std::abs(double(log[79].at("loss")) - double(log[0].at("loss"))) < 1);  // still the cross-entropy
    w.ok("train_gpt -i corpus.txt -b 2 -x 1 --gate-warmup 1 --gate-end 4 --init base.bin -o plain.bin");
    CHECK_FALSE(read_log(w.at("plain.log.jsonl"))[0].contains("kl"));
}

TEST_CASE("distill: a run that goes on has the same bits, and needs the teacher that it had") {
    const Workplace w;
    train_base(w);
    w.ok(kTaught + " -d 64 -o whole.bin");
    w.ok(kTaught + " -d 64 -x 3");
    const std::string base = read_file(w.at("base.bin"));
    std::filesystem::remove(w.at("base.bin"));
    w.refused("train_gpt -y -x 12", {"--distill", "model.state.bin", "base.bin", "put back", "--distill 0"});
    train_base(w, " --seed 2 --overwrite");
    w.refused("train_gpt -y -x 12", {"--distill", "base.bin", "model.state.bin", "checksum", "put back"});
    train_base(w, " --n-layer 2 --overwrite");
    w.refused("train_gpt -y -x 12", {"--distill", "base.bin", "model.state.bin", "put back"});
    write_file(w.at("base.bin"), base);
    w.ok("train_gpt -y -x 12");
    CHECK(model_in(w.at("model.bin")) == model_in(w.at("whole.bin")));
    CHECK(read_log(w.at("model.log.jsonl"))[11].at("kl") == read_log(w.at("whole.log.jsonl"))[11].at("kl"));
    // Without a teacher it needs no file; which it had is still known when it wants one again.
    std::filesystem::remove(w.at("base.bin"));
    w.ok("train_gpt -y -x 13 --distill 0");
    CHECK_FALSE(read_log(w.at("model.log.jsonl"))[12].contains("kl"));
    train_base(w, " --seed 2 --overwrite");
    w.refused("train_gpt -y -x 14 --distill 0.5", {"--distill", "base.bin", "checksum"});
    write_file(w.at("base.bin"), base);
    w.ok("train_gpt -y -x 14 --distill 0.5");
    // Its settings begin it again.
    w.ok("train_gpt --config whole.toml -o again.bin");
    CHECK(model_in(w.at("again.bin")) == model_in(w.at("whole.bin")));
}

TEST_CASE("distill: a run that began without a teacher may take one, of its sizes, when it goes on") {
    const Workplace w;
    train_base(w);
    w.ok(kTaught + " -x 3 --distill 0");
    w.ok("train_gpt -y -x 4 --distill 1");
    CHECK(read_log(w.at("model.log.jsonl"))[3].contains("kl"));
    w.ok(kTaught + " -x 3 --distill 0 -o other.bin");
    train_base(w, " --n-layer 2 --overwrite");
    w.refused("train_gpt -y -x 4 --distill 1 -o other.bin", {"--distill", "base.bin", "sizes", "other.state.bin"});
}

TEST_CASE("distill: gradient norms are not judged by those of a time with a teacher") {
    const Workplace w;
    train_base(w);
    w.ok(kTaught + " -x 20 --gate-warmup 30 --gate-end 35 -l 1e-5");  // the model hardly leaves its teacher
    w.ok("train_gpt -y -x 40 --distill 0");
    for (const auto& update : read_log(w.at("model.log.jsonl"))) CHECK(!update.contains("skipped"));
}

TEST_CASE("distill: refuses a share that is none, and to learn from nothing") {
    const Workplace w;
    for (const std::string share : {"-0.1", "1.5", "nan", "x"})
        w.refused(kTiny + " --distill " + share, {"--distill", share});
    w.refused(kTiny + " --distill 0.5", {"--distill", "--init", "teacher"});
    w.ok(kTiny + " -x 3");
    w.refused("train_gpt -y --distill 0.5", {"--distill", "--init", "teacher"});
}

}  // namespace tapernorm
