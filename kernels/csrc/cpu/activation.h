// GELU and SiLU with their derivatives, a vector at a time.
#pragma once

#include "vec.h"

namespace slm::CPU_CAPABILITY {

// s = 1 / (1 + e^-x) and 1 - s, each to full precision: by e^-|x|, which does not overflow.
template <typename A>
struct Sigmoid {
  Vec<A> value, rest;
};

template <typename A>
inline Sigmoid<A> sigmoid(const Vec<A>& x) {
  const Vec<A> e = exp_negative(x.abs().neg()), larger = Vec<A>(1) / (Vec<A>(1) + e), smaller = e * larger;
  const Vec<A> negative = x < Vec<A>(0);
  return {Vec<A>::blendv(larger, smaller, negative), Vec<A>::blendv(smaller, larger, negative)};
}

// An activation at x: its value and its derivative.
template <typename A>
struct Activated {
  Vec<A> value, slope;
};

// x sigmoid(x) (Elfwing et al. 2017).
struct Silu {
  template <typename A>
  static Vec<A> value(const Vec<A>& x) {
    return x * sigmoid(x).value;
  }
  template <typename A>
  static Activated<A> both(const Vec<A>& x) {
    const auto s = sigmoid(x);
    const Vec<A> value = x * s.value;
    return {value, at::vec::fmadd(value, s.rest, s.value)};
  }
};

// GPT-2's form, x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x³); (1 + tanh(u)) / 2 is sigmoid(2 u).
struct GeluTanh {
  static constexpr double kSlope = 1.5957691216057308;  // 2 sqrt(2 / pi)

  template <typename A>
  static Vec<A> inner(const Vec<A>& x) {
    return at::vec::fmadd(Vec<A>(0.044715 * kSlope) * x, x * x, Vec<A>(kSlope) * x);
  }
  template <typename A>
  static Vec<A> value(const Vec<A>& x) {
    return x * sigmoid(inner(x)).value;
  }
  template <typename A>
  static Activated<A> both(const Vec<A>& x) {
    const auto s = sigmoid(inner(x));
    const Vec<A> value = x * s.value;
    const Vec<A> inner_slope = at::vec::fmadd(Vec<A>(3 * 0.044715 * kSlope), x * x, Vec<A>(kSlope));
    return {value, at::vec::fmadd(value * inner_slope, s.rest, s.value)};
  }
};

// x times the normal distribution below it (Hendrycks and Gimpel 2016).
struct GeluErf {
  template <typename A>
  static Vec<A> below(const Vec<A>& x) {
    return Vec<A>(0.5) * (Vec<A>(1) + (x * Vec<A>(0.7071067811865476)).erf());
  }
  template <typename A>
  static Vec<A> value(const Vec<A>& x) {
    return x * below(x);
  }
  template <typename A>
  static Activated<A> both(const Vec<A>& x) {
    const Vec<A> share = below(x), density = Vec<A>(0.3989422804014327) * exp_negative(x * x * Vec<A>(-0.5));
    return {x * share, at::vec::fmadd(x, density, share)};
  }
};

// count numbers at `from` as those to compute with, zeros in the other lanes.
template <typename T, typename Count>
inline Vec<compute_t<T>> load_wide(const T* from, Count count) {
  using A = compute_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    return load(from, count);
  } else if constexpr (std::is_same_v<Count, int64_t>) {
    return std::get<0>(at::vec::convert_to_float<T>(Vec<T>::loadu(from, count)));
  } else {
    Vec<A> values;
    at::vec::load_to_float<T>(from, values);
    return values;
  }
}

// Writes the first count lanes, rounded to T.
template <typename T, typename Count>
inline void store_narrow(const Vec<compute_t<T>>& vec, T* to, Count count) {
  using A = compute_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    store(vec, to, count);
  } else if constexpr (std::is_same_v<Count, int64_t>) {
    at::vec::convert<T>(vec).store(to, static_cast<int>(count));
  } else {
    at::vec::convert<T>(vec).store(to, Vec<A>::size());
  }
}

}  // namespace slm::CPU_CAPABILITY
