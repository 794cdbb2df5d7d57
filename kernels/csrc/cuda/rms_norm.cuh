// RMSNorm on a GPU: out = x * rstd * weight with rstd = 1 / sqrt(mean(x²) + eps), optionally of x + residual, and its
// backward. As layer_norm_forward.cuh, without a mean: a warp reads a row in packs, and once more from the L1 cache.
#pragma once

#include <algorithm>

#include "columns.cuh"
#include "row.cuh"

namespace slm::cuda {

template <class T>
struct RmsNormForward {
    const T* x;         // (rows, size)
    int64_t x_stride;   // between rows, in elements
    const T* residual;  // (rows, size), or null
    int64_t residual_stride;
    const T* weight;  // (size)
    T* out;           // (rows, size), contiguous
    T* sum;           // (rows, size), contiguous: x + residual; unused without a residual
    compute_t<T>* rstd;  // (rows)
    int64_t rows;
    int size;
    compute_t<T> eps;
};

template <class T>
struct RmsNormBackward {
    const T* grad_out;  // (rows, size)
    int64_t grad_out_stride;
    const T* x;  // (rows, size): what was normalized
    int64_t x_stride;
    const T* weight;           // (size)
    const compute_t<T>* rstd;  // (rows)
    const T* grad_residual;    // (rows, size), or null: added to grad_x
    int64_t grad_residual_stride;
    T* grad_x;               // (rows, size), contiguous
    T* grad_weight;          // (size)
    compute_t<T>* partials;  // (kMostLines, size): scratch
    int64_t rows;
    int size;
};

// N elements of x; with a residual of x + residual, rounded to T and stored.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_summed(const RmsNormForward<T>& p, int64_t row, int column) {
    Pack<T, N> values = Pack<T, N>::load(p.x + row * p.x_stride + column);
    if (p.residual == nullptr) return values;
    const auto added = Pack<T, N>::load(p.residual + row * p.residual_stride + column);
#pragma unroll
    for (int e = 0; e < N; ++e) values.at[e] = narrow<T>(widen(values.at[e]) + widen(added.at[e]));
    values.store(p.sum + row * p.size + column);
    return values;
}

// A lane reads back only what it wrote itself, so `sum` needs no fence. Block: kRowThreads.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) rms_norm_rows(const RmsNormForward<T> p) {
    using A = compute_t<T>;
    const RowGroup<32> group;
    const T* source = p.residual != nullptr ? p.sum : p.x;
    const int64_t stride = p.residual != nullptr ? p.size : p.x_stride;
    for (int64_t row = group.first(); row < p.rows; row += group.count()) {
        A squares = 0;
        each_pack<32, N>(p.size, [&](int column) {
            const auto pack = load_summed<N>(p, row, column);
            for (int e = 0; e < N; ++e) squares += widen(pack.at[e]) * widen(pack.at[e]);
        });
        const A rstd = reciprocal_root(group.sum(squares) / p.size + p.eps);
        each_pack<32, N>(p.size, [&](int column) {
            const auto values = Pack<T, N>::load(source + row * stride + column);
            const auto weight = Pack<T, N>::load(p.weight + column);
            Pack<T, N> out;
            for (int e = 0; e < N; ++e) out.at[e] = narrow<T>(widen(values.at[e]) * rstd * widen(weight.at[e]));
            out.store(p.out + row * p.size + column);
        });
        if (group.lane() == 0) p.rstd[row] = rstd;
    }
}

// grad_x = rstd * (g - n * avg(g * n)) (+ grad_residual) with n = x * rstd and g = grad_out * weight.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) rms_norm_backward_rows(const RmsNormBackward<T> p) {
    using A = compute_t<T>;
    const RowGroup<32> group;
    for (int64_t row = group.first(); row < p.rows; row += group.count()) {
        const T *x = p.x + row * p.x_stride, *grad_out = p.grad_out + row * p.grad_out_stride;
        const A rstd = p.rstd[row];
        A products = 0;
        each_pack<32, N>(p.size, [&](int column) {
            const auto g = Pack<T, N>::load(grad_out + column), values = Pack<T, N>::load(x + column);
            const auto weight = Pack<T, N>::load(p.weight + column);
            for (int e = 0; e < N; ++e)
                products += widen(g.at[e]) * widen(weight.at[e]) * (widen(values.at[e]) * rstd);
        });
        const A projection = group.sum(products) / p.size;
        each_pack<32, N>(p.size, [&](int column) {
            const auto g = Pack<T, N>::load(grad_out + column), values = Pack<T, N>::load(x + column);
            const auto weight = Pack<T, N>::load(p.weight + column);
            Pack<T, N> passed{}, out;
            if (p.grad_residual != nullptr)
                passed = Pack<T, N>::load(p.grad_residual + row * p.grad_residual_stride + column);
            for (int e = 0; e < N; ++e) {
                const A normalized = widen(values.at[e]) * rstd, weighted = widen(g.at[e]) * widen(weight.at[e]);
                out.at[e] = narrow<T>(rstd * (weighted - normalized * projection) + widen(passed.at[e]));
            }
            out.store(p.grad_x + row * p.size + column);
        });
    }
}

// One line of `partials` for each block along y: sums over rows of grad_out * x * rstd.
template <class T>
__global__ void __launch_bounds__(256) rms_norm_backward_columns(const RmsNormBackward<T> p) {
    using A = compute_t<T>;
    __shared__ A sums[kColumnDepth][kColumnWidth];
    A total = 0;
    each_row_of_column(p.rows, p.size, [&](int64_t row, int column) {
        total += widen(p.grad_out[row * p.grad_out_stride + column]) *
                 (widen(p.x[row * p.x_stride + column]) * p.rstd[row]);
    });
    store_line(total, sums, p.partials, p.size);
}

template <class T>
void rms_norm_forward(const RmsNormForward<T>& p, int multiprocessors, cudaStream_t stream) {
    if (p.rows == 0) return;
    const bool packs = p.size % kPackSize<T> == 0 && in_packs(p.x, p.x_stride) &&
                       in_packs(p.residual, p.residual_stride) && in_packs(p.weight, 0) && in_packs(p.out, p.size) &&
                       in_packs(p.sum, p.size);
    const auto kernel = packs ? rms_norm_rows<T, kPackSize<T>> : rms_norm_rows<T, 1>;
    launch(kernel, row_grid(p.rows, 32, 16 * multiprocessors), dim3(kRowThreads), 0, stream, p);
}

template <class T>
void rms_norm_backward(const RmsNormBackward<T>& p, int multiprocessors, cudaStream_t stream) {
    const dim3 grid = column_grid(p.rows, p.size);
    if (p.rows > 0) {
        const bool packs = p.size % kPackSize<T> == 0 && in_packs(p.x, p.x_stride) &&
                           in_packs(p.grad_out, p.grad_out_stride) && in_packs(p.grad_residual, p.grad_residual_stride) &&
                           in_packs(p.weight, 0) && in_packs(p.grad_x, p.size);
        const auto kernel = packs ? rms_norm_backward_rows<T, kPackSize<T>> : rms_norm_backward_rows<T, 1>;
        launch(kernel, row_grid(p.rows, 32, 16 * multiprocessors), dim3(kRowThreads), 0, stream, p);
    }
    launch(rms_norm_backward_columns<T>, grid, column_block(), 0, stream, p);
    launch_sum_lines(p.partials, static_cast<int>(grid.y), p.size, p.grad_weight, stream);
}

}  // namespace slm::cuda
