// Causal attention of any length on tensor cores, backward: two kernels, deterministic, or one that is faster.
//
//   attention_long_backward_q   a block takes a tile of queries and walks over the keys: dq, and delta for the other
//   attention_long_backward_kv  a block takes a tile of keys and walks over the queries from the diagonal on, and over
//                               all heads that share the keys: dk and dv
//
// The second forms the scores transposed, as attention_short_backward.cuh does, so that P^T and dS^T are operands as
// they come. A warp forms 32 columns of scores at a time, for two row tiles where its results leave room for their
// registers, so that most fragments read from shared memory serve two products or more.
//
// Each gradient has one owner, which adds in one order. The price is that scores and grad_out v^T are formed twice:
// seven products where five would do. With dq_sum the second kernel runs alone, hands dS over through shared memory and
// adds up dq atomically (query_sum.cuh): the default where the order cannot matter, elsewhere only if the caller asks. All
// kernels pipeline as the forward does: two stages, one barrier per tile, and one more for dS.
#pragma once

#include "query_sum.cuh"

namespace slm::cuda {

inline constexpr int kBackwardWarps = 4, kBackwardThreads = 32 * kBackwardWarps;
inline constexpr int kStep = 2;  // column tiles that a warp forms at a time

// The tiles and the shared memory of attention_long_backward_q.
template <class T, int D, bool Drops>
struct QueryGradients {
    static constexpr int M = Drops ? 1 : 2, kRows = 16 * M * kBackwardWarps;  // queries
    static constexpr int kColumns = D <= 64 ? 64 : 32;                        // keys of a stage
    static constexpr int kRowBytes = kRows * D * sizeof(T), kColumnBytes = kColumns * D * sizeof(T);
    // Rows of q and grad_out, two stages of k and v, then lse and delta of the rows.
    static constexpr int kShared = 2 * kRowBytes + 4 * kColumnBytes + 2 * kRows * sizeof(float);
};

// Those of attention_long_backward_kv.
template <class T, int D, bool Drops>
struct KeyGradients {
    static constexpr int M = D <= 64 && !Drops ? 2 : 1, kRows = 16 * M * kBackwardWarps;  // keys
    static constexpr int kColumns = 64;                                         // queries of a stage
    static constexpr int kRowBytes = kRows * D * sizeof(T), kColumnBytes = kColumns * D * sizeof(T);
    // Rows of k and v, two stages of q, grad_out, lse and delta; where dq is added up, dS of a stage.
    static constexpr int kStageBytes = 2 * kColumnBytes + 2 * kColumns * sizeof(float);
    static constexpr int kShared = 2 * kRowBytes + 2 * kStageBytes;
    static constexpr bool kKeeps = M == 1;  // addresses in registers: two row tiles leave none for most of them
    static constexpr int kSharedForSum = kShared + kRows * kColumns * sizeof(T);
};

template <class T, int D, bool Drops>
__global__ void __launch_bounds__(kBackwardThreads, 2) attention_long_backward_q(const AttentionBackward<T> all) {
    using Sizes = QueryGradients<T, D, Drops>;
    constexpr int M = Sizes::M, kRows = Sizes::kRows, kKeys = Sizes::kColumns, kTileBytes = Sizes::kColumnBytes;
    using Memory = Tile<T, D>;
    using Copier = typename Memory::template Copier<kBackwardThreads>;
    const HeadTile at(all.shape, all.shape.heads, kRows, true);
    if (at.is_empty()) return;
    const AttentionBackward<T> p = at.document(all);
    const AttentionShape& s = p.shape;
    const int kv_head = s.kv_head(at.head);
    const int first_key = max(0, at.first - s.window + 1) / kKeys * kKeys;
    const int last_key = (min(s.length, at.first + kRows) - 1) / kKeys * kKeys;
    T *q_tile = dynamic_shared<T>(), *grad_tile = q_tile + kRows * D, *stages = grad_tile + kRows * D;
    float *lse = reinterpret_cast<float*>(stages + 4 * kKeys * D), *delta = lse + kRows;
    const auto from_last = [&](const Heads<const T>& x) {
        return Copier(x.head(s, at.batch, kv_head) + last_key * x.token_stride, x.token_stride);
    };
    typename Memory::template PairCopier<kBackwardThreads> tiles{from_last(p.k), from_last(p.v)};
    const ptx::Shared place = ptx::kept(Copier::place(stages));
    const auto load_keys = [&](int key, int stage) {
        tiles.start(place + stage, key, kKeys, s.length, s.width);
        tiles.move(-kKeys);
        ptx::cp_async_commit();
    };
    const auto load_rows = [&](T* tile, const Heads<const T>& from) {
        Memory::template load_async<kBackwardThreads>(tile, from.head(s, at.batch, at.head), from.token_stride, at.first,
                                                      kRows, s.length, s.width);
    };
    load_rows(q_tile, p.q);
    load_rows(grad_tile, p.grad_out);
    load_keys(last_key, 0);
    load_statistics<kBackwardThreads>(p, at.batch, at.head, at.first, kRows, lse, delta);
    __syncthreads();

    const Dropout<float> dropout(s);
    const float scale = static_cast<float>(s.scale);
    const int row = warp_of_block() * 16 * M;
    QueryStatistics<false> statistics[M];
#pragma unroll
    for (int m = 0; m < M; ++m) statistics[m].load(lse + row + 16 * m, delta + row + 16 * m);
    typename Memory::template Operands<M, false> q;
    q.load(q_tile, row);
    const auto grad_out = q.following(kRows);
    const ptx::Shared across = ptx::kept(Memory::across(stages)), down = ptx::kept(Memory::down(stages));
    Accumulator<D> dq[M] = {};
    for (int key = last_key, stage = 0; key >= first_key; key -= kKeys, stage ^= 2 * kTileBytes) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (key > first_key) load_keys(key - kKeys, stage ^ 2 * kTileBytes);
#pragma unroll
        for (int j = 0; j < kKeys; j += 16 * kStep) {
            const ScoreTile<false> tile{at.first + row, key + j};
            if (!tile.any_seen<16 * M, 16 * kStep>(s)) continue;
            const bool all_seen = tile.all_seen<16 * M, 16 * kStep>(s);
            Accumulator<16> score[kStep][M] = {}, grad[kStep][M] = {};
            Memory::multiply_rows(q, across + stage, j, score);
            Memory::multiply_rows(grad_out, across + stage, j + kKeys, grad);  // v follows k
            differentiate<Drops>(s, scale, dropout, at.batch, at.head, tile, all_seen, statistics, score, grad);
            Operand gradients[kStep][M];
            as_operands<T>(grad, gradients);
            multiply_tiles<T, D>(s, tile, all_seen, gradients, down + stage, j, dq);
        }
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
        Memory::store(dq[m], scale, scale, q_tile, row + 16 * m, p.dq.head(s, at.batch, at.head), p.dq.token_stride,
                      at.first + row + 16 * m, s.length, s.width);
    for (int i = threadIdx.x; i < kRows && at.first + i < s.length; i += kBackwardThreads)
        p.delta[s.row(at.batch, at.head, at.first + i)] = delta[i];
}

// A walk over the query tiles that see a tile of keys: those of one head from the diagonal on, then of the next head.
struct QueryWalk {
    int first, end, head, query;

