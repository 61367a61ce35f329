// ops/gemm.cuh and ops/linear.cuh on the CPU: every operand layout, epilogue, instruction set and number type against a naive
// loop.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "ops/linear.cuh"

namespace tapernorm {

namespace {

std::vector<Isa> machine_isas() {
    std::vector<Isa> isas;
    for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512})
        if (isa <= best_isa()) isas.push_back(isa);
    return isas;
}

// A row-major matrix with guard columns, which no op may touch.
template <class Real>
struct Matrix {
    static constexpr Real kGuard = -12345;
    size_t rows, cols, ld;
    std::vector<Real> v;

    Matrix(size_t rows_, size_t cols_, unsigned seed, size_t guards = 3)
        : rows(rows_), cols(cols_), ld(cols_ + guards), v(rows * ld, kGuard) {
        std::mt19937 random(seed);
        std::uniform_real_distribution<Real> uniform(-1, 1);
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++) at(i, j) = uniform(random);
    }
    Real& at(size_t i, size_t j) { return v[i * ld + j]; }
    void poison() {
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++) at(i, j) = std::numeric_limits<Real>::quiet_NaN();
    }
    bool guards_intact() {
        for (size_t i = 0; i < rows; i++)
            for (size_t j = cols; j < ld; j++)
                if (at(i, j) != kGuard) return false;
        return true;
    }
};

long double gelu_gate_ref(long double x) {
    const long double k = std::sqrt(2 / 3.14159265358979323846264L);
    return (1 + std::tanh(k * (x + 0.044715L * x * x * x))) / 2;
}
long double gelu_ref(long double x) { return x * gelu_gate_ref(x); }
long double gelu_derivative_ref(long double x) {
    const long double k = std::sqrt(2 / 3.14159265358979323846264L), s = gelu_gate_ref(x);
    return s + x * s * (1 - s) * 2 * k * (1 + 3 * 0.044715L * x * x);
}

struct Case {
    const char* name;
    bool trans_a, trans_b, accumulate, bias, residual, gelu, pre, gelu_grad, sums, sums_added;
    double alpha;
};
// clang-format off
const Case kCases[] = {
    // name                  tA     tB     acc    bias   resid  gelu   pre    dgelu  sums   added  alpha
    {"plain",                false, false, false, false, false, false, false, false, false, false, 1},
    {"NT",                   false, true,  false, false, false, false, false, false, false, false, 1},
    {"TN",                   true,  false, false, false, false, false, false, false, false, false, 1},
    {"TT",                   true,  true,  false, false, false, false, false, false, false, false, 1},
    {"NT alpha",             false, true,  false, false, false, false, false, false, false, false, 0.125},
    {"accumulate alpha",     false, false, true,  false, false, false, false, false, false, false, -1.5},
    {"TT accumulate",        true,  true,  true,  false, false, false, false, false, false, false, 1},
    {"bias",                 false, false, false, true,  false, false, false, false, false, false, 1},
    {"residual",             false, false, false, false, true,  false, false, false, false, false, 1},
    {"bias residual alpha",  false, true,  false, true,  true,  false, false, false, false, false, 0.5},
    {"bias gelu pre",        false, false, false, true,  false, true,  true,  false, false, false, 1},
    {"gelu",                 false, true,  false, false, false, true,  false, false, false, false, 1},
    {"gelu gradient",        false, true,  false, false, false, false, false, true,  false, false, 1},
    {"sums",                 false, true,  false, false, false, false, false, false, true,  false, 1},
    {"sums NN, bias",        false, false, false, true,  false, false, false, false, true,  false, 1},
    {"gelu gradient, sums",  false, true,  false, false, false, false, false, true,  true,  false, 1},
    {"the same, added",      false, true,  false, false, false, false, false, true,  true,  true,  1},
};
// clang-format on

