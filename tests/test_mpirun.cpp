// Ranks as processes, started by mpirun as a user starts them: the whole run on 1, 2 and 3 of them, and what happens when
// one of them is killed, hangs, diverges or does not like its flags.
#include <dirent.h>
#include <doctest/doctest.h>

#include <cmath>

#include "io/safetensors.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/read_log.h"

namespace tapernorm {

namespace {

// 6 micro-batches an update: 6, 3 or 2 on each rank. g = 1, 1, 0.5, 0, 0, 0.
const std::string kRun = "-i corpus.txt -b 1 -d 96 -x 6 --gate-warmup 2 --gate-end 4 -l 0.01 -v 3 -m 5" + kShape;

std::string find_program(const std::string& name) {
    std::istringstream path(std::getenv("PATH") ? std::getenv("PATH") : "");
    for (std::string folder; std::getline(path, folder, ':');)
        if (access((folder + "/" + name).c_str(), X_OK) == 0) return folder + "/" + name;
    return "";
}

std::vector<std::string> mpirun(int ranks, const std::string& flags) {
    const char* bin = std::getenv("TAPERNORM_BIN");
    std::vector<std::string> command = {find_program("mpirun"), "--oversubscribe", "-np", std::to_string(ranks)};
    if (geteuid() == 0) command.insert(command.begin() + 1, "--allow-run-as-root");
    command.push_back((std::filesystem::absolute(bin ? bin : ".") / "train_gpt").string());
    for (const std::string& word : words(flags + " --device cpu --threads 1")) command.push_back(word);
    return command;
}

// Whether train_gpt runs under mpirun here; why not is printed.
bool no_mpi() {
    static const bool missing = [] {
        std::string why;
        if (find_program("mpirun").empty()) {
            why = "there is no mpirun";
        } else {
            const Workplace w;
            const Outcome probe = run_program_in(w.path, mpirun(2, "--help"));
            if (probe.err.find("built without MPI") != std::string::npos) why = "train_gpt was built without MPI";
        }
        if (!why.empty()) std::printf("tests of ranks under mpirun: skipped: %s (make deps MPI=1)\n", why.c_str());
        return !why.empty();
    }();
    return missing;
}

// Equal, numbers up to rounding: fp32 sums in another order, through 6 updates of AdamW.
bool near(const std::vector<nlohmann::json>& a, const std::vector<nlohmann::json>& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); i++) {
        if (a[i].size() != b[i].size()) return false;
        for (const auto& [key, value] : b[i].items())
            if (!a[i].contains(key) ||
                !(std::abs(double(a[i].at(key)) - double(value)) <= 1e-4 * std::abs(double(value)) + 1e-9))
                return false;
    }
    return true;
}

// The process that runs rank `rank` of this mpirun: one of its children.
pid_t process_of_rank(pid_t mpirun_pid, int rank) {
    const std::string wanted = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
    pid_t found = 0;
    DIR* folder = opendir("/proc");
    while (const dirent* entry = folder ? readdir(folder) : nullptr) {
        const pid_t pid = std::atoi(entry->d_name);
        if (pid <= 0) continue;
        const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
        const size_t name_end = stat.rfind(')');
        if (name_end == std::string::npos || std::atoi(stat.c_str() + name_end + 4) != mpirun_pid) continue;
        const std::string environment = read_file("/proc/" + std::to_string(pid) + "/environ");
        if (environment.find(wanted + std::string(1, '\0')) != std::string::npos) found = pid;
    }
    if (folder) closedir(folder);
    return found;
}

size_t count(const std::string& text, const std::string& part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) n++;
    return n;
}

// A run that would not end by itself, after its first updates.
struct LongRun {
    Workplace w;
    Program program;
    explicit LongRun(const std::string& flags = "")
        : program(w.path, mpirun(3, kRun + " -x 10000000 -v 0 --gate-warmup 5 --gate-end 10 " + flags)) {
        REQUIRE(program.wait_until([](const std::string& text) { return text.find("\nstep ") != std::string::npos; }));
    }
};

}  // namespace

#define MPI_TEST(name) TEST_CASE(name* doctest::skip(no_mpi()))

MPI_TEST("mpirun: 1, 2 and 3 ranks, with and without ZeRO, are one run; its state resumes on another number") {
    const Workplace one;
    one.ok("train_gpt " + kRun);
    const auto expected = log_without_times(one);
    REQUIRE(expected.size() == 6);
    for (int ranks : {1, 2, 3}) {
        CAPTURE(ranks);
        const Workplace w, z;
        const Outcome plain = run_program_in(w.path, mpirun(ranks, kRun)),
                      zero = run_program_in(z.path, mpirun(ranks, kRun + " -z 1"));
        CHECK(plain.err + zero.err == "");
        CHECK(plain.status + zero.status == 0);
        CHECK(near(log_without_times(w), expected));
        CHECK(log_without_times(z) == log_without_times(w));
        CHECK(model_in(z.at("model.bin")) == model_in(w.at("model.bin")));
        CHECK((model_in(w.at("model.bin")) == model_in(one.at("model.bin"))) == (ranks == 1));
        CHECK(count(plain.out, "update is ") == (ranks > 1));
        CHECK(count(plain.out, "step 3 | validation loss") == 1);
        CHECK((zero.out.find("(1/" + std::to_string(ranks) + " by -z 1)") != std::string::npos) == (ranks > 1));
    }
    // Three ranks go on where two stopped, with the same update; so does one process.
    const Workplace w;
    CHECK(run_program_in(w.path, mpirun(2, kRun + " -x 3 -z 1 -k constant")).status == 0);
    for (int ranks : {3, 1}) {
        CHECK(run_program_in(w.path, mpirun(ranks, "-y -k cosine -x " + std::string(ranks == 3 ? "4" : "6"))).status ==
              0);
        CHECK(log_without_times(w).back().at("tokens") == (ranks == 3 ? 4 : 6) * 96);
    }
    CHECK(log_without_times(w).size() == 6);
}

