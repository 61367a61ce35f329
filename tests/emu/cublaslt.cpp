// The functions of cuBLASLt that the project calls, on plain loops.
//
// Column-major like the library; products are added in fp32 in the order of k; one rounding at each store;
// GELU is the tanh form. Strict: what the library might refuse on some GPU (unaligned bf16 rows, rare
// combinations of types and epilogues) is refused here, with the reason in
// cublasLtGetStatusString.
#include <cublasLt.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime.h"
#include "stream.h"
#include "text.h"

namespace emu {
namespace {

// What the opaque descriptors hold.
struct Operation {
    int32_t compute = CUBLAS_COMPUTE_32F, scale = CUDA_R_32F, pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    int32_t bias_type = -1, aux_type = -1;  // -1: that of D
    void *bias = nullptr, *aux = nullptr;
    int64_t aux_ld = 0;
};
struct Layout {
    uint32_t type;
    int32_t order = CUBLASLT_ORDER_COL;
    uint64_t rows, columns;
    int64_t ld;
    int32_t batches = 1;
    int64_t stride = 0;
};
struct Preference {
    uint64_t workspace = 0;
};

thread_local std::string refusal;

// ---------------------------------------------------------------------------------------------------------------------
// Is this problem one that the library surely accepts?

// The heuristics know so many algorithms, of which all after the first add in another order. One has a state that says so, one
// refuses when it is called.
constexpr int kAlgorithms = 5, kBroken = 1, kRefused = 3;

struct Problem {
    int algorithm;
    Operation op;
    Layout a, b, c, d;
    float alpha, beta;
    const char *A, *B, *C;
    char* D;

