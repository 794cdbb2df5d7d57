// Access patterns whose bank conflicts and sectors are known from the CUDA guide.
#include "platform.cuh"

__global__ void patterns(const float* x, float* out) {
    float* tile = dynamic_shared<float>();  // 32 * 33 floats
    const int lane = threadIdx.x;
    for (int i = lane; i < 32 * 33; i += 32) tile[i] = 0;
    __syncwarp();
    float sum = tile[lane];                                   // consecutive
    sum += tile[lane * 2 % 64];                               // stride_2
    sum += tile[lane * 32];                                   // stride_32
    sum += tile[lane * 33];                                   // padded
    sum += tile[0];                                           // broadcast
    sum += reinterpret_cast<float4*>(tile)[lane].x;           // one_of_four
    const float4 v = reinterpret_cast<float4*>(tile)[lane];   // vector
    sum += v.x;
    uint32_t r[4];
    ptx::ldmatrix_x4(r, tile + lane * 32 % 1024);             // ldmatrix_conflict
    sum += r[0];
    ptx::ldmatrix_x4(r, tile + (lane * 32 + lane % 8 * 4) % 1024);  // ldmatrix_swizzled
    sum += r[0];
    sum += x[lane];                                           // coalesced
    sum += x[lane * 8];                                       // scattered
    sum += x[0];                                              // same_word
    out[32 * blockIdx.x + lane] = sum;
}

extern "C" void run_patterns(void** tensors, const long long*) {
    launch(patterns, dim3(3), dim3(32), 32 * 33 * sizeof(float), nullptr, static_cast<const float*>(tensors[0]),
           static_cast<float*>(tensors[1]));
}
