// cuBLASLt and NCCL as the project uses them, against plain loops. The matmuls also run on a GPU with
// NVIDIA's library; NCCL needs the stand-in, where threads and forked processes are ranks.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include <cstring>

#include "tests/cuda/cuda_test.h"
#ifdef CUDA_EMU
#include <nccl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "emu.h"
#endif

namespace tapernorm {

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// cuBLASLt

struct Case {
    size_t m, n, k;
    bool ta = false, tb = false;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    float alpha = 1, beta = 0;
    int batches = 1;
    bool has(uint32_t bits) const { return (epilogue & bits) == bits; }
};

cublasLtMatrixLayout_t make_layout(cudaDataType_t type, size_t rows, size_t columns, int batches) {
    cublasLtMatrixLayout_t layout;
    const int64_t stride = int64_t(rows * columns);
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, rows, columns, int64_t(rows)));
    CUBLAS_CHECK(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batches, sizeof batches));
    CUBLAS_CHECK(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride));
    return layout;
}

template <class T>
void set_attribute(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(op, attribute, &value, sizeof value));
}

// Finds an algorithm and runs it. Null pointers are not set.
cublasStatus_t matmul(Cuda& dev, const Case& c, cudaDataType_t in, cudaDataType_t out, const void* A, const void* B,
                      void* D, void* bias, void* aux) {
    cublasLtMatmulDesc_t op;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_attribute(op, CUBLASLT_MATMUL_DESC_TRANSA, c.ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    set_attribute(op, CUBLASLT_MATMUL_DESC_TRANSB, c.tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    set_attribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE, c.epilogue);
    if (bias) set_attribute(op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    if (aux) set_attribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
    if (aux) set_attribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(c.m));
    const auto a = make_layout(in, c.ta ? c.k : c.m, c.ta ? c.m : c.k, c.batches);
    const auto b = make_layout(in, c.tb ? c.n : c.k, c.tb ? c.k : c.n, c.batches);
    const auto d = make_layout(out, c.m, c.n, c.batches);
    cublasLtMatmulPreference_t preference;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &dev.workspace_bytes, sizeof dev.workspace_bytes));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(dev.cublaslt, op, a, b, d, d, preference, 1, &result, &found);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmul(dev.cublaslt, op, &c.alpha, A, a, B, b, &c.beta, D, d, D, d, &result.algo,
                                dev.workspace, dev.workspace_bytes, dev.stream);
    cublasLtMatmulPreferenceDestroy(preference);
    for (const auto& layout : {a, b, d}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(op);
    return status;
}

double gelu_ref(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

double gelu_slope_ref(double x) {
    const double h = 1e-5;
    return (gelu_ref(x + h) - gelu_ref(x - h)) / (2 * h);
}

// Expected values and what they may differ by.
struct Expected {
    std::vector<double> d, aux, bias, d_error, aux_error, bias_error;
};

template <class In, class Out>
Expected matmul_ref(const Case& c, const std::vector<In>& A, const std::vector<In>& B, const std::vector<Out>& D,
                    const std::vector<Out>& bias, const std::vector<Out>& aux) {
    const size_t m = c.m, n = c.n, k = c.k, size = m * n;
    const double out_epsilon = std::is_same_v<Out, float> ? 0x1p-24 : 0x1p-8;
    const std::vector<double> matrix(D.size()), vector(bias.size());
    Expected e{matrix, matrix, vector, matrix, matrix, vector};
    auto a = [&](size_t batch, size_t i, size_t p) {
        return double(float(A[batch * m * k + (c.ta ? i * k + p : p * m + i)]));
    };
    auto b = [&](size_t batch, size_t p, size_t j) {
        return double(float(B[batch * k * n + (c.tb ? p * n + j : j * k + p)]));
    };
    for (size_t batch = 0; batch < size_t(c.batches); batch++)
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++) {
                const size_t at = batch * size + j * m + i;
                double sum = 0, magnitude = 0;
                for (size_t p = 0; p < k; p++)
                    sum += a(batch, i, p) * b(batch, p, j), magnitude += std::abs(a(batch, i, p) * b(batch, p, j));
                double value = c.alpha * sum + (c.beta != 0 ? c.beta * float(D[at]) : 0);
                if (c.has(CUBLASLT_EPILOGUE_BIAS)) value += float(bias[i]);
                e.aux[at] = value;
                if (c.has(CUBLASLT_EPILOGUE_GELU)) value = gelu_ref(value);
                if (c.has(CUBLASLT_EPILOGUE_DGELU)) value *= gelu_slope_ref(float(aux[at]));
                e.d[at] = value;
                // k additions, each rounded, times a slope of gelu below 1.13; a tanh that may be
                // approximate; one rounding at the store.
                const double sum_error = 1.2 * double(2 * k) * 0x1p-24 * magnitude + 1e-6;
                e.d_error[at] = sum_error + out_epsilon * std::abs(value);
                e.aux_error[at] = sum_error + out_epsilon * std::abs(e.aux[at]);
                if (c.has(CUBLASLT_EPILOGUE_GELU) || c.has(CUBLASLT_EPILOGUE_DGELU))
                    e.d_error[at] += 1e-3 * std::abs(e.aux[at]);
                if (c.has(CUBLASLT_EPILOGUE_DGELU_BGRAD)) e.bias[i] += value, e.bias_error[i] += e.d_error[at];
            }
    for (size_t p = 0; p < k; p++) {
        if (c.has(CUBLASLT_EPILOGUE_BGRADA))
            for (size_t i = 0; i < m; i++) e.bias[i] += a(0, i, p);
        if (c.has(CUBLASLT_EPILOGUE_BGRADB))
            for (size_t j = 0; j < n; j++) e.bias[j] += b(0, p, j);
    }
    for (size_t i = 0; i < e.bias.size(); i++)
        e.bias_error[i] += out_epsilon * std::abs(e.bias[i]) + double(k) * 0x1p-24 * 4;
    return e;
}

