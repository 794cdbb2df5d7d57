// Which region an address belongs to, and what may be done there.

#include "memory.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "between_blocks.h"
#include "counter.h"
#include "grid.h"
#include "shadow.h"
#include "symbols.h"
#include "tracer.h"

#ifdef __linux__
#include <link.h>
#endif

namespace emulator {

std::string Place::text() const {
    return line ? static_cast<const char*>(where) + (":" + std::to_string(line)) : source_line(where);
}

bool& checks_are_on() {
    static bool on = false;
    return on;
}

// ---- tensors ----

namespace {

std::mutex tensor_lock;
std::vector<Range> tensors;

}  // namespace

void TensorScope::add(const void* start, std::size_t bytes) {
    const std::lock_guard<std::mutex> guard(tensor_lock);
    mine_.push_back({static_cast<char*>(const_cast<void*>(start)), bytes});
    tensors.push_back(mine_.back());
}

TensorScope::~TensorScope() {
    const std::lock_guard<std::mutex> guard(tensor_lock);
    for (const Range& range : mine_) tensors.erase(std::find(tensors.begin(), tensors.end(), range));
}

std::vector<Range> tensors_in_scope() {
    const std::lock_guard<std::mutex> guard(tensor_lock);
    return tensors;
}

// ---- static shared memory ----

#ifdef __linux__

// A `__shared__` variable is a thread-local of this library, so the library's thread-local segment holds them all.
Range static_shared_segment() {
    threadIdx = {};  // the segment of a thread exists from its first use on
    Range found;
    dl_iterate_phdr(
        [](dl_phdr_info* library, std::size_t, void* out) {
            for (int i = 0; i < library->dlpi_phnum; ++i) {
                const auto& segment = library->dlpi_phdr[i];
                const Range range{static_cast<char*>(library->dlpi_tls_data), segment.p_memsz};
                if (segment.p_type != PT_TLS || !range.start || !range.contains(&threadIdx)) continue;
                *static_cast<Range*>(out) = range;
                return 1;
            }
            return 0;
        },
        &found);
    return found;
}

#else

Range static_shared_segment() { return {}; }

#endif

// ---- accesses ----

namespace {

const char* verb(Access access) { return access == Access::read ? "reads" : "writes"; }

// "12 bytes past the end of tensor 2", for an address close to something known.
std::string nearest(const char* address, const Block& block) {
    constexpr std::ptrdiff_t kNear = 1 << 16;
    std::ptrdiff_t best = kNear;
    std::string text = "far from every tensor";
    const auto consider = [&](const Range& range, const std::string& name) {
        const std::ptrdiff_t past = address - (range.start + range.size), before = range.start - address;
        if (past >= 0 && past < best) best = past, text = std::to_string(past) + " bytes past the end of " + name;
        if (before > 0 && before < best)
            best = before, text = std::to_string(before) + " bytes before the start of " + name;
    };
    const std::vector<Range>& known = block.launch().tensors;
    for (std::size_t i = 0; i < known.size(); ++i) consider(known[i], "tensor " + std::to_string(i));
    consider(block.dynamic_shared(), "dynamic shared memory");
    return text;
}

// Constants of the program, and the kernel's parameters.
bool is_program_memory(const void* address, const Launch& launch) {
    Dl_info image;
    return Range{static_cast<char*>(const_cast<void*>(launch.arguments)), launch.argument_bytes}.contains(address) ||
           dladdr(address, &image) != 0;
}

void observe(const void* address, std::size_t bytes, Access access, Space space, Place place) {
    if (Tracer* tracer = current_block->tracer()) tracer->access(address, bytes, access, place);
    if (AccessCounter* counter = current_block->counter())
        counter->record(*current_thread, address, static_cast<int>(bytes), access, space, place);
}

// Against the other threads of the block, then, in a tensor, against other blocks.
void check_races(Shadow& shadow, const void* address, std::size_t bytes, Access access, Place place) {
    std::string wrong = shadow.access(current_thread->linear, address, bytes, access, place);
    BetweenBlocks* history = current_block->launch().history;
    if (wrong.empty() && !shadow.is_shared() && history)
        wrong = history->check(current_block->number(), address, bytes, access, place);
    if (!wrong.empty()) current_block->fail(wrong, place);
    observe(address, bytes, access, shadow.is_shared() ? Space::shared : Space::global, place);
}

}  // namespace

void check_access(const void* address, std::size_t bytes, Access access, Place place) {
    if (!checks_are_on() || !current_thread || current_thread->stack.contains(address)) return;
    for (const Range& own : own_variables())
        if (own.contains(address)) return;
    Block& block = *current_block;
    if (Shadow* shadow = block.shadow_of(address)) return check_races(*shadow, address, bytes, access, place);
    const Launch& launch = block.launch();
    if (launch.tensors.empty()) return observe(address, bytes, access, Space::global, place);
    if (access == Access::read && is_program_memory(address, launch)) return;
    block.fail(std::string(verb(access)) + " " + std::to_string(bytes) + " bytes outside the tensors handed in, " +
                   nearest(static_cast<const char*>(address), block),
               place);
}

void require_aligned(const void* address, std::size_t alignment, const char* operation, Place place) {
    const std::size_t past = reinterpret_cast<std::uintptr_t>(address) % alignment;
    if (past && current_block)
        current_block->fail(std::string(operation) + ": misaligned, the address is " + std::to_string(past) +
                                " bytes past a multiple of " + std::to_string(alignment),
                            place);
}

void require_global(const void* address, const char* operation, Place place) {
    const bool is_own = current_thread->stack.contains(address), is_shared = current_block->is_shared(address);
    if (!is_own && !is_shared) return;
    current_block->fail(std::string(operation) + ": the address is not in global memory but " +
                            (is_own ? "a variable of the thread's own" : "in shared memory"),
                        place);
}

void require_shared(const void* address, std::size_t bytes, const char* operation, Place place) {
    const auto holds = [&](const Range& range) {
        return range.contains(address) && range.contains(static_cast<const char*>(address) + bytes - 1);
    };
    const Range statics = current_block->static_shared();
    if (!statics.size || holds(statics) || holds(current_block->dynamic_shared())) return;
    current_block->fail(std::string(operation) + ": the address is not in shared memory, " +
                            nearest(static_cast<const char*>(address), *current_block),
                        place);
}

// A copy of float4 and its kin, in a build with checks: two accesses, each seen whole.
void vector_copy(void* to, const void* from, std::size_t bytes) {
    const Place place(__builtin_return_address(0));
    check_access(from, bytes, Access::read, place);
    check_access(to, bytes, Access::write, place);
    std::memcpy(to, from, bytes);
}

}  // namespace emulator
