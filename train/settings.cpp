#include "train/settings.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <string_view>
#include <tuple>
#include <variant>

#include "io/atomic_file.h"
#include "io/claims.h"
#include "io/files.h"
#include "model/model_file.h"
#include "runtime/cores.h"
#include "runtime/error.h"
#include "train/checkpoints.h"
#include "train/run_files.h"
#include "train/shape.h"
#include "train/tensorboard.h"

namespace tapernorm::train {

namespace {

constexpr char kSettingsHeader[] = "# Settings of a run of train_gpt, for ./train_gpt --config";
constexpr char kSettingsAdvice[] = "; the run writes this file anew, so change a copy";

// A default that other settings change.
template <class Value>
struct DependentDefault {
    const char* flag;
    Value Settings::* field;
    Value value;
    const char* when;  // as --help says it
    bool (*holds)(const Settings&);
};

// Without an anchor for its scale, a stream that tapers while it grows runs off.
bool unanchored(const Settings& s) { return s.gate != "norm" && s.scale_loss == 0; }

// In a run of few updates from random weights the stream grows from the first to the last, and fractions of it are too few to warm
// up in, or to calibrate from: the loss of the first updates would be far above that of random weights.
bool shorter(const Settings& s, size_t updates) { return s.init.empty() && s.steps < updates; }

const DependentDefault<double> kNumbers[] = {
    // The baseline has no anchor unless one is asked for.
    {"--scale-loss", &Settings::scale_loss, 0, "with -g norm", [](const Settings& s) { return s.gate == "norm"; }},
    // The first positions of pretrained models are far from all others.
    {"--bound", &Settings::bound, 3, "with --init", [](const Settings& s) { return !s.init.empty(); }},
    // A trained model's logits are in place, and may still have to grow.
    {"--final-bound", &Settings::final_bound, 3, "with --init", [](const Settings& s) { return !s.init.empty(); }},
};
const DependentDefault<std::string> kChoices[] = {
    // The stream of a pretrained model may be tens of times as large as that of one that begins here.
    {"--scale-loss-kind", &Settings::scale_loss_kind, "relative", "with --init",
     [](const Settings& s) { return !s.init.empty(); }},
    // Channels of a pretrained stream have means and scales of their own, and so have rows of first positions.
    {"--calibration", &Settings::calibration, "channels+first", "with --init",
     [](const Settings& s) { return !s.init.empty() && s.bound > 0; }},
    {"--calibration", &Settings::calibration, "channels", "with --init and --bound 0",
     [](const Settings& s) { return !s.init.empty() && s.bound == 0; }},
};
// Where more than one holds, the last one counts.
const DependentDefault<Length> kLengths[] = {
    // Where 10% was not measured, or did harm (dev/results/experiments.md).
    {"--warmup", &Settings::warmup, percent_of_run(5), "with --freeze-gains",
     [](const Settings& s) { return s.freeze_gains; }},
    {"--warmup", &Settings::warmup, percent_of_run(2), "with --init or --optimizer muon",
     [](const Settings& s) { return !s.init.empty() || s.optimizer == "muon"; }},
    {"--warmup", &Settings::warmup, updates(20), "in runs of fewer than 1000 updates from random weights",
     [](const Settings& s) { return shorter(s, 1000); }},
    {"--warmup", &Settings::warmup, updates(50), "of fewer than 50", [](const Settings& s) { return shorter(s, 50); }},
    {"--gate-warmup", &Settings::gate_warmup, percent_of_run(20), "with --scale-loss 0", unanchored},
    {"--gate-warmup", &Settings::gate_warmup, percent_of_run(20),
     "in runs of fewer than 200 updates from random weights", [](const Settings& s) { return shorter(s, 200); }},
    {"--gate-warmup", &Settings::gate_warmup, percent_of_run(50), "of fewer than 50",
     [](const Settings& s) { return shorter(s, 50); }},
    {"--gate-end", &Settings::gate_end, percent_of_run(80), "with --scale-loss 0", unanchored},
    {"--gate-end", &Settings::gate_end, percent_of_run(80), "in runs of fewer than 200 updates from random weights",
     [](const Settings& s) { return shorter(s, 200); }},
};

void set_dependent_defaults(Settings& s, const Options& given) {
    auto set = [&](const auto& rules) {
        for (const auto& r : rules)
            if (!given.given(r.flag) && r.holds(s)) s.*r.field = r.value;
    };
    set(kNumbers), set(kChoices), set(kLengths);  // the lengths depend on --scale-loss
}

// --init's default rate: that of the public recipe for the 768 channels of GPT-2 small, in inverse proportion to the channels, as
// muP (arXiv 2203.03466) carries rates of Adam over to other widths; never above the one without --init. Lower rates do not get the
// norms out (dev/results/experiments.md: a pretrained GPT-2).
double tuning_rate(size_t C) { return std::min(Settings().lr, 0.46 / double(C)); }

// "0.003; 0.0001 with --init", for --help.
std::string default_text(const char* flag) {
    const Settings s;
    std::string text;
    for (const auto& r : kNumbers)
        if (r.flag == std::string(flag)) return strprintf("%g; %g %s", s.*r.field, r.value, r.when);
    for (const auto& r : kChoices)
        if (r.flag == std::string(flag)) text += (text.empty() ? s.*r.field : "") + "; " + r.value + " " + r.when;
    if (!text.empty()) return text;
    for (const auto& r : kLengths)
        if (r.flag == std::string(flag))
            text += (text.empty() ? to_text(s.*r.field) : "") + "; " + to_text(r.value) + " " + r.when;
    return text;
}

// per_rank: what files hold is compared instead of their names (agreement.cpp), and what rank 0 alone writes is its own.
void add_file_options(Options& o, Settings& s) {
    o.section("Files");
    // clang-format off
    o.add({.short_name = "-i", .long_name = "--train", .to = &s.train, .metavar = "FILE",
           .default_text = "built-in stories",
           .help = "the corpus: a text file or token shards in llm.c's format (a pattern such as 'data/train_*.bin')", .per_rank = true});
    o.add({.short_name = "-j", .long_name = "--val", .to = &s.val, .metavar = "FILE",
           .default_text = "the last 10% of -i", .help = "text or shards to validate on", .per_rank = true});
    o.add({.long_name = "--tokenizer", .to = &s.tokenizer, .metavar = "PATH", .default_text = "that of --init or beside the shards, else bytes",
           .help = "bytes, a folder with vocab.json and merges.txt, a tokenizer.json, or llm.c's gpt2_tokenizer.bin; stored in the "
                   "model", .per_rank = true});
    o.add({.short_name = "-o", .long_name = "--out", .to = &s.out, .metavar = "FILE",
           .help = "the model to write (.bin is added where it is missing); the state (for -y), the log and the settings (for "
                   "--config) are written next to it; files of an earlier run of this name are renamed to NAME.old.*", .per_rank = true});
    o.add({.long_name = "--overwrite", .to = &s.overwrite,
           .help = "replace the files of an earlier run of this name instead", .per_rank = true});
    o.add({.long_name = "--init", .to = &s.init, .metavar = "PATH", .default_text = "random weights",
           .help = "start from the weights of a -g norm model of train_gpt, a Hugging Face GPT-2 (its folder) or a checkpoint of llm.c", .per_rank = true});
    o.add({.short_name = "-y", .long_name = "--resume", .to = &s.resume,
           .help = "resume the run saved next to -o; flags given here or by --config override the saved ones"});
    o.add({.short_name = "-n", .long_name = "--checkpoint-every", .to = &s.checkpoint_every, .metavar = "N",
           .default_text = "off", .help = "save the state (a checkpoint) every N updates"});
    o.add({.long_name = "--checkpoint-minutes", .to = &s.checkpoint_minutes, .metavar = "M", .range = {.low = 0, .high = 1e6},
           .help = "also save it where the last one is M minutes old, so that a crash loses no more (0: off)"});
    o.add({.long_name = "--keep", .to = &s.keep, .metavar = "K", .range = {.low = 1, .high = Checkpoints::kMost},
           .help = "keep the newest K states; if the newest is damaged, -y resumes from the one before it", .per_rank = true});
    // clang-format on
}

void add_model_options(Options& o, Settings& s) {
    o.section("Model");
    // clang-format off
    o.add({.short_name = "-e", .long_name = "--model", .to = &s.depth, .metavar = "dN", .default_text = "none",
           .help = "GPT-2's shape with N layers: d12 has 124M parameters (12 heads, 768 channels), d24 350M, d36 774M, d48 1.6B; in a run "
                   "from random weights also its recipe: -t, -d, -b, -x, -l, -u, -q and --beta2 where they are not given", .per_rank = true});
    o.add({.long_name = "--n-layer", .to = &s.L, .metavar = "L", .range = {.low = 1, .high = 1000}, .help = "blocks"});
    o.add({.long_name = "--n-head", .to = &s.NH, .metavar = "NH", .range = {.low = 1, .high = 1024},
           .help = "attention heads"});
    o.add({.long_name = "--n-embd", .to = &s.C, .metavar = "C", .range = {.low = 1, .high = 1 << 16},
           .help = "channels, a multiple of --n-head"});
    o.add({.short_name = "-t", .long_name = "--seq-len", .to = &s.T, .metavar = "T",
           .range = {.low = 1, .high = 1 << 20}, .default_text = strprintf("%zu; with --init all positions of its model", Settings().T),
           .help = "context length in tokens"});
    o.add({.long_name = "--norm", .to = &s.norm, .choices = {"layernorm", "rmsnorm"}, .help = "kind of norm"});
    o.section("Batch");
    o.add({.short_name = "-b", .long_name = "--batch", .to = &s.batch, .metavar = "B",
           .range = {.low = 1, .high = 1 << 20}, .help = "sequences per micro-batch"});
    o.add({.short_name = "-d", .long_name = "--total-batch", .to = &s.total_batch, .metavar = "N",
           .default_text = "B x T x ranks",
           .help = "tokens per update over all ranks, a multiple of B x T x ranks; gradients accumulate over micro-batches"});
    o.add({.short_name = "-x", .long_name = "--steps", .to = &s.steps, .metavar = "N",
           .range = {.low = 1, .high = 1e15},
           .help = "number of updates"});
    o.add({.long_name = "--no-shuffle", .to = &s.shuffle, .help = "read the corpus in order"});
    o.add({.short_name = "-r", .long_name = "--recompute", .to = &s.recompute, .metavar = "N",
           .range = {.low = 0, .high = 2},
           .help = "recompute activations in the backward pass to save memory: 1: GELU; 2: GELU and the norms"});
    o.add({.long_name = "--logits-rows", .to = &s.logits_rows, .metavar = "N",
           .range = {.low = 0, .high = 1e15},
           .default_text = "4 GiB of them on a GPU, 256 MiB on a CPU",
           .help = "compute the logits of at most so many tokens at a time: fewer save memory"});
    // clang-format on
}

void add_optimizer_options(Options& o, Settings& s) {
    o.section("Optimizer");
    // clang-format off
    o.add({.long_name = "--optimizer", .to = &s.optimizer, .choices = {"adamw", "muon"},
           .help = "muon: Muon, with a momentum of 0.95, for the matrices of the blocks, and AdamW for all else; steps are about as long as "
                   "AdamW's, so that -l and -c mean the same (not with -z 1)"});
    o.add({.short_name = "-l", .long_name = "--lr", .to = &s.lr, .range = {.low = 0},
           .default_text = strprintf("%g; with --init 0.46 / --n-embd and at most that", Settings().lr), .help = "peak learning rate"});
    o.add({.long_name = "--lr-gains", .to = &s.lr_gains, .metavar = "F", .range = {.low = 0, .high = 100},
           .help = "learning rate of the gains and biases of the blocks' norms and scalings, as a multiple of -l"});
    o.add({.short_name = "-u", .long_name = "--warmup", .to = &s.warmup, .default_text = default_text("--warmup"),
           .help = "updates, or percentage of the run, over which the learning rate rises linearly to its peak (-e: its recipe's)"});
    o.add({.short_name = "-q", .long_name = "--lr-final-frac", .to = &s.lr_final_frac, .range = {.low = 0, .high = 1},
           .help = "final learning rate as a fraction of the peak"});
    o.add({.short_name = "-k", .long_name = "--lr-schedule", .to = &s.lr_schedule,
           .choices = {"cosine", "linear", "constant", "wsd"},
           .help = "learning-rate schedule after the warm-up; wsd (warm-up, stable, decay): constant, then linear over the last 20% of the run"});
    o.add({.short_name = "-c", .long_name = "--weight-decay", .to = &s.weight_decay, .range = {.low = 0, .high = 10},
           .help = "weight decay of matrices and embeddings"});
    o.add({.long_name = "--beta1", .to = &s.beta1, .range = {.low = 0, .high = 1, .high_open = true},
           .help = "AdamW's decay rate for the mean of the gradient"});
    o.add({.long_name = "--beta2", .to = &s.beta2, .range = {.low = 0, .high = 1, .high_open = true},
           .help = "AdamW's decay rate for the mean of the squared gradient"});
    o.add({.long_name = "--clip", .to = &s.clip, .range = {.low = 0},
           .help = "clip the gradient norm to this (0: off)"});
    o.add({.long_name = "--skip-loss-z", .to = &s.skip_loss_z, .metavar = "Z", .range = {.low = 0},
           .help = "skip an update if its loss is more than Z standard deviations above the mean of the last 128 (0: off)",
           .retired = "-sl"});
    o.add({.long_name = "--skip-grad", .to = &s.skip_grad, .metavar = "X", .range = {.low = 0},
           .help = "skip an update if its gradient norm exceeds X times the median of the last 32, or is NaN or Inf; "
                   "inactive until 16 norms are known (0: off)",
           .retired = "-sg"});
    // clang-format on
}

void add_taper_options(Options& o, Settings& s) {
    o.section("TaperNorm");
    // clang-format off
    o.add({.short_name = "-g", .long_name = "--gate-mode", .to = &s.gate, .choices = {"norm", "taper", "taper-all"},
           .help = "which norms taper, that is, pass through the gate from exact (1) to a fixed scaling (0): norm: none, the baseline; "
                   "taper: all but the final one; taper-all: all",
           .alias = "--gate"});
    o.add({.long_name = "--gate-warmup", .to = &s.gate_warmup, .default_text = default_text("--gate-warmup"),
           .help = "updates with the gate at 1 (norms as usual), during which the scaling that replaces each norm is calibrated"});
    o.add({.long_name = "--gate-end", .to = &s.gate_end, .default_text = default_text("--gate-end"),
           .help = "first update with the gate at 0 (norms replaced by fixed scalings)"});
    o.add({.long_name = "--calibration", .to = &s.calibration, .choices = {"channels+first", "channels", "scalar"},
           .default_text = default_text("--calibration"),
           .help = "how the scaling that replaces a norm is fitted to it: scalar: one factor per site, kept from --gate-warmup on; "
                   "channels: a factor and (for LayerNorm) an offset per channel, fitted anew until --gate-end; channels+first: and "
                   "one more factor for the first position of a text, whose row is far larger than all others in pretrained "
                   "models (needs a --bound)"});
    o.add({.long_name = "--bound", .to = &s.bound, .metavar = "KAPPA", .range = {.low = 0, .high = 1e6}, .default_text = default_text("--bound"),
           .help = "clip the input of each scaling to KAPPA times its usual scale, so that no text can make the residual stream run "
                   "off (0: do not clip)"});
    o.add({.long_name = "--final-bound", .to = &s.final_bound, .metavar = "KAPPA", .range = {.low = kLeastBound, .high = 1e6},
           .default_text = default_text("--final-bound"),
           .help = "with --bound and -g taper-all: clip the input of the final scaling to KAPPA times its usual scale; logits that are "
                   "KAPPA times as large make the model KAPPA times as certain"});
    o.add({.long_name = "--ema-decay", .to = &s.ema_decay, .range = {.low = 0, .high = 1, .high_open = true},
           .help = "decay rate of the moving averages used for calibration"});
    o.add({.long_name = "--gain", .to = &s.gain, .metavar = "K", .range = {.low = 1e-3, .high = 1e3},
           .help = "after --gate-warmup, let the blocks' scalings give K times what they were calibrated to (with -g norm: multiply "
                   "the gains of the blocks' norms by K then); a --bound then clips at KAPPA / K times the usual scale"});
    o.add({.long_name = "--scale-loss", .to = &s.scale_loss, .metavar = "LAMBDA", .range = {.low = 0},
           .default_text = default_text("--scale-loss"),
           .help = "weight of the loss that holds the residual stream at its calibrated scale"});
    o.add({.long_name = "--scale-target", .to = &s.scale_target, .metavar = "X", .range = {.low = 1e-3, .high = 1e3},
           .help = "let the scale loss hold the residual stream at X times its calibrated scale"});
    o.add({.long_name = "--scale-loss-kind", .to = &s.scale_loss_kind, .choices = {"relative", "absolute"},
           .default_text = default_text("--scale-loss-kind"),
           .help = "relative: the scale loss is the square of the stream's distance from its calibrated scale, in units of that "
                   "scale where it is above 1; absolute: in no unit"});
    o.add({.long_name = "--freeze-gains", .to = &s.freeze_gains,
           .help = "freeze the gains and biases of the blocks' norms and scalings after --gate-warmup: a lower loss in models of 0.04M and "
                   "0.2M parameters, with -g norm as with taper; not of a taper of 0.93M or more"});
    o.add({.long_name = "--carry-moments", .to = &s.carry_moments,
           .help = "when the taper starts, initialize AdamW's moments of each scaling from those of its norm"});
    o.add({.long_name = "--distill", .to = &s.distill, .metavar = "W", .range = {.low = 0, .high = 1},
           .help = "learn to predict what --init's model, the teacher, predicts: the loss is W times the KL divergence from it and "
                   "1 - W times the cross-entropy (0: no teacher; 1: the divergence alone)"});
    // clang-format on
}

void add_run_options(Options& o, Settings& s) {
    o.section("Run");
    // clang-format off
    o.add({.long_name = "--dry-run", .to = &s.dry_run,
           .help = "print the settings, memory, arithmetic, and the time measured in a few micro-batches; write nothing"});
    o.add({.short_name = "-v", .long_name = "--val-every", .to = &s.val_every, .metavar = "N",
           .help = "validate every N updates (0: only at the end)"});
    o.add({.short_name = "-m", .long_name = "--val-batches", .to = &s.val_batches, .metavar = "N",
           .range = {.low = 1},
           .help = "batches of B x T tokens per validation, spread evenly over the text (ten times as many for the final one)"});
    o.add({.long_name = "--hellaswag", .to = &s.hellaswag, .metavar = "FILE", .default_text = "none",
           .help = "evaluate on HellaSwag at every validation; FILE is llm.c's .bin or the original JSON lines", .per_rank = true});
    o.add({.short_name = "-s", .long_name = "--sample-every", .to = &s.sample_every, .metavar = "N",
           .help = "print generated text every N updates (0: never)", .per_rank = true});
    o.add({.long_name = "--tensorboard", .to = &s.tensorboard, .metavar = "DIR", .default_text = "none",
           .help = "also write the log's numbers to DIR for TensorBoard", .per_rank = true});
    o.add({.long_name = "--log-norms", .to = &s.log_norms, .metavar = "N",
           .help = "every N updates, log the gradient norm of each tensor and the scale s(h) of the residual stream at each norm "
                   "(0: never)"});
    o.add({.long_name = "--seed", .to = &s.seed, .help = "seed of the initial weights, the data order and the samples"});
    o.add({.long_name = "--device", .to = &s.device, .choices = {"auto", "cpu", "cuda"}, .help = "device to run on", .per_rank = true});
    o.add({.long_name = "--precision", .to = &s.precision, .choices = {"bf16", "fp32"},
           .help = "precision of activations and gradients on a GPU; sums, the optimizer and the CPU use fp32"});
    o.add({.long_name = "--tune", .to = &s.tune,
           .help = "on a GPU, time cuBLASLt's best algorithms for each matrix product in the first update and keep the fastest: two runs may "
                   "differ by rounding then, but a resumed run keeps its own"});
    o.add({.long_name = "--threads", .to = &s.threads, .range = {.high = kMostThreads}, .default_text = "the cores it may use",
           .help = "CPU threads per rank", .per_rank = true});
    o.section("Multiple ranks");
    o.add({.long_name = "--gpus", .to = &s.gpus, .metavar = "N", .range = {.low = 1, .high = 1024},
           .help = "start one rank (process) on each of N GPUs of this machine; on the GPUs of several, use mpirun, torchrun or srun; on "
                   "CPUs mpirun (or srun --mpi=pmix), because torchrun and plain srun start at most 2 ranks there"});
    o.add({.short_name = "-z", .long_name = "--zero", .to = &s.zero, .metavar = "Z", .range = {.low = 0, .high = 1},
           .help = "1: shard the optimizer's state across the ranks (ZeRO-1)"});
    o.add({.long_name = "--rank-timeout", .to = &s.rank_timeout, .metavar = "S", .range = {.low = 0, .low_open = true},
           .help = "stop all ranks if one does not respond for S seconds", .per_rank = true});
    // clang-format on
}

// A run takes over the shape of the model or state that it begins from. Flags given now may not contradict it.
void adopt_shape(Settings& s, const Options& now, const Options& given, const Origin& origin) {
    const Config& c = origin.config;
    const char* path = origin.path.c_str();
    auto adopt = [&](const char* flag, size_t& setting, size_t in_file) {
        const bool by_model = !now.given(flag) && now.given("--model");
        if ((now.given(flag) || by_model) && setting != in_file)
            fail("%s: expected %zu, which %s has, found %zu; leave the flag out",
                 by_model ? strprintf("--model %s: %s", s.depth.c_str(), flag).c_str() : flag, in_file, path, setting);
        setting = in_file;
    };
    adopt("--n-layer", s.L, c.L), adopt("--n-head", s.NH, c.NH), adopt("--n-embd", s.C, c.C);
    if (now.given("--norm") && s.norm != norm_name(c.norm))
        fail("--norm: expected %s, which %s has, found %s; leave the flag out", norm_name(c.norm), path,
             s.norm.c_str());
    if (s.resume && now.given("--gate-mode") && s.gate != gate_mode_name(c.mode))
        fail("--gate-mode: expected %s, as the run in %s has it, found %s; leave the flag out", gate_mode_name(c.mode),
             path, s.gate.c_str());
    if (now.given("--seq-len") && s.T > c.T)
        fail("--seq-len: expected at most the %zu positions of %s, found %zu", c.T, path, s.T);
    s.norm = norm_name(c.norm);
    // The positions that --init's model has and that are not trained on would get worse. A state says what its run has.
    s.T = s.resume || given.given("--seq-len") ? std::min(s.T, c.T) : c.T;
}

void settle_shape(Settings& s, const Options& now, const Options& given, const Origin* origin) {
    if (origin && !now.given("--model")) s.depth.clear();
    set_shape(now, s.depth, s.L, s.NH, s.C);
    if (origin) adopt_shape(s, now, given, *origin);
    if (s.C % s.NH) fail("--n-embd: expected a multiple of --n-head (%zu), found %zu", s.NH, s.C);
    // Below this, every size in bytes fits 64 bits; no machine comes near.
    if (double(s.batch) * double(s.T) * double(std::max(s.L, s.NH)) * double(s.C) > 0x1p50)
        fail(
            "--batch: %s of %s with %s of %s are more than any memory holds; expected "
            "smaller -b, -t, --n-layer or --n-embd",
            counted(s.batch, "sequence").c_str(), counted(s.T, "token").c_str(), counted(s.L, "layer").c_str(),
            counted(s.C, "channel").c_str());
}

void settle_batch(Settings& s, const Ranks& ranks) {
    const size_t micro = s.batch * s.T * size_t(ranks.size);
    if (s.total_batch == 0) s.total_batch = micro;
    if (s.total_batch % micro == 0) return;
    const size_t below = s.total_batch / micro * micro, row = s.T * size_t(ranks.size);
    std::string goes = below ? strprintf("-d %zu or %zu", below, below + micro) : strprintf("-d %zu", micro);
    size_t batch = s.batch;  // the largest that is smaller and divides it
    while (batch > 1 && s.total_batch % (batch * row)) batch--;
    if (s.total_batch % (batch * row) == 0) goes += strprintf(", or -b %zu", batch);
    fail("--total-batch: expected a multiple of -b x -t x ranks = %zu x %zu x %d = %s, found %zu; use %s", s.batch, s.T,
         ranks.size, counted(micro, "token").c_str(), s.total_batch, goes.c_str());
}

void settle_gate(Settings& s) {
    // In a run of a few updates two fractions may round to the same update.
    if (s.gate_end.is_percent && s.gate_warmup.is_percent && s.gate_end.value > s.gate_warmup.value)
        s.gate_end = updates(std::max(s.gate_end.resolve(s.steps), s.gate_warmup.resolve(s.steps) + 1));
    if (s.gate_end.resolve(s.steps) <= s.gate_warmup.resolve(s.steps) && s.gate != "norm")
        fail("--gate-end: expected more updates than --gate-warmup (%zu), found %zu", s.gate_warmup.resolve(s.steps),
             s.gate_end.resolve(s.steps));
    if ((s.gate != "norm" || s.scale_loss > 0 || s.gain != 1) && s.gate_warmup.resolve(s.steps) == 0)
        fail("--gate-warmup: expected at least 1 update %s, found 0",
             s.gate != "norm" || s.scale_loss > 0 ? "to calibrate from" : "before --gain");
}

// Flags that do nothing beside others.
struct Idle {
    const char *flag, *beside;
    bool (*holds)(const Settings&);
};
bool is_norm(const Settings& s) { return s.gate == "norm"; }
const Idle kIdle[] = {
    {"--gate-end", "-g norm", is_norm},
    {"--calibration", "-g norm", is_norm},
    {"--bound", "-g norm", [](const Settings& s) { return is_norm(s) && s.bound > 0; }},
    {"--final-bound", "-g norm", is_norm},
    {"--gate-warmup", "-g norm",
     [](const Settings& s) { return is_norm(s) && s.scale_loss == 0 && s.gain == 1 && !s.freeze_gains; }},
    {"--ema-decay", "-g norm", [](const Settings& s) { return is_norm(s) && s.scale_loss == 0; }},
    {"--scale-loss-kind", "--scale-loss 0", [](const Settings& s) { return s.scale_loss == 0; }},
    {"--lr-final-frac", "-k constant", [](const Settings& s) { return s.lr_schedule == "constant"; }},
    {"--carry-moments", "--lr-gains 0", [](const Settings& s) { return s.carry_moments && s.lr_gains == 0; }},
};

// Every setting that all ranks share as --help shows it, by its long name.
std::map<std::string, std::string> texts(Settings s) {
    std::map<std::string, std::string> list;
    for (const auto& [names, value] : make_options(s).common()) list[names.substr(0, names.find(' '))] = value;
    return list;
}

// What the ranks of a run agree in, and what its model does not depend on: when it is saved, measured and logged, how it is
// divided among devices, and --recompute, which gives the same bits. (A GPU's --precision is in the name of its device.)
constexpr const char* kNotOfModel[] =
    {"--resume",      "--dry-run",   "--checkpoint-every", "--checkpoint-minutes", "--val-every",
     "--val-batches", "--log-norms", "--recompute",        "--precision",          "--gpus",
     "--zero"};

// Old states may have flags of two letters.
std::string present_name(const std::string& flag) {
    return flag == "-sg" ? "--skip-grad" : flag == "-sl" ? "--skip-loss-z" : flag;
}

}  // namespace

std::vector<std::string> flags_with_dependent_defaults() {
    std::vector<std::string> flags = {"--lr"};
    auto add = [&](const auto& rules) {
        for (const auto& r : rules) flags.push_back(r.flag);
    };
    add(kNumbers), add(kChoices), add(kLengths);
    return flags;
}

Options make_options(Settings& s) {
    Options
        o("train_gpt",
          "Trains a GPT-2 without normalization layers (TaperNorm), on a CPU or a GPU.\n"
          "./train_gpt export MODEL DIR writes a model for Hugging Face's transformers, and export MODEL FILE.gguf\n"
          "for llama.cpp (see its --help).");
    add_file_options(o, s), add_model_options(o, s), add_optimizer_options(o, s);
    add_taper_options(o, s), add_run_options(o, s);
    o.exclude("--resume", {"--overwrite", "--init", "--dry-run"});
    return o;
}

CompleteSettings settle(Settings& s, const Options& now, const Options& given, const Origin* origin,
                        const Ranks& ranks) {
    set_dependent_defaults(s, given);
    if (s.bound > 0 && s.bound < kLeastBound)
        fail("--bound: expected 0 or at least %g, found %g", kLeastBound, s.bound);
    if (now.typed("--final-bound") && (s.gate == "taper" || (s.gate == "taper-all" && s.bound == 0)))
        fail(
            "--final-bound: expected -g taper-all and a --bound above 0 with it, found -g %s and --bound %g; leave it out",
            s.gate.c_str(), s.bound);
    if (s.calibration == "channels+first" && s.bound == 0 && s.gate != "norm")
        fail("--calibration channels+first: expected a --bound above 0 with it, found 0; use --calibration channels");
    if (s.optimizer == "muon" && s.zero == 1)
        fail(
            "--optimizer muon: expected -z 0 with it, because it needs whole matrices, of which a rank has parts with -z 1; "
            "leave out one of the two");
    if (now.typed("--carry-moments") && s.carry_moments && s.gate == "norm")
        fail("--carry-moments: expected -g taper or taper-all with it, found -g norm; leave it out");
    if (now.typed("--carry-moments") && s.carry_moments && s.freeze_gains)
        fail(
            "--carry-moments: expected no --freeze-gains with it, which leaves these moments without use; leave out one of the two");
    if (now.typed("--scale-target") && s.scale_target != 1 && s.scale_loss == 0)
        fail("--scale-target: expected a --scale-loss above 0 with it, found 0; leave it out");
    if (s.gain != 1 && s.calibration != "scalar" && s.gate != "norm") {
        if (now.typed("--gain"))
            fail(
                "--gain: expected --calibration scalar with it, found --calibration %s, whose scalings follow their fits; leave "
                "out one of the two",
                s.calibration.c_str());
        s.gain = 1;  // a file's, which a flag excludes
    }
    if (s.distill > 0 && s.init.empty())
        fail("--distill: expected --init, whose model is the teacher, found none; name it, or leave out --distill");
    settle_shape(s, now, given, origin);
    if (!given.given("--lr") && !s.init.empty()) s.lr = tuning_rate(s.C);
    CompleteSettings complete;
    for (const std::string& flag : flags_with_dependent_defaults())
        if (!given.given(flag)) complete.implied.push_back(flag);
    settle_batch(s, ranks);
    if (s.micro_steps(ranks) == 1) complete.implied.push_back("--total-batch");
    complete.settings = s;
    complete.settings.depth.clear();  // the sizes say the shape
    complete.settings.resume = complete.settings.overwrite = complete.settings.dry_run = false;
    settle_gate(s);
    for (const Idle& idle : kIdle)
        if (now.typed(idle.flag) && idle.holds(s))
            complete.idle.push_back(std::string(idle.flag) + " (beside " + idle.beside + ")");
    return complete;
}

Options resume_settings(Settings& s, const Options& now, std::vector<std::string>& arguments,
                        const SavedSettings& saved) {
    const Settings given = s;
    const auto parse = [&](std::vector<std::string> words) {
        std::erase_if(words,
                      [](const std::string& a) { return a.starts_with("--resume") || a.starts_with("--overwrite"); });
        std::vector<const char*> pointers = {"train_gpt"};
        for (const std::string& a : words) pointers.push_back(a.c_str());
        s = Settings();
        Options options = make_options(s);
        try {
            options.parse(int(pointers.size()), pointers.data());
        } catch (const Error& error) {
            fail("%s: the flags in it are damaged: %s", saved.path.c_str(), error.what());
        }
        return options;
    };
    std::vector<std::string> asked;
    for (size_t at = 0, end; (end = saved.arguments.find('\n', at)) != std::string::npos; at = end + 1)
        asked.push_back(present_name(saved.escaped ? unescaped(saved.arguments.substr(at, end - at))
                                                   : saved.arguments.substr(at, end - at)));
    const Options before = parse(asked);
    set_dependent_defaults(s, before);
    // The run's own file of settings says these as they were asked for, or as the updates that they have become: no change.
    const std::tuple<const char*, Length Settings::*, std::string> gate[] = {{"--gate-warmup", &Settings::gate_warmup,
                                                                              saved.gate_warmup},
                                                                             {"--gate-end", &Settings::gate_end,
                                                                              saved.gate_end}};
    for (const auto& [flag, field, updates] : gate)
        if (const std::string l = to_text(given.*field); !now.typed(flag) && (l == to_text(s.*field) || l == updates))
            std::erase_if(arguments, [start = flag + std::string("=")](auto& a) { return a.starts_with(start); });
    std::vector<std::string> all = asked;
    all.insert(all.end(), {"--gate-warmup", saved.gate_warmup, "--gate-end", saved.gate_end});
    const auto texts_given = texts(given), texts_before = texts(s);
    std::vector<std::string> with_new = asked;
    with_new.insert(with_new.end(), arguments.begin(), arguments.end());
    const Options after = parse(with_new);
    set_dependent_defaults(s, after);
    const auto texts_after = texts(s);
    for (const auto& [flag, value] : saved.kept) {
        parse({flag, value});
        const std::string kept = texts(s).at(flag), now_given = texts_given.at(flag);
        // What follows from the other settings, before and now, is not said, so that the file of settings leaves it open as before.
        if (kept != texts_before.at(flag) || kept != texts_after.at(flag)) all.insert(all.end(), {flag, value});
        // What is no part of the model may change.
        const bool of_model = flag != "--scale-loss-kind" && flag != "--seq-len" && flag != "--warmup";
        if (now.given(flag) && now_given != kept && of_model)
            fail("%s: expected %s, as the run in %s has it, found %s; leave %s", flag.c_str(), kept.c_str(),
                 saved.path.c_str(), now_given.c_str(),
                 now.typed(flag) ? "the flag out" : "it out of the file of --config");
    }
    if (!saved.lr.empty()) all.insert(all.end(), {"--lr", saved.lr});
    if (!saved.total_batch.empty()) all.insert(all.end(), {"--total-batch", saved.total_batch});
    for (std::vector<std::string>* words : {&asked, &all})
        words->insert(words->end(), arguments.begin(), arguments.end());
    arguments = parse(asked).arguments();
    Options options = parse(all);
    s.out = given.out, s.resume = true;
    s.gpus = given.gpus;  // the ranks run already
    return options;
}

std::vector<std::pair<std::string, std::string>> settings_of_model(Settings s) {
    for (Length Settings::* length : {&Settings::warmup, &Settings::gate_warmup, &Settings::gate_end})
        s.*length = updates((s.*length).resolve(s.steps));
    std::vector<std::pair<std::string, std::string>> list;
    for (const auto& [names, value] : make_options(s).common())
        if (const std::string flag = names.substr(0, names.find(' '));  // of "--gate-mode (-g)"
            std::ranges::count(kNotOfModel, flag) == 0)
            list.push_back({flag.substr(2), value});
    return list;
}

std::string settings_text(CompleteSettings complete) {
    return strprintf("%s%s\n", kSettingsHeader, kSettingsAdvice) +
           make_options(complete.settings).config(complete.implied);
}

void check_inputs(const Settings& s) {
    for (const auto& [flag, input] :
         {std::pair("--train", s.train), std::pair("--val", s.val), std::pair("--init", s.init),
          std::pair("--tokenizer", s.tokenizer), std::pair("--hellaswag", s.hellaswag)}) {
        std::vector<std::string> files;
        try {
            if (!input.empty()) files = matching_files(input);
        } catch (const Error&) {
            // Whoever reads it says what is wrong with it, behind what is worse.
        }
        for (const std::string& file : files) {
            std::error_code ignored;
            if (std::filesystem::weakly_canonical(file, ignored).extension() == kTemporaryEnding)
                fail("%s: %s has the ending of files that the programs are writing, and may go; rename it", flag,
                     in_quotes(file).c_str());
        }
    }
}

void check_outputs(const Settings& s) {
    const std::string settings_file = settings_path(s.out), state = state_path(s.out), log = log_path(s.out);
    std::vector<std::string> outputs = {s.out, log, settings_file};
    for (size_t number = 0; number < s.keep; number++) outputs.push_back(numbered(state, number));
    if (!s.tensorboard.empty()) {
        check_place(s.tensorboard, s.tensorboard);
        std::error_code missing;
        std::filesystem::path there = s.tensorboard;
        while (!there.empty() && !exists(std::filesystem::symlink_status(there, missing))) there = there.parent_path();
        if (!there.empty() && !std::filesystem::is_directory(there, missing))
            fail("--tensorboard: %s is no folder; name another", in_quotes(there.string()).c_str());
        outputs.push_back(next_event_file(s.tensorboard));
    }
    for (const auto& [flag, corpus] : {std::pair("--train", s.train), std::pair("--val", s.val)})
        for (const std::string& out : outputs)
            if (pattern_names(corpus, out))
                fail(
                    "%s: %s also matches %s, which this run writes; name the corpus more closely (such as 'train_*.bin'), or "
                    "keep the run in another folder",
                    flag, in_quotes(corpus).c_str(), in_quotes(out).c_str());
    auto own_file = [](const std::string& path) {
        std::error_code unknown;
        return std::filesystem::exists(path, unknown) ? MappedFile(path, FileUse::own) : MappedFile();
    };
    auto start_of = [](const MappedFile& file, size_t bytes) {
        return std::string_view(reinterpret_cast<const char*>(file.data()), std::min(file.size(), bytes));
    };
    const MappedFile settings = own_file(settings_file), model = own_file(s.out);
    if (settings.size() > 0 && !start_of(settings, SIZE_MAX).starts_with(kSettingsHeader))
        fail("--out: the settings of this run would replace %s, which train_gpt has not written; expected another name",
             settings_file.c_str());
    // A model begins with the length of its header and the header's brace; what a broken disk leaves may be zeros.
    const std::string_view start = start_of(model, 9);
    if (start.size() == 9 && start[8] != '{' && start.find_first_not_of('\0') != start.npos)
        fail("--out: %s exists and is not a model; expected another name", in_quotes(s.out).c_str());
    for (const std::string& out : {s.out, state, log, settings_file})
        s.dry_run ? check_folder(out, std::filesystem::absolute(out).parent_path().string()) : check_writable(out);
    // What a run has left there is set aside; what cannot be a run's stays.
    std::error_code ignored;
    const auto in_the_way = std::filesystem::symlink_status(new_log_path(s.out), ignored);
    if (std::filesystem::exists(in_the_way) && !std::filesystem::is_regular_file(in_the_way))
        fail("--out: %s, which holds the log of a run until its first checkpoint, is not a regular file; remove it",
             in_quotes(new_log_path(s.out)).c_str());
    for (const std::string& out : existing_files(s.out)) {
        if (std::filesystem::is_directory(out))
            fail("--out: a file of the run would have the name of the directory %s; move it away",
                 in_quotes(out).c_str());
        claim_output("--out", out);
    }
    claim_output("--out", new_log_path(s.out));
}

}  // namespace tapernorm::train
