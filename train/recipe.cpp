#include "train/recipe.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "io/terminal.h"
#include "model/config.h"
#include "ops/muon.cuh"
#include "runtime/error.h"

namespace tapernorm::train {

namespace {

// GPT-2's context; batches (tokens) and rates as GPT-3 has them (arXiv 2005.14165, table 2.1) for the size that is nearest. d6 is
// below both: its rate is in inverse proportion to the channels, as that of --init (arXiv 2203.03466).
struct ShapeRecipe {
    size_t L, T, batch;
    double lr;
    const char* source;
};
constexpr ShapeRecipe kRecipes[] = {{6, 512, 65536, 1.2e-3,
                                     "an eighth of GPT-3's smallest, for an eighth of the matrices"},
                                    {12, 1024, 524288, 6e-4, "GPT-3 Small's"},
                                    {24, 1024, 524288, 3e-4, "GPT-3 Medium's"},
                                    {36, 1024, 524288, 2.5e-4, "GPT-3 Large's"},
                                    {48, 1024, 1048576, 2e-4, "GPT-3 XL's"}};

constexpr double kTokensPerParameter = 20;  // Chinchilla (arXiv 2203.15556)
constexpr double kMostEpochs = 4;           // repeated data still counts as new (arXiv 2305.16264)
constexpr size_t kFewestUpdates = 1000;     // as long as the corpus is too small for the full batch
constexpr double kWarmupTokens = 375e6;     // GPT-3
constexpr double kMemoryShare = 0.8;        // of what is free, for the tensors; the rest is for what they do not count
constexpr size_t kCpuTokens = 2048, kMostSequences = 64;  // in a micro-batch; more make nothing faster

const ShapeRecipe& recipe_of(size_t L) {
    for (const ShapeRecipe& r : kRecipes)
        if (r.L == L) return r;
    fail("--model: d%zu has no recipe", L);
}

// The largest divisor of `sequences` that is at most `most`.
size_t micro_batch(size_t sequences, double most) {
    size_t B = size_t(std::clamp(most, 1.0, double(sequences)));
    while (sequences % B != 0) B--;
    return B;
}

// About so many tokens in whole sequences of each rank, from 16 on in eights, which have divisors. grain: tokens of one sequence
// of each rank; or of one micro-batch, where its size is given.
size_t whole_batch(double tokens, size_t grain, bool of_sequences) {
    const double sequences = std::max(1.0, std::round(tokens / double(grain)));
    return size_t(of_sequences && sequences >= 16 ? 8 * std::round(sequences / 8) : sequences) * grain;
}

std::string in_words(double count) {
    return count >= 1e9   ? strprintf("%.2fB", count / 1e9)
           : count >= 1e6 ? strprintf("%.1fM", count / 1e6)
                          : strprintf("%.0f", count);
}

}  // namespace

std::vector<RecipeLine> recipe(const Settings& given_settings, const Options& given, const RecipeFacts& f) {
    Settings s = given_settings;
    std::vector<RecipeLine> lines;
    const auto decide = [&](const char* flag, const std::string& value, const std::string& why) {
        if (!given.given(flag)) lines.push_back({flag, value, why});
        return !given.given(flag);
    };
    const ShapeRecipe& r = recipe_of(s.L);
    if (decide("--seq-len", std::to_string(r.T), r.L == 6 ? "half of GPT-2's context" : "GPT-2's context")) s.T = r.T;
    Config c;
    c.V = f.V, c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C, c.mode = GateMode::norm;
    const double parameters = double(parameter_count(c)), epochs = kMostEpochs * double(f.corpus_tokens);

    // The batch: halved while the run would have too few updates, or too many epochs.
    const size_t sequence = s.T * f.ranks, grain = given.given("--batch") ? s.batch * sequence : sequence;
    const size_t wanted = given.given("--steps") ? s.steps : kFewestUpdates;
    const double budget = given.given("--steps") ? epochs : std::min(kTokensPerParameter * parameters, epochs);
    double tokens = double(r.batch);
    while (tokens > double(grain) && tokens * double(wanted) > budget) tokens /= 2;
    const size_t batch = whole_batch(tokens, grain, !given.given("--batch"));
    std::string why = r.source;
    if (tokens * double(wanted) > budget)
        why += strprintf(" (%zu) halved as far as it goes; %s would be more than %g epochs", r.batch,
                         counted(wanted, "update").c_str(), kMostEpochs);
    else if (tokens < double(r.batch))
        why += strprintf(" (%zu) halved until %s are no more than %g epochs", r.batch,
                         counted(wanted, "update").c_str(), kMostEpochs);
    if (double(batch) != tokens)
        why += strprintf("; in whole %s", given.given("--batch") ? "micro-batches" : "sequences");
    // -d 0 is one micro-batch, which is not known yet.
    if (given.given("--total-batch") && s.total_batch == 0)
        fail(
            "--total-batch: expected tokens, found 0 beside --model, which chooses the micro-batch by them; leave it out, or give "
            "a number");
    if (decide("--total-batch", std::to_string(batch), why)) s.total_batch = batch;

    if (!given.given("--batch")) {
        double most = double(f.gpu ? kMostSequences : std::max<size_t>(1, kCpuTokens / s.T));
        why = f.gpu ? "as many as are of use" : "more make nothing faster on a CPU";
        if (f.free_bytes > 0) {
            Settings one = s, two = s;
            one.batch = 1, two.batch = 2;
            const size_t parts = s.zero ? f.ranks : 1;
            const double first = training_bytes(c, one, f.gpu, parts),
                         more = training_bytes(c, two, f.gpu, parts) - first;
            const double fit = 1 + std::max(0.0, std::floor((kMemoryShare * f.free_bytes - first) / more));
            if (fit < most)
                most = fit, why = strprintf("what fits into %.1f GiB of free memory", f.free_bytes / 0x1p30);
        }
        // A -d that no number of such sequences makes is refused afterwards, with those next to it.
        s.batch = s.total_batch % sequence ? 1 : micro_batch(std::max<size_t>(1, s.total_batch / sequence), most);
        decide("--batch", std::to_string(s.batch),
               why + "; an update has " + counted(s.total_batch / (s.batch * sequence), "such micro-batch"));
    }
    if (!given.given("--steps")) {
        s.steps = std::max<size_t>(1, size_t(budget / double(s.total_batch)));
        decide("--steps", std::to_string(s.steps),
               budget < epochs
                   ? strprintf("%g tokens for each of %s parameters", kTokensPerParameter, in_words(parameters).c_str())
                   : strprintf("%g epochs of %s tokens", kMostEpochs, in_words(double(f.corpus_tokens)).c_str()));
    }
    decide("--lr", strprintf("%g", r.lr), r.L == 6 ? "0.46 / channels" : r.source);
    const size_t warmup = size_t(std::min(kWarmupTokens / double(s.total_batch), double(s.steps) / 10));
    if (s.steps >= 1000) decide("--warmup", std::to_string(warmup), "375M tokens, and at most a tenth of the run");
    decide("--lr-final-frac", "0.1", "GPT-3's");
    decide("--beta2", s.total_batch >= 262144 ? "0.95" : "0.99",
           s.total_batch >= 262144 ? "GPT-3's" : "the batch is small");
    return lines;
}

double training_flops(const Config& c, size_t T) {
    const double L = double(c.L), C = double(c.C);
    return 6 * (12 * L * C * C + double(c.V) * C) + 6 * L * double(T + 1) * C;
}

double muon_flops(const Config& c) {
    double flops = 0;
    GptTensors<float> none{};
    visit_tensors(c, none, [&](const TensorSpec& spec, float*&) {
        const size_t parts = block_matrices(spec);
        if (parts == 0) return;
        const double rows = double(spec.shape[0]), columns = double(spec.shape[1] / parts), q = std::min(rows, columns);
        flops += double(parts) * 5 * (4 * q * rows * columns + 2 * q * q * q);
    });
    return flops;
}

double training_bytes(const Config& c, const Settings& s, bool gpu, size_t ranks) {
    const bool half = gpu && s.precision == "bf16";
    const double P = double(parameter_count(c)), number = half ? 2 : 4, N = double(s.batch * s.T), C = double(c.C),
                 L = double(c.L);
    const double optimizer = (half ? 12 : 8) / double(ranks);  // moments, and master weights
    const bool muon = s.optimizer == "muon";                   // has scratch, and no v of matrices
    const double scratch = muon ? double(muon_scratch(c.C, 4 * c.C)) : 0, no_v = muon ? 12 * L * C * C : 0;
    const double block = (s.recompute >= 2   ? 10
                          : s.recompute == 1 ? 12
                                             : 16) *
                         C,
                 shared = (s.recompute >= 2   ? 6
                           : s.recompute == 1 ? 4
                                              : 0) *
                          C;
    const double numbers = N * (L * block + shared + 8 * C), statistics = N * (L * (4 + double(c.NH)) + 2) * 4;
    const size_t most = s.logits_rows ? s.logits_rows : most_logits_rows(c.V, gpu, size_t(number));
    const double logits = s.batch ? double(logits_rows(s.batch * s.T, most)) * double(c.V) * number : 0;
    // Its parameters, one block's activations and logits of its own.
    const double teacher = s.distill > 0 ? (P + N * 18 * C) * number + N * (6 + double(c.NH)) * 4 + logits : 0;
    return P * (2 * number + optimizer) - 4 * no_v + (scratch + numbers) * number + statistics + logits + teacher;
}

double free_memory() {
    double free = INFINITY;
    std::ifstream info("/proc/meminfo");
    std::string line;
    while (std::getline(info, line)) {
        double kib = 0;
        if (std::sscanf(line.c_str(), "MemAvailable: %lf", &kib) == 1) free = kib * 1024;
    }
    double limit = 0, used = 0, cached = 0;
    std::ifstream stat("/sys/fs/cgroup/memory.stat");
    while (std::getline(stat, line))
        if (std::sscanf(line.c_str(), "inactive_file %lf", &cached) == 1) break;
    if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit && std::ifstream("/sys/fs/cgroup/memory.current") >> used) {
        used -= cached;
        free = std::min(free, limit - used);
    }
    double pages = 0;  // ulimit -v
    if (rlimit most; getrlimit(RLIMIT_AS, &most) == 0 && most.rlim_cur != RLIM_INFINITY &&
                     std::ifstream("/proc/self/statm") >> pages) {
        free = std::min(free, double(most.rlim_cur) - pages * double(sysconf(_SC_PAGESIZE)));
    }
    return std::isinf(free) ? 0 : std::max(free, 1.0);
}

}  // namespace tapernorm::train
