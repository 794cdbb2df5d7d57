// Causal attention of any length on tensor cores, forward: half and bfloat16, D up to 128 in multiples of 8.
//
// FlashAttention-2 (Dao 2023). A block of four warps takes a tile of queries and walks over tiles of 64 keys, from the
// diagonal back: while a tile is multiplied the next one is on its way (cp.async into the other of two stages), and one
// barrier per tile tells that it has come and that the stage before it is free. Scores never leave the registers; only
// tiles that touch the diagonal or the edge of the window are masked; the tiles of queries with most keys start first.
//
//   M         row tiles of a warp: two, so every fragment of k and v read from shared memory serves two products; one
//             with dropout, whose random bits take registers, and for which there is code apart
//   shared    (64 M + 256) D 16-bit elements: 48 KiB at D = 64, 96 KiB at D = 128
//
// Exponents are one multiply-add: 2^(scale * score - shift), with scale times log2 e, and shift the scaled maximum of
// the row, rounded. A shift may be any number near the maximum, if all that follows uses the same: log_sum_exp below
// and the divisor do, so that a weight that outdoes all others is 1 in the result and again in the backward, however large
// the scores.
#pragma once

#include <cfloat>

#include "score_tile.cuh"

namespace slm::cuda {

inline constexpr int kLongWarps = 4, kLongThreads = 32 * kLongWarps;
inline constexpr int kLongKeys = 64;  // of a tile

template <int D, bool Drops>
inline constexpr int kLongRowTiles = Drops ? 1 : 2;  // of a warp

// M tiles of 16 rows of a warp, their result so far, and the online softmax (Milakov and Gimelshein 2018).
template <class T, int D, int M, bool Drops>
struct LongRows {
    using Memory = Tile<T, D>;
    using Queries = typename Memory::template Operands<M, false>;
    using Scores = Accumulator<16>[kLongKeys / 16][M];

    int query;                            // of the first row
    float maximum[M][2], shift[M][2];     // of rows g and g + 8 of each tile; the shift is the maximum times the scale
    float sum[M][2] = {};                 // of this lane
    Accumulator<D> out[M] = {};

    // Maxima begin at a number that is below every score and finite, times the scale as well: a window may hide a whole
    // tile, whose weights then are 0. scale: as of softmax.
    __device__ __forceinline__ LongRows(int query, float scale) : query(query) {
        const float least = -FLT_MAX / fmaxf(scale, 1.0f);
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
            maximum[i / 2][i % 2] = least;
            shift[i / 2][i % 2] = rounded_product(least, scale);
        }
    }

    // Calls step(j, m, n, e) for each score of this lane.
    template <class Step>
    static __device__ __forceinline__ void each(const Step& step) {
#pragma unroll
        for (int i = 0; i < kLongKeys / 16 * M * 8; ++i) step(i / (8 * M), i / 8 % M, i / 4 % 2, i % 4);
    }

    // The tile of the first row and of the key `key`.
    __device__ __forceinline__ ScoreTile<false> tile(int m, int key) const { return {query + 16 * m, key}; }

    // -inf where a row does not see a key of the tile that begins at `key`.
    __device__ __forceinline__ void mask(const AttentionShape& s, int key, Scores& score) const {
        each([&](int j, int m, int n, int e) {
            score[j][m][n][e] = tile(m, key + 16 * j).hidden(s, n, e) ? -INFINITY : score[j][m][n][e];
        });
    }

    // Scores to weights under the maximum so far; the result so far is rescaled to it. scale: that of the scores, above
    // 0, times log2 e.
    __device__ __forceinline__ void softmax(float scale, Scores& score) {
        float rescale[M][2];
        each([&](int j, int m, int n, int e) { maximum[m][e / 2] = fmaxf(maximum[m][e / 2], score[j][m][n][e]); });
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
            const int m = i / 2, half = i % 2;
            const float before = shift[m][half];
            maximum[m][half] = max_over<4>(maximum[m][half]);
            shift[m][half] = rounded_product(maximum[m][half], scale);
            rescale[m][half] = ptx::exp2_approx(before - shift[m][half]);
            sum[m][half] *= rescale[m][half];
        }
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < D / 2; ++i) out[m][i / 4][i % 4] *= rescale[m][i % 4 / 2];
        each([&](int j, int m, int n, int e) {
            score[j][m][n][e] = ptx::exp2_approx(fmaf(score[j][m][n][e], scale, -shift[m][e / 2]));
            sum[m][e / 2] += score[j][m][n][e];
        });
    }

    // The weight of a row's maximum: not 1, but 2 to what rounding took from the shift. scale: as of softmax.
    static __device__ __forceinline__ float largest_weight(float scale, float maximum) {
        return ptx::exp2_approx(fmaf(maximum, scale, -rounded_product(maximum, scale)));
    }

    // What a row of the result is divided by: the sum of its weights, of which the largest counts as the products saw it,
    // rounded to T. So the result of a weight that outdoes all others is its value, to the bit.
    static __device__ __forceinline__ float divisor(float scale, float maximum, float sum) {
        const float largest = largest_weight(scale, maximum);
        return sum + (widen(narrow<T>(largest)) - largest);
    }

    // ln of the sum of e^(scale * score) of a row, from the sum of its weights.
    static __device__ __forceinline__ float log_sum_exp(double scale, float maximum, float sum) {
        return rounded_product(maximum, static_cast<float>(scale)) +
               logf(sum / largest_weight(static_cast<float>(scale * kLog2E), maximum));
    }

    __device__ __forceinline__ void drop(const AttentionShape& s, int batch, int head, int key, Scores& score) const {
        const uint64_t seed = static_cast<uint64_t>(*s.seed);
#pragma unroll
        for (int i = 0; i < kLongKeys / 32 * M; ++i) {
            const int j = i / M * 2, m = i % M;
            cuda::drop(s, seed, batch, head, query + 16 * m, key + 16 * j, score[j][m], score[j + 1][m]);
        }
    }

    // Takes in the keys and values of one tile; k by Tile::across and v by Tile::down.
    __device__ __forceinline__ void take(const AttentionShape& s, float scale, int batch, int head, int key,
                                         const Queries& q, ptx::Shared k, ptx::Shared v) {
        const bool all_seen = tile(0, key).template all_seen<16 * M, kLongKeys>(s);
        Scores score = {};
        Memory::multiply_rows(q, k, 0, score);
        if (!all_seen) mask(s, key, score);
        softmax(scale, score);
        if constexpr (Drops) drop(s, batch, head, key, score);
        Operand weights[kLongKeys / 16][M];
        as_operands<T>(score, weights);
        multiply_tiles<T, D>(s, tile(0, key), all_seen, weights, v, 0, out);
    }
};

