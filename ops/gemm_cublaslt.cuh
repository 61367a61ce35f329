// The matrix product of ops/gemm.cuh on a GPU: by cuBLASLt, with the epilogue inside the product where cuBLASLt has one for
// the shape and type, and otherwise with our own kernels behind it. Our own plain product serves where rows are not
// 16-byte aligned. cuBLASLt is column-major: our C [M, N] is its D [N, M], our B its A, and our A its B. Products of fp32
// use fp32 arithmetic (no TF32).
#pragma once
#ifdef TN_CUDA
#include "ops/gelu.cuh"
#include "ops/gemm.cuh"
#include "ops/reduce.cuh"
#include "runtime/cuda.cuh"
#include "runtime/median.h"

namespace tapernorm {

// Applies the epilogue (ops/gemm.cuh) to a C that holds alpha op(A) op(B) + residual. All are [M, N], with rows ld apart. A
// thread computes one of the `vectors` of a row.
template <class Real>
__global__ void __launch_bounds__(256)
    matmul_epilogue_kernel(Real* C, Real* pre_gelu, const Real* bias, const Real* gelu_grad_at, bool gelu, size_t M,
                           unsigned N, size_t ld, unsigned vectors, bool whole) {
    const size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x, row = at / vectors;
    if (row >= M) return;
    const unsigned i = unsigned(at % vectors) * kVector<Real>;
    float value[kVector<Real>], v[kVector<Real>];
    load_vector(value, C + row * ld, i, N, whole);
    if (bias) {
        load_vector(v, bias, i, N, whole);
#pragma unroll
        for (unsigned j = 0; j < kVector<Real>; j++) value[j] += v[j];
    }
    if (pre_gelu) store_vector(pre_gelu + row * ld, value, i, N, whole);
    if (gelu_grad_at) load_vector(v, gelu_grad_at + row * ld, i, N, whole);
#pragma unroll
    for (unsigned j = 0; j < kVector<Real>; j++) {
        if (gelu) value[j] = gelu_cuda(value[j]);
        if (gelu_grad_at) value[j] *= gelu_slope_cuda(v[j]);
    }
    store_vector(C + row * ld, value, i, N, whole);
}

template <class Real>
void matmul_epilogue(Cuda& dev, const Gemm<Real>& g) {
    if (!g.bias && !g.gelu && !g.gelu_grad_at) return;
    const unsigned vectors = blocks_for(g.N, kVector<Real>);
    const bool whole =
        g.N % kVector<Real> == 0 && g.ldc % kVector<Real> == 0 && aligned_16(g.C, g.pre_gelu, g.bias, g.gelu_grad_at);
    launch<matmul_epilogue_kernel<Real>>(blocks_for(g.M * vectors, 256), 256, 0, dev.stream, g.C, g.pre_gelu, g.bias,
                                         g.gelu_grad_at, g.gelu, g.M, unsigned(g.N), g.ldc, vectors, whole);
}

// C = alpha op(A) op(B) + init for any alignment: 16 x 16 elements per block, one per thread. It is correct and not fast: no
// model meant for a GPU has such sizes.
constexpr unsigned kPlainTile = 16;

template <class Real>
__global__ void __launch_bounds__(kPlainTile* kPlainTile)
    matmul_plain_kernel(Gemm<Real> g, const Real* init, unsigned column_tiles) {
    float* const a = dynamic_shared<float>();  // [row, k], rows padded against bank conflicts
    float* const b = a + kPlainTile * (kPlainTile + 1);
    const size_t tile_m = size_t(blockIdx.x / column_tiles) * kPlainTile;
    const size_t tile_n = size_t(blockIdx.x % column_tiles) * kPlainTile;
    const unsigned r = threadIdx.x / kPlainTile, c = threadIdx.x % kPlainTile;
    float sum = 0;
    for (size_t k = 0; k < g.K; k += kPlainTile) {
        const size_t am = tile_m + r, ak = k + c, bk = k + r, bn = tile_n + c;
        a[r * (kPlainTile + 1) + c] =
            am < g.M && ak < g.K ? float(g.A[g.trans_a ? ak * g.lda + am : am * g.lda + ak]) : 0.0f;
        b[r * (kPlainTile + 1) + c] =
            bk < g.K && bn < g.N ? float(g.B[g.trans_b ? bn * g.ldb + bk : bk * g.ldb + bn]) : 0.0f;
        __syncthreads();
        for (unsigned i = 0; i < kPlainTile; i++) sum += a[r * (kPlainTile + 1) + i] * b[i * (kPlainTile + 1) + c];
        __syncthreads();
    }
    if (tile_m + r >= g.M || tile_n + c >= g.N) return;
    const size_t at = (tile_m + r) * g.ldc + tile_n + c;
    g.C[at] = Real(float(g.alpha) * sum + (init ? float(init[at]) : 0.0f));
}

// The epilogue of cuBLASLt that does all that g asks for besides the product, with its two pointers. DGELU_BGRAD overwrites its
// sums.
struct Epilogue {
    cublasLtEpilogue_t kind = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr, *auxiliary = nullptr;
};

template <class Real>
Epilogue epilogue_of(const Gemm<Real>& g) {
    if (g.gelu_grad_at && g.c_sums) return {CUBLASLT_EPILOGUE_DGELU_BGRAD, g.c_sums, g.gelu_grad_at};
    if (g.gelu_grad_at) return {CUBLASLT_EPILOGUE_DGELU, nullptr, g.gelu_grad_at};
    if (g.gelu && g.pre_gelu)
        return {g.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX, g.bias, g.pre_gelu};
    if (g.gelu) return {g.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU, g.bias, nullptr};
    return {g.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT, g.bias, nullptr};
}

// What tensor-core kernels need: the rows of every operand start at multiples of 16 bytes.
template <class Real>
bool fits_cublaslt(const Gemm<Real>& g, const Real* init, const Epilogue& e) {
    const size_t grain = e.auxiliary ? 8 : std::is_same_v<Real, float> ? 1 : 8;
    return aligned_16(g.A, g.B, g.C, init) && aligned_16(static_cast<const char*>(e.bias)) &&
           aligned_16(static_cast<const char*>(e.auxiliary)) && g.ldc % grain == 0 &&
           g.lda % (16 / sizeof(Real)) == 0 && g.ldb % (16 / sizeof(Real)) == 0;
}

// Tries each of a plan's candidates on the product itself, which must come out the same however often it runs, and keeps the fastest. The
// heuristics' first stays unless another takes 2% less time, by medians: most choices then survive the noise of timing.
template <class Product>
void choose_algorithm(Cuda& dev, MatmulPlan& plan, const Product& multiply) {
    constexpr size_t kRounds = 6;  // the first, which loads the kernels, does not count
    const std::vector<MatmulAlgorithm> candidates = std::exchange(plan.candidates, {});
    std::vector<bool> usable(candidates.size(), true);
    // Read at the end, so that no call waits for the one before.
    std::vector<CudaTimer> timers(candidates.size() * kRounds);
    for (size_t round = 0; round < kRounds; round++)
        for (size_t i = 0; i < candidates.size(); i++) {
            CudaTimer& timer = timers[i * kRounds + round];
            timer.begin(dev.stream);
            const cublasStatus_t status = multiply(candidates[i]);
            timer.end(dev.stream);
            if (status == CUBLAS_STATUS_NOT_SUPPORTED)
                usable[i] = false;
            else
                CUBLAS_CHECK(status);
        }
    dev.synchronize();
    plan.supported = false;
    double best = 0;
    for (size_t i = 0; i < candidates.size(); i++) {
        if (!usable[i]) continue;
        std::vector<double> times;
        for (size_t round = 1; round < kRounds; round++) times.push_back(timers[i * kRounds + round].milliseconds());
        const double typical = median(std::move(times));
        if (plan.supported && typical >= 0.98 * best) continue;
        plan.supported = true, plan.algorithm = candidates[i], best = typical;
    }
}

// Returns false where cuBLASLt has no algorithm with this epilogue; nothing was done then.
template <class Real>
bool cublaslt_matmul(Cuda& dev, const Gemm<Real>& g, const Epilogue& epilogue) {
    const Real* init = g.accumulate ? g.C : g.residual;
    if (!fits_cublaslt(g, init, epilogue)) return false;
    const MatmulShape shape{.type = std::is_same_v<Real, float> ? CUDA_R_32F : CUDA_R_16BF,
                            .epilogue = epilogue.kind,
                            .trans_a = g.trans_b,
                            .trans_b = g.trans_a,
                            .m = g.N,
                            .n = g.M,
                            .k = g.K,
                            .lda = g.ldb,
                            .ldb = g.lda,
                            .ldd = g.ldc};
    MatmulPlan& plan = dev.plans.find(dev.cublaslt, dev.workspace_bytes, shape, epilogue.bias, epilogue.auxiliary);
    if (!plan.supported) return false;
    if (epilogue.bias) plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, epilogue.bias);
    if (epilogue.auxiliary) plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, epilogue.auxiliary);
    const float alpha = float(g.alpha), beta = init ? 1.0f : 0.0f;
    const auto multiply = [&](const MatmulAlgorithm& algorithm) {
        return cublasLtMatmul(dev.cublaslt, plan.matmul, &alpha, g.B, plan.a, g.A, plan.b, &beta, init ? init : g.C,
                              plan.d, g.C, plan.d, &algorithm, dev.workspace, dev.workspace_bytes, dev.stream);
    };
    // What changes one of its own inputs comes out the same only once: such a shape waits for a product that does not.
    if (!plan.candidates.empty() && init != g.C && g.gelu_grad_at != g.C && !capturing(dev.stream)) {
        choose_algorithm(dev, plan, multiply);
        if (!plan.supported) return false;
    }
    const cublasStatus_t status = multiply(plan.algorithm);
    // The heuristics may promise what the product then refuses.
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return plan.supported = false;
    CUBLAS_CHECK(status);
    if (sync_launches())
        if (const cudaError_t error = wait_unless_capturing(dev.stream); error != cudaSuccess)
            cuda_failed(error,
                        strprintf("cuBLASLt product [%zu, %zu] x [%zu, %zu], epilogue %d", g.M, g.K, g.K, g.N,
                                  int(epilogue.kind))
                            .c_str(),
                        __FILE__, __LINE__);
    return true;
}

