// The attention kernels without tensor cores, compiled for every dtype.
#include "attention_simple.cuh"
#include "dtypes.cuh"

namespace slm::cuda {

#define INSTANTIATE(T)                                                        \
    template void attention_simple(const AttentionForward<T>&, cudaStream_t); \
    template void attention_simple(const AttentionBackward<T>&, cudaStream_t);
SLM_FOR_ALL_DTYPES(INSTANTIATE)

}  // namespace slm::cuda
