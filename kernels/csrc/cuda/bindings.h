// From torch's tensors to the kernels' arguments: the ops of ops.cpp for a GPU (bindings.cu) and for the emulator
// (emulated/bindings.cpp), which differ in their `Device` alone.
//
// A Device is made from a tensor and lives through one op: it selects the tensor's device, and has `stream`,
// `multiprocessors` and `limits`.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <tuple>

#include "../ops.h"
#include "attention.cuh"
#include "layer_norm.cuh"
#include "rotary.cuh"

namespace slm::cuda {

template <class T>
struct KernelType {
    using type = T;
};
template <>
struct KernelType<at::Half> {
    using type = __half;
};
template <>
struct KernelType<at::BFloat16> {
    using type = __nv_bfloat16;
};

// Calls body(T()) with the kernels' type for a dtype, which the checks have found to be one of these.
template <class Body>
void with_dtype(at::ScalarType dtype, const Body& body) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "slm",
                                    [&] { body(typename KernelType<scalar_t>::type()); });
}

template <class T>
T* data(const at::Tensor& x) {
    return static_cast<T*>(const_cast<void*>(x.const_data_ptr()));
}
template <class T>
T* data(const std::optional<at::Tensor>& x) {
    return x ? data<T>(*x) : nullptr;
}

inline int as_int(const char* what, int64_t value) {
    TORCH_CHECK_VALUE(value <= std::numeric_limits<int>::max() / 2, what, " is ", value,
                      ": the GPU kernels take up to 2^30");
    return static_cast<int>(value);
}

// The architecture whose code runs on a GPU of `capability` (75 for 7.5): the newest of those `compiled` for (750, …)
// that is not newer. name(): the GPU's, for errors.
template <class Name>
int architecture_of_code(int capability, std::initializer_list<int> compiled, const Name& name) {
    TORCH_CHECK(capability >= 70, name(), " has compute capability ", capability / 10, ".", capability % 10,
                ": the kernels need 7.0 or newer; use kernels.use(\"torch\")");
    int newest = 0;
    for (const int each : compiled)
        if (each / 10 <= capability) newest = std::max(newest, each / 10);
    TORCH_CHECK(newest > 0, name(), " has compute capability ", capability / 10, ".", capability % 10,
                ", older than what the kernels were compiled for: build them with TORCH_CUDA_ARCH_LIST=\"",
                capability / 10, ".", capability % 10, "\"");
    return newest;
}

// (..., C) as a matrix whose rows lie at a constant distance; a copy only where the strides do not allow that.
inline at::Tensor as_rows(const at::Tensor& x) { return unit_stride(x).reshape({x.numel() / x.size(-1), x.size(-1)}); }

template <class Device>
struct Ops {
    struct Normalized {
        at::Tensor out, sum, mean, rstd;  // sum: undefined without a residual
    };

