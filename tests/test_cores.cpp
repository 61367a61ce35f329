// How many threads a program takes by itself: from trees of files as kernels and container runtimes make them.
#include "runtime/cores.h"

#include <doctest/doctest.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/exit_status.h"
#include "tests/environment.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "tests/thread_ranks.h"

namespace tapernorm {

namespace {

using Files = std::vector<std::pair<std::string, std::string>>;

// The quota of a machine that has these files.
double quota_of(const Files& files) {
    const TemporaryFolder root;
    for (const auto& [path, text] : files) {
        const std::filesystem::path file = root.path + "/" + path;
        std::filesystem::create_directories(file.parent_path());
        std::ofstream(file) << text;
    }
    return cgroup_cpus(root.path + "/");
}

const std::string kSys = "sys/fs/cgroup/", kGroups = "proc/self/cgroup";

}  // namespace

TEST_CASE("threads: the CPU quota of control groups, version 2") {
    CHECK(quota_of({}) == 0);
    CHECK(quota_of({{kGroups, "0::/\n"}}) == 0);
    CHECK(quota_of({{kGroups, "0::/\n"}, {kSys + "cpu.max", "max 100000\n"}}) == 0);
    CHECK(quota_of({{kGroups, "0::/\n"}, {kSys + "cpu.max", "150000 100000\n"}}) == 1.5);
    // systemd-run -p CPUQuota=200%; a slice above it has less
    const Files nested = {{kGroups, "0::/user.slice/run-1.scope\n"},
                          {kSys + "user.slice/run-1.scope/cpu.max", "200000 100000\n"}};
    CHECK(quota_of(nested) == 2);
    Files above = nested;
    above.push_back({kSys + "user.slice/cpu.max", "50000 100000\n"});
    CHECK(quota_of(above) == 0.5);
    above.back() = {kSys + "user.slice/cpu.max", "max 100000\n"};
    CHECK(quota_of(above) == 2);
    // a group beside it limits others
    above.back() = {kSys + "user.slice/run-2.scope/cpu.max", "10000 100000\n"};
    CHECK(quota_of(above) == 2);
    // in a container that does not see its path, or sees one outside of its root
    CHECK(quota_of({{kGroups, "0::/docker/0123\n"}, {kSys + "cpu.max", "300000 100000\n"}}) == 3);
    CHECK(quota_of({{kGroups, "0::/../other\n"}, {kSys + "cpu.max", "300000 100000\n"}}) == 3);
}

TEST_CASE("threads: the CPU quota of control groups, version 1 and both") {
    const auto group = [](const std::string& folder, const std::string& quota) {
        return Files{{kGroups, "5:memory:/m\n4:cpuset:/s\n3:cpu,cpuacct:/docker/0123\n"},
                     {kSys + folder + "/cpu.cfs_quota_us", quota},
                     {kSys + folder + "/cpu.cfs_period_us", "50000\n"}};
    };
    CHECK(quota_of(group("cpu,cpuacct/docker/0123", "100000\n")) == 2);
    CHECK(quota_of(group("cpu/docker/0123", "100000\n")) == 2);
    CHECK(quota_of(group("cpu,cpuacct", "100000\n")) == 2);  // docker's root is its own group
    CHECK(quota_of(group("cpu,cpuacct", "-1\n")) == 0);
    CHECK(quota_of(group("memory/m", "100000\n")) == 0);
    CHECK(quota_of({{kGroups, "0::/run..2\n"}, {kSys + "run..2/cpu.max", "50000 100000\n"}}) == 0.5);  // not "one up"
    Files both = group("cpu,cpuacct", "100000\n");
    both[0].second += "0::/a\n";
    both.push_back({kSys + "unified/a/cpu.max", "50000 100000\n"});
    CHECK(quota_of(both) == 0.5);
}

TEST_CASE("threads: files that say nothing sensible are no limit") {
    for (const char* text : {"", "x y\n", "-5 100000\n", "100000 0\n", "100000\n", "nan nan\n"}) {
        CAPTURE(text);
        CHECK(quota_of({{kGroups, "0::/\n"}, {kSys + "cpu.max", text}}) == 0);
    }
    for (const char* text : {"", ":", "::", "0:\n", "0::\n", "0::a\n", "no line\n"}) {
        CAPTURE(text);
        CHECK(quota_of({{kGroups, text}}) == 0);
    }
}

TEST_CASE("threads: the least of cores, mask and quota, shared by the ranks; OMP_NUM_THREADS first") {
    const auto chosen = [](auto... a) { return choose_cores(a...).count; };
    CHECK(chosen(64, 64, 0., nullptr) == 64);
    CHECK(*choose_cores(64, 64, 0., nullptr).why == 0);
    CHECK(chosen(64, 8, 0., nullptr) == 8);
    CHECK(chosen(64, 64, 2., nullptr) == 2);
    CHECK(chosen(64, 64, 1.5, nullptr) == 2);
    CHECK(chosen(64, 64, 0.2, nullptr) == 1);
    CHECK(chosen(2, 2, 8., nullptr) == 2);
    CHECK(*choose_cores(2, 2, 8., nullptr).why == 0);
    CHECK(chosen(64, 64, 8., nullptr, CoreSharing{4, 1}) == 2);
    CHECK(chosen(64, 16, 0., nullptr, CoreSharing{4, 1}) == 16);  // each rank bound to cores of its own
    CHECK(chosen(64, 4, 0., nullptr, CoreSharing{4, 4}) == 1);    // all in one container of 4 cores
    CHECK(chosen(64, 8, 0., nullptr, CoreSharing{4, 2}) == 4);
    CHECK(chosen(64, 64, 0., nullptr, CoreSharing{4, 4}) == 16);
    CHECK(std::string(choose_cores(64, 64, 0., nullptr, {4, 4}).why) == "its part of the cores");
    CHECK(chosen(64, 64, 0., nullptr, CoreSharing{100, 100}) == 1);
    CHECK(chosen(64, 64, 2., "5") == 5);
    CHECK(chosen(64, 64, 2., "3,2", CoreSharing{2, 1}) == 3);  // OpenMP's list for nested regions
    CHECK(chosen(64, 64, 2., " 4 , 2 ") == 4);
    CHECK(chosen(64, 64, 2., "") == 2);
    for (const char* wrong : {" ", "0", "-1", "many", "1e3", "2.5", "4,x", "4 2", "1025", "99999999999"}) {
        CAPTURE(wrong);
        CHECK_THROWS_AS(choose_cores(64, 64, 2., wrong), Error);
    }
}

TEST_CASE("threads: a program says how many it takes, and why") {
    const int mine = allowed_cores();
    REQUIRE(mine >= 1);
    Workplace w;
    write_file(w / "c.txt", std::string(2000, 'x'));
    w.ok("train_gpt --n-layer 1 --n-head 1 --n-embd 16 -t 16 -b 2 -v 0 -m 1 -i c.txt -x 1 -o m.bin");
    using Values = std::map<std::string, std::string>;
    const auto with = [&](const char* variable, const char* value, const std::string& flags = "--threads 0") {
        const Environment environment(Values{{variable, value}});
        const std::string said = w.ok("infer m.bin --eval c.txt " + flags);
        const size_t begin = said.find("cpu: ");
        return said.substr(std::min(begin, said.size()), said.find(", ", begin) - begin);
    };
    const std::string all = with("TAPERNORM_ISA", "");
    CHECK(with("OMP_NUM_THREADS", "3") == "cpu: 3 threads (OMP_NUM_THREADS)");
    CHECK(with("OMP_NUM_THREADS", "3", "--threads 2") == "cpu: 2 threads");
    CHECK(with("OMP_NUM_THREADS", "1025", "--threads 2") == "cpu: 2 threads");  // not looked at
    // What OpenMP's runtime would do to the number of threads behind the program's back.
    CHECK(with("OMP_THREAD_LIMIT", "2", "--threads 3") == "cpu: 2 threads (OMP_THREAD_LIMIT)");
    CHECK(with("OMP_THREAD_LIMIT", "1") == "cpu: 1 thread (OMP_THREAD_LIMIT)");
    CHECK(with("OMP_PROC_BIND", "true") == all);
    CHECK(with("OMP_PROC_BIND", "master").starts_with("cpu: 1 thread"));
    const Environment environment(Values{{"OMP_NUM_THREADS", "1025"}});
    w.refused("infer m.bin --eval c.txt --threads 0",
              {"OMP_NUM_THREADS: expected a number of threads from 1 to 1024, found 1025; change or unset it"});
}

TEST_CASE("threads: ranks know how many of them have the same cores") {
    const std::string mine = affinity_mask();
    std::atomic<int> wrong = 0;
    const auto errors = train::on_ranks(3, [&](train::Ranks& ranks) {
        ranks.local_size = 3;
        if (ranks.rank == 2) {  // a thread has a mask of its own
            cpu_set_t one;
            CPU_ZERO(&one);
            for (size_t core = 0; core < 8 * mine.size() && CPU_COUNT(&one) == 0; core++)
                if (mine[core / 8] >> core % 8 & 1) CPU_SET(core, &one);
            sched_setaffinity(0, sizeof one, &one);
        }
        const bool other = ranks.rank == 2 && affinity_mask() != mine;
        std::vector<double> others = {other ? 1. : 0.};
        ranks.sum(others, "a test");
        const CoreSharing shared = ranks.shared_cores();
        wrong += shared.ranks != 3 || shared.same_mask != (other ? 1 : others[0] > 0 ? 2 : 3);
    });
    CHECK(train::all_well(errors));
    CHECK(wrong == 0);
    CHECK(train::Ranks().shared_cores().same_mask == 1);
}

TEST_CASE("threads: where they cannot be made, an error says so") {
    CHECK(in_child([] {
        if (!limit_address_space(size_t(100) << 20)) return false;  // the stacks of 1000 threads need more
        std::string error;
        try {
            require_threads(1000);
        } catch (const std::exception& e) {
            error = error_text(e);
        }
        require_threads(2);  // those that were made have ended
        return error.starts_with("the system gives no thread or memory: ") &&
               error.find("use fewer --threads") != error.npos;
    }));
}

}  // namespace tapernorm
