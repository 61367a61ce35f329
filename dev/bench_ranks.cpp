// The sum of a gradient over CPU ranks, alone: mpirun -np N build/bench_ranks MIB prints the median seconds of one.
// dev/scaling.py predicts from it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "runtime/exit_status.h"
#include "train/ranks/collectives.cuh"

using namespace tapernorm;
using namespace tapernorm::train;

int main(int argc, char** argv) {
    start_program();
    Ranks ranks;
    try {
        ranks.join();
        const size_t mib = argc > 1 ? size_t(std::atoi(argv[1])) : 16;
        const size_t n = (mib << 18) / size_t(ranks.size) * size_t(ranks.size);  // floats, whole slices
        Cpu dev(1);
        Collectives<Cpu> collectives(dev, ranks);
        std::vector<float> data(n, 1.0f);
        std::vector<double> seconds;
        for (int i = 0; i < 9; i++) {
            std::vector<double> together = {0};
            ranks.sum(together, "the next turn");
            const auto start = std::chrono::steady_clock::now();
            if (ranks.size > 1) collectives.all_reduce(data.data(), n), collectives.wait();
            seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
        std::sort(seconds.begin(), seconds.end());
        std::printf("%.6f\n", seconds[seconds.size() / 2]);
        return 0;
    } catch (const std::exception& error) {
        return ranks.fail_all("bench_ranks", error);
    }
}
