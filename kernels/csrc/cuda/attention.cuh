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

// A batch of sequences; or, with `ends`, `batch` documents that follow each other in one sequence of T tokens, where a
// token sees its own document only.
struct AttentionShape {
    int batch, length, heads, kv_heads;  // B, T, H, Hkv; H is a multiple of Hkv
    int width;                           // D, at most 128
    int window;                          // a query sees itself and the window - 1 keys before it; at most `length`
    double scale;
    const int64_t* seed;  // of dropout; null: none
    uint32_t threshold;   // of philox.h
    int tokens;           // T; inside a kernel `length` is that of the document at hand,
    int start = 0;        // which begins here
    const int64_t* ends;  // (batch + 1), rising from 0 to T: where documents begin and end; null: no documents

    __device__ __forceinline__ bool sees(int query, int key) const {
        return key <= query && query - key < window;
    }
    __device__ __forceinline__ int kv_head(int head) const { return head / (heads / kv_heads); }
    // Where in its tensors a sequence or document is.
    __device__ __forceinline__ int entry(int batch) const { return ends == nullptr ? batch : 0; }
    // Where a statistic of a query lies in a (B, H, T) tensor.
    __device__ __forceinline__ int64_t row(int batch, int head, int query) const {
        return (int64_t{entry(batch)} * heads + head) * tokens + start + query;
    }
};

// A (B, T, H, D) tensor with unit last stride; of documents (1, T, H, D).
template <class T>
struct Heads {
    T* data;
    int64_t batch_stride, token_stride, head_stride;

    // One head: its row t begins at t * token_stride.
    __device__ __forceinline__ T* head(int batch, int head) const {
        return data + batch * batch_stride + head * head_stride;
    }
    // One head of a sequence, or of the document at hand.
    __device__ __forceinline__ T* head(const AttentionShape& s, int batch, int which) const {
        return head(s.entry(batch), which) + s.start * token_stride;
    }
};

// The block's tile of `rows` rows of one head. Blocks are numbered head by head, and the blocks that run at one time
// have numbers near each other: so they share the k and v of a few heads, which stay in the L2 cache, and so do the query
// heads of a group, which follow each other. Within a head, with `last_first`, the tiles that see most keys start first,
// and the light ones fill the gaps.
//
// A head of documents has T / rows + `batch` places for tiles, of which document d has those from start / rows + d on:
// enough for its length, whatever it is, and found without a table. A place that it does not need is an empty tile.
struct HeadTile {
    int batch, head, first;  // batch: or the document
    int start, length;       // of the document among the tokens; 0 and T without

    __device__ __forceinline__ HeadTile(const AttentionShape& s, int heads, int rows, bool last_first) {
        const unsigned tiles = places(s, rows);
        const unsigned which = blockIdx.x / tiles, tile = blockIdx.x % tiles;
        const int place = static_cast<int>(last_first ? tiles - 1 - tile : tile);
        batch = which / heads;
        head = which % heads;
        first = place * rows;
        start = 0;
        length = s.length;
        if (s.ends != nullptr) find_document(s, place, rows);
    }
    // Tiles of a head.
    static SLM_HOST_DEVICE int places(const AttentionShape& s, int rows) {
        return s.ends == nullptr ? (s.length + rows - 1) / rows : s.length / rows + s.batch;
    }
    __device__ __forceinline__ bool is_empty() const { return first >= length; }

    // The last document whose places begin at or before `place`.
    __device__ __forceinline__ void find_document(const AttentionShape& s, int place, int rows) {
        batch = 0;
        for (int end = s.batch; end - batch > 1;) {
            const int middle = (batch + end) / 2;
            (s.ends[middle] / rows + middle <= place ? batch : end) = middle;
        }
        start = static_cast<int>(s.ends[batch]);
        length = static_cast<int>(s.ends[batch + 1]) - start;
        first = (place - (start / rows + batch)) * rows;
    }

    // `p` for this tile's document alone.
    template <class Arguments>
    __device__ __forceinline__ Arguments document(Arguments p) const {
        p.shape.start = start;
        p.shape.length = length;
        return p;
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

// Up to here a row of scores fits into a warp's registers.
inline constexpr int kShortTokens = 128;

// For every dtype and GPU (attention_simple.cuh); for 16 bits and tensor cores, up to kShortTokens without documents
// (attention_short_…cuh) and any number with or without (attention_long_…cuh).
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

inline dim3 tile_grid(const AttentionShape& s, int heads, int rows) {
    const int64_t blocks = int64_t{s.ends == nullptr ? s.batch : 1} * heads * HeadTile::places(s, rows);
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
