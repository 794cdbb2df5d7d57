// Attention, forward, as a program of kernels/workbench/emulator.py. SLM_KERNELS: what to include; SLM_CALL(p): the launcher;
// SLM_T: the dtype. tensors: q, k, v, out, lse, seed, ends.
#include "attention.h"
#include "dtypes.cuh"
#undef SLM_FOR_ALL_DTYPES
#define SLM_FOR_ALL_DTYPES(_) _(SLM_T)
#include SLM_KERNELS

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    const auto in = [&](int which) { return attention_heads<const T>(tensors, numbers, which); };
    SLM_CALL((AttentionForward<T>{attention_shape(numbers, tensors[5], tensors[6]), in(0), in(1), in(2),
                                  attention_heads<T>(tensors, numbers, 3), static_cast<compute_t<T>*>(tensors[4])}));
}
