// Generating text on a GPU without waiting for it: a step of all sequences (choose a token from the logits, embed it, pass
// it through the blocks, new logits) is recorded once as a CUDA graph and launched once a token. Tokens, positions and the
// settings of sampling are in device memory, so the graph stays as it is; the host runs ahead and reads the tokens later.
//
// Launches a step: 2 and 5 a block (ops/matvec.cuh: norms, biases, GELU and residual stream are parts of the products). They
// are as many for a folded model as for a normalized one, and so are the bytes of weights; what folding saves here is that no
// product waits for statistics of its input. (A folded model could merge attn_proj into mlp_fc, since nothing nonlinear is left
// between them: one launch a block fewer, for a third more bytes of weights. Not done.)
// More sequences than those kernels take go through cuBLASLt, in the same graph.
#pragma once
#ifdef TN_CUDA
#include <functional>
#include <memory>

#include "inference/decoder.cuh"
#include "inference/sampler.h"
#include "ops/matvec.cuh"
#include "ops/sampling.cuh"

namespace tapernorm {

template <class Real>
class DecodeGraph {
  public:
    static constexpr size_t kAhead = 16;  // steps that the host may be ahead of the tokens it has read

    // All sequences of the decoder take part. It must outlive this.
    explicit DecodeGraph(Decoder<Cuda, Real>& decoder)
        : dev_(decoder.device()), decoder_(decoder), rows_(decoder.sequences()), memory_(dev_, "the decoding graph"),
          read_(kAhead * rows_), copied_(kAhead) {
        const Config& c = decoder.config_;
        const size_t splits = blocks_for(c.T, kDecodeKeys);
        memory_.add(settings_, 1), memory_.add(steps_, rows_), memory_.add(positions_, rows_);
        memory_.add(ids_, c.T * rows_), memory_.add(finished_, rows_ * c.NH);
        memory_.add(partial_, rows_ * c.NH * splits * (c.C / c.NH + 2));
        memory_.allocate(true);
    }

    // Head sizes whose rows are whole 16 bytes; others take the host's loop.
    static bool supports(const Config& c) {
        const size_t hs = c.C / c.NH;
        return hs % kVector<Real> == 0 && hs <= size_t(kSimpleMaxHs);
    }

    // As generate_on_host (inference/generate.cuh).
    void generate(const std::vector<Acc<Real>>& logits, size_t V, size_t n, const Sampling& sampling, size_t first,
                  const std::function<void(size_t, const int*)>& on_step) {
        if (n == 0) return;
        begin(logits, n, sampling, first);
        V_ = V;
        for (size_t i = 0; i < n + kAhead; i++) {
            if (i >= kAhead) deliver(i - kAhead, on_step);
            if (i >= n) continue;
            if (i + 1 == n)
                choose();  // nothing follows the last token
            else
                step();
            fetch(i);
        }
    }

    // Kernels a step, and 0 before the first one was recorded.
    size_t launches() const { return graph_.nodes(); }

    // Of one step over the residual stream of its rows: the embedding writes it; a block adds to it twice, a read and a write
    // each; and a site's input is read once, before that once for its mean and once for its scale where it needs them.
    size_t stream_passes() const {
        const Config& c = decoder_.config_;
        size_t passes = 1 + 4 * c.L;
        auto count = [&](const Site<Real>& s) {
            passes +=
                1 + (s.phase == Phase::folded ? 0 : site_passes(s.kind, s.phase) - 2);  // - 2: no copy of its output
        };
        for (size_t l = 0; l < c.L; l++) count(site(l, 0)), count(site(l, 1));
        count(site(c.L, 0));
        return passes;
    }

