// Tiles of 16 x 16 scores in a warp's accumulators, and what attention does with them: masks, dropout, gradients.
#pragma once

#include "attention.cuh"
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

    // The tile that is `down` rows and `across` columns away.
    __device__ __forceinline__ ScoreTile moved(int down, int across) const {
        return Transposed ? ScoreTile{query + across, key + down} : ScoreTile{query + down, key + across};
    }

    // Whether any of `Queries` queries from the tile's first on sees any of `Keys` keys; whether all see all, and exist.
    template <int Queries = 16, int Keys = 16>
    __device__ __forceinline__ bool any_seen(const AttentionShape& s) const {
        return key < query + Queries && query - key - Keys + 1 < s.window;
    }
    template <int Queries = 16, int Keys = 16>
    __device__ __forceinline__ bool all_seen(const AttentionShape& s) const {
        return key + Keys <= query + 1 && query + Queries - key <= s.window && query + Queries <= s.length;
    }
    // Whether a query of the tile sees a key of it. Queries beyond the end see none.
    __device__ __forceinline__ bool sees(const AttentionShape& s, int of_query, int of_key) const {
        const int distance = query + of_query - key - of_key;
        return distance >= 0 && distance < s.window && query + of_query < s.length;
    }
    __device__ __forceinline__ bool hidden(const AttentionShape& s, int n, int e) const {
        return !sees(s, query_of(n, e), key_of(n, e));
    }
    // Whether row `row` of this tile, as the left factor of a product, sees row k of the right one.
    __device__ __forceinline__ bool takes(const AttentionShape& s, int row, int k) const {
        return Transposed ? sees(s, k, row) : sees(s, row, k);
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
};

// lse and delta of 16 queries, as far as this lane's elements of a tile need them: its rows, or its columns.
template <bool Transposed>
struct QueryStatistics {
    static constexpr int kCount = Transposed ? 4 : 2;
    alignas(8) float lse[kCount], delta[kCount];

    static __device__ __forceinline__ int of(int n, int e) { return Transposed ? 2 * n + e % 2 : e / 2; }

    // From those of the 16 queries in shared memory, aligned to 8 bytes: columns come in pairs.
    __device__ __forceinline__ void load(const float* all_lse, const float* all_delta) {
        using Numbers = std::conditional_t<Transposed, float2, float>;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int query = Transposed ? ScoreTile<true>::query_of(i, 0) : ScoreTile<false>::query_of(0, 2 * i);
            reinterpret_cast<Numbers*>(lse)[i] = *reinterpret_cast<const Numbers*>(all_lse + query);
            reinterpret_cast<Numbers*>(delta)[i] = *reinterpret_cast<const Numbers*>(all_delta + query);
        }
    }
};

// Turns J x M tiles of scores, of which `at` is the first, into P f, and grad = grad_out v^T into dS / scale
// (attention_simple.cuh). Tile [j][m] is 16 m rows down and 16 j columns across. What is not seen is computed as well,
// and then left out by code apart, which few tiles need.
template <bool Drops, bool Transposed, int J, int M, int S>
__device__ __forceinline__ void differentiate(const AttentionShape& s, float scale, const Dropout<float>& dropout,
                                              int batch, int head, const ScoreTile<Transposed>& at, bool all_seen,
                                              const QueryStatistics<Transposed> (&statistics)[S],
                                              Accumulator<16> (&score)[J][M], Accumulator<16> (&grad)[J][M]) {
    static_assert(S == (Transposed ? J : M));
    using Statistics = QueryStatistics<Transposed>;
#pragma unroll
    for (int i = 0; i < J * M; ++i) {
        const int j = i / M, m = i % M;
        const Statistics& of = statistics[Transposed ? j : m];
        Accumulator<16> factor;
        if constexpr (Drops) at.moved(16 * m, 16 * j).factors(dropout, batch, head, factor);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                float &weight = score[j][m][n][e], &gradient = grad[j][m][n][e];
                const float exponent = rounded_product(weight, scale) - of.lse[Statistics::of(n, e)];
                const float p = ptx::exp2_approx(exponent * static_cast<float>(kLog2E));
                const float f = Drops ? factor[n][e] : 1.0f, delta = of.delta[Statistics::of(n, e)];
                weight = p * f;
                gradient = p * (f * gradient - delta);
            }
    }
    if (all_seen) return;
