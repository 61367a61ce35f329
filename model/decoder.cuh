// Inference: a model of any state (normalized, tapering, tapered, folded) with a KV cache, one sequence at a time.
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

template <class Device, class Real>
class Decoder {
  public:
    // weights must outlive the decoder. c: taper_scale of every tapering site.
    Decoder(Device& dev, const Config& config, const GptTensors<Real>& weights, const std::vector<float>& c, double gate)
        : dev_(dev), config_(config), weights_(weights), c_(c), gate_(gate), block_(std::min<size_t>(config.T, 256)),
          memory_(dev, "the KV cache and activations") {
        const size_t C = config.C;
        memory_.add(tokens_, block_), memory_.add(x_, block_ * C), memory_.add(mid_, block_ * C);
        memory_.add(site_, block_ * C), memory_.add(qkv_, block_ * 3 * C), memory_.add(att_, block_ * C);
        memory_.add(gelu_, block_ * 4 * C), memory_.add(logits_, block_ * config.V);
        k_cache_.resize(config.L), v_cache_.resize(config.L);
        for (size_t l = 0; l < config.L; l++)
            memory_.add(k_cache_[l], config.T * C), memory_.add(v_cache_[l], config.T * C);
        memory_.allocate(false);
    }

    size_t length() const { return length_; }  // tokens fed so far
    void rewind(size_t length) { length_ = std::min(length, length_); }

    // Appends tokens [n] to the sequence (length() + n must not exceed config.T). out [n, V] for Logits::all, [V] for
    // Logits::last (those of the last token), host memory.
    void feed(const int* tokens, size_t n, Logits which, Acc<Real>* out) {
        const size_t V = config_.V;
        for (size_t done = 0; done < n; done += block_) {
            const size_t rows = std::min(block_, n - done);
            pass(tokens + done, rows);
            const bool last_block = done + rows == n;
            if (which == Logits::all) {
                head(0, rows);
                copy_logits(out + done * V, rows);
            } else if (which == Logits::last && last_block) {
                head(rows - 1, 1);
                copy_logits(out, 1);
            }
        }
    }

  private:
    void copy_logits(Acc<Real>* out, size_t rows) {
        const size_t n = rows * config_.V;
        if constexpr (std::is_same_v<Real, Acc<Real>>) {
            device_copy_out(dev_, out, logits_, n * sizeof(Real));
        } else {
            std::vector<Real> rounded(n);
            device_copy_out(dev_, rounded.data(), logits_, n * sizeof(Real));
            std::copy(rounded.begin(), rounded.end(), out);
        }
    }

    // The site's output: its input itself where it was folded away.
    const Real* site(const Real* x, size_t l, size_t which, size_t rows) {
        const Site<Real> s = site_at(config_, weights_, c_, gate_, l, which);
        if (s.phase == Phase::folded) return x;
        site_forward<Real>(dev_, site_, nullptr, nullptr, nullptr, x, s, rows, config_.C);
        return site_;
    }

    // The blocks, for tokens [rows] at positions length_ ..; leaves the residual stream in x_.
    void pass(const int* tokens, size_t rows) {
        const size_t C = config_.C;
        device_copy_in(dev_, tokens_, tokens, rows * sizeof(int));
        embedding_forward(dev_, x_, tokens_, weights_.wte, weights_.wpe + length_ * C, 1, rows, C);
        for (size_t l = 0; l < config_.L; l++) {
            const BlockTensors<Real>& p = weights_.h[l];
            matmul_forward<Real>(dev_, qkv_, site(x_, l, 0, rows), p.attn_qkv, p.attn_qkv_bias, nullptr, rows, C, 3 * C);
            attention_cached(dev_, att_, k_cache_[l], v_cache_[l], qkv_, length_, rows, C, config_.NH);
            matmul_forward<Real>(dev_, mid_, att_, p.attn_proj, p.attn_proj_bias, x_, rows, C, C);
            matmul_gelu_forward<Real>(dev_, gelu_, nullptr, site(mid_, l, 1, rows), p.mlp_fc, p.mlp_fc_bias, rows, C,
                                      4 * C);
            matmul_forward<Real>(dev_, x_, gelu_, p.mlp_proj, p.mlp_proj_bias, mid_, rows, 4 * C, C);
        }
        length_ += rows;
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
    size_t block_, length_ = 0;
    Arena<Device> memory_;
    int* tokens_ = nullptr;  // [block]
    Real *x_, *mid_, *site_, *qkv_, *att_, *gelu_, *logits_;
    std::vector<Real*> k_cache_, v_cache_;  // [L] of [T, C]
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
