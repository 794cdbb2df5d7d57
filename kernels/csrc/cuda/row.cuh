// How a row of a matrix is spread over the lanes of a warp, and rows over a grid; shared by the layer norm kernels.
#pragma once

#include <algorithm>
#include <type_traits>

#include "numeric.cuh"

namespace slm::cuda {

inline constexpr int kRowThreads = 128;
// Enough blocks to fill a multiprocessor at the registers that the forward takes; layer_norm.cuh has the backward's.
inline constexpr int kForwardBlocksPerMultiprocessor = 8;

// The 16 or 32 lanes that work on one row together.
template <int Lanes>
struct RowGroup {
    __device__ __forceinline__ int lane() const { return threadIdx.x % Lanes; }
    __device__ __forceinline__ int in_block() const { return threadIdx.x / Lanes; }
    __device__ __forceinline__ int64_t first() const {
        return int64_t{blockIdx.x} * (kRowThreads / Lanes) + in_block();
    }
    __device__ __forceinline__ int64_t count() const { return int64_t{gridDim.x} * (kRowThreads / Lanes); }

    // The halves of a warp may work on different numbers of rows, so each names its own lanes.
    template <class A>
    __device__ __forceinline__ A sum(A x) const {
        const unsigned mask = Lanes == 32 ? 0xFFFFFFFFu : 0xFFFFu << (threadIdx.x & 16);
        return sum_over<Lanes>(x, mask);
    }
};

// A row in registers: pack i of a lane holds the N elements from column (i * Lanes + lane) * N on.
template <int Lanes, int N, int Packs>
struct RowOf {
    // Calls step(i, column) for each pack of this lane that lies in the row.
    template <class Step>
    static __device__ __forceinline__ void each(int size, const Step& step) {
#pragma unroll
        for (int i = 0; i < Packs; ++i) {
            const int column = (i * Lanes + static_cast<int>(threadIdx.x) % Lanes) * N;
            if (column < size) step(i, column);
        }
    }

    // Calls step(i, e) for each element e of each such pack.
    template <class Step>
    static __device__ __forceinline__ void each_element(int size, const Step& step) {
        each(size, [&](int i, int) {
#pragma unroll
            for (int e = 0; e < N; ++e) step(i, e);
        });
    }
};

// Calls step(column) for each pack of N elements of this lane, however long the row.
template <int Lanes, int N, class Step>
__device__ __forceinline__ void each_pack(int size, const Step& step) {
    for (int column = static_cast<int>(threadIdx.x) % Lanes * N; column < size; column += Lanes * N) step(column);
}

template <int N>
using Int = std::integral_constant<int, N>;

// Calls body(lanes, packs), two integral constants, for a row of `size` elements that fits 32 elements a lane; false
// where it does not fit. 384 elements of 16 bits are three packs for each of 16 lanes: no lane idles.
template <class T, class Body>
bool with_row_layout(int size, const Body& body) {
    constexpr int kMostPacks = std::is_same_v<T, double> ? 0 : 32 / kPackSize<T>;
    const auto fits = [&](auto lanes, auto packs) {
        if constexpr (packs <= kMostPacks)
            if (size <= lanes * packs * kPackSize<T>) {
                body(lanes, packs);
                return true;
            }
        return false;
    };
    return fits(Int<16>(), Int<1>()) || fits(Int<16>(), Int<2>()) || fits(Int<16>(), Int<3>()) ||
           fits(Int<32>(), Int<2>()) || fits(Int<32>(), Int<3>()) || fits(Int<32>(), Int<4>()) ||
           fits(Int<32>(), Int<6>()) || fits(Int<32>(), Int<8>());
}

// Blocks of kRowThreads for `rows` rows of `lanes` lanes each, at most `most` of them.
inline dim3 row_grid(int64_t rows, int lanes, int most) {
    return dim3(static_cast<unsigned>(std::min<int64_t>(ceil_div(rows, kRowThreads / lanes), most)));
}

}  // namespace slm::cuda
