// What Python calls through ctypes: options, the tensors of a launch, and a call that hands errors back as text.

#include <exception>
#include <string>

#include "counter.h"
#include "grid.h"
#include "memory.h"
#include "tracer.h"

extern "C" {

void emulator_configure(unsigned long long seed, int workers, int architecture, int count,
                        long long traced_block) {
    emulator::options() = {seed, workers, architecture, count != 0, traced_block};
}

// The table of counter.h; valid until the next call.
const char* emulator_counts() {
    static std::string text;
    text = emulator::take_counts();
    return text.c_str();
}

// The events of tracer.h; valid until the next call.
const char* emulator_trace() {
    static std::string text;
    text = emulator::take_trace();
    return text.c_str();
}

// Runs `program(tensors, numbers)`, whose kernels may touch the given tensors and nothing else.
// Returns null, or what went wrong; the text stays valid until the next call on this thread's library.
const char* emulator_call(void (*program)(void**, const long long*), void** tensors, const long long* bytes, int count,
                          const long long* numbers) {
    static std::string message;
    emulator::TensorScope scope;
    for (int i = 0; i < count; ++i) scope.add(tensors[i], static_cast<std::size_t>(bytes[i]));
    try {
        program(tensors, numbers);
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // extern "C"
