// The schemas of all ops, written once, and the checks that every implementation begins with.
#include "ops.h"

#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

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

void check_whole(const char* name, const at::Tensor& x, at::ScalarType type) {
  TORCH_CHECK_VALUE(x.scalar_type() == type && x.is_contiguous() && x.is_cpu(), name, " is ", x.scalar_type(), " on ",
                    x.device(), " with strides ", x.strides(), ": it must be contiguous ", type, " on the CPU");
}

void check_sizes(const char* name, const at::Tensor& x, at::IntArrayRef sizes, at::ScalarType type) {
  check_whole(name, x, type);
  TORCH_CHECK_VALUE(x.sizes() == sizes, name, " has shape ", x.sizes(), ": it must be ", sizes);
}

// x: (1 or batch, ...) as `sizes` says for the whole batch.
void check_shared(const char* name, const at::Tensor& x, std::vector<int64_t> sizes, at::ScalarType type) {
  if (x.dim() > 0 && x.size(0) == 1) sizes[0] = 1;
  check_sizes(name, x, sizes, type);
}

void check_indices(const char* name, const at::Tensor& x, int64_t end) {
  const int64_t* data = x.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    TORCH_CHECK_VALUE(0 <= data[i] && data[i] < end, name, " holds ", data[i], ": it must be in 0..", end - 1);
  }
}

// rows: int64 in 0..end-1, no two of them equal, as each is written to on its own.
void check_distinct(const char* name, const at::Tensor& rows, int64_t end) {
  check_indices(name, rows, end);
  std::vector<bool> seen(end);
  const int64_t* data = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    TORCH_CHECK_VALUE(!seen[data[i]], name, " holds ", data[i], " twice: they must differ");
    seen[data[i]] = true;
  }
}

void check_eps(double eps) {
  TORCH_CHECK_VALUE(eps > 0 && std::isfinite(eps), "eps is ", eps, ": it must be above 0, such as 1e-5");
}

void check_ends(const at::Tensor& ends, const at::Tensor& q) {
  check_whole("ends", ends, at::kLong);
  TORCH_CHECK_VALUE(ends.dim() == 1 && ends.numel() >= 1 && q.size(0) == 1, "ends has shape ", ends.sizes(),
                    " for q of shape ", q.sizes(), ": it must be (documents + 1), and q (1, T, H, D)");
  const int64_t *data = ends.const_data_ptr<int64_t>(), *last = data + ends.numel() - 1;
  TORCH_CHECK_VALUE(*data == 0 && *last == q.size(1) && std::is_sorted(data, last + 1), "ends goes from ", *data, " to ",
                    *last, ": it must rise from 0 to the ", q.size(1), " tokens of q");
}

void check_options(const at::Tensor& q, const AttentionOptions& options) {
  TORCH_CHECK_VALUE(std::isfinite(options.scale), "scale is ", options.scale, ": it must be finite");
  TORCH_CHECK_VALUE(!options.window || *options.window >= 1, "window is ", *options.window,
                    ": it must be at least 1 (the query's own key), or None for no limit");
  TORCH_CHECK_VALUE(options.dropout_p >= 0 && options.dropout_p < 1, "dropout_p is ", options.dropout_p,
                    ": it must be in [0, 1)");
  if (options.ends) check_ends(*options.ends, q);
  TORCH_CHECK_VALUE(options.cos.has_value() == options.sin.has_value(), "cos and sin: pass both or neither");
  if (options.cos) check_rotary(q, *options.cos, *options.sin);
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
  check_eps(eps);
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

void check_gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias, c10::string_view approximate) {
  check_floating("x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) >= 1, "x has shape ", x.sizes(), ": it needs a last dimension C >= 1");
  check_unit_stride("x", x);
  if (bias) check_vector("bias", *bias, x.size(-1), x.scalar_type(), x);
  TORCH_CHECK_VALUE(approximate == "tanh" || approximate == "none", "approximate is '", approximate,
                    "': choose tanh or none");
}

void check_swiglu(const at::Tensor& gate, const at::Tensor& x, const std::optional<at::Tensor>& gate_bias,
                  const std::optional<at::Tensor>& bias) {
  check_gelu(x, bias, "tanh");
  check_like("gate", gate, "x", x);
  check_same_shape("gate", gate, "x", x);
  check_unit_stride("gate", gate);
  if (gate_bias) check_vector("gate_bias", *gate_bias, x.size(-1), x.scalar_type(), x);
}

void check_gradient(const at::Tensor& grad_out, const at::Tensor& x) {
  check_like("grad_out", grad_out, "x", x);
  check_same_shape("grad_out", grad_out, "x", x);
}

void check_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_floating("x", x);
  TORCH_CHECK_VALUE(x.dim() == 4 && x.size(3) >= 2 && x.size(3) % 2 == 0, "x has shape ", x.sizes(),
                    ": it must be (B, T, H, D) with an even D");
  check_unit_stride("x", x);
  for (const at::Tensor& table : {cos, sin}) {
    TORCH_CHECK_VALUE(table.dim() == 3 && (table.size(0) == 1 || table.size(0) == x.size(0)) &&
                          table.size(1) == x.size(1) && table.size(2) == x.size(3) / 2 && table.is_contiguous() &&
                          table.scalar_type() == statistics_type(x) && table.device() == x.device(),
                      "the angles have shape ", table.sizes(), ": they must be (T, D / 2) or (B, T, D / 2) for x of shape ",
                      x.sizes());
  }
}

