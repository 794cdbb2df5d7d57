// Races between blocks. The rule is in between_blocks.h.

#include "between_blocks.h"

namespace emulator {

BetweenBlocks::BetweenBlocks(const std::vector<Range>& tensors) : tensors_(tensors), pages_(tensors.size()) {
    for (std::size_t i = 0; i < tensors.size(); ++i) pages_[i].resize(tensors[i].size / kPage + 1);
}

BetweenBlocks::Cell& BetweenBlocks::cell(std::size_t tensor, std::size_t byte) {
    Page& page = pages_[tensor][byte / kPage];
    if (!page) page = std::make_unique<std::array<Cell, kPage>>();
    return (*page)[byte % kPage];
}

std::string BetweenBlocks::check(Cell& cell, std::uint64_t block, Access access, Place place) {
    const auto conflict = [&](const Event& before, const char* did) -> std::string {
        if (before.block == Event().block || before.block == block) return {};
        const std::string doing = access == Access::read ? "reads" : "writes";
        return doing + " what block " + std::to_string(before.block) + " " + did + " at " + before.place.text() +
               ", and nothing orders blocks";
    };
    const auto conflicts = [&](const Pair& before, const char* did) {
        const std::string wrong = conflict(before.last, did);
        return wrong.empty() ? conflict(before.other, did) : wrong;
    };
    std::string wrong = conflict(cell.write, "wrote");
    if (wrong.empty() && access != Access::atomic) wrong = conflicts(cell.atomics, "changed");
    if (wrong.empty() && access != Access::read) wrong = conflicts(cell.reads, "read");
    if (access == Access::write) {
        cell.write = {block, place};
    } else {
        Pair& pair = access == Access::read ? cell.reads : cell.atomics;
        if (pair.last.block != block) pair.other = pair.last;
        pair.last = {block, place};
    }
    return wrong;
}

std::string BetweenBlocks::check(std::uint64_t block, const void* address, std::size_t bytes, Access access,
                                 Place place) {
    const char* start = static_cast<const char*>(address);
    const std::lock_guard<std::mutex> guard(lock_);
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (!tensors_[i].contains(start)) continue;
        for (std::size_t byte = start - tensors_[i].start; byte < start - tensors_[i].start + bytes; ++byte) {
            const std::string wrong = check(cell(i, byte), block, access, place);
            if (!wrong.empty()) return wrong + " (byte " + std::to_string(byte) + " of tensor " + std::to_string(i) + ")";
        }
        break;
    }
    return {};
}

}  // namespace emulator
