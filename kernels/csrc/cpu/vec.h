// SIMD vectors for the CPU kernels: at::vec at the width of the instruction set that this copy is compiled for
// (level.h), and rows of any dtype as rows of the dtype that we compute in.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>

#include "level.h"

namespace slm::CPU_CAPABILITY {

template <typename T>
using Vec = at::vec::Vectorized<T>;

// float for float, Half and BFloat16; double for double: statistics and sums are kept in it.
template <typename T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// `row` as size numbers to compute with: itself, or converted into `scratch`.
template <typename T>
inline const compute_t<T>* widen(const T* row, compute_t<T>* scratch, int64_t size) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    return row;
  } else {
    constexpr int64_t width = Vec<float>::size();
    int64_t i = 0;
    for (; i + width <= size; i += width) {
      Vec<float> values;
      at::vec::load_to_float<T>(row + i, values);
      values.store(scratch + i);
    }
    for (; i < size; ++i) scratch[i] = static_cast<float>(row[i]);
    return scratch;
  }
}

// Writes size computed numbers to a row of T, rounded to nearest.
template <typename T>
inline void narrow(const compute_t<T>* values, T* row, int64_t size) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    if (values != row) std::copy_n(values, size, row);
  } else {
    at::vec::convert(values, row, size);
  }
}

// Where a computed row is built: in place where no rounding is needed, else in `scratch` (then call narrow).
template <typename T>
inline compute_t<T>* destination(T* row, compute_t<T>* scratch) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    return row;
  } else {
    return scratch;
  }
}

// Calls step(offset, count) for each vector of a row: whole ones with a constant count, then the rest of it.
template <typename T, typename Step>
inline void for_each_vec(int64_t size, const Step& step) {
  constexpr int64_t width = Vec<T>::size();
  int64_t i = 0;
  for (; i + width <= size; i += width) step(i, std::integral_constant<int64_t, width>{});
  if (i < size) step(i, size - i);
}

// count elements at `from`, zeros in the other lanes; a whole vector where the count is the constant width.
template <typename T, typename Count>
inline Vec<T> load(const T* from, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    return Vec<T>::loadu(from, count);
  } else {
    return Vec<T>::loadu(from);
  }
}

template <typename T, typename Count>
inline void store(const Vec<T>& vec, T* to, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    vec.store(to, static_cast<int>(count));
  } else {
    vec.store(to);
  }
}

// Asks for the numbers that a loop over rows will read 6 KB later: across the ends of pages, where the processor's own
// prefetching stops. Spread over all sweeps of a row, so that memory is busy while the sweeps only compute.
template <typename T>
inline void prefetch(const T* from) {
  __builtin_prefetch(from + 6144 / sizeof(T));
}

// As store, but around the cache where `past_cache` says so and the processor can: the line is then not read before it is
// overwritten, which spares a third of the traffic of an output that is written once. `written` must follow.
template <typename T, typename Count>
inline void write(const Vec<T>& vec, T* to, Count count, bool past_cache) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float> && !std::is_same_v<Count, int64_t>) {
    if (past_cache && reinterpret_cast<uintptr_t>(to) % sizeof(vec) == 0) {
#if defined(CPU_CAPABILITY_AVX512)
      _mm512_stream_ps(to, vec);
#else
      _mm256_stream_ps(to, vec);
#endif
      return;
    }
  }
#endif
  store(vec, to, count);
}

// Makes what this thread wrote around the cache visible to the others.
inline void written() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

// `vec` in its first count lanes, zero in the others.
template <typename T, typename Count>
inline Vec<T> first_lanes(const Vec<T>& vec, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    return Vec<T>::set(Vec<T>(0), vec, count);
  } else {
    return vec;
  }
}

template <typename T>
inline T sum_of(const Vec<T>& vec) {
  return at::vec::vec_reduce_all<T>([](Vec<T>& a, Vec<T>& b) { return a + b; }, vec);
}

// A sum over a row in four parts, so that no addition waits for the one before.
template <typename T>
struct Sum {
  Vec<T> parts[4] = {Vec<T>(0), Vec<T>(0), Vec<T>(0), Vec<T>(0)};
  T total() const { return sum_of((parts[0] + parts[1]) + (parts[2] + parts[3])); }
};

// As for_each_vec, with the part of a Sum that the vector is for: step(offset, count, part).
template <typename T, typename Step>
inline void for_each_part(int64_t size, const Step& step) {
  constexpr int64_t width = Vec<T>::size();
  int64_t i = 0;
  for (; i + 4 * width <= size; i += 4 * width) {
    for (int part = 0; part < 4; ++part) step(i + part * width, std::integral_constant<int64_t, width>{}, part);
  }
  for_each_vec<T>(size - i, [&](int64_t rest, auto count) { step(i + rest, count, 0); });
}

// exp(x) for x <= 0, to within two units in the last place; below exp(-86.5), the least normal numbers, it is 0.
// NaN stays NaN.
//
// exp(x) = 2^n exp(r) with n the nearest integer to x / ln 2. Adding 1.5 * 2^23 leaves n in the low bits of the sum, from
// where a shift moves it into the exponent. The polynomial interpolates (exp(r) - 1 - r) / r^2 at Chebyshev's points of
// |r| <= ln 2 / 2, with an error of 1e-8.
inline Vec<float> exp_negative(const Vec<float>& x) {
  const Vec<float> least(-86.5f), magic(12582912.0f);
  const Vec<float> clamped = at::vec::maximum(x, least);
  const Vec<float> shifted = at::vec::fmadd(clamped, Vec<float>(1.44269504f), magic), n = shifted - magic;
  Vec<float> r = at::vec::fmadd(n, Vec<float>(-0.693359375f), clamped);  // ln 2 in two parts: n times the first is exact
  r = at::vec::fmadd(n, Vec<float>(2.12194440e-4f), r);
  Vec<float> tail = at::vec::fmadd(Vec<float>(0.00139262508f), r, Vec<float>(0.00836323288f));
  tail = at::vec::fmadd(tail, r, Vec<float>(0.0416665542f));
  tail = at::vec::fmadd(tail, r, Vec<float>(0.166665767f));
  tail = at::vec::fmadd(tail, r, Vec<float>(0.5f));
  const Vec<float> fraction = at::vec::fmadd(tail, r * r, r) + Vec<float>(1);
  const auto exponent = at::vec::cast<int32_t>(shifted) << Vec<int32_t>(23);
  const Vec<float> result = at::vec::cast<float>(at::vec::cast<int32_t>(fraction) + exponent);
  const Vec<float> number = Vec<float>::blendv(result, Vec<float>(0), x < least);
  return Vec<float>::blendv(number, x, x != x);  // the integer addition makes numbers of NaN
}

inline Vec<double> exp_negative(const Vec<double>& x) { return x.exp(); }

template <typename T>
inline T max_of(const Vec<T>& vec) {
  return at::vec::vec_reduce_all<T>([](Vec<T>& a, Vec<T>& b) { return at::vec::maximum(a, b); }, vec);
}

}  // namespace slm::CPU_CAPABILITY
