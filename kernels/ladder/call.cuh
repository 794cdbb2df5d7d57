// How Python calls a rung that nvcc compiled; on the emulator, emulator/interface.cpp does the same.
#pragma once

#ifdef __CUDACC__

#include <exception>
#include <string>

// Runs `program(tensors, numbers)`. Returns null, or what went wrong; the text stays valid until the next call.
extern "C" const char* ladder_call(void (*program)(void**, const long long*), void** tensors,
                                   const long long* numbers) {
    static std::string message;
    try {
        program(tensors, numbers);
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

#endif
