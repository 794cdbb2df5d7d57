// The history of every byte of shared memory and of the tensors, as far as the threads of one block made it: who wrote
// it, who read it, and whether a barrier lay between. What blocks do to each other is seen by between_blocks.h.
//
// Time is a counter that each barrier advances. An access is ordered before the running thread if a __syncthreads came
// after it, or a __syncwarp that joined both lanes (directly or through others). Shuffles, votes and mma order
// nothing: CUDA promises no memory ordering for them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"

namespace emulator {

// The time of a block.
class Clock {
  public:
    explicit Clock(int threads) : seen_(std::size_t{kWarpSize} * threads) {}

    void begin_block() { block_start_ = last_barrier_ = ++now_; }
    void block_barrier() { last_barrier_ = ++now_; }
    void warp_barrier(int warp, unsigned mask);

    std::uint32_t now() const { return now_; }
    std::uint32_t block_start() const { return block_start_; }
    std::uint32_t last_barrier() const { return last_barrier_; }
    // Whether what thread `before` did at `time` is ordered before what `thread` does now.
    bool ordered(std::uint32_t time, int before, int thread) const;

  private:
    std::vector<std::uint32_t> seen_;  // (threads, 32): lane's accesses before this time are ordered before thread
    std::uint32_t now_ = 0, block_start_ = 0, last_barrier_ = 0;
};

class Shadow {
  public:
    // name: of the memory, in reports. is_shared: it belongs to the block, which begins without having written it.
    Shadow(Range memory, std::string name, bool is_shared, const Clock& clock)
        : memory_(memory), name_(std::move(name)), is_shared_(is_shared), clock_(clock), pages_(memory.size / kPage + 1) {}

    bool contains(const void* address) const { return memory_.contains(address); }
    bool is_shared() const { return is_shared_; }

    // What is wrong with this access of `thread`, or an empty string.
    std::string access(int thread, const void* address, std::size_t bytes, Access access, Place place);
    // The same for a cp.async, from its issue until the wait that covers it.
    std::string begin_copy(int thread, const void* address, std::size_t bytes, Place place);
    void end_copy(int thread, const void* address, std::size_t bytes, Place place);

  private:
    enum class Kind : std::uint8_t { plain, copy_in_flight };

    struct Event {
        std::uint32_t time = 0;  // 0: never
        std::uint16_t thread = 0;
        Kind kind = Kind::plain;
        Place place{Site{}};
    };

    // Accesses that do not conflict with each other: the reads, or the atomics, since the last write. `last` is the
    // latest, `lanes` are all lanes of its warp that came and are not ordered before it; `other` is the latest of
    // another warp.
    struct Crowd {
        Event last, other;
        unsigned lanes = 0;
        std::unique_ptr<std::array<std::uint32_t, kWarpSize>> times;  // of `lanes`; null while it is the same for all
    };

    struct Cell {
        Event write;
        Crowd reads;
        std::unique_ptr<Crowd> atomics;  // null while there are none
    };

    Cell& cell(const void* address);
    bool ordered(const Event& before, int thread) const { return clock_.ordered(before.time, before.thread, thread); }
    Event event(int thread, Kind kind, Place place) const;
    void join(Crowd& crowd, const Event& event) const;
    std::string check_order(int thread, const Event& before, const char* doing, const char* did) const;
    std::string check_order(int thread, const Crowd& before, const char* doing, const char* did) const;
    std::string check(int thread, const Cell& cell, Access access) const;

    template <class Visit>
    std::string each(const void* address, std::size_t bytes, Visit visit);

    static constexpr std::size_t kPage = 256;  // bytes whose cells are made together, at the first access

    Range memory_;
    std::string name_;
    bool is_shared_;
    const Clock& clock_;
    std::vector<std::unique_ptr<std::array<Cell, kPage>>> pages_;
};

}  // namespace emulator
