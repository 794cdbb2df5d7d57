// One small kernel for each fault that the emulator must find; `mended` leaves the fault out.
//
// The lines that may be reported end in a comment with the fault's name. Each kernel takes x (32) and out (128) and
// runs in two blocks, of which each writes 64 elements of out at most.
#pragma once

#include "platform.cuh"

struct Shape {
    dim3 grid, block;
    std::size_t shared_bytes;
};

// Exports the kernel `name`, to be launched in one shape with the fault and in one without.
#define FAULT_OF_SHAPE(name, faulty, right)                                                                    \
    extern "C" void name(void** tensors, const long long* numbers) {                                           \
        const bool mended = numbers[0];                                                                        \
        const Shape shape = mended ? right : faulty;                                                           \
        launch(mended ? name<true> : name<false>, shape.grid, shape.block, shape.shared_bytes, nullptr,        \
               static_cast<const float*>(tensors[0]), static_cast<float*>(tensors[1]));                        \
    }
#define FAULT(name, threads, bytes) FAULT_OF_SHAPE(name, (Shape{2, threads, bytes}), (Shape{2, threads, bytes}))

// A launch beyond a limit of the hardware, and one at the limit.
#define LIMIT(name, faulty, right)                       \
    template <bool mended>                               \
    __global__ void name(const float*, float*) {}        \
    FAULT_OF_SHAPE(name, faulty, right)
