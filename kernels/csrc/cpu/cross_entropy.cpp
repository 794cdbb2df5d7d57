// Cross-entropy on the CPU: a thread takes a tile of the vocabulary through its products and the passes between them.
//
// Logits are computed as (V, N): a tile is some rows of it, whose logits are still in the second-level cache when their
// statistics are taken, and the gradient that they become when the two products follow. Threads meet twice a chunk of
// positions, not at every product, and the statistics of 16 positions are one vector. The exponential is taken twice,
// which is less than to write it and read it again. The derivation is in docs/kernels/cross_entropy.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <limits>
#include <vector>

#include "../linear_cross_entropy.h"
#include "activation.h"
#include "matmul.h"
#include "memory.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {
namespace {

constexpr int64_t kTileBytes = 1024;      // of a column of a tile: 256 rows of the vocabulary in float32
constexpr int64_t kMostPositions = 1024;  // of a chunk
// Parts of the vocabulary, each of some tiles, which have their own statistics and their own sum of the gradient of
// hidden: a fixed number, so that the sums do not depend on the number of threads.
constexpr int64_t kParts = 16;
constexpr int64_t kLanes = 16;  // positions are padded to a multiple of this, for whole vectors

int64_t padded(int64_t positions) { return (positions + kLanes - 1) / kLanes * kLanes; }

// The rows of left a multiple of kGroupRows, the columns of right of kLanes.
template <bool kAdd>
void uncopied_product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& result) {
  const Left<float> a{left.const_data_ptr<float>(), left.stride(0), left.stride(1)};
  const Right<const float> b{right.const_data_ptr<float>(), right.stride(0)};
  const Right<float> c{result.mutable_data_ptr<float>(), result.stride(0)};
  const int64_t rows = left.size(0), columns = right.size(1);
  const Depths depths(Span{0, left.size(1)});
  constexpr int64_t kColumns = kGroupVecs * kLanes;
  for (int64_t column = 0; column < columns; column += kColumns) {
    const Span vecs{0, std::min(kColumns, columns - column) / kLanes};
    for (int64_t row = 0; row < rows; row += kGroupRows) {
      product<kAdd>(Left<float>{a.data + row * a.row_stride, a.row_stride, a.depth_stride},
                    Right<const float>{b.data + column, b.stride},
                    Right<float>{c.data + row * c.stride + column, c.stride}, vecs, depths);
    }
  }
}

// result = left * right, or += if `add`, of matrices, by this thread alone. BLAS copies both operands of every call into its
// packed layout; with vectors of 16 numbers a tile is faster without.
template <typename T>
void tile_product(const at::Tensor& left, const at::Tensor& right, at::Tensor result, bool add) {
  if constexpr (std::is_same_v<T, float> && Vec<T>::size() == kLanes) {
    if (left.size(0) % kGroupRows == 0 && right.size(1) % kLanes == 0 && right.stride(1) == 1) {
      return add ? uncopied_product<true>(left, right, result) : uncopied_product<false>(left, right, result);
    }
  }
  add_product(result, left, right, !add);
}

// The statistics of positions, side by side: the largest logit so far, and the sum of exp(logit - largest).
template <typename A>
struct Sums {
  explicit Sums(int64_t positions) : largest(positions, -std::numeric_limits<A>::infinity()), total(positions, 0) {}
  std::vector<A> largest, total;
};

// What is subtracted from logits whose maximum this is: 0 where nothing but probabilities of 0 was seen. NaN stays.
template <typename A>
Vec<A> shift(const Vec<A>& largest) {
  return Vec<A>::blendv(largest, Vec<A>(0), largest == Vec<A>(-std::numeric_limits<A>::infinity()));
}

// Adds to the sums of a vector of positions, at `largest` and `total`, what is known of other logits of theirs.
template <typename A>
void add_sums(const Vec<A>& other_largest, const Vec<A>& other_total, A* largest, A* total) {
  const Vec<A> before = Vec<A>::loadu(largest), maximum = at::vec::maximum(before, other_largest), m = shift(maximum);
  const Vec<A> sum = Vec<A>::loadu(total) * exp_negative(before - m) + other_total * exp_negative(other_largest - m);
  maximum.store(largest);
  sum.store(total);
}

// A chunk of positions on its way through the vocabulary.
template <typename T>
class Chunk {
  using A = compute_t<T>;
  static constexpr int64_t kWidth = Vec<A>::size(), kRows = kTileBytes / sizeof(T);  // kRows: of a tile

