// A model's matrices as the CPU's inference reads them (ops/panels.cuh), in fp32, bf16 or int8. Everything else,
// including the rows of the embeddings, stays where it is.
#pragma once
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "model/config.h"
#include "ops/panels.cuh"
#include "runtime/arena.h"

namespace tapernorm {

// "fp32", "bf16" or "int8", as --weights takes it, and back.
inline const char* weight_type_name(WeightType type) {
    return type == WeightType::int8 ? "int8" : type == WeightType::bf16 ? "bf16" : "fp32";
}
inline WeightType weight_type_from(const std::string& name) {
    return name == "int8" ? WeightType::int8 : name == "bf16" ? WeightType::bf16 : WeightType::fp32;
}

// Bytes of memory of a [K, N] matrix in panels, and of its quantization steps behind them.
inline size_t panel_bytes(size_t K, size_t N, WeightType type) {
    const Panels p{K, N, type};
    return p.bytes() + (type == WeightType::int8 ? p.count() * kPanelColumns * sizeof(float) : 0);
}

// Writes row k of a panel in `type`: n columns, then zeros. at(j): the number in column j; step: of int8's columns.
template <class At>
void pack_panel_row(const Panels& p, unsigned char* panel, size_t k, const float* step, size_t n, At&& at) {
    unsigned char* const row = panel + k * p.row_bytes();
    float values[kPanelColumns] = {};
    for (size_t j = 0; j < n; j++) values[j] = at(j);
    if (p.type == WeightType::fp32) {
        std::memcpy(row, values, sizeof values);
    } else if (p.type == WeightType::bf16) {
        uint16_t* halves = reinterpret_cast<uint16_t*>(row);  // word w: columns w / 16 * 32 + w % 16, and 16 further
        for (size_t w = 0; w < kPanelColumns / 2; w++) {
            const size_t low = w / 16 * 32 + w % 16;
            halves[2 * w] = bf16_from_float(values[low]), halves[2 * w + 1] = bf16_from_float(values[low + 16]);
        }
    } else {
        unsigned char* const word = panel + k / kDotWord * kDotWord * p.row_bytes() + k % kDotWord;
        for (size_t j = 0; j < kPanelColumns; j++)
            word[j * kDotWord] = static_cast<unsigned char>(128 + std::lrint(values[j] / step[j]));
    }
}

// W as panels in `memory` (panel_bytes): W is stored [K, N], or [N, K] where `transposed` (the head).
inline Panels pack_weights(Cpu& dev, void* memory, const float* W, size_t K, size_t N, bool transposed,
                           WeightType type) {
    Panels p{K, N, type, static_cast<unsigned char*>(memory), nullptr};
    unsigned char* const data = static_cast<unsigned char*>(memory);
    float* const step = type == WeightType::int8 ? reinterpret_cast<float*>(data + p.bytes()) : nullptr;
    p.step = step;
    const size_t k_stride = transposed ? 1 : N, j_stride = transposed ? K : 1;
    parallel_ranges(dev, p.count(), 1, [&](size_t panel, size_t end, int) {
        for (; panel < end; panel++) {
            const size_t j0 = panel * kPanelColumns, n = std::min(kPanelColumns, N - j0);
            const float* w = W + j0 * j_stride;
            float* const s = step ? step + j0 : nullptr;
            if (s) {
                std::fill_n(s, kPanelColumns, 0.0f);
                for (size_t k = 0; k < K; k++)
                    for (size_t j = 0; j < n; j++) s[j] = std::max(s[j], std::abs(w[k * k_stride + j * j_stride]));
                for (size_t j = 0; j < kPanelColumns; j++) s[j] = s[j] / 127 > 0 ? s[j] / 127 : 1;
            }
            for (size_t k = 0; k < p.rows(); k++)
                pack_panel_row(p, data + panel * p.rows() * p.row_bytes(), k, s, k < K ? n : 0,
                               [&](size_t j) { return w[k * k_stride + j * j_stride]; });
        }
    });
    return p;
}

struct PackedModel {
    struct Block {
        Panels attn_qkv, attn_proj, mlp_fc, mlp_proj;
    };
    std::vector<Block> h;
    Panels head;
    WeightType type;

    PackedModel(Cpu& dev, const Config& c, const GptTensors<float>& t, WeightType type_)
        : h(c.L), type(type_), memory_(dev, "packed weights") {
        std::vector<unsigned char*> at(4 * c.L + 1);
        for (size_t l = 0; l < c.L; l++) {
            memory_.add(at[4 * l], panel_bytes(c.C, 3 * c.C, type)),
                memory_.add(at[4 * l + 1], panel_bytes(c.C, c.C, type));
            memory_.add(at[4 * l + 2], panel_bytes(c.C, 4 * c.C, type));
            memory_.add(at[4 * l + 3], panel_bytes(4 * c.C, c.C, type));
        }
        memory_.add(at.back(), panel_bytes(c.C, c.V, type));
        memory_.allocate(false);
        for (size_t l = 0; l < c.L; l++) {
            const BlockTensors<float>& b = t.h[l];
            h[l] = {pack_weights(dev, at[4 * l], b.attn_qkv, c.C, 3 * c.C, false, type),
                    pack_weights(dev, at[4 * l + 1], b.attn_proj, c.C, c.C, false, type),
                    pack_weights(dev, at[4 * l + 2], b.mlp_fc, c.C, 4 * c.C, false, type),
                    pack_weights(dev, at[4 * l + 3], b.mlp_proj, 4 * c.C, c.C, false, type)};
        }
        head = pack_weights(dev, at.back(), t.head(), c.C, c.V, true, type);
    }

    size_t bytes() const { return memory_.bytes(); }  // a decoding step reads all of them
    const void* data() const { return memory_.data(); }

  private:
    Arena<Cpu> memory_;
};

}  // namespace tapernorm
