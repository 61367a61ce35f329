// Every CPU op: hand-computed cases, gradients against central differences in double, fp32 against double, and the same
// bits for any number of threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "ops/attention/attention.cuh"
#include "ops/cross_entropy.cuh"
#include "ops/embedding.cuh"
#include "ops/gelu.cuh"
#include "ops/muon.cuh"
#include "tests/gradient_check.h"

namespace tapernorm {

namespace {

template <class Real>
std::vector<Real> poisoned(size_t n) {
    return std::vector<Real>(n, std::numeric_limits<Real>::quiet_NaN());
}

template <class Real>
std::vector<float> to_float(const std::vector<Real>& x) {
    return {x.begin(), x.end()};
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

// |a - b| <= tolerance, element by element; NaN fails.
template <class A, class B>
void check_close(const std::vector<A>& a, const std::vector<B>& b, double tolerance) {
    REQUIRE(a.size() == b.size());
    size_t worst = 0;
    for (size_t i = 0; i < a.size(); i++)
        if (!(std::abs(double(a[i]) - double(b[i])) <= std::abs(double(a[worst]) - double(b[worst])))) worst = i;
    INFO("element ", worst, ": ", double(a[worst]), " against ", double(b[worst]), ", tolerance ", tolerance);
    CHECK(std::abs(double(a[worst]) - double(b[worst])) <= tolerance);
}

constexpr double kEps = 0x1p-24;  // half a unit in the last place of fp32

}  // namespace

TEST_CASE("gelu: known values and gradient") {
    Cpu dev(1);
    // x Phi(x) by its tanh form: gelu(0) = 0; gelu(1) = 0.5 (1 + tanh(0.79788456 * 1.044715)) = 0.8411919906
    const std::vector<double> x = {0, 1, -1, 30, -30};
    auto y = poisoned<double>(5);
    gelu_forward(dev, y.data(), x.data(), 5);
    check_close(y, std::vector<double>{0, 0.8411919906082768, 0.8411919906082768 - 1, 30, 0}, 1e-12);
    std::vector<double> in = normals(33, 1, 2), out(33), weight = normals(33, 2), din = poisoned<double>(33);
    gelu_backward(dev, din.data(), weight.data(), in.data(), 33);
    auto loss = [&] { return gelu_forward(dev, out.data(), in.data(), 33), dot(out, weight); };
    check_gradient("gelu", in.data(), din.data(), 33, loss, 33);
}

TEST_CASE("gelu: fp32 over its whole range, on every instruction set") {
    // y = x s: exp_r is within 3e-7 relative, and |d s / d u| <= 1/4 of the exponent's error; |x| <= 12.
    std::vector<double> x, expected;
    for (double v = -12; v <= 12; v += 0.001) {
        x.push_back(double(float(v)));
        expected.push_back(x.back() /
                           (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x.back() + 0.044715 * std::pow(x.back(), 3)))));
    }
    const auto in = to_float(x);
    for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
        if (isa > best_isa()) continue;
        Cpu dev(2, isa);
        auto y = poisoned<float>(in.size());
        gelu_forward(dev, y.data(), in.data(), in.size());
        check_close(y, expected, 12 * 8 * kEps);
    }
}

namespace {

// exp_r as each instruction set computes it, in place: softmax_causal_backward of scores whose lse is 0, as many queries side by
// side as fill vectors of every set. The last keys are those that not all queries see.
template <class Real>
void leaf_exp(const Cpu& dev, std::vector<Real>& x) {
    constexpr size_t kQueries = 64;
    const size_t n = x.size(), keys = (n + kQueries - 1) / kQueries + kQueries;
    const std::vector<Real> zeros(kQueries);
    x.resize(keys * kQueries);
    auto ds = poisoned<Real>(x.size());
    leaf<Real>(dev).softmax_causal_backward(x.data(), ds.data(), zeros.data(), zeros.data(), kQueries, kQueries,
                                            keys - kQueries, 1);
    x.resize(n);
}

}  // namespace

