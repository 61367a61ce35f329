// tapernorm.cuh: schedule, calibration, the three phases and their gradients, the scale loss, and the two facts about
// scale that motivate the method.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "ops/channel_sums.cuh"
#include "ops/cross_entropy.cuh"
#include "ops/linear.cuh"
#include "tapernorm.cuh"
#include "tests/gradient_check.h"

namespace tapernorm {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

struct Case {
    NormKind kind;
    Phase phase;
    double g;
    double kappa = kInfinity;
    double first = 1;  // rho of every fourth row
};
constexpr size_t kT = 4;
// (A kappa of 0.8 acts on about half of the coordinates of the tests' rows, whose deviation is 1 or 2.)
const Case kCases[] = {
    {NormKind::layernorm, Phase::norm, 1},
    {NormKind::layernorm, Phase::blend, 0.37},
    {NormKind::layernorm, Phase::scale, 0},
    {NormKind::rmsnorm, Phase::norm, 1},
    {NormKind::rmsnorm, Phase::blend, 0.37},
    {NormKind::rmsnorm, Phase::scale, 0},
    {NormKind::layernorm, Phase::blend, 0.37, 0.8},
    {NormKind::layernorm, Phase::scale, 0, 0.8},
    {NormKind::rmsnorm, Phase::blend, 0.37, 0.8},
    {NormKind::rmsnorm, Phase::scale, 0, 0.8},
    {NormKind::layernorm, Phase::blend, 0.37, 0.8, 0.3},
    {NormKind::layernorm, Phase::scale, 0, 0.8, 0.3},
    {NormKind::rmsnorm, Phase::blend, 0.37, 0.8, 1.7},
    {NormKind::rmsnorm, Phase::scale, 0, 0.8, 1.7},
};

// A site with random vectors.
struct TestSite {
    size_t C;
    std::vector<double> weight, bias, taper_weight, taper_bias;

    explicit TestSite(size_t C_)
        : C(C_), weight(normals(C, 1)), bias(normals(C, 2)), taper_weight(normals(C, 3)), taper_bias(normals(C, 4)) {}

    Site<double> args(const Case& c, double eps = 1e-5, double scale = 0.7) const {
        const bool biased = c.kind == NormKind::layernorm;
        return {.kind = c.kind,
                .phase = c.phase,
                .eps = eps,
                .g = c.g,
                .c = scale,
                .weight = weight.data(),
                .bias = biased ? bias.data() : nullptr,
                .taper_weight = taper_weight.data(),
                .taper_bias = biased ? taper_bias.data() : nullptr,
                .bound = c.kappa / scale,
                .first = c.first,
                .T = kT};
    }
};

// The definition, one row, term by term.
std::vector<double> site_ref(const Site<double>& s, const double* h, size_t C, double rho) {
    const bool ln = s.kind == NormKind::layernorm;
    double mean = 0, square = 0;
    for (size_t i = 0; i < C; i++) mean += ln ? h[i] / double(C) : 0;
    for (size_t i = 0; i < C; i++) square += std::pow(h[i] - mean, 2) / double(C);
    const double sigma = std::sqrt(square + s.eps);
    std::vector<double> y(C);
    for (size_t i = 0; i < C; i++) {
        const double u = h[i] - mean;
        y[i] =
            s.g * (s.weight[i] * u / sigma + (ln ? s.bias[i] : 0)) +
            (1 - s.g) * (s.c * s.taper_weight[i] * std::clamp(rho * u, -s.bound, s.bound) + (ln ? s.taper_bias[i] : 0));
    }
    return y;
}

}  // namespace

