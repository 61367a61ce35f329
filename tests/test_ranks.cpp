// Many ranks, as threads of the test: messages and their failures, sums in device memory, how a model is shared out, and
// whole runs against one rank. Real processes: test_mpirun.cpp.
#define TAPERNORM_NO_MAIN
#include "data/stories.h"
#include "train_gpt.cu"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>

#include "tests/environment.h"
#include "tests/gradient_check.h"
#include "tests/temporary_folder.h"
#include "tests/thread_ranks.h"

namespace tapernorm::train {

// ---- who am I

TEST_CASE("ranks: what launchers say") {
    auto place = [](const std::map<std::string, std::string>& values) {
        const Environment environment(values);
        return place_from_environment();
    };
    CHECK(place({}).size == 1);
    // clang-format off
    Place p = place({{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"SLURM_STEP_NUM_TASKS", "7"}});
    CHECK((p.mpi && p.rank == 3 && p.size == 4 && p.local_rank == 1 && p.local_size == 2));
    CHECK(place({{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}}).mpi == false);
    p = place({{"RANK", "9"}, {"WORLD_SIZE", "16"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "8"}, {"MASTER_ADDR", "n1"},
               {"MASTER_PORT", "29500"}});
    CHECK((!p.mpi && p.rank == 9 && p.size == 16 && p.local_rank == 1 && p.local_size == 8 && p.address == "n1"));
    CHECK(p.port == 29500);
    // torchrun holds the port itself.
    CHECK(place({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"MASTER_PORT", "29500"},
                 {"TORCHELASTIC_RUN_ID", "none"}}).port == 29501);
    std::map<std::string, std::string> slurm = {{"SLURM_PROCID", "5"}, {"SLURM_STEP_NUM_TASKS", "6"}, {"SLURM_LOCALID", "1"},
                                                {"SLURM_STEP_NODELIST", "gpu[07-09]"}, {"SLURM_JOB_ID", "1234"},
                                                {"SLURM_STEP_TASKS_PER_NODE", "2(x3)"}};
    // clang-format on
    p = place(slurm);
    CHECK((!p.mpi && p.rank == 5 && p.size == 6 && p.local_rank == 1 && p.local_size == 2 && p.address == "gpu07"));
    CHECK((p.port >= 20000 && p.port < 40000));
    slurm["SLURM_STEP_NODELIST"] = "gpu7";  // one machine: out of reach of others
    CHECK(place(slurm).address == "127.0.0.1");
    slurm["PMIX_RANK"] = "5";
    CHECK(place(slurm).mpi);
    // A batch script has tasks and no step: one process.
    CHECK(place({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "0"}}).size == 1);

    for (const std::string port : {"0", "65535"})
        CHECK_THROWS_WITH_AS(place({{"RANK", "1"},
                                    {"WORLD_SIZE", "2"},
                                    {"MASTER_PORT", port},
                                    {port == "0" ? "SLURM_JOB_ID" : "TORCHELASTIC_RUN_ID", "1"}}),
                             doctest::Contains("MASTER_PORT: expected a port from 1 to 65535"), Error);
    CHECK_THROWS_WITH_AS(place({{"RANK", "x"}, {"WORLD_SIZE", "2"}}), doctest::Contains("RANK: expected a number"),
                         Error);
    CHECK(place({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).size == 1);  // alone, which meets nobody
    CHECK_THROWS_WITH_AS(place({{"RANK", "2"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "1"}}),
                         doctest::Contains("rank 2 of 2"), Error);
    CHECK_THROWS_WITH_AS(place({{"RANK", "1"}, {"WORLD_SIZE", "2"}}), doctest::Contains("MASTER_PORT"), Error);
    CHECK_THROWS_WITH_AS(place({{"PMI_SIZE", "2"}}), doctest::Contains("Open MPI"), Error);
    // Half of what a launcher sets is no run of one process; SLURM's own variables have what scripts leave out.
    const std::map<std::string, std::string> half = {{"WORLD_SIZE", "2"},
                                                     {"LOCAL_RANK", "1"},
                                                     {"MASTER_ADDR", "n1"},
                                                     {"MASTER_PORT", "1"}};
    CHECK_THROWS_WITH_AS(place(half), doctest::Contains("and RANK is not"), Error);
    CHECK_THROWS_WITH_AS(place({{"RANK", "1"}, {"MASTER_PORT", "1"}}), doctest::Contains("and WORLD_SIZE is not"),
                         Error);
    auto script = half;
    script["SLURM_JOB_ID"] = "1";
    CHECK(place(script).size == 1);
    slurm.insert(half.begin(), half.end());
    CHECK(place(slurm).rank == 5);
    CHECK(place({{"WORLD_SIZE", "2"}}).size == 1);
    CHECK(place({{"WORLD_SIZE", "1"}, {"MASTER_ADDR", "n1"}}).size == 1);
}

