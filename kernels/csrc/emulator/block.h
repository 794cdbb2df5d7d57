// One block of CUDA threads: fibers that meet at barriers and in warp-wide operations.
//
// All threads of a block run on one OS thread, one at a time, each until it must wait for others. So a kernel's own
// loads and stores need no locks, and which thread runs first is ours to choose: it is drawn from a seed, so that a
// result which depends on the order shows. A block that can go no further is reported with who waits where.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "vectors.h"

namespace emulator {

// A place in the source. `Site site = Site::here()` as a default argument is the place of the call.
struct Site {
    const char* file;
    int line;

    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
    bool operator==(const Site& other) const;
};

constexpr int kWarpSize = 32;

enum class State : std::uint8_t { runnable, at_barrier, in_warp_operation, at_active_mask, returned };

// What a barrier tells the threads that met there.
enum class Barrier : std::uint8_t { plain, count, all, any };

// One cp.async: the bytes are copied when its group is waited for.
struct AsyncCopy {
    void* to;
    const void* from;
    int bytes;         // written
    int source_bytes;  // read; the rest is filled with zero
    Site site;
};

// The lanes that met in a warp operation: `operand[lane]` is null for lanes that take no part.
struct Meeting {
    unsigned mask = 0;
    void* operand[kWarpSize] = {};
};

struct Thread {
    uint3 index{};                  // threadIdx
    int linear = 0;                 // x fastest, then y, then z
    State state = State::runnable;
    Range stack;
    void* stack_pointer = nullptr;

    const char* operation = "";     // what it waits in, for reports and to see whether lanes agree
    Site site{};
    unsigned mask = 0;              // the lanes it waits for
    bool needs_full_warp = false;   // none of them may have returned
    void* operand = nullptr;        // its part of the warp operation, on its own stack
    void (*perform)(Meeting&) = nullptr;
    Barrier barrier = Barrier::plain;
    int predicate = 0;              // in: its vote at the barrier; out: the barrier's answer

    std::vector<AsyncCopy> open_copies;               // issued, not yet committed
    std::deque<std::vector<AsyncCopy>> copy_groups;   // committed, not yet waited for

    int lane() const { return linear % kWarpSize; }
    int warp() const { return linear / kWarpSize; }
};

struct Launch;
struct Place;
class Clock;
class Shadow;
class AccessCounter;
class Tracer;

class Block {
  public:
    explicit Block(const Launch& launch);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    // Runs the block at `index` to its end; throws std::runtime_error with a report when it cannot.
    void run(uint3 index, std::uint64_t seed);

    // What the running thread calls. `perform` is called once, when the last of the lanes in `mask` has come.
    int meet_block(Barrier kind, int predicate, const char* operation, Site site);
    void meet_warp(unsigned mask, void* operand, void (*perform)(Meeting&), const char* operation, Site site,
                   bool needs_full_warp = false);
    unsigned meet_active(Site site);
    // Ends the launch with a report on the running thread.
    [[noreturn]] void fail(const std::string& what, const Place& place);
    // The same on a lane of its warp that waits in a warp operation.
    [[noreturn]] void fail_waiting(int lane, const std::string& what);

    const Launch& launch() const { return launch_; }
    uint3 index() const { return index_; }
    Thread* thread(int linear) { return &threads_[linear]; }
    int size() const { return static_cast<int>(threads_.size()); }
    Range dynamic_shared() const { return dynamic_shared_; }
    Range static_shared() const { return static_shared_; }
    bool is_shared(const void* address) const {
        return dynamic_shared_.contains(address) || static_shared_.contains(address);
    }
    // x fastest.
    std::uint64_t number() const { return number_; }
    // The history of the memory that `address` is in; null elsewhere and in a build without checks.
    Shadow* shadow_of(const void* address);
    // Null unless accesses are counted.
    AccessCounter* counter() { return counter_.get(); }
    // Null unless this block is traced.
    Tracer* tracer() { return tracer_.get(); }
    void warp_barrier_passed(unsigned mask);

  private:
    static void enter_thread();
    void prepare(uint3 index, std::uint64_t seed);
    void poison_shared();
    void resume(Thread& thread);
    void leave();
    bool run_warp_until_blocked(int warp);
    bool release_active_mask(int warp);
    bool try_complete(int warp, unsigned mask);
    bool release_barrier();
    void shuffle(std::vector<int>& order);
    void set_state(Thread& thread, State state);
    unsigned& lanes_in(int warp, State state) { return lanes_[warp][static_cast<int>(state)]; }
    std::string who_waits_where() const;
    std::string describe(const Thread& thread) const;

    const Launch& launch_;
    uint3 index_{};
    std::uint64_t number_ = 0;
    std::uint64_t random_ = 0;
    bool shuffled_ = false;
    std::vector<Thread> threads_;
    std::vector<std::array<unsigned, 5>> lanes_;  // of each warp, the lanes in each state
    std::vector<int> warp_order_;
    std::vector<int> lane_order_;
    int returned_ = 0;
    void* scheduler_ = nullptr;  // where the scheduler was left while a fiber runs
    std::vector<char> shared_storage_;
    Range dynamic_shared_, static_shared_;
    std::unique_ptr<Clock> clock_;
    std::vector<std::unique_ptr<Shadow>> shadows_;
    std::unique_ptr<AccessCounter> counter_;
    std::unique_ptr<Tracer> tracer_;
    std::string error_;
};

// The block and thread that run now on this OS thread; null outside a kernel.
extern __thread Block* current_block;
extern __thread Thread* current_thread;

}  // namespace emulator

// The names that CUDA gives to every thread.
extern __thread uint3 threadIdx;
extern __thread uint3 blockIdx;
extern __thread dim3 blockDim;
extern __thread dim3 gridDim;
