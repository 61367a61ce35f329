// Checkpoints: the state file, from which a run resumes to the bit, and the model file.
#pragma once
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/atomic_file.h"
#include "io/files.h"
#include "model/model_file.h"
#include "train/channels.cuh"
#include "train/checkpoints.h"
#include "train/outliers.h"
#include "train/ranks/shards.h"
#include "train/run_files.h"
#include "train/start.h"
#include "train/trainer.h"
#include "train/tuning.cuh"

namespace tapernorm::train {

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
    void add_state(const std::string& prefix, const std::vector<Scalar*>& parts) {
        const auto list = tensor_list(model.config, model.params);
        for (size_t i = 0; i < list.size(); i++) {
            if (!model.shards.sharded() && !parts[i]) continue;  // Muon has no v
            if (std::is_same_v<Device, Cpu> && !model.shards.sharded())
                add(prefix + list[i].spec.name, list[i].spec, parts[i], {});
            else
                add(prefix + list[i].spec.name, list[i].spec, nullptr,
                    gather_tensor(model.dev, model.ranks, model.shards, parts, i));
        }
    }
};

// A state in rank 0's memory, ready to be written.
template <class Device, class Real>
struct GatheredState {
    HostTensors<Device, Real> tensors;
    std::vector<double> averages = {}, channels = {}, first = {}, stream = {}, losses = {}, gradients = {};
    std::vector<float> taper_scale = {}, first_scale = {};
    std::map<std::string, std::string> metadata = {};
};

// The state holds all that the next update depends on, the parameters included, so that one file is one whole checkpoint
// whatever happens to the others. All ranks that keep a part of it call this. more: metadata of the run (run_metadata) and of
// its tokenizer.
template <class Device, class Real>
std::unique_ptr<GatheredState<Device, Real>> gather_state(Trainer<Device, Real>& t,
                                                          const std::vector<std::string>& arguments,
                                                          const std::map<std::string, std::string>& more) {
    std::unique_ptr<GatheredState<Device, Real>> state(new GatheredState<Device, Real>{{t.model}});
    auto& [tensors, averages, channels, first, stream, losses, gradients, taper_scale, first_scale, metadata] = *state;
    tensors.add_parameters(), tensors.add_state("m.", t.m), tensors.add_state("v.", t.v);
    if (!t.model.ranks.first()) return state;
    const Calibration& c = t.calibration;
    for (const Calibration::Ema& site : c.sites) averages.insert(averages.end(), {site.num, site.den, site.scale});
    for (const std::vector<double>& site : c.channels) channels.insert(channels.end(), site.begin(), site.end());
    if (!channels.empty()) channels.push_back(c.channel_weight);
    for (const TaperScale& site : t.model.scales) taper_scale.push_back(site.c), first_scale.push_back(site.first);
    if (!t.model.config.first_apart) first_scale.clear();
    if (t.model.config.first_apart) first = c.first;
    stream = {c.stream_scale, double(c.updates), t.scale_target};
    losses.assign(t.losses.losses.begin(), t.losses.losses.end());
    gradients.assign(t.gradients.norms.begin(), t.gradients.norms.end());
    auto add = [&out = tensors.out](const char* name, Dtype dtype, size_t count, const void* data) {
        if (count) out.push_back({name, dtype, {count}, data});
    };
    add("state.calibration", Dtype::F64, averages.size(), averages.data());
    add("state.channels", Dtype::F64, channels.size(), channels.data());
    add("state.stream", Dtype::F64, stream.size(), stream.data());
    add("state.first", Dtype::F64, first.size(), first.data());
    add("state.taper_scale", Dtype::F32, taper_scale.size(), taper_scale.data());
    add("state.first_scale", Dtype::F32, first_scale.size(), first_scale.data());
    add("state.losses", Dtype::F64, losses.size(), losses.data());
    add("state.gradient_norms", Dtype::F64, gradients.size(), gradients.data());
    std::string lines;
    for (const std::string& a : arguments) lines += escaped(a) + "\n";
    metadata = config_metadata(t.model.config);
    metadata.insert(more.begin(), more.end());
    metadata.insert({{"state_version", t.muon ? "6" : "5"},  // 6 has no v of the blocks' matrices
                     {"step", std::to_string(t.step)},
                     {"lr", strprintf("%.17g", t.lr_now())},
                     {"optimizer", t.settings.optimizer},
                     {"peak_lr", strprintf("%.17g", t.settings.lr)},
                     {"position", std::to_string(t.batches.position())},
                     {"warmup", to_text(t.settings.warmup)},
                     {"seq_len", std::to_string(t.settings.T)},
                     {"total_batch", std::to_string(t.settings.total_batch)},
                     {"gate_warmup", std::to_string(t.gate_warmup)},
                     {"gate_end", std::to_string(t.gate_end)},
                     {"scale_loss_kind", t.settings.scale_loss_kind},
                     {"calibration", t.settings.calibration},
                     {"gain", strprintf("%.17g", t.settings.gain)},
                     {"scale_target_factor", strprintf("%.17g", t.settings.scale_target)},
                     {"carry_moments", std::to_string(t.settings.carry_moments)},
                     {"distill", strprintf("%g", t.settings.distill)},
                     {"arguments", lines}});
    if (const std::string tuned = t.settings.tune ? tuned_products(t.model.dev) : ""; !tuned.empty())
        metadata["products"] = tuned;
    if (const std::string kernels = attention_kernels(t); !kernels.empty()) metadata["attention"] = kernels;
    return state;
}

