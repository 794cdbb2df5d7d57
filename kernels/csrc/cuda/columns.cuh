// Gradients of vectors that all rows share (a bias, the weight of a norm): sums over rows, column by column.
//
// A block owns 32 columns, one lane each, and every eighth row of its share; it adds up its eight sums through shared
// memory, in order, and writes one line of `partials`. `sum_lines` adds the lines, in order: the same bits every time.
#pragma once

#include "numeric.cuh"

namespace slm::cuda {

__device__ __forceinline__ float natural_exp(float x) { return expf(x); }
__device__ __forceinline__ double natural_exp(double x) { return exp(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }
__device__ __forceinline__ double error_function(double x) { return erf(x); }

inline constexpr int kColumnWidth = 32;  // columns of a block: one lane each
inline constexpr int kColumnDepth = 8;   // rows that it reads at once
inline constexpr int kMostLines = 64;    // of partial sums

// The grid that walks over (rows, size) this way; its y is the number of lines.
inline dim3 column_grid(int64_t rows, int size) {
    return dim3(static_cast<unsigned>(ceil_div(size, kColumnWidth)),
                static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(ceil_div(rows, 4 * kColumnDepth), kMostLines))));
}
inline dim3 column_block() { return dim3(kColumnWidth, kColumnDepth); }

// Calls step(row, column) for the rows of this thread.
template <class Step>
__device__ __forceinline__ void each_row_of_column(int64_t rows, int size, const Step& step) {
    const int column = blockIdx.x * kColumnWidth + threadIdx.x;
    if (column >= size) return;
    for (int64_t row = int64_t{blockIdx.y} * kColumnDepth + threadIdx.y; row < rows;
         row += int64_t{gridDim.y} * kColumnDepth)
        step(row, column);
}

// Writes the block's sum of `mine` over its rows to line blockIdx.y of partials (lines, size). `sums`: shared memory.
template <class A>
__device__ __forceinline__ void store_line(A mine, A (*sums)[kColumnWidth], A* partials, int size) {
    sums[threadIdx.y][threadIdx.x] = mine;
    __syncthreads();
    const int column = blockIdx.x * kColumnWidth + threadIdx.x;
    if (threadIdx.y > 0 || column >= size) return;
    A total = 0;
#pragma unroll
    for (int i = 0; i < kColumnDepth; ++i) total += sums[i][threadIdx.x];
    partials[int64_t{blockIdx.y} * size + column] = total;
}

// out[c] = the sum of partials (lines, size) over its lines. Grid: columns / 128; block: 128.
template <class T>
__global__ void __launch_bounds__(128) sum_lines(const compute_t<T>* partials, int lines, int size, T* out) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= size) return;
    compute_t<T> total = 0;
    for (int line = 0; line < lines; ++line) total += partials[int64_t{line} * size + column];
    out[column] = narrow<T>(total);
}

template <class T>
void launch_sum_lines(const compute_t<T>* partials, int lines, int size, T* out, cudaStream_t stream) {
    launch(sum_lines<T>, dim3(ceil_div(size, 128)), dim3(128), 0, stream, partials, lines, size, out);
}

}  // namespace slm::cuda
