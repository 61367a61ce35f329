#include "train/recipe.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "io/terminal.h"
#include "model/config.h"
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

// The largest power of two that divides `sequences` and is at most `most`.
size_t micro_batch(size_t sequences, double most) {
    size_t B = 1;
    while (sequences % (2 * B) == 0 && double(2 * B) <= most) B *= 2;
    return B;
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
    const size_t grain = s.T * f.ranks;
    const size_t wanted = given.given("--steps") ? s.steps : kFewestUpdates;
    const double budget = given.given("--steps") ? epochs : std::min(kTokensPerParameter * parameters, epochs);
    size_t batch = (r.batch + grain - 1) / grain * grain;
    while (batch / 2 >= grain && batch / 2 % grain == 0 && double(batch) * double(wanted) > budget) batch /= 2;
    if (given.given("--batch")) batch = (batch + s.batch * grain - 1) / (s.batch * grain) * (s.batch * grain);
    const std::string shrunk = batch < r.batch ? strprintf(" (%zu) halved until %zu updates are no more than %g epochs",
                                                           r.batch, wanted, kMostEpochs)
                                               : "";
    if (decide("--total-batch", std::to_string(batch), r.source + shrunk)) s.total_batch = batch;

    if (!given.given("--batch")) {
        double most = double(f.gpu ? kMostSequences : std::max<size_t>(1, kCpuTokens / s.T));
        std::string why = f.gpu ? "as many as are of use" : "more make nothing faster on a CPU";
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
        s.batch = s.total_batch % grain ? 1 : micro_batch(std::max<size_t>(1, s.total_batch / grain), most);
        decide("--batch", std::to_string(s.batch),
               why + strprintf("; an update has %zu such micro-batches", s.total_batch / (s.batch * grain)));
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

double training_bytes(const Config& c, const Settings& s, bool gpu, size_t ranks) {
    const bool half = gpu && s.precision == "bf16";
    const double P = double(parameter_count(c)), number = half ? 2 : 4, N = double(s.batch * s.T), C = double(c.C),
                 L = double(c.L);
    const double optimizer = (half ? 12 : 8) / double(ranks);  // moments, and master weights
    const double block = (s.recompute >= 2   ? 10
                          : s.recompute == 1 ? 12
                                             : 16) *
                         C,
                 shared = (s.recompute >= 2   ? 6
                           : s.recompute == 1 ? 4
                                              : 0) *
                          C;
    const double numbers = N * (L * block + shared + 8 * C), statistics = N * (L * (4 + double(c.NH)) + 2) * 4;
    const double logits = std::min(N * double(c.V), gpu ? 0x1p29 : 0x1p26) * number;
    return P * (2 * number + optimizer) + numbers * number + statistics + logits;
}

double free_memory() {
    double free = 0;
    std::ifstream info("/proc/meminfo");
    std::string line;
    while (std::getline(info, line)) {
        double kib = 0;
        if (std::sscanf(line.c_str(), "MemAvailable: %lf", &kib) == 1) free = kib * 1024;
    }
    double limit = 0, used = 0;
    if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit && std::ifstream("/sys/fs/cgroup/memory.current") >> used)
        free = free > 0 ? std::min(free, std::max(0.0, limit - used)) : limit - used;
    return free;
}

}  // namespace tapernorm::train
