// The context switch in assembly (x86-64 and aarch64, Linux and macOS) and the pool of stacks.

#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#ifdef __APPLE__
#define SYMBOL "_emulator_switch"
#else
#define SYMBOL "emulator_switch"
#endif

#if defined(__x86_64__)

// System V ABI: rbp, rbx and r12-r15 survive a call; the return address is already on the stack.
asm(".text\n.p2align 4\n.globl " SYMBOL "\n" SYMBOL ":\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "ret\n");
constexpr int kReturnWord = 6;    // pushed by the call itself
constexpr int kFrameWords = 8;    // saved, return address, and one word so that entry sees an aligned stack

#elif defined(__aarch64__)

// AAPCS64: x19-x30 and d8-d15 survive a call; x30 is the return address.
asm(".text\n.p2align 4\n.globl " SYMBOL "\n" SYMBOL ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
    "mov x9, sp\n str x9, [x0]\n"
    "mov sp, x1\n"
    "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n"
    "ret\n");
constexpr int kReturnWord = 11;   // x30 in the frame above
constexpr int kFrameWords = 20;

#else
#error "the emulator's context switch is written for x86-64 and aarch64; add yours to emulator/fiber.cpp"
#endif

namespace emulator {

void* prepare_fiber(Range stack, void (*entry)()) {
    auto* frame = reinterpret_cast<std::uintptr_t*>(stack.start + stack.size) - kFrameWords;
    for (int word = 0; word < kFrameWords; ++word) frame[word] = 0;
    frame[kReturnWord] = reinterpret_cast<std::uintptr_t>(entry);
    return frame;
}

namespace {

std::mutex pool_lock;
std::vector<Range> pool;

}  // namespace

Range borrow_stack() {
    {
        std::lock_guard<std::mutex> guard(pool_lock);
        if (!pool.empty()) {
            Range stack = pool.back();
            pool.pop_back();
            return stack;
        }
    }
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    return {static_cast<char*>(memory) + page, kStackBytes};
}

void give_back_stack(Range stack) {
    std::lock_guard<std::mutex> guard(pool_lock);
    pool.push_back(stack);
}

}  // namespace emulator
