// One small kernel for each fault that the emulator must find; `mended` leaves the fault out.
// The line to be reported ends in a comment with the fault's name.
#include "platform.cuh"

// x (32), out (128): the tensors of every kernel below; a block writes 64 elements of out at most.

template <bool mended>
__global__ void unwritten_shared(const float* x, float* out) {
    __shared__ float tile[32];
    if (mended || threadIdx.x < 31) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x];  // unwritten_shared
}

template <bool mended>
__global__ void two_writers(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    tile[mended ? threadIdx.x : threadIdx.x / 2] = x[threadIdx.x];  // two_writers
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x / 2];
}

template <bool mended>
__global__ void missing_barrier(const float* x, float* out) {
    __shared__ float tile[64];
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x] = x[threadIdx.x % 32];
    if (mended) __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[63 - threadIdx.x];  // missing_barrier
}

// The second round overwrites what a slow thread of the first still has to read.
template <bool mended>
__global__ void missing_second_barrier(const float* x, float* out) {
    __shared__ float tile[64];
    for (int round = 0; round < 2; ++round) {
        tile[threadIdx.x] = x[threadIdx.x % 32];  // missing_second_barrier
        __syncthreads();
        out[64 * blockIdx.x + threadIdx.x] = tile[63 - threadIdx.x];
        if (mended) __syncthreads();
    }
}

// A shuffle orders nothing: only __syncwarp does.
template <bool mended>
__global__ void missing_syncwarp(const float* x, float* out) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    const float neighbour = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
    if (mended) __syncwarp();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x ^ 1] - neighbour;  // missing_syncwarp
}

template <bool mended>
__global__ void barrier_missed(const float* x, float* out) {
    if (!mended && threadIdx.x == 5) return;
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // barrier_missed
}

template <bool mended>
__global__ void two_barriers(const float* x, float* out) {
    if (!mended && threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncthreads();  // two_barriers
    }
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
}

template <bool mended>
__global__ void shuffle_disagrees(const float* x, float* out) {
    const unsigned mask = !mended && threadIdx.x >= 16 ? 0xffff0001 : 0xffffffff;
    out[64 * blockIdx.x + threadIdx.x] = __shfl_sync(mask, x[threadIdx.x], 0);  // shuffle_disagrees
}

template <bool mended>
__global__ void mma_disagrees(const float* x, float* out) {
    float c[4] = {x[threadIdx.x], 0, 0, 0};
    const uint32_t a[4] = {};
    if (mended || threadIdx.x < 30)
        ptx::mma_m16n8k16<__half>(c, a, 0, 0);
    else
        ptx::mma_m16n8k16<__half>(c, a, 1, 1);  // mma_disagrees
    out[64 * blockIdx.x + threadIdx.x] = c[0];
}

template <bool mended>
__global__ void shuffle_from_nobody(const float* x, float* out) {
    if (threadIdx.x >= 16) return;
    out[64 * blockIdx.x + threadIdx.x] = __shfl_sync(0xffff, x[threadIdx.x], mended ? 15 : 16);  // shuffle_from_nobody
}

template <bool mended>
__global__ void misaligned_vector(const float* x, float* out) {
    const float4 v = *reinterpret_cast<const float4*>(x + (mended ? 0 : 1));  // misaligned_vector
    out[64 * blockIdx.x + threadIdx.x] = v.x;
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
    if (threadIdx.x < 7) ptx::cp_async<16>(tile + threadIdx.x * 4, x + threadIdx.x * 4 + (mended ? 0 : 1));  // misaligned_copy
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
__global__ void index_outside(const float* x, float* out) {
    __shared__ float tile[4][8];
    tile[threadIdx.x / 8][threadIdx.x % 8] = x[threadIdx.x];
    __syncthreads();
    const int column = mended || threadIdx.x < 31 ? threadIdx.x % 8 : 8;
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x / 8][column];  // index_outside
}

template <bool mended>
__global__ void past_dynamic_shared(const float* x, float* out) {
    float* tile = dynamic_shared<float>();  // 64 floats
    tile[threadIdx.x + (mended ? 32 : 33)] = x[threadIdx.x];  // past_dynamic_shared
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x + (mended ? 32 : 33)];
}

template <bool mended>
__global__ void copy_not_waited_for(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    for (int stage = 0; stage < 2; ++stage) {
        ptx::cp_async<4>(tile + stage * 32 + threadIdx.x, x + threadIdx.x);
        ptx::cp_async_commit();
    }
    if (mended)
        ptx::cp_async_wait<0>();
    else
        ptx::cp_async_wait<1>();
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[32 + threadIdx.x];  // copy_not_waited_for
}

