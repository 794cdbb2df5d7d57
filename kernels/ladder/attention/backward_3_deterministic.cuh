// Rung 3: dq has an owner too. A second kernel, whose blocks own queries, forms the same tiles once more.
//
// Seven products instead of five; in return no atomics, no memory to zero and to round, and two runs give the same
// bits.
#pragma once

#include "backward_2_recompute.cuh"

namespace slm::ladder {

// dq of the block's 32 queries, which walks over the keys up to the diagonal.
__global__ void __launch_bounds__(kTileThreads) gradient_of_queries(const AttentionBackward<T> b) {
    __shared__ SmallTile k_tile, v_tile;
    const Head at(b.shape);
    const Quarter mine;
    const int length = b.shape.length, first = blockIdx.x * kSmallTile, query = first + mine.row;
    Quarter::Columns q, grad_out, dq = {};
    load_small(k_tile, b.q, at, first, length);
    load_small(v_tile, b.grad_out, at, first, length);
    __syncthreads();
    mine.load(q, k_tile[mine.row]);
    mine.load(grad_out, v_tile[mine.row]);

    for (int key = 0; key <= first; key += kSmallTile) {
        __syncthreads();  // the tiles before have been used
        load_small(k_tile, b.k, at, key, length);
        load_small(v_tile, b.v, at, key, length);
        __syncthreads();
        for (int j = 0; j < kSmallTile; ++j) {
            const float score = mine.dot(q, k_tile[j]), grad_p = mine.dot(grad_out, v_tile[j]);
            mine.add(dq, Weight(b, at, query, key + j, score, grad_p).grad, k_tile[j]);
        }
    }
    if (query < length) mine.store(dq, kScale, b.dq.head(at.batch, at.head) + query * b.dq.token_stride);
}

}  // namespace slm::ladder

extern "C" void attention_backward_deterministic(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto b = backward_arguments(tensors, numbers);
    const auto stream = stream_of(numbers);
    launch_delta(b, stream);
    launch_keys<false>(b, nullptr, stream);
    launch(gradient_of_queries, grid_per_head(b.shape, b.shape.length, kSmallTile), dim3(kTileThreads), 0, stream, b);
}
