// SIMD vectors for the CPU kernels: at::vec at the width of the machine that builds, and rows of any dtype as
// rows of the dtype that we compute in.
//
// The extension is compiled on the machine that runs it (-march=native), so the width is known here and no dispatch
// is needed at run time.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define CPU_CAPABILITY AVX512
#define CPU_CAPABILITY_AVX512
#elif defined(__AVX2__) && defined(__FMA__)
#define CPU_CAPABILITY AVX2
#define CPU_CAPABILITY_AVX2
#endif

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>

namespace slm {

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

}  // namespace slm
