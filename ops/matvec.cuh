// Products with few rows on a GPU, for decoding one token per sequence: out [rows, N] = epilogue(site(x) [rows, K] W).
//
// Such a product takes as long as reading W. So every element of W is read once, 16 bytes per thread, and serves all rows.
// What surrounds the product costs no pass of its own: the site before it is applied while a block brings x into shared
// memory; bias, GELU and the residual stream are applied to the finished sums. A folded model has no site there, so no
// block has to compute a row's statistics before it can begin.
#pragma once
#ifdef TN_CUDA
#include "ops/gelu.cuh"
#include "ops/reduce.cuh"
#include "tapernorm.cuh"

namespace tapernorm {

constexpr unsigned kMatvecThreads = 256, kMatvecWarps = kMatvecThreads / 32;
constexpr unsigned kMatvecMostRows = 16;
// How many elements of x a block holds at a time, over all rows. A row's share, for any number of rows, is a multiple of what
// the threads take in one turn: so a row's sums have one order, whatever other rows there are.
constexpr unsigned kMatvecNumbers = 12 << 10;
constexpr unsigned kMatvecMostLanes = 8, kMatvecFewestLanes = 2;

template <class Real>
struct Matvec {
    Real* out;                       // [rows, N], rows ld_out apart (0: N)
    const Real* x;                   // [rows, K]
    Site<Real> site;                 // applied to x; none in Phase::folded; with positions where its first is not 1
    const Real* weight;              // [K, N], or [N, K] in matvec_transposed
    const Real* bias = nullptr;      // [N]
    const Real* residual = nullptr;  // [rows, N], added after the GELU
    bool gelu = false;
    unsigned ld_out = 0;
    unsigned rows = 0, K = 0, N = 0;
    unsigned lanes = 0, chunk = 0;  // threads side by side on a row of W; how many k are in shared memory at a time
};

// Mean and 1 / s of every row, as far as the site needs them. A warp computes a row.
template <class Real>
__device__ void matvec_statistics(float2* statistics, const Matvec<Real>& a) {
    for (unsigned r = threadIdx.x / 32; r < a.rows; r += kMatvecWarps) {
        const Real* x = a.x + size_t(r) * a.K;
        const float m = a.site.kind == NormKind::layernorm ? row_mean_warp(x, a.K, true) : 0.0f;
        const float s = a.site.phase != Phase::scale ? row_scale_warp(x, m, a.site.eps, a.K, true) : 1.0f;
        if (threadIdx.x % 32 == 0) statistics[r] = {m, 1 / s};
    }
}

// shared [rows, chunk] = site(x) at k0 .. k0 + count.
template <Phase phase, class Real>
__device__ void matvec_stage(float* shared, const float2* statistics, const Matvec<Real>& a, unsigned k0,
                             unsigned count) {
    constexpr unsigned P = kVector<Real>;
    const unsigned vectors = count / P;
    for (unsigned at = threadIdx.x; at < a.rows * vectors; at += kMatvecThreads) {
        const unsigned r = at / vectors, k = at % vectors * P;
        float u[P], gain[P];
        load_vector(u, a.x + size_t(r) * a.K, k0 + k, a.K, true);
        constexpr bool fixed = phase == Phase::folded || phase == Phase::clamp;
        // (SiteArgs::rho divides where there are no positions, which would spill registers here.)
        const float rho = a.site.first != 1 && a.site.positions[r] == 0 ? a.site.first : 1.0f;
#pragma unroll
        for (unsigned j = 0; !fixed && j < P; j++) u[j] -= statistics[r].x;
        if constexpr (phase != Phase::folded)
            site_vector<phase>(u, gain, a.site, fixed ? 1.0f : statistics[r].y, rho, k0 + k, a.K, true);
#pragma unroll
        for (unsigned j = 0; j < P; j++) shared[r * a.chunk + k + j] = u[j];
    }
}

template <class Real>
__device__ __forceinline__ void matvec_stage(float* shared, const float2* statistics, const Matvec<Real>& a,
                                             unsigned k0, unsigned count) {
    switch (a.site.phase) {
        case Phase::norm:
            return matvec_stage<Phase::norm>(shared, statistics, a, k0, count);
        case Phase::blend:
            return matvec_stage<Phase::blend>(shared, statistics, a, k0, count);
        case Phase::scale:
            return matvec_stage<Phase::scale>(shared, statistics, a, k0, count);
        case Phase::unweighted:
            return matvec_stage<Phase::unweighted>(shared, statistics, a, k0, count);
        case Phase::clamp:
            return matvec_stage<Phase::clamp>(shared, statistics, a, k0, count);
        case Phase::folded:
            return matvec_stage<Phase::folded>(shared, statistics, a, k0, count);
    }
}

// Shared memory holds the statistics and, behind them, what this points to: x [rows, chunk], later the sums.
__device__ __forceinline__ float* matvec_shared() {
    return reinterpret_cast<float*>(dynamic_shared<float2>() + kMatvecMostRows);
}

// All threads call use(k0, count) for one chunk of k after the other, while site(x) at k0 .. k0 + count is in
// matvec_shared().
template <class Real, class Use>
__device__ __forceinline__ void matvec_chunks(const Matvec<Real>& a, Use&& use) {
    float2* const statistics = dynamic_shared<float2>();  // [kMatvecMostRows]
    if (a.site.phase != Phase::folded && a.site.phase != Phase::clamp) matvec_statistics(statistics, a);
    for (unsigned k0 = 0; k0 < a.K; k0 += a.chunk) {
        const unsigned count = min(a.chunk, a.K - k0);
        __syncthreads();  // the statistics are there, and every thread is done with the previous chunk
        matvec_stage(matvec_shared(), statistics, a, k0, count);
        __syncthreads();
        use(k0, count);
    }
}

template <class Real>
__device__ __forceinline__ void matvec_store(const Matvec<Real>& a, float sum, unsigned r, unsigned n) {
    if (a.bias) sum += float(a.bias[n]);
    if (a.gelu) sum = gelu_cuda(sum);
    if (a.residual) sum += float(a.residual[size_t(r) * a.N + n]);
    a.out[size_t(r) * a.ld_out + n] = Real(sum);
}

// How many packs of weights a thread with so many sums has on their way: as many as registers hold beside what staging takes,
// while two blocks fit on a multiprocessor (with 128 sums one does).
template <unsigned sums>
constexpr unsigned kMatvecAhead = sums == 64 ? 3 : 6;

// W [K, N]. A block computes a.lanes vectors of columns of all rows (R >= a.rows of them; rows from a.rows on are never
// stored). Its threads divide k, and their sums are added in a fixed order.
// Weights depend on nothing, so the first ones are requested before x is staged. They wait as bits: the elements of a Pack
// would be taken apart, and thereby waited for, as soon as they are requested.
template <class Real, int R>
__global__ void __launch_bounds__(kMatvecThreads, Pack<Real>::kSize* R <= 64 ? 2 : 1)
    matvec_kernel(const __grid_constant__ Matvec<Real> a) {
    constexpr unsigned P = kVector<Real>, kAhead = kMatvecAhead<R * P>;
    static_assert(kMatvecNumbers / R % (kAhead * kMatvecThreads / kMatvecFewestLanes) == 0,
                  "every chunk but the last uses all of `ahead` equally often");
    float* const shared = matvec_shared();
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = a.lanes * P;
    const unsigned group = threadIdx.x / a.lanes, groups = kMatvecThreads / a.lanes;
    const unsigned n = blockIdx.x * tile + threadIdx.x % a.lanes * P;
    const unsigned K = n < a.N ? a.K : 0;
    float sum[R][P] = {};
    auto load = [&](unsigned k) { return pack_bits(load_pack_readonly(a.weight + size_t(k) * a.N + n)); };
    auto use = [&](uint4 bits, unsigned k) {  // k counts from the beginning of the chunk
        const Pack<Real> w = as_pack<Real>(bits);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const float x = shared[unsigned(r) * a.chunk + k];
#pragma unroll
            for (unsigned j = 0; j < P; j++) sum[r][j] += x * float(w[int(j)]);
        }
    };
    uint4 ahead[kAhead];
#pragma unroll
    for (unsigned i = 0; i < kAhead; i++)
        if (group + i * groups < K) ahead[i] = load(group + i * groups);
    matvec_chunks(a, [&](unsigned k0, unsigned count) {
        if (K == 0) return;
        unsigned k = group;
        for (; k + (kAhead - 1) * groups < count; k += kAhead * groups)
#pragma unroll
            for (unsigned i = 0; i < kAhead; i++) {
                use(ahead[i], k + i * groups);
                if (const unsigned next = k0 + k + (i + kAhead) * groups; next < K) ahead[i] = load(next);
            }
#pragma unroll
        for (unsigned i = 0; i + 1 < kAhead; i++)  // what is left in the last chunk
            if (k + i * groups < count) use(ahead[i], k + i * groups);
    });
#pragma unroll
    for (int i = 0; i < R * int(P); i++)
        for (unsigned lanes = a.lanes; lanes < 32; lanes *= 2)
            sum[i / P][i % P] += __shfl_xor_sync(~0u, sum[i / P][i % P], int(lanes));
    __syncthreads();  // every thread is done with the last chunk
    if (lane < a.lanes)
#pragma unroll
        for (int i = 0; i < R * int(P); i++) shared[(warp * R + i / P) * tile + lane * P + i % P] = sum[i / P][i % P];
    __syncthreads();
    for (unsigned at = threadIdx.x; at < a.rows * tile; at += kMatvecThreads) {
        const unsigned r = at / tile, c = at % tile;
        float total = 0;
        for (unsigned w = 0; w < kMatvecWarps; w++) total += shared[(w * R + r) * tile + c];
        if (blockIdx.x * tile + c < a.N) matvec_store(a, total, r, blockIdx.x * tile + c);
    }
}

