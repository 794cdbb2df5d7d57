// Rung 2: a block for each row; its threads combine their parts as a tree in shared memory.
//
// Now neighbouring threads read neighbouring logits: a warp's 64 bytes are two sectors instead of 32. The row is swept
// over three times as before, and each of the two trees takes eight steps with a barrier, in which
// fewer and fewer threads work.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

// combine(…) of x over the block, in every thread.
template <class Combine>
__device__ __forceinline__ float tree(float x, const Combine& combine) {
    __shared__ float part[kLogitThreads];
    __syncthreads();  // the result of the call before has been read
    part[threadIdx.x] = x;
    for (int half = kLogitThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half)
            part[threadIdx.x] = combine(part[threadIdx.x], part[threadIdx.x + half]);
    }
    __syncthreads();
    return part[0];
}

__global__ void statistics_block_per_row(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    const T* logits = p.logits + row * p.size;
    const int first = threadIdx.x;

    float largest = -INFINITY, total = 0;
    for (int i = first; i < p.size; i += kLogitThreads) largest = larger(largest, widen(logits[i]));
    largest = tree(largest, [](float a, float b) { return larger(a, b); });
    for (int i = first; i < p.size; i += kLogitThreads) total += natural_exp(widen(logits[i]) - largest);
    total = tree(total, [](float a, float b) { return a + b; });
    if (first == 0) store_statistics(p, row, largest, total);
}

__global__ void gradient_block_per_row(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    T* logits = p.logits + row * p.size;

    const LogitGradient<T> gradient(p, row);
    for (int i = threadIdx.x; i < p.size; i += kLogitThreads)
        gradient.of(Logit::load(logits + i), i).store(logits + i);
}

}  // namespace slm::ladder

extern "C" void cross_entropy_loss_block_per_row(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = arguments(tensors, numbers);
    launch_rows(statistics_block_per_row, p, stream_of(numbers));
    launch_rows(gradient_block_per_row, p, stream_of(numbers));
}
