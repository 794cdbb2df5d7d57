// Each primitive once, with its registers laid bare, so that a test can hold them against tables of its own.
#include "platform.cuh"

// registers (32, n): what each lane holds.
template <class T>
__global__ void mma_k16(const uint32_t* a, const uint32_t* b, float* c) {
    const int lane = threadIdx.x;
    uint32_t a_part[4];
    float c_part[4];
    for (int i = 0; i < 4; ++i) a_part[i] = a[lane * 4 + i], c_part[i] = c[lane * 4 + i];
    ptx::mma_m16n8k16<T>(c_part, a_part, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; ++i) c[lane * 4 + i] = c_part[i];
}

__global__ void mma_tf32(const uint32_t* a, const uint32_t* b, float* c) {
    const int lane = threadIdx.x;
    uint32_t a_part[4];
    float c_part[4];
    for (int i = 0; i < 4; ++i) a_part[i] = a[lane * 4 + i], c_part[i] = c[lane * 4 + i];
    ptx::mma_m16n8k8_tf32(c_part, a_part, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; ++i) c[lane * 4 + i] = c_part[i];
}

// format: 0 bfloat16, 1 half, 2 tf32
extern "C" void mma(void** tensors, const long long* numbers) {
    const auto kernel = numbers[0] == 0 ? mma_k16<__nv_bfloat16> : numbers[0] == 1 ? mma_k16<__half> : mma_tf32;
    launch(kernel, dim3(1), dim3(32), 0, nullptr, static_cast<uint32_t*>(tensors[0]),
           static_cast<uint32_t*>(tensors[1]), static_cast<float*>(tensors[2]));
}

template <int count, bool transposed>
__device__ void load(uint32_t (&r)[count], const uint4* row) {
    if constexpr (count == 1 && transposed) ptx::ldmatrix_x1_trans(r, row);
    if constexpr (count == 1 && !transposed) ptx::ldmatrix_x1(r, row);
    if constexpr (count == 2 && transposed) ptx::ldmatrix_x2_trans(r, row);
    if constexpr (count == 2 && !transposed) ptx::ldmatrix_x2(r, row);
    if constexpr (count == 4 && transposed) ptx::ldmatrix_x4_trans(r, row);
    if constexpr (count == 4 && !transposed) ptx::ldmatrix_x4(r, row);
}

// memory (32 rows of 8 16-bit elements), rows: which row each lane names; registers (32, count).
template <int count, bool transposed>
__global__ void load_matrix(const uint4* memory, const int* rows, uint32_t* registers) {
    __shared__ __align__(16) uint4 tile[32];
    tile[threadIdx.x] = memory[threadIdx.x];
    __syncthreads();
    uint32_t r[count];
    load<count, transposed>(r, tile + rows[threadIdx.x]);
    for (int i = 0; i < count; ++i) registers[threadIdx.x * count + i] = r[i];
}

template <int count>
void launch_load(void** tensors, bool transposed) {
    launch(transposed ? load_matrix<count, true> : load_matrix<count, false>, dim3(1), dim3(32), 0, nullptr,
           static_cast<uint4*>(tensors[0]), static_cast<int*>(tensors[1]), static_cast<uint32_t*>(tensors[2]));
}

extern "C" void ldmatrix(void** tensors, const long long* numbers) {
    if (numbers[0] == 1) launch_load<1>(tensors, numbers[1]);
    if (numbers[0] == 2) launch_load<2>(tensors, numbers[1]);
    if (numbers[0] == 4) launch_load<4>(tensors, numbers[1]);
}

// out (32): shuffles of the lane's number. kind: 0 idx, 1 up, 2 down, 3 xor
__global__ void shuffles(int* out, int kind, int argument, int width) {
    const int lane = threadIdx.x;
    out[lane] = kind == 0   ? __shfl_sync(0xffffffff, lane, argument, width)
                : kind == 1 ? __shfl_up_sync(0xffffffff, lane, argument, width)
                : kind == 2 ? __shfl_down_sync(0xffffffff, lane, argument, width)
                            : __shfl_xor_sync(0xffffffff, lane, argument, width);
}

