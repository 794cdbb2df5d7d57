// Causal attention without tensor cores: for every dtype up to double, every T, D, stride and window, on every GPU.
//
// A warp owns a few rows of the score matrix and each of its lanes one column of a tile of 32: a score is one lane's
// dot product, a row's maximum and sum are shuffles. Then the weights change places through shared memory and each lane
// owns the output columns lane, lane + 32, … Values are widened to float (double for
// double) as they enter shared memory.
//
//   forward   a block per tile of queries walks over tiles of keys with an online softmax (Milakov and Gimelshein 2018)
//   backward  dq: a block per tile of queries walks over keys; dk, dv: a block per tile of keys walks over queries and
//             over the heads that share them. Each gradient has one owner and one order, so it is deterministic.
//
// With p = P without dropout, f = the dropout factors and delta = rowsum(grad_out * out):
//   dv = (p f)^T grad_out    dS = p (f * (grad_out v^T) - delta)    dq = scale dS k    dk = scale dS^T q
//
// Every kernel fits into the 64 KiB of shared memory that a block has on sm_75; two tiles of 32 rows of 128 doubles do
// not, so there they take turns in the memory of one.
//
// 16-byte reads of shared memory: per four (double: two) columns of D, one read of the lane's row and one broadcast per
// row of the warp, for as many rows times four multiply-adds.
#pragma once

#include "attention_exact.cuh"

namespace slm::cuda {

inline constexpr int kSimpleWarps = 4, kSimpleThreads = kSimpleWarps * 32;

// Rows of a warp: more of them reuse each tile more, and take more registers and shared memory.
template <class T>
inline constexpr int kForwardRows = sizeof(T) == 8 ? 4 : 8;
template <class T>
inline constexpr int kBackwardRows = sizeof(T) == 8 ? 2 : 4;

// The shapes and steps of a warp with R rows and D columns, computing in A.
template <class A, int R, int D>
struct SimpleWarp {
    static constexpr int kVector = kPackSize<A>;
    static constexpr int kBlockRows = R * kSimpleWarps;
    static constexpr int kPitch =
        D + kVector;  // of a tile: lanes read 16 bytes at this distance without bank conflicts
    static constexpr int kRowsSize = kBlockRows * D, kTileSize = 32 * kPitch, kWeightsSize = kBlockRows * 32;
    static constexpr int kTiles = 2 * kTileSize * sizeof(A) < 64 * 1024 ? 2 : 1;  // that a backward holds at once
    static constexpr int kBackwardSize = 2 * kRowsSize + kTiles * kTileSize + kWeightsSize;
    using Vector = Pack<A, kVector>;
    using Output = A[R][D / 32];

    static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
    static __device__ __forceinline__ int first_row() { return threadIdx.x / 32 * R; }

    // Copies rows [first, first + count) of a head to shared memory, zeros beyond `length` and `width`.
    template <class T>
    static __device__ __forceinline__ void load(A* to, int pitch, int count, const T* head, int64_t stride, int first,
                                                int length, int width) {
        for (int i = threadIdx.x; i < count * D; i += kSimpleThreads) {
            const int row = i / D, column = i % D;
            const bool inside = first + row < length && column < width;
            to[row * pitch + column] = inside ? widen(head[(first + row) * stride + column]) : A(0);
        }
    }

    // Loads the 32 rows from `first` on into a tile that all warps have read, for all warps to read.
    template <class T>
    static __device__ __forceinline__ void replace(A* tile, const T* head, int64_t stride, int first, int length,
                                                   int width) {
        __syncthreads();
        load(tile, kPitch, 32, head, stride, first, length, width);
        __syncthreads();
    }

    // dot[r] = (row r of this warp) . (row `lane` of the tile)
    static __device__ __forceinline__ void dots(const A* rows, const A* tile, A (&dot)[R]) {
        const A *mine = rows + first_row() * D, *other = tile + lane() * kPitch;
        for (int r = 0; r < R; ++r) dot[r] = 0;
#pragma unroll 4
        for (int d = 0; d < D; d += kVector) {
            const Vector b = Vector::load(other + d);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const Vector a = Vector::load(mine + r * D + d);
#pragma unroll
                for (int e = 0; e < kVector; ++e) dot[r] += a.at[e] * b.at[e];
            }
        }
    }