// A constant expression, so that the compiler refuses what is undefined.
static_assert(exp_r(-208.0f) == 0 && exp_r(-4e6f) == 0 && exp_r(1e30f) == exp_r(88.3f) && exp_r(0.0f) == 1);

TEST_CASE("exp: all of fp32's range and double's, on every instruction set") {
    std::vector<float> x = {-87.3f, std::nextafter(-87.3f, -100.0f), 88.3f, 0.0f, -0.0f};
    for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 9973) x.push_back(std::bit_cast<float>(uint32_t(bits)));
    for (float v = -110; v < 90; v += 0.01f) x.push_back(v);  // results from below the least denormal up
    for (const uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u, 0x7fffffffu, 0xffffffffu, 1u})
        x.push_back(std::bit_cast<float>(bits));  // infinities, quiet NaNs with few and all bits, the least denormal
    const std::vector<double> wide(x.begin(), x.end());
    for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
        if (isa > best_isa()) continue;
        const Cpu dev(1, isa);
        std::vector<float> y = x;
        std::vector<double> y_wide = wide;
        leaf_exp(dev, y);
        leaf_exp(dev, y_wide);
        size_t wrong = 0;
        for (size_t i = 0; i < x.size(); i++) {
            const double exact = std::exp(double(std::min(x[i], 88.3f))), exact_wide = std::exp(wide[i]);
            if (std::isnan(x[i]))
                wrong += !std::isnan(y[i]) || !std::isnan(y_wide[i]);
            else {
                wrong += x[i] < -87.3f ? y[i] != 0 : !(std::abs(double(y[i]) - exact) <= 3e-7 * exact);
                wrong += !(y_wide[i] == exact_wide || std::abs(y_wide[i] - exact_wide) <= 0x1p-51 * exact_wide);
            }
        }
        CHECK_MESSAGE(wrong == 0, std::string(isa_name(isa)));
    }
}

TEST_CASE("cross-entropy: known values, gradient, extreme logits") {
    Cpu dev(1);
    // p = (1, 2, 1) / 4: the loss of class 1 is log 2
    std::vector<double> z = {0, std::log(2.0), 0}, losses(1);
    double sum = 1;
    const int target = 1;
    cross_entropy(dev, &sum, losses.data(), z.data(), &target, 2.0, 1, 3, true);
    CHECK(sum == doctest::Approx(1 + std::log(2.0)).epsilon(1e-12));
    check_close(z, std::vector<double>{0.5, -1, 0.5}, 1e-12);

    const size_t N = 3, V = 37;
    const int targets[] = {0, 36, 17};
    std::vector<double> logits = normals(N * V, 3, 3), copy = logits, rows(N);
    double ignored = 0;
    cross_entropy(dev, &ignored, rows.data(), copy.data(), targets, 0.25, N, V, true);
    auto loss = [&] {
        double total = 0;
        auto scratch = logits;
        cross_entropy(dev, &total, rows.data(), scratch.data(), targets, 0, N, V, false);
        return total * 0.25;
    };
    check_gradient("logits", logits.data(), copy.data(), N * V, loss, 40);

    std::vector<float> extreme = {3e38f, -3e38f, 0, 3e38f}, row(1);
    const int zero = 0;
    double total = 0;
    cross_entropy(dev, &total, row.data(), extreme.data(), &zero, 1.0, 1, 4, true);
    CHECK(total == doctest::Approx(std::log(2.0)).epsilon(1e-6));
    check_close(extreme, std::vector<double>{-0.5, 0, 0, 0.5}, 1e-6);
}

