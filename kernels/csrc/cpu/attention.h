// What forward and backward of attention on the CPU share: sizes, tiles, packing, which keys a query sees, dropout.
//
// The T x T matrix of scores is cut into tiles of 64 x 64. A tile's operands are packed: converted to the dtype that we
// compute in, rows padded with zeros to whole vectors, transposed where a product needs that.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <limits>
#include <vector>

#include "../ops.h"
#include "../philox.h"
#include "matmul.h"
#include "rotary.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {

constexpr int64_t kTile = 64;  // queries and keys in a tile

inline int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// The intersection of keys [span) with the tile that begins at `first`, counted from there.
inline Span within_tile(Span span, int64_t first) {
  return {std::max<int64_t>(0, span.begin - first), std::min(kTile, span.end - first)};
}

// Tokens that see each other: a sequence of the batch; or a document, of which several follow each other in the only one.
struct Sequence {
  int64_t index;  // which dropout counts as the batch
  int64_t entry, start, length;  // the sequence of the batch, and the part of it
};

// Those of a call, the longest first: so the last tasks that a thread finds are short.
inline std::vector<Sequence> sequences(const at::Tensor& q, const std::optional<at::Tensor>& ends) {
  std::vector<Sequence> all;
  if (!ends) {
    for (int64_t b = 0; b < q.size(0); ++b) all.push_back({b, b, 0, q.size(1)});
    return all;
  }
  const int64_t* at = ends->const_data_ptr<int64_t>();
  for (int64_t i = 0; i + 1 < ends->numel(); ++i) all.push_back({i, 0, at[i], at[i + 1] - at[i]});
  std::stable_sort(all.begin(), all.end(), [](const Sequence& a, const Sequence& b) { return a.length > b.length; });
  return all;
}

// Calls run(state, i) for each task i, in parallel, where make() returns what a thread keeps between its tasks. A thread
// takes the next task when it has done one: some are longer, and another program may hold up a thread.
template <typename Make, typename Run>
void run_tasks(int64_t tasks, int64_t threads, const Make& make, const Run& run) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(tasks, threads), 1, [&](int64_t, int64_t) {
    auto state = make();
    for (int64_t i = next++; i < tasks; i = next++) run(state, i);
  });
}

// Sizes of a call and its options, as numbers.
struct AttentionShape {
  AttentionShape(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options)
      : tokens(q.size(1)), length(tokens), heads(q.size(2)), kv_heads(k.size(2)), width(q.size(3)),
        window(std::min(options.window.value_or(length), length)), scale(options.scale),
        threshold(keep_threshold(options.dropout_p)), dropout(options.dropout_p > 0),
        seed(dropout ? static_cast<uint64_t>(*options.seed->const_data_ptr<int64_t>()) : 0) {}

  // Threads for all that: a few small heads are not worth waking another.
  int64_t threads(const std::vector<Sequence>& all) const {
    constexpr int64_t kLeastWork = 1 << 18;  // products of single numbers
    int64_t work = 0;
    for (const Sequence& each : all) work += each.length * std::min(window, each.length) * heads * width;
    return std::clamp<int64_t>(work / kLeastWork, 1, at::get_num_threads());
  }

  int64_t tiles() const { return (length + kTile - 1) / kTile; }
  // Keys [begin, end) that any of the queries [begin, end) sees.
  Span seen(Span rows) const {
    return {std::max<int64_t>(0, rows.begin - window + 1), std::min(rows.end, length)};
  }
  // Whether all of the queries [begin, end) see all keys of the tile at `key`.
  bool whole(Span rows, int64_t key) const {
    return rows.begin + 1 >= key + kTile && rows.end - window <= key;
  }
  // Keys of the tile at `key` that one query sees, counted from there.
  Span seen_in_tile(int64_t row, int64_t key) const { return within_tile(seen({row, row + 1}), key); }

  int64_t tokens, length;  // T; that of the sequence at hand
  int64_t heads, kv_heads, width, window;
  double scale;
  uint32_t threshold;
  bool dropout;
  uint64_t seed;
};

// Where the statistics of a head of a sequence begin in a (B, H, T) tensor.
inline int64_t statistics_offset(const AttentionShape& shape, const Sequence& at, int64_t head) {
  return (at.entry * shape.heads + head) * shape.tokens + at.start;
}

// The angles of a sequence's tokens; none where there are no cosines and sines of (1 or B, T, D / 2).
template <typename A>
Angles<A> angles(const AttentionOptions& options, const Sequence& at) {
  if (!options.cos) return {};
  const Angles<A> all{options.cos->const_data_ptr<A>(), options.sin->const_data_ptr<A>(), options.cos->size(2)};
  return all.from((options.cos->size(0) == 1 ? 0 : at.entry * options.cos->size(1)) + at.start);
}

// One head of a sequence in a (B, T, H, D) tensor.
template <typename T>
struct Head {
  Head(const at::Tensor& x, const Sequence& at, int64_t head)
      : data(static_cast<T*>(const_cast<void*>(x.const_data_ptr())) + at.entry * x.stride(0) + at.start * x.stride(1) +
             head * x.stride(2)),
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

// Packs rows [begin, begin + kTile) of a head, turned by the angles and times `scale`; zeros beyond the width and beyond
// the last row.
template <typename T, typename A = compute_t<T>>
void pack_rows(Head<const T> head, int64_t begin, int64_t length, int64_t width, int64_t padded, A scale,
               const Angles<A>& by, A* to) {
  const int64_t rows = std::min(kTile, length - begin);
  for (int64_t r = 0; r < rows; ++r, to += padded) {
    turn_or_scale(widen(head.row(begin + r), to, width), by, begin + r, scale, width, to);
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
