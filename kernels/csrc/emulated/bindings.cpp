// The ops of csrc/cuda on the emulator, for tensors of the CPU.
#include "../cuda/bindings.h"

#include <ATen/Parallel.h>

namespace {

// Few enough SMs that small tensors, too, give each block more than one row.
struct EmulatedGpu {
    explicit EmulatedGpu(const at::Tensor&) {
        emulator::options().workers = at::get_num_threads();
        const int architecture = emulator::options().architecture;
        limits.architecture = slm::cuda::architecture_of_code(architecture, {10 * architecture},
                                                              [] { return "the emulated GPU"; });
        limits.shared_bytes = emulator::shared_limit(architecture);
    }

    cudaStream_t stream = nullptr;
    int multiprocessors = 1;
    slm::cuda::Limits limits;
};

}  // namespace

std::string slm::cpu_capability() { return "DEFAULT"; }  // the emulator is compiled for any processor

SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, CPU, m) { slm::cuda::Ops<EmulatedGpu>::implement(m); }
