// Atomic operations. Blocks run on several OS threads, so these are atomic for the host as well.

#include <cstring>

#include "language.h"
#include "memory.h"

namespace {

using emulator::Site;

// Replaces *address by update(*address) in one step and returns what was there. Word is an integer of T's size.
template <class Word, class T, class Update>
T exchange(T* address, Update update, const char* operation, Site site) {
    static_assert(sizeof(Word) == sizeof(T));
    emulator::require_aligned(address, sizeof(T), operation, site);
    emulator::check_access(address, sizeof(T), emulator::Access::atomic, site);
    auto* word = reinterpret_cast<Word*>(address);
    Word before = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        const T old = emulator::bits<T>(before);
        const Word after = emulator::bits<Word>(static_cast<T>(update(old)));
        if (__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
    }
}

}  // namespace

#define ADD(type, word)                                                                              \
    type atomicAdd(type* address, type value, Site site) {                                           \
        return exchange<word>(address, [=](type old) { return old + value; }, "atomicAdd", site);    \
    }
ADD(int, unsigned)
ADD(unsigned, unsigned)
ADD(unsigned long long, unsigned long long)
ADD(float, std::uint32_t)
ADD(double, std::uint64_t)
ADD(__half, std::uint16_t)
ADD(__nv_bfloat16, std::uint16_t)
#undef ADD

#define INTEGER(type)                                                                                            \
    type atomicSub(type* address, type value, Site site) {                                                       \
        return exchange<unsigned>(address, [=](type old) { return old - value; }, "atomicSub", site);            \
    }                                                                                                            \
    type atomicMax(type* address, type value, Site site) {                                                       \
        return exchange<unsigned>(address, [=](type old) { return std::max(old, value); }, "atomicMax", site);   \
    }                                                                                                            \
    type atomicMin(type* address, type value, Site site) {                                                       \
        return exchange<unsigned>(address, [=](type old) { return std::min(old, value); }, "atomicMin", site);   \
    }                                                                                                            \
    type atomicExch(type* address, type value, Site site) {                                                      \
        return exchange<unsigned>(address, [=](type) { return value; }, "atomicExch", site);                     \
    }
INTEGER(int)
INTEGER(unsigned)
#undef INTEGER

float atomicExch(float* address, float value, Site site) {
    return exchange<std::uint32_t>(address, [=](float) { return value; }, "atomicExch", site);
}

#define COMPARE_AND_SWAP(type, word)                                                                              \
    type atomicCAS(type* address, type compare, type value, Site site) {                                          \
        const auto swap = [=](type old) { return old == compare ? value : old; };                                 \
        return exchange<word>(address, swap, "atomicCAS", site);                                                  \
    }
COMPARE_AND_SWAP(int, unsigned)
COMPARE_AND_SWAP(unsigned, unsigned)
COMPARE_AND_SWAP(unsigned long long, unsigned long long)
#undef COMPARE_AND_SWAP

unsigned atomicInc(unsigned* address, unsigned limit, Site site) {
    return exchange<unsigned>(address, [=](unsigned old) { return old >= limit ? 0 : old + 1; }, "atomicInc", site);
}
