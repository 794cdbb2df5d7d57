// What every rung of attention is called with: the arguments of the shipped kernels, for contiguous bfloat16 tensors
// (B, T, H, 64), a scale of 1/8 and neither dropout nor window.
//
// numbers: B, T, H, multiprocessors of the GPU (which no rung asks for), the stream.
#pragma once

#include "attention.cuh"

namespace slm::ladder {

using namespace slm::cuda;
using T = __nv_bfloat16;
inline constexpr int D = 64;
// Scores become exponents of two: exp(x) = 2^(x log2 e), and 2^x is one instruction.
inline constexpr float kScale = 0.125f, kScaleLog2 = kScale * static_cast<float>(kLog2E);

inline cudaStream_t stream_of(const long long* numbers) { return reinterpret_cast<cudaStream_t>(numbers[4]); }

inline AttentionShape shape_of(const long long* numbers) {
    AttentionShape s{};
    s.batch = static_cast<int>(numbers[0]);
    s.length = s.tokens = s.window = static_cast<int>(numbers[1]);
    s.heads = s.kv_heads = static_cast<int>(numbers[2]);
    s.width = D;
    s.scale = kScale;
    return s;
}

template <class Element>
Heads<Element> heads(void* tensor, const AttentionShape& s) {
    const int64_t token = int64_t{s.heads} * D;
    return {static_cast<Element*>(tensor), s.length * token, token, D};
}

// tensors: q, k, v; out, lse (B, H, T), scratch.
inline AttentionForward<T> forward_arguments(void** tensors, const long long* numbers) {
    AttentionForward<T> p{};
    p.shape = shape_of(numbers);
    const auto input = [&](int i) { return heads<const T>(tensors[i], p.shape); };
    p.q = input(0);
    p.k = input(1);
    p.v = input(2);
    p.out = heads<T>(tensors[3], p.shape);
    p.lse = static_cast<float*>(tensors[4]);
    return p;
}

// tensors: grad_out, q, k, v, out, lse; dq, dk, dv, scratch, which begins with delta (B, H, T).
inline AttentionBackward<T> backward_arguments(void** tensors, const long long* numbers) {
    AttentionBackward<T> p{};
    p.shape = shape_of(numbers);
    const auto input = [&](int i) { return heads<const T>(tensors[i], p.shape); };
    const auto output = [&](int i) { return heads<T>(tensors[i], p.shape); };
    p.grad_out = input(0);
    p.q = input(1);
    p.k = input(2);
    p.v = input(3);
    p.out = input(4);
    p.lse = static_cast<const float*>(tensors[5]);
    p.dq = output(6);
    p.dk = output(7);
    p.dv = output(8);
    p.delta = static_cast<float*>(tensors[9]);
    return p;
}

// The head that the blocks with this blockIdx.y work on.
struct Head {
    int batch, head;
    __device__ __forceinline__ explicit Head(const AttentionShape& s)
        : batch(static_cast<int>(blockIdx.y) / s.heads), head(static_cast<int>(blockIdx.y) % s.heads) {}
};

// A block for each `per_block` of `count` elements of a head, and that for each head.
inline dim3 grid_per_head(const AttentionShape& s, int64_t count, int per_block) {
    return dim3(static_cast<unsigned>(ceil_div(count, per_block)), s.batch * s.heads);
}

}  // namespace slm::ladder
