// Causal attention of any length on tensor cores, backward: two kernels, deterministic, or one that is faster.
//
//   attention_long_backward_q   a block takes 64 queries and walks over the keys: dq, and delta for the other kernel
//   attention_long_backward_kv  a block takes 64 keys and walks over the queries from the diagonal on, and over all
//                               heads that share the keys: dk and dv
//
// The second forms the scores transposed, as attention_short_backward.cuh does, so that P^T and dS^T are operands as
// they come.
//
// Each gradient has one owner, which adds in one order. The price is that scores and grad_out v^T are formed twice:
// seven products where five would do. Where the caller asks for that, with dq_sum, the second kernel runs alone, hands
// dS over through shared memory and adds up dq atomically (query_sum.cuh). Both kernels pipeline as the forward does:
// two stages, one barrier per tile, and one more for dS.
//
//   shared memory  6 tiles of 64 x D 16-bit elements: 48 KiB at D = 64, 96 KiB at D = 128; 8 KiB for dS
#pragma once

#include "query_sum.cuh"

namespace slm::cuda {

inline constexpr int kLongTile = 64;  // rows and columns; a warp owns 16 rows
inline constexpr int kLongBackwardThreads = kLongTile / 16 * 32;

// Shared memory: rows of q and grad_out, two stages of k and v, then lse and delta of the rows.
template <class T, int D>
__global__ void __launch_bounds__(kLongBackwardThreads, 2) attention_long_backward_q(const AttentionBackward<T> p) {
    constexpr int kTile = kLongTile * D;
    using Memory = Tile<T, D>;
    const AttentionShape& s = p.shape;
    const HeadTile at(s.batch, s.heads, s.length, kLongTile, true);
    const T *k = p.k.head(at.batch, s.kv_head(at.head)), *v = p.v.head(at.batch, s.kv_head(at.head));
    T *q_tile = dynamic_shared<T>(), *grad_tile = q_tile + kTile, *stages = grad_tile + kTile;
    float *lse = reinterpret_cast<float*>(stages + 4 * kTile), *delta = lse + kLongTile;
    const auto load = [&](T* tile, const T* head, int64_t stride, int first) {
        Memory::template load_async<kLongBackwardThreads>(tile, head, stride, first, kLongTile, s.length, s.width);
    };
    const auto load_keys = [&](int key, int stage) {
        load(stages + stage * 2 * kTile, k, p.k.token_stride, key);
        load(stages + stage * 2 * kTile + kTile, v, p.v.token_stride, key);
        ptx::cp_async_commit();
    };
    const int first_key = max(0, at.first - s.window + 1) / kLongTile * kLongTile;
    load(q_tile, p.q.head(at.batch, at.head), p.q.token_stride, at.first);
    load(grad_tile, p.grad_out.head(at.batch, at.head), p.grad_out.token_stride, at.first);
    load_keys(at.first, 0);
    load_statistics<kLongBackwardThreads>(p, at.batch, at.head, at.first, kLongTile, lse, delta);

    const Dropout<float> dropout(s);
    const int row = threadIdx.x / 32 * 16;
    Accumulator<D> dq[1] = {};
    typename Memory::template Operands<D <= 64> q[1], grad_out[1];
    for (int key = at.first, stage = 0; key >= first_key; key -= kLongTile, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key == at.first) {
            q[0].load(q_tile, row);
            grad_out[0].load(grad_tile, row);
        }
        if (key > first_key) load_keys(key - kLongTile, stage ^ 1);
        const T *k_tile = stages + stage * 2 * kTile, *v_tile = k_tile + kTile;
#pragma unroll 1
        for (int j = 0; j < kLongTile; j += 16) {
            const ScoreTile<false> tile{at.first + row, key + j};
            if (!tile.any_seen(s)) continue;
            Accumulator<16> score[1][1] = {}, grad[1][1] = {};
            Memory::multiply_rows(q, k_tile, j, score);
            Memory::multiply_rows(grad_out, v_tile, j, grad);
            tile.differentiate(s, dropout, at.batch, at.head, lse + row, delta + row, score[0][0], grad[0][0]);
            Operand a[1];
            as_operand<T>(grad[0][0], a[0]);
            Memory::multiply(a, k_tile, j, dq);
        }
    }
    const float scale = static_cast<float>(s.scale);
    Memory::store(dq[0], scale, scale, q_tile, row, p.dq.head(at.batch, at.head), p.dq.token_stride, at.first + row,
                  s.length, s.width);
    if (any_not_finite(dq)) exact_query_gradients(p, at.batch, at.head, at.first + row, 16);
    for (int i = threadIdx.x; i < kLongTile && at.first + i < s.length; i += kLongBackwardThreads)
        p.delta[s.row(at.batch, at.head, at.first + i)] = delta[i];
}

