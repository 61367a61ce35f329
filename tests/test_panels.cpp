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

// The steps of a row of activations that int8 weights are multiplied with, one for each group of 128.
std::vector<float> steps_of(const float* x, size_t K) {
    std::vector<float> steps;
    for (size_t k = 0; k < K; k += kDotGroup) {
        float top = 0;
        for (size_t i = k; i < std::min(K, k + kDotGroup); i++) top = std::max(top, std::abs(x[i]));
        steps.push_back(top / 127 < std::numeric_limits<float>::min() ? 0 : top / 127);
    }
    return steps;
}

// Every way to multiply int8 that this machine has, on `threads` threads.
std::vector<Cpu> all_dots(int threads) {
    std::vector<Cpu> list;
    for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
        if (isa > best_isa()) continue;
        list.emplace_back(threads, isa);
        if (!list.back().dot_instruction) continue;
        list.emplace_back(threads, isa);
        list.back().dot_instruction = false;
    }
    return list;
}

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
            // int8's activations are off by half a step each, in which a number close to a half may lose a little more.
            const std::vector<float> steps = steps_of(&in[r * c.K], c.K);
            double inexact = 0;
            for (size_t k = 0; k < c.K; k++) {
                const double weight = rounded(w(k), type, step), term = double(in[r * c.K + k]) * weight;
                sum += term, size += std::abs(term);
                if (type == WeightType::int8) inexact += 0.5001 * double(steps[k / kDotGroup]) * std::abs(weight);
            }
            double value = sum + double(bias[n]) + (residual ? double(add[r * c.N + n]) : 0);
            if (gelu) value /= 1 + std::exp(-2 * 0.7978845608028654 * (value + 0.044715 * value * value * value));
            // A chain of K roundings of partial sums, each at most `size`; four more behind it. GELU is nowhere steeper
            // than 1.13.
            const double allowed = (double(c.K) + 8) * 0x1p-24 * (size + inexact + 4) + (gelu ? 1.13 : 1) * inexact;
            worst = std::max(worst, std::abs(double(out[r * c.N + n]) - value) / allowed);
            if (std::isnan(out[r * c.N + n])) worst = INFINITY;
        }
    CHECK(worst <= 1);
    CHECK(std::isnan(out.back()));  // nothing is written behind the last row
}

}  // namespace

TEST_CASE("panels: products of every weight type, shape and instruction set") {
    for (Cpu& dev : all_dots(2)) {
        CAPTURE(isa_name(dev.isa));
        CAPTURE(dev.dot_instruction);
        for (WeightType type : {WeightType::fp32, WeightType::bf16, WeightType::int8})
            for (const Case& c : {Case{1, 1, 1, false}, Case{1, 768, 200, false}, Case{6, 65, 64, true},
                                  Case{7, 500, 130, true}, Case{29, 390, 63, false}, Case{271, 17, 65, false}}) {
                INFO("type ", int(type), ", M ", c.M, ", K ", c.K, ", N ", c.N);
                check_product(dev, c, type, false, false);
                check_product(dev, c, type, true, c.M % 2);
            }
    }
}

namespace {

// x as a float. The compiler does not see through it: where it may, it would fuse what is rounded with what follows.
float as_float(double x) {
    volatile float y = float(x);
    return y;
}

// What the product with int8 weights is, by integers of 64 bits; every rounding is one of a number that a double holds exactly.
std::vector<float> integer_product(const Case& c, const float* in, const float* W, const float* bias,
                                   const float* residual) {
    std::vector<float> out;
    for (size_t r = 0; r < c.M; r++) {
        const float* x = in + r * c.K;
        const std::vector<float> steps = steps_of(x, c.K);
        std::vector<int64_t> a(c.K);
        for (size_t k = 0; k < c.K; k++) {
            const float step = steps[k / kDotGroup];
            float top = 0;
            for (size_t i = k / kDotGroup * kDotGroup; i < std::min(c.K, (k / kDotGroup + 1) * kDotGroup); i++)
                top = std::max(top, std::abs(x[i]));
            a[k] = step > 0 ? std::llrint(float(x[k] * (127 / top))) : 0;
        }
        for (size_t n = 0; n < c.N; n++) {
            auto w = [&](size_t k) { return W[c.transposed ? n * c.K + k : k * c.N + n]; };
            float top = 0;
            for (size_t k = 0; k < c.K; k++) top = std::max(top, std::abs(w(k)));
            const float step = top > 0 ? top / 127 : 1;
            float sum = 0;
            for (size_t g = 0; g < steps.size(); g++) {
                int64_t exact = 0;
                for (size_t k = g * kDotGroup; k < std::min(c.K, (g + 1) * kDotGroup); k++)
                    exact += a[k] * std::llrint(w(k) / step);
                sum = as_float(double(sum) + double(as_float(double(steps[g]) * double(exact))));
            }
            sum = as_float(double(sum) * double(step));
            sum = as_float(double(sum) + double(bias[n]));
            out.push_back(as_float(double(sum) + double(residual[r * c.N + n])));
        }
    }
    return out;
}

// Checks the first 1 .. c.M rows on every instruction set, with 1 to 3 threads, together and on one thread.
void check_integers(const Case& c, const std::vector<float>& in, const std::vector<float>& W) {
    INFO("M ", c.M, ", K ", c.K, ", N ", c.N);
    const std::vector<float> bias = random_floats(c.N, 3), add = random_floats(c.M * c.N, 4);
    const std::vector<float> expected = integer_product(c, in.data(), W.data(), bias.data(), add.data());
    for (const int threads : {1, 2, 3})
        for (Cpu& dev : all_dots(threads)) {
            Arena<Cpu> memory(dev, "a test");
            unsigned char* at;
            memory.add(at, panel_bytes(c.K, c.N, WeightType::int8));
            memory.allocate(false);
            const Panels p = pack_weights(dev, at, W.data(), c.K, c.N, c.transposed, WeightType::int8);
            CAPTURE(isa_name(dev.isa));
            CAPTURE(dev.dot_instruction);
            CAPTURE(threads);
            for (size_t rows = 1; rows <= c.M; rows++) {
                std::vector<float> out(rows * c.N + 1, -7);
                const PanelProduct product{&p, in.data(), c.K, rows, out.data(), bias.data(), add.data(), false};
                if (rows % 2)
                    panel_product(dev, product);
                else
                    panel_product_single(dev, 0, product, 0, p.count());
                size_t wrong = 0;
                for (size_t i = 0; i < rows * c.N; i++) wrong += !(out[i] == expected[i]);
                CAPTURE(rows);
                CHECK(wrong == 0);
                CHECK(out.back() == -7);
            }
        }
}

}  // namespace

