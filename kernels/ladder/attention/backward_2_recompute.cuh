// Rung 2: P and dP are formed again, tile by tile, from what the forward kept: the log-sum-exp of each row.
//
// A block owns 32 keys, keeps dk and dv in registers and walks over the queries from the diagonal on. The products
// are the same five, but no T x T matrix exists any more. delta = rowsum(P dP) is grad_out . out, one number for each
// query, from a small kernel before.
//
// dq belongs to the queries, to which all blocks contribute: they add atomically to float32 memory, which must be
// zeroed before and rounded after. Sums then depend on who comes first: two runs differ in the last bits.
#pragma once

#include "quarters.cuh"

namespace slm::ladder {

// What a score and its entry of dP become.
struct Weight {
    float p = 0, grad = 0;  // P; dS / scale

    __device__ __forceinline__ Weight(const AttentionBackward<T>& b, const Head& at, int query, int key, float score,
                                      float grad_p) {
        if (key > query || query >= b.shape.length) return;
        const int64_t row = b.shape.row(at.batch, at.head, query);
        p = ptx::exp2_approx((rounded_product(score, kScale) - b.lse[row]) * static_cast<float>(kLog2E));
        grad = p * (grad_p - b.delta[row]);
    }
};

// A warp for each row: delta = grad_out . out
__global__ void gradient_delta(const AttentionBackward<T> b) {
    const int query = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (query >= b.shape.length) return;
    const Head at(b.shape);
    const T *out = b.out.head(at.batch, at.head) + query * b.out.token_stride,
            *grad_out = b.grad_out.head(at.batch, at.head) + query * b.grad_out.token_stride;
    float sum = 0;
    for (int d = lane; d < D; d += 32) sum += widen(out[d]) * widen(grad_out[d]);
    sum = sum_over<32>(sum);
    if (lane == 0) b.delta[b.shape.row(at.batch, at.head, query)] = sum;
}

inline void launch_delta(const AttentionBackward<T>& b, cudaStream_t stream) {
    launch(gradient_delta, grid_per_head(b.shape, b.shape.length, 4), dim3(128), 0, stream, b);
}

// dk and dv of the block's 32 keys; with Atomics also their part of dq, added to `dq_sums` (B, H, T, D).
template <bool Atomics>
__global__ void __launch_bounds__(kTileThreads) gradient_of_keys(const AttentionBackward<T> b, float* dq_sums) {
    __shared__ SmallTile k_tile, q_tile, grad_tile;
    __shared__ float score_grads[kSmallTile][kSmallTile + 1];  // (key, query); one more, so that keys differ in bank
    const Head at(b.shape);
    const Quarter mine;
    const int length = b.shape.length, first = blockIdx.x * kSmallTile, key = first + mine.row;
    Quarter::Columns k, v, dk = {}, dv = {};
    load_small(q_tile, b.v, at, first, length);
    load_small(k_tile, b.k, at, first, length);
    __syncthreads();
    mine.load(v, q_tile[mine.row]);
    mine.load(k, k_tile[mine.row]);

    for (int query = first; query < length; query += kSmallTile) {
        __syncthreads();  // the tiles before have been used
        load_small(q_tile, b.q, at, query, length);
        load_small(grad_tile, b.grad_out, at, query, length);
        __syncthreads();
        for (int i = 0; i < kSmallTile; ++i) {
            const float score = mine.dot(k, q_tile[i]), grad_p = mine.dot(v, grad_tile[i]);
            const Weight weight(b, at, query + i, key, score, grad_p);
            mine.add(dv, weight.p, grad_tile[i]);
            mine.add(dk, weight.grad, q_tile[i]);
            if (Atomics && mine.part == 0) score_grads[mine.row][i] = weight.grad;
        }
        if constexpr (Atomics) {
            __syncthreads();
            for (int i = threadIdx.x; i < kSmallTile * D && query + i / D < length; i += kTileThreads) {
                float sum = 0;
                for (int j = 0; j < kSmallTile; ++j) sum += score_grads[j][i / D] * k_tile[j][i % D];
                ptx::red_add(dq_sums + b.shape.row(at.batch, at.head, query) * D + i, sum);
            }
        }
    }
    if (key >= length) return;
    mine.store(dk, kScale, b.dk.head(at.batch, at.head) + key * b.dk.token_stride);
    mine.store(dv, 1, b.dv.head(at.batch, at.head) + key * b.dv.token_stride);
}

template <bool Atomics>
void launch_keys(const AttentionBackward<T>& b, float* dq_sums, cudaStream_t stream) {
    const dim3 grid = grid_per_head(b.shape, b.shape.length, kSmallTile);
    launch(gradient_of_keys<Atomics>, grid, dim3(kTileThreads), 0, stream, b, dq_sums);
}

__global__ void zero_sums(const AttentionBackward<T> b, float* dq_sums) {
    dq_sums[b.shape.row(0, blockIdx.y, blockIdx.x) * D + threadIdx.x] = 0;
}

__global__ void round_sums(const AttentionBackward<T> b, const float* dq_sums) {
    const Head at(b.shape);
    const int query = blockIdx.x, d = threadIdx.x;
    b.dq.head(at.batch, at.head)[query * b.dq.token_stride + d] =
        narrow<T>(dq_sums[b.shape.row(at.batch, at.head, query) * D + d] * kScale);
}

}  // namespace slm::ladder

extern "C" void attention_backward_recompute(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto b = backward_arguments(tensors, numbers);
    const auto stream = stream_of(numbers);
    const AttentionShape& s = b.shape;
    float* dq_sums = b.delta + int64_t{s.batch} * s.heads * s.length;  // (B, H, T, D), behind delta
    launch_delta(b, stream);
    launch(zero_sums, grid_per_head(s, s.length, 1), dim3(D), 0, stream, b, dq_sums);
    launch_keys<true>(b, dq_sums, stream);
    launch(round_sums, grid_per_head(s, s.length, 1), dim3(D), 0, stream, b, dq_sums);
}