TEST_CASE("gate schedule") {
    CHECK(gate_schedule(1, 10, 20) == 1);
    CHECK(gate_schedule(10, 10, 20) == 1);
    CHECK(gate_schedule(15, 10, 20) == doctest::Approx(0.5).epsilon(1e-15));
    CHECK(gate_schedule(12, 10, 20) == doctest::Approx((1 + std::cos(0.2 * M_PI)) / 2).epsilon(1e-15));
    CHECK(gate_schedule(19, 10, 20) > 0);
    CHECK(gate_schedule(20, 10, 20) == 0);
    CHECK(gate_schedule(1000, 10, 20) == 0);
    CHECK(phase_of(1) == Phase::norm);
    CHECK(phase_of(0.5) == Phase::blend);
    CHECK(phase_of(0) == Phase::scale);
}

TEST_CASE("calibration: the bias-corrected averages and the least-squares scale") {
    Calibration c;
    c.decay = 0.5;
    c.sites.resize(1);
    // Two updates of 10 tokens: weights after correction are 1/3 and 2/3.
    c.observe({SiteSums{40, 20, 30}}, 3, 10);
    CHECK(c.taper_scale(0) == doctest::Approx(2.0));
    CHECK(c.target_scale() == doctest::Approx(3.0));
    c.observe({SiteSums{10, 50, 30}}, 6, 10);
    CHECK(c.taper_scale(0) == doctest::Approx((4.0 / 3 + 2.0 / 3) / (2.0 / 3 + 10.0 / 3)));
    CHECK(c.target_scale() == doctest::Approx(5.0));
}

TEST_CASE("calibration by channel: the sums, and a fit that no other line is nearer than") {
    Cpu dev(2);
    const size_t N = 60, T = 12, C = 5;
    std::vector<double> x = normals(N * C, 1);
    for (size_t i = 0; i < N * C; i++) x[i] = (1 + double(i % C)) * x[i] + 2 * double(i % C);  // channels of their own
    for (size_t row = 0; row < N; row += T) x[row * C] += 1e6;  // left out: else it would be all that counts
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
        CAPTURE(int(kind));
        const bool ln = kind == NormKind::layernorm;
        const TestSite site(C);
        std::vector<double> y(N * C), mean(N), rscale(N), sums(4 * C, 0);
        site_forward<double>(dev, y.data(), mean.data(), rscale.data(), nullptr, x.data(),
                             site.args({kind, Phase::norm, 1}), N, C);
        channel_sums<double>(dev, sums.data(), x.data(), ln ? mean.data() : nullptr, rscale.data(), N, T, C);
        for (double& s : sums) s /= double(channel_rows(N, T));
        // sum over the rows of (u / s - a u - o)^2 in channel i.
        auto error = [&](size_t i, double a, double o) {
            double sum = 0;
            for (size_t row = 0; row < N; row++) {
                const double u = x[row * C + i] - (ln ? mean[row] : 0);
                if (row % T) sum += std::pow(u * rscale[row] - a * u - o, 2);
            }
            return sum;
        };
        const ChannelFit fit = fit_channel(sums, kind);
        for (size_t i = 0; i < C; i++) {
            CAPTURE(i);
            if (!ln) CHECK(fit.o[i] == 0);
            const double a = fit.a[i], o = fit.o[i], least = error(i, a, o);
            for (const double step : {1e-3, -1e-3}) {
                CHECK(error(i, a + step, o) > least);
                if (ln) CHECK(error(i, a, o + step) > least);
            }
        }
    }
    // A channel whose n is constant keeps a slope, and one without variance that of all channels: (3 + 4.84) / (10 + 2.25) = 0.64.
    const ChannelFit flat = fit_channel({3, 1.5, 10, 2.25, 3, 4.84, 1, 0}, NormKind::layernorm);
    CHECK(flat.a[0] == doctest::Approx(0.01));  // a covariance of 0 and a variance of 1
    CHECK(flat.a[1] == doctest::Approx(0.64));  // a variance of 0
    CHECK(flat.o[0] == doctest::Approx(1 - 0.01 * 3));
    // T = 1: all rows are first ones, and all count.
    std::vector<double> sums(4, 0), one(2, 1);
    const double rows[] = {3, 5};
    channel_sums<double>(dev, sums.data(), rows, nullptr, one.data(), 2, 1, 1);
    CHECK(sums == std::vector<double>{8, 34, 34, 8});
}

