// Rung 2: a block for each row; its threads add their parts as a tree in shared memory.
//
// Now neighbouring threads read neighbouring elements: a warp's 64 bytes are two sectors instead of 32. All of a row is
// asked for at once, so the GPU has enough loads under way. The price: seven steps with a barrier for each of the two
// sums, in which fewer and fewer threads work.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

constexpr int kTreeThreads = 128;

// The sum of x over the block, in every thread.
__device__ __forceinline__ float tree_sum(float x) {
    __shared__ float part[kTreeThreads];
    __syncthreads();  // the total of the call before has been read
    part[threadIdx.x] = x;
    for (int half = kTreeThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    __syncthreads();
    return part[0];
}

__global__ void norm_block_per_row(const LayerNormForward<T> p) {
    const int64_t row = blockIdx.x;
    const T* x = p.x + row * p.size;
    const int first = threadIdx.x;

    float sum = 0, squares = 0;
    for (int i = first; i < p.size; i += kTreeThreads) sum += widen(x[i]);
    const float mean = tree_sum(sum) / p.size;
    for (int i = first; i < p.size; i += kTreeThreads) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
    const float rstd = reciprocal_root(tree_sum(squares) / p.size + p.eps);

    for (int i = first; i < p.size; i += kTreeThreads) {
        const float normalized = (widen(x[i]) - mean) * rstd;
        p.out[row * p.size + i] = narrow<T>(normalized * widen(p.weight[i]) + widen(p.bias[i]));
    }
    if (threadIdx.x == 0) {
        p.mean[row] = mean;
        p.rstd[row] = rstd;
    }
}

}  // namespace slm::ladder

extern "C" void layer_norm_forward_block_per_row(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    const dim3 blocks(static_cast<unsigned>(p.rows));
    launch(norm_block_per_row, blocks, dim3(kTreeThreads), 0, stream_of(numbers), p);
}