TEST_CASE("ranks: SLURM's lists of hosts") {
    CHECK(first_host("node1") == "node1");
    CHECK(first_host("node1,node2") == "node1");
    CHECK(first_host("n[003-005,9],m1") == "n003");
    CHECK(first_host("n[7]") == "n7");
    CHECK(first_host("n[12,15]") == "n12");
    CHECK(first_host("") == "");
}

// ---- messages

TEST_CASE("ranks: sums in the order of ranks, broadcasts, agreement") {
    for (int size : {1, 2, 3, 5}) {
        CAPTURE(size);
        std::vector<std::vector<double>> sums(static_cast<size_t>(size));
        std::vector<int> bad(size_t(size), 0), heard(size_t(size), 0);
        auto errors = on_ranks(size, [&](Ranks& ranks) {
            const double r = ranks.rank;
            std::vector<double> values = {r + 1, r == 0 ? 1e17 : 1.0, ranks.rank == size - 1 ? -1e17 : 0.0};
            CHECK(ranks.sum(values, "the test") == -1);
            sums[size_t(ranks.rank)] = values;
            values = {ranks.rank == size - 1 ? std::nan("") : 0};
            bad[size_t(ranks.rank)] = ranks.sum(values, "the test");
            int number = 10 + ranks.rank;
            ranks.broadcast(&number, sizeof number, "the test");
            heard[size_t(ranks.rank)] = number;
            ranks.agree({{"one", "1"}, {"two", "2"}});
        });
        CHECK(all_well(errors));
        double ones = 1e17;  // each 1 is lost, one after the other, as in this loop
        for (int r = 1; r < size; r++) ones += 1;
        for (size_t r = 0; r < size_t(size); r++) {
            CHECK(sums[r] == std::vector<double>{double(size * (size + 1) / 2), ones, -1e17});
            CHECK(bad[r] == size - 1);
            CHECK(heard[r] == 10);
        }
    }
    // All of them learn the first difference, and rank 0 says it.
    auto errors = on_ranks(3, [](Ranks& ranks) {
        ranks.agree({{"--batch", "5"}, {"--steps", ranks.rank == 2 ? "7" : "6"}, {"--lr", ranks.rank ? "1" : "2"}});
    });
    for (const std::string& error : errors)
        CHECK(error.find("--lr: expected the same on all ranks, found '2' on rank 0 and '1' on rank 1") == 0);
    errors = on_ranks(3, [](Ranks& ranks) { ranks.agree({{"--steps", ranks.rank == 2 ? "" : "6\n"}}); });
    for (const std::string& error : errors)
        CHECK(error.find("--steps: expected the same on all ranks, found '6\\x0a' on rank 0 and '' on rank 2") == 0);
    errors = on_ranks(2, [](Ranks& ranks) {
        std::vector<Fact> facts = {{"--steps", "6"}, {"--new", "1"}};
        if (ranks.rank) facts.pop_back();
        ranks.agree(facts);
    });
    for (const std::string& error : errors)
        CHECK(error.find("rank 1 runs another version of this program than rank 0; start all ranks with") == 0);
}

TEST_CASE("ranks: one that hangs or ends is named within the time limit") {
    std::mutex hold;
    std::vector<std::string> errors;
    std::vector<double> values = {1};
    hold.lock();
    errors = on_ranks(
        3,
        [&](Ranks& ranks) {
            std::vector<double> mine = {1};
            if (ranks.rank == 1) return std::lock_guard(hold), void();  // until rank 0 has given up
            try {
                ranks.sum(mine, "the end of update 7");
            } catch (...) {
                if (ranks.first()) hold.unlock();
                throw;
            }
        },
        0.2);
    CHECK(errors[0].find("rank 1 did not come to the end of update 7 within 0.2 s") == 0);
    CHECK(errors[2] != "");

    errors = on_ranks(3, [&](Ranks& ranks) {
        std::vector<double> mine = {1};
        if (ranks.rank != 2) ranks.sum(mine, "the test");
    });
    CHECK(errors[0].find("rank 2 is gone") == 0);
    CHECK(errors[1].find("rank 0 is gone") == 0);

    errors = on_ranks(2, [&](Ranks& ranks) {
        std::vector<double> mine(size_t(1 + ranks.rank), 1.0);
        ranks.sum(mine, "the test");
    });
    CHECK(errors[0].find("rank 1 sent 16 bytes where 8 were expected") == 0);

    // A rank that says why it stops ends the others without a line of their own.
    errors = on_ranks(2, [&](Ranks& ranks) {
        std::vector<double> mine = {1};
        if (ranks.rank == 1) return ranks.link()->stop_all();
        try {
            ranks.sum(mine, "the test");
        } catch (const RankStopped&) {
            fail("stopped");
        }
    });
    CHECK(errors[0] == "stopped");
}

