// How fast is our matrix multiply? Ours, oneDNN's dnnl_sgemm (where installed) and a loop of register-only
// multiply-adds (the peak) in turn, in one process; medians over rounds; prints a Markdown table.
//
//   g++ -std=c++20 -O3 -fno-math-errno -fopenmp -I. dev/bench_matmul.cpp <leaf objects> -DHAVE_DNNL -ldnnl
//   ./bench_matmul [rounds = 11] [threads = all] [part of a row's name]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ops/gemm.cuh"
#include "runtime/exit_status.h"
#include "runtime/median.h"

#ifdef HAVE_DNNL
#include <dnnl.h>
#include <omp.h>
#endif

namespace tapernorm {

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

#if defined(__x86_64__)
// Twelve independent chains of multiply-adds on registers (0 * 0 + 0), enough to hide the latency.
#define FMA(r, n) "vfmadd231ps %%" r "12, %%" r "12, %%" r #n "\n\t"
#define FMA_CHAINS(r)                                                                                               \
    asm volatile("1:\n\t" FMA(r, 0) FMA(r, 1) FMA(r, 2) FMA(r, 3) FMA(r, 4) FMA(r, 5) FMA(r, 6) FMA(r, 7) FMA(r, 8) \
                     FMA(r, 9) FMA(r, 10) FMA(r, 11) "dec %0\n\tjnz 1b\n\tvzeroupper"                               \
                 : "+r"(steps)                                                                                      \
                 :                                                                                                  \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",   \
                   "xmm11", "xmm12")
void fma_chains_avx512(size_t steps) {
    asm volatile("vpxor %%xmm12, %%xmm12, %%xmm12" ::: "xmm12");
    FMA_CHAINS("zmm");
}
void fma_chains_avx2(size_t steps) {
    asm volatile("vpxor %%xmm12, %%xmm12, %%xmm12" ::: "xmm12");
    FMA_CHAINS("ymm");
}
#endif

// Runs all threads' multiply-adds; returns the floating-point operations done, 0 where this loop knows no
// such set.
double run_peak(const Cpu& dev) {
    const size_t steps = 400000;
    void (*chains)(size_t) = nullptr;
    double lanes = 0;
#if defined(__x86_64__)
    if (dev.isa == Isa::avx512) chains = fma_chains_avx512, lanes = 16;
    if (dev.isa == Isa::avx2) chains = fma_chains_avx2, lanes = 8;
#endif
    if (!chains) return 0;
    parallel_team(dev, size_t(dev.threads), [&](const TeamMember&) { chains(steps); });
    return 2.0 * 12 * lanes * double(steps) * dev.threads;
}

struct Product {
    std::string name;
    size_t M, N, K;
    bool trans_a, trans_b, accumulate;
};

// The three products of a linear layer in -> out on M tokens.
void add_layer(std::vector<Product>& all, size_t M, size_t in, size_t out) {
    const std::string name = strprintf("%zu->%zu, M %zu", in, out, M);
    all.push_back({name + ", forward", M, out, in, false, false, false});
    all.push_back({name + ", dX", M, in, out, false, true, false});
    all.push_back({name + ", dW", in, out, M, true, false, true});
}

std::vector<Product> all_products() {
    std::vector<Product> all;
    for (size_t M : {1024, 4096})
        for (size_t C : {128, 384, 768}) {
            add_layer(all, M, C, 3 * C);
            if (C != 384) add_layer(all, M, C, C);
            add_layer(all, M, C, 4 * C);
            add_layer(all, M, 4 * C, C);
        }
    const size_t M = 1024, C = 768, V = 50304;
    all.push_back({"head 768->50304, M 1024, forward", M, V, C, false, true, false});
    all.push_back({"head 768->50304, M 1024, dX", M, C, V, false, false, false});
    all.push_back({"head 768->50304, M 1024, dW", V, C, M, true, false, true});
    for (size_t rows : {1, 4}) {
        all.push_back({strprintf("768->3072, M %zu, forward", rows), rows, 3072, 768, false, false, false});
        all.push_back({strprintf("3072->768, M %zu, forward", rows), rows, 768, 3072, false, false, false});
        all.push_back({strprintf("head 768->50304, M %zu, forward", rows), rows, V, C, false, true, false});
    }
    return all;
}

void fill(std::vector<float>& v, size_t n) {
    std::minstd_rand random{unsigned(n)};
    v.resize(n);
    for (float& x : v) x = float(random()) / float(1u << 30) - 1;
}

// Seconds of one call: as many calls as fill about 10 ms.
double time_call(const std::function<void()>& call) {
    size_t calls = 0;
    const double start = seconds();
    double now;
    do {
        call();
        calls++;
        now = seconds();
    } while (now - start < 0.01);
    return (now - start) / double(calls);
}

}  // namespace

}  // namespace tapernorm