// Rounding bound of a sum of n terms, in any order: n eps (sum of magnitudes). K products and sums, the
// partial sums over blocks of k, alpha, C and bias: K + 8. GELU adds the error of its exp (5 eps) and of its
// argument, and its slope is below 1.13.
template <class Real>
void check_case(Cpu& dev, const Case& c, size_t M, size_t N, size_t K) {
    Matrix<Real> A(c.trans_a ? K : M, c.trans_a ? M : K, 1), B(c.trans_b ? N : K, c.trans_b ? K : N, 2), C(M, N, 3);
    Matrix<Real> bias(1, N, 4), residual(M, N, 5), pre(M, N, 6), point(M, N, 7), sums(1, N, 8);
    if (c.sums) C = Matrix<Real>(M, N, 3, 0), point = Matrix<Real>(M, N, 7, 0);  // rows without a gap
    const Matrix<Real> C0 = C, sums0 = sums;
    if (!c.accumulate) C.poison();
    if (!c.sums_added) sums.poison();
    pre.poison();
    Gemm<Real> g = {.M = M,
                    .N = N,
                    .K = K,
                    .A = A.v.data(),
                    .lda = A.ld,
                    .trans_a = c.trans_a,
                    .B = B.v.data(),
                    .ldb = B.ld,
                    .trans_b = c.trans_b,
                    .C = C.v.data(),
                    .ldc = C.ld};
    g.alpha = Real(c.alpha), g.accumulate = c.accumulate, g.gelu = c.gelu;
    if (c.bias) g.bias = bias.v.data();
    if (c.residual) g.residual = residual.v.data();
    if (c.pre) g.pre_gelu = pre.v.data();
    if (c.gelu_grad) g.gelu_grad_at = point.v.data();
    if (c.sums) g.c_sums = sums.v.data(), g.accumulate_sums = c.sums_added;
    gemm(dev, g);

    const long double eps = std::numeric_limits<Real>::epsilon();
    std::string wrong;
    auto compare = [&](const char* what, size_t i, size_t j, Real got, long double want, long double bound) {
        if (!(std::fabs(got - want) <= bound) && wrong.empty())
            wrong = strprintf("%s[%zu,%zu] = %.9g, expected %.9g, error %.3g bounds", what, i, j, double(got),
                              double(want), double(std::fabs(got - want) / bound));
    };
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            long double value = 0, size = 0;
            for (size_t k = 0; k < K; k++) {
                const long double term = g.alpha * (long double)(c.trans_a ? A.at(k, i) : A.at(i, k)) *
                                         (c.trans_b ? B.at(j, k) : B.at(k, j));
                value += term, size += std::fabs(term);
            }
            for (const long double term : {c.accumulate ? C0.v[i * C.ld + j] : Real(0),
                                           c.bias ? bias.at(0, j) : Real(0), c.residual ? residual.at(i, j) : Real(0)})
                value += term, size += std::fabs(term);
            const long double bound = (K + 8) * eps * size;
            if (c.pre) compare("pre", i, j, pre.at(i, j), value, bound);
            if (c.gelu)
                compare("C", i, j, C.at(i, j), gelu_ref(value), 1.13L * bound + 16 * eps * std::fabs(value));
            else if (c.gelu_grad)
                compare("C", i, j, C.at(i, j), value * gelu_derivative_ref(point.at(i, j)),
                        1.13L * bound + 32 * eps * std::fabs(value));
            else
                compare("C", i, j, C.at(i, j), value, bound);
        }
    for (size_t j = 0; j < N && c.sums; j++) {  // of C as it came out
        long double value = c.sums_added ? sums0.v[j] : Real(0), size = std::fabs(value);
        for (size_t i = 0; i < M; i++) value += C.at(i, j), size += std::fabs(C.at(i, j));
        compare("sums", 0, j, sums.at(0, j), value, (M + 8) * eps * size);
    }
    INFO(strprintf("%s, M %zu N %zu K %zu, %s, %zu-byte numbers", c.name, M, N, K, isa_name(dev.isa), sizeof(Real)));
    CHECK(wrong == "");
    CHECK((C.guards_intact() && pre.guards_intact() && sums.guards_intact()));
}

const size_t kShapes[][3] = {
    // M, N, K
    {1, 1, 1},    {1, 65, 37},  {2, 7, 5},    {3, 130, 50},  {4, 64, 100}, {5, 3, 2},    {6, 64, 64},
    {7, 33, 9},   {11, 100, 1}, {13, 16, 17}, {64, 64, 64},  {64, 32, 96}, {65, 79, 33}, {23, 129, 385},
    {9, 70, 801}, {3, 70, 801}, {200, 67, 8}, {6, 1600, 11}, {4, 1, 769},
};

TEST_CASE_TEMPLATE("matmul: every layout and epilogue against a naive loop", Real, float, double) {
    for (Isa isa : machine_isas()) {
        Cpu dev(2, isa);
        for (const Case& c : kCases)
            for (const auto& [M, N, K] : kShapes) check_case<Real>(dev, c, M, N, K);
    }
}

