// Small matrix products inside attention's tiles: four rows of the result at a time, held in registers.
//
// result (4 x columns) = or += left (4 x depth) * right (depth x columns). `right` and the result have their columns side
// by side in memory, so that they are read as vectors; an element of `left` is broadcast, so its strides are free:
// a transposed left costs nothing.
#pragma once

#include "vec.h"

namespace slm {

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

template <typename T, int kVecs, bool kAdd>
inline void product_block(Left<T> left, Right<const T> right, Right<T> result, Span depth) {
  Vec<T> sums[kGroupRows][kVecs];
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      sums[r][v] = kAdd ? Vec<T>::loadu(result.data + r * result.stride + v * Vec<T>::size()) : Vec<T>(0);
    }
  }
  const T* a = left.data + depth.begin * left.depth_stride;
  const T* b = right.data + depth.begin * right.stride;
  for (int64_t k = depth.begin; k < depth.end; ++k, a += left.depth_stride, b += right.stride) {
    Vec<T> row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = Vec<T>::loadu(b + v * Vec<T>::size());
    for (int r = 0; r < kGroupRows; ++r) {
      Vec<T> factor(a[r * left.row_stride]);
      for (int v = 0; v < kVecs; ++v) sums[r][v] = at::vec::fmadd(factor, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kGroupRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sums[r][v].store(result.data + r * result.stride + v * Vec<T>::size());
  }
}

// The columns `vecs` (counted in vectors) of the four rows that `left` and `result` point to, summed over `depth`.
template <bool kAdd, typename T>
inline void product(Left<T> left, Right<const T> right, Right<T> result, Span vecs, Span depth) {
  for (int64_t v = vecs.begin; v < vecs.end; v += kGroupVecs) {
    Right<const T> b{right.data + v * Vec<T>::size(), right.stride};
    Right<T> c{result.data + v * Vec<T>::size(), result.stride};
    switch (std::min<int64_t>(kGroupVecs, vecs.end - v)) {
      case 1: product_block<T, 1, kAdd>(left, b, c, depth); break;
      case 2: product_block<T, 2, kAdd>(left, b, c, depth); break;
      case 3: product_block<T, 3, kAdd>(left, b, c, depth); break;
      default: product_block<T, 4, kAdd>(left, b, c, depth);
    }
  }
}

}  // namespace slm
