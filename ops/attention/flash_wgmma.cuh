// The attention kernels for Hopper (sm_90a): bf16, head sizes 64 and 128. They compute what those of flash_mma.cuh do, with products
// of whole warpgroups (runtime/wgmma.cuh), which read their operands from shared memory themselves. That is the reason for them:
// 64 x 64 scores of dk and dv, at head size 64, take 320 clocks of shared memory and 512 of tensor cores, where the tiles of 32 x 32
// of single warps take 912 and 816; of dq 384 and 384 instead of 720 and 612; of the forward pass 192 and 256 instead of 320 and 408.
// (Counted from the instructions, at 128 bytes a clock; nobody has measured it.)
//
// A block has two warpgroups. Each owns 64 of the block's 128 rows (queries; for dk and dv, keys) and keeps what it
// accumulates for them in registers; the other side passes by in tiles, two stages of cp.async deep. Where registers leave room for
// a second block, its warpgroups do softmax while these multiply.
#pragma once
#ifdef TN_CUDA
#include "ops/attention/flash_mma.cuh"
#include "runtime/wgmma.cuh"

namespace tapernorm {

constexpr int kGroupThreads = 256, kGroupRows = 128;  // of a block

// This thread's warpgroup, told to the compiler as one number for the whole warp, which addresses of operands are made of.
__device__ __forceinline__ int group_id() { return __shfl_sync(~0u, int(threadIdx.x / 128), 0); }

// ---------------------------------------------------------------------------------------------------------------------
// Tiles

// Panels of 64 channels, as wgmma_operand wants them: rows of 128 bytes, the 16-byte unit u of row r at u ^ (r % 8).
template <int rows, int HS>
struct alignas(1024) SwizzledTile {
    static constexpr int kPanel = rows * 128;  // bytes
    bf16 panels[HS / 64][rows][64];

    __device__ __forceinline__ bf16* unit(int row, int u) { return &panels[u / 8][row][(u % 8 ^ row % 8) * 8]; }
    // From a row that is a multiple of 8 on.
    __device__ __forceinline__ uint32_t operand(int row = 0) const {
        return uint32_t(wgmma_operand(panels[0][row], kPanel));
    }
    // What to add for the k-th 16 of the channels, or of the rows, that a product sums over.
    __device__ static constexpr uint32_t channels(int k) { return wgmma_bytes(k / 4 * kPanel + k % 4 * 32); }
    __device__ static constexpr uint32_t columns(int k) { return wgmma_bytes(k * 16 * 128); }
};

// Block: starts copying rows of HS channels, `stride` apart, into the tile. Rows from `valid_rows` on become zero; they
// are not read, so their addresses may lie anywhere.
template <int HS, int rows>
__device__ __forceinline__ void load_tile(SwizzledTile<rows, HS>& tile, const bf16* from, size_t stride,
                                          int valid_rows) {
    constexpr int kUnits = HS / 8;                 // 16-byte units in a row
    constexpr int kStep = kGroupThreads / kUnits;  // rows copied at a time: a multiple of 8, so the swizzle stays
    static_assert(kStep % 8 == 0 && rows % kStep == 0);
    const int first = int(threadIdx.x) / kUnits, u = int(threadIdx.x) % kUnits;
    bf16* to = tile.unit(first, u);
    unsigned offset = unsigned(first) * unsigned(stride) + unsigned(u) * 8;  // in a register, not two
#pragma unroll
    for (int i = 0; i < rows / kStep; i++, offset += unsigned(kStep) * unsigned(stride))
        cp_async<16>(to + i * kStep * 64, from + offset, first + i * kStep < valid_rows);
}

// Block: the tiles that this thread has asked for are there, for all threads and their products, and everyone has left the other stage.
// (A macro, because the barrier belongs to the line that calls it.)
#define WAIT_FOR_TILES() cp_async_wait<0>(), fence_async_proxy(), __syncthreads()

// 64 rows of a tile as the left operand of products: a warp's 16 of them in registers (kKeep), or all of them where they are.
template <int HS, int tile_rows, bool kKeep>
struct LeftGroup {
    SwizzledTile<tile_rows, HS>& tile;
    int row;
    uint32_t kept[kKeep ? HS / 16 : 1][4];

