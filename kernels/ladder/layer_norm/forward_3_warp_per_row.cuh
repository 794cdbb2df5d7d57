// Rung 3: a warp for each row; its lanes add their parts by shuffles.
//
// A warp's lanes run in step and can hand each other registers, so a sum takes five shuffles: no shared memory, no
// barrier, and no thread waits for a slower one of another warp.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

__global__ void norm_warp_per_row(const LayerNormForward<T> p) {
    const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= p.rows) return;
    const T* x = p.x + row * p.size;
    const int lane = threadIdx.x % 32;

    float sum = 0, squares = 0;
    for (int i = lane; i < p.size; i += 32) sum += widen(x[i]);
    const float mean = sum_over<32>(sum) / p.size;
    for (int i = lane; i < p.size; i += 32) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
    const float rstd = reciprocal_root(sum_over<32>(squares) / p.size + p.eps);

    for (int i = lane; i < p.size; i += 32) {
        const float normalized = (widen(x[i]) - mean) * rstd;
        p.out[row * p.size + i] = narrow<T>(normalized * widen(p.weight[i]) + widen(p.bias[i]));
    }
    if (lane == 0) {
        p.mean[row] = mean;
        p.rstd[row] = rstd;
    }
}

}  // namespace slm::ladder

extern "C" void layer_norm_forward_warp_per_row(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, 4)));
    launch(norm_warp_per_row, blocks, dim3(128), 0, stream_of(numbers), p);
}
