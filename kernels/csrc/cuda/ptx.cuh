// Every PTX instruction this project uses by name, each beside its plain C++ twin for the emulator.
//
// What CUDA offers as an intrinsic (shuffles, __ldcs, …) is not here. Registers of a fragment are uint32_t with two
// 16-bit elements in each, the lower index in the lower half. Layouts: PTX ISA, "Warp-level matrix instructions";
// emulator/tensor_core.h has them as formulas.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define PTX_SITE
#else
#include "../emulator/tensor_core.h"
#define PTX_SITE , emulator::Site site = emulator::Site::here()
#endif

namespace ptx {

template <class T>
inline constexpr bool is_half = false;
template <>
inline constexpr bool is_half<__half> = true;

// An address in shared memory as a number: 32 bits on a GPU, so that arithmetic on it takes one instruction.
#ifdef __CUDACC__
using Shared = uint32_t;

__device__ __forceinline__ Shared shared_address(const void* address) {
    return static_cast<Shared>(__cvta_generic_to_shared(address));
}

#ifdef __CUDA_ARCH__
inline constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
inline constexpr int kArchitecture = 0;  // nvcc's pass over the host's code
#endif

// The statement, which older GPUs than sm_`architecture` do not know: there it compiles to a trap. Callers choose
// other kernels for them (attention.cu).
#define PTX_FROM(architecture, ...)                    \
    if constexpr (kArchitecture >= (architecture)) {   \
        __VA_ARGS__;                                   \
    } else {                                           \
        __trap();                                      \
    }
#else
using Shared = uintptr_t;

inline Shared shared_address(const void* address) { return reinterpret_cast<Shared>(address); }
#endif

// The same number, which the compiler must then keep in a register: it would compute an address again in every turn of a
// loop. A shuffle, since nothing less hides from ptxas where a number comes from; the whole warp calls it together. With
// `keep` false, a constant, the compiler may choose.
__device__ __forceinline__ Shared kept(Shared x, bool keep = true) {
#ifdef __CUDACC__
    return keep ? __shfl_sync(0xFFFFFFFFu, x, threadIdx.x % 32) : x;
#else
    return x;
#endif
}

// ---- arithmetic ----

// 2^x to about 2 ulp; 0 for x = -inf. Subnormal results are 0 on a GPU.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

// A float32 rounded to tf32 (10 bits of mantissa), ties away from zero, as mma_tf32 wants it. NaN is cut off: the one
// whose upper mantissa bits are all 0 becomes infinity.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef __CUDACC__
    uint32_t y = 0;
    PTX_FROM(80, asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)))
    return y;
#else
    const auto word = emulator::bits<uint32_t>(x);
    return (std::isfinite(x) ? word + 0x1000u : word) & 0xFFFFE000u;
#endif
}

// ---- tensor cores: the whole warp calls them together; volatile, lest they move into a branch of some lanes ----

#define PTX_MMA(instruction)                                                                               \
    PTX_FROM(80, asm volatile(instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"         \
                              : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                             \
                              : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)))

// c (16, 8) += a (16, 16) b (16, 8), T = __nv_bfloat16 or __half, sums in float32.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_SITE) {
#ifdef __CUDACC__
    if constexpr (is_half<T>)
        PTX_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
    else
        PTX_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
#else
    emulator::mma(is_half<T> ? emulator::Format::half : emulator::Format::bfloat16, c, a, b0, b1, site);
#endif
}

// c (16, 8) += a (16, 8) b (8, 8) in tf32: registers hold float32 bits, rounded by to_tf32.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1 PTX_SITE) {
#ifdef __CUDACC__
    PTX_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#else
    emulator::mma(emulator::Format::tf32, c, a, b0, b1, site);
#endif
}

#undef PTX_MMA

// ---- ldmatrix: 8x8 matrices of 16-bit elements from shared memory ----

// Lane 8 m + r gives the address of row r of matrix m (16 bytes, aligned); register m gets matrix m.
// x1 reads the addresses of lanes 0-7, x2 of 0-15, x4 of all. `_trans` hands out the transposes.
#ifdef __CUDACC__
#define PTX_LDMATRIX(name, instruction, count, outputs, ...)                                              \
    __device__ __forceinline__ void name(uint32_t (&r)[count], Shared row) {                              \
        PTX_FROM(75, asm volatile("ldmatrix.sync.aligned.m8n8." instruction ".shared.b16 {" outputs       \
                                  "}, [%" #count "];"                                                     \
                                  : __VA_ARGS__                                                           \
                                  : "r"(row)                                                              \
                                  : "memory"))                                                            \
    }                                                                                                     \
    __device__ __forceinline__ void name(uint32_t (&r)[count], const void* row) { name(r, shared_address(row)); }
