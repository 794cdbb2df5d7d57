// The kernels of RMSNorm, GELU, SwiGLU, cross-entropy and rotary positions, compiled for every dtype, and AdamW.
#include "training.cuh"

namespace slm::cuda {

#define INSTANTIATE(T) SLM_TRAINING_LAUNCHERS(, T)
SLM_FOR_ALL_DTYPES(INSTANTIATE)
template void adamw(const AdamW<float>&, cudaStream_t);

}  // namespace slm::cuda
