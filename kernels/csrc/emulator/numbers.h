// __nv_bfloat16, __half and their pairs, with CUDA's names and its rounding to the nearest, ties to even.
//
// Arithmetic is done in float32 and rounded once, as the hardware does; NaN becomes CUDA's canonical NaN, 0x7fff.
#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace emulator {

template <class To, class From>
inline To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

// The float32 that rounds to a 16-bit type as `value` itself does: what is lost is cut off, and noted in the last bit.
inline float round_to_odd(double value) {
    const auto nearest = static_cast<float>(value);
    if (nearest == value) return nearest;
    const bool is_beyond = __builtin_fabs(nearest) > __builtin_fabs(value);
    return bits<float>((bits<std::uint32_t>(nearest) - is_beyond) | 1u);
}

inline std::uint16_t to_bfloat16(float value) {
    const auto word = bits<std::uint32_t>(value);
    if ((word & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return static_cast<std::uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
}

inline float from_bfloat16(std::uint16_t word) { return bits<float>(std::uint32_t{word} << 16); }

// Adding 2^e for the right e leaves exactly the bits that float16 keeps, rounded by the float unit itself.
inline std::uint16_t to_half(float value) {
    const auto word = bits<std::uint32_t>(value);
    const std::uint32_t sign = word >> 16 & 0x8000, magnitude = word & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FFF;
    if (magnitude >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);  // 65520 and above: infinity
    if (magnitude < 0x38800000) {                                                  // below 2^-14: subnormal
        const float aligned = bits<float>(magnitude) + 0.5f;                       // ulp of 0.5 is 2^-24
        return static_cast<std::uint16_t>(sign | (bits<std::uint32_t>(aligned) - bits<std::uint32_t>(0.5f)));
    }
    const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

inline float from_half(std::uint16_t word) {
    const std::uint32_t sign = std::uint32_t{word & 0x8000u} << 16, rest = word & 0x7FFFu;
    if (rest >= 0x7C00) return bits<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    if (rest >= 0x0400) return bits<float>(sign | ((rest << 13) + (112u << 23)));
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

}  // namespace emulator

// A 16-bit type, its pair and the functions that CUDA's headers offer for both. `s` is the scalar's part in their
// names (bfloat16 or half), `pair` the pair's (bfloat162 or half2).
#define EMULATOR_NUMBER(type, type2, s, pair)                                                                     \
    struct type {                                                                                                 \
        std::uint16_t word;                                                                                       \
        type() = default;                                                                                         \
        type(float value) : word(emulator::to_##s(value)) {}                                                      \
        explicit type(double value) : word(emulator::to_##s(emulator::round_to_odd(value))) {}                    \
        explicit type(int value) : type(static_cast<double>(value)) {}                                            \
        operator float() const { return emulator::from_##s(word); }                                               \
    };                                                                                                            \
    struct alignas(4) type2 {                                                                                     \
        type x, y;                                                                                                \
        type2(type x, type y) : x(x), y(y) {}                                                                     \
        EMULATOR_VECTOR_COPY(type2)                                                                               \
    };                                                                                                            \
    inline type operator+(type a, type b) { return float(a) + float(b); }                                         \
    inline type operator-(type a, type b) { return float(a) - float(b); }                                         \
    inline type operator*(type a, type b) { return float(a) * float(b); }                                         \
    inline type operator/(type a, type b) { return float(a) / float(b); }                                         \
    inline type operator-(type a) { return -float(a); }                                                           \
    inline type& operator+=(type& a, type b) { return a = a + b; }                                                \
    inline type& operator-=(type& a, type b) { return a = a - b; }                                                \
    inline type& operator*=(type& a, type b) { return a = a * b; }                                                \
    inline bool operator==(type a, type b) { return float(a) == float(b); }                                       \
    inline bool operator!=(type a, type b) { return float(a) != float(b); }                                       \
    inline bool operator<(type a, type b) { return float(a) < float(b); }                                         \
    inline bool operator>(type a, type b) { return float(a) > float(b); }                                         \
    inline bool operator<=(type a, type b) { return float(a) <= float(b); }                                       \
    inline bool operator>=(type a, type b) { return float(a) >= float(b); }                                       \
    inline type __float2##s(float value) { return value; }                                                        \
    inline type __float2##s##_rn(float value) { return value; }                                                   \
    inline float __##s##2float(type value) { return value; }                                                      \
    inline std::uint16_t __##s##_as_ushort(type value) { return value.word; }                                     \
    inline type __ushort_as_##s(std::uint16_t word) { return emulator::bits<type>(word); }                        \
    inline type2 __float22##pair##_rn(float2 v) { return {v.x, v.y}; }                                            \
    inline type2 __floats2##pair##_rn(float a, float b) { return {a, b}; }                                        \
    inline type2 __float2##pair##_rn(float a) { return {a, a}; }                                                  \
    inline float2 __##pair##2float2(type2 v) { return {float(v.x), float(v.y)}; }                                 \
    inline type2 __##s##2##pair(type a) { return {a, a}; }                                                        \
    inline type2 __halves2##pair(type a, type b) { return {a, b}; }                                               \
    inline type __low2##s(type2 v) { return v.x; }                                                                \
    inline type __high2##s(type2 v) { return v.y; }                                                               \
    inline type2 make_##pair(type a, type b) { return {a, b}; }                                                   \
    inline type __hadd(type a, type b) { return a + b; }                                                          \
    inline type __hsub(type a, type b) { return a - b; }                                                          \
    inline type __hmul(type a, type b) { return a * b; }                                                          \
    inline type __hmax(type a, type b) { return __builtin_fmaxf(a, b); }                                          \
    inline type __hmin(type a, type b) { return __builtin_fminf(a, b); }                                          \
    inline type2 __hadd2(type2 a, type2 b) { return {a.x + b.x, a.y + b.y}; }                                     \
    inline type2 __hsub2(type2 a, type2 b) { return {a.x - b.x, a.y - b.y}; }                                     \
    inline type2 __hmul2(type2 a, type2 b) { return {a.x * b.x, a.y * b.y}; }                                     \
    inline type2 __hmax2(type2 a, type2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }

EMULATOR_NUMBER(__nv_bfloat16, __nv_bfloat162, bfloat16, bfloat162)
EMULATOR_NUMBER(__half, __half2, half, half2)
#undef EMULATOR_NUMBER

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using half = __half;
using half2 = __half2;
