// Attention one pair of query and key at a time: for rows in which an infinity or NaN came out.
//
// attention_simple.cuh multiplies whole tiles, and the weight of a key that a query does not see is 0 there. If such a key
// or value is not finite, 0 times it is NaN. So a warp whose sums are not all finite computes its rows again, over what
// they see and nothing else. That costs the others one check at their end. The kernels on tensor cores leave such keys out
// as they go (score_tile.cuh).
#pragma once

#include "attention.cuh"

namespace slm::cuda {

// True in all lanes of a warp if a number in any of them is not finite.
template <class Numbers>
__device__ __forceinline__ bool any_not_finite(const Numbers& numbers) {
    using A = std::remove_cv_t<std::remove_all_extents_t<Numbers>>;
    const A* each = reinterpret_cast<const A*>(&numbers);
    A zero = 0;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof numbers / sizeof(A)); ++i) zero += each[i] * A(0);
    return __any_sync(0xFFFFFFFFu, zero != zero);
}

// The dropout factor of one weight. Eight weights share a call of Philox; here each makes its own.
template <class A>
__device__ __forceinline__ A dropout_factor(const Dropout<A>& dropout, const AttentionShape& shape, int batch, int head,
                                            int query, int key) {
    if (shape.seed == nullptr) return 1;
    return dropout.factor(dropout_bits(philox(dropout_counter(batch, head, query, key), dropout.seed), query, key));
}

// p and dS / scale of one weight, from its score and its entry of grad_out v^T; zeros where the key is not seen.
template <class A>
struct WeightGradient {
    A dropped = 0;  // p f
    A score = 0;    // p (f * grad - delta)

    __device__ __forceinline__ WeightGradient() {}
    __device__ __forceinline__ WeightGradient(A score, A lse, A grad, A delta, A factor) {
        const A p = power_of_two((score - lse) * A(kLog2E));
        dropped = p * factor;
        this->score = p * (factor * grad - delta);
    }
};

// A row of at most 128 numbers, of which each lane of a warp has every 32nd.
template <class T>
struct ExactRow {
    using A = compute_t<T>;
    A sum[4] = {};

    // Calls step(i, column) for each number of this lane.
    template <class Step>
    static __device__ __forceinline__ void each(int width, const Step& step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = static_cast<int>(threadIdx.x) % 32 + 32 * i;
            if (column < width) step(i, column);
        }
    }
    // The dot product of two rows, in all lanes.
    static __device__ __forceinline__ A dot(const T* a, const T* b, int width) {
        A mine = 0;
        each(width, [&](int, int column) { mine += widen(a[column]) * widen(b[column]); });
        return sum_over<32>(mine);
    }
    __device__ __forceinline__ void add(A factor, const T* row, int width) {
        each(width, [&](int i, int column) { sum[i] += factor * widen(row[column]); });
    }
    __device__ __forceinline__ void store(A factor, T* to, int width) const {
        each(width, [&](int i, int column) { to[column] = narrow<T>(sum[i] * factor); });
    }
};

// True in all lanes of a warp if every number of a row in memory is finite.
template <class T>
__device__ __forceinline__ bool is_finite_row(const T* row, int width) {
    compute_t<T> zero = 0;
    ExactRow<T>::each(width, [&](int, int column) { zero += widen(row[column]) * compute_t<T>(0); });
    return !__any_sync(0xFFFFFFFFu, zero != zero);
}

