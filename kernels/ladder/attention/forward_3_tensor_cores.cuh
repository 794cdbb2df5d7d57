// Rung 3: the two products run on the tensor cores.
//
// mma.m16n8k16 is 2048 multiply-adds by one instruction of a warp, where a multiply-add per lane is 32. A warp owns 16
// queries; q, k and v lie in shared memory as they do in the tensor, rows of 128 bytes, and a lane loads the elements
// of its fragments with ordinary loads of 4 bytes (of v: 2 bytes, for its pairs lie in two rows).
//
// Two accumulators of scores side by side are, rounded, the left operand of the second product (as_operand): the
// weights never leave the registers. What is left to mend: eight rows at a distance of 128 bytes lie in the same banks,
// so a load of a fragment of q or k takes eight turns, and one of v four.
#pragma once

#include "score_rows.cuh"

namespace slm::ladder {

// Rows [first, first + 64) of a head, zeros beyond `length`; place(tile, row, chunk) is where 16 bytes go.
template <class Place>
__device__ __forceinline__ void load_rows(T* tile, const T* head, int64_t stride, int first, int length,
                                          const Place& place) {
    for (int i = threadIdx.x; i < 64 * D / 8; i += kThreads) {
        const int row = i / (D / 8), chunk = i % (D / 8);
        uint4 words = make_uint4(0, 0, 0, 0);
        if (first + row < length) words = *reinterpret_cast<const uint4*>(head + (first + row) * stride + chunk * 8);
        *reinterpret_cast<uint4*>(place(tile, row, chunk)) = words;
    }
}

// Two elements of one row, as they lie.
__device__ __forceinline__ uint32_t pair_at(const T* tile, int row, int column) {
    return *reinterpret_cast<const uint32_t*>(tile + row * D + column);
}
// The elements of one column in two rows.
__device__ __forceinline__ uint32_t pair_below(const T* tile, int row, int column) {
    return pack_pair<T>(widen(tile[row * D + column]), widen(tile[(row + 1) * D + column]));
}

// score (16 x 64) = rows row … row + 15 of q times the transpose of k
__device__ __forceinline__ void multiply_plain_keys(const T* q, int row, const T* k, ScoreRows::Scores& score) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
    for (int d = 0; d < D; d += 16) {
        const Operand a = {pair_at(q, row + g, d + t), pair_at(q, row + g + 8, d + t), pair_at(q, row + g, d + 8 + t),
                           pair_at(q, row + g + 8, d + 8 + t)};
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
            ptx::mma_m16n8k16<T>(score[n / 2][0][n % 2], a, pair_at(k, 8 * n + g, d + t),
                                 pair_at(k, 8 * n + g, d + 8 + t));
    }
}

// out (16 x D) += weights (16 x 64) times v
__device__ __forceinline__ void multiply_plain_values(const ScoreRows::Scores& weight, const T* v,
                                                      Accumulator<D>& out) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
        Operand a;
        as_operand<T>(weight[j][0], a);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            ptx::mma_m16n8k16<T>(out[n], a, pair_below(v, 16 * j + t, 8 * n + g),
                                 pair_below(v, 16 * j + 8 + t, 8 * n + g));
    }
}

__global__ void __launch_bounds__(kThreads) attend_tensor_cores(const AttentionForward<T> p) {
    __shared__ __align__(16) T q[kQueries * D], k[kKeys * D], v[kKeys * D];
    const AttentionShape& s = p.shape;
    const Head at(s);
    const auto plain = [](T* tile, int row, int chunk) { return tile + row * D + chunk * 8; };
    const auto load = [&](T* tile, const Heads<const T>& x, int first) {
        load_rows(tile, x.head(at.batch, at.head), x.token_stride, first, s.length, plain);
    };
    const int first = blockIdx.x * kQueries, row = threadIdx.x / 32 * 16;
    load(q, p.q, first);
    ScoreRows rows{first + row};
    for (int key = 0; key < s.length; key += kKeys) {
        __syncthreads();  // the tiles before have been used
        load(k, p.k, key);
        load(v, p.v, key);
        __syncthreads();
        ScoreRows::Scores score = {};
        multiply_plain_keys(q, row, k, score);
        rows.mask(key, score);
        rows.softmax(score);
        multiply_plain_values(score, v, rows.out[0]);
    }
    rows.store(p, at.batch, at.head);
}

}  // namespace slm::ladder

extern "C" void attention_forward_tensor_cores(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto p = forward_arguments(tensors, numbers);
    launch(attend_tensor_cores, grid_per_head(p.shape, p.shape.length, kQueries), dim3(kThreads), 0,
           stream_of(numbers), p);
}
