// Inference: a model of any state (normalized, tapering, tapered, folded) with a KV cache for each of its sequences.
// Used by infer, by fold to compare its two models, and by the trainer to print samples.
#pragma once
#include <algorithm>
#include <vector>

#include "model/config.h"
#include "ops/attention.cuh"
#include "ops/embedding.cuh"
#include "ops/matmul.cuh"
#include "runtime/arena.h"

enum class Logits { none, last, all };

// Tokens [n], n >= 1, that go on one sequence.
struct Piece {
    size_t sequence;
    const int* tokens;
    size_t n;
};

template <class Real>
class DecodeGraph;  // model/decode_graph.cuh: steps without the host

template <class Device, class Real>
class Decoder {
  public:
    // weights must outlive the decoder. c: taper_scale of every tapering site. sequences: KV caches.
    Decoder(Device& dev, const Config& config, const GptTensors<Real>& weights, const std::vector<float>& c, double gate,
            size_t sequences = 1)
        : dev_(dev), config_(config), weights_(weights), c_(c), gate_(gate), lengths_(sequences, 0),
          block_(std::max<size_t>(sequences, std::min<size_t>(config.T * sequences, 256))),
          memory_(dev, "the KV cache and activations") {
        const size_t C = config.C;
        memory_.add(tokens_, block_), memory_.add(positions_, block_), memory_.add(x_, block_ * C);
        memory_.add(mid_, block_ * C), memory_.add(site_, block_ * C), memory_.add(qkv_, block_ * 3 * C);
        memory_.add(att_, block_ * C), memory_.add(gelu_, block_ * 4 * C), memory_.add(logits_, block_ * config.V);
        k_cache_.resize(config.L), v_cache_.resize(config.L);
        for (size_t l = 0; l < config.L; l++)
            memory_.add(k_cache_[l], sequences * config.T * C), memory_.add(v_cache_[l], sequences * config.T * C);
        memory_.allocate(false);
    }

    size_t sequences() const { return lengths_.size(); }
    size_t length(size_t sequence = 0) const { return lengths_[sequence]; }  // tokens fed so far
    void rewind(size_t length, size_t sequence = 0) { lengths_[sequence] = std::min(length, lengths_[sequence]); }

    // Appends pieces to their sequences, each to another one: prompts of different lengths, or one token each to go on.
    // No sequence may become longer than config.T. out, host memory: for Logits::all [rows of all pieces, V], for
    // Logits::last [pieces, V], those of each piece's last token.
    void feed(const std::vector<Piece>& pieces, Logits which, Acc<Real>* out) {
        const size_t V = config_.V;
        for (size_t piece = 0, done = 0; piece < pieces.size();) {
            const size_t rows = stage(pieces, piece, done);
            pass(rows);
            if (which == Logits::all) {
                head(0, rows);
                out = copy_logits(out, rows * V);
            }
            for (size_t i = 0; i < parts_.size() && which == Logits::last;) {
                size_t next = i + 1;
                if (parts_[i].ends) {  // with the one-row parts behind it: rows side by side
                    while (next < parts_.size() && parts_[next].ends && parts_[next].n == 1) next++;
                    head(parts_[i].row + parts_[i].n - 1, next - i);
                    out = copy_logits(out, (next - i) * V);
                }
                i = next;
            }
        }
    }

    // The same for the first sequence alone: tokens [n]; out [n, V] for Logits::all, [V] for Logits::last.
    void feed(const int* tokens, size_t n, Logits which, Acc<Real>* out) { feed({{0, tokens, n}}, which, out); }

  private:
    friend class DecodeGraph<Real>;

    // Rows row .. row + n - 1 of a block are positions first .. of a sequence; `ends` its piece.
    struct Part {
        size_t sequence, row, first, n;
        bool ends;
    };

