// The attention kernels for tensor cores: bf16, head sizes that are multiples of 8 up to 128.
//
// They follow FlashAttention-2 (Dao, 2023). A block reads its own rows (queries; for dk and dv, keys) into shared memory
// once and passes the other side by them in tiles, two stages of cp.async deep. Each of its 4 warps owns 16 or 32 of the
// rows and keeps what it accumulates for them in registers; the passing tiles are all that warps share. Scores stay in
// registers as well: the fragment in which mma leaves a product is, rounded to bf16, the fragment in which it takes a
// left operand.
#pragma once
#ifdef TN_CUDA
#include "ops/attention/kernels.cuh"

namespace tapernorm {

// ---------------------------------------------------------------------------------------------------------------------
// Tiles
//
// HS is the head size rounded up to 32, 64, 96 or 128; channels from hs to there are zeros in shared memory.
// A tile is an array [rows][HS + 8] of bf16. With 16 bytes of padding a row has an odd number of 16-byte units, so the
// 8 rows that ldmatrix reads at a time lie in different banks, at constant offsets from the first.

constexpr int kFlashThreads = 128, kFlashWarps = 4;

__device__ __forceinline__ int warp_id() { return int(threadIdx.x / 32); }
__device__ __forceinline__ int warp_lane() { return int(threadIdx.x % 32); }

// Block: starts copying rows of hs channels, `stride` apart, into the tile. Rows from `rows` on become zero.
template <int HS, int tile_rows>
__device__ __forceinline__ void load_tile(bf16 (&tile)[tile_rows][HS + 8], const bf16* from, size_t stride, int rows,
                                          int hs) {
    constexpr int kUnits = HS / 8;                 // 16-byte units in a row
    constexpr int kStep = kFlashThreads / kUnits;  // rows copied at a time
    const int first = int(threadIdx.x) / kUnits, channel = int(threadIdx.x) % kUnits * 8;
    if (kFlashThreads % kUnits != 0 && first >= kStep) return;
    const bf16* p = from + size_t(first) * stride + channel;
#pragma unroll
    for (int i = 0; i < (tile_rows + kStep - 1) / kStep; i++, p += size_t(kStep) * stride) {
        const int row = first + i * kStep;
        const bool valid = row < rows && channel < hs;
        if (tile_rows % kStep == 0 || row < tile_rows) cp_async<16>(&tile[row][channel], valid ? p : from, valid);
    }
}

// Warp: 16 MT rows of a tile as the left operand of products, either read again for each product or kept in registers.
template <int HS, int MT, bool kKeep>
struct LeftRows {
    const bf16 (*rows)[HS + 8];
    uint32_t kept[kKeep ? HS / 16 : 1][MT][4];

    __device__ __forceinline__ void read(uint32_t (&a)[MT][4], int k) const {
        const int lane = warp_lane();
#pragma unroll
        for (int m = 0; m < MT; m++) ldmatrix_x4(a[m], &rows[m * 16 + lane % 16][k * 16 + lane / 16 * 8]);
    }
    __device__ __forceinline__ void prepare() {
        if constexpr (kKeep) {
#pragma unroll
            for (int k = 0; k < HS / 16; k++) read(kept[k], k);
        }
    }
    __device__ __forceinline__ void get(uint32_t (&a)[MT][4], int k) const {
        if constexpr (kKeep) {
#pragma unroll
            for (int i = 0; i < MT * 4; i++) a[i / 4][i % 4] = kept[k][i / 4][i % 4];
        } else {
            read(a, k);
        }
    }
};

// Warp: [d0 d1] [16, 16] += a [16, 16] b [16, 16], b as ldmatrix_x4 delivers it.
__device__ __forceinline__ void mma_pair(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    mma_m16n8k16(d0, a, b0);
    mma_m16n8k16(d1, a, b1);
}

// Warp: s [16 MT, 8 NT] = left [16 MT, HS] (tile [8 NT, HS])^T, the scores of rows against rows.
template <int HS, int MT, int NT, bool kKeep>
__device__ __forceinline__ void multiply_rows(float (&s)[MT][NT][4], const LeftRows<HS, MT, kKeep>& left,
                                              const bf16 (*tile)[HS + 8]) {
    const int lane = warp_lane(), row = lane % 8 + lane / 16 * 8, channel = lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) s[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < HS / 16; k++) {
        uint32_t a[MT][4], b[4];
        left.get(a, k);
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            ldmatrix_x4(b, &tile[n * 8 + row][k * 16 + channel]);
#pragma unroll
            for (int m = 0; m < MT; m++) mma_pair(s[m][n], s[m][n + 1], a[m], b);
        }
    }
}

