// Inference: a model of any state (normalized, tapering, tapered, folded) with a KV cache for each of its sequences.
// Used by infer, by fold to compare its two models, and by the trainer to print samples.
#pragma once
#include <algorithm>
#include <vector>

#include "inference/packed_model.h"
#include "model/config.h"
#include "ops/attention.cuh"
#include "ops/embedding.cuh"
#include "ops/matmul.cuh"
#include "runtime/arena.h"

namespace tapernorm {

enum class Logits { none, last, all };

// Tokens [n], n >= 1, that go on one sequence.
struct TokenSpan {
    size_t sequence;
    const int* tokens;
    size_t n;
};

template <class Real>
class DecodeGraph;  // inference/decode_graph.cuh: steps without the host

template <class Device, class Real>
class Decoder {
  public:
    // weights must outlive the decoder. c: taper_scale of every tapering site. sequences: KV caches.
    // packed (the CPU in fp32): the same model's matrices; they are then read instead of those in `weights`, and what
    // a sequence gets is the same to the bit whatever other sequences it is fed together with.
    Decoder(Device& dev, const Config& config, const GptTensors<Real>& weights, const std::vector<float>& c,
            double gate, size_t sequences = 1, const PackedModel* packed = nullptr)
        : dev_(dev), config_(config), weights_(weights), packed_(packed), c_(c), gate_(gate), lengths_(sequences, 0),
          block_(std::min(config.T * sequences, kBlock)), step_rows_(std::min(sequences, block_)),
          ld_logits_((config.V + 7) / 8 * 8), memory_(dev, "the KV cache and activations") {
        const size_t C = config.C;
        memory_.add(tokens_, block_), memory_.add(positions_, block_), memory_.add(x_, block_ * C);
        memory_.add(mid_, block_ * C), memory_.add(site_, block_ * C), memory_.add(qkv_, block_ * 3 * C);
        memory_.add(att_, block_ * C), memory_.add(gelu_, block_ * 4 * C),
            memory_.add(logits_, kOnHost ? 0 : block_ * ld_logits_);
        if constexpr (kCanPack) memory_.add(own_sites_, packed ? size_t(dev.threads) * step_rows_ * C : 0);
        k_cache_.resize(config.L), v_cache_.resize(config.L);
        for (size_t l = 0; l < config.L; l++)
            memory_.add(k_cache_[l], sequences * config.T * C), memory_.add(v_cache_[l], sequences * config.T * C);
        memory_.allocate(false);
    }

    Device& device() const { return dev_; }
    const Config& config() const { return config_; }
    size_t sequences() const { return lengths_.size(); }
    size_t length(size_t sequence = 0) const { return lengths_[sequence]; }  // tokens fed so far
    void rewind(size_t length, size_t sequence = 0) { lengths_[sequence] = std::min(length, lengths_[sequence]); }

    // Passes over the residual stream so far: reads and writes of all of a step's rows, or of a norm's copy of them.
    size_t stream_passes() const { return stream_passes_; }

    // Appends spans to their sequences, each to another one: prompts of different lengths, or one token each to go
    // on. No sequence may become longer than config.T. out, host memory: for Logits::all [rows of all spans, V], for
    // Logits::last [spans, V], those of each span's last token.
    void feed(const std::vector<TokenSpan>& spans, Logits which, Acc<Real>* out) {
        for (size_t span = 0, done = 0; span < spans.size();) {
            const size_t rows = stage(spans, span, done);
            if constexpr (kCanPack)
                if (packed_ && parts_[0].single) {
                    step(rows, which == Logits::none ? nullptr : out);
                    if (which != Logits::none) out += rows * config_.V;
                    continue;
                }
            pass(rows);
            if (which == Logits::all) out = head(0, rows, out);
            for (size_t i = 0; i < parts_.size() && which == Logits::last;) {
                size_t next = i + 1;
                if (parts_[i].ends) {  // with the one-row parts behind it: rows side by side
                    while (next < parts_.size() && parts_[next].ends && parts_[next].n == 1) next++;
                    out = head(parts_[i].row + parts_[i].n - 1, next - i, out);
                }
                i = next;
            }
        }
    }

    // The same for the first sequence alone: tokens [n]; out [n, V] for Logits::all, [V] for Logits::last.
    void feed(const int* tokens, size_t n, Logits which, Acc<Real>* out) { feed({{0, tokens, n}}, which, out); }

  private:
    friend class DecodeGraph<Real>;

    static constexpr size_t kBlock = 512;  // rows at a time
    static constexpr bool kOnHost = std::is_same_v<Device, Cpu>;
    static constexpr bool kCanPack = kOnHost && std::is_same_v<Real, float>;

    // Rows row .. row + n - 1 of a block are positions first .. of a sequence. ends: its span; single: all of its
    // span.
    struct Part {
        size_t sequence, row, first, n;
        bool ends, single;
    };

