// The attention backward for any length on tensor cores, compiled for bfloat16 alone, as it takes long.
#include "attention_long_backward.cuh"

namespace slm::cuda {

template void attention_long(const AttentionBackward<__nv_bfloat16>&, cudaStream_t);
template std::size_t attention_long_shared_bytes(const AttentionBackward<__nv_bfloat16>&);
template bool attention_long_sum_is_deterministic(const AttentionBackward<__nv_bfloat16>&);

}  // namespace slm::cuda
