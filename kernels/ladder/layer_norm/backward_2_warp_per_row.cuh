// Rung 2: a warp for each row of grad_x, its two sums by shuffles; the columns as before.
//
// The same step as the forward's rung 3: neighbouring lanes read neighbouring elements, so a warp's load is two sectors
// of 32 bytes instead of 32.
#pragma once

#include "backward_1_thread_per_row_and_column.cuh"

namespace slm::ladder {

__global__ void gradient_warp_per_row(const LayerNormBackward<T> p) {
    const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= p.rows) return;
    const T *x = p.x + row * p.size, *grad_out = p.grad_out + row * p.size;
    const float mean = p.mean[row], rstd = p.rstd[row];
    const int lane = threadIdx.x % 32;

    float average = 0, projection = 0;
    for (int i = lane; i < p.size; i += 32) {
        const float g = widen(grad_out[i]) * widen(p.weight[i]);
        average += g;
        projection += g * ((widen(x[i]) - mean) * rstd);
    }
    average = sum_over<32>(average) / p.size;
    projection = sum_over<32>(projection) / p.size;

    for (int i = lane; i < p.size; i += 32) {
        const float normalized = (widen(x[i]) - mean) * rstd, g = widen(grad_out[i]) * widen(p.weight[i]);
        p.grad_x[row * p.size + i] = narrow<T>(rstd * (g - average - normalized * projection));
    }
}

inline void launch_warp_per_row(const LayerNormBackward<T>& p, cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, 4)));
    launch(gradient_warp_per_row, blocks, dim3(128), 0, stream, p);
}

}  // namespace slm::ladder

extern "C" void layer_norm_backward_warp_per_row(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = backward_arguments(tensors, numbers);
    launch_warp_per_row(p, stream_of(numbers));
    launch_thread_per_column(p, stream_of(numbers));
}
