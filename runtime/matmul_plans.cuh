// Which algorithm of cuBLASLt multiplies matrices of which shape (for ops/gemm_cublaslt.cuh; the device owns the table). The
// first product of a shape asks cuBLASLt's heuristics, and later ones find the answer here. Unless somebody asks for it (tune),
// nothing is timed, so two runs always choose the same algorithms and get the same bits.
#pragma once
#ifdef TN_CUDA
#include <cublasLt.h>

#include <array>
#include <compare>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/launch.cuh"

namespace tapernorm {

// A call of cuBLASLt that must succeed.
#define CUBLAS_CHECK(call)                                                                                       \
    do {                                                                                                         \
        const cublasStatus_t cublas_check_status = (call);                                                       \
        if (cublas_check_status != CUBLAS_STATUS_SUCCESS)                                                        \
            fail("cuBLASLt: %s at %s:%d: %s; run again with SYNC_LAUNCHES=1 to exclude an earlier error", #call, \
                 __FILE__, __LINE__, cublasLtGetStatusString(cublas_check_status));                              \
    } while (0)

// D [m, n] = epilogue(op(A) [m, k] op(B) [k, n] + beta C), column-major as cuBLASLt has it; C has D's layout.
struct MatmulShape {
    cudaDataType_t type;  // A, B, C and D have it; accumulation is fp32
    cublasLtEpilogue_t epilogue;
    bool trans_a, trans_b;
    size_t m, n, k, lda, ldb, ldd;  // all addresses are 16-byte aligned

    auto operator<=>(const MatmulShape&) const = default;
};

// Has a name of its own because nvcc 13.0 fails ("internal error") at containers of a struct that has none, as cuBLASLt's.
struct MatmulAlgorithm : cublasLtMatmulAlgo_t {
    MatmulAlgorithm() = default;
    explicit MatmulAlgorithm(const cublasLtMatmulAlgo_t& algorithm) : cublasLtMatmulAlgo_t(algorithm) {}
};

struct MatmulPlan {
    bool supported = false;
    cublasLtMatmulDesc_t matmul = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    MatmulAlgorithm algorithm;
    std::vector<MatmulAlgorithm> candidates;  // still to be timed, `algorithm` first; empty where it is settled

    MatmulPlan() = default;
    MatmulPlan(const MatmulPlan&) = delete;
    MatmulPlan& operator=(const MatmulPlan&) = delete;
    ~MatmulPlan() {
        if (matmul) cublasLtMatmulDescDestroy(matmul);
        for (cublasLtMatrixLayout_t layout : {a, b, d})
            if (layout) cublasLtMatrixLayoutDestroy(layout);
    }

    template <class T>
    void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(matmul, attribute, &value, sizeof value));
    }
};

class MatmulPlans {
  public:
    // `bias` and `auxiliary` are what the epilogue reads or writes (null where it has none); the heuristics ask for them.
    MatmulPlan& find(cublasLtHandle_t handle, size_t workspace_bytes, const MatmulShape& shape, const void* bias,
                     const void* auxiliary) {
        std::unique_ptr<MatmulPlan>& plan = plans_[shape];
        if (!plan) plan = make(handle, workspace_bytes, shape, bias, auxiliary);
        return *plan;
    }
    size_t size() const { return plans_.size(); }

    // Whether new shapes come with several algorithms, of which ops/gemm_cublaslt.cuh takes the fastest.
    void tune(bool on) { tuning_ = on; }
    bool tuning() const { return tuning_; }

    // What is in use, one line per shape, for adopt() in another process with the same GPU and the same cuBLASLt: the same
    // algorithms give the same bits. (An algorithm is a block of bytes that may be stored.)
    std::string choices() const {
        std::ostringstream text;
        text << std::hex;
        for (const auto& [s, plan] : plans_) {
            if (!plan->supported) continue;
            for (const size_t number : numbers_of(s)) text << number << ' ';
            for (const uint64_t word : plan->algorithm.data) text << word << ' ';
            text << '\n';
        }
        return text.str();
    }
    void adopt(const std::string& choices) {
        std::istringstream text(choices);
        text >> std::hex;
        for (;;) {
            std::array<size_t, 10> n;
            MatmulAlgorithm algorithm;
            for (size_t& number : n) text >> number;
            for (uint64_t& word : algorithm.data) text >> word;
            if (!text) return;
            const MatmulShape s = {cudaDataType_t(n[0]),
                                   cublasLtEpilogue_t(n[1]),
                                   n[2] != 0,
                                   n[3] != 0,
                                   n[4],
                                   n[5],
                                   n[6],
                                   n[7],
                                   n[8],
                                   n[9]};
            adopted_[s] = algorithm;
            if (const auto plan = plans_.find(s); plan != plans_.end()) settle(*plan->second, algorithm);
        }
    }

