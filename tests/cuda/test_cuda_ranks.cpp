// Two ranks on GPUs, as a user starts them: train_gpt --gpus 2, through NCCL. Here both are the CPU stand-in's; with real
// GPUs the test needs two.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <memory>

#include "tests/cuda/cuda_test.h"
#include "tests/environment.h"
#include "tests/model_in.h"
#include "tests/read_log.h"

namespace tapernorm {

namespace {

bool too_few_gpus() {
#ifdef CUDA_EMU
    return false;
#else
    return probe_cuda().devices < 2;
#endif
}

// An environment variable for the programs started from here on.
struct Variable {
    const char* name;
    Variable(const char* name_, const char* value) : name(name_) { setenv(name, value, 1); }
    ~Variable() { unsetenv(name); }
};

// Phases g = 1, 1, 0.5, 0, 0, 0; an update is 2 micro-batches: both on one rank, or one on each of two.
std::vector<std::string> command(const std::string& flags) {
    std::vector<std::string> all = words(
        "-i corpus.txt -b 1 -t 8 -d 16 -x 6 --gate-warmup 2 --gate-end 4 -l 0.01 -v 3 -m 3 "
        "--n-layer 2 --n-embd 16 --n-head 2 --threads 1 --device cuda " +
        flags);
    all.insert(all.begin(), gpu_program("train_gpt"));
    return all;
}

std::vector<nlohmann::json> run_ranks(const Workplace& w, const std::string& flags) {
    const Outcome outcome = run_program_in(w.path, command(flags));
    CHECK(outcome.err == "");
    CHECK_MESSAGE(outcome.status == 0, outcome.out);
    return log_without_times(w);
}

// The processes of a run that has begun.
std::vector<pid_t> children(pid_t parent) {
    std::istringstream in(
        read_file("/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent) + "/children"));
    std::vector<pid_t> list;
    for (pid_t pid; in >> pid;) list.push_back(pid);
    return list;
}

}  // namespace

CUDA_TEST(
    "cuda trainer: --gpus 2 is the run on one up to rounding, ZeRO changes no bit, a sharded state resumes whole") {
    if (too_few_gpus()) return;
    const Variable devices("EMU_DEVICES", "2");
    // A GPU works on while its process waits for another rank; streams that run as late as they may would not.
    const Variable eager("EMU_LAZY", "0");
    for (const std::string precision : {"fp32", "bf16"}) {
        CAPTURE(precision);
        const std::string mode = "-g taper-all --precision " + precision;
        const Workplace w1, w2, wz;
        const auto one = run_ranks(w1, mode), two = run_ranks(w2, mode + " --gpus 2");
        const auto zero = run_ranks(wz, mode + " --gpus 2 -z 1");
        REQUIRE(one.size() == 6);
        REQUIRE(two.size() == 6);
        // As between CPU and GPU in test_cuda_model.cpp: fp32 through AdamW's first steps; bf16 rounds at 2^-8.
        const double tolerance = precision == "fp32" ? 1e-3 : 0x1p-4;
        for (size_t k = 0; k < 6; k++)
            for (const char* key : {"loss", "grad_norm", "stream_scale"})
                CHECK(std::abs(double(two[k].at(key)) - double(one[k].at(key))) <= tolerance * double(one[k].at(key)));
        // The stand-in adds in the order of ranks in every collective; NCCL promises no order between two kinds of them.
#ifdef CUDA_EMU
        CHECK(zero == two);
        CHECK(model_in(wz.at("model.bin")) == model_in(w2.at("model.bin")));
        const Workplace w;
        run_ranks(w, mode + " --gpus 2 -z 1 -x 3 -k constant -u 0");
        run_ranks(w, "-y --gpus 2 -z 0 -x 6");
        run_ranks(w2, mode + " --gpus 2 -k constant -u 0");
        CHECK(model_in(w.at("model.bin")) == model_in(w2.at("model.bin")));
        run_ranks(w, "-y -x 7");  // and on one
#endif
    }
}

#ifdef CUDA_EMU
CUDA_TEST("cuda trainer: with --tune all ranks have rank 0's algorithms, and keep them when they resume") {
    const Variable devices("EMU_DEVICES", "2"), eager("EMU_LAZY", "0");
    // Sums of so many terms depend on their order.
    const std::string shape = " --n-embd 64 -t 32 -d 64", wide = "--gpus 2 --tune -k constant -u 0" + shape;
    const Workplace whole, other, resumed;
    {
        const Variable fastest("EMU_FASTEST", "4");  // rank 1 has another, by its own clock
        run_ranks(whole, wide);
        run_ranks(resumed, wide + " -x 3");
    }
    const Variable fastest("EMU_FASTEST", "0");
    run_ranks(resumed, "-y --gpus 2 -x 6" + shape);
    CHECK(model_in(resumed.at("model.bin")) == model_in(whole.at("model.bin")));
    run_ranks(other, wide);
    CHECK(model_in(other.at("model.bin")) != model_in(whole.at("model.bin")));
}
#endif

#ifdef CUDA_EMU
namespace {

// Two ranks with variables of their own, as torchrun would start them.
std::array<Outcome, 2> two_ranks(const Workplace& w, const std::string& flags,
                                 const std::vector<std::pair<const char*, const char*>> (&own)[2]) {
    const Variable devices("EMU_DEVICES", "2"), eager("EMU_LAZY", "0");
    const std::string port = std::to_string(20000 + getpid() % 12000);
    std::unique_ptr<Program> programs[2];
    for (size_t r = 0; r < 2; r++) {
        const std::string rank = std::to_string(r);
        const Environment launcher({{"RANK", rank},
                                    {"WORLD_SIZE", "2"},
                                    {"LOCAL_RANK", rank},
                                    {"LOCAL_WORLD_SIZE", "2"},
                                    {"MASTER_ADDR", "127.0.0.1"},
                                    {"MASTER_PORT", port},
                                    {"TAPERNORM_SECRET", "of this test"}});
        std::vector<std::unique_ptr<Variable>> variables;
        for (const auto& [name, value] : own[r]) variables.push_back(std::make_unique<Variable>(name, value));
        programs[r] = std::make_unique<Program>(w.path, command(flags));
    }
    return {programs[0]->finish(), programs[1]->finish()};
}

}  // namespace

CUDA_TEST("cuda trainer: ranks have one kind of attention kernels, or say why not") {
    const std::string wide = "--n-embd 64 --n-head 1 --precision bf16";
    auto says = [](const Outcome& outcome, const std::string& text) {
        CAPTURE(outcome.out);
        CHECK_MESSAGE((outcome.out + outcome.err).find(text) != std::string::npos, outcome.err);
    };
    {
        const Workplace w;
        const auto [zero, one] = two_ranks(w, wide, {{{"EMU_SM", "90"}}, {{"EMU_SM", "90"}}});
        CHECK(zero.status + one.status == 0);
        says(zero, "\nattention by warpgroups (wgmma)\n");
        CHECK(zero.err + one.err == "");
    }
    {
        const Workplace w;
        const auto [zero, one] = two_ranks(w, wide, {{{"EMU_SM", "90"}}, {{"EMU_SM", "80"}}});
        CHECK(zero.status + one.status == 0);
        CHECK(zero.out.find("attention by") == std::string::npos);
        CHECK(zero.err == "");
        says(
            one,
            "note: attention with heads of 64 channels by single warps (mma.sync), not by warpgroups (wgmma): rank 1 of 2: they need");
    }
    {
        const Workplace w;
        const auto [zero, one] = two_ranks(w, wide, {{{"ATTENTION", "mma"}}, {}});
        CHECK(zero.status == 1);
        CHECK(one.status == 1);
        says(
            zero,
            "ATTENTION in the environment: expected the same on all ranks, found 'mma' on rank 0 and 'not set' on rank 1");
    }
    for (const char* wrong : {"flash", "wgmma"}) {
        const Workplace w;
        const auto [zero, one] = two_ranks(w, wide, {{{"ATTENTION", wrong}}, {{"ATTENTION", wrong}}});
        CHECK(zero.status == 1);
        CHECK(one.status == 1);
        says(zero, "train_gpt: error: rank 0 of 2: ATTENTION");
        CHECK(one.err.find("ATTENTION") == std::string::npos);  // once
        CHECK(!std::filesystem::exists(w.at("model.bin")));
    }
    // A run whose kernels change.
    const Workplace w;
    const Variable hopper("EMU_SM", "90");
    Outcome run = run_program_in(w.path, command(wide + " -x 3 -k constant -u 0"));
    CHECK(run.status == 0);
    {
        const Environment mma(std::map<std::string, std::string>{{"ATTENTION", "mma"}});
        run = run_program_in(w.path, command("-y -x 6 --precision bf16 --n-embd 64 --n-head 1"));
        CHECK(run.status == 0);
        says(run, "note: attention is by single warps (mma.sync) from here on, it was by warpgroups (wgmma)");
    }
    run = run_program_in(w.path, command(wide + " --precision fp32 -o other"));
    CHECK(run.out.find("attention") == std::string::npos);
    const Environment mma(std::map<std::string, std::string>{{"ATTENTION", "mma"}});
    run = run_program_in(w.path, command(wide + " --precision fp32 -o third"));
    says(run, "note: ATTENTION in the environment has no effect but in bf16 on a GPU");
}
#endif

CUDA_TEST("cuda trainer: a rank that is killed or hangs ends the other, and its number is said") {
    if (too_few_gpus()) return;
    // Lazy: a collective runs when somebody waits for it, as on a GPU.
    const Variable devices("EMU_DEVICES", "2"), lazy("EMU_LAZY", "1"), limit("EMU_NCCL_TIMEOUT_MS", "3000");
    for (const auto& [signal, victim] : {std::pair{SIGKILL, 0}, {SIGKILL, 1}, {SIGSTOP, 1}}) {
        const Workplace w;
        Program run(w.path, command("-x 10000000 -v 0 --gate-warmup 2 --gate-end 4 --gpus 2 --rank-timeout 2"));
        REQUIRE(run.wait_until([](const std::string& text) { return text.find("\nstep ") != std::string::npos; }));
        const std::vector<pid_t> ranks = children(run.pid());
        REQUIRE(ranks.size() == 2);
        kill(ranks[size_t(victim)], signal);
        const Outcome outcome = run.finish();
        CHECK(outcome.status != 0);
        auto said = [&](const std::string& text) { return outcome.err.find(text) != std::string::npos; };
        // One that stops in the middle of a collective, which every rank has begun, leaves NCCL's error instead of its number.
        CHECK_MESSAGE((signal == SIGKILL ? said(strprintf("rank %d of 2 was ended by signal 9", victim)) &&
                                               said(strprintf("train_gpt: error: rank %d of 2: ", 1 - victim))
                                         : said("rank 0 of 2: rank 1 did not come to ") || said("rank 0 of 2: NCCL: ")),
                      outcome.err);
        for (pid_t rank : ranks) CHECK(kill(rank, 0) != 0);  // nobody is left behind
    }
    const Workplace w;
    Outcome outcome;
#ifdef CUDA_EMU
    {
        const Variable delay("EMU_NCCL_INIT_DELAY_MS", "10000");  // rank 1 hangs in NCCL, which rank 0 waits for there
        outcome = run_program_in(w.path, command("--gpus 2 --rank-timeout 0.3"));
        CHECK(outcome.status == 1);
        CHECK_MESSAGE(outcome.err.find("rank 0 of 2: the start of NCCL was not done within 0.3 s") != std::string::npos,
                      outcome.err);
        CHECK(!std::filesystem::exists(w.at("model.bin")));
    }
#endif
    outcome = run_program_in(w.path, command("--gpus 3 -d 24"));
    CHECK(outcome.status == 1);
    CHECK_MESSAGE(outcome.err.find("GPU 2 was asked for and 2 found") != std::string::npos, outcome.err);
}

}  // namespace tapernorm
#endif  // TN_CUDA
