// Trains a GPT-2 whose norms disappear: hand-derived forward and backward passes, TaperNorm sites, AdamW.
//
// Read top to bottom:
//   1. Settings             every flag, in one table
//   2. The model            activations, forward pass, classifier, backward pass
//   3. Schedules            learning rate, gate
//   4. Trainer              one update: micro-batches, calibration, clipping, AdamW
//   5. Evaluation, samples
//   6. Checkpoints          model file, state file, resuming
//   7. The run              progress, loop, main
//
// The model is written once for every device: ops are free functions overloaded on the device (ops/*.cuh).
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/stories.h"
#include "inference/generate.cuh"
#include "inference/hellaswag.cuh"
#include "io/atomic_file.h"
#include "io/options.h"
#include "io/terminal.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "model/config.h"
#include "model/export.h"
#include "model/model_file.h"
#include "ops/adamw.cuh"
#include "ops/attention.cuh"
#include "ops/cross_entropy.cuh"
#include "ops/embedding.cuh"
#include "ops/gelu.cuh"
#include "ops/matmul.cuh"
#include "runtime/arena.h"
#include "runtime/device.h"
#include "runtime/random.h"
#include "tapernorm.cuh"
#include "train/batches.cuh"
#include "train/checkpoints.h"
#include "train/outliers.h"
#include "train/profile.h"
#include "train/ranks/data_parallel.cuh"
#include "train/ranks/ranks.h"
#include "train/run_log.h"
#include "train/tensorboard.h"
#include "train/watch.cuh"

namespace tapernorm::train {

// ---------------------------------------------------------------------------------------------------------------------
// 1. Settings

struct Settings {
    std::string train, val, out = "model.bin", init;
    bool resume = false;
    size_t checkpoint_every = 0, keep = 2, seed = 1, threads = 0;
    std::string device = "auto", precision = "bf16", tokenizer;

    std::string depth;
    size_t L = 4, NH = 4, C = 128, T = 256;
    std::string norm = "layernorm";

    size_t batch = 4, total_batch = 0, steps = 2700, recompute = 0;
    bool shuffle = true;

    double lr = 3e-3, lr_final_frac = 0.03, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.99, clip = 1;
    Length warmup = fraction_of_run(0.02);
    std::string lr_schedule = "cosine";
    double skip_loss_z = 0, skip_grad = 100;

    std::string gate = "taper";
    Length gate_warmup = fraction_of_run(0.05), gate_end = fraction_of_run(0.4);  // dev/results/experiments.md
    double ema_decay = 0.99, scale_loss = 0.1;
    bool freeze_gains = false, carry_moments = false;

    size_t val_every = 300, val_batches = 20, sample_every = 0;
    std::string tensorboard;
    size_t log_norms = 0;
    std::string hellaswag;

    size_t gpus = 1, zero = 0;
    double rank_timeout = 600;
};

static Options make_options(Settings& s) {
    Options o("train_gpt",
              "Trains a GPT-2 without normalization layers (TaperNorm), on a CPU or a GPU.\n"
              "./train_gpt export MODEL DIR writes a model for Hugging Face's transformers (see its --help).");
    o.section("Files");
    // clang-format off
    o.add({.short_name = "-i", .long_name = "--train", .to = &s.train, .metavar = "FILE",
           .default_text = "built-in stories",
           .help = "text file, or token shards in llm.c's format (a pattern such as 'data/train_*.bin')"});
    o.add({.short_name = "-j", .long_name = "--val", .to = &s.val, .metavar = "FILE",
           .default_text = "last 10% of -i", .help = "validation text or shards"});
    o.add({.long_name = "--tokenizer", .to = &s.tokenizer, .metavar = "PATH", .default_text = "--init's, else bytes",
           .help = "bytes, or a folder with GPT-2's vocab.json and merges.txt; it is stored in the model"});
    o.add({.short_name = "-o", .long_name = "--out", .to = &s.out, .metavar = "FILE",
           .help = "the model; the state to resume from, the log and the settings for --config are written beside it"});
    o.add({.long_name = "--init", .to = &s.init, .metavar = "PATH", .default_text = "random",
           .help = "start from the weights of this model: a file of this program, the folder of a Hugging Face GPT-2, or a "
                   "checkpoint of llm.c"});
    o.add({.short_name = "-y", .long_name = "--resume", .to = &s.resume,
           .help = "resume the run saved next to -o; flags given here (or by --config) override the saved ones"});
    o.add({.short_name = "-n", .long_name = "--checkpoint-every", .to = &s.checkpoint_every, .metavar = "N",
           .default_text = "end only", .help = "updates between checkpoints"});
    o.add({.long_name = "--keep", .to = &s.keep, .metavar = "K", .range = {.low = 1, .high = Checkpoints::kMost},
           .help = "checkpoints to keep: the state and K - 1 before it; -y falls back to one where the newest is damaged"});
    o.section("Model");
    o.add({.short_name = "-e", .long_name = "--model", .to = &s.depth, .metavar = "dN", .default_text = "none",
           .help = "a GPT-2 shape by depth: d12 is 124M parameters (12 heads, 768 channels), d24 350M, d36 774M, d48 1.6B"});
    o.add({.long_name = "--n-layer", .to = &s.L, .metavar = "L", .range = {.low = 1, .high = 1000}, .help = "blocks"});
    o.add({.long_name = "--n-head", .to = &s.NH, .metavar = "NH", .range = {.low = 1, .high = 1024},
           .help = "attention heads"});
    o.add({.long_name = "--n-embd", .to = &s.C, .metavar = "C", .range = {.low = 1, .high = 1 << 16},
           .help = "channels, a multiple of --n-head"});
    o.add({.short_name = "-t", .long_name = "--seq-len", .to = &s.T, .metavar = "T",
           .range = {.low = 1, .high = 1 << 20}, .help = "context length in tokens"});
    o.add({.long_name = "--norm", .to = &s.norm, .choices = {"layernorm", "rmsnorm"}, .help = "kind of norm"});
    o.section("Batch");
    o.add({.short_name = "-b", .long_name = "--batch", .to = &s.batch, .metavar = "B",
           .range = {.low = 1, .high = 1 << 20}, .help = "sequences in a micro-batch"});
    o.add({.short_name = "-d", .long_name = "--total-batch", .to = &s.total_batch, .metavar = "N",
           .default_text = "B x T x ranks",
           .help = "tokens in an update over all ranks, a multiple of B x T x ranks: gradients accumulate"});
    o.add({.short_name = "-x", .long_name = "--steps", .to = &s.steps, .metavar = "N", .range = {.low = 1},
           .help = "updates"});
    o.add({.long_name = "--no-shuffle", .to = &s.shuffle, .help = "read the corpus in sequence"});
    o.add({.short_name = "-r", .long_name = "--recompute", .to = &s.recompute, .metavar = "N",
           .range = {.low = 0, .high = 2}, .help = "save memory: 1 computes GELU again in the backward pass, 2 the norms too"});
    o.section("Optimizer");
    o.add({.short_name = "-l", .long_name = "--lr", .to = &s.lr, .range = {.low = 0},
           .default_text = "0.003; 0.0001 with --init", .help = "peak learning rate"});
    o.add({.short_name = "-u", .long_name = "--warmup", .to = &s.warmup, .help = "learning-rate warm-up"});
    o.add({.short_name = "-q", .long_name = "--lr-final-frac", .to = &s.lr_final_frac, .range = {.low = 0, .high = 1},
           .help = "last learning rate, as a fraction of -l"});
    o.add({.short_name = "-k", .long_name = "--lr-schedule", .to = &s.lr_schedule,
           .choices = {"cosine", "linear", "constant", "wsd"},
           .help = "wsd: constant, then linear over the last 20% of the run"});
    o.add({.short_name = "-c", .long_name = "--weight-decay", .to = &s.weight_decay, .range = {.low = 0, .high = 10},
           .help = "of matrices and embeddings"});
    o.add({.long_name = "--beta1", .to = &s.beta1, .range = {.low = 0, .high = 1, .high_open = true},
           .help = "AdamW's first decay rate"});
    o.add({.long_name = "--beta2", .to = &s.beta2, .range = {.low = 0, .high = 1, .high_open = true},
           .help = "AdamW's second decay rate"});
    o.add({.long_name = "--clip", .to = &s.clip, .range = {.low = 0}, .help = "largest gradient norm; 0: no clipping"});
    o.add({.long_name = "--skip-loss-z", .to = &s.skip_loss_z, .metavar = "Z", .range = {.low = 0},
           .help = "skip an update if its loss is more than Z standard deviations above the mean of the last 128 (0: off)",
           .retired = "-sl"});
    o.add({.long_name = "--skip-grad", .to = &s.skip_grad, .metavar = "X", .range = {.low = 0},
           .help = "skip an update if its gradient norm exceeds X times the median of the last 32, or is NaN or Inf (0: off)",
           .retired = "-sg"});
    o.section("TaperNorm");
    o.add({.short_name = "-g", .long_name = "--gate-mode", .to = &s.gate, .choices = {"norm", "taper", "taper-all"},
           .help = "norm: the baseline; taper: every norm but the last goes; taper-all: all go", .alias = "--gate"});
    o.add({.long_name = "--gate-warmup", .to = &s.gate_warmup, .default_text = "5%; 20% with --scale-loss 0",
           .help = "updates with g = 1, which calibrate"});
    o.add({.long_name = "--gate-end", .to = &s.gate_end, .default_text = "40%; 80% with --scale-loss 0",
           .help = "first update with g = 0"});
    o.add({.long_name = "--ema-decay", .to = &s.ema_decay, .range = {.low = 0, .high = 1, .high_open = true},
           .help = "of the calibration's averages"});
    o.add({.long_name = "--scale-loss", .to = &s.scale_loss, .metavar = "LAMBDA", .range = {.low = 0},
           .default_text = "0.1; 0 with -g norm", .help = "weight of the loss that holds the stream at its calibrated scale"});
    o.add({.long_name = "--freeze-gains", .to = &s.freeze_gains,
           .help = "after --gate-warmup, leave gamma and beta of the blocks' norms as they are; helps -g norm only"});
    o.add({.long_name = "--carry-moments", .to = &s.carry_moments,
           .help = "at the taper start, give the scaling branches AdamW's moments of the normalizing ones"});
    o.section("Run");
    o.add({.short_name = "-v", .long_name = "--val-every", .to = &s.val_every, .metavar = "N",
           .help = "updates between validations; 0: only at the end"});
    o.add({.short_name = "-m", .long_name = "--val-batches", .to = &s.val_batches, .metavar = "N",
           .range = {.low = 1}, .help = "batches of B x T tokens in each of them; ten times as many at the end"});
    o.add({.long_name = "--hellaswag", .to = &s.hellaswag, .metavar = "FILE", .default_text = "none",
           .help = "score this file with every validation: llm.c's .bin or the original JSON lines"});
    o.add({.short_name = "-s", .long_name = "--sample-every", .to = &s.sample_every, .metavar = "N",
           .help = "updates between samples of generated text; 0: none"});
    o.add({.long_name = "--tensorboard", .to = &s.tensorboard, .metavar = "DIR", .default_text = "none",
           .help = "write the log's numbers there for TensorBoard, too"});
    o.add({.long_name = "--log-norms", .to = &s.log_norms, .metavar = "N",
           .help = "updates between logs of every tensor's gradient norm and every norm site's s(h); 0: none"});
    o.add({.long_name = "--seed", .to = &s.seed, .help = "of initial weights, data order and samples"});
    o.add({.long_name = "--device", .to = &s.device, .choices = {"auto", "cpu", "cuda"}, .help = "where to run"});
    o.add({.long_name = "--precision", .to = &s.precision, .choices = {"bf16", "fp32"},
           .help = "of activations and gradients on a GPU; sums and the optimizer use fp32, and so does the CPU"});
    o.add({.long_name = "--threads", .to = &s.threads, .range = {.high = 1024}, .default_text = "all cores",
           .help = "CPU threads of a rank"});
    o.section("Many ranks");
    o.add({.long_name = "--gpus", .to = &s.gpus, .metavar = "N", .range = {.low = 1, .high = 1024},
           .help = "start one rank on each of N GPUs of this machine; elsewhere: mpirun, torchrun or srun"});
    o.add({.short_name = "-z", .long_name = "--zero", .to = &s.zero, .metavar = "Z", .range = {.low = 0, .high = 1},
           .help = "1: each rank keeps its part of the optimizer's state only (ZeRO-1)"});
    o.add({.long_name = "--rank-timeout", .to = &s.rank_timeout, .metavar = "S", .range = {.low = 0, .low_open = true},
           .help = "seconds that ranks wait for one that hangs before all stop"});
    // clang-format on
    return o;
}

// What a run that starts from a file (--init, --resume) takes over from it. Flags given now may not say otherwise.
static void adopt_shape(Settings& s, const Options& now, const std::string& path, const Config& c) {
    auto adopt = [&](const char* flag, size_t& setting, size_t in_file) {
        if ((now.given(flag) || now.given("--model")) && setting != in_file)
            fail("%s: expected %zu, which %s has, found %zu; leave the flag out", flag, in_file, path.c_str(), setting);
        setting = in_file;
    };
    adopt("--n-layer", s.L, c.L), adopt("--n-head", s.NH, c.NH), adopt("--n-embd", s.C, c.C);
    if (now.given("--norm") && s.norm != norm_name(c.norm))
        fail("--norm: expected %s, which %s has, found %s; leave the flag out", norm_name(c.norm), path.c_str(),
             s.norm.c_str());
    if (s.resume && now.given("--gate-mode") && s.gate != gate_mode_name(c.mode))
        fail("--gate-mode: expected %s, as the run in %s has it, found %s; leave the flag out", gate_mode_name(c.mode),
             path.c_str(), s.gate.c_str());
    if (now.given("--seq-len") && s.T > c.T)
        fail("--seq-len: expected at most the %zu positions of %s, found %zu", c.T, path.c_str(), s.T);
    s.norm = norm_name(c.norm);
    s.T = std::min(s.T, c.T);
}

// What flags imply for one another; errors name the flags.
static void complete_settings(Settings& s, const Ranks& ranks = single_rank()) {
    if (s.C % s.NH) fail("--n-embd: expected a multiple of --n-head (%zu), found %zu", s.NH, s.C);
    // Below this, every size in bytes fits 64 bits; no machine comes near.
    if (double(s.batch) * double(s.T) * double(std::max(s.L, s.NH)) * double(s.C) > 0x1p50)
        fail(
            "--batch: %zu sequences of %zu tokens with %zu layers of %zu channels are more than any memory holds; expected "
            "smaller -b, -t, --n-layer or --n-embd",
            s.batch, s.T, s.L, s.C);
    const size_t micro = s.batch * s.T * size_t(ranks.size);
    if (s.total_batch == 0) s.total_batch = micro;
    if (s.total_batch % micro)
        fail("--total-batch: expected a multiple of -b x -t x ranks = %zu x %zu x %d = %zu tokens, found %zu", s.batch,
             s.T, ranks.size, micro, s.total_batch);
    // Parts of a run of a few updates may round to the same update.
    if (s.gate_end.is_fraction && s.gate_warmup.is_fraction && s.gate_end.value > s.gate_warmup.value)
        s.gate_end = updates(std::max(s.gate_end.resolve(s.steps), s.gate_warmup.resolve(s.steps) + 1));
    if (s.gate_end.resolve(s.steps) <= s.gate_warmup.resolve(s.steps) && s.gate != "norm")
        fail("--gate-end: expected more updates than --gate-warmup (%zu), found %zu", s.gate_warmup.resolve(s.steps),
             s.gate_end.resolve(s.steps));
    if ((s.gate != "norm" || s.scale_loss > 0) && s.gate_warmup.resolve(s.steps) == 0)
        fail("--gate-warmup: expected at least 1 update to calibrate from, found 0");
}

// ---------------------------------------------------------------------------------------------------------------------
// 2. The model

// What one update sums up on the device, over its micro-batches.
struct Sums {
    double loss;  // sum of the tokens' cross-entropies
    StreamScale stream;
    SiteSums site[1];  // of every tapering site: the struct is allocated with room for all
};

// What the forward pass keeps for the backward pass. N = B T rows.
template <class Real>
struct BlockActivations {
    Real* ln_1;                         // [N, C]
    Acc<Real>*ln_1_mean, *ln_1_rscale;  // [N]
    Real* qkv;                          // [N, 3C]
    Real* att;                          // [N, C]
    Acc<Real>* lse;                     // [B, NH, T]
    Real* mid;                          // [N, C], the residual stream after the attention
    Real* ln_2;                         // [N, C]
    Acc<Real>*ln_2_mean, *ln_2_rscale;  // [N]
    Real *fc, *gelu;                    // [N, 4C]
    Real* out;                          // [N, C], the residual stream after the MLP
};

template <class Real>
struct Activations {
    const int *tokens, *targets;  // [N], the batch in use
    int* batch;                   // [2, N], room for a batch that comes from the host
    Real* embedded;               // [N, C]
    std::vector<BlockActivations<Real>> h;
    Real* ln_f;                         // [N, C]
    Acc<Real>*ln_f_mean, *ln_f_rscale;  // [N]
    Real* logits;                       // [chunk, Vp], a part of the rows at a time
    Acc<Real>* losses;                  // [chunk]
    Real *d_stream, *d_narrow;          // [N, C]
    Real* d_wide;                       // [N, 4C]
    double* sums;                       // a Sums
};

// The gate's part in one pass.
struct Gate {
    double g = 1;
    bool calibrate = false;  // take the calibration sums (only at g = 1)
};

// The scale loss's part: lambda = 0 while it is not active.
struct ScaleLoss {
    double lambda = 0, target = 0;
};

template <class Device, class Real>
struct Gpt {
    Device& dev;
    Config config;
    size_t B, T;
    int recompute;
    Ranks& ranks;
    std::vector<float> taper_scale;  // c of every tapering site

