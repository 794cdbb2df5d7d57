// Rung 4: the products on tensor cores, and for dk and dv the scores are formed transposed.
//
// Three products need an operand that was just computed: dv = P^T grad_out, dk = dS^T q, dq = dS k. An accumulator can
// be the left operand of the next product as it stands, but not its transpose. So the kernel of the keys forms S^T = k
// q^T and dP^T = v grad_out^T at once, with keys as rows: then P^T and dS^T are left operands without leaving the
// registers. The kernel of the queries forms S and dP the usual way, for dq.
//
// Tiles are swizzled and read by ldmatrix, as in the forward's rung 4; differentiate turns a 16 x 16 tile of
// S and dP into P and dS.
#pragma once

#include "arguments.cuh"
#include "score_tile.cuh"

namespace slm::ladder {

constexpr int kGradTile = 64, kGradThreads = kGradTile / 16 * 32;  // a warp owns 16 rows
constexpr std::size_t kGradBytes = 4 * kGradTile * D * sizeof(T) + 2 * kGradTile * sizeof(float);

// The four tiles of a block: two that it owns, two that it walks over; and lse and delta of 64 queries.
struct GradTiles {
    using Memory = Tile<T, D>;
    using Operands = Memory::Operands<1, true>;

    const AttentionBackward<T>& b;
    const Head at;
    T* tile[4];
    float *lse, *delta;

    __device__ __forceinline__ explicit GradTiles(const AttentionBackward<T>& b) : b(b), at(b.shape) {
        for (int i = 0; i < 4; ++i) tile[i] = dynamic_shared<T>() + i * kGradTile * D;
        lse = reinterpret_cast<float*>(tile[3] + kGradTile * D);
        delta = lse + kGradTile;
    }
    // Copies 64 rows of two tensors, and the statistics if they are queries.
    __device__ __forceinline__ void load(int to, const Heads<const T>& x, const Heads<const T>& y, int first,
                                         bool queries) const {
        __syncthreads();  // what was there has been used
        Memory::load_async<kGradThreads>(tile[to], x.head(at.batch, at.head), x.token_stride, first, kGradTile,
                                         b.shape.length, D);
        Memory::load_async<kGradThreads>(tile[to + 1], y.head(at.batch, at.head), y.token_stride, first, kGradTile,
                                         b.shape.length, D);
        if (queries) load_statistics<kGradThreads>(b, at.batch, at.head, first, kGradTile, lse, delta);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
    }
    // P and dS of a tile of 16 x 16: this warp's rows of the tiles it owns times rows `other` of those it walks over.
    template <bool Transposed>
    __device__ __forceinline__ void weights(const ScoreTile<Transposed>& where, const Operands (&left)[2], int other,
                                            Operand (&p)[1], Operand (&ds)[1]) const {
        Accumulator<16> score[1][1] = {}, grad[1][1] = {};
        Memory::multiply_rows(left[0], Memory::across(tile[2]), other, score);
        Memory::multiply_rows(left[1], Memory::across(tile[3]), other, grad);
        const int row = where.query % kGradTile;
        QueryStatistics<Transposed> statistics[1];
        statistics[0].load(lse + row, delta + row);
        differentiate<false>(b.shape, kScale, Dropout<float>(b.shape), at.batch, at.head, where, where.all_seen(b.shape),
                             statistics, score, grad);
        as_operand<T>(score[0][0], p[0]);
        as_operand<T>(grad[0][0], ds[0]);
    }
    __device__ __forceinline__ void store(const Accumulator<D>& c, float factor, int row, const Heads<T>& to,
                                          int first) const {
        Memory::store(c, factor, factor, tile[0], row, to.head(at.batch, at.head), to.token_stride, first + row,
                      b.shape.length, D);
    }
};

__global__ void __launch_bounds__(kGradThreads) gradient_of_keys_mma(const AttentionBackward<T> b) {
    const GradTiles tiles(b);
    const int first = blockIdx.x * kGradTile, row = threadIdx.x / 32 * 16;
    tiles.load(0, b.k, b.v, first, false);
    GradTiles::Operands rows[2];
    rows[0].load(tiles.tile[0], row);
    rows[1].load(tiles.tile[1], row);
    Accumulator<D> dk[1] = {}, dv[1] = {};
    for (int query = first; query < b.shape.length; query += kGradTile) {
        tiles.load(2, b.q, b.grad_out, query, true);
        for (int i = 0; i < kGradTile; i += 16) {
            const ScoreTile<true> where{query + i, first + row};
            if (!where.any_seen(b.shape)) continue;
            Operand p[1], ds[1];
            tiles.weights(where, rows, i, p, ds);
            GradTiles::Memory::multiply(p, GradTiles::Memory::down(tiles.tile[3]), i, dv);
            GradTiles::Memory::multiply(ds, GradTiles::Memory::down(tiles.tile[2]), i, dk);
        }
    }
    tiles.store(dk[0], kScale, row, b.dk, first);
    tiles.store(dv[0], 1, row, b.dv, first);
}

__global__ void __launch_bounds__(kGradThreads) gradient_of_queries_mma(const AttentionBackward<T> b) {
    const GradTiles tiles(b);
    const int first = blockIdx.x * kGradTile, row = threadIdx.x / 32 * 16;
    tiles.load(0, b.q, b.grad_out, first, true);
    GradTiles::Operands rows[2];
    rows[0].load(tiles.tile[0], row);
    rows[1].load(tiles.tile[1], row);
    Accumulator<D> dq[1] = {};
    for (int key = 0; key <= first; key += kGradTile) {
        tiles.load(2, b.k, b.v, key, false);
        for (int j = 0; j < kGradTile; j += 16) {
            const ScoreTile<false> where{first + row, key + j};
            if (!where.any_seen(b.shape)) continue;
            Operand p[1], ds[1];
            tiles.weights(where, rows, j, p, ds);
            GradTiles::Memory::multiply(ds, GradTiles::Memory::down(tiles.tile[2]), j, dq);
        }
    }
    tiles.store(dq[0], kScale, row, b.dq, first);
}

}  // namespace slm::ladder

extern "C" void attention_backward_tensor_cores(void** tensors, const long long* numbers) {
    using namespace slm::ladder;
    const auto b = backward_arguments(tensors, numbers);
    const dim3 grid = grid_per_head(b.shape, b.shape.length, kGradTile);
    launch(gradient_of_keys_mma, grid, dim3(kGradThreads), kGradBytes, stream_of(numbers), b);
    launch(gradient_of_queries_mma, grid, dim3(kGradThreads), kGradBytes, stream_of(numbers), b);
}