    // out[r][i] += sum over j of weight[r] of lane j * tile[j][lane + 32 i]. `exchange` is the block's scratch.
    static __device__ __forceinline__ void accumulate(const A (&weight)[R], A* exchange, const A* tile, Output& out) {
        A* weights = exchange + first_row() * 32;
        __syncwarp();  // the last reads are done
#pragma unroll
        for (int r = 0; r < R; ++r) weights[r * 32 + lane()] = weight[r];
        __syncwarp();
#pragma unroll 2
        for (int j = 0; j < 32; j += kVector) {
            Vector row[R];
#pragma unroll
            for (int r = 0; r < R; ++r) row[r] = Vector::load(weights + r * 32 + j);
#pragma unroll
            for (int e = 0; e < kVector; ++e)
#pragma unroll
                for (int i = 0; i < D / 32; ++i) {
                    const A value = tile[(j + e) * kPitch + lane() + 32 * i];
#pragma unroll
                    for (int r = 0; r < R; ++r) out[r][i] += row[r].at[e] * value;
                }
        }
    }

    // Writes this warp's rows of `out`, each times factor[r].
    template <class T>
    static __device__ __forceinline__ void store(const Output& out, const A (&factor)[R], T* head, int64_t stride,
                                                 int first, int length, int width) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int i = 0; i < D / 32; ++i) {
                const int row = first + first_row() + r, column = lane() + 32 * i;
                if (row < length && column < width) head[row * stride + column] = narrow<T>(out[r][i] * factor[r]);
            }
    }
};

// Takes in the scores of 32 more keys: rescales `total` and `out` to the new maximum, and returns the
// weights in place of the scores. -inf is a key that the query does not see.
template <class A, int R, int Columns>
__device__ __forceinline__ void online_softmax(A (&score)[R], A (&maximum)[R], A (&total)[R], A (&out)[R][Columns]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const A before = maximum[r], tile = max_over<32>(score[r]);
        maximum[r] = tile > before ? tile : before;
        const A shift = maximum[r] == -INFINITY ? A(0) : maximum[r];
        const A rescale = power_of_two((before - shift) * A(kLog2E));
        score[r] = power_of_two((score[r] - shift) * A(kLog2E));
        total[r] = total[r] * rescale + score[r];  // of this lane; the lanes are added at the end
#pragma unroll
        for (int i = 0; i < Columns; ++i) out[r][i] *= rescale;
    }
}

// Shared memory: rows of q, a tile of k and then of v, the weights.
template <class T, int D>
__global__ void __launch_bounds__(kSimpleThreads, 2) attention_simple_forward(const AttentionForward<T> all) {
    constexpr int R = kForwardRows<T>;
    using A = compute_t<T>;
    using Warp = SimpleWarp<A, R, D>;
    const HeadTile at(all.shape, all.shape.heads, Warp::kBlockRows, true);
    if (at.is_empty()) return;
    const AttentionForward<T> p = at.document(all);
    const AttentionShape& s = p.shape;
    const T *k = p.k.head(s, at.batch, s.kv_head(at.head)), *v = p.v.head(s, at.batch, s.kv_head(at.head));
    A *rows = dynamic_shared<A>(), *tile = rows + Warp::kRowsSize, *exchange = tile + Warp::kTileSize;
    Warp::load(rows, D, Warp::kBlockRows, p.q.head(s, at.batch, at.head), p.q.token_stride, at.first, s.length, s.width);

    const A scale = static_cast<A>(s.scale);
    const Dropout<A> dropout(s);
    const int query = at.first + Warp::first_row();
    A out[R][D / 32] = {}, maximum[R], total[R] = {}, score[R], weight[R];
    for (int r = 0; r < R; ++r) maximum[r] = -INFINITY;
    const int end = min(s.length, at.first + Warp::kBlockRows);
    for (int first = max(0, at.first - s.window + 1) / 32 * 32; first < end; first += 32) {
        const int key = first + Warp::lane();
        __syncthreads();
        Warp::load(tile, Warp::kPitch, 32, k, p.k.token_stride, first, s.length, s.width);
        __syncthreads();
        Warp::dots(rows, tile, score);
#pragma unroll
        for (int r = 0; r < R; ++r) score[r] = s.sees(query + r, key) ? rounded_product(score[r], scale) : A(-INFINITY);
        online_softmax(score, maximum, total, out);
#pragma unroll
        for (int r = 0; r < R; ++r)
            weight[r] = score[r] * dropout_factor(dropout, s, at.batch, at.head, query + r, key);
        __syncthreads();
        Warp::load(tile, Warp::kPitch, 32, v, p.v.token_stride, first, s.length, s.width);
        __syncthreads();
        Warp::accumulate(weight, exchange, tile, out);
    }

    A factor[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const A sum = sum_over<32>(total[r]);
        factor[r] = 1 / sum;
        if (Warp::lane() == 0 && query + r < s.length)
            p.lse[s.row(at.batch, at.head, query + r)] = maximum[r] + natural_log(sum);
    }
    Warp::store(out, factor, p.out.head(s, at.batch, at.head), p.out.token_stride, at.first, s.length, s.width);
    if (any_not_finite(out)) exact_results(p, at.batch, at.head, query, R);
}

