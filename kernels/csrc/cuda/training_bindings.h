// From torch's tensors to the kernels' arguments, as bindings.h: the other ops of a training step.
#pragma once

#include <cmath>

#include "../linear_cross_entropy.h"
#include "bindings.h"
#include "training.cuh"

namespace slm::cuda {

template <class Device>
struct TrainingOps {
    struct RmsNormalized {
        at::Tensor out, sum, rstd;  // sum: undefined without a residual
    };

    static RmsNormalized normalize(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                   const at::Tensor& weight, double eps) {
        check_layer_norm(x, residual, weight, std::nullopt, eps);
        const Device device(x);
        const at::Tensor rows = as_rows(x), added = as_rows(residual.value_or(x));
        const RmsNormalized result{at::empty(x.sizes(), x.options()),
                                   residual ? at::empty(x.sizes(), x.options()) : at::Tensor(),
                                   at::empty({rows.size(0)}, x.options().dtype(statistics_type(x)))};
        with_dtype(x.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            rms_norm_forward<T>({data<const T>(rows), rows.stride(0), residual ? data<const T>(added) : nullptr,
                                 added.stride(0), data<const T>(weight), data<T>(result.out),
                                 residual ? data<T>(result.sum) : nullptr, data<A>(result.rstd), rows.size(0),
                                 as_int("C", rows.size(1)), static_cast<A>(eps)},
                                device.multiprocessors, device.stream);
        });
        return result;
    }

