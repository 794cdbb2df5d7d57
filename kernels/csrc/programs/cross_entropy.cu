// Both passes of cross-entropy as a program of kernels/workbench/emulator.py, for the dtype SLM_T.
// tensors: logits (become the gradient), targets, largest, total, target, scale. numbers: rows, V.
#include "cross_entropy.cuh"

extern "C" void run(void** tensors, const long long* numbers) {
    using namespace slm::cuda;
    using T = SLM_T;
    using A = compute_t<T>;
    const auto statistic = [&](int which) { return static_cast<A*>(tensors[which]); };
    const CrossEntropy<T> p{static_cast<T*>(tensors[0]), static_cast<const int64_t*>(tensors[1]), statistic(2),
                            statistic(3), statistic(4), statistic(5), -100, numbers[0], static_cast<int>(numbers[1])};
    cross_entropy_observe(p, nullptr);
    cross_entropy_differentiate(p, nullptr);
}