extern "C" void shuffle(void** tensors, const long long* numbers) {
    launch(shuffles, dim3(1), dim3(32), 0, nullptr, static_cast<int*>(tensors[0]), numbers[0], numbers[1], numbers[2]);
}

// values (64) -> out (64, 15): what each thread learns about the lanes of its half of the warp, and about the block.
__global__ void votes(const int* values, int* out) {
    const int thread = threadIdx.x, value = values[thread];
    const unsigned mask = thread % 32 < 16 ? 0x0000ffff : 0xffff0000, word = value;
    int* mine = out + thread * 15;
    mine[0] = __ballot_sync(mask, value > 0);
    mine[1] = __any_sync(mask, value > 0);
    mine[2] = __all_sync(mask, value > 0);
    mine[3] = __reduce_add_sync(mask, value);
    mine[4] = __reduce_min_sync(mask, value);
    mine[5] = __reduce_max_sync(mask, value);
    mine[6] = __reduce_and_sync(mask, word);
    mine[7] = __reduce_or_sync(mask, word);
    mine[8] = __reduce_xor_sync(mask, word);
    mine[9] = __reduce_min_sync(mask, word);
    mine[10] = __match_any_sync(mask, value);
    mine[11] = 0;
    if (value > 0) mine[11] = __activemask();
    mine[12] = __syncthreads_count(value > 0);
    mine[13] = __syncthreads_and(value > 0);
    mine[14] = __syncthreads_or(value > 0);
}

extern "C" void vote(void** tensors, const long long*) {
    launch(votes, dim3(1), dim3(64), 0, nullptr, static_cast<int*>(tensors[0]), static_cast<int*>(tensors[1]));
}

// out (32 * Bytes / 4): copies of Bytes for even lanes, zeros for odd ones.
template <int Bytes>
__global__ void copies(const char* source, char* out) {
    char* tile = dynamic_shared<char>();
    const int lane = threadIdx.x;
    ptx::cp_async<Bytes>(tile + lane * Bytes, source + lane * Bytes, lane % 2 == 0);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    for (int i = 0; i < Bytes; ++i) out[lane * Bytes + i] = tile[lane * Bytes + i];
}

extern "C" void copy(void** tensors, const long long* numbers) {
    const auto kernel = numbers[0] == 4 ? copies<4> : numbers[0] == 8 ? copies<8> : copies<16>;
    launch(kernel, dim3(1), dim3(32), 32 * numbers[0], nullptr, static_cast<char*>(tensors[0]),
           static_cast<char*>(tensors[1]));
}

// out (3, stages): what the first bytes of each stage are after waits that leave 2, 1 and 0 groups open.
__global__ void stages(const float* source, float* out) {
    float* tile = dynamic_shared<float>();
    for (int stage = 0; stage < 3; ++stage) {
        tile[stage] = -1.0f;
        ptx::cp_async<4>(tile + stage, source + stage);
        ptx::cp_async_commit();
    }
    ptx::cp_async_wait<2>();
    for (int stage = 0; stage < 3; ++stage) out[stage] = tile[stage];
    ptx::cp_async_wait<1>();
    for (int stage = 0; stage < 3; ++stage) out[3 + stage] = tile[stage];
    ptx::cp_async_wait<0>();
    for (int stage = 0; stage < 3; ++stage) out[6 + stage] = tile[stage];
}

extern "C" void pipeline(void** tensors, const long long*) {
    launch(stages, dim3(1), dim3(1), 12, nullptr, static_cast<float*>(tensors[0]), static_cast<float*>(tensors[1]));
}

