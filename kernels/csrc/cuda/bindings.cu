// The ops on NVIDIA GPUs. Only c10's CUDA headers: ATen's want those of cuBLAS and cuSPARSE, which many toolkits lack.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "bindings.h"

namespace {

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "the GPU does not tell its properties");
    return value;
}

// The GPU of a tensor, current as long as this lives, and torch's stream on it.
struct Gpu {
    explicit Gpu(const at::Tensor& x)
        : guard(x.device()),
          stream(c10::cuda::getCurrentCUDAStream().stream()),
          multiprocessors(attribute(cudaDevAttrMultiProcessorCount, x.get_device())),
          architecture(10 * attribute(cudaDevAttrComputeCapabilityMajor, x.get_device()) +
                       attribute(cudaDevAttrComputeCapabilityMinor, x.get_device())) {
        TORCH_CHECK(architecture >= 70, x.device(), " has compute capability ", architecture / 10, ".",
                    architecture % 10, ": the kernels need 7.0 or newer; use kernels.use(\"torch\")");
    }

    c10::cuda::CUDAGuard guard;
    cudaStream_t stream;
    int multiprocessors, architecture;
};

}  // namespace

SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, CUDA, m) { slm::cuda::Ops<Gpu>::implement(m); }
