// The ops of csrc/cuda on the emulator, for tensors of the CPU.
#include "../cuda/bindings.h"

#include <ATen/Parallel.h>

namespace {

// Few enough multiprocessors that small tensors, too, give each block more than one row.
struct EmulatedGpu {
    explicit EmulatedGpu(const at::Tensor&) : architecture(emulator::options().architecture) {
        emulator::options().workers = at::get_num_threads();
    }

    cudaStream_t stream = nullptr;
    int multiprocessors = 1, architecture;
};

}  // namespace

SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, CPU, m) { slm::cuda::Ops<EmulatedGpu>::implement(m); }