  private:
    void begin(const std::vector<Acc<Real>>& logits, size_t n, const Sampling& s, size_t first) {
        // Sequences without logits take part as well, from their beginning; nobody reads what they say.
        const std::vector<Real> rounded(logits.begin(), logits.end());
        std::fill(decoder_.lengths_.begin() + ptrdiff_t(logits.size() / decoder_.config_.V), decoder_.lengths_.end(),
                  0);
        const size_t longest = *std::max_element(decoder_.lengths_.begin(), decoder_.lengths_.end());
        if (longest + n - 1 > decoder_.config_.T)
            fail("decoding: %zu tokens after %zu are more than the context of %zu", n, longest, decoder_.config_.T);
        const SampleSettings settings{s.temperature > 0 ? 1 / s.temperature : 0,
                                      s.top_p,
                                      unsigned(s.top_k),
                                      s.seed,
                                      kSampleStream,
                                      first};
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

    // The first step runs as it is: cuBLASLt chooses its algorithms and modules are loaded, which a recording must not do.
    void step() {
        for (size_t& length : decoder_.lengths_) length++;
        if (recorded_V_ == V_) return graph_.launch(dev_);
        issue();
        graph_.record(dev_, [&] { issue(); });
        recorded_V_ = V_;
    }

    void choose() {
        const Config& c = decoder_.config_;
        const GptTensors<Real>& w = decoder_.weights_;
        sample_step<Real>(dev_,
                          {settings_, decoder_.logits_, decoder_.ld_logits_, unsigned(V_), ids_, steps_, positions_,
                           decoder_.x_, w.wte, w.wpe, unsigned(c.C), unsigned(c.T)},
                          rows_);
    }

    void issue() {
        Decoder<Cuda, Real>& d = decoder_;
        const Config& c = d.config_;
        const size_t C = c.C;
        choose();
        for (size_t l = 0; l < c.L; l++) {
            const BlockTensors<Real>& p = d.weights_.h[l];
            linear({.out = d.qkv_, .x = d.x_, .site = site(l, 0), .weight = p.attn_qkv, .bias = p.attn_qkv_bias}, C,
                   3 * C);
            attention(l);
            // clang-format off
            linear({.out = d.mid_, .x = d.att_, .site = none(), .weight = p.attn_proj, .bias = p.attn_proj_bias,
                    .residual = d.x_}, C, C);
            linear({.out = d.gelu_, .x = d.mid_, .site = site(l, 1), .weight = p.mlp_fc, .bias = p.mlp_fc_bias, .gelu = true},
                   C, 4 * C);
            linear({.out = d.x_, .x = d.gelu_, .site = none(), .weight = p.mlp_proj, .bias = p.mlp_proj_bias,
                    .residual = d.mid_}, 4 * C, C);
        }
        linear({.out = d.logits_, .x = d.x_, .site = site(c.L, 0), .weight = d.weights_.head(),
                .bias = d.weights_.lm_head_bias, .ld_out = unsigned(d.ld_logits_)}, C, c.V, true);
        // clang-format on
    }

    Site<Real> site(size_t l, size_t which) const {
        return site_at(decoder_.config_, decoder_.weights_, decoder_.c_, decoder_.gate_, l, which);
    }
    Site<Real> none() const {
        Site<Real> s{};
        s.phase = Phase::folded;
        return s;
    }

    void linear(Matvec<Real> a, size_t K, size_t N, bool transposed = false) {
        a.rows = unsigned(rows_), a.K = unsigned(K), a.N = unsigned(N);
        if (fits_matvec(a, transposed)) return matvec(dev_, a, transposed);
        const Real* x = a.x;
        if (a.site.phase != Phase::folded) {
            site_forward<Real>(dev_, decoder_.site_, nullptr, nullptr, nullptr, x, a.site, rows_, K);
            x = decoder_.site_;
        }
        if (transposed)
            head_forward(dev_, a.out, x, a.weight, a.bias, rows_, K, N, a.ld_out);
        else if (a.gelu)
            matmul_gelu_forward<Real>(dev_, a.out, nullptr, x, a.weight, a.bias, rows_, K, N);
        else
            matmul_forward<Real>(dev_, a.out, x, a.weight, a.bias, a.residual, rows_, K, N);
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

    // Sends the tokens of step i to the host, behind the step and beside those that follow it.
    void fetch(size_t i) {
        chosen_.record(dev_.stream);
        chosen_.block(dev_.copy_stream);
        CUDA_CHECK(cudaMemcpyAsync(read_.data() + i % kAhead * rows_, ids_ + i * rows_, rows_ * sizeof(int),
                                   cudaMemcpyDeviceToHost, dev_.copy_stream));
        copied_[i % kAhead].record(dev_.copy_stream);
    }

    void deliver(size_t i, const std::function<void(size_t, const int*)>& on_step) {
        copied_[i % kAhead].synchronize();
        on_step(i, read_.data() + i % kAhead * rows_);
    }

    Cuda& dev_;
    Decoder<Cuda, Real>& decoder_;
    size_t rows_, V_ = 0, recorded_V_ = 0;
    Arena<Cuda> memory_;
    SampleSettings* settings_ = nullptr;
    unsigned *steps_ = nullptr, *finished_ = nullptr;
    int *positions_ = nullptr, *ids_ = nullptr;  // [rows], [T, rows]
    float* partial_ = nullptr;
    CudaGraph graph_;
    Pinned<int> read_;  // [kAhead, rows]
    CudaEvent chosen_;
    std::vector<CudaEvent> copied_;
};

}  // namespace tapernorm
#endif  // TN_CUDA
