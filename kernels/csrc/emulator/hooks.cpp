// The functions that code compiled with -fsanitize=thread calls before each load and store.
//
// Only the compiler's half of ThreadSanitizer is used: kernels are compiled with it, its runtime library is not
// linked, and these take its place.

#include <cstddef>

#define ACCESS(size)                                      \
    void __tsan_read##size(void*) {}                      \
    void __tsan_write##size(void*) {}                     \
    void __tsan_unaligned_read##size(void*) {}            \
    void __tsan_unaligned_write##size(void*) {}           \
    void __tsan_volatile_read##size(void*) {}             \
    void __tsan_volatile_write##size(void*) {}

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void*, std::size_t) {}
void __tsan_write_range(void*, std::size_t) {}
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

}  // extern "C"
