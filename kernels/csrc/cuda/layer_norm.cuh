// Layer norm on a GPU, as its callers see it: arguments and launchers. The kernels: layer_norm_forward.cuh and
// layer_norm_backward.cuh, compiled by layer_norm.cu for float, half, bfloat16 and double.
#pragma once

#include "numeric.cuh"

namespace slm::cuda {

// out = (x - mean) / sqrt(variance + eps) * weight + bias over rows of `size` elements of x, or of x + residual.
template <class T>
struct LayerNormForward {
    const T* x;         // (rows, size)
    int64_t x_stride;   // between rows, in elements
    const T* residual;  // (rows, size), or null
    int64_t residual_stride;
    const T* weight;  // (size)
    const T* bias;    // (size), or null
    T* out;           // (rows, size), contiguous
    T* sum;           // (rows, size), contiguous: x + residual; unused without a residual
    compute_t<T>* mean;
    compute_t<T>* rstd;  // (rows)
    int64_t rows;
    int size;
    compute_t<T> eps;
};

// The gradients of x, weight and bias.
template <class T>
struct LayerNormBackward {
    const T* grad_out;  // (rows, size)
    int64_t grad_out_stride;
    const T* x;  // (rows, size): what was normalized
    int64_t x_stride;
    const T* weight;  // (size)
    const compute_t<T>* mean;
    const compute_t<T>* rstd;  // (rows)
    const T* grad_residual;    // (rows, size), or null: added to grad_x
    int64_t grad_residual_stride;
    T* grad_x;               // (rows, size), contiguous
    T* grad_weight;          // (size)
    T* grad_bias;            // (size)
    compute_t<T>* partials;  // (layer_norm_partials(…), 2, size): scratch
    int64_t rows;
    int size;
};

inline constexpr int kMostBackwardBlocks = 4;  // on a multiprocessor

// The lines of `partials` that a launch may use.
inline int64_t layer_norm_partials(int multiprocessors) {
    return int64_t{multiprocessors} * kMostBackwardBlocks;
}

// Enqueues it. multiprocessors: of the GPU.
template <class T>
void layer_norm_forward(const LayerNormForward<T>& p, int multiprocessors, cudaStream_t stream);

// The same inputs give the same bits on the same GPU.
template <class T>
void layer_norm_backward(const LayerNormBackward<T>& p, int multiprocessors, cudaStream_t stream);

}  // namespace slm::cuda