MPI_TEST("mpirun: a rank that is killed or hangs ends all, and its number is said") {
    for (int killed : {0, 1}) {
        LongRun run;
        kill(process_of_rank(run.program.pid(), killed), SIGKILL);
        const Outcome outcome = run.program.finish();
        CHECK(outcome.status != 0);
        CHECK_MESSAGE(outcome.err.find("rank " + std::to_string(killed)) != std::string::npos, outcome.err);
    }
    {
        LongRun run("--rank-timeout 0.5");
        const pid_t stopped = process_of_rank(run.program.pid(), 2);
        REQUIRE(stopped > 0);
        kill(stopped, SIGSTOP);
        const Outcome outcome = run.program.finish();
        CHECK(outcome.status != 0);
        // Where it stopped in the middle of an exchange, rank 1 waits too.
        const size_t at = outcome.err.find("train_gpt: error: rank 0 of 3: rank "),
                     list = outcome.err.find(" did not come to ");
        CHECK_MESSAGE(outcome.err.substr(at, list - at).ends_with("2"), outcome.err);
        CHECK(count(outcome.err, "train_gpt: error:") == 1);
    }
}

MPI_TEST("mpirun: an error that all ranks have is one line; a signal to one of them is a checkpoint of all") {
    const Workplace w;
    Outcome outcome = run_program_in(w.path, mpirun(3, kRun + " -l 1e30"));
    CHECK(outcome.status != 0);
    CHECK_MESSAGE(outcome.err.find("train_gpt: error: rank 0 of 3: step 2: the loss is not finite on rank 0") !=
                      std::string::npos,
                  outcome.err);
    CHECK(count(outcome.err, "train_gpt: error:") == 1);
    outcome = run_program_in(w.path, mpirun(3, kRun + " -d 64"));
    CHECK(outcome.status != 0);
    CHECK_MESSAGE(outcome.err.find(
                      "--total-batch: expected a multiple of -b x -t x ranks = 1 x 16 x 3 = 48 tokens, found 64") !=
                      std::string::npos,
                  outcome.err);
    CHECK(count(outcome.err, "train_gpt: error:") == 1);
    std::vector<std::string> two_kinds = mpirun(1, kRun);
    const std::vector<std::string> other = mpirun(2, kRun + " -l 0.02");
    two_kinds.push_back(":");
    two_kinds.insert(two_kinds.end(), std::ranges::find(other, "-np"), other.end());
    outcome = run_program_in(w.path, two_kinds);
    CHECK(outcome.status != 0);
    CHECK_MESSAGE(outcome.err.find(
                      "rank 0 of 3: --lr (-l): expected the same on all ranks, found '0.01' on rank 0 and '0.02' on "
                      "rank 1") != std::string::npos,
                  outcome.err);
    CHECK(count(outcome.err, "train_gpt: error:") == 1);
    two_kinds.push_back("--help");
    outcome = run_program_in(w.path, two_kinds);
    CHECK(outcome.status != 0);
    CHECK_MESSAGE(contains(outcome.err, "found 'training' on rank 0 and '--help or --version' on rank 1"), outcome.err);
    CHECK(count(outcome.err, "train_gpt: error:") == 1);
    CHECK(!std::filesystem::exists(w.at("model.bin")));
    outcome = run_program_in(w.path, mpirun(2, "--help"));
    CHECK((outcome.status == 0 && outcome.err == "" && count(outcome.out, "usage: train_gpt") == 1));

    LongRun run;
    kill(process_of_rank(run.program.pid(), 2), SIGTERM);
    outcome = run.program.finish();
    CHECK_MESSAGE(outcome.out.find("resume with: ./train_gpt -y -o model.bin") != std::string::npos, outcome.out);
    CHECK(outcome.status == 128 + SIGTERM);
    CHECK(run_program_in(run.w.path, mpirun(1, "-y -x 1")).status == 0);  // complete: nothing to do, all readable
}

TEST_CASE("train_gpt: --gpus without GPUs, and ranks that come to no run, are errors of one line") {
    const Workplace w;
    w.refused("train_gpt " + kTrain.substr(10) + kShape + " --gpus 2",
              {"rank 0 of 2", "--gpus", "mpirun --oversubscribe -np 2"});
    w.refused("train_gpt --gpus 0", {"--gpus"});
    w.refused("train_gpt -z 2", {"--zero"});
    w.refused("train_gpt --rank-timeout 0", {"--rank-timeout"});
}

}  // namespace tapernorm