TEST_CASE_TEMPLATE("matmul: linear layer and head, computed by hand", Real, float, double) {
    using Values = std::vector<Real>;
    const Real nan = std::numeric_limits<Real>::quiet_NaN();
    const Values in = {1, 2, 3, 4, 5, 6}, weight = {1, 0, 0, 1, 1, 1}, bias = {10, 20}, residual = {100, 0, 0, 100};
    for (Isa isa : machine_isas()) {
        Cpu dev(1, isa);
        Values out(4, nan);
        matmul_forward<Real>(dev, out.data(), in.data(), weight.data(), nullptr, nullptr, 2, 3, 2);
        CHECK(out == Values{4, 5, 10, 11});
        matmul_forward<Real>(dev, out.data(), in.data(), weight.data(), bias.data(), residual.data(), 2, 3, 2);
        CHECK(out == Values{114, 25, 20, 131});

        const Values dout = {1, 2, 3, 4};
        Values din(6, nan), din_sums(3, nan), dweight(6, nan);
        matmul_backward<Real>(dev, din.data(), din_sums.data(), dweight.data(), dout.data(), in.data(), weight.data(),
                              nullptr, 2, 3, 2, false);
        CHECK(din == Values{1, 2, 3, 3, 4, 7});
        CHECK(din_sums == Values{4, 6, 10});
        CHECK(dweight == Values{13, 18, 17, 24, 21, 30});
        matmul_backward<Real>(dev, din.data(), din_sums.data(), dweight.data(), dout.data(), in.data(), weight.data(),
                              nullptr, 2, 3, 2, true);
        CHECK(din == Values{1, 2, 3, 3, 4, 7});
        CHECK(din_sums == Values{8, 12, 20});
        CHECK(dweight == Values{26, 36, 34, 48, 42, 60});
        Values dbias(2, nan);
        column_sums(dev, dbias.data(), dout.data(), 2, 2, false);
        CHECK(dbias == Values{4, 6});
        column_sums(dev, dbias.data(), dout.data(), 2, 2, true);
        CHECK(dbias == Values{8, 12});

        // E = weight^T [V = 2, C = 3], logits with a row padding of one.
        const Values wte = {1, 0, 1, 0, 1, 1}, dlogits = {1, 2, 9, 3, 4, 9};
        Values logits(6, 7), dwte(6, nan);
        head_forward<Real>(dev, logits.data(), in.data(), wte.data(), nullptr, 2, 3, 2, 3);
        CHECK(logits == Values{4, 5, 7, 10, 11, 7});
        head_backward<Real>(dev, din.data(), dwte.data(), dlogits.data(), in.data(), wte.data(), 2, 3, 2, false, 3);
        CHECK(din == Values{1, 2, 3, 3, 4, 7});
        CHECK(dwte == Values{13, 17, 21, 18, 24, 30});
        head_backward<Real>(dev, din.data(), dwte.data(), dlogits.data(), in.data(), wte.data(), 2, 3, 2, true, 3);
        CHECK(dwte == Values{26, 34, 42, 36, 48, 60});
    }
}

TEST_CASE("matmul: GELU layer, gradients by central differences") {
    // f(in, W, b) = sum(r (.) gelu(gelu(x) W + b)); differences of a smooth function at step h err by about
    // h^2.
    const size_t M = 7, C = 5, OC = 9;
    Cpu dev(1);
    Matrix<double> x0(1, M * C, 1), W(1, C * OC, 2), b(1, OC, 3), r(1, M * OC, 4);
    std::vector<double> in(M * C), out(M * OC), pre(M * OC);
    auto f = [&] {
        for (size_t i = 0; i < M * C; i++) in[i] = double(gelu_ref(x0.v[i]));
        matmul_gelu_forward<double>(dev, out.data(), pre.data(), in.data(), W.v.data(), b.v.data(), M, C, OC);
        double sum = 0;
        for (size_t i = 0; i < M * OC; i++) sum += r.v[i] * out[i];
        return sum;
    };
    f();
    std::vector<double> dpre(M * OC), dx(M * C), dx_sums(C), dW(C * OC), db(OC);
    for (size_t i = 0; i < M * OC; i++) dpre[i] = r.v[i] * double(gelu_derivative_ref(pre[i]));
    matmul_backward<double>(dev, dx.data(), dx_sums.data(), dW.data(), dpre.data(), in.data(), W.v.data(), x0.v.data(),
                            M, C, OC, false);
    column_sums(dev, db.data(), dpre.data(), M, OC, false);
    const double h = 1e-5;
    auto check = [&](double& parameter, double gradient) {
        const double keep = parameter;
        parameter = keep + h;
        const double above = f();
        parameter = keep - h;
        const double below = f();
        parameter = keep;
        CHECK(std::fabs((above - below) / (2 * h) - gradient) <= 1e-8);
    };
    for (size_t i = 0; i < M * C; i++) check(x0.v[i], dx[i]);
    for (size_t i = 0; i < C * OC; i++) check(W.v[i], dW[i]);
    for (size_t i = 0; i < OC; i++) check(b.v[i], db[i]);
    for (size_t i = 0; i < C; i++) {
        double sum = 0;
        for (size_t row = 0; row < M; row++) sum += dx[row * C + i];
        CHECK(dx_sums[i] == doctest::Approx(sum).epsilon(1e-13));
    }
}

