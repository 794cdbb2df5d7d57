// Counting wavefronts and sectors per source line. How is said in counter.h.

#include "counter.h"

#include <algorithm>
#include <mutex>
#include <set>

namespace emulator {

int wavefronts(unsigned lanes, const std::uintptr_t (&address)[kWarpSize], int bytes) {
    const int at_once = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    int total = 0;
    for (int first = 0; first < kWarpSize; first += at_once) {
        std::set<std::uintptr_t> words;
        for (int lane = first; lane < first + at_once; ++lane)
            for (int byte = 0; byte < bytes && (lanes >> lane & 1); byte += 4) words.insert((address[lane] + byte) / 4);
        int in_bank[32] = {};
        for (std::uintptr_t word : words) ++in_bank[word % 32];
        total += *std::max_element(in_bank, in_bank + 32);
    }
    return total;
}

int sectors(unsigned lanes, const std::uintptr_t (&address)[kWarpSize], int bytes) {
    std::set<std::uintptr_t> touched;
    for (int lane = 0; lane < kWarpSize; ++lane) {
        if (!(lanes >> lane & 1)) continue;
        for (std::uintptr_t sector = address[lane] / 32; sector <= (address[lane] + bytes - 1) / 32; ++sector)
            touched.insert(sector);
    }
    return static_cast<int>(touched.size());
}

void AccessCounter::record(const Thread& thread, const void* address, int bytes, Access access, Space space,
                           Place place) {
    const Key key{place.where, place.line, bytes, access, space};
    Stream& stream = streams_[{thread.warp(), key}];
    const std::uint64_t turn = stream.times[thread.lane()]++;
    while (stream.closed + stream.open.size() <= turn) stream.open.emplace_back();
    WarpAccess& mine = stream.open[turn - stream.closed];
    mine.lanes |= 1u << thread.lane();
    mine.address[thread.lane()] = reinterpret_cast<std::uintptr_t>(address);
    for (; !stream.open.empty() && stream.open.front().lanes == 0xFFFFFFFFu; ++stream.closed) {
        close(key, stream.open.front());
        stream.open.pop_front();
    }
}

void AccessCounter::record_mma(Site site) {
    Total& total = totals_[{site.file, site.line, 0, Access::read, Space::tensor_cores}];
    ++total.accesses, ++total.cost, ++total.least;
}

void AccessCounter::close(const Key& key, const WarpAccess& access) {
    const int bytes = std::get<2>(key);
    const int wanted = __builtin_popcount(access.lanes) * bytes;
    Total& total = totals_[key];
    ++total.accesses;
    if (std::get<Space>(key) == Space::shared) {
        total.cost += wavefronts(access.lanes, access.address, bytes);
        total.least += (wanted + 127) / 128;
    } else {
        total.cost += sectors(access.lanes, access.address, bytes);
        total.least += (wanted + 31) / 32;
    }
}

void AccessCounter::flush() {
    for (auto& [warp_and_key, stream] : streams_)
        for (const WarpAccess& access : stream.open) close(warp_and_key.second, access);
    streams_.clear();
    add_to_all(totals_);
    totals_.clear();
}

namespace {

std::mutex lock;

}  // namespace

void AccessCounter::add_to_all(const std::map<Key, Total>& totals) {
    const std::lock_guard<std::mutex> guard(lock);
    for (const auto& [key, total] : totals) {
        Total& sum = all_[key];
        sum.accesses += total.accesses;
        sum.cost += total.cost;
        sum.least += total.least;
    }
}

std::map<AccessCounter::Key, AccessCounter::Total> AccessCounter::all_;

std::string take_counts() {
    const std::lock_guard<std::mutex> guard(lock);
    static constexpr const char* kAccess[] = {"read", "write", "atomic"};
    static constexpr const char* kSpace[] = {"shared", "global", "tensor cores"};
    std::string text;
    for (const auto& [key, total] : AccessCounter::all_) {
        const auto& [where, line, bytes, access, space] = key;
        text += Place(where, line).text();
        text += std::string("\t") + kSpace[static_cast<int>(space)] + "\t";
        text += space == Space::tensor_cores ? "mma" : kAccess[static_cast<int>(access)];
        for (std::uint64_t number : {std::uint64_t(bytes), total.accesses, total.cost, total.least})
            text += "\t" + std::to_string(number);
        text += "\n";
    }
    AccessCounter::all_.clear();
    return text;
}

}  // namespace emulator
