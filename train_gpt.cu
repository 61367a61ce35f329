// Trains a GPT-2 whose norms disappear: hand-derived forward and backward passes, TaperNorm sites, AdamW.
//
// Read top to bottom:
//   1. The model            activations, forward pass, classifier, backward pass
//   2. Trainer              one update: micro-batches, calibration, clipping, AdamW
//   3. The run              loop, main
//
// The rest of the trainer is in train/: settings (flags and what they imply), schedules, start (corpora, tokenizer, the file to
// begin from), initial (what the parameters begin with, the teacher), state (checkpoints), evaluation (losses, samples), report
// (what a run prints and logs), ranks. The model is written once for every device: ops are free functions overloaded on the
// device (ops/*.cuh).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/version.h"
#include "model/config.h"
#include "model/model_file.h"
#include "ops/attention/attention.cuh"
#include "ops/cross_entropy.cuh"
#include "ops/embedding.cuh"
#include "ops/gelu.cuh"
#include "ops/linear.cuh"
#include "ops/muon.cuh"
#include "runtime/arena.h"
#include "runtime/device.h"
#include "tapernorm.cuh"
#include "train/agreement.h"
#include "train/batches.cuh"
#include "train/channels.cuh"
#include "train/evaluation.cuh"
#include "train/export.h"
#include "train/initial.cuh"
#include "train/machine.cuh"
#include "train/outliers.h"
#include "train/profile.h"
#include "train/ranks/data_parallel.cuh"
#include "train/report.cuh"
#include "train/schedules.h"
#include "train/settings.h"
#include "train/start.h"
#include "train/state.cuh"
#include "train/stop.h"
#include "train/tuning.cuh"
#include "train/watch.cuh"

namespace tapernorm::train {

// ---------------------------------------------------------------------------------------------------------------------
// 1. The model

// What one update sums up on the device, over its micro-batches. There it is an array of doubles in this order.
struct Sums {
    double loss = 0, kl = 0;  // sums of the tokens' cross-entropies, and of their divergences from a teacher
    StreamScale stream;
    std::vector<SiteSums> sites;  // one per tapering site
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
    TokenRows rows;               // of its tokens
    Real* embedded;               // [N, C]
    std::vector<BlockActivations<Real>> h;
    Real* ln_f;                         // [N, C]
    Acc<Real>*ln_f_mean, *ln_f_rscale;  // [N]
    Real* logits;                       // [chunk, Vp], a part of the rows at a time
    Acc<Real>* losses;                  // [chunk], with a teacher [chunk, 2]
    Real *d_stream, *d_narrow;          // [N, C]
    Real* d_wide;                       // [N, 4C]
    double* loss;                       // the Sums of this update: [2], with the divergence
    StreamScale* stream;                // [1]
    SiteSums* sites;                    // [tapering sites]
    Acc<Real>* channels;                // [tapering sites, 4, C] and [tapering sites], see train/channels.cuh
    double* sums;                       // the sums of all sites, contiguous
};

// The gate in one pass.
struct Gate {
    double g = 1;
    bool calibrate = false;  // take the calibration sums (only at g = 1)
};

template <class Device, class Real>
struct Gpt {
    Device& dev;
    Config config;
    size_t B, T;
    int recompute;
    Ranks& ranks;
    std::vector<TaperScale> scales;  // of every tapering site

    GptTensors<Real> params{}, grads{};
    Shards shards;                   // the parameters whose optimizer state this rank keeps
    std::vector<Acc<Real>*> master;  // the same parts' parameters before rounding, where Real is too coarse to update
    Activations<Real> act{};
    size_t Vp;     // rows of wte in memory: V, rounded up to the device's preferred multiple; those from V on stay 0
    size_t chunk;  // rows of logits held at a time
    Arena<Device> param_memory, master_memory, grad_memory, act_memory;
    static constexpr bool kMaster = !std::is_same_v<Real, Acc<Real>>;

