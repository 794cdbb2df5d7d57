// The one header a kernel file includes: CUDA, or the emulator in its place.
//
// nvcc compiles the file for a GPU. Any other C++17 compiler compiles the same file for the CPU, where
// emulator/language.h gives CUDA's names their meaning. No torch header on either side.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

// The dynamic shared memory of the block. Declare carve-outs aligned to 16 bytes or more (128 for swizzled tiles).
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char slm_dynamic_shared[];
    return reinterpret_cast<T*>(slm_dynamic_shared);
}

#else

#include "../emulator/language.h"

#endif

#include "launch.cuh"
#include "ptx.cuh"
