// Every CUDA op against the CPU's op in double: friendly and odd sizes, poisoned outputs, bf16 and fp32. Built twice:
// against the stand-in of tests/emu for machines without a GPU, and with nvcc for those with one.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <sstream>

#include "ops/channel_sums.cuh"
#include "ops/cross_entropy.cuh"
#include "ops/embedding.cuh"
#include "ops/gelu.cuh"
#include "ops/linear.cuh"
#include "ops/muon.cuh"
#include "tapernorm.cuh"
#include "tests/cuda/cuda_test.h"
#ifdef CUDA_EMU
#include "tests/emu/emu.h"
#endif

namespace tapernorm {

namespace {

constexpr double kEps = 0x1p-24;  // half a unit in the last place of fp32

// An output that is not written stays NaN.
template <class T>
struct Output : DeviceArray<T> {
    Output(Cuda& dev, size_t n) : DeviceArray<T>(dev, std::vector<T>(n, T(std::numeric_limits<float>::quiet_NaN()))) {}
};

std::vector<double> poison(size_t n) { return std::vector<double>(n, std::nan("")); }

template <class T>
std::vector<double> doubles(const DeviceArray<T>& array) {
    const std::vector<T> values = array.values();
    std::vector<double> result(values.size());
    for (size_t i = 0; i < values.size(); i++) result[i] = double(values[i]);
    return result;
}

// |got - expected| <= relative |expected| + steps roundings of fp32 at the size of the largest |expected| + more.
void check_close(const char* what, const std::vector<double>& got, const std::vector<double>& expected, double relative,
                 double steps, const std::vector<double>& more = {}) {
    REQUIRE(got.size() == expected.size());
    double largest = 0;
    for (double e : expected) largest = std::max(largest, std::abs(e));
    for (size_t i = 0; i < got.size(); i++) {
        double tolerance = relative * std::abs(expected[i]) + steps * kEps * largest;
        if (!more.empty()) tolerance += more[i];
        if (std::abs(got[i] - expected[i]) <= tolerance) continue;
        INFO(std::string(what), " [", i, "]: ", got[i], " against ", expected[i], ", error ",
             100 * std::abs(got[i] - expected[i]) / tolerance, "% of the tolerance");
        FAIL("too far from the CPU's result");
    }
    CHECK(!got.empty());
}

// Longest chain of additions in a warp's sum over C.
double chain(size_t C) { return double(C) / 32 + 16; }

constexpr double kInfinity = std::numeric_limits<double>::infinity();
struct SiteCase {
    NormKind kind;
    Phase phase;
    double g;
    double kappa = kInfinity;
    double first = 1;  // rho of every third row
};
// (A kappa of 0.8 acts on about six tenths of the coordinates: c is 0.75, the rows' deviation 2.)
const SiteCase kSites[] = {
    {NormKind::layernorm, Phase::norm, 1},
    {NormKind::layernorm, Phase::blend, 0.37},
    {NormKind::layernorm, Phase::scale, 0},
    {NormKind::layernorm, Phase::unweighted, 1},
    {NormKind::rmsnorm, Phase::norm, 1},
    {NormKind::rmsnorm, Phase::blend, 0.37},
    {NormKind::rmsnorm, Phase::scale, 0},
    {NormKind::rmsnorm, Phase::unweighted, 1},
    {NormKind::layernorm, Phase::blend, 0.37, 0.8},
    {NormKind::layernorm, Phase::scale, 0, 0.8},
    {NormKind::layernorm, Phase::clamp, 0, 0.8},
    {NormKind::rmsnorm, Phase::blend, 0.37, 0.8},
    {NormKind::rmsnorm, Phase::scale, 0, 0.8},
    {NormKind::rmsnorm, Phase::clamp, 0, 0.8},
    {NormKind::layernorm, Phase::blend, 0.37, 0.8, 0.25},
    {NormKind::layernorm, Phase::scale, 0, 0.8, 0.25},
    {NormKind::layernorm, Phase::clamp, 0, 0.8, 0.25},
    {NormKind::rmsnorm, Phase::scale, 0, 0.8, 1.75},
};
bool trained(Phase phase) { return phase != Phase::unweighted && phase != Phase::clamp; }

// A site's vectors, for both devices.
template <class Real>
struct SiteInput {
    Input<Real> weight, bias, taper_weight, taper_bias;

    SiteInput(Cuda& dev, size_t C)
        : weight(dev, C, 1), bias(dev, C, 2), taper_weight(dev, C, 3), taper_bias(dev, C, 4) {}

