// How fast is our attention? Forward and backward in bf16 on one GPU, against the rate of cuBLASLt's matrix
// multiply measured in the same run; first, every head size is checked against the CPU. Prints a Markdown
// table.
//
//   nvcc -std=c++20 -O3 -arch=native -DTN_CUDA -I. dev/cuda/bench_attention.cu <leaf objects> -lcublasLt
//   -Xcompiler -fopenmp
//   ./bench_attention [rounds = 21]
//
// FLOPs as is usual: forward 2 products of T x T x hs a head, backward 5 (ours computes 7:
// ops/attention/flash_mma.cuh), of which the causal mask leaves half. Both are 2 FLOPs a multiply-add.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "ops/attention/attention.cuh"
#include "runtime/exit_status.h"
#include "runtime/median.h"
#include "runtime/random.h"

namespace tapernorm {

namespace {

// Median seconds of op() over `rounds`, each the mean of 5 calls in a row.
double measure(Cuda& dev, int rounds, const std::function<void()>& op) {
    CudaTimer timer;
    for (int i = 0; i < 3; i++) op();
    std::vector<double> seconds;
    for (int i = 0; i < rounds; i++) {
        timer.begin(dev.stream);
        for (int j = 0; j < 5; j++) op();
        timer.end(dev.stream);
        seconds.push_back(timer.milliseconds() / 5e3);
    }
    return median(seconds);
}

template <class T>
class Buffer {
  public:
    Buffer(Cuda& dev, size_t count)
        : dev_(dev), data_(static_cast<T*>(device_allocate(dev, count * sizeof(T), "a tensor"))) {}
    Buffer(Cuda& dev, const std::vector<T>& values) : Buffer(dev, values.size()) {
        device_copy_in(dev, data_, values.data(), values.size() * sizeof(T));
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { device_free(dev_, data_); }
    T* data() const { return data_; }

  private:
    Cuda& dev_;
    T* data_;
};

std::vector<bf16> normals(size_t n, uint64_t seed) {
    std::vector<bf16> x(n);
    for (size_t i = 0; i < n; i++) x[i] = bf16(float(random_normal(seed, 0, i)));
    return x;
}

// ---------------------------------------------------------------------------------------------------------------------
// The matmul rate

// D [n, n] = A B, all bf16, fp32 accumulation, with the algorithm that cuBLASLt prefers.
class Matmul {
  public:
    Matmul(Cuda& dev, size_t n) : dev_(dev), a_(dev, normals(n * n, 1)), b_(dev, normals(n * n, 2)), d_(dev, n * n) {
        CUBLAS_CHECK(cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout_, CUDA_R_16BF, n, n, int64_t(n)));
        cublasLtMatmulPreference_t preference;
        CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
        CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                          &dev.workspace_bytes, sizeof dev.workspace_bytes));
        int found = 0;
        CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(dev.cublaslt, desc_, layout_, layout_, layout_, layout_, preference,
                                                    1, &choice_, &found));
        cublasLtMatmulPreferenceDestroy(preference);
        if (found == 0) fail("cuBLASLt has no algorithm for a bf16 matmul of %zu", n);
    }
    Matmul(const Matmul&) = delete;
    Matmul& operator=(const Matmul&) = delete;
    ~Matmul() {
        cublasLtMatrixLayoutDestroy(layout_);
        cublasLtMatmulDescDestroy(desc_);
    }
    void run() {
        const float one = 1, zero = 0;
        CUBLAS_CHECK(cublasLtMatmul(dev_.cublaslt, desc_, &one, a_.data(), layout_, b_.data(), layout_, &zero,
                                    d_.data(), layout_, d_.data(), layout_, &choice_.algo, dev_.workspace,
                                    dev_.workspace_bytes, dev_.stream));
    }

  private:
    Cuda& dev_;
    Buffer<bf16> a_, b_, d_;
    cublasLtMatmulDesc_t desc_ = nullptr;
    cublasLtMatrixLayout_t layout_ = nullptr;
    cublasLtMatmulHeuristicResult_t choice_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Attention

struct Shape {
    size_t B, T, NH, hs;
    size_t elements() const { return B * T * NH * hs; }
    double flops() const { return 2.0 * double(B * NH) * double(T) * double(T) * double(hs) / 2; }  // one product
};

struct Attention {
    Shape s;
    std::vector<bf16> qkv, dout;
    Buffer<bf16> in, d_out, out, d_in;
    Buffer<float> lse;

    Attention(Cuda& dev, const Shape& s_)
        : s(s_), qkv(normals(3 * s.elements(), 3)), dout(normals(s.elements(), 4)), in(dev, qkv), d_out(dev, dout),
          out(dev, s.elements()), d_in(dev, 3 * s.elements()), lse(dev, s.B * s.NH * s.T) {}

