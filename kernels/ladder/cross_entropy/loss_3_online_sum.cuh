// Rung 3: the maximum and the sum in one sweep (Milakov and Gimelshein 2018), combined by shuffles.
//
// A new maximum m' rescales the sum so far: total = total * exp(m - m') + exp(x - m'). The sums of two threads are
// combined by the same rule, so five shuffles do it for a warp; only the eight warps meet in shared memory, at one
// barrier instead of twenty. The price: two powers for each logit, as every one of them might be a new maximum.
#pragma once

#include "loss_2_block_per_row.cuh"

namespace slm::ladder {

__global__ void statistics_online_sum(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    const T* logits = p.logits + row * p.size;

    OnlineSum<float> seen{-INFINITY, 0};
    for (int i = threadIdx.x; i < p.size; i += kLogitThreads) seen.add(Logit::load(logits + i));
    seen.add_block<kLogitThreads>();
    if (threadIdx.x == 0) store_statistics(p, row, seen.largest, seen.total);
}

}  // namespace slm::ladder

extern "C" void cross_entropy_loss_online_sum(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = arguments(tensors, numbers);
    launch_rows(statistics_online_sum, p, stream_of(numbers));
    launch_rows(gradient_block_per_row, p, stream_of(numbers));
}