TEST_CASE("distillation: known values, gradient, identities, extreme logits") {
    Cpu dev(1);
    // p = (1, 2, 1) / 4, q = (2, 1, 1) / 4: KL = (2 log 2 - log 2) / 4
    std::vector<double> z = {0, std::log(2.0), 0}, t = {std::log(2.0), 0, 0}, losses = poisoned<double>(2);
    double sums[2] = {1, 2};
    const int one = 1;
    distillation(dev, sums, losses.data(), z.data(), t.data(), &one, 2.0, 0.25, 1, 3);
    CHECK(sums[0] == doctest::Approx(1 + std::log(2.0)).epsilon(1e-12));
    CHECK(sums[1] == doctest::Approx(2 + std::log(2.0) / 4).epsilon(1e-12));
    check_close(z, std::vector<double>{0.25, -0.625, 0.375}, 1e-12);

    const size_t N = 3, V = 37, ld = 40;
    const int targets[] = {0, 36, 17};
    std::vector<double> logits = normals(N * ld, 3, 3), teacher = normals(N * ld, 4, 3), rows = poisoned<double>(2 * N);
    // sums of both, and the gradient
    auto distilled = [&](std::vector<double>& z, std::vector<double> t, double weight, double share, int threads) {
        Cpu threaded(threads);
        std::array<double, 2> sum = {0, 0};
        distillation(threaded, sum.data(), rows.data(), z.data(), t.data(), targets, weight, share, N, V, ld);
        return sum;
    };
    for (double share : {0.0, 0.3, 1.0}) {
        CAPTURE(share);
        auto gradient = logits;
        distilled(gradient, teacher, 0.25, share, 1);
        for (int threads : {2, 3}) {
            auto again = logits;
            distilled(again, teacher, 0.25, share, threads);
            CHECK(again == gradient);
        }
        auto loss = [&] {
            auto scratch = logits;
            const auto [ce, kl] = distilled(scratch, teacher, 0, share, 1);
            return 0.25 * ((1 - share) * ce + share * kl);
        };
        for (size_t row = 0; row < N; row++) {
            check_gradient("logits", &logits[row * ld], &gradient[row * ld], V, loss, 20);
            CHECK(std::all_of(&gradient[row * ld + V], &gradient[row * ld] + ld, [](double x) { return x == 0; }));
        }
        // Alone, it is the cross-entropy.
        auto plain = logits;
        double ce = 0;
        cross_entropy(dev, &ce, rows.data(), plain.data(), targets, 0.25, N, V, true, ld);
        auto scratch = logits;
        CHECK(distilled(scratch, teacher, 1, share, 1)[0] == doctest::Approx(ce).epsilon(1e-14));
        if (share == 0) check_close(gradient, plain, 1e-15);
        // A teacher that predicts the same, but for a shift of the logits, teaches nothing.
        auto same = logits, shifted = logits;
        for (double& x : shifted) x += 5;
        CHECK(std::abs(distilled(same, shifted, 0.25, share, 1)[1]) <= 1e-13);
        for (size_t i = 0; i < same.size(); i++) CHECK(std::abs(same[i] - (1 - share) * plain[i]) <= 1e-15);
        if (share < 1) continue;
        same = logits;
        CHECK(distilled(same, logits, 0.25, share, 1)[1] == 0);
        CHECK(std::all_of(same.begin(), same.end(), [](double x) { return x == 0; }));
    }

    for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
        if (isa > best_isa()) continue;
        Cpu any(1, isa);
        const float least = -std::numeric_limits<float>::infinity();
        std::vector<float> far = {1e4f, 0, 3e38f, 0}, teacher_far = {0, 1e4f, 3e38f, least}, row(4);
        const int zeros[] = {0, 0};
        double total[2] = {0, 0};
        distillation(any, total, row.data(), far.data(), teacher_far.data(), zeros, 1.0, 0.5, 2, 2);
        CHECK(row == std::vector<float>{0, 1e4f, 0, 0});
        check_close(far, std::vector<double>{0.5, -0.5, 0, 0}, 1e-6);
        std::vector<float> equal = to_float(normals(100, 5, 4)), copy = equal, row_of_one(2);
        distillation(any, total, row_of_one.data(), equal.data(), copy.data(), zeros, 0.3, 1.0, 1, 100);
        CHECK((row_of_one[1] == 0 && equal == std::vector<float>(100, 0)));
    }
}