__global__ void narrow_numbers(const float* x, uint16_t* bfloat16, uint16_t* half, uint32_t* tf32, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    bfloat16[i] = __bfloat16_as_ushort(__float2bfloat16(x[i]));
    half[i] = __half_as_ushort(__float2half(x[i]));
    tf32[i] = ptx::to_tf32(x[i]);
}

extern "C" void narrow(void** tensors, const long long* numbers) {
    const int count = numbers[0];
    launch(narrow_numbers, dim3((count + 255) / 256), dim3(256), 0, nullptr, static_cast<float*>(tensors[0]),
           static_cast<uint16_t*>(tensors[1]), static_cast<uint16_t*>(tensors[2]), static_cast<uint32_t*>(tensors[3]),
           count);
}

__global__ void narrow_doubles_and_ints(const double* x, const int* integer, uint16_t* out, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    out[i] = __bfloat16_as_ushort(__nv_bfloat16(x[i]));
    out[count + i] = __half_as_ushort(__half(x[i]));
    out[2 * count + i] = __bfloat16_as_ushort(__nv_bfloat16(integer[i]));
    out[3 * count + i] = __half_as_ushort(__half(integer[i]));
}

// x, integer (count) -> out (4, count): x as bfloat16 and half, integer as bfloat16 and half.
extern "C" void narrow_wide(void** tensors, const long long* numbers) {
    const int count = numbers[0];
    launch(narrow_doubles_and_ints, dim3((count + 255) / 256), dim3(256), 0, nullptr,
           static_cast<double*>(tensors[0]), static_cast<int*>(tensors[1]), static_cast<uint16_t*>(tensors[2]), count);
}

__global__ void widen_numbers(float* bfloat16, float* half) {
    const int word = blockIdx.x * blockDim.x + threadIdx.x;
    bfloat16[word] = __bfloat162float(__ushort_as_bfloat16(word));
    half[word] = __half2float(__ushort_as_half(word));
}

extern "C" void widen(void** tensors, const long long*) {
    launch(widen_numbers, dim3(256), dim3(256), 0, nullptr, static_cast<float*>(tensors[0]),
           static_cast<float*>(tensors[1]));
}

// Every thread of many blocks adds to the same few words.
__global__ void add_all(float* floats, double* doubles, int* ints) {
    atomicAdd(doubles, 0.5);
    atomicAdd(ints, 1);
    atomicMax(ints + 1, static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x));
    ptx::red_add(floats, 1.0f);
    ptx::red_add(reinterpret_cast<float2*>(floats) + 1, make_float2(1.0f, 2.0f));
    ptx::red_add(reinterpret_cast<float4*>(floats) + 1, make_float4(1.0f, 2.0f, 3.0f, 4.0f));
}

extern "C" void atomics(void** tensors, const long long* numbers) {
    launch(add_all, dim3(numbers[0]), dim3(64), 0, nullptr, static_cast<float*>(tensors[0]),
           static_cast<double*>(tensors[1]), static_cast<int*>(tensors[2]));
}

// order: the threads and blocks, numbered through, in the order in which they came.
__global__ void take_turns(int* turn, int* order) {
    order[atomicAdd(turn, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

extern "C" void turns(void** tensors, const long long* numbers) {
    launch(take_turns, dim3(numbers[0]), dim3(numbers[1]), 0, nullptr, static_cast<int*>(tensors[0]),
           static_cast<int*>(tensors[1]));
}

// out (6): threadIdx, blockIdx packed by position; the three-dimensional numbering.
__global__ void numbering(int* out) {
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned neighbours = __ballot_sync(__activemask(), threadIdx.x == 0);
    atomicAdd(out + block * threads + thread, 1 + (thread % 32 == 0 ? static_cast<int>(neighbours) : 0));
}

extern "C" void number(void** tensors, const long long*) {
    launch(numbering, dim3(2, 3, 4), dim3(8, 2, 3), 0, nullptr, static_cast<int*>(tensors[0]));
}
