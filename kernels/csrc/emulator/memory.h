// Memory as a kernel may use it: its own stack, the block's shared memory, and the tensors it was given.
//
// The functions here are called by the twins of PTX instructions, by atomics, and, in a build with checks, before
// every load and store (hooks.cpp). Without checks only addresses that a GPU would fault on are refused.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "block.h"

namespace emulator {

// Where an access was made: a line known at compile time, or the address of the code.
struct Place {
    const void* where;  // the file's name, or the address
    int line;           // 0 for an address

    Place(const void* where, int line) : where(where), line(line) {}
    Place(Site site) : Place(site.file, site.line) {}
    explicit Place(const void* code) : Place(code, 0) {}
    std::string text() const;
};

enum class Access : std::uint8_t { read, write, atomic };

// The tensors that kernels launched during its life may touch. With none given, global memory is not checked.
class TensorScope {
  public:
    TensorScope() = default;
    ~TensorScope();
    TensorScope(const TensorScope&) = delete;
    TensorScope& operator=(const TensorScope&) = delete;
    void add(const void* start, std::size_t bytes);

  private:
    std::vector<Range> mine_;
};

std::vector<Range> tensors_in_scope();

// Where this OS thread keeps the `__shared__` variables of every kernel of this library; empty where unknown.
Range static_shared_segment();

// What in that segment is the emulator's own: threadIdx and the like.
std::array<Range, 6> own_variables();

// True once code compiled with checks was loaded.
bool& checks_are_on();

// One access of the running thread, wherever it goes.
void check_access(const void* address, std::size_t bytes, Access access, Place place);

// Stops the kernel unless `address` is a multiple of `alignment`.
void require_aligned(const void* address, std::size_t alignment, const char* operation, Place place);

// Stops the kernel if the address is in shared memory or on the thread's own stack.
void require_global(const void* address, const char* operation, Place place);

// Stops the kernel unless the bytes lie in shared memory (where its extent is known).
void require_shared(const void* address, std::size_t bytes, const char* operation, Place place);

}  // namespace emulator