// W [N, K], the token embedding as the head: a warp computes kMatvecDots columns of the output of all rows.
constexpr unsigned kMatvecDots = 4;

template <class Real, int R>
__global__ void __launch_bounds__(kMatvecThreads) matvec_transposed_kernel(const __grid_constant__ Matvec<Real> a) {
    constexpr unsigned P = kVector<Real>;
    float* const shared = matvec_shared();
    const unsigned lane = threadIdx.x % 32, n = (blockIdx.x * kMatvecWarps + threadIdx.x / 32) * kMatvecDots;
    float sum[kMatvecDots][R] = {};
    uint4 next[kMatvecDots];
    auto request = [&](unsigned k) {
#pragma unroll
        for (unsigned d = 0; d < kMatvecDots; d++)
            next[d] = pack_bits(load_pack_readonly(a.weight + size_t(min(n + d, a.N - 1)) * a.K + k));
    };
    constexpr bool early = R < 16;  // with 16, one block instead of two would fit on a multiprocessor
    if (early && lane * P < a.K) request(lane * P);
    matvec_chunks(a, [&](unsigned k0, unsigned count) {
        for (unsigned k = lane * P; k < count; k += 32 * P) {
            if (!early) request(k0 + k);
            Pack<Real> w[kMatvecDots];
#pragma unroll
            for (unsigned d = 0; d < kMatvecDots; d++) w[d] = as_pack<Real>(next[d]);
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (unsigned j = 0; j < P; j++) {
                    const float x = shared[unsigned(r) * a.chunk + k + j];
#pragma unroll
                    for (unsigned d = 0; d < kMatvecDots; d++) sum[d][r] += x * float(w[d][int(j)]);
                }
            if (early && k0 + k + 32 * P < a.K) request(k0 + k + 32 * P);
        }
    });
#pragma unroll
    for (int i = 0; i < R * int(kMatvecDots); i++) {
        const unsigned d = unsigned(i) % kMatvecDots, r = unsigned(i) / kMatvecDots;
        const float total = warp_sum(sum[d][r]);
        if (lane == 0 && r < a.rows && n + d < a.N) matvec_store(a, total, r, n + d);
    }
}

