// Addresses that are misaligned, outside, or in the wrong memory.
#include "fault.cuh"

template <bool mended>
__global__ void misaligned_vector(const float* x, float* out) {
    const float4 v = *reinterpret_cast<const float4*>(x + (mended ? 0 : 1));  // misaligned_vector
    out[64 * blockIdx.x + threadIdx.x] = v.x;
}

template <bool mended>
__global__ void misaligned_store(const float* x, float* out) {
    auto* pair = reinterpret_cast<float2*>(out + 64 * blockIdx.x + (mended ? 2 : 1));
    if (threadIdx.x == 0) *pair = make_float2(x[0], x[1]);  // misaligned_store
}

template <bool mended>
__global__ void misaligned_atomic(const float* x, float* out) {
    auto* pair = reinterpret_cast<float2*>(out + (mended ? 2 : 1));
    ptx::red_add(pair, make_float2(x[0], x[1]));  // misaligned_atomic
}

template <bool mended>
__global__ void misaligned_ldmatrix(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    for (int i = threadIdx.x; i < 64; i += 32) tile[i] = x[i % 32];
    __syncwarp();
    uint32_t r[1];
    ptx::ldmatrix_x1(r, tile + threadIdx.x % 8 * 4 + (mended ? 0 : 2));  // misaligned_ldmatrix
    out[64 * blockIdx.x + threadIdx.x] = r[0];
}

template <bool mended>
__global__ void misaligned_copy(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    const float* source = x + threadIdx.x * 4 + (mended ? 0 : 1);
    if (threadIdx.x < 7) ptx::cp_async<16>(tile + threadIdx.x * 4, source);  // misaligned_copy
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[0];
}

template <bool mended>
__global__ void read_outside(const float* x, float* out) {
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x + (mended ? 0 : 1)];  // read_outside
}

template <bool mended>
__global__ void write_outside(const float* x, float* out) {
    out[static_cast<int>(64 * blockIdx.x + threadIdx.x) - (mended ? 0 : 1)] = x[threadIdx.x];  // write_outside
}

template <bool mended>
__global__ void copy_from_outside(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    ptx::cp_async<4>(tile + threadIdx.x, x + threadIdx.x + (mended ? 0 : 1));  // copy_from_outside
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x];
}

template <bool mended>
__global__ void index_outside(const float* x, float* out) {
    __shared__ float tile[4][8];
    tile[threadIdx.x / 8][threadIdx.x % 8] = x[threadIdx.x];
    __syncthreads();
    const int column = mended || threadIdx.x < 31 ? threadIdx.x % 8 : 8;
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x / 8][column];  // index_outside
}

template <bool mended>
__global__ void local_index_outside(const float* x, float* out) {
    float part[4] = {x[0], x[1], x[2], x[3]};
    out[64 * blockIdx.x + threadIdx.x] = part[threadIdx.x % (mended ? 4 : 5)];  // local_index_outside
}

template <bool mended>
__global__ void past_dynamic_shared(const float* x, float* out) {
    float* tile = dynamic_shared<float>();  // 64 floats
    tile[threadIdx.x + (mended ? 32 : 33)] = x[threadIdx.x];  // past_dynamic_shared
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x + (mended ? 32 : 33)];
}

template <bool mended>
__global__ void copy_to_global(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    ptx::cp_async<4>((mended ? tile : out + 64 * blockIdx.x) + threadIdx.x, x + threadIdx.x);  // copy_to_global
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
}

template <bool mended>
__global__ void copy_from_shared(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    tile[threadIdx.x] = x[threadIdx.x];
    ptx::cp_async<4>(tile + 32 + threadIdx.x, (mended ? x : tile) + threadIdx.x);  // copy_from_shared
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    out[64 * blockIdx.x + threadIdx.x] = tile[32 + threadIdx.x];
}

template <bool mended>
__global__ void ldmatrix_from_global(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    uint32_t r[1];
    ptx::ldmatrix_x1(r, (mended ? tile : x) + threadIdx.x % 8 * 4);  // ldmatrix_from_global
    out[64 * blockIdx.x + threadIdx.x] = r[0];
}

template <bool mended>
__global__ void red_to_shared(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = x[0];
    __syncthreads();
    ptx::red_add(mended ? reinterpret_cast<float*>(out) : &total, x[0]);  // red_to_shared
}

template <bool mended>
__global__ void red2_to_shared(const float* x, float* out) {
    __shared__ float2 total;
    if (threadIdx.x == 0) total = make_float2(x[0], x[1]);
    __syncthreads();
    ptx::red_add(mended ? reinterpret_cast<float2*>(out) : &total, make_float2(x[0], x[1]));  // red2_to_shared
}

template <bool mended>
__global__ void red4_to_shared(const float* x, float* out) {
    __shared__ float4 total;
    if (threadIdx.x == 0) total = make_float4(x[0], x[1], x[2], x[3]);
    __syncthreads();
    const float4 value = total;
    ptx::red_add(mended ? reinterpret_cast<float4*>(out) : &total, value);  // red4_to_shared
}

template <bool mended>
__global__ void store_to_shared(const float* x, float* out) {
    __shared__ uint4 words;
    if (threadIdx.x == 0) words = make_uint4(1, 2, 3, 4);
    __syncthreads();
    uint4* place = mended ? reinterpret_cast<uint4*>(out + 64 * blockIdx.x) : &words;
    if (threadIdx.x == 0) ptx::store_16(place, words);  // store_to_shared
    out[64 * blockIdx.x + 32 + threadIdx.x] = x[threadIdx.x];
}

template <bool mended>
__global__ void red_to_own_variable(const float* x, float* out) {
    float total = 0;
    ptx::red_add(mended ? out + 64 * blockIdx.x + threadIdx.x : &total, x[threadIdx.x]);  // red_to_own_variable
    out[64 * blockIdx.x + 32 + threadIdx.x] = total;
}

FAULT(misaligned_vector, 32, 0)
FAULT(misaligned_store, 32, 0)
FAULT(misaligned_atomic, 32, 0)
FAULT(misaligned_ldmatrix, 32, 256)
FAULT(misaligned_copy, 32, 128)
FAULT(read_outside, 32, 0)
FAULT(write_outside, 32, 0)
FAULT(copy_from_outside, 32, 128)
FAULT(index_outside, 32, 0)
FAULT(local_index_outside, 32, 0)
FAULT(past_dynamic_shared, 32, 256)
FAULT(copy_to_global, 32, 128)
FAULT(copy_from_shared, 32, 256)
FAULT(ldmatrix_from_global, 32, 128)
FAULT(store_to_shared, 32, 0)
FAULT(red_to_shared, 32, 0)
FAULT(red2_to_shared, 32, 0)
FAULT(red4_to_shared, 32, 0)
FAULT(red_to_own_variable, 32, 0)
