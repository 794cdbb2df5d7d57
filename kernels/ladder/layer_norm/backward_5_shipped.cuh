// Rung 5, what ships: layer_norm_backward.cuh. As rung 4, and
//
//   the warps of a block add their sums in shared memory and write one line together: a quarter of the partial sums
//   half a warp takes a row of up to 384 elements, and the compiler knows how many packs it has (row.cuh)
//   registers are bounded so that four blocks are resident on a multiprocessor
//   any size, stride and dtype; the gradient that passes the norm by is added in the same pass
#pragma once

#include "arguments.cuh"
#include "layer_norm_backward.cuh"

extern "C" void layer_norm_backward_shipped(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    layer_norm_backward(backward_arguments(tensors, numbers), static_cast<int>(numbers[2]), stream_of(numbers));
}