using namespace tapernorm;

int main(int argc, char** argv) {
    start_program();
    const int rounds = argc > 1 ? std::max(1, atoi(argv[1])) : 11;
    Cpu dev(argc > 2 ? atoi(argv[2]) : 0);
    const std::string only = argc > 3 ? argv[3] : "";
#ifdef HAVE_DNNL
    omp_set_num_threads(dev.threads);
#endif
    std::printf("%s, %s, medians of %d rounds\n\n", counted(size_t(dev.threads), "thread").c_str(), isa_name(dev.isa),
                rounds);
    std::printf("| product | peak GFLOP/s | ours | of peak | oneDNN | of peak | ours / oneDNN |\n");
    std::printf("| --- | --- | --- | --- | --- | --- | --- |\n");
    std::vector<double> ratios;
    std::vector<float> A, B, C;
    for (const Product& p : all_products()) {
        if (p.name.find(only) == std::string::npos) continue;
        fill(A, p.M * p.K), fill(B, p.K * p.N), fill(C, p.M * p.N);
        const size_t lda = p.trans_a ? p.M : p.K, ldb = p.trans_b ? p.K : p.N;
        const Gemm<float> g = {.M = p.M,
                               .N = p.N,
                               .K = p.K,
                               .A = A.data(),
                               .lda = lda,
                               .trans_a = p.trans_a,
                               .B = B.data(),
                               .ldb = ldb,
                               .trans_b = p.trans_b,
                               .C = C.data(),
                               .ldc = p.N,
                               .accumulate = p.accumulate};
        std::vector<double> peak, ours, other;
        const double work = 2.0 * double(p.M) * double(p.N) * double(p.K);
        for (int round = -1; round < rounds; round++) {  // one round to warm up
            const double our_time = with_team(dev, [&] { return time_call([&] { gemm(dev, g); }); });
            double other_time = our_time;
#ifdef HAVE_DNNL
            other_time = time_call([&] {
                dnnl_sgemm(p.trans_a ? 'T' : 'N', p.trans_b ? 'T' : 'N', dnnl_dim_t(p.M), dnnl_dim_t(p.N),
                           dnnl_dim_t(p.K), 1, A.data(), dnnl_dim_t(lda), B.data(), dnnl_dim_t(ldb),
                           p.accumulate ? 1 : 0, C.data(), dnnl_dim_t(p.N));
            });
#endif
            const double start = seconds(), operations = run_peak(dev);
            if (round < 0) continue;
            peak.push_back(operations / (seconds() - start)), ours.push_back(our_time), other.push_back(other_time);
        }
        const double our_rate = work / median(ours), other_rate = work / median(other), top = median(peak);
        std::vector<double> each;
        for (size_t i = 0; i < ours.size(); i++) each.push_back(other[i] / ours[i]);
        ratios.push_back(median(each));
        std::printf("| %s | %.0f | %.0f | %.2f | %.0f | %.2f | %.2f |\n", p.name.c_str(), top * 1e-9, our_rate * 1e-9,
                    our_rate / top, other_rate * 1e-9, other_rate / top, ratios.back());
        std::fflush(stdout);
    }
    if (ratios.empty()) return 1;
    std::printf("\nmedian ratio %.3f, lowest %.3f, highest %.3f over %zu products\n", median(ratios),
                *std::min_element(ratios.begin(), ratios.end()), *std::max_element(ratios.begin(), ratios.end()),
                ratios.size());
}
