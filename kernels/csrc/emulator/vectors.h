// CUDA's built-in vector types: float2, float4, uint4, dim3, …, with CUDA's sizes and alignments.
//
// A GPU moves such a vector in one instruction and faults when its address is not a multiple of its size. In a build
// with checks a copy therefore goes through `vector_copy` (memory.cpp), which sees the access whole; the compiler
// would otherwise split it into scalars. Without checks they are plain structs.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#define EMULATOR_CHECKED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMULATOR_CHECKED 1
#endif
#endif

// Always part of the caller, so that an access is reported at the kernel's line.
#define EMULATOR_INLINE inline __attribute__((always_inline))

namespace emulator {

// Copies `bytes` from `from` to `to`, each checked as one access of the running thread.
void vector_copy(void* to, const void* from, std::size_t bytes);

}  // namespace emulator

#ifdef EMULATOR_CHECKED
#define EMULATOR_VECTOR_COPY(type)                                                                    \
    type() = default;                                                                                 \
    EMULATOR_INLINE type(const type& other) { emulator::vector_copy(this, &other, sizeof(type)); }    \
    EMULATOR_INLINE type& operator=(const type& other) {                                              \
        emulator::vector_copy(this, &other, sizeof(type));                                            \
        return *this;                                                                                 \
    }
#else
#define EMULATOR_VECTOR_COPY(type) type() = default;
#endif

#define EMULATOR_VECTORS(scalar, name, alignment2, alignment4)                                            \
    struct name##1 {                                                                                      \
        scalar x;                                                                                         \
    };                                                                                                    \
    struct alignas(alignment2) name##2 {                                                                  \
        scalar x, y;                                                                                      \
        constexpr name##2(scalar x, scalar y) : x(x), y(y) {}                                             \
        EMULATOR_VECTOR_COPY(name##2)                                                                     \
    };                                                                                                    \
    struct name##3 {                                                                                      \
        scalar x, y, z;                                                                                   \
    };                                                                                                    \
    struct alignas(alignment4) name##4 {                                                                  \
        scalar x, y, z, w;                                                                                \
        constexpr name##4(scalar x, scalar y, scalar z, scalar w) : x(x), y(y), z(z), w(w) {}             \
        EMULATOR_VECTOR_COPY(name##4)                                                                     \
    };                                                                                                    \
    inline name##1 make_##name##1(scalar x) { return {x}; }                                               \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                                  \
    inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                     \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMULATOR_VECTORS(signed char, char, 2, 4)
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned, uint, 8, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
#undef EMULATOR_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 size) : x(size.x), y(size.y), z(size.z) {}
};
