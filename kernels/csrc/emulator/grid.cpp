// Launches: the limits of the hardware, the workers, and the order of blocks.

#include "grid.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "between_blocks.h"
#include "memory.h"
#include "symbols.h"

namespace emulator {

Options& options() {
    static Options all;
    return all;
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
std::size_t shared_limit(int architecture) {
    const int kib = architecture >= 90 && architecture < 120 ? 227
                    : architecture >= 120                    ? 99
                    : architecture == 86 || architecture == 89 ? 99
                    : architecture == 80 || architecture == 87 ? 163
                    : architecture == 75                       ? 64
                    : architecture >= 70                       ? 96
                                                               : 48;
    return std::size_t{1024} * kib;
}

namespace {

void refuse(const Launch& launch, const std::string& why) {
    throw std::runtime_error("kernel " + function_name(launch.kernel) + " cannot be launched: " + why);
}

void check_limits(const Launch& launch) {
    const dim3 grid = launch.grid, block = launch.block;
    const std::size_t threads = std::size_t{block.x} * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z) refuse(launch, "the grid has no block");
    if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535)
        refuse(launch, "a grid may have 2^31 - 1 x 65535 x 65535 blocks");
    if (!threads || threads > 1024 || block.z > 64)
        refuse(launch, std::to_string(threads) + " threads in a block, allowed are 1 to 1024 (64 along z)");
    const std::size_t limit = shared_limit(options().architecture);
    if (launch.shared_bytes > limit)
        refuse(launch, std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, sm_" +
                           std::to_string(options().architecture) + " has " + std::to_string(limit) + " for one block");
}

std::uint64_t blocks_in(const Launch& launch) {
    return std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
}

// Blocks are handed out one by one, so that workers end together however unequal the blocks are.
struct Progress {
    std::atomic<std::uint64_t> next{0};
    std::atomic<bool> stop{false};
    std::mutex lock;
    std::exception_ptr error;
};

// With a seed, block `turn` of the order is (turn * stride + seed) modulo the count, stride and count coprime.
std::uint64_t block_at(std::uint64_t turn, std::uint64_t count, std::uint64_t seed) {
    if (!seed) return turn;
    std::uint64_t stride = 1 + (seed * 0x9E3779B97F4A7C15u) % count;
    const auto coprime = [count](std::uint64_t a) {
        std::uint64_t b = count;
        while (b) std::swap(a %= b, b);
        return a == 1;
    };
    while (!coprime(stride)) ++stride;
    return (turn * stride + seed % count) % count;
}

void work(const Launch& launch, Progress& progress) {
    try {
        Block block(launch);
        const std::uint64_t count = blocks_in(launch), seed = options().seed;
        for (std::uint64_t turn; !progress.stop && (turn = progress.next++) < count;) {
            const std::uint64_t linear = block_at(turn, count, seed), row = linear / launch.grid.x;
            const uint3 index = {static_cast<unsigned>(linear % launch.grid.x),
                                 static_cast<unsigned>(row % launch.grid.y),
                                 static_cast<unsigned>(row / launch.grid.y)};
            block.run(index, seed ? seed + linear : 0);
        }
    } catch (...) {
        std::lock_guard<std::mutex> guard(progress.lock);
        if (!progress.error) progress.error = std::current_exception();
        progress.stop = true;
    }
}

}  // namespace

// Always on threads of its own, never on the caller's: a block overwrites this library's thread-local memory.
void run(Launch launch) {
    check_limits(launch);
    launch.tensors = tensors_in_scope();
    BetweenBlocks history(launch.tensors);
    if (checks_are_on()) launch.history = &history;
    Progress progress;
    const std::uint64_t cores = options().workers ? options().workers : std::thread::hardware_concurrency();
    const std::uint64_t count = std::clamp<std::uint64_t>(cores, 1, blocks_in(launch));
    std::vector<std::thread> workers;
    for (std::uint64_t i = 0; i < count; ++i) workers.emplace_back([&] { work(launch, progress); });
    for (std::thread& worker : workers) worker.join();
    if (progress.error) std::rethrow_exception(progress.error);
}

}  // namespace emulator
