// Rung 4: 16 bytes a load and a store. The eight logits of a pack share one rescaling, by the largest of them.
//
// The sectors are the same, but one instruction asks for 512 bytes instead of 64, and a logit takes 9/8 of a power
// instead of two. A row must begin at a multiple of 16 bytes.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

using Logits = Pack<T, kPackSize<T>>;
constexpr int kPerBlock = kLogitThreads * kPackSize<T>;  // logits that a block reads at once

__global__ void statistics_in_packs(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    const T* logits = p.logits + row * p.size;

    OnlineSum<float> seen{-INFINITY, 0};
    for (int i = threadIdx.x * kPackSize<T>; i < p.size; i += kPerBlock) seen.add(Logits::load(logits + i));
    seen.add_block<kLogitThreads>();
    if (threadIdx.x == 0) store_statistics(p, row, seen.largest, seen.total);
}

__global__ void gradient_in_packs(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    T* logits = p.logits + row * p.size;

    const LogitGradient<T> gradient(p, row);
    for (int i = threadIdx.x * kPackSize<T>; i < p.size; i += kPerBlock)
        gradient.of(Logits::load(logits + i), i).store(logits + i);
}

}  // namespace slm::ladder

extern "C" void cross_entropy_loss_packs(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = arguments(tensors, numbers);
    if (p.size % kPackSize<T> != 0) throw std::runtime_error("this rung takes rows of a multiple of 8 elements");
    launch_rows(statistics_in_packs, p, stream_of(numbers));
    launch_rows(gradient_in_packs, p, stream_of(numbers));
}
