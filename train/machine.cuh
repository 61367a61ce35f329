// The machine that a run is on: the device it chooses, what a recipe has to know of it, and what --dry-run measures.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "io/terminal.h"
#include "ops/attention/choice.cuh"
#include "runtime/device.h"
#include "train/recipe.h"
#include "train/report.cuh"
#include "train/start.h"
#include "train/trainer.h"
#ifdef TN_CUDA
#include "runtime/cuda.cuh"
#endif

namespace tapernorm::train {

// Chooses the device, the same kind on every rank, and prints it; in_words: what it prints.
inline bool choose_gpu(const Settings& s, const Cpu& cpu, Ranks& ranks, std::string& in_words) {
    const DeviceChoice choice = choose_device("--device", s.device, ranks.local_rank);
    const char* const value = std::getenv("ATTENTION");
    const std::string attention = value ? value : "";
    ranks.agree({{"--device", choice.cuda ? "cuda" : "cpu"},
                 {"instruction set (TAPERNORM_ISA)", choice.cuda ? "" : isa_name(cpu.isa)},
                 {"ATTENTION in the environment", choice.cuda && !attention.empty() ? attention : "not set"}});
    if (s.gpus > 1 && !choice.cuda)
        ranks.fail_together(
            strprintf("--gpus: %s; ranks on the CPU: mpirun --oversubscribe -np %zu", choice.why.c_str(), s.gpus));
    if (!choice.cuda && ranks.star && ranks.size > 2)
        ranks.fail_together(
            strprintf("%d ranks on CPUs need MPI, because %s connects each with rank 0 alone; start them with mpirun, "
                      "or only 2 of them",
                      ranks.size, ranks.launcher.c_str()));
    if (choice.cuda) wanted_attention();
    in_words = choice.cuda ? strprintf("cuda: %s, %s", choice.why.c_str(), s.precision.c_str()) : describe(cpu, choice);
    std::printf("device    %s\n", in_words.c_str());
    if (s.tune && !choice.cuda) std::printf("note: --tune has no effect on a CPU\n");
    if (!attention.empty() && !(choice.cuda && s.precision == "bf16"))
        std::printf("note: ATTENTION in the environment has no effect but in bf16 on a GPU\n");
    return choice.cuda;
}

// The least that any rank has.
inline Machine this_machine(const Settings& s, Ranks& ranks) {
    Machine machine;
    machine.gpu = choose_device("--device", s.device, ranks.local_rank).cuda;
    if (!machine.gpu) machine.free_bytes = free_memory() / ranks.local_size;
#ifdef TN_CUDA
    if (size_t free = 0, total = 0; machine.gpu) {
        CUDA_CHECK(cudaSetDevice(ranks.local_rank));
        CUDA_CHECK(cudaMemGetInfo(&free, &total));
        machine.free_bytes = double(free);
    }
#endif
    std::vector<double> all(size_t(ranks.size));
    all[size_t(ranks.rank)] = machine.free_bytes;
    ranks.sum(all, "the memory of all ranks");
    machine.free_bytes = *std::min_element(all.begin(), all.end());
    return machine;
}

// What a GPU can do at most: dense products of bf16 numbers, summed up in fp32, in FLOP/s, as its data sheet has it; 0 where it is
// not known. device: as choose_gpu prints it.
inline double peak_flops(const std::string& device) {
    // The longer names first: "H100 PCIe" is another one than "H100 80GB HBM3".
    constexpr std::pair<const char*, double> kPeaks[] = {{"H100 PCIe", 756e12},  {"H100 NVL", 835e12}, {"H100", 989e12},
                                                         {"H200 NVL", 835e12},   {"H200", 989e12},     {"H20 ", 148e12},
                                                         {"A100", 312e12},       {"A30 ", 165e12},     {"L40S", 362e12},
                                                         {"RTX 4090 (", 165e12}, {"RTX 3090 (", 71e12}};
    if (!device.ends_with(", bf16")) return 0;
    for (const auto& [name, peak] : kPeaks)
        if (device.find(name) != device.npos) return peak;
    return 0;
}

// All of a run's speed that does not change.
template <class Device, class Real>
Speed speed_constants(const Trainer<Device, Real>& t, const Run& run) {
    const double muon = t.settings.optimizer == "muon" ? muon_flops(t.model.config) : 0;
    return {.flops_per_token = training_flops(t.model.config, t.settings.T) + muon / double(t.settings.total_batch),
            .peak = peak_flops(run.device) * t.model.ranks.size};
}

inline void print_recipe(const Settings& s, const std::vector<RecipeLine>& lines) {
    if (lines.empty()) return;
    std::printf("recipe    %s, for what is not said (dev/guides/recipes.md):\n", s.depth.c_str());
    for (const RecipeLine& line : lines)
        std::printf("          %-16s %-8s %s\n", line.flag.c_str(), line.value.c_str(), line.why.c_str());
    std::printf("\n");
}

// Before anything is allocated: whether there is room for what a trainer will hold. Where memory is promised to more than it has,
// the system ends the program without a word later on. A dry run says what it needs, and fails where it cannot go on.
inline void check_memory(const Settings& s, const Config& config, const Machine& machine, const Ranks& ranks) {
    const size_t parts = s.zero ? size_t(ranks.size) : 1;
    Settings without = s;
    without.batch = 0;
    const double all = training_bytes(config, s, machine.gpu, parts) / 0x1p30, free = machine.free_bytes / 0x1p30,
                 fixed = training_bytes(config, without, machine.gpu, parts) / 0x1p30;
    const std::string needs =
        strprintf("%.2f GiB%s: %.2f for parameters, gradients and the optimizer, %.2f for activations", all,
                  ranks.size > 1 ? " for each rank" : "", fixed, all - fixed);
    if (s.dry_run && ranks.first()) std::printf("needs     %s\n", needs.c_str()), std::fflush(stdout);
    if (free == 0 || all < free) return;
    const std::string problem =
        strprintf("needs %s; %.2f are free; choose a smaller %s", needs.c_str(), free,
                  fixed > free ? "shape" : "-b, -t or --logits-rows, or recompute more (-r 1, -r 2)");
    if (s.dry_run) fail("this run %s", problem.c_str());
    if (ranks.first() && all < 2 * free)  // more is refused by the system at once, in a line of its own
        std::fprintf(stderr, "warning: this run %s, or the system may end it\n", problem.c_str());
}

// Trains a few micro-batches: one that also brings memory and files in, one that is measured with its update of the parameters, and
// two with one update, where a run's updates have several.
template <class Device, class Real>
void print_estimate(Trainer<Device, Real>& t, const Run& run) {
    const size_t micro_batches = t.settings.micro_steps(t.model.ranks), updates = t.settings.steps - t.step;
    const size_t tokens = t.settings.batch * t.settings.T * size_t(t.model.ranks.size);
    Speed speed = speed_constants(t, run);
    t.settings.total_batch = tokens;
    t.update();
    const double seconds = t.update().seconds;
    double one_more = 0;  // micro-batch
    if (micro_batches > 1) t.settings.total_batch = 2 * tokens, one_more = std::max(t.update().seconds - seconds, 0.0);
    const double all_seconds = (seconds + one_more * double(micro_batches - 1)) * double(updates),
                 all = double(updates * micro_batches * tokens);
    speed.tokens_per_second = all / all_seconds;
    const double flops = speed.flops_per_token;
    std::printf("estimate  %s of %s (%zu tokens: %.3g s, measured with its update of the parameters): %s\n",
                counted(updates, "update").c_str(), counted(micro_batches, "micro-batch").c_str(), tokens, seconds,
                duration(all_seconds).c_str());
    std::printf("          %.4g FLOPs per token x %.4g tokens = %.3g FLOPs, at %s; validation is not counted\n", flops,
                all, flops * all, in_words(speed).c_str());
    std::printf("          at $1 for an hour of this machine: $%.2f\n", all_seconds / 3600);
    std::printf("dry run: nothing was written\n");
}

}  // namespace tapernorm::train
