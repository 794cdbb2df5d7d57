// Shared memory, tensors and what threads do to them.

#include "memory.h"

#include <cstring>
#include <string>
#include <vector>

#ifdef __linux__
#include <link.h>
#endif

namespace emulator {

#ifdef __linux__

// A `__shared__` variable is a static thread_local of this library, so the library's thread-local segment holds all.
Range static_shared_segment() {
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

namespace {
std::vector<Range> tensors;
}

TensorScope::TensorScope() { tensors.clear(); }
TensorScope::~TensorScope() { tensors.clear(); }
void TensorScope::add(const void* start, std::size_t bytes) {
    tensors.push_back({static_cast<char*>(const_cast<void*>(start)), bytes});
}

void block_barrier_passed() {}
void warp_barrier_passed(unsigned) {}
void shared_read(const void*, std::size_t, const char*, Site) {}
void async_copy_issued(const void*, const void*, int, int, Site) {}
void async_copy_landed(const AsyncCopy&, Site) {}
void atomic_access(const void* address, std::size_t bytes, const char* operation, Site site) {
    require_aligned(address, bytes, operation, site);
}

void vector_copy(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void require_aligned(const void* address, std::size_t alignment, const char* operation, Site site) {
    const std::size_t past = reinterpret_cast<std::uintptr_t>(address) % alignment;
    if (past && current_block)
        current_block->fail(std::string(operation) + ": the address is " + std::to_string(past) + " bytes past a multiple of " +
                                std::to_string(alignment),
                            site);
}

}  // namespace emulator
