// Generating text on a GPU without waiting for it. One step of all sequences (choose a token from the logits, embed it, pass
// it through the blocks, compute new logits) is recorded once as a CUDA graph and launched once per token. Tokens, positions
// and the settings of sampling are in device memory, so the graph never changes; the host runs ahead and reads the tokens
// later.
//
// A step launches 2 kernels and 5 per block (ops/matvec.cuh: norms, biases, GELU and residual stream are parts of the
// products). A folded model launches as many as a normalized one and reads as many bytes of weights; what folding saves is
// that no product waits for statistics of its input. (A folded model could merge attn_proj into mlp_fc, since nothing
// nonlinear is left between them: one launch less per block, for a third more bytes of weights. Not done.)
// More sequences than those kernels take go through cuBLASLt, in the same graph. (With
// --persistent, one kernel is a step, without the gaps between 2 + 5 L kernels: inference/persistent_step.cuh.)
#pragma once
#ifdef TN_CUDA
#include <functional>
#include <memory>
#include <optional>

#include "inference/decoder.cuh"
#include "inference/persistent_step.cuh"
#include "inference/sampler.h"
#include "ops/matvec.cuh"
#include "ops/sampling.cuh"

namespace tapernorm {

// first: the number of the first choice.
inline SampleSettings sample_settings(const Sampling& s, uint64_t first) {
    return {.inverse_temperature = s.is_greedy() ? 0 : 1 / s.temperature,
            .top_p = s.top_p,
            .top_k = unsigned(s.top_k),
            .seed = s.seed,
            .stream = sample_stream(s.stream),
            .first = first};
}

template <class Real>
class DecodeGraph {
  public:
    static constexpr size_t kAhead = 16;  // steps that the host may be ahead of the tokens it has read

    // All sequences of the decoder take part. It must outlive this. persistent: a step is one kernel (inference/persistent_step.cuh),
    // not a graph of kernels; fails where that kernel does not take the model or as many sequences.
    explicit DecodeGraph(Decoder<Cuda, Real>& decoder, bool persistent = false)
        : dev_(decoder.device()), decoder_(decoder), rows_(decoder.sequences()), memory_(dev_, "the decoding graph"),
          read_(kAhead * rows_), copied_(kAhead) {
        const Config& c = decoder.config_;
        const size_t splits = blocks_for(c.T, kDecodeKeys);
        memory_.add(settings_, 1), memory_.add(steps_, rows_), memory_.add(positions_, rows_);
        memory_.add(ids_, c.T * rows_), memory_.add(finished_, rows_ * c.NH);
        memory_.add(partial_, rows_ * c.NH * splits * (c.C / c.NH + 2));
        memory_.allocate(true);
        if (persistent) {
            if (const std::string why = PersistentStep<Real>::why_not(dev_, c, rows_); !why.empty())
                fail("--persistent: %s", why.c_str());
            std::vector<Layer<Real>> layers;
            decoder.blocks([&](const Layer<Real>& a) { layers.push_back(a); }, [](size_t) {});
            layers.push_back(decoder.head(decoder.logits_, decoder.x_));
            persistent_.emplace(dev_, c, layers, decoder.k_cache_, decoder.v_cache_, rows_);
        }
    }

    DecodeGraph(const DecodeGraph&) = delete;
    DecodeGraph& operator=(const DecodeGraph&) = delete;

    // An error in the middle leaves copies to read_ on their way.
    ~DecodeGraph() {
        cudaStreamSynchronize(dev_.stream);
        cudaStreamSynchronize(dev_.copy_stream);
    }

    // Whether a step of all sequences fits the decoder's memory, and the kernels the size of the heads (rows of a multiple of
    // 16 bytes) and of the vocabulary. Others go through the host's loop.
    static bool supports(const Decoder<Cuda, Real>& decoder) {
        const Config& c = decoder.config_;
        const size_t hs = c.C / c.NH;
        return decoder.sequences() <= decoder.block_ && hs % kVector<Real> == 0 && hs <= size_t(kSimpleMaxHs) &&
               c.V <= kSampleIds;
    }

    // As generate_on_host (inference/generate.cuh).
    void generate(const std::vector<Acc<Real>>& logits, size_t V, size_t n, const Sampling& sampling, size_t first,
                  const std::function<bool(size_t, const int*)>& on_step) {
        if (n == 0) return;
        begin(logits, n, sampling, first);
        V_ = V;
        for (size_t i = 0; i < n + kAhead; i++) {
            if (i >= kAhead && !deliver(i - kAhead, on_step))
                return copied_[(std::min(i, n) - 1) % kAhead].synchronize();  // nothing is on its way to read_ any more
            if (i >= n) continue;
            if (i + 1 == n)
                choose();  // nothing follows the last token
            else
                step();
            fetch(i);
        }
    }

    // Kernels of one step; 0 until it was recorded.
    size_t kernels() const { return persistent_ ? 1 : graph_.nodes(); }

