// How fast is our attention? Forward and backward in bf16 on one GPU: the kernels for single warps (mma.sync) and those
// for warpgroups (wgmma), one after the other, against the rate of a large matrix product of cuBLASLt measured in the
// same run. First, every head size is checked against the CPU, and whether two runs give equal bits. Prints a table.
//
// FLOPs as is usual: forward 2 products of T x T x hs a head, backward 5 (ours computes 7:
// ops/attention/flash_mma.cuh), of which the causal mask leaves half. Both are 2 FLOPs a multiply-add.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "io/options.h"
#include "ops/attention/choice.cuh"
#include "ops/linear.cuh"
#include "runtime/arena.h"
#include "runtime/exit_status.h"
#include "runtime/median.h"
#include "runtime/random.h"

namespace tapernorm {

namespace {

struct Sizes {
    size_t C = 768, longest = 16384, tokens = 32768, rounds = 21;
    bool tiny() const { return tokens < 4096; }
};

// Seconds of op(): the median of `rounds`, each the mean of 5 calls in a row.
double measure(Cuda& dev, size_t rounds, const std::function<void()>& op) {
    CudaTimer timer;
    for (int i = 0; i < 3; i++) op();
    std::vector<double> seconds;
    for (size_t i = 0; i < rounds; i++) {
        timer.begin(dev.stream);
        for (int j = 0; j < 5; j++) op();
        timer.end(dev.stream);
        seconds.push_back(timer.milliseconds() / 5e3);
    }
    return median(std::move(seconds));
}

std::vector<bf16> normals(size_t n, uint64_t seed) {
    std::vector<bf16> x(n);
    for (size_t i = 0; i < n; i++) x[i] = bf16(float(random_normal(seed, 0, i)));
    return x;
}

// to [n] = the pattern, as often as it takes.
void fill(Cuda& dev, bf16* to, size_t n, const std::vector<bf16>& pattern) {
    for (size_t i = 0; i < n; i += pattern.size())
        device_copy_in(dev, to + i, pattern.data(), std::min(pattern.size(), n - i) * sizeof(bf16));
}

// FLOP/s of a product of [n, n] with [n, n], after half a second of them: clocks are then as they are under load.
double matmul_rate(Cuda& dev, size_t rounds, size_t n) {
    bf16 *a = nullptr, *b = nullptr, *out = nullptr;
    Arena<Cuda> memory(dev, "a product");
    memory.add(a, n * n), memory.add(b, n * n), memory.add(out, n * n);
    memory.allocate(false);
    const std::vector<bf16> pattern = normals(1 << 16, 1);
    fill(dev, a, n * n, pattern), fill(dev, b, n * n, pattern);
    const auto multiply = [&] { matmul_forward<bf16>(dev, out, a, b, nullptr, nullptr, n, n, n); };
    const double once = measure(dev, 1, multiply);
    for (double seconds = 0; seconds < 0.5; seconds += once) multiply();
    return 2.0 * double(n) * double(n) * double(n) / measure(dev, rounds, multiply);
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention

struct Shape {
    size_t B, T, NH, hs;
    size_t C() const { return NH * hs; }
    size_t elements() const { return B * T * C(); }
    size_t rows() const { return B * T * NH; }
    double flops() const { return double(B * NH) * double(T) * double(T) * double(hs); }  // one product, masked
};

// Tensors with room for one shape or more.
struct Attention {
    bf16 *qkv = nullptr, *dout = nullptr, *out = nullptr, *dqkv = nullptr;
    float* lse = nullptr;
    Arena<Cuda> memory;

    Attention(Cuda& dev, size_t elements, size_t rows) : memory(dev, "attention") {
        memory.add(qkv, 3 * elements), memory.add(dout, elements), memory.add(out, elements);
        memory.add(dqkv, 3 * elements), memory.add(lse, rows);
        memory.allocate(true);
    }
    void forward(Cuda& dev, const Shape& s) { attention_forward(dev, out, lse, qkv, s.B, s.T, s.C(), s.NH); }
    void backward(Cuda& dev, const Shape& s) {
        attention_backward(dev, dqkv, dout, out, lse, qkv, s.B, s.T, s.C(), s.NH);
    }
};

const char* kind_name(bool wgmma) { return wgmma ? "wgmma" : "mma.sync"; }

struct Results {
    std::vector<bf16> out, dqkv;
    std::vector<float> lse;
};

// Into memory in which every float is NaN.
Results run(Cuda& dev, Attention& a, const Shape& s) {
    Results r{std::vector<bf16>(s.elements()), std::vector<bf16>(3 * s.elements()), std::vector<float>(s.rows())};
    const size_t out = r.out.size() * sizeof(bf16), dqkv = r.dqkv.size() * sizeof(bf16),
                 lse = r.lse.size() * sizeof(float);
    CUDA_CHECK(cudaMemsetAsync(a.out, 0xff, out, dev.stream));
    CUDA_CHECK(cudaMemsetAsync(a.dqkv, 0xff, dqkv, dev.stream));
    CUDA_CHECK(cudaMemsetAsync(a.lse, 0xff, lse, dev.stream));
    a.forward(dev, s), a.backward(dev, s);
    device_copy_out(dev, r.out.data(), a.out, out);
    device_copy_out(dev, r.dqkv.data(), a.dqkv, dqkv);
    device_copy_out(dev, r.lse.data(), a.lse, lse);
    return r;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Largest difference in units of the largest value. (tests/cuda/test_cuda_attention.cpp has the exact bounds.)
template <class T>
double difference(const std::vector<T>& got, const std::vector<float>& expected) {
    double worst = 0, top = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        const double d = std::abs(double(float(got[i])) - double(expected[i]));
        if (!(d <= worst)) worst = d;
        if (std::isnan(worst)) break;
        top = std::max(top, std::abs(double(expected[i])));
    }
    return worst / top;
}

// Both kinds of kernels against the CPU in fp32, from the same inputs, and against themselves. Returns whether there are
// kernels for warpgroups.
WgmmaFinding validate(Cuda& dev, size_t hs) {
    const Shape s{2, 333, 2, hs};
    const std::vector<bf16> qkv = normals(3 * s.elements(), 3), dout = normals(s.elements(), 4);
    Attention attention(dev, s.elements(), s.rows());
    fill(dev, attention.qkv, qkv.size(), qkv), fill(dev, attention.dout, dout.size(), dout);
    Cpu cpu;
    const std::vector<float> wide_qkv(qkv.begin(), qkv.end()), wide_dout(dout.begin(), dout.end());
    std::vector<float> out(s.elements()), lse(s.rows()), dqkv(3 * s.elements());
    attention_forward(cpu, out.data(), lse.data(), wide_qkv.data(), s.B, s.T, s.C(), s.NH);
    attention_backward(cpu, dqkv.data(), wide_dout.data(), out.data(), lse.data(), wide_qkv.data(), s.B, s.T, s.C(),
                       s.NH);
    const WgmmaFinding finding = find_wgmma_attention(dev, hs);
    if (has_group_kernels(hs)) settle_attention(dev, hs, finding);  // fails where ATTENTION=wgmma cannot be
    for (const bool wgmma : {false, true}) {
        if (wgmma && finding.kind != WgmmaFinding::works) break;
        use_wgmma(dev, hs, wgmma);
        const Results r = run(dev, attention, s), again = run(dev, attention, s);
        const double forward = std::max(difference(r.out, out), difference(r.lse, lse)),
                     backward = difference(r.dqkv, dqkv);
        const double limit = 0x1p-6;  // 4 units of bf16's roundoff
        if (!(forward <= limit && backward <= limit))
            fail(
                "head size %zu, %s: the GPU differs from the CPU by %.2g of the largest value forward and %.2g backward, "
                "expected at most %.2g; run the CUDA tests",
                hs, kind_name(wgmma), forward, backward, limit);
        if (!same_bits(r.out, again.out) || !same_bits(r.lse, again.lse) || !same_bits(r.dqkv, again.dqkv))
            fail("head size %zu, %s: expected equal bits of two runs, found different ones; run the CUDA tests", hs,
                 kind_name(wgmma));
        std::printf("head size %zu, %s: as the CPU within %.1e forward, %.1e backward; two runs have equal bits\n", hs,
                    kind_name(wgmma), forward, backward);
    }
    return finding;
}

// ---------------------------------------------------------------------------------------------------------------------
// The table

struct Pass {
    const char* name;
    double products;
    void (Attention::*run)(Cuda&, const Shape&);
};

// The cells of one kind of kernels.
std::string cells(double seconds, double flops, double peak) {
    return strprintf("%.1f | %.0f | %.0f%%", seconds * 1e6, flops / seconds * 1e-12, 100 * flops / seconds / peak);
}

void print_rows(Cuda& dev, const Sizes& sizes, Attention& attention, const Shape& s, bool have_wgmma, double peak) {
    for (const Pass& pass : {Pass{"forward", 2, &Attention::forward}, Pass{"backward", 5, &Attention::backward}}) {
        double seconds[2] = {};
        for (const bool wgmma : {false, true}) {
            if (wgmma && !have_wgmma) break;
            use_wgmma(dev, s.hs, wgmma);
            attention.forward(dev, s);  // what backward reads
            seconds[wgmma] = measure(dev, sizes.rounds, [&] { (attention.*pass.run)(dev, s); });
        }
        const double flops = pass.products * s.flops();
        std::printf("| %s | %zu | %zu | %zu | %zu | %s | %s | %s |\n", pass.name, s.hs, s.T, s.B, s.NH,
                    cells(seconds[0], flops, peak).c_str(),
                    have_wgmma ? cells(seconds[1], flops, peak).c_str() : " |  | ",
                    have_wgmma ? strprintf("%.2fx", seconds[0] / seconds[1]).c_str() : "");
        std::fflush(stdout);
    }
}

void bench(const Sizes& sizes) {
    Cuda dev;
    std::printf("%s: %zu channels, %zu tokens, bf16; medians of %zu times 5 calls.\n", probe_cuda().description.c_str(),
                sizes.C, sizes.tokens, sizes.rounds);
    std::printf(
        "Goals, written before any run: with head size 64 and T 1024 on an H100, 265 TFLOP/s forward and 200 backward, "
        "where cuDNN has 288 and about 269.\n\n");
    WgmmaFinding findings[2];  // for head sizes 64 and 128
    for (const size_t hs : {32, 64, 80, 96, 128}) {
        const WgmmaFinding finding = validate(dev, hs);
        if (has_group_kernels(hs)) findings[hs / 128] = finding;
    }
    for (const size_t hs : {64, 128})
        if (const WgmmaFinding& f = findings[hs / 128]; f.kind != WgmmaFinding::works)
            std::printf("head size %zu: kernels for warpgroups are left out: %s\n", hs, f.why_not.c_str());

    const size_t n = sizes.tiny() ? 128 : 8192;
    const double peak = matmul_rate(dev, sizes.rounds, n);
    std::printf("\ncuBLASLt, bf16, %zu x %zu x %zu: %.0f TFLOP/s before, which counts.\n\n", n, n, n, peak * 1e-12);
    std::printf(
        "| pass | hs | T | B | NH | mma.sync, us | TFLOP/s | of matmul | wgmma, us | TFLOP/s | of matmul | faster |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    const size_t most = std::max(sizes.tokens, sizes.longest);
    Attention attention(dev, most * sizes.C, most * sizes.C / 64);
    const std::vector<bf16> pattern = normals(1 << 16, 3);  // does not repeat row by row: 3 C is no power of 2
    fill(dev, attention.qkv, 3 * most * sizes.C, pattern), fill(dev, attention.dout, most * sizes.C, pattern);
    for (const size_t hs : {64, 128}) {
        for (size_t T = std::min<size_t>(256, sizes.longest), last = 0; T != last; T = std::min(2 * T, sizes.longest)) {
            print_rows(dev, sizes, attention, {std::max<size_t>(1, sizes.tokens / T), T, sizes.C / hs, hs},
                       findings[hs / 128].kind == WgmmaFinding::works, peak);
            last = T;
        }
    }
    std::printf("\ncuBLASLt afterwards: %.0f TFLOP/s.\n", matmul_rate(dev, sizes.rounds, n) * 1e-12);
    std::fflush(stdout);
    for (const WgmmaFinding& f : findings)
        if (f.kind == WgmmaFinding::broken) fail("this GPU should have attention by warpgroups: %s", f.why_not.c_str());
}

Options make_options(Sizes& s) {
    Options o("bench_attention",
              "How fast attention is on this GPU, beside what the GPU can do, for head sizes 64 and 128.");
    // clang-format off
    o.section("Measurement");
    o.add({.long_name = "--n-embd", .to = &s.C, .metavar = "C", .range = {.low = 128, .high = 1 << 14},
           .help = "number of channels, a multiple of 128"});
    o.add({.short_name = "-t", .long_name = "--seq-len", .to = &s.longest, .metavar = "T", .range = {.low = 1, .high = 1 << 17},
           .help = "tokens of the longest sequence; from 256 on, each length is twice the one before"});
    o.add({.long_name = "--tokens", .to = &s.tokens, .metavar = "N", .range = {.low = 1, .high = 1 << 20},
           .help = "of all sequences; a longer one is alone"});
    o.add({.long_name = "--rounds", .to = &s.rounds, .metavar = "N", .range = {.low = 1, .high = 1000},
           .help = "repetitions; figures are their medians"});
    // clang-format on
    return o;
}

int run_benchmark(int argc, char** argv) {
    Sizes sizes;
    Options options = make_options(sizes);
    if (!options.parse(argc, argv)) return 0;
    if (sizes.C % 128) fail("--n-embd: expected a multiple of 128, found %zu", sizes.C);
    const CudaProbe probe = probe_cuda();
    if (!probe.usable) fail("%s", probe.description.c_str());
    bench(sizes);
    return 0;
}

}  // namespace

}  // namespace tapernorm

using namespace tapernorm;

int main(int argc, char** argv) {
    start_program();
    return exit_status("bench_attention", [&] { return run_benchmark(argc, argv); });
}