TEST_CASE("attention: one-hot keys give exact weights") {
    // T = 3, one head of 2 channels. Scores q.k / sqrt 2 = log of chosen odds, so that the weights are rational.
    Cpu dev(1);
    const double r = std::sqrt(2.0), ln3 = std::log(3.0);
    // q = (r ln3, 0) everywhere; k_0 = (0, .), k_1 = (1, .), k_2 = (0, .): odds 1 : 3 : 1
    std::vector<double> qkv = {r * ln3, 0, 0, 5,  4, 1,  //
                               r * ln3, 0, 1, 7,  8, 2,  //
                               r * ln3, 0, 0, -3, 0, 3};
    auto out = poisoned<double>(6), lse = poisoned<double>(3);
    attention_forward(dev, out.data(), lse.data(), qkv.data(), 1, 3, 2, 1);
    // row 0: v_0; row 1: (v_0 + 3 v_1) / 4; row 2: (v_0 + 3 v_1 + v_2) / 5
    check_close(out, std::vector<double>{4, 1, 7, 1.75, 5.6, 2}, 1e-12);
    check_close(lse, std::vector<double>{0, std::log(4.0), std::log(5.0)}, 1e-12);
}

TEST_CASE("attention: gradient at odd sizes, over block borders") {
    Cpu dev(2);
    struct Shape {
        size_t B, T, C, NH;
    };
    for (const Shape& s : {Shape{2, 7, 6, 3}, Shape{1, 37, 10, 2}, Shape{1, 70, 8, 1}}) {
        const size_t n = s.B * s.T * s.C;
        std::vector<double> qkv = normals(3 * n, 4), weight = normals(n, 5), out = poisoned<double>(n);
        auto lse = poisoned<double>(s.B * s.NH * s.T), dqkv = poisoned<double>(3 * n);
        auto loss = [&] {
            attention_forward(dev, out.data(), lse.data(), qkv.data(), s.B, s.T, s.C, s.NH);
            return dot(out, weight);
        };
        loss();
        attention_backward(dev, dqkv.data(), weight.data(), out.data(), lse.data(), qkv.data(), s.B, s.T, s.C, s.NH);
        check_gradient("qkv", qkv.data(), dqkv.data(), 3 * n, loss, 60);
    }
}

TEST_CASE("attention: with a cache, in pieces, equals the whole") {
    Cpu dev(1);
    const size_t T = 41, C = 12, NH = 3;
    const std::vector<double> qkv = normals(T * 3 * C, 6);
    auto whole = poisoned<double>(T * C), pieces = poisoned<double>(T * C);
    auto k = poisoned<double>(T * C), v = poisoned<double>(T * C);
    attention_forward<double>(dev, whole.data(), nullptr, qkv.data(), 1, T, C, NH);
    for (size_t first = 0, n = 1; first < T; first += n, n = std::min<size_t>(n + 3, T - first))
        attention_cached(dev, pieces.data() + first * C, {{k.data(), v.data(), 0, first, n}},
                         qkv.data() + first * 3 * C, C, NH);
    check_close(pieces, whole, 1e-13);
}

TEST_CASE("attention: fp32 against double, and large scores") {
    // Scores up to about 100: |score error| <= 2 eps |score| hs-chain -> relative error of a weight about 100 * 16 eps.
    Cpu dev(2);
    const size_t B = 1, T = 96, C = 32, NH = 2, n = B * T * C;
    const std::vector<double> qkv = [&] {
        auto x = normals(3 * n, 7, 4);
        for (double& v : x) v = double(float(v));
        return x;
    }();
    auto exact = poisoned<double>(n), lse = poisoned<double>(NH * T);
    attention_forward(dev, exact.data(), lse.data(), qkv.data(), B, T, C, NH);
    const auto in = to_float(qkv);
    auto out = poisoned<float>(n), lse32 = poisoned<float>(NH * T);
    attention_forward(dev, out.data(), lse32.data(), in.data(), B, T, C, NH);
    check_close(out, exact, 16 * 100 * 16 * kEps);
}

