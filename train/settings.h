// The settings of a run: every flag's field and default. train/settings.cpp has the flags' names and help texts, and
// every rule by which one flag changes or forbids another.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "io/options.h"
#include "model/config.h"
#include "train/ranks/ranks.h"

namespace tapernorm::train {

struct Settings {
    std::string train, val, tokenizer, out = "model.bin", init;
    bool resume = false, overwrite = false, dry_run = false;
    size_t checkpoint_every = 0, keep = 2;
    double checkpoint_minutes = 10;

    std::string depth;
    size_t L = 4, NH = 4, C = 128, T = 256;
    std::string norm = "layernorm";

    size_t batch = 4, total_batch = 0, steps = 2700, recompute = 0, logits_rows = 0;
    bool shuffle = true;

    std::string optimizer = "adamw";
    double lr = 3e-3, lr_gains = 1, lr_final_frac = 0.03, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.99, clip = 1;
    Length warmup = percent_of_run(10);  // dev/results/experiments.md, as are those of the gate
    std::string lr_schedule = "cosine";
    double skip_loss_z = 0, skip_grad = 100;

    std::string gate = "taper";
    Length gate_warmup = percent_of_run(5), gate_end = percent_of_run(40);  // dev/results/experiments.md
    double ema_decay = 0.99, gain = 1, scale_loss = 0.1, scale_target = 1;
    std::string scale_loss_kind = "absolute", calibration = "scalar";
    double bound = 8, final_bound = 1.5;  // dev/results/experiments.md: running off, and a bound
    bool freeze_gains = false, carry_moments = false;
    double distill = 0;

    size_t val_every = 300, val_batches = 20, sample_every = 0;
    std::string hellaswag, tensorboard;
    size_t log_norms = 0, seed = 1, threads = 0;
    std::string device = "auto", precision = "bf16";
    bool tune = false;

    size_t gpus = 1, zero = 0;
    double rank_timeout = 600;

    size_t micro_steps(const Ranks& ranks) const { return total_batch / (batch * T * size_t(ranks.size)); }
};

// The table of all flags; it fills s. s holds the defaults that --help shows.
Options make_options(Settings& s);

// Long names of those whose default depends on other settings.
std::vector<std::string> flags_with_dependent_defaults();

// The file that a run begins from: --init's model, or the state to resume.
struct Origin {
    std::string path;
    Config config;
};

// What settle makes of a run's settings for the file from which --config starts the same run again: complete, with fractions of
// the run still fractions. implied: long names of those that follow from the others; idle: flags of the command line that do
// nothing in this run, and why.
struct CompleteSettings {
    Settings settings;
    std::vector<std::string> implied, idle = {};
};

// Applies and checks every rule between settings; errors name the flags. now: what this command line and
// its file of settings give; given: this and, in a run that resumes, what is saved in its state. origin: null where the run begins from random weights.
CompleteSettings settle(Settings& s, const Options& now, const Options& given, const Origin* origin,
                        const Ranks& ranks = single_rank());

// The flags of the run that wrote a state, then those given now (`arguments`, which becomes both, as they were asked for): the
// last one counts. Returns the options, all of them parsed. now: as they parsed this command line into s.
struct SavedSettings {
    std::string path, arguments;  // arguments: one per line
    bool escaped = false;         // see escaped(); not so in states of version 1
    // What they were in updates and tokens; they stay also where they were percentages of a run that -x makes longer now.
    std::string gate_warmup, gate_end, total_batch;
    std::string lr = {};  // where today's default may be another
    // Flags and values of what the run keeps although defaults have changed since.
    std::vector<std::pair<std::string, std::string>> kept = {};
};
Options resume_settings(Settings& s, const Options& now, std::vector<std::string>& arguments,
                        const SavedSettings& saved);

// The settings that a model depends on, after settle, with lengths in updates: long names without dashes, and values.
std::vector<std::pair<std::string, std::string>> settings_of_model(Settings s);

// The file at settings_path, of what settle returned.
std::string settings_text(CompleteSettings complete);

// Before anything is written: fails where what is read has the name of a temporary file, which may be in the way.
void check_inputs(const Settings& s);
// Before hours of work: fails where a file of the run cannot be written, or is somebody else's; claims them as outputs.
void check_outputs(const Settings& s);

}  // namespace tapernorm::train
