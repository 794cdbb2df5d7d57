// Names by dladdr, and lines by addr2line (atos on macOS), which is started only when a report is written.

#include "symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <vector>

namespace emulator {
namespace {

std::string hexadecimal(std::uintptr_t value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

std::vector<std::string> lines_of(const std::string& command) {
    std::vector<std::string> lines;
    FILE* pipe = popen(command.c_str(), "r");
    if (!pipe) return lines;
    char buffer[4096];
    while (std::fgets(buffer, sizeof buffer, pipe)) {
        lines.emplace_back(buffer);
        while (!lines.back().empty() && lines.back().back() == '\n') lines.back().pop_back();
    }
    pclose(pipe);
    return lines;
}

// Function and "file:line" of each frame inlined at `address`, innermost first.
std::vector<std::string> frames(const void* address) {
    Dl_info module;
    if (!dladdr(address, &module) || !module.dli_fname) return {};
    const std::string file = std::string("'") + module.dli_fname + "'";
#ifdef __APPLE__
    return lines_of("atos -i -o " + file + " -l " + hexadecimal(reinterpret_cast<std::uintptr_t>(module.dli_fbase)) +
                    " " + hexadecimal(reinterpret_cast<std::uintptr_t>(address)) + " 2>/dev/null");
#else
    const auto offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(module.dli_fbase);
    // A program that is not position-independent is linked at the address where it runs.
    const bool fixed = reinterpret_cast<std::uintptr_t>(module.dli_fbase) == 0x400000;
    return lines_of("addr2line -i -f -C -e " + file + " " +
                    hexadecimal(fixed ? reinterpret_cast<std::uintptr_t>(address) : offset) + " 2>/dev/null");
#endif
}

// "…/cuda/../emulator/vectors.h:71" is in csrc/emulator too.
bool is_ours(const std::string& line) {
    return std::filesystem::path(line).lexically_normal().string().find("csrc/emulator/") != std::string::npos;
}

}  // namespace

std::string function_name(const void* address) {
    Dl_info symbol;
    if (dladdr(address, &symbol) && symbol.dli_sname) {
        int status = 0;
        char* name = abi::__cxa_demangle(symbol.dli_sname, nullptr, nullptr, &status);
        std::string text = status == 0 && name ? name : symbol.dli_sname;
        std::free(name);
        return text.substr(0, text.rfind('('));
    }
    const std::vector<std::string> known = frames(address);
    return known.empty() || known[0] == "??" ? hexadecimal(reinterpret_cast<std::uintptr_t>(address)) : known[0];
}

std::string source_line(const void* address) {
    // A return address belongs to the line after the call when the call was the last of its line.
    for (const std::string& line : frames(static_cast<const char*>(address) - 1)) {
        const std::size_t colon = line.rfind(':');
        if (colon == std::string::npos || line.compare(0, 2, "??") == 0 || is_ours(line)) continue;
        if (line.find('/') == std::string::npos && line.find('.') == std::string::npos) continue;  // a name, a::b
        return line.substr(0, line.find(" (discriminator"));
    }
    return function_name(address);
}

}  // namespace emulator
