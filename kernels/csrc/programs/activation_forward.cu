// GELU or SwiGLU (SLM_CALL), forward, as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: gate, gate_bias, x, bias, out. numbers: rows, C, distance of the rows of gate and of x, whether there are biases,
// whether there is x.
#include "activation.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    const auto at = [&](int which) { return static_cast<T*>(tensors[which]); };
    const bool biases = numbers[4] != 0;
    const ActivationForward<T> p{{at(0), numbers[2], biases ? at(1) : nullptr},
                                 {at(2), numbers[3], biases ? at(3) : nullptr},
                                 at(4), numbers[5] != 0, numbers[0], static_cast<int>(numbers[1])};
    SLM_CALL(p);
}