// ---- device memory

TEST_CASE("collectives: sums and slices of any size, the same bits on every rank") {
    for (int size : {1, 2, 3, 4})
        for (size_t slice : {1, 5, 1024, 3001}) {
            CAPTURE(size);
            CAPTURE(slice);
            const size_t n = slice * size_t(size);
            auto value = [](int r, size_t i) { return float(std::sin(double(i) + 100 * r)); };
            std::vector<float> expected(n);
            for (size_t i = 0; i < n; i++) {
                expected[i] = value(0, i);
                for (int r = 1; r < size; r++) expected[i] += value(r, i);
            }
            std::vector<int> wrong(size_t(size), 0);
            const auto errors = on_ranks(size, [&](Ranks& ranks) {
                Cpu dev(1);
                Collectives<Cpu> collectives(dev, ranks);
                std::vector<float> all(n), part(n);
                for (size_t i = 0; i < n; i++) all[i] = part[i] = value(ranks.rank, i);
                if (size == 1) return;
                collectives.all_reduce(all.data(), n), collectives.reduce_scatter(part.data(), n);
                collectives.wait();
                const size_t mine = size_t(ranks.rank) * slice;
                for (size_t i = 0; i < n; i++)
                    wrong[size_t(ranks.rank)] +=
                        all[i] != expected[i] ||
                        part[i] != (i >= mine && i < mine + slice ? expected[i] : value(ranks.rank, i));
                collectives.all_gather(part.data(), n);
                collectives.wait();
                wrong[size_t(ranks.rank)] += part != expected;
            });
            CHECK(all_well(errors));
            for (int w : wrong) CHECK(w == 0);
        }
}

TEST_CASE("collectives: a rank that is gone is an error of wait()") {
    const auto errors = on_ranks(2, [](Ranks& ranks) {
        Cpu dev(1);
        std::vector<float> data(8);
        Collectives<Cpu> collectives(dev, ranks);
        if (ranks.rank == 1) return;
        collectives.all_reduce(data.data(), 8), collectives.all_reduce(data.data(), 8);
        collectives.wait();
    });
    CHECK(errors[0].find("rank 1 is gone") == 0);
}

// ---- sharing out a model

TEST_CASE("shards: every rank's parts together are every tensor once, at any bucket size") {
    Cpu dev(1);
    Config config;
    config.V = 11, config.T = 6, config.L = 5, config.NH = 2, config.C = 10;
    for (int size : {1, 2, 3, 7})
        for (size_t bucket : {0, 2000, 1 << 30})
            for (bool zero : {false, true}) {
                CAPTURE(size);
                CAPTURE(bucket);
                Ranks ranks(0, size, nullptr);
                Gpt<Cpu, float> model(dev, config, 1, 6, 0, true, ranks, zero);
                const auto list = tensor_list(config, model.params);
                const float* base = static_cast<const float*>(model.param_memory.data());
                std::vector<size_t> regions;
                std::vector<ElementRange> places;
                for (const auto& t : list) {
                    const size_t begin = size_t(t.data - base);
                    if (region_of(config, t.spec.name) == regions.size()) {
                        regions.push_back(begin);
                        CHECK(begin % (64 * size_t(size)) == 0);  // 256 bytes
                    }
                    places.push_back({begin, begin + t.spec.count()});
                }
                regions.push_back(model.param_memory.bytes() / sizeof(float));
                REQUIRE(regions.size() == 8);
                std::vector<std::vector<int>> owners;
                for (const auto& t : list) owners.emplace_back(t.spec.count(), 0);
                for (size_t r = 0; r < size_t(size); r++) {
                    const Shards shards(regions, places, r, size_t(size), zero, bucket);
                    for (const ShardPart& p : shards.parts())
                        for (size_t i = 0; i < p.count; i++) owners[p.tensor][p.begin + i]++;
                    // Buckets: from the end to the beginning, without gaps, the embeddings alone.
                    size_t end = regions.back();
                    for (const ElementRange& b : shards.buckets()) {
                        CHECK(b.end == end);
                        CHECK(b.size() % (64 * size_t(size)) == 0);
                        end = b.begin;
                    }
                    CHECK(end == 0);
                    CHECK(shards.buckets().back().end == regions[1]);
                    const size_t count = shards.buckets().size();
                    CHECK((bucket == 0 ? count == 7 : bucket == 2000 ? count > 2 && count < 7 : count == 2));
                }
                const int expected = zero ? 1 : size;
                for (const auto& tensor : owners)
                    CHECK(std::all_of(tensor.begin(), tensor.end(), [&](int n) { return n == expected; }));
            }
}