TEST_CASE("embedding: forward and gradient") {
    Cpu dev(3);
    const size_t B = 2, T = 3, C = 33, V = 5;
    const int tokens[] = {4, 0, 4, 4, 1, 0};
    std::vector<double> wte = normals(V * C, 8), wpe = normals(T * C, 9), x = poisoned<double>(B * T * C);
    embedding_forward(dev, x.data(), tokens, wte.data(), wpe.data(), B, T, C);
    CHECK(x[(1 * T + 2) * C + 7] == wte[0 * C + 7] + wpe[2 * C + 7]);
    const int positions[] = {2, 0, 1, 0, 1, 2};
    for (const std::vector<double>& mean : {std::vector<double>(), normals(V, 11)}) {
        const double *means = mean.empty() ? nullptr : mean.data(), one = means ? mean[1] : 0,
                     four = means ? mean[4] : 0;
        embedding_forward_at(dev, x.data(), tokens, positions, wte.data(), means, wpe.data(), B * T, C);
        CHECK(x[4 * C + 32] == wte[1 * C + 32] - one + wpe[1 * C + 32]);
        CHECK(x[0 * C + 7] == wte[4 * C + 7] - four + wpe[2 * C + 7]);
    }
    const std::vector<double> dx = normals(B * T * C, 10);
    std::vector<double> dwte(V * C, 1.0), dwpe(T * C, 2.0);
    embedding_backward(dev, dwte.data(), dwpe.data(), dx.data(), tokens, {}, B, T, C, true);
    auto d = [&](size_t row, size_t i) { return dx[row * C + i]; };
    CHECK(dwte[4 * C + 5] == doctest::Approx(1 + d(0, 5) + d(2, 5) + d(3, 5)));
    CHECK(dwte[2 * C + 5] == 1.0);
    CHECK(dwpe[1 * C + 5] == doctest::Approx(2 + d(1, 5) + d(4, 5)));
    embedding_backward(dev, dwte.data(), dwpe.data(), dx.data(), tokens, {}, B, T, C, false);
    CHECK(dwpe[1 * C + 5] == doctest::Approx(d(1, 5) + d(4, 5)));
}

TEST_CASE("embedding: rows by token, in the order of the batch, in runs that no frequent token makes long") {
    std::vector<unsigned> counts;
    for (const auto& [N, V] : {std::pair<size_t, size_t>{1, 1}, {64, 1}, {65, 1}, {37, 5}, {1000, 65536}, {2000, 13}}) {
        CAPTURE(N);
        CAPTURE(V);
        std::vector<int> tokens(N);
        for (size_t i = 0; i < N; i++) tokens[i] = int((random_bits(8, 1, i) & random_bits(8, 2, i / 3)) % V);
        std::vector<unsigned> expected(N), data(TokenRows::most(N));
        std::iota(expected.begin(), expected.end(), 0u);
        std::stable_sort(expected.begin(), expected.end(),
                         [&](unsigned a, unsigned b) { return tokens[a] < tokens[b]; });
        const TokenRows rows = sort_rows_by_token(data.data(), tokens.data(), N, counts);
        CHECK(std::equal(expected.begin(), expected.end(), data.begin()));
        CHECK(rows.size(N) <= data.size());
        CHECK(rows.splits <= N / TokenRows::kRunRows);
        std::vector<TokenRun> runs(rows.runs);
        std::memcpy(runs.data(), &data[TokenRows::runs_at(N)], runs.size() * sizeof(TokenRun));
        std::vector<SplitToken> splits(rows.splits);
        if (rows.splits) std::memcpy(splits.data(), &data[TokenRows::splits_at(N)], splits.size() * sizeof(SplitToken));
        unsigned at = 0, partials = 0;
        auto split = splits.begin();
        for (const TokenRun& run : runs) {
            CHECK(run.begin == at);
            CHECK((run.end > run.begin && run.end - run.begin <= TokenRows::kRunRows));
            for (at = run.begin; at < run.end; at++) CHECK(tokens[expected[at]] == run.token);
            const size_t all = size_t(std::count(tokens.begin(), tokens.end(), run.token));
            CHECK((run.partial == TokenRows::kWholeRun) == (all <= TokenRows::kRunRows));
            if (run.partial == TokenRows::kWholeRun) continue;
            CHECK(run.partial == partials++);
            REQUIRE(split != splits.end());
            CHECK((split->token == run.token && split->first <= run.partial && run.partial < split->end));
            if (split->end == partials) ++split;
        }
        CHECK(at == N);
        CHECK(partials == rows.partials);
        CHECK(split == splits.end());
    }
}

