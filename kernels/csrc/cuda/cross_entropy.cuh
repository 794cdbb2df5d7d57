// Cross-entropy on a GPU: the passes over logits (rows, size) between the products. One block takes a row: it reads it
// once for its maximum and its sum of powers together (Milakov and Gimelshein 2018), and once more for the gradient.
#pragma once

#include "columns.cuh"

namespace slm::cuda {

template <class T>
struct CrossEntropy {
    T* logits;               // (rows, size), contiguous; become the gradient
    const int64_t* targets;  // (rows); `ignored` or outside 0..size-1 is allowed
    compute_t<T>* largest;   // (rows)
    compute_t<T>* total;     // (rows): the sum of exp(logit - largest)
    compute_t<T>* target;    // (rows): the logit of the target; NaN where there is no such target
    const compute_t<T>* scale;  // of the gradient; one number
    int64_t ignored;
    int64_t rows;
    int size;
};

inline constexpr int kLogitThreads = 256;

// The largest number and the sum of the powers of what has been seen.
template <class A>
struct OnlineSum {
    A largest, total;

    // After it, this holds what both have seen; a part that has seen nothing but minus infinity adds nothing.
    __device__ __forceinline__ void add(A other_largest, A other_total) {
        const A maximum = other_largest > largest || other_largest != other_largest ? other_largest : largest;
        if (maximum == -INFINITY) return;
        total = total * natural_exp(largest - maximum) + other_total * natural_exp(other_largest - maximum);
        largest = maximum;
    }
};

// Grid: rows; block: kLogitThreads.
template <class T>
__global__ void __launch_bounds__(kLogitThreads) cross_entropy_statistics(const CrossEntropy<T> p) {
    using A = compute_t<T>;
    constexpr int kWarps = kLogitThreads / 32;
    __shared__ A largest[kWarps], totals[kWarps];
    const int64_t row = blockIdx.x;
    const T* logits = p.logits + row * p.size;
    OnlineSum<A> seen{-INFINITY, 0};
    for (int i = threadIdx.x; i < p.size; i += kLogitThreads) seen.add(widen(logits[i]), 1);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const A other = __shfl_xor_sync(0xFFFFFFFFu, seen.largest, step);
        const A other_total = __shfl_xor_sync(0xFFFFFFFFu, seen.total, step);
        seen.add(other, other_total);
    }
    if (threadIdx.x % 32 == 0) {
        largest[threadIdx.x / 32] = seen.largest;
        totals[threadIdx.x / 32] = seen.total;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < kWarps; ++warp) seen.add(largest[warp], totals[warp]);
    p.largest[row] = seen.largest;
    p.total[row] = seen.total;
    const int64_t target = p.targets[row];
    p.target[row] = 0 <= target && target < p.size ? widen(logits[target]) : static_cast<A>(NAN);
}

// Grid: rows; block: kLogitThreads.
template <class T>
__global__ void __launch_bounds__(kLogitThreads) cross_entropy_gradient(const CrossEntropy<T> p) {
    using A = compute_t<T>;
    const int64_t row = blockIdx.x, target = p.targets[row];
    T* logits = p.logits + row * p.size;
    const A largest = p.largest[row], scale = target == p.ignored ? A(0) : *p.scale, factor = scale / p.total[row];
    for (int i = threadIdx.x; i < p.size; i += kLogitThreads) {
        A gradient = 0;
        if (target != p.ignored) {
            gradient = natural_exp(widen(logits[i]) - largest) * factor;
            if (i == target) gradient -= scale;
        }
        logits[i] = narrow<T>(gradient);
    }
}

template <class T>
void cross_entropy_observe(const CrossEntropy<T>& p, cudaStream_t stream) {
    if (p.rows > 0)
        launch(cross_entropy_statistics<T>, dim3(static_cast<unsigned>(p.rows)), dim3(kLogitThreads), 0, stream, p);
}

template <class T>
void cross_entropy_differentiate(const CrossEntropy<T>& p, cudaStream_t stream) {
    if (p.rows > 0)
        launch(cross_entropy_gradient<T>, dim3(static_cast<unsigned>(p.rows)), dim3(kLogitThreads), 0, stream, p);
}

}  // namespace slm::cuda
