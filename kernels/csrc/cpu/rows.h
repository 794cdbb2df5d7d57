// Rows of C numbers, for the ops that take a row at a time: where they are, how they are shared out to threads, and the
// sum of two of them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../ops.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {

// Rows that one task takes, and whose part of the gradients of weight and bias is summed before the parts are: fixed,
// so that the sums do not depend on the number of threads.
inline constexpr int64_t kRowsPerTask = 128;

// Elements below which a thread is not worth waking.
inline constexpr int64_t kGrainElements = 32768;

// A tensor (..., C) as rows of C at a constant distance; a copy only where its strides do not allow that.
template <typename T>
struct Rows {
  explicit Rows(const at::Tensor& x)
      : matrix(unit_stride(x).reshape({x.numel() / x.size(-1), x.size(-1)})),
        data(static_cast<T*>(const_cast<void*>(matrix.const_data_ptr()))),
        distance(matrix.stride(0)) {}
  T* operator[](int64_t row) const { return data + row * distance; }
  at::Tensor matrix;  // (rows, C); keeps a copy alive
  T* data;
  int64_t distance;
};

// Whether a result is too large to be found in the cache by who reads it next: then it is written around the cache.
template <typename T>
bool past_cache(const at::Tensor& x) {
  constexpr size_t kLarge = 16 << 20;
  return std::is_same_v<T, float> && x.nbytes() >= kLarge;
}

// Calls body(task, begin, end) for every task of rows, in parallel.
template <typename Body>
inline void for_row_tasks(int64_t rows, int64_t size, const Body& body) {
  int64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  at::parallel_for(0, tasks, kGrainElements / (kRowsPerTask * size) + 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      body(task, task * kRowsPerTask, std::min(rows, (task + 1) * kRowsPerTask));
    }
  });
}

// One row of numbers of the compute dtype, from a vector of any dtype; zeros where there is none.
template <typename T>
std::vector<compute_t<T>> widened(const std::optional<at::Tensor>& vector, int64_t size) {
  std::vector<compute_t<T>> values(size, 0);
  if (vector) {
    const T* from = vector->const_data_ptr<T>();
    std::copy_n(from, size, values.begin());
  }
  return values;
}

// sum = a + b, rounded to T; the same numbers, widened again, in `values`, where the next sweeps find them.
template <typename T, typename A = compute_t<T>>
void add_rows(const A* a, const A* b, T* sum, A* values, int64_t size, bool large) {
  if constexpr (std::is_same_v<T, A>) {
    for_each_vec<A>(size, [&](int64_t i, auto count) {
      prefetch(a + i);
      prefetch(b + i);
      const Vec<A> total = load(a + i, count) + load(b + i, count);
      store(total, values + i, count);
      write(total, sum + i, count, large);
    });
  } else {
    for_each_vec<A>(size, [&](int64_t i, auto count) {
      store(load(a + i, count) + load(b + i, count), values + i, count);
    });
    narrow(values, sum, size);
    widen<T>(sum, values, size);
  }
}

}  // namespace slm::CPU_CAPABILITY
