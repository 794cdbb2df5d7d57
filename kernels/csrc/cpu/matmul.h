// Small matrix products inside attention's tiles: four rows of the result at a time, held in registers.
//
// result (4 x columns) = or += left (4 x depth) * right (depth x columns). `right` and the result have their columns side
// by side in memory, so that they are read as vectors; an element of `left` is broadcast, so its strides are free:
// a transposed left costs nothing.
#pragma once

#include <c10/macros/Macros.h>

#include "vec.h"

namespace slm::CPU_CAPABILITY {

constexpr int kGroupRows = 4;    // rows of the result that a product computes at once
constexpr int kGroupVecs = 4;    // and vectors of columns: 16 sums in registers, enough to hide the latency of an FMA

// An operand whose element (row, depth) is at data[row * row_stride + depth * depth_stride].
template <typename T>
struct Left {
  const T* data;
  int64_t row_stride, depth_stride;
};

// An operand, or a result, whose rows lie `stride` apart.
template <typename T>
struct Right {
  T* data;
  int64_t stride;
};

// A range of indices [begin, end).
struct Span {
  int64_t begin, end;
};

// The part of the depth that each of the four rows sums over. What is outside is not multiplied at all: a factor of zero
// would turn the infinities and NaN there into NaN.
struct Depths {
  explicit Depths(Span same) : rows{same, same, same, same}, common(same) {}

  // row(i): the span of row i.
  template <typename Row>
  explicit Depths(const Row& row) : rows{row(0), row(1), row(2), row(3)}, common(rows[0]) {
    for (const Span& span : rows) common = {std::max(common.begin, span.begin), std::min(common.end, span.end)};
    common.end = std::max(common.end, common.begin);
  }

  Span rows[kGroupRows], common;  // common: that every row has
};

// The depths that all rows share. A function of its own, never inlined: inside a larger one compilers run out of
// registers and keep the sums, or what is multiplied, in memory.
template <typename T, int kVecs, bool kAdd>
C10_NOINLINE void product_block(Left<T> left, Right<const T> right, Right<T> result, Span depths) {
  Vec<T> sums[kGroupRows][kVecs];
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      sums[r][v] = kAdd ? Vec<T>::loadu(result.data + r * result.stride + v * Vec<T>::size()) : Vec<T>(0);
    }
  }
  for (int64_t k = depths.begin; k < depths.end; ++k) {
    const T *a = left.data + k * left.depth_stride, *b = right.data + k * right.stride;
    Vec<T> row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::loadu(b + v * Vec<T>::size());
    for (int r = 0; r < kGroupRows; ++r) {
      const Vec<T> factor(a[r * left.row_stride]);
      for (int v = 0; v < kVecs; ++v) sums[r][v] = at::vec::fmadd(factor, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sums[r][v].store(result.data + r * result.stride + v * Vec<T>::size());
  }
}

// Adds to `vecs` vectors of one row of the result the depths that only it and some of the others have: a few.
template <typename T>
inline void product_rest(const T* left, int64_t depth_stride, Right<const T> right, T* result, int64_t vecs,
                         Span depths) {
  for (int64_t k = depths.begin; k < depths.end; ++k) {
    const Vec<T> factor(left[k * depth_stride]);
    for (int64_t i = 0; i < vecs * Vec<T>::size(); i += Vec<T>::size()) {
      at::vec::fmadd(factor, Vec<T>::loadu(right.data + k * right.stride + i), Vec<T>::loadu(result + i)).store(result + i);
    }
  }
}

// The columns `vecs` (counted in vectors) of the four rows that `left` and `result` point to, summed over `depths`.
template <bool kAdd, typename T>
inline void product(Left<T> left, Right<const T> right, Right<T> result, Span vecs, const Depths& depths) {
  for (int64_t v = vecs.begin; v < vecs.end; v += kGroupVecs) {
    Right<const T> b{right.data + v * Vec<T>::size(), right.stride};
    Right<T> c{result.data + v * Vec<T>::size(), result.stride};
    const int64_t count = std::min<int64_t>(kGroupVecs, vecs.end - v);
    switch (count) {
      case 1: product_block<T, 1, kAdd>(left, b, c, depths.common); break;
      case 2: product_block<T, 2, kAdd>(left, b, c, depths.common); break;
      case 3: product_block<T, 3, kAdd>(left, b, c, depths.common); break;
      default: product_block<T, 4, kAdd>(left, b, c, depths.common);
    }
    for (int r = 0; r < kGroupRows; ++r) {
      const T* row = left.data + r * left.row_stride;
      const Span own = depths.rows[r], common = depths.common;
      product_rest(row, left.depth_stride, b, c.data + r * c.stride, count, {own.begin, std::min(own.end, common.begin)});
      product_rest(row, left.depth_stride, b, c.data + r * c.stride, count, {std::max(own.begin, common.end), own.end});
    }
  }
}

}  // namespace slm::CPU_CAPABILITY
