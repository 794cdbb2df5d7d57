// A linear layer for few rows: a pass over the weights, with the norm before it and what follows it in the same call.
//
// With one row each weight is used once, so the time is that of reading it; with more rows it stays in a register while
// all of them use it. A packed weight holds 64 outputs side by side for each input, and the panels of 64 one after the
// other: every thread reads its part from end to end. Each output is one sum over the inputs in their order, whatever
// the number of rows or threads, so a row has the same result alone and among others, bit for bit.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <array>
#include <vector>

#include "../ops.h"
#include "decode.h"
#include "memory.h"
#include "norm.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {
namespace {

constexpr int64_t kWidth = Vec<float>::size();
constexpr int kVecs = 4;  // vectors of outputs that are summed at a time
// Rows at a time: as many sums as fit into the registers, 16 with AVX2, 32 with the others.
#if defined(CPU_CAPABILITY_AVX2)
constexpr int kMostRows = 2;
#else
constexpr int kMostRows = 6;
#endif

constexpr int64_t kGrain = 1 << 16;  // products of single numbers below which a thread is not worth waking

// One vector of weights as floats.
inline Vec<float> load_weights(const float* from) { return Vec<float>::loadu(from); }
inline Vec<float> load_weights(const at::BFloat16* from) {
  Vec<float> values;
  at::vec::load_to_float<at::BFloat16>(from, values);
  return values;
}
inline Vec<float> load_weights(const int8_t* from) {
  return at::vec::convert<float>(Vec<int8_t>::loadu(from, kWidth));
}

// Asks for the weights of one input in the next panel: early enough for memory, and small enough for the second-level cache.
template <typename T>
inline void prefetch_lines(const T* weights) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kPanel; i += kLine) __builtin_prefetch(weights + i, 0, 2);
}

// Rows of numbers at a constant distance.
struct Matrix {
  const float* data;
  int64_t stride;
};

// sums (kRows x kVecs vectors) = x (kRows x inputs) * weight (inputs x kVecs vectors, rows kPanel apart).
template <int kRows, typename T>
void multiply(Matrix x, const T* weight, int64_t inputs, float* sums) {
  Vec<float> total[kRows][kVecs];
  for (auto& row : total) {
    for (auto& vec : row) vec = Vec<float>(0);
  }
  for (int64_t k = 0; k < inputs; ++k, weight += kPanel) {
    prefetch_lines(weight + inputs * kPanel);
    Vec<float> weights[kVecs];
    for (int v = 0; v < kVecs; ++v) weights[v] = load_weights(weight + v * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const Vec<float> factor(x.data[r * x.stride + k]);
      for (int v = 0; v < kVecs; ++v) total[r][v] = at::vec::fmadd(factor, weights[v], total[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) total[r][v].store(sums + r * kPanel + v * kWidth);
  }
}

// The same for 1 to kMostRows rows and all outputs of a panel.
template <typename T, int kRows = kMostRows>
void multiply_panel(int64_t rows, Matrix x, const T* panel, int64_t inputs, float* sums) {
  if (rows == kRows) {
    for (int64_t v = 0; v < kPanel; v += kVecs * kWidth) multiply<kRows>(x, panel + v, inputs, sums + v);
  } else if constexpr (kRows > 1) {
    multiply_panel<T, kRows - 1>(rows, x, panel, inputs, sums);
  }
}

// 1 / (1 + e^-x), by e^-|x|, which does not overflow.
inline Vec<float> sigmoid(const Vec<float>& x) {
  const Vec<float> one(1), e = exp_negative(x.abs().neg());
  return Vec<float>::blendv(one, e, x < Vec<float>(0)) / (one + e);
}

inline Vec<float> activate(const Vec<float>& x, Activation activation) {
  switch (activation) {
    case Activation::kSilu: return x * sigmoid(x);
    case Activation::kGelu: {  // (1 + tanh(u)) / 2 is sigmoid(2 u)
      const Vec<float> u = at::vec::fmadd(Vec<float>(0.044715f) * x, x * x, x);
      return x * sigmoid(u * Vec<float>(1.5957691f));  // 2 sqrt(2 / pi)
    }
    default: return x;
  }
}

const float* data_or_null(const std::optional<at::Tensor>& x) { return x ? x->const_data_ptr<float>() : nullptr; }

// What becomes of the sums of a row.
struct Epilogue {
  const float *scales, *bias, *residual;  // each may be null; residual: (rows, outputs)
  Activation activation;

  void operator()(const float* sums, int64_t row, int64_t first, int64_t outputs, float* out) const {
    const int64_t at = row * outputs + first;
    for_each_vec<float>(std::min(kPanel, outputs - first), [&](int64_t i, auto count) {
      Vec<float> y = Vec<float>::loadu(sums + i);
      if (scales) y = y * load(scales + first + i, count);
      if (bias) y = y + load(bias + first + i, count);
      y = activate(y, activation);
      if (residual) y = y + load(residual + at + i, count);
      store(y, out + at + i, count);
    });
  }
};

// The rows of x as the norm makes them.
std::vector<float> normalized(const float* x, int64_t rows, int64_t size, const Norm& norm) {
  std::vector<float> out(rows * size);
  const float *weight = norm.weight->const_data_ptr<float>(), *bias = data_or_null(norm.bias);
  const float eps = static_cast<float>(norm.eps);
  at::parallel_for(0, rows, kGrain / size + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x + r * size;
      const auto [mean, factor] =
          norm.centred ? moments(from, size, eps) : std::pair(0.0f, inverse_rms(from, size, eps));
      for_each_vec<float>(size, [&, mean = mean, factor = factor](int64_t i, auto count) {
        Vec<float> y = (load(from + i, count) - Vec<float>(mean)) * Vec<float>(factor) * load(weight + i, count);
        if (bias) y = y + load(bias + i, count);
        store(y, out.data() + r * size + i, count);
      });
    }
  });
  return out;
}

