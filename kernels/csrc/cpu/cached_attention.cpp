// Attention of new tokens to a KV cache: rotates, stores keys and values, and attends, in one call.
//
// A query stands alone, so there is nothing to share in tiles: its scores are dot products with the keys that it sees, its
// output their average of the values, in two sweeps over what the cache holds. That is one row of the cache, or pages that
// a table lists in order; the sums have the same order in both, so the result is the same, bit for bit. With many rows the
// time is that of reading the cache from memory: each sweep asks for what the next one reads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>
#include <vector>

#include "../ops.h"
#include "decode.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {
namespace {

constexpr int64_t kWidth = Vec<float>::size();
constexpr int64_t kGrain = 1 << 15;  // products of single numbers below which a thread is not worth waking

float dot(const float* a, const float* b, int64_t size) {
  Vec<float> sum(0);
  for_each_vec<float>(size, [&](int64_t i, auto count) { sum = at::vec::fmadd(load(a + i, count), load(b + i, count), sum); });
  return sum_of(sum);
}

// Asks for a row of numbers that is read soon, but not next: it goes to the second-level cache.
void prefetch_row(const float* row, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(row + i, 0, 2);
}

// Replaces the scores by their softmax.
void softmax(float* scores, int64_t size) {
  Vec<float> most(-std::numeric_limits<float>::infinity());
  for_each_vec<float>(size, [&](int64_t i, auto count) {
    most = at::vec::maximum(most, Vec<float>::set(most, load(scores + i, count), count));
  });
  const Vec<float> largest(max_of(most));
  Vec<float> total(0);
  for_each_vec<float>(size, [&](int64_t i, auto count) {
    const Vec<float> weight = first_lanes(exp_negative(load(scores + i, count) - largest), count);
    total = total + weight;
    store(weight, scores + i, count);
  });
  const Vec<float> inverse(1 / sum_of(total));
  for_each_vec<float>(size, [&](int64_t i, auto count) { store(load(scores + i, count) * inverse, scores + i, count); });
}

class CachedAttention {
 public:
  CachedAttention(const at::Tensor& qkv, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& positions,
                  const std::optional<at::Tensor>& rows, std::optional<int64_t> window,
                  const std::optional<at::Tensor>& pages)
      : batch(qkv.size(0)), length(qkv.size(1)), kv_heads(keys.size(1)), heads(qkv.size(2) - 2 * kv_heads),
        width(qkv.size(3)), page(keys.size(2)), row_pages(pages ? pages->size(1) : 1), room(page * row_pages),
        window_(std::min(window.value_or(room), room)),
        qkv_(qkv.const_data_ptr<float>()), keys_(keys.mutable_data_ptr<float>()),
        values_(values.mutable_data_ptr<float>()), positions_(positions.const_data_ptr<int64_t>()),
        position_stride_(positions.size(0) == 1 ? 0 : length), rows_(rows ? rows->const_data_ptr<int64_t>() : nullptr),
        pages_(pages ? pages->const_data_ptr<int64_t>() : nullptr) {}

  // Turns q and k by angles (1 or B, T, D / 2) of the tokens.
  void turn_tokens(const at::Tensor& angles) {
    row_tokens_ = angles.size(0) == 1 ? 0 : length;
    const float* from = angles.const_data_ptr<float>();
    for (int64_t i = 0; i < angles.numel(); ++i) {
      cos_.push_back(std::cos(from[i]));
      sin_.push_back(std::sin(from[i]));
    }
    angles_ = {cos_.data(), sin_.data(), width / 2};
  }

  // Turns them by the angles of their positions.
  void turn_by_position(const Angles<float>& angles) {
    angles_ = angles;
    by_position_ = true;
  }

  // The attention of all rows: (B, T, H, D).
  at::Tensor run() const {
    at::Tensor out = at::empty({batch, length, heads, width}, at::kFloat);
    float* to = out.mutable_data_ptr<float>();
    const int64_t work = 2 * length * room * width * heads / kv_heads + 1;
    at::parallel_for(0, batch * kv_heads, kGrain / work + 1, [&](int64_t begin, int64_t end) {
      std::vector<float> query(width), scores(room);
      for (int64_t i = begin; i < end; ++i) run_row(i, query.data(), scores.data(), to);
    });
    return out;
  }

 private:
  // All tokens of one row of the batch, in order, and the queries that share one head of keys and values: number `row`.
  void run_row(int64_t row, float* query, float* scores, float* out) const {
    const int64_t b = row / kv_heads, kv_head = row % kv_heads;
    for (int64_t t = 0; t < length; ++t) {
      const int64_t position = positions_[b * position_stride_ + t], token = b * length + t;
      const int64_t turned = by_position_ ? position : b * row_tokens_ + t;
      const float *from = qkv_ + token * (heads + 2 * kv_heads) * width, *k = from + (heads + kv_head) * width;
      const int64_t place = place_of(row, position / page, position % page);
      turn_or_scale(k, angles_, turned, 1.0f, width, keys_ + place);
      std::copy_n(k + kv_heads * width, width, values_ + place);
      for (int64_t h = kv_head * heads / kv_heads; h < (kv_head + 1) * heads / kv_heads; ++h) {
        turn_or_scale(from + h * width, angles_, turned, 1 / std::sqrt(static_cast<float>(width)), width, query);
        attend(query, row, position, scores, out + (token * heads + h) * width);
      }
    }
  }

