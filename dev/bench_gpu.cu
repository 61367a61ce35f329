// What does a training update cost on this GPU, and how near is each kernel to what the GPU can do? The trainer's own
// code (train_gpt.cu); prints Markdown tables. Limits are measured in the same run: copying, and one large product. An op cannot
// take less than its operations at the one rate or its bytes at the other; an update, than the sum of that over its ops.
#define TAPERNORM_NO_MAIN
#include "dev/bench_shape.h"
#include "io/options.h"
#include "runtime/exit_status.h"
#include "runtime/median.h"
#include "train/shape.h"
#include "train_gpt.cu"

#include <functional>

namespace tapernorm::train {

namespace {

struct Sizes {
    std::string shape;
    size_t L = 12, NH = 12, C = 768, T = 1024, B = 32, V = 50257, micro_batches = 16, logits_rows = 0, rounds = 20;
    bool norm_only = false, tune = false;
    std::string label;
    size_t N() const { return B * T; }
};

// Median milliseconds of one call, by events on the stream.
double milliseconds(Cuda& dev, size_t rounds, const std::function<void()>& call) {
    CudaTimer timer;
    std::vector<double> times;
    for (size_t i = 0; i < rounds + 2; i++) {
        timer.begin(dev.stream);
        call();
        timer.end(dev.stream);
        const double ms = timer.milliseconds();
        if (i >= 2) times.push_back(ms);
    }
    return median(std::move(times));
}

// Tokens as frequent as words: the probability of number i is about proportional to 1 / (i + 1) (Zipf), so that a few are most of the
// text.
template <class Id>
std::vector<Id> text_like(size_t n, size_t V) {
    std::vector<Id> ids(n);
    for (size_t i = 0; i < n; i++) ids[i] = Id(std::pow(double(V), random_uniform(1, 2, i)) - 1);
    return ids;
}

// Memory of one benchmark, filled with small random numbers.
class Buffers {
  public:
    explicit Buffers(Cuda& dev) : dev_(dev) {}
    ~Buffers() {
        for (void* p : all_) device_free(dev_, p);
    }
    template <class T>
    T* random(size_t n, double std = 1) {
        T* p = raw<T>(n);
        std::vector<T> values(std::min<size_t>(n, 1 << 16));
        for (size_t i = 0; i < values.size(); i++) values[i] = T(float(std * random_normal(1, all_.size(), i)));
        for (size_t i = 0; i < n; i += values.size())
            device_copy_in(dev_, p + i, values.data(), std::min(values.size(), n - i) * sizeof(T));
        return p;
    }
    Batch batch(size_t n, size_t V) {
        const std::vector<int> tokens = text_like<int>(n, V);
        std::vector<unsigned> data(TokenRows::most(n)), counts;
        TokenRows rows = sort_rows_by_token(data.data(), tokens.data(), n, counts);
        const int* there = copied(tokens);
        rows.data = copied(data);
        return {there, there, rows};
    }

  private:
    template <class T>
    T* raw(size_t n) {
        void* p = device_allocate(dev_, n * sizeof(T), "a benchmark's array");
        all_.push_back(p);
        return static_cast<T*>(p);
    }
    template <class T>
    const T* copied(const std::vector<T>& values) {
        T* p = raw<T>(values.size());
        device_copy_in(dev_, p, values.data(), values.size() * sizeof(T));
        return p;
    }
    Cuda& dev_;
    std::vector<void*> all_;
};

struct Limits {
    double bytes = 0, flops = 0;  // per second, measured
};

// Nominal bf16 tensor-core rate, dense, of the data-centre GPU of an architecture (A100, H100 and H200 SXM); 0: unknown.
double nominal_flops(int sm) { return sm == 80 ? 312e12 : sm == 90 ? 989.4e12 : 0; }

Limits measure_limits(Cuda& dev, size_t rounds, bool tiny) {
    Buffers memory(dev);
    const size_t n = tiny ? 1 << 16 : size_t(1) << 28, K = tiny ? 128 : 8192;
    bf16 *from = memory.random<bf16>(n), *to = memory.random<bf16>(n);
    const auto multiply = [&] { matmul_forward<bf16>(dev, to, from, from + K * K, nullptr, nullptr, K, K, K); };
    const double once = milliseconds(dev, 1, multiply);
    for (double ms = 0; ms < 500; ms += once) multiply();  // clocks as they are under load
    const double product = milliseconds(dev, rounds, multiply);
    const double copy = milliseconds(dev, rounds, [&] { device_copy(dev, to, from, n * sizeof(bf16)); });
    return {2 * double(n) * sizeof(bf16) / (copy * 1e-3), 2 * double(K) * double(K) * double(K) / (product * 1e-3)};
}

// An op at its real size: the operations that it must do, the bytes that it must read and write at least once.
struct Row {
    std::string name;
    double flops, bytes;
    size_t count;  // in one micro-batch; of an op that comes once an update: `once`
    double ms;
    bool once = false;