  private:
    void begin(const std::vector<Acc<Real>>& logits, size_t n, const Sampling& s, size_t first) {
        // Sequences without logits take part too, from position 0; nobody reads their tokens.
        const std::vector<Real> rounded(logits.begin(), logits.end());
        std::fill(decoder_.lengths_.begin() + ptrdiff_t(logits.size() / decoder_.config_.V), decoder_.lengths_.end(),
                  0);
        const size_t longest = *std::max_element(decoder_.lengths_.begin(), decoder_.lengths_.end());
        if (longest + n - 1 > decoder_.config_.T)
            fail("decoding: %s after %zu, but the context has %zu", counted(n, "token").c_str(), longest,
                 decoder_.config_.T);
        const SampleSettings settings = sample_settings(s, first);
        std::vector<int> positions;
        for (const size_t length : decoder_.lengths_) positions.push_back(int(length) - 1);
        device_copy_in(dev_, settings_, &settings, sizeof settings);
        const size_t V = decoder_.config_.V;
        device_zero(dev_, decoder_.logits_, rows_ * decoder_.ld_logits_ * sizeof(Real));
        for (size_t row = 0; row * V < rounded.size(); row++)
            device_copy_in(dev_, decoder_.logits_ + row * decoder_.ld_logits_, &rounded[row * V], V * sizeof(Real));
        device_copy_in(dev_, positions_, positions.data(), positions.size() * sizeof(int));
        device_zero(dev_, steps_, rows_ * sizeof(unsigned));
    }

    // The first step runs unrecorded: cuBLASLt chooses its algorithms and modules are loaded, which a recording must not do.
    void step() {
        for (size_t& length : decoder_.lengths_) length++;
        if (persistent_) return persistent_->launch(choice());
        if (recorded_V_ == V_) return graph_.launch(dev_);
        issue();
        graph_.record(dev_, [&] { issue(); });
        recorded_V_ = V_;
    }

    SampleStep<Real> choice() const {
        const Config& c = decoder_.config_;
        const GptTensors<Real>& w = decoder_.weights_;
        return {settings_, decoder_.logits_, decoder_.ld_logits_, unsigned(V_), ids_,
                steps_,    positions_,       decoder_.x_,         w.wte,        w.wte_mean,
                w.wpe,     unsigned(c.C),    unsigned(c.T)};
    }

    void choose() { sample_step<Real>(dev_, choice(), rows_); }

    void issue() {
        choose();
        decoder_.blocks([&](const Layer<Real>& a) { linear(a); }, [&](size_t l) { attention(l); });
        linear(decoder_.head(decoder_.logits_, decoder_.x_));
    }

    void linear(Layer<Real> a) {
        if (a.site) a.site->positions = positions_;
        Site<Real> none{};
        none.phase = Phase::folded;
        const Matvec<Real> product{.out = a.out,
                                   .x = a.in,
                                   .site = a.site.value_or(none),
                                   .weight = a.weight,
                                   .bias = a.bias,
                                   .residual = a.residual,
                                   .gelu = a.gelu,
                                   .ld_out = unsigned(a.ld_out),
                                   .rows = unsigned(rows_),
                                   .K = unsigned(a.K),
                                   .N = unsigned(a.N)};
        if (fits_matvec(product, a.transposed)) return matvec(dev_, product, a.transposed);
        decoder_.linear(a, rows_);
    }

    void attention(size_t l) {
        const Config& c = decoder_.config_;
        const size_t hs = c.C / c.NH;
        attention_step<Real>(dev_,
                             {decoder_.att_, partial_, finished_, decoder_.k_cache_[l], decoder_.v_cache_[l],
                              decoder_.qkv_, positions_, int(c.NH), int(hs), int(c.T),
                              float(1 / std::sqrt(double(hs)))},
                             rows_);
    }

    // Copies the tokens of step i to the host: after the step, at the same time as those that follow it.
    void fetch(size_t i) {
        chosen_.record(dev_.stream);
        chosen_.block(dev_.copy_stream);
        CUDA_CHECK(cudaMemcpyAsync(read_.data() + i % kAhead * rows_, ids_ + i * rows_, rows_ * sizeof(int),
                                   cudaMemcpyDeviceToHost, dev_.copy_stream));
        copied_[i % kAhead].record(dev_.copy_stream);
    }

    bool deliver(size_t i, const std::function<bool(size_t, const int*)>& on_step) {
        copied_[i % kAhead].synchronize();
        return on_step(i, read_.data() + i % kAhead * rows_);
    }

    Cuda& dev_;
    Decoder<Cuda, Real>& decoder_;
    size_t rows_, V_ = 0, recorded_V_ = 0;
    Arena<Cuda> memory_;
    SampleSettings* settings_ = nullptr;
    unsigned *steps_ = nullptr, *finished_ = nullptr;
    int *positions_ = nullptr, *ids_ = nullptr;  // [rows], [T, rows]
    float* partial_ = nullptr;
    std::optional<PersistentStep<Real>> persistent_;
    CudaGraph graph_;
    Pinned<int> read_;  // [kAhead, rows]
    CudaEvent chosen_;
    std::vector<CudaEvent> copied_;
};

}  // namespace tapernorm
#endif  // TN_CUDA
