// The schemas of all ops, written once, and the checks that every implementation begins with.
#include "ops.h"

#include <c10/util/Exception.h>

namespace slm {
namespace {

bool is_floating(const at::Tensor& x) {
  auto type = x.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble;
}

void check_floating(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(is_floating(x), name, " has dtype ", x.scalar_type(),
                    ": use float32, float16, bfloat16 or float64");
}

void check_like(const char* name, const at::Tensor& x, const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(x.scalar_type() == other.scalar_type(), name, " has dtype ", x.scalar_type(), " but ", other_name,
                    " has ", other.scalar_type(), ": convert one with .to(dtype)");
  TORCH_CHECK_VALUE(x.device() == other.device(), name, " is on ", x.device(), " but ", other_name, " is on ",
                    other.device(), ": move one with .to(device)");
}

void check_same_shape(const char* name, const at::Tensor& x, const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(x.sizes() == other.sizes(), name, " has shape ", x.sizes(), " but ", other_name, " has ",
                    other.sizes(), ": they must be equal");
}

void check_unit_stride(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.size(-1) <= 1 || x.stride(-1) == 1, name, " has stride ", x.stride(-1),
                    " in its last dimension instead of 1: pass ", name, ".contiguous()");
}

void check_head_dim(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.size(-1) >= 1 && x.size(-1) <= kMaxHeadDim, name, " has head dimension ", x.size(-1),
                    ": D must be in 1..", kMaxHeadDim);
}

void check_vector(const char* name, const at::Tensor& x, int64_t size, at::ScalarType type, const at::Tensor& x_like) {
  TORCH_CHECK_VALUE(x.dim() == 1 && x.size(0) == size && x.is_contiguous(), name, " has shape ", x.sizes(),
                    ": it must be contiguous with ", size, " elements");
  TORCH_CHECK_VALUE(x.scalar_type() == type, name, " has dtype ", x.scalar_type(), ": it must be ", type);
  TORCH_CHECK_VALUE(x.device() == x_like.device(), name, " is on ", x.device(), " but x is on ", x_like.device(),
                    ": move one with .to(device)");
}

void check_options(const at::Tensor& q, const AttentionOptions& options) {
  TORCH_CHECK_VALUE(std::isfinite(options.scale), "scale is ", options.scale, ": it must be finite");
  TORCH_CHECK_VALUE(!options.window || *options.window >= 1, "window is ", *options.window,
                    ": it must be at least 1 (the query's own key), or None for no limit");
  TORCH_CHECK_VALUE(options.dropout_p >= 0 && options.dropout_p < 1, "dropout_p is ", options.dropout_p,
                    ": it must be in [0, 1)");
  if (options.dropout_p == 0) return;
  TORCH_CHECK_VALUE(options.seed && options.seed->numel() == 1 && options.seed->scalar_type() == at::kLong &&
                        options.seed->device() == q.device(),
                    "seed must be one int64 on ", q.device(), " where dropout_p > 0");
}

}  // namespace

