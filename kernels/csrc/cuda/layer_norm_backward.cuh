// Layer norm, backward. With n = (x - mean) * rstd and g = grad_out * weight, over rows of C elements:
//
//     grad_x      = rstd * (g - avg(g) - n * avg(g * n)) (+ grad_residual)       averages over the row
//     grad_weight = sum over rows of grad_out * n
//     grad_bias   = sum over rows of grad_out
//
// One persistent kernel reads grad_out and x once and writes grad_x: three passes over memory, where separate kernels
// for the rows and for the columns need five. A group of lanes (row.cuh) takes every count-th row and keeps its
// columns' sums for grad_weight and grad_bias in registers, in float32. At its end a block adds those of its groups
// through shared memory, in order, and writes one line of `partials`; `sum_partials` adds the lines, in order. So the
// result depends on the grid alone, never on timing.
//
// Ragged, unaligned, wide and double rows are streamed: one kernel for the rows, one for the columns.
#pragma once

#include "layer_norm.cuh"
#include "row.cuh"

namespace slm::cuda {

// What a row's lanes know before they form grad_x.
template <class A>
struct RowGradient {
    A mean, rstd;
    A average, projection;  // avg(g), avg(g * n)
};

template <int N, class T>
__device__ __forceinline__ void store_gradient(const LayerNormBackward<T>& p, int64_t row, int column,
                                               const RowGradient<compute_t<T>>& r, const Pack<T, N>& grad_out,
                                               const Pack<T, N>& x) {
    using A = compute_t<T>;
    const auto weight = Pack<T, N>::load(p.weight + column);
    A grad[N];
#pragma unroll
    for (int e = 0; e < N; ++e) {
        const A normalized = (widen(x.at[e]) - r.mean) * r.rstd, g = widen(grad_out.at[e]) * widen(weight.at[e]);
        grad[e] = r.rstd * (g - r.average - normalized * r.projection);
    }
    if (p.grad_residual != nullptr) {
        const auto passed = Pack<T, N>::load(p.grad_residual + row * p.grad_residual_stride + column);
#pragma unroll
        for (int e = 0; e < N; ++e) grad[e] += widen(passed.at[e]);
    }
    Pack<T, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e) out.at[e] = narrow<T>(grad[e]);
    out.store(p.grad_x + row * p.size + column);
}

// Adds N elements' part to the row's sums of g and g * n.
template <int N, class T>
__device__ __forceinline__ void add_to_sums(const LayerNormBackward<T>& p, int column, const Pack<T, N>& grad_out,
                                            const Pack<T, N>& x, RowGradient<compute_t<T>>& r) {
    using A = compute_t<T>;
    const auto weight = Pack<T, N>::load(p.weight + column);
#pragma unroll
    for (int e = 0; e < N; ++e) {
        const A g = widen(grad_out.at[e]) * widen(weight.at[e]);
        r.average += g;
        r.projection += g * ((widen(x.at[e]) - r.mean) * r.rstd);
    }
}

// Blocks of a multiprocessor that are resident together: four have 128 registers a thread, too few for 32 elements of a
// lane with their two sums.
template <class T, int Packs>
inline constexpr int kBackwardBlocks = Packs * kPackSize<T> <= 24 ? kMostBackwardBlocks : 2;

// Where a column's sum lies: with a gap behind every 32 columns, the packs of a warp's lanes begin on different banks.
__host__ __device__ __forceinline__ int spread(int column) { return column + column / 32; }