    size_t m() const { return d.rows; }
    size_t n() const { return d.columns; }
    size_t k() const { return op.transpose_a == CUBLAS_OP_N ? a.columns : a.rows; }
    bool has(uint32_t bits) const { return (op.epilogue & bits) == bits; }
    bool bias() const { return has(CUBLASLT_EPILOGUE_BIAS); }
    bool gelu() const { return has(CUBLASLT_EPILOGUE_GELU); }
    bool dgelu() const { return has(CUBLASLT_EPILOGUE_DGELU); }
    bool aux() const { return has(128); }
    bool uses_bias_vector() const {
        return bias() || has(16) || has(CUBLASLT_EPILOGUE_BGRADA) || has(CUBLASLT_EPILOGUE_BGRADB);
    }
};

size_t size_of(int32_t type) { return type == CUDA_R_16BF ? 2 : 4; }

size_t extent(const Layout& l) {
    const size_t one = size_t(l.ld) * (l.columns - 1) + l.rows;
    return (one + size_t(l.stride) * size_t(l.batches - 1)) * size_of(int32_t(l.type));
}

cublasStatus_t refuse(cublasStatus_t status, const std::string& reason) {
    refusal = reason;
    return status;
}

bool supported_epilogue(uint32_t e) {
    for (uint32_t known :
         {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS,
          CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
          CUBLASLT_EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
        if (e == known) return true;
    return false;
}

std::string wrong_types(const Problem& p) {
    const auto type_d = int32_t(p.d.type);
    const bool tf32 = p.op.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    if ((p.op.compute != CUBLAS_COMPUTE_32F && !tf32) || p.op.scale != CUDA_R_32F)
        return "compute type is not fp32 or tf32";
    if (p.op.pointer_mode != CUBLASLT_POINTER_MODE_HOST) return "alpha and beta are not on the host";
    const bool bf16_in = p.a.type == CUDA_R_16BF, fp32_out = type_d == CUDA_R_32F;
    if (p.a.type != p.b.type || (!bf16_in && p.a.type != CUDA_R_32F)) return "A and B are not both bf16 or both fp32";
    if (tf32 && bf16_in) return "tf32 is for fp32 inputs";
    if (p.c.type != p.d.type || (!fp32_out && type_d != CUDA_R_16BF) || (!bf16_in && !fp32_out))
        return "C and D have types that do not go with A and B";
    if (p.op.bias_type != -1 && p.op.bias_type != type_d) return "the bias has not the type of D";
    if (p.op.aux_type != -1 && p.op.aux_type != type_d) return "the auxiliary matrix has not the type of D";
    return "";
}

std::string wrong_shape(const Problem& p) {
    const bool ta = p.op.transpose_a != CUBLAS_OP_N, tb = p.op.transpose_b != CUBLAS_OP_N;
    const uint64_t b_rows = tb ? p.b.columns : p.b.rows, b_columns = tb ? p.b.rows : p.b.columns;
    if ((ta ? p.a.columns : p.a.rows) != p.m() || b_rows != p.k() || b_columns != p.n() || p.c.rows != p.m() ||
        p.c.columns != p.n())
        return strprintf("shapes: op(A) %s[%zu, %zu], op(B) %s[%zu, %zu], C [%zu, %zu], D [%zu, %zu]",
                         ta ? "T of " : "", size_t(p.a.rows), size_t(p.a.columns), tb ? "T of " : "", size_t(p.b.rows),
                         size_t(p.b.columns), size_t(p.c.rows), size_t(p.c.columns), p.m(), p.n());
    for (const Layout* l : {&p.a, &p.b, &p.c, &p.d}) {
        if (l->rows == 0 || l->columns == 0) return "an empty matrix";
        if (l->order != CUBLASLT_ORDER_COL) return "an order other than column-major";
        if (l->ld < int64_t(l->rows)) return strprintf("ld %ld is less than %ld rows", long(l->ld), long(l->rows));
        if (l->batches != p.d.batches) return "batch counts differ";
    }
    return "";
}

std::string wrong_alignment(const Problem& p) {
    for (const Layout* l : {&p.a, &p.b, &p.c, &p.d})
        if (l->type == CUDA_R_16BF && (l->ld % 8 || l->stride % 8))
            return strprintf("bf16 columns start at multiples of %ld elements: not 16-byte aligned", long(l->ld));
    return "";
}

std::string wrong_epilogue(const Problem& p) {
    if (!supported_epilogue(p.op.epilogue)) return strprintf("epilogue %u is not supported", p.op.epilogue);
    if (p.d.batches > 1 && p.op.epilogue != CUBLASLT_EPILOGUE_DEFAULT) return "an epilogue with batches";
    if (p.uses_bias_vector() && !p.op.bias) return "the epilogue needs a bias pointer";
    if (p.aux() && (!p.op.aux || p.op.aux_ld < int64_t(p.m()) || p.op.aux_ld % 8))
        return strprintf(
            "the epilogue needs an auxiliary pointer and a leading dimension (%ld) of at least %zu that "
            "divides by 8",
            long(p.op.aux_ld), p.m());
    return "";
}

// Without memory: the heuristic does not know it.
cublasStatus_t check(const Problem& p) {
    if (const std::string wrong = wrong_shape(p); !wrong.empty()) return refuse(CUBLAS_STATUS_INVALID_VALUE, wrong);
    for (const std::string& wrong : {wrong_types(p), wrong_alignment(p), wrong_epilogue(p)})
        if (!wrong.empty()) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, wrong);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t check_memory(const Problem& p) {
    struct Range {
        const char* name;
        const void* p;
        size_t bytes;
    };
    const size_t element = size_of(int32_t(p.d.type));
    const size_t bias_elements = p.has(CUBLASLT_EPILOGUE_BGRADB) ? p.n() : p.m();
    const size_t aux_elements = size_t(p.op.aux_ld) * (p.n() - 1) + p.m();
    const Range ranges[] = {{"A", p.A, extent(p.a)},
                            {"B", p.B, extent(p.b)},
                            {"C", p.C, extent(p.c)},
                            {"D", p.D, extent(p.d)},
                            {"bias", p.uses_bias_vector() ? p.op.bias : nullptr, bias_elements * element},
                            {"aux", p.aux() ? p.op.aux : nullptr, aux_elements * element}};
    for (const Range& r : ranges) {
        if (!r.p && r.name[1] == '\0') return refuse(CUBLAS_STATUS_INVALID_VALUE, strprintf("%s is null", r.name));
        if (!r.p) continue;
        const std::string wrong = check_range(r.p, r.bytes);
        if (!wrong.empty() || memory_kind(r.p) != MemoryKind::device)
            return refuse(CUBLAS_STATUS_INVALID_VALUE, std::string(r.name) + " reaches " + wrong);
        if (reinterpret_cast<uintptr_t>(r.p) % 16)
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, std::string(r.name) + " is not 16-byte aligned");
    }
    if (p.C == p.D && (p.c.ld != p.d.ld || p.c.stride != p.d.stride))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "C and D are one matrix with two layouts");
    return CUBLAS_STATUS_SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetic

float load(const void* base, int32_t type, size_t i) {
    if (type == CUDA_R_32F) return static_cast<const float*>(base)[i];
    return __builtin_bit_cast(float, uint32_t(static_cast<const uint16_t*>(base)[i]) << 16);
}

void store(void* base, int32_t type, size_t i, float value) {
    if (type == CUDA_R_32F) {
        static_cast<float*>(base)[i] = value;
        return;
    }
    const auto bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = std::isnan(value) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    static_cast<uint16_t*>(base)[i] = uint16_t(rounded);
}

// 10 bits of mantissa, to nearest: what tensor cores keep of an fp32 input.
float to_tf32(float x) { return __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, x) + 0x1000u) & ~0x1fffu); }