// Shared memory: rows of k and v, two stages of q and grad_out, then two of lse and delta; where it adds up dq, dS.
template <class T, int D, bool AddsQueries>
__global__ void __launch_bounds__(kLongBackwardThreads, 2) attention_long_backward_kv(const AttentionBackward<T> p) {
    constexpr int kTile = kLongTile * D;
    using Memory = Tile<T, D>;
    const AttentionShape& s = p.shape;
    const HeadTile at(s.batch, s.kv_heads, s.length, kLongTile, false);
    T *k_tile = dynamic_shared<T>(), *v_tile = k_tile + kTile, *stages = v_tile + kTile;
    float* statistics = reinterpret_cast<float*>(stages + 4 * kTile);
    T* score_gradients = reinterpret_cast<T*>(statistics + 4 * kLongTile);  // 4 x 4 tiles, of 16 queries a row
    const auto load = [&](T* tile, const Heads<const T>& from, int head, int first) {
        Memory::template load_async<kLongBackwardThreads>(tile, from.head(at.batch, head), from.token_stride, first,
                                                          kLongTile, s.length, s.width);
    };
    // Turn t of the walk: tile t % per_head of the queries from the diagonal on, of head t / per_head of the group.
    const int group = s.heads / s.kv_heads;
    const int end = static_cast<int>(min(int64_t{s.length}, int64_t{at.first} + kLongTile - 1 + s.window));
    const unsigned per_head = (end - at.first + kLongTile - 1) / kLongTile;  // unsigned divisions are cheaper
    const auto load_queries = [&](unsigned turn, int stage) {
        const int head = at.head * group + turn / per_head, query = at.first + turn % per_head * kLongTile;
        load(stages + stage * 2 * kTile, p.q, head, query);
        load(stages + stage * 2 * kTile + kTile, p.grad_out, head, query);
        const int i = threadIdx.x % kLongTile;  // the first 64 threads copy lse, the others delta
        const float* from = threadIdx.x < kLongTile ? p.lse : p.delta;
        ptx::cp_async<4>(statistics + stage * 2 * kLongTile + threadIdx.x, from + s.row(at.batch, head, query + i),
                         query + i < s.length);
        ptx::cp_async_commit();
    };
    load(k_tile, p.k, at.head, at.first);
    load(v_tile, p.v, at.head, at.first);
    load_queries(0, 0);

    const Dropout<float> dropout(s);
    const int row = threadIdx.x / 32 * 16;
    Accumulator<D> dk[1] = {}, dv[1] = {};
    typename Memory::template Operands<D <= 64> k[1], v[1];
    int stage = 0;
    for (unsigned turn = 0; turn < group * per_head; ++turn, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (turn == 0) {
            k[0].load(k_tile, row);
            v[0].load(v_tile, row);
        }
        if (turn + 1 < group * per_head) load_queries(turn + 1, stage ^ 1);
        const T *q_tile = stages + stage * 2 * kTile, *grad_tile = q_tile + kTile;
        const float *lse = statistics + stage * 2 * kLongTile, *delta = lse + kLongTile;
        const int head = at.head * group + turn / per_head, query = at.first + turn % per_head * kLongTile;
#pragma unroll 1
        for (int i = 0; i < kLongTile; i += 16) {
            const ScoreTile<true> tile{query + i, at.first + row};
            if (!tile.any_seen(s)) continue;
            Accumulator<16> score[1][1] = {}, grad[1][1] = {};
            Memory::multiply_rows(k, q_tile, i, score);
            Memory::multiply_rows(v, grad_tile, i, grad);
            tile.differentiate(s, dropout, at.batch, head, lse + i, delta + i, score[0][0], grad[0][0]);
            Operand a[1];
            as_operand<T>(score[0][0], a[0]);
            Memory::multiply(a, grad_tile, i, dv);
            as_operand<T>(grad[0][0], a[0]);
            Memory::multiply(a, q_tile, i, dk);
            if constexpr (AddsQueries)
                ScoreGradientTile<T>{score_gradients + (i * (kLongTile / 16) + row) * 16}.store(a[0]);
        }
        if constexpr (AddsQueries) {
            __syncthreads();
            add_to_query_sum<kLongTile, D>(p, at.batch, head, query + row, at.first,
                                           score_gradients + row * kLongTile, k_tile);
        }
    }
    const float scale = static_cast<float>(s.scale);
    Memory::store(dv[0], 1, 1, v_tile, row, p.dv.head(at.batch, at.head), p.dv.token_stride, at.first + row, s.length,
                  s.width);
    Memory::store(dk[0], scale, scale, v_tile, row, p.dk.head(at.batch, at.head), p.dk.token_stride, at.first + row,
                  s.length, s.width);
    if (any_not_finite(dk) || any_not_finite(dv)) exact_key_gradients(p, at.batch, at.head, at.first + row, 16);
}

template <class T>
std::size_t attention_long_shared_bytes(const AttentionBackward<T>& p, bool with_dq_sum) {
    std::size_t bytes = 0;
    with_padded_width(p.shape.width, [&](auto width) {
        const int tiles = 6 * kLongTile * width + (with_dq_sum ? kLongTile * kLongTile : 0);
        bytes = tiles * sizeof(T) + 4 * kLongTile * sizeof(float);
    });
    return bytes;
}

template <class T>
void attention_long(const AttentionBackward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    const dim3 rows = tile_grid(s.batch, s.heads, s.length, kSumRows), block(kLongBackwardThreads);
    const dim3 queries = tile_grid(s.batch, s.heads, s.length, kLongTile);
    const dim3 keys = tile_grid(s.batch, s.kv_heads, s.length, kLongTile);
    const std::size_t shared = attention_long_shared_bytes(p, p.dq_sum != nullptr);
    with_padded_width(s.width, [&](auto width) {
        constexpr int D = width;
        if (p.dq_sum == nullptr) {
            launch(attention_long_backward_q<T, D>, queries, block, shared, stream, p);
            launch(attention_long_backward_kv<T, D, false>, keys, block, shared, stream, p);
        } else {
            launch(query_sum_begin<T>, rows, dim3(kSumThreads), 0, stream, p);
            launch(attention_long_backward_kv<T, D, true>, keys, block, shared, stream, p);
            launch(query_sum_finish<T>, rows, dim3(kSumThreads), 0, stream, p);
        }
    });
}

}  // namespace slm::cuda
