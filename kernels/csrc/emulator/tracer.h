// What the threads of one block load, store and exchange, event by event, for `python -m kernels trace`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memory.h"

namespace emulator {

class Tracer {
  public:
    explicit Tracer(Block& block) : block_(block) {}
    ~Tracer();

    // A load or store of the running thread; a store's value is read once it has happened.
    void access(const void* address, std::size_t bytes, Access access, Place place);
    // A warp operation of the running thread: what the lane gave and what it got, and the address it named, if any.
    void exchange(const char* operation, Place place, std::vector<std::uint32_t> given, std::vector<std::uint32_t> got,
                  const void* address = nullptr);
    // The running thread is about to be left, or does something else: its last store has happened.
    void settle();

  private:
    struct Event {
        int thread;
        Place place;
        std::string operation, where, given, got;
    };

    std::string name(const void* address) const;

    Block& block_;
    std::vector<Event> events_;
    const void* stored_ = nullptr;  // the address of the last event, if it is a store that has not happened yet
    std::size_t stored_bytes_ = 0;
};

// One line for each event since the last call, tab-separated: thread, place, operation, memory, what the lane gave
// and what it got, as hexadecimal bytes in memory order.
std::string take_trace();

}  // namespace emulator
