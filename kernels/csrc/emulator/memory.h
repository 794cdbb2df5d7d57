// What the running thread does to memory, as the checks see it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block.h"

namespace emulator {

struct Range {
    char* start = nullptr;
    std::size_t size = 0;

    bool contains(const void* address) const {
        return static_cast<std::size_t>(static_cast<const char*>(address) - start) < size;
    }
};

// The tensors that kernels launched during its life may touch. With none given, global memory is not checked.
class TensorScope {
  public:
    TensorScope();
    ~TensorScope();
    TensorScope(const TensorScope&) = delete;
    TensorScope& operator=(const TensorScope&) = delete;
    void add(const void* start, std::size_t bytes);
};

// Where this OS thread keeps the `__shared__` variables of every kernel of this library; empty where unknown.
Range static_shared_segment();

// All threads of the block have met: what was written before is ordered before what comes.
void block_barrier_passed();

// The lanes in `mask` of the running thread's warp have met in __syncwarp.
void warp_barrier_passed(unsigned mask);

// What the twins of PTX instructions and the atomics do to memory.
void shared_read(const void* address, std::size_t bytes, const char* operation, Site site);
void atomic_access(const void* address, std::size_t bytes, const char* operation, Site site);
void async_copy_issued(const void* to, const void* from, int bytes, int source_bytes, Site site);
void async_copy_landed(const AsyncCopy& copy, Site site);

// Stops the kernel unless `address` is a multiple of `alignment`.
void require_aligned(const void* address, std::size_t alignment, const char* operation, Site site);

}  // namespace emulator
