// The attention kernels for any length on tensor cores, compiled for both 16-bit dtypes.
#include "attention_long_backward.cuh"
#include "attention_long_forward.cuh"

namespace slm::cuda {

#define INSTANTIATE(T)                                                      \
    template void attention_long(const AttentionForward<T>&, cudaStream_t); \
    template void attention_long(const AttentionBackward<T>&, cudaStream_t); \
    template std::size_t attention_long_shared_bytes(const AttentionBackward<T>&); \
    template bool attention_long_sum_is_deterministic(const AttentionBackward<T>&);
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace slm::cuda