 public:
  // logits: (V, at least padded(positions)), to be filled; undefined if no gradients are wanted. It may be the gradient of
  // the weight, whose rows are written when their logits have been read for the last time.
  Chunk(const HeadLoss& loss, int64_t begin, int64_t positions, at::Tensor logits)
      : loss_(loss),
        logits_(std::move(logits)),
        inputs_(at::constant_pad_nd(loss.inputs.narrow(0, begin, positions), {0, 0, 0, padded(positions) - positions})),
        inputs_t_(inputs_.t().contiguous()),
        labels_(loss.labels.const_data_ptr<int64_t>() + begin),
        begin_(begin),
        positions_(positions),
        tiles_((loss.head.size(0) + kRows - 1) / kRows),
        parts_(std::min(kParts, tiles_)),
        sums_(parts_, Sums<A>(padded(positions))) {}

  // Fills the statistics of the positions.
  void observe() {
    in_parts([&](int64_t part, const at::Tensor& scratch) {
      in_tiles(part, [&](int64_t first, const at::Tensor& head) {
        const at::Tensor room = logits_.defined() ? logits_.narrow(0, first, head.size(0)) : scratch;
        const at::Tensor logits = room.narrow(0, 0, head.size(0)).narrow(1, 0, inputs_.size(0));
        tile_product<T>(head, inputs_t_, logits, false);  // (rows, C) @ (C, n) -> (rows, n)
        observe_tile(logits, sums_[part]);
        keep_targets(logits, first);
      });
    });
    for (int64_t part = 1; part < parts_; ++part) merge(sums_[part], sums_[0]);
    const RowStatistics found(loss_.statistics.narrow(1, begin_, positions_));
    std::copy_n(sums_[0].largest.data(), positions_, found.largest.template mutable_data_ptr<A>());
    std::copy_n(sums_[0].total.data(), positions_, found.total.template mutable_data_ptr<A>());
  }

  // Fills the gradient of the hidden rows and adds to that of the weight.
  void differentiate() {
    const int64_t width = inputs_.size(1);
    const at::Tensor grad_hidden = at::empty({parts_, inputs_.size(0), width}, loss_.grad_hidden.options());
    in_parts([&](int64_t part, const at::Tensor& scratch) {
      bool begins = true;
      in_tiles(part, [&](int64_t first, const at::Tensor& head) {
        const at::Tensor gradient = scratch.narrow(0, 0, head.size(0));
        differentiate_tile(logits_.narrow(0, first, head.size(0)), first, gradient);
        const at::Tensor grad_weight = loss_.grad_weight.narrow(0, first, head.size(0));
        tile_product<T>(gradient.t(), head, grad_hidden[part], !begins);  // (n, rows) @ (rows, C) -> (n, C)
        tile_product<T>(gradient, inputs_, grad_weight, begin_ > 0);      // (rows, n) @ (n, C) -> (rows, C)
        begins = false;
      });
    });
    at::Tensor sum = loss_.grad_hidden.narrow(0, begin_, positions_);
    at::sum_out(sum, grad_hidden.narrow(1, 0, positions_), 0);
  }

 private:
  // Calls body(part, scratch of a tile) in parallel.
  template <typename Body>
  void in_parts(const Body& body) const {
    at::parallel_for(0, parts_, 1, [&](int64_t begin, int64_t end) {
      const PlainProducts guard;  // of this thread
      const at::Tensor scratch = at::empty({kRows, inputs_.size(0)}, inputs_.options());
      for (int64_t part = begin; part < end; ++part) body(part, scratch);
    });
  }

  // Calls body(first row, rows of the head) for each tile of a part.
  template <typename Body>
  void in_tiles(int64_t part, const Body& body) const {
    for (int64_t t = part * tiles_ / parts_; t < (part + 1) * tiles_ / parts_; ++t) {
      body(t * kRows, loss_.head.narrow(0, t * kRows, std::min(kRows, loss_.head.size(0) - t * kRows)));
    }
  }

  void observe_tile(const at::Tensor& logits, Sums<A>& sums) const {
    const int64_t rows = logits.size(0), stride = logits.stride(0);
    const T* first = logits.const_data_ptr<T>();
    for (int64_t i = 0; i < logits.size(1); i += kWidth) {
      Vec<A> largest(-std::numeric_limits<A>::infinity());
      for (int64_t r = 0; r < rows; ++r) largest = at::vec::maximum(largest, load_lanes(first + r * stride + i));
      const Vec<A> m = shift(largest);
      Vec<A> total(0);
      for (int64_t r = 0; r < rows; ++r) total = total + exp_negative(load_lanes(first + r * stride + i) - m);
      add_sums(largest, total, &sums.largest[i], &sums.total[i]);
    }
  }

  static Vec<A> load_lanes(const T* from) { return load_wide(from, std::integral_constant<int64_t, kWidth>{}); }

  // Calls body(position, its target's row in the tile) for the targets in `rows` rows of the vocabulary from `first` on.
  template <typename Body>
  void for_targets(int64_t first, int64_t rows, const Body& body) const {
    for (int64_t i = 0; i < positions_; ++i) {
      const int64_t row = labels_[i] - first;
      if (0 <= row && row < rows) body(i, row);
    }
  }

