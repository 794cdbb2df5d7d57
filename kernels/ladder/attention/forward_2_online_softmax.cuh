// Rung 2: one kernel, and no matrix: the online softmax (docs/kernels/attention.md).
//
// A thread owns a query and walks over the keys, which come to shared memory in tiles of 32. After each tile it knows
// the maximum and the sum so far; when the maximum grows, the sum and the result so far are scaled down to it. Nothing
// of size T x T leaves the registers: q and out cross the bus once, k and v once for every 64 queries.
//
// All lanes of a warp read the same key at the same time: one wavefront serves 32 threads. But 128 registers a thread
// hold q and out, and every product is a multiply-add of its own.
#pragma once

#include "arguments.cuh"

namespace slm::ladder {

constexpr int kOnlineQueries = 64, kOnlineKeys = 32;

// Rows [first, first + kOnlineKeys) of a head as floats, zeros beyond `length`.
__device__ __forceinline__ void load_keys(float (*tile)[D], const T* head, int64_t stride, int first, int length) {
    for (int i = threadIdx.x; i < kOnlineKeys * D; i += kOnlineQueries) {
        const int key = first + i / D;
        tile[i / D][i % D] = key < length ? widen(head[key * stride + i % D]) : 0.0f;
    }
}

__global__ void __launch_bounds__(kOnlineQueries) attend_online(const AttentionForward<T> p) {
    __shared__ float k[kOnlineKeys][D], v[kOnlineKeys][D];
    const AttentionShape& s = p.shape;
    const Head at(s);
    const int query = blockIdx.x * kOnlineQueries + threadIdx.x;
    const int row = min(query, s.length - 1);  // threads past the end work on the last row and store nothing
    const T* from = p.q.head(at.batch, at.head) + row * p.q.token_stride;
    float q[D], out[D] = {}, maximum = -INFINITY, sum = 0;
    for (int d = 0; d < D; ++d) q[d] = widen(from[d]);

    for (int first = 0; first < s.length; first += kOnlineKeys) {
        __syncthreads();  // the tile before has been used
        load_keys(k, p.k.head(at.batch, at.head), p.k.token_stride, first, s.length);
        load_keys(v, p.v.head(at.batch, at.head), p.v.token_stride, first, s.length);
        __syncthreads();
        float score[kOnlineKeys], best = maximum;
#pragma unroll
        for (int j = 0; j < kOnlineKeys; ++j) {
            score[j] = 0;
#pragma unroll
            for (int d = 0; d < D; ++d) score[j] += q[d] * k[j][d];
            score[j] = first + j <= row ? score[j] : -INFINITY;
            best = fmaxf(best, score[j]);
        }
        const float rescale = ptx::exp2_approx((maximum - best) * kScaleLog2);
        maximum = best;
        sum *= rescale;
        for (int d = 0; d < D; ++d) out[d] *= rescale;
#pragma unroll
        for (int j = 0; j < kOnlineKeys; ++j) {
            const float weight = ptx::exp2_approx((score[j] - maximum) * kScaleLog2);
            sum += weight;
#pragma unroll
            for (int d = 0; d < D; ++d) out[d] += weight * v[j][d];
        }
    }
    if (query >= s.length) return;
    T* to = p.out.head(at.batch, at.head) + query * p.out.token_stride;
    for (int d = 0; d < D; ++d) to[d] = narrow<T>(out[d] / sum);
    p.lse[s.row(at.batch, at.head, query)] = rounded_product(maximum, kScale) + logf(sum);
}

}  // namespace slm::ladder

extern "C" void attention_forward_online_softmax(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    const dim3 grid = grid_per_head(p.shape, p.shape.length, kOnlineQueries);
    launch(attend_online, grid, dim3(kOnlineQueries), 0, stream_of(numbers), p);
}
