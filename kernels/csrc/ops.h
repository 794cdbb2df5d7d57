// Shared by every implementation of the ops: the argument checks and the name of the library.
//
// The schemas are in ops.cpp. An implementation (cpu/*.cpp, cuda/bindings.h) begins each op
// with its check and may then index freely: no stride or size that passes a check can lead outside a tensor.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

// The emulated kernels are a second library with the same schemas, so that both can be loaded at once.
#ifndef SLM_LIBRARY
#define SLM_LIBRARY slm
#endif
#define SLM_EXPAND(macro, ...) macro(__VA_ARGS__)

namespace slm {

inline constexpr int64_t kMaxHeadDim = 128;

// The instruction set that the CPU kernels use in this process: "DEFAULT", "AVX2" or "AVX512".
std::string cpu_capability();

// How causal attention weighs and drops; the same for forward and backward.
struct AttentionOptions {
  double scale;                   // factor of the scores, usually 1 / sqrt(D)
  std::optional<int64_t> window;  // a query sees itself and the window - 1 keys before it; none: all before it
  double dropout_p;               // probability of dropping a weight
  std::optional<at::Tensor> seed; // one int64 on the device of q; needed where dropout_p > 0
  std::optional<at::Tensor> ends;      // of documents: (documents + 1) int64 on the CPU, from 0 to T; B is 1
  std::optional<at::Tensor> cos, sin;  // of the angles that turn q and k; both or neither (check_rotary)
};

// x: (..., C), weight, bias: (C), residual: as x; eps > 0. ValueError that names the argument otherwise.
void check_layer_norm(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, double eps);

// grad_out, grad_residual: as x; mean, rstd: (rows) float32, float64 for float64 x.
void check_layer_norm_backward(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& mean, const at::Tensor& rstd,
                               const std::optional<at::Tensor>& grad_residual);

// q: (B, T, H, D); k, v: (B, T, Hkv, D) with H a multiple of Hkv.
void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options);

// grad_out, out: as q; lse: (B, H, T) contiguous float32, float64 for float64 q.
void check_attention_backward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                              const AttentionOptions& options);

// qkv: (B, T, 3, H, D).
void check_packed(const at::Tensor& qkv);

// x: (..., C); bias: (C), or none; approximate: "tanh" or "none".
void check_gelu(const at::Tensor& x, const std::optional<at::Tensor>& bias, c10::string_view approximate);

// gate, x: (..., C), alike; gate_bias, bias: (C), or none.
void check_swiglu(const at::Tensor& gate, const at::Tensor& x, const std::optional<at::Tensor>& gate_bias,
                  const std::optional<at::Tensor>& bias);

// grad_out: as x, whatever its strides.
void check_gradient(const at::Tensor& grad_out, const at::Tensor& x);

// x: (B, T, H, D), D even; cos, sin: (1 or B, T, D / 2) contiguous float32, float64 for float64 x.
void check_rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

inline constexpr int64_t kIgnoredTarget = -100;

// hidden: (N, C); weight: (V, C); targets: (N) int64 in 0..V-1 or kIgnoredTarget (looked at on the CPU only, as that
// would stop a GPU); dtype: of the products; rows: of a chunk.
void check_linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                at::ScalarType dtype, int64_t rows);

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
  double gradient_scale;  // what the gradients are multiplied by first
  int64_t step;           // from 1
};

// Four lists of one length; in each place tensors of one shape, contiguous float32.
void check_adamw(at::TensorList parameters, at::TensorList gradients, at::TensorList means, at::TensorList squares,
                 const AdamWOptions& options);

// The ops of a decode step, which the CPU alone has; they compute in float32.

inline constexpr int64_t kPanel = 64;  // outputs that lie side by side in a packed weight

enum class Activation { kNone, kGelu, kSilu };

// "none", "gelu" (in its tanh form) or "silu"; ValueError otherwise.
Activation activation_called(c10::string_view name);

// The norm that a linear layer begins with: layer norm where `centred`, else RMSNorm; none without a weight.
struct Norm {
  bool centred;
  const std::optional<at::Tensor>&weight, &bias;  // (inputs)
  double eps;
};

// x: (..., inputs) contiguous float32; weight: (panels, inputs, kPanel) contiguous float32, bfloat16 or int8; scales, bias:
// (outputs); residual: (..., outputs) contiguous; kind: "none", "layernorm" or "rmsnorm".
void check_packed_linear(const at::Tensor& x, const at::Tensor& weight, int64_t outputs,
                         const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                         c10::string_view kind, const Norm& norm, const std::optional<at::Tensor>& residual);

// qkv: (B, T, H + 2 Hkv, D); keys, values: (rows, Hkv, L, D), all contiguous float32; positions: (1 or B, T) int64 in
// 0..L-1; rows: (B) int64, different ones, or none for 0..B-1; angles: (1 or B, T, D / 2). With pages (B, n) int64 a row of
// keys and values is a page: position p of row b is in page pages[b, p / L], at p % L, for p in 0..n L - 1.
void check_cached_attention(const at::Tensor& qkv, const at::Tensor& keys, const at::Tensor& values,
                            const at::Tensor& positions, const std::optional<at::Tensor>& rows,
                            const std::optional<at::Tensor>& angles, std::optional<int64_t> window,
                            const std::optional<at::Tensor>& pages);

// Where the tensors of a packed model are in the list of weights of decode_step: those of the whole, then of each block. A
// linear layer is weight, scales and bias, a norm weight and bias. Without rotary positions there is no cos and sin (places,
// D / 2), without learned ones no kPositions (places, C), without a gate no kGate, and where there is no scale or bias none.
namespace step {
enum Outer { kTokens, kPositions, kCos, kSin, kNorm, kHead = kNorm + 2, kOuter = kHead + 3 };
enum Block {
  kNorm1, kQkv = kNorm1 + 2, kProjection = kQkv + 3, kNorm2 = kProjection + 3, kGate = kNorm2 + 2, kUp = kGate + 3,
  kDown = kUp + 3, kBlock = kDown + 3
};
}  // namespace step

// Three lists with a place for each segment of a pass, whose b texts have t new tokens each: ids and positions (b, t), pages
// (b, n). wanted: (rows) int64, which of the tokens have logits; keys and values: (pages, Hkv, L, D) for each block. Returns
// how many tokens there are. What a linear layer or attention is given, its own check sees.
int64_t check_decode_step(at::TensorList ids, at::TensorList positions, at::TensorList pages,
                          const std::optional<at::Tensor>& wanted, at::TensorList keys, at::TensorList values,
                          const std::vector<std::optional<at::Tensor>>& weights);

// logits: (B, V) contiguous float32.
void check_likeliest(const at::Tensor& logits);

// float32 for float32, float16 and bfloat16; float64 for float64.
at::ScalarType statistics_type(const at::Tensor& x);

// `x` itself where its last dimension has stride 1, else a contiguous copy: for gradients, whose strides nobody chooses.
at::Tensor unit_stride(const at::Tensor& x);

}  // namespace slm