    static Normalized normalize(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                const at::Tensor& weight, const std::optional<at::Tensor>& bias, double eps) {
        check_layer_norm(x, residual, weight, bias, eps);
        const Device device(x);
        const at::Tensor rows = as_rows(x), added = as_rows(residual.value_or(x));
        const auto statistics = x.options().dtype(statistics_type(x));
        const Normalized result{at::empty(x.sizes(), x.options()),
                                residual ? at::empty(x.sizes(), x.options()) : at::Tensor(),
                                at::empty({rows.size(0)}, statistics), at::empty({rows.size(0)}, statistics)};
        with_dtype(x.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            layer_norm_forward<T>({data<const T>(rows), rows.stride(0), residual ? data<const T>(added) : nullptr,
                                   added.stride(0), data<const T>(weight), data<const T>(bias), data<T>(result.out),
                                   residual ? data<T>(result.sum) : nullptr, data<A>(result.mean), data<A>(result.rstd),
                                   rows.size(0), as_int("C", rows.size(1)), static_cast<A>(eps)},
                                  device.multiprocessors, device.stream);
        });
        return result;
    }

    static std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm(const at::Tensor& x, const at::Tensor& weight,
                                                                     const std::optional<at::Tensor>& bias,
                                                                     double eps) {
        auto result = normalize(x, std::nullopt, weight, bias, eps);
        return {result.out, result.mean, result.rstd};
    }

    static std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> add_layer_norm(
        const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
        const std::optional<at::Tensor>& bias, double eps) {
        auto result = normalize(x, residual, weight, bias, eps);
        return {result.out, result.sum, result.mean, result.rstd};
    }

    static std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(
        const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean,
        const at::Tensor& rstd, const std::optional<at::Tensor>& grad_residual) {
        check_layer_norm_backward(grad_out, x, weight, mean, rstd, grad_residual);
        const Device device(x);
        const at::Tensor rows = as_rows(x), grad = as_rows(grad_out),
                         passed = as_rows(grad_residual.value_or(grad_out));
        const at::Tensor grad_x = at::empty(x.sizes(), x.options());
        const at::Tensor grad_weight = at::empty(weight.sizes(), weight.options());
        const at::Tensor grad_bias = at::empty(weight.sizes(), weight.options());
        const at::Tensor partials =
            at::empty({layer_norm_partials(device.multiprocessors), 2, rows.size(1)}, mean.options());
        with_dtype(x.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            cuda::layer_norm_backward<T>(
                {data<const T>(grad), grad.stride(0), data<const T>(rows), rows.stride(0), data<const T>(weight),
                 data<const A>(mean), data<const A>(rstd), grad_residual ? data<const T>(passed) : nullptr,
                 passed.stride(0), data<T>(grad_x), data<T>(grad_weight), data<T>(grad_bias), data<A>(partials),
                 rows.size(0), as_int("C", rows.size(1))},
                device.multiprocessors, device.stream);
        });
        return {grad_x, grad_weight, grad_bias};
    }

    static at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
        check_rotary(x, cos, sin);
        const Device device(x);
        const at::Tensor out = at::empty(x.sizes(), x.options());
        with_dtype(x.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            cuda::rotary<T>({data<const T>(x), x.stride(0), x.stride(1), x.stride(2), data<const A>(cos),
                             data<const A>(sin), cos.size(0) == 1 ? 0 : cos.stride(0), static_cast<A>(back ? -1 : 1),
                             data<T>(out), x.numel() / 2, as_int("T", x.size(1)), as_int("H", x.size(2)),
                             as_int("D", x.size(3) / 2)},
                            device.multiprocessors, device.stream);
        });
        return out;
    }

    // q or k as the kernels take it, or a gradient as they form it and back: turned by the angles. On a GPU in a pass of
    // its own: the copies of tiles into shared memory pass no registers, and each tile of k is copied by many blocks.
    static at::Tensor turned(const at::Tensor& x, const AttentionOptions& options, bool back = false) {
        return options.cos ? rotary(x, *options.cos, *options.sin, back) : x;
    }

    template <class T>
    static Heads<T> heads(const at::Tensor& x) {
        return {data<T>(x), x.stride(0), x.stride(1), x.stride(2)};
    }

    // ends: those of the options, on the device.
    static cuda::AttentionShape shape(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options,
                                      const std::optional<at::Tensor>& ends) {
        const int64_t length = q.size(1);
        const bool dropout = options.dropout_p > 0;
        return {ends ? as_int("the number of documents", ends->numel() - 1) : as_int("B", q.size(0)),
                as_int("T", length),
                as_int("H", q.size(2)),
                as_int("the number of heads of k", k.size(2)),
                as_int("D", q.size(3)),
                static_cast<int>(std::min(options.window.value_or(length), length)),
                options.scale,
                dropout ? data<const int64_t>(options.seed) : nullptr,
                dropout ? keep_threshold(options.dropout_p) : 0,
                static_cast<int>(length),
                0,
                data<const int64_t>(ends)};
    }

    static std::optional<at::Tensor> on_device(const std::optional<at::Tensor>& ends, const at::Tensor& q) {
        return ends ? std::optional(ends->to(q.device())) : std::nullopt;
    }

    static std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& q_given, const at::Tensor& k_given,
                                                     const at::Tensor& v, const AttentionOptions& options) {
        check_attention(q_given, k_given, v, options);
        const Device device(q_given);
        const at::Tensor q = turned(q_given, options), k = turned(k_given, options);
        const at::Tensor out = at::empty(q.sizes(), q.options());
        const at::Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(statistics_type(q)));
        if (q.numel() == 0) return {out, lse};
        const auto ends = on_device(options.ends, q);
        with_dtype(q.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            cuda::attention<T>({shape(q, k, options, ends), heads<const T>(q), heads<const T>(k), heads<const T>(v),
                                heads<T>(out), data<compute_t<T>>(lse)},
                               device.limits, device.stream);
        });
        return {out, lse};
    }

    static void attend_backward(const at::Tensor& grad_out, const at::Tensor& q_given, const at::Tensor& k_given,
                                const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                                const AttentionOptions& options, bool deterministic, const at::Tensor& dq,
                                const at::Tensor& dk, const at::Tensor& dv) {
        check_attention_backward(grad_out, q_given, k_given, v, out, lse, options);
        const Device device(q_given);
        const at::Tensor q = turned(q_given, options), k = turned(k_given, options);
        if (q.numel() == 0) {
            dk.zero_();
            dv.zero_();
            return;
        }
        const at::Tensor grad = unit_stride(grad_out), delta = at::empty(lse.sizes(), lse.options());
        const auto ends = on_device(options.ends, q);
        with_dtype(q.scalar_type(), [&](auto zero) {
            using T = decltype(zero);
            using A = compute_t<T>;
            AttentionBackward<T> p{shape(q, k, options, ends),
                                   heads<const T>(grad), heads<const T>(q), heads<const T>(k),
                                   heads<const T>(v),    heads<const T>(out),  data<const A>(lse), data<A>(delta),
                                   heads<T>(dq),         heads<T>(dk),         heads<T>(dv)};
            at::Tensor dq_sum;  // (B, H, T, D)
            if (has_use_for_dq_sum(p, device.limits, deterministic)) {
                dq_sum = at::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, lse.options());
                p.dq_sum = data<A>(dq_sum);
            }
            cuda::attention<T>(p, device.limits, device.stream);
        });
        if (!options.cos) return;
        dq.copy_(turned(dq, options, true));
        dk.copy_(turned(dk, options, true));
    }

    static std::tuple<at::Tensor, at::Tensor> causal_attention(const at::Tensor& q, const at::Tensor& k,
                                                               const at::Tensor& v, double scale,
                                                               std::optional<int64_t> window, double dropout_p,
                                                               const std::optional<at::Tensor>& seed,
                                                               bool /*deterministic*/,
                                                               const std::optional<at::Tensor>& ends,
                                                               const std::optional<at::Tensor>& cos,
                                                               const std::optional<at::Tensor>& sin) {
        return attend(q, k, v, {scale, window, dropout_p, seed, ends, cos, sin});
    }

    static std::tuple<at::Tensor, at::Tensor, at::Tensor> causal_attention_backward(
        const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
        const at::Tensor& out, const at::Tensor& lse, double scale, std::optional<int64_t> window, double dropout_p,
        const std::optional<at::Tensor>& seed, bool deterministic, const std::optional<at::Tensor>& ends,
        const std::optional<at::Tensor>& cos, const std::optional<at::Tensor>& sin) {
        const at::Tensor dq = at::empty(q.sizes(), q.options());
        const at::Tensor dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
        attend_backward(grad_out, q, k, v, out, lse, {scale, window, dropout_p, seed, ends, cos, sin}, deterministic, dq,
                        dk, dv);
        return {dq, dk, dv};
    }

    static std::tuple<at::Tensor, at::Tensor> causal_attention_qkvpacked(const at::Tensor& qkv, double scale,
                                                                         std::optional<int64_t> window,
                                                                         double dropout_p,
                                                                         const std::optional<at::Tensor>& seed,
                                                                         bool /*deterministic*/,
                                                                         const std::optional<at::Tensor>& cos,
                                                                         const std::optional<at::Tensor>& sin) {
        check_packed(qkv);
        return attend(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2),
                      {scale, window, dropout_p, seed, std::nullopt, cos, sin});
    }

    static at::Tensor causal_attention_qkvpacked_backward(const at::Tensor& grad_out, const at::Tensor& qkv,
                                                          const at::Tensor& out, const at::Tensor& lse, double scale,
                                                          std::optional<int64_t> window, double dropout_p,
                                                          const std::optional<at::Tensor>& seed,
                                                          bool deterministic, const std::optional<at::Tensor>& cos,
                                                          const std::optional<at::Tensor>& sin) {
        check_packed(qkv);
        const at::Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
        attend_backward(grad_out, qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), out, lse,
                        {scale, window, dropout_p, seed, std::nullopt, cos, sin}, deterministic, dqkv.select(2, 0),
                        dqkv.select(2, 1), dqkv.select(2, 2));
        return dqkv;
    }

    static void implement(torch::Library& m) {
        m.impl("layer_norm", layer_norm);
        m.impl("add_layer_norm", add_layer_norm);
        m.impl("layer_norm_backward", layer_norm_backward);
        m.impl("rotary", rotary);
        m.impl("causal_attention", causal_attention);
        m.impl("causal_attention_backward", causal_attention_backward);
        m.impl("causal_attention_qkvpacked", causal_attention_qkvpacked);
        m.impl("causal_attention_qkvpacked_backward", causal_attention_qkvpacked_backward);
    }
};

}  // namespace slm::cuda
