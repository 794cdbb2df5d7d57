// Tiles of 32 rows for the backward rungs without tensor cores: four neighbouring threads share a row.
//
// One thread could not keep two rows of inputs and two of sums, 4 * 64 numbers, in registers; a quarter of each it can.
// Thread `part` has the columns 4 part … 4 part + 3 of every 16, so that the four read 64 bytes side by side.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

constexpr int kSmallTile = 32, kQuarters = 4, kTileThreads = kSmallTile * kQuarters;

// A thread of a block.
struct Quarter {
    int row = static_cast<int>(threadIdx.x) / kQuarters, part = static_cast<int>(threadIdx.x) % kQuarters;

    using Columns = float[D / kQuarters];
    static __device__ __forceinline__ int column(int part, int i) { return i / 4 * 16 + part * 4 + i % 4; }

    __device__ __forceinline__ void load(Columns& x, const float* tile_row) const {
#pragma unroll
        for (int i = 0; i < D / kQuarters; ++i) x[i] = tile_row[column(part, i)];
    }
    // x . row of the tile, in all four threads
    __device__ __forceinline__ float dot(const Columns& x, const float* tile_row) const {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < D / kQuarters; ++i) sum += x[i] * tile_row[column(part, i)];
        return sum_over<kQuarters>(sum);
    }
    __device__ __forceinline__ void add(Columns& sum, float factor, const float* tile_row) const {
#pragma unroll
        for (int i = 0; i < D / kQuarters; ++i) sum[i] += factor * tile_row[column(part, i)];
    }
    __device__ __forceinline__ void store(const Columns& x, float factor, T* row) const {
#pragma unroll
        for (int i = 0; i < D / kQuarters; ++i) row[column(part, i)] = narrow<T>(x[i] * factor);
    }
};

using SmallTile = float[kSmallTile][D];

// Rows [first, first + 32) of a head, zeros beyond `length`.
__device__ __forceinline__ void load_small(SmallTile& tile, const Heads<const T>& x, const Head& at, int first,
                                           int length) {
    const T* head = x.head(at.batch, at.head);
    for (int i = threadIdx.x; i < kSmallTile * D; i += kTileThreads) {
        const int row = first + i / D;
        tile[i / D][i % D] = row < length ? widen(head[row * x.token_stride + i % D]) : 0.0f;
    }
}

}  // namespace slm::ladder
