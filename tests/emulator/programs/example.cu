// A small matrix product that uses a little of everything; compiled by nvcc for a GPU and by g++ for the emulator.
#include "platform.cuh"

// c (16, 8) = a (16, 64) b (64, 8), one warp; a and b row-major bfloat16.
__global__ void __launch_bounds__(32) tile_product(const __nv_bfloat16* __restrict__ a,
                                                   const __nv_bfloat16* __restrict__ b, float* __restrict__ c) {
    __shared__ __align__(16) __nv_bfloat16 b_tile[64][8];
    __nv_bfloat16* a_tile = dynamic_shared<__nv_bfloat16>();  // (16, 64)
    const int lane = threadIdx.x;
    for (int piece = lane; piece < 16 * 8; piece += 32) ptx::cp_async<16>(a_tile + piece * 8, a + piece * 8);
    for (int row = lane; row < 64; row += 32) ptx::cp_async<16>(b_tile[row], b + row * 8);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    float sum[4] = {};
#pragma unroll
    for (int k = 0; k < 64; k += 16) {
        uint32_t a_part[4], b_part[2];
        ptx::ldmatrix_x4(a_part, a_tile + lane % 16 * 64 + k + lane / 16 * 8);
        ptx::ldmatrix_x2_trans(b_part, b_tile[k + lane % 16]);
        ptx::mma_m16n8k16<__nv_bfloat16>(sum, a_part, b_part[0], b_part[1]);
    }
    const int row = lane / 4, column = lane % 4 * 2;
    *reinterpret_cast<float2*>(c + row * 8 + column) = make_float2(sum[0], sum[1]);
    *reinterpret_cast<float2*>(c + (row + 8) * 8 + column) = make_float2(sum[2], sum[3]);
}

extern "C" void run_tile_product(void** tensors, const long long*) {
    launch(tile_product, dim3(1), dim3(32), 16 * 64 * sizeof(__nv_bfloat16), nullptr,
           static_cast<const __nv_bfloat16*>(tensors[0]), static_cast<const __nv_bfloat16*>(tensors[1]),
           static_cast<float*>(tensors[2]));
}

// out[i] = the sum of row i of x (rows, width), one block per row; out[rows] += all of them.
template <class T>
__global__ void row_sum(const T* __restrict__ x, float* __restrict__ out, int rows, int width) {
    __shared__ float partial[8];
    const int row = blockIdx.x, lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += static_cast<float>(__ldg(x + row * width + i));
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int i = 0; i < (int)(blockDim.x / warpSize); ++i) total += partial[i];
        out[row] = total;
        atomicAdd(out + rows, total);
    }
}

extern "C" void run_row_sum(void** tensors, const long long* numbers) {
    launch(row_sum<float>, dim3(numbers[0]), dim3(128), 0, nullptr, static_cast<const float*>(tensors[0]),
           static_cast<float*>(tensors[1]), numbers[0], numbers[1]);
}
