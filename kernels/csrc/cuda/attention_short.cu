// The attention kernels for at most 128 tokens on tensor cores, compiled for both 16-bit dtypes.
#include "attention_short_backward.cuh"
#include "attention_short_forward.cuh"

namespace slm::cuda {

#define INSTANTIATE(T)                                                       \
    template void attention_short(const AttentionForward<T>&, cudaStream_t); \
    template void attention_short(const AttentionBackward<T>&, cudaStream_t); \
    template std::size_t attention_short_shared_bytes(const AttentionBackward<T>&);
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace slm::cuda