PTX_LDMATRIX(ldmatrix_x1, "x1", 1, "%0", "=r"(r[0]))
PTX_LDMATRIX(ldmatrix_x2, "x2", 2, "%0,%1", "=r"(r[0]), "=r"(r[1]))
PTX_LDMATRIX(ldmatrix_x4, "x4", 4, "%0,%1,%2,%3", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
PTX_LDMATRIX(ldmatrix_x1_trans, "x1.trans", 1, "%0", "=r"(r[0]))
PTX_LDMATRIX(ldmatrix_x2_trans, "x2.trans", 2, "%0,%1", "=r"(r[0]), "=r"(r[1]))
PTX_LDMATRIX(ldmatrix_x4_trans, "x4.trans", 4, "%0,%1,%2,%3", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
#else
#define PTX_LDMATRIX(name, transposed, count)                                                             \
    inline void name(uint32_t (&r)[count], const void* row PTX_SITE) {                                    \
        emulator::load_matrix(count, transposed, r, row, site);                                           \
    }                                                                                                     \
    inline void name(uint32_t (&r)[count], Shared row PTX_SITE) {                                         \
        name(r, reinterpret_cast<const void*>(row), site);                                                \
    }
PTX_LDMATRIX(ldmatrix_x1, false, 1)
PTX_LDMATRIX(ldmatrix_x2, false, 2)
PTX_LDMATRIX(ldmatrix_x4, false, 4)
PTX_LDMATRIX(ldmatrix_x1_trans, true, 1)
PTX_LDMATRIX(ldmatrix_x2_trans, true, 2)
PTX_LDMATRIX(ldmatrix_x4_trans, true, 4)
#endif
#undef PTX_LDMATRIX

// ---- cp.async: global to shared memory, past the registers ----

// Starts a copy of Bytes (4, 8 or 16; both addresses aligned to it). With `valid` false nothing is read, wherever
// `global` points, and zeros are written. The data may be read after cp_async_wait by this thread, and after a barrier
// behind it by the others.
template <int Bytes>
__device__ __forceinline__ void cp_async(Shared shared, const void* global, bool valid = true PTX_SITE) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#ifdef __CUDACC__
    const int source_bytes = valid ? Bytes : 0;
    if constexpr (Bytes == 16)  // past the L1 cache, which only 16 bytes can do
        PTX_FROM(80, asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                                  "r"(source_bytes)
                                  : "memory"))
    else
        PTX_FROM(80, asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global),
                                  "n"(Bytes), "r"(source_bytes)
                                  : "memory"))
#else
    emulator::copy_async(reinterpret_cast<void*>(shared), global, Bytes, valid ? Bytes : 0, site);
#endif
}
template <int Bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true PTX_SITE) {
#ifdef __CUDACC__
    cp_async<Bytes>(shared_address(shared), global, valid);
#else
    cp_async<Bytes>(shared_address(shared), global, valid, site);
#endif
}

// Closes a group: all copies this thread has started since the last one.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
    PTX_FROM(80, asm volatile("cp.async.commit_group;" ::: "memory"))
#else
    emulator::copy_async_commit();
#endif
}

// Waits until at most the `Open` youngest groups of this thread are still on their way.
template <int Open>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
    PTX_FROM(80, asm volatile("cp.async.wait_group %0;" ::"n"(Open) : "memory"))
#else
    emulator::copy_async_wait(Open);
#endif
}

// ---- st: a word to shared memory, and 16 bytes to global memory at once ----

__device__ __forceinline__ void store_shared(Shared address, uint32_t word) {
#ifdef __CUDACC__
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
#else
    *reinterpret_cast<uint32_t*>(address) = word;
#endif
}

// Written in CUDA alone, nvcc splits it into four stores of 4 bytes in most loops. `address` is aligned to 16.
__device__ __forceinline__ void store_16(void* address, uint4 words PTX_SITE) {
#ifdef __CUDACC__
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(address), "r"(words.x), "r"(words.y), "r"(words.z),
                 "r"(words.w)
                 : "memory");
#else
    emulator::require_global(address, "st.global", site);
    *static_cast<uint4*>(address) = words;
#endif
}

// ---- red: atomic adds to global memory that return nothing ----

__device__ __forceinline__ void red_add(float* address, float value PTX_SITE) {
#ifdef __CUDACC__
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory");
#else
    emulator::require_global(address, "red.global.add", site);
    atomicAdd(address, value, site);
#endif
}

// Each element on its own is atomic; `address` is aligned to the whole vector. One instruction from sm_90 on.
__device__ __forceinline__ void red_add(float2* address, float2 value PTX_SITE) {
#ifndef __CUDACC__
    emulator::require_global(address, "red.global.add", site);
    atomicAdd(address, value, site);
#else
    if constexpr (kArchitecture >= 90) {
        asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1,%2};" ::"l"(address), "f"(value.x), "f"(value.y)
                     : "memory");
    } else {
        red_add(&address->x, value.x);
        red_add(&address->y, value.y);
    }
#endif
}

__device__ __forceinline__ void red_add(float4* address, float4 value PTX_SITE) {
#ifndef __CUDACC__
    emulator::require_global(address, "red.global.add", site);
    atomicAdd(address, value, site);
#else
    if constexpr (kArchitecture >= 90) {
        asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(address), "f"(value.x),
                     "f"(value.y), "f"(value.z), "f"(value.w)
                     : "memory");
    } else {
        red_add(&address->x, value.x);
        red_add(&address->y, value.y);
        red_add(&address->z, value.z);
        red_add(&address->w, value.w);
    }
#endif
}

}  // namespace ptx

#undef PTX_SITE
#undef PTX_FROM