// ---- whole runs

namespace {

struct RankRun {
    TemporaryFolder folder;
    Settings settings;
    Config config;
    TokenSource corpus = tokens_from_text(story_corpus(20000, 3), "test stories");
    bool save = true;  // the state, at the end

    RankRun(GateMode mode, NormKind norm) {
        settings.out = folder.path + "/model.bin";
        settings.steps = 12, settings.batch = 1, settings.T = 8, settings.total_batch = 48;
        settings.gate_warmup = updates(4), settings.gate_end = updates(8), settings.scale_loss = 0.1;
        settings.skip_loss_z = 3;
        settings.calibration = mode == GateMode::taper ? "channels+first" : "scalar";
        config.bound = mode == GateMode::taper ? 2 : 0, config.first_apart = mode == GateMode::taper;
        config.V = 256, config.T = 8, config.L = 2, config.NH = 2, config.C = 16;
        config.mode = mode, config.norm = norm, config.eps = default_eps(norm);
    }
};

struct RunTrace {
    std::vector<double> numbers;  // each update's, and validation losses
    std::vector<float> parameters;
    std::string state;
};

template <class Real>
RunTrace train_on(RankRun& run, int size, bool zero, size_t steps = 12, bool resume = false) {
    std::vector<RunTrace> traces(static_cast<size_t>(size));
    run.settings.zero = zero;
    const auto errors = on_ranks(size, [&](Ranks& ranks) {
        Cpu dev(1);
        RunTrace& trace = traces[size_t(ranks.rank)];
        Checkpoints checkpoints(state_path(run.settings.out));
        Trainer<Cpu, Real> t(dev, run.settings, run.config, run.corpus, ranks);
        initialize(t.model, 1);
        if (run.settings.distill > 0)
            hire_teacher(t, [](const TensorSpec& spec, Real* numbers) {
                for (size_t i = 0; i < spec.count(); i++)
                    numbers[i] = Real(spec.init.constant + 0.1 * random_normal(9, spec.count(), i));
            });
        if (resume) load_state(t, SafetensorsFile(state_path(run.settings.out)));
        while (t.step < steps) {
            const StepReport r = t.update();
            trace.numbers.insert(trace.numbers.end(),
                                 {r.loss, r.kl.value_or(0), r.scale_loss, r.grad_norm, r.stream_scale});
            if (t.step % 4 == 0) trace.numbers.push_back(evaluate(t, run.corpus, 5).value());
        }
        if (run.save && (ranks.first() || t.model.shards.sharded())) save_state(t, {}, checkpoints);
        for (const TaperScale& site : t.model.scales)
            trace.parameters.insert(trace.parameters.end(), {site.c, site.first});
        for (size_t i = 0; i < tensor_list(run.config, t.model.params).size(); i++) {
            const auto values = t.model.exact(i);
            trace.parameters.insert(trace.parameters.end(), values.begin(), values.end());
        }
    });
    for (const std::string& error : errors) CHECK(error == "");
    for (const RunTrace& trace : traces) {
        CHECK(trace.numbers == traces[0].numbers);
        CHECK(trace.parameters == traces[0].parameters);
    }
    if (!run.save) return traces[0];
    std::ifstream file(state_path(run.settings.out), std::ios::binary);
    traces[0].state = {std::istreambuf_iterator<char>(file), {}};
    return traces[0];
}

bool same(const RunTrace& a, const RunTrace& b) {
    return a.numbers == b.numbers && a.parameters == b.parameters && a.state == b.state;
}

// The tolerance of test_model.cpp's golden runs in fp32, for each of the two.
bool near(const RunTrace& a, const RunTrace& b) {
    if (a.numbers.size() != b.numbers.size()) return false;
    for (size_t i = 0; i < a.numbers.size(); i++)
        if (!(std::abs(a.numbers[i] - b.numbers[i]) <= 2e-4 * std::abs(b.numbers[i]) + 1e-9)) return false;
    return true;
}

}  // namespace

