// From an address in the program to its name, file and line.
#pragma once

#include <string>

namespace emulator {

// The function at `address`, demangled; its address in hexadecimal where no symbol is known.
std::string function_name(const void* address);

// "file:line" of the call that returns to `address`: the innermost frame that is not part of the emulator.
std::string source_line(const void* address);

}  // namespace emulator
