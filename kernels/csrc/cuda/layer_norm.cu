// The layer norm kernels, compiled for every dtype.
#include "dtypes.cuh"
#include "layer_norm_backward.cuh"
#include "layer_norm_forward.cuh"

namespace slm::cuda {

#define INSTANTIATE(T)                                                               \
    template void layer_norm_forward(const LayerNormForward<T>&, int, cudaStream_t); \
    template void layer_norm_backward(const LayerNormBackward<T>&, int, cudaStream_t);
SLM_FOR_ALL_DTYPES(INSTANTIATE)

}  // namespace slm::cuda