TEST_CASE("ranks: a run on 2 and 3 is the run on one, up to rounding; ZeRO changes no bit, nor does repeating") {
    for (const auto& [mode, norm] : {std::pair{GateMode::taper, NormKind::layernorm},
                                     {GateMode::taper_all, NormKind::rmsnorm},
                                     {GateMode::norm, NormKind::layernorm}}) {
        const std::string name = gate_mode_name(mode);
        CAPTURE(name);
        RankRun run(mode, norm);
        run.save = mode == GateMode::taper;
        run.settings.carry_moments = mode == GateMode::taper_all;
        const RunTrace one = train_on<float>(run, 1, false);
        CHECK(same(train_on<float>(run, 1, true), one));
        for (int size : {2, 3}) {
            CAPTURE(size);
            const RunTrace many = train_on<float>(run, size, false);
            CHECK(near(many, one));
            CHECK(same(train_on<float>(run, size, true), many));
            CHECK(same(train_on<float>(run, size, false), many));
        }
    }
}

TEST_CASE("ranks: the same sums in double leave no doubt about a factor") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    const RunTrace one = train_on<double>(run, 1, false), three = train_on<double>(run, 3, true);
    REQUIRE(one.numbers.size() == three.numbers.size());
    for (size_t i = 0; i < one.numbers.size(); i++)
        CHECK(std::abs(one.numbers[i] - three.numbers[i]) <= 1e-11 * std::abs(one.numbers[i]));
}

TEST_CASE("ranks: with a teacher, 2 of them agree with one, and resume to the bit") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    run.settings.distill = 0.7;
    const RunTrace one = train_on<double>(run, 1, false), two = train_on<double>(run, 2, true);
    CHECK(one.numbers[1] > 0.01);  // the divergence
    REQUIRE(one.numbers.size() == two.numbers.size());
    for (size_t i = 0; i < one.numbers.size(); i++)
        CHECK(std::abs(one.numbers[i] - two.numbers[i]) <= 1e-11 * std::abs(one.numbers[i]));
    train_on<double>(run, 2, true, 5);
    const RunTrace rest = train_on<double>(run, 2, true, 12, true);
    CHECK((rest.parameters == two.parameters && rest.state == two.state));
}

TEST_CASE("ranks: a state resumes on the same number of ranks to the bit, on another up to rounding") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    const RunTrace whole = train_on<float>(run, 2, true);
    for (size_t stop : {3, 4}) {  // while calibrating, and when all is frozen
        CAPTURE(stop);
        for (int size : {1, 2, 3}) {
            train_on<float>(run, 2, stop % 2 == 0, stop);
            const RunTrace rest = train_on<float>(run, size, true, 12, true);
            if (size == 2) CHECK((rest.parameters == whole.parameters && rest.state == whole.state));
            RunTrace tail = whole;
            tail.numbers.erase(tail.numbers.begin(), tail.numbers.end() - ptrdiff_t(rest.numbers.size()));
            CHECK(near(rest, tail));
        }
    }
}

TEST_CASE("ranks: a loss that is not finite on one of them stops all before anything changes") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    std::vector<int> kept(3, 0);  // no bits: threads write side by side
    const auto errors = on_ranks(3, [&](Ranks& ranks) {
        Cpu dev(1);
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus, ranks);
        initialize(t.model, 1);
        t.update();
        if (ranks.rank == 1) t.model.params.h[1].mlp_fc_bias[3] = std::numeric_limits<float>::infinity();
        const std::vector<float> before = t.model.exact(0);
        try {
            t.update();
        } catch (...) {
            kept[size_t(ranks.rank)] = t.model.exact(0) == before && t.step == 1;
            throw;
        }
    });
    for (size_t r = 0; r < 3; r++) {
        CHECK(errors[r].find("step 2: the loss is not finite on rank 1") == 0);
        CHECK(kept[r]);
    }
}

