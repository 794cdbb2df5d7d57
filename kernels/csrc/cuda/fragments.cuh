// Tiles of 16-bit elements in shared memory, and products of a warp's fragments with them on the tensor cores.
//
// A tile holds rows of D elements in chunks of 16 bytes, which ldmatrix reads eight rows at a time. Left where they
// are, the same chunk of eight rows would fall on the same banks; so the chunks of a row are permuted by an exclusive
// or with bits of the row's number, and eight neighbouring rows always cover all 32 banks.
//
// The layouts of mma.m16n8k16 (PTX ISA): lane l = 4 g + t of a warp holds, of an accumulator (16 x 8), the elements
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). Two accumulators side by side, rounded to 16 bits, are an operand
// A of 16 x 16 without moving anything between lanes. That carries the weights from one product into the next.
#pragma once

#include "numeric.cuh"

namespace slm::cuda {

// c[n][e]: element e of accumulator n, which covers columns 8 n … 8 n + 7.
template <int Columns>
using Accumulator = float[Columns / 8][4];
using Operand = uint32_t[4];

// The lower number goes into the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
    uint32_t word;
    if constexpr (std::is_same_v<T, __half>) {
        const __half2 pair = __floats2half2_rn(low, high);
        memcpy(&word, &pair, sizeof word);
    } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        memcpy(&word, &pair, sizeof word);
    }
    return word;
}

// Two accumulators side by side as an operand A.
template <class T>
__device__ __forceinline__ void as_operand(const Accumulator<16>& c, Operand& a) {
    a[0] = pack_pair<T>(c[0][0], c[0][1]);
    a[1] = pack_pair<T>(c[0][2], c[0][3]);
    a[2] = pack_pair<T>(c[1][0], c[1][1]);
    a[3] = pack_pair<T>(c[1][2], c[1][3]);
}

// A tile with rows of D elements of T, and what a warp does with it.
template <class T, int D>
struct Tile {
    static_assert(D % 32 == 0);
    static constexpr int kChunk = 8;  // elements in 16 bytes
    static constexpr int kChunks = D / kChunk;

    static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }

    // The address of element 8 * chunk of a row.
    static __device__ __forceinline__ T* at(T* tile, int row, int chunk) {
        const int turn = D % 64 == 0 ? row & 7 : row >> 1 & 3;
        return tile + (row * kChunks + (chunk ^ turn)) * kChunk;
    }
    static __device__ __forceinline__ const T* at(const T* tile, int row, int chunk) {
        return at(const_cast<T*>(tile), row, chunk);
    }

    // Starts copying rows [first, first + rows) of a head; rows from `length` and columns from `width` on become zero.
    // A thread keeps its chunks and goes down by a multiple of 8 rows, after which they are permuted as before: so an
    // addition leads from one address to the next.
    template <int Threads>
    static __device__ __forceinline__ void load_async(T* tile, const T* head, int64_t stride, int first, int rows,
                                                      int length, int width) {
        constexpr int kLanes = kChunks % 3 == 0 ? kChunks / 3 : kChunks;  // of a row: a power of two
        constexpr int kRows = Threads / kLanes;
        static_assert(kRows % 8 == 0);
        const int thread = static_cast<int>(threadIdx.x) % Threads;
        const T* from = head + (first + thread / kLanes) * stride;
#pragma unroll(D == 128 ? 2 : 4)  // all of D = 128 takes more registers than there are
        for (int start = 0; start < rows; start += kRows) {
            const int row = start + thread / kLanes;
            if (row >= rows) break;
#pragma unroll
            for (int group = 0; group < kChunks; group += kLanes) {
                const int chunk = group + thread % kLanes;
                ptx::cp_async<16>(at(tile, row, chunk), from + chunk * kChunk,
                                  first + row < length && chunk * kChunk < width);
            }
            from += kRows * stride;
        }
    }

    // Rows row … row + 15 as operands A, one for each 16 columns: kept in registers where Held, else loaded.
    template <bool Held>
    struct Operands {
        Operand held[Held ? D / 16 : 1];
        const T* tile;
        int row;

        __device__ __forceinline__ void load(const T* from, int first) {
            tile = from;
            row = first;
            if constexpr (Held) {
#pragma unroll
                for (int k = 0; k < D / 16; ++k) read(k, held[k]);
            }
        }
        __device__ __forceinline__ void operand(int k, Operand& a) const {
            if constexpr (Held) {
#pragma unroll
                for (int r = 0; r < 4; ++r) a[r] = held[k][r];
            } else {
                read(k, a);
            }
        }
        __device__ __forceinline__ void read(int k, Operand& a) const {
            ptx::ldmatrix_x4(a, at(tile, row + lane() % 16, 2 * k + lane() / 16));
        }
    };

    // c[j][m] (16 x 16) += a[m] (16 x D) times the transpose of rows row + 16 j … row + 16 j + 15. A fragment of the
    // rows serves all M operands, and a fragment of an operand that is not held serves all J tiles.
    template <int J, int M, bool Held>
    static __device__ __forceinline__ void multiply_rows(const Operands<Held> (&a)[M], const T* tile, int row,
                                                         Accumulator<16> (&c)[J][M]) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            Operand rows[M];
#pragma unroll
            for (int m = 0; m < M; ++m) a[m].operand(k, rows[m]);
#pragma unroll
            for (int j = 0; j < J; ++j) {
                uint32_t b[4];
                ptx::ldmatrix_x4(b, at(tile, row + 16 * j + lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    ptx::mma_m16n8k16<T>(c[j][m][0], rows[m], b[0], b[1]);
                    ptx::mma_m16n8k16<T>(c[j][m][1], rows[m], b[2], b[3]);
                }
            }
        }
    }

    // c[m] (16 x D) += a[m] (16 x 16) times rows row … row + 15, for M operands.
    template <int M>
    static __device__ __forceinline__ void multiply(const Operand (&a)[M], const T* tile, int row,
                                                    Accumulator<D> (&c)[M]) {
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            uint32_t b[4];
            ptx::ldmatrix_x4_trans(b, at(tile, row + lane() % 16, 2 * n + lane() / 16));
#pragma unroll
            for (int m = 0; m < M; ++m) {
                ptx::mma_m16n8k16<T>(c[m][2 * n], a[m], b[0], b[1]);
                ptx::mma_m16n8k16<T>(c[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }

    // Writes c (16 x D), rows g times upper and rows g + 8 times lower, to rows first … first + 15 of a head, as far as
    // they lie before `length`. Goes through rows row … of a tile that no other warp uses, so that 16 bytes are stored
    // at once.
    static __device__ __forceinline__ void store(const Accumulator<D>& c, float upper, float lower, T* tile, int row,
                                                 T* head, int64_t stride, int first, int length, int width) {
        const int g = lane() / 4, pair = lane() % 4 * 2;
        __syncwarp();
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            *reinterpret_cast<uint32_t*>(at(tile, row + g, n) + pair) = pack_pair<T>(c[n][0] * upper, c[n][1] * upper);
            *reinterpret_cast<uint32_t*>(at(tile, row + g + 8, n) + pair) =
                pack_pair<T>(c[n][2] * lower, c[n][3] * lower);
        }
        __syncwarp();
#pragma unroll
        for (int i = lane(); i < 16 * kChunks; i += 32) {
            const int r = i / kChunks, chunk = i % kChunks;
            if (first + r < length && chunk * kChunk < width)
                Pack<T, kChunk>::load(at(tile, row + r, chunk)).store(head + (first + r) * stride + chunk * kChunk);
        }
    }
};

}  // namespace slm::cuda
