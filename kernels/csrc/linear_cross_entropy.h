// Cross-entropy of hidden @ weight.T without the logits of all rows: what the walks over chunks of rows share, and the
// walk of a GPU.
//
// The products are torch's (BLAS on the CPU, cuBLAS on a GPU); a device's own passes between them see the logits twice,
// once for the statistics of their rows and once to turn them into their gradient. So a chunk of logits is all that is
// ever alive. The CPU's walk is in cpu/cross_entropy.cpp, the derivation in docs/kernels/cross_entropy.md.
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

// What a walk reads and writes.
struct HeadLoss {
  at::Tensor inputs, head, labels;  // (N, C) and (V, C) in the dtype of the products; (N)
  at::Tensor scale;                 // one number, which gradients are multiplied by
  at::Tensor statistics;            // (3, N): RowStatistics of all rows
  at::Tensor grad_hidden, grad_weight;  // (N, C) and (V, C) in the dtype of the losses; (0, 0) if not wanted
};

// walk(loss): fills the statistics and the gradients, of at least one row.
template <typename Walk>
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                                                    const at::Tensor& targets, at::ScalarType dtype,
                                                                    int64_t rows, bool gradients, const Walk& walk) {
  check_linear_cross_entropy(hidden, weight, targets, dtype, rows);
  const PlainProducts guard;
  const auto wide = hidden.options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat);
  HeadLoss loss{hidden.to(dtype), weight.to(dtype), targets.contiguous()};
  const at::Tensor ignored = at::eq(loss.labels, kIgnoredTarget);
  const at::Tensor share = ignored.logical_not().sum().clamp_min(1).to(wide.dtype()).reciprocal();
  const bool narrow_range = dtype == at::kHalf;  // 1 / count would leave its range
  loss.scale = narrow_range ? at::ones({}, wide) : share;
  loss.statistics = at::empty({3, hidden.size(0)}, wide);
  loss.grad_hidden = at::empty(gradients ? hidden.sizes() : at::IntArrayRef({0, 0}), wide);
  loss.grad_weight = at::empty(gradients ? weight.sizes() : at::IntArrayRef({0, 0}), wide);
  if (hidden.size(0) > 0) {
    walk(loss);
  } else {
    loss.grad_weight.zero_();
  }
  const RowStatistics all(loss.statistics);
  const at::Tensor losses = all.total.log() + (all.largest - all.target);
  const at::Tensor mean = losses.masked_fill(ignored, 0).sum() * share;
  if (gradients && narrow_range) {
    loss.grad_hidden.mul_(share);
    loss.grad_weight.mul_(share);
  }
  return {mean, loss.grad_hidden.to(hidden.scalar_type()), loss.grad_weight.to(weight.scalar_type())};
}

// The logits (n, V) of a chunk and the targets (n) of its rows.
struct ChunkLogits {
  at::Tensor logits, targets;
};

// The walk of a GPU, `rows` at a time. Passes: observe(chunk, statistics) finds the statistics of its rows;
// differentiate(chunk, statistics, scale) replaces each logit by scale * (softmax - one-hot target), 0 in the row of an
// ignored target. scale has one element of the dtype of the losses.
template <typename Passes>
void walk_chunks(const HeadLoss& loss, int64_t rows, bool gradients, const Passes& passes) {
  const int64_t count = loss.inputs.size(0);
  at::Tensor store = at::empty({std::min(rows, count), loss.head.size(0)}, loss.inputs.options());
  for (int64_t begin = 0; begin < count; begin += rows) {
    const int64_t size = std::min(rows, count - begin);
    const at::Tensor part = loss.inputs.narrow(0, begin, size);
    const ChunkLogits chunk{store.narrow(0, 0, size), loss.labels.narrow(0, begin, size)};
    const RowStatistics statistics(loss.statistics.narrow(1, begin, size));
    at::Tensor logits = chunk.logits;
    at::mm_out(logits, part, loss.head.t());  // (n, C) @ (C, V) -> (n, V)
    passes.observe(chunk, statistics);
    if (!gradients) continue;
    passes.differentiate(chunk, statistics, loss.scale);
    add_product(loss.grad_hidden.narrow(0, begin, size), logits, loss.head, true);  // (n, V) @ (V, C) -> (n, C)
    add_product(loss.grad_weight, logits.t(), part, begin == 0);                    // (V, n) @ (n, C) -> (V, C)
  }
}

}  // namespace slm
