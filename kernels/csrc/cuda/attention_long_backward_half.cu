// The attention backward for any length on tensor cores, compiled for half alone, as it takes long.
#include "attention_long_backward.cuh"

namespace slm::cuda {

template void attention_long(const AttentionBackward<__half>&, cudaStream_t);
template std::size_t attention_long_shared_bytes(const AttentionBackward<__half>&);
template bool attention_long_sum_is_deterministic(const AttentionBackward<__half>&);

}  // namespace slm::cuda
