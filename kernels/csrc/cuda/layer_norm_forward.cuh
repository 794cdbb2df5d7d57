// Layer norm, forward: out = (x - mean) * rstd * weight + bias over rows of C elements, optionally of x + residual.
//
// Bound by memory: each element is read once and written once (with a residual: read twice, written twice), some ten
// operations in between. So a row is read by one warp, or by half a warp where it is narrow, in packs of 16 bytes, and
// stays in registers while mean, then variance, then the result are formed: the variance from the differences to the
// mean, which E[x^2] - E[x]^2 would cancel away. The reductions are shuffles; no shared memory, no barrier. The grid is
// as large as the GPU and walks over the rows.
//
// Rows that are ragged, unaligned, wider than the registers or of doubles take `layer_norm_streamed`, which reads the
// row once per step, from the L1 cache after the first time.
#pragma once

#include "layer_norm.cuh"
#include "row.cuh"

namespace slm::cuda {

// N elements of x. With a residual: of x + residual, rounded to T and stored, for that is what the next layer sees.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_summed(const LayerNormForward<T>& p, int64_t row, int column) {
    Pack<T, N> values = Pack<T, N>::load(p.x + row * p.x_stride + column);
    if (p.residual == nullptr) return values;
    const auto added = Pack<T, N>::load(p.residual + row * p.residual_stride + column);
#pragma unroll
    for (int e = 0; e < N; ++e) values.at[e] = narrow<T>(widen(values.at[e]) + widen(added.at[e]));
    values.store(p.sum + row * p.size + column);
    return values;
}

template <int N, class T>
__device__ __forceinline__ void store_normalized(const LayerNormForward<T>& p, int64_t row, int column,
                                                 compute_t<T> mean, compute_t<T> rstd, const Pack<T, N>& values) {
    using A = compute_t<T>;
    const auto weight = Pack<T, N>::load(p.weight + column);
    Pack<T, N> bias{}, out;
    if (p.bias != nullptr) bias = Pack<T, N>::load(p.bias + column);
#pragma unroll
    for (int e = 0; e < N; ++e) {
        const A normalized = (widen(values.at[e]) - mean) * rstd;
        out.at[e] = narrow<T>(normalized * widen(weight.at[e]) + widen(bias.at[e]));
    }
    out.store(p.out + row * p.size + column);
}

// Grid: any; block: kRowThreads. Registers: 4 per pack, and about 30.
template <class T, int Lanes, int Packs>
__global__ void __launch_bounds__(kRowThreads, kForwardBlocksPerMultiprocessor)
    layer_norm_in_registers(const LayerNormForward<T> p) {
    constexpr int N = kPackSize<T>;
    using A = compute_t<T>;
    using Row = RowOf<Lanes, N, Packs>;
    const RowGroup<Lanes> group;
    for (int64_t row = group.first(); row < p.rows; row += group.count()) {
        Pack<T, N> values[Packs];
        Row::each(p.size, [&](int i, int column) { values[i] = load_summed<N>(p, row, column); });
        A sum = 0;
        Row::each_element(p.size, [&](int i, int e) { sum += widen(values[i].at[e]); });
        const A mean = group.sum(sum) / p.size;
        A squares = 0;
        Row::each_element(p.size, [&](int i, int e) {
            const A centred = widen(values[i].at[e]) - mean;
            squares += centred * centred;
        });
        const A rstd = reciprocal_root(group.sum(squares) / p.size + p.eps);
        Row::each(p.size, [&](int i, int column) { store_normalized(p, row, column, mean, rstd, values[i]); });
        if (group.lane() == 0) {
            p.mean[row] = mean;
            p.rstd[row] = rstd;
        }
    }
}

// The same for any size, in packs of N elements. A lane reads back only what it wrote itself, so `sum` needs no fence.
template <class T, int N>
__global__ void __launch_bounds__(kRowThreads) layer_norm_streamed(const LayerNormForward<T> p) {
    using A = compute_t<T>;
    const RowGroup<32> group;
    const T* source = p.residual != nullptr ? p.sum : p.x;
    const int64_t stride = p.residual != nullptr ? p.size : p.x_stride;
    for (int64_t row = group.first(); row < p.rows; row += group.count()) {
        const T* values = source + row * stride;
        A sum = 0, squares = 0;
        each_pack<32, N>(p.size, [&](int column) {
            const auto pack = load_summed<N>(p, row, column);
            for (int e = 0; e < N; ++e) sum += widen(pack.at[e]);
        });
        const A mean = group.sum(sum) / p.size;
        each_pack<32, N>(p.size, [&](int column) {
            const auto pack = Pack<T, N>::load(values + column);
            for (int e = 0; e < N; ++e) squares += (widen(pack.at[e]) - mean) * (widen(pack.at[e]) - mean);
        });
        const A rstd = reciprocal_root(group.sum(squares) / p.size + p.eps);
        each_pack<32, N>(p.size, [&](int column) {
            store_normalized(p, row, column, mean, rstd, Pack<T, N>::load(values + column));
        });
        if (group.lane() == 0) {
            p.mean[row] = mean;
            p.rstd[row] = rstd;
        }
    }
}

template <class T>
bool in_packs(const LayerNormForward<T>& p) {
    return p.size % kPackSize<T> == 0 && in_packs(p.x, p.x_stride) && in_packs(p.residual, p.residual_stride) &&
           in_packs(p.weight, 0) && in_packs(p.bias, 0) && in_packs(p.out, p.size) && in_packs(p.sum, p.size);
}

template <class T>
void layer_norm_forward(const LayerNormForward<T>& p, int multiprocessors, cudaStream_t stream) {
    if (p.rows == 0) return;
    const auto run = [&](auto kernel, int lanes) {
        const dim3 grid = row_grid(p.rows, lanes, multiprocessors * kForwardBlocksPerMultiprocessor);
        launch(kernel, grid, dim3(kRowThreads), 0, stream, p);
    };
    if (!in_packs(p)) return run(layer_norm_streamed<T, 1>, 32);
    const bool held = with_row_layout<T>(p.size, [&](auto lanes, auto packs) {
        run(layer_norm_in_registers<T, lanes, packs>, lanes);
    });
    if (!held) run(layer_norm_streamed<T, kPackSize<T>>, 32);
}

}  // namespace slm::cuda