template <class Device, class Real>
void save_state(Trainer<Device, Real>& t, const std::vector<std::string>& arguments, Checkpoints& checkpoints,
                const std::map<std::string, std::string>& more = {}) {
    const auto state = gather_state(t, arguments, more);
    if (t.model.ranks.first()) checkpoints.write(state->metadata, state->tensors.out, t.settings.keep);
}

template <class Device, class Real>
void read_moments(Gpt<Device, Real>& model, const SafetensorsFile& file, const std::string& prefix,
                  const std::vector<Acc<Real>*>& parts) {
    const auto list = tensor_list(model.config, model.params);
    for (size_t i = 0; i < list.size(); i++) {
        if (!model.shards.sharded() && !parts[i]) continue;
        std::vector<Acc<Real>> values(list[i].spec.count());
        file.read(checked_tensor(file, prefix + list[i].spec.name, list[i].spec.shape), values.data());
        set_parts(model.dev, model.shards, parts, i, values.data());
    }
}

// A gate schedule that is not the state's may still change what is to come, not what has been; so may what the calibration's end
// puts in place.
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
    const auto spent = [&](const char* flag, const char* key, double now) {
        if (!file.metadata().contains(key) || t.step < warmup) return;  // the first: of an older program
        const double was = std::atof(state_metadata(file, key).c_str());
        if (now != was)
            fail("%s: the run in %s is at update %zu, and %g was put in place at update %zu; found %g; leave it out",
                 flag, file.path().c_str(), t.step, was, warmup, now);
    };
    spent("--gain", "gain", t.settings.gain), spent("--scale-target", "scale_target_factor", t.settings.scale_target);
    spent("--carry-moments", "carry_moments", t.settings.carry_moments);
}

