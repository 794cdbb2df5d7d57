// Rung 1: a thread for each row writes grad_x, a thread for each column walks down all rows for grad_weight, grad_bias.
//
// With n = (x - mean) * rstd and g = grad_out * weight (docs/kernels/layer_norm.md derives it):
//
//     grad_x      = rstd * (g - avg(g) - n * avg(g * n))      averages over the row
//     grad_weight = sum over rows of grad_out * n             grad_bias = sum over rows of grad_out
//
// Two kernels, so x and grad_out are read twice; the second has as many threads as a row has elements, a few hundred
// where the GPU could hold some 200,000.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

__global__ void gradient_thread_per_row(const LayerNormBackward<T> p) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    const T *x = p.x + row * p.size, *grad_out = p.grad_out + row * p.size;
    const float mean = p.mean[row], rstd = p.rstd[row];

    float average = 0, projection = 0;
    for (int i = 0; i < p.size; ++i) {
        const float g = widen(grad_out[i]) * widen(p.weight[i]);
        average += g;
        projection += g * ((widen(x[i]) - mean) * rstd);
    }
    average /= p.size;
    projection /= p.size;

    for (int i = 0; i < p.size; ++i) {
        const float normalized = (widen(x[i]) - mean) * rstd, g = widen(grad_out[i]) * widen(p.weight[i]);
        p.grad_x[row * p.size + i] = narrow<T>(rstd * (g - average - normalized * projection));
    }
}

__global__ void gradient_thread_per_column(const LayerNormBackward<T> p) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= p.size) return;
    float grad_weight = 0, grad_bias = 0;
    for (int64_t row = 0; row < p.rows; ++row) {
        const float g = widen(p.grad_out[row * p.size + column]);
        grad_weight += g * ((widen(p.x[row * p.size + column]) - p.mean[row]) * p.rstd[row]);
        grad_bias += g;
    }
    p.grad_weight[column] = narrow<T>(grad_weight);
    p.grad_bias[column] = narrow<T>(grad_bias);
}

inline void launch_thread_per_column(const LayerNormBackward<T>& p, cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.size, 128)));
    launch(gradient_thread_per_column, blocks, dim3(128), 0, stream, p);
}

}  // namespace slm::ladder

extern "C" void layer_norm_backward_thread_per_row_and_column(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = backward_arguments(tensors, numbers);
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, 128)));
    launch(gradient_thread_per_row, blocks, dim3(128), 0, stream_of(numbers), p);
    launch_thread_per_column(p, stream_of(numbers));
}