    GptTensors<Real> params{}, grads{};
    Shards shards;                   // of which parameters this rank keeps the optimizer's state
    std::vector<Acc<Real>*> master;  // of these pieces: parameters before rounding, where Real is too coarse to update
    Activations<Real> act{};
    size_t Vp;     // rows of wte in memory: V, rounded up as the device likes it; those behind V stay 0
    size_t chunk;  // rows of logits held at a time
    Arena<Device> param_memory, master_memory, grad_memory, act_memory;
    static constexpr bool kMaster = !std::is_same_v<Real, Acc<Real>>;

    // train = false leaves out what only the backward pass needs. zero: see Shards.
    Gpt(Device& dev_, const Config& config_, size_t B_, size_t T_, int recompute_, bool train,
        Ranks& ranks_ = single_rank(), bool zero = false)
        : dev(dev_), config(config_), B(B_), T(T_), recompute(recompute_), ranks(ranks_),
          taper_scale(config.tapering_sites(), 1.0f),
          Vp((config.V + Device::kVocabularyGrain - 1) / Device::kVocabularyGrain * Device::kVocabularyGrain),
          chunk(logits_rows(B * T, Vp)), param_memory(dev, "parameters"), master_memory(dev, "master weights"),
          grad_memory(dev, "gradients"), act_memory(dev, "activations") {
        plan(param_memory, params);
        if (train) plan(grad_memory, grads);
        shards = make_shards(config, params, param_memory.data(), param_memory.bytes(), ranks, zero);
        if (train && kMaster) add_pieces(master_memory, shards, master), master_memory.allocate(true);
        plan_activations(train);
        act_memory.allocate(false);
    }

    // Regions (see Shards) begin where every rank's slices are aligned.
    void plan(Arena<Device>& memory, GptTensors<Real>& tensors) {
        size_t region = 0;
        visit_tensors(config, tensors, [&](const TensorSpec& t, Real*& slot) {
            if (region_of(config, t.name) != std::exchange(region, region_of(config, t.name)))
                memory.pad(size_t(ranks.size));
            memory.add(slot, &slot == &tensors.wte ? Vp * config.C : t.count());
        });
        memory.pad(size_t(ranks.size));
        memory.allocate(true);
    }

    void plan_activations(bool train) {
        const size_t N = B * T, C = config.C;
        Arena<Device>& m = act_memory;
        m.add(act.batch, 2 * N), m.add(act.embedded, N * C);
        act.h.resize(config.L);
        for (auto& a : act.h) {
            m.add(a.ln_1_mean, N), m.add(a.ln_1_rscale, N), m.add(a.ln_2_mean, N), m.add(a.ln_2_rscale, N);
            m.add(a.qkv, N * 3 * C), m.add(a.att, N * C), m.add(a.lse, B * config.NH * T);
            m.add(a.mid, N * C), m.add(a.fc, N * 4 * C), m.add(a.out, N * C);
            // Recomputed activations share the first block's memory: they live within one block's pass.
            const bool own_norms = recompute < 2 || &a == &act.h[0], own_gelu = recompute < 1 || &a == &act.h[0];
            if (own_norms) m.add(a.ln_1, N * C), m.add(a.ln_2, N * C);
            if (own_gelu) m.add(a.gelu, N * 4 * C);
        }
        m.add(act.ln_f, N * C), m.add(act.ln_f_mean, N), m.add(act.ln_f_rscale, N);
        m.add(act.logits, chunk * Vp), m.add(act.losses, chunk);
        if (train) m.add(act.d_stream, N * C), m.add(act.d_narrow, N * C), m.add(act.d_wide, N * 4 * C);
        m.add(act.sums, sums_bytes() / sizeof(double));
    }

