// What a run reports: its start and end, one line per update, the log, the memory that it holds.
#pragma once
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/terminal.h"
#include "runtime/arena.h"
#include "runtime/exit_status.h"
#include "train/run_files.h"
#include "train/run_log.h"
#include "train/start.h"
#include "train/tensorboard.h"
#include "train/trainer.h"
#include "train/tuning.cuh"
#include "train/watch.cuh"
#ifdef TN_CUDA
#include "runtime/cuda.cuh"
#endif

namespace tapernorm::train {

// What one update reports.
struct StepReport {
    size_t step = 0;
    double loss = 0;                // cross-entropy, mean over the update's tokens
    std::optional<double> kl = {};  // with a teacher: KL(teacher || model), mean over the update's tokens
    double scale_loss = 0;          // lambda mean (s - s_tgt)^2, lambda as its kind has it
    double g = 1, lr = 0, grad_norm = 0;
    double stream_scale = 0;  // mean s(h)
    bool skipped = false;     // an outlier (--skip-loss-z, --skip-grad): the parameters were left alone
    const char* why_skipped = "";
    // Where one of the ranks was told to stop, the run ends here. Where it was in the middle of the update, the update is left
    // out: `step` is the one before, and nothing else of this report means anything.
    bool stop = false, abandoned = false;
    bool checkpoint = false;  // it is time to save one
    double seconds = 0;

    double losses() const { return loss + kl.value_or(0) + scale_loss; }  // finite where each of them is
};

// Prints that fail (a full disk, a reader that is gone) are no reason to stop: it is said once.
inline void warn_of_output() {
    static bool said = false;
    if (said) return;
    if (const char* problem = output_problem()) {
        said = true;
        std::fprintf(stderr, "warning: cannot write to the standard output: %s; the run continues\n", problem);
    }
}

// A number in a column of six characters, or with an exponent where they do not hold it.
inline std::string in_column(double x) {
    const std::string text = strprintf("%6.3f", x);
    return text.size() > 6 || (x != 0 && std::fabs(x) < 1e-3) ? strprintf("%6.4g", x) : text;
}

// How fast a run is. flops_per_token: training_flops, of the whole model; peak: of all its GPUs together, 0 where it is not known.
struct Speed {
    double tokens_per_second = 0, flops_per_token = 0, peak = 0;
};

// "  1000 tok/s, 94.3 GFLOP/s", or with the share of the peak (model FLOPs utilization): "  1000 tok/s, MFU 41.2%".
inline std::string in_words(const Speed& s) {
    const double flops = s.flops_per_token * s.tokens_per_second, giga = flops * 1e-9;
    const std::string tokens = strprintf("%6.0f tok/s", s.tokens_per_second);
    if (flops == 0) return tokens;
    if (s.peak > 0) return tokens + strprintf(", MFU %.1f%%", 100 * flops / s.peak);
    return tokens + (giga < 1000 ? strprintf(", %4.3g GFLOP/s", giga) : strprintf(", %4.3g TFLOP/s", giga * 1e-3));
}

// "step 1/10 | loss ...": the log's loss, with the scale loss beside it where that is more than rounding of what is
// minimised. left: how much time is left, "3m05s"; "" where nobody watches. It comes early: a terminal cuts off the end.
inline std::string step_line(const StepReport& r, size_t steps, const Speed& speed, const std::string& left = "") {
    std::string text = strprintf("step %*zu/%zu", int(std::to_string(steps).size()), r.step, steps);
    if (!left.empty()) text += " | " + left + " left";
    text += strprintf(" | loss %.4f", r.loss);
    if (r.kl) text += strprintf(" | kl %.4f", *r.kl);
    if (!(r.scale_loss <= 1e-3 * std::min(r.loss, r.kl.value_or(r.loss))))
        text += strprintf(" | scale loss %.3g", r.scale_loss);
    text += strprintf(" | g %.3f | lr %.2e | grad norm %s | s(h) %s | %s", r.g, r.lr, in_column(r.grad_norm).c_str(),
                      in_column(r.stream_scale).c_str(), in_words(speed).c_str());
    if (r.skipped) text += strprintf(" | skipped: %s", r.why_skipped);
    return text;
}

// One line per update on a terminal, overwritten in place, with the time left; elsewhere about 40 lines per run.
class Progress {
  public:
    // speed: its constants, flops_per_token and peak.
    Progress(const Settings& s, size_t first_step, const Ranks& ranks, const Speed& speed)
        : settings_(s), first_(first_step), speed_(speed), line_(ranks.launcher != "mpirun") {}

