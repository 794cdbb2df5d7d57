// Attention, backward, as a program of kernels/workbench/emulator.py; macros as in attention_forward.cu.
// tensors: grad_out, q, k, v, out, dq, dk, dv, lse, delta, dq_sum, seed, ends.
#include "attention.h"
#include "dtypes.cuh"
#undef SLM_FOR_ALL_DTYPES
#define SLM_FOR_ALL_DTYPES(_) _(SLM_T)
#include SLM_KERNELS

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto in = [&](int which) { return attention_heads<const T>(tensors, numbers, which); };
    const auto to = [&](int which) { return attention_heads<T>(tensors, numbers, which); };
    SLM_CALL((AttentionBackward<T>{attention_shape(numbers, tensors[11], tensors[12]), in(0), in(1), in(2), in(3), in(4),
                                   static_cast<const A*>(tensors[8]), static_cast<A*>(tensors[9]), to(5), to(6),
                                   to(7), numbers[8] != 0 ? static_cast<A*>(tensors[10]) : nullptr}));
}