at::ScalarType statistics_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor unit_stride(const at::Tensor& x) {
  return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

void check_layer_norm(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, double eps) {
  check_floating("x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) >= 1, "x has shape ", x.sizes(), ": it needs a last dimension C >= 1");
  check_unit_stride("x", x);
  check_vector("weight", weight, x.size(-1), x.scalar_type(), x);
  if (bias) check_vector("bias", *bias, x.size(-1), x.scalar_type(), x);
  if (residual) {
    check_like("residual", *residual, "x", x);
    check_same_shape("residual", *residual, "x", x);
    check_unit_stride("residual", *residual);
  }
  TORCH_CHECK_VALUE(eps > 0 && std::isfinite(eps), "eps is ", eps, ": it must be above 0, such as 1e-5");
}

void check_layer_norm_backward(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& mean, const at::Tensor& rstd,
                               const std::optional<at::Tensor>& grad_residual) {
  check_layer_norm(x, std::nullopt, weight, std::nullopt, 1.0);
  check_like("grad_out", grad_out, "x", x);
  check_same_shape("grad_out", grad_out, "x", x);
  int64_t rows = x.numel() / x.size(-1);
  check_vector("mean", mean, rows, statistics_type(x), x);
  check_vector("rstd", rstd, rows, statistics_type(x), x);
  if (grad_residual) {
    check_like("grad_residual", *grad_residual, "x", x);
    check_same_shape("grad_residual", *grad_residual, "x", x);
  }
}

void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options) {
  check_floating("q", q);
  TORCH_CHECK_VALUE(q.dim() == 4, "q has shape ", q.sizes(), ": it must be (B, T, H, D)");
  TORCH_CHECK_VALUE(k.dim() == 4, "k has shape ", k.sizes(), ": it must be (B, T, H, D)");
  check_head_dim("q", q);
  TORCH_CHECK_VALUE(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3), "k has shape ",
                    k.sizes(), " but q has ", q.sizes(), ": B, T and D must be equal");
  TORCH_CHECK_VALUE(k.size(2) >= 1 && q.size(2) % k.size(2) == 0, "k has ", k.size(2), " heads but q has ", q.size(2),
                    ": the heads of q must be a multiple of those of k");
  check_same_shape("v", v, "k", k);
  check_like("k", k, "q", q);
  check_like("v", v, "q", q);
  check_unit_stride("q", q);
  check_unit_stride("k", k);
  check_unit_stride("v", v);
  check_options(q, options);
}

void check_attention_backward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                              const AttentionOptions& options) {
  check_attention(q, k, v, options);
  check_same_shape("grad_out", grad_out, "q", q);
  check_like("grad_out", grad_out, "q", q);
  check_same_shape("out", out, "q", q);
  check_like("out", out, "q", q);
  check_unit_stride("out", out);
  TORCH_CHECK_VALUE(lse.sizes() == at::IntArrayRef({q.size(0), q.size(2), q.size(1)}) && lse.is_contiguous() &&
                        lse.scalar_type() == statistics_type(q) && lse.device() == q.device(),
                    "lse has shape ", lse.sizes(), ": pass the (B, H, T) that the forward returned");
}

void check_packed(const at::Tensor& qkv) {
  check_floating("qkv", qkv);
  TORCH_CHECK_VALUE(qkv.dim() == 5 && qkv.size(2) == 3, "qkv has shape ", qkv.sizes(), ": it must be (B, T, 3, H, D)");
  check_head_dim("qkv", qkv);
  check_unit_stride("qkv", qkv);
}

}  // namespace slm

SLM_EXPAND(TORCH_LIBRARY, SLM_LIBRARY, m) {
  // mean, rstd: (rows); lse: (B, H, T); statistics are float32 (float64 for float64 inputs).
  m.def("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps)"
      " -> (Tensor out, Tensor sum, Tensor mean, Tensor rstd)");
  // The backward of both: of add_layer_norm with x = sum and grad_residual = the gradient of sum.
  m.def(
      "layer_norm_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor? grad_residual)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // deterministic: of the backward. Where it is false, dq may be a sum whose order varies from run to run.
  m.def(
      "causal_attention(Tensor q, Tensor k, Tensor v, float scale, int? window, float dropout_p, Tensor? seed,"
      " bool deterministic=True) -> (Tensor out, Tensor lse)");
  m.def(
      "causal_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale,"
      " int? window, float dropout_p, Tensor? seed, bool deterministic=True) -> (Tensor dq, Tensor dk, Tensor dv)");
  m.def(
      "causal_attention_qkvpacked(Tensor qkv, float scale, int? window, float dropout_p, Tensor? seed,"
      " bool deterministic=True) -> (Tensor out, Tensor lse)");
  m.def(
      "causal_attention_qkvpacked_backward(Tensor grad_out, Tensor qkv, Tensor out, Tensor lse, float scale,"
      " int? window, float dropout_p, Tensor? seed, bool deterministic=True) -> Tensor dqkv");
}