    // Takes the next block of rows from the spans, from row `done` of span `span` on, and moves both on. A span
    // is cut where it would be if it were alone. With packed weights a block holds single tokens only, or none.
    size_t stage(const std::vector<TokenSpan>& spans, size_t& span, size_t& done) {
        std::vector<int> tokens, positions;
        parts_.clear();
        while (span < spans.size() && tokens.size() < block_) {
            const TokenSpan& p = spans[span];
            const size_t n = std::min(block_, p.n - done), first = lengths_[p.sequence];
            const bool single = p.n == 1;
            if (n > block_ - tokens.size() || (packed_ && !parts_.empty() && single != parts_[0].single)) break;
            parts_.push_back({p.sequence, tokens.size(), first, n, done + n == p.n, single});
            tokens.insert(tokens.end(), p.tokens + done, p.tokens + done + n);
            for (size_t i = 0; i < n; i++) positions.push_back(int(first + i));
            lengths_[p.sequence] += n;
            done += n;
            if (done == p.n) span++, done = 0;
        }
        device_copy_in(dev_, tokens_, tokens.data(), tokens.size() * sizeof(int));
        device_copy_in(dev_, positions_, positions.data(), positions.size() * sizeof(int));
        return tokens.size();
    }

    CachedRows<Real> cached(size_t l, const Part& p) const {
        const size_t at = p.sequence * config_.T * config_.C;
        return {k_cache_[l] + at, v_cache_[l] + at, p.row, p.first, p.n};
    }

    // out = in W + bias, + residual or through GELU. panels: null, or those of W.
    void linear(Real* out, const Real* in, const Real* W, const Panels* panels, const Real* bias, const Real* residual,
                bool gelu, size_t rows, size_t K, size_t N) {
        if constexpr (kCanPack)
            if (panels) return panel_product(dev_, {panels, in, K, rows, out, bias, residual, gelu});
        gemm<Real>(dev_, {.M = rows,
                          .N = N,
                          .K = K,
                          .A = in,
                          .lda = K,
                          .trans_a = false,
                          .B = W,
                          .ldb = N,
                          .trans_b = false,
                          .C = out,
                          .ldc = N,
                          .bias = bias,
                          .residual = residual,
                          .gelu = gelu});
    }

    // The site's output: its input itself where it was folded away.
    const Real* site(const Real* x, size_t l, size_t which, size_t rows) {
        const Site<Real> s = site_at(config_, weights_, c_, gate_, l, which);
        stream_passes_ += site_passes(s.kind, s.phase) + 1;  // + 1: the matrix reads the output
        if (s.phase == Phase::folded) return x;
        site_forward<Real>(dev_, site_, nullptr, nullptr, nullptr, x, s, rows, config_.C);
        return site_;
    }

    // The blocks, for the rows that stage() left; leaves the residual stream in x_.
    void pass(size_t rows) {
        const size_t C = config_.C;
        embedding_forward_at(dev_, x_, tokens_, positions_, weights_.wte, weights_.wpe, rows, C);
        stream_passes_ += 1 + 4 * config_.L;  // a block adds to the stream twice: a read and a write each
        std::vector<CachedRows<Real>> rows_of(parts_.size());
        for (size_t l = 0; l < config_.L; l++) {
            const BlockTensors<Real>& p = weights_.h[l];
            const PackedModel::Block* q = packed_ ? &packed_->h[l] : nullptr;
            for (size_t i = 0; i < parts_.size(); i++) rows_of[i] = cached(l, parts_[i]);
            linear(qkv_, site(x_, l, 0, rows), p.attn_qkv, q ? &q->attn_qkv : nullptr, p.attn_qkv_bias, nullptr, false,
                   rows, C, 3 * C);
            attention_cached(dev_, att_, rows_of, qkv_, C, config_.NH);
            linear(mid_, att_, p.attn_proj, q ? &q->attn_proj : nullptr, p.attn_proj_bias, x_, false, rows, C, C);
            linear(gelu_, site(mid_, l, 1, rows), p.mlp_fc, q ? &q->mlp_fc : nullptr, p.mlp_fc_bias, nullptr, true,
                   rows, C, 4 * C);
            linear(x_, gelu_, p.mlp_proj, q ? &q->mlp_proj : nullptr, p.mlp_proj_bias, mid_, false, rows, 4 * C, C);
        }
    }

    // out [rows, V], the logits of rows first .. of x_; returns its end.
    Acc<Real>* head(size_t first, size_t rows, Acc<Real>* out) {
        const size_t C = config_.C, V = config_.V, n = rows * V;
        const Real* y = site(x_ + first * C, config_.L, 0, rows);
        if constexpr (kCanPack)
            if (packed_) {
                panel_product(dev_, {&packed_->head, y, C, rows, out, weights_.lm_head_bias, nullptr, false});
                return out + n;
            }
        if constexpr (kOnHost) {
            head_forward(dev_, out, y, weights_.head(), weights_.lm_head_bias, rows, C, V);
        } else {
            head_forward(dev_, logits_, y, weights_.head(), weights_.lm_head_bias, rows, C, V, ld_logits_);
            std::vector<Real> values(rows * ld_logits_);
            device_copy_out(dev_, values.data(), logits_, values.size() * sizeof(Real));
            for (size_t row = 0; row < rows; row++) std::copy_n(&values[row * ld_logits_], V, out + row * V);
        }
        return out + n;
    }