// Warp: sum [16 MT, HS] += p [16 MT, 8 NT] tile [8 NT, HS], p rounded to bf16.
template <int HS, int MT, int NT>
__device__ __forceinline__ void multiply_add(float (&sum)[MT][HS / 8][4], const float (&p)[MT][NT][4],
                                             const bf16 (*tile)[HS + 8]) {
    const int lane = warp_lane(), row = lane % 16, channel = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < NT / 2; k++) {
        uint32_t a[MT][4], b[4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            const float (&left)[4] = p[m][2 * k], (&right)[4] = p[m][2 * k + 1];
            a[m][0] = pack_bf16(left[0], left[1]), a[m][1] = pack_bf16(left[2], left[3]);
            a[m][2] = pack_bf16(right[0], right[1]), a[m][3] = pack_bf16(right[2], right[3]);
        }
#pragma unroll
        for (int n = 0; n < HS / 8; n += 2) {
            ldmatrix_x4_trans(b, &tile[k * 16 + row][n * 8 + channel]);
#pragma unroll
            for (int m = 0; m < MT; m++) mma_pair(sum[m][n], sum[m][n + 1], a[m], b);
        }
    }
}

// Warp: writes x times factor, rounded to bf16, to rows `stride` apart; those from `rows` on do not exist. It goes through
// rows of shared memory that belong to this warp, so that 16 bytes are written at a time.
template <int HS, int MT>
__device__ __forceinline__ void store_rows(bf16* to, size_t stride, int rows, int hs, const float (&x)[MT][HS / 8][4],
                                           float factor, bf16 (*staging)[HS + 8]) {
    const int lane = warp_lane(), group = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MT * HS / 8; i++) {
        const int m = i / (HS / 8), n = i % (HS / 8);
        bf16* p = &staging[m * 16 + group][n * 8 + 2 * t];
        *reinterpret_cast<uint32_t*>(p) = pack_bf16(x[m][n][0] * factor, x[m][n][1] * factor);
        *reinterpret_cast<uint32_t*>(p + 8 * (HS + 8)) = pack_bf16(x[m][n][2] * factor, x[m][n][3] * factor);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * MT * HS / 8; i += 32) {
        const int row = i / (HS / 8), channel = i % (HS / 8) * 8;
        if (row < rows && channel < hs)
            store_pack(to + size_t(row) * stride + channel, load_pack(&staging[row][channel]));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

template <int HS>
struct ForwardTiles {
    static constexpr int MT = 2, kRows = kFlashWarps * 16 * MT;
    // A thread has 255 registers: out takes HS, a tile of scores kKeys, and q's fragments, if kept, HS / 2.
    static constexpr int kKeys = HS <= 64 ? 64 : 32;
    static constexpr bool kKeep = HS <= 64;
    bf16 q[kRows][HS + 8], k[2][kKeys][HS + 8], v[2][kKeys][HS + 8];
};

// Scores of keys that come after their query become -infinity. Rows are queries and columns keys, or the reverse where
// `transposed`; `row` and `column` are the positions of the warp's first ones. Most tiles have no such scores: callers
// branch around it.
template <bool transposed, int MT, int NT>
__device__ __forceinline__ void mask_future(float (&s)[MT][NT][4], int row, int column) {
    row += warp_lane() / 4, column += warp_lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        const int m = i / (NT * 4), n = i / 4 % NT, e = i % 4;
        const int r = row + m * 16 + e / 2 * 8, c = column + n * 8 + e % 2;
        if (transposed ? r > c : c > r) s[m][n][e] = -INFINITY;
    }
}