    double limit_ms(const Limits& limits) const { return 1e3 * std::max(flops / limits.flops, bytes / limits.bytes); }
};

// Milliseconds that an update must take by these limits.
double limit_ms(const std::vector<Row>& rows, const Limits& limits, size_t micro_batches) {
    double sum = 0;
    for (const Row& r : rows) sum += r.limit_ms(limits) * double(r.once ? 1 : r.count * micro_batches);
    return sum;
}

// Every op of a block, and the stream scale. (Of column sums only those of q, k and v; one [N, C] may lie in the second-level cache: what reads
// little can exceed the limit.)
std::vector<Row> measure_ops(Cuda& dev, const Sizes& s) {
    const size_t N = s.N(), C = s.C, L = s.L;
    const double x = double(N * C) * sizeof(bf16);  // one [N, C]
    std::vector<Row> rows;
    Buffers m(dev);
    bf16 *a = m.random<bf16>(N * C), *b = m.random<bf16>(N * C), *d = m.random<bf16>(N * C);
    bf16 *wide = m.random<bf16>(N * 4 * C), *wide2 = m.random<bf16>(N * 4 * C), *w = m.random<bf16>(4 * C * C, 0.02);
    bf16 *v = m.random<bf16>(4 * C), *v2 = m.random<bf16>(5 * C), *dw = m.random<bf16>(4 * C * C);
    float *mean = m.random<float>(N), *rscale = m.random<float>(N), *lse = m.random<float>(N * s.NH);
    double* sums = m.random<double>(8);
    auto add = [&](const std::string& name, double flops, double bytes, size_t count, const std::function<void()>& f) {
        rows.push_back({name, flops, bytes, count, milliseconds(dev, s.rounds, f)});
    };
    for (const auto& [phase, name] :
         {std::pair(Phase::norm, "g = 1"), std::pair(Phase::blend, "0 < g < 1"), std::pair(Phase::scale, "g = 0")}) {
        const float g = phase == Phase::norm ? 1.0f : phase == Phase::blend ? 0.5f : 0.0f;
        const Site<bf16> site{NormKind::layernorm, phase, 1e-5f, g, 1, v, v + C, v + 2 * C, v + 3 * C};
        const size_t count = phase == Phase::norm ? 2 * L + 1 : 0;
        add(std::string("site forward, ") + name, 0, 2 * x, count,
            [&] { site_forward<bf16>(dev, b, mean, rscale, nullptr, a, site, N, C); });
        add(std::string("site backward, ") + name, 0, 4 * x, count, [&] {
            site_backward<bf16>(dev, d, {v2, v2 + C, v2 + 2 * C, v2 + 3 * C, v2 + 4 * C, false}, b, a, mean, rscale,
                                site, N, C, true);
        });
    }
    add("stream scale", 0, x, 1,
        [&] { stream_scale(dev, reinterpret_cast<StreamScale*>(sums), a, NormKind::layernorm, 1e-5, 1, N, C); });
    const double product = 2 * double(N * C) * double(C);  // of [N, C] with [C, C]
    const double square = double(C * C) * sizeof(bf16);    // one [C, C]
    // Backward: both inputs and dout once, both gradients.
    add("linear C -> 3C, forward", 3 * product, 4 * x + 3 * square, L,
        [&] { matmul_forward<bf16>(dev, wide, a, w, v, nullptr, N, C, 3 * C); });
    add("linear C -> 3C, backward", 6 * product, 5 * x + 6 * square, L,
        [&] { matmul_backward<bf16>(dev, b, nullptr, dw, wide, a, w, nullptr, N, C, 3 * C, false); });
    add("column sums of 3C", 0, 3 * x, L, [&] { column_sums(dev, v2, wide, N, 3 * C, false); });
    add("linear C -> C and residual, forward", product, 3 * x + square, L,
        [&] { matmul_forward<bf16>(dev, b, wide, w, v, a, N, C, C); });
    add("linear C -> C, backward", 2 * product, 3 * x + 2 * square, L,
        [&] { matmul_backward<bf16>(dev, b, nullptr, dw, wide, a, w, nullptr, N, C, C, false); });
    add("linear C -> 4C and GELU, forward", 4 * product, 9 * x + 4 * square, L,
        [&] { matmul_gelu_forward<bf16>(dev, wide, wide2, a, w, v, N, C, 4 * C); });
    add("linear C -> 4C, backward", 8 * product, 6 * x + 8 * square, L,
        [&] { matmul_backward<bf16>(dev, b, nullptr, dw, wide, a, w, nullptr, N, C, 4 * C, false); });
    add("linear 4C -> C and residual, forward", 4 * product, 6 * x + 4 * square, L,
        [&] { matmul_forward<bf16>(dev, b, wide, w, v, a, N, 4 * C, C); });
    add("linear 4C -> C and dGELU, backward", 8 * product, 13 * x + 8 * square, L,
        [&] { matmul_backward<bf16>(dev, wide2, v2, dw, a, wide, w, wide, N, 4 * C, C, false); });
    const bf16* qkv = m.random<bf16>(N * 3 * C);
    const double pairs = double(s.B) * double(s.T) * double(s.T + 1) / 2 * double(C);
    add("attention forward", 4 * pairs, 4 * x, L, [&] { attention_forward(dev, b, lse, qkv, s.B, s.T, C, s.NH); });
    add("attention backward", 10 * pairs, 8 * x, L,
        [&] { attention_backward(dev, wide2, a, b, lse, qkv, s.B, s.T, C, s.NH); });
    add("GELU (with -r 1)", 0, 8 * x, 0, [&] { gelu_forward(dev, wide2, wide, N * 4 * C); });
    return rows;
}

// The ends of the model, whose memory is large: the vocabulary, the optimizer.
void measure_ends(Cuda& dev, const Sizes& s, std::vector<Row>& rows) {
    const size_t N = s.N(), C = s.C, Vp = (s.V + 127) / 128 * 128;
    const size_t chunk = logits_rows(N, s.logits_rows ? s.logits_rows : most_logits_rows(Vp, true, sizeof(bf16)));
    Config c;
    c.V = s.V, c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C;
    const size_t P = parameter_count(c);
    auto add = [&](const std::string& name, double flops, double bytes, size_t count, const std::function<void()>& f) {
        rows.push_back({name, flops, bytes, count, milliseconds(dev, s.rounds, f)});
    };
    {
        Buffers m(dev);
        bf16 *logits = m.random<bf16>(chunk * Vp), *wte = m.random<bf16>(Vp * C, 0.02), *dwte = m.random<bf16>(Vp * C);
        bf16 *x = m.random<bf16>(N * C), *dx = m.random<bf16>(N * C);
        const Batch batch = m.batch(N, s.V);
        float* losses = m.random<float>(chunk);
        double* sum = m.random<double>(1);
        const size_t chunks = (N + chunk - 1) / chunk;
        const double flops = 2 * double(chunk) * double(C) * double(Vp), z = double(chunk * Vp) * sizeof(bf16);
        const double ends = double((chunk + Vp) * C) * sizeof(bf16);
        add("head forward", flops, z + ends, chunks,
            [&] { head_forward<bf16>(dev, logits, x, wte, nullptr, chunk, C, Vp); });
        add("head backward", 2 * flops, z + 2 * ends, chunks,
            [&] { head_backward(dev, dx, dwte, logits, x, wte, chunk, C, Vp, chunks > 1); });
        add("cross-entropy and gradient", 0, 2 * z, chunks,
            [&] { cross_entropy(dev, sum, losses, logits, batch.targets, 1e-6, chunk, s.V, true, Vp); });
        const double rows_bytes = double(N * C) * sizeof(bf16);
        add("embedding forward", 0, 2 * rows_bytes, 1,
            [&] { embedding_forward(dev, x, batch.tokens, wte, wte, s.B, s.T, C); });
        add("embedding backward", 0, 2 * rows_bytes, 1,
            [&] { embedding_backward(dev, dwte, wte, x, batch.tokens, batch.rows, s.B, s.T, C, false); });
    }
    Buffers m(dev);
    bf16 *w = m.random<bf16>(P), *grad = m.random<bf16>(P);
    float *master = m.random<float>(P), *mom = m.random<float>(P), *var = m.random<float>(P);
    double* sum = m.random<double>(1);
    device_zero(dev, var, P * sizeof(float));
    const std::vector<AdamwTensor<bf16>> tensors = {{w, master, mom, var, grad, P, 0.1f}};
    add("AdamW", 0, double(P) * (2 + 2 + 6 * 4), 1,
        [&] { adamw_update(dev, tensors, {1e-9f, 0.9f, 0.99f, 1e-8f, 0, 1, 1, 1}); });
    rows.back().once = true;
    add("global norm", 0, double(P) * 2, 1, [&] { add_sum_of_squares(dev, sum, grad, P); });
    rows.back().once = true;
}

struct Mode {
    std::string name;
    GateMode mode;
    size_t step;  // updates done: sets the gate
    size_t micro_batches = 1;
};

// Whole updates, each the median of some.
void measure_updates(Cuda& dev, const Sizes& s, const Limits& limits, const std::vector<Row>& ops) {
    Config c;
    c.V = s.V, c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C;
    const TokenSource corpus = tokens_from_text("x", "tokens like a text's", [&](std::string_view) {
        return text_like<uint16_t>(s.N() * 4 + 1, s.V);
    });
    const double N = double(s.N()), flops = training_flops(c, s.T) * N;
    std::printf(
        "\n| update | tokens/s | ms | against `norm` | TFLOP/s | MFU | of the limit | GPU memory, GiB |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    const double nominal = nominal_flops(dev.sm());
    std::vector<Mode> modes = {{"`norm`", GateMode::norm, 0},
                               {"`taper`, g = 1, calibrating", GateMode::taper, 10},
                               {"`taper`, g = 0.5", GateMode::taper, 199 - s.rounds / 2},
                               {"`taper`, g = 0", GateMode::taper, 400},
                               {"`norm` again", GateMode::norm, 0}};
    if (s.norm_only) modes = {{s.label + " `norm`", GateMode::norm, 0}};
    if (s.micro_batches > 1 && !s.norm_only)
        modes.push_back({strprintf("`norm`, %zu micro-batches", s.micro_batches), GateMode::norm, 0, s.micro_batches});
    double baseline = 0;  // tokens per second
    for (const Mode& mode : modes) {
        Settings settings;
        settings.T = s.T, settings.batch = s.B, settings.total_batch = s.N() * mode.micro_batches,
        settings.steps = 10000;
        settings.gate_warmup = updates(100), settings.gate_end = updates(300), settings.logits_rows = s.logits_rows;
        settings.tune = s.tune;
        settings.lr = 1e-6;  // the sites' scales are not calibrated here: the model must not move
        c.mode = mode.mode;
        Trainer<Cuda, bf16> t(dev, settings, c, corpus);
        initialize(t.model, 1);
        t.step = mode.step;
        std::vector<double> times;
        const size_t rounds = std::max<size_t>(3, s.rounds / mode.micro_batches);
        for (size_t i = 0; i < rounds + 3; i++) {
            const StepReport r = t.update();
            if (i >= 3) times.push_back(r.seconds);
        }
        const double seconds = median(std::move(times)), work = flops * double(mode.micro_batches) / seconds;
        const double speed = N * double(mode.micro_batches) / seconds;
        if (baseline == 0) baseline = speed;
        size_t free = 0, total = 0;
        CUDA_CHECK(cudaMemGetInfo(&free, &total));
        std::printf("| %s | %.0f | %.2f | %.3fx | %.1f | %s | %s | %.1f |\n", mode.name.c_str(), speed, seconds * 1e3,
                    speed / baseline, work * 1e-12,
                    nominal > 0 ? strprintf("%.1f%%", 100 * work / nominal).c_str() : "-",
                    ops.empty()
                        ? "-"
                        : strprintf("%.1f%%", 0.1 * limit_ms(ops, limits, mode.micro_batches) / seconds).c_str(),
                    double(total - free) / double(1 << 30));
        std::fflush(stdout);
    }
}

void print_ops(const std::vector<Row>& rows, const Limits& limits) {
    double sum = 0;
    for (const Row& r : rows) sum += r.ms * double(r.count);
    std::printf(
        "| op | ms | TFLOP/s | GB/s | of the limit | times per update | share |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (const Row& r : rows)
        std::printf("| %s | %.4f | %s | %.0f | %.0f%% | %zu | %.1f%% |\n", r.name.c_str(), r.ms,
                    r.flops > 0 ? strprintf("%.1f", r.flops / r.ms * 1e-9).c_str() : "", r.bytes / r.ms * 1e-6,
                    100 * r.limit_ms(limits) / r.ms, r.count, 100 * r.ms * double(r.count) / sum);
    std::printf("\nSum of the ops of a `norm` update: %.2f ms, at their limits %.2f ms.\n", sum,
                limit_ms(rows, limits, 1));
}

Options make_options(Sizes& s) {
    Options o("bench_gpu", "What a training update costs on this GPU, op by op, beside what the GPU can do.");
    // clang-format off
    o.section("Model");
    add_shape_options(o, s.shape, s.L, s.NH, s.C, s.V);
    o.section("Measurement");
    o.add({.short_name = "-t", .long_name = "--seq-len", .to = &s.T, .metavar = "T", .range = {.low = 1, .high = 1 << 16},
           .help = "tokens of a sequence"});
    o.add({.short_name = "-b", .long_name = "--batch", .to = &s.B, .metavar = "B", .range = {.low = 1, .high = 1 << 16},
           .help = "sequences of a micro-batch"});
    o.add({.long_name = "--micro-batches", .to = &s.micro_batches, .metavar = "N", .range = {.low = 1, .high = 1000},
           .help = "of an accumulating update, which is timed, too; 1: none"});
    o.add({.long_name = "--logits-rows", .to = &s.logits_rows, .metavar = "N", .range = {.low = 0, .high = 1e9},
           .help = "as in train_gpt"});
    o.add({.long_name = "--rounds", .to = &s.rounds, .metavar = "N", .range = {.low = 1, .high = 300},
           .help = "repetitions, of an accumulating update fewer; figures are their medians"});
    o.add({.long_name = "--tune", .to = &s.tune, .help = "as in train_gpt: keep the fastest of cuBLASLt's best algorithms for each product"});
    o.add({.long_name = "--norm-only", .to = &s.norm_only,
           .help = "only whole updates, only of norm: a row beside those of peers"});
    o.add({.long_name = "--label", .to = &s.label, .metavar = "TEXT", .help = "what stands before that row's name"});
    // clang-format on
    return o;
}

int run_benchmark(int argc, char** argv) {
    Sizes s;
    Options options = make_options(s);
    if (!options.parse(argc, argv)) return 0;
    set_shape(options, s.shape, s.L, s.NH, s.C);
    if (s.C % s.NH) fail("--n-embd: expected a multiple of --n-head (%zu), found %zu", s.NH, s.C);
    const CudaProbe probe = probe_cuda();
    if (!probe.usable) fail("%s", probe.description.c_str());
    Cuda dev;
    choose_attention<bf16>(dev, s.C / s.NH);
    std::printf("%s: %s, %s, %s, vocabulary %zu, batch %zu of %zu tokens, bf16, attention by %s; medians of %zu.\n",
                probe.description.c_str(), counted(s.L, "layer").c_str(), counted(s.NH, "head").c_str(),
                counted(s.C, "channel").c_str(), s.V, s.B, s.T, uses_wgmma(dev, s.C / s.NH) ? "warpgroups" : "single warps", s.rounds);
    if (s.norm_only) {
        measure_updates(dev, s, {}, {});
        return 0;
    }
    const auto measured_limits = [&](const char* when) {
        const Limits limits = measure_limits(dev, s.rounds, s.C < 256);
        std::printf("Limits %s: copying %.0f GB/s (read and write), a large bf16 product %.1f TFLOP/s.\n", when,
                    limits.bytes * 1e-9, limits.flops * 1e-12);
        return limits;
    };
    const Limits limits = measured_limits("before, which count");
    dev.plans.tune(s.tune);  // until the end of the first update; the ops below are timed with it
    std::printf("\n");
    std::vector<Row> rows = measure_ops(dev, s);
    measure_ends(dev, s, rows);
    print_ops(rows, limits);
    std::fflush(stdout);
    measure_updates(dev, s, limits, rows);
    std::printf("\n");
    measured_limits("afterwards");
    return 0;
}

}  // namespace

}  // namespace tapernorm::train

using namespace tapernorm;
using namespace tapernorm::train;

int main(int argc, char** argv) {
    start_program();
    return exit_status("bench_gpu", [&] { return run_benchmark(argc, argv); });
}
