// Causal attention for at most 128 tokens on tensor cores, backward: dq, dk and dv of a head by one block.
//
// Everything is read once and written once: eight times B T H D elements, no scratch, no atomics, so the result depends
// on nothing but the arguments. Scores are formed transposed, keys as rows and queries as columns: then P^T and dS^T
// are operands A as they come out of the tensor cores, and feed dv = P^T grad_out and dk = dS^T q without leaving the
// registers. Only dq = dS k wants them the other way round, so dS goes through shared memory once, as 16 x 16 tiles of
// 16 bits.
//
//   1. warp w takes the keys of tiles w and 7 - w (nine pairs of tiles), walks over the queries from the diagonal on,
//      keeps dk and dv in registers and leaves dS behind
//   2. after one barrier, warp w takes the queries of tiles w and 7 - w and multiplies their dS by k
//
//   shared memory  4 T D elements, T (T + 16) / 2 for dS, 2 T floats: 83 KiB at T = 128, D = 64
//   registers      D for dk and dv, D / 2 for the rows of k and v (from D = 96 on these are read again for each tile)
#pragma once

#include "score_tile.cuh"

namespace slm::cuda {

inline constexpr int kShortBackwardThreads = 128;

// The tile that a warp takes in pass 0 or 1.
__device__ __forceinline__ int tile_in_pass(int pass) {
    const int warp = threadIdx.x / 32;
    return pass == 0 ? warp : 7 - warp;
}

// The place of tile (queries 16 i …, keys 16 j …) among those of the lower triangle, row by row.
__device__ __forceinline__ int triangle(int i, int j) { return i * (i + 1) / 2 + j; }

// Grid: B * H, where every query head has its own head of k and v.
template <class T, int D>
__global__ void __launch_bounds__(kShortBackwardThreads, 2) attention_short_backward(const AttentionBackward<T> p) {
    using Memory = Tile<T, D>;
    const AttentionShape& s = p.shape;
    const int batch = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
    const int tiles = (s.length + 15) / 16, rows = 16 * tiles;
    T *q = dynamic_shared<T>(), *k = q + rows * D, *v = k + rows * D, *grad_out = v + rows * D;
    T* score_gradients = grad_out + rows * D;
    float *lse = reinterpret_cast<float*>(score_gradients + tiles * (tiles + 1) / 2 * 256), *delta = lse + rows;
    const auto load = [&](T* tile, const Heads<const T>& from) {
        Memory::template load_async<kShortBackwardThreads>(tile, from.head(batch, head), from.token_stride, 0, rows,
                                                           s.length, s.width);
    };
    load(q, p.q);
    load(k, p.k);
    load(v, p.v);
    load(grad_out, p.grad_out);
    ptx::cp_async_commit();
    load_statistics<kShortBackwardThreads>(p, batch, head, 0, rows, lse, delta);
    ptx::cp_async_wait<0>();
    __syncthreads();

    const Dropout<float> dropout(s);
    const ScoreGradientTiles<T> exchange(score_gradients, false);
    const float scale = static_cast<float>(s.scale);
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
        const int j = tile_in_pass(pass);
        if (j >= tiles) continue;
        typename Memory::template Operands<1, (D <= 64)> k_rows, v_rows;
        k_rows.load(k, 16 * j);
        v_rows.load(v, 16 * j);
        Accumulator<D> dk[1] = {}, dv[1] = {};
        for (int i = j; i < tiles; ++i) {
            const ScoreTile<true> at{16 * i, 16 * j};
            if (!at.any_seen(s)) break;
            const bool all_seen = at.all_seen(s);
            QueryStatistics<true> statistics[1];
            statistics[0].load(lse + 16 * i, delta + 16 * i);
            Accumulator<16> score[1][1] = {}, grad[1][1] = {};
            Memory::multiply_rows(k_rows, Memory::across(q), 16 * i, score);
            Memory::multiply_rows(v_rows, Memory::across(grad_out), 16 * i, grad);
            if (s.seed == nullptr)
                differentiate<false>(s, scale, dropout, batch, head, at, all_seen, statistics, score, grad);
            else
                differentiate<true>(s, scale, dropout, batch, head, at, all_seen, statistics, score, grad);
            Operand weights[1][1], gradients[1][1];
            as_operands<T>(score, weights);
            as_operands<T>(grad, gradients);
            multiply_tiles<T, D>(s, at, all_seen, weights, Memory::down(grad_out), 16 * i, dv);
            multiply_tiles<T, D>(s, at, all_seen, gradients, Memory::down(q), 16 * i, dk);
            exchange.store(triangle(i, j), gradients[0][0]);
        }
        Memory::store(dv[0], 1, 1, v, 16 * j, p.dv.head(batch, head), p.dv.token_stride, 16 * j, s.length, s.width);
        Memory::store(dk[0], scale, scale, v, 16 * j, p.dk.head(batch, head), p.dk.token_stride, 16 * j, s.length,
                      s.width);
    }
    __syncthreads();

#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
        const int i = tile_in_pass(pass);
        if (i >= tiles) continue;
        Accumulator<D> dq[1] = {};
        for (int j = i; j >= 0 && ScoreTile<true>{16 * i, 16 * j}.any_seen(s); --j) {
            const ScoreTile<false> at{16 * i, 16 * j};
            Operand a[1][1];
            exchange.load_transposed(triangle(i, j), a[0][0]);
            multiply_tiles<T, D>(s, at, at.all_seen(s), a, Memory::down(k), 16 * j, dq);
        }
        Memory::store(dq[0], scale, scale, q, 16 * i, p.dq.head(batch, head), p.dq.token_stride, 16 * i, s.length,
                      s.width);
    }
}

template <class T>
std::size_t attention_short_shared_bytes(const AttentionBackward<T>& p) {
    const std::size_t tiles = ceil_div(p.shape.length, 16), rows = 16 * tiles;
    std::size_t width = 0;
    with_padded_width(p.shape.width, [&](auto padded) { width = padded; });
    return (4 * rows * width + tiles * (tiles + 1) / 2 * 256) * sizeof(T) + 2 * rows * sizeof(float);
}

template <class T>
void attention_short(const AttentionBackward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    with_padded_width(s.width, [&](auto width) {
        launch(attention_short_backward<T, width>, tile_grid(s, s.heads, kShortTokens),
               dim3(kShortBackwardThreads), attention_short_shared_bytes(p), stream, p);
    });
}

}  // namespace slm::cuda
