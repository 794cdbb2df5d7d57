// RMSNorm, backward, as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: grad_out, x, weight, rstd, grad_residual, grad_x, grad_weight, partials. numbers: rows, C, distance of the rows of
// grad_out, x and grad_residual, whether there is a grad_residual, multiprocessors.
#include "rms_norm.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto at = [&](int which) { return static_cast<T*>(tensors[which]); };
    rms_norm_backward<T>({at(0), numbers[2], at(1), numbers[3], at(2), static_cast<A*>(tensors[3]),
                          numbers[5] != 0 ? at(4) : nullptr, numbers[4], at(5), at(6), static_cast<A*>(tensors[7]),
                          numbers[0], static_cast<int>(numbers[1])},
                         static_cast<int>(numbers[6]), nullptr);
}
