// Rung 4: 16 bytes a load, and the row is read once: it stays in registers.
//
// One load instruction of a warp fetches 512 bytes instead of 64, so there are an eighth as many; and the second and
// third sweep over the row read registers. A row of 384 elements is 48 packs: lanes 0 to 15 hold two, the others one.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

__global__ void norm_row_in_registers(const LayerNormForward<T> p) {
    constexpr int N = kPackSize<T>, kPacks = kMostColumns / (32 * N);
    const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= p.rows) return;
    const int lane = threadIdx.x % 32;

    Pack<T, N> x[kPacks];
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        const int column = (i * 32 + lane) * N;
        if (column >= p.size) break;
        x[i] = Pack<T, N>::load(p.x + row * p.size + column);
        for (int e = 0; e < N; ++e) sum += widen(x[i].at[e]);
    }
    const float mean = sum_over<32>(sum) / p.size;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        if ((i * 32 + lane) * N >= p.size) break;
        for (int e = 0; e < N; ++e) squares += (widen(x[i].at[e]) - mean) * (widen(x[i].at[e]) - mean);
    }
    const float rstd = reciprocal_root(sum_over<32>(squares) / p.size + p.eps);

#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        const int column = (i * 32 + lane) * N;
        if (column >= p.size) break;
        const auto weight = Pack<T, N>::load(p.weight + column), bias = Pack<T, N>::load(p.bias + column);
        for (int e = 0; e < N; ++e) {
            const float normalized = (widen(x[i].at[e]) - mean) * rstd;
            x[i].at[e] = narrow<T>(normalized * widen(weight.at[e]) + widen(bias.at[e]));
        }
        x[i].store(p.out + row * p.size + column);
    }
    if (lane == 0) {
        p.mean[row] = mean;
        p.rstd[row] = rstd;
    }
}

}  // namespace slm::ladder

extern "C" void layer_norm_forward_row_in_registers(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    require_packs(p.size);
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, 4)));
    launch(norm_row_in_registers, blocks, dim3(128), 0, stream_of(numbers), p);
}
