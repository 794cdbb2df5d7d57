// causal_attention on the CPU, forward: tiles with the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// A task takes up to 256 queries of one head. For each tile of keys that they see, it packs keys (transposed) and values
// once, and four queries at a time compute their scores, update their running maximum and sum, and add their part of the
// output. What the diagonal hides is left out in steps of four rows and one vector. docs/kernels/attention.md derives it.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <tuple>

#include "attention.h"
#include "memory.h"

namespace slm::CPU_CAPABILITY {
namespace {

constexpr int64_t kChunk = 256;  // queries of a task

// A row of scores, as it becomes softmax weights, and the running state of its query.
template <typename A>
struct SoftmaxRow {
  A* scores;   // (kTile)
  A* out;      // (padded) sum of weight * value so far, relative to `maximum`
  A& maximum;  // of the scores so far, as far as they are numbers
  A& sum;      // of exp(score - maximum) so far; NaN as soon as a score is NaN
};

// Replaces the scores in `vecs` by exp(score - maximum) and brings the row's state up to date; only the columns in
// `seen` count.
template <typename A>
inline void online_softmax(SoftmaxRow<A> row, Span seen, Span vecs, int64_t padded) {
  constexpr int64_t width = Vec<A>::size();
  const A infinity = std::numeric_limits<A>::infinity();
  fill_outside(row.scores, seen, {vecs.begin * width, vecs.end * width}, -infinity);
  Vec<A> largest(row.maximum);
  for (int64_t v = vecs.begin; v < vecs.end; ++v) {
    largest = at::vec::clamp_min(Vec<A>::loadu(row.scores + v * width), largest);
  }
  const A maximum = max_of(largest);
  const A shift = maximum == -infinity ? A(0) : maximum;  // where no score was larger, -inf - -inf must not be formed
  Vec<A> sum(0);
  for (int64_t v = vecs.begin; v < vecs.end; ++v) {
    Vec<A> weight = exp_negative(Vec<A>::loadu(row.scores + v * width) - Vec<A>(shift));
    sum = sum + weight;
    weight.store(row.scores + v * width);
  }
  if (maximum != row.maximum) {
    const A rescale = std::exp(row.maximum - maximum);
    row.sum *= rescale;
    row.maximum = maximum;
    for (int64_t i = 0; i < padded; i += width) (Vec<A>::loadu(row.out + i) * Vec<A>(rescale)).store(row.out + i);
  }
  row.sum += sum_of(sum);
}

// The working memory of a thread, and the steps of one task.
template <typename T>
class ForwardTask {
  using A = compute_t<T>;

 public:
  ForwardTask(const AttentionShape& shape)
      : shape_(shape), padded_(round_up(shape.width, Vec<A>::size())), queries_(kChunk * padded_), out_(kChunk * padded_),
        rows_(kTile * padded_), keys_(padded_ * kTile), values_(kTile * padded_), scores_(kTile * kTile),
        factors_(16 * kTile), maximum_(kChunk), sum_(kChunk) {}

  // Queries [begin, end) of one head.
  void run(Head<const T> q, Head<const T> k, Head<const T> v, Head<T> out, A* lse, int64_t batch, int64_t head, Span rows) {
    batch_ = batch, head_ = head;
    for (int64_t r = rows.begin; r < rows.end; r += kTile) {
      pack_rows<T>(q, r, shape_.length, shape_.width, padded_, static_cast<A>(shape_.scale), query(r - rows.begin));
    }
    std::fill(out_.begin(), out_.end(), A(0));
    std::fill(sum_.begin(), sum_.end(), A(0));
    std::fill(maximum_.begin(), maximum_.end(), -std::numeric_limits<A>::infinity());
    const Span keys = shape_.seen(rows);
    for (int64_t key = keys.begin / kTile * kTile; key < keys.end; key += kTile) {
      pack_rows<T>(k, key, shape_.length, shape_.width, padded_, A(1), rows_.data());
      transpose(rows_.data(), padded_, keys_.data());
      pack_rows<T>(v, key, shape_.length, shape_.width, padded_, A(1), values_.data());
      add_tile(rows, key);
    }
    finish(out, lse, rows);
  }

 private:
  A* query(int64_t r) { return queries_.data() + r * padded_; }
  A* out(int64_t r) { return out_.data() + r * padded_; }
  A* scores(int64_t r) { return scores_.data() + r * kTile; }

  // The queries `rows` against the tile of keys at `key`, a tile of them at a time: each of the three steps over a tile
  // of queries has the operand that it reads again and again in the first-level cache.
  void add_tile(Span rows, int64_t key) {
    const int64_t last = std::min(rows.end, key + kTile + shape_.window - 1);
    for (int64_t r = std::max(rows.begin, key); r < last; r += kTile) {
      const int64_t end = std::min(last, r + kTile);
      for (int64_t g = r; g < end; g += kGroupRows) form_scores(g, g - rows.begin, key, scores(g - r));
      for (int64_t g = r; g < end; g += kGroupRows) form_weights(g, g - rows.begin, key, scores(g - r));
      for (int64_t g = r; g < end; g += kGroupRows) add_values(g, g - rows.begin, key, scores(g - r));
    }
  }

