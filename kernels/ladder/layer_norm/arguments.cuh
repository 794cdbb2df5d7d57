// What every rung of layer norm is called with: the arguments of the shipped kernels, for contiguous rows of bfloat16.
//
// numbers: rows, size (the C elements of a row), multiprocessors of the GPU, the stream.
#pragma once

#include "layer_norm.cuh"

namespace slm::ladder {

using namespace slm::cuda;
using T = __nv_bfloat16;

inline cudaStream_t stream_of(const long long* numbers) { return reinterpret_cast<cudaStream_t>(numbers[3]); }

// tensors: x (rows, size), weight, bias (size); out (rows, size), mean, rstd (rows).
inline LayerNormForward<T> forward_arguments(void** tensors, const long long* numbers) {
    const auto input = [&](int i) { return static_cast<const T*>(tensors[i]); };
    LayerNormForward<T> p{};
    p.x = input(0);
    p.weight = input(1);
    p.bias = input(2);
    p.out = static_cast<T*>(tensors[3]);
    p.mean = static_cast<float*>(tensors[4]);
    p.rstd = static_cast<float*>(tensors[5]);
    p.rows = numbers[0];
    p.x_stride = p.size = static_cast<int>(numbers[1]);
    p.eps = 1e-5f;
    return p;
}

// tensors: grad_out, x (rows, size), weight (size), mean, rstd (rows); grad_x (rows, size), grad_weight, grad_bias
// (size), partials (partial_lines(…), 2, size), which is scratch.
inline LayerNormBackward<T> backward_arguments(void** tensors, const long long* numbers) {
    const auto input = [&](int i) { return static_cast<const T*>(tensors[i]); };
    const auto output = [&](int i) { return static_cast<T*>(tensors[i]); };
    LayerNormBackward<T> p{};
    p.grad_out = input(0);
    p.x = input(1);
    p.weight = input(2);
    p.mean = static_cast<const float*>(tensors[3]);
    p.rstd = static_cast<const float*>(tensors[4]);
    p.grad_x = output(5);
    p.grad_weight = output(6);
    p.grad_bias = output(7);
    p.partials = static_cast<float*>(tensors[8]);
    p.rows = numbers[0];
    p.grad_out_stride = p.x_stride = p.size = static_cast<int>(numbers[1]);
    return p;
}

inline int partial_lines(int multiprocessors) { return 16 * multiprocessors; }

// A row that is held in registers needs a bound which the compiler knows.
inline constexpr int kMostColumns = 1024;

inline void require_packs(int size) {
    if (size % kPackSize<T> != 0 || size > kMostColumns)
        throw std::runtime_error("this rung takes rows of a multiple of 8 elements, at most 1024");
}

}  // namespace slm::ladder
