// Rotary positions on a GPU: one thread turns one pair of neighbours by the angle of its token.
#pragma once

#include <algorithm>

#include "columns.cuh"

namespace slm::cuda {

template <class T>
struct Rotary {
    const T* x;  // (B, T, H, D)
    int64_t batch_stride, token_stride, head_stride;
    const compute_t<T>*cos, *sin;  // (B, T, D / 2)
    int64_t angle_batch_stride;    // 0 where all of the batch share their angles
    compute_t<T> direction;        // 1, or -1 to turn back
    T* out;                        // (B, T, H, D), contiguous
    int64_t pairs;                 // of all of x
    int length, heads, half;
};

template <class T>
__global__ void __launch_bounds__(256) rotary_pairs(const Rotary<T> p) {
    using A = compute_t<T>;
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.pairs; i += step) {
        const int64_t row = i / p.half, token = row / p.heads, batch = token / p.length;
        const int64_t pair = i - row * p.half, head = row - token * p.heads, position = token - batch * p.length;
        const T* from = p.x + batch * p.batch_stride + position * p.token_stride + head * p.head_stride + 2 * pair;
        const int64_t angle = batch * p.angle_batch_stride + position * p.half + pair;
        const A cos = p.cos[angle], sin = p.sin[angle] * p.direction, even = widen(from[0]), odd = widen(from[1]);
        p.out[2 * i] = narrow<T>(even * cos - odd * sin);
        p.out[2 * i + 1] = narrow<T>(even * sin + odd * cos);
    }
}

template <class T>
void rotary(const Rotary<T>& p, int multiprocessors, cudaStream_t stream) {
    if (p.pairs == 0) return;
    const int64_t blocks = std::min<int64_t>(ceil_div(p.pairs, 256), 16 * multiprocessors);
    launch(rotary_pairs<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, p);
}

}  // namespace slm::cuda