    Site<Real> on_gpu(const SiteCase& c) const {
        const bool biased = c.kind == NormKind::layernorm;
        return {c.kind,
                c.phase,
                1e-5f,
                float(c.g),
                0.75f,
                weight.data(),
                biased ? bias.data() : nullptr,
                taper_weight.data(),
                biased ? taper_bias.data() : nullptr,
                float(c.kappa / 0.75),
                float(c.first),
                nullptr,
                3};
    }
    Site<double> on_cpu(const SiteCase& c) const {
        const bool biased = c.kind == NormKind::layernorm;
        return {c.kind,
                c.phase,
                double(1e-5f),
                double(float(c.g)),
                0.75,
                weight.exact.data(),
                biased ? bias.exact.data() : nullptr,
                taper_weight.exact.data(),
                biased ? taper_bias.exact.data() : nullptr,
                double(float(c.kappa / 0.75)),
                c.first,
                nullptr,
                3};
    }
};

template <class Real>
void check_site_forward(Cuda& dev, const SiteCase& test, size_t N, size_t C, size_t offset = 0) {
    Cpu cpu(1);
    const SiteInput<Real> site(dev, C);
    const Input<Real> x(dev, N * C + offset, 5, 2);
    const Output<Real> y(dev, N * C);
    const Output<float> mean(dev, N), rscale(dev, N);
    const DeviceArray<double> sums(dev, std::vector<double>{1, 2, 3});
    auto y_ref = poison(N * C), mean_ref = poison(N), rscale_ref = poison(N);
    SiteSums sums_ref{1, 2, 3};
    site_forward(dev, y.data(), mean.data(), rscale.data(), reinterpret_cast<SiteSums*>(sums.data()), x.data() + offset,
                 site.on_gpu(test), N, C);
    site_forward(cpu, y_ref.data(), mean_ref.data(), rscale_ref.data(), &sums_ref, x.exact.data() + offset,
                 site.on_cpu(test), N, C);
    // A row's statistics carry a chain of C additions, and y a few operations on them.
    check_close("y", doubles(y), y_ref, kStore<Real>, 8 * chain(C));
    const auto mean_got = doubles(mean), rscale_got = doubles(rscale);
    if (test.phase == Phase::clamp)
        CHECK(std::isnan(mean_got[0]));
    else if (test.kind == NormKind::layernorm)
        check_close("mean", mean_got, mean_ref, 0, 8 * chain(C));
    if (test.phase == Phase::scale || test.phase == Phase::clamp)  // the statistic is not computed at all
        CHECK(std::isnan(rscale_got[0]));
    else
        check_close("rscale", rscale_got, rscale_ref, 0, 8 * chain(C));
    const auto got = sums.values();
    check_close("calibration sums", got, {sums_ref.num, sums_ref.den, sums_ref.scale}, 8 * chain(C) * kEps, 0);
}

template <class Real>
void check_site_backward(Cuda& dev, const SiteCase& test, size_t N, size_t C, bool accumulate, size_t offset = 0) {
    Cpu cpu(1);
    const SiteInput<Real> site(dev, C);
    const Input<Real> x(dev, N * C + offset, 5, 2), dy(dev, N * C, 6), around(dev, N * C, 7);
    const Output<Real> y(dev, N * C);
    const Output<float> mean(dev, N), rscale(dev, N);
    const DeviceArray<Real> dx(dev, accumulate ? around.device.values() : Output<Real>(dev, N * C).values());
    const bool biased = test.kind == NormKind::layernorm;
    const std::vector<Real> before =
        accumulate ? std::vector<Real>(C, Real(1.0f)) : Output<Real>(dev, C).values();  // of the vectors' gradients
    const DeviceArray<Real> dw(dev, before), db(dev, before), dtw(dev, before), dtb(dev, before), sums(dev, before);
    site_forward<Real>(dev, y.data(), mean.data(), rscale.data(), nullptr, x.data() + offset, site.on_gpu(test), N, C);
    site_backward<Real>(dev, dx.data(),
                        {dw.data(), biased ? db.data() : nullptr, dtw.data(), biased ? dtb.data() : nullptr,
                         sums.data(), accumulate},
                        dy.data(), x.data() + offset, mean.data(), rscale.data(), site.on_gpu(test), N, C, accumulate);
    auto y_ref = poison(N * C), mean_ref = poison(N), rscale_ref = poison(N), dx_ref = around.exact;
    std::vector<double> dw_ref(C, 1), db_ref(C, 1), dtw_ref(C, 1), dtb_ref(C, 1), sums_ref(C, 1);
    site_forward<double>(cpu, y_ref.data(), mean_ref.data(), rscale_ref.data(), nullptr, x.exact.data() + offset,
                         site.on_cpu(test), N, C);
    site_backward<double>(cpu, dx_ref.data(),
                          {dw_ref.data(), biased ? db_ref.data() : nullptr, dtw_ref.data(),
                           biased ? dtb_ref.data() : nullptr, sums_ref.data(), accumulate},
                          dy.exact.data(), x.exact.data() + offset, mean_ref.data(), rscale_ref.data(),
                          site.on_cpu(test), N, C, accumulate);
    check_close("dx", doubles(dx), dx_ref, kStore<Real>, 16 * chain(C));
    check_close("dweight", doubles(dw), dw_ref, kStore<Real>, 16 * (chain(C) + double(N)));
    check_close("dtaper_weight", doubles(dtw), dtw_ref, kStore<Real>, 16 * (chain(C) + double(N)));
    check_close("column sums of dx", doubles(sums), sums_ref, kStore<Real>, 16 * (chain(C) + double(N)));
    if (!biased) return;
    check_close("dbias", doubles(db), db_ref, kStore<Real>, 16 * double(N));
    check_close("dtaper_bias", doubles(dtb), dtb_ref, kStore<Real>, 16 * double(N));
}

template <class Real>
void check_scale_loss(Cuda& dev, NormKind kind, size_t N, size_t C) {
    Cpu cpu(1);
    const Input<Real> x(dev, N * C, 8), dx0(dev, N * C, 9, 1e-3);
    const DeviceArray<double> out(dev, std::vector<double>{1, 2});
    const DeviceArray<Real> dx(dev, dx0.device.values());
    StreamScale out_ref{1, 2};
    auto dx_ref = dx0.exact;
    const double eps = double(1e-5f), target = 0.75;
    stream_scale(dev, reinterpret_cast<StreamScale*>(out.data()), x.data(), kind, eps, target, N, C);
    stream_scale(cpu, &out_ref, x.exact.data(), kind, eps, target, N, C);
    check_close("stream scale", out.values(), {out_ref.sum, out_ref.squares}, 0, 16 * chain(C));
    scale_loss_backward(dev, dx.data(), x.data(), kind, eps, target, 0.5, double(N), N, C);
    scale_loss_backward(cpu, dx_ref.data(), x.exact.data(), kind, eps, target, 0.5, double(N), N, C);
    check_close("dx", doubles(dx), dx_ref, kStore<Real>, 16 * chain(C));
}

template <class Real>
void check_channel_sums(Cuda& dev, size_t N, size_t T, size_t C, bool centered) {
    Cpu cpu(1);
    const Input<Real> x(dev, N * C, 8);
    std::vector<double> mean(N), rscale(N), sums_ref(4 * C, 0.5);
    for (size_t row = 0; row < N; row++)
        mean[row] = double(float(0.01 * double(row))), rscale[row] = 0.5 + double(row % 4);
    const DeviceArray<float> mean_there(dev, {mean.begin(), mean.end()}),
        rscale_there(dev, {rscale.begin(), rscale.end()});
    const DeviceArray<float> sums(dev, {sums_ref.begin(), sums_ref.end()});
    channel_sums<Real>(dev, sums.data(), x.data(), centered ? mean_there.data() : nullptr, rscale_there.data(), N, T,
                       C);
    channel_sums<double>(cpu, sums_ref.data(), x.exact.data(), centered ? mean.data() : nullptr, rscale.data(), N, T,
                         C);
    check_close("sums", doubles(sums), sums_ref, 0, 16 * double(N));
}

const size_t kChannels[] = {7, 33, 48, 128, 768};

template <class Real>
void check_gelu(Cuda& dev, size_t n, size_t offset) {
    Cpu cpu(1);
    const Input<Real> x(dev, n + offset, 10, 3), dout(dev, n + offset, 11);
    const Output<Real> y(dev, n + offset), din(dev, n + offset);
    auto y_ref = poison(n + offset), din_ref = poison(n + offset);
    gelu_forward(dev, y.data() + offset, x.data() + offset, n);
    gelu_backward(dev, din.data() + offset, dout.data() + offset, x.data() + offset, n);
    gelu_forward(cpu, y_ref.data() + offset, x.exact.data() + offset, n);
    gelu_backward(cpu, din_ref.data() + offset, dout.exact.data() + offset, x.exact.data() + offset, n);
    auto inside = [&](std::vector<double> v) {
        for (size_t i = 0; i < offset; i++) CHECK(std::isnan(v[i]));
        return std::vector<double>(v.begin() + ptrdiff_t(offset), v.end());
    };
    // __expf(t) is off by 2 + |1.2 t| units, |t| <= 1.6 * (12 + 0.045 * 12^3) for |x| <= 12, where it weighs x.
    check_close("gelu", inside(doubles(y)), inside(y_ref), kStore<Real>, 64);
    check_close("gelu gradient", inside(doubles(din)), inside(din_ref), kStore<Real>, 256);
}

struct MatmulCase {
    size_t M, C, OC;
};
// The first three have rows that are not 16-byte aligned in bf16, the first two nor in fp32.
const MatmulCase kMatmuls[] = {{5, 7, 33}, {19, 33, 7}, {9, 48, 20}, {1, 48, 128}, {37, 128, 48}, {17, 768, 64}};

template <class Real>
void check_matmul_forward(Cuda& dev, const MatmulCase& s) {
    Cpu cpu(1);
    const auto [M, C, OC] = s;
    const Input<Real> in(dev, M * C, 12), weight(dev, C * OC, 13), bias(dev, OC, 14), residual(dev, M * OC, 15);
    for (int extras = 0; extras < 4; extras++) {
        const bool with_bias = extras & 1, with_residual = extras & 2;
        const Output<Real> out(dev, M * OC);
        auto ref = poison(M * OC);
        matmul_forward<Real>(dev, out.data(), in.data(), weight.data(), with_bias ? bias.data() : nullptr,
                             with_residual ? residual.data() : nullptr, M, C, OC);
        matmul_forward<double>(cpu, ref.data(), in.exact.data(), weight.exact.data(),
                               with_bias ? bias.exact.data() : nullptr, with_residual ? residual.exact.data() : nullptr,
                               M, C, OC);
        // Where the bias is added behind the product, its sum is rounded before.
        check_close("out", doubles(out), ref, kStore<Real>, (2 * kStore<Real>) / kEps + 4 * double(C));
    }
    for (bool keep : {false, true}) {
        const Output<Real> out(dev, M * OC), pre(dev, M * OC);
        auto ref = poison(M * OC), pre_ref = poison(M * OC);
        matmul_gelu_forward<Real>(dev, out.data(), keep ? pre.data() : nullptr, in.data(), weight.data(), bias.data(),
                                  M, C, OC);
        matmul_gelu_forward<double>(cpu, ref.data(), pre_ref.data(), in.exact.data(), weight.exact.data(),
                                    bias.exact.data(), M, C, OC);
        const double steps = 2 * kStore<Real> / kEps + 4 * double(C) + 64;
        check_close("gelu", doubles(out), ref, kStore<Real>, steps);
        if (keep) check_close("pre", doubles(pre), pre_ref, kStore<Real>, steps);
    }
}

template <class Real>
void check_matmul_backward(Cuda& dev, const MatmulCase& s, bool through_gelu, bool accumulate) {
    Cpu cpu(1);
    const auto [M, C, OC] = s;
    const Input<Real> in(dev, M * C, 12), weight(dev, C * OC, 13), dout(dev, M * OC, 16), pre(dev, M * C, 17);
    const Input<Real> dw0(dev, C * OC, 18), db0(dev, C, 19);
    const Output<Real> din(dev, M * C);
    const DeviceArray<Real> dw(dev, accumulate ? dw0.device.values() : Output<Real>(dev, C * OC).values());
    const DeviceArray<Real> db(dev, accumulate ? db0.device.values() : Output<Real>(dev, C).values());
    auto din_ref = poison(M * C), dw_ref = dw0.exact, db_ref = db0.exact;
    matmul_backward<Real>(dev, din.data(), db.data(), dw.data(), dout.data(), in.data(), weight.data(),
                          through_gelu ? pre.data() : nullptr, M, C, OC, accumulate);
    matmul_backward<double>(cpu, din_ref.data(), db_ref.data(), dw_ref.data(), dout.exact.data(), in.exact.data(),
                            weight.exact.data(), through_gelu ? pre.exact.data() : nullptr, M, C, OC, accumulate);
    check_close("din", doubles(din), din_ref, 2 * kStore<Real>, 4 * double(OC) + 64);
    // An H100's cuBLASLt rounds the product before it adds it to what was there, and the sum again.
    std::vector<double> product_rounding(C * OC);
    for (size_t i = 0; accumulate && i < C * OC; i++)
        product_rounding[i] = kStore<Real> * std::abs(dw_ref[i] - dw0.exact[i]);
    check_close("dweight", doubles(dw), dw_ref, kStore<Real>, 4 * double(M) + 16, product_rounding);
    // Sums of what was rounded before: by as much as every term of a column.
    std::vector<double> rounding(C);
    for (size_t i = 0; i < M * C; i++) rounding[i % C] += 2 * kStore<Real> * std::abs(din_ref[i]);
    check_close("din_sums", doubles(db), db_ref, kStore<Real>, (4 * double(OC) + 64) * std::sqrt(double(M)), rounding);
}

template <class Real>
void check_head(Cuda& dev, size_t M, size_t C, size_t V, size_t ld) {
    Cpu cpu(1);
    const Input<Real> in(dev, M * C, 20), wte(dev, V * C, 21), bias(dev, V, 22), dlogits(dev, M * ld, 23);
    const Output<Real> logits(dev, M * ld), din(dev, M * C), dwte(dev, V * C);
    auto logits_ref = poison(M * ld), din_ref = poison(M * C), dwte_ref = poison(V * C);
    const bool biased = ld == V;
    head_forward<Real>(dev, logits.data(), in.data(), wte.data(), biased ? bias.data() : nullptr, M, C, V, ld);
    head_forward<double>(cpu, logits_ref.data(), in.exact.data(), wte.exact.data(),
                         biased ? bias.exact.data() : nullptr, M, C, V, ld);
    auto inside = [&](const std::vector<double>& all) {
        std::vector<double> rows;
        for (size_t i = 0; i < M; i++)
            rows.insert(rows.end(), all.begin() + ptrdiff_t(i * ld), all.begin() + ptrdiff_t(i * ld + V));
        return rows;
    };
    check_close("logits", inside(doubles(logits)), inside(logits_ref), kStore<Real>,
                2 * kStore<Real> / kEps + 4 * double(C));
    for (bool accumulate : {false, true}) {
        head_backward(dev, din.data(), dwte.data(), dlogits.data(), in.data(), wte.data(), M, C, V, accumulate, ld);
        head_backward(cpu, din_ref.data(), dwte_ref.data(), dlogits.exact.data(), in.exact.data(), wte.exact.data(), M,
                      C, V, accumulate, ld);
        check_close("din", doubles(din), din_ref, kStore<Real>, 4 * double(V));
        check_close("dwte", doubles(dwte), dwte_ref, (accumulate ? 2 : 1) * kStore<Real>, 4 * double(M));
    }
}

template <class Real>
void check_cross_entropy(Cuda& dev, size_t N, size_t V, size_t ld) {
    Cpu cpu(1);
    const Input<Real> logits(dev, N * ld, 24, 4);
    std::vector<int> targets(N);
    for (size_t i = 0; i < N; i++) targets[i] = int(random_bits(5, 1, i) % V);
    const DeviceArray<int> at(dev, targets);
    const Output<float> losses(dev, N);
    std::vector<double> losses_ref = poison(N);
    for (bool gradient : {false, true}) {
        const DeviceArray<double> sum(dev, std::vector<double>{3});
        double sum_ref = 3;
        auto z_ref = logits.exact;
        cross_entropy(dev, sum.data(), losses.data(), logits.data(), at.data(), 0.25, N, V, gradient, ld);
        cross_entropy(cpu, &sum_ref, losses_ref.data(), z_ref.data(), targets.data(), 0.25, N, V, gradient, ld);
        // Each exponential is off by 2 + |1.2 (z - top)| units, |z - top| < 40.
        check_close("losses", doubles(losses), losses_ref, 0, 100);
        check_close("sum", sum.values(), {sum_ref}, 100 * kEps, 0);
        check_close("logits", doubles(logits.device), z_ref, kStore<Real> + 100 * kEps, 100);
        if (gradient && ld > V) CHECK(doubles(logits.device)[ld - 1] == 0);
    }
}

template <class Real>
void check_distillation(Cuda& dev, size_t N, size_t V, size_t ld) {
    Cpu cpu(1);
    const Input<Real> teacher(dev, N * ld, 25, 4);
    std::vector<int> targets(N);
    for (size_t i = 0; i < N; i++) targets[i] = int(random_bits(5, 1, i) % V);
    const DeviceArray<int> at(dev, targets);
    for (double share : {0.3, 1.0}) {
        const Input<Real> logits(dev, N * ld, 24, 4);
        const Output<float> losses(dev, 2 * N);
        std::vector<double> losses_ref = poison(2 * N), z_ref = logits.exact, t_ref = teacher.exact, sums_ref = {3, 4};
        const DeviceArray<double> sums(dev, sums_ref);
        distillation(dev, sums.data(), losses.data(), logits.data(), teacher.data(), at.data(), 0.25, share, N, V, ld);
        distillation(cpu, sums_ref.data(), losses_ref.data(), z_ref.data(), t_ref.data(), targets.data(), 0.25, share,
                     N, V, ld);
        // As for the cross-entropy; a divergence is a mean of such differences.
        check_close("losses", doubles(losses), losses_ref, 0, 200);
        check_close("sums", sums.values(), sums_ref, 200 * kEps, 0);
        check_close("logits", doubles(logits.device), z_ref, kStore<Real> + 100 * kEps, 100);
        if (ld > V) CHECK(doubles(logits.device)[ld - 1] == 0);
    }
}

// The rows of tokens, on the device.
struct RowsOf {
    TokenRows rows;
    std::unique_ptr<DeviceArray<unsigned>> data;

