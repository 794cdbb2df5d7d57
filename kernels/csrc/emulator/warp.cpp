// Shuffles, votes and reductions across the lanes of a warp.
//
// Each lane puts its part on its own stack and waits; the last to come computes every lane's result.

#include <string>
#include <vector>

#include "language.h"
#include "memory.h"
#include "tracer.h"

namespace emulator {
namespace {

struct Part {
    std::uint64_t value = 0;
    int source = 0;          // of a shuffle
    int given = 4, got = 4;  // bytes of value and result that count
    std::uint64_t result = 0;
};

// Calls `body(lane, part)` for each lane that takes part.
template <class Body>
void each(Meeting& meeting, Body body) {
    for (int lane = 0; lane < kWarpSize; ++lane)
        if (meeting.operand[lane]) body(lane, *static_cast<Part*>(meeting.operand[lane]));
}

void perform_shuffle(Meeting& meeting) {
    each(meeting, [&](int lane, Part& part) {
        if (!meeting.operand[part.source])
            current_block->fail_waiting(lane, ": reads lane " + std::to_string(part.source) + ", which is not there");
        part.result = static_cast<Part*>(meeting.operand[part.source])->value;
    });
}

void perform_ballot(Meeting& meeting) {
    std::uint64_t votes = 0;
    each(meeting, [&](int lane, Part& part) { votes |= part.value << lane; });
    each(meeting, [&](int, Part& part) { part.result = votes; });
}

void perform_match(Meeting& meeting) {
    each(meeting, [&](int, Part& part) {
        part.result = 0;
        each(meeting, [&](int lane, Part& other) { part.result |= std::uint64_t{other.value == part.value} << lane; });
    });
}

std::int64_t combine(Reduction reduction, std::int64_t a, std::int64_t b) {
    switch (reduction) {
        case Reduction::add: return a + b;
        case Reduction::minimum: return std::min(a, b);
        case Reduction::maximum: return std::max(a, b);
        case Reduction::bit_and: return a & b;
        case Reduction::bit_or: return a | b;
        case Reduction::bit_xor: return a ^ b;
    }
    return a;
}

// `source` holds the kind of reduction, which all lanes share.
void perform_reduce(Meeting& meeting) {
    bool first = true;
    std::int64_t total = 0;
    each(meeting, [&](int, Part& part) {
        const auto value = static_cast<std::int64_t>(part.value);
        total = first ? value : combine(static_cast<Reduction>(part.source), total, value);
        first = false;
    });
    each(meeting, [&](int, Part& part) { part.result = static_cast<std::uint64_t>(total); });
}

void perform_sync(Meeting& meeting) { current_block->warp_barrier_passed(meeting.mask); }

std::vector<std::uint32_t> words(std::uint64_t value, int bytes) {
    const std::uint32_t both[] = {static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32)};
    return {both, both + (bytes + 3) / 4};
}

std::uint64_t meet(unsigned mask, Part part, void (*perform)(Meeting&), const char* operation, Site site) {
    current_block->meet_warp(mask, &part, perform, operation, site);
    if (Tracer* tracer = current_block->tracer())
        tracer->exchange(operation, site, words(part.value, part.given), words(part.result, part.got));
    return part.result;
}

}  // namespace

int lane() { return current_thread->lane(); }
void* dynamic_shared_memory() { return current_block->dynamic_shared().start; }

void sync_warp(unsigned mask, Site site) { meet(mask, {0, 0, 0, 0}, perform_sync, "__syncwarp", site); }

std::uint64_t shuffle(unsigned mask, std::uint64_t value, int bytes, int source, const char* operation, Site site) {
    if (!(mask >> source & 1))
        current_block->fail(std::string(operation) + ": reads lane " + std::to_string(source) + ", which takes no part",
                            site);
    return meet(mask, {value, source, bytes, bytes}, perform_shuffle, operation, site);
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
    return static_cast<unsigned>(meet(mask, {predicate}, perform_ballot, "__ballot_sync", site));
}

unsigned match_any(unsigned mask, std::uint64_t value, int bytes, Site site) {
    return static_cast<unsigned>(meet(mask, {value, 0, bytes}, perform_match, "__match_any_sync", site));
}

std::int64_t reduce(unsigned mask, std::int64_t value, Reduction reduction, const char* operation, Site site) {
    const Part part{static_cast<std::uint64_t>(value), static_cast<int>(reduction)};
    return static_cast<std::int64_t>(meet(mask, part, perform_reduce, operation, site));
}

}  // namespace emulator