// The softmax over keys that arrive in tiles. top is the largest score of a row so far; earlier sums are multiplied to
// match it. sum covers the columns that this lane holds: the four lanes of a row are added at the end.
template <int HS, int MT, int NT>
__device__ __forceinline__ void online_softmax(float (&s)[MT][NT][4], float (&out)[MT][HS / 8][4], float (&top)[MT][2],
                                               float (&sum)[MT][2], float exp2_factor) {
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int m = i / 2, e = i % 2 * 2;
        float& row_top = top[m][i % 2];
        float new_top = row_top, row_sum = 0;
#pragma unroll
        for (int n = 0; n < NT; n++) new_top = fmaxf(new_top, fmaxf(s[m][n][e], s[m][n][e + 1]));
        new_top = group_max<4>(new_top);
        const float rescale = fast_exp2((row_top - new_top) * exp2_factor), shift = new_top * exp2_factor;
        row_top = new_top;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            s[m][n][e] = fast_exp2(s[m][n][e] * exp2_factor - shift);
            s[m][n][e + 1] = fast_exp2(s[m][n][e + 1] * exp2_factor - shift);
            row_sum += s[m][n][e] + s[m][n][e + 1];
        }
        sum[m][i % 2] = sum[m][i % 2] * rescale + row_sum;
#pragma unroll
        for (int n = 0; n < HS / 8; n++) out[m][n][e] *= rescale, out[m][n][e + 1] *= rescale;
    }
}

// Divides by the sums and writes the lse of the warp's rows, of which `rows` exist. lse may be null.
template <int HS, int MT>
__device__ __forceinline__ void finish_softmax(float (&out)[MT][HS / 8][4], float* lse, int rows,
                                               const float (&top)[MT][2], const float (&sum)[MT][2],
                                               float inverse_sqrt_hs) {
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int m = i / 2, e = i % 2 * 2, row = m * 16 + e * 4 + warp_lane() / 4;
        const float total = group_sum<4>(sum[m][i % 2]), inverse = 1 / total;
#pragma unroll
        for (int n = 0; n < HS / 8; n++) out[m][n][e] *= inverse, out[m][n][e + 1] *= inverse;
        if (lse && row < rows && warp_lane() % 4 == 0) lse[row] = top[m][i % 2] * inverse_sqrt_hs + logf(total);
    }
}