    // train = false leaves out what only the backward pass needs: the blocks have one memory. zero: see Shards. rows: see
    // logits_rows.
    Gpt(Device& dev_, const Config& config_, size_t B_, size_t T_, int recompute_, bool train,
        Ranks& ranks_ = single_rank(), bool zero = false, size_t rows = 0)
        : dev(dev_), config(config_), B(B_), T(T_), recompute(recompute_), ranks(ranks_),
          scales(config.tapering_sites()),
          Vp((config.V + Device::kVocabularyGrain - 1) / Device::kVocabularyGrain * Device::kVocabularyGrain),
          chunk(logits_rows(B * T, rows ? rows : most_logits_rows(Vp, !std::is_same_v<Device, Cpu>, sizeof(Real)))),
          param_memory(dev, "parameters"), master_memory(dev, "master weights"), grad_memory(dev, "gradients"),
          act_memory(dev, "activations") {
        choose_attention<Real>(dev, config.C / config.NH, ranks);
        plan(param_memory, params);
        if (train) plan(grad_memory, grads);
        shards = make_shards(config, params, param_memory.data(), param_memory.bytes(), ranks, zero);
        if (train && kMaster) add_parts(master_memory, shards, master), master_memory.allocate(true);
        plan_activations(train);
        act_memory.allocate(false);
        if (!train) std::fill(act.h.begin(), act.h.end(), act.h[0]);
        act.loss = act.sums;
        act.stream = reinterpret_cast<StreamScale*>(act.loss + 2);
        act.sites = reinterpret_cast<SiteSums*>(act.stream + 1);
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
        m.add(act.embedded, N * C);
        act.h.resize(config.L);
        for (auto& a : act.h) {
            if (!train && &a != &act.h[0]) break;
            m.add(a.ln_1_mean, N), m.add(a.ln_1_rscale, N), m.add(a.ln_2_mean, N), m.add(a.ln_2_rscale, N);
            m.add(a.qkv, N * 3 * C), m.add(a.att, N * C), m.add(a.lse, B * config.NH * T);
            m.add(a.mid, N * C), m.add(a.fc, N * 4 * C), m.add(a.out, N * C);
            // Recomputed activations share the first block's memory: they live within one block's pass.
            const bool own_norms = recompute < 2 || &a == &act.h[0], own_gelu = recompute < 1 || &a == &act.h[0];
            if (own_norms) m.add(a.ln_1, N * C), m.add(a.ln_2, N * C);
            if (own_gelu) m.add(a.gelu, N * 4 * C);
        }
        m.add(act.ln_f, N * C), m.add(act.ln_f_mean, N), m.add(act.ln_f_rscale, N);
        m.add(act.logits, chunk * Vp), m.add(act.losses, 2 * chunk);
        if (train) m.add(act.d_stream, N * C), m.add(act.d_narrow, N * C), m.add(act.d_wide, N * 4 * C);
        m.add(act.sums, sums_bytes() / sizeof(double)), m.add(act.channels, train ? channel_numbers() : 0);
    }

    size_t sums_bytes() const {
        return 3 * sizeof(double) + sizeof(StreamScale) + config.tapering_sites() * sizeof(SiteSums);
    }
    double* gradient_squares() const { return act.sums + sums_bytes() / sizeof(double) - 1; }

    size_t channel_numbers() const { return config.tapering_sites() * (kChannelSums * config.C + 1); }

    Real* ln_1(size_t l) const { return recompute < 2 ? act.h[l].ln_1 : act.h[0].ln_1; }
    Real* ln_2(size_t l) const { return recompute < 2 ? act.h[l].ln_2 : act.h[0].ln_2; }
    Real* gelu(size_t l) const { return recompute < 1 ? act.h[l].gelu : act.h[0].gelu; }
    const Real* stream_into(size_t l) const { return l ? act.h[l - 1].out : act.embedded; }

    Site<Real> site(double g, size_t l, size_t which) const {
        Site<Real> s = site_at(config, params, scales, g, l, which);
        s.T = unsigned(T);
        return s;
    }
    SiteSums* calibration(const Gate& gate, size_t l, size_t which) const {
        const bool tapers = l == config.L ? config.final_tapers() : config.internal_tapers();
        return gate.calibrate && tapers ? &act.sites[2 * l + which] : nullptr;
    }

    // Sets every tensor for which fill(spec, values), values a vector of its size, returns true.
    template <class Fill>
    void set_parameters(Fill&& fill) {
        const auto list = tensor_list(config, params);
        for (size_t i = 0; i < list.size(); i++) {
            std::vector<Acc<Real>> values(list[i].spec.count());
            if (fill(list[i].spec, values)) set_tensor(i, values);
        }
    }

    // Sets tensor number i of the table.
    void set_tensor(size_t i, const std::vector<Acc<Real>>& values) {
        set_parts(dev, shards, master, i, values.data());
        const std::vector<Real> rounded(values.begin(), values.end());
        device_copy_in(dev, tensor_list(config, params)[i].data, rounded.data(), rounded.size() * sizeof(Real));
    }

    // The values of tensor number i of the table as the optimizer keeps them, in rank 0's memory; all ranks call it.
    std::vector<Acc<Real>> exact(size_t i) {
        if (kMaster) return gather_tensor(dev, ranks, shards, master, i);
        const Tensor<Real> t = tensor_list(config, params)[i];
        std::vector<Real> values(t.spec.count());
        device_copy_out(dev, values.data(), t.data, values.size() * sizeof(Real));
        return {values.begin(), values.end()};
    }

