// What a warp's accesses cost a GPU: bank conflicts in shared memory, 32-byte sectors in global memory. And its mma.
//
// The lanes of an emulated warp do not run in step. The n-th time that each lane comes by a place counts as one access
// of the warp, which is exact for code whose lanes go the same way and close for the rest.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <tuple>

#include "memory.h"

namespace emulator {

enum class Space : std::uint8_t { shared, global, tensor_cores };

// Passes over the 32 banks of 4 bytes that one access needs: lanes that want different words of one bank take turns,
// lanes that want the same word share it. 8 bytes a lane go in two halves of the warp, 16 bytes in four quarters.
int wavefronts(unsigned lanes, const std::uintptr_t (&address)[kWarpSize], int bytes);

// Pieces of 32 bytes that one access touches.
int sectors(unsigned lanes, const std::uintptr_t (&address)[kWarpSize], int bytes);

class AccessCounter {
  public:
    AccessCounter() = default;
    ~AccessCounter() { flush(); }

    void record(const Thread& thread, const void* address, int bytes, Access access, Space space, Place place);
    // One mma of a whole warp: costs one, whatever it multiplies.
    void record_mma(Site site);
    // Ends all accesses that some lanes have not come by.
    void flush();

  private:
    struct WarpAccess {
        unsigned lanes = 0;
        std::uintptr_t address[kWarpSize];
    };
    // Place::where and line, bytes, access, space
    using Key = std::tuple<const void*, int, int, Access, Space>;
    struct Stream {
        std::deque<WarpAccess> open;
        std::uint64_t closed = 0;             // accesses before open.front()
        std::uint64_t times[kWarpSize] = {};  // each lane has come by
    };

    void close(const Key& key, const WarpAccess& access);

    std::map<std::pair<int, Key>, Stream> streams_;  // by warp and place

    struct Total {
        std::uint64_t accesses = 0, cost = 0, least = 0;
    };
    std::map<Key, Total> totals_;

    friend std::string take_counts();
    static void add_to_all(const std::map<Key, Total>& totals);
    static std::map<Key, Total> all_;
};

// One line for each place since the last call, tab-separated: place, space, access, bytes a lane, accesses by a warp,
// their cost (wavefronts or sectors), and the least that so many bytes cost when every lane wants its own: lanes that
// read the same words may cost less.
std::string take_counts();

}  // namespace emulator