// Block (x, y): head x of B NH, and the y-th block of 128 query rows from the end, so that the longest come first.
// Args: AttentionForward or AttentionCached. A block whose rows its sequence does not have returns.
template <int HS, class Args>
__global__ void __launch_bounds__(kFlashThreads) flash_forward_kernel(const __grid_constant__ Args a) {
    using Tiles = ForwardTiles<HS>;
    constexpr int MT = Tiles::MT, NT = Tiles::kKeys / 8;
    Tiles& tiles = *dynamic_shared<Tiles>();
    const size_t h = blockIdx.x % unsigned(a.NH), head = h * size_t(a.hs);
    const unsigned b = blockIdx.x / unsigned(a.NH);
    const AttentionRows<bf16> sequence = a.rows(b);
    const int queries = sequence.queries, keys = sequence.keys;
    const int row = int(gridDim.y - 1 - blockIdx.y) * Tiles::kRows, position = keys - queries + row;
    if (row >= queries) return;
    const bf16* q = sequence.q + size_t(row) * a.q_stride + head;
    const int warp_row = warp_id() * 16 * MT, rows = queries - row - warp_row;  // this warp's

    // Where keys and values are is looked up for every tile: over the products, the pointers would need registers.
    auto load_keys = [&](int stage, int key) {
        const AttentionRows<bf16> from = a.rows(b);
        const size_t first = size_t(key) * a.kv_stride + head;
        load_tile<HS>(tiles.k[stage], from.k + first, a.kv_stride, keys - key, a.hs);
        load_tile<HS>(tiles.v[stage], from.v + first, a.kv_stride, keys - key, a.hs);
        cp_async_commit();
    };
    load_tile<HS>(tiles.q, q, a.q_stride, queries - row, a.hs);
    load_keys(0, 0);

    LeftRows<HS, MT, Tiles::kKeep> left{tiles.q + warp_row, {}};
    float out[MT][HS / 8][4] = {}, top[MT][2], sum[MT][2] = {};
#pragma unroll
    for (int i = 0; i < MT * 2; i++) top[i / 2][i % 2] = -INFINITY;
    const int key_end = min(keys, position + Tiles::kRows);
    for (int key = 0, stage = 0; key < key_end; key += Tiles::kKeys, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and everyone has left the other stage
        if (key == 0) left.prepare();
        if (key + Tiles::kKeys < key_end) load_keys(stage ^ 1, key + Tiles::kKeys);
        const int first = position + warp_row;
        if (rows <= 0 || key > first + 16 * MT - 1) continue;
        float s[MT][NT][4];
        multiply_rows<HS>(s, left, tiles.k[stage]);
        if (key + Tiles::kKeys - 1 > first) mask_future<false>(s, first, key);
        online_softmax<HS>(s, out, top, sum, a.inverse_sqrt_hs * kLog2e);
        multiply_add<HS>(out, s, tiles.v[stage]);
    }
    const size_t C = size_t(a.NH) * size_t(a.hs), first_row = size_t(row + warp_row);
    const AttentionRows<bf16> to = a.rows(b);  // again: in between, its pointers would need registers
    float* lse = to.lse ? to.lse + h * size_t(queries) + first_row : nullptr;
    finish_softmax<HS>(out, lse, rows, top, sum, a.inverse_sqrt_hs);
    store_rows<HS>(to.out + first_row * C + head, C, rows, a.hs, out, 1, tiles.q + warp_row);
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward
//
// Two kernels compute the scores again from q, k and lse: one for dk and dv, which passes tiles of queries by a block of
// keys, and one for dq, which passes tiles of keys by a block of queries. That is 7 products of T x T x hs where one
// kernel would need 5. In return nothing is added across blocks: there is no fp32 copy of dq to be zeroed, read and
// written once for every block of keys, and converted; there are no atomics; and all sums have one order.

// A block's own rows, 16 MT per warp, and the tiles of the other side, of which a warp takes 8 NT rows at a time. In registers are
// two sums of MT HS / 2 each (for dq one, and beside it the fragments of q and dout, if kept), two tiles of scores of
// MT NT 4 each, and more.
template <int HS>
struct BackwardShape {
    static constexpr int MT = HS <= 64 ? 2 : 1, kRows = kFlashWarps * 16 * MT, kPassing = HS <= 64 ? 64 : 32, NT = 4;
    static constexpr bool kKeep = HS <= 64;
};

template <int HS>
struct KeyGradientTiles {
    using Shape = BackwardShape<HS>;
    bf16 k[Shape::kRows][HS + 8], v[Shape::kRows][HS + 8];
    bf16 q[2][Shape::kPassing][HS + 8], dout[2][Shape::kPassing][HS + 8];
    float lse[2][Shape::kPassing], delta[2][Shape::kPassing];
};

// p: scores in, probabilities out. ds: dp in, p (dp - delta) out, which is the gradient of q . k except for the factor
// 1 / sqrt(hs). Both are [key, query]; lse and delta [8 NT] belong to the queries.
template <int MT, int NT>
__device__ __forceinline__ void score_gradients_transposed(float (&p)[MT][NT][4], float (&ds)[MT][NT][4],
                                                           const float* lse, const float* delta, float exp2_factor) {
    const int column = warp_lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < NT * 2; j++) {
        const int n = j / 2, q = n * 8 + column + j % 2;
        const float lse2 = lse[q] * kLog2e, d = delta[q];
#pragma unroll
        for (int i = 0; i < MT * 2; i++) {
            const int m = i / 2, e = i % 2 * 2 + j % 2;
            p[m][n][e] = fast_exp2(p[m][n][e] * exp2_factor - lse2);
            ds[m][n][e] = p[m][n][e] * (ds[m][n][e] - d);
        }
    }
}

