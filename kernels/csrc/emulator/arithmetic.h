// The device functions of CUDA that are plain arithmetic: fast-math intrinsics, bit operations, cached loads.
//
// The approximate ones (__expf, __fdividef, …) are computed exactly here: a result that needs the approximation to
// be right would be wrong on a GPU too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "numbers.h"

using std::max;
using std::min;

// glibc 2.42 declares the reciprocal square root itself.
#ifdef __GLIBC__
#define EMULATOR_NEEDS_RSQRT !__GLIBC_PREREQ(2, 42)
#else
#define EMULATOR_NEEDS_RSQRT 1
#endif
#if EMULATOR_NEEDS_RSQRT
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
#endif
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline float __saturatef(float x) { return x >= 0.0f ? std::min(x, 1.0f) : 0.0f; }

inline int __float_as_int(float x) { return emulator::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __umulhi(unsigned x, unsigned y) {
    return static_cast<unsigned>(static_cast<std::uint64_t>(x) * y >> 32);
}
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<std::int64_t>(x) * y >> 32); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int byte = 0; byte < 4; ++byte)
        result |= static_cast<unsigned>(both >> 8 * (selector >> 4 * byte & 7) & 0xFF) << 8 * byte;
    return result;
}

// Loads and stores with a cache hint: there is no cache here.
template <class T>
EMULATOR_INLINE T __ldg(const T* address) {
    return *address;
}
template <class T>
EMULATOR_INLINE T __ldcs(const T* address) {
    return *address;
}
template <class T>
EMULATOR_INLINE T __ldcg(const T* address) {
    return *address;
}
template <class T>
EMULATOR_INLINE T __ldca(const T* address) {
    return *address;
}
template <class T>
EMULATOR_INLINE void __stcs(T* address, T value) {
    *address = value;
}
template <class T>
EMULATOR_INLINE void __stcg(T* address, T value) {
    *address = value;
}
