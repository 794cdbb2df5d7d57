// The statistics of a row, for layer norm and for what begins with one.
#pragma once

#include <cmath>
#include <utility>

#include "vec.h"

namespace slm {

// Mean and 1 / sqrt(variance + eps) of a row; the variance from the differences to the mean, never E[x²] - E[x]².
template <typename A>
std::pair<A, A> moments(const A* x, int64_t size, A eps) {
  Sum<A> sum, squares;
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    sum.parts[part] = sum.parts[part] + load(x + i, count);
  });
  const A mean = sum.total() / static_cast<A>(size);
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    Vec<A> centred = first_lanes(load(x + i, count) - Vec<A>(mean), count);
    squares.parts[part] = at::vec::fmadd(centred, centred, squares.parts[part]);
  });
  return {mean, 1 / std::sqrt(squares.total() / static_cast<A>(size) + eps)};
}

// 1 / sqrt(mean of squares + eps) of a row.
inline float inverse_rms(const float* x, int64_t size, float eps) {
  Vec<float> squares(0);
  for_each_vec<float>(size, [&](int64_t i, auto count) {
    const Vec<float> values = load(x + i, count);
    squares = at::vec::fmadd(values, values, squares);
  });
  return 1 / std::sqrt(sum_of(squares) / static_cast<float>(size) + eps);
}

}  // namespace slm
