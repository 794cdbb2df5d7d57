// Causal attention for at most 128 tokens on tensor cores, forward: half and bfloat16, D up to 128 in multiples of 8.
//
// At this length attention is bound by memory: a head of T = 128, D = 64 moves 64 KiB for 2.4 million multiply-adds. So one
// block of four warps takes a head: q, k and v are copied to shared memory once (cp.async, v while the scores are formed),
// and a warp holds a whole row of scores, 16 x 128, in registers. Softmax then is plain: one maximum, one sum, nothing
// to rescale. Row tile i needs i + 1 tiles of keys, so warp w takes tiles w and 7 - w: nine for each.
//
//   shared memory  3 T D 16-bit elements (48 KiB at T = 128, D = 64: four blocks on an H100's multiprocessor)
//   registers      64 for the scores, D / 2 for the result, D / 4 for the rows of q
#pragma once

#include "score_tile.cuh"

namespace slm::cuda {

inline constexpr int kShortLength = 128, kShortTiles = kShortLength / 16;
inline constexpr int kShortWarps = 4, kShortThreads = 32 * kShortWarps;

// The row (or column) tile that a warp takes in pass 0 or 1.
__device__ __forceinline__ int short_tile(int pass) {
    const int warp = threadIdx.x / 32;
    return pass == 0 ? warp : kShortTiles - 1 - warp;
}

// The scores of 16 queries with all keys up to theirs: score[j] holds keys 16 j … 16 j + 15. Tiles of keys after the queries'
// own are left out by every step.
struct ShortRow {
    int tile;  // of the queries
    Accumulator<16> score[kShortTiles][1];

    template <class Step>
    __device__ __forceinline__ void each_tile(const Step& step) const {
#pragma unroll
        for (int j = 0; j < kShortTiles; ++j)
            if (j <= tile) step(j);
    }

    // Calls step(j, n, e) for each element.
    template <class Step>
    __device__ __forceinline__ void each(const Step& step) const {
        each_tile([&](int j) {
#pragma unroll
            for (int i = 0; i < 8; ++i) step(j, i / 4, i % 4);
        });
    }

    template <class T, int D>
    __device__ __forceinline__ void multiply(const T* q_tile, const T* k_tile) {
        typename Tile<T, D>::template Operands<true> q[1];
        q[0].load(q_tile, 16 * tile);
        each([&](int j, int n, int e) { score[j][0][n][e] = 0; });
        each_tile([&](int j) { Tile<T, D>::multiply_rows(q, k_tile, 16 * j, score[j]); });
    }

    // Scores to weights exp2(scale * (score - maximum)), 0 where the key is not seen; returns the two rows' scaled maxima and
    // sums. scale > 0.
    __device__ __forceinline__ void softmax(const AttentionShape& s, float scale, float (&maximum)[2], float (&sum)[2]) {
        maximum[0] = maximum[1] = -INFINITY;
        sum[0] = sum[1] = 0;
        each([&](int j, int n, int e) {
            const ScoreTile<false> at{16 * tile, 16 * j};
            if (at.any_hidden(s) && at.hidden(s, n, e)) score[j][0][n][e] = -INFINITY;
            maximum[e / 2] = fmaxf(maximum[e / 2], score[j][0][n][e]);
        });
#pragma unroll
        for (int half = 0; half < 2; ++half) maximum[half] = max_over<4>(maximum[half]) * scale;
        each([&](int j, int n, int e) {
            score[j][0][n][e] = ptx::exp2_approx(fmaf(score[j][0][n][e], scale, -maximum[e / 2]));
            sum[e / 2] += score[j][0][n][e];
        });
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = sum_over<4>(sum[half]);
    }

    __device__ __forceinline__ void drop(const AttentionShape& s, int batch, int head) {
        const uint64_t seed = static_cast<uint64_t>(*s.seed);
#pragma unroll
        for (int j = 0; j < kShortTiles; j += 2)
            if (j <= tile) cuda::drop(s, seed, batch, head, 16 * tile, 16 * j, score[j][0], score[j + 1][0]);
    }

    // The weights, rounded to T, as operands of the product with v.
    template <class T>
    __device__ __forceinline__ void round(Operand (&weights)[kShortTiles][1]) const {
        each_tile([&](int j) { as_operand<T>(score[j][0], weights[j][0]); });
    }
};

// Grid: B * H. Shared memory: tiles of q, k and v, T rounded up to 16 rows each.
template <class T, int D>
__global__ void __launch_bounds__(kShortThreads, D <= 64 ? 3 : 2) attention_short_forward(const AttentionForward<T> p) {
    using Rows = Tile<T, D>;
    const AttentionShape& s = p.shape;
    const int batch = blockIdx.x / s.heads, head = blockIdx.x % s.heads, kv_head = s.kv_head(head);
    const int rows = (s.length + 15) / 16 * 16;
    T *q = dynamic_shared<T>(), *k = q + rows * D, *v = k + rows * D;
    const auto load = [&](T* tile, const Heads<const T>& from, int which) {
        Rows::template load_async<kShortThreads>(tile, from.head(batch, which), from.token_stride, 0, rows, s.length,
                                                       s.width);
    };
    load(q, p.q, head);
    load(k, p.k, kv_head);
    ptx::cp_async_commit();
    load(v, p.v, kv_head);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncthreads();

    const float scale = static_cast<float>(s.scale * kLog2E);
    for (int pass = 0; pass < 2; ++pass) {
        ShortRow row{short_tile(pass)};
        const bool present = 16 * row.tile < s.length;
        float maximum[2], sum[2];
        Operand weights[kShortTiles][1];
        if (present) {
            row.template multiply<T, D>(q, k);
            row.softmax(s, scale, maximum, sum);
            if (s.seed != nullptr) row.drop(s, batch, head);
            row.template round<T>(weights);
        }
        if (pass == 0) {
            ptx::cp_async_wait<0>();
            __syncthreads();
        }
        if (!present) continue;
        Accumulator<D> out[1] = {};
        row.each_tile([&](int j) { Rows::multiply(weights[j], v, 16 * j, out); });
        const float kept = s.seed != nullptr ? 65536.0f / s.threshold : 1.0f;
        Rows::store(out[0], kept / sum[0], kept / sum[1], q, 16 * row.tile, p.out.head(batch, head),
                          p.out.token_stride, 16 * row.tile, s.length, s.width);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = 16 * row.tile + threadIdx.x % 32 / 4 + 8 * half;
            if (threadIdx.x % 4 == 0 && query < s.length)
                p.lse[s.row(batch, head, query)] = maximum[half] * static_cast<float>(kLn2) + logf(sum[half]);
        }
    }
}

template <class T>
void attention_short(const AttentionForward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    with_padded_width(s.width, [&](auto width) {
        constexpr int D = decltype(width)::value;
        const std::size_t shared = 3 * ceil_div(s.length, 16) * 16 * D * sizeof(T);
        launch(attention_short_forward<T, D>, tile_grid(s.batch, s.heads, 1, 1), dim3(kShortThreads), shared, stream, p);
    });
}

}  // namespace slm::cuda
