// Causal attention for at most 128 tokens on tensor cores, forward: half and bfloat16, D up to 128 in multiples of 8.
//
// At this length attention is bound by memory: a head of T = 128, D = 64 moves 64 KiB for 2.4 million multiply-adds. So
// one block takes a head: q, k and v are copied to shared memory once, and a warp holds whole rows of scores, 16 x 128,
// in registers. Softmax then is plain: one maximum, one sum, nothing to rescale. Row tile i needs i + 1 tiles of keys,
// rounded up to 2, 4, 6 or 8, for each of which there is code without branches. The eight warps take a row tile each,
// such that the two warps of each quarter of a multiprocessor, w and w + 4, have tiles i and 7 - i: the same work for
// every quarter. The copies of one block hide behind the products of the other.
//
//   shared memory  3 T D 16-bit elements: 48 KiB at T = 128, D = 64
//   registers      64 for the scores, then half as many for the weights and D / 2 for the result
#pragma once

#include "score_tile.cuh"

namespace slm::cuda {

inline constexpr int kShortThreads = 256;  // 8 warps for 8 tiles of 16 queries

// The scores of the 16 queries of a tile with the first Tiles * 16 keys, and the weights they become.
template <class T, int D, int Tiles>
struct ShortRow {
    using Memory = Tile<T, D>;

    int query;  // the first
    Accumulator<16> score[Tiles][1] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of rows g and g + 8

    // Calls step(j, n, e) for each score of this lane.
    template <class Step>
    static __device__ __forceinline__ void each(const Step& step) {
#pragma unroll
        for (int i = 0; i < Tiles * 8; ++i) step(i / 8, i / 4 % 2, i % 4);
    }

    // Scores to weights exp(scale * (score - maximum)), 0 where the key is not seen. scale > 0.
    __device__ __forceinline__ void softmax(const AttentionShape& s) {
        const float scale = static_cast<float>(s.scale * kLog2E);
        each([&](int j, int n, int e) {
            if (ScoreTile<false>{query, 16 * j}.hidden(s, n, e)) score[j][0][n][e] = -INFINITY;
            maximum[e / 2] = fmaxf(maximum[e / 2], score[j][0][n][e]);
        });
#pragma unroll
        for (int half = 0; half < 2; ++half) maximum[half] = max_over<4>(maximum[half]);
        each([&](int j, int n, int e) {
            score[j][0][n][e] = ptx::exp2_approx((score[j][0][n][e] - maximum[e / 2]) * scale);
            sum[e / 2] += score[j][0][n][e];
        });
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = sum_over<4>(sum[half]);
    }

    __device__ __forceinline__ void drop(const AttentionShape& s, int batch, int head) {
        const uint64_t seed = static_cast<uint64_t>(*s.seed);
#pragma unroll
        for (int j = 0; j < Tiles; j += 2)
            cuda::drop(s, seed, batch, head, query, 16 * j, score[j][0], score[j + 1][0]);
    }

    // v: by Tile::down.
    __device__ __forceinline__ void multiply_values(const AttentionShape& s, ptx::Shared v,
                                                    Accumulator<D> (&out)[1]) const {
        Operand weights[Tiles][1];
        as_operands<T>(score, weights);
        // without a window, keys are hidden in the last two tiles alone
        const ScoreTile<false> at{query, 0};
        const bool all_seen = at.all_seen<16, 16 * (Tiles - 2)>(s);
        if constexpr (Tiles > 2) multiply_some<T, D, 0, Tiles - 2>(s, at, all_seen, weights, v, 0, out);
        multiply_some<T, D, Tiles - 2, Tiles>(s, at, false, weights, v, 0, out);
    }
};

// The result of the 16 queries of a tile, which see the first Tiles * 16 keys at most. The tile of q is used up.
template <int Tiles, int D, class T>
__device__ __forceinline__ void attend_short(const AttentionForward<T>& p, int batch, int head, int tile, T* q,
                                             const T* k, const T* v) {
    using Memory = Tile<T, D>;
    const AttentionShape& s = p.shape;
    ShortRow<T, D, Tiles> row{16 * tile};
    typename Memory::template Operands<1, false> queries;
    queries.load(q, row.query);
    Memory::multiply_rows(queries, Memory::across(k), 0, row.score);
    row.softmax(s);
    if (s.seed != nullptr) row.drop(s, batch, head);
    Accumulator<D> out[1] = {};
    row.multiply_values(s, Memory::down(v), out);

    const float kept = s.seed != nullptr ? 65536.0f / s.threshold : 1.0f;
    Memory::store(out[0], kept / row.sum[0], kept / row.sum[1], q, row.query, p.out.head(batch, head),
                  p.out.token_stride, row.query, s.length, s.width);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = row.query + ScoreTile<false>::row(2 * half);
        if (threadIdx.x % 4 == 0 && query < s.length)
            p.lse[s.row(batch, head, query)] =
                rounded_product(row.maximum[half], static_cast<float>(s.scale)) + logf(row.sum[half]);
    }
}

// Grid: B * H. Shared memory: tiles of q, k and v, T rounded up to 32 rows each.
template <class T, int D>
__global__ void __launch_bounds__(kShortThreads, D <= 64 ? 2 : 1) attention_short_forward(const AttentionForward<T> p) {
    const AttentionShape& s = p.shape;
    const int batch = blockIdx.x / s.heads, head = blockIdx.x % s.heads, kv_head = s.kv_head(head);
    const int rows = (s.length + 31) / 32 * 32;
    T *q = dynamic_shared<T>(), *k = q + rows * D, *v = k + rows * D;
    const auto load = [&](T* tile, const Heads<const T>& from, int which) {
        Tile<T, D>::template load_async<kShortThreads>(tile, from.head(batch, which), from.token_stride, 0, rows,
                                                       s.length, s.width);
    };
    load(q, p.q, head);
    load(k, p.k, kv_head);
    load(v, p.v, kv_head);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    const int warp = threadIdx.x / 32, tile = warp < 4 ? warp : 11 - warp;
    if (16 * tile >= s.length) return;
    switch (tile / 2) {
        case 0: return attend_short<2, D>(p, batch, head, tile, q, k, v);
        case 1: return attend_short<4, D>(p, batch, head, tile, q, k, v);
        case 2: return attend_short<6, D>(p, batch, head, tile, q, k, v);
        default: return attend_short<8, D>(p, batch, head, tile, q, k, v);
    }
}

template <class T>
void attention_short(const AttentionForward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    with_padded_width(s.width, [&](auto width) {
        constexpr int D = width;
        const std::size_t shared = 3 * ceil_div(s.length, 32) * 32 * D * sizeof(T);
        launch(attention_short_forward<T, D>, tile_grid(s, s.heads, kShortTokens), dim3(kShortThreads), shared, stream,
               p);
    });
}

}  // namespace slm::cuda
