// Cross-entropy on a GPU: the passes over logits (rows, size) between the products. One block takes a row: it reads it
// once for its maximum and its sum of powers together (Milakov and Gimelshein 2018), and once more for the gradient,
// both in packs of 16 bytes, wherever the row begins.
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

// Calls step(pack, column) for the parts of a row that this thread takes: packs of N, and one by one the numbers before
// the first pack and behind the last. They are fewer than 2 N; a row of an odd size begins anywhere.
template <class T, class Step>
__device__ __forceinline__ void each_part(const T* row, int size, const Step& step) {
    constexpr int N = kPackSize<T>;
    const int thread = threadIdx.x, before = static_cast<int>(-reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    const int packed = (size - before) / N * N;
    for (int i = thread * N; i < packed; i += kLogitThreads * N) step(Pack<T, N>::load(row + before + i), before + i);
    const int single = thread < before ? thread : packed + thread;
    if (single < size) step(Pack<T, 1>::load(row + single), single);
}

// The larger of two numbers; NaN if one of them is.
template <class A>
__device__ __forceinline__ A larger(A a, A b) {
    return b > a || b != b ? b : a;
}

// The largest number and the sum of the powers of what has been seen. What has seen nothing but minus infinity adds
// nothing.
template <class A>
struct OnlineSum {
    A largest, total;

    // Adds N logits: one power for each, and one to rescale what was seen before.
    template <class T, int N>
    __device__ __forceinline__ void add(const Pack<T, N>& logits) {
        A maximum = largest;
        for (int e = 0; e < N; ++e) maximum = larger(maximum, widen(logits.at[e]));
        if (maximum == -INFINITY) return;
        total *= natural_exp(largest - maximum);
        for (int e = 0; e < N; ++e) total += natural_exp(widen(logits.at[e]) - maximum);
        largest = maximum;
    }

    // Adds what another thread has seen.
    __device__ __forceinline__ void add(A other_largest, A other_total) {
        const A maximum = larger(largest, other_largest);
        if (maximum == -INFINITY) return;
        total = total * natural_exp(largest - maximum) + other_total * natural_exp(other_largest - maximum);
        largest = maximum;
    }

    // Adds what the other threads of a block of `Threads` have seen; the sum of all is in thread 0.
    template <int Threads>
    __device__ __forceinline__ void add_block() {
        constexpr int kWarps = Threads / 32;
        __shared__ A warp_largest[kWarps], warp_total[kWarps];
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const A other_largest = __shfl_xor_sync(0xFFFFFFFFu, largest, step);
            const A other_total = __shfl_xor_sync(0xFFFFFFFFu, total, step);
            add(other_largest, other_total);
        }
        if (threadIdx.x % 32 == 0) {
            warp_largest[threadIdx.x / 32] = largest;
            warp_total[threadIdx.x / 32] = total;
        }
        __syncthreads();
        if (threadIdx.x > 0) return;
        for (int warp = 1; warp < kWarps; ++warp) add(warp_largest[warp], warp_total[warp]);
    }
};

// Called by one thread for a row.
template <class T>
__device__ __forceinline__ void store_statistics(const CrossEntropy<T>& p, int64_t row, compute_t<T> largest,
                                                 compute_t<T> total) {
    p.largest[row] = largest;
    p.total[row] = total;
    const int64_t target = p.targets[row];
    p.target[row] = 0 <= target && target < p.size ? widen(p.logits[row * p.size + target])
                                                   : static_cast<compute_t<T>>(NAN);
}

// Grid: rows; block: kLogitThreads.
template <class T>
__global__ void __launch_bounds__(kLogitThreads) cross_entropy_statistics(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    OnlineSum<compute_t<T>> seen{-INFINITY, 0};
    each_part(p.logits + row * p.size, p.size, [&](const auto& pack, int) { seen.add(pack); });
    seen.template add_block<kLogitThreads>();
    if (threadIdx.x == 0) store_statistics(p, row, seen.largest, seen.total);
}

// The gradient of the logits of a row: scale * (softmax - 1 at the target), or 0 if the row is ignored.
template <class T>
struct LogitGradient {
    using A = compute_t<T>;
    int64_t target;
    bool ignored;
    A largest, scale, factor;

    __device__ __forceinline__ LogitGradient(const CrossEntropy<T>& p, int64_t row)
        : target(p.targets[row]),
          ignored(target == p.ignored),
          largest(p.largest[row]),
          scale(*p.scale),
          factor(scale / p.total[row]) {}

    // Of N logits from `column` on.
    template <int N>
    __device__ __forceinline__ Pack<T, N> of(Pack<T, N> logits, int column) const {
        for (int e = 0; e < N; ++e) {
            const A softmax = natural_exp(widen(logits.at[e]) - largest) * factor;
            logits.at[e] = narrow<T>(ignored ? 0 : column + e == target ? softmax - scale : softmax);
        }
        return logits;
    }
};

// Grid: rows; block: kLogitThreads.
template <class T>
__global__ void __launch_bounds__(kLogitThreads) cross_entropy_gradient(const CrossEntropy<T> p) {
    const int64_t row = blockIdx.x;
    T* logits = p.logits + row * p.size;
    const LogitGradient<T> gradient(p, row);
    each_part(logits, p.size,
              [&](const auto& pack, int column) { gradient.of(pack, column).store(logits + column); });
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