// Whether the kernels can compute this product; those they cannot go through cuBLASLt.
template <class Real>
bool fits_matvec(const Matvec<Real>& a, bool transposed) {
    return a.rows <= kMatvecMostRows && a.K % kVector<Real> == 0 && (transposed || a.N % kVector<Real> == 0) &&
           aligned_16(a.x, a.weight) && site_aligned<Real>(a.site);
}

// Calls f(std::integral_constant<int, R>()) with the number of rows that the kernels round up to.
template <class F>
void with_matvec_rows(unsigned rows, F&& f) {
    if (rows <= 1) return f(std::integral_constant<int, 1>());
    if (rows <= 2) return f(std::integral_constant<int, 2>());
    if (rows <= 4) return f(std::integral_constant<int, 4>());
    if (rows <= 8) return f(std::integral_constant<int, 8>());
    f(std::integral_constant<int, 16>());
}

// Requires fits_matvec(a, transposed). Chooses a.lanes and a.chunk.
template <class Real>
void matvec(Cuda& dev, Matvec<Real> a, bool transposed) {
    constexpr unsigned P = kVector<Real>;
    if (a.ld_out == 0) a.ld_out = a.N;
    with_matvec_rows(a.rows, [&](auto size) {
        constexpr int R = decltype(size)::value;
        a.chunk = std::min(a.K, kMatvecNumbers / R / P * P);
        // As many columns per block as still leave every multiprocessor a block: whole cache lines where possible.
        a.lanes = kMatvecMostLanes;
        while (a.lanes > kMatvecFewestLanes && blocks_for(a.N, a.lanes * P) < unsigned(dev.multiprocessors()))
            a.lanes /= 2;
        const size_t sums = transposed ? 0 : kMatvecWarps * R * a.lanes * P;
        const size_t shared =
            kMatvecMostRows * sizeof(float2) + std::max<size_t>(size_t(R) * a.chunk, sums) * sizeof(float);
        if (transposed)
            launch<matvec_transposed_kernel<Real, R>>(blocks_for(a.N, kMatvecWarps * kMatvecDots), kMatvecThreads,
                                                      shared, dev.stream, a);
        else
            launch<matvec_kernel<Real, R>>(blocks_for(a.N, a.lanes * P), kMatvecThreads, shared, dev.stream, a);
    });
}

}  // namespace tapernorm
#endif  // TN_CUDA
