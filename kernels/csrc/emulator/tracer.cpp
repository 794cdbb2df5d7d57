// Recording of one block's events.

#include "tracer.h"

#include <map>
#include <mutex>
#include <utility>

#include "grid.h"

namespace emulator {
namespace {

std::mutex lock;
std::string finished;

std::string hexadecimal(const void* data, std::size_t bytes) {
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (std::size_t i = 0; i < bytes; ++i) {
        const unsigned char byte = static_cast<const unsigned char*>(data)[i];
        text += {kDigits[byte >> 4], kDigits[byte & 15]};
    }
    return text;
}

}  // namespace

// "tensor 1 + 64": the region and the byte in it.
std::string Tracer::name(const void* address) const {
    const auto within = [&](const Range& range, const std::string& region) {
        const auto offset = static_cast<const char*>(address) - range.start;
        return range.contains(address) ? region + " + " + std::to_string(offset) : std::string();
    };
    const std::vector<Range>& tensors = block_.launch().tensors;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        std::string text = within(tensors[i], "tensor " + std::to_string(i));
        if (!text.empty()) return text;
    }
    return within(block_.dynamic_shared(), "dynamic shared") + within(block_.static_shared(), "static shared");
}

void Tracer::settle() {
    if (stored_) events_.back().got = hexadecimal(stored_, stored_bytes_);
    stored_ = nullptr;
}

void Tracer::access(const void* address, std::size_t bytes, Access access, Place place) {
    settle();
    static constexpr const char* kName[] = {"load", "store", "atomic"};
    const bool is_load = access == Access::read;
    events_.push_back({current_thread->linear, place, kName[static_cast<int>(access)], name(address), "",
                       is_load ? hexadecimal(address, bytes) : ""});
    if (!is_load) stored_ = address, stored_bytes_ = bytes;
}

void Tracer::exchange(const char* operation, Place place, std::vector<std::uint32_t> given,
                      std::vector<std::uint32_t> got, const void* address) {
    settle();
    const std::string memory = address ? name(address) : "";
    events_.push_back({current_thread->linear, place, operation, memory, hexadecimal(given.data(), given.size() * 4),
                       hexadecimal(got.data(), got.size() * 4)});
}

Tracer::~Tracer() {
    std::map<const void*, std::string> lines;  // each address in the code is looked up once
    const std::lock_guard<std::mutex> guard(lock);
    for (const Event& event : events_) {
        std::string& line = lines[event.place.where];
        if (line.empty() || event.place.line) line = event.place.text();
        finished += std::to_string(event.thread);
        for (const std::string& field : {line, event.operation, event.where, event.given, event.got})
            finished += "\t" + field;
        finished += "\n";
    }
}

std::string take_trace() {
    const std::lock_guard<std::mutex> guard(lock);
    return std::exchange(finished, "");
}

}  // namespace emulator