    void update(const StepReport& r) {
        const size_t steps = settings_.steps, every = std::max<size_t>(1, steps / 40);
        seconds_ = seconds_ == 0 ? r.seconds : 0.9 * seconds_ + 0.1 * r.seconds;
        const std::string left = line_.terminal() ? duration(double(steps - r.step) * seconds_) : "";
        speed_.tokens_per_second = double(settings_.total_batch) / seconds_;
        line_.show(step_line(r, steps, speed_, left),
                   r.step % every == 0 || r.step == first_ + 1 || r.step == steps || r.skipped);
        warn_of_output();
    }

    // A line of its own, above the live one.
    void note(const std::string& text) { line_.show(text, true); }

  private:
    const Settings& settings_;
    size_t first_;
    double seconds_ = 0;
    Speed speed_;
    LiveLine line_;
};

// A frozen scale that no longer fits: early calibration of a young stream, without an anchor. On its way to a --scale-target the
// stream may be anywhere between.
template <class Device, class Real>
bool drifted(const Trainer<Device, Real>& t, const StepReport& r) {
    if (r.skipped || r.step <= t.gate_warmup || t.scale_target == 0 || t.model.config.mode == GateMode::norm)
        return false;
    const double then = t.calibration.target_scale();
    return !(r.stream_scale < kDrift * std::max(then, t.scale_target) &&
             r.stream_scale > std::min(then, t.scale_target) / kDrift);
}

template <class Device, class Real>
std::string drift_warning(Trainer<Device, Real>& t, const StepReport& r) {
    const double then = t.calibration.target_scale(), loss = t.settings.scale_loss;
    return strprintf("warning: s(h) is %.3g now and was %.3g when the sites were calibrated (update %zu); %s; ",
                     r.stream_scale, then, t.gate_warmup, which_moved_first(t.site_scales(), kDrift).c_str()) +
           (r.stream_scale < then
                ? strprintf("the stream has shrunk since: use a lower --lr or a larger --scale-loss (%g)", loss)
                : strprintf("the stream was still growing: use a longer --gate-warmup or a larger --scale-loss (%g)",
                            loss));
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
    if (t.teacher) table.emplace_back("teacher", t.teacher->param_memory.bytes() + t.teacher->act_memory.bytes());
#ifdef TN_CUDA
    if constexpr (std::is_same_v<Device, Cuda>) {
        table.emplace_back(t.batches.memory().what(), t.batches.memory().bytes());
        table.emplace_back("workspace of matrix products", m.dev.workspace_bytes);
    }
#endif
    return table;
}

// "peak memory ...": of the process, or of the GPU with all that runs on it. On the CPU also how long threads had nothing to do.
inline std::string in_use(Cpu&) {
    struct rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::string text = strprintf("peak memory %.1f MiB", double(usage.ru_maxrss) / 1024);
    if (Team* team = Team::led_here())
        text = strprintf("threads waited %.0f%% of the time; ", 100 * team->counts().waited) + text;
    return text;
}
#ifdef TN_CUDA
inline std::string in_use(Cuda& dev) {
    size_t free = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    std::string text;
    const std::vector<std::string> refused = dev.plans.refused();
    for (const std::string& product : refused) text += (text.empty() ? "" : ", ") + product;
    if (!refused.empty())
        text = strprintf("cuBLASLt lacks the epilogue of %zu of %zu kinds of product, which runs apart: %s; ",
                         refused.size(), dev.plans.size(), text.c_str());
    return text + strprintf("GPU memory %.1f of %.1f MiB", double(total - free) / 1048576, double(total) / 1048576);
}
#endif

inline void print_idle(const std::vector<std::string>& flags) {
    for (const std::string& flag : flags) std::printf("note: %s has no effect in this run\n", flag.c_str());
}

template <class Device, class Real>
void print_start(const Trainer<Device, Real>& t, const Run& run) {
    const Settings& s = t.settings;
    const ModelInfo info{t.model.config, t.gate_now(), t.step, run.tokenizer, {}};
    std::printf("model     %s\n", describe(info).c_str());
    if (const size_t positions = t.model.config.T; s.T < positions)
        std::printf(
            "context   -t %zu: the first %zu of its %zu positions are trained, those behind them may get worse; -t %zu trains all\n",
            s.T, s.T, positions, positions);
    std::printf("data      %s: %zu tokens to train on (%.2f epochs), %zu to validate\n", run.train.name().c_str(),
                run.train.size(), double(s.steps) * double(s.total_batch) / double(run.train.size()), run.val.size());
    if (run.tokenizer_assumed)
        std::printf("          (no tokenizer beside the shards: taken for ids of %s; --tokenizer names another)\n",
                    run.init ? "the model of --init" : printable(run.tokenizer.at("tokenizer")).c_str());
    if (t.model.config.mode != GateMode::norm)
        std::printf("gate      1 up to update %zu (calibration), 0 from update %zu on%s\n", t.gate_warmup, t.gate_end,
                    t.gate_end > s.steps ? ": after the end of this run, whose model cannot be folded yet" : "");
    std::string waiting;
    for (const auto& [flag, waits] : {std::pair("--scale-loss", s.scale_loss > 0 && t.gate_warmup >= s.steps),
                                      std::pair("--freeze-gains", s.freeze_gains && t.gate_warmup >= s.steps),
                                      std::pair("--carry-moments", s.carry_moments && t.gate_warmup >= s.steps),
                                      std::pair("--gain", s.gain != 1 && t.gate_warmup > s.steps)})
        if (waits) waiting += (waiting.empty() ? "" : ", ") + std::string(flag);
    if (!waiting.empty())
        std::printf("%s without effect in this run: %s, from the end of update %zu on (--gate-warmup)\n",
                    t.model.config.mode == GateMode::norm ? "gate      1;" : "         ", waiting.c_str(),
                    t.gate_warmup);
    if (attention_kernels(t) == "wgmma") std::printf("attention by %s\n", attention_in_words("wgmma").c_str());
    const Ranks& ranks = t.model.ranks;
    if (ranks.size > 1)
        std::printf("ranks     %d, started by %s; an update is %s on each\n", ranks.size, ranks.launcher.c_str(),
                    counted(s.micro_steps(ranks), "micro-batch").c_str());
    std::printf("memory   ");
    size_t total = 0;
    for (const auto& [purpose, bytes] : memory_table(t)) {
        std::printf(" %s %.1f MiB,", purpose.c_str(), double(bytes) / 1048576);
        total += bytes;
    }
    std::printf(" together %.1f MiB%s\n\n", double(total) / 1048576, ranks.size > 1 ? " per rank" : "");
}

// A loss in nats per token, as "0.39 bits per byte": what models with different tokenizers are compared by. Where the
// bytes of the tokens are not known, it is bits per token.
inline std::string in_bits(double loss, const Run& run) {
    const double bits = loss / std::log(2.0);
    if (!run.decode) return strprintf("%.4f bits per token", bits);
    std::vector<int> tokens(std::min<size_t>(run.val.size(), 1 << 20));
    run.val.read(0, tokens.size(), tokens.data());
    size_t bytes = 0;
    for (int id : tokens) bytes += size_t(id) < run.decode->vocab_size() ? run.decode->token(size_t(id)).size() : 0;
    return strprintf("%.4f bits per byte", bits * double(tokens.size()) / double(std::max<size_t>(bytes, 1)));
}

// The flags with which a longer run goes on at a learning rate; none for the rate 0, with which no run goes on.
inline std::string flags_for_rate(double rate) { return rate > 0 ? strprintf(" -k constant -u 0 -l %.3g", rate) : ""; }

// Where -x is longer than it was, the schedule stretches, and the rate may jump.
template <class Device, class Real>
void print_change_of_rate(const Trainer<Device, Real>& t, double last) {
    const double next = t.lr_at(t.step + 1);
    if (t.step >= t.settings.steps || (next <= 1.5 * last && next >= last / 1.5)) return;
    std::printf("rate      %.3g at update %zu, %.3g at the next, as the schedule is now%s%s\n", last, t.step, next,
                last > 0 ? "; to go on at the old rate:" : "", flags_for_rate(last).c_str());
}

// rate: of the last update, whose schedule may have been another.
template <class Device, class Real>
void print_end(const Trainer<Device, Real>& t, const Run& run, double val_loss, double rate) {
    const Settings& s = t.settings;
    size_t held = 0;
    for (const auto& [purpose, bytes] : memory_table(t)) held += bytes;
    std::printf("\nvalidation loss %.4f (%s) after %s, on %zu of %zu tokens\n", val_loss,
                in_bits(val_loss, run).c_str(), counted(t.step, "update").c_str(), t.validation->tokens,
                run.val.size());
    std::printf("%s, of which tensors %.1f MiB\n", in_use(t.model.dev).c_str(), double(held) / 1048576);
    std::printf("model %s, state %s, log %s, settings %s\n", printable(s.out).c_str(),
                printable(state_path(s.out)).c_str(), printable(log_path(s.out)).c_str(),
                printable(settings_path(s.out)).c_str());
    // Of another name for each run, so that the next one's does not replace it.
    const std::string name = s.out == "model.bin" ? "folded.bin" : s.out.substr(0, s.out.size() - 4) + ".folded.bin",
                      out = shell_word(s.out), folded = shell_word(name);
    if (const double g = t.gate_now(); t.model.config.mode != GateMode::norm && g != 0)
        std::printf("next: the gate is still %.4g; continue: ./train_gpt -y -o %s -x %zu%s\n", g, out.c_str(),
                    t.gate_end, flags_for_rate(rate).c_str());
    else
        std::printf("next: ./fold %s %s && ./infer %s --last-token%s\n", out.c_str(), folded.c_str(), folded.c_str(),
                    run.decode ? "" : " --tokens 0");
}

template <class Device, class Real>
RunLog::Fields log_fields(Trainer<Device, Real>& t, const StepReport& r) {
    // clang-format off
    RunLog::Fields fields = {{"tokens", uint64_t(r.step * t.settings.total_batch)}, {"loss", r.loss},
                             {"scale_loss", r.scale_loss}, {"g", r.g}, {"lr", r.lr}, {"grad_norm", r.grad_norm},
                             {"stream_scale", r.stream_scale},
                             {"tokens_per_second", double(t.settings.total_batch) / r.seconds}};
    // clang-format on
    if (r.kl) fields.insert(fields.begin() + 2, {"kl", *r.kl});  // beside the loss
    if (r.skipped) fields.push_back({"skipped", uint64_t(1)});
    if (r.step == t.gate_warmup) {
        fields.push_back({"scale_target", t.scale_target});
        const auto names = taper_site_names(t.model.config);
        for (size_t i = 0; i < names.size(); i++)
            fields.push_back({names[i] + ".taper_scale", double(t.model.scales[i].c)});
    }
    if (r.step == t.gate_end && t.model.config.first_apart) {  // it follows the streams until then
        const auto names = taper_site_names(t.model.config);
        for (size_t i = 0; i < names.size(); i++)
            fields.push_back({names[i] + ".first_scale", double(t.model.scales[i].first)});
    }
    if (t.settings.log_norms && r.step % t.settings.log_norms == 0) {
        for (const auto& [tensor, norm] : t.gradient_norms()) fields.push_back({"grad_norm/" + tensor, norm});
        for (const SiteScale& s : t.site_scales()) fields.push_back({"stream_scale/" + s.site, s.now});
    }
    return fields;
}

// The log next to the model, and TensorBoard's, on rank 0. The first record creates them, so that a run that fails before leaves
// older logs alone.
class Logs {
  public:
    // resumed_at: updates done; none for a fresh run.
    Logs(const Settings& s, const Run& run, std::optional<size_t> resumed_at, bool writes)
        : settings_(s), run_(run), resumed_at_(resumed_at), writes_(writes) {}