    // ---- one token for each of some sequences, with packed weights: all of it in one parallel region

    // The site's output as each thread computes it for itself, which is cheaper than waiting for one that does it for
    // all.
    const float* own_site(const TeamMember& m, const float* x, size_t l, size_t which, size_t rows) {
        const Site<float> s = site_at(config_, weights_, c_, gate_, l, which);
        if (m.thread == 0) stream_passes_ += site_passes(s.kind, s.phase) + 1;
        if (s.phase == Phase::folded) {  // half of x has just been written on another core, and no norm brings it here
            for (size_t i = 0; i < rows * config_.C; i += 16) __builtin_prefetch(x + i);
            return x;
        }
        float* y = own_sites_ + m.thread * step_rows_ * config_.C;
        leaf<float>(dev_).site_forward(y, nullptr, nullptr, x, s, rows, config_.C, nullptr);
        return y;
    }

    void own_product(const TeamMember& m, const PanelProduct& p) {
        panel_product_single(dev_, int(m.thread), p, m.share(p.weights->count()), m.share(p.weights->count(), 1));
    }

    void own_heads(const TeamMember& m, size_t l, size_t rows) {
        const size_t C = config_.C, NH = config_.NH, hs = C / NH;
        for (size_t i = m.share(rows * NH); i < m.share(rows * NH, 1); i++) {
            const CachedRows<float> p = cached(l, parts_[i / NH]);
            const size_t h = i % NH;
            cache_append(p, qkv_, C, h * hs, (h + 1) * hs);
            attention_cached_head(dev_, int(m.thread), att_, p, 0, qkv_, C, hs, h);
        }
    }

    // The rows that stage() left; logits [rows, V] unless null.
    void step(size_t rows, float* logits) {
        const size_t C = config_.C;
        embedding_forward_at(dev_, x_, tokens_, positions_, weights_.wte, weights_.wpe, rows, C);
        stream_passes_ += 1 + 4 * config_.L;
        parallel_team(dev_, [&](const TeamMember& m) {
            for (size_t l = 0; l < config_.L; l++) {
                const BlockTensors<float>& p = weights_.h[l];
                const PackedModel::Block& q = packed_->h[l];
                own_product(m,
                            {&q.attn_qkv, own_site(m, x_, l, 0, rows), C, rows, qkv_, p.attn_qkv_bias, nullptr, false});
                m.barrier();
                own_heads(m, l, rows);
                m.barrier();
                own_product(m, {&q.attn_proj, att_, C, rows, mid_, p.attn_proj_bias, x_, false});
                m.barrier();
                own_product(m,
                            {&q.mlp_fc, own_site(m, mid_, l, 1, rows), C, rows, gelu_, p.mlp_fc_bias, nullptr, true});
                m.barrier();
                own_product(m, {&q.mlp_proj, gelu_, 4 * C, rows, x_, p.mlp_proj_bias, mid_, false});
                m.barrier();
            }
            if (!logits) return;
            own_product(m, {&packed_->head, own_site(m, x_, config_.L, 0, rows), C, rows, logits, weights_.lm_head_bias,
                            nullptr, false});
        });
    }

    Device& dev_;
    Config config_;
    GptTensors<Real> weights_;
    const PackedModel* packed_;
    std::vector<float> c_;
    double gate_;
    std::vector<size_t> lengths_;  // of the sequences
    std::vector<Part> parts_;      // of the block at hand
    size_t block_, step_rows_;     // most rows of a block, of a step
    size_t ld_logits_;             // on a GPU, where rows of logits start at multiples of 16 bytes
    size_t stream_passes_ = 0;
    Arena<Device> memory_;
    int *tokens_, *positions_;  // [block]
    Real *x_, *mid_, *site_, *qkv_, *att_, *gelu_, *logits_;
    Real* own_sites_ = nullptr;             // [threads, step_rows, C]
    std::vector<Real*> k_cache_, v_cache_;  // [L] of [sequences, T, C]
};

// A model's weights in a device's memory, in its number type.
template <class Device, class Real>
struct DeviceWeights {
    GptTensors<Real> tensors{};

    DeviceWeights(Device& dev, const Config& config, GptTensors<float>& host) : memory_(dev, "weights") {
        visit_tensors(config, tensors, [&](const TensorSpec& t, Real*& slot) { memory_.add(slot, t.count()); });
        memory_.allocate(false);
        const auto from = tensor_list(config, host);
        const auto to = tensor_list(config, tensors);
        for (size_t i = 0; i < from.size(); i++) {
            const std::vector<Real> values(from[i].data, from[i].data + from[i].spec.count());
            device_copy_in(dev, to[i].data, values.data(), values.size() * sizeof(Real));
        }
    }

  private:
    Arena<Device> memory_;
};

}  // namespace tapernorm