// dq, and delta for the kernel below. Shared memory: rows of q and grad_out, tiles of k and v, the weights.
template <class T, int D>
__global__ void __launch_bounds__(kSimpleThreads, 2) attention_simple_backward_q(const AttentionBackward<T> all) {
    constexpr int R = kBackwardRows<T>;
    using A = compute_t<T>;
    using Warp = SimpleWarp<A, R, D>;
    const HeadTile at(all.shape, all.shape.heads, Warp::kBlockRows, true);
    if (at.is_empty()) return;
    const AttentionBackward<T> p = at.document(all);
    const AttentionShape& s = p.shape;
    const T *k = p.k.head(s, at.batch, s.kv_head(at.head)), *v = p.v.head(s, at.batch, s.kv_head(at.head));
    A *q_rows = dynamic_shared<A>(), *grad_rows = q_rows + Warp::kRowsSize, *k_tile = grad_rows + Warp::kRowsSize;
    A *v_tile = k_tile + (Warp::kTiles - 1) * Warp::kTileSize, *exchange = v_tile + Warp::kTileSize;
    Warp::load(q_rows, D, Warp::kBlockRows, p.q.head(s, at.batch, at.head), p.q.token_stride, at.first, s.length, s.width);
    Warp::load(grad_rows, D, Warp::kBlockRows, p.grad_out.head(s, at.batch, at.head), p.grad_out.token_stride, at.first,
               s.length, s.width);
    Warp::load(k_tile, Warp::kPitch, Warp::kBlockRows, p.out.head(s, at.batch, at.head), p.out.token_stride, at.first,
               s.length, s.width);
    __syncthreads();

    // Added in the order of `dots`, so that grad - delta cancels to nothing where out is a single row of v.
    const int query = at.first + Warp::first_row(), lane = Warp::lane();
    A mine = 0;
    if (lane < R)
        for (int d = 0; d < D; ++d)
            mine +=
                grad_rows[(Warp::first_row() + lane) * D + d] * k_tile[(Warp::first_row() + lane) * Warp::kPitch + d];
    A lse[R], delta[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
        const bool inside = query + r < s.length;
        delta[r] = __shfl_sync(0xFFFFFFFFu, mine, r);
        lse[r] = inside ? p.lse[s.row(at.batch, at.head, query + r)] : A(0);
        if (inside && lane == 0) p.delta[s.row(at.batch, at.head, query + r)] = delta[r];
    }

    const Dropout<A> dropout(s);
    const A scale = static_cast<A>(s.scale);
    A dq[R][D / 32] = {}, score[R], grad[R], weight[R];
    const int end = min(s.length, at.first + Warp::kBlockRows);
    for (int first = max(0, at.first - s.window + 1) / 32 * 32; first < end; first += 32) {
        const int key = first + lane;
        __syncthreads();
        if constexpr (Warp::kTiles == 2)
            Warp::load(k_tile, Warp::kPitch, 32, k, p.k.token_stride, first, s.length, s.width);
        Warp::load(v_tile, Warp::kPitch, 32, v, p.v.token_stride, first, s.length, s.width);
        __syncthreads();
        Warp::dots(grad_rows, v_tile, grad);
        if constexpr (Warp::kTiles == 1) Warp::replace(k_tile, k, p.k.token_stride, first, s.length, s.width);
        Warp::dots(q_rows, k_tile, score);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            weight[r] = 0;
            if (!s.sees(query + r, key)) continue;
            const A factor = dropout_factor(dropout, s, at.batch, at.head, query + r, key);
            weight[r] = WeightGradient<A>(rounded_product(score[r], scale), lse[r], grad[r], delta[r], factor).score;
        }
        Warp::accumulate(weight, exchange, k_tile, dq);
    }
    A factor[R];
    for (int r = 0; r < R; ++r) factor[r] = scale;
    Warp::store(dq, factor, p.dq.head(s, at.batch, at.head), p.dq.token_stride, at.first, s.length, s.width);
    if (any_not_finite(dq)) exact_query_gradients(p, at.batch, at.head, query, R);
}

