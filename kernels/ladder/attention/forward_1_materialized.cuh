// Rung 1: three kernels, one for each formula; the T x T matrix of scores is stored.
//
// Per head the matrix is written by the first kernel, read and written by the second, read by the third: 4 * 4 T^2
// bytes, where q, k, v and out together have 4 * 2 * 64 T. At T = 1024 that is 32 times as much. And each
// thread of the first reads two whole rows of q and k for one score, each of the third a row of weights for one number.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

// A thread for each score (T, T) of a head; -inf where the key lies in the future.
__global__ void attend_scores(const AttentionForward<T> p, float* scores) {
    const AttentionShape& s = p.shape;
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, size = int64_t{s.length} * s.length;
    if (i >= size) return;
    const Head at(s);
    const int query = static_cast<int>(i / s.length), key = static_cast<int>(i % s.length);
    const T* q = p.q.head(at.batch, at.head) + query * p.q.token_stride;
    const T* k = p.k.head(at.batch, at.head) + key * p.k.token_stride;
    float score = 0;
    for (int d = 0; d < D; ++d) score += widen(q[d]) * widen(k[d]);
    scores[blockIdx.y * size + i] = key <= query ? rounded_product(score, kScale) : -INFINITY;
}

// A warp for each row: scores to weights, in place.
__global__ void attend_softmax(const AttentionForward<T> p, float* scores) {
    const AttentionShape& s = p.shape;
    const int query = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (query >= s.length) return;
    const Head at(s);
    float* row = scores + (int64_t{blockIdx.y} * s.length + query) * s.length;
    float maximum = -INFINITY, sum = 0;
    for (int key = lane; key < s.length; key += 32) maximum = fmaxf(maximum, row[key]);
    maximum = max_over<32>(maximum);
    for (int key = lane; key < s.length; key += 32) sum += expf(row[key] - maximum);
    sum = sum_over<32>(sum);
    for (int key = lane; key < s.length; key += 32) row[key] = expf(row[key] - maximum) / sum;
    if (lane == 0) p.lse[s.row(at.batch, at.head, query)] = maximum + logf(sum);
}

// A thread for each element (T, D) of the result.
__global__ void attend_values(const AttentionForward<T> p, const float* weights) {
    const AttentionShape& s = p.shape;
    const int query = blockIdx.x, d = threadIdx.x;
    const Head at(s);
    const T* v = p.v.head(at.batch, at.head) + d;
    const float* row = weights + (int64_t{blockIdx.y} * s.length + query) * s.length;
    float sum = 0;
    for (int key = 0; key < s.length; ++key) sum += row[key] * widen(v[key * p.v.token_stride]);
    p.out.head(at.batch, at.head)[query * p.out.token_stride + d] = narrow<T>(sum);
}

}  // namespace slm::ladder

extern "C" void attention_forward_materialized(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    const int64_t length = p.shape.length;
    float* scratch = static_cast<float*>(tensors[5]);  // (B, H, T, T)
    const auto stream = stream_of(numbers);
    launch(attend_scores, grid_per_head(p.shape, length * length, 128), dim3(128), 0, stream, p, scratch);
    launch(attend_softmax, grid_per_head(p.shape, length, 4), dim3(128), 0, stream, p, scratch);
    launch(attend_values, grid_per_head(p.shape, length, 1), dim3(D), 0, stream, p, scratch);
}