  // Where place `at` of a page of a row is in the cache.
  int64_t place_of(int64_t row, int64_t number, int64_t at) const {
    const int64_t b = row / kv_heads, kv_head = row % kv_heads;
    const int64_t held = pages_ ? pages_[b * row_pages + number] : rows_ ? rows_[b] : b;
    return ((held * kv_heads + kv_head) * page + at) * width;
  }

  // Calls each(number, at, j, run) for every run of keys first + j … that are side by side, from place `at` of a page on.
  template <typename Each>
  void for_each_run(int64_t first, int64_t count, Each each) const {
    int64_t number = first / page, at = first % page;  // divided once: a division takes as long as many products
    for (int64_t j = 0, run; j < count; j += run, ++number, at = 0) {
      run = std::min(count - j, page - at);
      each(number, at, j, run);
    }
  }

  // One query at `position` against the keys and values that it sees.
  void attend(const float* query, int64_t row, int64_t position, float* scores, float* out) const {
    const int64_t first = std::max<int64_t>(0, position - window_ + 1), count = position + 1 - first;
    for_each_run(first, count, [&](int64_t number, int64_t at, int64_t from, int64_t run) {
      const int64_t place = place_of(row, number, at);
      for (int64_t j = 0; j < run; ++j) {
        prefetch_row(values_ + place + j * width, width);
        scores[from + j] = dot(query, keys_ + place + j * width, width);
      }
    });
    softmax(scores, count);
    constexpr std::integral_constant<int64_t, kWidth> all{};
    int64_t i = 0;
    for (; i + 4 * kWidth <= width; i += 4 * kWidth) average<4>(i, all, row, first, count, scores, out);
    for (; i + 2 * kWidth <= width; i += 2 * kWidth) average<2>(i, all, row, first, count, scores, out);
    for (; i + kWidth <= width; i += kWidth) average<1>(i, all, row, first, count, scores, out);
    if (i < width) average<1>(i, width - i, row, first, count, scores, out);
  }

  // kVecs vectors of the average of the values, from number i on, by the scores of keys first + 0 … count - 1. The first
  // sweep asks for the keys of the next row, which is next to be computed.
  template <int kVecs, typename Lanes>
  void average(int64_t i, Lanes lanes, int64_t row, int64_t first, int64_t count, const float* scores, float* out) const {
    const int64_t next = std::min(row + 1, batch * kv_heads - 1), asked_for = i == 0 ? width : 0;
    Vec<float> sums[kVecs];
    for (auto& sum : sums) sum = Vec<float>(0);
    for_each_run(first, count, [&](int64_t number, int64_t at, int64_t from, int64_t run) {
      const float *values = values_ + place_of(row, number, at) + i, *keys = keys_ + place_of(next, number, at);
      for (int64_t j = 0; j < run; ++j) {
        prefetch_row(keys + j * width, asked_for);
        const Vec<float> score(scores[from + j]);
        for (int v = 0; v < kVecs; ++v) {
          sums[v] = at::vec::fmadd(score, load(values + j * width + v * kWidth, lanes), sums[v]);
        }
      }
    });
    for (int v = 0; v < kVecs; ++v) store(sums[v], out + i + v * kWidth, lanes);
  }

  const int64_t batch, length, kv_heads, heads, width;
  const int64_t page, row_pages, room;  // positions of a page, pages of a row, positions of a row; without pages a row is one
  const int64_t window_;
  const float* qkv_;
  float *keys_, *values_;
  const int64_t* positions_;
  const int64_t position_stride_;
  const int64_t *rows_, *pages_;  // of each row of the batch: its row in the cache, or its pages
  int64_t row_tokens_ = 0;  // between the angles of two rows
  bool by_position_ = false;
  std::vector<float> cos_, sin_;
  Angles<float> angles_;  // in these
};

at::Tensor cached_attention(const at::Tensor& qkv, at::Tensor& keys, at::Tensor& values, const at::Tensor& positions,
                            const std::optional<at::Tensor>& rows, const std::optional<at::Tensor>& angles,
                            std::optional<int64_t> window, const std::optional<at::Tensor>& pages) {
  check_cached_attention(qkv, keys, values, positions, rows, angles, window, pages);
  CachedAttention attention(qkv, keys, values, positions, rows, window, pages);
  if (angles) attention.turn_tokens(*angles);
  return attention.run();
}

}  // namespace

at::Tensor paged_attention(const at::Tensor& qkv, const at::Tensor& keys, const at::Tensor& values,
                           const at::Tensor& positions, const at::Tensor& pages, const Angles<float>& angles,
                           std::optional<int64_t> window) {
  check_cached_attention(qkv, keys, values, positions, std::nullopt, std::nullopt, window, pages);
  CachedAttention attention(qkv, keys, values, positions, std::nullopt, window, pages);
  attention.turn_by_position(angles);
  return attention.run();
}

void register_cached_attention(torch::Library& m) { m.impl("cached_attention", cached_attention); }

}  // namespace slm::CPU_CAPABILITY