    static std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
        auto result = normalize(x, std::nullopt, weight, eps);
        return {result.out, result.rstd};
    }

    static std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x, const at::Tensor& residual,
                                                                       const at::Tensor& weight, double eps) {
        auto result = normalize(x, residual, weight, eps);
        return {result.out, result.sum, result.rstd};
    }

    static std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                                const at::Tensor& weight, const at::Tensor& rstd,
                                                                const std::optional<at::Tensor>& grad_residual) {
        check_layer_norm_backward(grad_out, x, weight, rstd, rstd, grad_residual);
        const Device device(x);
        const at::Tensor rows = as_rows(x), grad = as_rows(grad_out), passed = as_rows(grad_residual.value_or(grad_out));
        const at::Tensor grad_x = at::empty(x.sizes(), x.options());
        const at::Tensor grad_weight = at::empty(weight.sizes(), weight.options());
        const at::Tensor partials = at::empty({kMostLines, rows.size(1)}, rstd.options());
        with_dtype(x.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            cuda::rms_norm_backward<T>(
                {data<const T>(grad), grad.stride(0), data<const T>(rows), rows.stride(0), data<const T>(weight),
                 data<const A>(rstd), grad_residual ? data<const T>(passed) : nullptr, passed.stride(0), data<T>(grad_x),
                 data<T>(grad_weight), data<A>(partials), rows.size(0), as_int("C", rows.size(1))},
                device.multiprocessors, device.stream);
        });
        return {grad_x, grad_weight};
    }

    template <class T>
    static Biased<T> biased(const at::Tensor& rows, const std::optional<at::Tensor>& bias) {
        return {data<const T>(rows), rows.stride(0), data<const T>(bias)};
    }

    // x: undefined for gelu.
    template <class F>
    static at::Tensor bend(F, const at::Tensor& gate, const at::Tensor& x, const std::optional<at::Tensor>& gate_bias,
                           const std::optional<at::Tensor>& bias) {
        const Device device(gate);
        const at::Tensor out = at::empty(gate.sizes(), gate.options()), gates = as_rows(gate);
        const at::Tensor rows = x.defined() ? as_rows(x) : at::Tensor();
        with_dtype(gate.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            ActivationForward<T> p{biased<T>(gates, gate_bias), {}, data<T>(out), x.defined(), gates.size(0),
                                   as_int("C", gates.size(1))};
            if (x.defined()) p.x = biased<T>(rows, bias);
            activation_forward<F, T>(p, device.multiprocessors, device.stream);
        });
        return out;
    }

    struct BentBack {
        at::Tensor grad_gate, grad_x, grad_gate_bias, grad_bias;
    };

    template <class F>
    static BentBack bend_backward(F, const at::Tensor& grad_out, const at::Tensor& gate, const at::Tensor& x,
                                  const std::optional<at::Tensor>& gate_bias, const std::optional<at::Tensor>& bias) {
        check_gradient(grad_out, gate);
        const Device device(gate);
        const at::Tensor gates = as_rows(gate), grad = as_rows(grad_out);
        const at::Tensor rows = x.defined() ? as_rows(x) : at::Tensor();
        const auto whole = [&] { return at::empty(gate.sizes(), gate.options()); };
        const auto vector = [&] { return at::empty({gates.size(1)}, gate.options()); };
        const BentBack found{whole(), x.defined() ? whole() : at::Tensor(), vector(),
                             x.defined() ? vector() : at::Tensor()};
        const at::Tensor partials =
            at::empty({2, kMostLines, gates.size(1)}, gate.options().dtype(statistics_type(gate)));
        with_dtype(gate.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            ActivationBackward<T> p{data<const T>(grad), grad.stride(0), biased<T>(gates, gate_bias), {},
                                    x.defined(), data<T>(found.grad_gate), nullptr, data<A>(partials), nullptr,
                                    data<T>(found.grad_gate_bias), nullptr, gates.size(0), as_int("C", gates.size(1))};
            if (x.defined()) {
                p.x = biased<T>(rows, bias);
                p.grad_x = data<T>(found.grad_x);
                p.grad_bias = data<T>(found.grad_bias);
                p.x_partials = data<A>(partials) + kMostLines * gates.size(1);
            }
            activation_backward<F, T>(p, device.stream);
        });
        return found;
    }

    static at::Tensor gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias, c10::string_view approximate) {
        check_gelu(x, bias, approximate);
        const auto run = [&](auto f) { return bend(f, x, {}, bias, std::nullopt); };
        return approximate == "tanh" ? run(GeluTanh()) : run(GeluErf());
    }

    static std::tuple<at::Tensor, at::Tensor> gelu_backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                            const std::optional<at::Tensor>& bias,
                                                            c10::string_view approximate) {
        check_gelu(x, bias, approximate);
        const auto run = [&](auto f) { return bend_backward(f, grad_out, x, {}, bias, std::nullopt); };
        const auto found = approximate == "tanh" ? run(GeluTanh()) : run(GeluErf());
        return {found.grad_gate, found.grad_gate_bias};
    }

    static at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& x, const std::optional<at::Tensor>& gate_bias,
                             const std::optional<at::Tensor>& bias) {
        check_swiglu(gate, x, gate_bias, bias);
        return bend(Silu(), gate, x, gate_bias, bias);
    }

    static std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> swiglu_backward(
        const at::Tensor& grad_out, const at::Tensor& gate, const at::Tensor& x,
        const std::optional<at::Tensor>& gate_bias, const std::optional<at::Tensor>& bias) {
        check_swiglu(gate, x, gate_bias, bias);
        const auto found = bend_backward(Silu(), grad_out, gate, x, gate_bias, bias);
        return {found.grad_gate, found.grad_x, found.grad_gate_bias, found.grad_bias};
    }

    // The passes of linear_cross_entropy.h.
    struct Passes {
        template <class Launcher>
        static void each(const ChunkLogits& chunk, const RowStatistics& statistics, const at::Tensor& scale,
                         const Launcher& launcher) {
            const Device device(chunk.logits);
            with_dtype(chunk.logits.scalar_type(), [&](auto zero) {
                using T = decltype(zero);
                using A = compute_t<T>;
                launcher(CrossEntropy<T>{data<T>(chunk.logits), data<const int64_t>(chunk.targets),
                                         data<A>(statistics.largest), data<A>(statistics.total),
                                         data<A>(statistics.target), scale.defined() ? data<const A>(scale) : nullptr,
                                         kIgnoredTarget, chunk.logits.size(0), as_int("V", chunk.logits.size(1))},
                         device.stream);
            });
        }
        static void observe(const ChunkLogits& chunk, const RowStatistics& statistics) {
            each(chunk, statistics, {}, [](const auto& p, cudaStream_t stream) { cross_entropy_observe(p, stream); });
        }
        static void differentiate(const ChunkLogits& chunk, const RowStatistics& statistics, const at::Tensor& scale) {
            each(chunk, statistics, scale,
                 [](const auto& p, cudaStream_t stream) { cross_entropy_differentiate(p, stream); });
        }
    };

    static std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy(const at::Tensor& hidden,
                                                                        const at::Tensor& weight,
                                                                        const at::Tensor& targets, at::ScalarType dtype,
                                                                        int64_t rows, bool gradients) {
        return linear_cross_entropy(hidden, weight, targets, dtype, rows, gradients, [&](const HeadLoss& loss) {
            walk_chunks(loss, rows, gradients, Passes());
        });
    }

    static void adamw(at::TensorList parameters, at::TensorList gradients, at::TensorList averages,
                      at::TensorList squares, int64_t step, double lr, double beta1, double beta2, double eps,
                      double weight_decay, double gradient_scale) {
        check_adamw(parameters, gradients, averages, squares,
                    {lr, beta1, beta2, eps, weight_decay, gradient_scale, step});
        if (parameters.empty()) return;
        const Device device(parameters[0]);
        AdamW<float> p{};
        p.beta1 = static_cast<float>(beta1);
        p.beta2 = static_cast<float>(beta2);
        p.eps = static_cast<float>(eps);
        p.kept = static_cast<float>(1 - lr * weight_decay);
        p.rate = static_cast<float>(-lr / (1 - std::pow(beta1, step)));
        p.root = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
        p.gradient_scale = static_cast<float>(gradient_scale);
        for (size_t i = 0; i < parameters.size(); ++i) {
            p.parameter[p.tensors] = data<float>(parameters[i]);
            p.gradient[p.tensors] = data<const float>(gradients[i]);
            p.average[p.tensors] = data<float>(averages[i]);
            p.square[p.tensors] = data<float>(squares[i]);
            p.size[p.tensors] = parameters[i].numel();
            if (++p.tensors == kMostTensors || i + 1 == parameters.size()) {
                cuda::adamw(p, device.stream);
                p.tensors = 0;
            }
        }
    }

    static void implement(torch::Library& m) {
        m.impl("rms_norm", rms_norm);
        m.impl("add_rms_norm", add_rms_norm);
        m.impl("rms_norm_backward", rms_norm_backward);
        m.impl("gelu", gelu);
        m.impl("gelu_backward", gelu_backward);
        m.impl("swiglu", swiglu);
        m.impl("swiglu_backward", swiglu_backward);
        m.impl("linear_cross_entropy", cross_entropy);
        m.impl("adamw_", adamw);
    }
};

}  // namespace slm::cuda
