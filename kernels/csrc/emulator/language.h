// CUDA's language for a plain C++ compiler: keywords, barriers, warp operations, atomics.
//
// Everything a kernel calls here has CUDA's name and meaning, and carries the line it was called from. What is not
// here does not compile: cooperative groups, textures, dynamic parallelism.
#pragma once

#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "arithmetic.h"
#include "block.h"
#include "grid.h"
#include "memory.h"
#include "numbers.h"
#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ EMULATOR_INLINE
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One copy per OS thread is one copy per block, because an OS thread runs one block at a time.
#ifdef __clang__
#define __shared__ static __thread
#else
#define __shared__ static __constinit __thread  // else gcc puts a guard beside a variable of class type
#endif

using cudaStream_t = void*;
constexpr int warpSize = emulator::kWarpSize;

namespace emulator {

// Not inline, so that a build with checks does not take their own loads for the kernel's.
int lane();
void* dynamic_shared_memory();

}  // namespace emulator

// The dynamic shared memory of the block; aligned to 1024 bytes.
template <class T>
inline T* dynamic_shared() {
    return static_cast<T*>(emulator::dynamic_shared_memory());
}

#define EMULATOR_SITE emulator::Site site = emulator::Site::here()

// ---- barriers and fences ----

inline void __syncthreads(EMULATOR_SITE) {
    emulator::current_block->meet_block(emulator::Barrier::plain, 0, "__syncthreads", site);
}
inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
    return emulator::current_block->meet_block(emulator::Barrier::count, predicate, "__syncthreads_count", site);
}
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
    return emulator::current_block->meet_block(emulator::Barrier::all, predicate, "__syncthreads_and", site);
}
inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
    return emulator::current_block->meet_block(emulator::Barrier::any, predicate, "__syncthreads_or", site);
}
// libc has a clock() that counts something else: with two to choose from a call does not compile, and says so.
void clock(EMULATOR_SITE) = delete;
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// ---- warp operations (warp.cpp) ----

namespace emulator {

void sync_warp(unsigned mask, Site site);
// Every lane gives `value`, of which `bytes` count, and gets the value of lane `source`.
std::uint64_t shuffle(unsigned mask, std::uint64_t value, int bytes, int source, const char* operation, Site site);
unsigned ballot(unsigned mask, bool predicate, Site site);
unsigned match_any(unsigned mask, std::uint64_t value, int bytes, Site site);

enum class Reduction { add, minimum, maximum, bit_and, bit_or, bit_xor };
// `value` is sign- or zero-extended to 64 bits by the caller.
std::int64_t reduce(unsigned mask, std::int64_t value, Reduction reduction, const char* operation, Site site);

template <class T>
inline T shuffle_any(unsigned mask, T value, int source, const char* operation, Site site) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    word = shuffle(mask, word, sizeof value, source, operation, site);
    std::memcpy(&value, &word, sizeof value);
    return value;
}

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, EMULATOR_SITE) { emulator::sync_warp(mask, site); }
inline unsigned __activemask(EMULATOR_SITE) { return emulator::current_block->meet_active(site); }

