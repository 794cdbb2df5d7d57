// Layer norm, forward, as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: x, weight, bias, residual, out, sum, mean, rstd. numbers: rows, C, distance of the rows of x and of residual,
// whether there is a bias, whether a residual, multiprocessors.
#include "layer_norm_forward.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto in = [&](int which) { return static_cast<const T*>(tensors[which]); };
    const auto to = [&](int which) { return static_cast<T*>(tensors[which]); };
    const bool bias = numbers[4] != 0, residual = numbers[5] != 0;
    layer_norm_forward<T>({in(0), numbers[2], residual ? in(3) : nullptr, numbers[3], in(1), bias ? in(2) : nullptr,
                           to(4), residual ? to(5) : nullptr, static_cast<A*>(tensors[6]), static_cast<A*>(tensors[7]),
                           numbers[0], static_cast<int>(numbers[1]), A(1e-5)},
                          static_cast<int>(numbers[6]), nullptr);
}
