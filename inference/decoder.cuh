// Inference: a model of any state (normalized, tapering, tapered, folded) with a KV cache for each of its sequences.
// Used by infer, by fold to compare its two models, and by the trainer to print samples.
#pragma once
#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "inference/packed_model.h"
#include "io/tokens.h"
#include "model/config.h"
#include "ops/attention/choice.cuh"
#include "ops/embedding.cuh"
#include "ops/linear.cuh"
#include "runtime/arena.h"

namespace tapernorm {

enum class Logits { none, last, all };

// Tokens [n], n >= 1, to append to one sequence.
struct TokenSpan {
    size_t sequence;
    const int* tokens;
    size_t n;
};

// A linear layer of the block diagram: out = site(in) W + bias, then GELU or + residual.
template <class Real>
struct Layer {
    Real* out = nullptr;                  // [rows, N], rows ld_out apart (0: N)
    const Real* in = nullptr;             // [rows, K]
    std::optional<Site<Real>> site = {};  // none where `in` is not the residual stream
    const Real* weight = nullptr;         // [K, N], or [N, K] if transposed
    const Panels* panels = nullptr;       // the same matrix packed; without data: not packed
    const Real* bias = nullptr;           // [N] or null
    const Real* residual = nullptr;       // [rows, N] or null
    bool gelu = false, transposed = false;
    size_t K = 0, N = 0, ld_out = 0;
};

template <class Real>
class DecodeGraph;  // inference/decode_graph.cuh: steps without the host

// Copies numbers of the host to the device, in the order of its ops; the host does not wait.
template <class Device>
struct Upload {
    void operator()(Device&, int* to, const std::vector<int>& from) { std::copy(from.begin(), from.end(), to); }
};

// What a decoder keeps to repeat a pass without issuing its ops again: on the CPU, nothing.
template <class Device>
struct RecordedPasses {};

#ifdef TN_CUDA
template <>
class Upload<Cuda> {
  public:
    Upload() = default;
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;
    ~Upload() {
        if (stream_) cudaStreamSynchronize(stream_);
    }
    void operator()(Cuda& dev, int* to, const std::vector<int>& from) {
        copied_.synchronize();  // the buffer's last copy
        if (size_ < from.size()) host_ = std::make_unique<Pinned<int>>(from.size()), size_ = from.size();
        std::copy(from.begin(), from.end(), host_->data());
        stream_ = dev.stream;
        CUDA_CHECK(cudaMemcpyAsync(to, host_->data(), from.size() * sizeof(int), cudaMemcpyHostToDevice, stream_));
        copied_.record(stream_);
    }

  private:
    std::unique_ptr<Pinned<int>> host_;
    size_t size_ = 0;
    cudaStream_t stream_ = nullptr;
    CudaEvent copied_;
};

// A pass over the same rows of the same sequences is recorded when it comes for the third time in a row (a validation, a benchmark),
// and from then on launched as one. (Kernels' arguments are frozen: a pass over other rows is another pass.)
template <>
struct RecordedPasses<Cuda> {
    using Key = std::vector<std::array<size_t, 4>>;
    static constexpr size_t kMost = 8, kBefore = 2;
    Key last;
    size_t times = 0;                                                // it came, in a row
    std::vector<std::pair<Key, std::unique_ptr<CudaGraph>>> graphs;  // the newest last