    // Warpgroup: when the tile is there.
    __device__ __forceinline__ void prepare() {
        const int lane = warp_lane(), r = row + warp_id() % 4 * 16 + lane % 16;
        if constexpr (kKeep) {
#pragma unroll
            for (int k = 0; k < HS / 16; k++) ldmatrix_x4(kept[k], tile.unit(r, 2 * k + lane / 16));
            wgmma_fence(kept);
        }
    }

    // Warpgroup: starts s [64, N] = these rows [64, HS] times right [N, HS]^T, the scores of rows against rows.
    template <int N>
    __device__ __forceinline__ void start_scores(float (&s)[N / 8][4], const SwizzledTile<N, HS>& right) {
        const uint32_t a = tile.operand(row), b = right.operand();
#pragma unroll
        for (int k = 0; k < HS / 16; k++) {
            const uint64_t right_k = wgmma_operand_of(b + right.channels(k));
            if constexpr (kKeep)
                wgmma<N, false>(s, kept[k], right_k, k > 0);
            else
                wgmma<N, false, false>(s, wgmma_operand_of(a + tile.channels(k)), right_k, k > 0);
        }
        wgmma_commit();
    }
};

// Warpgroup: starts sum [64, HS] += p [64, rows] tile [rows, HS].
template <int HS, int rows>
__device__ __forceinline__ void start_sums(float (&sum)[HS / 8][4], const uint32_t (&p)[rows / 16][4],
                                           const SwizzledTile<rows, HS>& tile) {
    const uint32_t b = tile.operand();
#pragma unroll
    for (int k = 0; k < rows / 16; k++) wgmma<HS, true>(sum, p[k], wgmma_operand_of(b + tile.columns(k)), true);
    wgmma_commit();
}

// The fragment in which a product leaves scores is, rounded to bf16, the one in which it takes a left operand.
template <int NT>
__device__ __forceinline__ void round_scores(uint32_t (&p)[NT / 2][4], const float (&s)[NT][4]) {
#pragma unroll
    for (int k = 0; k < NT / 2; k++) {
        const float (&left)[4] = s[2 * k], (&right)[4] = s[2 * k + 1];
        p[k][0] = pack_bf16(left[0], left[1]), p[k][1] = pack_bf16(left[2], left[3]);
        p[k][2] = pack_bf16(right[0], right[1]), p[k][3] = pack_bf16(right[2], right[3]);
    }
}

// Warp: writes its 16 rows of x times factor, rounded to bf16, to rows `stride` apart; those from `rows` on do not exist. It goes
// through rows of a tile that belong to this warp, so that 16 bytes are written at a time.
template <int HS, int tile_rows>
__device__ __forceinline__ void store_rows(bf16* to, size_t stride, int rows, const float (&x)[HS / 8][4], float factor,
                                           SwizzledTile<tile_rows, HS>& staging, int first) {
    const int lane = warp_lane(), group = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < HS / 8 * 2; i++) {
        const int n = i / 2, e = i % 2 * 2;
        *reinterpret_cast<uint32_t*>(staging.unit(first + group + e * 4, n) + 2 * t) =
            pack_bf16(x[n][e] * factor, x[n][e + 1] * factor);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * HS / 8; i += 32) {
        const int row = i / (HS / 8), u = i % (HS / 8);
        if (row < rows) store_pack(to + size_t(row) * stride + size_t(u) * 8, load_pack(staging.unit(first + row, u)));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

template <int HS>
struct GroupForwardTiles {
    // Two blocks per multiprocessor, so 128 registers: out takes HS / 2, a tile of scores kKeys / 2, q's fragments, if kept, HS / 4.
    static constexpr int kKeys = 64;
    static constexpr bool kKeep = HS == 64;
    SwizzledTile<kGroupRows, HS> q;
    SwizzledTile<kKeys, HS> k[2], v[2];
};

// As flash_forward_kernel.
template <int HS, class Args>
__global__ void __launch_bounds__(kGroupThreads, 2) flash_wgmma_forward_kernel(const __grid_constant__ Args a) {
    if constexpr (kWgmma) {
        using Tiles = GroupForwardTiles<HS>;
        constexpr int kKeys = Tiles::kKeys, NT = kKeys / 8;
        Tiles& tiles = *dynamic_shared<Tiles>();
        const size_t h = blockIdx.x % unsigned(a.NH), head = h * size_t(HS);
        const unsigned b = blockIdx.x / unsigned(a.NH);
        const AttentionRows<bf16> sequence = a.rows(b);
        const int queries = sequence.queries, keys = sequence.keys;
        const int row = int(gridDim.y - 1 - blockIdx.y) * kGroupRows, position = keys - queries + row;
        if (row >= queries) return;
        const int group_row = group_id() * 64, warp_row = warp_id() * 16;

        // Where keys and values are is looked up for every tile: over the products, the pointers would need registers.
        auto load_keys = [&](int stage, int key) {
            const AttentionRows<bf16> from = a.rows(b);
            const size_t first = size_t(key) * a.kv_stride + head;
            load_tile<HS>(tiles.k[stage], from.k + first, a.kv_stride, keys - key);
            load_tile<HS>(tiles.v[stage], from.v + first, a.kv_stride, keys - key);
            cp_async_commit();
        };
        load_tile<HS>(tiles.q, sequence.q + size_t(row) * a.q_stride + head, a.q_stride, queries - row);
        load_keys(0, 0);

        LeftGroup<HS, kGroupRows, Tiles::kKeep> q{tiles.q, group_row, {}};
        float out[1][HS / 8][4] = {}, top[1][2] = {{-INFINITY, -INFINITY}}, sum[1][2] = {};
        const int key_end = min(keys, position + kGroupRows);
        for (int key = 0, stage = 0; key < key_end; key += kKeys, stage ^= 1) {
            WAIT_FOR_TILES();
            if (key == 0) q.prepare();
            if (key + kKeys < key_end) load_keys(stage ^ 1, key + kKeys);
            if (row + group_row >= queries || key > position + group_row + 63) continue;  // the whole warpgroup
            float s[1][NT][4];
            uint32_t p[NT / 2][4];
            wgmma_fence(s);
            q.start_scores(s[0], tiles.k[stage]);
            wgmma_wait<0>(s);
            if (key + kKeys - 1 > position + warp_row) mask_future<false>(s, position + warp_row, key);
            online_softmax<HS>(s, out, top, sum, a.inverse_sqrt_hs * kLog2e);
            round_scores(p, s[0]);
            wgmma_fence(out, p);
            start_sums<HS>(out[0], p, tiles.v[stage]);
            wgmma_wait<0>(out, p);
        }
        __syncthreads();  // nobody reads q any more
        const int rows = queries - row - warp_row;
        if (rows <= 0) return;
        const size_t C = size_t(a.NH) * size_t(HS), first_row = size_t(row + warp_row);
        const AttentionRows<bf16> to = a.rows(b);  // again: in between, its pointers would need registers
        float* lse = to.lse ? to.lse + h * size_t(queries) + first_row : nullptr;
        finish_softmax<HS>(out, lse, rows, top, sum, a.inverse_sqrt_hs);
        store_rows<HS>(to.out + first_row * C + head, C, rows, out[0], 1, tiles.q, warp_row);
    } else {
        __trap();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: two kernels, for the reasons that flash_mma.cuh gives.

constexpr int kGroupPassing = 64;  // rows of a passing tile

template <int HS>
struct GroupKeyGradientTiles {
    SwizzledTile<kGroupRows, HS> k, v;
    SwizzledTile<kGroupPassing, HS> q[2], dout[2];
    float lse[2][kGroupPassing], delta[2][kGroupPassing];
};

// Block (x, y): head x of B NH, and the y-th block of 128 key rows; the first keys have the most queries. Scores are computed
// transposed, [key, query], so that they can serve as left operands of dv = p^T dout and dk = ds^T q without a change.
template <int HS>
__global__ void __launch_bounds__(kGroupThreads) flash_wgmma_dkdv_kernel(AttentionBackward<bf16> a) {
    if constexpr (kWgmma) {
        constexpr int kQueries = kGroupPassing, NT = kQueries / 8;
        auto& tiles = *dynamic_shared<GroupKeyGradientTiles<HS>>();
        const auto head = a.head(blockIdx.x);
        const size_t C = size_t(a.NH) * size_t(HS);
        const int key = int(blockIdx.y) * kGroupRows, group_row = group_id() * 64, warp_row = warp_id() * 16;
        const int first = key + warp_row;

        auto load_queries = [&](int stage, int query) {
            load_tile<HS>(tiles.q[stage], head.q + size_t(query) * 3 * C, 3 * C, a.T - query);
            load_tile<HS>(tiles.dout[stage], head.dout + size_t(query) * C, C, a.T - query);
            const int i = int(threadIdx.x) % kQueries;
            const bool valid = query + i < a.T;
            if (int(threadIdx.x) < kQueries)  // zero where there is no query: with q = dout = 0 it adds nothing
                cp_async<4>(&tiles.lse[stage][i], head.lse + (valid ? query + i : 0), valid);
            else if (int(threadIdx.x) < 2 * kQueries)
                cp_async<4>(&tiles.delta[stage][i], head.delta + (valid ? query + i : 0), valid);
            cp_async_commit();
        };
        load_tile<HS>(tiles.k, head.k + size_t(key) * 3 * C, 3 * C, a.T - key);
        load_tile<HS>(tiles.v, head.v + size_t(key) * 3 * C, 3 * C, a.T - key);
        load_queries(0, key);

        LeftGroup<HS, kGroupRows, HS == 64> k{tiles.k, group_row, {}}, v{tiles.v, group_row, {}};
        float dk[HS / 8][4] = {}, dv[HS / 8][4] = {};
        for (int query = key, stage = 0; query < a.T; query += kQueries, stage ^= 1) {
            WAIT_FOR_TILES();
            if (query == key) k.prepare(), v.prepare();
            if (query + kQueries < a.T) load_queries(stage ^ 1, query + kQueries);
            if (key + group_row >= a.T || query + kQueries - 1 < key + group_row) continue;  // the whole warpgroup
            float p[1][NT][4], ds[NT][4];
            uint32_t left[NT / 2][4], left_ds[NT / 2][4];
            wgmma_fence(p, ds);
            k.start_scores(p[0], tiles.q[stage]);
            v.start_scores(ds, tiles.dout[stage]);
            wgmma_wait<1>(p);
            if (query < first + 15) mask_future<true>(p, first, query);
            const int column = warp_lane() % 4 * 2;
#pragma unroll
            for (int i = 0; i < NT * 2; i++) {
                const int n = i / 2, e = i % 2;
                const float lse2 = tiles.lse[stage][n * 8 + column + e] * kLog2e;
                p[0][n][e] = fast_exp2(p[0][n][e] * (a.inverse_sqrt_hs * kLog2e) - lse2);
                p[0][n][e + 2] = fast_exp2(p[0][n][e + 2] * (a.inverse_sqrt_hs * kLog2e) - lse2);
            }
            round_scores(left, p[0]);
            wgmma_fence(dv, left);
            start_sums<HS>(dv, left, tiles.dout[stage]);
            wgmma_wait<1>(ds);
#pragma unroll
            for (int i = 0; i < NT * 2; i++) {
                const int n = i / 2, e = i % 2;
                const float delta = tiles.delta[stage][n * 8 + column + e];
                ds[n][e] = p[0][n][e] * (ds[n][e] - delta);
                ds[n][e + 2] = p[0][n][e + 2] * (ds[n][e + 2] - delta);
            }
            round_scores(left_ds, ds);
            wgmma_fence(dk, left_ds);
            start_sums<HS>(dk, left_ds, tiles.q[stage]);
            wgmma_wait<0>(dv, dk, left, left_ds);
        }
        __syncthreads();  // nobody reads k and v any more
        store_rows<HS>(head.dk + size_t(first) * 3 * C, 3 * C, a.T - first, dk, a.inverse_sqrt_hs, tiles.k, warp_row);
        store_rows<HS>(head.dv + size_t(first) * 3 * C, 3 * C, a.T - first, dv, 1, tiles.v, warp_row);
    } else {
        __trap();
    }
}

template <int HS>
struct GroupQueryGradientTiles {
    SwizzledTile<kGroupRows, HS> q, dout;
    SwizzledTile<kGroupPassing, HS> k[2], v[2];
};

// Block (x, y): head x of B NH, and the y-th block of query rows from the end, so that the longest come first. It also writes
// delta, which dk and dv need.
template <int HS>
__global__ void __launch_bounds__(kGroupThreads, HS == 64 ? 2 : 1) flash_wgmma_dq_kernel(AttentionBackward<bf16> a) {
    if constexpr (kWgmma) {
        constexpr int kKeys = kGroupPassing, NT = kKeys / 8;
        auto& tiles = *dynamic_shared<GroupQueryGradientTiles<HS>>();
        const auto head = a.head(blockIdx.x);
        const size_t C = size_t(a.NH) * size_t(HS);
        const int query = int(gridDim.y - 1 - blockIdx.y) * kGroupRows, group_row = group_id() * 64;
        const int warp_row = warp_id() * 16, first = query + warp_row;

        auto load_keys = [&](int stage, int key) {
            load_tile<HS>(tiles.k[stage], head.k + size_t(key) * 3 * C, 3 * C, a.T - key);
            load_tile<HS>(tiles.v[stage], head.v + size_t(key) * 3 * C, 3 * C, a.T - key);
            cp_async_commit();
        };
        load_tile<HS>(tiles.q, head.q + size_t(query) * 3 * C, 3 * C, a.T - query);
        load_tile<HS>(tiles.dout, head.dout + size_t(query) * C, C, a.T - query);
        load_keys(0, 0);

        float lse2[1][2], delta[1][2];
        query_statistics(lse2, delta, a, head, first);
        LeftGroup<HS, kGroupRows, false> q{tiles.q, group_row, {}}, dout{tiles.dout, group_row, {}};
        float dq[HS / 8][4] = {};
        const int key_end = min(a.T, query + kGroupRows);
        for (int key = 0, stage = 0; key < key_end; key += kKeys, stage ^= 1) {
            WAIT_FOR_TILES();
            if (key + kKeys < key_end) load_keys(stage ^ 1, key + kKeys);
            if (query + group_row >= a.T || key > query + group_row + 63) continue;  // the whole warpgroup
            float s[1][NT][4], ds[1][NT][4];
            uint32_t left[NT / 2][4];
            wgmma_fence(s, ds);
            q.start_scores(s[0], tiles.k[stage]);
            dout.start_scores(ds[0], tiles.v[stage]);
            wgmma_wait<0>(s, ds);
            if (key + kKeys - 1 > first) mask_future<false>(s, first, key);
            score_gradients(ds, s, lse2, delta, a.inverse_sqrt_hs * kLog2e);
            round_scores(left, ds[0]);
            wgmma_fence(dq, left);
            start_sums<HS>(dq, left, tiles.k[stage]);
            wgmma_wait<0>(dq, left);
        }
        __syncthreads();  // nobody reads q any more
        store_rows<HS>(head.dq + size_t(first) * 3 * C, 3 * C, a.T - first, dq, a.inverse_sqrt_hs, tiles.q, warp_row);
    } else {
        __trap();
    }
}

#undef WAIT_FOR_TILES

}  // namespace tapernorm
#endif  // TN_CUDA
