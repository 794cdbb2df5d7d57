// Attention's arguments, from what a program of kernels/workbench/emulator.py is handed (kernels/workbench/programs.py).
//
// numbers: B, T, H, Hkv, D, window, the bits of the scale, the dropout threshold (0: none), whether dq may be summed up
// in any order, whether there are documents, then for each tensor of (B, T, H, D) its strides along B, T and H. Documents:
// B is their number, T that of all tokens.
#pragma once

#include "attention.cuh"

inline slm::cuda::AttentionShape attention_shape(const long long* numbers, const void* seed, const void* ends) {
    double scale;
    std::memcpy(&scale, numbers + 6, sizeof scale);
    const auto at = [&](int i) { return static_cast<int>(numbers[i]); };
    const int64_t* drops = numbers[7] != 0 ? static_cast<const int64_t*>(seed) : nullptr;
    const int64_t* documents = numbers[9] != 0 ? static_cast<const int64_t*>(ends) : nullptr;
    return {at(0), at(1), at(2),    at(3), at(4), at(5), scale, drops, static_cast<uint32_t>(numbers[7]),
            at(1), 0,     documents};
}

// Tensor `which` and its strides.
template <class T>
slm::cuda::Heads<T> attention_heads(void** tensors, const long long* numbers, int which) {
    const long long* strides = numbers + 10 + 3 * which;
    return {static_cast<T*>(tensors[which]), strides[0], strides[1], strides[2]};
}
