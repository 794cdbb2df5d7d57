// The scheduler of one block, barriers, warp operations and the report of a deadlock.
//
// Warps run one after the other, each as far as it can go without the others: so a missing barrier shows as a wrong
// result in at least one order of warps. Within a warp the lanes are entered in turn.

#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "counter.h"
#include "grid.h"
#include "memory.h"
#include "shadow.h"
#include "symbols.h"
#include "tracer.h"

__thread uint3 threadIdx;
__thread uint3 blockIdx;
__thread dim3 blockDim;
__thread dim3 gridDim;

namespace emulator {

__thread Block* current_block;
__thread Thread* current_thread;

std::array<Range, 6> own_variables() {
    const auto range = [](auto& variable) { return Range{reinterpret_cast<char*>(&variable), sizeof variable}; };
    return {range(threadIdx), range(blockIdx),      range(blockDim),
            range(gridDim),   range(current_block), range(current_thread)};
}

namespace {

// "(x, y, z)"
std::string triple(uint3 index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

}  // namespace

bool Site::operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
}

Block::Block(const Launch& launch) : launch_(launch) {
    const dim3 size = launch.block;
    threads_.resize(std::size_t{size.x} * size.y * size.z);
    for (int linear = 0; linear < this->size(); ++linear) {
        const unsigned row = linear / size.x;
        threads_[linear].linear = linear;
        threads_[linear].index = {linear % size.x, row % size.y, row / size.y};
        threads_[linear].stack = borrow_stack();
    }
    const int warps = (this->size() + kWarpSize - 1) / kWarpSize;
    lanes_.resize(warps);
    for (int warp = 0; warp < warps; ++warp) warp_order_.push_back(warp);
    for (int lane = 0; lane < kWarpSize; ++lane) lane_order_.push_back(lane);
    constexpr std::size_t kAlignment = 1024;
    shared_storage_.resize(launch.shared_bytes + kAlignment);
    const auto start = reinterpret_cast<std::uintptr_t>(shared_storage_.data());
    dynamic_shared_ = {shared_storage_.data() + (kAlignment - start % kAlignment) % kAlignment, launch.shared_bytes};
    static_shared_ = static_shared_segment();
    if (!checks_are_on()) return;
    if (options().count) counter_ = std::make_unique<AccessCounter>();
    clock_ = std::make_unique<Clock>(this->size());
    const auto watch = [&](const Range& memory, const std::string& name, bool is_shared) {
        if (memory.size) shadows_.push_back(std::make_unique<Shadow>(memory, name, is_shared, *clock_));
    };
    watch(dynamic_shared_, "shared memory", true);
    watch(static_shared_, "shared memory", true);
    for (std::size_t i = 0; i < launch.tensors.size(); ++i)
        watch(launch.tensors[i], "tensor " + std::to_string(i), false);
}

Block::~Block() {
    for (Thread& thread : threads_) give_back_stack(thread.stack);
}

void Block::prepare(uint3 index, std::uint64_t seed) {
    index_ = index;
    shuffled_ = seed != 0;
    random_ = seed * 0x9E3779B97F4A7C15u + 1;
    returned_ = 0;
    error_.clear();
    // Lanes beyond the end of the block count as returned.
    for (auto& lanes : lanes_) lanes = {0, 0, 0, 0, 0xFFFFFFFFu};
    for (Thread& thread : threads_) {
        thread.state = State::returned;
        set_state(thread, State::runnable);
        thread.open_copies.clear();
        thread.copy_groups.clear();
        thread.stack_pointer = prepare_fiber(thread.stack, enter_thread);
    }
    number_ = index.x + launch_.grid.x * (index.y + std::uint64_t{launch_.grid.y} * index.z);
    if (checks_are_on() && options().traced_block == static_cast<long long>(number_))
        tracer_ = std::make_unique<Tracer>(*this);
    poison_shared();
    if (clock_) clock_->begin_block();
    blockIdx = index;
    blockDim = launch_.block;
    gridDim = launch_.grid;
}

// All bits set is NaN in every floating-point type, and -1 as an integer.
void Block::poison_shared() {
    std::memset(dynamic_shared_.start, 0xFF, dynamic_shared_.size);
    if (!static_shared_.size) return;
    std::string kept;
    for (const Range& own : own_variables()) kept.append(own.start, own.size);
    std::memset(static_shared_.start, 0xFF, static_shared_.size);
    const char* next = kept.data();
    for (const Range& own : own_variables()) {
        std::memcpy(own.start, next, own.size);
        next += own.size;
    }
}

Shadow* Block::shadow_of(const void* address) {
    for (const auto& shadow : shadows_)
        if (shadow->contains(address)) return shadow.get();
    return nullptr;
}

void Block::warp_barrier_passed(unsigned mask) {
    if (clock_) clock_->warp_barrier(current_thread->warp(), mask);
}

void Block::run(uint3 index, std::uint64_t seed) {
    current_block = this;
    prepare(index, seed);
    while (returned_ < size() && error_.empty()) {
        shuffle(warp_order_);
        shuffle(lane_order_);
        bool progress = false;
        for (int warp : warp_order_) progress |= run_warp_until_blocked(warp);
        if (error_.empty() && returned_ < size() && !release_barrier() && !progress)
            error_ = "deadlock: no thread of the block can go on" + who_waits_where();
    }
    if (counter_) counter_->flush();
    tracer_.reset();
    current_block = nullptr;
    current_thread = nullptr;
    if (error_.empty()) return;
    throw std::runtime_error("kernel " + function_name(launch_.kernel) + ", block " + triple(index) + ": " + error_);
}

bool Block::run_warp_until_blocked(int warp) {
    const int first = warp * kWarpSize;
    bool progress = false;
    for (bool again = true; again && error_.empty();) {
        again = false;
        for (int lane : lane_order_) {
            if (!(lanes_in(warp, State::runnable) >> lane & 1)) continue;
            resume(threads_[first + lane]);
            if (!error_.empty()) return true;
            again = progress = true;
        }
        if (!again) again = release_active_mask(warp);
    }
    return progress;
}

void Block::resume(Thread& thread) {
    current_thread = &thread;
    threadIdx = thread.index;
    emulator_switch(&scheduler_, thread.stack_pointer);
}

void Block::leave() {
    if (tracer_) tracer_->settle();
    emulator_switch(&current_thread->stack_pointer, scheduler_);
}

void Block::enter_thread() {
    Block& block = *current_block;
    block.launch_.call(block.launch_.arguments);
    Thread& me = *current_thread;
    block.set_state(me, State::returned);
    ++block.returned_;
    // Lanes that wait in a warp operation wait for those that have not returned: this may have been the last.
    unsigned tried = 0;
    while (const unsigned waiting = block.lanes_in(me.warp(), State::in_warp_operation) & ~tried) {
        const int lane = __builtin_ctz(waiting);
        tried |= 1u << lane;
        block.try_complete(me.warp(), block.threads_[me.warp() * kWarpSize + lane].mask);
    }
    block.leave();
    __builtin_unreachable();
}

// ---- the whole block ----

int Block::meet_block(Barrier kind, int predicate, const char* operation, Site site) {
    Thread& me = *current_thread;
    set_state(me, State::at_barrier);
    me.barrier = kind;
    me.predicate = predicate;
    me.operation = operation;
    me.site = site;
    leave();
    return me.predicate;
}

bool Block::release_barrier() {
    const Thread* first = nullptr;
    int arrived = 0, votes = 0;
    for (const Thread& thread : threads_) {
        if (thread.state != State::at_barrier) continue;
        if (!first) first = &thread;
        if (thread.barrier != first->barrier || !(thread.site == first->site)) {
            error_ = "threads of one block wait at different barriers" + who_waits_where();
            return true;
        }
        ++arrived;
        votes += thread.predicate != 0;
    }
    if (!first || arrived + returned_ < size()) return false;
    if (returned_) {
        error_ = "a barrier was not reached by all threads of the block" + who_waits_where();
        return true;
    }
    const int answer = first->barrier == Barrier::count ? votes
                       : first->barrier == Barrier::all ? votes == arrived
                                                        : votes > 0;
    for (Thread& thread : threads_) {
        thread.predicate = answer;
        set_state(thread, State::runnable);
    }
    if (clock_) clock_->block_barrier();
    return true;
}

// ---- warps ----

void Block::meet_warp(unsigned mask, void* operand, void (*perform)(Meeting&), const char* operation, Site site,
                      bool needs_full_warp) {
    Thread& me = *current_thread;
    const unsigned self = 1u << me.lane();
    if (!(mask & self)) fail(std::string(operation) + ": the calling lane is not in its own mask", site);
    me.operation = operation;
    me.site = site;
    me.mask = mask;
    me.needs_full_warp = needs_full_warp;
    me.operand = operand;
    me.perform = perform;
    set_state(me, State::in_warp_operation);
    unsigned peers = mask & ~self & lanes_in(me.warp(), State::in_warp_operation);
    for (; peers; peers &= peers - 1) {
        const Thread& peer = threads_[me.warp() * kWarpSize + __builtin_ctz(peers)];
        if (!(peer.mask & self)) continue;
        const bool agree = peer.mask == mask && std::strcmp(peer.operation, operation) == 0 &&
                           (!needs_full_warp || peer.site == site);
        if (!agree) fail("the lanes of a warp disagree" + describe(peer) + describe(me), site);
        break;  // the others have been compared with this one
    }
    if (!try_complete(me.warp(), mask)) leave();
}

// Performs the operation that `mask` waits for if everyone has come, and lets its lanes go on.
bool Block::try_complete(int warp, unsigned mask) {
    const unsigned waiting = lanes_in(warp, State::in_warp_operation);
    const unsigned needed = mask & ~lanes_in(warp, State::returned);
    if (!needed || (waiting & needed) != needed) return false;
    Meeting meeting{needed, {}};
    void (*perform)(Meeting&) = nullptr;
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(needed >> lane & 1)) continue;
        Thread& thread = threads_[warp * kWarpSize + lane];
        if (thread.mask != mask) return false;  // it waits for others; reported when nothing moves any more
        if (thread.needs_full_warp && needed != mask)
            fail_waiting(lane, " needs all 32 lanes, and some have returned");
        meeting.operand[lane] = thread.operand;
        perform = thread.perform;
    }
    if (perform) perform(meeting);
    for (int lane = 0; lane < kWarpSize; ++lane)
        if (needed >> lane & 1) set_state(threads_[warp * kWarpSize + lane], State::runnable);
    return true;
}

