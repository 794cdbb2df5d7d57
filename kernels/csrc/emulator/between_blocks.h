// What the blocks of one launch did to each byte of the tensors. Nothing orders one block before another, so a byte
// that one of them writes is no other's to read or write, unless both are atomic.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory.h"

namespace emulator {

class BetweenBlocks {
  public:
    explicit BetweenBlocks(const std::vector<Range>& tensors);

    // What is wrong with this access of block `block`, or an empty string. Called by many OS threads.
    std::string check(std::uint64_t block, const void* address, std::size_t bytes, Access access, Place place);

  private:
    static constexpr std::size_t kPage = 256;  // bytes whose cells are made together, at the first access

    struct Event {
        std::uint64_t block = ~std::uint64_t{0};  // nobody
        Place place{Site{}};
    };
    // The last of a kind of access, and the last by another block than that: one of them is not the running block's
    // as soon as any other block came by.
    struct Pair {
        Event last, other;
    };
    struct Cell {
        Event write;
        Pair reads, atomics;
    };
    using Page = std::unique_ptr<std::array<Cell, kPage>>;

    Cell& cell(std::size_t tensor, std::size_t byte);
    static std::string check(Cell& cell, std::uint64_t block, Access access, Place place);

    const std::vector<Range> tensors_;
    std::vector<std::vector<Page>> pages_;
    std::mutex lock_;
};

}  // namespace emulator