    // Of N rows of logits, how many to hold at a time: equal parts that fit.
    static size_t logits_rows(size_t N, size_t Vp) {
        const size_t most = std::max<size_t>(Device::kLogitsHeld / Vp, 64), parts = (N + most - 1) / most;
        return (N + parts - 1) / parts;
    }

    size_t sums_bytes() const { return sizeof(Sums) + config.tapering_sites() * sizeof(SiteSums); }
    Sums* sums() const { return reinterpret_cast<Sums*>(act.sums); }

    Real* ln_1(size_t l) const { return recompute < 2 ? act.h[l].ln_1 : act.h[0].ln_1; }
    Real* ln_2(size_t l) const { return recompute < 2 ? act.h[l].ln_2 : act.h[0].ln_2; }
    Real* gelu(size_t l) const { return recompute < 1 ? act.h[l].gelu : act.h[0].gelu; }
    const Real* stream_into(size_t l) const { return l ? act.h[l - 1].out : act.embedded; }

    Site<Real> site(double g, size_t l, size_t which) const {
        return site_at(config, params, taper_scale, g, l, which);
    }
    SiteSums* calibration(const Gate& gate, size_t l, size_t which) const {
        const bool tapers = l == config.L ? config.final_tapers() : config.internal_tapers();
        return gate.calibrate && tapers ? &sums()->site[2 * l + which] : nullptr;
    }

    // Sets every tensor for which fill(spec, values), values a vector of its size, returns true.
    template <class Fill>
    void set_parameters(Fill&& fill) {
        const auto list = tensor_list(config, params);
        for (size_t i = 0; i < list.size(); i++) {
            std::vector<Acc<Real>> values(list[i].spec.count());
            if (!fill(list[i].spec, values)) continue;
            set_pieces(dev, shards, master, i, values.data());
            const std::vector<Real> rounded(values.begin(), values.end());
            device_copy_in(dev, list[i].data, rounded.data(), rounded.size() * sizeof(Real));
        }
    }

    // The values of tensor number i of the table as the optimizer keeps them, in rank 0's memory; all ranks call it.
    std::vector<Acc<Real>> exact(size_t i) {
        if (kMaster) return gather_tensor(dev, ranks, shards, master, i);
        const Tensor<Real> t = tensor_list(config, params)[i];
        std::vector<Real> values(t.spec.count());
        device_copy_out(dev, values.data(), t.data, values.size() * sizeof(Real));
        return {values.begin(), values.end()};
    }

    void use_batch(const Batch& batch) { act.tokens = batch.tokens, act.targets = batch.targets; }
    void load_batch(const int* tokens, const int* targets) {  // [B, T], host memory
        const size_t N = B * T;
        device_copy_in(dev, act.batch, tokens, N * sizeof(int));
        device_copy_in(dev, act.batch + N, targets, N * sizeof(int));
        use_batch({act.batch, act.batch + N});
    }

    // Tokens to the final site's output, act.ln_f.
    void forward(const Gate& gate, double scale_target) {
        const size_t N = B * T, C = config.C, NH = config.NH, L = config.L;
        embedding_forward(dev, act.embedded, act.tokens, params.wte, params.wpe, B, T, C);
        for (size_t l = 0; l < L; l++) {
            const ProfileRange range("forward", l);
            BlockActivations<Real>& a = act.h[l];
            const BlockTensors<Real>& p = params.h[l];
            const Real* x = stream_into(l);
            site_forward(dev, ln_1(l), a.ln_1_mean, a.ln_1_rscale, calibration(gate, l, 0), x, site(gate.g, l, 0), N,
                         C);
            matmul_forward<Real>(dev, a.qkv, ln_1(l), p.attn_qkv, p.attn_qkv_bias, nullptr, N, C, 3 * C);
            attention_forward(dev, a.att, a.lse, a.qkv, B, T, C, NH);
            matmul_forward<Real>(dev, a.mid, a.att, p.attn_proj, p.attn_proj_bias, x, N, C, C);
            site_forward(dev, ln_2(l), a.ln_2_mean, a.ln_2_rscale, calibration(gate, l, 1), a.mid, site(gate.g, l, 1),
                         N, C);
            matmul_gelu_forward<Real>(dev, gelu(l), a.fc, ln_2(l), p.mlp_fc, p.mlp_fc_bias, N, C, 4 * C);
            matmul_forward<Real>(dev, a.out, gelu(l), p.mlp_proj, p.mlp_proj_bias, a.mid, N, 4 * C, C);
        }
        stream_scale(dev, &sums()->stream, stream_into(L), config.norm, config.eps, scale_target, N, C);
        site_forward(dev, act.ln_f, act.ln_f_mean, act.ln_f_rscale, calibration(gate, L, 0), stream_into(L),
                     site(gate.g, L, 0), N, C);
    }

    // Head, softmax and cross-entropy, `chunk` rows of logits at a time. The loss is added to sums()->loss. With
    // `gradient`, also dL/d(act.ln_f) into act.d_narrow and the head's dwte (= or +=, as `accumulate` says), for
    // L = weight * sum of the losses.
    void classify(bool gradient, double weight, bool accumulate) {
        const size_t C = config.C;
        for (size_t row = 0; row < B * T; row += chunk) {
            const size_t rows = std::min(chunk, B * T - row);
            head_forward<Real>(dev, act.logits, act.ln_f + row * C, params.wte, nullptr, rows, C, Vp);
            cross_entropy(dev, &sums()->loss, act.losses, act.logits, act.targets + row, weight, rows, config.V,
                          gradient, Vp);
            if (gradient)
                head_backward(dev, act.d_narrow + row * C, grads.wte, act.logits, act.ln_f + row * C, params.wte, rows,
                              C, Vp, accumulate || row > 0);
        }
    }

    // The forward pass reversed, from act.d_narrow to the parameters' gradients. Matrices: = or +=, as `accumulate`
    // says; vectors and wpe: += (begin_gradients zeroes them). tokens: of the whole update, for the scale loss's mean.
    // ready(region): the gradients of this region and of those behind it are complete (see Shards).
    void backward(
        double g, const ScaleLoss& scale_loss, double tokens, bool accumulate,
        const std::function<void(size_t)>& ready = [](size_t) {}) {
        const size_t N = B * T, C = config.C, NH = config.NH, L = config.L;
        Real *d_stream = act.d_stream, *d_narrow = act.d_narrow, *d_wide = act.d_wide;
        site_backward(dev, d_stream, site_grads(grads.ln_f), d_narrow, stream_into(L), act.ln_f_mean, act.ln_f_rscale,
                      site(g, L, 0), N, C, false);
        if (scale_loss.lambda != 0)
            scale_loss_backward(dev, d_stream, stream_into(L), config.norm, config.eps, scale_loss.target,
                                scale_loss.lambda, tokens, N, C);
        ready(L + 1);
        for (size_t l = L; l-- > 0;) {
            const ProfileRange range("backward", l);
            BlockActivations<Real>& a = act.h[l];
            const BlockTensors<Real>&p = params.h[l], &d = grads.h[l];
            if (recompute >= 1) gelu_forward(dev, gelu(l), a.fc, N * 4 * C);
            matmul_backward(dev, d_wide, d.mlp_proj, d.mlp_proj_bias, d_stream, gelu(l), p.mlp_proj, a.fc, N, 4 * C, C,
                            accumulate);
            if (recompute >= 2) recompute_site(ln_2(l), a.mid, site(g, l, 1));
            matmul_backward<Real>(dev, d_narrow, d.mlp_fc, d.mlp_fc_bias, d_wide, ln_2(l), p.mlp_fc, nullptr, N, C,
                                  4 * C, accumulate);
            site_backward(dev, d_stream, site_grads(d.ln_2), d_narrow, a.mid, a.ln_2_mean, a.ln_2_rscale, site(g, l, 1),
                          N, C, true);
            matmul_backward<Real>(dev, d_narrow, d.attn_proj, d.attn_proj_bias, d_stream, a.att, p.attn_proj, nullptr,
                                  N, C, C, accumulate);
            attention_backward(dev, d_wide, d_narrow, a.att, a.lse, a.qkv, B, T, C, NH);
            if (recompute >= 2) recompute_site(ln_1(l), stream_into(l), site(g, l, 0));
            matmul_backward<Real>(dev, d_narrow, d.attn_qkv, d.attn_qkv_bias, d_wide, ln_1(l), p.attn_qkv, nullptr, N,
                                  C, 3 * C, accumulate);
            site_backward(dev, d_stream, site_grads(d.ln_1), d_narrow, stream_into(l), a.ln_1_mean, a.ln_1_rscale,
                          site(g, l, 0), N, C, true);
            ready(1 + l);
        }
        embedding_backward(dev, grads.wte, grads.wpe, d_stream, act.tokens, B, T, C);
        ready(0);
    }

    void recompute_site(Real* y, const Real* x, const Site<Real>& s) {
        site_forward<Real>(dev, y, nullptr, nullptr, nullptr, x, s, B * T, config.C);
    }
    static SiteGrads<Real> site_grads(const SiteTensors<Real>& s) {
        return {s.weight, s.bias, s.taper_weight, s.taper_bias};
    }

    // Before the first backward pass of an update.
    void begin_gradients() {
        visit_tensors(config, grads, [&](const TensorSpec& t, Real*& grad) {
            if (t.shape.size() == 1) device_zero(dev, grad, t.count() * sizeof(Real));
        });
        device_zero(dev, grads.wpe, config.T * config.C * sizeof(Real));
    }

