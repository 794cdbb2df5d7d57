// What forward and backward of attention on the CPU share: sizes, tiles, packing, which keys a query sees, dropout.
//
// The T x T matrix of scores is cut into tiles of 64 x 64. A tile's operands are packed: converted to the dtype that we
// compute in, rows padded with zeros to whole vectors, transposed where a product needs that.
#pragma once

#include <limits>
#include <vector>

#include "../ops.h"
#include "../philox.h"
#include "matmul.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {

constexpr int64_t kTile = 64;  // queries and keys in a tile

inline int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// The intersection of keys [span) with the tile that begins at `first`, counted from there.
inline Span within_tile(Span span, int64_t first) {
  return {std::max<int64_t>(0, span.begin - first), std::min(kTile, span.end - first)};
}

// Sizes of a call and its options, as numbers.
struct AttentionShape {
  AttentionShape(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options)
      : batch(q.size(0)), length(q.size(1)), heads(q.size(2)), kv_heads(k.size(2)), width(q.size(3)),
        window(std::min(options.window.value_or(length), length)), scale(options.scale),
        threshold(keep_threshold(options.dropout_p)), dropout(options.dropout_p > 0),
        seed(dropout ? static_cast<uint64_t>(*options.seed->const_data_ptr<int64_t>()) : 0) {}

  // Tasks to give a thread at least, of `tasks` in all: a few small heads are not worth waking another.
  int64_t grain(int64_t tasks) const {
    constexpr int64_t kLeastWork = 1 << 18;  // products of single numbers
    return kLeastWork * tasks / std::max<int64_t>(1, batch * heads * length * window * width) + 1;
  }

  int64_t tiles() const { return (length + kTile - 1) / kTile; }
  // Keys [begin, end) that any of the queries [begin, end) sees.
  Span seen(Span rows) const {
    return {std::max<int64_t>(0, rows.begin - window + 1), std::min(rows.end, length)};
  }
  // Keys of the tile at `key` that one query sees, counted from there.
  Span seen_in_tile(int64_t row, int64_t key) const { return within_tile(seen({row, row + 1}), key); }

  int64_t batch, length, heads, kv_heads, width, window;
  double scale;
  uint32_t threshold;
  bool dropout;
  uint64_t seed;
};

// One head of a (B, T, H, D) tensor.
template <typename T>
struct Head {
  Head(const at::Tensor& x, int64_t batch, int64_t head)
      : data(static_cast<T*>(const_cast<void*>(x.const_data_ptr())) + batch * x.stride(0) + head * x.stride(2)),
        stride(x.stride(1)) {}
  T* row(int64_t t) const { return data + t * stride; }
  T* data;
  int64_t stride;
};

// The whole vectors that hold the columns [span).
template <typename A>
inline Span covering_vecs(Span span) {
  return {span.begin / Vec<A>::size(), (span.end + Vec<A>::size() - 1) / Vec<A>::size()};
}

// Sets the columns of `all` that are not in `kept`.
template <typename A>
inline void fill_outside(A* row, Span kept, Span all, A value) {
  std::fill(row + all.begin, row + std::clamp(kept.begin, all.begin, all.end), value);
  std::fill(row + std::clamp(kept.end, all.begin, all.end), row + all.end, value);
}

// Packs rows [begin, begin + kTile) of a head times `scale`; zeros beyond the width and beyond the last row.
template <typename T, typename A = compute_t<T>>
void pack_rows(Head<const T> head, int64_t begin, int64_t length, int64_t width, int64_t padded, A scale, A* to) {
  const int64_t rows = std::min(kTile, length - begin);
  for (int64_t r = 0; r < rows; ++r, to += padded) {
    const A* from = widen(head.row(begin + r), to, width);
    for_each_vec<A>(width, [&](int64_t i, auto count) { store(load(from + i, count) * Vec<A>(scale), to + i, count); });
    std::fill(to + width, to + padded, A(0));
  }
  std::fill(to, to + (kTile - rows) * padded, A(0));
}

// Packed rows (kTile x padded) as columns: (padded x kTile).
template <typename A>
void transpose(const A* rows, int64_t padded, A* to) {
  at::vec::transpose_mxn<A>(rows, padded, to, kTile, static_cast<int>(kTile), static_cast<int>(padded));
}

// The factors of the weights of 16 rows and a tile of columns: 0 where dropped, 1 / keep where kept.
template <typename A>
void keep_factors(const AttentionShape& shape, int64_t batch, int64_t head, int64_t row, int64_t column, A* to) {
  const A kept = static_cast<A>(65536.0 / shape.threshold);
  for (int64_t r = 0; r < 8; ++r) {
    for (int64_t c = 0; c < kTile; c += c % 8 == 7 ? 25 : 1) {
      const PhiloxWords words = philox(dropout_counter(batch, head, row + r, column + c), shape.seed);
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t down = r + i / 4 * 8, right = c + i % 4 * 8;
        to[down * kTile + right] = dropout_bits(words, down, right) < shape.threshold ? kept : A(0);
      }
    }
  }
}

}  // namespace slm::CPU_CAPABILITY
