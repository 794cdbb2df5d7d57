// AdamW on a GPU: every parameter in one launch. A block takes a piece of one tensor, found by its number.
#pragma once

#include "columns.cuh"

namespace slm::cuda {

__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }

inline constexpr int kMostTensors = 96;  // that fit into the arguments of a kernel, which are 4 KB
inline constexpr int kAdamPiece = 4096;  // numbers that a block moves
inline constexpr int kAdamThreads = 256;

template <class T>
struct AdamW {
    T* parameter[kMostTensors];
    const T* gradient[kMostTensors];
    T* average[kMostTensors];
    T* square[kMostTensors];
    int64_t size[kMostTensors];
    T beta1, beta2, eps, kept, rate, root, gradient_scale;  // kept: of the weight; root: of the bias correction
    int tensors;
};

template <class T>
__global__ void __launch_bounds__(kAdamThreads) adamw_pieces(const AdamW<T> p) {
    int64_t piece = blockIdx.x;
    int tensor = 0;
    while (piece >= (p.size[tensor] + kAdamPiece - 1) / kAdamPiece) {
        piece -= (p.size[tensor] + kAdamPiece - 1) / kAdamPiece;
        ++tensor;
    }
    const int64_t end = piece * kAdamPiece + kAdamPiece < p.size[tensor] ? piece * kAdamPiece + kAdamPiece : p.size[tensor];
    for (int64_t i = piece * kAdamPiece + threadIdx.x; i < end; i += kAdamThreads) {
        const T gradient = p.gradient[tensor][i] * p.gradient_scale;
        const T average = p.average[tensor][i] * p.beta1 + gradient * (1 - p.beta1);
        const T square = p.square[tensor][i] * p.beta2 + gradient * gradient * (1 - p.beta2);
        p.average[tensor][i] = average;
        p.square[tensor][i] = square;
        p.parameter[tensor][i] = p.parameter[tensor][i] * p.kept + p.rate * (average / (square_root(square) * p.root + p.eps));
    }
}

template <class T>
void adamw(const AdamW<T>& p, cudaStream_t stream) {
    int64_t pieces = 0;
    for (int i = 0; i < p.tensors; ++i) pieces += ceil_div(p.size[i], kAdamPiece);
    if (pieces > 0) launch(adamw_pieces<T>, dim3(static_cast<unsigned>(pieces)), dim3(kAdamThreads), 0, stream, p);
}

}  // namespace slm::cuda
