// Layer norm, backward, as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: grad_out, x, weight, mean, rstd, grad_residual, grad_x, grad_weight, grad_bias, partials. numbers: rows, C,
// distance of the rows of grad_out, x and grad_residual, whether there is a grad_residual, multiprocessors.
#include "layer_norm_backward.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto in = [&](int which) { return static_cast<const T*>(tensors[which]); };
    const auto to = [&](int which) { return static_cast<T*>(tensors[which]); };
    layer_norm_backward<T>({in(0), numbers[2], in(1), numbers[3], in(2), static_cast<const A*>(tensors[3]),
                            static_cast<const A*>(tensors[4]), numbers[5] != 0 ? in(5) : nullptr, numbers[4], to(6),
                            to(7), to(8), static_cast<A*>(tensors[9]), numbers[0], static_cast<int>(numbers[1])},
                           static_cast<int>(numbers[6]), nullptr);
}
