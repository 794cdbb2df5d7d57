// Fibers: a function with a stack of its own that can be left in the middle and entered again later.
//
// One CUDA thread of the emulator is one fiber. Entering and leaving costs about ten instructions, because only the
// registers that a C++ call must preserve are saved; no system call is made. Not here: who runs next (block.cpp).
#pragma once

#include <cstddef>

namespace emulator {

struct Range {
    char* start = nullptr;
    std::size_t size = 0;

    bool contains(const void* address) const {
        return static_cast<std::size_t>(static_cast<const char*>(address) - start) < size;
    }
    bool operator==(const Range& other) const { return start == other.start && size == other.size; }
};

constexpr std::size_t kStackBytes = 256 * 1024;

// A stack has an unmapped page below it: an overflow stops at once instead of spoiling a neighbour.
// Stacks are kept for the next launch: mapping them again would cost more than most kernels.
Range borrow_stack();
void give_back_stack(Range stack);

// Prepares `stack` so that the first switch to the returned stack pointer calls `entry`, which must never return.
void* prepare_fiber(Range stack, void (*entry)());

// Saves the running fiber's registers, stores its stack pointer in *from and goes on where `to` was left.
extern "C" void emulator_switch(void** from, void* to);

}  // namespace emulator