TEST_CASE("sites: the definition, every phase and kind") {
    Cpu dev(2);
    for (size_t C : {1, 7, 33, 128})
        for (const Case& test : kCases) {
            const TestSite site(C);
            const size_t N = 37;
            const std::vector<double> x = normals(N * C, 5, 2);
            std::vector<double> y(N * C, kNaN), mean(N, kNaN), rscale(N, kNaN);
            const Site<double> args = site.args(test);
            site_forward<double>(dev, y.data(), mean.data(), rscale.data(), nullptr, x.data(), args, N, C);
            double worst = 0;
            for (size_t row = 0; row < N; row++) {
                const auto expected = site_ref(args, &x[row * C], C, row % kT == 0 ? test.first : 1);
                for (size_t i = 0; i < C; i++)
                    if (!(std::abs(y[row * C + i] - expected[i]) <= worst))
                        worst = std::abs(y[row * C + i] - expected[i]);
            }
            // |h| <= 10, 1 / sigma <= 1 / sqrt(eps) = 316 in the worst row, a few roundings each
            CHECK(worst <= 1e-11);
            // At g = 0 the statistic is not computed at all: its memory stays untouched.
            CHECK(std::isnan(rscale[0]) == (test.phase == Phase::scale));
        }
}

TEST_CASE("sites: at g = 0 a site is linear, exactly") {
    Cpu dev(1);
    const size_t N = 5, C = 48;
    const TestSite site(C);
    std::vector<double> x = normals(N * C, 6), doubled = x, y(N * C), y2(N * C);
    for (double& v : doubled) v *= 2;
    const Site<double> args = site.args({NormKind::rmsnorm, Phase::scale, 0});
    apply_site(dev, y.data(), x.data(), args, N, C);
    apply_site(dev, y2.data(), doubled.data(), args, N, C);
    for (size_t i = 0; i < N * C; i++) CHECK(y2[i] == 2 * y[i]);
}

TEST_CASE("sites: gradients of every phase and kind") {
    Cpu dev(3);
    for (size_t C : {7, 33})
        for (const Case& test : kCases) {
            TestSite site(C);
            const size_t N = 19;
            std::vector<double> x = normals(N * C, 7), dy = normals(N * C, 8), y(N * C), mean(N, kNaN), rscale(N, kNaN);
            const std::vector<double> around = normals(N * C, 9);  // the gradient that flows around the site
            const Site<double> args = site.args(test);
            auto loss = [&] {
                site_forward<double>(dev, y.data(), mean.data(), rscale.data(), nullptr, x.data(), args, N, C);
                return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
            };
            loss();
            std::vector<double> dx(N * C, kNaN), added = around;
            std::vector<double> dw(C, kNaN), db(C, kNaN), dtw(C, kNaN), dtb(C, kNaN), sums(C, kNaN);
            const bool biased = test.kind == NormKind::layernorm;
            SiteGrads<double> grads{dw.data(),   biased ? db.data() : nullptr,
                                    dtw.data(),  biased ? dtb.data() : nullptr,
                                    sums.data(), false};
            site_backward(dev, dx.data(), grads, dy.data(), x.data(), mean.data(), rscale.data(), args, N, C, false);
            check_gradient("x", x.data(), dx.data(), N * C, loss, 40);
            check_gradient("weight", site.weight.data(), dw.data(), C, loss);
            check_gradient("taper_weight", site.taper_weight.data(), dtw.data(), C, loss);
            if (biased) check_gradient("bias", site.bias.data(), db.data(), C, loss);
            if (biased) check_gradient("taper_bias", site.taper_bias.data(), dtb.data(), C, loss);
            // The branch that is not evaluated gets exactly nothing, and dx is added where asked.
            const auto& idle = test.phase == Phase::norm ? dtw : dw;
            if (test.phase != Phase::blend)
                for (double d : idle) CHECK(d == 0);
            auto check_sums = [&](const std::vector<double>& finished, double factor) {
                for (size_t i = 0; i < C; i++) {
                    double sum = 0, size = 0;
                    for (size_t row = 0; row < N; row++)
                        sum += finished[row * C + i], size += std::fabs(finished[row * C + i]);
                    CHECK(std::fabs(sums[i] - factor * sum) <= 1e-14 * double(N) * size);
                }
            };
            check_sums(dx, 1);
            site_backward(dev, added.data(), grads, dy.data(), x.data(), mean.data(), rscale.data(), args, N, C, true);
            for (size_t i = 0; i < N * C; i++) CHECK(added[i] == doctest::Approx(around[i] + dx[i]).epsilon(1e-12));
            check_sums(added, 1);
            // Added up, all are what they are twice. (dx is not asked for around the site: it is the same again.)
            const std::vector<double> once_w = dw, once_tw = dtw, once_sums = sums;
            grads.accumulate = true, added = around;
            site_backward(dev, added.data(), grads, dy.data(), x.data(), mean.data(), rscale.data(), args, N, C, true);
            for (size_t i = 0; i < C; i++) {
                CHECK(dw[i] == 2 * once_w[i]);
                CHECK(dtw[i] == 2 * once_tw[i]);
            }
            check_sums(added, 2);
        }
}

