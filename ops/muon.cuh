// Muon (K. Jordan et al., 2024; kellerjordan.github.io/posts/muon, from where a, b and c are), the optimizer for matrices that
// --optimizer muon asks for: a step along the momentum, made orthogonal, so that it changes all directions of a matrix alike.
//
//   m = mu m + g,  X = g + mu m (Nesterov), divided by its Frobenius norm + 1e-7       g: the gradient times the clip factor
//   five times:  X = (a I + b G + c G^2) X,  G = X X^T                          (Newton and Schulz; tall: X (..), G = X^T X)
//   w = w (1 - lr decay) - lr 0.2 sqrt(max(rows, columns)) X
//
// In exact arithmetic, singular values of X from 0.01 on end within 0.68 to 1.14 (X and G are rounded to Real). The length of the
// step (J. Liu et al., arXiv 2502.16982, eq. 4) makes the root mean square of its elements about 0.2, which is that of AdamW's
// steps: one learning rate is good for both.
#pragma once
#include "ops/adamw.cuh"
#include "ops/linear.cuh"

namespace tapernorm {

// `parts` matrices side by side in one tensor [rows, parts x columns], each made orthogonal by itself; tensor.v is not used.
template <class Real>
struct MuonMatrices {
    AdamwTensor<Real> tensor;
    size_t rows, columns, parts;
};

struct MuonArgs {
    double lr, clip_factor, momentum = 0.95;
};

// Numbers of scratch that muon_update needs for matrices [rows, columns].
inline size_t muon_scratch(size_t rows, size_t columns) {
    const size_t q = std::min(rows, columns);
    return 2 * rows * columns + 2 * q * q;
}

// ---- What is done to the element at (row, i) of a part, which begins at column `at` of the tensor; x [rows, columns]

template <class Real>
struct MuonMomentum {
    Real* x;
    MuonMatrices<Real> w;
    size_t at;
    Acc<Real> momentum, clip_factor;
    TN_HOST_DEVICE void operator()(size_t row, size_t i) const {
        const size_t j = row * w.parts * w.columns + at + i;
        const Acc<Real> g = clip_factor * Acc<Real>(w.tensor.grad[j]), m = momentum * w.tensor.m[j] + g;
        w.tensor.m[j] = m;
        x[row * w.columns + i] = Real(g + momentum * m);
    }
};

template <class Real>
struct MuonNormalize {  // x /= |x| + 1e-7: without a gradient there is no direction
    Real* x;
    const double* squares;
    size_t columns;
    TN_HOST_DEVICE void operator()(size_t row, size_t i) const {
        Real& value = x[row * columns + i];
        value = Real(Acc<Real>(value) / (std::sqrt(Acc<Real>(*squares)) + Acc<Real>(1e-7)));
    }
};

template <class Real>
struct MuonBlend {  // y [q, q] = a I + b x
    Real* y;
    const Real* x;
    Acc<Real> a, b;
    size_t q;
    TN_HOST_DEVICE void operator()(size_t row, size_t i) const {
        y[row * q + i] = Real(b * Acc<Real>(x[row * q + i]) + (row == i ? a : Acc<Real>(0)));
    }
};

template <class Real>
struct MuonStep {
    MuonMatrices<Real> w;
    const Real* x;
    size_t at;
    Acc<Real> shrink, step;
    TN_HOST_DEVICE void operator()(size_t row, size_t i) const {
        const size_t j = row * w.parts * w.columns + at + i;
        const Acc<Real> before = w.tensor.master ? w.tensor.master[j] : Acc<Real>(w.tensor.w[j]);
        const Acc<Real> after = shrink * before - step * Acc<Real>(x[row * w.columns + i]);
        if (w.tensor.master) w.tensor.master[j] = after;
        w.tensor.w[j] = Real(after);
    }
};

template <class Visit>
void for_elements(Cpu& dev, size_t rows, size_t columns, const Visit& visit) {
    parallel_ranges(dev, rows, 16, [&](size_t begin, size_t end, int) {
        for (size_t row = begin; row < end; row++)
            for (size_t i = 0; i < columns; i++) visit(row, i);
    });
}

#ifdef TN_CUDA
template <class Visit>
__global__ void __launch_bounds__(256) for_elements_kernel(Visit visit, size_t rows, size_t columns) {
    for (size_t i = size_t(blockIdx.x) * 256 + threadIdx.x; i < rows * columns; i += size_t(gridDim.x) * 256)
        visit(i / columns, i % columns);
}

template <class Visit>
void for_elements(Cuda& dev, size_t rows, size_t columns, const Visit& visit) {
    const size_t most = 8 * size_t(dev.multiprocessors());
    launch<for_elements_kernel<Visit>>(unsigned(std::min<size_t>(blocks_for(rows * columns, 256), most)), 256, 0,
                                       dev.stream, visit, rows, columns);
}
#endif

// scratch: muon_scratch(w.rows, w.columns) numbers.
template <class Real, class Device>
void muon_update(Device& dev, const MuonMatrices<Real>& w, const MuonArgs& args, Real* scratch) {
    using Scalar = Acc<Real>;
    constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
    const size_t n = w.rows * w.columns, q = std::min(w.rows, w.columns), longer = std::max(w.rows, w.columns);
    const bool tall = w.rows > w.columns;
    for (size_t at = 0; at < w.parts * w.columns; at += w.columns) {
        Real *x = scratch, *y = x + n, *gram = y + n, *polynomial = gram + q * q;
        auto each = [&](const auto& visit) { for_elements(dev, w.rows, w.columns, visit); };
        each(MuonMomentum<Real>{x, w, at, Scalar(args.momentum), Scalar(args.clip_factor)});
        each(MuonNormalize<Real>{x, sum_of_squares_there(dev, x, n), w.columns});
        for (int i = 0; i < 5; i++, std::swap(x, y)) {
            // clang-format off
            gemm<Real>(dev, {.M = q, .N = q, .K = longer, .A = x, .lda = w.columns, .trans_a = tall,
                             .B = x, .ldb = w.columns, .trans_b = !tall, .C = gram, .ldc = q});
            for_elements(dev, q, q, MuonBlend<Real>{polynomial, gram, Scalar(a), Scalar(b), q});
            gemm<Real>(dev, {.M = q, .N = q, .K = q, .A = gram, .lda = q, .trans_a = false,
                             .B = gram, .ldb = q, .trans_b = false, .C = polynomial, .ldc = q, .alpha = Real(c), .accumulate = true});
            // clang-format on
            const Real *left = tall ? x : polynomial, *right = tall ? polynomial : x;
            matmul_forward<Real>(dev, y, left, right, nullptr, nullptr, w.rows, q, w.columns);
        }
        each(MuonStep<Real>{w, x, at, Scalar(1 - args.lr * double(w.tensor.decay)),
                            Scalar(args.lr * 0.2 * std::sqrt(double(longer)))});
    }
}

}  // namespace tapernorm