// Block (x, y): head x of B NH, and the y-th block of key rows; the first keys have the most queries. Scores are computed
// transposed, [key, query], so that they can serve as left operands of dv = p^T dout and dk = ds^T q without a change.
template <int HS>
__global__ void __launch_bounds__(kFlashThreads, HS == 96 ? 2 : 0)
    flash_backward_dkdv_kernel(AttentionBackward<bf16> a) {
    using Shape = BackwardShape<HS>;
    constexpr int MT = Shape::MT, NT = Shape::NT, kQueries = Shape::kPassing;
    auto& tiles = *dynamic_shared<KeyGradientTiles<HS>>();
    const auto head = a.head(blockIdx.x);
    const size_t C = size_t(a.NH) * size_t(a.hs);
    const int key = int(blockIdx.y) * Shape::kRows, warp_row = warp_id() * 16 * MT, first = key + warp_row;

    auto load_queries = [&](int stage, int query) {
        load_tile<HS>(tiles.q[stage], head.q + size_t(query) * 3 * C, 3 * C, a.T - query, a.hs);
        load_tile<HS>(tiles.dout[stage], head.dout + size_t(query) * C, C, a.T - query, a.hs);
        const int i = int(threadIdx.x) % kQueries;
        const bool valid = query + i < a.T;
        if (int(threadIdx.x) < kQueries)  // zero where there is no query: with q = dout = 0 it adds nothing
            cp_async<4>(&tiles.lse[stage][i], head.lse + (valid ? query + i : 0), valid);
        else if (int(threadIdx.x) < 2 * kQueries)
            cp_async<4>(&tiles.delta[stage][i], head.delta + (valid ? query + i : 0), valid);
        cp_async_commit();
    };
    load_tile<HS>(tiles.k, head.k + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
    load_tile<HS>(tiles.v, head.v + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
    load_queries(0, key);

    const LeftRows<HS, MT, false> k{tiles.k + warp_row, {}}, v{tiles.v + warp_row, {}};
    float dk[MT][HS / 8][4] = {}, dv[MT][HS / 8][4] = {};
    for (int query = key, stage = 0; query < a.T; query += kQueries, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and everyone has left the other stage
        if (query + kQueries < a.T) load_queries(stage ^ 1, query + kQueries);
#pragma unroll 1
        for (int at = 0; at < kQueries; at += 8 * NT) {
            if (first >= a.T || query + at + 8 * NT - 1 < first) continue;
            float p[MT][NT][4], ds[MT][NT][4];
            multiply_rows<HS>(p, k, tiles.q[stage] + at);
            multiply_rows<HS>(ds, v, tiles.dout[stage] + at);
            if (query + at < first + 16 * MT - 1) mask_future<true>(p, first, query + at);
            score_gradients_transposed(p, ds, tiles.lse[stage] + at, tiles.delta[stage] + at,
                                       a.inverse_sqrt_hs * kLog2e);
            multiply_add<HS>(dv, p, tiles.dout[stage] + at);
            multiply_add<HS>(dk, ds, tiles.q[stage] + at);
        }
    }
    store_rows<HS>(head.dk + size_t(first) * 3 * C, 3 * C, a.T - first, a.hs, dk, a.inverse_sqrt_hs,
                   tiles.k + warp_row);
    store_rows<HS>(head.dv + size_t(first) * 3 * C, 3 * C, a.T - first, a.hs, dv, 1, tiles.v + warp_row);
}

template <int HS>
struct QueryGradientTiles {
    using Shape = BackwardShape<HS>;
    bf16 q[Shape::kRows][HS + 8], dout[Shape::kRows][HS + 8];
    bf16 k[2][Shape::kPassing][HS + 8], v[2][Shape::kPassing][HS + 8];
};

// ds: dp in, p (dp - delta) out, [query, key]. lse2 (in units of log 2) and delta belong to the lane's rows.
template <int MT, int NT>
__device__ __forceinline__ void score_gradients(float (&ds)[MT][NT][4], const float (&s)[MT][NT][4],
                                                const float (&lse2)[MT][2], const float (&delta)[MT][2],
                                                float exp2_factor) {
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        const int m = i / (NT * 4), n = i / 4 % NT, e = i % 4, half = e / 2;
        const float p = fast_exp2(s[m][n][e] * exp2_factor - lse2[m][half]);
        ds[m][n][e] = p * (ds[m][n][e] - delta[m][half]);
    }
}

// Warp: lse2, in units of log 2, and delta = dout . out of the lane's rows, 16 MT of which begin at `first`; delta is written, too.
template <int MT>
__device__ __forceinline__ void query_statistics(float (&lse2)[MT][2], float (&delta)[MT][2],
                                                 const AttentionBackward<bf16>& a,
                                                 const AttentionBackward<bf16>::Head& head, int first) {
    const size_t C = size_t(a.NH) * size_t(a.hs);
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const int row = first + i * 8 + warp_lane() / 4;
        float sum = 0, x[8], y[8];  // of every fourth 8 channels
        for (int c = warp_lane() % 4 * 8; row < a.T && c < a.hs; c += 32) {
            load_vector(x, head.dout + size_t(row) * C, unsigned(c), unsigned(a.hs), true);
            load_vector(y, head.out + size_t(row) * C, unsigned(c), unsigned(a.hs), true);
#pragma unroll
            for (int j = 0; j < 8; j++) sum += x[j] * y[j];
        }
        delta[i / 2][i % 2] = group_sum<4>(sum);
        lse2[i / 2][i % 2] = row < a.T ? head.lse[row] * kLog2e : 0;
        if (row < a.T && warp_lane() % 4 == 0) head.delta[row] = delta[i / 2][i % 2];
    }
}