  // The three steps for four queries, from row r of the sequence and `local` of the task.
  void form_scores(int64_t r, int64_t local, int64_t key, A* scores) {
    product<false, A>({query(local), padded_, 1}, {keys_.data(), kTile}, {scores, kTile}, columns(r, key),
                      Depths(Span{0, shape_.width}));
  }

  void form_weights(int64_t r, int64_t local, int64_t key, A* scores) {
    if (shape_.dropout && (r % 16 == 0)) keep_factors(shape_, batch_, head_, r, key, factors_.data());
    for (int64_t i = 0; i < kGroupRows; ++i, scores += kTile) {
      online_softmax<A>({scores, out(local + i), maximum_[local + i], sum_[local + i]},
                        shape_.seen_in_tile(r + i, key), columns(r, key), padded_);
      if (shape_.dropout) drop(scores, factors_.data() + (r + i) % 16 * kTile, columns(r, key));
    }
  }

  void add_values(int64_t r, int64_t local, int64_t key, const A* weights) {
    product<true, A>({weights, kTile, 1}, {values_.data(), padded_}, {out(local), padded_},
                     {0, padded_ / Vec<A>::size()}, Depths([&](int64_t i) { return shape_.seen_in_tile(r + i, key); }));
  }

  // The vectors of columns of the tile at `key` that any of four queries from row r sees.
  Span columns(int64_t r, int64_t key) const {
    return covering_vecs<A>(within_tile(shape_.seen({r, r + kGroupRows}), key));
  }

  static void drop(A* weights, const A* factors, Span vecs) {
    for (int64_t i = vecs.begin * Vec<A>::size(); i < vecs.end * Vec<A>::size(); ++i) weights[i] *= factors[i];
  }

  // Divides by the sums and writes the rows and their log-sum-exp.
  void finish(Head<T> to, A* lse, Span rows) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t local = r - rows.begin;
      A* target = destination(to.row(r), out(local));
      const A inverse = 1 / sum_[local];
      for_each_vec<A>(shape_.width, [&](int64_t i, auto count) {
        store(load(out(local) + i, count) * Vec<A>(inverse), target + i, count);
      });
      narrow(target, to.row(r), shape_.width);
      lse[r] = maximum_[local] + std::log(sum_[local]);
    }
  }

  const AttentionShape& shape_;
  const int64_t padded_;
  int64_t batch_, head_;
  std::vector<A> queries_, out_, rows_, keys_, values_, scores_, factors_, maximum_, sum_;
};

// The chunk that comes i-th: first, last, second, last but one, …, so that equal shares of chunks are equal work.
int64_t interleaved(int64_t i, int64_t chunks) { return i % 2 == 0 ? i / 2 : chunks - 1 - i / 2; }

template <typename T>
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const AttentionShape& shape) {
  at::Tensor out = empty_output(q.sizes(), q.options());
  at::Tensor lse = at::empty({shape.batch, shape.heads, shape.length}, q.options().dtype(statistics_type(q)));
  auto* lse_data = lse.mutable_data_ptr<compute_t<T>>();
  const int64_t chunks = (shape.length + kChunk - 1) / kChunk;
  const int64_t tasks = shape.batch * shape.heads * chunks;
  at::parallel_for(0, tasks, shape.grain(tasks), [&](int64_t first, int64_t last) {
    ForwardTask<T> task(shape);
    for (int64_t i = first; i < last; ++i) {
      const int64_t chunk = interleaved(i % chunks, chunks) * kChunk, head = i / chunks % shape.heads;
      const int64_t batch = i / chunks / shape.heads, kv_head = head / (shape.heads / shape.kv_heads);
      task.run({q, batch, head}, {k, batch, kv_head}, {v, batch, kv_head}, {out, batch, head},
               lse_data + (batch * shape.heads + head) * shape.length, batch, head,
               {chunk, std::min(shape.length, chunk + kChunk)});
    }
  });
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor> causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                    double scale, std::optional<int64_t> window, double dropout_p,
                                                    const std::optional<at::Tensor>& seed, bool /*deterministic*/) {
  const AttentionOptions options{scale, window, dropout_p, seed};
  check_attention(q, k, v, options);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "causal_attention", [&] {
    return forward<scalar_t>(q, k, v, AttentionShape(q, k, options));
  });
}

std::tuple<at::Tensor, at::Tensor> causal_attention_qkvpacked(const at::Tensor& qkv, double scale,
                                                              std::optional<int64_t> window, double dropout_p,
                                                              const std::optional<at::Tensor>& seed,
                                                              bool deterministic) {
  check_packed(qkv);
  return causal_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), scale, window, dropout_p, seed,
                          deterministic);
}

}  // namespace

void register_attention_forward(torch::Library& m) {
  m.impl("causal_attention", causal_attention);
  m.impl("causal_attention_qkvpacked", causal_attention_qkvpacked);
}

}  // namespace slm::CPU_CAPABILITY