    __device__ __forceinline__ QueryWalk(const AttentionShape& s, int first_key, int keys, int head)
        : first(first_key),
          end(static_cast<int>(min(int64_t{s.length}, int64_t{first_key} + keys - 1 + s.window))),
          head(head),
          query(first_key) {}
    // Goes on by one tile; whether that was the last of its head.
    __device__ __forceinline__ bool advance(int queries) {
        query += queries;
        if (query < end) return false;
        query = first;
        ++head;
        return true;
    }
};

// What a thread copies for the tiles of a walk: its part of q and grad_out, and one number of lse or delta.
template <class T, class Sizes, int D>
struct QueryTiles {
    using Copier = typename Tile<T, D>::template Copier<kBackwardThreads>;
    static constexpr int kQueries = Sizes::kColumns;
    static_assert(2 * kQueries == kBackwardThreads);

    const AttentionBackward<T>& p;
    int batch;
    QueryWalk walk;
    typename Tile<T, D>::template PairCopier<kBackwardThreads> pair;  // q, grad_out
    const float* statistic;
    ptx::Shared tiles, statistics;  // where they go

    __device__ __forceinline__ QueryTiles(const AttentionBackward<T>& p, int batch, const QueryWalk& walk, T* stages,
                                          float* statistics)
        : p(p),
          batch(batch),
          walk(walk),
          pair{of(p.q), of(p.grad_out)},
          statistic(mine()),
          tiles(ptx::kept(Copier::place(stages), Sizes::kKeeps)),
          statistics(ptx::kept(ptx::shared_address(statistics + threadIdx.x), Sizes::kKeeps)) {}

