// Cross-entropy on the CPU: the passes over tiles of logits between the products.
//
// A tile of 512 columns and 128 rows is 256 KB: what the product has written is in the second-level cache when its
// statistics are taken, and what becomes the gradient is there for the two products that follow. The exponential is taken
// twice, which is less than to write it and read it again. The derivation is in docs/kernels/cross_entropy.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "../linear_cross_entropy.h"
#include "activation.h"
#include "rows.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {
namespace {

constexpr int64_t kTileWidth = 512;

// The largest number of a row; NaN if there is one.
template <typename T, typename A = compute_t<T>>
A row_maximum(const T* x, int64_t size) {
  const Vec<A> lowest(-std::numeric_limits<A>::infinity());
  Vec<A> parts[4] = {lowest, lowest, lowest, lowest};
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    Vec<A> values = load_wide(x + i, count);
    if constexpr (std::is_same_v<decltype(count), int64_t>) values = Vec<A>::set(lowest, values, count);
    parts[part] = at::vec::maximum(parts[part], values);
  });
  return max_of(at::vec::maximum(at::vec::maximum(parts[0], parts[1]), at::vec::maximum(parts[2], parts[3])));
}

// The sum of exp(x - maximum) over a row.
template <typename T, typename A = compute_t<T>>
A row_sum(const T* x, A maximum, int64_t size) {
  Sum<A> sum;
  for_each_part<A>(size, [&](int64_t i, auto count, int part) {
    const Vec<A> power = exp_negative(load_wide(x + i, count) - Vec<A>(maximum));
    sum.parts[part] = sum.parts[part] + first_lanes(power, count);
  });
  return sum.total();
}

// One row of a tile, and where its statistics are.
template <typename T>
struct TileRow {
  using A = compute_t<T>;
  T* logits;
  int64_t size, target;  // target: within the tile, where it is one of 0..size-1
  A &largest, &total, &true_logit;

  bool has_target() const { return 0 <= target && target < size; }

  void observe() const {
    if (has_target()) true_logit = static_cast<A>(logits[target]);
    const A found = row_maximum(logits, size);
    const A maximum = found > largest || found != found ? found : largest;
    if (maximum == -std::numeric_limits<A>::infinity()) return;  // so far nothing but probabilities of 0
    total = total * std::exp(largest - maximum) + row_sum(logits, maximum, size);
    largest = maximum;
  }

  void differentiate(A scale) const {
    const Vec<A> maximum(largest), factor(scale / total);
    for_each_vec<A>(size, [&](int64_t i, auto count) {
      store_narrow(exp_negative(load_wide(logits + i, count) - maximum) * factor, logits + i, count);
    });
    if (has_target()) logits[target] = static_cast<T>(std::exp(true_logit - largest) * (scale / total) - scale);
  }
};

// Calls body(TileRow) for every row whose target is not ignored, and ignored(logits) for the others, in parallel.
template <typename T, typename Body, typename Ignored>
void for_tile_rows(const LogitTile& tile, const RowStatistics& statistics, const Body& body, const Ignored& ignored) {
  using A = compute_t<T>;
  const int64_t size = tile.logits.size(1);
  T* logits = tile.logits.mutable_data_ptr<T>();
  A *largest = statistics.largest.mutable_data_ptr<A>(), *total = statistics.total.mutable_data_ptr<A>();
  A* true_logit = statistics.target.mutable_data_ptr<A>();
  const int64_t* labels = tile.targets.const_data_ptr<int64_t>();
  at::parallel_for(0, tile.logits.size(0), kGrainElements / size + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (labels[r] == kIgnoredTarget) {
        ignored(logits + r * size, size);
      } else {
        body(TileRow<T>{logits + r * size, size, labels[r] - tile.first, largest[r], total[r], true_logit[r]});
      }
    }
  });
}

template <typename T>
struct Passes {
  using A = compute_t<T>;

  static void observe(const LogitTile& tile, const RowStatistics& statistics) {
    if (tile.first == 0) {
      statistics.largest.fill_(-std::numeric_limits<A>::infinity());
      statistics.total.zero_();
      statistics.target.zero_();
    }
    for_tile_rows<T>(tile, statistics, [](const TileRow<T>& row) { row.observe(); }, [](T*, int64_t) {});
  }

  static void differentiate(const LogitTile& tile, const RowStatistics& statistics, const at::Tensor& scale) {
    const A factor = *scale.const_data_ptr<A>();
    for_tile_rows<T>(
        tile, statistics, [&](const TileRow<T>& row) { row.differentiate(factor); },
        [](T* logits, int64_t size) { std::fill_n(logits, size, T(0)); });
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> op(const at::Tensor& hidden, const at::Tensor& weight,
                                                  const at::Tensor& targets, at::ScalarType dtype, int64_t rows,
                                                  bool gradients) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "linear_cross_entropy", [&] {
    return linear_cross_entropy(hidden, weight, targets, dtype, rows, gradients, kTileWidth, Passes<scalar_t>());
  });
}

}  // namespace

void register_cross_entropy(torch::Library& m) { m.impl("linear_cross_entropy", op); }

}  // namespace slm::CPU_CAPABILITY