// dk and dv. Rows are keys and lanes are queries. Shared memory: rows of k and v, tiles of q and grad_out, the weights.
template <class T, int D>
__global__ void __launch_bounds__(kSimpleThreads, 2) attention_simple_backward_kv(const AttentionBackward<T> all) {
    constexpr int R = kBackwardRows<T>;
    using A = compute_t<T>;
    using Warp = SimpleWarp<A, R, D>;
    const HeadTile at(all.shape, all.shape.kv_heads, Warp::kBlockRows, false);
    if (at.is_empty()) return;
    const AttentionBackward<T> p = at.document(all);
    const AttentionShape& s = p.shape;
    A *k_rows = dynamic_shared<A>(), *v_rows = k_rows + Warp::kRowsSize, *q_tile = v_rows + Warp::kRowsSize;
    A *grad_tile = q_tile + (Warp::kTiles - 1) * Warp::kTileSize, *exchange = grad_tile + Warp::kTileSize;
    Warp::load(k_rows, D, Warp::kBlockRows, p.k.head(s, at.batch, at.head), p.k.token_stride, at.first, s.length, s.width);
    Warp::load(v_rows, D, Warp::kBlockRows, p.v.head(s, at.batch, at.head), p.v.token_stride, at.first, s.length, s.width);

    const Dropout<A> dropout(s);
    const A scale = static_cast<A>(s.scale);
    const int key = at.first + Warp::first_row(), group = s.heads / s.kv_heads;
    const int end = min(static_cast<int64_t>(s.length), int64_t{at.first} + Warp::kBlockRows - 1 + s.window);
    A dk[R][D / 32] = {}, dv[R][D / 32] = {}, score[R], grad[R];
    for (int head = at.head * group; head < (at.head + 1) * group; ++head) {
        const T *q = p.q.head(s, at.batch, head), *grad_out = p.grad_out.head(s, at.batch, head);
        // From the last query back: weights fall with the number of keys seen, and small terms added first lose least.
        for (int first = (end - 1) / 32 * 32; first >= at.first / 32 * 32; first -= 32) {
            const int query = first + Warp::lane();
            __syncthreads();
            Warp::load(q_tile, Warp::kPitch, 32, q, p.q.token_stride, first, s.length, s.width);
            if constexpr (Warp::kTiles == 2)
                Warp::load(grad_tile, Warp::kPitch, 32, grad_out, p.grad_out.token_stride, first, s.length, s.width);
            __syncthreads();
            const bool inside = query < s.length;
            const A lse = inside ? p.lse[s.row(at.batch, head, query)] : A(0);
            const A delta = inside ? p.delta[s.row(at.batch, head, query)] : A(0);
            Warp::dots(k_rows, q_tile, score);
            if constexpr (Warp::kTiles == 1)
                Warp::replace(grad_tile, grad_out, p.grad_out.token_stride, first, s.length, s.width);
            Warp::dots(v_rows, grad_tile, grad);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                WeightGradient<A> weight;
                if (s.sees(query, key + r)) {
                    const A factor = dropout_factor(dropout, s, at.batch, head, query, key + r);
                    weight = WeightGradient<A>(rounded_product(score[r], scale), lse, grad[r], delta, factor);
                }
                grad[r] = weight.dropped;
                score[r] = weight.score;
            }
            Warp::accumulate(grad, exchange, grad_tile, dv);
            if constexpr (Warp::kTiles == 1) Warp::replace(q_tile, q, p.q.token_stride, first, s.length, s.width);
            Warp::accumulate(score, exchange, q_tile, dk);
        }
    }
    A factor[R];
    for (int r = 0; r < R; ++r) factor[r] = scale;
    Warp::store(dk, factor, p.dk.head(s, at.batch, at.head), p.dk.token_stride, at.first, s.length, s.width);
    for (int r = 0; r < R; ++r) factor[r] = 1;
    Warp::store(dv, factor, p.dv.head(s, at.batch, at.head), p.dv.token_stride, at.first, s.length, s.width);
    if (any_not_finite(dk) || any_not_finite(dv)) exact_key_gradients(p, at.batch, at.head, key, R);
}

template <class T>
void attention_simple(const AttentionForward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    with_padded_width(s.width, [&](auto width) {
        constexpr int D = width;
        using Warp = SimpleWarp<compute_t<T>, kForwardRows<T>, D>;
        const std::size_t shared = (Warp::kRowsSize + Warp::kTileSize + Warp::kWeightsSize) * sizeof(compute_t<T>);
        launch(attention_simple_forward<T, D>, tile_grid(s, s.heads, Warp::kBlockRows),
               dim3(kSimpleThreads), shared, stream, p);
    });
}

template <class T>
void attention_simple(const AttentionBackward<T>& p, cudaStream_t stream) {
    const AttentionShape& s = p.shape;
    with_padded_width(s.width, [&](auto width) {
        constexpr int D = width;
        using Warp = SimpleWarp<compute_t<T>, kBackwardRows<T>, D>;
        const std::size_t shared = Warp::kBackwardSize * sizeof(compute_t<T>);
        launch(attention_simple_backward_q<T, D>, tile_grid(s, s.heads, Warp::kBlockRows),
               dim3(kSimpleThreads), shared, stream, p);
        launch(attention_simple_backward_kv<T, D>, tile_grid(s, s.kv_heads, Warp::kBlockRows),
               dim3(kSimpleThreads), shared, stream, p);
    });
}

}  // namespace slm::cuda