// A lane's source lies in its own segment of `width` lanes (a power of two); beyond the segment it is the lane itself.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
    const int segment = emulator::lane() & -width;
    return emulator::shuffle_any(mask, value, segment + (source & (width - 1)), "__shfl_sync", site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
    const int lane = emulator::lane(), source = lane - static_cast<int>(delta);
    return emulator::shuffle_any(mask, value, source < (lane & -width) ? lane : source, "__shfl_up_sync", site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
    const int lane = emulator::lane(), source = lane + static_cast<int>(delta);
    return emulator::shuffle_any(mask, value, source > (lane | (width - 1)) ? lane : source, "__shfl_down_sync", site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_SITE) {
    const int lane = emulator::lane(), source = lane ^ lanes;
    return emulator::shuffle_any(mask, value, source > (lane | (width - 1)) ? lane : source, "__shfl_xor_sync", site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return emulator::ballot(mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return emulator::reduce(mask, predicate != 0, emulator::Reduction::bit_or, "__any_sync", site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return emulator::reduce(mask, predicate != 0, emulator::Reduction::bit_and, "__all_sync", site) != 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return emulator::match_any(mask, word, sizeof value, site);
}

#define EMULATOR_REDUCE(type, name, reduction)                                                                     \
    inline type name(unsigned mask, type value, EMULATOR_SITE) {                                                   \
        return static_cast<type>(emulator::reduce(mask, value, emulator::Reduction::reduction, #name, site));      \
    }
EMULATOR_REDUCE(int, __reduce_add_sync, add)
EMULATOR_REDUCE(unsigned, __reduce_add_sync, add)
EMULATOR_REDUCE(int, __reduce_min_sync, minimum)
EMULATOR_REDUCE(unsigned, __reduce_min_sync, minimum)
EMULATOR_REDUCE(int, __reduce_max_sync, maximum)
EMULATOR_REDUCE(unsigned, __reduce_max_sync, maximum)
EMULATOR_REDUCE(unsigned, __reduce_and_sync, bit_and)
EMULATOR_REDUCE(unsigned, __reduce_or_sync, bit_or)
EMULATOR_REDUCE(unsigned, __reduce_xor_sync, bit_xor)
#undef EMULATOR_REDUCE

// ---- atomics (atomics.cpp): each returns the value before ----

int atomicAdd(int* address, int value, EMULATOR_SITE);
unsigned atomicAdd(unsigned* address, unsigned value, EMULATOR_SITE);
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value, EMULATOR_SITE);
float atomicAdd(float* address, float value, EMULATOR_SITE);
double atomicAdd(double* address, double value, EMULATOR_SITE);
__half atomicAdd(__half* address, __half value, EMULATOR_SITE);
__nv_bfloat16 atomicAdd(__nv_bfloat16* address, __nv_bfloat16 value, EMULATOR_SITE);
int atomicSub(int* address, int value, EMULATOR_SITE);
unsigned atomicSub(unsigned* address, unsigned value, EMULATOR_SITE);
int atomicMax(int* address, int value, EMULATOR_SITE);
unsigned atomicMax(unsigned* address, unsigned value, EMULATOR_SITE);
int atomicMin(int* address, int value, EMULATOR_SITE);
unsigned atomicMin(unsigned* address, unsigned value, EMULATOR_SITE);
int atomicExch(int* address, int value, EMULATOR_SITE);
unsigned atomicExch(unsigned* address, unsigned value, EMULATOR_SITE);
float atomicExch(float* address, float value, EMULATOR_SITE);
int atomicCAS(int* address, int compare, int value, EMULATOR_SITE);
unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value, EMULATOR_SITE);
unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare, unsigned long long value,
                             EMULATOR_SITE);
unsigned atomicInc(unsigned* address, unsigned limit, EMULATOR_SITE);

// Vectors: each element is atomic, not the whole. float2 and float4 exist from sm_90 on, in global memory only.
// Inline, because a build with checks passes vectors in another way than the emulator's own files.
#define EMULATOR_ADD_PAIR(type)                                                                             \
    inline type atomicAdd(type* address, type value, EMULATOR_SITE) {                                       \
        emulator::require_aligned(address, sizeof(type), "atomicAdd", site);                                \
        return {atomicAdd(&address->x, value.x, site), atomicAdd(&address->y, value.y, site)};              \
    }
EMULATOR_ADD_PAIR(__half2)
EMULATOR_ADD_PAIR(__nv_bfloat162)
EMULATOR_ADD_PAIR(float2)
#undef EMULATOR_ADD_PAIR

inline float4 atomicAdd(float4* address, float4 value, EMULATOR_SITE) {
    emulator::require_aligned(address, sizeof(float4), "atomicAdd", site);
    return {atomicAdd(&address->x, value.x, site), atomicAdd(&address->y, value.y, site),
            atomicAdd(&address->z, value.z, site), atomicAdd(&address->w, value.w, site)};
}