    void write(size_t step, const RunLog::Fields& fields) {
        if (!writes_) return;
        open().write(step, fields);
        if (board_) board_->write(step, fields);
    }

    // The closing record, but for a run that had nothing to do and whose log somebody took away. validation: the latest, where one
    // is known.
    void write_end(const std::string& how, size_t step, uint64_t tokens, const std::optional<Validation>& validation,
                   const std::optional<HellaSwag>& scores = {}) {
        if (!writes_ || (!log_ && resumed_at_ && access(log_path(settings_.out).c_str(), F_OK) != 0)) return;
        RunLog::Fields fields = {{"updates", uint64_t(step)}, {"tokens", tokens}}, results;
        if (validation) results.push_back({"val_loss", validation->loss});
        if (scores)
            results.insert(results.end(),
                           {{"hellaswag_acc", scores->acc()}, {"hellaswag_acc_norm", scores->acc_norm()}});
        fields.insert(fields.end(), results.begin(), results.end());
        if (validation)
            fields.insert(fields.end(),
                          {{"val_update", uint64_t(validation->update)}, {"val_tokens", uint64_t(validation->tokens)}});
        open().write_end(how, fields);
        if (how != "complete" || !board_) return;
        for (auto& result : results) result.first = "final_" + result.first;
        board_->write(step, results);
    }

