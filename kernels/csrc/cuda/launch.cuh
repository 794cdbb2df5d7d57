// launch(kernel, grid, block, shared_bytes, stream, arguments…): the only way a kernel of this project is started.
//
// On a GPU it is <<<…>>> with the shared-memory limit raised where needed and the error checked; elsewhere the emulator
// runs the same kernel. Both throw std::runtime_error. A GPU's launch is asynchronous: faults inside the kernel show at
// the next synchronizing call.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#ifdef __CUDACC__
#include <mutex>

inline void check_cuda(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
    constexpr std::size_t kWithoutAsking = 48 * 1024;
    static std::mutex one_at_a_time;  // the limit is the kernel's: no other thread may lower it before this launch
    const std::lock_guard<std::mutex> held(one_at_a_time);
    if (shared_bytes > kWithoutAsking)
        check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
                   "a kernel asks for more shared memory than this GPU has");
    kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Arguments>(arguments)...);
    check_cuda(cudaGetLastError(), "a kernel could not be launched");
}

#else

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
            Arguments&&... arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<Parameters...> arguments;
    };
    const Call call{kernel, {std::forward<Arguments>(arguments)...}};
    const auto run_thread = [](const void* address) {
        const Call& call = *static_cast<const Call*>(address);
        std::apply(call.kernel, call.arguments);
    };
    emulator::run({reinterpret_cast<const void*>(kernel), run_thread, &call, sizeof call, grid, block, shared_bytes});
}

#endif
