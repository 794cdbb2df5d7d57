// Rung 5: while one tile is multiplied, the next is on its way.
//
// cp.async copies 16 bytes from global to shared memory without passing registers, and returns at once. With two stages
// for k and v, the copy of tile i + 1 starts before the products of tile i and is waited for after them; one barrier
// for each tile says both that the new one has come and that the old one is free. The bytes are the same: what is
// bought is the latency of a load from memory, hundreds of cycles, for each tile.
#pragma once

#include "forward_4_swizzle.cuh"

namespace slm::ladder {

constexpr int kTileSize = kKeys * D;
constexpr std::size_t kStagesBytes = (kQueries * D + 4 * kTileSize) * sizeof(T);  // q, twice k and v

// Starts copying rows [first, first + 64) of a head of x.
__device__ __forceinline__ void begin_copy(T* tile, const Heads<const T>& x, int batch, int head, int first,
                                           int length) {
    Swizzled::load_async<kThreads>(tile, x.head(batch, head), x.token_stride, first, 64, length, D);
}

__global__ void __launch_bounds__(kThreads) attend_double_buffer(const AttentionForward<T> p) {
    const AttentionShape& s = p.shape;
    const Head at(s);
    T *q_tile = dynamic_shared<T>(), *stages = q_tile + kQueries * D;
    const auto begin = [&](int key, int stage) {
        begin_copy(stages + stage * 2 * kTileSize, p.k, at.batch, at.head, key, s.length);
        begin_copy(stages + stage * 2 * kTileSize + kTileSize, p.v, at.batch, at.head, key, s.length);
        ptx::cp_async_commit();
    };
    const int first = blockIdx.x * kQueries, row = threadIdx.x / 32 * 16;
    begin_copy(q_tile, p.q, at.batch, at.head, first, s.length);
    begin(0, 0);
    Queries q;
    q.load(q_tile, row);
    ScoreRows rows{first + row};
    for (int key = 0, stage = 0; key < s.length; key += kKeys, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key + kKeys < s.length) begin(key + kKeys, stage ^ 1);
        const T* tile = stages + stage * 2 * kTileSize;
        take_swizzled(rows, q, tile, tile + kTileSize, key, true);
    }
    rows.store(p, at.batch, at.head);
}

}  // namespace slm::ladder

extern "C" void attention_forward_double_buffer(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    launch(attend_double_buffer, grid_per_head(p.shape, p.shape.length, kQueries), dim3(kThreads), kStagesBytes,
           stream_of(numbers), p);
}
