// What does a training update cost? The trainer's own update (train_gpt.cu) in every phase of the gate, and the matrix
// products of that update alone, by our matmul and by oneDNN's (where installed), in turn, in one process. One JSON
// object; dev/bench.py makes the table.
//
//   ./bench_train L NH C T B V rounds
#define TAPERNORM_NO_MAIN
#include "runtime/median.h"
#include "train_gpt.cu"

#include <functional>

#ifdef HAVE_DNNL
#include <dnnl.h>
#include <omp.h>
#endif

namespace tapernorm::train {

namespace {

double seconds_of(const std::function<void()>& call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Product {
    size_t M, N, K;
    bool trans_a, trans_b;
    size_t count;  // in one update
};

// Forward, dX and dW of every linear layer and of the head.
std::vector<Product> products(const Config& c, size_t N) {
    std::vector<Product> all;
    auto linear = [&](size_t in, size_t out, size_t count) {
        all.push_back({N, out, in, false, false, count});
        all.push_back({N, in, out, false, true, count});
        all.push_back({in, out, N, true, false, count});
    };
    linear(c.C, 3 * c.C, c.L), linear(c.C, c.C, c.L), linear(c.C, 4 * c.C, c.L), linear(4 * c.C, c.C, c.L);
    all.push_back({N, c.V, c.C, false, true, 1});
    all.push_back({N, c.C, c.V, false, false, 1});
    all.push_back({c.V, c.C, N, true, false, 1});
    return all;
}

double flops(const std::vector<Product>& all) {
    double sum = 0;
    for (const Product& p : all) sum += 2.0 * double(p.M) * double(p.N) * double(p.K) * double(p.count);
    return sum;
}

// Causal attention of one update: two products forward and four backward, of T (T + 1) / 2 pairs a head.
double attention_flops(const Config& c, size_t B, size_t T) {
    return 6.0 * 2.0 * double(c.L * B) * double(T) * double(T + 1) / 2 * double(c.C);
}

// Seconds for all products of one update: each distinct one timed once.
double time_products(Cpu& dev, const std::vector<Product>& all, std::vector<float>* memory,
                     [[maybe_unused]] bool library) {
    double total = 0;
    for (const Product& p : all) {
        const size_t lda = p.trans_a ? p.M : p.K, ldb = p.trans_b ? p.K : p.N;
        memory[0].resize(p.M * p.K, 0.5f), memory[1].resize(p.K * p.N, 0.5f), memory[2].resize(p.M * p.N);
        const auto product = [&] {
#ifdef HAVE_DNNL
            if (library) {
                dnnl_sgemm(p.trans_a ? 'T' : 'N', p.trans_b ? 'T' : 'N', dnnl_dim_t(p.M), dnnl_dim_t(p.N),
                           dnnl_dim_t(p.K), 1, memory[0].data(), dnnl_dim_t(lda), memory[1].data(), dnnl_dim_t(ldb), 0,
                           memory[2].data(), dnnl_dim_t(p.N));
                return;
            }
#endif
            // clang-format off
            gemm<float>(dev, {.M = p.M, .N = p.N, .K = p.K, .A = memory[0].data(), .lda = lda, .trans_a = p.trans_a,
                              .B = memory[1].data(), .ldb = ldb, .trans_b = p.trans_b, .C = memory[2].data(),
                              .ldc = p.N});
            // clang-format on
        };
        total += double(p.count) * seconds_of(product);
    }
    return total;
}

}  // namespace

}  // namespace tapernorm::train

using namespace tapernorm;
using namespace tapernorm::train;

int main(int argc, char** argv) {
    start_program();
    if (argc != 8) return std::fprintf(stderr, "usage: bench_train L NH C T B V rounds\n"), 2;
    auto arg = [&](int i) { return size_t(std::strtoull(argv[i], nullptr, 10)); };
    Config config;
    config.L = arg(1), config.NH = arg(2), config.C = arg(3), config.T = arg(4), config.V = arg(6);
    const size_t B = arg(5), rounds = arg(7);
    Settings s;
    s.T = config.T, s.batch = B, s.total_batch = B * config.T, s.scale_loss = 0, s.clip = 1, s.lr = 1e-5;
    std::vector<uint16_t> ids(B * config.T * 8);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = uint16_t(random_bits(1, 2, i) % config.V);
    const TokenSource corpus = tokens_from_text("x", "random tokens", [&](std::string_view) { return ids; });
    Cpu dev;
#ifdef HAVE_DNNL
    omp_set_num_threads(dev.threads);
#endif
    config.mode = GateMode::norm;
    Trainer<Cpu, float> norm(dev, s, config, corpus);
    config.mode = GateMode::taper;
    Trainer<Cpu, float> taper(dev, s, config, corpus);
    initialize(norm.model, 1), initialize(taper.model, 1);
    norm.gate_warmup = 0, norm.gate_end = 1;

    // The phases of the gate, by a schedule whose current update lies in them.
    struct Phased {
        const char* name;
        std::function<double()> update;
    };
    // A team for each update, and none for the library, which has its own.
    Team::Counts counts;
    auto seconds_of_update = [&](Trainer<Cpu, float>& t) {
        return with_team(dev, [&] {
            const double seconds = t.update().seconds;
            if (const Team* team = Team::led_here()) counts = team->counts();
            return seconds;
        });
    };
    auto taper_at = [&](size_t warm, size_t end) {
        taper.gate_warmup = warm, taper.gate_end = end;
        return seconds_of_update(taper);
    };
    const std::vector<Phased> phases = {
        {"norm", [&] { return seconds_of_update(norm); }},
        {"taper_g1", [&] { return taper_at(taper.step + 2, taper.step + 4); }},
        {"taper_blend", [&] { return taper_at(taper.step, taper.step + 2); }},
        {"taper_g0", [&] { return taper_at(0, 1); }},
    };
    const std::vector<Product> matmuls = products(config, B * config.T);
    std::vector<double> ours, library, times[4];
    std::vector<float> memory[3];
    for (size_t round = 0; round <= rounds; round++) {  // the first one warms up
        double t[4];
        for (size_t i = 0; i < 4; i++) t[i] = phases[i].update();
        const double our_time = with_team(dev, [&] { return time_products(dev, matmuls, memory, false); });
        double library_time = 0;
#ifdef HAVE_DNNL
        library_time = time_products(dev, matmuls, memory, true);
#endif
        if (round == 0) continue;
        for (size_t i = 0; i < 4; i++) times[i].push_back(t[i]);
        ours.push_back(our_time), library.push_back(library_time);
    }
    struct rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const double work = flops(matmuls), attention = attention_flops(config, B, config.T);
    std::printf("{\"threads\": %d, \"isa\": \"%s\", \"tokens\": %zu, \"matmul_flops\": %.6g, \"attention_flops\": %.6g",
                dev.threads, isa_name(dev.isa), B * config.T, work, attention);
    for (size_t i = 0; i < 4; i++) {
        // Ratios of neighbours in time, so that a slow minute counts on both sides.
        std::vector<double> ratio;
        for (size_t r = 0; r < rounds; r++) ratio.push_back(times[i][r] / times[0][r]);
        std::printf(", \"%s\": %.6g, \"%s_over_norm\": %.4f", phases[i].name, median(times[i]), phases[i].name,
                    median(ratio));
    }
    std::printf(", \"our_matmuls\": %.6g, \"parallel_loops\": %zu, \"waiting\": %.3f", median(ours), counts.jobs,
                counts.waited);
#ifdef HAVE_DNNL
    std::vector<double>
        floor_ratio;  // time over the floor: all FLOPs of the update at the library's rate of this round
    for (size_t r = 0; r < rounds; r++) floor_ratio.push_back(library[r] * (1 + attention / work) / times[0][r]);
    std::printf(", \"library_matmuls\": %.6g, \"floor_over_norm\": %.4f", median(library), median(floor_ratio));
#endif
    const size_t held = taper.model.param_memory.bytes() + taper.model.grad_memory.bytes() +
                        taper.moment_memory.bytes() + taper.model.act_memory.bytes();
    std::printf(", \"held_bytes_one_model\": %zu, \"peak_kib_two_models\": %ld}\n", held, usage.ru_maxrss);
    (void)library;
}