    // Takes the next block of rows from the pieces, from row `done` of piece `piece` on, and moves both on.
    size_t stage(const std::vector<Piece>& pieces, size_t& piece, size_t& done) {
        std::vector<int> tokens, positions;
        parts_.clear();
        while (piece < pieces.size() && tokens.size() < block_) {
            const Piece& p = pieces[piece];
            const size_t n = std::min(block_ - tokens.size(), p.n - done), first = lengths_[p.sequence];
            parts_.push_back({p.sequence, tokens.size(), first, n, done + n == p.n});
            tokens.insert(tokens.end(), p.tokens + done, p.tokens + done + n);
            for (size_t i = 0; i < n; i++) positions.push_back(int(first + i));
            lengths_[p.sequence] += n;
            done += n;
            if (done == p.n) piece++, done = 0;
        }
        device_copy_in(dev_, tokens_, tokens.data(), tokens.size() * sizeof(int));
        device_copy_in(dev_, positions_, positions.data(), positions.size() * sizeof(int));
        return tokens.size();
    }

    // Copies n of logits_ to the host; returns the end of the copy.
    Acc<Real>* copy_logits(Acc<Real>* out, size_t n) {
        if constexpr (std::is_same_v<Real, Acc<Real>>) {
            device_copy_out(dev_, out, logits_, n * sizeof(Real));
        } else {
            std::vector<Real> rounded(n);
            device_copy_out(dev_, rounded.data(), logits_, n * sizeof(Real));
            std::copy(rounded.begin(), rounded.end(), out);
        }
        return out + n;
    }

    // The site's output: its input itself where it was folded away.
    const Real* site(const Real* x, size_t l, size_t which, size_t rows) {
        const Site<Real> s = site_at(config_, weights_, c_, gate_, l, which);
        if (s.phase == Phase::folded) return x;
        site_forward<Real>(dev_, site_, nullptr, nullptr, nullptr, x, s, rows, config_.C);
        return site_;
    }

    // The blocks, for the rows that stage() left; leaves the residual stream in x_.
    void pass(size_t rows) {
        const size_t C = config_.C;
        embedding_forward_at(dev_, x_, tokens_, positions_, weights_.wte, weights_.wpe, rows, C);
        std::vector<CachedRows<Real>> cached(parts_.size());
        for (size_t l = 0; l < config_.L; l++) {
            const BlockTensors<Real>& p = weights_.h[l];
            for (size_t i = 0; i < parts_.size(); i++) {
                const size_t at = parts_[i].sequence * config_.T * C;
                cached[i] = {k_cache_[l] + at, v_cache_[l] + at, parts_[i].row, parts_[i].first, parts_[i].n};
            }
            matmul_forward<Real>(dev_, qkv_, site(x_, l, 0, rows), p.attn_qkv, p.attn_qkv_bias, nullptr, rows, C, 3 * C);
            attention_cached(dev_, att_, cached, qkv_, C, config_.NH);
            matmul_forward<Real>(dev_, mid_, att_, p.attn_proj, p.attn_proj_bias, x_, rows, C, C);
            matmul_gelu_forward<Real>(dev_, gelu_, nullptr, site(mid_, l, 1, rows), p.mlp_fc, p.mlp_fc_bias, rows, C,
                                      4 * C);
            matmul_forward<Real>(dev_, x_, gelu_, p.mlp_proj, p.mlp_proj_bias, mid_, rows, 4 * C, C);
        }
    }

    // logits_ [rows, V] of rows first .. of x_.
    void head(size_t first, size_t rows) {
        const size_t C = config_.C;
        const Real* y = site(x_ + first * C, config_.L, 0, rows);
        head_forward(dev_, logits_, y, weights_.head(), weights_.lm_head_bias, rows, C, config_.V);
    }

    Device& dev_;
    Config config_;
    GptTensors<Real> weights_;
    std::vector<float> c_;
    double gate_;
    std::vector<size_t> lengths_;  // of the sequences
    std::vector<Part> parts_;      // of the block at hand
    size_t block_;                 // rows
    Arena<Device> memory_;
    int *tokens_, *positions_;  // [block]
    Real *x_, *mid_, *site_, *qkv_, *att_, *gelu_, *logits_;
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
