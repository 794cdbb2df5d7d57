// The launchers of the other ops of a training step, which training.cu compiles.
#pragma once

#include "activation.cuh"
#include "adamw.cuh"
#include "cross_entropy.cuh"
#include "dtypes.cuh"
#include "rms_norm.cuh"
#include "rotary.cuh"

// Each launcher for the dtype T. EXTERN: `extern` to declare it, nothing to compile it.
#define SLM_TRAINING_LAUNCHERS(EXTERN, T)                                                         \
    EXTERN template void rms_norm_forward(const RmsNormForward<T>&, int, cudaStream_t);           \
    EXTERN template void rms_norm_backward(const RmsNormBackward<T>&, int, cudaStream_t);         \
    SLM_ACTIVATION_LAUNCHERS(EXTERN, GeluTanh, T)                                                 \
    SLM_ACTIVATION_LAUNCHERS(EXTERN, GeluErf, T)                                                  \
    SLM_ACTIVATION_LAUNCHERS(EXTERN, Silu, T)                                                     \
    EXTERN template void cross_entropy_observe(const CrossEntropy<T>&, cudaStream_t);             \
    EXTERN template void cross_entropy_differentiate(const CrossEntropy<T>&, cudaStream_t);       \
    EXTERN template void rotary(const Rotary<T>&, int, cudaStream_t);
#define SLM_ACTIVATION_LAUNCHERS(EXTERN, F, T)                                                    \
    EXTERN template void activation_forward<F>(const ActivationForward<T>&, int, cudaStream_t);   \
    EXTERN template void activation_backward<F>(const ActivationBackward<T>&, cudaStream_t);

namespace slm::cuda {

#define SLM_DECLARE(T) SLM_TRAINING_LAUNCHERS(extern, T)
SLM_FOR_ALL_DTYPES(SLM_DECLARE)
#undef SLM_DECLARE
extern template void adamw(const AdamW<float>&, cudaStream_t);

}  // namespace slm::cuda