TEST_CASE("panels: products with int8 are those of integers, to the bit, on every instruction set") {
    for (const Case& c : {Case{40, 300, 70, false}, Case{3, 1, 1, false}, Case{7, 2, 65, true}, Case{8, 3, 63, false},
                          Case{9, 127, 64, true}, Case{14, 128, 5, false}, Case{5, 129, 130, true},
                          Case{6, 130, 2, false}, Case{13, 515, 64, false}}) {
        std::vector<float> in = random_floats(c.M * c.K, 11), W = random_floats(c.K * c.N, 12);
        for (size_t r = 0; r < c.M; r++)  // rows of zeros, of what counts as zero, of numbers of very different sizes
            for (size_t k = 0; k < c.K; k++)
                in[r * c.K + k] *= r % 8 == 3 ? 0 : r % 8 == 4 ? 1e-37f : r % 8 == 5 ? (k / 50 % 2 ? 1e-20f : 1e9f) : 1;
        // Numbers next to a half of a step: the product with 127 / max |x| is rounded before it is rounded to an integer.
        for (size_t r = 6; r < c.M; r += 8)
            for (size_t k = 0; k < c.K; k++) {
                const float half = (float(k % 126) + 0.5f) / (127 / 3.0f);
                in[r * c.K + k] = k % kDotGroup == 0 ? 3
                                  : k % 3 == 0       ? half
                                                     : std::nextafter(half, k % 3 == 1 ? 0.0f : 3.0f);
            }
        for (size_t k = 0; k < c.K; k++)
            if (c.N > 3) W[c.transposed ? 3 * c.K + k : k * c.N + 3] = 0;
        check_integers(c, in, W);
    }
    // The largest sums, of either sign, over more numbers than 32 bits would hold the sum of.
    const Case c{4, 140001, 4, true};
    std::vector<float> in(c.M * c.K), W(c.K * c.N);
    for (size_t i = 0; i < 2 * c.K; i++) in[i] = i < c.K ? 1 : -1;
    for (size_t i = 2 * c.K; i < in.size(); i++) in[i] = i % 2 ? 1.0f : -1.0f;
    for (size_t i = 0; i < W.size(); i++) W[i] = i < 2 * c.K ? (i < c.K ? 0.5f : -0.5f) : i % 2 ? 2.0f : -2.0f;
    check_integers(c, in, W);
}

TEST_CASE("panels: an infinity or a NaN in a row shows in the whole row, and only there") {
    const size_t K = 300, N = 70, M = 9;
    const std::vector<float> W = random_floats(K * N, 5);
    const float inf = std::numeric_limits<float>::infinity();
    for (Cpu& dev : all_dots(2)) {
        Arena<Cpu> memory(dev, "a test");
        unsigned char* at;
        memory.add(at, panel_bytes(K, N, WeightType::int8));
        memory.allocate(false);
        const Panels p = pack_weights(dev, at, W.data(), K, N, false, WeightType::int8);
        for (const float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN()})
            for (const size_t k : {0, 127, 128, 299}) {
                std::vector<float> in = random_floats(M * K, 6), good(M * N), out(M * N);
                panel_product(dev, {&p, in.data(), K, M, good.data(), nullptr, nullptr, false});
                in[4 * K + k] = bad;
                panel_product(dev, {&p, in.data(), K, M, out.data(), nullptr, nullptr, false});
                size_t wrong = 0;
                for (size_t i = 0; i < M * N; i++) wrong += i / N == 4 ? !std::isnan(out[i]) : !(out[i] == good[i]);
                CHECK(wrong == 0);
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
