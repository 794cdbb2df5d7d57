// The dtypes of the kernels, what they are computed in, packs of 16 bytes, and sums over the lanes of a warp.
#pragma once

#include <cstring>
#include <type_traits>

#include "platform.cuh"

namespace slm::cuda {

// float for float, half and bfloat16; double for double: statistics and sums are kept in it.
template <class T>
struct ComputeType {
    using type = float;
};
template <>
struct ComputeType<double> {
    using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// x rounded to T, to nearest even.
template <class T>
__device__ __forceinline__ T narrow(compute_t<T> x) {
    if constexpr (std::is_same_v<T, __half>)
        return __float2half_rn(x);
    else if constexpr (std::is_same_v<T, __nv_bfloat16>)
        return __float2bfloat16_rn(x);
    else
        return x;
}

__device__ __forceinline__ float reciprocal_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double reciprocal_root(double x) { return rsqrt(x); }
__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }
__device__ __forceinline__ float natural_log(float x) { return logf(x); }
__device__ __forceinline__ double natural_log(double x) { return log(x); }
// The larger of two numbers; of NaN and a number, the number.
__device__ __forceinline__ float max_number(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double max_number(double a, double b) { return fmax(a, b); }

// a * b, rounded: never fused with an addition that follows.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __fma_rn(a, b, 0.0); }

template <class T>
inline constexpr int kPackSize = 16 / sizeof(T);

// N elements that move as one: 16 bytes, or a single element.
template <class T, int N>
struct Pack {
    static_assert(N == 1 || N == kPackSize<T>);
    T at[N];

    static __device__ __forceinline__ Pack load(const T* from) {
        Pack pack;
        if constexpr (N == 1) {
            pack.at[0] = *from;
        } else {
            const uint4 words = *reinterpret_cast<const uint4*>(from);
            memcpy(pack.at, &words, sizeof words);
        }
        return pack;
    }

    // To global memory.
    __device__ __forceinline__ void store(T* to) const {
        if constexpr (N == 1) {
            *to = at[0];
        } else {
            uint4 words;
            memcpy(&words, at, sizeof words);
            ptx::store_16(to, words);
        }
    }
};

// Whether a matrix of T can be read in packs: its address and the distance of its rows are multiples of 16 bytes.
template <class T>
bool in_packs(const T* data, int64_t row_stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_stride % kPackSize<T> == 0;
}

// The sum, or the maximum, over `Lanes` neighbouring lanes (a power of two), in each of them; `mask` names at least
// these lanes. Every lane gets the same bits, because both operands of each step are the same in both partners.
template <int Lanes, class A>
__device__ __forceinline__ A sum_over(A x, unsigned mask = 0xFFFFFFFFu) {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(mask, x, step);
    return x;
}

template <int Lanes, class A>
__device__ __forceinline__ A max_over(A x, unsigned mask = 0xFFFFFFFFu) {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) x = max_number(x, __shfl_xor_sync(mask, x, step));
    return x;
}

// The number of this thread's warp, in a form from which the compiler sees that all lanes take the same branches.
__device__ __forceinline__ int warp_of_block() {
    return __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace slm::cuda
