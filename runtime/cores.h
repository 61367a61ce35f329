// How many threads pay: the cores that this process may use, by its affinity mask and the quota of its control groups. A container
// on a host of 64 cores may have a quota of 2: more threads would wait for one another, stopped, at every barrier.
#pragma once
#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "runtime/error.h"
#include "runtime/printable.h"

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
        if ((path + "/").find("/../") != path.npos) path.clear();
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

// The affinity mask: a bit for every core that the scheduler may run this process on; empty where it does not say.
inline std::string affinity_mask() {
    for (size_t most = 1024; most <= 1 << 16; most *= 2) {  // one that is too small for the machine is refused
        std::string mask(most / 8, '\0');
        if (sched_getaffinity(0, mask.size(), reinterpret_cast<cpu_set_t*>(mask.data())) == 0) return mask;
    }
    return "";
}

// Cores that this process may use, or those of the machine where nothing says so. Where OpenMP binds threads (OMP_PROC_BIND,
// OMP_PLACES) it has bound this one before main, and the mask has one place of all that its threads are given.
inline int allowed_cores() {
    int count = 0;
    const bool all = omp_get_proc_bind() != omp_proc_bind_master;  // else they are where this one is
    for (int place = 0; place < omp_get_num_places(); place++)
        if (all || place == omp_get_place_num()) count += omp_get_place_num_procs(place);
    if (count > 0) return count;
    for (char byte : affinity_mask()) count += std::popcount(static_cast<unsigned char>(byte));
    return count > 0 ? count : std::max(1, int(sysconf(_SC_NPROCESSORS_ONLN)));
}

constexpr int kMostThreads = 1024;

struct Cores {
    int count;
    const char* why;  // "" where it is all cores of the machine
};

// Processes that share the cores: `ranks` of one machine, `same_mask` of them with the same affinity mask.
struct CoreSharing {
    int ranks = 1, same_mask = 1;
};
inline CoreSharing core_sharing;  // set by train_gpt

// Threads for a process, where the user does not say. A quota of 1.5 CPUs gives two. omp_num_threads: OMP_NUM_THREADS, which users of
// other programs set, for nested regions a list ("4,2"); null or empty where it is not.
inline Cores choose_cores(int online, int allowed, double quota, const char* omp_num_threads, CoreSharing among = {}) {
    if (omp_num_threads && *omp_num_threads) {
        long wanted = 0;
        std::istringstream text(omp_num_threads);
        bool good = bool(text >> wanted) && wanted >= 1 && wanted <= kMostThreads;
        for (char comma; good && text >> comma;) {
            int nested = 0;
            good = comma == ',' && text >> nested && nested >= 1;
        }
        if (!good)
            fail("OMP_NUM_THREADS: expected a number of threads from 1 to %d, found %s; change or unset it",
                 kMostThreads, printable(omp_num_threads).c_str());
        return {int(wanted), "OMP_NUM_THREADS"};
    }
    const double shared = quota > 0 && quota < online ? std::ceil(quota) : online;
    const int share = std::max(1, int(shared) / among.ranks), own = std::max(1, allowed / among.same_mask);
    if (own < share) return {own, among.same_mask > 1 ? "its part of the cores" : "the cores that it may use"};
    return {share, shared < online ? "the control group's CPU quota" : among.ranks > 1 ? "its part of the cores" : ""};
}

inline Cores cores_to_use() {
    static const int online = std::max(1, int(sysconf(_SC_NPROCESSORS_ONLN))), allowed = allowed_cores();
    static const double quota = cgroup_cpus();
    return choose_cores(online, allowed, quota, std::getenv("OMP_NUM_THREADS"), core_sharing);
}

// As many as the user says with --threads, unless 0; never more than OpenMP may have.
inline Cores threads_for(int wanted) {
    const Cores cores = wanted > 0 ? Cores{wanted, ""} : cores_to_use();
    const int most = omp_get_thread_limit();
    return cores.count > most ? Cores{most, "OMP_THREAD_LIMIT"} : cores;
}

}  // namespace tapernorm
