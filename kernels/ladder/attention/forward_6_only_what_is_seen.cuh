// Rung 6: what lies in the future is left out.
//
// A tile of queries needs the tiles of keys up to its own: (n + 1) / 2n of them, little more than half for long
// texts. Only the last, on the diagonal, has anything to hide; the others skip the comparison of each score. Since the
// tiles of queries now differ in work, those with most keys start first and the light ones fill the gaps at the end.
#pragma once

#include "forward_5_double_buffer.cuh"

namespace slm::ladder {

__global__ void __launch_bounds__(kThreads) attend_seen(const AttentionForward<T> p) {
    const AttentionShape& s = p.shape;
    const HeadTile at(s, s.heads, kQueries, true);
    T *q_tile = dynamic_shared<T>(), *stages = q_tile + kQueries * D;
    const auto begin = [&](int key, int stage) {
        begin_copy(stages + stage * 2 * kTileSize, p.k, at.batch, at.head, key, s.length);
        begin_copy(stages + stage * 2 * kTileSize + kTileSize, p.v, at.batch, at.head, key, s.length);
        ptx::cp_async_commit();
    };
    const int row = threadIdx.x / 32 * 16;
    begin_copy(q_tile, p.q, at.batch, at.head, at.first, s.length);
    begin(0, 0);
    Queries q;
    q.load(q_tile, row);
    ScoreRows rows{at.first + row};
    for (int key = 0, stage = 0; key <= at.first; key += kKeys, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key < at.first) begin(key + kKeys, stage ^ 1);
        const T* tile = stages + stage * 2 * kTileSize;
        take_swizzled(rows, q, tile, tile + kTileSize, key, key == at.first);
    }
    rows.store(p, at.batch, at.head);
}

}  // namespace slm::ladder

extern "C" void attention_forward_only_what_is_seen(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    const AttentionShape& s = p.shape;
    launch(attend_seen, tile_grid(s, s.heads, kQueries), dim3(kThreads), kStagesBytes,
           stream_of(numbers), p);
}