void check_linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                at::ScalarType dtype, int64_t rows) {
  check_floating("hidden", hidden);
  check_floating("weight", weight);
  TORCH_CHECK_VALUE(hidden.dim() == 2 && hidden.size(1) >= 1, "hidden has shape ", hidden.sizes(), ": it must be (N, C)");
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) == hidden.size(1), "weight has shape ",
                    weight.sizes(), ": it must be (V, ", hidden.size(1), ") for hidden of shape ", hidden.sizes());
  TORCH_CHECK_VALUE(targets.dim() == 1 && targets.size(0) == hidden.size(0), "targets has shape ", targets.sizes(),
                    ": it must be (", hidden.size(0), ")");
  TORCH_CHECK_VALUE(targets.scalar_type() == at::kLong, "targets has dtype ", targets.scalar_type(),
                    ": convert it with .long()");
  TORCH_CHECK_VALUE(weight.device() == hidden.device(), "weight is on ", weight.device(), " but hidden is on ",
                    hidden.device(), ": move one with .to(device)");
  TORCH_CHECK_VALUE(targets.device() == hidden.device(), "targets is on ", targets.device(), " but hidden is on ",
                    hidden.device(), ": move one with .to(device)");
  TORCH_CHECK_VALUE(at::isFloatingType(dtype) && rows >= 1, "dtype is ", dtype, " and rows is ", rows,
                    ": use a floating dtype and rows above 0");
  if (!targets.is_cpu()) return;
  const at::Tensor labels = targets.contiguous();
  const int64_t* data = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    TORCH_CHECK_VALUE(data[i] == kIgnoredTarget || (0 <= data[i] && data[i] < weight.size(0)), "targets holds ", data[i],
                      ": it must be in 0..", weight.size(0) - 1, ", or ", kIgnoredTarget, " to be ignored");
  }
}

void check_adamw(at::TensorList parameters, at::TensorList gradients, at::TensorList means, at::TensorList squares,
                 const AdamWOptions& options) {
  const size_t count = parameters.size();
  TORCH_CHECK_VALUE(gradients.size() == count && means.size() == count && squares.size() == count,
                    "there are ", count, " parameters, ", gradients.size(), " gradients, ", means.size(), " averages and ",
                    squares.size(), " averages of squares: these must be as many");
  for (size_t i = 0; i < count; ++i) {
    for (const at::Tensor* each : {&parameters[i], &gradients[i], &means[i], &squares[i]}) {
      TORCH_CHECK_VALUE(each->scalar_type() == at::kFloat && each->is_contiguous() &&
                            each->sizes() == parameters[i].sizes() && each->device() == parameters[i].device(),
                        "parameter ", i, " of shape ", parameters[i].sizes(), " has a gradient or a state that is ",
                        each->scalar_type(), " of shape ", each->sizes(),
                        ": all must be contiguous float32 of one shape on one device");
    }
  }
  TORCH_CHECK_VALUE(options.step >= 1, "step is ", options.step, ": the first is 1");
}

