// RMSNorm, forward, as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: x, weight, residual, out, sum, rstd. numbers: rows, C, distance of the rows of x and of residual, whether there is
// a residual, multiprocessors.
#include "rms_norm.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto at = [&](int which) { return static_cast<T*>(tensors[which]); };
    const bool residual = numbers[4] != 0;
    rms_norm_forward<T>({at(0), numbers[2], residual ? at(2) : nullptr, numbers[3], at(1), at(3),
                         residual ? at(4) : nullptr, static_cast<A*>(tensors[5]), numbers[0],
                         static_cast<int>(numbers[1]), A(1e-5)},
                        static_cast<int>(numbers[5]), nullptr);
}