// Shared memory: (groups of the block, 2, size) of A, spread. Registers: 24 per pack of 16-bit elements, and about 40.
template <class T, int Lanes, int Packs>
__global__ void __launch_bounds__(kRowThreads, kBackwardBlocks<T, Packs>)
    layer_norm_backward_in_registers(const LayerNormBackward<T> p) {
    constexpr int N = kPackSize<T>;
    using A = compute_t<T>;
    using Row = RowOf<Lanes, N, Packs>;
    const RowGroup<Lanes> group;
    A grad_weight[Packs][N] = {}, grad_bias[Packs][N] = {};
    for (int64_t row = group.first(); row < p.rows; row += group.count()) {
        Pack<T, N> x[Packs], grad_out[Packs];
        RowGradient<A> r{p.mean[row], p.rstd[row], 0, 0};
        Row::each(p.size, [&](int i, int column) {
            x[i] = Pack<T, N>::load(p.x + row * p.x_stride + column);
            grad_out[i] = Pack<T, N>::load(p.grad_out + row * p.grad_out_stride + column);
        });
        Row::each(p.size, [&](int i, int column) {
            add_to_sums(p, column, grad_out[i], x[i], r);
#pragma unroll
            for (int e = 0; e < N; ++e) {
                const A g = widen(grad_out[i].at[e]);
                grad_weight[i][e] += g * ((widen(x[i].at[e]) - r.mean) * r.rstd);
                grad_bias[i][e] += g;
            }
        });
        r.average = group.sum(r.average) / p.size;
        r.projection = group.sum(r.projection) / p.size;
        Row::each(p.size, [&](int i, int column) { store_gradient(p, row, column, r, grad_out[i], x[i]); });
    }

    A* sums = dynamic_shared<A>();
    A* mine = sums + group.in_block() * spread(2 * p.size);
    Row::each(p.size, [&](int i, int column) {
#pragma unroll
        for (int e = 0; e < N; ++e) {
            mine[spread(column) + e] = grad_weight[i][e];
            mine[spread(p.size + column) + e] = grad_bias[i][e];
        }
    });
    __syncthreads();
    for (int column = threadIdx.x; column < 2 * p.size; column += kRowThreads) {
        A total = 0;
        for (int g = 0; g < kRowThreads / Lanes; ++g) total += sums[g * spread(2 * p.size) + spread(column)];
        p.partials[int64_t{blockIdx.x} * 2 * p.size + column] = total;
    }
}

// grad_x alone, for any size.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) layer_norm_backward_rows(const LayerNormBackward<T> p) {
    using A = compute_t<T>;
    const RowGroup<32> group;
    for (int64_t row = group.first(); row < p.rows; row += group.count()) {
        const T *x = p.x + row * p.x_stride, *grad_out = p.grad_out + row * p.grad_out_stride;
        RowGradient<A> r{p.mean[row], p.rstd[row], 0, 0};
        each_pack<32, N>(p.size, [&](int column) {
            add_to_sums(p, column, Pack<T, N>::load(grad_out + column), Pack<T, N>::load(x + column), r);
        });
        r.average = group.sum(r.average) / p.size;
        r.projection = group.sum(r.projection) / p.size;
        each_pack<32, N>(p.size, [&](int column) {
            store_gradient(p, row, column, r, Pack<T, N>::load(grad_out + column), Pack<T, N>::load(x + column));
        });
    }
}

inline constexpr int kColumns = 32;  // of a block in the column kernels: one lane each

// One line of `partials` for each block along y: the sums over rows blockIdx.y, blockIdx.y + gridDim.y, …
// Grid: (columns / kColumns, lines); block: (kColumns, any).
template <class T>
__global__ void __launch_bounds__(256) layer_norm_backward_columns(const LayerNormBackward<T> p) {
    using A = compute_t<T>;
    const int column = blockIdx.x * kColumns + threadIdx.x;
    A grad_weight = 0, grad_bias = 0;
    if (column < p.size)
        for (int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < p.rows;
             row += int64_t{gridDim.y} * blockDim.y) {
            const A g = widen(p.grad_out[row * p.grad_out_stride + column]);
            grad_weight += g * ((widen(p.x[row * p.x_stride + column]) - p.mean[row]) * p.rstd[row]);
            grad_bias += g;
        }
    A* sums = dynamic_shared<A>();  // (2, blockDim.y, kColumns)
    A *weights = sums + threadIdx.x, *biases = weights + blockDim.y * kColumns;
    weights[threadIdx.y * kColumns] = grad_weight;
    biases[threadIdx.y * kColumns] = grad_bias;
    __syncthreads();
    if (threadIdx.y > 1 || column >= p.size) return;
    const A* from = threadIdx.y == 0 ? weights : biases;
    A total = 0;
    for (int i = 0; i < static_cast<int>(blockDim.y); ++i) total += from[i * kColumns];
    p.partials[(int64_t{blockIdx.y} * 2 + threadIdx.y) * p.size + column] = total;
}

