// Rung 7, what ships. Up to 128 tokens attention_short_forward.cuh, beyond that attention_long_forward.cuh. As rung 6,
// and
//
//   short: a warp holds whole rows of scores, so the softmax needs no rescaling; a head is one block, loaded once
//   long:  a warp owns 32 queries, so each fragment of k and v that it reads serves two products
//   the result goes through shared memory, so that it is stored 16 bytes at a time
//   any D up to 128 and any strides; windows, grouped heads, dropout
#pragma once

#include "arguments.cuh"
#include "attention_long_forward.cuh"
#include "attention_short_forward.cuh"

extern "C" void attention_forward_shipped(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    p.shape.length <= 128 ? attention_short(p, stream_of(numbers)) : attention_long(p, stream_of(numbers));
}