// Block (x, y): head x of B NH, and the y-th block of query rows from the end, so that the longest come first. It also writes
// delta, which dk and dv need.
template <int HS>
__global__ void __launch_bounds__(kFlashThreads) flash_backward_dq_kernel(AttentionBackward<bf16> a) {
    using Shape = BackwardShape<HS>;
    constexpr int MT = Shape::MT, NT = Shape::NT, kKeys = Shape::kPassing;
    auto& tiles = *dynamic_shared<QueryGradientTiles<HS>>();
    const auto head = a.head(blockIdx.x);
    const size_t C = size_t(a.NH) * size_t(a.hs);
    const int query = int(gridDim.y - 1 - blockIdx.y) * Shape::kRows, warp_row = warp_id() * 16 * MT;
    const int first = query + warp_row;

    auto load_keys = [&](int stage, int key) {
        load_tile<HS>(tiles.k[stage], head.k + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
        load_tile<HS>(tiles.v[stage], head.v + size_t(key) * 3 * C, 3 * C, a.T - key, a.hs);
        cp_async_commit();
    };
    load_tile<HS>(tiles.q, head.q + size_t(query) * 3 * C, 3 * C, a.T - query, a.hs);
    load_tile<HS>(tiles.dout, head.dout + size_t(query) * C, C, a.T - query, a.hs);
    load_keys(0, 0);

    LeftRows<HS, MT, Shape::kKeep> q{tiles.q + warp_row, {}}, dout{tiles.dout + warp_row, {}};
    float dq[MT][HS / 8][4] = {}, lse2[MT][2], delta[MT][2];
    query_statistics(lse2, delta, a, head, first);
    const int key_end = min(a.T, query + Shape::kRows);
    for (int key = 0, stage = 0; key < key_end; key += kKeys, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this tile is there, and everyone has left the other stage
        if (key == 0) q.prepare(), dout.prepare();
        if (key + kKeys < key_end) load_keys(stage ^ 1, key + kKeys);
#pragma unroll 1
        for (int at = 0; at < kKeys; at += 8 * NT) {
            if (first >= a.T || key + at > first + 16 * MT - 1) continue;
            float s[MT][NT][4], ds[MT][NT][4];
            multiply_rows<HS>(s, q, tiles.k[stage] + at);
            multiply_rows<HS>(ds, dout, tiles.v[stage] + at);
            if (key + at + 8 * NT - 1 > first) mask_future<false>(s, first, key + at);
            score_gradients(ds, s, lse2, delta, a.inverse_sqrt_hs * kLog2e);
            multiply_add<HS>(dq, ds, tiles.k[stage] + at);
        }
    }
    store_rows<HS>(head.dq + size_t(first) * 3 * C, 3 * C, a.T - first, a.hs, dq, a.inverse_sqrt_hs,
                   tiles.q + warp_row);
}

}  // namespace tapernorm
#endif  // TN_CUDA
