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

// Calls body(batch, head, query) for this thread's row of a grid of blocks of kSumRows queries, if there is one.
template <class T, class Body>
__device__ __forceinline__ void for_my_query(const AttentionBackward<T>& p, const Body& body) {
    const HeadTile at(p.shape.batch, p.shape.heads, p.shape.length, kSumRows, false);
    body(at.batch, at.head, at.first + static_cast<int>(threadIdx.x) / 4);
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) query_sum_begin(const AttentionBackward<T> p) {
    for_my_query(p, [&](int batch, int head, int query) {
        const float delta = row_delta(p, batch, head, query);
        if (query >= p.shape.length) return;
        const int64_t row = p.shape.row(batch, head, query);
        if (threadIdx.x % 4 == 0) p.delta[row] = delta;
        for (int column = threadIdx.x % 4 * 4; column < p.shape.width; column += 16)
            *reinterpret_cast<float4*>(p.dq_sum + row * p.shape.width + column) = make_float4(0, 0, 0, 0);
    });
}

// Adds dS k, where dS is that of queries query … query + 15 and keys key … key + Keys - 1, its tiles one after the other,
// and k the rows of these keys.
template <int Keys, int D, class T>
__device__ __forceinline__ void add_to_query_sum(const AttentionBackward<T>& p, int batch, int head, int query, int key,
                                                 T* score_gradients, const T* k) {
    const AttentionShape& s = p.shape;
    Accumulator<D> dq[1] = {};
#pragma unroll 1
    for (int j = 0; j < Keys / 16; ++j) {
        if (!ScoreTile<true>{query, key + 16 * j}.any_seen(s)) continue;
        Operand a[1];
        ScoreGradientTile<T>{score_gradients + j * 256}.load_transposed(a[0]);
        Tile<T, D>::multiply(a, k, 16 * j, dq);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int mine = query + ScoreTile<false>::row(2 * half);
        if (mine >= s.length) continue;
        float* row = p.dq_sum + s.row(batch, head, mine) * s.width + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            if (8 * n < s.width)
                ptx::red_add(reinterpret_cast<float2*>(row + 8 * n),
                             make_float2(dq[0][n][2 * half], dq[0][n][2 * half + 1]));
    }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) query_sum_finish(const AttentionBackward<T> p) {
    const float scale = static_cast<float>(p.shape.scale);
    for_my_query(p, [&](int batch, int head, int query) {
        const float* sum = p.dq_sum + p.shape.row(batch, head, query) * p.shape.width;
        float total = 0;
        T* dq = p.dq.head(batch, head) + query * p.dq.token_stride;
        for (int column = threadIdx.x % 4 * 8; query < p.shape.length && column < p.shape.width; column += 32) {
            Pack<T, 8> pack;
#pragma unroll
            for (int e = 0; e < 8; e += 4) {
                const float4 four = *reinterpret_cast<const float4*>(sum + column + e);
                total += four.x + four.y + four.z + four.w;
                pack.at[e] = narrow<T>(four.x * scale);
                pack.at[e + 1] = narrow<T>(four.y * scale);
                pack.at[e + 2] = narrow<T>(four.z * scale);
                pack.at[e + 3] = narrow<T>(four.w * scale);
            }
            pack.store(dq + column);
        }
        const int first = query - static_cast<int>(threadIdx.x) % 32 / 4;  // of the warp's eight queries
        if (any_not_finite(total)) exact_query_gradients(p, batch, head, first, 8);
    });
}

}  // namespace slm::cuda
