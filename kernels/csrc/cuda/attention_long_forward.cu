// The attention forward for any length on tensor cores, compiled for both 16-bit dtypes.
#include "attention_long_forward.cuh"

namespace slm::cuda {

template void attention_long(const AttentionForward<__half>&, cudaStream_t);
template void attention_long(const AttentionForward<__nv_bfloat16>&, cudaStream_t);

}  // namespace slm::cuda