TEST_CASE("adamw: two updates by hand, and the global norm") {
    Cpu dev(1);
    // lr 0.1, b1 0.5, b2 0.75, eps 0, decay 0.2, gradients 2 then -1, clipped by 0.5 the second time:
    // k=1: m 1, v 1: m^ 2, v^ 4: w = 1 * 0.98 - 0.1 * 2 / 2 = 0.88
    // k=2: g -0.5: m 0.25, v 0.8125: m^ = 1/3, v^ = 0.8125 / 0.4375 = 13/7: w = 0.88 * 0.98 - 0.1 / 3 / sqrt(13/7)
    double w = 1, m = 0, v = 0, g = 2;
    AdamwArgs<double> a{0.1, 0.5, 0.75, 0, 0, 0.5, 0.25, 1};
    const std::vector<AdamwTensor<double>> tensors = {{&w, nullptr, &m, &v, &g, 1, 0.2}};
    adamw_update(dev, tensors, a);
    CHECK(w == doctest::Approx(0.88).epsilon(1e-14));
    a.correction1 = 0.75, a.correction2 = 0.4375, a.clip_factor = 0.5, g = -1;
    adamw_update(dev, tensors, a);
    CHECK(w == doctest::Approx(0.88 * 0.98 - 0.1 / 3 / std::sqrt(13.0 / 7)).epsilon(1e-14));
    const std::vector<float> x(200001, 0.5f);
    CHECK(sum_of_squares(dev, x.data(), x.size()) == 0.25 * 200001);
}

