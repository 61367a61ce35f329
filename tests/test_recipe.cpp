// The recipe that --model dN chooses, what --dry-run computes, and the schedules of short runs.
#define TAPERNORM_NO_MAIN
#include "train_gpt.cu"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

#include "data/stories.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "train/shape.h"

namespace tapernorm::train {

namespace {

using Chosen = std::map<std::string, std::string>;

Chosen chosen(const std::string& flags, const RecipeFacts& facts) {
    Settings s;
    Options options = make_options(s);
    std::vector<std::string> list = words("train_gpt " + flags);
    std::vector<const char*> argv;
    for (const std::string& word : list) argv.push_back(word.c_str());
    REQUIRE(options.parse(int(argv.size()), argv.data()));
    set_shape(options, s.depth, s.L, s.NH, s.C);
    Chosen found;
    for (const RecipeLine& line : recipe(s, options, facts)) {
        CHECK_FALSE(line.why.empty());
        found[line.flag] = line.value;
        options.choose(line.flag, line.value);  // a value that the flag takes
    }
    return found;
}

constexpr RecipeFacts kWeb{.V = 50257, .corpus_tokens = size_t(1e11), .ranks = 1, .gpu = true, .free_bytes = 80e9};

double number(const Chosen& c, const char* flag) { return std::atof(c.at(flag).c_str()); }

}  // namespace

TEST_CASE("recipe: every shape of GPT-2 has the figures of the table in the guide") {
    const std::string guide =
        read_file((std::filesystem::path(__FILE__).parent_path().parent_path() / "dev/guides/recipes.md").string());
    for (const std::string shape : {"d6", "d12", "d24", "d36", "d48"}) {
        INFO(shape);
        const Chosen c = chosen("-e " + shape, kWeb);
        Config config;
        size_t L = 0, NH = 0, C = 0;
        set_shape_by_depth(shape, L, NH, C);
        config.L = L, config.NH = NH, config.C = C, config.V = kWeb.V, config.T = size_t(number(c, "--seq-len"));
        config.mode = GateMode::norm;
        const size_t row = guide.find("\n| " + shape + " |") + 1;
        REQUIRE(row > 0);
        double parameters = 0, T = 0, batch = 0, lr = 0;
        REQUIRE(std::sscanf(guide.c_str() + row, "| %*s | %lfM | %lf | %lf | %lf |", &parameters, &T, &batch, &lr) ==
                4);
        CHECK(parameters == std::round(double(parameter_count(config)) * 1e-6));
        CHECK(T == number(c, "--seq-len"));
        CHECK(batch == number(c, "--total-batch"));
        CHECK(lr == number(c, "--lr"));
        // 20 tokens per parameter, whole updates; the warm-up is GPT-3's 375 million tokens or a tenth.
        CHECK(number(c, "--steps") == std::floor(20 * double(parameter_count(config)) / batch));
        CHECK(number(c, "--warmup") == std::floor(std::min(375e6 / batch, number(c, "--steps") / 10)));
        CHECK(std::fmod(batch, number(c, "--batch") * T) == 0);
    }
}

TEST_CASE("recipe: flags that are given stay, and the rest follows them") {
    const Chosen c = chosen("-e d12 -t 256 -b 8 -x 5000 -l 0.001 -u 3% -q 0 --beta2 0.9", kWeb);
    CHECK(c == Chosen{{"--total-batch", "524288"}});
    CHECK(chosen("-e d12 -d 16384 -t 1024 -b 4", kWeb).at("--beta2") == "0.99");
    CHECK(number(chosen("-e d12 -d 16384", kWeb), "--batch") == 16);  // an update has no more sequences
    RecipeFacts three = kWeb;  // 524288 is no multiple of 3 x 1024: the next one is taken
    three.ranks = 3;
    CHECK(std::fmod(number(chosen("-e d12", three), "--total-batch"),
                    3 * 1024 * number(chosen("-e d12", three), "--batch")) == 0);
}

TEST_CASE("recipe: a -d that no -b divides is refused with the numbers that go") {
    const Workplace w;
    const std::string run = "train_gpt -i corpus.txt -x 2 -v 0 -m 1 -o six";
    w.refused(run + " -e d6 -t 16 -d 40", {"16 tokens, found 40; use -d 32 or 48\n"});  // not: of 2 x 16, or more
    w.refused(run + " -e d6 -t 16 -d 8", {"16 tokens, found 8; use -d 16\n"});
    w.refused(run + " -e d6 -t 16 -b 4 -d 96", {"64 tokens, found 96; use -d 64 or 128, or -b 3\n"});
    w.refused(run + kShape + " -b 4 -d 96", {"64 tokens, found 96; use -d 64 or 128, or -b 3\n"});
    // And these do.
    for (const std::string flags : {" -b 3 -d 96", " -b 4 -d 64", " -b 4 -d 128"})
        w.ok(run + kShape + flags + " --overwrite");
    for (const size_t d : {16, 48, 80, 112, 1024}) {
        const Chosen c = chosen("-e d6 -t 16 -d " + std::to_string(d), kWeb);
        CHECK(d % (16 * size_t(number(c, "--batch"))) == 0);
    }
}

TEST_CASE("recipe: any length of sequences, any number of ranks gets about as many updates") {
    for (const size_t ranks : {1, 3, 7})
        for (const char* flags : {"-e d6 -t 1000", "-e d6 -t 7", "-e d6 -t 16", "-e d6 -t 16 -b 5", "-e d12 -t 333"}) {
            CAPTURE(flags);
            CAPTURE(ranks);
            RecipeFacts facts = kWeb;
            facts.ranks = ranks, facts.corpus_tokens = 20000000, facts.gpu = false;
            Chosen c = chosen(flags, facts);
            c.insert({{"--batch", "5"}, {"--seq-len", "16"}});  // where they are given
            const double T = std::atof(std::strstr(flags, "-t ") + 3), batch = number(c, "--total-batch");
            CHECK(std::fmod(batch, T * double(ranks) * number(c, "--batch")) == 0);
            // 4 epochs in 1000 updates. Rounding to eights makes at most 24 sequences of 20, and 16 of them, after halving.
            CHECK(batch <= 24.0 / 20 * 80e6 / 1000);
            CHECK(batch >= 0.5 * 16 / 20 * 80e6 / 1000);
        }
}

TEST_CASE("recipe: whether a run has room is said before it takes any") {
    const auto check = [](bool dry, double free) {
        Settings s;
        s.dry_run = dry, s.batch = 4, s.T = 64;
        Config c;
        c.V = 256, c.T = 64, c.L = 2, c.NH = 2, c.C = 64;
        Ranks alone;
        return error_of([&] { check_memory(s, c, {.gpu = false, .free_bytes = free}, alone); });
    };
    CHECK(check(true, 1e9) == "");
    CHECK(check(true, 0) == "");     // not known
    CHECK(check(false, 1e6) == "");  // a warning
    const std::string small = check(true, 1e5), short_of = check(true, 4e6);
    CHECK_MESSAGE(small.find("choose a smaller shape") != std::string::npos, small);
    CHECK_MESSAGE(short_of.find("choose a smaller -b, -t or --logits-rows") != std::string::npos, short_of);
    CHECK(free_memory() > 1e6);
    CHECK(in_child([] {
        if (!limit_address_space(size_t(8) << 20)) return false;
        const double eight = free_memory();
        mmap(nullptr, size_t(6) << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        const double two = free_memory();
        return eight > 7e6 && eight <= 8 << 20 && two > 0 && two <= 2 << 20;
    }));
}

TEST_CASE("recipe: a small corpus gets small updates, and is read four times at most") {
    for (const size_t tokens : {size_t(3000), size_t(1000000), size_t(2700000), size_t(300000000)}) {
        CAPTURE(tokens);
        RecipeFacts f{.V = 256, .corpus_tokens = tokens, .ranks = 1, .gpu = false, .free_bytes = 0};
        const Chosen c = chosen("-e d12", f);
        const double read = number(c, "--steps") * number(c, "--total-batch");
        CHECK((read <= 4 * double(tokens) || number(c, "--steps") == 1));
        CHECK((number(c, "--steps") >= 1000 || number(c, "--total-batch") == 1024));
        CHECK(number(c, "--batch") <= 2);  // 2048 tokens on a CPU
    }
    // With -x the number of updates is the user's.
    RecipeFacts f{.V = 256, .corpus_tokens = 2700000, .ranks = 1, .gpu = false, .free_bytes = 0};
    CHECK(number(chosen("-e d12 -x 100", f), "--total-batch") == 65536);  // 10.8M tokens in 100 updates are 108000 each
}

TEST_CASE("recipe: the micro-batch is what fits into the free memory") {
    double last = 64;
    for (const double free : {80e9, 20e9, 8e9, 4e9, 1e9}) {
        CAPTURE(free);
        RecipeFacts f = kWeb;
        f.free_bytes = free;
        const double B = number(chosen("-e d12", f), "--batch");
        CHECK(B <= last);
        Settings s;
        s.batch = size_t(B), s.T = 1024;
        Config c;
        c.V = 50257, c.T = 1024, c.L = 12, c.NH = 12, c.C = 768, c.mode = GateMode::norm;
        CHECK((B == 1 || training_bytes(c, s, true, 1) <= 0.8 * free));
        last = B;
    }
    CHECK(last == 1);
}

TEST_CASE("recipe: memory is what the trainer allocates, arithmetic what the guide for 124M works out") {
    for (const size_t recompute : {0, 1, 2, 3}) {
        CAPTURE(recompute);
        Settings s;
        if (recompute == 3) s.optimizer = "muon", s.logits_rows = 100;
        s.L = 3, s.NH = 4, s.C = 64, s.T = 64, s.batch = 4, s.total_batch = 256, s.recompute = recompute % 3;
        Config c;
        c.V = 256, c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C, c.mode = GateMode::taper;
        Cpu dev(1);
        if (recompute == 1) s.distill = 0.5;
        Trainer<Cpu, float> t(dev, s, c, tokens_from_text(story_corpus(), "stories"));
        if (recompute == 1) hire_teacher(t, [](const TensorSpec& spec, auto* to) { std::fill_n(to, spec.count(), 0); });
        double held = 0;
        for (const auto& [purpose, bytes] : memory_table(t)) held += double(bytes);
        // Left out: the sums of calibration, and up to 255 bytes behind each of some 200 tensors, of 6 MB.
        CHECK(training_bytes(c, s, false, 1) == doctest::Approx(held).epsilon(0.01));
        CHECK(training_bytes(c, s, false, 1) <= held);
    }
    Config c;
    c.V = 50304, c.T = 1024, c.L = 12, c.NH = 12, c.C = 768;
    const double matrices = 50304.0 * 768 + 144 * 768 * 768.0;
    // Muon, of a matrix with q the shorter side: 4 q rows columns + 2 q^3 in each of five steps. In C^3: queries, keys, values and the
    // projection 30 each, the MLP's two 90 each.
    CHECK(muon_flops(c) == doctest::Approx(12 * 300 * std::pow(768.0, 3)));
    CHECK(training_flops(c, 1024) == doctest::Approx(6 * matrices + 6 * 12 * 1024.0 * 768).epsilon(1e-3));
}

TEST_CASE("recipe: -e chooses it, shows it, keeps it; --dry-run writes nothing") {
    const Workplace w;
    const std::string small = "train_gpt -i corpus.txt -e d6 -t 16 -b 1 -d 16 -x 2 -v 0 -m 1 --threads 1 -o six";
    const auto files = [&] { return std::distance(std::filesystem::directory_iterator(w.path), {}); };
    const auto before = files();
    const std::string dry = w.ok(small + " --dry-run");
    w.refused("train_gpt -i corpus.txt -e d6 -t 16 -b 1 -d 16 -x 2 --dry-run -o nowhere/six", {"nowhere", "mkdir -p"});
    write_file(w.at("other.bin"), "no model of ours");
    w.refused("train_gpt -i corpus.txt -e d6 -t 16 -b 1 -d 16 -x 2 --dry-run -o other",
              {"other.bin", "is not a model"});
    std::filesystem::remove(w.at("other.bin"));
    CHECK(files() == before);
    CHECK(dry.find(" tok/s, ") != std::string::npos);
    for (const char* part : {"recipe    d6", "--lr ", "0.46 / channels", "estimate  2 updates of 1 micro-batch ",
                             "FLOPs", "needs ", "at $1 for an hour of this machine: $", "dry run: nothing was written"})
        CHECK_MESSAGE(dry.find(part) != std::string::npos, part);
    const std::string out = w.ok(small);
    CHECK(out.find("recipe    d6") != std::string::npos);
    CHECK(out.find("estimate") == std::string::npos);
    const std::string settings = read_file(w.at("six.toml"));
    for (const char* line :
         {"\nlr = 0.0012\n", "\nlr-final-frac = 0.1\n", "\nbeta2 = 0.99\n", "\nn-embd = 384\n", "\nseq-len = 16\n"})
        CHECK_MESSAGE(settings.find(line) != std::string::npos, line);
    w.ok("train_gpt --config six.toml -o seven");
    CHECK(model_in(w.at("six.bin")) == model_in(w.at("seven.bin")));
    // What it chose stays when the run goes on.
    const std::string more = w.ok("train_gpt -y -o six -x 3");
    CHECK(more.find("recipe  ") == std::string::npos);
    CHECK(read_file(w.at("six.toml")).find("\nlr = 0.0012\n") != std::string::npos);
    w.refused("train_gpt -y -o six --dry-run", {"--dry-run", "--resume"});
    w.refused("train_gpt -i corpus.txt -e d6 -d 0", {"--total-batch: expected tokens, found 0 beside --model"});
    write_file(w.at("short.txt"), std::string(3000, 'a'));
    CHECK(
        w.ok("train_gpt -i short.txt -e d6 -t 16 -b 1 --dry-run").find("; 1000 updates would be more than 4 epochs") !=
        std::string::npos);
    write_file(w.at("short.txt"), "a text");
    w.refused("train_gpt -i short.txt -e d6 --dry-run", {"but one sequence needs 513"});
}

TEST_CASE("train_gpt: every short run is finite, and its loss never far above that of random weights") {
    const TokenSource corpus = tokens_from_text(story_corpus(), "stories");
    const auto run = [&](Settings s) {
        Options none = make_options(s);
        settle(s, none, none, nullptr);
        Config c;
        c.V = 256, c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C, c.mode = gate_mode_from(s.gate);
        c.bound = s.bound, c.final_bound = c.mode == GateMode::taper_all ? s.final_bound : 0;
        Cpu dev(1);
        Trainer<Cpu, float> t(dev, s, c, corpus);
        initialize(t.model, s.seed);
        double first = 0, last = 0;
        while (t.step < s.steps) {
            const StepReport r = t.update();
            if (t.step == 1) first = r.loss;
            last = r.loss;
            REQUIRE(r.loss <= 1.25 * first);
        }
        CHECK(last <= 1.02 * first);                // a few updates of 32 tokens differ by as much
        CHECK((s.steps < 2 || t.gate_now() == 0));  // it can be folded
    };
    for (size_t steps = 1; steps <= 200; steps++) {
        CAPTURE(steps);
        Settings s;
        s.L = 2, s.NH = 2, s.C = 16, s.T = 16, s.batch = 2, s.steps = steps;
        if (steps % 2) s.gate = "taper-all";
        run(s);
    }
    // The model of a first try, which grows faster.
    for (const size_t steps : {12, 25}) {
        CAPTURE(steps);
        Settings s;
        s.steps = steps, s.T = 128;
        run(s);
    }
}

}  // namespace tapernorm::train
