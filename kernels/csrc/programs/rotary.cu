// Rotary positions as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: x, cos, sin, out. numbers: B, T, H, D / 2, the strides of x along B, T and H, that of the angles along B,
// whether to turn back.
#include "rotary.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto at = [&](int i) { return static_cast<int>(numbers[i]); };
    const Rotary<T> p{static_cast<const T*>(tensors[0]), numbers[4], numbers[5], numbers[6],
                      static_cast<const A*>(tensors[1]), static_cast<const A*>(tensors[2]), numbers[7],
                      A(numbers[8] != 0 ? -1 : 1), static_cast<T*>(tensors[3]),
                      numbers[0] * numbers[1] * numbers[2] * numbers[3], at(1), at(2), at(3)};
    rotary(p, 1, nullptr);
}