template <class Real>
bool same_bits(const std::vector<Real>& a, const std::vector<Real>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Real)) == 0;
}

TEST_CASE_TEMPLATE("matmul: bitwise the same for any number of threads", Real, float, double) {
    const size_t shapes[][3] = {{61, 150, 91}, {37, 203, 801}, {1, 1500, 400}, {3, 803, 400}, {301, 33, 77}};
    for (Isa isa : machine_isas())
        for (const auto& [M, C, OC] : shapes) {
            Matrix<Real> in(1, M * C, 1), W(1, C * OC, 2), b(1, OC, 3), dout(1, M * OC, 4), at(1, M * C, 5);
            std::vector<Real> first;
            for (int threads : {1, 2, 3, 5}) {
                Cpu dev(threads, isa);
                std::vector<Real> all(M * OC * 2 + M * C + C * OC + C);
                Real *out = all.data(), *pre = out + M * OC, *din = pre + M * OC, *dW = din + M * C;
                Real* din_sums = dW + C * OC;
                matmul_gelu_forward<Real>(dev, out, pre, in.v.data(), W.v.data(), b.v.data(), M, C, OC);
                matmul_backward<Real>(dev, din, din_sums, dW, dout.v.data(), in.v.data(), W.v.data(), at.v.data(), M, C,
                                      OC, false);
                if (threads == 1) first = all;
                const std::string what =
                    strprintf("%d threads, M %zu C %zu OC %zu, %s", threads, M, C, OC, isa_name(isa));
                INFO(what);
                CHECK(same_bits(first, all));
            }
        }
}

TEST_CASE("matmul: the single-threaded form, with its own or the thread's scratch") {
    const size_t M = 64, N = 70, K = 32;
    Cpu dev(2);
    Matrix<float> A(M, K, 1), B(N, K, 2), C(M, N, 3), C1(M, N, 3), C2(M, N, 3);
    Gemm<float> g = {.M = M,
                     .N = N,
                     .K = K,
                     .A = A.v.data(),
                     .lda = A.ld,
                     .trans_a = false,
                     .B = B.v.data(),
                     .ldb = B.ld,
                     .trans_b = true,
                     .C = C.v.data(),
                     .ldc = C.ld,
                     .alpha = 0.125f};
    gemm(dev, g);
    g.C = C1.v.data();
    gemm_single(dev, 1, g);
    CHECK(same_bits(C.v, C1.v));
    void* own = cpu_allocate(gemm_pack_bytes<float>(), "test");
    g.C = C2.v.data(), g.pack = own;
    gemm_single(dev, 1, g);
    std::free(own);
    CHECK(same_bits(C.v, C2.v));
    // Seven of the rows alone: an element does not depend on the rows beside it.
    g.M = 7, g.A = A.v.data() + 20 * A.ld, g.pack = nullptr, g.C = C1.v.data();
    gemm_single(dev, 0, g);
    for (size_t i = 0; i < 7; i++) CHECK(std::memcmp(&C1.at(i, 0), &C.at(20 + i, 0), N * sizeof(float)) == 0);
}

TEST_CASE("matmul: no rows, no columns, no depth") {
    Cpu dev(2);
    float C[6] = {1, 2, 3, 4, 5, 6};
    const float bias[3] = {7, 8, 9};
    matmul_forward<float>(dev, C, nullptr, nullptr, bias, nullptr, 0, 4, 3);
    CHECK(C[0] == 1);
    matmul_forward<float>(dev, C, nullptr, nullptr, bias, nullptr, 2, 0, 3);
    for (size_t i = 0; i < 6; i++) CHECK(C[i] == bias[i % 3]);
}

}  // namespace

}  // namespace tapernorm