constexpr float gelu_scale = 0.7978845608f, gelu_cubic = 0.044715f;  // sqrt(2 / pi)

float gelu(float x) { return 0.5f * x * (1 + std::tanh(gelu_scale * (x + gelu_cubic * x * x * x))); }

float gelu_derivative(float x) {
    const float t = std::tanh(gelu_scale * (x + gelu_cubic * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * gelu_scale * (1 + 3 * gelu_cubic * x * x);
}

// A matrix as panels [ceil(rows / width)][k][width], padded with zeros: the inner loop reads them in order.
constexpr size_t width_a = 16, width_b = 4;

template <size_t width>
std::vector<float> pack(const char* base, const Layout& l, bool k_is_row, size_t count, size_t k, bool tf32) {
    std::vector<float> panels((count + width - 1) / width * width * k);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < k; j++) {
            const size_t row = k_is_row ? j : i, column = k_is_row ? i : j;
            const float x = load(base, int32_t(l.type), column * size_t(l.ld) + row);
            panels[(i / width * k + j) * width + i % width] = tf32 ? to_tf32(x) : x;
        }
    return panels;
}

// A vector of sums over k of a packed matrix.
template <size_t width>
void store_sums(const Problem& p, const std::vector<float>& panels, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (size_t j = 0; j < p.k(); j++) sum += panels[(i / width * p.k() + j) * width + i % width];
        store(p.op.bias, int32_t(p.d.type), i, sum);
    }
}

// One tile of sums of products, 16 rows by 4 columns. backward: from the last step of k.
void multiply(float (&sums)[width_b][width_a], const float* a, const float* b, size_t k, bool backward) {
    for (auto& column : sums) std::fill(std::begin(column), std::end(column), 0.0f);
    if (backward) a += (k - 1) * width_a, b += (k - 1) * width_b;
    const ptrdiff_t step = backward ? -1 : 1;
    for (size_t j = 0; j < k; j++, a += step * ptrdiff_t(width_a), b += step * ptrdiff_t(width_b))
        for (size_t column = 0; column < width_b; column++)
            for (size_t row = 0; row < width_a; row++) sums[column][row] += a[row] * b[column];
}

// What becomes of a sum of products on its way to D.
float finish(const Problem& p, float sum, const char* C, size_t row, size_t column) {
    const auto type = int32_t(p.d.type);
    float value = p.alpha * sum;
    if (p.beta != 0) value += p.beta * load(C, type, column * size_t(p.c.ld) + row);
    if (p.bias()) value += load(p.op.bias, type, row);
    const size_t aux = column * size_t(p.op.aux_ld) + row;
    if (p.gelu()) {
        if (p.aux()) store(p.op.aux, type, aux, value);
        value = gelu(value);
    }
    if (p.dgelu()) value *= gelu_derivative(load(p.op.aux, type, aux));
    return value;
}

