// Rung 5, what ships. Up to 128 tokens attention_short_backward.cuh, beyond that attention_long_backward.cuh. As rung
// 4, and
//
//   short: one kernel for all three gradients: a block holds a whole head, so dS passes once through shared memory and
//          dq needs no second forming of the scores: five products, nothing read twice
//   long:  double buffering, as in the forward's rung 5; delta computed once, by the kernel of the queries
//   any D up to 128 and any strides; windows, grouped heads, dropout
#pragma once

#include "arguments.cuh"
#include "attention_long_backward.cuh"
#include "attention_short_backward.cuh"

extern "C" void attention_backward_shipped(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto b = backward_arguments(tensors, numbers);
    b.shape.length <= 128 ? attention_short(b, stream_of(numbers)) : attention_long(b, stream_of(numbers));
}
