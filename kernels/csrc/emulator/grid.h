// A launch: its blocks spread over OS threads, each of which runs one block after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "block.h"

namespace emulator {

struct Options {
    std::uint64_t seed = 0;     // 0: threads and blocks in order; else: an order drawn from it
    int workers = 0;            // OS threads; 0: one per core
    int architecture = 80;      // 80 is sm_80: sets how much shared memory a block may have
    bool count = false;         // bank conflicts and sectors, in a build with checks (counter.h)
    long long traced_block = -1;  // the block whose events are kept (tracer.h), x fastest; -1: none
};

Options& options();

class BetweenBlocks;

struct Launch {
    const void* kernel;                // the function's address, to name it in reports
    void (*call)(const void*);         // calls the kernel with the arguments behind the pointer
    const void* arguments;
    std::size_t argument_bytes;
    dim3 grid, block;
    std::size_t shared_bytes;          // dynamic
    std::vector<Range> tensors = {};   // filled by run, and so is
    BetweenBlocks* history = nullptr;  // what blocks did to them; null in a build without checks
};

// Runs every block. Throws std::runtime_error when the launch is refused or a check fails.
void run(Launch launch);

// The most shared memory that one block may use on sm_`architecture`, in bytes.
std::size_t shared_limit(int architecture);

}  // namespace emulator
