// Generating tokens for all sequences of a decoder: on the CPU one step after the other, on a GPU without waiting for the
// host.
#pragma once
#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "inference/decoder.cuh"
#include "inference/logits.h"
#include "inference/sampler.h"
#ifdef TN_CUDA
#include "inference/decode_graph.cuh"
#endif

namespace tapernorm {

// When the context of T tokens is full, this many of its newest tokens are read again from position 0, and generation
// continues behind them.
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

// Called for every step i in turn with its tokens, one for each sequence; -1: the logits were NaN or Inf, and what follows
// in that sequence means nothing. Returns whether to go on: if not, the sequences may already hold more than it was told.
using OnStep = std::function<bool(size_t i, const int* tokens)>;

// n tokens for each of the first sequences. The first token is chosen from logits [sequences, V of the model], which are
// overwritten. All tokens but the last are fed to the decoder, so no sequence may hold more than config.T - n + 1 tokens
// before. Only ids below V are chosen. first: the number of the first choice, for the random numbers.
template <class Device, class Real>
void generate_on_host(Decoder<Device, Real>& decoder, std::vector<Acc<Real>>& logits, size_t V, size_t n,
                      const Sampling& s, size_t first, const OnStep& on_step) {
    const size_t stride = decoder.config().V, rows = logits.size() / stride;
    std::vector<int> tokens(rows);
    std::vector<TokenSpan> next(rows);
    for (size_t i = 0; i < n; i++) {
        for (size_t row = 0; row < rows; row++) {
            const Acc<Real>* z = &logits[row * stride];
            Sampling own = s;
            own.stream += row;
            if constexpr (std::is_same_v<Acc<Real>, float>)
                tokens[row] = all_finite(z, stride) ? sample(z, V, own, first + i) : -1;
            else
                tokens[row] = sample(std::vector<float>(z, z + V).data(), V, own, first + i);
        }
        if (!on_step(i, tokens.data())) return;
        for (size_t row = 0; row < rows; row++) {
            tokens[row] = std::max(tokens[row], 0);
            next[row] = {row, &tokens[row], 1};
        }
        if (i + 1 < n) decoder.feed(next, Logits::last, logits.data());
    }
}

// The same, the way the device does it best; decoder must outlive it.
template <class Device, class Real>
class Generator {
  public:
    explicit Generator(Decoder<Device, Real>& decoder, bool /* persistent */ = false) : decoder_(decoder) {}
    static std::string why_not_persistent(const Device&, const Config&, size_t) { return "expected a GPU"; }
    Decoder<Device, Real>& decoder() const { return decoder_; }
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
    // "" where one kernel can be a step of so many sequences.
    static std::string why_not_persistent(const Cuda& dev, const Config& c, size_t sequences) {
        return PersistentStep<Real>::why_not(dev, c, sequences);
    }
    // persistent: see DecodeGraph.
    explicit Generator(Decoder<Cuda, Real>& decoder, bool persistent = false) : decoder_(decoder) {
        if (persistent || DecodeGraph<Real>::supports(decoder)) graph_.emplace(decoder, persistent);
    }
    void generate(std::vector<Acc<Real>>& logits, size_t V, size_t n, const Sampling& s, size_t first,
                  const OnStep& on_step) {
        if (graph_)
            graph_->generate(logits, V, n, s, first, on_step);
        else
            generate_on_host(decoder_, logits, V, n, s, first, on_step);
    }
    Decoder<Cuda, Real>& decoder() const { return decoder_; }
    // Kernels of one step, once there was one; 0 where the host runs the steps.
    size_t kernels() const { return graph_ ? graph_->kernels() : 0; }

  private:
    Decoder<Cuda, Real>& decoder_;
    std::optional<DecodeGraph<Real>> graph_;
};
#endif

// What to feed a sequence after its newest token: that token or, where the context is full, its second half, which is read
// again from position 0.
template <class Device, class Real>
TokenSpan next_span(Decoder<Device, Real>& decoder, size_t sequence, std::span<const int> tokens) {
    const size_t T = decoder.config().T;
    size_t n = 1;
    if (decoder.length(sequence) == T) decoder.rewind(0, sequence), n = half_context(T);
    return {sequence, tokens.data() + tokens.size() - n, n};
}

// n tokens after a prompt that was fed to the first sequence, also beyond its context, or fewer: the token `end` ends the
// text and is not told, the token -1 (see OnStep) is the last, and on_token may say not to go on. logits [V of the model]:
// those of the prompt's last token. Only ids below V are chosen.
template <class Device, class Real>
void generate_stream(Generator<Device, Real>& generator, std::vector<Acc<Real>>& logits, std::span<const int> prompt,
                     size_t V, size_t n, const Sampling& s, std::optional<int> end,
                     const std::function<bool(size_t i, int token)>& on_token) {
    Decoder<Device, Real>& decoder = generator.decoder();
    const size_t T = decoder.config().T;
    RecentTokens tokens(prompt, half_context(T));
    bool go_on = true;
    for (size_t done = 0; done < n;) {
        const size_t more = std::min(n - done, T - decoder.length() + 1);  // as many as the context holds
        generator.generate(logits, V, more, s, done, [&](size_t i, const int* token) {
            tokens.push(*token);
            return go_on = *token != end && on_token(done + i, *token) && *token >= 0;
        });
        if (!go_on) return;
        done += more;
        if (done < n) decoder.feed({next_span(decoder, 0, tokens.all())}, Logits::last, logits.data());
    }
}

// Appends n tokens to every prompt (one for each of the decoder's first sequences), or fewer: the token `end` ends a sequence
// and is not appended. The same tokens as if each were alone with its stream of random numbers, up to the rounding of logits.
template <class Device, class Real>
void generate_together(Generator<Device, Real>& generator, std::vector<std::vector<int>>& tokens, size_t V, size_t n,
                       const Sampling& s, std::optional<int> end, const std::string& model) {
    Decoder<Device, Real>& decoder = generator.decoder();
    const size_t B = tokens.size(), T = decoder.config().T;
    std::vector<Acc<Real>> logits(B * decoder.config().V);
    std::vector<TokenSpan> spans;
    for (size_t b = 0; b < B; b++) decoder.rewind(0, b), spans.push_back({b, tokens[b].data(), tokens[b].size()});
    std::vector<bool> ended(B, false);  // these go on with the others, but nobody reads what they generate
    size_t open = B;
    auto keep = [&](size_t, const int* next) {
        for (size_t b = 0; b < B; b++) {
            if (ended[b]) continue;
            if (next[b] < 0) fail_not_finite(model);
            if (next[b] == end)
                ended[b] = true, open--;
            else
                tokens[b].push_back(next[b]);
        }
        return open > 0;
    };
    for (size_t done = 0; done < n && open > 0;) {
        decoder.feed(spans, Logits::last, logits.data());
        size_t more = n - done;  // or as many as every context holds
        for (size_t b = 0; b < B; b++) more = std::min(more, T - decoder.length(b) + 1);
        generator.generate(logits, V, more, s, done, keep);
        done += more;
        spans.clear();
        for (size_t b = 0; b < B && done < n; b++) {
            if (ended[b]) decoder.rewind(0, b);  // it may be shorter than half a context
            spans.push_back(next_span(decoder, b, tokens[b]));
        }
    }
}

}  // namespace tapernorm