// The results of those of `rows` queries of a head from `first` on that are not finite; the others keep their bits. Their
// log-sum-exp is right as the kernels have written it.
template <class T>
__device__ __forceinline__ void exact_results(const AttentionForward<T>& p, int batch, int head, int first, int rows) {
    using A = compute_t<T>;
    const AttentionShape& s = p.shape;
    const Dropout<A> dropout(s);
    __syncwarp();  // other lanes wrote lse and out
    const T *k = p.k.head(s, batch, s.kv_head(head)), *v = p.v.head(s, batch, s.kv_head(head));
#pragma unroll 1
    for (int query = first; query < min(first + rows, s.length); ++query) {
        T* row = p.out.head(s, batch, head) + query * p.out.token_stride;
        if (is_finite_row(row, s.width)) continue;
        const T* q = p.q.head(s, batch, head) + query * p.q.token_stride;
        const A lse = p.lse[s.row(batch, head, query)];
        ExactRow<T> out;
#pragma unroll 1
        for (int key = max(0, query - s.window + 1); key <= query; ++key) {
            const A score = ExactRow<T>::dot(q, k + key * p.k.token_stride, s.width);
            const A weight = power_of_two((rounded_product(score, static_cast<A>(s.scale)) - lse) * A(kLog2E));
            out.add(weight * dropout_factor(dropout, s, batch, head, query, key), v + key * p.v.token_stride, s.width);
        }
        out.store(1, row, s.width);
    }
}

template <class T>
__device__ __forceinline__ WeightGradient<compute_t<T>> exact_weight(const AttentionBackward<T>& p, int batch, int head,
                                                                     int query, int key) {
    using A = compute_t<T>;
    const AttentionShape& s = p.shape;
    const T *q = p.q.head(s, batch, head) + query * p.q.token_stride;
    const T *grad_out = p.grad_out.head(s, batch, head) + query * p.grad_out.token_stride;
    const T *out = p.out.head(s, batch, head) + query * p.out.token_stride;
    const T *k = p.k.head(s, batch, s.kv_head(head)) + key * p.k.token_stride;
    const T *v = p.v.head(s, batch, s.kv_head(head)) + key * p.v.token_stride;
    const A score = rounded_product(ExactRow<T>::dot(q, k, s.width), static_cast<A>(s.scale));
    return {score, p.lse[s.row(batch, head, query)], ExactRow<T>::dot(grad_out, v, s.width),
            ExactRow<T>::dot(grad_out, out, s.width), dropout_factor(Dropout<A>(s), s, batch, head, query, key)};
}

// dq of `rows` queries of a head from `first` on.
template <class T>
__device__ __forceinline__ void exact_query_gradients(const AttentionBackward<T>& p, int batch, int head, int first,
                                                      int rows) {
    const AttentionShape& s = p.shape;
    const T* k = p.k.head(s, batch, s.kv_head(head));
#pragma unroll 1
    for (int query = first; query < min(first + rows, s.length); ++query) {
        ExactRow<T> dq;
#pragma unroll 1
        for (int key = max(0, query - s.window + 1); key <= query; ++key)
            dq.add(exact_weight(p, batch, head, query, key).score, k + key * p.k.token_stride, s.width);
        dq.store(static_cast<compute_t<T>>(s.scale), p.dq.head(s, batch, head) + query * p.dq.token_stride, s.width);
    }
}

// dk and dv of `rows` keys of a head of k and v from `first` on.
template <class T>
__device__ __forceinline__ void exact_key_gradients(const AttentionBackward<T>& p, int batch, int kv_head, int first,
                                                    int rows) {
    const AttentionShape& s = p.shape;
    const int group = s.heads / s.kv_heads;
#pragma unroll 1
    for (int key = first; key < min(first + rows, s.length); ++key) {
        const int end = static_cast<int>(min(int64_t{s.length}, int64_t{key} + s.window));
        ExactRow<T> dk, dv;
#pragma unroll 1
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
#pragma unroll 1
            for (int query = key; query < end; ++query) {
                const auto weight = exact_weight(p, batch, head, query, key);
                dk.add(weight.score, p.q.head(s, batch, head) + query * p.q.token_stride, s.width);
                dv.add(weight.dropped, p.grad_out.head(s, batch, head) + query * p.grad_out.token_stride, s.width);
            }
        dk.store(static_cast<compute_t<T>>(s.scale), p.dk.head(s, batch, kv_head) + key * p.dk.token_stride, s.width);
        dv.store(1, p.dv.head(s, batch, kv_head) + key * p.dv.token_stride, s.width);
    }
}

}  // namespace slm::cuda
