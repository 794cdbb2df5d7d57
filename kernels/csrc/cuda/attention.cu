// Which kernels compute an attention.
#include "attention.cuh"
#include "dtypes.cuh"

namespace slm::cuda {

template <class T>
void attention(const AttentionForward<T>& p, int, cudaStream_t stream) {
    attention_simple(p, stream);
}

template <class T>
void attention(const AttentionBackward<T>& p, int, cudaStream_t stream) {
    attention_simple(p, stream);
}

#define INSTANTIATE(T)                                                      \
    template void attention(const AttentionForward<T>&, int, cudaStream_t); \
    template void attention(const AttentionBackward<T>&, int, cudaStream_t);
SLM_FOR_ALL_DTYPES(INSTANTIATE)

}  // namespace slm::cuda
