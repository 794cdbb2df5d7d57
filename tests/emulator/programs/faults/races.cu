// Races, and shared memory that nobody wrote: each fault is an order that nobody made.
#include "fault.cuh"

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
__global__ void reader_of_another_warp(const float* x, float* out) {
    __shared__ float shared;
    if (threadIdx.x == 0) shared = x[0];
    __syncthreads();
    if (threadIdx.x == 0) out[64 * blockIdx.x] = shared;  // reader_of_another_warp
    if (mended) __syncthreads();
    if (threadIdx.x == 63) shared += 1;  // reader_of_another_warp
}

// Lane 2 meets lane 0, then lane 1, which may have read at different times.
template <bool mended>
__global__ void readers_meet_one_by_one(const float* x, float* out) {
    __shared__ float shared;
    if (threadIdx.x > 2) return;
    if (threadIdx.x == 0) shared = x[0];
    __syncwarp(7);
    if (threadIdx.x < 2) out[64 * blockIdx.x + threadIdx.x] = shared;  // readers_meet_one_by_one
    if (mended && threadIdx.x != 1) __syncwarp(5);
    if (threadIdx.x != 0) __syncwarp(6);
    if (threadIdx.x == 2) shared = x[2];  // readers_meet_one_by_one
}

// Lane 2 meets lane 0 after that one has read, and lane 1 only before.
template <bool mended>
__global__ void reads_after_the_meeting(const float* x, float* out) {
    __shared__ float shared;
    if (threadIdx.x > 2) return;
    if (threadIdx.x == 0) shared = x[0];
    __syncwarp(7);
    if (threadIdx.x == 0) out[64 * blockIdx.x] = shared;
    if (threadIdx.x != 0) __syncwarp(6);
    if (threadIdx.x == 1) out[64 * blockIdx.x + 1] = shared;  // reads_after_the_meeting
    if (mended && threadIdx.x != 0) __syncwarp(6);
    if (threadIdx.x != 1) __syncwarp(5);
    if (threadIdx.x == 2) shared = x[2];  // reads_after_the_meeting
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
__global__ void copy_overwritten(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    ptx::cp_async<4>(tile + threadIdx.x, x + threadIdx.x);
    ptx::cp_async_commit();
    if (mended) ptx::cp_async_wait<0>();
    tile[threadIdx.x] = 0;  // copy_overwritten
    ptx::cp_async_wait<0>();
    out[64 * blockIdx.x + threadIdx.x] = tile[threadIdx.x];
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
__global__ void plain_among_atomics(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[threadIdx.x]);
    if (mended) __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = total;  // plain_among_atomics
}

template <bool mended>
__global__ void added_before_the_start_value(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    if (mended) __syncthreads();
    atomicAdd(&total, x[threadIdx.x]);  // added_before_the_start_value
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = total;
}

template <bool mended>
__global__ void added_over_readers(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    if (threadIdx.x == 0) out[64 * blockIdx.x] = total;  // added_over_readers
    if (mended) __syncthreads();
    if (threadIdx.x != 0) atomicAdd(&total, x[threadIdx.x]);  // added_over_readers
}

// The thread's own atomic must not hide those of the others.
template <bool mended>
__global__ void last_to_add_reads(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[threadIdx.x]);  // last_to_add_reads
    if (mended) __syncthreads();
    if (threadIdx.x == 31) out[64 * blockIdx.x] = total;  // last_to_add_reads
}

template <bool mended>
__global__ void last_to_add_writes(const float* x, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[threadIdx.x]);  // last_to_add_writes
    if (mended) __syncthreads();
    if (threadIdx.x == 31) total = x[0];  // last_to_add_writes
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
__global__ void one_block_reads(const float* x, float* out) {
    const int other = mended ? 2 : 0;
    if (blockIdx.x == 0) out[threadIdx.x] = x[threadIdx.x];  // one_block_reads
    if (blockIdx.x == 1) out[64 + threadIdx.x] = out[32 * other + threadIdx.x];  // one_block_reads
}

// Its own read must not hide that of the other block; nor its own atomic the other's, below.
template <bool mended>
__global__ void both_blocks_read(const float* x, float* out) {
    const float before = out[threadIdx.x];  // both_blocks_read
    const int to = blockIdx.x == 0 ? 64 : mended ? 96 : 0;
    out[to + threadIdx.x] = before + x[threadIdx.x];  // both_blocks_read
}

template <bool mended>
__global__ void store_among_atomics(const float* x, float* out) {
    if (mended || blockIdx.x == 0)
        atomicAdd(out + threadIdx.x, x[threadIdx.x]);  // store_among_atomics
    else
        out[threadIdx.x] = x[threadIdx.x];
}

template <bool mended>
__global__ void last_block_reads(const float* x, float* out) {
    atomicAdd(out + threadIdx.x, x[threadIdx.x]);  // last_block_reads
    if (!mended && blockIdx.x == 1) out[64 + threadIdx.x] = out[threadIdx.x];  // last_block_reads
}

template <bool mended>
__global__ void last_block_writes(const float* x, float* out) {
    atomicAdd(out + threadIdx.x, x[threadIdx.x]);  // last_block_writes
    if (!mended && blockIdx.x == 1) out[threadIdx.x] = 0;  // last_block_writes
}

FAULT(unwritten_shared, 32, 0)
FAULT(two_writers, 32, 128)
FAULT(missing_barrier, 64, 0)
FAULT(missing_second_barrier, 64, 0)
FAULT(missing_syncwarp, 32, 0)
FAULT(reader_of_another_warp, 64, 0)
FAULT(readers_meet_one_by_one, 32, 0)
FAULT(reads_after_the_meeting, 32, 0)
FAULT(copy_not_waited_for, 32, 256)
FAULT(copy_overwritten, 32, 128)
FAULT(copy_without_barrier, 32, 128)
FAULT(copy_over_readers, 32, 128)
FAULT(plain_among_atomics, 32, 0)
FAULT(added_before_the_start_value, 32, 0)
FAULT(added_over_readers, 32, 0)
FAULT(last_to_add_reads, 32, 0)
FAULT(last_to_add_writes, 32, 0)
FAULT(two_threads_one_word, 32, 0)
FAULT(read_back_without_barrier, 32, 0)
FAULT(two_blocks_one_word, 32, 0)
FAULT(one_block_reads, 32, 0)
FAULT(both_blocks_read, 32, 0)
FAULT(store_among_atomics, 32, 0)
FAULT(last_block_reads, 32, 0)
FAULT(last_block_writes, 32, 0)
