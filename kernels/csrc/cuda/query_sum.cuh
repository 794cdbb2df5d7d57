// dq as a sum in float32 that blocks add to as they come: the fast backward of long attention, in no certain order.
//
// attention_long_backward_kv has every tile of dS at hand, which dq = dS k needs too; but the tiles of one query are
// spread over many blocks. So each block adds its part to (B, H, T, D) numbers in global memory, by atomic additions
// that return nothing. Five products instead of seven, for 4 B H T D bytes of scratch and as many more additions as
// there are tiles of keys; and since floating-point sums depend on their order, two runs may differ in the last bits.
//
//   query_sum_begin     zeros in the sum; delta, which each block needs before it starts
//   add_to_query_sum    one tile's part
//   query_sum_finish    times the scale, rounded to 16 bits
#pragma once

#include "score_tile.cuh"

namespace slm::cuda {

inline constexpr int kSumThreads = 128, kSumRows = kSumThreads / 4;  // of a block; four lanes take a row

// Calls body(p, batch, head, query) for this thread's row of a grid of blocks of kSumRows queries, p for its document.
template <class T, class Body>
__device__ __forceinline__ void for_my_query(const AttentionBackward<T>& all, const Body& body) {
    const HeadTile at(all.shape, all.shape.heads, kSumRows, false);
    if (!at.is_empty())
        body(at.document(all), at.batch, at.head, at.first + static_cast<int>(threadIdx.x) / 4);
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) query_sum_begin(const AttentionBackward<T> all) {
    for_my_query(all, [](const AttentionBackward<T>& p, int batch, int head, int query) {
        const float delta = row_delta(p, batch, head, query);
        if (query >= p.shape.length) return;
        const int64_t row = p.shape.row(batch, head, query);
        if (threadIdx.x % 4 == 0) p.delta[row] = delta;
        for (int column = threadIdx.x % 4 * 4; column < p.shape.width; column += 16)
            *reinterpret_cast<float4*>(p.dq_sum + row * p.shape.width + column) = make_float4(0, 0, 0, 0);
    });
}

// Adds dS k, where dS is that of 16 queries from at.query on and `Keys` keys from at.key on, the tiles from `which` on, and
// k the tile of these keys, given by Tile::down. Wide heads take two turns of half of the columns each, whose sums find
// room in registers.
template <int Keys, int D, class T>
__device__ __forceinline__ void add_to_query_sum(const AttentionBackward<T>& p, int batch, int head,
                                                 const ScoreTile<false>& at, const ScoreGradientTiles<T>& gradients,
                                                 int which, ptx::Shared k) {
    constexpr int kColumns = D <= 64 ? D : D / 2;
    const AttentionShape& s = p.shape;
    const bool all_seen = at.all_seen<16, Keys>(s);
    const int query = at.query + ScoreTile<false>::row(0);
    const int64_t row = s.row(batch, head, query);
#pragma unroll
    for (int column = 0; column < D; column += kColumns) {
        Accumulator<kColumns> dq[1] = {};
        const auto multiply = [&](int j, bool all_seen) {
            Operand a[1][1];
            gradients.load_transposed(which + j, a[0][0]);
            multiply_some<T, D, 0, 1>(s, at.moved(0, 16 * j), all_seen, a, k, 16 * j, dq, column / 16);
        };
        if (all_seen) {  // without conditions on each tile
#pragma unroll
            for (int j = 0; j < Keys / 16; ++j) multiply(j, true);
        } else {
#pragma unroll 1
            for (int j = 0; j < Keys / 16; ++j)
                if (at.moved(0, 16 * j).any_seen(s)) multiply(j, false);
        }
        const auto add = [&](float* to, int n, int half) {
            ptx::red_add(reinterpret_cast<float2*>(to), make_float2(dq[0][n][2 * half], dq[0][n][2 * half + 1]));
        };
        if (at.query + 16 <= s.length && s.width == D) {  // nearly always: all numbers lie at constant distances
            float* first = p.dq_sum + row * D + column + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < kColumns / 4; ++i) add(first + i % 2 * 8 * D + i / 2 * 8, i / 2, i % 2);
        } else {
            float* first = p.dq_sum + row * s.width + column + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < kColumns / 4; ++i)
                if (query + i % 2 * 8 < s.length && column + i / 2 * 8 < s.width)
                    add(first + i % 2 * 8 * s.width + i / 2 * 8, i / 2, i % 2);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) query_sum_finish(const AttentionBackward<T> all) {
    const float scale = static_cast<float>(all.shape.scale);
    for_my_query(all, [&](const AttentionBackward<T>& p, int batch, int head, int query) {
        if (query >= p.shape.length) return;
        const float* sum = p.dq_sum + p.shape.row(batch, head, query) * p.shape.width;
        T* dq = p.dq.head(p.shape, batch, head) + query * p.dq.token_stride;
        for (int column = threadIdx.x % 4 * 8; column < p.shape.width; column += 32) {
            Pack<T, 8> pack;
#pragma unroll
            for (int e = 0; e < 8; e += 4) {
                const float4 four = *reinterpret_cast<const float4*>(sum + column + e);
                pack.at[e] = narrow<T>(four.x * scale);
                pack.at[e + 1] = narrow<T>(four.y * scale);
                pack.at[e + 2] = narrow<T>(four.z * scale);
                pack.at[e + 3] = narrow<T>(four.w * scale);
            }
            pack.store(dq + column);
        }
    });
}

}  // namespace slm::cuda