template <class Real>
__global__ void __launch_bounds__(256) add_kernel(Real* sum, const Real* term, size_t n) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) sum[i] = Real(float(sum[i]) + float(term[i]));
}

// The product with its epilogue, and with the column sums, if cuBLASLt can add them up beside GELU's derivative.
template <class Real>
bool cublaslt_matmul_and_sums(Cuda& dev, Gemm<Real> g) {
    if (!g.gelu_grad_at) return false;
    Real* const sums = g.c_sums;
    if (g.accumulate_sums) g.c_sums = static_cast<Real*>(dev.scratch(g.N * sizeof(Real)));
    if (!cublaslt_matmul(dev, g, epilogue_of(g))) return false;
    if (g.accumulate_sums)
        launch<add_kernel<Real>>(blocks_for(g.N, 256), 256, 0, dev.stream, sums, static_cast<const Real*>(g.c_sums),
                                 g.N);
    return true;
}

template <class Real>
void gemm(Cuda& dev, const Gemm<Real>& g) {
    static_assert(std::is_same_v<Real, float> || std::is_same_v<Real, bf16>);
    if (g.M == 0 || g.N == 0) return;
    // The GELU of an epilogue may use the hardware's tanh, whose relative error of 2^-11 is below the rounding of bf16 but not
    // that of fp32.
    const bool fused = !(std::is_same_v<Real, float> && (g.gelu || g.gelu_grad_at));
    Gemm<Real> product = g;
    product.c_sums = nullptr;
    if (fused && g.c_sums && cublaslt_matmul_and_sums(dev, g)) return;
    if (!fused || !cublaslt_matmul(dev, product, epilogue_of(product))) {
        if (!cublaslt_matmul(dev, product, {})) {
            const unsigned across = blocks_for(g.N, kPlainTile), down = blocks_for(g.M, kPlainTile);
            launch<matmul_plain_kernel<Real>>(blocks_for(size_t(across) * down, 1), kPlainTile * kPlainTile,
                                              2 * kPlainTile * (kPlainTile + 1) * sizeof(float), dev.stream, product,
                                              g.accumulate ? static_cast<const Real*>(g.C) : g.residual, across);
        }
        matmul_epilogue(dev, product);
    }
    if (!g.c_sums) return;
    if (g.ldc != g.N) fail("matmul: expected contiguous rows (%zu), found rows %zu apart", g.N, g.ldc);
    column_sums(dev, g.c_sums, g.C, g.M, g.N, g.accumulate_sums);
}

}  // namespace tapernorm
#endif  // TN_CUDA