template <class T>
void check_close(const char* what, const std::vector<T>& got, const std::vector<double>& expected,
                 const std::vector<double>& error) {
    for (size_t i = 0; i < got.size(); i++) {
        INFO(what, "[", i, "] = ", float(got[i]), " instead of ", expected[i]);
        REQUIRE(std::abs(double(float(got[i])) - expected[i]) <= error[i]);
    }
}

template <class T>
constexpr cudaDataType_t type_of() {
    return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
}

template <class In, class Out>
void check_matmul(const Case& c) {
    CAPTURE(c.epilogue);
    CAPTURE(c.m);
    Cuda dev;
    const size_t batches = size_t(c.batches);
    const auto A = random_values<In>(batches * c.m * c.k, 1), B = random_values<In>(batches * c.k * c.n, 2);
    const auto D = random_values<Out>(batches * c.m * c.n, 3), aux = random_values<Out>(batches * c.m * c.n, 5);
    const bool uses_aux = c.epilogue & 128;
    const bool makes_bias = c.epilogue & (16 | CUBLASLT_EPILOGUE_BGRADA | CUBLASLT_EPILOGUE_BGRADB);
    const auto bias = random_values<Out>(c.has(CUBLASLT_EPILOGUE_BGRADB) ? c.n : c.m, 4);
    DeviceArray<In> a(dev, A), b(dev, B);
    DeviceArray<Out> d(dev, D), device_bias(dev, bias), device_aux(dev, aux);
    const bool uses_bias = makes_bias || c.has(CUBLASLT_EPILOGUE_BIAS);
    CUBLAS_CHECK(matmul(dev, c, type_of<In>(), type_of<Out>(), a.data(), b.data(), d.data(),
                        uses_bias ? device_bias.data() : nullptr, uses_aux ? device_aux.data() : nullptr));
    const Expected e = matmul_ref(c, A, B, D, bias, aux);
    check_close("D", d.values(), e.d, e.d_error);
    if (makes_bias) check_close("bias", device_bias.values(), e.bias, e.bias_error);
    if (uses_aux && c.has(CUBLASLT_EPILOGUE_GELU)) check_close("aux", device_aux.values(), e.aux, e.aux_error);
}

}  // namespace

CUDA_TEST("cublaslt: transposes, scales, batches") {
    for (const bool ta : {false, true})
        for (const bool tb : {false, true}) {
            check_matmul<bf16, bf16>({48, 40, 72, ta, tb});
            check_matmul<float, float>({20, 12, 28, ta, tb, CUBLASLT_EPILOGUE_DEFAULT, 0.5f, 2});
        }
    check_matmul<bf16, float>({64, 8, 32, true, false, CUBLASLT_EPILOGUE_DEFAULT, 1, 1});
    check_matmul<bf16, bf16>({16, 24, 32, true, false, CUBLASLT_EPILOGUE_DEFAULT, -1, 0.25f, 3});
}