    void use_batch(const Batch& b) { act.tokens = b.tokens, act.targets = b.targets, act.rows = b.rows; }

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
        stream_scale(dev, act.stream, stream_into(L), config.norm, config.eps, scale_target, N, C);
        site_forward(dev, act.ln_f, act.ln_f_mean, act.ln_f_rscale, calibration(gate, L, 0), stream_into(L),
                     site(gate.g, L, 0), N, C);
    }

    // Head, softmax and cross-entropy, `chunk` rows of logits at a time. The loss is added to act.loss. With
    // `gradient`, also dL/d(act.ln_f) into act.d_narrow and the head's dwte (= or +=, as `accumulate` says), for
    // L = weight * sum of the losses; of these the divergence from a teacher, which has seen the same batch, is the `share`.
    void classify(bool gradient, double weight, bool accumulate, const Gpt* teacher = nullptr, double share = 0) {
        const size_t C = config.C;
        for (size_t row = 0; row < B * T; row += chunk) {
            const size_t rows = std::min(chunk, B * T - row);
            head_forward<Real>(dev, act.logits, act.ln_f + row * C, params.wte, nullptr, rows, C, Vp);
            if (teacher) {
                head_forward<Real>(dev, teacher->act.logits, teacher->act.ln_f + row * C, teacher->params.wte, nullptr,
                                   rows, C, Vp);
                distillation(dev, act.loss, act.losses, act.logits, teacher->act.logits, act.targets + row, weight,
                             share, rows, config.V, Vp);
            } else {
                cross_entropy(dev, act.loss, act.losses, act.logits, act.targets + row, weight, rows, config.V,
                              gradient, Vp);
            }
            if (gradient)
                head_backward(dev, act.d_narrow + row * C, grads.wte, act.logits, act.ln_f + row * C, params.wte, rows,
                              C, Vp, accumulate || row > 0);
        }
    }

    // The forward pass reversed, from act.d_narrow to the parameters' gradients: = or +=, as `accumulate` says (wte's: +=, behind
    // classify). A bias's gradient is taken where the gradient of its sum is made. tokens: of the whole update, for the scale
    // loss's mean.
    // ready(region): the gradients of this region and of those behind it are complete (see Shards).
    void backward(
        double g, const ScaleLoss& scale_loss, double tokens, bool accumulate,
        const std::function<void(size_t)>& ready = [](size_t) {}) {
        const size_t N = B * T, C = config.C, NH = config.NH, L = config.L;
        Real *d_stream = act.d_stream, *d_narrow = act.d_narrow, *d_wide = act.d_wide;
        auto site_grads = [&](const SiteTensors<Real>& s, Real* dx_sums) {
            return SiteGrads<Real>{s.weight, s.bias, s.taper_weight, s.taper_bias, dx_sums, accumulate};
        };
        site_backward(dev, d_stream, site_grads(grads.ln_f, nullptr), d_narrow, stream_into(L), act.ln_f_mean,
                      act.ln_f_rscale, site(g, L, 0), N, C, false);
        if (scale_loss.lambda != 0)
            scale_loss_backward(dev, d_stream, stream_into(L), config.norm, config.eps, scale_loss.target,
                                scale_loss.lambda, tokens, N, C);
        column_sums(dev, grads.h[L - 1].mlp_proj_bias, d_stream, N, C, accumulate);
        ready(L + 1);
        for (size_t l = L; l-- > 0;) {
            const ProfileRange range("backward", l);
            BlockActivations<Real>& a = act.h[l];
            const BlockTensors<Real>&p = params.h[l], &d = grads.h[l];
            if (recompute >= 1) gelu_forward(dev, gelu(l), a.fc, N * 4 * C);
            matmul_backward(dev, d_wide, d.mlp_fc_bias, d.mlp_proj, d_stream, gelu(l), p.mlp_proj, a.fc, N, 4 * C, C,
                            accumulate);
            if (recompute >= 2) recompute_site(ln_2(l), a.mid, site(g, l, 1));
            matmul_backward<Real>(dev, d_narrow, nullptr, d.mlp_fc, d_wide, ln_2(l), p.mlp_fc, nullptr, N, C, 4 * C,
                                  accumulate);
            site_backward(dev, d_stream, site_grads(d.ln_2, d.attn_proj_bias), d_narrow, a.mid, a.ln_2_mean,
                          a.ln_2_rscale, site(g, l, 1), N, C, true);
            matmul_backward<Real>(dev, d_narrow, nullptr, d.attn_proj, d_stream, a.att, p.attn_proj, nullptr, N, C, C,
                                  accumulate);
            attention_backward(dev, d_wide, d_narrow, a.att, a.lse, a.qkv, B, T, C, NH);
            column_sums(dev, d.attn_qkv_bias, d_wide, N, 3 * C, accumulate);
            if (recompute >= 2) recompute_site(ln_1(l), stream_into(l), site(g, l, 0));
            matmul_backward<Real>(dev, d_narrow, nullptr, d.attn_qkv, d_wide, ln_1(l), p.attn_qkv, nullptr, N, C, 3 * C,
                                  accumulate);
            site_backward(dev, d_stream, site_grads(d.ln_1, l ? grads.h[l - 1].mlp_proj_bias : nullptr), d_narrow,
                          stream_into(l), a.ln_1_mean, a.ln_1_rscale, site(g, l, 0), N, C, true);
            ready(1 + l);
        }
        embedding_backward(dev, grads.wte, grads.wpe, d_stream, act.tokens, act.rows, B, T, C, accumulate);
        ready(0);
    }

