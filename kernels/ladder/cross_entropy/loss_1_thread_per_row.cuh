// Rung 1: a thread for each row, a sweep for each step of the formula: the maximum, the sum, the gradient.
//
// Neighbouring threads are a whole row apart, so each of their 2-byte loads touches a sector of 32 bytes of its own. A
// chunk of 512 tokens is 512 threads, on a GPU that could hold more than 200,000.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

__global__ void statistics_thread_per_row(const CrossEntropy<T> p) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    const T* logits = p.logits + row * p.size;

    float largest = -INFINITY, total = 0;
    for (int i = 0; i < p.size; ++i) largest = larger(largest, widen(logits[i]));
    for (int i = 0; i < p.size; ++i) total += natural_exp(widen(logits[i]) - largest);
    store_statistics(p, row, largest, total);
}

__global__ void gradient_thread_per_row(const CrossEntropy<T> p) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    T* logits = p.logits + row * p.size;

    const LogitGradient<T> gradient(p, row);
    for (int i = 0; i < p.size; ++i) gradient.of(Logit::load(logits + i), i).store(logits + i);
}

}  // namespace slm::ladder

extern "C" void cross_entropy_loss_thread_per_row(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = arguments(tensors, numbers);
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.rows, 128)));
    launch(statistics_thread_per_row, blocks, dim3(128), 0, stream_of(numbers), p);
    launch(gradient_thread_per_row, blocks, dim3(128), 0, stream_of(numbers), p);
}