// file: one that check_state has accepted.
template <class Device, class Real>
void load_state(Trainer<Device, Real>& t, const SafetensorsFile& file) {
    t.step = state_number(file, "step");
    check_gate_schedule(t, file);
    t.batches.seek(state_number(file, "position"));
    if (const auto tuned = file.metadata().find("products"); t.settings.tune && tuned != file.metadata().end())
        adopt_products(t.model.dev, tuned->second);
    if (const auto kernels = file.metadata().find("attention"); kernels != file.metadata().end())
        if (const std::string now = attention_kernels(t);
            t.model.ranks.first() && !now.empty() && now != kernels->second)
            std::printf("note: attention is by %s from here on, it was by %s: other kernels round otherwise\n",
                        attention_in_words(now).c_str(), attention_in_words(kernels->second).c_str());
    auto numbers = [&]<class T>(const char* name, std::vector<T>& values) {
        if (!values.empty()) file.read(checked_tensor(file, name, {values.size()}), values.data());
    };
    Calibration& c = t.calibration;
    std::vector<double> averages(3 * c.sites.size()), stream(3);
    numbers("state.calibration", averages), numbers("state.stream", stream);
    std::vector<float> taper_scale(c.sites.size()), first_scale(t.model.config.first_apart ? c.sites.size() : 0);
    numbers("state.taper_scale", taper_scale), numbers("state.first_scale", first_scale);
    for (size_t i = 0; i < taper_scale.size(); i++)
        t.model.scales[i] = {taper_scale[i], first_scale.empty() ? 1 : first_scale[i]};
    for (size_t i = 0; i < c.sites.size(); i++)
        c.sites[i] = {averages[3 * i], averages[3 * i + 1], averages[3 * i + 2]};
    if (!(stream[1] >= 0 && stream[1] <= 0x1p53))
        fail("%s: tensor state.stream: the file is damaged", file.path().c_str());
    if (file.find("state.channels")) {
        const size_t sites = c.sites.size(), width = kChannelSums * t.model.config.C;
        std::vector<double> channels(sites * width + 1);
        numbers("state.channels", channels);
        c.channel_weight = channels.back();
        if (!(c.channel_weight > 0 && c.channel_weight <= 1))
            fail("%s: tensor state.channels: the file is damaged", file.path().c_str());
        for (size_t i = 0; i < sites; i++) {
            c.channels.emplace_back(&channels[i * width], &channels[i * width] + width);
            for (size_t j = t.model.config.C; j < 3 * t.model.config.C; j++)  // means of u^2 and of u^2 / s
                if (!(c.channels[i][j] >= 0))
                    fail("%s: tensor state.channels: the file is damaged", file.path().c_str());
        }
        c.first.resize(sites);
        if (t.model.config.first_apart) numbers("state.first", c.first);
        if (t.step >= t.gate_warmup) c.fits = channel_fits(t);
    }
    c.stream_scale = stream[0], c.updates = size_t(stream[1]), t.scale_target = stream[2];
    auto window = [&](const char* name, size_t size, std::deque<double>& values) {
        const TensorEntry* entry = file.find(name);
        std::vector<double> read(entry ? std::min(entry->count(), size) : 0);
        numbers(name, read);
        values.assign(read.begin(), read.end());
    };
    window("state.losses", LossWindow::kSize, t.losses.losses);
    window("state.gradient_norms", GradientWindow::kSize, t.gradients.norms);
    // With a teacher or without, the usual gradient norm is another.
    const auto share = file.metadata().find("distill");
    const bool taught = share != file.metadata().end() && std::atof(share->second.c_str()) > 0;
    if (taught != (t.settings.distill > 0)) t.gradients = {};
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

// Parameters that are no longer numbers can neither be resumed nor used: the run ends, and the checkpoint before them stays. All
// ranks have the same parameters, and call this.
template <class Device, class Real>
void require_finite_parameters(Trainer<Device, Real>& t) {
    Gpt<Device, Real>& model = t.model;
    const double squares = sum_of_squares(model.dev, static_cast<const Real*>(model.param_memory.data()),
                                          model.param_memory.bytes() / sizeof(Real));
    if (!std::isfinite(squares))
        model.ranks.fail_together(strprintf(
            "step %zu: the parameters are not finite: the run diverged; nothing was written since the last checkpoint; "
            "try a smaller -l",
            t.step));
}

// Gives what a checkpoint would replace and nothing else holds another name: a model that is newer than the state that was
// resumed. And a fresh run's first checkpoint ends the time in which an earlier run of this name could still be resumed under it.
inline void make_room(Run& run, const Settings& s) {
    if (run.newer_model) {
        const std::string aside = aside_path(s.out);
        set_aside(s.out, aside, {s.out});
        run.newer_model = false;
        std::printf("earlier   the newer model is now %s; delete it if you do not need it\n",
                    shell_word(aside).c_str());
    }
    if (!run.first_checkpoint) return;
    if (run.new_log) finish_set_aside(s.out);  // where an attempt before this one failed
    std::vector<std::string> files = existing_files(s.out);
    if (!run.new_log) std::erase(files, log_path(s.out));  // its own
    // No run has made a directory: it stays where it is, and what it is in the way of fails.
    std::erase_if(files, [](const std::string& path) { return std::filesystem::is_directory(path); });
    if (!s.overwrite && !files.empty()) {
        const std::string aside = aside_path(s.out);
        set_aside(s.out, aside, files);
        const std::string resume = std::filesystem::exists(state_path(aside))
                                       ? "; to resume that run: ./train_gpt -y -o " + shell_word(aside)
                                       : "";
        std::printf("earlier   the files of the earlier run are now %s and so on%s\n", shell_word(aside).c_str(),
                    resume.c_str());
    }
    run.first_checkpoint = false;
}

// The log is renamed behind the first state or model: whenever the program is killed, either run can go on with its own.
inline void replace_logs(Run& run, const Settings& s) {
    if (!run.new_log) return;
    std::error_code ignored;
    for (const std::string& log : kept_logs(s.out)) std::filesystem::remove(log, ignored);
    name_new_log(s.out);
    run.new_log = false;
}

// What is in the way of the settings, but for a full disk, is no reason to go without the model. Said once: a last save is tried
// again and again.
inline void write_settings(const std::string& path, const std::string& text) try {
    write_text(path, text);
} catch (const DiskFull&) {
    throw;
} catch (const Error& error) {
    static std::string said;
    if (std::exchange(said, error.what()) != error.what())
        std::fprintf(stderr, "warning: %s; the model goes without its settings\n", error.what());
}

template <class Device, class Real>
std::string provenance_now(const Trainer<Device, Real>& t, const Run& run) {
    return provenance(run, t.step, size_t(t.batches.position()) * t.settings.T, t.validation);
}

// Adds the final validation to the model's file. Without it the model is whole: what prevents it is a warning.
template <class Device, class Real>
void add_validation(const Trainer<Device, Real>& t, const Run& run) {
    if (!t.model.ranks.first() || run.model_stands) return;
    try {
        replace_provenance(t.settings.out, run.saved_content, provenance_now(t, run));
    } catch (const Error& error) {
        std::fprintf(stderr, "warning: %s; the model's file does not have its final validation loss\n", error.what());
    }
}

// The state first, which names the model that belongs to it: a crash between the two leaves a state from which the model is
// written again, and a model that fold and infer recognize as older. Rank 0 writes; the others give it what they alone have,
// all of it before the first file, which may fail on rank 0. last: see write_last.
// changed: else the state on the disk is this one, and only the model is written, if it is not there as it should be.
template <class Device, class Real>
void save_checkpoint(Trainer<Device, Real>& t, Run& run, bool last = false, bool changed = true) {
    Gpt<Device, Real>& model = t.model;
    const std::string& out = t.settings.out;
    if (!model.ranks.first() && !model.shards.sharded()) return;
    ModelInfo info{model.config, t.gate_now(), t.step, run.tokenizer, model.scales};
    if (model.ranks.first()) info.provenance = provenance_now(t, run);
    const std::unique_ptr<HostModel> host = host_model(t, info);
    std::map<std::string, std::string> metadata = run_metadata(run);
    metadata.insert(run.tokenizer.begin(), run.tokenizer.end());
    std::optional<ModelImage> image;
    if (model.ranks.first()) {
        if constexpr (std::is_same_v<Real, float> && std::is_same_v<Device, Cpu>)
            image.emplace(info, model.params);
        else
            image.emplace(info, host->tensors);
        metadata["model"] = run.saved_content = image->content();
        metadata["provenance"] = info.provenance;
        run.model_stands = !changed && is_finished_model(out, run.saved_content, t.step);
        if (const std::string before = content_of(out); !before.empty()) metadata["model_before"] = before;
    }
    const auto state = gather_state(t, run.arguments, metadata);
    if (!model.ranks.first()) return;
    const auto ready = [&] { make_room(run, t.settings); };
    std::error_code ignored;
    for (const std::string& link : {out, state_path(out)})
        if (std::filesystem::is_symlink(link, ignored)) ready();  // the link moves, not what it leads to
    const auto own_name = [&] {  // else what is there now is another run's, which stays, under another name
        if (run.lock && run.lock->retake() && metadata_of(state_path(out), "run") != run.id)
            run.first_checkpoint = run.new_log = true;
    };
    const auto write_state = [&] {
        own_name();
        if (changed) run.checkpoints.write(state->metadata, state->tensors.out, t.settings.keep, ready);
        replace_logs(run, t.settings);
    };
    const auto write_model = [&] {
        own_name();
        if (!run.model_stands)
            image->write(out, [&] { ready(), write_settings(settings_path(out), run.settings_file); });
        replace_logs(run, t.settings);
    };
    if (last) return write_last(run.checkpoints, write_state, write_model);
    write_state(), write_model();
}

// What the checkpoints of this run and its model may add to the files that are there. While one is written, the one that it
// replaces is still there.
template <class Device, class Real>
DiskNeeds bytes_to_write(Trainer<Device, Real>& t) {
    double numbers = 0;
    for (const auto& tensor : tensor_list(t.model.config, t.model.params)) numbers += double(tensor.spec.count());
    const double model = numbers * sizeof(float), state = 3 * model;  // with both moments
    double bytes = state * double(t.settings.keep + 1) + 2 * model;
    if (!t.settings.resume && !t.settings.overwrite) return {bytes, state};  // what is there stays, under other names
    std::error_code missing;
    for (size_t number = 0; number < t.settings.keep; number++)
        if (std::filesystem::exists(numbered(state_path(t.settings.out), number), missing)) bytes -= state;
    if (std::filesystem::exists(t.settings.out, missing)) bytes -= model;
    return {bytes, state};
}

// In the middle of a run: a disk that is full now may have room again later, and the checkpoint of before is whole.
template <class Device, class Real>
void try_checkpoint(Trainer<Device, Real>& t, Run& run) {
    require_finite_parameters(t);
    try {
        save_checkpoint(t, run);
    } catch (const Error& e) {
        std::fprintf(stderr, "warning: no checkpoint after update %zu: %s; the run continues\n", t.step, e.what());
    }
}

}  // namespace tapernorm::train
