// The twins of the PTX instructions in cuda/ptx.cuh: mma.sync, ldmatrix, cp.async.
//
// Fragment layouts are those of the PTX ISA, sections "Matrix Fragments for mma.m16n8k16", "… mma.m16n8k8" and
// "ldmatrix". Products are exact and summed in float32 in the order of k; a GPU's order differs in the last bits.
#pragma once

#include <cstdint>

#include "block.h"

namespace emulator {

enum class Format { bfloat16, half, tf32 };

// Element `i` of a lane's fragment lies at (row, column) of the matrix.
struct Element {
    int row, column;
};

// m16n8k16, two 16-bit elements in each register: A (16, 16), 8 elements; B (16, 8), 4 elements.
constexpr Element element_a16(int lane, int i) {
    return {lane / 4 + (i / 2 % 2) * 8, lane % 4 * 2 + i % 2 + (i / 4) * 8};
}
constexpr Element element_b16(int lane, int i) { return {lane % 4 * 2 + i % 2 + (i / 2) * 8, lane / 4}; }
// m16n8k8, one tf32 element in each register: A (16, 8), 4 elements; B (8, 8), 2 elements.
constexpr Element element_a8(int lane, int i) { return {lane / 4 + (i % 2) * 8, lane % 4 + (i / 2) * 4}; }
constexpr Element element_b8(int lane, int i) { return {lane % 4 + i * 4, lane / 4}; }
// The accumulator (16, 8), 4 floats.
constexpr Element element_c(int lane, int i) { return {lane / 4 + (i / 2) * 8, lane % 4 * 2 + i % 2}; }

// c += a b, over the whole warp: `a` has 4 registers, `b` 2, `c` 4 floats.
void mma(Format format, float* c, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1, Site site);

// Loads `count` (1, 2, 4) 8x8 matrices of 16-bit elements; lane 8 m + r gives the address of row r of matrix m.
void load_matrix(int count, bool transposed, std::uint32_t* registers, const void* row, Site site);

// Copies `source_bytes` and fills up to `bytes` with zero, when the group it is committed to is waited for.
void copy_async(void* shared, const void* global, int bytes, int source_bytes, Site site);
void copy_async_commit();
void copy_async_wait(int groups_left_open);

}  // namespace emulator
