// Rung 4: one pass. The warp that has a row in registers for grad_x also adds it to its columns' sums.
//
// x and grad_out are read once: with grad_x three passes over memory instead of five. A warp walks over many rows and
// keeps its part of grad_weight and grad_bias in registers, 64 of them for 1024 columns; at its end it writes one line
// of partial sums, which the kernel of rung 3 adds up. Loads are 16 bytes, as in the forward's rung 4.
#pragma once

#include "backward_3_tiled_columns.cuh"

namespace slm::ladder {

__global__ void gradient_one_pass(const LayerNormBackward<T> p) {
    constexpr int N = kPackSize<T>, kPacks = kMostColumns / (32 * N);
    const int lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    const int warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    float grad_weight[kPacks][N] = {}, grad_bias[kPacks][N] = {};

    for (int64_t row = warp; row < p.rows; row += warps) {
        const float mean = p.mean[row], rstd = p.rstd[row];
        Pack<T, N> x[kPacks], grad_out[kPacks];
        float average = 0, projection = 0;
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            const int column = (i * 32 + lane) * N;
            if (column >= p.size) break;
            x[i] = Pack<T, N>::load(p.x + row * p.size + column);
            grad_out[i] = Pack<T, N>::load(p.grad_out + row * p.size + column);
            const auto weight = Pack<T, N>::load(p.weight + column);
            for (int e = 0; e < N; ++e) {
                const float normalized = (widen(x[i].at[e]) - mean) * rstd, g = widen(grad_out[i].at[e]);
                average += g * widen(weight.at[e]);
                projection += g * widen(weight.at[e]) * normalized;
                grad_weight[i][e] += g * normalized;
                grad_bias[i][e] += g;
            }
        }
        average = sum_over<32>(average) / p.size;
        projection = sum_over<32>(projection) / p.size;
#pragma unroll
        for (int i = 0; i < kPacks; ++i) {
            const int column = (i * 32 + lane) * N;
            if (column >= p.size) break;
            const auto weight = Pack<T, N>::load(p.weight + column);
            for (int e = 0; e < N; ++e) {
                const float normalized = (widen(x[i].at[e]) - mean) * rstd;
                const float g = widen(grad_out[i].at[e]) * widen(weight.at[e]);
                x[i].at[e] = narrow<T>(rstd * (g - average - normalized * projection));
            }
            x[i].store(p.grad_x + row * p.size + column);
        }
    }

    float* line = p.partials + int64_t{warp} * 2 * p.size;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        const int column = (i * 32 + lane) * N;
        if (column >= p.size) break;
        for (int e = 0; e < N; ++e) {
            line[column + e] = grad_weight[i][e];
            line[p.size + column + e] = grad_bias[i][e];
        }
    }
}

}  // namespace slm::ladder

extern "C" void layer_norm_backward_one_pass(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = backward_arguments(tensors, numbers);
    require_packs(p.size);
    const int most = partial_lines(static_cast<int>(numbers[2])) / 4;
    const int blocks = static_cast<int>(std::min<int64_t>(ceil_div(p.rows, 4), most));
    launch(gradient_one_pass, dim3(blocks), dim3(128), 0, stream_of(numbers), p);
    launch_sum_of_lines(p, 4 * blocks, stream_of(numbers));
}