template <bool mended>
__global__ void copy_without_barrier(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    tile[threadIdx.x] = 0;
    __syncthreads();
    ptx::cp_async<4>(tile + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    if (mended) __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[31 - threadIdx.x];  // copy_without_barrier
}

template <bool mended>
__global__ void copy_over_readers(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = tile[31 - threadIdx.x];
    if (mended) __syncthreads();
    ptx::cp_async<4>(tile + threadIdx.x, x + threadIdx.x);  // copy_over_readers
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
}

template <bool mended>
__global__ void deadlock(const float* x, float* out) {
    if (threadIdx.x < 16) __syncwarp(mended ? 0xffff : 0xffffffff);  // deadlock
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
}

template <bool mended>
__global__ void plain_among_atomics(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[threadIdx.x]);
    if (mended) __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = total;  // plain_among_atomics
}

template <bool mended>
__global__ void two_threads_one_word(const float* x, float* out) {
    out[64 * blockIdx.x + (mended ? threadIdx.x : threadIdx.x / 2)] = x[threadIdx.x];  // two_threads_one_word
}

template <bool mended>
__global__ void read_back_without_barrier(const float* x, float* out) {
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
    if (mended) __syncwarp();
    const float neighbour = out[64 * blockIdx.x + (threadIdx.x ^ 1)];  // read_back_without_barrier
    out[64 * blockIdx.x + 32 + threadIdx.x] = neighbour;
}

template <bool mended>
__global__ void two_blocks_one_word(const float* x, float* out) {
    out[mended ? 64 * blockIdx.x + threadIdx.x : threadIdx.x] = x[threadIdx.x];  // two_blocks_one_word
}

template <bool mended>
__global__ void store_among_atomics(const float* x, float* out) {
    if (mended || blockIdx.x == 0)
        atomicAdd(out + threadIdx.x, x[threadIdx.x]);  // store_among_atomics
    else
        out[threadIdx.x] = x[threadIdx.x];
}

template <bool mended>
__global__ void too_much_shared(const float* x, float* out) {
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
}

#define FAULT(name, threads, bytes, bytes_mended)                                                      \
    extern "C" void name(void** tensors, const long long* numbers) {                                   \
        const auto* x = static_cast<const float*>(tensors[0]);                                         \
        auto* out = static_cast<float*>(tensors[1]);                                                   \
        if (numbers[0])                                                                                \
            launch(name<true>, dim3(2), dim3(threads), bytes_mended, nullptr, x, out);                 \
        else                                                                                           \
            launch(name<false>, dim3(2), dim3(threads), bytes, nullptr, x, out);                       \
    }

FAULT(unwritten_shared, 32, 0, 0)
FAULT(two_writers, 32, 128, 128)
FAULT(missing_barrier, 64, 0, 0)
FAULT(missing_second_barrier, 64, 0, 0)
FAULT(missing_syncwarp, 32, 0, 0)
FAULT(barrier_missed, 32, 0, 0)
FAULT(two_barriers, 32, 0, 0)
FAULT(shuffle_disagrees, 32, 0, 0)
FAULT(mma_disagrees, 32, 0, 0)
FAULT(shuffle_from_nobody, 32, 0, 0)
FAULT(misaligned_vector, 32, 0, 0)
FAULT(misaligned_ldmatrix, 32, 256, 256)
FAULT(misaligned_copy, 32, 128, 128)
FAULT(read_outside, 32, 0, 0)
FAULT(write_outside, 32, 0, 0)
FAULT(index_outside, 32, 0, 0)
FAULT(past_dynamic_shared, 32, 256, 256)
FAULT(copy_not_waited_for, 32, 256, 256)
FAULT(copy_without_barrier, 32, 128, 128)
FAULT(copy_over_readers, 32, 128, 128)
FAULT(deadlock, 32, 0, 0)
FAULT(plain_among_atomics, 32, 0, 0)
FAULT(too_much_shared, 32, 163 * 1024 + 1, 163 * 1024)
FAULT(two_threads_one_word, 32, 0, 0)
FAULT(read_back_without_barrier, 32, 0, 0)
FAULT(two_blocks_one_word, 32, 0, 0)
FAULT(store_among_atomics, 32, 0, 0)
