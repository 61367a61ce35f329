// Attention on CUDA against the CPU op in double precision, fed with the same rounded inputs. Bounds are
// worst cases of the roundings that the kernels make, element by element, from magnitudes computed here.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include <cstring>
#include <memory>

#include "ops/attention/choice.cuh"
#include "tests/cuda/cuda_test.h"
#include "tests/environment.h"

namespace tapernorm {

namespace {

struct Shape {
    size_t B, T, NH, hs;
    size_t C() const { return NH * hs; }
    size_t elements() const { return B * T * C(); }
    size_t rows() const { return B * NH * T; }
};

constexpr double eps = 0x1p-24;  // unit roundoff of fp32

template <class Real>
constexpr double unit = std::is_same_v<Real, bf16> ? 0x1p-8 : eps;

template <class T>
std::vector<double> to_double(const std::vector<T>& x) {
    std::vector<double> result(x.size());
    for (size_t i = 0; i < x.size(); i++) result[i] = double(float(x[i]));
    return result;
}

template <class T>
std::vector<T> rounded(const std::vector<double>& x) {
    std::vector<T> result(x.size());
    for (size_t i = 0; i < x.size(); i++) result[i] = T(float(x[i]));
    return result;
}

// How scores are distributed: normal q, k and v, with q times `sharpness`, and q + shift, k - shift in every
// channel, so that all scores are about -shift^2 sqrt(hs).
struct Scores {
    float sharpness = 1, shift = 0;
};

template <class Real>
std::vector<Real> random_qkv(const Shape& s, uint64_t seed, const Scores& scores = {}) {
    auto qkv = random_values<Real>(3 * s.elements(), seed);
    for (size_t i = 0; i < qkv.size(); i++) {
        const size_t which = i % (3 * s.C()) / s.C();
        if (which == 0) qkv[i] = Real(float(qkv[i]) * scores.sharpness + scores.shift);
        if (which == 1) qkv[i] = Real(float(qkv[i]) - scores.shift);
    }
    return qkv;
}

// Filled with NaN.
template <class T>
void poison(Cuda& dev, const DeviceArray<T>& x) {
    CUDA_CHECK(cudaMemsetAsync(x.data(), 0xff, x.size() * sizeof(T), dev.stream));
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// |got - expected| <= bound for every element; NaN fails.
template <class T>
void check_within(const char* what, const std::vector<T>& got, const std::vector<double>& expected,
                  const std::vector<double>& bound) {
    REQUIRE(got.size() == expected.size());
    REQUIRE(got.size() == bound.size());
    size_t worst = 0, failed = 0;
    double ratio = -1;
    for (size_t i = 0; i < got.size(); i++) {
        const double r = std::abs(double(float(got[i])) - expected[i]) / bound[i];
        failed += !(r <= 1);
        if (!(r <= ratio) && !std::isnan(ratio)) ratio = r, worst = i;
    }
    INFO(what, "[", worst, "]: ", float(got[worst]), " instead of ", expected[worst], ", bound ", bound[worst]);
    CHECK(failed == 0);
}

struct Reference {
    std::vector<double> value, bound;
};

// Row i of head (b, h): where it is in qkv, and in out.
struct Row {
    size_t qkv, out;
    Row(const Shape& s, size_t b, size_t h, size_t i)
        : qkv((b * s.T + i) * 3 * s.C() + h * s.hs), out((b * s.T + i) * s.C() + h * s.hs) {}
};

double dot(const double* x, const double* y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}
double magnitude(const double* x, const double* y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += std::abs(x[i] * y[i]);
    return sum;
}

// Largest error of a score (and so the relative one of exp) over the keys of row i: products of bf16 are
// exact and those of fp32 rounded, sums may be truncated instead of rounded, and then scale and shift are two
// more operations.
double score_error(const Shape& s, const std::vector<double>& qkv, size_t b, size_t h, size_t i) {
    double top = 0;
    for (size_t j = 0; j <= i; j++)
        top = std::max(top, magnitude(&qkv[Row(s, b, h, i).qkv], &qkv[Row(s, b, h, j).qkv + s.C()], s.hs));
    return eps * (2 * double(s.hs) + 8) * top / std::sqrt(double(s.hs));
}

// out and lse. weight_unit: what weights are rounded to before they are multiplied with v.
//   relative error of a weight before rounding: twice that of exp (also in the divisor); a rescaling with an
//   exp of its own for each tile of at least 16 keys; sums of T; exp2 itself is off by 4 eps
std::pair<Reference, Reference> reference_forward(const Shape& s, const std::vector<double>& qkv, double weight_unit,
                                                  double out_unit) {
    Cpu cpu(1);
    Reference out{std::vector<double>(s.elements()), std::vector<double>(s.elements())};
    Reference lse{std::vector<double>(s.rows()), std::vector<double>(s.rows())};
    std::vector<double> absolute = qkv, spread(s.elements());
    for (size_t i = 0; i < qkv.size(); i++)
        if (i % (3 * s.C()) >= 2 * s.C()) absolute[i] = std::abs(qkv[i]);
    attention_forward(cpu, out.value.data(), lse.value.data(), qkv.data(), s.B, s.T, s.C(), s.NH);
    attention_forward<double>(cpu, spread.data(), nullptr, absolute.data(), s.B, s.T, s.C(),
                              s.NH);  // sum_j p_ij |v_j|
    for (size_t r = 0; r < s.rows(); r++) {
        const size_t b = r / s.T / s.NH, h = r / s.T % s.NH, i = r % s.T;
        const double score = score_error(s, qkv, b, h, i), tiles = double(i / 16 + 2), keys = double(i + 1);
        const double weight = 2 * score + tiles * (8 * eps + score) + 4 * keys * eps;
        lse.bound[r] = score + tiles * 8 * eps + keys * eps + 2 * eps * std::abs(lse.value[r]) + 4 * eps;
        for (size_t c = Row(s, b, h, i).out; c < Row(s, b, h, i).out + s.hs; c++)
            out.bound[c] = 1.01 * ((weight_unit + weight) * spread[c] + out_unit * std::abs(out.value[c]));
    }
    return {out, lse};
}

// dqkv for given out and lse (not exact ones, so that only the roundings of the backward pass count).
Reference reference_backward(const Shape& s, const std::vector<double>& qkv, const std::vector<double>& dout,
                             const std::vector<double>& out, const std::vector<double>& lse, double weight_unit,
                             double out_unit) {
    Cpu cpu(1);
    const size_t C = s.C(), hs = s.hs;
    const double scale = 1 / std::sqrt(double(hs)), sums = 2 * double(s.T) * eps, dots = 2 * double(hs) * eps;
    Reference d{std::vector<double>(3 * s.elements()), std::vector<double>(3 * s.elements(), 0.0)};
    attention_backward(cpu, d.value.data(), dout.data(), out.data(), lse.data(), qkv.data(), s.B, s.T, C, s.NH);
    for (size_t r = 0; r < s.rows(); r++) {
        const size_t b = r / s.T / s.NH, h = r / s.T % s.NH, i = r % s.T;
        const Row query(s, b, h, i);
        const double *q = &qkv[query.qkv], *d_o = &dout[query.out], *o = &out[query.out];
        const double delta = dot(d_o, o, hs), delta_error = dots * magnitude(d_o, o, hs);
        const double exp_error = score_error(s, qkv, b, h, i) + eps * (4 * std::abs(lse[r]) + 8);
        for (size_t j = 0; j <= i; j++) {
            const Row key(s, b, h, j);
            const double *k = &qkv[key.qkv + C], *v = k + C;
            const double p = std::exp(dot(q, k, hs) * scale - lse[r]), dp = dot(d_o, v, hs);
            const double p_error = (weight_unit + exp_error + sums) * p;
            const double ds_error =
                (weight_unit + exp_error + sums + 3 * eps) * p * std::abs(dp - delta) +
                p * (dots * magnitude(d_o, v, hs) + delta_error + eps * (std::abs(dp) + std::abs(delta)));
            for (size_t c = 0; c < hs; c++) {
                d.bound[query.qkv + c] += scale * ds_error * std::abs(k[c]);
                d.bound[key.qkv + C + c] += scale * ds_error * std::abs(q[c]);
                d.bound[key.qkv + 2 * C + c] += p_error * std::abs(d_o[c]);
            }
        }
    }
    for (size_t i = 0; i < d.bound.size(); i++)
        d.bound[i] = 1.01 * (d.bound[i] + out_unit * std::abs(d.value[i])) + 1e-30;
    return d;
}

template <class Real>
double weight_unit(size_t hs) {
    return attention_on_tensor_cores<Real>(hs) ? unit<bf16> : eps;
}

template <class Real>
void check_forward(Cuda& dev, const Shape& s, const Scores& scores = {}) {
    INFO("B ", s.B, ", T ", s.T, ", NH ", s.NH, ", hs ", s.hs);
    const auto qkv = random_qkv<Real>(s, 1, scores);
    DeviceArray<Real> in(dev, qkv), out(dev, s.elements());
    DeviceArray<float> lse(dev, s.rows());
    poison(dev, out), poison(dev, lse);
    attention_forward(dev, out.data(), lse.data(), in.data(), s.B, s.T, s.C(), s.NH);
    const auto [expected, expected_lse] = reference_forward(s, to_double(qkv), weight_unit<Real>(s.hs), unit<Real>);
    check_within("out", out.values(), expected.value, expected.bound);
    check_within("lse", lse.values(), expected_lse.value, expected_lse.bound);
}

template <class Real>
void check_backward(Cuda& dev, const Shape& s, const Scores& scores = {}) {
    INFO("B ", s.B, ", T ", s.T, ", NH ", s.NH, ", hs ", s.hs);
    const auto qkv = random_qkv<Real>(s, 2, scores);
    const auto dout = random_values<Real>(s.elements(), 3);
    const auto forward = reference_forward(s, to_double(qkv), 0, 0);
    const auto out = rounded<Real>(forward.first.value);
    const auto lse = rounded<float>(forward.second.value);
    DeviceArray<Real> d_in(dev, 3 * s.elements()), d_out(dev, dout), device_out(dev, out), in(dev, qkv);
    DeviceArray<float> device_lse(dev, lse);
    poison(dev, d_in);
    attention_backward(dev, d_in.data(), d_out.data(), device_out.data(), device_lse.data(), in.data(), s.B, s.T, s.C(),
                       s.NH);
    const Reference expected = reference_backward(s, to_double(qkv), to_double(dout), to_double(out), to_double(lse),
                                                  weight_unit<Real>(s.hs), unit<Real>);
    check_within("dqkv", d_in.values(), expected.value, expected.bound);
}

// A sequence in pieces of these lengths, against all of it at once. Rows of the cache that do not exist yet
// are NaN.
template <class Real>
void check_cached(Cuda& dev, size_t NH, size_t hs, const std::vector<size_t>& pieces) {
    Shape s{1, 0, NH, hs};
    for (size_t n : pieces) s.T += n;
    INFO("T ", s.T, ", NH ", NH, ", hs ", hs);
    const size_t C = s.C(), spare = 3;
    const auto qkv = random_qkv<Real>(s, 4);
    DeviceArray<Real> in(dev, qkv), out(dev, s.elements()), k(dev, (s.T + spare) * C), v(dev, (s.T + spare) * C);
    poison(dev, out), poison(dev, k), poison(dev, v);
    size_t first = 0;
    for (size_t n : pieces) {
        attention_cached(dev, out.data() + first * C, {{k.data(), v.data(), 0, first, n}}, in.data() + first * 3 * C, C,
                         NH);
        first += n;
    }
    const auto expected = reference_forward(s, to_double(qkv), weight_unit<Real>(hs), unit<Real>).first;
    check_within("out", out.values(), expected.value, expected.bound);
    const auto keys = to_double(k.values()), values = to_double(v.values()), source = to_double(qkv);
    size_t wrong = 0;
    for (size_t t = 0; t < s.T + spare; t++)
        for (size_t c = 0; c < C; c++) {
            const double got_k = keys[t * C + c], got_v = values[t * C + c];
            if (t < s.T)
                wrong += got_k != source[t * 3 * C + C + c] || got_v != source[t * 3 * C + 2 * C + c];
            else
                wrong += !std::isnan(got_k) || !std::isnan(got_v);
        }
    CHECK(wrong == 0);
}

// A device whose attention is by warpgroups for head size hs; null on a GPU that has none. A Hopper must have them, and code for them.
std::unique_ptr<Cuda> warpgroup_device(size_t hs) {
    auto dev = std::make_unique<Cuda>();
    if (dev->sm() != 90) {
        MESSAGE("skipped: this GPU has no products of warpgroups");
        return nullptr;
    }
    const WgmmaFinding finding = find_wgmma_attention(*dev, hs);
    INFO(finding.why_not);
    REQUIRE(finding.kind == WgmmaFinding::works);
    use_wgmma(*dev, hs, true);
    return dev;
}

constexpr Scores sharp{16, 0};    // up to about 60: one key takes most of the weight
constexpr Scores negative{1, 4};  // about -128: exp of minus that is infinite in fp32

// As T grows, fewer heads: the time of a test is the stand-in's.
const size_t lengths[] = {1, 7, 33, 64, 129, 200};
Shape shape_for(size_t T, size_t hs) {
    if (T <= 33) return {2, T, 3, hs};
    return {1, T, T <= 64 ? size_t(2) : size_t(1), hs};
}

// k = 0, so p_ij = 1 / (i + 1); v_j = j in every channel, so out_i = i / 2; lse_i = log(i + 1).
void check_averages(Cuda& dev) {
    const Shape s{1, 200, 2, 64};
    auto qkv = random_qkv<bf16>(s, 5);
    for (size_t t = 0; t < s.T; t++)
        for (size_t c = 0; c < s.C(); c++) {
            qkv[t * 3 * s.C() + s.C() + c] = bf16(0.0f);
            qkv[t * 3 * s.C() + 2 * s.C() + c] = bf16(float(t));
        }
    DeviceArray<bf16> in(dev, qkv), out(dev, s.elements());
    DeviceArray<float> lse(dev, s.rows());
    poison(dev, out), poison(dev, lse);
    attention_forward(dev, out.data(), lse.data(), in.data(), s.B, s.T, s.C(), s.NH);
    const auto got = out.values();
    const auto got_lse = lse.values();
    size_t wrong = 0;
    for (size_t i = 0; i < s.elements(); i++) wrong += float(got[i]) != float(i / s.C()) / 2;
    CHECK(wrong == 0);
    for (size_t i = 0; i < s.rows(); i++) CHECK(std::abs(got_lse[i] - std::log(double(i % s.T + 1))) <= 8 * eps * 6);
}

// Forward, backward and with a cache, twice; on the stand-in in another order of threads.
void check_same_bits(Cuda& dev, const Shape& s) {
    const auto qkv = random_qkv<bf16>(s, 6), dout = random_values<bf16>(s.elements(), 7);
    auto run = [&] {
        DeviceArray<bf16> in(dev, qkv), d_out(dev, dout), out(dev, s.elements()), d_in(dev, 3 * s.elements());
        DeviceArray<bf16> k(dev, s.T * s.C()), v(dev, s.T * s.C()), cached(dev, s.T * s.C());
        DeviceArray<float> lse(dev, s.rows());
        attention_forward(dev, out.data(), lse.data(), in.data(), s.B, s.T, s.C(), s.NH);
        attention_backward(dev, d_in.data(), d_out.data(), out.data(), lse.data(), in.data(), s.B, s.T, s.C(), s.NH);
        for (const CachedRows<bf16>& part :
             {CachedRows<bf16>{k.data(), v.data(), 0, 0, s.T - 1}, {k.data(), v.data(), s.T - 1, s.T - 1, 1}})
            attention_cached(dev, cached.data(), {part}, in.data(), s.C(), s.NH);
        std::vector<bf16> all = d_in.values();
        for (const auto& part : {out.values(), cached.values()}) all.insert(all.end(), part.begin(), part.end());
        return std::pair(all, lse.values());
    };
    const auto first = run();
#ifdef CUDA_EMU
    const emu::Settings settings = emu::settings();
    emu::settings().order = emu::Order::random, emu::settings().seed = 3;
#endif
    const auto second = run();
#ifdef CUDA_EMU
    emu::settings() = settings;
#endif
    CHECK(same_bits(first.first, second.first));
    CHECK(same_bits(first.second, second.second));
}

}  // namespace

CUDA_TEST("cuda attention: equal scores average the values exactly") {
    const OnHopper hopper;
    Cuda dev;
    check_averages(dev);
    if (const auto warpgroups = warpgroup_device(64)) check_averages(*warpgroups);
}

CUDA_TEST("cuda attention: bf16 on tensor cores") {
    Cuda dev;
    auto check = [&](auto one_way) {
        for (size_t hs : {8, 32, 64, 80, 128})
            for (size_t T : lengths) one_way(dev, shape_for(T, hs), Scores{});
        one_way(dev, Shape{1, 70, 1, 96}, Scores{});
        one_way(dev, Shape{1, 150, 1, 64}, sharp);
        one_way(dev, Shape{1, 70, 1, 64}, negative);
    };
    SUBCASE("forward") { check(check_forward<bf16>); }
    SUBCASE("backward") { check(check_backward<bf16>); }
}

CUDA_TEST("cuda attention: by warpgroups") {
    const OnHopper hopper;
    auto on_each_device = [](auto&& test) {
        for (size_t hs : {64, 128})
            if (const auto dev = warpgroup_device(hs)) test(*dev, hs);
    };
    auto check = [&](auto one_way) {
        on_each_device([&](Cuda& dev, size_t hs) {
            for (size_t T : lengths) one_way(dev, shape_for(T, hs), Scores{});
            for (size_t T : {63, 65, 127, 128, 192, 257}) one_way(dev, Shape{1, T, 1, hs}, Scores{});
            one_way(dev, Shape{2, 70, 2, hs}, Scores{});
            one_way(dev, Shape{1, 150, 1, hs}, sharp);
            one_way(dev, Shape{1, 150, 1, hs}, negative);
        });
    };
    SUBCASE("forward") { check(check_forward<bf16>); }
    SUBCASE("backward") { check(check_backward<bf16>); }
    SUBCASE("with a cache") {
        on_each_device([](Cuda& dev, size_t hs) { check_cached<bf16>(dev, 2, hs, {14, 70, 1, 50, 65, 200, 1, 31}); });
    }
}

CUDA_TEST("cuda attention: long sequences by warpgroups") {
    const OnHopper hopper;
    for (const auto& [T, hs] : {std::pair<size_t, size_t>{4096, 64}, {4096, 128}})
        if (const auto dev = warpgroup_device(hs)) {
            check_forward<bf16>(*dev, Shape{1, T, 1, hs});
            check_backward<bf16>(*dev, Shape{1, T, 1, hs});
            check_same_bits(*dev, Shape{1, 1100, 1, hs});
        }
}

CUDA_TEST("cuda attention: fp32, and bf16 with head sizes that tensor cores cannot take") {
    Cuda dev;
    for (size_t hs : {8, 33, 64, 80})
        for (size_t T : lengths) {
            check_forward<float>(dev, {T <= 7 ? size_t(2) : size_t(1), T, T <= 33 ? size_t(2) : size_t(1), hs});
            check_backward<float>(dev, {T <= 7 ? size_t(2) : size_t(1), T, T <= 33 ? size_t(2) : size_t(1), hs});
        }
    for (const Shape& s : {Shape{1, 40, 2, 12}, Shape{1, 20, 1, 136}, Shape{2, 17, 1, 1}}) {
        check_forward<bf16>(dev, s);
        check_backward<bf16>(dev, s);
    }
    check_forward<float>(dev, {1, 35, 1, 256});
    check_backward<float>(dev, {1, 35, 1, 256});
    for (const Scores& scores : {sharp, negative}) {
        check_forward<float>(dev, {1, 70, 1, 64}, scores);
        check_backward<float>(dev, {1, 70, 1, 64}, scores);
    }
    DeviceArray<float> x(dev, 4 * 257);
    CHECK_THROWS_AS(attention_forward<float>(dev, x.data(), nullptr, x.data() + 257, 1, 1, 257, 1), Error);
}

CUDA_TEST("cuda attention: with a cache, in pieces, equals the whole") {
    Cuda dev;
    for (size_t hs : {8, 64, 80, 128}) check_cached<bf16>(dev, 2, hs, {1, 1, 5, 1, 70, 1, 50, 1, 1, 65, 1});
    check_cached<bf16>(dev, 3, 12, {4, 1, 1, 130, 1});  // a head size for the simple kernels
    check_cached<float>(dev, 2, 64, {1, 17, 1, 111, 1, 1, 1, 130, 1, 1});
    check_cached<float>(dev, 1, 33, {130, 1, 2, 1});
    check_cached<float>(dev, 1, 256, {1, 3, 1});
}

CUDA_TEST("cuda attention: the same bits again, in whatever order threads run") {
    const OnHopper hopper;
    Cuda dev;
    check_same_bits(dev, {2, 150, 2, 64});
    for (const size_t hs : {64, 128})
        if (const auto warpgroups = warpgroup_device(hs)) check_same_bits(*warpgroups, {2, 150, 2, hs});
}

#ifdef CUDA_EMU
namespace {

// What is chosen on a device of this kind with ATTENTION in the environment, and what is said about it; or an error's text.
std::string choice(int sm, const char* attention, size_t hs) {
    const OnHopper restores;
    emu::settings().sm = sm;
    if (attention) setenv("ATTENTION", attention, 1);
    Cuda dev;
    try {
        const std::string note = settle_attention(dev, hs, find_wgmma_attention(dev, hs));
        return (uses_wgmma(dev, hs) ? "wgmma" : "mma") + (note.empty() ? "" : ", " + note);
    } catch (const Error& error) {
        emu::take_diagnosis();
        return error.what();
    }
}

}  // namespace

CUDA_TEST("cuda attention: which kernels are chosen") {
    for (size_t hs : {64, 128}) {
        CHECK(choice(90, nullptr, hs) == "wgmma");
        CHECK(choice(90, "", hs) == "wgmma");
        CHECK(choice(90, "wgmma", hs) == "wgmma");
        CHECK(choice(90, "mma", hs) == "mma");
        for (int sm : {80, 89, 100}) CHECK(choice(sm, nullptr, hs) == "mma");
    }
    for (size_t hs : {32, 80, 96, 72}) CHECK(choice(90, nullptr, hs) == "mma");
    CHECK(choice(80, "mma", 64) == "mma");
    CHECK(
        choice(80, "wgmma", 64) ==
        "ATTENTION=wgmma in the environment: these kernels cannot be used (unset it, then others are): they need an H100 or "
        "H200 and code for it (make GPU=90), found an sm_80");
    CHECK(
        choice(90, "wgmma", 80) ==
        "ATTENTION=wgmma in the environment: these kernels cannot be used (unset it, then others are): they have head sizes "
        "of 64 and 128, found 80");
    CHECK(
        choice(90, "flash", 64) ==
        "ATTENTION in the environment: expected mma or wgmma, found 'flash'; unset it for the faster of the two that works");
}

CUDA_TEST("cuda attention: kernels for warpgroups that do not work") {
    using Warpgroups = emu::Settings::Warpgroups;
    const std::string note = " channels by single warps (mma.sync), not by warpgroups (wgmma): ";
    for (size_t hs : {64, 128}) {
        const OnHopper restores;
        emu::settings().quiet = true;
        const std::pair<Warpgroups, const char*> cases[] = {
            {Warpgroups::none, "they need code for this GPU, sm_90a, found only another's; build with make GPU=90"},
            {Warpgroups::wrong, "in a trial of both, lse of position 0 differs by "},
            {Warpgroups::misused, "the settings make it one"},
        };
        for (const auto& [warpgroups, why] : cases) {
            emu::settings().warpgroups = warpgroups;
            const std::string said = choice(90, nullptr, hs), error = choice(90, "wgmma", hs);
            CHECK(said.starts_with("mma, note: attention with heads of " + std::to_string(hs) + note));
            CHECK(said.find(why) != said.npos);
            CHECK(error.starts_with("ATTENTION=wgmma in the environment: these kernels cannot be used (unset it"));
            CHECK(error.find(why) != error.npos);
            CHECK(choice(90, "mma", hs) == "mma");
        }
        // Each of the three kernels alone.
        emu::settings().warpgroups = Warpgroups::wrong;
        for (const auto& [kernel, part] : {std::pair{"forward", "lse of"}, {"_dq_", "dq of"}, {"_dkdv_", "dk of"}}) {
            emu::settings().warpgroups_of = kernel;
            CAPTURE(kernel);
            CHECK(choice(90, nullptr, hs).find(std::string("in a trial of both, ") + part) != std::string::npos);
        }
        emu::settings().warpgroups_of = "", emu::settings().warpgroups = Warpgroups::misused;
        // An error after which nothing runs.
        emu::settings().lasting_errors = true;
        for (const char* attention : {"", "wgmma"})
            CHECK(choice(90, attention, hs)
                      .starts_with("set ATTENTION=mma in the environment: the attention kernels for warpgroups "
                                   "do not run on this GPU: CUDA: "));
        CHECK(choice(90, "mma", hs) == "mma");
    }
}

CUDA_TEST("cuda attention: each head size is tried once") {
    const OnHopper hopper;
    Cuda dev;
    choose_attention<float>(dev, 64);  // there is nothing to choose
    CHECK(dev.wgmma[0] == Cuda::Wgmma::unasked);
    choose_attention<bf16>(dev, 64);
    CHECK(uses_wgmma(dev, 64));
    CHECK(!uses_wgmma(dev, 128));
    choose_attention<bf16>(dev, 128);
    const uint64_t launches = emu::launches();
    choose_attention<bf16>(dev, 64);
    choose_attention<bf16>(dev, 128);
    CHECK(emu::launches() == launches);
    CHECK(uses_wgmma(dev, 64));
    CHECK(uses_wgmma(dev, 128));
    use_wgmma(dev, 128, false);
    choose_attention<bf16>(dev, 128);
    CHECK(uses_wgmma(dev, 64));
    CHECK(!uses_wgmma(dev, 128));

    // What is chosen is what runs.
    emu::settings().quiet = true, emu::settings().warpgroups = emu::Settings::Warpgroups::misused;
    constexpr size_t T = 2, C = 128;
    const std::vector<bf16> zeros(3 * T * C);
    DeviceArray<bf16> in(dev, zeros), out(dev, zeros), gradient(dev, zeros), k(dev, zeros), v(dev, zeros);
    DeviceArray<float> lse(dev, std::vector<float>(2 * T));
    auto forward = [&](size_t NH) {
        attention_forward<bf16>(dev, out.data(), lse.data(), in.data(), 1, T, C, NH);
        dev.synchronize();
    };
    auto cached = [&](size_t NH) {
        attention_cached<bf16>(dev, out.data(), {{k.data(), v.data(), 0, 0, T}}, in.data(), C, NH);
        dev.synchronize();
    };
    auto backward = [&](size_t NH) {
        attention_backward<bf16>(dev, gradient.data(), out.data(), out.data(), lse.data(), in.data(), 1, T, C, NH);
        dev.synchronize();
    };
    forward(1), cached(1), backward(1);
    CHECK_THROWS_AS(forward(2), Error);
    CHECK_THROWS_AS(cached(2), Error);
    for (const char* kernel : {"_dq_", "_dkdv_"}) {
        emu::settings().warpgroups_of = kernel;
        forward(2);
        CHECK_THROWS_AS(backward(2), Error);
    }
    emu::take_diagnosis();

    // A wrong value is one in fp32 and for the second model, too; a CPU has nothing to do with it.
    setenv("ATTENTION", "flash", 1);
    Cpu cpu(1);
    CHECK_THROWS_AS(choose_attention<float>(dev, 80), Error);
    CHECK_THROWS_AS(choose_attention<bf16>(dev, 64), Error);
    CHECK_NOTHROW(choose_attention<float>(cpu, 80));
}

CUDA_TEST("cuda attention: kernels that differ are not chosen") {
    const OnHopper hopper;
    Cuda dev;
    for (size_t hs : {64, 128}) {
        AttentionTrial trial(dev, hs);
        const std::vector<float> right = trial.run(dev, false);
        CHECK(attention_differs(right, right, hs) == "");
        // Every element of every part: also one alone, or one that is no number.
        for (const AttentionTrial::Part& part : AttentionTrial::parts(hs)) {
            CAPTURE(part.name);
            for (size_t i : {part.first, part.first + (part.rows - 1) * part.stride + part.width - 1}) {
                auto wrong = right;
                wrong[i] += 1000;
                CHECK(attention_differs(wrong, right, hs).starts_with(part.name));
                wrong[i] = NAN;
                CHECK(attention_differs(wrong, right, hs).starts_with(part.name));
            }
            if (part.width == 1) continue;  // lse, a logarithm
            // Every position by its own measure: those of the last tile have the smallest values.
            auto wrong = right;
            const size_t row = part.first + 220 * part.stride;
            for (size_t i = row; i < row + part.width; i++) wrong[i] *= 1.5f;
            CHECK(attention_differs(wrong, right, hs)
                      .starts_with(std::string(part.name) + " of position 220 differs by "));
        }
        auto none = right;
        std::fill(none.begin() + ptrdiff_t(AttentionTrial::parts(hs)[3].first), none.end(), 0.0f);
        CHECK(attention_differs(none, none, hs) == "dq is 0 everywhere");
        // What rounding may do: two bf16 results apart, and another order of fp32's sums.
        auto rounded = right;
        for (size_t i = AttentionTrial::parts(hs)[1].first; i < rounded.size(); i++)
            rounded[i] *= i % 2 ? 1 + 0x1p-7f : 1 - 0x1p-7f;
        CHECK(attention_differs(rounded, right, hs) == "");
    }
}
#endif

}  // namespace tapernorm
#endif
