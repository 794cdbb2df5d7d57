// Which kernels compute an attention.
#include "attention.cuh"
#include "dtypes.cuh"

namespace slm::cuda {
namespace {

enum class Rung { kSimple, kShort, kLong };  // attention_simple.cuh, attention_short_…cuh, attention_long_…cuh

// Whether rows can be copied in pieces of 16 bytes.
template <class T>
bool in_packs(const Heads<T>& x) {
    const int64_t strides = x.batch_stride | x.token_stride | x.head_stride;
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && strides % kPackSize<T> == 0;
}

// What the tensor-core kernels need: 16 bits, sm_80, whole packs of D, and a scale that leaves the order of the scores
// as it is and is neither 0 nor infinite as a float.
template <class T>
bool for_tensor_cores(const AttentionShape& s, const Limits& limits) {
    return sizeof(T) == 2 && limits.architecture >= 80 && s.width % kPackSize<T> == 0 && s.scale > 1e-30 && s.scale < 1e30;
}

bool is_short(const AttentionShape& s) { return s.length <= kShortTokens && s.ends == nullptr; }

template <class T>
Rung rung(const AttentionForward<T>& p, const Limits& limits) {
    if (!for_tensor_cores<T>(p.shape, limits) || !in_packs(p.q) || !in_packs(p.k) || !in_packs(p.v) ||
        !in_packs(p.out))
        return Rung::kSimple;
    return is_short(p.shape) ? Rung::kShort : Rung::kLong;
}

// The short backward gives each head of k and v one owner, and holds all of a head in shared memory.
template <class T>
Rung rung(const AttentionBackward<T>& p, const Limits& limits) {
    if constexpr (sizeof(T) == 2) {
        const bool packs = in_packs(p.q) && in_packs(p.k) && in_packs(p.v) && in_packs(p.out) && in_packs(p.grad_out) &&
                           in_packs(p.dq) && in_packs(p.dk) && in_packs(p.dv);
        if (!packs || !for_tensor_cores<T>(p.shape, limits)) return Rung::kSimple;
        const bool owns = p.shape.heads == p.shape.kv_heads && attention_short_shared_bytes(p) <= limits.shared_bytes;
        return is_short(p.shape) && owns ? Rung::kShort : Rung::kLong;
    }
    return Rung::kSimple;
}

template <class Arguments>
void enqueue(Rung which, const Arguments& p, cudaStream_t stream) {
    if constexpr (sizeof(*p.q.data) == 2) {
        if (which == Rung::kShort) return attention_short(p, stream);
        if (which == Rung::kLong) return attention_long(p, stream);
    }
    attention_simple(p, stream);
}

}  // namespace

template <class T>
void attention(const AttentionForward<T>& p, const Limits& limits, cudaStream_t stream) {
    enqueue(rung(p, limits), p, stream);
}

template <class T>
void attention(const AttentionBackward<T>& p, const Limits& limits, cudaStream_t stream) {
    enqueue(rung(p, limits), p, stream);
}

template <class T>
bool has_use_for_dq_sum(const AttentionBackward<T>& p, const Limits& limits, bool deterministic) {
    if constexpr (sizeof(T) == 2)
        return rung(p, limits) == Rung::kLong && attention_long_shared_bytes(p) <= limits.shared_bytes &&
               (!deterministic || attention_long_sum_is_deterministic(p));
    return false;
}

#define INSTANTIATE(T)                                                                \
    template void attention(const AttentionForward<T>&, const Limits&, cudaStream_t);  \
    template void attention(const AttentionBackward<T>&, const Limits&, cudaStream_t); \
    template bool has_use_for_dq_sum(const AttentionBackward<T>&, const Limits&, bool);
SLM_FOR_ALL_DTYPES(INSTANTIATE)

}  // namespace slm::cuda
