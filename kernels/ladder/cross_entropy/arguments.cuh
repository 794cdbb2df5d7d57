// What every rung of cross-entropy is called with: the arguments of the shipped kernels, in bfloat16.
//
// numbers: rows, size (the V logits of a row), multiprocessors of the GPU, the stream.
#pragma once

#include "cross_entropy.cuh"

namespace slm::ladder {

using namespace slm::cuda;
using T = __nv_bfloat16;

inline cudaStream_t stream_of(const long long* numbers) { return reinterpret_cast<cudaStream_t>(numbers[3]); }

// tensors: logits (rows, size), targets (rows), scale (1); gradient (rows, size), which comes as a copy of the logits;
// largest, total, target (rows).
inline CrossEntropy<T> arguments(void** tensors, const long long* numbers) {
    const auto statistic = [&](int i) { return static_cast<float*>(tensors[i]); };
    CrossEntropy<T> p{};
    p.targets = static_cast<const int64_t*>(tensors[1]);
    p.scale = statistic(2);
    p.logits = static_cast<T*>(tensors[3]);
    p.largest = statistic(4);
    p.total = statistic(5);
    p.target = statistic(6);
    p.ignored = -100;
    p.rows = numbers[0];
    p.size = static_cast<int>(numbers[1]);
    return p;
}

using Logit = Pack<T, 1>;

// A block for each row.
inline void launch_rows(void (*kernel)(CrossEntropy<T>), const CrossEntropy<T>& p, cudaStream_t stream) {
    launch(kernel, dim3(static_cast<unsigned>(p.rows)), dim3(kLogitThreads), 0, stream, p);
}

}  // namespace slm::ladder
