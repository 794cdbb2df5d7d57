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
    static constexpr int kRowBytes = D * sizeof(T);

    static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }

    // The address of element 8 * chunk of a row.
    static __device__ __forceinline__ T* at(T* tile, int row, int chunk) {
        const int turn = D % 64 == 0 ? row & 7 : row >> 1 & 3;
        return tile + (row * kChunks + (chunk ^ turn)) * kChunk;
    }
    static __device__ __forceinline__ const T* at(const T* tile, int row, int chunk) {
        return at(const_cast<T*>(tile), row, chunk);
    }

    // Where this lane points ldmatrix at the first 16 rows and columns of a tile: to read an operand A, or columns of B;
    // and to read rows of B, which is then the transpose of these rows.
    static __device__ __forceinline__ ptx::Shared down(const T* tile) {
        return ptx::shared_address(at(tile, lane() % 16, lane() / 16));
    }
    static __device__ __forceinline__ ptx::Shared across(const T* tile) {
        return ptx::shared_address(at(tile, lane() / 16 * 8 + lane() % 8, lane() / 8 % 2));
    }
    // The same for columns 16 k … 16 k + 15 and the rows from `row` on, a multiple of 16. Chunks are permuted by an
    // exclusive or with the row's number, so the distance of two chunks is an exclusive or as well: an instruction for
    // each k, and none for other rows, which are a constant away.
    static __device__ __forceinline__ ptx::Shared fragment(ptx::Shared address, int row, int k) {
        constexpr int kTurned = D % 64 == 0 ? 4 : 2;  // pairs of chunks that change places among themselves
        return (address ^ 32 * (k % kTurned)) + (32 * kTurned * (k / kTurned) + row * kRowBytes);
    }

    // One thread's part in copying rows of a head: it keeps its columns and goes down by a multiple of 8 rows, after
    // which they are permuted as before, so that an addition leads from one address to the next.
    template <int Threads>
    struct Copier {
        // Of a row: a power of two, at most 8, which cover all banks.
        static constexpr int kLanes = kChunks % 3 == 0 ? kChunks / 3 : kChunks < 8 ? kChunks : 8;
        static constexpr int kRows = Threads / kLanes;
        static_assert(kRows % 8 == 0);

        const T* from;  // this thread's first element
        int64_t stride;

        // row: where the first row begins.
        __device__ __forceinline__ Copier(const T* row, int64_t stride)
            : from(row + first_row() * stride + column()), stride(stride) {}

        static __device__ __forceinline__ int first_row() { return static_cast<int>(threadIdx.x) % Threads / kLanes; }
        static __device__ __forceinline__ int column() { return threadIdx.x % kLanes * kChunk; }
        // Where this thread's first element goes.
        static __device__ __forceinline__ ptx::Shared place(T* tile) {
            return ptx::shared_address(at(tile, first_row(), column() / kChunk));
        }
        __device__ __forceinline__ void move(int rows) { from += rows * stride; }

        // Calls body(inside) for `rows` rows, the first of which has the number `first`: inside(row, chunk) is false in
        // rows from `length` and columns from `width` on. Nearly every tile has none of these, so it has code apart,
        // without conditions.
        template <class Body>
        static __device__ __forceinline__ void with_edges(int first, int rows, int length, int width, const Body& body) {
            if (first + rows <= length && width == D)
                body([](int, int) { return true; });
            else
                body([&](int row, int chunk) { return first + row < length && chunk < width / kChunk; });
        }
        // Starts copying `rows` rows; what is not inside becomes zero.
        template <class Inside>
        __device__ __forceinline__ void start(ptx::Shared to, int rows, const Inside& inside) const {
            const T* row = from;
#pragma unroll
            for (int start = 0; start < rows; start += kRows, row += kRows * stride) {
                if (start + first_row() >= rows) break;
#pragma unroll
                for (int right = 0; right < D; right += kLanes * kChunk)
                    ptx::cp_async<16>(to + (start * D + right) * sizeof(T), row + right,
                                      inside(start + first_row(), threadIdx.x % kLanes + right / kChunk));
            }
        }
    };

    // The same for tiles of two tensors, such as k and v, that follow each other in shared memory.
    template <int Threads>
    struct PairCopier {
        Copier<Threads> upper, lower;

        __device__ __forceinline__ void start(ptx::Shared to, int first, int rows, int length, int width) const {
            Copier<Threads>::with_edges(first, rows, length, width, [&](const auto& inside) {
                upper.start(to, rows, inside);
                lower.start(to + rows * kRowBytes, rows, inside);
            });
        }
        __device__ __forceinline__ void move(int rows) {
            upper.move(rows);
            lower.move(rows);
        }
    };

    // Starts copying rows [first, first + rows) of a head, as a Copier does.
    template <int Threads>
    static __device__ __forceinline__ void load_async(T* tile, const T* head, int64_t stride, int first, int rows,
                                                      int length, int width) {
        using From = Copier<Threads>;
        From::with_edges(first, rows, length, width, [&](const auto& inside) {
            From(head + first * stride, stride).start(From::place(tile), rows, inside);
        });
    }

    // M times 16 rows as operands A, one for each 16 columns: kept in registers where Held, else loaded when needed.
    template <int M, bool Held>
    struct Operands {
        Operand held[Held ? M : 1][Held ? D / 16 : 1];
        ptx::Shared address;
        int below = 0;  // rows; a constant

        // From row `row` of a tile on, a multiple of 16.
        __device__ __forceinline__ void load(const T* tile, int row) {
            address = ptx::kept(down(tile) + row * kRowBytes);
            if constexpr (Held) {
#pragma unroll
                for (int i = 0; i < M * D / 16; ++i) read(i % M, i / M, held[i % M][i / M]);
            }
        }
        __device__ __forceinline__ void operand(int m, int k, Operand& a) const {
            if constexpr (Held) {
#pragma unroll
                for (int r = 0; r < 4; ++r) a[r] = held[m][k][r];
            } else {
                read(m, k, a);
            }
        }
        __device__ __forceinline__ void read(int m, int k, Operand& a) const {
            ptx::ldmatrix_x4(a, fragment(address, below + 16 * m, k));
        }
        // Those of the tile that follows `rows` rows later, at addresses that differ by a constant.
        __device__ __forceinline__ Operands following(int rows) const {
            static_assert(!Held);
            Operands other = *this;
            other.below += rows;
            return other;
        }
    };

    // c[j][m] (16 x 16) += operand m of a (16 x D) times the transpose of rows row + 16 j … row + 16 j + 15 of a tile,
    // given by across(tile). A fragment of the rows serves all M operands, and one of an operand that is not held
    // serves all J tiles.
    template <int J, int M, bool Held>
    static __device__ __forceinline__ void multiply_rows(const Operands<M, Held>& a, ptx::Shared tile, int row,
                                                         Accumulator<16> (&c)[J][M]) {
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            Operand rows[M];
#pragma unroll
            for (int m = 0; m < M; ++m) a.operand(m, k, rows[m]);
#pragma unroll
            for (int j = 0; j < J; ++j) {
                uint32_t b[4];
                ptx::ldmatrix_x4(b, fragment(tile, row + 16 * j, k));
#pragma unroll
                for (int m = 0; m < M; ++m) multiply_two(c[j][m][0], c[j][m][1], rows[m], b);
            }
        }
    }

    // c[m] += a[m] (16 x 16) times rows row … row + 15 of a tile, given by down(tile), for M operands; of columns from
    // 16 first on, as many as c has.
    template <int M, int N>
    static __device__ __forceinline__ void multiply(const Operand (&a)[M], ptx::Shared tile, int row,
                                                    float (&c)[M][N][4], int first = 0) {
#pragma unroll
        for (int n = 0; n < N / 2; ++n) {
            uint32_t b[4];
            ptx::ldmatrix_x4_trans(b, fragment(tile, row, first + n));
#pragma unroll
            for (int m = 0; m < M; ++m) multiply_two(c[m][2 * n], c[m][2 * n + 1], a[m], b);
        }
    }

    // The same where not every row of a[m] sees every row of the tile: seen(m, row, k), where `row` is that of an element
    // of this lane. The weight of an unseen row is 0, but 0 times infinity is NaN: so the rows are taken one by one, and
    // added only where they are seen. Slow; for tiles with any_not_finite.
    template <int M, int N, class Seen>
    static __device__ __forceinline__ void multiply_seen(const Operand (&a)[M], ptx::Shared tile, int row,
                                                         float (&c)[M][N][4], int first, const Seen& seen) {
#pragma unroll
        for (int n = 0; n < N / 2; ++n) {
            uint32_t b[4];
            ptx::ldmatrix_x4_trans(b, fragment(tile, row, first + n));
#pragma unroll 1
            for (int k = 0; k < 16; ++k) {
                uint32_t alone[4];
                keep_row(b, k, alone);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    Accumulator<16> part = {};
                    multiply_two(part[0], part[1], a[m], alone);
#pragma unroll
                    for (int e = 0; e < 8; ++e)
                        if (seen(m, lane() / 4 + e / 2 % 2 * 8, k)) c[m][2 * n + e / 4][e % 4] += part[e / 4][e % 4];
                }
            }
        }
    }

    // Whether rows row … row + Rows - 1 of a tile, given by down(tile), hold infinity or NaN; the whole warp asks.
    template <int Rows>
    static __device__ __forceinline__ bool any_not_finite(ptx::Shared tile, int row) {
        constexpr uint32_t kExponent = ptx::is_half<T> ? 0x7C00u : 0x7F80u;
        bool found = false;
#pragma unroll 1
        for (int i = 0; i < Rows * D / 256; ++i) {
            uint32_t b[4];
            ptx::ldmatrix_x4(b, fragment(tile, row + i / (D / 16) * 16, i % (D / 16)));
#pragma unroll
            for (int r = 0; r < 4; ++r)
                found |= (b[r] & kExponent) == kExponent || (b[r] >> 16 & kExponent) == kExponent;
        }
        return __any_sync(0xFFFFFFFFu, found);
    }

    // left and right (16 x 8 each) += a times the two halves of b (16 x 16).
    static __device__ __forceinline__ void multiply_two(float (&left)[4], float (&right)[4], const Operand& a,
                                                        const uint32_t (&b)[4]) {
        ptx::mma_m16n8k16<T>(left, a, b[0], b[1]);
        ptx::mma_m16n8k16<T>(right, a, b[2], b[3]);
    }

    // Row k of the operand B in b, the others zero. Register r of lane 4 g + t holds rows 8 (r % 2) + 2 t and the next.
    static __device__ __forceinline__ void keep_row(const uint32_t (&b)[4], int k, uint32_t (&alone)[4]) {
        const bool mine = lane() % 4 == k % 8 / 2;
        const uint32_t half = k % 2 == 0 ? 0xFFFFu : 0xFFFF0000u;
#pragma unroll
        for (int r = 0; r < 4; ++r) alone[r] = mine && r % 2 == k / 8 ? b[r] & half : 0;
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
