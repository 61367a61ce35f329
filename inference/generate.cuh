// Generating tokens for all sequences of a decoder: on the CPU one step after the other, on a GPU without the host.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "inference/decoder.cuh"
#include "inference/sampler.h"
#ifdef TN_CUDA
#include "inference/decode_graph.cuh"
#endif

namespace tapernorm {

inline bool all_finite(const float* x, size_t n) {
    float sum = 0;  // of x - x, which is NaN unless x is finite
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += x[i] - x[i];
    return sum == 0;
}

// Of a full context of T tokens, so many are read again from position 0 on, for the model to go on with.
inline size_t half_context(size_t T) { return std::max<size_t>(1, T / 2); }

// At least the newest `keep` tokens of a sequence that may have no end, and never more than twice as many.
class RecentTokens {
  public:
    RecentTokens(std::span<const int> tokens, size_t keep) : keep_(keep) {
        const std::span<const int> newest = tokens.last(std::min(tokens.size(), keep));
        tokens_.reserve(2 * keep);
        tokens_.assign(newest.begin(), newest.end());
    }
    void push(int token) {
        if (tokens_.size() == 2 * keep_) tokens_.erase(tokens_.begin(), tokens_.end() - ptrdiff_t(keep_));
        tokens_.push_back(token);
    }
    std::span<const int> all() const { return tokens_; }  // the oldest first; until the next push

  private:
    size_t keep_;
    std::vector<int> tokens_;
};

// Called for every step i in turn with its tokens, one for each sequence; -1: the logits were not finite numbers, and what
// follows in that sequence means nothing.
using OnStep = std::function<void(size_t i, const int* tokens)>;

// n tokens for each of the first sequences, the first chosen from logits [sequences, V of the model], which are used up; all
// but the last are fed to the decoder, so no sequence may have more than config.T - n + 1 tokens before. Ids below V may be
// chosen. first: number of the first choice, for the random numbers.
template <class Device, class Real>
void generate_on_host(Decoder<Device, Real>& decoder, std::vector<Acc<Real>>& logits, size_t V, size_t n,
                      const Sampling& s, size_t first, const OnStep& on_step) {
    const size_t stride = decoder.config().V, rows = logits.size() / stride;
    std::vector<int> tokens(rows);
    std::vector<TokenSpan> next(rows);
    for (size_t i = 0; i < n; i++) {
        for (size_t row = 0; row < rows; row++) {
            const Acc<Real>* z = &logits[row * stride];
            if constexpr (std::is_same_v<Acc<Real>, float>)
                tokens[row] = all_finite(z, stride) ? sample(z, V, s, first + i) : -1;
            else
                tokens[row] = sample(std::vector<float>(z, z + V).data(), V, s, first + i);
        }
        on_step(i, tokens.data());
        for (size_t row = 0; row < rows; row++) {
            tokens[row] = std::max(tokens[row], 0);
            next[row] = {row, &tokens[row], 1};
        }
        if (i + 1 < n) decoder.feed(next, Logits::last, logits.data());
    }
}

// The way of a device to do so; decoder must outlive it.
template <class Device, class Real>
class Generator {
  public:
    explicit Generator(Decoder<Device, Real>& decoder) : decoder_(decoder) {}
    // See generate_on_host.
    void generate(std::vector<Acc<Real>>& logits, size_t V, size_t n, const Sampling& s, size_t first,
                  const OnStep& on_step) {
        generate_on_host(decoder_, logits, V, n, s, first, on_step);
    }

  private:
    Decoder<Device, Real>& decoder_;
};

#ifdef TN_CUDA
template <class Real>
class Generator<Cuda, Real> {
  public:
    explicit Generator(Decoder<Cuda, Real>& decoder) : decoder_(decoder) {
        if (DecodeGraph<Real>::supports(decoder.config())) graph_.emplace(decoder);
    }
    void generate(std::vector<Acc<Real>>& logits, size_t V, size_t n, const Sampling& s, size_t first,
                  const OnStep& on_step) {
        if (graph_)
            graph_->generate(logits, V, n, s, first, on_step);
        else
            generate_on_host(decoder_, logits, V, n, s, first, on_step);
    }
    // What one step launches and how often it passes over the residual stream, where it is a graph that has been recorded;
    // else 0.
    size_t launches() const { return graph_ ? graph_->launches() : 0; }
    size_t stream_passes() const { return graph_ ? graph_->stream_passes() : 0; }

  private:
    Decoder<Cuda, Real>& decoder_;
    std::optional<DecodeGraph<Real>> graph_;
};
#endif

}  // namespace tapernorm
