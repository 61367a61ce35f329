// How many threads pay: the cores that this process may use, by its affinity mask and the quota of its control groups. A container
// on a host of 64 cores may have a quota of 2: more threads would wait for one another, stopped, at every barrier.
#pragma once
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

namespace tapernorm {

// CPUs' worth of time per second that the control groups of this process leave it, the least of its group and those above
// it; 0: no limit. Version 2 says it in cpu.max ("150000 100000" or "max 100000", microseconds), version 1 in cpu.cfs_quota_us
// (-1: none) and cpu.cfs_period_us. root: where /proc and /sys are, with a slash at its end.
inline double cgroup_cpus(const std::string& root = "/") {
    const std::string sys = root + "sys/fs/cgroup";
    double least = 0;
    const auto limit = [&](double quota, double period) {
        if (quota > 0 && period > 0 && (least == 0 || quota / period < least)) least = quota / period;
    };
    const auto look_in = [&](const std::string& folder) {
        double quota = 0, period = 0;
        if (std::ifstream(folder + "/cpu.max") >> quota >> period) limit(quota, period);
        if (std::ifstream(folder + "/cpu.cfs_quota_us") >> quota &&
            std::ifstream(folder + "/cpu.cfs_period_us") >> period)
            limit(quota, period);
    };
    std::ifstream groups(root + "proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // "0::/a/b" of version 2, "4:cpu,cpuacct:/a/b" of version 1
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == line.npos || second == line.npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        std::string name;
        bool cpu = controllers.empty();
        for (std::istringstream names(controllers); std::getline(names, name, ',');) cpu = cpu || name == "cpu";
        if (!cpu) continue;
        // A container sees its own group as the root, under whatever path it has on the host: then only the root is there.
        std::string path = line.substr(second + 1);
        if (path.find("..") != path.npos) path.clear();
        for (;;) {
            while (!path.empty() && path.back() == '/') path.pop_back();
            if (controllers.empty()) look_in(sys + path), look_in(sys + "/unified" + path);
            if (!controllers.empty()) look_in(sys + "/" + controllers + path), look_in(sys + "/cpu" + path);
            if (path.empty()) break;
            path.resize(std::min(path.rfind('/'), path.size() - 1));
        }
    }
    return least;
}

// Cores that the scheduler may run this process on; those of the machine where it does not say.
inline int allowed_cores() {
    for (int most = 1024; most <= 1 << 16; most *= 2) {  // a mask that is too small for the machine is refused
        cpu_set_t* set = CPU_ALLOC(size_t(most));
        if (!set) break;
        const size_t bytes = CPU_ALLOC_SIZE(size_t(most));
        const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
    }
    return std::max(1, int(sysconf(_SC_NPROCESSORS_ONLN)));
}

struct Cores {
    int count;
    const char* why;  // "" where it is all cores of the machine
};

// Threads for each of `ranks` processes on this machine, where the user does not say. A quota of 1.5 CPUs gives two.
// omp_num_threads: OMP_NUM_THREADS, which users of other programs set; null where it is not.
inline Cores choose_cores(int online, int allowed, double quota, const char* omp_num_threads, int ranks = 1) {
    const long wanted = omp_num_threads ? std::strtol(omp_num_threads, nullptr, 10) : 0;
    if (wanted >= 1 && wanted <= 1024) return {int(wanted), "OMP_NUM_THREADS"};
    const double shared = quota > 0 && quota < online ? std::ceil(quota) : online;
    const int share = std::max(1, int(shared) / ranks);
    if (allowed < share) return {allowed, "the cores that it may use"};
    return {share, shared < online ? "the control group's CPU quota" : ""};
}

inline Cores cores_to_use(int ranks = 1) {
    static const int online = std::max(1, int(sysconf(_SC_NPROCESSORS_ONLN))), allowed = allowed_cores();
    static const double quota = cgroup_cpus();
    return choose_cores(online, allowed, quota, std::getenv("OMP_NUM_THREADS"), ranks);
}

}  // namespace tapernorm
