// GELU or SwiGLU (SLM_CALL), backward, as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: grad_out, gate, gate_bias, x, bias, grad_gate, grad_x, grad_gate_bias, grad_bias, partials, x_partials. numbers:
// rows, C, distance of the rows of grad_out, gate and x, whether there are biases, whether there is x.
#include "activation.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto at = [&](int which) { return static_cast<T*>(tensors[which]); };
    const bool biases = numbers[5] != 0;
    const ActivationBackward<T> p{at(0), numbers[2],
                                  {at(1), numbers[3], biases ? at(2) : nullptr},
                                  {at(3), numbers[4], biases ? at(4) : nullptr},
                                  numbers[6] != 0, at(5), at(6), static_cast<A*>(tensors[9]),
                                  static_cast<A*>(tensors[10]), at(7), at(8), numbers[0], static_cast<int>(numbers[1])};
    SLM_CALL(p);
}