Activation activation_called(c10::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "gelu") return Activation::kGelu;
  TORCH_CHECK_VALUE(name == "silu", "activation is '", name, "': choose none, gelu or silu");
  return Activation::kSilu;
}

void check_packed_linear(const at::Tensor& x, const at::Tensor& weight, int64_t outputs,
                         const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                         c10::string_view kind, const Norm& norm, const std::optional<at::Tensor>& residual) {
  check_whole("x", x, at::kFloat);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) >= 1, "x has shape ", x.sizes(), ": it needs a last dimension >= 1");
  auto type = weight.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kBFloat16 || type == at::kChar, "weight has dtype ", type,
                    ": use float32, bfloat16 or int8");
  TORCH_CHECK_VALUE(outputs >= 1, "outputs is ", outputs, ": it must be at least 1");
  check_sizes("weight", weight, {(outputs + kPanel - 1) / kPanel, x.size(-1), kPanel}, type);
  if (scales) check_sizes("scales", *scales, {outputs}, at::kFloat);
  if (bias) check_sizes("bias", *bias, {outputs}, at::kFloat);
  if (residual) {
    auto sizes = x.sizes().vec();
    sizes.back() = outputs;
    check_sizes("residual", *residual, sizes, at::kFloat);
  }
  TORCH_CHECK_VALUE(kind == "none" || kind == "layernorm" || kind == "rmsnorm", "norm is '", kind,
                    "': choose none, layernorm or rmsnorm");
  TORCH_CHECK_VALUE((kind != "none") == norm.weight.has_value(), "norm is '", kind, "' ",
                    norm.weight ? "with" : "without", " a weight: layernorm and rmsnorm need one, none has none");
  if (norm.weight) check_eps(norm.eps);
  if (norm.weight) check_sizes("the weight of the norm", *norm.weight, {x.size(-1)}, at::kFloat);
  if (norm.bias) check_sizes("the bias of the norm", *norm.bias, {x.size(-1)}, at::kFloat);
}

void check_cached_attention(const at::Tensor& qkv, const at::Tensor& keys, const at::Tensor& values,
                            const at::Tensor& positions, const std::optional<at::Tensor>& rows,
                            const std::optional<at::Tensor>& angles, std::optional<int64_t> window,
                            const std::optional<at::Tensor>& pages) {
  check_whole("qkv", qkv, at::kFloat);
  check_whole("keys", keys, at::kFloat);
  TORCH_CHECK_VALUE(qkv.dim() == 4, "qkv has shape ", qkv.sizes(), ": it must be (B, T, H + 2 Hkv, D)");
  TORCH_CHECK_VALUE(keys.dim() == 4 && keys.size(3) == qkv.size(3), "keys has shape ", keys.sizes(),
                    ": it must be (rows, Hkv, L, ", qkv.size(3), ")");
  check_sizes("values", values, keys.sizes(), at::kFloat);
  const int64_t heads = qkv.size(2) - 2 * keys.size(1);
  TORCH_CHECK_VALUE(keys.size(1) >= 1 && heads >= 1 && heads % keys.size(1) == 0, "keys has ", keys.size(1),
                    " heads but qkv ", heads, " of q: these must be a multiple of those");
  check_shared("positions", positions, {qkv.size(0), qkv.size(1)}, at::kLong);
  if (pages) check_sizes("pages", *pages, {qkv.size(0), pages->dim() == 2 ? pages->size(1) : 1}, at::kLong);
  check_indices("positions", positions, keys.size(2) * (pages ? pages->size(1) : 1));
  if (pages) {
    TORCH_CHECK_VALUE(!rows, "both rows and pages are given: choose one");
    check_indices("pages", *pages, keys.size(0));
  } else if (rows) {
    check_sizes("rows", *rows, {qkv.size(0)}, at::kLong);
    check_distinct("rows", *rows, keys.size(0));
  } else {
    TORCH_CHECK_VALUE(qkv.size(0) <= keys.size(0), "qkv has ", qkv.size(0), " rows but keys only ", keys.size(0));
  }
  if (angles) {
    TORCH_CHECK_VALUE(qkv.size(3) % 2 == 0, "qkv has head dimension ", qkv.size(3), ": angles turn pairs of numbers");
    check_shared("angles", *angles, {qkv.size(0), qkv.size(1), qkv.size(3) / 2}, at::kFloat);
  }
  TORCH_CHECK_VALUE(!window || *window >= 1, "window is ", *window,
                    ": it must be at least 1 (the query's own key), or None for no limit");
}