  void keep_targets(const at::Tensor& logits, int64_t first) const {
    A* kept = loss_.statistics[2].template mutable_data_ptr<A>() + begin_;
    const T* from = logits.const_data_ptr<T>();
    for_targets(first, logits.size(0), [&](int64_t i, int64_t row) {
      kept[i] = static_cast<A>(from[row * logits.stride(0) + i]);
    });
  }

  static void merge(const Sums<A>& from, Sums<A>& to) {
    for (size_t i = 0; i < to.total.size(); i += kWidth) {
      add_sums(Vec<A>::loadu(&from.largest[i]), Vec<A>::loadu(&from.total[i]), &to.largest[i], &to.total[i]);
    }
  }

  // gradient (rows, n) = scale * (softmax - one-hot target), 0 at ignored positions.
  void differentiate_tile(const at::Tensor& logits, int64_t first, const at::Tensor& gradient) const {
    const int64_t rows = gradient.size(0), count = gradient.size(1), stride = logits.stride(0);
    const A scale = *loss_.scale.template const_data_ptr<A>();
    const T* from = logits.const_data_ptr<T>();
    T* to = gradient.template mutable_data_ptr<T>();
    for (int64_t i = 0; i < count; i += kWidth) {
      const Vec<A> kept = kept_lanes(i), largest = Vec<A>::loadu(&sums_[0].largest[i]);
      const Vec<A> factor = Vec<A>(scale) / Vec<A>::loadu(&sums_[0].total[i]);
      for (int64_t r = 0; r < rows; ++r) {
        const Vec<A> softmax = exp_negative(load_lanes(from + r * stride + i) - largest) * factor;
        store_narrow(Vec<A>::blendv(Vec<A>(0), softmax, kept), to + r * count + i,
                     std::integral_constant<int64_t, kWidth>{});
      }
    }
    for_targets(first, rows, [&](int64_t i, int64_t row) {
      const A power = std::exp(static_cast<A>(from[row * stride + i]) - sums_[0].largest[i]);
      to[row * count + i] = static_cast<T>(power * (scale / sums_[0].total[i]) - scale);
    });
  }

  // A mask of the positions from i on that are not ignored; the padding is.
  Vec<A> kept_lanes(int64_t i) const {
    A kept[kWidth];
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      kept[lane] = i + lane < positions_ && labels_[i + lane] != kIgnoredTarget;
    }
    return Vec<A>::loadu(kept) != Vec<A>(0);
  }

  const HeadLoss& loss_;
  at::Tensor logits_, inputs_, inputs_t_;  // (V, n), (n, C), (C, n); n = padded(positions)
  const int64_t* labels_;
  int64_t begin_, positions_, tiles_, parts_;
  std::vector<Sums<A>> sums_;  // of each part; in the first, of all
};

// The logits of the first chunk find room in the gradient of the weight, which is not written before they have become
// their gradient, tile by tile: so that chunk may have more positions than the others.
template <typename T>
void walk(const HeadLoss& loss, int64_t positions) {
  const int64_t count = loss.inputs.size(0);
  const bool gradients = loss.grad_weight.numel() > 0;
  at::Tensor room;
  if (gradients) {
    room = loss.grad_weight.view(loss.inputs.scalar_type());
    prefer_huge_pages(room);
  }
  positions = gradients ? std::min(positions, kMostPositions) : kMostPositions;  // without, logits are never kept
  const int64_t fitting = gradients ? room.size(1) / kLanes * kLanes : kMostPositions;
  // In float16 sums over more positions may overflow.
  const int64_t most = std::is_same_v<T, at::Half> ? positions : std::clamp(fitting, positions, kMostPositions);
  const int64_t others = (std::max<int64_t>(0, count - most) + positions - 1) / positions;
  const int64_t later = std::min(positions, (count + others) / (others + 1)), first = count - others * later;
  at::Tensor store;
  for (int64_t begin = 0, size = first; begin < count; begin += size, size = later) {
    const bool fits = begin == 0 && size <= fitting;
    if (gradients && !fits && !store.defined()) {
      store = empty_output({loss.head.size(0), padded(std::max(size, later))}, loss.inputs.options());
    }
    Chunk<T> chunk(loss, begin, size, fits ? room : store);
    chunk.observe();
    if (gradients) chunk.differentiate();
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> op(const at::Tensor& hidden, const at::Tensor& weight,
                                                  const at::Tensor& targets, at::ScalarType dtype, int64_t rows,
                                                  bool gradients) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "linear_cross_entropy", [&] {
    return linear_cross_entropy(hidden, weight, targets, dtype, rows, gradients,
                                [&](const HeadLoss& loss) { walk<scalar_t>(loss, rows); });
  });
}

}  // namespace

void register_cross_entropy(torch::Library& m) { m.impl("linear_cross_entropy", op); }

}  // namespace slm::CPU_CAPABILITY
