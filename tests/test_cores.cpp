// How many threads a program takes by itself: from trees of files as kernels and container runtimes make them.
#include "runtime/cores.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "tests/run_program.h"
#include "tests/temporary_folder.h"

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
    CHECK(chosen(64, 64, 0., nullptr, 1) == 64);
    CHECK(*choose_cores(64, 64, 0., nullptr).why == 0);
    CHECK(chosen(64, 8, 0., nullptr, 1) == 8);
    CHECK(chosen(64, 64, 2., nullptr, 1) == 2);
    CHECK(chosen(64, 64, 1.5, nullptr, 1) == 2);
    CHECK(chosen(64, 64, 0.2, nullptr, 1) == 1);
    CHECK(chosen(2, 2, 8., nullptr, 1) == 2);
    CHECK(*choose_cores(2, 2, 8., nullptr).why == 0);
    CHECK(chosen(64, 64, 8., nullptr, 4) == 2);
    CHECK(chosen(64, 16, 0., nullptr, 4) == 16);  // each rank bound to cores of its own
    CHECK(chosen(64, 64, 0., nullptr, 100) == 1);
    CHECK(chosen(64, 64, 2., "5", 1) == 5);
    CHECK(chosen(64, 64, 2., "3,2", 2) == 3);  // OpenMP's list for nested regions
    for (const char* wrong : {"", "0", "-1", "many", "99999999999"}) {
        CAPTURE(wrong);
        CHECK(chosen(64, 64, 2., wrong, 1) == 2);
    }
}

TEST_CASE("threads: a program says how many it takes, and why") {
    const int mine = allowed_cores();
    REQUIRE(mine >= 1);
    Workplace w;
    write_file(w / "c.txt", std::string(2000, 'x'));
    w.ok("train_gpt --n-layer 1 --n-head 1 --n-embd 16 -t 16 -b 2 -v 0 -m 1 -i c.txt -x 1 -o m.bin");
    setenv("OMP_NUM_THREADS", "3", 1);
    const std::string three = w.ok("infer m.bin --eval c.txt --threads 0"),
                      given = w.ok("infer m.bin --eval c.txt --threads 2");
    unsetenv("OMP_NUM_THREADS");
    CHECK(three.find("cpu: 3 threads (OMP_NUM_THREADS), ") != three.npos);
    CHECK(given.find("cpu: 2 threads, ") != given.npos);
}

}  // namespace tapernorm
