// Rung 1: a thread for each row, three loops as in the formula.
//
// Neighbouring threads are a whole row apart: each of their 2-byte loads touches a sector of 32 bytes of its own. The
// other 30 bytes are wanted by the same thread in the next 15 turns, if the cache has not lost them by then. And
// 32768 rows are only 256 threads for each multiprocessor of a large GPU, an eighth of what it can hold.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

__global__ void norm_thread_per_row(const LayerNormForward<T> p) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    const T* x = p.x + row * p.size;

    float sum = 0, squares = 0;
    for (int i = 0; i < p.size; ++i) sum += widen(x[i]);
    const float mean = sum / p.size;
    for (int i = 0; i < p.size; ++i) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
    const float rstd = reciprocal_root(squares / p.size + p.eps);

    for (int i = 0; i < p.size; ++i) {
        const float normalized = (widen(x[i]) - mean) * rstd;
        p.out[row * p.size + i] = narrow<T>(normalized * widen(p.weight[i]) + widen(p.bias[i]));
    }
    p.mean[row] = mean;
    p.rstd[row] = rstd;
}

}  // namespace slm::ladder

extern "C" void layer_norm_forward_thread_per_row(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, 128)));
    launch(norm_thread_per_row, blocks, dim3(128), 0, stream_of(numbers), p);
}
