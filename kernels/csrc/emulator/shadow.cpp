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

std::string Shadow::conflict(const char* doing, const char* did, const Event& with) const {
    return std::string(doing) + " " + name_ + " that thread " + std::to_string(with.thread) + " " + did + " at " +
           with.place.text() + ", with no barrier between";
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

std::string Shadow::check_read(int thread, const Cell& cell) const {
    if (cell.write.time < clock_.block_start())
        return is_shared_ ? "reads shared memory that no thread of this block has written" : "";
    if (cell.write.kind == Kind::copy_in_flight)
        return "reads shared memory before the wait that covers the cp.async at " + cell.write.place.text();
    if (!ordered(cell.write, thread)) return conflict("reads", "wrote", cell.write);
    return {};
}

std::string Shadow::check_write(int thread, const Cell& cell, Kind kind) const {
    if (cell.write.time >= clock_.block_start()) {
        if (cell.write.kind == Kind::copy_in_flight)
            return "writes shared memory before the wait that covers the cp.async at " + cell.write.place.text();
        const bool both_atomic = kind == Kind::atomic && cell.write.kind == Kind::atomic;
        if (!both_atomic && !ordered(cell.write, thread)) return conflict("writes", "wrote", cell.write);
    }
    if (cell.other.time && !ordered(cell.other, thread)) return conflict("writes", "read", cell.other);
    const int first = cell.read.thread / kWarpSize * kWarpSize;
    for (unsigned lanes = cell.lanes; lanes; lanes &= lanes - 1) {
        Event read = cell.read;
        read.thread = static_cast<std::uint16_t>(first + __builtin_ctz(lanes));
        if (!ordered(read, thread)) return conflict("writes", "read", read);
    }
    return {};
}

void Shadow::record_read(int thread, Cell& cell, Place place) {
    const int warp = thread / kWarpSize;
    if (cell.read.thread / kWarpSize != warp) {
        cell.other = cell.read;
        cell.lanes = 0;
    } else if (cell.read.time < clock_.last_barrier()) {
        cell.lanes = 0;
    } else if (cell.read.time != clock_.now()) {
        for (unsigned lanes = cell.lanes; lanes; lanes &= lanes - 1) {
            const int reader = warp * kWarpSize + __builtin_ctz(lanes);
            if (clock_.ordered(cell.read.time, reader, thread)) cell.lanes &= ~(lanes & -lanes);
        }
    }
    cell.read = event(thread, Kind::plain, place);
    cell.lanes |= 1u << thread % kWarpSize;
}

std::string Shadow::read(int thread, const void* address, std::size_t bytes, Place place) {
    return each(address, bytes, [&](Cell& cell) {
        std::string wrong = check_read(thread, cell);
        record_read(thread, cell, place);
        return wrong;
    });
}

std::string Shadow::write(int thread, const void* address, std::size_t bytes, Place place) {
    return each(address, bytes, [&](Cell& cell) {
        std::string wrong = check_write(thread, cell, Kind::plain);
        cell = {event(thread, Kind::plain, place), {}, {}, 0};
        return wrong;
    });
}

std::string Shadow::atomic(int thread, const void* address, std::size_t bytes, Place place) {
    return each(address, bytes, [&](Cell& cell) {
        const bool after_atomic = cell.write.kind == Kind::atomic && cell.write.time >= clock_.block_start();
        std::string wrong = after_atomic ? "" : check_read(thread, cell);
        if (wrong.empty()) wrong = check_write(thread, cell, Kind::atomic);
        cell.write = event(thread, Kind::atomic, place);
        return wrong;
    });
}

std::string Shadow::begin_copy(int thread, const void* address, std::size_t bytes, Place place) {
    return each(address, bytes, [&](Cell& cell) {
        std::string wrong = check_write(thread, cell, Kind::plain);
        cell = {event(thread, Kind::copy_in_flight, place), {}, {}, 0};
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
