// Fibers: a function with a stack of its own that can be left in the middle and entered again later.
//
// One CUDA thread of the emulator is one fiber. Entering and leaving costs about ten instructions, because only the
// registers that a C++ call must preserve are saved; no system call is made. Not here: who runs next (block.cpp).
#pragma once

#include <cstddef>

namespace emulator {

// One stack, with an unmapped page below it so that an overflow stops at once instead of spoiling a neighbour.
struct Stack {
    char* low = nullptr;   // first usable byte
    char* high = nullptr;  // one past the last usable byte

    bool contains(const void* address) const { return address >= low && address < high; }
};

constexpr std::size_t kStackBytes = 256 * 1024;

// Stacks are kept for the next launch: mapping them again would cost more than most kernels.
Stack borrow_stack();
void give_back_stack(Stack stack);

// Prepares `stack` so that the first switch to the returned stack pointer calls `entry`, which must never return.
void* prepare_fiber(Stack stack, void (*entry)());

// Saves the running fiber's registers, stores its stack pointer in *from and goes on where `to` was left.
extern "C" void emulator_switch(void** from, void* to);

}  // namespace emulator