TEST_CASE("muon: two updates whose singular vectors are known") {
    // Gradients U diag(s) V^T with the same U and V: each product of the Newton-Schulz steps has them, too, so that the steps are
    // those of a polynomial on every singular value.
    constexpr double a = 3.4445, b = -4.7750, c = 2.0315, mu = 0.95, lr = 0.5, decay = 0.25, clip = 0.125;
    auto polynomial = [&](double s) { return a * s + b * s * s * s + c * std::pow(s, 5); };
    auto orthogonal = [](size_t n, uint64_t seed) {  // I - 2 u u^T / |u|^2
        const std::vector<double> u = normals(n, seed);
        std::vector<double> h(n * n);
        for (size_t i = 0; i < n * n; i++) h[i] = double(i / n == i % n) - 2 * u[i / n] * u[i % n] / dot(u, u);
        return h;
    };
    for (const auto& [rows, columns, parts] : {std::array<size_t, 3>{5, 5, 3}, {4, 11, 1}, {13, 3, 2}, {1, 1, 1}}) {
        CAPTURE(rows);
        CAPTURE(columns);
        const size_t q = std::min(rows, columns), width = parts * columns, n = rows * width;
        std::vector<double> w = normals(n, 5), m(n), grad(n), expected = w, expected_m(n);
        std::vector<double> scratch = poisoned<double>(muon_scratch(rows, columns));
        Cpu dev(2);
        std::vector<std::vector<double>> before(parts, std::vector<double>(q));  // the momentum's singular values
        for (uint64_t update = 0; update < 2; update++) {
            for (size_t part = 0; part < parts; part++) {
                const std::vector<double> U = orthogonal(rows, 10 + part), V = orthogonal(columns, 20 + part);
                auto add = [&](std::vector<double>& to, const std::vector<double>& s, double factor) {
                    for (size_t i = 0; i < rows; i++)
                        for (size_t j = 0; j < columns; j++)
                            for (size_t k = 0; k < q; k++)
                                to[i * width + part * columns + j] +=
                                    factor * U[i * rows + k] * s[k] * V[j * columns + k];
                };
                std::vector<double> s = normals(q, 30 + 2 * part + update), x(q);
                for (double& value : s) value = std::abs(value);
                for (size_t i = 0; i < rows; i++) std::fill_n(&grad[i * width + part * columns], columns, 0.0);
                add(grad, s, 1 / clip);
                for (size_t k = 0; k < q; k++)
                    before[part][k] = mu * before[part][k] + s[k], x[k] = s[k] + mu * before[part][k];
                const double length = std::sqrt(dot(x, x)) + 1e-7;
                for (double& value : x) {
                    value /= length;
                    for (int i = 0; i < 5; i++) value = polynomial(value);
                }
                for (size_t i = 0; i < rows; i++)
                    for (size_t j = 0; j < columns; j++) expected[i * width + part * columns + j] *= 1 - lr * decay;
                add(expected, x, -lr * 0.2 * std::sqrt(double(std::max(rows, columns))));
                for (size_t i = 0; i < rows; i++) std::fill_n(&expected_m[i * width + part * columns], columns, 0.0);
                add(expected_m, before[part], 1);
            }
            muon_update(dev, {{w.data(), nullptr, m.data(), nullptr, grad.data(), n, decay}, rows, columns, parts},
                        {lr, clip}, scratch.data());
            check_close(m, expected_m, 1e-13);
            check_close(w, expected, 1e-11);  // the slope of the polynomials is up to 3.4445^5 = 485
        }
    }
    // What the head of ops/muon.cuh says of them.
    for (double s = 0.01; s <= 1; s *= 1.001) {
        double x = s;
        for (int i = 0; i < 5; i++) x = polynomial(x);
        REQUIRE(x > 0.68);
        REQUIRE(x < 1.14);
    }
    // Without a gradient there is no direction.
    double w = 2, m = 0, grad = 0, scratch[4];
    Cpu dev(1);
    muon_update(dev, {{&w, nullptr, &m, nullptr, &grad, 1, decay}, 1, 1, 1}, {lr, 1}, scratch);
    CHECK(w == 2 * (1 - lr * decay));
    float now = 2, momentum = 1e-39f, none = 0, memory[4];  // of which the reciprocal is infinite
    muon_update(dev, {{&now, nullptr, &momentum, nullptr, &none, 1, float(decay)}, 1, 1, 1}, {lr, 1}, memory);
    CHECK(now == 2 * (1 - lr * decay));
}

TEST_CASE("the same bits for any number of threads") {
    const size_t B = 3, T = 45, C = 48, NH = 3, n = B * T * C;
    const auto qkv = to_float(normals(3 * n, 11)), dout = to_float(normals(n, 12)),
               grad = to_float(normals(200000, 13));
    std::vector<int> tokens(B * T);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = int(random_bits(1, 2, i) % 7);
    auto run = [&](int threads) {
        Cpu dev(threads);
        std::vector<float> all(n), lse(B * NH * T), dqkv(3 * n), dwte(7 * C, 0.0f), dwpe(T * C, 0.0f);
        attention_forward(dev, all.data(), lse.data(), qkv.data(), B, T, C, NH);
        attention_backward(dev, dqkv.data(), dout.data(), all.data(), lse.data(), qkv.data(), B, T, C, NH);
        embedding_backward(dev, dwte.data(), dwpe.data(), dout.data(), tokens.data(), {}, B, T, C, false);
        for (const auto& part : {lse, dqkv, dwte, dwpe}) all.insert(all.end(), part.begin(), part.end());
        all.push_back(float(sum_of_squares(dev, grad.data(), grad.size())));
        return all;
    };
    const auto one = run(1);
    for (int threads : {2, 3, 5}) CHECK(run(threads) == one);
}

}  // namespace tapernorm