    RowsOf(Cuda& dev, const std::vector<int>& tokens) {
        std::vector<unsigned> host(TokenRows::most(tokens.size())), counts;
        rows = sort_rows_by_token(host.data(), tokens.data(), tokens.size(), counts);
        data = std::make_unique<DeviceArray<unsigned>>(dev, host);
        rows.data = data->data();
    }
};

template <class Real>
void check_embedding(Cuda& dev, size_t B, size_t T, size_t C, size_t V) {
    Cpu cpu(1);
    const Input<Real> wte(dev, V * C, 25), wpe(dev, T * C, 26), dx(dev, B * T * C, 27), means(dev, V, 30);
    std::vector<int> tokens(B * T);
    for (size_t i = 0; i < tokens.size(); i++)
        tokens[i] = int(random_bits(6, 1, i) % (i % 3 ? V : 3));  // some are frequent
    const DeviceArray<int> at(dev, tokens);
    const RowsOf by_token(dev, tokens);
    const Output<Real> x(dev, B * T * C);
    auto x_ref = poison(B * T * C);
    embedding_forward(dev, x.data(), at.data(), wte.data(), wpe.data(), B, T, C);
    embedding_forward(cpu, x_ref.data(), tokens.data(), wte.exact.data(), wpe.exact.data(), B, T, C);
    check_close("x", doubles(x), x_ref, kStore<Real>, 1);
    std::vector<int> positions(B * T);
    for (size_t i = 0; i < positions.size(); i++) positions[i] = int(random_bits(7, 1, i) % T);
    const DeviceArray<int> positions_at(dev, positions);
    embedding_forward_at(dev, x.data(), at.data(), positions_at.data(), wte.data(), means.data(), wpe.data(), B * T, C);
    embedding_forward_at(cpu, x_ref.data(), tokens.data(), positions.data(), wte.exact.data(), means.exact.data(),
                         wpe.exact.data(), B * T, C);
    check_close("x at positions", doubles(x), x_ref, kStore<Real>, 2);
    const Input<Real> dwte0(dev, V * C, 28), dwpe0(dev, T * C, 29);
    for (const bool accumulate : {false, true}) {
        const DeviceArray<Real> dwte(dev, dwte0.device.values());
        const DeviceArray<Real> dwpe(dev, accumulate ? dwpe0.device.values() : Output<Real>(dev, T * C).values());
        auto dwte_ref = dwte0.exact, dwpe_ref = dwpe0.exact;
        embedding_backward(dev, dwte.data(), dwpe.data(), dx.data(), at.data(), by_token.rows, B, T, C, accumulate);
        embedding_backward(cpu, dwte_ref.data(), dwpe_ref.data(), dx.exact.data(), tokens.data(), {}, B, T, C,
                           accumulate);
        check_close("dwte", doubles(dwte), dwte_ref, kStore<Real>, double(B * T));
        check_close("dwpe", doubles(dwpe), dwpe_ref, kStore<Real>, double(B) + 1);
    }
}

template <class Real>
void check_adamw(Cuda& dev) {
    Cpu cpu(1);
    constexpr bool kRounded = !std::is_same_v<Real, float>;
    std::vector<size_t> sizes = {1, 7, 33, 8192, 20001, 48};
    for (size_t i = sizes.size(); i < AdamwTable<Real>::kMost + 9; i++)
        sizes.push_back(3 + i);  // more than one launch's
    struct Side {
        Input<float> w, m, v;
        Input<Real> grad;
        DeviceArray<Real> rounded;
        std::vector<double> w_ref, m_ref, v_ref;
        Side(Cuda& dev, size_t n, uint64_t s)
            : w(dev, n, s), m(dev, n, s + 1, 0.1), v(dev, n, s + 2, 0.1), grad(dev, n, s + 3), rounded(dev, n) {
            for (double& x : v.exact) x = double(float(x * x));
            device_copy_in(dev, v.data(), std::vector<float>(v.exact.begin(), v.exact.end()).data(), n * sizeof(float));
            w_ref = w.exact, m_ref = m.exact, v_ref = v.exact;
        }
    };
    std::vector<std::unique_ptr<Side>> sides;
    std::vector<AdamwTensor<Real>> on_gpu;
    std::vector<AdamwTensor<double>> on_cpu;
    for (size_t n : sizes) {
        Side& s = *sides.emplace_back(std::make_unique<Side>(dev, n, 30 + 4 * sides.size()));
        const float decay = n % 2 ? 0.0f : 0.125f;
        if constexpr (kRounded)
            on_gpu.push_back({s.rounded.data(), s.w.data(), s.m.data(), s.v.data(), s.grad.data(), n, decay});
        else
            on_gpu.push_back({s.w.data(), nullptr, s.m.data(), s.v.data(), s.grad.data(), n, decay});
        on_cpu.push_back(
            {s.w_ref.data(), nullptr, s.m_ref.data(), s.v_ref.data(), s.grad.exact.data(), n, double(decay)});
    }
    const AdamwArgs<float> args{0.01f, 0.875f, 0.9375f, 1e-8f, 0, 0.5f, 0.25f, 0.5f};
    const AdamwArgs<double> args_ref{double(0.01f), 0.875, 0.9375, double(1e-8f), 0, 0.5, 0.25, 0.5};
    for (int update = 0; update < 2; update++) {
        adamw_update(dev, on_gpu, args);
        adamw_update(cpu, on_cpu, args_ref);
    }
    for (const auto& s : sides) {
        check_close("w", doubles(s->w.device), s->w_ref, 0, 32);
        check_close("m", doubles(s->m.device), s->m_ref, 0, 32);
        check_close("v", doubles(s->v.device), s->v_ref, 0, 32);
        if (!kRounded) continue;
        const auto exact = s->w.device.values();
        const auto rounded = s->rounded.values();
        for (size_t i = 0; i < exact.size(); i++) REQUIRE(float(rounded[i]) == float(Real(exact[i])));
    }
}

template <class Real>
void check_sum_of_squares(Cuda& dev, size_t n) {
    Cpu cpu(1);
    const Input<Real> x(dev, n, 60);
    const double expected = sum_of_squares(cpu, x.exact.data(), n);
    CHECK(std::abs(sum_of_squares(dev, x.data(), n) - expected) <= 16 * kEps * expected);
}

// Outputs of all ops whose order of summation could depend on the order in which blocks and threads run.
template <class Real>
std::vector<double> all_sums() {
    Cuda dev;
    const size_t B = 3, T = 15, N = B * T, C = 33, V = 37;
    const Input<Real> x(dev, N * C, 70), dy(dev, N * C, 71), logits(dev, N * V, 72);
    const SiteInput<Real> site(dev, C);
    const Output<Real> y(dev, N * C), dx(dev, N * C);
    const Output<float> mean(dev, N), rscale(dev, N), losses(dev, N);
    const DeviceArray<Real> vectors(dev, std::vector<Real>(4 * C, Real(0.0f)));
    const DeviceArray<Real> tables(dev, std::vector<Real>((V + T) * C, Real(0.0f)));
    const DeviceArray<double> sums(dev, std::vector<double>(6, 0.0));
    std::vector<int> tokens(N);
    for (size_t i = 0; i < N; i++) tokens[i] = int(i * i % V);
    const DeviceArray<int> at(dev, tokens);
    const RowsOf by_token(dev, tokens);
    const SiteCase norm{NormKind::layernorm, Phase::norm, 1};
    Real* d = vectors.data();
    site_forward(dev, y.data(), mean.data(), rscale.data(), reinterpret_cast<SiteSums*>(sums.data()), x.data(),
                 site.on_gpu(norm), N, C);
    site_backward<Real>(dev, dx.data(), {d, d + C, d + 2 * C, d + 3 * C}, dy.data(), x.data(), mean.data(),
                        rscale.data(), site.on_gpu(norm), N, C, false);
    stream_scale(dev, reinterpret_cast<StreamScale*>(sums.data() + 3), x.data(), norm.kind, 1e-5, 1, N, C);
    cross_entropy(dev, sums.data() + 5, losses.data(), logits.data(), at.data(), 1, N, V, true);
    embedding_backward(dev, tables.data(), tables.data() + V * C, dy.data(), at.data(), by_token.rows, B, T, C, true);
    column_sums(dev, vectors.data() + 2 * C, dy.data(), N, C, true);
    std::vector<double> all = sums.values();
    all.push_back(sum_of_squares(dev, x.data(), N * C));
    for (const auto& part :
         {doubles(y), doubles(dx), doubles(vectors), doubles(tables), doubles(losses), doubles(logits.device)})
        all.insert(all.end(), part.begin(), part.end());
    return all;
}

}  // namespace

template <class Real>
static void check_all_sites() {
    Cuda dev;
    for (size_t C : kChannels)
        for (const SiteCase& test : kSites) {
            CAPTURE(C);
            CAPTURE(int(test.kind));
            CAPTURE(int(test.phase));
            check_site_forward<Real>(dev, test, 21, C);
            if (C == 48) check_site_forward<Real>(dev, test, 5, C, 1);  // not 16-byte aligned
            if (!trained(test.phase)) continue;
            check_site_backward<Real>(dev, test, 21, C, true);
            if (C == 48) check_site_backward<Real>(dev, test, 37, C, false);
            if (C == 48) check_site_backward<Real>(dev, test, 5, C, true, 1);
        }
    for (const SiteCase& blend :
         {SiteCase{NormKind::layernorm, Phase::blend, 0.37}, {NormKind::layernorm, Phase::blend, 0.37, 0.8}}) {
        check_site_backward<Real>(dev, blend, 3, 9000, true);  // several strips of columns
        check_site_backward<Real>(dev, blend, 300, 7, true);   // more partial sums than threads that add them
    }
    for (NormKind kind : {NormKind::layernorm, NormKind::rmsnorm})
        for (size_t C : {33, 128}) check_scale_loss<Real>(dev, kind, 19, C);
    for (const bool centered : {false, true})
        for (size_t C : kChannels)
            for (size_t T : {1, 6, 24}) check_channel_sums<Real>(dev, 24, T, C, centered);
}
CUDA_TEST("cuda sites: every phase and kind, forward and backward") { FOR_BOTH_TYPES(check_all_sites); }

template <class Real>
static void check_all_gelus() {
    Cuda dev;
    for (size_t n : {1, 7, 33, 4096, 5001}) check_gelu<Real>(dev, n, 0);
    check_gelu<Real>(dev, 64, 1);  // not 16-byte aligned
}
CUDA_TEST("cuda gelu") { FOR_BOTH_TYPES(check_all_gelus); }

template <class Real>
static void check_all_matmuls(bool tune = false) {
    Cuda dev;
    dev.plans.tune(tune);
    for (const MatmulCase& test : kMatmuls) {
        CAPTURE(test.M);
        CAPTURE(test.C);
        CAPTURE(test.OC);
        check_matmul_forward<Real>(dev, test);
        for (bool through_gelu : {false, true})
            for (bool accumulate : {false, true}) check_matmul_backward<Real>(dev, test, through_gelu, accumulate);
    }
    const size_t plans = dev.plans.size();
    CHECK(plans > 0);
    check_matmul_forward<Real>(dev, kMatmuls[4]);
    CHECK(dev.plans.size() == plans);  // known shapes are not asked for again
    check_head<Real>(dev, 5, 48, 37, 37);
    check_head<Real>(dev, 9, 33, 37, 40);
    check_head<Real>(dev, 12, 48, 128, 128);
    check_head<Real>(dev, 6, 128, 513, 520);
}
CUDA_TEST("cuda matmul: every epilogue, fused and apart") { FOR_BOTH_TYPES(check_all_matmuls); }
CUDA_TEST("cuda matmul: every epilogue, by algorithms chosen by time") {
    check_all_matmuls<bf16>(true);
    check_all_matmuls<float>(true);
}
#ifdef CUDA_EMU
// Numbers of the stand-in's algorithms in a list of choices, whose lines are ten numbers of a shape and eight words.
static std::set<size_t> algorithms_of(const MatmulPlans& plans) {
    std::set<size_t> found;
    std::istringstream text(plans.choices());
    for (std::string line; std::getline(text, line);) {
        std::istringstream in(line);
        size_t number = 0;
        for (int i = 0; i < 12; i++) in >> std::hex >> number;
        found.insert(number);
    }
    return found;
}
CUDA_TEST("cuda matmul: the fastest algorithm is chosen, which another process may adopt") {
    const MatmulCase wide{37, 128, 48}, narrow{37, 48, 128};
    std::string chosen;
    for (const int fastest : {4, 2, 0}) {  // others of the five refuse
        emu::settings().fastest = fastest;
        Cuda dev;
        dev.plans.tune(true);
        check_matmul_forward<bf16>(dev, wide);
        check_matmul_backward<bf16>(dev, wide, true, false);
        CHECK(algorithms_of(dev.plans) == std::set<size_t>{size_t(fastest)});
        if (fastest == 4) chosen = dev.plans.choices();
    }
    Cuda dev;
    dev.plans.tune(true);
    dev.plans.adopt(chosen);
    check_matmul_forward<bf16>(dev, wide);
    check_matmul_backward<bf16>(dev, wide, true, false);
    CHECK(dev.plans.choices() == chosen);
    check_matmul_forward<bf16>(dev, narrow);
    CHECK(algorithms_of(dev.plans) == std::set<size_t>{0, 4});  // of shapes that are not in the list
    dev.plans.adopt("damaged");
    // A product that adds to its result comes out the same only once: it is not tried, and not spoilt.
    emu::settings().fastest = 4;
    Cuda other;
    other.plans.tune(true);
    check_matmul_backward<bf16>(other, wide, false, true);
    CHECK(algorithms_of(other.plans).contains(0));
    check_matmul_backward<bf16>(other, wide, false, false);
    CHECK(algorithms_of(other.plans) == std::set<size_t>{4});
    emu::settings().fastest = -1;
}
// What a GPU's cuBLASLt does not have, it may say when asked, or when called.
CUDA_TEST("cuda matmul: epilogues that the library refuses run behind the product") {
    for (bool emu::Settings::* refusal : {&emu::Settings::no_epilogues, &emu::Settings::late_refusals}) {
        emu::settings().*refusal = true;
        check_all_matmuls<bf16>();
        check_all_matmuls<float>();
        {
            Cuda dev;
            check_matmul_backward<bf16>(dev, {37, 128, 48}, true, false);
            CHECK(dev.plans.refused() ==
                  std::vector<std::string>{"DGELU [37, 48] x [48, 128]", "DGELU_BGRAD [37, 48] x [48, 128]"});
        }
        emu::settings().*refusal = false;
    }
    Cuda dev;
    check_matmul_backward<bf16>(dev, {37, 128, 48}, true, false);
    CHECK(dev.plans.refused().empty());
}
#endif

namespace {
struct Logits {
    size_t N, V, ld;
};
}  // namespace
static const Logits kLogits[] = {{5, 1, 1}, {5, 37, 37}, {5, 513, 513}, {5, 5000, 5000}, {3, 37, 128}, {3, 513, 576}};

template <class Real>
static void check_all_cross_entropies() {
    Cuda dev;
    for (const Logits& l : kLogits) check_cross_entropy<Real>(dev, l.N, l.V, l.ld);
}
CUDA_TEST("cuda cross-entropy") { FOR_BOTH_TYPES(check_all_cross_entropies); }

template <class Real>
static void check_all_distillations() {
    Cuda dev;
    for (const Logits& l : kLogits) check_distillation<Real>(dev, l.N, l.V, l.ld);
}
CUDA_TEST("cuda distillation") { FOR_BOTH_TYPES(check_all_distillations); }

CUDA_TEST("cuda distillation: a teacher's 0 counts as nothing, an equal teacher has the divergence 0") {
    Cuda dev;
    const float least = -std::numeric_limits<float>::infinity();
    const DeviceArray<float> z(dev, std::vector<float>{1e4f, 0, 3e38f, 0}),
        t(dev, std::vector<float>{0, 1e4f, 3e38f, least});
    const Output<float> losses(dev, 4);
    const DeviceArray<double> sums(dev, std::vector<double>{0, 0});
    const DeviceArray<int> targets(dev, std::vector<int>{0, 0});
    distillation(dev, sums.data(), losses.data(), z.data(), t.data(), targets.data(), 1, 0.5, 2, 2);
    CHECK(losses.values() == std::vector<float>{0, 1e4f, 0, 0});
    check_close("gradient", doubles(z), {0.5, -0.5, 0, 0}, 0, 16);
}

CUDA_TEST("cuda cross-entropy: extreme logits") {
    Cuda dev;
    const DeviceArray<float> z(dev, std::vector<float>{3e38f, -3e38f, 0, 3e38f});
    const Output<float> losses(dev, 1);
    const DeviceArray<double> sum(dev, std::vector<double>{0});
    const DeviceArray<int> target(dev, std::vector<int>{0});
    cross_entropy(dev, sum.data(), losses.data(), z.data(), target.data(), 1, 1, 4, true);
    CHECK(std::abs(sum.values()[0] - std::log(2.0)) <= 1e-6);
    check_close("gradient", doubles(z), {-0.5, 0, 0, 0.5}, 0, 16);
    // A NaN anywhere is seen, alone in a thread and among others; -infinity is a probability of 0, also alone in a thread.
    for (const size_t V : {2, 3, 8, 37})
        for (const float odd : {std::nanf(""), -std::numeric_limits<float>::infinity()}) {
            CAPTURE(V);
            CAPTURE(odd);
            std::vector<float> row(V, odd);
            row[V - 1] = 1;
            const DeviceArray<float> there(dev, row);
            const DeviceArray<int> last(dev, std::vector<int>{int(V) - 1});
            cross_entropy(dev, sum.data(), losses.data(), there.data(), last.data(), 1, 1, V, false);
            CHECK((std::isnan(odd) ? std::isnan(losses.values()[0]) : losses.values()[0] == 0));
        }
}

template <class Real>
static void check_all_embeddings() {
    Cuda dev;
    for (size_t C : kChannels) check_embedding<Real>(dev, 2, 21, C, 37);
    check_embedding<Real>(dev, 5, 200, 16, 513);
    check_embedding<Real>(dev, 1, 1, 8, 50257);
}
CUDA_TEST("cuda embedding: rows and positions, gathered, more than one launch takes") {
    Cuda dev;
    const size_t N = 700, C = 300;
    std::vector<float> x(N * C);
    std::vector<int> positions(N);
    std::vector<unsigned> rows(N - 10);
    for (size_t i = 0; i < x.size(); i++) x[i] = float(i);
    for (size_t i = 0; i < N; i++) positions[i] = int(3 * i);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = unsigned(i * i % N);
    const DeviceArray<float> there(dev, x), out(dev, rows.size() * C);
    const DeviceArray<int> positions_there(dev, positions), got_positions(dev, rows.size());
    gather_rows(dev, out.data(), got_positions.data(), there.data(), positions_there.data(), rows, C);
    const std::vector<float> got = out.values();
    const std::vector<int> at = got_positions.values();
    for (size_t i = 0; i < rows.size(); i++) {
        REQUIRE(at[i] == positions[rows[i]]);
        for (size_t c : {size_t(0), size_t(255), size_t(256), C - 1}) REQUIRE(got[i * C + c] == x[rows[i] * C + c]);
    }
}

CUDA_TEST("cuda embedding") { FOR_BOTH_TYPES(check_all_embeddings); }

// Two updates. Real rounds X, G, its polynomial and their product in each of five steps, and the polynomial enlarges what was
// rounded before: 32 half units of the whole step are allowed.
template <class Real>
static void check_muon(Cuda& dev, size_t rows, size_t columns, size_t parts) {
    CAPTURE(rows);
    CAPTURE(columns);
    Cpu cpu(1);
    constexpr bool kRounded = !std::is_same_v<Real, float>;
    const size_t n = rows * columns * parts;
    const Input<float> w(dev, n, 70), m(dev, n, 71, 0.1);
    const Input<Real> grad(dev, n, 72);
    const DeviceArray<Real> rounded(dev, n), scratch(dev, muon_scratch(rows, columns));
    std::vector<double> w_ref = w.exact, m_ref = m.exact, scratch_ref(muon_scratch(rows, columns));
    MuonMatrices<Real> on_gpu{{rounded.data(), w.data(), m.data(), nullptr, grad.data(), n, 0.125f},
                              rows,
                              columns,
                              parts};
    if constexpr (!kRounded) on_gpu.tensor.w = w.data(), on_gpu.tensor.master = nullptr;
    for (int update = 0; update < 2; update++) {
        muon_update(dev, on_gpu, {0.25, 0.5}, scratch.data());
        muon_update(cpu,
                    {{w_ref.data(), nullptr, m_ref.data(), nullptr, grad.exact.data(), n, 0.125}, rows, columns, parts},
                    {0.25, 0.5}, scratch_ref.data());
    }
    check_close("m", doubles(m.device), m_ref, 0, 32);
    const std::vector<double> got = doubles(w.device);
    double distance = 0, way = 0;
    for (size_t i = 0; i < n; i++) {
        distance += (got[i] - w_ref[i]) * (got[i] - w_ref[i]), way += (w_ref[i] - w.exact[i]) * (w_ref[i] - w.exact[i]);
    }
    CHECK(std::sqrt(distance / way) <= 32 * (kRounded ? 0x1p-9 : 0x1p-24));
    if (!kRounded) return;
    const auto exact = w.device.values();
    const auto values = rounded.values();
    for (size_t i = 0; i < n; i++) REQUIRE(float(values[i]) == float(Real(exact[i])));
}

template <class Real>
static void check_optimizer() {
    Cuda dev;
    check_adamw<Real>(dev);
    check_muon<Real>(dev, 48, 48, 3), check_muon<Real>(dev, 40, 160, 1), check_muon<Real>(dev, 160, 40, 1);
    check_muon<Real>(dev, 5, 7, 1);
    for (size_t n : {1, 37, 4096, 100001}) check_sum_of_squares<Real>(dev, n);
}
CUDA_TEST("cuda adamw, muon and global norm") { FOR_BOTH_TYPES(check_optimizer); }

template <class Real>
static void check_repeatable() {
    const std::vector<double> once = all_sums<Real>();
    for (double x : once) REQUIRE(std::isfinite(x));
    CHECK(all_sums<Real>() == once);
#ifdef CUDA_EMU
    // In any order of threads.
    const emu::Settings before = emu::settings();
    for (const auto order : {emu::Order::backward, emu::Order::random}) {
        emu::settings().order = order;
        CHECK(all_sums<Real>() == once);
    }
    emu::settings() = before;
#endif
}
CUDA_TEST("cuda ops: the same bits every time") { FOR_BOTH_TYPES(check_repeatable); }

}  // namespace tapernorm
#endif  // TN_CUDA