    void begin_sums() { device_zero(dev, act.sums, sums_bytes()); }
    std::vector<double> read_sums() {  // a Sums
        std::vector<double> host(sums_bytes() / sizeof(double));
        device_copy_out(dev, host.data(), act.sums, sums_bytes());
        return host;
    }
};

// GPT-2's initial values. Each number depends on the seed, the tensor's name and its place alone: models that share a
// tensor start with the same values in it.
template <class Device, class Real>
void initialize(Gpt<Device, Real>& model, uint64_t seed) {
    using Scalar = Acc<Real>;
    model.set_parameters([&](const TensorSpec& t, std::vector<Scalar>& values) {
        uint64_t stream = 0;
        for (char c : t.name) stream = mix64(stream ^ uint64_t(static_cast<unsigned char>(c)));
        std::fill(values.begin(), values.end(), Scalar(t.init.constant));
        if (t.init.std > 0) {
            auto fill = [&](size_t i, size_t end, int) {
                for (; i < end; i++) values[i] = Scalar(t.init.std * random_normal(seed, stream, i));
            };
            parallel_ranges(Cpu(), values.size(), 4096, fill);
        }
        return true;
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// 3. Schedules

// The learning rate of update k, counted from 1, of `steps`.
static double lr_schedule(const Settings& s, size_t k) {
    const size_t warmup = s.warmup.resolve(s.steps);
    if (k <= warmup) return s.lr * double(k) / double(warmup);
    const double last = s.lr * s.lr_final_frac;
    const double done = s.steps > warmup ? double(k - warmup) / double(s.steps - warmup) : 1;  // in (0, 1]
    if (s.lr_schedule == "constant") return s.lr;
    if (s.lr_schedule == "linear") return s.lr + (last - s.lr) * done;
    if (s.lr_schedule == "wsd") {
        const double decay = double(s.steps) * 0.2, left = double(s.steps - k);
        return left >= decay ? s.lr : last + (s.lr - last) * left / decay;
    }
    return last + (s.lr - last) * 0.5 * (1 + std::cos(M_PI * done));
}

// ---------------------------------------------------------------------------------------------------------------------
// 4. Trainer

// A factor by which a stream may leave the scale that it was calibrated at before the trainer warns.
constexpr double kDrift = 4;

// What one update reports.
struct StepReport {
    size_t step = 0;
    double loss = 0;        // cross-entropy, mean over the update's tokens
    double scale_loss = 0;  // lambda mean (s - s_tgt)^2
    double g = 1, lr = 0, grad_norm = 0;
    double stream_scale = 0;  // mean s(h)
    bool skipped = false;     // it stood out (--skip-loss-z, --skip-grad): the parameters were left alone
    bool stop = false;        // a rank was told to stop
    double seconds = 0;
};

template <class Device, class Real>
struct Trainer {
    Settings settings;
    Gpt<Device, Real> model;
    Batches<Device> batches;
    Arena<Device> moment_memory;
    std::vector<Acc<Real>*> m, v;  // AdamW's moments, of model.shards' pieces
    DataParallel<Device, Real> parallel;
    Calibration calibration;
    double scale_target = 0;  // s_tgt, once calibrated
    LossWindow losses;
    GradientWindow gradients;
    size_t step = 0;  // updates done
    size_t gate_warmup, gate_end;

    Trainer(Device& dev, const Settings& s, const Config& config, const TokenSource& corpus,
            Ranks& ranks = single_rank())
        : settings(s), model(dev, config, s.batch, s.T, int(s.recompute), true, ranks, s.zero == 1),
          batches(dev, loader(corpus, s.shuffle), s.batch * s.T), moment_memory(dev, "optimizer moments"),
          parallel(dev, ranks, model.shards, model.param_memory.data(), model.grad_memory.data()),
          gate_warmup(s.gate_warmup.resolve(s.steps)), gate_end(s.gate_end.resolve(s.steps)) {
        add_pieces(moment_memory, model.shards, m), add_pieces(moment_memory, model.shards, v);
        moment_memory.allocate(true);
        calibration.decay = s.ema_decay;
        calibration.sites.resize(config.tapering_sites());
    }

    // This rank's batches: rank r's micro-batch i is number i x ranks + r of the update.
    Loader loader(const TokenSource& corpus, bool shuffle) const {
        // clang-format off
        return Loader(corpus, settings.batch, settings.T,
                      {.shuffle = shuffle, .seed = settings.seed, .vocab_size = model.config.V,
                       .rank = size_t(model.ranks.rank), .world_size = size_t(model.ranks.size)});
        // clang-format on
    }

    double gate(size_t k) const {
        return model.config.mode == GateMode::norm ? 1 : gate_schedule(k, gate_warmup, gate_end);
    }
    ScaleLoss scale_loss(size_t k) const { return {k > gate_warmup ? settings.scale_loss : 0, scale_target}; }

    // This rank's part of update k: gradients and sums over its micro-batches. ready: see Gpt::backward, of the last of them.
    void accumulate(size_t k, const std::function<void(size_t)>& ready) {
        const size_t micro_steps = settings.total_batch / (settings.batch * settings.T * size_t(model.ranks.size));
        const double tokens = double(settings.total_batch), g = gate(k);
        const ScaleLoss anchor = scale_loss(k);
        model.begin_sums();
        model.begin_gradients();
        for (size_t micro = 0; micro < micro_steps; micro++) {
            model.use_batch(batches.next());
            model.forward({g, k <= gate_warmup}, anchor.target);
            model.classify(true, 1 / tokens, micro > 0);
            model.backward(g, anchor, tokens, micro > 0, [&](size_t region) {
                if (micro + 1 == micro_steps) ready(region);
            });
            batches.prefetch();
        }
    }

    // One update: every rank adds the gradients of its micro-batches, the ranks add theirs up, and each updates the
    // parameters that it keeps the optimizer's state of. A loss or gradient that is not finite throws, on all ranks, before
    // any parameter has changed. stop: not 0 where this rank was told to stop; reported where any was.
    StepReport update(const volatile sig_atomic_t* stop = nullptr) {
        const auto start = std::chrono::steady_clock::now();
        const size_t k = step + 1;
        const double tokens = double(settings.total_batch);
        const uint64_t first_batch = batches.position();
        accumulate(k, [&](size_t region) { parallel.gradients_ready(region); });
        parallel.finish_gradients();
        std::vector<double> memory = model.read_sums();
        memory.push_back(parallel.gradient_squares(model.grad_memory.bytes() / sizeof(Real)));
        memory.push_back(stop && *stop);
        const int bad_rank = model.ranks.sum(memory, strprintf("the end of update %zu", k).c_str());
        const Sums& sums = *reinterpret_cast<const Sums*>(memory.data());
        // clang-format off
        StepReport r{.step = k, .loss = sums.loss / tokens, .scale_loss = scale_loss(k).lambda * sums.stream.squares / tokens,
                     .g = gate(k), .lr = lr_schedule(settings, k), .stream_scale = sums.stream.sum / tokens};
        // clang-format on
        r.grad_norm = std::sqrt(memory.end()[-2]), r.stop = memory.back() > 0;
        const bool finite = std::isfinite(r.loss + r.scale_loss) && std::isfinite(r.grad_norm);
        const double over_median = gradients.over_median(finite ? r.grad_norm : INFINITY);
        r.skipped = (finite && settings.skip_loss_z > 0 && losses.z_score(r.loss) > settings.skip_loss_z) ||
                    (settings.skip_grad > 0 && over_median > settings.skip_grad);
        if (!finite && !r.skipped) report_divergence(r, bad_rank, first_batch);
        if (finite) losses.add(r.loss);
        gradients.add(finite ? r.grad_norm : INFINITY);
        if (!r.skipped) adamw(k, r.lr, r.grad_norm);
        if (k <= gate_warmup && !r.skipped)
            calibration.observe({sums.site, sums.site + model.config.tapering_sites()}, r.stream_scale, tokens);
        if (k == gate_warmup) start_taper();
        step = k;
        r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return r;
    }

    // bad_rank: the first whose loss is not finite. Whose gradient it was is not seen in the sum: they are computed again.
    [[noreturn]] void report_divergence(const StepReport& r, int bad_rank, uint64_t first_batch) {
        const bool loss = !std::isfinite(r.loss + r.scale_loss);
        if (!loss && model.ranks.size > 1) {
            batches.seek(first_batch);
            accumulate(r.step, [](size_t) {});
            std::vector<double> squares = {sum_of_squares(model.dev, static_cast<const Real*>(model.grad_memory.data()),
                                                          model.grad_memory.bytes() / sizeof(Real))};
            bad_rank = model.ranks.sum(squares, "the search for a gradient that is not finite");
        }
        const std::string where = model.ranks.size > 1 && bad_rank >= 0 ? strprintf(" on rank %d", bad_rank) : "";
        model.ranks.fail_together(strprintf(
            "step %zu: %s is not finite%s (loss %g, gradient norm %g, s(h) %.4g, g %.3g): the run diverged; %s; nothing was "
            "written since the last checkpoint; try a smaller -l%s",
            r.step, loss ? "the loss" : "the gradient", where.c_str(), r.loss + r.scale_loss, r.grad_norm,
            r.stream_scale, r.g, which_moved_first(site_scales(), kDrift).c_str(),
            model.config.mode == GateMode::norm ? "" : ", a longer --gate-warmup or a larger --scale-loss"));
    }

    // s(h) at every norm site, of the last micro-batch. Until the next forward pass.
    std::vector<SiteScale> site_scales() {
        std::vector<const Real*> streams;
        for (size_t l = 0; l < model.config.L; l++)
            streams.insert(streams.end(), {model.stream_into(l), model.act.h[l].mid});
        streams.push_back(model.stream_into(model.config.L));
        std::vector<double> averages;
        if (calibration.updates)
            for (const auto& site : calibration.sites) averages.push_back(site.scale / calibration.bias_correction());
        return measure_site_scales(model.dev, model.config, streams, &model.sums()->stream, averages,
                                   model.B * model.T);
    }

    // Every tensor's gradient norm, before clipping, in the order of the table. Until the next update.
    std::vector<std::pair<std::string, double>> gradient_norms() {
        const auto list = tensor_list(model.config, model.grads);
        std::vector<double> squares(list.size());
        for (const ShardPiece& p : model.shards.pieces())
            squares[p.tensor] +=
                sum_of_squares(model.dev, static_cast<const Real*>(list[p.tensor].data) + p.begin, p.count);
        if (model.shards.sharded()) model.ranks.sum(squares, "the norms of gradients");
        std::vector<std::pair<std::string, double>> norms;
        for (size_t i = 0; i < list.size(); i++) norms.push_back({list[i].spec.name, std::sqrt(squares[i])});
        return norms;
    }

    void adamw(size_t k, double lr, double grad_norm) {
        using Scalar = Acc<Real>;
        const double clip = settings.clip, b1 = settings.beta1, b2 = settings.beta2;
        const double scale = clip > 0 ? std::min(1.0, clip / (grad_norm + 1e-6)) : 1;
        const double correction1 = 1 - std::pow(b1, double(k)), correction2 = 1 - std::pow(b2, double(k));
        // clang-format off
        const AdamwArgs<Scalar> args{Scalar(lr), Scalar(b1), Scalar(b2), Scalar(1e-8), 0,
                                     Scalar(correction1), Scalar(correction2), Scalar(scale)};
        // clang-format on
        const auto w = tensor_list(model.config, model.params), grad = tensor_list(model.config, model.grads);
        std::vector<AdamwTensor<Real>> tensors;
        for (size_t i = 0; i < m.size(); i++) {
            const auto [t, begin, count] = model.shards.pieces()[i];
            if (settings.freeze_gains && k > gate_warmup && is_block_gain(w[t].spec.name)) continue;
            tensors.push_back({w[t].data + begin, model.kMaster ? model.master[i] : nullptr, m[i], v[i],
                               grad[t].data + begin, count, Scalar(w[t].spec.decay ? settings.weight_decay : 0)});
        }
        adamw_update(model.dev, tensors, args);
        parallel.gather_parameters();
    }

    // End of update gate_warmup: c and s_tgt freeze, and each scaling branch starts from its normalizing branch.
    void start_taper() {
        gradients = {};  // the scale loss begins, and with it a new level
        scale_target = calibration.target_scale();
        for (size_t i = 0; i < model.taper_scale.size(); i++) model.taper_scale[i] = float(calibration.taper_scale(i));
        const auto list = tensor_list(model.config, model.params);
        std::map<std::string, size_t> numbers;
        for (const auto& t : list) numbers.emplace(t.spec.name, numbers.size());
        // The number of the tensor that a scaling branch's own begins from.
        auto origin = [&](const std::string& name) -> std::optional<size_t> {
            const std::string taper = "taper_";
            const size_t at = name.find(taper);
            if (at == std::string::npos) return {};
            return numbers.at(name.substr(0, at) + name.substr(at + taper.size()));
        };
        auto from_rank_0 = [&](std::vector<Acc<Real>> values) {
            model.ranks.broadcast(values.data(), values.size() * sizeof(values[0]), "the start of the taper");
            return values;
        };
        model.set_parameters([&](const TensorSpec& t, std::vector<Acc<Real>>& values) {
            const auto from = origin(t.name);
            if (from) values = from_rank_0(model.exact(*from));
            return from.has_value();
        });
        if (!settings.carry_moments) return;
        // From zero, v lags behind these branches' gradients, which grow with 1 - g: the first steps would be longer.
        for (size_t i = 0; i < list.size(); i++)
            if (const auto from = origin(list[i].spec.name))
                for (const auto& moments : {m, v})
                    set_pieces(model.dev, model.shards, moments, i,
                               from_rank_0(gather_tensor(model.dev, model.ranks, model.shards, moments, *from)).data());
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// 5. Evaluation, samples

// Mean cross-entropy of up to `batches` batches from the start of the corpus, at the gate of the last update. Rows that
// do not fill a batch are left out.
template <class Device, class Real>
double evaluate(Trainer<Device, Real>& t, const TokenSource& corpus, size_t batches) {
    const Settings& s = t.settings;
    Loader loader = t.loader(corpus, false);
    batches = std::clamp<size_t>(loader.rows_per_epoch() / s.batch, 1, batches);
    t.model.begin_sums();
    std::vector<int> tokens(s.batch * s.T), targets(s.batch * s.T);
    for (size_t i = size_t(t.model.ranks.rank); i < batches; i += size_t(t.model.ranks.size)) {
        loader.next(tokens.data(), targets.data());
        t.model.load_batch(tokens.data(), targets.data());
        t.model.forward({t.gate(std::max<size_t>(t.step, 1)), false}, 0);
        t.model.classify(false, 0, false);
    }
    std::vector<double> loss = {reinterpret_cast<const Sums*>(t.model.read_sums().data())->loss};
    t.model.ranks.sum(loss, "the end of a validation");
    return loss[0] / double(batches * s.batch * s.T);
}

template <class Device, class Real>
HellaSwag score_choices(Trainer<Device, Real>& t, const std::vector<Choice>& choices) {
    Gpt<Device, Real>& model = t.model;
    Decoder<Device, Real> decoder(model.dev, model.config, model.params, model.taper_scale,
                                  t.gate(std::max<size_t>(t.step, 1)));
    return evaluate_hellaswag(decoder, choices, model.config.V);
}

template <class Device, class Real>
std::string sample_text(Trainer<Device, Real>& t, const Tokenizer& tokenizer, const std::string& prompt,
                        size_t tokens) {
    Gpt<Device, Real>& model = t.model;
    Decoder<Device, Real> decoder(model.dev, model.config, model.params, model.taper_scale,
                                  t.gate(std::max<size_t>(t.step, 1)));
    const std::vector<uint16_t> start = tokenizer.encode(prompt);
    const std::vector<int> ids(start.begin(),
                               start.begin() + ptrdiff_t(std::min(start.size(), (t.settings.T + 1) / 2)));
    std::vector<Acc<Real>> logits(model.config.V);
    decoder.feed(ids.data(), ids.size(), Logits::last, logits.data());
    std::string text = tokenizer.decode({start.data(), ids.size()});
    Generator<Device, Real> generator(decoder);
    generator.generate(logits, std::min(logits.size(), tokenizer.vocab_size()),
                       std::min(tokens, t.settings.T - ids.size() + 1),
                       {.temperature = 0.7, .top_k = 40, .seed = t.settings.seed + t.step}, 0,
                       [&](size_t, const int* token) { text += tokenizer.token(size_t(std::max(*token, 0))); });
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// 6. Checkpoints

// Everything a run needs besides the trainer.
struct Run {
    std::vector<std::string> arguments;  // the flags, for the state file
    TokenSource train, val;
    std::unique_ptr<SafetensorsFile> state;        // to resume from
    std::map<std::string, std::string> tokenizer;  // as the model file stores it
    std::optional<Tokenizer> decode;               // where there is a vocabulary to decode samples with
    std::string prompt;                            // of samples
    std::unique_ptr<ModelFile> init = {};          // to start from
    Checkpoints checkpoints = Checkpoints("");     // the states, as they are written
    std::vector<Choice> hellaswag = {};            // to score with every validation
    std::string settings = {};                     // all of them, for the file beside the model
};

// "model.bin" -> "model.state.bin"
static std::string beside(const std::string& out, const std::string& ending) {
    const size_t slash = out.find_last_of('/'), dot = out.find_last_of('.');
    const bool extension = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1) && dot > 0;
    return (extension ? out.substr(0, dot) : out) + ending;
}
static std::string state_path(const Settings& s) { return beside(s.out, ".state.bin"); }
static std::string log_path(const Settings& s) { return beside(s.out, ".log.jsonl"); }
static std::string settings_path(const Settings& s) { return beside(s.out, ".toml"); }

// Tensors on their way to a state file, in rank 0's memory; on the CPU, what is whole there is not copied. All ranks that
// keep a part of the state call these.
template <class Device, class Real>
struct HostTensors {
    using Scalar = Acc<Real>;
    Gpt<Device, Real>& model;
    std::deque<std::vector<Scalar>> copies = {};
    std::vector<TensorOut> out = {};

    void add(const std::string& name, const TensorSpec& spec, const Scalar* in_place, std::vector<Scalar> copy) {
        if (!model.ranks.first()) return;
        const Scalar* data = in_place ? in_place : copies.emplace_back(std::move(copy)).data();
        out.push_back({name, sizeof(Scalar) == 8 ? Dtype::F64 : Dtype::F32, spec.shape, data});
    }
    void add_parameters() {
        const auto list = tensor_list(model.config, model.params);
        for (size_t i = 0; i < list.size(); i++) {
            if constexpr (std::is_same_v<Device, Cpu> && !Gpt<Device, Real>::kMaster)
                add(list[i].spec.name, list[i].spec, list[i].data, {});
            else
                add(list[i].spec.name, list[i].spec, nullptr, model.exact(i));
        }
    }
    void add_state(const std::string& prefix, const std::vector<Scalar*>& pieces) {
        const auto list = tensor_list(model.config, model.params);
        for (size_t i = 0; i < list.size(); i++) {
            if (std::is_same_v<Device, Cpu> && !model.shards.sharded())
                add(prefix + list[i].spec.name, list[i].spec, pieces[i], {});
            else
                add(prefix + list[i].spec.name, list[i].spec, nullptr,
                    gather_tensor(model.dev, model.ranks, model.shards, pieces, i));
        }
    }
};

// The state file holds all that the next update depends on, the parameters included, so that one file is one whole
// checkpoint whatever happens to the others.
template <class Device, class Real>
void save_state(Trainer<Device, Real>& t, const std::vector<std::string>& arguments, Checkpoints& checkpoints,
                const std::map<std::string, std::string>& tokenizer = {}) {
    HostTensors<Device, Real> tensors{t.model};
    tensors.add_parameters(), tensors.add_state("m.", t.m), tensors.add_state("v.", t.v);
    if (!t.model.ranks.first()) return;
    const Calibration& c = t.calibration;
    std::vector<double> averages;
    for (const Calibration::Ema& site : c.sites) averages.insert(averages.end(), {site.num, site.den, site.scale});
    const std::vector<double> stream = {c.stream_scale, double(c.updates), t.scale_target};
    const std::vector<double> losses(t.losses.losses.begin(), t.losses.losses.end());
    const std::vector<double> gradients(t.gradients.norms.begin(), t.gradients.norms.end());
    auto add = [&](const char* name, Dtype dtype, size_t count, const void* data) {
        if (count) tensors.out.push_back({name, dtype, {count}, data});
    };
    add("state.calibration", Dtype::F64, averages.size(), averages.data());
    add("state.stream", Dtype::F64, stream.size(), stream.data());
    add("state.taper_scale", Dtype::F32, t.model.taper_scale.size(), t.model.taper_scale.data());
    add("state.losses", Dtype::F64, losses.size(), losses.data());
    add("state.gradient_norms", Dtype::F64, gradients.size(), gradients.data());
    std::string lines;
    for (const std::string& a : arguments) lines += a + "\n";
    std::map<std::string, std::string> metadata = config_metadata(t.model.config);
    metadata.insert(tokenizer.begin(), tokenizer.end());
    metadata.insert({{"state_version", "1"},
                     {"step", std::to_string(t.step)},
                     {"position", std::to_string(t.batches.position())},
                     {"total_batch", std::to_string(t.settings.total_batch)},
                     {"gate_warmup", std::to_string(t.gate_warmup)},
                     {"gate_end", std::to_string(t.gate_end)},
                     {"arguments", lines}});
    checkpoints.write(metadata, tensors.out, t.settings.keep);
}

template <class Device, class Real>
void read_moments(Gpt<Device, Real>& model, const SafetensorsFile& file, const std::string& prefix,
                  const std::vector<Acc<Real>*>& pieces) {
    const auto list = tensor_list(model.config, model.params);
    for (size_t i = 0; i < list.size(); i++) {
        std::vector<Acc<Real>> values(list[i].spec.count());
        read_tensor(file, prefix + list[i].spec.name, list[i].spec.shape, values.data());
        set_pieces(model.dev, model.shards, pieces, i, values.data());
    }
}

// A gate schedule that is not the state's may still change what is to come, not what has been.
template <class Device, class Real>
void check_gate_schedule(const Trainer<Device, Real>& t, const SafetensorsFile& file) {
    const size_t warmup = state_number(file, "gate_warmup"), end = state_number(file, "gate_end");
    if (t.gate_warmup != warmup && t.step >= std::min(warmup, t.gate_warmup))
        fail(
            "--gate-warmup: the run in %s is at update %zu, its calibration ends with update %zu; found %zu; leave it at %zu",
            file.path().c_str(), t.step, warmup, t.gate_warmup, warmup);
    const double before = gate_schedule(std::max<size_t>(t.step, 1), warmup, end);
    if (t.model.config.mode != GateMode::norm && t.gate(t.step + 1) > before)
        fail(
            "--gate-end: the gate of %s is %.4g after update %zu and would rise to %.4g with %zu; expected at most %zu",
            file.path().c_str(), before, t.step, t.gate(t.step + 1), t.gate_end, end);
}

template <class Device, class Real>
void load_state(Trainer<Device, Real>& t, const SafetensorsFile& file) {
    t.step = state_number(file, "step");
    check_gate_schedule(t, file);
    t.batches.seek(state_number(file, "position"));
    auto numbers = [&]<class T>(const char* name, std::vector<T>& values) {
        if (!values.empty()) read_tensor(file, name, {values.size()}, values.data());
    };
    Calibration& c = t.calibration;
    std::vector<double> averages(3 * c.sites.size()), stream(3);
    numbers("state.calibration", averages), numbers("state.stream", stream);
    numbers("state.taper_scale", t.model.taper_scale);
    for (size_t i = 0; i < c.sites.size(); i++)
        c.sites[i] = {averages[3 * i], averages[3 * i + 1], averages[3 * i + 2]};
    if (!(stream[1] >= 0 && stream[1] <= 0x1p53))
        fail("%s: tensor state.stream: the file is damaged", file.path().c_str());
    c.stream_scale = stream[0], c.updates = size_t(stream[1]), t.scale_target = stream[2];
    auto window = [&](const char* name, size_t size, std::deque<double>& values) {
        const TensorEntry* entry = file.find(name);
        std::vector<double> read(entry ? std::min(entry->count(), size) : 0);
        numbers(name, read);
        values.assign(read.begin(), read.end());
    };
    window("state.losses", LossWindow::kSize, t.losses.losses);
    window("state.gradient_norms", GradientWindow::kSize, t.gradients.norms);
    t.model.set_parameters([&](const TensorSpec& spec, std::vector<Acc<Real>>& values) {
        read_tensor(file, spec.name, spec.shape, values.data());
        return true;
    });
    read_moments(t.model, file, "m.", t.m), read_moments(t.model, file, "v.", t.v);
}

// The model in rank 0's host memory, where it is not there already; null on the CPU. All ranks with a part of it call this.
template <class Device, class Real>
std::unique_ptr<HostModel> host_model(Trainer<Device, Real>& t, const ModelInfo& info) {
    if (std::is_same_v<Device, Cpu> && !t.model.kMaster) return nullptr;
    Cpu cpu;
    auto host = std::make_unique<HostModel>(cpu, info);
    auto to = tensor_list(info.config, host->tensors);
    for (size_t i = 0; i < to.size(); i++) {
        const std::vector<Acc<Real>> values = t.model.exact(i);
        std::copy(values.begin(), values.end(), to[i].data);
    }
    return host;
}

// The state first: a crash between the two leaves a state from which the model is written again. Rank 0 writes; the others
// give it what they alone have, all of it before the first file, which may fail on rank 0.
template <class Device, class Real>
void save_checkpoint(Trainer<Device, Real>& t, Run& run) {
    Gpt<Device, Real>& model = t.model;
    if (!model.ranks.first() && !model.shards.sharded()) return;
    const ModelInfo info{model.config, t.gate(std::max<size_t>(t.step, 1)), t.step, run.tokenizer, model.taper_scale};
    const std::unique_ptr<HostModel> host = host_model(t, info);
    save_state(t, run.arguments, run.checkpoints, run.tokenizer);
    if (!model.ranks.first()) return;
    if constexpr (std::is_same_v<Real, float> && std::is_same_v<Device, Cpu>)
        save_model(t.settings.out, info, model.params);
    else
        save_model(t.settings.out, info, host->tensors);
    AtomicFile settings(settings_path(t.settings));
    settings.write(run.settings.data(), run.settings.size());
    settings.commit();
}

// In the middle of a run: a disk that is full now may have room again later, and the checkpoint of before is whole.
template <class Device, class Real>
void try_checkpoint(Trainer<Device, Real>& t, Run& run) {
    try {
        save_checkpoint(t, run);
    } catch (const Error& e) {
        std::fprintf(stderr, "warning: no checkpoint after update %zu: %s; the run goes on\n", t.step, e.what());
    }
}

// --init: every tensor that a model with all its norms has, by read(row of the table, numbers); sites that will taper get
// their scaling branch at the taper start.
template <class Device, class Real, class Read>
void initialize_from(Gpt<Device, Real>& model, Read&& read) {
    model.set_parameters([&](const TensorSpec& t, std::vector<Acc<Real>>& values) {
        if (t.name.find(".taper_") != std::string::npos) return false;
        read(t, values.data());
        return true;
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// 7. The run

static volatile sig_atomic_t interrupted = 0;  // set by SIGINT and SIGTERM; a second one ends the program at once

static void watch_signals() {
    struct sigaction action{};
    action.sa_handler = [](int signal) { interrupted = signal; };
    action.sa_flags = int(SA_RESETHAND);
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

// One line per update on a terminal, overwritten in place, with the time left; elsewhere about 40 lines a run.
class Progress {
  public:
    Progress(const Settings& s, size_t first_step, const Ranks& ranks)
        : settings_(s), first_(first_step), line_(ranks.launcher != "mpirun") {}

    void update(const StepReport& r) {
        const size_t steps = settings_.steps, every = std::max<size_t>(1, steps / 40);
        seconds_ = seconds_ == 0 ? r.seconds : 0.9 * seconds_ + 0.1 * r.seconds;
        std::string text =
            strprintf("step %*zu/%zu | loss %.4f | g %.3f | lr %.2e | norm %6.3f | s(h) %6.3f | %6.0f tok/s",
                      int(std::to_string(steps).size()), r.step, steps, r.loss + r.scale_loss, r.g, r.lr, r.grad_norm,
                      r.stream_scale, double(settings_.total_batch) / seconds_);
        if (r.skipped) text += " | skipped";
        if (line_.terminal()) text += strprintf(" | %s left", duration(double(steps - r.step) * seconds_).c_str());
        line_.show(text, r.step % every == 0 || r.step == first_ + 1 || r.step == steps || r.skipped);
    }

    // A line of its own, above the live one.
    void note(const std::string& text) { line_.show(text, true); }

  private:
    const Settings& settings_;
    size_t first_;
    double seconds_ = 0;
    LiveLine line_;
};

// A frozen scale that no longer fits: early calibration of a young stream, without an anchor.
template <class Device, class Real>
bool drifted(const Trainer<Device, Real>& t, const StepReport& r) {
    return !r.skipped && r.step > t.gate_warmup && t.scale_target > 0 && t.model.config.mode != GateMode::norm &&
           !(r.stream_scale < kDrift * t.scale_target && r.stream_scale > t.scale_target / kDrift);
}

// What a run holds in its device's memory, by purpose.
template <class Device, class Real>
std::vector<std::pair<std::string, size_t>> memory_table(const Trainer<Device, Real>& t) {
    const Gpt<Device, Real>& m = t.model;
    std::vector<std::pair<std::string, size_t>> table;
    for (const Arena<Device>* a : {&m.param_memory, &m.master_memory, &m.grad_memory, &t.moment_memory, &m.act_memory})
        if (a->bytes())
            table.emplace_back(a->what() + (m.shards.sharded() && (a == &t.moment_memory || a == &m.master_memory)
                                                ? strprintf(" (1/%d by -z 1)", m.ranks.size)
                                                : ""),
                               a->bytes());
#ifdef TN_CUDA
    if constexpr (std::is_same_v<Device, Cuda>) {
        table.emplace_back(t.batches.memory().what(), t.batches.memory().bytes());
        table.emplace_back("workspace of matrix products", m.dev.workspace_bytes);
    }
#endif
    return table;
}

// "peak memory ...": of the process, or of the GPU with all that runs on it.
static std::string memory_in_use(Cpu&) {
    struct rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return strprintf("peak memory %.1f MiB", double(usage.ru_maxrss) / 1024);
}
#ifdef TN_CUDA
static std::string memory_in_use(Cuda&) {
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return strprintf("GPU memory %.1f of %.1f MiB", double(total - free) / 1048576, double(total) / 1048576);
}
#endif

template <class Device, class Real>
void print_start(const Trainer<Device, Real>& t, const Run& run) {
    const Settings& s = t.settings;
    const ModelInfo info{t.model.config, 1, t.step, run.tokenizer, {}};
    std::printf("model     %s\n", describe(info).c_str());
    std::printf("data      %s: %zu tokens to train on (%.2f epochs), %zu to validate\n", run.train.name().c_str(),
                run.train.size(), double(s.steps) * double(s.total_batch) / double(run.train.size()), run.val.size());
    if (t.model.config.mode != GateMode::norm)
        std::printf("gate      1 up to update %zu (calibration), 0 from update %zu on%s\n", t.gate_warmup, t.gate_end,
                    t.gate_end > s.steps ? ": after the end of this run, whose model cannot be folded yet" : "");
    const Ranks& ranks = t.model.ranks;
    if (ranks.size > 1)
        std::printf("ranks     %d, started by %s; an update is %zu micro-batches on each\n", ranks.size,
                    ranks.launcher.c_str(), s.total_batch / (s.batch * s.T * size_t(ranks.size)));
    std::printf("memory   ");
    size_t total = 0;
    for (const auto& [purpose, bytes] : memory_table(t)) {
        std::printf(" %s %.1f MiB,", purpose.c_str(), double(bytes) / 1048576);
        total += bytes;
    }
    std::printf(" together %.1f MiB%s\n\n", double(total) / 1048576, ranks.size > 1 ? " a rank" : "");
}

// A loss in nats per token, as "0.39 bits per byte": what models with different tokenizers are compared by. Where the
// bytes of the tokens are not known, it is bits per token.
static std::string in_bits(double loss, const Run& run) {
    const double bits = loss / std::log(2.0);
    if (!run.decode) return strprintf("%.4f bits per token", bits);
    std::vector<int> tokens(std::min<size_t>(run.val.size(), 1 << 20));
    run.val.read(0, tokens.size(), tokens.data());
    size_t bytes = 0;
    for (int id : tokens) bytes += size_t(id) < run.decode->vocab_size() ? run.decode->token(size_t(id)).size() : 0;
    return strprintf("%.4f bits per byte", bits * double(tokens.size()) / double(std::max<size_t>(bytes, 1)));
}

template <class Device, class Real>
void print_end(const Trainer<Device, Real>& t, const Run& run, double val_loss) {
    const Settings& s = t.settings;
    size_t held = 0;
    for (const auto& [purpose, bytes] : memory_table(t)) held += bytes;
    std::printf("\nvalidation loss %.4f (%s) after %zu updates\n", val_loss, in_bits(val_loss, run).c_str(), t.step);
    std::printf("%s, of which tensors %.1f MiB\n", memory_in_use(t.model.dev).c_str(), double(held) / 1048576);
    std::printf("model %s, state %s, log %s\n", s.out.c_str(), state_path(s).c_str(), log_path(s).c_str());
    const std::string out = shell_word(s.out);
    if (const double g = t.gate(std::max<size_t>(t.step, 1)); t.model.config.mode != GateMode::norm && g != 0)
        std::printf("next: the gate is still %.4g; train on: ./train_gpt -y -o %s -x %zu\n", g, out.c_str(),
                    t.gate_end);
    else
        std::printf("next: ./fold %s folded.bin && ./infer folded.bin --last-token\n", out.c_str());
}

template <class Device, class Real>
RunLog::Fields log_fields(Trainer<Device, Real>& t, const StepReport& r) {
    // clang-format off
    RunLog::Fields fields = {{"tokens", uint64_t(r.step * t.settings.total_batch)}, {"loss", r.loss},
                             {"scale_loss", r.scale_loss}, {"g", r.g}, {"lr", r.lr}, {"grad_norm", r.grad_norm},
                             {"stream_scale", r.stream_scale},
                             {"tokens_per_second", double(t.settings.total_batch) / r.seconds}};
    // clang-format on
    if (r.skipped) fields.push_back({"skipped", uint64_t(1)});
    if (r.step == t.gate_warmup) {
        fields.push_back({"scale_target", t.scale_target});
        const auto names = taper_site_names(t.model.config);
        for (size_t i = 0; i < names.size(); i++)
            fields.push_back({names[i] + ".taper_scale", double(t.model.taper_scale[i])});
    }
    if (t.settings.log_norms && r.step % t.settings.log_norms == 0) {
        for (const auto& [tensor, norm] : t.gradient_norms()) fields.push_back({"grad_norm/" + tensor, norm});
        for (const SiteScale& s : t.site_scales()) fields.push_back({"stream_scale/" + s.site, s.now});
    }
    return fields;
}

// The log beside the model, and TensorBoard's. Begun by the first update, so that one that fails leaves older ones alone.
struct Logs {
    RunLog log;
    std::optional<TensorBoardLog> board;

    Logs(const Settings& s, std::optional<size_t> resumed_at) : log(log_path(s), resumed_at) {
        if (!s.tensorboard.empty()) board.emplace(s.tensorboard, resumed_at);
    }
    void write(size_t step, const RunLog::Fields& fields) {
        log.write(step, fields);
        if (board) board->write(step, fields);
    }
};

// The loop. Returns the signal that ended it early, or 0.
template <class Device, class Real>
int train(Trainer<Device, Real>& t, Run& run) {
    const Settings& s = t.settings;
    const std::optional<size_t> resumed_at = s.resume ? std::optional<size_t>(t.step) : std::nullopt;
    std::optional<Logs> logs;
    Progress progress(s, t.step, t.model.ranks);
    bool warned = false, stop = false;
    while (t.step < s.steps && !stop) {
        const StepReport r = t.update(&interrupted);
        stop = r.stop;
        progress.update(r);
        if (!warned && drifted(t, r)) {
            warned = true;
            progress.note(
                strprintf("warning: s(h) is %.3g now and was %.3g when the sites were calibrated (update %zu); %s; "
                          "the stream was still growing: use a longer --gate-warmup or a larger --scale-loss (%g)",
                          r.stream_scale, t.scale_target, t.gate_warmup,
                          which_moved_first(t.site_scales(), kDrift).c_str(), s.scale_loss));
        }
        RunLog::Fields fields = log_fields(t, r);
        if (s.val_every && r.step % s.val_every == 0) {
            const double val_loss = evaluate(t, run.val, s.val_batches);
            progress.note(strprintf("step %zu | validation loss %.4f", r.step, val_loss));
            fields.push_back({"val_loss", val_loss});
            if (!run.hellaswag.empty()) {
                const HellaSwag scores = score_choices(t, run.hellaswag);
                progress.note(strprintf("step %zu | hellaswag: %s", r.step, scores.text().c_str()));
                fields.insert(fields.end(),
                              {{"hellaswag_acc", scores.acc()}, {"hellaswag_acc_norm", scores.acc_norm()}});
            }
        }
        if (!logs && t.model.ranks.first()) logs.emplace(s, resumed_at);
        if (logs) logs->write(r.step, fields);
        if (s.sample_every && r.step % s.sample_every == 0 && run.decode && t.model.ranks.first())
            progress.note(sample_text(t, *run.decode, run.prompt, 200));
        if (s.checkpoint_every && r.step % s.checkpoint_every == 0 && r.step < s.steps) try_checkpoint(t, run);
    }
    return !stop ? 0 : interrupted ? interrupted : SIGTERM;  // another rank's signal, where this one had none
}

// All ranks do the same, on the same files.
template <class Device, class Real>
void check_ranks(Trainer<Device, Real>& t, const Run& run) {
    const Settings& s = t.settings;
    if (t.model.ranks.size == 1) return;
    const double squares = sum_of_squares(t.model.dev, static_cast<const Real*>(t.model.param_memory.data()),
                                          t.model.param_memory.bytes() / sizeof(Real));
    t.model.ranks.agree({sizeof(Real), double(s.steps), double(s.batch), double(s.total_batch), double(s.zero),
                         double(s.seed), double(run.train.size()), double(run.val.size()), double(t.step), squares},
                        {"bytes of a number (--precision)", "--steps", "--batch", "--total-batch", "--zero", "--seed",
                         "tokens of --train", "tokens of --val", "updates done", "squares of the parameters"});
}

template <class Device, class Real>
int run_training(Device& dev, const Settings& s, const Config& config, Run& run, Ranks& ranks) {
    Trainer<Device, Real> t(dev, s, config, run.train, ranks);
    initialize(t.model, s.seed);
    if (run.state)
        load_state(t, *run.state), run.state.reset();  // its disk space is free once it is replaced
    else if (run.init)
        initialize_from(t.model, [&](const TensorSpec& spec, auto* numbers) { run.init->read(spec, numbers); });
    check_ranks(t, run);
    print_start(t, run);
    if (run.init)
        std::printf("%s: validation loss %.6f before the first update\n", run.init->path().c_str(),
                    evaluate(t, run.val, s.val_batches));
    if (s.resume && t.step >= s.steps)
        std::printf("complete  %zu of %zu updates are done; more: -x with a larger number\n", t.step, s.steps);
    watch_signals();
    const int signal = train(t, run);
    save_checkpoint(t, run);
    if (signal) {
        std::printf("\ninterrupted after update %zu; go on with: ./train_gpt -y -o %s\n", t.step,
                    shell_word(s.out).c_str());
        return 128 + signal;
    }
    print_end(t, run, evaluate(t, run.val, 10 * s.val_batches));
    if (!run.hellaswag.empty()) std::printf("hellaswag: %s\n", score_choices(t, run.hellaswag).text().c_str());
    return 0;
}

constexpr size_t kGpt2Vocabulary = 50257;

// The file that a run starts from: --init's model, or the state to resume from.
struct Start {
    std::string path;
    Config config;
    std::map<std::string, std::string> tokenizer;  // Tokenizer::metadata()
    bool foreign;                                  // its tokenizer is a guess that --tokenizer may correct
};

static Start read_init(const ModelFile& file) {
    const ModelInfo& info = file.info();
    const char* found = info.config.fold != Fold::none ? "folded" : info.gate != 1 ? "tapered" : nullptr;
    if (info.config.eps > 1) found = "free of them (its norms are fixed maps: their epsilon is huge)";
    if (found)
        fail("--init: %s: expected a model with all its norms, found one that is %s; start from a -g norm model",
             file.path().c_str(), found);
    return {file.path(), info.config, info.tokenizer, file.foreign()};
}

// The model that the flags, the corpus and the file to start from ask for.
static Config make_config(const Settings& s, const Run& run, const std::optional<Start>& start) {
    const std::string& tokenizer = run.tokenizer.at("tokenizer");
    const size_t V = run.decode ? run.decode->vocab_size() : kGpt2Vocabulary;
    Config c;
    c.V = V;
    c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C;
    c.norm = norm_from(s.norm);
    c.eps = default_eps(c.norm);
    if (start) {
        c = start->config;
        const std::string& own = start->tokenizer.at("tokenizer");
        if (c.V < V && tokenizer != "unknown")
            fail("--train: the corpus has a vocabulary of %zu tokens (%s); expected the %zu of %s", V,
                 tokenizer.c_str(), c.V, start->path.c_str());
        if (!start->foreign && own != tokenizer)
            fail("--tokenizer: expected %s, which %s was trained with, found %s", own.c_str(), start->path.c_str(),
                 tokenizer.c_str());
    }
    c.mode = gate_mode_from(s.gate);
    return c;
}

// --tokenizer's; else that of the model or run to start from, where it is there; else bytes.
static std::optional<Tokenizer> find_tokenizer(const Settings& s, const std::optional<Start>& start) {
    if (!s.tokenizer.empty()) return Tokenizer::from_path(s.tokenizer);
    if (!start) return Tokenizer();
    try {
        return Tokenizer::from_metadata(start->tokenizer, start->path);
    } catch (const Error&) {
        return {};  // token shards need none
    }
}

// Corpora and their tokenizer. Shards were tokenized elsewhere: without a tokenizer that says more than bytes, they are
// taken for those of the model to start from, or for GPT-2's.
static Run open_run(const Settings& s, const std::optional<Start>& start) {
    const std::optional<Tokenizer> tokenizer = find_tokenizer(s, start);
    const bool bytes = tokenizer && tokenizer->name() == "bytes", guess = s.tokenizer.empty() && (!tokenizer || bytes);
    Tokenize encode = [&](std::string_view text) {
        if (!tokenizer)
            fail(
                "--tokenizer: %s has no tokenizer in it or beside it, and text needs one; expected a folder with vocab.json "
                "and merges.txt, or bytes",
                start->path.c_str());
        return tokenizer->encode_parallel(text, true, int(s.threads));
    };
    if (bytes) encode = nullptr;
    const TokenSource corpus = s.train.empty() ? tokens_from_text(story_corpus(), "the built-in stories", encode)
                                               : open_tokens(s.train, encode);
    const auto [train, val] = s.val.empty() ? corpus.split_tail(0.1) : std::pair(corpus, open_tokens(s.val, encode));
    if (guess && val.from_shards() != train.from_shards())
        fail("--val: %s and %s: one is token shards, the other text; give --tokenizer", val.name().c_str(),
             train.name().c_str());
    if (val.size() <= s.T && train.size() > s.T)
        fail(
            "--val: the part of %s to validate on has %zu tokens, one sequence needs %zu (-t %zu and its last target); use "
            "a longer text, a smaller -t or a text of its own",
            val.name().c_str(), val.size(), s.T + 1, s.T);
    Run run{{}, train, val, nullptr, {}, tokenizer, s.train.empty() ? story_prompts()[0] : "\n"};
    if (tokenizer) run.tokenizer = tokenizer->metadata();
    if (corpus.from_shards() && guess) {
        run.tokenizer = tokenizer ? std::map<std::string, std::string>{{"tokenizer", "gpt2"}} : start->tokenizer;
        run.decode.reset();
    }
    return run;
}

// Before anything is allocated: a state of this version, with the tensors of the model that it says it has.
static void check_state(const SafetensorsFile& state) {
    if (const std::string& version = state_metadata(state, "state_version"); version != "1")
        fail("%s: state version: expected 1, found %s; use the version of this program that wrote the file",
             state.path().c_str(), in_quotes(version).c_str());
    check_tensors(state, read_config(state));
}

static std::unique_ptr<SafetensorsFile> open_state(const Settings& s, Checkpoints& checkpoints, const Ranks& ranks) {
    std::string note;
    auto state = checkpoints.open_newest(note);
    if (!note.empty() && ranks.first()) std::fprintf(stderr, "warning: %s\n", note.c_str());
    if (!state)
        fail("--resume: no state %s; expected the one that a run with -o %s writes; start it without -y",
             state_path(s).c_str(), s.out.c_str());
    check_state(*state);
    return state;
}

// Two-letter flags, which old states may have, by their present names.
static std::string present_name(const std::string& flag) {
    return flag == "-sg" ? "--skip-grad" : flag == "-sl" ? "--skip-loss-z" : flag;
}

// The flags of the run that wrote the state, then those given now (`arguments`, which becomes all of them): the last one
// counts. The gate's updates stay, also where they were fractions of a run that -x makes longer now. Returns all options.
static Options resume_settings(Settings& s, std::vector<std::string>& arguments, const SafetensorsFile& state) {
    const Settings now = s;
    std::vector<std::string> all;
    std::string lines = state_metadata(state, "arguments");
    for (size_t end; (end = lines.find('\n')) != std::string::npos; lines.erase(0, end + 1))
        all.push_back(present_name(lines.substr(0, end)));
    all.insert(all.end(), {"--gate-warmup", state_metadata(state, "gate_warmup"), "--gate-end",
                           state_metadata(state, "gate_end")});
    if (state.metadata().count("total_batch"))
        all.insert(all.end(), {"--total-batch", state_metadata(state, "total_batch")});
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<const char*> pointers = {"train_gpt"};
    for (const std::string& a : all) pointers.push_back(a.c_str());
    s = Settings();
    Options options = make_options(s);
    try {
        options.parse(int(pointers.size()), pointers.data());
    } catch (const Error& error) {
        fail("%s: the flags in it are damaged: %s", state.path().c_str(), error.what());
    }
    s.out = now.out, s.resume = true;
    s.gpus = now.gpus;  // the ranks run already
    arguments = options.arguments();
    return options;
}

// The settings of a run as a file, with which --config starts the same run again: as they were asked for, so that lengths
// which are parts of the run stay parts of it, but complete.
constexpr char kSettingsHeader[] = "# Settings of a run of train_gpt, for ./train_gpt --config";

static std::string settings_text(Settings asked, const Settings& complete) {
    asked.total_batch = complete.total_batch;
    asked.depth.clear(), asked.resume = false;  // the shape stands in its sizes
    return strprintf("%s\n", kSettingsHeader) + make_options(asked).config();
}

// Before hours of work: what the run writes can be written, and none of it is a corpus or somebody's own settings.
static void check_outputs(const Settings& s) {
    std::ifstream settings(settings_path(s));
    if (std::string line; std::getline(settings, line) && !line.starts_with(kSettingsHeader))
        fail("--out: the settings of this run would replace %s, which train_gpt has not written; expected another name",
             settings_path(s).c_str());
    for (const std::string& out : {s.out, state_path(s), log_path(s), settings_path(s)}) {
        std::error_code ignored;
        for (const std::string& corpus : {s.train, s.val})
            if (std::filesystem::equivalent(out, corpus, ignored))
                fail("--out: %s is a corpus of this run; expected another name", out.c_str());
        check_writable(out);
    }
}

[[maybe_unused]] static int run_program(int argc, char** argv, Ranks& ranks) {
    signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes (ulimit -f) is then an error of the write
    if (argc > 1 && std::strcmp(argv[1], "export") == 0) return export_command(argc - 1, argv + 1);
    Settings s;
    Options options = make_options(s);
    if (!options.parse(argc, argv)) return 0;
    if (s.gpus > 1) ranks.fork_local(s.gpus);
    std::vector<std::string> arguments = options.arguments();
    std::unique_ptr<SafetensorsFile> state;
    std::unique_ptr<ModelFile> init;
    Checkpoints checkpoints(state_path(s));
    std::optional<Start> start;
    std::optional<Options> resumed;
    if (s.resume) {
        if (options.given("--init")) fail("--init and --resume: expected one of them, found both");
        state = open_state(s, checkpoints, ranks);
        resumed = resume_settings(s, arguments, *state);
        start = Start{state->path(), read_config(*state), read_tokenizer(*state), false};
    } else if (!s.init.empty()) {
        init = ModelFile::open(s.init);
        start = read_init(*init);
    }
    auto given = [&](const char* flag) { return (resumed ? *resumed : options).given(flag); };
    if (!s.init.empty() && !given("--lr")) s.lr = 1e-4;  // a trained model forgets at the rate of a young one
    // The baseline has no anchor but the one that is asked for. Without one, a stream that tapers while it grows runs off.
    if (s.gate == "norm" && !given("--scale-loss")) s.scale_loss = 0;
    const bool unanchored = s.gate != "norm" && s.scale_loss == 0;
    if (unanchored && !given("--gate-warmup")) s.gate_warmup = fraction_of_run(0.2);
    if (unanchored && !given("--gate-end")) s.gate_end = fraction_of_run(0.8);
    for (const char* flag : {"--n-layer", "--n-head", "--n-embd"})
        if (options.given("--model") && options.given(flag) && (options.typed(flag) || !options.typed("--model")))
            fail("--model and %s: expected one of them, found both", flag);
    if (start && !options.given("--model")) s.depth.clear();
    if (!s.depth.empty()) set_shape_by_depth(s.depth, s.L, s.NH, s.C);
    if (start) adopt_shape(s, options, start->path, start->config);
    const Settings asked = s;
    complete_settings(s, ranks);
    ranks.set_time_limit(s.rank_timeout);
    if (ranks.first()) check_outputs(s);
    if (ranks.size > 1 && s.threads == 0) s.threads = size_t(threads_for_rank(ranks.local_size));
    Cpu cpu{int(s.threads)};
    const DeviceChoice choice = choose_device(s.device, ranks.local_rank);
    ranks.agree({double(choice.cuda)}, {"--device (1: cuda)"});
    if (s.gpus > 1 && !choice.cuda) fail("--gpus: %s; ranks on the CPU: mpirun -np %zu", choice.why.c_str(), s.gpus);
    std::printf("device    %s\n", choice.cuda
                                      ? strprintf("cuda: %s, %s", choice.why.c_str(), s.precision.c_str()).c_str()
                                      : describe(cpu, choice).c_str());
    Settings shown = s;
    std::printf("%s\n", make_options(shown).table().c_str());
    Run run = open_run(s, start);
    run.settings = settings_text(asked, s);
    run.arguments = arguments, run.state = std::move(state), run.init = std::move(init);
    run.checkpoints = checkpoints;
    const Config config = make_config(s, run, start);
    if (!s.hellaswag.empty()) run.hellaswag = read_hellaswag(s.hellaswag, run.decode, config.V, config.T);
#ifdef TN_CUDA
    if (choice.cuda) {
        Cuda cuda(ranks.local_rank);
        return s.precision == "fp32" ? run_training<Cuda, float>(cuda, s, config, run, ranks)
                                     : run_training<Cuda, bf16>(cuda, s, config, run, ranks);
    }
#endif
    return run_training<Cpu, float>(cpu, s, config, run, ranks);
}

}  // namespace tapernorm::train

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::train::Ranks ranks;
    try {
        ranks.join();
        return tapernorm::train::run_program(argc, argv, ranks);
    } catch (const std::exception& error) {
        return ranks.fail_all("train_gpt", error);
    }
}
#endif
