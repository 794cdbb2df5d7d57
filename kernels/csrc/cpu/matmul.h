// Small matrix products inside attention's tiles: four rows of the result at a time, held in registers.
//
// result (4 x columns) = or += left (4 x depth) * right (depth x columns). `right` and the result have their columns side
// by side in memory, so that they are read as vectors; an element of `left` is broadcast, so its strides are free:
// a transposed left costs nothing.
#pragma once

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
  explicit Depths(Span same) : rows{same, same, same, same}, all(same), common(same) {}

  // row(i): the span of row i.
  template <typename Row>
  explicit Depths(const Row& row) : rows{row(0), row(1), row(2), row(3)}, all(rows[0]), common(rows[0]) {
    for (const Span& span : rows) {
      all = {std::min(all.begin, span.begin), std::max(all.end, span.end)};
      common = {std::max(common.begin, span.begin), std::min(common.end, span.end)};
    }
    common.begin = std::min(common.begin, all.end);
    common.end = std::max(common.end, common.begin);
  }

  bool holds(int row, int64_t k) const { return rows[row].begin <= k && k < rows[row].end; }

  Span rows[kGroupRows], all, common;  // all: that any row has; common: that every row has
};

template <typename T, int kVecs, bool kAdd>
inline void product_block(Left<T> left, Right<const T> right, Right<T> result, const Depths& depths) {
  Vec<T> sums[kGroupRows][kVecs];
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      sums[r][v] = kAdd ? Vec<T>::loadu(result.data + r * result.stride + v * Vec<T>::size()) : Vec<T>(0);
    }
  }
  const auto add = [&](int64_t k, const auto& counts) {
    const T *a = left.data + k * left.depth_stride, *b = right.data + k * right.stride;
    Vec<T> row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::loadu(b + v * Vec<T>::size());
    for (int r = 0; r < kGroupRows; ++r) {
      if (!counts(r)) continue;
      Vec<T> factor(a[r * left.row_stride]);
      for (int v = 0; v < kVecs; ++v) sums[r][v] = at::vec::fmadd(factor, row[v], sums[r][v]);
    }
  };
  for (int64_t k = depths.all.begin; k < depths.common.begin; ++k) add(k, [&](int r) { return depths.holds(r, k); });
  for (int64_t k = depths.common.begin; k < depths.common.end; ++k) add(k, [](int) { return true; });
  for (int64_t k = depths.common.end; k < depths.all.end; ++k) add(k, [&](int r) { return depths.holds(r, k); });
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sums[r][v].store(result.data + r * result.stride + v * Vec<T>::size());
  }
}

// The columns `vecs` (counted in vectors) of the four rows that `left` and `result` point to, summed over `depths`.
template <bool kAdd, typename T>
inline void product(Left<T> left, Right<const T> right, Right<T> result, Span vecs, const Depths& depths) {
  for (int64_t v = vecs.begin; v < vecs.end; v += kGroupVecs) {
    Right<const T> b{right.data + v * Vec<T>::size(), right.stride};
    Right<T> c{result.data + v * Vec<T>::size(), result.stride};
    switch (std::min<int64_t>(kGroupVecs, vecs.end - v)) {
      case 1: product_block<T, 1, kAdd>(left, b, c, depths); break;
      case 2: product_block<T, 2, kAdd>(left, b, c, depths); break;
      case 3: product_block<T, 3, kAdd>(left, b, c, depths); break;
      default: product_block<T, 4, kAdd>(left, b, c, depths);
    }
  }
}

}  // namespace slm::CPU_CAPABILITY