    void recompute_site(Real* y, const Real* x, const Site<Real>& s) { apply_site(dev, y, x, s, B * T, config.C); }

    void begin_sums() { device_zero(dev, act.sums, sums_bytes()); }
    std::vector<double> read_sums() {  // Sums, as the device has them, and the squared norm of the gradient
        std::vector<double> host(sums_bytes() / sizeof(double));
        device_copy_out(dev, host.data(), act.sums, sums_bytes());
        return host;
    }
    Sums sums_of(const std::vector<double>& numbers) const {
        Sums s{numbers[0], numbers[1], {numbers[2], numbers[3]}, {}};
        for (size_t i = 0; i < config.tapering_sites(); i++)
            s.sites.push_back({numbers[4 + 3 * i], numbers[5 + 3 * i], numbers[6 + 3 * i]});
        return s;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// 2. Trainer

template <class Device, class Real>
struct Trainer {
    using Clock = std::chrono::steady_clock;
    Settings settings;
    Gpt<Device, Real> model;
    std::unique_ptr<Gpt<Device, Real>> teacher;  // --distill's
    Batches<Device> batches;
    Arena<Device> moment_memory;
    std::vector<Acc<Real>*> m, v;  // AdamW's moments, of model.shards' parts; Muon's momentum, and null
    Real* muon = nullptr;          // its scratch
    DataParallel<Device, Real> parallel;
    Calibration calibration;
    double scale_target = 0;  // s_tgt, once calibrated
    LossWindow losses;
    GradientWindow gradients;
    size_t step = 0;  // updates done
    size_t gate_warmup, gate_end;
    const volatile sig_atomic_t* stop = nullptr;  // not 0 where this rank is told to stop
    std::string trouble;                          // why this rank cannot go on: a corpus that cannot be read
    std::string missing;                          // what was broken off after the last update: "validation"
    std::optional<Validation> validation;         // the latest
    Clock::time_point checkpoint_due = Clock::time_point::max();

    Trainer(Device& dev, const Settings& s, const Config& config, const TokenSource& corpus,
            Ranks& ranks = single_rank())
        : settings(s), model(dev, config, s.batch, s.T, int(s.recompute), true, ranks, s.zero == 1, s.logits_rows),
          batches(dev, loader(corpus, s.shuffle), s.batch * s.T), moment_memory(dev, "optimizer moments"),
          parallel(dev, ranks, model.shards, model.param_memory.data(), model.grad_memory.data()),
          gate_warmup(s.gate_warmup.resolve(s.steps)), gate_end(s.gate_end.resolve(s.steps)) {
        add_parts(moment_memory, model.shards, m);
        add_parts(moment_memory, model.shards, v, updated_by_adamw(config, s.optimizer));
        if (s.optimizer == "muon") moment_memory.add(muon, muon_scratch(config.C, 4 * config.C));
        moment_memory.allocate(true);
        if (s.tune) begin_tuning(dev);
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
    double gate_now() const { return gate(std::max<size_t>(step, 1)); }  // at the last update
    double lr_at(size_t k) const { return lr_schedule(settings, k); }
    double lr_now() const { return lr_at(std::max<size_t>(step, 1)); }
    ScaleLoss scale_loss(size_t k) const {
        return k > gate_warmup ? train::scale_loss(settings, scale_target) : ScaleLoss{0, scale_target};
    }

    bool told_to_stop() const { return (stop && *stop) || !trouble.empty(); }

    // Lets the model use the next batch; false where this rank should stop, or cannot go on.
    bool use_next(Batches<Device>& from) {
        if (told_to_stop()) return false;
        try {
            model.use_batch(from.next());
        } catch (const Error& e) {
            trouble = e.what();
        }
        return trouble.empty();
    }

    // This rank's part of update k: gradients and sums over its micro-batches. ready: see Gpt::backward, of the last of them.
    // False where it was left before the last, with sums that mean nothing.
    bool accumulate(size_t k, const std::function<void(size_t)>& ready) {
        const size_t micro_steps = settings.micro_steps(model.ranks);
        const double tokens = double(settings.total_batch), g = gate(k);
        const ScaleLoss anchor = scale_loss(k);
        model.begin_sums();
        if (sums_channels(*this, k))
            device_zero(model.dev, model.act.channels, model.channel_numbers() * sizeof(Acc<Real>));
        for (size_t micro = 0; micro < micro_steps; micro++) {
            if (!use_next(batches)) {
                ready(0);
                return false;
            }
            model.forward({g, k <= gate_warmup}, anchor.target);
            if (sums_channels(*this, k)) add_channel_sums(model, model.act.channels);
            if (teacher) ask_teacher(*this);
            model.classify(true, 1 / tokens, micro > 0, teacher.get(), settings.distill);
            model.backward(g, anchor, tokens, micro > 0, [&](size_t region) {
                if (micro + 1 == micro_steps) ready(region);
            });
            batches.prefetch();
        }
        return true;
    }

    // One update: every rank adds the gradients of its micro-batches, the ranks add theirs up, and each updates the
    // parameters that it keeps the optimizer's state of. A loss or gradient that is not finite throws, on all ranks, before
    // any parameter has changed.
    //
    // A rank that is told to stop leaves its micro-batches, but not the sums: by them all ranks learn of it, at no cost, and
    // leave out the update. Those that were not told finish their micro-batches first; launchers tell all.
    StepReport update() {
        const auto start = Clock::now();
        const size_t k = step + 1;
        const double tokens = double(settings.total_batch);
        const uint64_t first_batch = batches.position();
        const bool whole = accumulate(k, [&](size_t region) { parallel.gradients_ready(region); });
        parallel.finish_gradients();
        parallel.add_gradient_squares(model.gradient_squares(), model.grad_memory.bytes() / sizeof(Real));
        std::vector<double> totals = model.read_sums();  // where the host waits for the device, once an update
        const size_t channels = totals.size(), squares = channels - 1;
        if (sums_channels(*this, k)) add_channel_totals(model, totals);
        const size_t votes = totals.size();
        for (const bool vote : {!whole, told_to_stop(), model.ranks.first() && Clock::now() >= checkpoint_due})
            totals.push_back(vote);
        const int bad_rank = model.ranks.sum(totals, strprintf("the end of update %zu", k).c_str());
        const bool abandoned = totals[votes] > 0, stopped = totals[votes + 1] > 0;
        if (abandoned) {
            batches.seek(first_batch);
            return {.step = step, .stop = true, .abandoned = true};
        }
        const Sums sums = model.sums_of(totals);
        // clang-format off
        StepReport r{.step = k, .loss = sums.loss / tokens, .scale_loss = scale_loss(k).lambda * sums.stream.squares / tokens,
                     .g = gate(k), .lr = lr_schedule(settings, k), .stream_scale = sums.stream.sum / tokens};
        // clang-format on
        if (teacher) r.kl = std::max(sums.kl / tokens, 0.0);  // by rounding, none may be a little below 0
        r.grad_norm = std::sqrt(totals[squares]), r.stop = stopped, r.checkpoint = totals[votes + 2] > 0;
        const bool finite = std::isfinite(r.losses()) && std::isfinite(r.grad_norm);
        const double over_median = gradients.over_median(finite ? r.grad_norm : INFINITY);
        const bool steep = settings.skip_grad > 0 && over_median > settings.skip_grad;
        r.skipped = steep || (finite && settings.skip_loss_z > 0 && losses.z_score(r.loss) > settings.skip_loss_z);
        r.why_skipped = !finite ? "its loss or gradient is not a finite number"
                        : steep ? "its gradient norm is far above the median of the last updates"
                                : "its loss is far above that of the last updates";
        if (!finite && !r.skipped) report_divergence(r, bad_rank, first_batch);
        if (finite) losses.add(r.loss);
        gradients.add(finite ? r.grad_norm : INFINITY);
        if (!r.skipped) optimize(k, r.lr, r.grad_norm);
        if (k <= gate_warmup && !r.skipped) calibration.observe(sums.sites, r.stream_scale, tokens);
        if (sums_channels(*this, k) && !r.skipped) {
            observe_channels(*this, k, &totals[channels]);
            if (k > gate_warmup) follow_channels(*this);
        }
        if (k == gate_warmup) start_taper();
        if (settings.tune) end_tuning(*this);
        step = k;
        r.seconds = std::chrono::duration<double>(Clock::now() - start).count();
        return r;
    }

    // bad_rank: the first whose loss is not finite. The sum does not show whose gradient it was: each rank's is computed again.
    [[noreturn]] void report_divergence(const StepReport& r, int bad_rank, uint64_t first_batch) {
        const bool loss = !std::isfinite(r.losses());
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
            r.step, loss ? "the loss" : "the gradient", where.c_str(), r.losses(), r.grad_norm, r.stream_scale, r.g,
            which_moved_first(site_scales(), kDrift).c_str(),
            model.config.mode == GateMode::norm ? "" : ", a longer --gate-warmup or a larger --scale-loss"));
    }

    // s(h) at every norm site, of the last micro-batch. Valid until the next forward pass.
    std::vector<SiteScale> site_scales() {
        std::vector<const Real*> streams;
        for (size_t l = 0; l < model.config.L; l++)
            streams.insert(streams.end(), {model.stream_into(l), model.act.h[l].mid});
        streams.push_back(model.stream_into(model.config.L));
        std::vector<double> averages;
        if (calibration.updates)
            for (const auto& site : calibration.sites) averages.push_back(site.scale / calibration.bias_correction());
        return measure_site_scales(model.dev, model.config, streams, model.act.stream, averages, model.B * model.T);
    }

    // Every tensor's gradient norm, before clipping, in the order of the table. Valid until the next update.
    std::vector<std::pair<std::string, double>> gradient_norms() {
        const auto list = tensor_list(model.config, model.grads);
        std::vector<double> squares(list.size());
        for (const ShardPart& p : model.shards.parts())
            squares[p.tensor] +=
                sum_of_squares(model.dev, static_cast<const Real*>(list[p.tensor].data) + p.begin, p.count);
        if (model.shards.sharded()) model.ranks.sum(squares, "the norms of gradients");
        std::vector<std::pair<std::string, double>> norms;
        for (size_t i = 0; i < list.size(); i++) norms.push_back({list[i].spec.name, std::sqrt(squares[i])});
        return norms;
    }

    void optimize(size_t k, double lr, double grad_norm) {
        using Scalar = Acc<Real>;
        const double clip = settings.clip, b1 = settings.beta1, b2 = settings.beta2;
        const double clip_factor = clip > 0 ? std::min(1.0, clip / (grad_norm + 1e-6)) : 1;
        const double correction1 = 1 - std::pow(b1, double(k)), correction2 = 1 - std::pow(b2, double(k));
        // clang-format off
        AdamwArgs<Scalar> args{Scalar(lr), Scalar(b1), Scalar(b2), Scalar(1e-8), 0,
                                     Scalar(correction1), Scalar(correction2), Scalar(clip_factor)};
        // clang-format on
        const auto w = tensor_list(model.config, model.params), grad = tensor_list(model.config, model.grads);
        std::vector<AdamwTensor<Real>> others, gains;
        for (size_t i = 0; i < m.size(); i++) {
            const auto [t, begin, count] = model.shards.parts()[i];
            const TensorSpec& spec = w[t].spec;
            if (settings.freeze_gains && k > gate_warmup && is_block_gain(spec.name)) continue;
            // clang-format off
            const AdamwTensor<Real> tensor{w[t].data + begin, model.kMaster ? model.master[i] : nullptr, m[i], v[i],
                                           grad[t].data + begin, count, Scalar(spec.decay ? settings.weight_decay : 0)};
            // clang-format on
            if (const size_t parts = block_matrices(spec); muon && parts)
                muon_update(model.dev, {tensor, spec.shape[0], spec.shape[1] / parts, parts}, {lr, clip_factor}, muon);
            else
                (settings.lr_gains != 1 && is_block_gain(spec.name) ? gains : others).push_back(tensor);
        }
        adamw_update(model.dev, others, args);
        args.lr *= Scalar(settings.lr_gains);
        if (!gains.empty()) adamw_update(model.dev, gains, args);
        parallel.gather_parameters();
    }

    std::vector<Acc<Real>> from_rank_0(std::vector<Acc<Real>> values) {
        model.ranks.broadcast(values.data(), values.size() * sizeof(values[0]), "a change of the scaling branches");
        return values;
    }

    // End of update gate_warmup: c and s_tgt freeze, and each scaling branch starts from its normalizing branch.
    void start_taper() {
        gradients = {};  // the scale loss begins, and with it a new level
        scale_target = settings.scale_target * calibration.target_scale();
        for (size_t i = 0; i < model.scales.size(); i++)
            model.scales[i].c = float(calibration.taper_scale(i) * (i < 2 * model.config.L ? settings.gain : 1));
        const auto list = tensor_list(model.config, model.params);
        const auto numbers = tensor_numbers(model.config);
        // The number of the tensor that a scaling branch's own begins from.
        auto origin = [&](const std::string& name) -> std::optional<size_t> {
            const std::string taper = "taper_";
            const size_t at = name.find(taper);
            if (at == std::string::npos) return {};
            return numbers.at(name.substr(0, at) + name.substr(at + taper.size()));
        };
        model.set_parameters([&](const TensorSpec& t, std::vector<Acc<Real>>& values) {
            const auto from = origin(t.name);
            if (model.config.mode == GateMode::norm && settings.gain != 1 && is_block_gain(t.name) &&
                t.name.ends_with("weight")) {
                values = from_rank_0(model.exact(numbers.at(t.name)));
                for (Acc<Real>& gamma : values) gamma *= Acc<Real>(settings.gain);
                return true;
            }
            if (from) values = from_rank_0(model.exact(*from));
            return from.has_value();
        });
        if (settings.calibration != "scalar") follow_channels(*this);
        if (!settings.carry_moments) return;
        // From zero, v lags behind these branches' gradients, which grow with 1 - g: the first steps would be longer.
        for (size_t i = 0; i < list.size(); i++)
            if (const auto from = origin(list[i].spec.name))
                for (const auto& moments : {m, v})
                    set_parts(model.dev, model.shards, moments, i,
                              from_rank_0(gather_tensor(model.dev, model.ranks, model.shards, moments, *from)).data());
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// 3. The run

// When --checkpoint-minutes asks for the next checkpoint.
static std::chrono::steady_clock::time_point next_checkpoint(const Settings& s) {
    using Clock = std::chrono::steady_clock;
    if (s.checkpoint_minutes == 0) return Clock::time_point::max();
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(60 * s.checkpoint_minutes));
}

// The loop. Whether a rank was told to stop before the last update.
template <class Device, class Real>
bool train(Trainer<Device, Real>& t, Run& run, Logs& logs) {
    const Settings& s = t.settings;
    Progress progress(s, t.step, t.model.ranks, speed_constants(t, run));
    bool warned = false, stop = false;
    t.checkpoint_due = next_checkpoint(s);
    while (t.step < s.steps && !stop) {
        const StepReport r = t.update();
        if (r.abandoned) return true;
        stop = r.stop;
        progress.update(r);
        if (!warned && drifted(t, r)) {
            warned = true;
            progress.note(drift_warning(t, r));
        }
        RunLog::Fields fields = log_fields(t, r);
        if (s.val_every && r.step % s.val_every == 0) check_drift(t), validate(t, run, progress, fields);
        logs.write(r.step, fields);
        if (s.sample_every && r.step % s.sample_every == 0 && run.decode && t.model.ranks.first())
            progress.note(sample_text(t, *run.decode, run.prompt, 200));
        const bool due = r.checkpoint || (s.checkpoint_every && r.step % s.checkpoint_every == 0);
        if (due && !stop && r.step < s.steps) {
            logs.flush();
            check_drift(t), try_checkpoint(t, run);
            t.checkpoint_due = next_checkpoint(s);
        }
    }
    logs.flush();
    return stop;
}

template <class Device, class Real>
int run_training(Device& dev, const Settings& s, Run& run, Ranks& ranks) {
    Trainer<Device, Real> t(dev, s, run.config, run.train, ranks);
    initialize(t.model, s.seed);
    std::optional<double> last_rate;
    if (run.state) {
        load_state(t, *run.state);
        if (run.state->metadata().contains("lr")) last_rate = std::atof(state_metadata(*run.state, "lr").c_str());
        run.state.reset();  // its disk space is free once it is replaced
    }
    const auto from = [](const ModelFile& file) {
        return [&file](const TensorSpec& spec, auto* numbers) { file.read(spec, numbers); };
    };
    const Session session{t.step, version_text(), run.device, ranks.size};
    run.step.add_session(session);
    if (run.init) initialize_from(t.model, from(*run.init));
    if (run.teacher) hire_teacher(t, from(*run.teacher));
    if (ranks.size > 1) check_parameters(t, common_data(run), kStartAlike);
    print_start(t, run);
    if (s.dry_run) {
        print_estimate(t, run);
        flush_output();  // all that there is of it
        return 0;
    }
    if (last_rate) print_change_of_rate(t, *last_rate);
    if (ranks.first()) {
        const std::string warning = space_warning(s.out, bytes_to_write(t));
        if (!warning.empty()) std::fprintf(stderr, "%s\n", warning.c_str());
    }
    Logs logs(s, run, s.resume ? std::optional<size_t>(t.step) : std::nullopt, ranks.first());
    if (run.init) {
        const auto loss = evaluate(t, run.val, s.val_batches);
        if (!loss) return stopped(t, logs, 0, false);
        std::printf("%s: validation loss %.6f before the first update\n", printable(run.init->path()).c_str(), *loss);
    }
    if (s.resume && t.step >= s.steps)
        std::printf("complete  update %zu is done and -x is %zu; to continue, give a larger -x\n", t.step, s.steps);
    MappedFile::check_all();  // what was read so far
    const size_t first_step = t.step;
    watch_stop_signals();
    t.stop = &stop_signal;
    const bool stop = train(t, run, logs);
    const int signal = stop_signal;
    if (stop && t.step == first_step) return stopped(t, logs, signal, false);
    ranks.set_time_limit(1e9);  // rank 0 may wait for room on its disk; a rank that ends is noticed all the same
    check_drift(t);
    require_finite_parameters(t);
    save_checkpoint(t, run, true, !s.resume || t.step > first_step);
    if (stop && t.step >= s.steps) t.missing = "validation";
    if (stop) return stopped(t, logs, signal, true);
    const auto loss = evaluate(t, run.val, 10 * s.val_batches);
    if (!loss) return stopped(t, logs, stop_signal, true);
    add_validation(t, run);
    print_end(t, run, *loss, t.step > first_step ? t.lr_now() : last_rate.value_or(t.lr_now()));
    warn_of_output();
    const auto scores = run.hellaswag.empty() ? std::nullopt : score_choices(t, run.hellaswag);
    if (scores) std::printf("hellaswag: %s\n", scores->text().c_str());
    std::vector<double> unprinted = {double(ranks.first() && !t.missing.empty())};
    ranks.sum(unprinted, "the end of the run");
    if (unprinted[0] > 0) return stopped(t, logs, stop_signal, true);
    logs.write_end("complete", t.step, t.step * s.total_batch, t.validation, scores);
    warn_of_output();
    return 0;
}

constexpr const char* kMemoryHint =
    "use a smaller -b (batch), -t (sequence length) or --logits-rows, or recompute more (-r 1, -r 2)";

[[maybe_unused]] static int run_program(int argc, char** argv, Ranks& ranks) {
    const bool exports = argc > 1 && std::strcmp(argv[1], "export") == 0;
    Settings s;
    Options options = make_options(s);
    const bool trains = !exports && options.parse(argc, argv);
    ranks.agree({{"the command", trains    ? "training"
                                 : exports ? "export"
                                           : "--help or --version"},
                 {"--model (-e)", s.depth},
                 {"--init", s.init.empty() ? "none" : "a model"},
                 {"--resume (-y)", s.resume ? "yes" : "no"}});
    if (!trains) {
        const int status = exports && ranks.first() ? export_command(argc - 1, argv + 1) : 0;
        flush_output();
        return status;
    }
    signal(SIGPIPE, SIG_IGN);  // who reads what a run prints may go: the run goes on
    if (s.gpus > 1) ranks.fork_local(s.gpus);
    core_sharing.ranks = ranks.local_size;
    s.out = model_path(s.out);
    check_inputs(s);
    std::vector<std::string> arguments = options.arguments();
    Checkpoints checkpoints(state_path(s.out));
    std::optional<RunLock> lock;  // before the state is read: who has the lock may be writing it
    if (ranks.first() && !s.dry_run) lock.emplace(s.out);
    std::optional<Machine> machine;
    const auto look_at_machine = [&] { return machine = this_machine(s, ranks), *machine; };
    Start start = find_start(s, options, arguments, checkpoints, ranks, look_at_machine);
    ranks.set_time_limit(s.rank_timeout);
    ranks.agree(common_settings(s, start));
    core_sharing = ranks.shared_cores();
    if (ranks.first()) check_outputs(s);
    Cpu cpu{int(s.threads)};
    cpu.memory_hint = kMemoryHint;
    std::string device;
    [[maybe_unused]] const bool gpu = choose_gpu(s, cpu, ranks, device);
    print_recipe(s, start.recipe);
    Settings shown = s;
    std::printf("%s\n", make_options(shown).table().c_str());
    print_idle(start.settings.idle);
    Run run = open_run(s, std::move(start));
    run.arguments = arguments, run.checkpoints = checkpoints, run.lock = lock ? &*lock : nullptr;
    run.computed_with = gpu ? "CUDA" : isa_name(cpu.isa), run.device = device;
    if (ranks.first() && !s.dry_run) check_run(s, run);
    check_memory(s, run.config, machine ? *machine : look_at_machine(), ranks);
    std::fflush(stdout);  // what follows may take minutes
#ifdef TN_CUDA
    if (gpu) {
        Cuda cuda(ranks.local_rank, kMemoryHint);
        return s.precision == "fp32" ? run_training<Cuda, float>(cuda, s, run, ranks)
                                     : run_training<Cuda, bf16>(cuda, s, run, ranks);
    }
#endif
    return with_team(cpu, [&] { return run_training<Cpu, float>(cpu, s, run, ranks); });
}

}  // namespace tapernorm::train

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::start_program();
    tapernorm::train::Ranks ranks;
    try {
        ranks.join();
        return tapernorm::train::run_program(argc, argv, ranks);
    } catch (const std::bad_alloc&) {
        return ranks.fail_all("train_gpt", tapernorm::Error(tapernorm::kOutOfMemory));
    } catch (const std::exception& error) {
        return ranks.fail_all("train_gpt", error);
    }
}
#endif
