// A pass of a packed model over new tokens in one call: embeddings, blocks and head. And the choice of the likeliest id.
//
// In a small model the calls from Python take longer than the arithmetic: here all of a step is one. What is computed is
// what packed_linear and cached_attention compute, in the same order, so the result is the same, bit for bit.
#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../ops.h"
#include "decode.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

// What linear layers and norms have in common, and where their tensors begin in the list of weights.
struct Layers {
  const MaybeTensor* weights;
  c10::string_view norm, activation;
  double eps;

  // A linear layer of weight, scales and bias, after the norm (weight, bias) if one is given.
  at::Tensor linear(const at::Tensor& x, const MaybeTensor* from, int64_t outputs, const MaybeTensor* normed,
                    bool activated, const MaybeTensor& residual) const {
    return packed_linear(x, *from[0], outputs, from[1], from[2], normed ? norm : "none", normed ? normed[0] : MaybeTensor(),
                         normed ? normed[1] : MaybeTensor(), eps, activated ? activation : "none", residual);
  }
};

// Rows of the embeddings of all tokens, (N, C).
at::Tensor embedded(at::TensorList ids, at::TensorList positions, const at::Tensor& tokens, const MaybeTensor& places,
                    int64_t count) {
  const int64_t width = tokens.size(1);
  at::Tensor out = at::empty({count, width}, tokens.options());
  float* to = out.mutable_data_ptr<float>();
  const float *rows = tokens.const_data_ptr<float>(), *added = places ? places->const_data_ptr<float>() : nullptr;
  for (size_t s = 0; s < ids.size(); ++s) {
    const int64_t *id = ids[s].const_data_ptr<int64_t>(), *position = positions[s].const_data_ptr<int64_t>();
    for (int64_t i = 0; i < ids[s].numel(); ++i, to += width) {
      const float* row = rows + id[i] * width;
      for (int64_t c = 0; c < width; ++c) to[c] = added ? row[c] + added[position[i] * width + c] : row[c];
    }
  }
  return out;
}

// Attention of the tokens of all segments, qkv (N, (H + 2 Hkv) D) -> (N, H D).
at::Tensor mixed(const at::Tensor& qkv, at::TensorList positions, at::TensorList pages, const at::Tensor& keys,
                 const at::Tensor& values, const Angles<float>& angles, std::optional<int64_t> window) {
  std::vector<at::Tensor> outs;
  int64_t first = 0;
  for (size_t s = 0; s < positions.size(); ++s) {
    const int64_t batch = positions[s].size(0), length = positions[s].size(1);
    const at::Tensor rows = qkv.narrow(0, first, batch * length).view({batch, length, -1, keys.size(3)});
    outs.push_back(paged_attention(rows, keys, values, positions[s], pages[s], angles, window).view({batch * length, -1}));
    first += batch * length;
  }
  return outs.size() == 1 ? outs[0] : at::cat(outs);
}

at::Tensor decode_step(at::TensorList ids, at::TensorList positions, at::TensorList pages, const MaybeTensor& wanted,
                       at::TensorList keys, at::TensorList values, const c10::List<MaybeTensor>& weights,
                       c10::string_view norm, double eps, c10::string_view activation, std::optional<int64_t> window) {
  const std::vector<MaybeTensor> all = weights.vec();
  const int64_t count = check_decode_step(ids, positions, pages, wanted, keys, values, all);
  const Layers layers{all.data(), norm, activation, eps};
  Angles<float> angles;
  if (all[step::kCos]) {
    angles = {all[step::kCos]->const_data_ptr<float>(), all[step::kSin]->const_data_ptr<float>(), all[step::kCos]->size(1)};
  }
  at::Tensor x = embedded(ids, positions, *all[step::kTokens], all[step::kPositions], count);
  for (size_t layer = 0; layer < keys.size(); ++layer) {
    const MaybeTensor* block = all.data() + step::kOuter + layer * step::kBlock;
    const int64_t heads = block[step::kProjection]->size(1), kv = keys[layer].size(1) * keys[layer].size(3);
    const at::Tensor qkv =
        layers.linear(x, block + step::kQkv, heads + 2 * kv, block + step::kNorm1, false, std::nullopt);
    const at::Tensor y = mixed(qkv, positions, pages, keys[layer], values[layer], angles, window);
    x = layers.linear(y, block + step::kProjection, x.size(1), nullptr, false, x);
    const bool gated = block[step::kGate].has_value();
    const int64_t width = block[step::kDown]->size(1);
    at::Tensor inner = layers.linear(x, block + step::kUp, width, block + step::kNorm2, !gated, std::nullopt);
    if (gated) inner.mul_(layers.linear(x, block + step::kGate, width, block + step::kNorm2, true, std::nullopt));
    x = layers.linear(inner, block + step::kDown, x.size(1), nullptr, false, x);
  }
  if (wanted) x = x.index_select(0, *wanted);
  return layers.linear(x, all.data() + step::kHead, all[step::kTokens]->size(0), all.data() + step::kNorm, false,
                       std::nullopt);
}

constexpr int64_t kRun = 256;  // numbers whose largest is found before anybody asks where it is

// Where the first of the largest numbers is; `size` if there is a NaN among them.
int64_t first_of_the_largest(const float* x, int64_t size) {
  float largest = -std::numeric_limits<float>::infinity();
  int64_t run = 0;
  for (int64_t first = 0; first < size; first += kRun) {
    Vec<float> most(-std::numeric_limits<float>::infinity());
    for_each_vec<float>(std::min(kRun, size - first), [&](int64_t i, auto count) {
      most = at::vec::maximum(most, Vec<float>::set(most, load(x + first + i, count), count));
    });
    const float found = max_of(most);
    if (std::isnan(found)) return size;
    if (found > largest) {
      largest = found;
      run = first;
    }
  }
  return std::find(x + run, x + size, largest) - x;
}

at::Tensor likeliest(const at::Tensor& logits) {
  check_likeliest(logits);
  const int64_t rows = logits.size(0), size = logits.size(1);
  at::Tensor ids = at::empty({rows}, logits.options().dtype(at::kLong));
  const float* from = logits.const_data_ptr<float>();
  int64_t* to = ids.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, (1 << 18) / size + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) to[r] = first_of_the_largest(from + r * size, size);
  });
  return ids;
}

}  // namespace

void register_decode_step(torch::Library& m) {
  m.impl("decode_step", decode_step);
  m.impl("likeliest", likeliest);
}

}  // namespace slm::CPU_CAPABILITY