// Shared memory: the rows of q, then two stages of a tile of k and one of v.
template <class T, int D, bool Drops>
__global__ void __launch_bounds__(kLongThreads, 2) attention_long_forward(const AttentionForward<T> all) {
    constexpr int M = kLongRowTiles<D, Drops>, kRows = 16 * M * kLongWarps, kTileBytes = kLongKeys * D * sizeof(T);
    using Memory = Tile<T, D>;
    using Copier = typename Memory::template Copier<kLongThreads>;
    const HeadTile at(all.shape, all.shape.heads, kRows, true);
    if (at.is_empty()) return;
    const AttentionForward<T> p = at.document(all);
    const AttentionShape& s = p.shape;
    const int first_key = max(0, at.first - s.window + 1) / kLongKeys * kLongKeys;
    const int last_key = (min(s.length, at.first + kRows) - 1) / kLongKeys * kLongKeys;
    const int kv_head = s.kv_head(at.head);
    const auto from_last = [&](const Heads<const T>& x) {
        return Copier(x.head(s, at.batch, kv_head) + last_key * x.token_stride, x.token_stride);
    };
    typename Memory::template PairCopier<kLongThreads> tiles{from_last(p.k), from_last(p.v)};
    T *q_tile = dynamic_shared<T>(), *stages = q_tile + kRows * D;
    const ptx::Shared place = ptx::kept(Copier::place(stages));
    const auto load_keys = [&](int key, int stage) {
        tiles.start(place + stage, key, kLongKeys, s.length, s.width);
        tiles.move(-kLongKeys);
        ptx::cp_async_commit();
    };
    Memory::template load_async<kLongThreads>(q_tile, p.q.head(s, at.batch, at.head), p.q.token_stride, at.first, kRows,
                                              s.length, s.width);
    load_keys(last_key, 0);

    const float scale = static_cast<float>(s.scale * kLog2E);
    const int row = warp_of_block() * 16 * M;
    LongRows<T, D, M, Drops> rows(at.first + row, scale);
    typename LongRows<T, D, M, Drops>::Queries q;
    q.load(q_tile, row);
    const ptx::Shared across = ptx::kept(Memory::across(stages)), down = ptx::kept(Memory::down(stages) + kTileBytes);
    for (int key = last_key, stage = 0; key >= first_key; key -= kLongKeys, stage ^= 2 * kTileBytes) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key > first_key) load_keys(key - kLongKeys, stage ^ 2 * kTileBytes);
        if (key < rows.query + 16 * M) rows.take(s, scale, at.batch, at.head, key, q, across + stage, down + stage);
    }

    const float kept = Drops ? 65536.0f / s.threshold : 1.0f;
#pragma unroll
    for (int m = 0; m < M; ++m) {
        const int query = rows.query + 16 * m;
        float sum[2], factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            sum[half] = sum_over<4>(rows.sum[m][half]);
            factor[half] = kept / rows.divisor(scale, rows.maximum[m][half], sum[half]);
        }
        Memory::store(rows.out[m], factor[0], factor[1], q_tile, row + 16 * m, p.out.head(s, at.batch, at.head),
                      p.out.token_stride, query, s.length, s.width);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int mine = query + ScoreTile<false>::row(2 * half);
            if (threadIdx.x % 4 == 0 && mine < s.length)
                p.lse[s.row(at.batch, at.head, mine)] =
                    rows.log_sum_exp(s.scale, rows.maximum[m][half], sum[half]);
        }
    }
}

template <class T>
void attention_long(const AttentionForward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    const auto run = [&](auto width, auto drops) {
        constexpr int D = width;
        constexpr bool Drops = drops;
        constexpr int kRows = 16 * kLongRowTiles<D, Drops> * kLongWarps;
        const std::size_t shared = (kRows + 4 * kLongKeys) * D * sizeof(T);
        launch(attention_long_forward<T, D, Drops>, tile_grid(s, s.heads, kRows), dim3(kLongThreads),
               shared, stream, p);
    };
    with_padded_width(
        s.width, [&](auto width) { s.seed == nullptr ? run(width, std::false_type()) : run(width, std::true_type()); });
}

}  // namespace slm::cuda
