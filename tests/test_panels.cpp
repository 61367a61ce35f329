// Weights in panels: every type against the product in double, on every instruction set of this machine.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "inference/packed_model.h"
#include "runtime/random.h"

namespace tapernorm {

namespace {

std::vector<float> random_floats(size_t n, uint64_t stream) {
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = float(random_normal(17, stream, i));
    return x;
}

// What a weight is rounded to.
double rounded(float w, WeightType type, double step) {
    if (type == WeightType::fp32) return double(w);
    if (type == WeightType::bf16) return double(float_from_bf16(bf16_from_float(w)));
    return std::nearbyint(double(w / float(step))) * step;
}

struct Case {
    size_t M, K, N;
    bool transposed;
};

void check_product(Cpu& dev, const Case& c, WeightType type, bool residual, bool gelu) {
    const std::vector<float> W = random_floats(c.K * c.N, 1), in = random_floats(c.M * c.K, 2);
    const std::vector<float> bias = random_floats(c.N, 3), add = random_floats(c.M * c.N, 4);
    std::vector<float> out(c.M * c.N + 1, std::numeric_limits<float>::quiet_NaN());
    std::vector<unsigned char> memory(panel_bytes(c.K, c.N, type) + 64);
    void* at = memory.data();
    size_t space = memory.size();
    std::align(64, space - 64, at, space);
    const Panels p = pack_weights(dev, at, W.data(), c.K, c.N, c.transposed, type);
    panel_product(dev, {&p, in.data(), c.K, c.M, out.data(), bias.data(), residual ? add.data() : nullptr, gelu});
    double worst = 0;
    for (size_t r = 0; r < c.M; r++)
        for (size_t n = 0; n < c.N; n++) {
            auto w = [&](size_t k) { return W[c.transposed ? n * c.K + k : k * c.N + n]; };
            double step = 1, sum = 0, size = 0;
            if (type == WeightType::int8) {
                float top = 0;
                for (size_t k = 0; k < c.K; k++) top = std::max(top, std::abs(w(k)));
                step = double(top / 127);
            }
            for (size_t k = 0; k < c.K; k++) {
                const double term = double(in[r * c.K + k]) * rounded(w(k), type, step);
                sum += term, size += std::abs(term);
            }
            double value = sum + double(bias[n]) + (residual ? double(add[r * c.N + n]) : 0);
            if (gelu) value /= 1 + std::exp(-2 * 0.7978845608028654 * (value + 0.044715 * value * value * value));
            // A chain of K roundings of partial sums, each at most `size`; four more behind it.
            worst = std::max(worst,
                             std::abs(double(out[r * c.N + n]) - value) / ((double(c.K) + 8) * 0x1p-24 * (size + 4)));
            if (std::isnan(out[r * c.N + n])) worst = INFINITY;
        }
    CHECK(worst <= 1);
    CHECK(std::isnan(out.back()));  // nothing is written behind the last row
}

}  // namespace

TEST_CASE("panels: products of every weight type, shape and instruction set") {
    for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
        if (isa > best_isa()) continue;
        Cpu dev(2, isa);
        CAPTURE(isa_name(isa));
        for (WeightType type : {WeightType::fp32, WeightType::bf16, WeightType::int8})
            for (const Case& c : {Case{1, 1, 1, false}, Case{1, 768, 200, false}, Case{6, 65, 64, true},
                                  Case{7, 500, 130, true}, Case{29, 390, 63, false}, Case{271, 17, 65, false}}) {
                INFO("type ", int(type), ", M ", c.M, ", K ", c.K, ", N ", c.N);
                check_product(dev, c, type, false, false);
                check_product(dev, c, type, true, c.M % 2);
            }
    }
}

TEST_CASE("panels: the bits of a row do not depend on the rows beside it") {
    const size_t K = 500, N = 100, M = 300;
    const std::vector<float> W = random_floats(K * N, 5), in = random_floats(M * K, 6);
    Cpu dev(3);
    for (WeightType type : {WeightType::fp32, WeightType::bf16, WeightType::int8}) {
        Arena<Cpu> memory(dev, "a test");
        unsigned char* at;
        memory.add(at, panel_bytes(K, N, type));
        memory.allocate(false);
        const Panels p = pack_weights(dev, at, W.data(), K, N, false, type);
        auto product = [&](size_t first, size_t rows) {
            std::vector<float> out(rows * N);
            panel_product(dev, {&p, &in[first * K], K, rows, out.data(), nullptr, nullptr, true});
            return out;
        };
        const std::vector<float> all = product(0, M);
        for (size_t rows : {1, 2, 5, 6, 7, 25, 44})
            for (size_t first : {0, 13, 255}) {
                const std::vector<float> some = product(first, rows);
                CHECK(std::equal(some.begin(), some.end(), &all[first * N]));
            }
    }
}

}  // namespace tapernorm