    // Products whose epilogue cuBLASLt does not have, so that a pass of its own follows them: "GELU_BIAS [rows, k] x [k, columns]",
    // row-major as our tensors are.
    std::vector<std::string> refused() const {
        static const std::map<cublasLtEpilogue_t, const char*> kNames = {{CUBLASLT_EPILOGUE_BIAS, "BIAS"},
                                                                         {CUBLASLT_EPILOGUE_GELU, "GELU"},
                                                                         {CUBLASLT_EPILOGUE_GELU_BIAS, "GELU_BIAS"},
                                                                         {CUBLASLT_EPILOGUE_GELU_AUX, "GELU_AUX"},
                                                                         {CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
                                                                          "GELU_AUX_BIAS"},
                                                                         {CUBLASLT_EPILOGUE_DGELU, "DGELU"},
                                                                         {CUBLASLT_EPILOGUE_DGELU_BGRAD,
                                                                          "DGELU_BGRAD"}};
        std::vector<std::string> list;
        for (const auto& [s, plan] : plans_)
            if (const auto name = kNames.find(s.epilogue); !plan->supported && name != kNames.end())
                list.push_back(strprintf("%s [%zu, %zu] x [%zu, %zu]", name->second, s.n, s.k, s.k, s.m));
        return list;
    }

  private:
    static constexpr int kCandidates = 8;

    static std::array<size_t, 10> numbers_of(const MatmulShape& s) {
        return {size_t(s.type), size_t(s.epilogue), s.trans_a, s.trans_b, s.m, s.n, s.k, s.lda, s.ldb, s.ldd};
    }

    static void settle(MatmulPlan& plan, const MatmulAlgorithm& algorithm) {
        plan.supported = true, plan.algorithm = algorithm, plan.candidates.clear();
    }

    std::unique_ptr<MatmulPlan> make(cublasLtHandle_t handle, size_t workspace_bytes, const MatmulShape& s,
                                     const void* bias, const void* auxiliary) const {
        auto plan = std::make_unique<MatmulPlan>();
        CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F));
        plan->set(CUBLASLT_MATMUL_DESC_TRANSA, s.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N);
        plan->set(CUBLASLT_MATMUL_DESC_TRANSB, s.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N);
        plan->set(CUBLASLT_MATMUL_DESC_EPILOGUE, s.epilogue);
        if (bias) plan->set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        if (auxiliary) {
            plan->set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, auxiliary);
            plan->set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(s.ldd));
        }
        auto layout = [&](cublasLtMatrixLayout_t* l, size_t rows, size_t columns, size_t ld) {
            CUBLAS_CHECK(cublasLtMatrixLayoutCreate(l, s.type, rows, columns, int64_t(ld)));
        };
        layout(&plan->a, s.trans_a ? s.k : s.m, s.trans_a ? s.m : s.k, s.lda);
        layout(&plan->b, s.trans_b ? s.n : s.k, s.trans_b ? s.k : s.n, s.ldb);
        layout(&plan->d, s.m, s.n, s.ldd);
        if (const auto known = adopted_.find(s); known != adopted_.end()) {
            settle(*plan, known->second);
            return plan;
        }
        cublasLtMatmulPreference_t preference;
        CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
        auto prefer = [&]<class T>(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
            CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(workspace_bytes));
        // Where k is split, the parts are added in fp32; by default they may be added in the type of D.
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
        for (const auto attribute :
             {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
              CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
            prefer(attribute, uint32_t(16));
        cublasLtMatmulHeuristicResult_t results[kCandidates];
        int found = 0;
        const cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(handle, plan->matmul, plan->a, plan->b, plan->d, plan->d, preference,
                                           tuning_ ? kCandidates : 1, results, &found);
        CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
        if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED) CUBLAS_CHECK(status);
        for (int i = 0; i < found; i++)
            if (results[i].state == CUBLAS_STATUS_SUCCESS) plan->candidates.emplace_back(results[i].algo);
        plan->supported = status == CUBLAS_STATUS_SUCCESS && !plan->candidates.empty();
        if (plan->supported) plan->algorithm = plan->candidates[0];
        if (plan->candidates.size() == 1) plan->candidates.clear();
        return plan;
    }

    bool tuning_ = false;
    std::map<MatmulShape, std::unique_ptr<MatmulPlan>> plans_;
    std::map<MatmulShape, MatmulAlgorithm> adopted_;
};

}  // namespace tapernorm
#endif  // TN_CUDA
