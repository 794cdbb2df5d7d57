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

std::string name(int device) {
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, device), "the GPU does not tell its name");
    return properties.name;
}

// The architecture whose code runs on this GPU: the newest of those compiled for that is not newer than the GPU.
int architecture_of_code(int device) {
    const int gpu = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                    attribute(cudaDevAttrComputeCapabilityMinor, device);
    TORCH_CHECK(gpu >= 70, "cuda:", device, " is a ", name(device), " of compute capability ", gpu / 10, ".", gpu % 10,
                ": the kernels need 7.0 or newer; use kernels.use(\"torch\")");
    int code = 0;
    for (const int compiled : {__CUDA_ARCH_LIST__})
        if (compiled / 10 <= gpu) code = std::max(code, compiled / 10);
    TORCH_CHECK(code > 0, "cuda:", device, " is a ", name(device), " of compute capability ", gpu / 10, ".", gpu % 10,
                ", for which the kernels were not compiled: build them again with TORCH_CUDA_ARCH_LIST=\"", gpu / 10,
                ".", gpu % 10, "\"");
    return code;
}

// The GPU of a tensor, current as long as this lives, and torch's stream on it.
struct Gpu {
    explicit Gpu(const at::Tensor& x)
        : guard(x.device()),
          stream(c10::cuda::getCurrentCUDAStream().stream()),
          multiprocessors(attribute(cudaDevAttrMultiProcessorCount, x.get_device())),
          limits{architecture_of_code(x.get_device()),
                 static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, x.get_device()))} {}

    c10::cuda::CUDAGuard guard;
    cudaStream_t stream;
    int multiprocessors;
    slm::cuda::Limits limits;
};

}  // namespace

SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, CUDA, m) { slm::cuda::Ops<Gpu>::implement(m); }