    void forward(Cuda& dev) { attention_forward(dev, out.data(), lse.data(), in.data(), s.B, s.T, s.NH * s.hs, s.NH); }
    void backward(Cuda& dev) {
        attention_backward(dev, d_in.data(), d_out.data(), out.data(), lse.data(), in.data(), s.B, s.T, s.NH * s.hs,
                           s.NH);
    }
};

// Largest difference in units of the largest value. (tests/cuda/test_cuda_attention.cpp has the exact
// bounds.)
double difference(Cuda& dev, const Buffer<bf16>& got, const std::vector<float>& expected) {
    std::vector<bf16> host(expected.size());
    device_copy_out(dev, host.data(), got.data(), host.size() * sizeof(bf16));
    double worst = 0, top = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        const double d = std::abs(double(float(host[i])) - double(expected[i]));
        if (!(d <= worst)) worst = d;
        if (std::isnan(worst)) break;
        top = std::max(top, std::abs(double(expected[i])));
    }
    return worst / top;
}

// Against the CPU in fp32, from the same inputs.
void validate(Cuda& dev, size_t hs) {
    const Shape s{2, 333, 2, hs};
    const size_t C = s.NH * s.hs;
    Attention attention(dev, s);
    attention.forward(dev);
    attention.backward(dev);
    Cpu cpu;
    const std::vector<float> qkv(attention.qkv.begin(), attention.qkv.end()),
        dout(attention.dout.begin(), attention.dout.end());
    std::vector<float> out(s.elements()), lse(s.B * s.NH * s.T), dqkv(3 * s.elements());
    attention_forward(cpu, out.data(), lse.data(), qkv.data(), s.B, s.T, C, s.NH);
    attention_backward(cpu, dqkv.data(), dout.data(), out.data(), lse.data(), qkv.data(), s.B, s.T, C, s.NH);
    const double forward = difference(dev, attention.out, out), backward = difference(dev, attention.d_in, dqkv);
    const double limit = 0x1p-6;  // 4 units of bf16's roundoff
    if (!(forward <= limit && backward <= limit))
        fail(
            "head size %zu: the GPU differs from the CPU by %.2g of the largest value forward and %.2g "
            "backward, expected "
            "at most %.2g; run the CUDA tests",
            hs, forward, backward, limit);
    std::printf("head size %zu agrees with the CPU: %.1e forward, %.1e backward\n", hs, forward, backward);
}

void bench(int rounds) {
    Cuda dev;
    std::printf("%s\n\n", probe_cuda().description.c_str());
    for (size_t hs : {32, 64, 80, 96, 128}) validate(dev, hs);

    const size_t n = 8192;
    double peak;
    {
        Matmul matmul(dev, n);
        peak = 2.0 * double(n) * double(n) * double(n) / measure(dev, rounds, [&] { matmul.run(); });
    }
    std::printf("\ncuBLASLt, bf16, %zu x %zu x %zu: %.0f TFLOP/s\n\n", n, n, n, peak * 1e-12);
    std::printf("| B | T | NH | hs | forward, us | TFLOP/s | of matmul | backward, us | TFLOP/s | of matmul |\n");
    std::printf("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (const Shape& s :
         {Shape{32, 1024, 12, 64}, Shape{128, 256, 12, 64}, Shape{8, 4096, 12, 64}, Shape{32, 1024, 16, 64},
          Shape{32, 1024, 12, 80}, Shape{32, 1024, 6, 128}, Shape{8, 4096, 6, 128}}) {
        Attention attention(dev, s);
        const double forward = measure(dev, rounds, [&] { attention.forward(dev); });
        const double backward = measure(dev, rounds, [&] { attention.backward(dev); });
        const double forward_rate = 2 * s.flops() / forward, backward_rate = 5 * s.flops() / backward;
        std::printf("| %zu | %zu | %zu | %zu | %.1f | %.0f | %.0f%% | %.1f | %.0f | %.0f%% |\n", s.B, s.T, s.NH, s.hs,
                    forward * 1e6, forward_rate * 1e-12, 100 * forward_rate / peak, backward * 1e6,
                    backward_rate * 1e-12, 100 * backward_rate / peak);
        std::fflush(stdout);
    }
}

}  // namespace

}  // namespace tapernorm

using namespace tapernorm;

int main(int argc, char** argv) {
    start_program();
    return exit_status("bench_attention", [&] {
        const int rounds = argc > 1 ? std::atoi(argv[1]) : 21;
        if (argc > 2 || rounds < 1) fail("expected at most one argument, the number of rounds (1 or more)");
        bench(rounds);
        return 0;
    });
}
