// GELU and SwiGLU with their biases on a GPU. Forward: one thread an element. Backward: a block walks down its columns,
// writes the gradients of the elements and keeps the sums that are the gradients of the biases (columns.cuh).
#pragma once

#include <algorithm>

#include "columns.cuh"

namespace slm::cuda {

// s = 1 / (1 + e^-x) and 1 - s, each to full precision: by e^-|x|, which does not overflow.
template <class A>
struct Sigmoid {
    A value, rest;

    explicit __device__ __forceinline__ Sigmoid(A x) {
        const A e = natural_exp(x < 0 ? x : -x), larger = 1 / (1 + e), smaller = e * larger;
        value = x < 0 ? smaller : larger;
        rest = x < 0 ? larger : smaller;
    }
};

// An activation at x: its value and its derivative.
template <class A>
struct Activated {
    A value, slope;
};

struct Silu {
    template <class A>
    static __device__ __forceinline__ Activated<A> at(A x) {
        const Sigmoid<A> s(x);
        return {x * s.value, x * s.value * s.rest + s.value};
    }
};

// GPT-2's form, x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x³); (1 + tanh(u)) / 2 is sigmoid(2 u).
struct GeluTanh {
    template <class A>
    static __device__ __forceinline__ Activated<A> at(A x) {
        constexpr A kSlope = A(1.5957691216057308), kCube = A(0.044715 * 1.5957691216057308);  // kSlope: 2 sqrt(2 / pi)
        const Sigmoid<A> s(x * (kSlope + kCube * x * x));
        const A value = x * s.value;
        return {value, value * (kSlope + 3 * kCube * x * x) * s.rest + s.value};
    }
};

struct GeluErf {
    template <class A>
    static __device__ __forceinline__ Activated<A> at(A x) {
        const A share = A(0.5) * (1 + error_function(x * A(0.7071067811865476)));
        return {x * share, x * (A(0.3989422804014327) * natural_exp(A(-0.5) * x * x)) + share};
    }
};

// Rows of `size` elements at a constant distance, and the vector that is added to each, or null.
template <class T>
struct Biased {
    const T* x;
    int64_t stride;
    const T* bias;

    __device__ __forceinline__ compute_t<T> at(int64_t row, int column) const {
        const compute_t<T> value = widen(x[row * stride + column]);
        return bias == nullptr ? value : value + widen(bias[column]);
    }
};

template <class T>
struct ActivationForward {
    Biased<T> gate;  // what is bent
    Biased<T> x;     // what it multiplies, where `gated` says so
    T* out;          // (rows, size), contiguous
    bool gated;
    int64_t rows;
    int size;
};

template <class T>
struct ActivationBackward {
    const T* grad_out;
    int64_t grad_out_stride;
    Biased<T> gate, x;
    bool gated;
    T *grad_gate, *grad_x;  // (rows, size), contiguous
    compute_t<T>*gate_partials, *x_partials;  // (kMostLines, size): scratch
    T *grad_gate_bias, *grad_bias;            // (size)
    int64_t rows;
    int size;
};

inline constexpr int kElementThreads = 256;

template <class F, class T>
__global__ void __launch_bounds__(kElementThreads) activation_elements(const ActivationForward<T> p) {
    const int64_t count = p.rows * p.size, step = int64_t{gridDim.x} * kElementThreads;
    for (int64_t i = int64_t{blockIdx.x} * kElementThreads + threadIdx.x; i < count; i += step) {
        const int64_t row = i / p.size;
        const int column = static_cast<int>(i - row * p.size);
        compute_t<T> value = F::at(p.gate.at(row, column)).value;
        if (p.gated) value *= p.x.at(row, column);
        p.out[i] = narrow<T>(value);
    }
}

template <class F, class T>
__global__ void __launch_bounds__(256) activation_backward_columns(const ActivationBackward<T> p) {
    using A = compute_t<T>;
    __shared__ A gate_sums[kColumnDepth][kColumnWidth], x_sums[kColumnDepth][kColumnWidth];
    A gate_total = 0, x_total = 0;
    each_row_of_column(p.rows, p.size, [&](int64_t row, int column) {
        A grad = widen(p.grad_out[row * p.grad_out_stride + column]);
        const auto bent = F::at(p.gate.at(row, column));
        if (p.gated) {
            const A for_x = grad * bent.value;
            p.grad_x[row * p.size + column] = narrow<T>(for_x);
            x_total += for_x;
            grad *= p.x.at(row, column);
        }
        const A for_gate = grad * bent.slope;
        p.grad_gate[row * p.size + column] = narrow<T>(for_gate);
        gate_total += for_gate;
    });
    store_line(gate_total, gate_sums, p.gate_partials, p.size);
    if (p.gated) store_line(x_total, x_sums, p.x_partials, p.size);
}

template <class F, class T>
void activation_forward(const ActivationForward<T>& p, int multiprocessors, cudaStream_t stream) {
    if (p.rows == 0) return;
    const int64_t blocks = std::min<int64_t>(ceil_div(p.rows * p.size, kElementThreads), 16 * multiprocessors);
    launch(activation_elements<F, T>, dim3(static_cast<unsigned>(blocks)), dim3(kElementThreads), 0, stream, p);
}

template <class F, class T>
void activation_backward(const ActivationBackward<T>& p, cudaStream_t stream) {
    const dim3 grid = column_grid(p.rows, p.size);
    const int lines = static_cast<int>(grid.y);
    launch(activation_backward_columns<F, T>, grid, column_block(), 0, stream, p);
    launch_sum_lines(p.gate_partials, lines, p.size, p.grad_gate_bias, stream);
    if (p.gated) launch_sum_lines(p.x_partials, lines, p.size, p.grad_bias, stream);
}

}  // namespace slm::cuda