TEST_CASE("sites: what is left of a folded one clamps the row as it is, and a NaN stays one") {
    Cpu dev(1);
    const std::vector<double> x = {5, -5, 0.5, -1.5, 2, kNaN, kInfinity}, expected = {1.5, -1.5, 0.5, -1.5, 1.5};
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
        std::vector<double> y(x.size());
        Site<double> site{kind, Phase::clamp, 1e-5, 0, 2, nullptr, nullptr, nullptr, nullptr};
        site.bound = 1.5;
        apply_site(dev, y.data(), x.data(), site, 1, x.size());
        CHECK(std::vector<double>(y.begin(), y.begin() + 5) == expected);
        CHECK(std::isnan(y[5]));
        CHECK(y[6] == 1.5);
    }
}

TEST_CASE("sites: rows of first positions, by their positions or by the length of the sequences") {
    Cpu dev(2);
    const size_t N = 700, C = 3;  // several chunks of rows
    const std::vector<double> x(N * C, 8);
    std::vector<int> positions(N, 5);
    for (const size_t row : {0, 1, 250, 699}) positions[row] = 0;
    for (const int by_length : {0, 1}) {
        std::vector<double> y(N * C, kNaN);
        Site<double> site{NormKind::rmsnorm, Phase::clamp, 1e-5, 0, 2, nullptr, nullptr, nullptr, nullptr};
        site.bound = 10, site.first = 0.5;
        if (by_length)
            site.T = 7;
        else
            site.positions = positions.data();
        apply_site(dev, y.data(), x.data(), site, N, C);
        for (size_t row = 0; row < N; row++)
            CHECK(y[row * C + 2] == ((by_length ? row % 7 : size_t(positions[row])) == 0 ? 4 : 8));
    }
}

TEST_CASE("sites: the sum of 1 / s over first positions") {
    Cpu dev(2);
    const std::vector<double> rscale = {1, 2, 4, 8, 16, 32};
    double sum = 100;
    sum_first(dev, &sum, rscale.data(), 6, 3);
    CHECK(sum == 109);
    sum_first(dev, &sum, rscale.data(), 6, 1);
    CHECK(sum == 172);
}

