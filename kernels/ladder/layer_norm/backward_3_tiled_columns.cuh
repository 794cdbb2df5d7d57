// Rung 3: the rows of a column are dealt to many blocks; each writes one partial sum, a last kernel adds those up.
//
// 16 lines of partial sums for each multiprocessor, times 8 rows that a block reads at once, keep the GPU busy where
// one thread per column left it idle. No atomics: every partial sum has one owner and is added in one order, so two
// runs give the same bits. It costs 2 * 4 bytes per column and line, written and read once.
#pragma once

#include <algorithm>

#include "backward_2_warp_per_row.cuh"

namespace slm::ladder {

constexpr int kTileColumns = 32, kTileRows = 8;  // of a block: each warp reads 32 neighbouring columns of its row

// The sum of x over the block's threads of one column, in those of its first row.
__device__ __forceinline__ float column_sum(float x) {
    __shared__ float part[kTileRows][kTileColumns];
    __syncthreads();  // what the call before left has been read
    part[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < kTileRows && threadIdx.y == 0; ++i) total += part[i][threadIdx.x];
    return total;
}

// Grid: (tiles of columns, lines).
__global__ void gradient_tiled_columns(const LayerNormBackward<T> p) {
    const int column = blockIdx.x * kTileColumns + threadIdx.x;
    float grad_weight = 0, grad_bias = 0;
    if (column < p.size)
        for (int64_t row = blockIdx.y * kTileRows + threadIdx.y; row < p.rows; row += gridDim.y * kTileRows) {
            const float g = widen(p.grad_out[row * p.size + column]);
            grad_weight += g * ((widen(p.x[row * p.size + column]) - p.mean[row]) * p.rstd[row]);
            grad_bias += g;
        }
    grad_weight = column_sum(grad_weight);
    grad_bias = column_sum(grad_bias);
    if (threadIdx.y > 0 || column >= p.size) return;
    float* line = p.partials + int64_t{blockIdx.y} * 2 * p.size;
    line[column] = grad_weight;
    line[p.size + column] = grad_bias;
}

// Grid: tiles of the 2 * size columns of partials.
__global__ void sum_of_lines(const LayerNormBackward<T> p, int lines) {
    const int column = blockIdx.x * kTileColumns + threadIdx.x;
    float sum = 0;
    if (column < 2 * p.size)
        for (int line = threadIdx.y; line < lines; line += kTileRows) sum += p.partials[line * 2 * p.size + column];
    sum = column_sum(sum);
    if (threadIdx.y > 0 || column >= 2 * p.size) return;
    (column < p.size ? p.grad_weight + column : p.grad_bias + column - p.size)[0] = narrow<T>(sum);
}

inline void launch_sum_of_lines(const LayerNormBackward<T>& p, int lines, cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(2 * p.size, kTileColumns)));
    launch(sum_of_lines, blocks, dim3(kTileColumns, kTileRows), 0, stream, p, lines);
}

}  // namespace slm::ladder

extern "C" void layer_norm_backward_tiled_columns(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = backward_arguments(tensors, numbers);
    launch_warp_per_row(p, stream_of(numbers));
    const int most = partial_lines(static_cast<int>(numbers[2]));
    const int lines = static_cast<int>(std::min<int64_t>(ceil_div(p.rows, kTileRows), most));
    const dim3 grid(static_cast<unsigned>(ceil_div(p.size, kTileColumns)), lines);
    launch(gradient_tiled_columns, grid, dim3(kTileColumns, kTileRows), 0, stream_of(numbers), p);
    launch_sum_of_lines(p, lines, stream_of(numbers));
}
