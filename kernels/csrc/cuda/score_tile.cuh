// A 16 x 16 tile of scores in a warp's accumulators, and what attention does with it: masks, dropout, gradients.
#pragma once

#include "attention_exact.cuh"
#include "fragments.cuh"

namespace slm::cuda {

// Scores of queries query … query + 15 and keys key … key + 15, both from a multiple of 16 on, with the queries as rows,
// or as columns where Transposed.
template <bool Transposed>
struct ScoreTile {
    int query, key;

    // The position of element e of accumulator n of this lane, from the tile's first query and key.
    static __device__ __forceinline__ int row(int e) { return threadIdx.x % 32 / 4 + e / 2 * 8; }
    static __device__ __forceinline__ int column(int n, int e) { return 8 * n + threadIdx.x % 4 * 2 + e % 2; }
    static __device__ __forceinline__ int query_of(int n, int e) { return Transposed ? column(n, e) : row(e); }
    static __device__ __forceinline__ int key_of(int n, int e) { return Transposed ? row(e) : column(n, e); }

    // Whether any query of the tile sees any of its keys; whether any does not.
    __device__ __forceinline__ bool any_seen(const AttentionShape& s) const {
        return key <= query && query - key - 15 < s.window;
    }
    __device__ __forceinline__ bool any_hidden(const AttentionShape& s) const {
        return key >= query || query + 15 - key >= s.window;
    }
    __device__ __forceinline__ bool hidden(const AttentionShape& s, int n, int e) const {
        const int distance = query + query_of(n, e) - key - key_of(n, e);
        return distance < 0 || distance >= s.window;
    }

    // The dropout factor of each element.
    __device__ __forceinline__ void factors(const Dropout<float>& dropout, int batch, int head,
                                            Accumulator<16>& factor) const {
        const bool right = key % 32 != 0;  // half of the 32 columns that share a call of Philox
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
            const PhiloxWords words =
                philox(dropout_counter(batch, head, query + query_of(0, odd), key + key_of(0, odd)), dropout.seed);
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int down = Transposed ? n : half, across = Transposed ? half : n;
                    const uint32_t word = right ? words.word[2 * down + 1] : words.word[2 * down];
                    factor[n][2 * half + odd] = dropout.factor(word >> 16 * across & 0xFFFF);
                }
        }
    }

    // Turns the scores into P f, and grad = grad_out v^T into dS / scale (attention_simple.cuh). lse and delta: of the
    // tile's 16 queries.
    __device__ __forceinline__ void differentiate(const AttentionShape& s, const Dropout<float>& dropout, int batch,
                                                  int head, const float* lse, const float* delta,
                                                  Accumulator<16>& score, Accumulator<16>& grad) const {
        const float scale = static_cast<float>(s.scale);
        const bool edge = any_hidden(s);
        Accumulator<16> factor;
        if (s.seed != nullptr) factors(dropout, batch, head, factor);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = query_of(n, e);
                const float exponent = rounded_product(score[n][e], scale) - lse[row];
                float p = ptx::exp2_approx(exponent * static_cast<float>(kLog2E));
                if (edge && hidden(s, n, e)) p = 0;
                const float f = s.seed != nullptr ? factor[n][e] : 1.0f;
                score[n][e] = p * f;
                grad[n][e] = p * (f * grad[n][e] - delta[row]);
            }
    }
};

// Zeroes the weights that dropout drops in two tiles side by side (key: a multiple of 32), queries as rows: the eight
// weights of one call of Philox all belong to one lane.
__device__ __forceinline__ void drop(const AttentionShape& s, uint64_t seed, int batch, int head, int query, int key,
                                     Accumulator<16>& left, Accumulator<16>& right) {
    using At = ScoreTile<false>;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
        const PhiloxWords words =
            philox(dropout_counter(batch, head, query + At::row(0), key + At::column(0, odd)), seed);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if ((words.word[2 * half] >> 16 * n & 0xFFFF) >= s.threshold) left[n][2 * half + odd] = 0;
                if ((words.word[2 * half + 1] >> 16 * n & 0xFFFF) >= s.threshold) right[n][2 * half + odd] = 0;
            }
    }
}

// A 16 x 16 tile of dS^T, keys as rows, as 16 bits in shared memory. ldmatrix reads eight rows of 32 bytes: the halves
// of rows 4 to 7 are swapped so that they fall on the banks that rows 0 to 3 leave free.
template <class T>
struct ScoreGradientTile {
    T* tile;  // 256 elements

    __device__ __forceinline__ T* at(int key, int chunk) const {
        return tile + key * 16 + (chunk ^ (key >> 2 & 1)) * 8;
    }

    // Stores the operand A that holds the tile.
    __device__ __forceinline__ void store(const Operand& a) const {
        const int g = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll
        for (int r = 0; r < 4; ++r) *reinterpret_cast<uint32_t*>(at(g + r % 2 * 8, r / 2) + pair) = a[r];
    }
    // Loads its transpose, queries as rows, as operand A.
    __device__ __forceinline__ void load_transposed(Operand& a) const {
        const int lane = threadIdx.x % 32;
        ptx::ldmatrix_x4_trans(a, at(lane / 16 * 8 + lane % 8, lane / 8 % 2));
    }
};

// delta = sum of grad_out * out of one query, 0 from `length` on, in each of the four neighbouring lanes that share it.
template <class T>
__device__ __forceinline__ float row_delta(const AttentionBackward<T>& p, int batch, int head, int query) {
    const T* out = p.out.head(batch, head) + query * p.out.token_stride;
    const T* grad_out = p.grad_out.head(batch, head) + query * p.grad_out.token_stride;
    float sum = 0;
    for (int column = threadIdx.x % 4 * 8; query < p.shape.length && column < p.shape.width; column += 32) {
        const auto a = Pack<T, 8>::load(out + column);
        const auto b = Pack<T, 8>::load(grad_out + column);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum += widen(a.at[e]) * widen(b.at[e]);
    }
    return sum_over<4>(sum);
}

// lse and delta of queries first … first + rows - 1, zeros from `length` on, to shared memory; four lanes take a row.
template <int Threads, class T>
__device__ __forceinline__ void load_statistics(const AttentionBackward<T>& p, int batch, int head, int first, int rows,
                                                float* lse, float* delta) {
    for (int row = threadIdx.x / 4; row < rows; row += Threads / 4) {
        const int query = first + row;
        const float sum = row_delta(p, batch, head, query);
        if (threadIdx.x % 4 != 0) continue;
        delta[row] = sum;
        lse[row] = query < p.shape.length ? p.lse[p.shape.row(batch, head, query)] : 0.0f;
    }
}

}  // namespace slm::cuda
