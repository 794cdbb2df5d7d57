// Barriers and warp operations that not everyone comes to, and launches that no GPU takes.
#include "fault.cuh"

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
__global__ void vote_disagrees(const float* x, float* out) {
    int vote;
    if (mended || threadIdx.x < 16)
        vote = __any_sync(0xffffffff, x[threadIdx.x] > 20);
    else
        vote = __all_sync(0xffffffff, x[threadIdx.x] > 20);  // vote_disagrees
    out[64 * blockIdx.x + threadIdx.x] = vote;
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
__global__ void shuffle_from_returned(const float* x, float* out) {
    if (threadIdx.x == 31) return;
    const int source = !mended && threadIdx.x == 4 ? 31 : 0;
    out[64 * blockIdx.x + threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], source);  // shuffle_from_returned
}

template <bool mended>
__global__ void shuffle_from_beyond_the_block(const float* x, float* out) {
    const int source = mended ? 19 : 20;  // of 20 threads
    const float value = __shfl_sync(0xffffffff, x[threadIdx.x], source);  // shuffle_from_beyond_the_block
    out[64 * blockIdx.x + threadIdx.x] = value;
}

template <bool mended>
__global__ void mma_after_return(const float* x, float* out) {
    if (!mended && threadIdx.x == 31) return;
    float c[4] = {x[threadIdx.x], 0, 0, 0};
    const uint32_t a[4] = {};
    ptx::mma_m16n8k16<__half>(c, a, 0, 0);  // mma_after_return
    out[64 * blockIdx.x + threadIdx.x] = c[0];
}

template <bool mended>
__global__ void ldmatrix_after_return(const float* x, float* out) {
    float* tile = dynamic_shared<float>();
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    if (!mended && threadIdx.x == 31) return;
    uint32_t r[1];
    ptx::ldmatrix_x1(r, tile + threadIdx.x % 8 * 4);  // ldmatrix_after_return
    out[64 * blockIdx.x + threadIdx.x] = r[0];
}

template <bool mended>
__global__ void deadlock(const float* x, float* out) {
    if (threadIdx.x < 16) __syncwarp(mended ? 0xffff : 0xffffffff);  // deadlock
    __syncthreads();
    out[64 * blockIdx.x + threadIdx.x] = x[threadIdx.x];
}

FAULT(barrier_missed, 32, 0)
FAULT(two_barriers, 32, 0)
FAULT(shuffle_disagrees, 32, 0)
FAULT(vote_disagrees, 32, 0)
FAULT(mma_disagrees, 32, 0)
FAULT(shuffle_from_nobody, 32, 0)
FAULT(shuffle_from_returned, 32, 0)
FAULT(shuffle_from_beyond_the_block, 20, 0)
FAULT(mma_after_return, 32, 0)
FAULT(ldmatrix_after_return, 32, 128)
FAULT(deadlock, 32, 0)

LIMIT(too_much_shared, (Shape{1, 32, 163 * 1024 + 1}), (Shape{1, 32, 163 * 1024}))
LIMIT(too_many_threads, (Shape{1, 1025, 0}), (Shape{1, 1024, 0}))
LIMIT(too_many_layers, (Shape{1, dim3(1, 1, 65), 0}), (Shape{1, dim3(1, 1, 64), 0}))
LIMIT(no_threads, (Shape{1, 0, 0}), (Shape{1, 1, 0}))
LIMIT(too_many_rows_of_blocks, (Shape{dim3(1, 65536), 1, 0}), (Shape{dim3(1, 65535), 1, 0}))
LIMIT(too_many_layers_of_blocks, (Shape{dim3(1, 1, 65536), 1, 0}), (Shape{dim3(1, 1, 65535), 1, 0}))
LIMIT(no_blocks, (Shape{0, 1, 0}), (Shape{1, 1, 0}))
