// Cross-entropy of hidden @ weight.T without the logits of all rows: the walk over chunks of rows and tiles of the
// vocabulary, for every device.
//
// The products are torch's (BLAS on the CPU, cuBLAS on a GPU); a device's own passes between them see each tile twice,
// once for the statistics of its rows and once to turn its logits into their gradient, in place. So a chunk of logits is
// all that is ever alive. The derivation is in docs/kernels/cross_entropy.md.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops.h"

namespace slm {

// torch's products as they are: neither recorded for a backward pass nor cast by autocast.
struct PlainProducts {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard without_autocast{c10::autocast_dispatch_keyset};
};

// total (+)= left @ right; total may be float32 where the product has 16 bits.
inline void add_product(at::Tensor total, const at::Tensor& left, const at::Tensor& right, bool first) {
  if (total.scalar_type() != left.scalar_type()) {
    const at::Tensor part = at::mm(left, right);
    first ? total.copy_(part) : total.add_(part);
  } else if (first) {
    at::mm_out(total, left, right);
  } else {
    total.addmm_(left, right);
  }
}

// Of each row of a chunk, (3, n) in the dtype of the losses: the largest logit, the sum of exp(logit - largest), and the
// logit of the target.
struct RowStatistics {
  explicit RowStatistics(const at::Tensor& all) : largest(all[0]), total(all[1]), target(all[2]) {}
  at::Tensor largest, total, target;
};

// Columns of the vocabulary from `first` on, as logits (n, width), and the targets (n) of its rows.
struct LogitTile {
  at::Tensor logits, targets;
  int64_t first;
};

// Passes: observe(tile, statistics) adds the tile to the statistics of its rows (`first` 0 begins them); differentiate(tile,
// statistics, scale) replaces each logit by scale * (softmax - one-hot target), 0 in the row of an ignored target. scale has
// one element of the dtype of the losses.
template <typename Passes>
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                                                    const at::Tensor& targets, at::ScalarType dtype,
                                                                    int64_t rows, bool gradients, int64_t tile_width,
                                                                    const Passes& passes) {
  check_linear_cross_entropy(hidden, weight, targets, dtype, rows);
  const PlainProducts guard;
  const auto wide = hidden.options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat);
  const at::Tensor inputs = hidden.to(dtype), head = weight.to(dtype), labels = targets.contiguous();
  const at::Tensor ignored = at::eq(labels, kIgnoredTarget);
  const at::Tensor share = ignored.logical_not().sum().clamp_min(1).to(wide.dtype()).reciprocal();
  const bool narrow_range = dtype == at::kHalf;  // 1 / count would leave its range
  const at::Tensor scale = narrow_range ? at::ones({}, wide) : share;
  const int64_t count = hidden.size(0), vocabulary = weight.size(0), width = std::min(tile_width, vocabulary);
  const int64_t tiles = (vocabulary + width - 1) / width;

  at::Tensor statistics = at::empty({3, count}, wide);
  at::Tensor store = at::empty({tiles, std::min(rows, count) * width}, inputs.options());  // each tile in one piece
  at::Tensor grad_hidden = at::zeros(gradients ? hidden.sizes() : at::IntArrayRef({0, 0}), wide);
  at::Tensor grad_weight = at::zeros(gradients ? weight.sizes() : at::IntArrayRef({0, 0}), wide);
  for (int64_t begin = 0; begin < count; begin += rows) {
    const int64_t size = std::min(rows, count - begin);
    const at::Tensor part = inputs.narrow(0, begin, size), part_labels = labels.narrow(0, begin, size);
    const RowStatistics part_statistics(statistics.narrow(1, begin, size));
    const auto for_each_tile = [&](const auto& step) {
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t first = t * width, columns = std::min(width, vocabulary - first);
        const at::Tensor logits = store[t].narrow(0, 0, size * columns).view({size, columns});
        step(LogitTile{logits, part_labels, first}, head.narrow(0, first, columns));
      }
    };
    for_each_tile([&](const LogitTile& tile, const at::Tensor& tile_head) {
      at::Tensor logits = tile.logits;
      at::mm_out(logits, part, tile_head.t());  // (n, C) @ (C, width) -> (n, width)
      passes.observe(tile, part_statistics);
    });
    if (!gradients) continue;
    for_each_tile([&](const LogitTile& tile, const at::Tensor& tile_head) {
      passes.differentiate(tile, part_statistics, scale);
      const int64_t columns = tile.logits.size(1);
      add_product(grad_hidden.narrow(0, begin, size), tile.logits, tile_head, tile.first == 0);  // -> (n, C)
      add_product(grad_weight.narrow(0, tile.first, columns), tile.logits.t(), part, begin == 0);  // -> (width, C)
    });
  }
  const RowStatistics all(statistics);
  const at::Tensor losses = all.total.log() + (all.largest - all.target);
  const at::Tensor loss = losses.masked_fill(ignored, 0).sum() * share;
  if (gradients && narrow_range) {
    grad_hidden.mul_(share);
    grad_weight.mul_(share);
  }
  return {loss, grad_hidden.to(hidden.scalar_type()), grad_weight.to(weight.scalar_type())};
}

}  // namespace slm