    __device__ __forceinline__ Copier of(const Heads<const T>& x) const {
        return Copier(x.head(p.shape, batch, walk.head) + walk.query * x.token_stride, x.token_stride);
    }
    // The first 64 threads copy lse, the others delta.
    __device__ __forceinline__ const float* mine() const {
        const float* from = threadIdx.x < kQueries ? p.lse : p.delta;
        return from + p.shape.row(batch, walk.head, walk.query + threadIdx.x % kQueries);
    }
    // Starts copying the next tile to the stage that begins `stage` bytes after the first.
    __device__ __forceinline__ void load(unsigned stage) {
        const AttentionShape& s = p.shape;
        pair.start(tiles + stage, walk.query, kQueries, s.length, s.width);
        const int query = walk.query + static_cast<int>(threadIdx.x) % kQueries;
        ptx::cp_async<4>(statistics + stage, statistic, query < s.length);
        ptx::cp_async_commit();
        pair.move(kQueries);
        statistic += kQueries;
        if (!walk.advance(kQueries)) return;
        pair = {of(p.q), of(p.grad_out)};
        statistic = mine();
    }
};

template <class T, int D, bool Drops, bool AddsQueries>
__global__ void __launch_bounds__(kBackwardThreads, 2) attention_long_backward_kv(const AttentionBackward<T> all) {
    using Sizes = KeyGradients<T, D, Drops>;
    constexpr int M = Sizes::M, kRows = Sizes::kRows, kQueries = Sizes::kColumns;
    using Memory = Tile<T, D>;
    const HeadTile at(all.shape, all.shape.kv_heads, kRows, false);
    if (at.is_empty()) return;
    const AttentionBackward<T> p = at.document(all);
    const AttentionShape& s = p.shape;
    T *k_tile = dynamic_shared<T>(), *v_tile = k_tile + kRows * D, *stages = v_tile + kRows * D;
    float* statistics = reinterpret_cast<float*>(stages + 2 * kQueries * D);  // of the first stage
    // of a query in a row
    const ScoreGradientTiles<T> exchange(stages + 2 * Sizes::kStageBytes / sizeof(T), Sizes::kKeeps);
    const auto load_rows = [&](T* tile, const Heads<const T>& from) {
        Memory::template load_async<kBackwardThreads>(tile, from.head(s, at.batch, at.head), from.token_stride, at.first,
                                                      kRows, s.length, s.width);
    };
    load_rows(k_tile, p.k);
    load_rows(v_tile, p.v);
    const int group = s.heads / s.kv_heads, end = (at.head + 1) * group;
    QueryWalk walk(s, at.first, kRows, at.head * group);
    QueryTiles<T, Sizes, D> next(p, at.batch, walk, stages, statistics);
    next.load(0);

    const Dropout<float> dropout(s);
    const float scale = static_cast<float>(s.scale);
    const int warp = warp_of_block(), row = warp * 16 * M;
    Accumulator<D> dk[M] = {}, dv[M] = {};
    typename Memory::template Operands<M, false> k;
    k.load(k_tile, row);
    const auto v = k.following(kRows);
    const ptx::Shared across = ptx::kept(Memory::across(stages));
    const ptx::Shared down = ptx::kept(Memory::down(stages), Sizes::kKeeps);
    const ptx::Shared k_down = ptx::kept(Memory::down(k_tile), Sizes::kKeeps);
    for (unsigned stage = 0; walk.head < end; stage ^= Sizes::kStageBytes) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (next.walk.head < end) next.load(stage ^ Sizes::kStageBytes);
        const float *lse = statistics + stage / sizeof(float), *delta = lse + kQueries;
#pragma unroll
        for (int i = 0; i < kQueries; i += 16 * kStep) {
            const ScoreTile<true> tile{walk.query + i, at.first + row};
            if (!tile.any_seen<16 * kStep, 16 * M>(s)) continue;
            const bool all_seen = tile.all_seen<16 * kStep, 16 * M>(s);
            QueryStatistics<true> of[kStep];
#pragma unroll
            for (int j = 0; j < kStep; ++j) of[j].load(lse + i + 16 * j, delta + i + 16 * j);
            Accumulator<16> score[kStep][M] = {}, grad[kStep][M] = {};
            Memory::multiply_rows(k, across + stage, i, score);
            Memory::multiply_rows(v, across + stage, i + kQueries, grad);  // grad_out follows q
            differentiate<Drops>(s, scale, dropout, at.batch, walk.head, tile, all_seen, of, score, grad);
            Operand weights[kStep][M], gradients[kStep][M];
            as_operands<T>(score, weights);
            as_operands<T>(grad, gradients);
            const auto multiply = [&](bool all_seen) {
                multiply_tiles<T, D>(s, tile, all_seen, weights, down + stage, i + kQueries, dv);
                multiply_tiles<T, D>(s, tile, all_seen, gradients, down + stage, i, dk);
            };
            all_seen ? multiply(true) : multiply(false);  // one branch for both
#pragma unroll
            for (int t = 0; AddsQueries && t < kStep * M; ++t)
                exchange.store((i / 16 + t / M) * (kRows / 16) + row / 16 + t % M, gradients[t / M][t % M]);
        }
        if constexpr (AddsQueries) {
            __syncthreads();
            add_to_query_sum<kRows, D>(p, at.batch, walk.head, {walk.query + 16 * warp, at.first}, exchange,
                                       warp * (kRows / 16), k_down);
        }
        walk.advance(kQueries);
    }
    const auto store = [&](const Accumulator<D>& c, float factor, int down, const Heads<T>& to) {
        Memory::store(c, factor, factor, v_tile, row + down, to.head(s, at.batch, at.head), to.token_stride,
                      at.first + row + down, s.length, s.width);
    };
#pragma unroll
    for (int m = 0; m < M; ++m) {
        store(dv[m], 1, 16 * m, p.dv);
        store(dk[m], scale, 16 * m, p.dk);
    }
}