void run_batch(const Problem& p, size_t batch) {
    auto at = [batch](const char* base, const Layout& l) {
        return base + batch * size_t(l.stride) * size_of(int32_t(l.type));
    };
    const size_t m = p.m(), n = p.n(), k = p.k();
    const bool tf32 = p.op.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    const auto a = pack<width_a>(at(p.A, p.a), p.a, p.op.transpose_a != CUBLAS_OP_N, m, k, tf32);
    const auto b = pack<width_b>(at(p.B, p.b), p.b, p.op.transpose_b == CUBLAS_OP_N, n, k, tf32);
    if (p.has(CUBLASLT_EPILOGUE_BGRADA)) store_sums<width_a>(p, a, m);
    if (p.has(CUBLASLT_EPILOGUE_BGRADB)) store_sums<width_b>(p, b, n);
    std::vector<float> row_sums(p.has(16) ? m : 0);  // the bias gradient of DGELU_BGRAD
    char* D = const_cast<char*>(at(p.D, p.d));
    const char* C = at(p.C, p.c);
    for (size_t column = 0; column < n; column += width_b)
        for (size_t row = 0; row < m; row += width_a) {
            float sums[width_b][width_a];
            multiply(sums, &a[row * k], &b[column * k], k, p.algorithm > 0);
            for (size_t j = column; j < std::min(n, column + width_b); j++)
                for (size_t i = row; i < std::min(m, row + width_a); i++) {
                    const float value = finish(p, sums[j - column][i - row], C, i, j);
                    if (!row_sums.empty()) row_sums[i] += value;
                    store(D, int32_t(p.d.type), j * size_t(p.d.ld) + i, value);
                }
        }
    for (size_t i = 0; i < row_sums.size(); i++) store(p.op.bias, int32_t(p.d.type), i, row_sums[i]);
}

// A fingerprint of a problem, kept in the algorithm that the heuristic returns for it.
uint64_t fingerprint(const Problem& p) {
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (uint64_t word :
         {uint64_t(p.m()), uint64_t(p.n()), uint64_t(p.k()), uint64_t(p.op.epilogue),
          uint64_t(p.op.transpose_a * 8 + p.op.transpose_b), uint64_t(p.a.type * 256 + p.d.type), uint64_t(p.a.ld),
          uint64_t(p.b.ld), uint64_t(p.c.ld), uint64_t(p.d.ld), uint64_t(p.d.batches)})
        hash = (hash ^ word) * 0x100000001b3u;
    return hash;
}

template <class T>
cublasStatus_t set(T& field, const void* value, size_t bytes) {
    if (!value || bytes != sizeof field) return refuse(CUBLAS_STATUS_INVALID_VALUE, "attribute of another size");
    std::memcpy(&field, value, sizeof field);
    return CUBLAS_STATUS_SUCCESS;
}

template <class T, class Opaque>
T& inside(Opaque* opaque) {
    return *reinterpret_cast<T*>(opaque);
}

Problem make_problem(cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    Problem p{};
    p.op = inside<Operation>(op);
    p.a = inside<Layout>(a), p.b = inside<Layout>(b), p.c = inside<Layout>(c), p.d = inside<Layout>(d);
    return p;
}

}  // namespace
}  // namespace emu

// ---------------------------------------------------------------------------------------------------------------------
// cuBLASLt