    void flush() const {
        if (log_) log_->flush();
    }

  private:
    RunLog& open() {
        if (log_) return *log_;
        // Until the first checkpoint an earlier run under this name keeps its log.
        log_.emplace(run_.new_log ? new_log_path(settings_.out) : log_path(settings_.out), resumed_at_, run_.id);
        if (!settings_.tensorboard.empty()) board_.emplace(settings_.tensorboard, resumed_at_);
        return *log_;
    }

    const Settings& settings_;
    const Run& run_;
    std::optional<size_t> resumed_at_;
    bool writes_;
    std::optional<RunLog> log_;
    std::optional<TensorBoardLog> board_;
};

// After the last checkpoint of a run that was told to stop. saved: whether there was anything to save.
template <class Device, class Real>
int stopped(Trainer<Device, Real>& t, Logs& logs, int signal, bool saved) {
    Ranks& ranks = t.model.ranks;
    const std::string resume = strprintf("./train_gpt -y -o %s", shell_word(t.settings.out).c_str());
    if (saved) logs.write_end("interrupted", t.step, t.step * t.settings.total_batch, t.validation);
    std::vector<double> troubles = {0, double(!t.trouble.empty())};
    ranks.sum(troubles, "the end of the run");  // nobody ends the others while rank 0 writes
    if (!t.trouble.empty())
        fail("%s%s", t.trouble.c_str(),
             saved ? strprintf("; the run is saved after update %zu; once that is mended, %s resumes it", t.step,
                               resume.c_str())
                         .c_str()
                   : "");
    if (troubles[1] > 0) ranks.sum(troubles, "the reason why another rank cannot go on");  // which ends this one
    const char* lost = t.step < t.settings.steps ? ", not repeated later" : "";
    const std::string missing = t.missing.empty() ? "" : ", without its " + t.missing + lost;
    if (saved)
        std::printf("\ninterrupted after update %zu%s; resume with: %s\n", t.step, missing.c_str(), resume.c_str());
    else
        std::printf("\ninterrupted before update %zu; no file has changed\n", t.step + 1);
    return 128 + (signal ? signal : SIGTERM);  // another rank's signal, where this one had none
}

}  // namespace tapernorm::train