#pragma unroll
    for (int i = 0; i < J * M * 8; ++i) {
        const int j = i / 8 / M, m = i / 8 % M, n = i / 4 % 2, e = i % 4;
        const bool hidden = at.moved(16 * m, 16 * j).hidden(s, n, e);
        score[j][m][n][e] = hidden ? 0.0f : score[j][m][n][e];
        grad[j][m][n][e] = hidden ? 0.0f : grad[j][m][n][e];
    }
}

// J x M tiles as left factors of products.
template <class T, int J, int M>
__device__ __forceinline__ void as_operands(const Accumulator<16> (&tiles)[J][M], Operand (&a)[J][M]) {
#pragma unroll
    for (int i = 0; i < J * M; ++i) as_operand<T>(tiles[i / M][i % M], a[i / M][i % M]);
}

// c[m] += a[j][m], the tile 16 m rows down and 16 j columns across from `at`, times rows row + 16 j … row + 16 j + 15 of
// a tile, given by down(tile): for j from Begin to End, and for columns from 16 first on, as many as c has.
template <class T, int D, int Begin, int End, bool Transposed, int J, int M, int N>
__device__ __forceinline__ void multiply_some(const AttentionShape& s, const ScoreTile<Transposed>& at, bool all_seen,
                                              const Operand (&a)[J][M], ptx::Shared right, int row,
                                              float (&c)[M][N][4], int first = 0) {
    static_assert(End <= J);
    if (all_seen || !Tile<T, D>::template any_not_finite<16 * (End - Begin)>(right, row + 16 * Begin)) {
#pragma unroll
        for (int j = Begin; j < End; ++j) Tile<T, D>::multiply(a[j], right, row + 16 * j, c, first);
    } else {
#pragma unroll
        for (int j = Begin; j < End; ++j)
            Tile<T, D>::multiply_seen(a[j], right, row + 16 * j, c, first, [&](int m, int down, int k) {
                return at.moved(16 * m, 16 * j).takes(s, down, k);
            });
    }
}

// The same with all tiles and columns.
template <class T, int D, bool Transposed, int J, int M>
__device__ __forceinline__ void multiply_tiles(const AttentionShape& s, const ScoreTile<Transposed>& at, bool all_seen,
                                               const Operand (&a)[J][M], ptx::Shared right, int row,
                                               Accumulator<D> (&c)[M]) {
    multiply_some<T, D, 0, J>(s, at, all_seen, a, right, row, c);
}

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

// Tiles of 16 x 16 of dS^T, keys as rows, as 16 bits in shared memory, one after the other. ldmatrix reads eight rows of
// 32 bytes: the halves of rows 4 to 7 are swapped so that they fall on the banks that rows 0 to 3 leave free.
template <class T>
struct ScoreGradientTiles {
    static constexpr int kBytes = 256 * sizeof(T);  // of a tile

    ptx::Shared own, turned;  // this lane's element of an accumulator in the first tile; where it points ldmatrix

    // keep: in registers, as by ptx::kept.
    __device__ __forceinline__ ScoreGradientTiles(T* tiles, bool keep)
        : own(ptx::kept(at(tiles, threadIdx.x % 32 / 4, 0) + threadIdx.x % 4 * 4, keep)),
          turned(ptx::kept(at(tiles, threadIdx.x % 32 / 16 * 8 + threadIdx.x % 8, threadIdx.x % 16 / 8), keep)) {}

    static __device__ __forceinline__ ptx::Shared at(T* tiles, int key, int half) {
        return ptx::shared_address(tiles + key * 16 + (half ^ (key >> 2 & 1)) * 8);
    }
    // Stores the operand A that holds tile `which`.
    __device__ __forceinline__ void store(int which, const Operand& a) const {
#pragma unroll
        for (int r = 0; r < 4; ++r)
            ptx::store_shared((own ^ 16 * (r / 2)) + (which * kBytes + r % 2 * kBytes / 2), a[r]);
    }
    // Loads the transpose of tile `which`, queries as rows, as operand A.
    __device__ __forceinline__ void load_transposed(int which, Operand& a) const {
        ptx::ldmatrix_x4_trans(a, turned + which * kBytes);
    }
};

// delta = sum of grad_out * out of one query, 0 from `length` on, in each of the four neighbouring lanes that share it.
template <class T>
__device__ __forceinline__ float row_delta(const AttentionBackward<T>& p, int batch, int head, int query) {
    const T* out = p.out.head(p.shape, batch, head) + query * p.out.token_stride;
    const T* grad_out = p.grad_out.head(p.shape, batch, head) + query * p.grad_out.token_stride;
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