TEST_CASE("sites: calibration sums") {
    Cpu dev(2);
    const size_t N = 41, C = 9;
    const TestSite site(C);
    const std::vector<double> x = normals(N * C, 10);
    std::vector<double> y(N * C);
    for (NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
        SiteSums sums{1, 2, 3}, expected = sums;  // +=
        const Site<double> args = site.args({kind, Phase::norm, 1});
        site_forward<double>(dev, y.data(), nullptr, nullptr, &sums, x.data(), args, N, C);
        double residual = 0;  // the least-squares fit's; must not fall when c moves
        for (size_t row = 0; row < N; row++) {
            double mean = 0, square = 0, gu = 0;
            for (size_t i = 0; i < C; i++) mean += kind == NormKind::layernorm ? x[row * C + i] / double(C) : 0;
            for (size_t i = 0; i < C; i++) square += std::pow(x[row * C + i] - mean, 2) / double(C);
            for (size_t i = 0; i < C; i++) gu += std::pow(site.weight[i] * (x[row * C + i] - mean), 2);
            const double s = std::sqrt(square + 1e-5);
            expected.num += gu / s, expected.den += gu, expected.scale += s;
            residual += gu / s / s;
        }
        CHECK(sums.num == doctest::Approx(expected.num).epsilon(1e-12));
        CHECK(sums.den == doctest::Approx(expected.den).epsilon(1e-12));
        CHECK(sums.scale == doctest::Approx(expected.scale).epsilon(1e-12));
        const double num = sums.num - 1, den = sums.den - 2, c = num / den;
        auto error = [&](double k) { return residual - 2 * k * num + k * k * den; };  // sum |gamma u (1/s - k)|^2
        CHECK(error(c) < error(1.01 * c));
        CHECK(error(c) < error(0.99 * c));
    }
}

TEST_CASE("sites: the same bits for any number of threads, and at g = 1 with and without calibration") {
    const size_t N = 333, C = 40;
    const TestSite wide(C);
    auto narrow = [](const std::vector<double>& v) { return std::vector<float>(v.begin(), v.end()); };
    const auto w = narrow(wide.weight), b = narrow(wide.bias), x = narrow(normals(N * C, 11)),
               dy = narrow(normals(N * C, 12));
    auto run = [&](int threads, bool calibrate) {
        Cpu dev(threads);
        const Site<float> args{NormKind::layernorm, Phase::norm, 1e-5f, 1, 1, w.data(), b.data(), nullptr, nullptr};
        std::vector<float> y(N * C), mean(N), rscale(N), dx(N * C), dw(C, 0), db(C, 0);
        SiteSums sums;
        site_forward(dev, y.data(), mean.data(), rscale.data(), calibrate ? &sums : nullptr, x.data(), args, N, C);
        site_backward<float>(dev, dx.data(), {dw.data(), db.data(), nullptr, nullptr}, dy.data(), x.data(), mean.data(),
                             rscale.data(), args, N, C, false);
        y.insert(y.end(), dx.begin(), dx.end());
        y.insert(y.end(), dw.begin(), dw.end());
        y.insert(y.end(), db.begin(), db.end());
        return y;
    };
    const auto one = run(1, true);
    CHECK(run(1, false) == one);
    for (int threads : {2, 3, 5}) CHECK(run(threads, true) == one);
}

TEST_CASE("scale loss: value and gradient") {
    Cpu dev(2);
    const size_t N = 23, C = 11;
    const double eps = 1e-5, target = 0.8, lambda = 0.3;
    for (NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
        std::vector<double> x = normals(N * C, 13);
        auto loss = [&] {
            StreamScale s;
            stream_scale(dev, &s, x.data(), kind, eps, target, N, C);
            return lambda * s.squares / double(N);
        };
        std::vector<double> dx(N * C, 0.0);
        scale_loss_backward(dev, dx.data(), x.data(), kind, eps, target, lambda, double(N), N, C);
        check_gradient("x", x.data(), dx.data(), N * C, loss, 60);
    }
    // One row (3, -3): r = 3, sigma = 3 up to eps.
    const std::vector<double> row = {3, -3};
    StreamScale s;
    stream_scale(dev, &s, row.data(), NormKind::layernorm, 0, 1, 1, 2);
    CHECK(s.sum == 3.0);
    CHECK(s.squares == 4.0);
}

