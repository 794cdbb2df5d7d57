// The online softmax of rung 2, for 16 queries of a warp whose scores with 64 keys lie in tensor-core accumulators.
//
// Lane 4 g + t holds of every 8 columns the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1): four lanes
// share a row, so its maximum and its sum are two shuffles away. Used by the forward rungs from 3 on.
#pragma once

#include "arguments.cuh"
#include "fragments.cuh"

namespace slm::ladder {

inline constexpr int kWarps = 4, kThreads = 32 * kWarps;
inline constexpr int kQueries = 16 * kWarps, kKeys = 64;  // of a block; of a tile

struct ScoreRows {
    using Scores = Accumulator<16>[kKeys / 16][1];  // element e of column block 8 n of tile j: [j][0][n][e]

    int query;  // of the first row
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // of rows g and g + 8; the sum of this lane's columns
    Accumulator<D> out[1] = {};

    // Calls step(score, row half, column) for each score of this lane.
    template <class Step>
    static __device__ __forceinline__ void each(Scores& score, const Step& step) {
#pragma unroll
        for (int i = 0; i < kKeys / 2; ++i) {
            const int j = i / 8, n = i / 4 % 2, e = i % 4;
            step(score[j][0][n][e], e / 2, 16 * j + 8 * n + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2);
        }
    }
    __device__ __forceinline__ int row(int half) const {
        return query + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * half;
    }

    // -inf where the key of a score, counted from `key`, lies in the future.
    __device__ __forceinline__ void mask(int key, Scores& score) const {
        each(score, [&](float& x, int half, int column) {
            if (key + column > row(half)) x = -INFINITY;
        });
    }

    // Scores to weights under the maximum so far, to which the sum and the result so far are scaled down.
    __device__ __forceinline__ void softmax(Scores& score) {
        float best[2] = {maximum[0], maximum[1]};
        each(score, [&](float& x, int half, int) { best[half] = fmaxf(best[half], x); });
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            best[half] = max_over<4>(best[half]);
            const float rescale = ptx::exp2_approx((maximum[half] - best[half]) * kScaleLog2);
            maximum[half] = best[half];
            sum[half] *= rescale;
#pragma unroll
            for (int i = 0; i < D / 4; ++i) out[0][i / 2][2 * half + i % 2] *= rescale;
        }
        each(score, [&](float& x, int half, int) {
            x = ptx::exp2_approx((x - maximum[half]) * kScaleLog2);
            sum[half] += x;
        });
    }

    // Writes the result and the log-sum-exp of the rows before `length`.
    __device__ __forceinline__ void store(const AttentionForward<T>& p, int batch, int head) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float total = sum_over<4>(sum[half]);
            if (row(half) >= p.shape.length) continue;
            T* to = p.out.head(batch, head) + row(half) * p.out.token_stride + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; ++n)
                *reinterpret_cast<uint32_t*>(to + 8 * n) =
                    pack_pair<T>(out[0][n][2 * half] / total, out[0][n][2 * half + 1] / total);
            if (lane % 4 == 0)
                p.lse[p.shape.row(batch, head, row(half))] = rounded_product(maximum[half], kScale) + logf(total);
        }
    }
};

}  // namespace slm::ladder
