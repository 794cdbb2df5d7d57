// The ops on NVIDIA GPUs. Only c10's CUDA headers: ATen's want those of cuBLAS and cuSPARSE, which many toolkits lack.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "bindings.h"
#include "training_bindings.h"

namespace {

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "the GPU does not tell its properties");
    return value;
}

slm::cuda::Limits limits_of(int device) {
    const auto name = [&] {
        cudaDeviceProp properties;
        check_cuda(cudaGetDeviceProperties(&properties, device), "the GPU does not tell its name");
        return "cuda:" + std::to_string(device) + ", " + properties.name + ",";
    };
    const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                           attribute(cudaDevAttrComputeCapabilityMinor, device);
    return {slm::cuda::architecture_of_code(capability, {__CUDA_ARCH_LIST__}, name),
            static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device))};
}

// The GPU of a tensor, current as long as this lives, and torch's stream on it.
struct Gpu {
    explicit Gpu(const at::Tensor& x)
        : guard(x.device()),
          stream(c10::cuda::getCurrentCUDAStream().stream()),
          multiprocessors(attribute(cudaDevAttrMultiProcessorCount, x.get_device())),
          limits(limits_of(x.get_device())) {}

    c10::cuda::CUDAGuard guard;
    cudaStream_t stream;
    int multiprocessors;
    slm::cuda::Limits limits;
};

}  // namespace

SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, CUDA, m) {
    slm::cuda::Ops<Gpu>::implement(m);
    slm::cuda::TrainingOps<Gpu>::implement(m);
}