// One token through the final site and a head: dL/dh and the logits, for any weights.
namespace {
struct Readout {
    std::vector<double> h, dh, logits, probabilities;
};

Readout read_out(NormKind kind, Phase phase, double eps, uint64_t stream, int target, double boost) {
    Cpu dev(1);
    const size_t C = 24, V = 13;
    const TestSite site(C);
    const std::vector<double> head = normals(V * C, 20 + stream);
    Readout r{normals(C, 40 + stream, 1.5), std::vector<double>(C), std::vector<double>(V), {}};
    for (size_t i = 0; i < C; i++) r.h[i] += boost * head[size_t(target) * C + i];
    Site<double> args = site.args({kind, phase, phase == Phase::norm ? 1.0 : 0.0}, eps);
    args.bias = args.taper_bias = nullptr;
    std::vector<double> zero(C, 0.0), ones(C, 1.0);
    if (kind == NormKind::layernorm) args.bias = args.taper_bias = zero.data();
    if (boost > 0) args.taper_weight = ones.data();
    std::vector<double> y(C), mean(1), rscale(1), dy(C), dhead(V * C), unused(C), losses(1);
    site_forward<double>(dev, y.data(), mean.data(), rscale.data(), nullptr, r.h.data(), args, 1, C);
    head_forward<double>(dev, r.logits.data(), y.data(), head.data(), nullptr, 1, C, V);
    std::vector<double> d = r.logits;
    double loss = 0;
    cross_entropy(dev, &loss, losses.data(), d.data(), &target, 1.0, 1, V, true);
    r.probabilities = d;
    r.probabilities[size_t(target)] += 1;
    head_backward(dev, dy.data(), dhead.data(), d.data(), y.data(), head.data(), 1, C, V, false);
    site_backward<double>(dev, r.dh.data(), {unused.data(), unused.data(), unused.data(), unused.data()}, dy.data(),
                          r.h.data(), mean.data(), rscale.data(), args, 1, C, false);
    return r;
}
}  // namespace

TEST_CASE("fact 1: under a final norm, no loss can be lowered by scaling the stream") {
    for (NormKind kind : {NormKind::layernorm, NormKind::rmsnorm})
        for (uint64_t stream = 0; stream < 5; stream++) {
            const Readout r = read_out(kind, Phase::norm, 0, stream, 3, 0);
            double inner = 0, norms = 0;
            for (size_t i = 0; i < r.h.size(); i++) inner += r.dh[i] * r.h[i], norms += std::abs(r.dh[i] * r.h[i]);
            CHECK(norms > 1e-3);
            CHECK(std::abs(inner) <= 1e-13 * norms);
        }
}

TEST_CASE("fact 2: without it, a step on a token with margin m always grows the stream") {
    for (uint64_t stream = 0; stream < 20; stream++) {
        const int target = 5;
        double margin = -1, boost = 0, inner = 0;
        Readout r;
        while (!(margin > 0)) {  // push the stream towards the target's row until it just wins
            r = read_out(NormKind::rmsnorm, Phase::scale, 1e-6, stream, target, boost += 0.05);
            double best = -1e30;
            for (size_t j = 0; j < r.logits.size(); j++)
                if (int(j) != target) best = std::max(best, r.logits[j]);
            margin = r.logits[size_t(target)] - best;
        }
        const double p = r.probabilities[size_t(target)];
        REQUIRE(p < 0.99);
        for (size_t i = 0; i < r.h.size(); i++) inner += r.dh[i] * r.h[i];
        CHECK(inner <= -(1 - p) * margin * (1 - 1e-9));
        CHECK(inner < 0);
    }
}

}  // namespace tapernorm
