// gelu and swiglu with their biases on the CPU, forward and backward: one pass over memory each way.
//
// The derivation is in docs/kernels/activation.md.
#include "activation.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>
#include <vector>

#include "../ops.h"
#include "memory.h"
#include "rows.h"

namespace slm::CPU_CAPABILITY {
namespace {

// Calls body(Function()) for "tanh" or "none", which the check has found it to be.
template <typename Body>
auto with_gelu(c10::string_view approximate, const Body& body) {
  return approximate == "tanh" ? body(GeluTanh()) : body(GeluErf());
}

template <typename T, typename F>
at::Tensor gelu_rows(const at::Tensor& x, const std::optional<at::Tensor>& bias, F) {
  using A = compute_t<T>;
  const int64_t size = x.size(-1), rows = x.numel() / size;
  at::Tensor result = empty_output(x.sizes(), x.options());
  const Rows<const T> in(x);
  const Rows<T> out(result);
  const auto shift = widened<T>(bias, size);
  for_row_tasks(rows, size, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* from = in[r];
      T* to = out[r];
      for_each_vec<A>(size, [&](int64_t i, auto count) {
        store_narrow(F::value(load_wide(from + i, count) + load(shift.data() + i, count)), to + i, count);
      });
    }
  });
  return result;
}

template <typename T, typename F>
std::tuple<at::Tensor, at::Tensor> gelu_rows_backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                      const std::optional<at::Tensor>& bias, F) {
  using A = compute_t<T>;
  const int64_t size = x.size(-1), rows = x.numel() / size;
  at::Tensor grad_x = empty_output(x.sizes(), x.options());
  // Each task sums the gradient of the bias over its rows: (tasks, C); 0 where there is none.
  at::Tensor parts = at::zeros({(rows + kRowsPerTask - 1) / kRowsPerTask, size}, x.options().dtype(statistics_type(x)));
  const Rows<const T> grad(grad_out), in(x);
  const Rows<T> to(grad_x);
  const auto shift = widened<T>(bias, size);
  const bool biased = bias.has_value();
  A* sums = parts.mutable_data_ptr<A>();
  for_row_tasks(rows, size, [&](int64_t task, int64_t begin, int64_t end) {
    A* sum = sums + task * size;
    for (int64_t r = begin; r < end; ++r) {
      const T *g = grad[r], *from = in[r];
      T* target = to[r];
      for_each_vec<A>(size, [&](int64_t i, auto count) {
        const Vec<A> at = load_wide(from + i, count) + load(shift.data() + i, count);
        const Vec<A> product = load_wide(g + i, count) * F::both(at).slope;
        store_narrow(product, target + i, count);
        if (biased) store(load(sum + i, count) + product, sum + i, count);
      });
    }
  });
  return {grad_x, parts.sum(0).to(x.scalar_type())};
}

at::Tensor gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias, c10::string_view approximate) {
  check_gelu(x, bias, approximate);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "gelu", [&] {
    return with_gelu(approximate, [&](auto function) { return gelu_rows<scalar_t>(x, bias, function); });
  });
}

std::tuple<at::Tensor, at::Tensor> gelu_backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                 const std::optional<at::Tensor>& bias, c10::string_view approximate) {
  check_gelu(x, bias, approximate);
  check_gradient(grad_out, x);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "gelu_backward", [&] {
    return with_gelu(approximate,
                     [&](auto function) { return gelu_rows_backward<scalar_t>(grad_out, x, bias, function); });
  });
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& x, const std::optional<at::Tensor>& gate_bias,
                  const std::optional<at::Tensor>& bias) {
  check_swiglu(gate, x, gate_bias, bias);
  const int64_t size = x.size(-1), rows = x.numel() / size;
  at::Tensor result = empty_output(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "swiglu", [&] {
    using A = compute_t<scalar_t>;
    const Rows<const scalar_t> gates(gate), in(x);
    const Rows<scalar_t> out(result);
    const auto gate_shift = widened<scalar_t>(gate_bias, size), shift = widened<scalar_t>(bias, size);
    for_row_tasks(rows, size, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        for_each_vec<A>(size, [&](int64_t i, auto count) {
          const Vec<A> opened = Silu::value(load_wide(gates[r] + i, count) + load(gate_shift.data() + i, count));
          store_narrow(opened * (load_wide(in[r] + i, count) + load(shift.data() + i, count)), out[r] + i, count);
        });
      }
    });
  });
  return result;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& grad_out,
                                                                           const at::Tensor& gate, const at::Tensor& x,
                                                                           const std::optional<at::Tensor>& gate_bias,
                                                                           const std::optional<at::Tensor>& bias) {
  check_swiglu(gate, x, gate_bias, bias);
  check_gradient(grad_out, x);
  const int64_t size = x.size(-1), rows = x.numel() / size;
  at::Tensor grad_gate = empty_output(x.sizes(), x.options()), grad_x = empty_output(x.sizes(), x.options());
  const bool gate_biased = gate_bias.has_value(), biased = bias.has_value();
  // Each task sums the gradients of the biases over its rows: (tasks, 2, C); 0 where there is none.
  at::Tensor parts =
      at::zeros({(rows + kRowsPerTask - 1) / kRowsPerTask, 2, size}, x.options().dtype(statistics_type(x)));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "swiglu_backward", [&] {
    using A = compute_t<scalar_t>;
    const Rows<const scalar_t> grads(grad_out), gates(gate), in(x);
    const Rows<scalar_t> to_gate(grad_gate), to_x(grad_x);
    const auto gate_shift = widened<scalar_t>(gate_bias, size), shift = widened<scalar_t>(bias, size);
    A* sums = parts.mutable_data_ptr<A>();
    for_row_tasks(rows, size, [&](int64_t task, int64_t begin, int64_t end) {
      A *gate_sum = sums + 2 * task * size, *sum = gate_sum + size;
      for (int64_t r = begin; r < end; ++r) {
        for_each_vec<A>(size, [&](int64_t i, auto count) {
          const Vec<A> g = load_wide(grads[r] + i, count);
          const auto opened = Silu::both(load_wide(gates[r] + i, count) + load(gate_shift.data() + i, count));
          const Vec<A> value = load_wide(in[r] + i, count) + load(shift.data() + i, count);
          const Vec<A> for_gate = g * value * opened.slope, for_x = g * opened.value;
          store_narrow(for_gate, to_gate[r] + i, count);
          store_narrow(for_x, to_x[r] + i, count);
          if (gate_biased) store(load(gate_sum + i, count) + for_gate, gate_sum + i, count);
          if (biased) store(load(sum + i, count) + for_x, sum + i, count);
        });
      }
    });
  });
  const at::Tensor total = parts.sum(0).to(x.scalar_type());  // (2, C)
  return {grad_gate, grad_x, total[0].clone(), total[1].clone()};
}

}  // namespace

void register_activation(torch::Library& m) {
  m.impl("gelu", gelu);
  m.impl("gelu_backward", gelu_backward);
  m.impl("swiglu", swiglu);
  m.impl("swiglu_backward", swiglu_backward);
}

}  // namespace slm::CPU_CAPABILITY