// Lanes that ask for the active mask together, when nobody else of the warp can move, are the active ones.
unsigned Block::meet_active(Site site) {
    Thread& me = *current_thread;
    set_state(me, State::at_active_mask);
    me.operation = "__activemask";
    me.site = site;
    leave();
    if (tracer_) tracer_->exchange(me.operation, site, {}, {me.mask});
    return me.mask;
}

bool Block::release_active_mask(int warp) {
    const unsigned waiting = lanes_in(warp, State::at_active_mask);
    if (!waiting) return false;
    const Site site = threads_[warp * kWarpSize + __builtin_ctz(waiting)].site;
    unsigned together = 0;
    for (int lane = 0; lane < kWarpSize; ++lane)
        if ((waiting >> lane & 1) && threads_[warp * kWarpSize + lane].site == site) together |= 1u << lane;
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(together >> lane & 1)) continue;
        threads_[warp * kWarpSize + lane].mask = together;
        set_state(threads_[warp * kWarpSize + lane], State::runnable);
    }
    return true;
}

void Block::set_state(Thread& thread, State state) {
    const unsigned lane = 1u << thread.lane();
    lanes_in(thread.warp(), thread.state) &= ~lane;
    lanes_in(thread.warp(), state) |= lane;
    thread.state = state;
}

