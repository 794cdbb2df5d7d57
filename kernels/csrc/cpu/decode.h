// The ops of a decode step as functions, for the op that is made of them (decode_step.cpp).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "rotary.h"

namespace slm::CPU_CAPABILITY {

// The op of that name (ops.cpp).
at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& weight, int64_t outputs,
                         const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                         c10::string_view norm_kind, const std::optional<at::Tensor>& norm_weight,
                         const std::optional<at::Tensor>& norm_bias, double eps, c10::string_view activation_name,
                         const std::optional<at::Tensor>& residual);

// The op cached_attention on pages, with the angles of all positions in place of those of the tokens.
at::Tensor paged_attention(const at::Tensor& qkv, const at::Tensor& keys, const at::Tensor& values,
                           const at::Tensor& positions, const at::Tensor& pages, const Angles<float>& angles,
                           std::optional<int64_t> window);

}  // namespace slm::CPU_CAPABILITY
