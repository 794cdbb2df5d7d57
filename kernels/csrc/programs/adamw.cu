// One step of AdamW as a program of kernels/workbench/emulator.py.
// tensors: beta1, beta2, eps, kept, rate, root and gradient_scale in one, then for each parameter itself, its gradient, the
// average and the average of the squares. numbers: how many parameters, then the size of each.
#include "adamw.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    const float* options = static_cast<const float*>(tensors[0]);
    const auto at = [&](int which) { return static_cast<float*>(tensors[which]); };
    AdamW<float> p{};
    p.tensors = static_cast<int>(numbers[0]);
    for (int i = 0; i < p.tensors; ++i) {
        p.parameter[i] = at(4 * i + 1);
        p.gradient[i] = at(4 * i + 2);
        p.average[i] = at(4 * i + 3);
        p.square[i] = at(4 * i + 4);
        p.size[i] = numbers[i + 1];
    }
    p.beta1 = options[0];
    p.beta2 = options[1];
    p.eps = options[2];
    p.kept = options[3];
    p.rate = options[4];
    p.root = options[5];
    p.gradient_scale = options[6];
    adamw(p, nullptr);
}
