// The functions that code compiled with checks calls by itself.
//
// -fsanitize=thread makes the compiler call __tsan_readN and __tsan_writeN before each load and store;
// -fsanitize=alignment,bounds makes it call __ubsan_handle_… when a pointer is misaligned or an index is outside its
// array. Only the compiler's half of those sanitizers is used: their runtime libraries are not linked, these
// functions take their place.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "memory.h"

namespace {

using emulator::Access;
using emulator::Place;

// What UBSan's instrumentation hands over; the layouts are those of LLVM's compiler-rt, which gcc shares.
struct SourceLocation {
    const char* file;
    std::uint32_t line, column;
};
struct TypeMismatch {
    SourceLocation where;
    const void* type;
    unsigned char log_alignment, kind;
};

void check(const void* address, std::size_t bytes, Access access, void* caller) {
    emulator::check_access(address, bytes, access, Place(caller));
}

}  // namespace

#define CHECK(access, bytes) check(address, bytes, Access::access, __builtin_return_address(0))
#define HOOKS(bytes)                                                             \
    void __tsan_read##bytes(void* address) { CHECK(read, bytes); }               \
    void __tsan_write##bytes(void* address) { CHECK(write, bytes); }             \
    void __tsan_unaligned_read##bytes(void* address) { CHECK(read, bytes); }     \
    void __tsan_unaligned_write##bytes(void* address) { CHECK(write, bytes); }   \
    void __tsan_volatile_read##bytes(void* address) { CHECK(read, bytes); }      \
    void __tsan_volatile_write##bytes(void* address) { CHECK(write, bytes); }

extern "C" {

void __tsan_init() { emulator::checks_are_on() = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* address, std::size_t bytes) { CHECK(read, bytes); }
void __tsan_write_range(void* address, std::size_t bytes) { CHECK(write, bytes); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

// The guard of a static variable inside a function.
unsigned char __tsan_atomic8_load(const volatile unsigned char* address, int) {
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}

void* __tsan_memcpy(void* to, const void* from, std::size_t bytes) {  // clang
    void* address = const_cast<void*>(from);
    CHECK(read, bytes);
    address = to;
    CHECK(write, bytes);
    return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* address, int value, std::size_t bytes) {  // clang
    CHECK(write, bytes);
    return std::memset(address, value, bytes);
}

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, std::uintptr_t address) {
    emulator::require_aligned(reinterpret_cast<void*>(address), std::size_t{1} << data->log_alignment,
                              "a vector access", Place(__builtin_return_address(0)));
}
void __ubsan_handle_out_of_bounds(void*, std::uintptr_t index) {
    if (emulator::current_block)
        emulator::current_block->fail("index " + std::to_string(static_cast<std::intptr_t>(index)) +
                                          " is outside its array",
                                      Place(__builtin_return_address(0)));
}

}  // extern "C"
