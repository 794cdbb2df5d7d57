// The statistics of a row, for layer norm and for what begins with one.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "vec.h"

namespace slm::CPU_CAPABILITY {

// Mean and 1 / sqrt(variance + eps) of a row; the variance from the differences to the mean, never E[x²] - E[x]².
//
// The rounding of a long sum leaves the mean a little off, which shows where the mean is large and the variance small.
// The mean of the differences is that error, so it is taken off (Chan, Golub and LeVeque 1983, the corrected two-pass
// algorithm).
template <typename A>
std::pair<A, A> moments(const A* x, int64_t size, A eps) {
  Sum<A> sum, rest, squares;
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    sum.parts[part] = sum.parts[part] + load(x + i, count);
  });
  const A rough = sum.total() / static_cast<A>(size);
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    Vec<A> centred = first_lanes(load(x + i, count) - Vec<A>(rough), count);
    rest.parts[part] = rest.parts[part] + centred;
    squares.parts[part] = at::vec::fmadd(centred, centred, squares.parts[part]);
  });
  const A error = rest.total() / static_cast<A>(size);
  const A variance = std::max(squares.total() / static_cast<A>(size) - error * error, A(0));
  return {rough + error, 1 / std::sqrt(variance + eps)};
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

}  // namespace slm::CPU_CAPABILITY
