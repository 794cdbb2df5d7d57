// Rotary positions: neighbouring pairs of numbers turned by the angle of their token, for the ops that do it as they load.
#pragma once

#include <c10/macros/Macros.h>

#include "vec.h"

namespace slm::CPU_CAPABILITY {

// The angles of tokens: cosines and sines (tokens, pairs); null: no token is turned.
template <typename A>
struct Angles {
  const A *cos = nullptr, *sin = nullptr;
  int64_t pairs = 0;
  A direction = 1;  // -1: back

  // Those from `token` on, where there are any.
  Angles from(int64_t token) const { return {cos + token * pairs, sin + token * pairs, pairs, direction}; }
  Angles back() const { return {cos, sin, pairs, -direction}; }
};

// to = from, one row of 2 * pairs numbers, turned by the angles of the first token, times `factor`. May be in place. A
// function of its own, so that loops over rows that are not turned stay short.
template <typename A>
C10_NOINLINE void turn(const A* from, Angles<A> by, A factor, A* to) {
  constexpr int64_t width = Vec<A>::size();
  int64_t i = 0;
  for (; i + width <= by.pairs; i += width) {
    const auto [even, odd] = at::vec::deinterleave2(Vec<A>::loadu(from + 2 * i), Vec<A>::loadu(from + 2 * i + width));
    const Vec<A> cos = Vec<A>::loadu(by.cos + i) * Vec<A>(factor);
    const Vec<A> sin = Vec<A>::loadu(by.sin + i) * Vec<A>(by.direction * factor);
    const auto [first, second] = at::vec::interleave2(even * cos - odd * sin, even * sin + odd * cos);
    first.store(to + 2 * i);
    second.store(to + 2 * i + width);
  }
  for (; i < by.pairs; ++i) {
    const A even = from[2 * i], odd = from[2 * i + 1];
    const A cos = by.cos[i] * factor, sin = by.sin[i] * by.direction * factor;
    to[2 * i] = even * cos - odd * sin;
    to[2 * i + 1] = even * sin + odd * cos;
  }
}

// The row of `token` times `factor`, turned where there are angles.
template <typename A>
inline void turn_or_scale(const A* from, const Angles<A>& by, int64_t token, A factor, int64_t size, A* to) {
  if (by.cos) return turn(from, by.from(token), factor, to);
  for_each_vec<A>(size, [&](int64_t i, auto count) { store(load(from + i, count) * Vec<A>(factor), to + i, count); });
}

}  // namespace slm::CPU_CAPABILITY