// Fisher and Yates, drawing from a xorshift generator.
void Block::shuffle(std::vector<int>& order) {
    if (!shuffled_) return;
    for (std::size_t last = order.size() - 1; last > 0; --last) {
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        std::swap(order[last], order[random_ % (last + 1)]);
    }
}

// ---- reports ----

void Block::fail(const std::string& what, const Place& place) {
    error_ = "thread " + triple(current_thread->index) + " at " + place.text() + ": " + what;
    leave();  // never entered again
    __builtin_unreachable();
}

void Block::fail_waiting(int lane, const std::string& what) {
    current_thread = &threads_[current_thread->warp() * kWarpSize + lane];
    fail(current_thread->operation + what, current_thread->site);
}

namespace {

std::string doing(const Thread& thread) {
    if (thread.state == State::returned) return "returned";
    if (thread.state == State::runnable) return "ready";
    std::string text = std::string("waiting in ") + thread.operation;
    if (thread.state == State::in_warp_operation) {
        char mask[16];
        std::snprintf(mask, sizeof mask, "0x%08x", thread.mask);
        text += std::string(" for lanes ") + mask;
    }
    return text + " at " + Place(thread.site).text();
}

}  // namespace

std::string Block::describe(const Thread& thread) const {
    return "\n  thread " + std::to_string(thread.linear) + ": " + doing(thread);
}

// Neighbours that do the same share one line.
std::string Block::who_waits_where() const {
    std::string text;
    for (int first = 0, next; first < size(); first = next) {
        const std::string what = doing(threads_[first]);
        for (next = first + 1; next < size() && doing(threads_[next]) == what;) ++next;
        text += next == first + 1 ? "\n  thread " : "\n  threads " + std::to_string(first) + "-";
        text += std::to_string(next - 1) + ": " + what;
    }
    return text;
}

}  // namespace emulator
