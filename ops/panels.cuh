// Weights for inference on the CPU: a matrix W [K, N] cut into panels of 64 columns, each of which lies in memory as
// it is read, row after row, so that a product with a few rows runs at the speed of the memory. Numbers are
//
//   fp32
//   bf16   rounded to nearest; a 32-bit word holds columns c (low) and c + 16
//   int8   q[k, n] = round(W[k, n] / step[n]), step[n] = max_k |W[k, n]| / 127: symmetric, per output channel;
//          stored as q + 128, a word holds 4 consecutive k of a column
//
// The product: out[r, n] = step[n] (sum_k in[r, k] q[k, n]) + bias[n] + residual[r, n], then GELU. The bits of a row depend
// on nothing but that row, whatever the number of rows or threads: the sum is one chain of multiply-adds over k. With int8,
// `in` is rounded to int8, too, and the sum is the one of ops/dots.cuh.
#pragma once
#include "ops/dots.cuh"

namespace tapernorm {

enum class WeightType { fp32, bf16, int8 };

constexpr size_t kPanelColumns = kDotColumns;

struct Panels {
    size_t K = 0, N = 0;
    WeightType type = WeightType::fp32;
    const unsigned char* data = nullptr;  // [panels, rows, 64], 64-byte aligned; what is behind K or N is 0
    const float* step = nullptr;          // int8: quantization steps [panels, 64]

    static size_t element_bytes(WeightType t) { return t == WeightType::fp32 ? 4 : t == WeightType::bf16 ? 2 : 1; }
    size_t count() const { return (N + kPanelColumns - 1) / kPanelColumns; }
    size_t rows() const { return type == WeightType::int8 ? (K + kDotWord - 1) / kDotWord * kDotWord : K; }
    size_t row_bytes() const { return kPanelColumns * element_bytes(type); }
    size_t bytes() const { return count() * rows() * row_bytes(); }
    // Rows from k on; with int8, k is a multiple of 4.
    const unsigned char* row(size_t panel, size_t k) const { return data + (panel * rows() + k) * row_bytes(); }
};

// in [M, K] with leading dimension ld_in, out and residual [M, N] contiguous. residual may be out.
struct PanelProduct {
    const Panels* weights;
    const float* in;
    size_t ld_in, M;
    float* out;
    const float* bias;      // [N] or null
    const float* residual;  // or null
    bool gelu;
    size_t first_row = 0;     // computes rows first_row .. M - 1 alone
    void* rounded = nullptr;  // int8: room for rounded_row_bytes(K) for each row of `in`, which leaf_panel_round fills
};

// Rows that share one pass over a panel, and what one thread needs for their sums and a converted block of the panel.
constexpr size_t kPanelRows = 256;
constexpr size_t kPanelScratch = (kPanelRows + kBlockK) * kPanelColumns * sizeof(float);

#ifdef LEAF_BUILD  // ---- CPU leaf loops
namespace {

// kTileVectors vectors of one row of a panel, as floats. A vector is one of the `kParts` of the same words.
template <WeightType type>
struct PanelRow {
    static constexpr size_t kVectors = kTileVectors, kTiles = kPanelColumns / (kVectors * kFloatLanes);
    static constexpr size_t kParts = type == WeightType::fp32 ? 1 : 2;