// Calls body(D, whether there is dropout), two integral constants.
template <class Body>
void with_long_kernels(const AttentionShape& s, const Body& body) {
    with_padded_width(s.width, [&](auto width) {
        s.seed == nullptr ? body(width, std::false_type()) : body(width, std::true_type());
    });
}

template <class T>
std::size_t attention_long_shared_bytes(const AttentionBackward<T>& p) {
    std::size_t bytes = 0;
    with_long_kernels(p.shape, [&](auto width, auto drops) { bytes = KeyGradients<T, width, drops>::kSharedForSum; });
    return bytes;
}

// Each tile of keys adds once to a number of dq that begins at 0, and 0 + a + b is 0 + b + a: so two tiles may come in
// any order. A query sees no more of them if there are only two, or if a window reaches over one edge at most.
template <class T>
bool attention_long_sum_is_deterministic(const AttentionBackward<T>& p) {
    int keys = 0;
    with_long_kernels(p.shape, [&](auto width, auto drops) { keys = KeyGradients<T, width, drops>::kRows; });
    return p.shape.length <= 2 * keys || p.shape.window <= keys + 1;
}

template <class T>
void attention_long(const AttentionBackward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    with_long_kernels(s, [&](auto width, auto drops) {
        constexpr int D = width;
        constexpr bool Drops = drops;
        using Queries = QueryGradients<T, D, Drops>;
        using Keys = KeyGradients<T, D, Drops>;
        const dim3 rows = tile_grid(s, s.heads, kSumRows), block(kBackwardThreads);
        const dim3 keys = tile_grid(s, s.kv_heads, Keys::kRows);
        if (p.dq_sum == nullptr) {
            launch(attention_long_backward_q<T, D, Drops>, tile_grid(s, s.heads, Queries::kRows), block,
                   Queries::kShared, stream, p);
            launch(attention_long_backward_kv<T, D, Drops, false>, keys, block, Keys::kShared, stream, p);
        } else {
            launch(query_sum_begin<T>, rows, dim3(kSumThreads), 0, stream, p);
            launch(attention_long_backward_kv<T, D, Drops, true>, keys, block, Keys::kSharedForSum, stream, p);
            launch(query_sum_finish<T>, rows, dim3(kSumThreads), 0, stream, p);
        }
    });
}

}  // namespace slm::cuda