CUDA_TEST("cublaslt: epilogues") {
    for (const cublasLtEpilogue_t epilogue :
         {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX,
          CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU_BGRAD})
        check_matmul<bf16, bf16>({64, 48, 40, true, false, uint32_t(epilogue)});
    check_matmul<bf16, bf16>({64, 48, 40, false, true, CUBLASLT_EPILOGUE_BGRADA});
    check_matmul<bf16, bf16>({64, 48, 40, false, true, CUBLASLT_EPILOGUE_BGRADB});
    check_matmul<float, float>({16, 8, 24, true, false, CUBLASLT_EPILOGUE_BIAS});
}

#ifdef CUDA_EMU
TEST_CASE("emu cublaslt: what the library might refuse is refused") {
    emu::settings().quiet = true;
    Cuda dev;
    DeviceArray<bf16> a(dev, 4096), b(dev, 4096), d(dev, 4096);
    auto status = [&](Case c, cudaDataType_t in, cudaDataType_t out, size_t offset = 0, void* bias = nullptr) {
        return matmul(dev, c, in, out, a.data() + offset, b.data(), d.data(), bias, nullptr);
    };
    const auto in = CUDA_R_16BF, fp32 = CUDA_R_32F;
    CHECK(status({32, 32, 32}, in, in) == CUBLAS_STATUS_SUCCESS);
    CHECK(status({32, 32, 32}, fp32, in) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(status({33, 32, 32}, in, in) == CUBLAS_STATUS_NOT_SUPPORTED);  // columns of 66 bytes
    CHECK(status({32, 32, 32}, in, in, 4) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(status({32, 32, 256}, in, in) == CUBLAS_STATUS_INVALID_VALUE);  // A and B are smaller
    CHECK(std::string(cublasLtGetStatusString(CUBLAS_STATUS_INVALID_VALUE)).find("A reaches") != std::string::npos);
    CHECK(status({32, 32, 32, false, false, CUBLASLT_EPILOGUE_BIAS}, in, in) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(status({32, 32, 32, false, false, CUBLASLT_EPILOGUE_RELU}, in, in) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(status({32, 32, 32, false, false, CUBLASLT_EPILOGUE_GELU_AUX}, in, in) == CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(status({8, 8, 8, false, false, CUBLASLT_EPILOGUE_BIAS, 1, 0, 2}, in, in, 0, d.data()) ==
          CUBLAS_STATUS_NOT_SUPPORTED);
    emu::settings().quiet = false;
}

// ---------------------------------------------------------------------------------------------------------------------
// NCCL

namespace {

void check_nccl(ncclResult_t result) {
    if (result != ncclSuccess) fail("%s: %s", ncclGetErrorString(result), ncclGetLastError(nullptr));
}

// Runs every collective as one rank and compares with what the inputs of all ranks give; "" if all is right.
std::string run_rank(ncclUniqueId id, int ranks, int rank) try {
    Cuda dev;
    ncclComm_t comm;
    check_nccl(ncclCommInitRank(&comm, ranks, id, rank));
    const size_t n = 300000, R = size_t(ranks), r = size_t(rank);  // more than one chunk of 1 MiB
    auto input = [](size_t from, size_t i) { return float(i % 1000) * float(from + 1); };
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = input(r, i);
    DeviceArray<float> send(dev, x), sum(dev, n), gathered(dev, n * R), part(dev, n / R), sent(dev, x);
    const float factor = float(R * (R + 1)) / 2;  // sum of from + 1
    check_nccl(ncclGroupStart());
    check_nccl(ncclAllReduce(send.data(), sum.data(), n, ncclFloat32, ncclSum, comm, dev.stream));
    check_nccl(ncclAllGather(send.data(), gathered.data(), n, ncclFloat32, comm, dev.stream));
    check_nccl(ncclGroupEnd());
    check_nccl(ncclReduceScatter(send.data(), part.data(), n / R, ncclFloat32, ncclAvg, comm, dev.stream));
    check_nccl(ncclBroadcast(sent.data(), sent.data(), n, ncclFloat32, ranks - 1, comm, dev.stream));
    check_nccl(ncclAllReduce(send.data(), send.data(), n, ncclFloat32, ncclMax, comm, dev.stream));
    const auto s = sum.values(), g = gathered.values(), p = part.values(), b = sent.values(), m = send.values();
    for (size_t i = 0; i < n; i++) {
        if (s[i] != float(i % 1000) * factor) return strprintf("AllReduce element %zu: %g", i, double(s[i]));
        if (b[i] != input(R - 1, i)) return strprintf("Broadcast element %zu: %g", i, double(b[i]));
        if (m[i] != input(R - 1, i)) return strprintf("AllReduce max element %zu: %g", i, double(m[i]));
        for (size_t from = 0; from < R; from++)
            if (g[from * n + i] != input(from, i)) return strprintf("AllGather element %zu of rank %zu", i, from);
    }
    for (size_t i = 0; i < n / R; i++) {
        const double expected = double((r * (n / R) + i) % 1000) * double(factor) / double(R);
        if (!(std::abs(p[i] - expected) <= 0x1p-23 * expected)) return strprintf("ReduceScatter element %zu", i);
    }
    // bf16 is summed in fp32: 256 + 1 + 1 is 258, which rounding after each addition would miss.
    DeviceArray<bf16> halves(dev, std::vector<bf16>(4, bf16(rank == 0 ? 256.0f : 1.0f)));
    check_nccl(ncclAllReduce(halves.data(), halves.data(), 4, ncclBfloat16, ncclSum, comm, dev.stream));
    const float expected = float(bf16(256.0f + float(ranks - 1)));
    if (float(halves.values()[3]) != expected) return strprintf("bf16 sum: %g", double(float(halves.values()[3])));
    check_nccl(ncclCommDestroy(comm));
    return "";
} catch (const Error& e) {
    return e.what();
}

// One thread per rank; f(rank) returns what went wrong.
template <class F>
std::vector<std::string> on_threads(int ranks, F&& f) {
    std::vector<std::string> results{size_t(ranks)};
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; rank++) threads.emplace_back([&, rank] { results[size_t(rank)] = f(rank); });
    for (auto& thread : threads) thread.join();
    return results;
}

// What each of two ranks learns when they do not call the same.
std::vector<std::string> disagree(const char* how) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    emu::settings().quiet = true;
    setenv("EMU_NCCL_TIMEOUT_MS", "300", 1);
    auto results = on_threads(2, [&](int rank) -> std::string {
        std::string result = "(no error)";
        ncclComm_t comm = nullptr;
        try {
            Cuda dev;
            DeviceArray<float> x(dev, 100);
            check_nccl(ncclCommInitRank(&comm, 2, id, rank));
            const size_t count = std::strcmp(how, "count") == 0 && rank == 1 ? 99 : 100;
            const ncclRedOp_t op = std::strcmp(how, "operation") == 0 && rank == 1 ? ncclMax : ncclSum;
            if (std::strcmp(how, "absent") == 0 && rank == 1) throw Error("absent");
            if (std::strcmp(how, "abort") == 0 && rank == 1) {
                check_nccl(ncclCommAbort(comm));
                comm = nullptr;
                throw Error("aborted");
            }
            check_nccl(ncclAllReduce(x.data(), x.data(), count, ncclFloat32, op, comm, dev.stream));
            dev.synchronize();
        } catch (const Error& e) {
            result = e.what();
        }
        if (comm) ncclCommDestroy(comm);
        return result;
    });
    unsetenv("EMU_NCCL_TIMEOUT_MS");
    emu::settings().quiet = false;
    return results;
}

}  // namespace

TEST_CASE("emu nccl: ranks as threads") {
    for (const bool lazy : {false, true}) {
        const bool saved = emu::settings().lazy;
        emu::settings().lazy = lazy;
        for (const int ranks : {1, 3}) {
            ncclUniqueId id;
            ncclGetUniqueId(&id);
            for (const std::string& wrong : on_threads(ranks, [&](int rank) { return run_rank(id, ranks, rank); }))
                CHECK(wrong == "");
        }
        emu::settings().lazy = saved;
    }
}

TEST_CASE("emu nccl: ranks as forked processes") {
    const int ranks = 2;
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    pid_t children[ranks];
    for (int rank = 0; rank < ranks; rank++) {
        children[rank] = fork();
        if (children[rank]) continue;
        const std::string wrong = run_rank(id, ranks, rank);
        if (!wrong.empty()) std::fprintf(stderr, "rank %d: %s\n", rank, wrong.c_str());
        _exit(wrong.empty() ? 0 : 1);
    }
    for (const pid_t child : children) {
        int status = -1;
        waitpid(child, &status, 0);
        CHECK(status == 0);
    }
}

TEST_CASE("emu nccl: ranks that do not agree get an error, not a hang") {
    auto contains = [](const std::string& text, const char* part) {
        CHECK_MESSAGE(text.find(part) != std::string::npos, text);
        CHECK_MESSAGE(text.find("no asynchronous error") == std::string::npos, text);
    };
    for (const char* how : {"count", "operation"})
        for (const std::string& message : disagree(how)) contains(message, "rank 1 calls AllReduce #0 of");
    contains(disagree("absent")[0], "not all 2 ranks came in 300 ms");
    contains(disagree("abort")[0], "another rank aborted");
}
#endif  // CUDA_EMU

}  // namespace tapernorm
#endif  // TN_CUDA