    // Where vector v of a tile begins: among the words of a row, and among the columns of the panel.
    static constexpr size_t word(size_t tile, size_t v) { return (tile * kVectors + v) / kParts * kFloatLanes; }
    static constexpr size_t column(size_t tile, size_t v) {
        if (type == WeightType::fp32) return word(tile, v);
        const size_t w = word(tile, v), part = (tile * kVectors + v) % kParts;
        return w / 16 * 16 * kParts + 16 * part + w % 16;
    }
    [[gnu::always_inline]] static inline void load_row(Floats (&out)[kVectors], const unsigned char* row, size_t tile) {
#pragma GCC unroll 4
        for (size_t v = 0; v < kVectors; v++) {
            Integers w;
            load(w, reinterpret_cast<const int32_t*>(row) + word(tile, v));
            const size_t part = (tile * kVectors + v) % kParts;
            if constexpr (type == WeightType::fp32) out[v] = __builtin_bit_cast(Floats, w);
            if constexpr (type == WeightType::bf16)
                out[v] = __builtin_bit_cast(Floats, part ? w & (Integers{} + int32_t(0xffff0000)) : w << 16);
        }
    }
};

// sums [rows, 64] (+)= in [rows, kc] panel rows, one tile of columns.
template <WeightType type, size_t kRows>
[[gnu::always_inline]] inline void panel_tile(float* sums, const float* in, size_t ld_in, const unsigned char* w,
                                              size_t row_bytes, size_t kc, size_t tile, bool first) {
    using Row = PanelRow<type>;
    Floats sum[kRows][kTileVectors];
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (size_t v = 0; v < kTileVectors; v++) {
            sum[r][v] = Floats{};
            if (!first) load(sum[r][v], sums + r * kPanelColumns + Row::column(tile, v));
        }
    for (size_t k = 0; k < kc; k++, w += row_bytes) {
        Floats row[kTileVectors];
        Row::load_row(row, w, tile);
#pragma GCC unroll 6
        for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
            for (size_t v = 0; v < kTileVectors; v++) sum[r][v] += row[v] * in[r * ld_in + k];
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (size_t v = 0; v < kTileVectors; v++) store(sums + r * kPanelColumns + Row::column(tile, v), sum[r][v]);
}

template <WeightType type, size_t kRows>
void panel_rows(float* sums, const float* in, size_t ld_in, const unsigned char* w, size_t kc, bool first) {
    const size_t row_bytes = kPanelColumns * Panels::element_bytes(type);
    for (size_t tile = 0; tile < PanelRow<type>::kTiles; tile++)
        panel_tile<type, kRows>(sums, in, ld_in, w, row_bytes, kc, tile, first);
}

template <WeightType type>
void panel_block(size_t rows, float* sums, const float* in, size_t ld_in, const unsigned char* w, size_t kc,
                 bool first) {
    switch (rows) {
        case 1:
            return panel_rows<type, 1>(sums, in, ld_in, w, kc, first);
        case 2:
            return panel_rows<type, 2>(sums, in, ld_in, w, kc, first);
        case 3:
            return panel_rows<type, 3>(sums, in, ld_in, w, kc, first);
        case 4:
            return panel_rows<type, 4>(sums, in, ld_in, w, kc, first);
        case 5:
            return panel_rows<type, 5>(sums, in, ld_in, w, kc, first);
        default:
            return panel_rows<type, 6>(sums, in, ld_in, w, kc, first);
    }
}

// kc rows of a panel from k0 on, as floats.
template <WeightType type>
void unpack_panel(float* out, const Panels& p, size_t panel, size_t k0, size_t kc) {
    for (size_t k = 0; k < kc; k++, out += kPanelColumns)
        for (size_t tile = 0; tile < PanelRow<type>::kTiles; tile++) {
            Floats w[kTileVectors];
            PanelRow<type>::load_row(w, p.row(panel, k0 + k), tile);
            for (size_t v = 0; v < kTileVectors; v++) store(out + PanelRow<type>::column(tile, v), w[v]);
        }
}

// sums [rows, 64]: of rows row0 .. of `in` with one panel. Few rows take it as it comes from memory; for more, a
// block of it stays in the cache while they pass over it, converted where that pays.
template <WeightType type>
void panel_sums(float* sums, float* unpacked, const PanelProduct& p, size_t panel, size_t row0, size_t rows) {
    const size_t K = p.weights->K;
    const bool convert = type != WeightType::fp32 && rows > 4 * kTileRows;
    const size_t block = rows <= kTileRows && PanelRow<type>::kTiles == 1 ? K : even_block(K, kBlockK, 8);
    for (size_t k = 0; k < K; k += block) {
        const size_t kc = K - k < block ? K - k : block;
        if (convert) unpack_panel<type>(unpacked, *p.weights, panel, k, kc);
        for (size_t r = 0; r < rows; r += kTileRows) {
            const size_t n = rows - r < kTileRows ? rows - r : kTileRows;
            const float* in = p.in + (row0 + r) * p.ld_in + k;
            float* to = sums + r * kPanelColumns;
            if (rows > kTileRows) prefetch_rows(in + kTileRows * p.ld_in, p.ld_in, 0, kc);
            if (convert)
                panel_block<WeightType::fp32>(n, to, in, p.ld_in, reinterpret_cast<const unsigned char*>(unpacked), kc,
                                              k == 0);
            else
                panel_block<type>(n, to, in, p.ld_in, p.weights->row(panel, k), kc, k == 0);
        }
    }
}

void finish_panel(const PanelProduct& p, float* sums, size_t panel, size_t row0, size_t rows) {
    const size_t j0 = panel * kPanelColumns, N = p.weights->N;
    const size_t n = N - j0 < kPanelColumns ? N - j0 : kPanelColumns;
    for (size_t r = 0; r < rows; r++, sums += kPanelColumns) {
        const size_t at = (row0 + r) * N + j0;
        if (p.weights->step)
            for (size_t j = 0; j < kPanelColumns; j++) sums[j] *= p.weights->step[j0 + j];
        for (size_t j = 0; j < n && p.bias; j++) sums[j] += p.bias[j0 + j];
        for (size_t j = 0; j < n && p.residual; j++) sums[j] += p.residual[at + j];
        if (p.gelu) leaf_gelu_forward(sums, sums, kPanelColumns);
        copy(p.out + at, sums, n);
    }
}

// How int8 is multiplied: use(Dot or DotInstruction).
template <class Use>
void with_dots([[maybe_unused]] bool instruction, Use&& use) {
#if defined(__AVX2__)
    if (instruction) return use(DotInstruction{});
#endif
    use(Dot{});
}

// Rounds rows [first, last) of `in`, for int8.
void leaf_panel_round(const PanelProduct& p, size_t first, size_t last, bool instruction) {
    const size_t K = p.weights->K, groups = dot_groups(K);
    with_dots(instruction, [&](auto dots) {
        auto* out = static_cast<DotGroup<decltype(dots)>*>(p.rounded);
        for (size_t r = first; r < last; r++) round_row(out + r * groups, p.in + r * p.ld_in, K);
    });
}

// Panels [first, last) of the product. scratch: kPanelScratch bytes, 64-byte aligned.
void leaf_panel_product(const PanelProduct& p, size_t first, size_t last, bool instruction, void* scratch) {
    float* const sums = static_cast<float*>(scratch);
    float* const unpacked = sums + kPanelRows * kPanelColumns;
    for (size_t panel = first; panel < last; panel++)
        for (size_t row = p.first_row; row < p.M; row += kPanelRows) {
            const size_t rows = p.M - row < kPanelRows ? p.M - row : kPanelRows;
            if (p.weights->type == WeightType::fp32)
                panel_sums<WeightType::fp32>(sums, unpacked, p, panel, row, rows);
            else if (p.weights->type == WeightType::bf16)
                panel_sums<WeightType::bf16>(sums, unpacked, p, panel, row, rows);
            else
                with_dots(instruction, [&](auto dots) {
                    const size_t K = p.weights->K;
                    const auto* in = static_cast<const DotGroup<decltype(dots)>*>(p.rounded) + row * dot_groups(K);
                    dot_panel(sums, in, p.weights->row(panel, 0), K, rows);
                });
            finish_panel(p, sums, panel, row, rows);
        }
}

}  // namespace
#else  // ---- CPU

// Panels [first, last) on one thread.
inline void panel_product_single(Cpu& dev, int thread, PanelProduct p, size_t first, size_t last) {
    const bool round = p.weights->type == WeightType::int8 && !p.rounded;
    char* const scratch =
        static_cast<char*>(dev.scratch(thread, kPanelScratch + (round ? p.M * rounded_row_bytes(p.weights->K) : 0)));
    if (round) {
        p.rounded = scratch + kPanelScratch;
        leaf<float>(dev).panel_round(p, 0, p.M, dev.dot_instruction);
    }
    leaf<float>(dev).panel_product(p, first, last, dev.dot_instruction, scratch);
}

// The whole product, by all threads. Where a matrix has fewer panels than there should be chunks, many rows are cut, too: else most of
// 16 threads would have nothing to do in a layer of 128 columns.
inline void panel_product(Cpu& dev, PanelProduct p) {
    constexpr size_t kLeastRows = 64;
    if (p.weights->type == WeightType::int8) {
        p.rounded = dev.shared_scratch(p.M * rounded_row_bytes(p.weights->K));
        parallel_ranges(dev, p.M, 16, [&](size_t first, size_t last, int) {
            leaf<float>(dev).panel_round(p, first, last, dev.dot_instruction);
        });
    }
    const size_t panels = p.weights->count();
    const size_t cuts = std::min(p.M / kLeastRows, kRangesPerThread * size_t(dev.threads) / panels);
    if (cuts <= 1 || dev.threads == 1)
        return parallel_ranges(dev, panels, 1, [&](size_t first, size_t last, int thread) {
            panel_product_single(dev, thread, p, first, last);
        });
    parallel_tasks(dev, panels * cuts, [&](size_t task, int thread) {
        PanelProduct part = p;
        part.first_row = task % cuts * p.M / cuts, part.M = (task % cuts + 1) * p.M / cuts;
        panel_product_single(dev, thread, part, task / cuts, task / cuts + 1);
    });
}
#endif

}  // namespace tapernorm
