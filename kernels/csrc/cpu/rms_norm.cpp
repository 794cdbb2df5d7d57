// rms_norm and add_rms_norm on the CPU, forward and backward: as layer_norm.cpp, without a mean and without a bias.
//
// The derivation is in docs/kernels/rms_norm.md.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../ops.h"
#include "memory.h"
#include "rows.h"

namespace slm::CPU_CAPABILITY {
namespace {

template <typename A>
A reciprocal_rms(const A* x, int64_t size, A eps) {
  Sum<A> squares;
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    const Vec<A> values = load(x + i, count);
    squares.parts[part] = at::vec::fmadd(values, values, squares.parts[part]);
  });
  return 1 / std::sqrt(squares.total() / static_cast<A>(size) + eps);
}

struct Normalized {
  at::Tensor out, sum, rstd;  // sum: undefined without a residual
};

template <typename T>
Normalized forward(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight, double eps) {
  using A = compute_t<T>;
  const int64_t size = x.size(-1), rows = x.numel() / size;
  Normalized result{empty_output(x.sizes(), x.options()), residual ? empty_output(x.sizes(), x.options()) : at::Tensor(),
                    at::empty({rows}, x.options().dtype(statistics_type(x)))};
  const Rows<const T> in(x), added(residual.value_or(x));
  const Rows<T> sum(residual ? result.sum : result.out), out(result.out);
  const auto gamma = widened<T>(weight, size);
  A* rstds = result.rstd.mutable_data_ptr<A>();
  const bool large = past_cache<T>(result.out);

  for_row_tasks(rows, size, [&](int64_t, int64_t begin, int64_t end) {
    std::vector<A> scratch(2 * size);
    for (int64_t r = begin; r < end; ++r) {
      const A* values = widen(in[r], scratch.data(), size);
      if (residual) {
        add_rows<T>(values, widen(added[r], scratch.data() + size, size), sum[r], scratch.data(), size, large);
        values = scratch.data();
      }
      rstds[r] = reciprocal_rms(values, size, static_cast<A>(eps));
      A* target = destination(out[r], scratch.data() + size);
      const Vec<A> rstd(rstds[r]);
      for_each_vec<A>(size, [&](int64_t i, auto count) {
        prefetch(values + i);
        write(load(values + i, count) * rstd * load(gamma.data() + i, count), target + i, count, large);
      });
      narrow(target, out[r], size);
    }
    written();
  });
  return result;
}

// One row of the backward; `residual`, a gradient to add to that of x, only where kResidual says so. By reference, as in
// layer_norm.cpp.
template <typename A>
struct BackwardRow {
  const A *grad, *x, *residual;
  A *grad_x, rstd;
};

// The row's gradient of x; its part of the gradient of the weight is added to grad_weight.
template <bool kResidual, typename A>
void row_backward(const BackwardRow<A>& row, const A* weight, A* grad_weight, int64_t size, bool large) {
  Sum<A> projected;  // of g * weight * x
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    prefetch(row.grad + i);
    const Vec<A> weighted = load(row.grad + i, count) * load(weight + i, count);
    projected.parts[part] = at::vec::fmadd(weighted, load(row.x + i, count), projected.parts[part]);
  });
  const Vec<A> rstd(row.rstd), slope(projected.total() * row.rstd / static_cast<A>(size));
  for_each_vec<A>(size, [&](int64_t i, auto count) {
    prefetch(row.x + i);
    const Vec<A> g = load(row.grad + i, count), normalized = load(row.x + i, count) * rstd;
    Vec<A> grad_x = (g * load(weight + i, count) - normalized * slope) * rstd;
    if constexpr (kResidual) grad_x = grad_x + load(row.residual + i, count);
    write(grad_x, row.grad_x + i, count, large);
    store(at::vec::fmadd(g, normalized, load(grad_weight + i, count)), grad_weight + i, count);
  });
}

constexpr int64_t kRowsPerSum = 16;

template <typename A>
void add_and_clear(A* recent, A* total, int64_t size) {
  for (int64_t i = 0; i < size; ++i) total[i] += recent[i];
  std::fill_n(recent, size, A(0));
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight,
                                            const at::Tensor& rstd, const std::optional<at::Tensor>& grad_residual) {
  using A = compute_t<T>;
  const int64_t size = x.size(-1), rows = x.numel() / size;
  at::Tensor grad_x = empty_output(x.sizes(), x.options());
  // Each task sums the gradient of the weight over its rows: (tasks, C).
  at::Tensor parts = at::zeros({(rows + kRowsPerTask - 1) / kRowsPerTask, size}, rstd.options());
  const Rows<const T> grad(grad_out), in(x), passed(grad_residual.value_or(grad_out));
  const Rows<T> to(grad_x);
  const auto gamma = widened<T>(weight, size);
  const A* rstds = rstd.const_data_ptr<A>();
  A* sums = parts.mutable_data_ptr<A>();
  const bool large = past_cache<T>(grad_x);

  for_row_tasks(rows, size, [&](int64_t task, int64_t begin, int64_t end) {
    std::vector<A> scratch(4 * size);
    A* recent = scratch.data() + 3 * size;  // the sums of up to kRowsPerSum rows: long sums lose digits
    for (int64_t r = begin; r < end; ++r) {
      const A* g = widen(grad[r], scratch.data(), size);
      const A* values = widen(in[r], scratch.data() + size, size);
      A* target = destination(to[r], scratch.data());
      if (grad_residual) {
        const A* residual = widen(passed[r], scratch.data() + 2 * size, size);
        row_backward<true, A>({g, values, residual, target, rstds[r]}, gamma.data(), recent, size, large);
      } else {
        row_backward<false, A>({g, values, nullptr, target, rstds[r]}, gamma.data(), recent, size, large);
      }
      narrow(target, to[r], size);
      if (r + 1 == end || (r + 1) % kRowsPerSum == 0) add_and_clear(recent, sums + task * size, size);
    }
    written();
  });
  return {grad_x, parts.sum(0).to(x.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check_layer_norm(x, std::nullopt, weight, std::nullopt, eps);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rms_norm", [&] {
    auto result = forward<scalar_t>(x, std::nullopt, weight, eps);
    return std::make_tuple(result.out, result.rstd);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x, const at::Tensor& residual,
                                                            const at::Tensor& weight, double eps) {
  check_layer_norm(x, residual, weight, std::nullopt, eps);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "add_rms_norm", [&] {
    auto result = forward<scalar_t>(x, residual, weight, eps);
    return std::make_tuple(result.out, result.sum, result.rstd);
  });
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                     const at::Tensor& weight, const at::Tensor& rstd,
                                                     const std::optional<at::Tensor>& grad_residual) {
  check_layer_norm_backward(grad_out, x, weight, rstd, rstd, grad_residual);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rms_norm_backward", [&] {
    return backward<scalar_t>(grad_out, x, weight, rstd, grad_residual);
  });
}

}  // namespace

void register_rms_norm(torch::Library& m) {
  m.impl("rms_norm", rms_norm);
  m.impl("add_rms_norm", add_rms_norm);
  m.impl("rms_norm_backward", rms_norm_backward);
}

}  // namespace slm::CPU_CAPABILITY
