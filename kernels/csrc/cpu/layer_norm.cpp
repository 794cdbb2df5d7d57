// layer_norm and add_layer_norm on the CPU, forward and backward.
//
// Every row comes from memory once: the later sweeps over it (variance, output) find it in the first-level cache.
// The derivation is in docs/kernels/layer_norm.md.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>

#include <tuple>
#include <vector>

#include "../ops.h"
#include "memory.h"
#include "norm.h"
#include "rows.h"

namespace slm::CPU_CAPABILITY {
namespace {

// out = (x - mean) * rstd * weight + bias for one row.
template <typename A>
void normalize(const A* x, A mean, A rstd, const A* weight, const A* bias, A* out, int64_t size, bool large) {
  for_each_vec<A>(size, [&](int64_t i, auto count) {
    prefetch(x + i);
    Vec<A> scaled = (load(x + i, count) - Vec<A>(mean)) * Vec<A>(rstd);
    write(at::vec::fmadd(scaled, load(weight + i, count), load(bias + i, count)), out + i, count, large);
  });
}

struct Normalized {
  at::Tensor out, sum, mean, rstd;  // sum: undefined without a residual
};

template <typename T>
Normalized forward(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, double eps) {
  using A = compute_t<T>;
  const int64_t size = x.size(-1), rows = x.numel() / size;
  auto statistics = x.options().dtype(statistics_type(x));
  Normalized result{empty_output(x.sizes(), x.options()), residual ? empty_output(x.sizes(), x.options()) : at::Tensor(),
                    at::empty({rows}, statistics), at::empty({rows}, statistics)};
  const Rows<const T> in(x), added(residual.value_or(x));
  const Rows<T> sum(residual ? result.sum : result.out), out(result.out);
  const auto gamma = widened<T>(weight, size), beta = widened<T>(bias, size);
  A *means = result.mean.mutable_data_ptr<A>(), *rstds = result.rstd.mutable_data_ptr<A>();
  const bool large = past_cache<T>(result.out);

  for_row_tasks(rows, size, [&](int64_t, int64_t begin, int64_t end) {
    std::vector<A> scratch(2 * size);
    for (int64_t r = begin; r < end; ++r) {
      const A* values = widen(in[r], scratch.data(), size);
      if (residual) {
        add_rows<T>(values, widen(added[r], scratch.data() + size, size), sum[r], scratch.data(), size, large);
        values = scratch.data();
      }
      std::tie(means[r], rstds[r]) = moments(values, size, static_cast<A>(eps));
      A* target = destination(out[r], scratch.data() + size);
      normalize(values, means[r], rstds[r], gamma.data(), beta.data(), target, size, large);
      narrow(target, out[r], size);
    }
    written();
  });
  return result;
}

// One row of the backward; `residual`, a gradient to add to that of x, only where kResidual says so. By reference: a copy
// is read in wider pieces than it was just written in, which waits until the row before has reached memory.
template <typename A>
struct BackwardRow {
  const A *grad, *x, *residual;
  A *grad_x, mean, rstd;
};

// The row's gradient of x; its part of the gradients of weight and bias is added to grad_weight and grad_bias.
template <bool kResidual, typename A>
void row_backward(const BackwardRow<A>& row, const A* weight, A* grad_weight, A* grad_bias, int64_t size, bool large) {
  const Vec<A> mean(row.mean), rstd(row.rstd);
  Sum<A> plain, projected;  // of g * weight, and of g * weight * (x - mean)
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    prefetch(row.grad + i);
    const Vec<A> weighted = load(row.grad + i, count) * load(weight + i, count);
    plain.parts[part] = plain.parts[part] + weighted;
    projected.parts[part] = at::vec::fmadd(weighted, load(row.x + i, count) - mean, projected.parts[part]);
  });
  const Vec<A> offset(plain.total() / static_cast<A>(size));
  const Vec<A> slope(projected.total() * row.rstd / static_cast<A>(size));
  for_each_vec<A>(size, [&](int64_t i, auto count) {
    const Vec<A> g = load(row.grad + i, count), normalized = (load(row.x + i, count) - mean) * rstd;
    prefetch(row.x + i);
    Vec<A> grad_x = (g * load(weight + i, count) - offset - normalized * slope) * rstd;
    if constexpr (kResidual) grad_x = grad_x + load(row.residual + i, count);
    write(grad_x, row.grad_x + i, count, large);
    store(at::vec::fmadd(g, normalized, load(grad_weight + i, count)), grad_weight + i, count);
    store(g + load(grad_bias + i, count), grad_bias + i, count);
  });
}

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                        const at::Tensor& weight, const at::Tensor& mean,
                                                        const at::Tensor& rstd,
                                                        const std::optional<at::Tensor>& grad_residual) {
  using A = compute_t<T>;
  const int64_t size = x.size(-1), rows = x.numel() / size;
  at::Tensor grad_x = empty_output(x.sizes(), x.options());
  // Each task sums the gradients of weight and bias over its rows: (tasks, 2, C).
  at::Tensor parts = at::zeros({(rows + kRowsPerTask - 1) / kRowsPerTask, 2, size}, mean.options());
  const Rows<const T> grad(grad_out), in(x), passed(grad_residual.value_or(grad_out));
  const Rows<T> to(grad_x);
  const auto gamma = widened<T>(weight, size);
  const A *means = mean.const_data_ptr<A>(), *rstds = rstd.const_data_ptr<A>();
  A* sums = parts.mutable_data_ptr<A>();
  const bool large = past_cache<T>(grad_x);

  for_row_tasks(rows, size, [&](int64_t task, int64_t begin, int64_t end) {
    std::vector<A> scratch(3 * size);
    A *grad_weight = sums + 2 * task * size, *grad_bias = grad_weight + size;
    for (int64_t r = begin; r < end; ++r) {
      const A* g = widen(grad[r], scratch.data(), size);
      const A* values = widen(in[r], scratch.data() + size, size);
      A* target = destination(to[r], scratch.data());
      if (grad_residual) {
        const A* residual = widen(passed[r], scratch.data() + 2 * size, size);
        row_backward<true, A>({g, values, residual, target, means[r], rstds[r]}, gamma.data(), grad_weight, grad_bias,
                              size, large);
      } else {
        row_backward<false, A>({g, values, nullptr, target, means[r], rstds[r]}, gamma.data(), grad_weight, grad_bias,
                               size, large);
      }
      narrow(target, to[r], size);
    }
    written();
  });
  at::Tensor total = parts.sum(0).to(x.scalar_type());  // (2, C)
  return {grad_x, total[0].clone(), total[1].clone()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm(const at::Tensor& x, const at::Tensor& weight,
                                                          const std::optional<at::Tensor>& bias, double eps) {
  check_layer_norm(x, std::nullopt, weight, bias, eps);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "layer_norm", [&] {
    auto result = forward<scalar_t>(x, std::nullopt, weight, bias, eps);
    return std::make_tuple(result.out, result.mean, result.rstd);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> add_layer_norm(const at::Tensor& x,
                                                                          const at::Tensor& residual,
                                                                          const at::Tensor& weight,
                                                                          const std::optional<at::Tensor>& bias,
                                                                          double eps) {
  check_layer_norm(x, residual, weight, bias, eps);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "add_layer_norm", [&] {
    auto result = forward<scalar_t>(x, residual, weight, bias, eps);
    return std::make_tuple(result.out, result.sum, result.mean, result.rstd);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                                   const at::Tensor& weight, const at::Tensor& mean,
                                                                   const at::Tensor& rstd,
                                                                   const std::optional<at::Tensor>& grad_residual) {
  check_layer_norm_backward(grad_out, x, weight, mean, rstd, grad_residual);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "layer_norm_backward", [&] {
    return backward<scalar_t>(grad_out, x, weight, mean, rstd, grad_residual);
  });
}

}  // namespace

void register_layer_norm(torch::Library& m) {
  m.impl("layer_norm", layer_norm);
  m.impl("add_layer_norm", add_layer_norm);
  m.impl("layer_norm_backward", layer_norm_backward);
}

}  // namespace slm::CPU_CAPABILITY