int64_t check_decode_step(at::TensorList ids, at::TensorList positions, at::TensorList pages,
                          const std::optional<at::Tensor>& wanted, at::TensorList keys, at::TensorList values,
                          const std::vector<std::optional<at::Tensor>>& weights) {
  const size_t layers = keys.size();
  TORCH_CHECK_VALUE(!ids.empty() && positions.size() == ids.size() && pages.size() == ids.size(), "there are ", ids.size(),
                    " segments of ids, ", positions.size(), " of positions and ", pages.size(), " of pages: these must be as many");
  TORCH_CHECK_VALUE(values.size() == layers && weights.size() == step::kOuter + layers * step::kBlock, "there are ", layers,
                    " blocks of keys, ", values.size(), " of values and ", weights.size(), " weights: it must be ",
                    static_cast<int>(step::kOuter), " and for each block ", static_cast<int>(step::kBlock));
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool inside = i >= step::kOuter;
    const int place = inside ? (i - step::kOuter) % step::kBlock : i;
    const bool needed = inside ? place == step::kNorm1 || place == step::kQkv || place == step::kProjection ||
                                     place == step::kNorm2 || place == step::kUp || place == step::kDown
                               : place == step::kTokens || place == step::kNorm || place == step::kHead;
    TORCH_CHECK_VALUE(weights[i] || !needed, "weight ", i, " is missing");
  }
  const at::Tensor& tokens = *weights[step::kTokens];
  const auto check_table = [](const char* name, const at::Tensor& x, int64_t width) {
    check_sizes(name, x, {x.dim() > 0 ? x.size(0) : 0, width}, at::kFloat);
  };
  TORCH_CHECK_VALUE(tokens.dim() == 2, "the embedding has shape ", tokens.sizes(), ": it must be (V, C)");
  check_table("the embedding", tokens, tokens.size(1));
  int64_t places = std::numeric_limits<int64_t>::max(), count = 0;
  if (weights[step::kPositions]) {
    check_table("the embedding of positions", *weights[step::kPositions], tokens.size(1));
    places = weights[step::kPositions]->size(0);
  }
  TORCH_CHECK_VALUE(weights[step::kCos].has_value() == weights[step::kSin].has_value(), "cos and sin: pass both or neither");
  for (const size_t i : {step::kCos, step::kSin}) {
    if (!weights[i] || layers == 0) continue;
    check_table("the table of angles", *weights[i], keys[0].dim() == 4 ? keys[0].size(3) / 2 : 0);
    places = std::min(places, weights[i]->size(0));
  }
  for (size_t s = 0; s < ids.size(); ++s) {
    TORCH_CHECK_VALUE(ids[s].dim() == 2, "ids has shape ", ids[s].sizes(), ": it must be (b, t)");
    check_whole("ids", ids[s], at::kLong);
    check_sizes("positions", positions[s], ids[s].sizes(), at::kLong);
    check_indices("ids", ids[s], tokens.size(0));
    check_indices("positions", positions[s], places);
    count += ids[s].numel();
  }
  if (wanted) {
    check_sizes("wanted", *wanted, {wanted->numel()}, at::kLong);
    check_indices("wanted", *wanted, count);
  }
  return count;
}