using namespace emu;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    *handle = reinterpret_cast<cublasLtHandle_t>(new int(0));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete reinterpret_cast<int*>(handle);
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "CUBLAS_STATUS_NOT_SUPPORTED";
        default:
            return "CUBLAS_STATUS_?";
    }
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
    static thread_local std::string text;
    text = cublasLtGetStatusName(status);
    if (status != CUBLAS_STATUS_SUCCESS && !refusal.empty()) text += ": " + refusal;
    return text.c_str();
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
    auto* op = new Operation;
    op->compute = compute, op->scale = scale;
    *desc = reinterpret_cast<cublasLtMatmulDesc_t>(op);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete &inside<Operation>(desc);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
    auto& op = inside<Operation>(desc);
    switch (attribute) {
        case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
            return set(op.compute, value, bytes);
        case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
            return set(op.scale, value, bytes);
        case CUBLASLT_MATMUL_DESC_POINTER_MODE:
            return set(op.pointer_mode, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSA:
            return set(op.transpose_a, value, bytes);
        case CUBLASLT_MATMUL_DESC_TRANSB:
            return set(op.transpose_b, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            return set(op.epilogue, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
            return set(op.bias, value, bytes);
        case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
            return set(op.bias_type, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
            return set(op.aux, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
            return set(op.aux_ld, value, bytes);
        case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
            return set(op.aux_type, value, bytes);
        default:
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, strprintf("operation attribute %d", int(attribute)));
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    auto* l = new Layout;
    l->type = uint32_t(type), l->rows = rows, l->columns = columns, l->ld = ld;
    *layout = reinterpret_cast<cublasLtMatrixLayout_t>(l);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete &inside<Layout>(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
    auto& l = inside<Layout>(layout);
    switch (attribute) {
        case CUBLASLT_MATRIX_LAYOUT_TYPE:
            return set(l.type, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_ORDER:
            return set(l.order, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_ROWS:
            return set(l.rows, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_COLS:
            return set(l.columns, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_LD:
            return set(l.ld, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return set(l.batches, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return set(l.stride, value, bytes);
        default:
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, strprintf("layout attribute %d", int(attribute)));
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete &inside<Preference>(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
    uint32_t ignored;
    switch (attribute) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return set(inside<Preference>(preference).workspace, value, bytes);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return set(ignored, value, bytes);
        default:
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, strprintf("preference attribute %d", int(attribute)));
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
    *found = 0;
    if (!handle || !preference || requested < 1) return refuse(CUBLAS_STATUS_INVALID_VALUE, "arguments");
    const Problem p = make_problem(op, a, b, c, d);
    if (const cublasStatus_t status = check(p); status != CUBLAS_STATUS_SUCCESS) return status;
    if (settings().no_epilogues && p.op.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "the test wants no epilogues");
    *found = std::min(requested, kAlgorithms);
    for (int i = 0; i < *found; i++) {
        results[i] = {};
        results[i].algo.data[0] = fingerprint(p), results[i].algo.data[1] = uint64_t(i);
        results[i].state = i == kBroken ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
        results[i].wavesCount = 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void* alpha, const void* A,
                              cublasLtMatrixLayout_t a, const void* B, cublasLtMatrixLayout_t b, const void* beta,
                              const void* C, cublasLtMatrixLayout_t c, void* D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    if (!handle || !alpha || !beta) return refuse(CUBLAS_STATUS_INVALID_VALUE, "arguments");
    Problem p = make_problem(op, a, b, c, d);
    p.alpha = *static_cast<const float*>(alpha), p.beta = *static_cast<const float*>(beta);
    p.A = static_cast<const char*>(A), p.B = static_cast<const char*>(B), p.C = static_cast<const char*>(C);
    p.D = static_cast<char*>(D);
    if (const cublasStatus_t status = check(p); status != CUBLAS_STATUS_SUCCESS) return status;
    if (const cublasStatus_t status = check_memory(p); status != CUBLAS_STATUS_SUCCESS) return status;
    if (settings().late_refusals && p.op.epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "the test wants a late refusal");
    if (algorithm && (algorithm->data[0] != fingerprint(p) || algorithm->data[1] >= kAlgorithms))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the algorithm was found for another problem");
    p.algorithm = algorithm ? int(algorithm->data[1]) : 0;
    if (p.algorithm == kBroken)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the heuristics said that this algorithm fails");
    if (p.algorithm == kRefused) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "one algorithm of each product refuses");
    if (workspace_bytes && !check_range(workspace, workspace_bytes).empty())
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is not device memory of that size");
    int device = 0;
    cudaGetDevice(&device);
    const int fastest = settings().fastest;
    const bool slow = fastest >= 0 && p.algorithm != (fastest + 2 * device) % 6;
    const cudaError_t error = submit(stream, [p, slow] {
        if (slow) pretended_milliseconds() += 1000;
        for (int batch = 0; batch < p.d.batches; batch++) run_batch(p, size_t(batch));
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                : refuse(CUBLAS_STATUS_EXECUTION_FAILED, cudaGetErrorString(error));
}
