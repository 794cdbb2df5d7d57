// Rung 4: the tiles lie in shared memory in another order, and ldmatrix reads them.
//
// Chunk c of row r (16 bytes each, eight in a row) lies where chunk c ^ (r % 8) would: an exclusive or, so every row
// still has its eight chunks, but the same chunk of eight rows now falls on all 32 banks once (Tile::at in
// fragments.cuh). ldmatrix.x4 reads four 8 x 8 matrices so, one wavefront each, and hands every lane its part of the
// fragment; .trans hands out the transpose, which v needs. One instruction instead of four to eight loads of a lane,
// and no bank conflict.
#pragma once

#include "forward_3_tensor_cores.cuh"

namespace slm::ladder {

using Swizzled = Tile<T, D>;
using Queries = Swizzled::Operands<1, false>;  // 16 rows of q, read again for each tile of keys

// Takes in the keys and values of one tile; with `masked`, without those in the future.
__device__ __forceinline__ void take_swizzled(ScoreRows& rows, const Queries& q, const T* k, const T* v, int key,
                                              bool masked) {
    ScoreRows::Scores score = {};
    Swizzled::multiply_rows(q, Swizzled::across(k), 0, score);
    if (masked) rows.mask(key, score);
    rows.softmax(score);
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
        Operand weights[1];
        as_operand<T>(score[j][0], weights[0]);
        Swizzled::multiply(weights, Swizzled::down(v), 16 * j, rows.out);
    }
}

__global__ void __launch_bounds__(kThreads) attend_swizzle(const AttentionForward<T> p) {
    __shared__ __align__(128) T q_tile[kQueries * D], k[kKeys * D], v[kKeys * D];
    const AttentionShape& s = p.shape;
    const Head at(s);
    const auto swizzled = [](T* tile, int row, int chunk) { return Swizzled::at(tile, row, chunk); };
    const auto load = [&](T* tile, const Heads<const T>& x, int first) {
        load_rows(tile, x.head(at.batch, at.head), x.token_stride, first, s.length, swizzled);
    };
    const int first = blockIdx.x * kQueries, row = threadIdx.x / 32 * 16;
    load(q_tile, p.q, first);
    Queries q;
    q.load(q_tile, row);
    ScoreRows rows{first + row};
    for (int key = 0; key < s.length; key += kKeys) {
        __syncthreads();  // the tiles before have been used
        load(k, p.k, key);
        load(v, p.v, key);
        __syncthreads();
        take_swizzled(rows, q, k, v, key, true);
    }
    rows.store(p, at.batch, at.head);
}

}  // namespace slm::ladder

extern "C" void attention_forward_swizzle(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    launch(attend_swizzle, grid_per_head(p.shape, p.shape.length, kQueries), dim3(kThreads), 0, stream_of(numbers), p);
}
