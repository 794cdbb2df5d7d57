// The history of every byte of shared memory: who wrote it, who read it, and whether a barrier lay between.
//
// Time is a counter that each barrier advances. An access is ordered before the running thread if a __syncthreads came
// after it, or a __syncwarp that joined both lanes (directly or through others). Shuffles, votes and mma order
// nothing: CUDA promises no memory ordering for them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memory.h"

namespace emulator {

class Shadow {
  public:
    Shadow(Range memory, int threads);

    bool contains(const void* address) const { return memory_.contains(address); }
    void begin_block();
    void block_barrier();
    void warp_barrier(int warp, unsigned mask);

    // Each returns what is wrong, or an empty string.
    std::string read(int thread, const void* address, std::size_t bytes, Place place);
    std::string write(int thread, const void* address, std::size_t bytes, Place place);
    std::string atomic(int thread, const void* address, std::size_t bytes, Place place);
    // A cp.async from its issue until the wait that covers it.
    std::string begin_copy(int thread, const void* address, std::size_t bytes, Place place);
    void end_copy(int thread, const void* address, std::size_t bytes, Place place);

  private:
    enum class Kind : std::uint8_t { plain, atomic, copy_in_flight };

    struct Event {
        std::uint32_t time = 0;  // 0: never
        std::uint16_t thread = 0;
        Kind kind = Kind::plain;
        Place place{Site{}};
    };

    // `read` is the latest read, `lanes` all lanes of its warp that read since the last write and are not ordered
    // before it; `other` is the latest read from another warp.
    struct Cell {
        Event write, read, other;
        unsigned lanes = 0;
    };

    Cell& cell(const void* address);
    bool ordered(std::uint32_t time, int before, int thread) const;
    bool ordered(const Event& before, int thread) const { return ordered(before.time, before.thread, thread); }
    std::string check_read(int thread, const Cell& cell) const;
    std::string check_write(int thread, const Cell& cell, Kind kind) const;
    void record_read(int thread, Cell& cell, Place place);
    Event event(int thread, Kind kind, Place place) const;
    std::string conflict(const char* doing, const char* did, const Event& with) const;

    template <class Visit>
    std::string each(const void* address, std::size_t bytes, Visit visit);

    Range memory_;
    std::vector<Cell> cells_;           // one for each byte
    std::vector<std::uint32_t> seen_;   // (threads, 32): lane's accesses before this time are ordered before thread
    std::uint32_t now_ = 0;
    std::uint32_t block_start_ = 0;
    std::uint32_t last_barrier_ = 0;
};

}  // namespace emulator