// Adds `lines` lines of `partials` to grad_weight and grad_bias. Grid: (2 * size / kColumns); block: (kColumns, 32).
template <class T>
__global__ void __launch_bounds__(kColumns * 32) sum_partials(const LayerNormBackward<T> p, int lines) {
    using A = compute_t<T>;
    __shared__ A sums[32][kColumns];
    const int column = blockIdx.x * kColumns + threadIdx.x;  // of grad_weight, then of grad_bias
    A sum = 0;
    if (column < 2 * p.size)
        for (int line = threadIdx.y; line < lines; line += 32) sum += p.partials[int64_t{line} * 2 * p.size + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= 2 * p.size) return;
    A total = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) total += sums[i][threadIdx.x];
    (column < p.size ? p.grad_weight + column : p.grad_bias + column - p.size)[0] = narrow<T>(total);
}

template <class T>
bool in_packs(const LayerNormBackward<T>& p) {
    return p.size % kPackSize<T> == 0 && in_packs(p.x, p.x_stride) && in_packs(p.grad_out, p.grad_out_stride) &&
           in_packs(p.grad_residual, p.grad_residual_stride) && in_packs(p.weight, 0) && in_packs(p.grad_x, p.size);
}

// grad_x and one line of partials per block, in one pass; false where the row does not fit into registers.
template <class T>
bool layer_norm_backward_fused(const LayerNormBackward<T>& p, int multiprocessors, cudaStream_t stream, int& lines) {
    return in_packs(p) && with_row_layout<T>(p.size, [&](auto lanes, auto packs) {
               constexpr int Lanes = lanes, Packs = packs;
               const dim3 grid = row_grid(p.rows, Lanes, multiprocessors * kBackwardBlocks<T, Packs>);
               const std::size_t shared = kRowThreads / Lanes * spread(2 * p.size) * sizeof(compute_t<T>);
               launch(layer_norm_backward_in_registers<T, Lanes, Packs>, grid, dim3(kRowThreads), shared, stream, p);
               lines = static_cast<int>(grid.x);
           });
}

// The same in two passes, for any size; returns the lines of partials.
template <class T>
int layer_norm_backward_streamed(const LayerNormBackward<T>& p, int multiprocessors, cudaStream_t stream) {
    constexpr int kDepth = 8;  // rows that a block of the column kernel reads at once
    const auto rows = in_packs(p) ? layer_norm_backward_rows<T, kPackSize<T>> : layer_norm_backward_rows<T, 1>;
    launch(rows, row_grid(p.rows, 32, 16 * multiprocessors), dim3(kRowThreads), 0, stream, p);
    const int64_t lines = std::min<int64_t>(layer_norm_partials(multiprocessors), 256);
    const dim3 grid(ceil_div(p.size, kColumns), std::min(ceil_div(p.rows, 8 * kDepth), lines));
    launch(layer_norm_backward_columns<T>, grid, dim3(kColumns, kDepth), 2 * kDepth * kColumns * sizeof(compute_t<T>),
           stream, p);
    return static_cast<int>(grid.y);
}

template <class T>
void layer_norm_backward(const LayerNormBackward<T>& p, int multiprocessors, cudaStream_t stream) {
    int lines = 0;
    if (p.rows > 0 && !layer_norm_backward_fused(p, multiprocessors, stream, lines))
        lines = layer_norm_backward_streamed(p, multiprocessors, stream);
    launch(sum_partials<T>, dim3(ceil_div(2 * p.size, kColumns)), dim3(kColumns, 32), 0, stream, p, lines);
}

}  // namespace slm::cuda
