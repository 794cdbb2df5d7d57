// Race and initialization checks among the threads of a block. The rules are in shadow.h.

#include "shadow.h"

#include <algorithm>

namespace emulator {

void Clock::warp_barrier(int warp, unsigned mask) {
    ++now_;
    const std::size_t first = std::size_t{kWarpSize} * warp;
    std::uint32_t joined[kWarpSize] = {};
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const std::uint32_t* seen = &seen_[(first + lane) * kWarpSize];
        for (int of = 0; of < kWarpSize; ++of) joined[of] = std::max(joined[of], seen[of]);
    }
    for (int lane = 0; lane < kWarpSize; ++lane)
        if (mask >> lane & 1) joined[lane] = now_;
    for (int lane = 0; lane < kWarpSize; ++lane)
        if (mask >> lane & 1) std::copy(joined, joined + kWarpSize, &seen_[(first + lane) * kWarpSize]);
}

Shadow::Cell& Shadow::cell(const void* address) {
    const std::size_t byte = static_cast<const char*>(address) - memory_.start;
    auto& page = pages_[byte / kPage];
    if (!page) page = std::make_unique<std::array<Cell, kPage>>();
    return (*page)[byte % kPage];
}

Shadow::Event Shadow::event(int thread, Kind kind, Place place) const {
    return {clock_.now(), static_cast<std::uint16_t>(thread), kind, place};
}

bool Clock::ordered(std::uint32_t time, int before, int thread) const {
    if (time < last_barrier_ || before == thread) return true;
    if (before / kWarpSize != thread / kWarpSize) return false;
    return time < seen_[std::size_t{kWarpSize} * thread + before % kWarpSize];
}

std::string Shadow::check_order(int thread, const Event& before, const char* doing, const char* did) const {
    if (ordered(before, thread)) return {};
    return std::string(doing) + " " + name_ + " that thread " + std::to_string(before.thread) + " " + did + " at " +
           before.place.text() + ", with no barrier between";
}

std::string Shadow::check_order(int thread, const Crowd& before, const char* doing, const char* did) const {
    std::string wrong = check_order(thread, before.other, doing, did);
    for (unsigned lanes = before.lanes; lanes && wrong.empty(); lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        Event one = before.last;
        one.thread = static_cast<std::uint16_t>(one.thread / kWarpSize * kWarpSize + lane);
        if (before.times) one.time = (*before.times)[lane];
        wrong = check_order(thread, one, doing, did);
    }
    return wrong;
}

void Shadow::join(Crowd& crowd, const Event& event) const {
    const int lane = event.thread % kWarpSize, warp = event.thread / kWarpSize;
    if (crowd.last.thread / kWarpSize != warp) {
        crowd.other = crowd.last;
        crowd.lanes = 0;
    } else if (crowd.last.time < clock_.last_barrier()) {
        crowd.lanes = 0;
    } else if (crowd.last.time != event.time) {
        for (unsigned lanes = crowd.lanes; lanes; lanes &= lanes - 1) {
            const int before = __builtin_ctz(lanes);
            const std::uint32_t time = crowd.times ? (*crowd.times)[before] : crowd.last.time;
            if (clock_.ordered(time, warp * kWarpSize + before, event.thread)) crowd.lanes &= ~(1u << before);
        }
        if (crowd.lanes && !crowd.times) {
            crowd.times = std::make_unique<std::array<std::uint32_t, kWarpSize>>();
            crowd.times->fill(crowd.last.time);
        }
    }
    if (crowd.times) (*crowd.times)[lane] = event.time;
    crowd.last = event;
    crowd.lanes |= 1u << lane;
}

template <class Visit>
std::string Shadow::each(const void* address, std::size_t bytes, Visit visit) {
    const char* start = static_cast<const char*>(address);
    for (std::size_t i = 0; i < bytes; ++i) {
        if (!memory_.contains(start + i)) return "runs past the end of " + name_;
        const std::string wrong = visit(cell(start + i));
        if (!wrong.empty()) return wrong + " (byte " + std::to_string(start + i - memory_.start) + " of " + name_ + ")";
    }
    return {};
}

std::string Shadow::check(int thread, const Cell& cell, Access access) const {
    const char* doing = access == Access::read ? "reads" : "writes";
    const bool is_written = cell.write.time >= clock_.block_start();
    if (!is_written && is_shared_ && access != Access::write)
        return "reads shared memory that no thread of this block has written";
    if (is_written && cell.write.kind == Kind::copy_in_flight)
        return doing + (" shared memory before the wait that covers the cp.async at " + cell.write.place.text());
    std::string wrong = check_order(thread, cell.write, doing, "wrote");
    if (wrong.empty() && access != Access::atomic && cell.atomics)
        wrong = check_order(thread, *cell.atomics, doing, "changed");
    if (wrong.empty() && access != Access::read) wrong = check_order(thread, cell.reads, doing, "read");
    return wrong;
}

std::string Shadow::access(int thread, const void* address, std::size_t bytes, Access access, Place place) {
    const Event now = event(thread, Kind::plain, place);
    return each(address, bytes, [&](Cell& cell) {
        std::string wrong = check(thread, cell, access);
        if (access == Access::write) cell = {now, {}, nullptr};
        if (access == Access::read) join(cell.reads, now);
        if (access == Access::atomic) {
            if (!cell.atomics) cell.atomics = std::make_unique<Crowd>();
            join(*cell.atomics, now);
        }
        return wrong;
    });
}

std::string Shadow::begin_copy(int thread, const void* address, std::size_t bytes, Place place) {
    return each(address, bytes, [&](Cell& cell) {
        std::string wrong = check(thread, cell, Access::write);
        cell = {event(thread, Kind::copy_in_flight, place), {}, nullptr};
        return wrong;
    });
}

void Shadow::end_copy(int thread, const void* address, std::size_t bytes, Place place) {
    each(address, bytes, [&](Cell& cell) {
        cell.write = event(thread, Kind::plain, place);
        return std::string();
    });
}

}  // namespace emulator