    // Whether a graph did what issue() does; if not, issue() has yet to be called.
    template <class Issue>
    bool launch(Cuda& dev, const Key& key, Issue&& issue) {
        for (const auto& [known, graph] : graphs)
            if (known == key) return graph->launch(dev), true;
        times = std::exchange(last, key) == key ? times + 1 : 1;
        if (times <= kBefore) return false;
        auto graph = std::make_unique<CudaGraph>();
        graph->record(dev, issue);
        graph->launch(dev);
        if (graphs.size() == kMost) graphs.erase(graphs.begin());
        graphs.emplace_back(key, std::move(graph));
        return true;
    }
};
#endif

template <class Device, class Real>
class Decoder {
  public:
    // weights must outlive the decoder. scales: of every tapering site. sequences: the number of KV caches.
    // packed (only on the CPU in fp32): the same model's matrices, which are then read instead of those in `weights`;
    // a sequence's logits then have the same bits whatever other sequences it is fed together with.
    Decoder(Device& dev, const Config& config, const GptTensors<Real>& weights, const std::vector<TaperScale>& scales,
            double gate, size_t sequences = 1, const PackedModel* packed = nullptr)
        : dev_(dev), config_(config), weights_(weights), packed_(packed), scales_(scales), gate_(gate),
          lengths_(sequences, 0), block_(std::min(config.T * sequences, kBlock)),
          step_rows_(std::min(sequences, block_)), ld_logits_((config.V + 7) / 8 * 8),
          logits_rows_(std::max(step_rows_, std::min(block_, kLogitsRows))),
          memory_(dev, "the KV cache and activations") {
        const size_t C = config.C;
        choose_attention<Real>(dev, C / config.NH);
        memory_.add(tokens_, 2 * block_), memory_.add(x_, block_ * C);
        memory_.add(mid_, block_ * C), memory_.add(site_, block_ * C), memory_.add(qkv_, block_ * 3 * C);
        memory_.add(att_, block_ * C), memory_.add(gelu_, block_ * 4 * C);
        memory_.add(logits_, kOnHost ? 0 : logits_rows_ * ld_logits_);
        memory_.add(last_positions_, kOnHost ? 0 : step_rows_);
        if constexpr (kCanPack) step_threads_ = StepThreads(size_t(dev.threads));
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

    // Nodes of the newest recorded pass, on a GPU; 0: there is none.
    size_t recorded_nodes() const {
        if constexpr (kOnHost)
            return 0;
        else
            return recorded_.graphs.empty() ? 0 : recorded_.graphs.back().second->nodes();
    }

    // Called before every layer; rows: of layer.in. While there is one, single tokens are computed like prompts, slowly.
    std::function<void(const Layer<Real>& layer, size_t rows)> watch;

    // Appends spans to their sequences, no two to the same one: prompts of different lengths, or the next token of each.
    // No sequence may become longer than config.T. out, host memory: for Logits::all [rows of all spans, V], for
    // Logits::last [spans, V], those of each span's last token.
    void feed(const std::vector<TokenSpan>& spans, Logits which, Acc<Real>* out) {
        for (size_t span = 0, done = 0; span < spans.size();) {
            const size_t rows = stage(spans, span, done);
            if constexpr (kCanPack)
                if (packed_ && parts_[0].single && !watch) {
                    step(rows, which == Logits::none ? nullptr : out);
                    if (which != Logits::none) out += rows * config_.V;
                    continue;
                }
            pass(rows);
            if (which == Logits::all) out = logits(0, rows, out);
            if (which == Logits::last) out = last_logits(out);
        }
    }

    // The same for the first sequence alone: tokens [n]; out [n, V] for Logits::all, [V] for Logits::last.
    void feed(const int* tokens, size_t n, Logits which, Acc<Real>* out) { feed({{0, tokens, n}}, which, out); }

  private:
    friend class DecodeGraph<Real>;

    static constexpr bool kOnHost = std::is_same_v<Device, Cpu>;
    // Rows at a time. A GPU is busy with thousands; all logits of that many would be too much memory.
    static constexpr size_t kBlock = kOnHost ? 512 : 8192, kLogitsRows = 512;
    static constexpr bool kCanPack = kOnHost && std::is_same_v<Real, float>;

    // Rows row .. row + n - 1 of a block are positions first .. of a sequence. ends: they end their span; single: they
    // are a whole span of one token.
    struct Part {
        size_t sequence, row, first, n;
        bool ends, single;
    };

    // Takes the next block of rows from the spans, starting at row `done` of span `span`, and advances both. A span is
    // cut where it would be if it were alone. With packed weights a block holds single tokens only, or none.
    size_t stage(const std::vector<TokenSpan>& spans, size_t& span, size_t& done) {
        std::vector<int> tokens, positions;
        parts_.clear();
        while (span < spans.size() && tokens.size() < block_) {
            const TokenSpan& p = spans[span];
            const size_t n = std::min(block_, p.n - done), first = lengths_[p.sequence];
            check_ids({p.tokens + done, n}, config_.V,
                      [&](size_t i) { return strprintf("token %zu of sequence %zu", first + i, p.sequence); });
            const bool single = p.n == 1;
            if (n > block_ - tokens.size() || (packed_ && !parts_.empty() && single != parts_[0].single)) break;
            parts_.push_back({p.sequence, tokens.size(), first, n, done + n == p.n, single});
            tokens.insert(tokens.end(), p.tokens + done, p.tokens + done + n);
            for (size_t i = 0; i < n; i++) positions.push_back(int(first + i));
            lengths_[p.sequence] += n;
            done += n;
            if (done == p.n) span++, done = 0;
        }
        const size_t rows = tokens.size();
        tokens.insert(tokens.end(), positions.begin(), positions.end());
        upload_(dev_, tokens_, tokens);
        positions_ = tokens_ + rows;
        return rows;
    }

    CachedRows<Real> cached(size_t l, const Part& p) const {
        const size_t at = p.sequence * config_.T * config_.C;
        return {k_cache_[l] + at, v_cache_[l] + at, p.row, p.first, p.n};
    }

    // The block diagram of inference. linear(Layer) computes a layer, attention(l) turns qkv_ into att_; who calls this
    // says how: op by op for many rows (pass), in a team of threads (step), or recorded for a GPU (DecodeGraph).
    template <class Linear, class Attention>
    void blocks(Linear&& linear, Attention&& attention) const {
        static constexpr PackedModel::Block kNotPacked{};
        const size_t C = config_.C;
        // clang-format off
        for (size_t l = 0; l < config_.L; l++) {
            const BlockTensors<Real>& p = weights_.h[l];
            const PackedModel::Block& q = packed_ ? packed_->h[l] : kNotPacked;
            linear(Layer<Real>{.out = qkv_, .in = x_, .site = site(l, 0), .weight = p.attn_qkv, .panels = &q.attn_qkv,
                               .bias = p.attn_qkv_bias, .K = C, .N = 3 * C});
            attention(l);
            linear(Layer<Real>{.out = mid_, .in = att_, .weight = p.attn_proj, .panels = &q.attn_proj,
                               .bias = p.attn_proj_bias, .residual = x_, .K = C, .N = C});
            linear(Layer<Real>{.out = gelu_, .in = mid_, .site = site(l, 1), .weight = p.mlp_fc, .panels = &q.mlp_fc,
                               .bias = p.mlp_fc_bias, .gelu = true, .K = C, .N = 4 * C});
            linear(Layer<Real>{.out = x_, .in = gelu_, .weight = p.mlp_proj, .panels = &q.mlp_proj,
                               .bias = p.mlp_proj_bias, .residual = mid_, .K = 4 * C, .N = C});
        }
        // clang-format on
    }

    // After the blocks: the final site and the head, for rows x of the residual stream.
    Layer<Real> head(Real* out, const Real* x) const {
        static constexpr Panels kNotPacked{};
        return {.out = out,
                .in = x,
                .site = site(config_.L, 0, size_t(x - x_) / config_.C),
                .weight = weights_.head(),
                .panels = packed_ ? &packed_->head : &kNotPacked,
                .bias = weights_.lm_head_bias,
                .transposed = true,
                .K = config_.C,
                .N = config_.V,
                .ld_out = kOnHost ? 0 : ld_logits_};
    }

    // before: how many rows of the block are before those that it is for.
    Site<Real> site(size_t l, size_t which, size_t before = 0) const {
        Site<Real> s = site_at(config_, weights_, scales_, gate_, l, which);
        s.positions = positions_, s.row = before;
        return s;
    }

    void embed(size_t rows) {
        const GptTensors<Real>& w = weights_;
        embedding_forward_at(dev_, x_, tokens_, positions_, w.wte, w.wte_mean, w.wpe, rows, config_.C);
    }

    // ---- op by op, each by all threads or the GPU

    void linear(const Layer<Real>& a, size_t rows) {
        if (watch) watch(a, rows);
        const Real* in = a.in;
        if (a.site && a.site->phase != Phase::folded) {
            apply_site(dev_, site_, in, *a.site, rows, a.K);
            in = site_;
        }
        if constexpr (kCanPack)
            if (a.panels->data)
                return panel_product(dev_, {a.panels, in, a.K, rows, a.out, a.bias, a.residual, a.gelu});
        gemm<Real>(dev_, {.M = rows,
                          .N = a.N,
                          .K = a.K,
                          .A = in,
                          .lda = a.K,
                          .trans_a = false,
                          .B = a.weight,
                          .ldb = a.transposed ? a.K : a.N,
                          .trans_b = a.transposed,
                          .C = a.out,
                          .ldc = a.ld_out ? a.ld_out : a.N,
                          .bias = a.bias,
                          .residual = a.residual,
                          .gelu = a.gelu});
    }

    // The blocks, for the rows that stage() left; leaves the residual stream in x_.
    void pass(size_t rows) {
        if constexpr (!kOnHost) {
            typename RecordedPasses<Device>::Key key;
            bool records = !watch;
            for (const Part& p : parts_) {
                key.push_back({p.sequence, p.row, p.first, p.n});
                records &= !attention_decodes<Real>(p.n, config_.C / config_.NH);  // whose scratch a graph cannot hold
            }
            if (records && recorded_.launch(dev_, key, [&] { issue(rows); })) return;
        }
        issue(rows);
    }

    void issue(size_t rows) {
        embed(rows);
        std::vector<CachedRows<Real>> rows_of(parts_.size());
        blocks([&](const Layer<Real>& a) { linear(a, rows); },
               [&](size_t l) {
                   for (size_t i = 0; i < parts_.size(); i++) rows_of[i] = cached(l, parts_[i]);
                   attention_cached(dev_, att_, rows_of, qkv_, config_.C, config_.NH);
               });
    }

    // out [rows, V], the logits of rows first .. of x_; returns its end.
    Acc<Real>* logits(size_t first, size_t rows, Acc<Real>* out) {
        if constexpr (kOnHost) {
            linear(head(out, x_ + first * config_.C), rows);
            return out + rows * config_.V;
        } else {
            for (size_t end = first + rows; first < end; first += logits_rows_) {
                const size_t n = std::min(logits_rows_, end - first);
                linear(head(logits_, x_ + first * config_.C), n);
                out = copy_out(n, out);
            }
            return out;
        }
    }

    // out [spans that end in this block, V], the logits of their last rows; returns its end.
    Acc<Real>* last_logits(Acc<Real>* out) {
        if constexpr (kOnHost) {
            for (size_t i = 0; i < parts_.size();) {
                size_t next = i + 1;
                if (parts_[i].ends) {  // with the one-row parts behind it: rows side by side
                    while (next < parts_.size() && parts_[next].ends && parts_[next].n == 1) next++;
                    out = logits(parts_[i].row + parts_[i].n - 1, next - i, out);
                }
                i = next;
            }
        } else {  // side by side by a copy: into mid_, which the blocks no longer need
            std::vector<unsigned> rows;
            for (const Part& p : parts_)
                if (p.ends) rows.push_back(unsigned(p.row + p.n - 1));
            if (rows.empty()) return out;
            gather_rows(dev_, mid_, last_positions_, x_, positions_, rows, config_.C);
            Layer<Real> layer = head(logits_, x_);
            layer.in = mid_;
            if (layer.site) layer.site->positions = last_positions_;
            linear(layer, rows.size());
            out = copy_out(rows.size(), out);
        }
        return out;
    }

    // From a GPU's logits_ [rows, ld_logits_] to out [rows, V]; returns its end. Here the host waits.
    Acc<Real>* copy_out(size_t rows, Acc<Real>* out) {
        std::vector<Real> values(rows * ld_logits_);
        device_copy_out(dev_, values.data(), logits_, values.size() * sizeof(Real));
        for (size_t row = 0; row < rows; row++, out += config_.V)
            std::copy_n(&values[row * ld_logits_], config_.V, out);
        return out;
    }

    // ---- one token for each of some sequences, with packed weights: all of it in one parallel region

    // The site's output as each thread computes it for itself, which is cheaper than waiting for one that does it for
    // all.
    const float* own_site(const TeamMember& m, const Site<float>& s, const float* x, size_t rows) {
        if (s.phase ==
            Phase::folded) {  // another core has just written half of x, and no norm reads it into this core's cache
            for (size_t i = 0; i < rows * config_.C; i += 16) __builtin_prefetch(x + i);
            return x;
        }
        float* y = own_sites_ + m.thread * step_rows_ * config_.C;
        leaf<float>(dev_).site_forward(y, nullptr, nullptr, x, s, rows, config_.C, nullptr);
        return y;
    }

    // This thread's columns of a layer.
    void own_columns(const TeamMember& m, const Layer<float>& a, size_t rows) {
        const float* in = a.site ? own_site(m, *a.site, a.in, rows) : a.in;
        const size_t n = a.panels->count();
        panel_product_single(dev_, int(m.thread), {a.panels, in, a.K, rows, a.out, a.bias, a.residual, a.gelu},
                             m.share(n), m.share(n, 1));
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

    // Runs the rows that stage() left; out [rows, V] receives their logits, unless null. Barriers separate what one thread
    // writes from what another reads.
    void step(size_t rows, float* out) {
        embed(rows);
        parallel_team(dev_, step_threads_, [&](const TeamMember& m) {
            blocks([&](const Layer<float>& a) { own_columns(m, a, rows), m.barrier(); },
                   [&](size_t l) { own_heads(m, l, rows), m.barrier(); });
            if (out) own_columns(m, head(out, x_), rows);
        });
    }

    Device& dev_;
    Config config_;
    GptTensors<Real> weights_;
    const PackedModel* packed_;
    std::vector<TaperScale> scales_;
    double gate_;
    std::vector<size_t> lengths_;  // tokens that each sequence holds
    std::vector<Part> parts_;      // what the rows of the current block are
    size_t block_, step_rows_;     // the most rows that a block and a step may have
    StepThreads step_threads_{1};  // (on a GPU, of no use)
    size_t ld_logits_;             // on a GPU, where rows of logits start at multiples of 16 bytes
    size_t logits_rows_;           // and are computed so many at a time
    Upload<Device> upload_;
    RecordedPasses<Device> recorded_;
    Arena<Device> memory_;
    int* tokens_;                    // [2, block], of which positions_ is a part
    int* positions_ = nullptr;       // [rows of the block], behind their tokens
    int* last_positions_ = nullptr;  // [step_rows], on a GPU
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