TEST_CASE("ranks: a gradient that is not finite on one of them stops all, and its number is said") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    const auto errors = on_ranks(3, [&](Ranks& ranks) {
        Cpu dev(1);
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus, ranks);
        initialize(t.model, 1);
        t.update();
        // GELU(0) = 0 hides the last matrix from the loss; on the way back GELU'(0) = 1/2, and two products overflow.
        if (ranks.rank == 2) {
            const BlockTensors<float>& p = t.model.params.h[1];
            const size_t C = run.config.C;
            for (float* x : {p.ln_2.weight, p.ln_2.bias}) std::fill_n(x, C, 0.0f);
            std::fill_n(p.mlp_fc_bias, 4 * C, 0.0f);
            std::fill_n(p.mlp_fc, 4 * C * C, 1e20f);
            std::fill_n(p.mlp_proj, 4 * C * C, 1e38f);
        }
        t.update();
    });
    for (const std::string& error : errors)
        CHECK_MESSAGE(error.starts_with("step 2: the gradient is not finite on rank 2 (loss "), error);
}

TEST_CASE("ranks: parameters that drift apart on one of them stop all before they are saved") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    const size_t C = run.config.C;
    using Change = std::function<void(const BlockTensors<float>&)>;
    for (const Change& change : {Change([](const auto& p) { p.mlp_fc_bias[3] += 1e-3f; }),
                                 Change([C](const auto& p) { std::for_each_n(p.mlp_fc, C, [](float& x) { x = -x; }); }),
                                 Change([](const auto& p) { std::swap(p.mlp_fc[0], p.mlp_fc[1]); })}) {
        const auto errors = on_ranks(3, [&](Ranks& ranks) {
            Cpu dev(1);
            Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus, ranks);
            initialize(t.model, 1);
            t.update();
            check_drift(t);
            if (ranks.rank == 2) change(t.model.params.h[1]);
            check_drift(t);
        });
        for (const std::string& error : errors) {
            CHECK_MESSAGE(error.starts_with(
                              "a checksum of the parameters after update 1: expected the same on all ranks"),
                          error);
            CHECK(error.find("the ranks have drifted apart") != std::string::npos);
        }
    }
}

TEST_CASE("ranks: where one is told to stop, all leave out the same update, and resume to the bit") {
    for (const int size : {1, 3}) {
        CAPTURE(size);
        RankRun run(GateMode::taper, NormKind::layernorm);
        const RunTrace whole = train_on<float>(run, size, false);
        std::vector<std::vector<bool>> stops(static_cast<size_t>(size));
        const auto errors = on_ranks(size, [&](Ranks& ranks) {
            Cpu dev(1);
            Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus, ranks);
            initialize(t.model, 1);
            volatile sig_atomic_t told = 0;
            t.stop = &told;
            for (size_t at : {2u, 4u, 9u}) {  // while calibrating, while tapering, after it
                while (t.step < at) CHECK_FALSE(t.update().stop);
                told = ranks.rank == size - 1;
                const StepReport r = t.update();
                told = 0;
                stops[size_t(ranks.rank)].push_back(r.stop && r.abandoned && r.step == at && t.step == at);
            }
            while (t.step < 12) t.update();
            Checkpoints checkpoints(state_path(run.settings.out));
            if (ranks.first()) save_state(t, {}, checkpoints);
        });
        CHECK(all_well(errors));
        for (const auto& stop : stops) CHECK(stop == std::vector<bool>{true, true, true});
        std::ifstream file(state_path(run.settings.out), std::ios::binary);
        CHECK(std::string(std::istreambuf_iterator<char>(file), {}) == whole.state);
    }
}

TEST_CASE("ranks: one whose corpus cannot be read lets all leave out the update") {
    RankRun run(GateMode::taper, NormKind::layernorm);
    run.config.V = 256;
    std::vector<std::string> troubles(3);
    const auto errors = on_ranks(3, [&](Ranks& ranks) {
        Cpu dev(1);
        Trainer<Cpu, float> t(dev, run.settings, run.config, run.corpus, ranks);
        initialize(t.model, 1);
        t.update();
        if (ranks.rank == 1) t.model.config.V = 100, t.batches = Batches<Cpu>(dev, t.loader(run.corpus, true), 8);
        const StepReport r = t.update();
        CHECK((r.abandoned && r.stop && t.step == 1));
        troubles[size_t(ranks.rank)] = t.trouble;
    });
    CHECK(all_well(errors));
    CHECK((troubles[0].empty() && troubles[2].empty()));
    CHECK(troubles[1].find("but the vocabulary has 100 tokens") != std::string::npos);
}

}  // namespace tapernorm::train
