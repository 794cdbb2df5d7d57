// Which kernels compute an attention.
#include "attention.cuh"
#include "dtypes.cuh"

namespace slm::cuda {
namespace {

constexpr int kShortest = 128;  // up to here a row of scores fits into a warp's registers

template <class T>
constexpr bool is_16_bit = sizeof(T) == 2;

// Whether rows can be copied in pieces of 16 bytes.
template <class T>
bool in_packs(const Heads<T>& x) {
    const int64_t strides = x.batch_stride | x.token_stride | x.head_stride;
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && strides % kPackSize<T> == 0;
}

// What the tensor-core kernels need: sm_80, whole packs of D, and a scale that leaves the order of the scores as it is.
template <class T>
bool for_tensor_cores(const AttentionShape& s, int architecture) {
    return architecture >= 80 && s.width % kPackSize<T> == 0 && s.scale > 0;
}

}  // namespace

template <class T>
void attention(const AttentionForward<T>& p, int architecture, cudaStream_t stream) {
    if constexpr (is_16_bit<T>)
        if (for_tensor_cores<T>(p.shape, architecture) && in_packs(p.q) && in_packs(p.k) && in_packs(p.v) &&
            in_packs(p.out))
            return p.shape.length <= kShortest ? attention_short(p, stream) : attention_long(p, stream);
    attention_simple(p, stream);
}

template <class T>
void attention(const AttentionBackward<T>& p, int architecture, cudaStream_t stream) {
    if constexpr (is_16_bit<T>)
        if (for_tensor_cores<T>(p.shape, architecture) && in_packs(p.q) && in_packs(p.k) && in_packs(p.v) &&
            in_packs(p.out) && in_packs(p.grad_out) && in_packs(p.dq) && in_packs(p.dk) && in_packs(p.dv)) {
            // the short backward gives each head of k and v one owner
            const bool short_enough = p.shape.length <= kShortest && p.shape.heads == p.shape.kv_heads;
            return short_enough ? attention_short(p, stream) : attention_long(p, stream);
        }
    attention_simple(p, stream);
}

#define INSTANTIATE(T)                                                      \
    template void attention(const AttentionForward<T>&, int, cudaStream_t); \
    template void attention(const AttentionBackward<T>&, int, cudaStream_t);
SLM_FOR_ALL_DTYPES(INSTANTIATE)

}  // namespace slm::cuda
