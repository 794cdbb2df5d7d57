// What all attention kernels share: their arguments, which keys a query sees, and dropout.
//
// S = scale * q k^T, P = softmax of S over the keys that a query sees, out = dropout(P) v. The log-sum-exp of each row
// of S is all that the backward needs to form P again.
//
// Exponentials are powers of two, exp(x) = 2^(x log2 e), of a difference that is taken first: so the largest weight of
// a row is exactly 1, however large the scores. And forward and backward round scale * (q k^T) before they take
// differences: so where one weight outdoes all others, its P in the backward is exactly 1 too, though scores of 1e4
// know their own value to 1e-3 only.
#pragma once

#include "../philox.h"
#include "numeric.cuh"

namespace slm::cuda {

inline constexpr double kLog2E = 1.4426950408889634;

// A (B, T, H, D) tensor with unit last stride.
template <class T>
struct Heads {
    T* data;
    int64_t batch_stride, token_stride, head_stride;

    // One head: its row t lies at t * token_stride.
    __device__ __forceinline__ T* head(int batch, int head) const {
        return data + batch * batch_stride + head * head_stride;
    }
};

struct AttentionShape {
    int batch, length, heads, kv_heads;  // B, T, H, Hkv; H is a multiple of Hkv
    int width;                           // D, at most 128
    int window;                          // a query sees itself and the window - 1 keys before it; at most `length`
    double scale;
    const int64_t* seed;  // of dropout; null: none
    uint32_t threshold;   // of philox.h

    __device__ __forceinline__ bool sees(int query, int key) const {
        return key <= query && query - key < window;
    }
    __device__ __forceinline__ int kv_head(int head) const { return head / (heads / kv_heads); }
    // Where a statistic of a query lies in a (B, H, T) tensor.
    __device__ __forceinline__ int64_t row(int batch, int head, int query) const {
        return (int64_t{batch} * heads + head) * length + query;
    }
};

template <class T>
struct AttentionForward {
    AttentionShape shape;
    Heads<const T> q, k, v;
    Heads<T> out;
    compute_t<T>* lse;  // (B, H, T)
};

template <class T>
struct AttentionBackward {
    AttentionShape shape;
    Heads<const T> grad_out, q, k, v, out;
    const compute_t<T>* lse;  // (B, H, T)
    compute_t<T>* delta;      // (B, H, T), scratch: row sums of grad_out * out
    Heads<T> dq, dk, dv;
    compute_t<T>* dq_sum = nullptr;  // (B, H, T, D), scratch for a dq in no certain order (query_sum.cuh); null: in order
};

// What the GPU, and the code that was compiled for it, can do.
struct Limits {
    int architecture;          // 80 for sm_80
    std::size_t shared_bytes;  // that one block may have
};

// Enqueue it on the best kernels that the arguments and the GPU allow (attention.cu). No dimension may be 0.
template <class T>
void attention(const AttentionForward<T>& p, const Limits& limits, cudaStream_t stream);
template <class T>
void attention(const AttentionBackward<T>& p, const Limits& limits, cudaStream_t stream);

// Whether `attention` is faster with dq_sum than without, and, where that must be, as deterministic.
template <class T>
bool has_use_for_dq_sum(const AttentionBackward<T>& p, const Limits& limits, bool deterministic);

// For every dtype and GPU (attention_simple.cuh); for 16 bits and tensor cores, up to 128 tokens and any number of them
// (attention_short_…cuh, attention_long_…cuh).
template <class T>
void attention_simple(const AttentionForward<T>& p, cudaStream_t stream);
template <class T>
void attention_simple(const AttentionBackward<T>& p, cudaStream_t stream);
template <class T>
void attention_short(const AttentionForward<T>& p, cudaStream_t stream);
template <class T>
void attention_short(const AttentionBackward<T>& p, cudaStream_t stream);
template <class T>
void attention_long(const AttentionForward<T>& p, cudaStream_t stream);
template <class T>
void attention_long(const AttentionBackward<T>& p, cudaStream_t stream);

// The shared memory that a block of the short backward takes, and of the long one with dq_sum.
template <class T>
std::size_t attention_short_shared_bytes(const AttentionBackward<T>& p);
template <class T>
std::size_t attention_long_shared_bytes(const AttentionBackward<T>& p);

// Whether the long backward with dq_sum gives the same bits in every order of blocks.
template <class T>
bool attention_long_sum_is_deterministic(const AttentionBackward<T>& p);

// The factor of each weight: 0 where it is dropped, 1 / (probability of staying) where it stays.
template <class A>
struct Dropout {
    uint64_t seed = 0;
    uint32_t threshold = 65536;
    A kept = 1;

    __device__ __forceinline__ explicit Dropout(const AttentionShape& shape) {
        if (shape.seed == nullptr) return;
        seed = static_cast<uint64_t>(*shape.seed);
        threshold = shape.threshold;
        kept = A(65536) / static_cast<A>(threshold);
    }
    __device__ __forceinline__ A factor(uint32_t bits) const { return bits < threshold ? kept : A(0); }
};

// The block's tile of `rows` rows of one head. Blocks are numbered head by head, and the blocks that run at one time
// have numbers near each other: so they share the k and v of a few heads, which stay in the L2 cache, and so do the query
// heads of a group, which follow each other. Within a head, with `last_first`, the tiles that see most keys start first,
// and the light ones fill the gaps.
struct HeadTile {
    int batch, head, first;

    __device__ __forceinline__ HeadTile(int heads, int length, int rows, bool last_first) {
        const unsigned tiles = static_cast<unsigned>(length + rows - 1) / rows;
        const unsigned which = blockIdx.x / tiles, tile = blockIdx.x % tiles;
        batch = which / heads;
        head = which % heads;
        first = (last_first ? tiles - 1 - tile : tile) * rows;
    }
};

inline dim3 tile_grid(int batches, int heads, int length, int rows) {
    const int64_t blocks = int64_t{batches} * heads * ceil_div(length, rows);
    if (blocks > 0x7FFFFFFF) throw std::runtime_error("causal_attention: B * H * T is too large for one launch");
    return dim3(static_cast<unsigned>(blocks));
}

// Calls body(D), an integral constant: `width` rounded up to what kernels are compiled for.
template <class Body>
void with_padded_width(int width, const Body& body) {
    if (width <= 32) return body(std::integral_constant<int, 32>());
    if (width <= 64) return body(std::integral_constant<int, 64>());
    if (width <= 96) return body(std::integral_constant<int, 96>());
    return body(std::integral_constant<int, 128>());
}

}  // namespace slm::cuda