void check_likeliest(const at::Tensor& logits) {
  check_whole("logits", logits, at::kFloat);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) >= 1, "logits has shape ", logits.sizes(), ": it must be (B, V)");
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
  // deterministic: of the backward. Where it is false, dq may be a sum whose order varies from run to run. ends: of
  // documents in one sequence. cos, sin: of the angles that turn q and k, as for rotary.
  m.def(
      "causal_attention(Tensor q, Tensor k, Tensor v, float scale, SymInt? window, float dropout_p, Tensor? seed,"
      " bool deterministic=True, Tensor? ends=None, Tensor? cos=None, Tensor? sin=None) -> (Tensor out, Tensor lse)");
  m.def(
      "causal_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale,"
      " SymInt? window, float dropout_p, Tensor? seed, bool deterministic=True, Tensor? ends=None, Tensor? cos=None,"
      " Tensor? sin=None) -> (Tensor dq, Tensor dk, Tensor dv)");
  m.def(
      "causal_attention_qkvpacked(Tensor qkv, float scale, SymInt? window, float dropout_p, Tensor? seed,"
      " bool deterministic=True, Tensor? cos=None, Tensor? sin=None) -> (Tensor out, Tensor lse)");
  m.def(
      "causal_attention_qkvpacked_backward(Tensor grad_out, Tensor qkv, Tensor out, Tensor lse, float scale,"
      " SymInt? window, float dropout_p, Tensor? seed, bool deterministic=True, Tensor? cos=None, Tensor? sin=None)"
      " -> Tensor dqkv");
  // rstd: (rows); the backward of both: of add_rms_norm with x = sum and grad_residual = the gradient of sum.
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor out, Tensor rstd)");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor out, Tensor sum, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor rstd, Tensor? grad_residual)"
      " -> (Tensor grad_x, Tensor grad_weight)");
  m.def("gelu(Tensor x, Tensor? bias, str approximate) -> Tensor");
  m.def(
      "gelu_backward(Tensor grad_out, Tensor x, Tensor? bias, str approximate) -> (Tensor grad_x, Tensor grad_bias)");
  m.def("swiglu(Tensor gate, Tensor x, Tensor? gate_bias, Tensor? bias) -> Tensor");
  m.def(
      "swiglu_backward(Tensor grad_out, Tensor gate, Tensor x, Tensor? gate_bias, Tensor? bias)"
      " -> (Tensor grad_gate, Tensor grad_x, Tensor grad_gate_bias, Tensor grad_bias)");
  // cos, sin: (1 or B, T, D / 2). The backward is the op itself, turning back.
  m.def("rotary(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor");
  // The mean loss, and with `gradients` its gradients, which are known as soon as the logits are (else empty).
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, ScalarType dtype, int rows, bool gradients)"
      " -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight, Tensor grad_hidden,"
      " Tensor grad_weight) -> (Tensor, Tensor)");
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] averages, Tensor(c!)[] squares, int step,"
      " float lr, float beta1, float beta2, float eps, float weight_decay, float gradient_scale) -> ()");
  // A decode step; on the CPU only, and without a derivative.
  m.def(
      "packed_linear(Tensor x, Tensor weight, int outputs, Tensor? scales, Tensor? bias, str norm, Tensor? norm_weight,"
      " Tensor? norm_bias, float eps, str activation, Tensor? residual) -> Tensor");
  m.def(
      "cached_attention(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, Tensor positions, Tensor? rows, Tensor? angles,"
      " int? window, Tensor? pages=None) -> Tensor");
  m.def(
      "decode_step(Tensor[] ids, Tensor[] positions, Tensor[] pages, Tensor? wanted, Tensor(a!)[] keys, Tensor(b!)[] values,"
      " Tensor?[] weights, str norm, float eps, str activation, int? window) -> Tensor");
  m.def("likeliest(Tensor logits) -> Tensor");
}

// The same on every device. hidden and weight are there so that a second derivative is refused, not wrong.
SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy_backward",
         [](const at::Tensor& grad_loss, const at::Tensor&, const at::Tensor&, const at::Tensor& grad_hidden,
            const at::Tensor& grad_weight) {
           const auto scaled = [&](const at::Tensor& x) { return x.mul(grad_loss).to(x.scalar_type()); };
           return std::make_tuple(scaled(grad_hidden), scaled(grad_weight));
         });
}

// Without this a backward through them would leave gradients out, and only warn.
SLM_EXPAND(TORCH_LIBRARY_IMPL, SLM_LIBRARY, Autograd, m) {
  for (const char* name : {"packed_linear", "cached_attention", "decode_step", "layer_norm_backward", "causal_attention_backward",
                           "causal_attention_qkvpacked_backward", "rms_norm_backward", "gelu_backward",
                           "swiglu_backward", "linear_cross_entropy_backward", "adamw_"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
