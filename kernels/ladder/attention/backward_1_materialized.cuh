// Rung 1: every matrix of the derivation is stored: P and dP, from which dS comes, then three products.
//
//     P = exp(S - lse)    dP = grad_out v^T    dS = P (dP - rowsum(P dP))
//     dv = P^T grad_out   dq = scale dS k      dk = scale dS^T q
//
// docs/kernels/attention.md derives it. Two T x T matrices are written once, then read twice and written again in part:
// some 6 * 4 T^2 bytes per head, and every product reads its rows from global memory for each number it forms.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

// Where the two (B, H, T, T) matrices of the block's head lie in the scratch memory.
struct Matrices {
    float *weights, *grads;  // P; dP, then dS
    __device__ __forceinline__ Matrices(const AttentionShape& s, float* scratch) {
        const int64_t size = int64_t{s.length} * s.length;
        weights = scratch + blockIdx.y * size;
        grads = weights + int64_t{s.batch} * s.heads * size;
    }
};

// A thread for each entry (T, T) of P and dP.
__global__ void gradient_matrices(const AttentionBackward<T> p, float* scratch) {
    const AttentionShape& s = p.shape;
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= int64_t{s.length} * s.length) return;
    const Head at(s);
    const Matrices m(s, scratch);
    const int query = static_cast<int>(i / s.length), key = static_cast<int>(i % s.length);
    const T *q = p.q.head(at.batch, at.head) + query * p.q.token_stride,
            *k = p.k.head(at.batch, at.head) + key * p.k.token_stride,
            *v = p.v.head(at.batch, at.head) + key * p.v.token_stride,
            *grad_out = p.grad_out.head(at.batch, at.head) + query * p.grad_out.token_stride;
    float score = 0, grad = 0;
    for (int d = 0; d < D; ++d) {
        score += widen(q[d]) * widen(k[d]);
        grad += widen(grad_out[d]) * widen(v[d]);
    }
    const float lse = p.lse[s.row(at.batch, at.head, query)];
    m.weights[i] = key <= query ? expf(rounded_product(score, kScale) - lse) : 0.0f;
    m.grads[i] = grad;
}

// A warp for each row: dP becomes dS.
__global__ void gradient_of_scores(const AttentionBackward<T> p, float* scratch) {
    const int query = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = p.shape.length;
    if (query >= length) return;
    const Matrices m(p.shape, scratch);
    const float* weights = m.weights + int64_t{query} * length;
    float *grads = m.grads + int64_t{query} * length, delta = 0;
    for (int key = lane; key < length; key += 32) delta += weights[key] * grads[key];
    delta = sum_over<32>(delta);
    for (int key = lane; key < length; key += 32) grads[key] = weights[key] * (grads[key] - delta);
}

// A thread for each element (T, D) of the three gradients; `t` is its query for dq, its key for dk and dv.
__global__ void gradient_products(const AttentionBackward<T> p, float* scratch) {
    const AttentionShape& s = p.shape;
    const int t = blockIdx.x, d = threadIdx.x;
    const Head at(s);
    const Matrices m(s, scratch);
    const T *q = p.q.head(at.batch, at.head) + d, *k = p.k.head(at.batch, at.head) + d,
            *grad_out = p.grad_out.head(at.batch, at.head) + d;
    float dq = 0, dk = 0, dv = 0;
    for (int i = 0; i < s.length; ++i) {
        const int64_t row = int64_t{t} * s.length + i, column = int64_t{i} * s.length + t;
        dq += m.grads[row] * widen(k[i * p.k.token_stride]);
        dk += m.grads[column] * widen(q[i * p.q.token_stride]);
        dv += m.weights[column] * widen(grad_out[i * p.grad_out.token_stride]);
    }
    p.dq.head(at.batch, at.head)[t * p.dq.token_stride + d] = narrow<T>(dq * kScale);
    p.dk.head(at.batch, at.head)[t * p.dk.token_stride + d] = narrow<T>(dk * kScale);
    p.dv.head(at.batch, at.head)[t * p.dv.token_stride + d] = narrow<T>(dv);
}

}  // namespace slm::ladder

extern "C" void attention_backward_materialized(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = backward_arguments(tensors, numbers);
    const int64_t length = p.shape.length;
    float* scratch = static_cast<float*>(tensors[9]);  // (2, B, H, T, T)
    const auto stream = stream_of(numbers);
    launch(gradient_matrices, grid_per_head(p.shape, length * length, 128), dim3(128), 0, stream, p, scratch);
    launch(gradient_of_scores, grid_per_head(p.shape, length, 4), dim3(128), 0, stream, p, scratch);
    launch(gradient_products, grid_per_head(p.shape, length, 1), dim3(D), 0, stream, p, scratch);
}