template <typename T>
void forward(Matrix x, int64_t rows, const at::Tensor& weight, int64_t outputs, const Epilogue& finish, float* out) {
  const int64_t panels = weight.size(0), inputs = weight.size(1);
  const T* weights = static_cast<const T*>(weight.const_data_ptr());
  const int64_t groups = (rows + kMostRows - 1) / kMostRows;
  at::parallel_for(0, panels, kGrain / (inputs * kPanel * rows) + 1, [&](int64_t begin, int64_t end) {
    std::array<float, kMostRows * kPanel> sums;
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t g = 0; g < groups; ++g) {  // as even as they can be: 16 rows are 6, 5 and 5
        const int64_t first = g * rows / groups, last = (g + 1) * rows / groups;
        multiply_panel(last - first, {x.data + first * x.stride, x.stride}, weights + p * inputs * kPanel, inputs,
                       sums.data());
        for (int64_t r = first; r < last; ++r) {
          finish(sums.data() + (r - first) * kPanel, r, p * kPanel, outputs, out);
        }
      }
    }
  });
}

}  // namespace

at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& weight, int64_t outputs,
                         const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& bias,
                         c10::string_view norm_kind, const std::optional<at::Tensor>& norm_weight,
                         const std::optional<at::Tensor>& norm_bias, double eps, c10::string_view activation_name,
                         const std::optional<at::Tensor>& residual) {
  const Norm norm{norm_kind == "layernorm", norm_weight, norm_bias, eps};
  check_packed_linear(x, weight, outputs, scales, bias, norm_kind, norm, residual);
  const Epilogue finish{data_or_null(scales), data_or_null(bias), data_or_null(residual),
                        activation_called(activation_name)};
  auto sizes = x.sizes().vec();
  sizes.back() = outputs;
  at::Tensor out = empty_output(sizes, x.options());
  const int64_t inputs = x.size(-1), rows = x.numel() / inputs;
  if (rows == 0) return out;
  std::vector<float> normed;
  if (norm.weight) normed = normalized(x.const_data_ptr<float>(), rows, inputs, norm);
  const Matrix in{norm.weight ? normed.data() : x.const_data_ptr<float>(), inputs};
  float* to = out.mutable_data_ptr<float>();
  switch (weight.scalar_type()) {
    case at::kFloat: forward<float>(in, rows, weight, outputs, finish, to); break;
    case at::kBFloat16: forward<at::BFloat16>(in, rows, weight, outputs, finish, to); break;
    default: forward<int8_t>(in, rows, weight, outputs, finish, to);
  }
  return out;
}

void register_packed_linear(torch::Library& m) { m.impl("packed_linear", packed_linear); }

}  // namespace slm::CPU_CAPABILITY
