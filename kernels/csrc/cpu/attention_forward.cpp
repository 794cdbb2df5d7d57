// causal_attention on the CPU, forward: tiles with the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//
// A task takes up to 1024 queries of one head of a sequence, or of a document in it. For each tile of keys that they see,
// it packs keys (transposed) and values once; rotary positions turn queries and keys on the way. A tile of queries then
// computes its scores, turns them into weights and brings its running maxima and sums up to date, and adds its part of the
// output; the products take four queries at a time. What the diagonal hides is left out in steps of four rows and one
// vector. docs/kernels/attention.md derives it.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <tuple>

#include "attention.h"
#include "memory.h"

namespace slm::CPU_CAPABILITY {
namespace {

// Queries of a task: keys are packed once for all of them, so many are better, as long as each thread finds tasks.
constexpr int64_t kMostQueries = 1024, kFewQueries = 256;

// The vectors of a row of a tile: as constants, for which loops over them are unrolled.
template <typename A>
struct AllVecs {
  static constexpr int64_t begin = 0, end = kTile / Vec<A>::size();
};

// The largest of `maximum` and the row's scores, as far as they are numbers.
template <typename A, typename Vecs>
inline A raise_maximum(A maximum, const A* scores, Vecs vecs) {
  constexpr int64_t width = Vec<A>::size();
  Vec<A> largest(maximum);
  for (int64_t v = vecs.begin; v < vecs.end; ++v) {
    largest = at::vec::clamp_min(Vec<A>::loadu(scores + v * width), largest);
  }
  if ((largest > Vec<A>(maximum)).zero_mask() == (1 << width) - 1) return maximum;  // as most often after some tiles
  // No NaN is left: its own rules, for which max_of cares, would take half of the time.
  return at::vec::vec_reduce_all<A>([](Vec<A>& a, Vec<A>& b) { return at::vec::clamp_min(a, b); }, largest);
}

// Replaces the scores in `vecs` by exp(score - shift) and returns their sums, one for each lane.
template <typename A, typename Vecs>
inline Vec<A> exponentiate(A* scores, A shift, Vecs vecs) {
  constexpr int64_t width = Vec<A>::size();
  Vec<A> sum(0);
  for (int64_t v = vecs.begin; v < vecs.end; ++v) {
    const Vec<A> weight = exp_negative(Vec<A>::loadu(scores + v * width) - Vec<A>(shift));
    sum = sum + weight;
    weight.store(scores + v * width);
  }
  return sum;
}

struct ForwardTensors {
  const at::Tensor &q, &k, &v;
  at::Tensor out, lse;  // lse: (B, H, T)
};

// What a task computes: queries of a head of a sequence.
struct Chunk {
  Sequence sequence;
  int64_t head;
  Span rows;
};

// The working memory of a thread, and the steps of one task.
template <typename T>
class ForwardTask {
  using A = compute_t<T>;

 public:
  ForwardTask(const AttentionShape& shape, const AttentionOptions& options, int64_t queries)
      : shape_(shape), options_(options), padded_(round_up(shape.width, Vec<A>::size())), queries_(queries * padded_), out_(queries * padded_),
        rows_(kTile * padded_), keys_(padded_ * kTile), values_(kTile * padded_), scores_(kTile * kTile),
        factors_(16 * kTile), maximum_(queries), sums_(queries * Vec<A>::size()) {}

  // The queries of a chunk.
  void run(const ForwardTensors& tensors, const Chunk& chunk) {
    const Sequence& at = chunk.sequence;
    const Span rows = chunk.rows;
    const int64_t kv_head = chunk.head / (shape_.heads / shape_.kv_heads);
    const Head<const T> q(tensors.q, at, chunk.head), k(tensors.k, at, kv_head), v(tensors.v, at, kv_head);
    const Angles<A> by = angles<A>(options_, at);
    batch_ = at.index, head_ = chunk.head, shape_.length = at.length;
    for (int64_t r = rows.begin; r < rows.end; r += kTile) {
      pack_rows<T>(q, r, at.length, shape_.width, padded_, static_cast<A>(shape_.scale), by, query(r - rows.begin));
    }
    std::fill(out_.begin(), out_.end(), A(0));
    std::fill(sums_.begin(), sums_.end(), A(0));
    std::fill(maximum_.begin(), maximum_.end(), -std::numeric_limits<A>::infinity());
    const Span keys = shape_.seen(rows);
    for (int64_t key = keys.begin / kTile * kTile; key < keys.end; key += kTile) {
      pack_rows<T>(k, key, at.length, shape_.width, padded_, A(1), by, rows_.data());
      transpose(rows_.data(), padded_, keys_.data());
      pack_rows<T>(v, key, at.length, shape_.width, padded_, A(1), {}, values_.data());
      add_tile(rows, key);
    }
    finish(Head<T>(tensors.out, at, chunk.head),
           tensors.lse.mutable_data_ptr<A>() + statistics_offset(shape_, at, chunk.head), rows);
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
      if (shape_.whole({r, end}, key)) {
        form_weights({r, end}, r - rows.begin, key, [](int64_t) { return AllVecs<A>(); });
      } else {
        for (int64_t i = r; i < end; ++i) hide(i, key, scores(i - r));
        form_weights({r, end}, r - rows.begin, key, [&](int64_t row) { return columns(row, key); });
      }
      for (int64_t g = r; g < end; g += kGroupRows) add_values(g, g - rows.begin, key, scores(g - r));
    }
  }

  // Of four queries, from row r of the sequence and `local` of the task.
  void form_scores(int64_t r, int64_t local, int64_t key, A* scores) {
    product<false, A>({query(local), padded_, 1}, {keys_.data(), kTile}, {scores, kTile}, columns(r, key),
                      Depths(Span{0, shape_.width}));
  }

  // The scores of up to a tile of rows become weights, in two sweeps over the rows, none of which waits for another.
  // vecs(row): the vectors of columns that count.
  template <typename RowVecs>
  void form_weights(Span rows, int64_t local, int64_t key, const RowVecs& vecs) {
    A* maximum = maximum_.data() + local;
    A before[kTile], shift[kTile], rescale[kTile];
    std::copy_n(maximum, kTile, before);
    for (int64_t r = rows.begin, i = 0; r < rows.end; ++r, ++i) {
      maximum[i] = raise_maximum(maximum[i], scores(i), vecs(r));
    }
    for (int64_t i = 0; i < kTile; i += Vec<A>::size()) {
      const Vec<A> lowest(-std::numeric_limits<A>::infinity()), now = Vec<A>::loadu(maximum + i);
      // Where no score was larger, -inf - -inf must not be formed.
      const Vec<A> taken = Vec<A>::blendv(now, Vec<A>(0), now == lowest);
      taken.store(shift + i);
      exp_negative(Vec<A>::loadu(before + i) - taken).store(rescale + i);
    }
    for (int64_t r = rows.begin, i = 0; r < rows.end; ++r, ++i) {
      A* sums = sums_.data() + (local + i) * Vec<A>::size();
      Vec<A> sum = exponentiate(scores(i), shift[i], vecs(r));
      if (maximum[i] == before[i]) {
        sum = sum + Vec<A>::loadu(sums);
      } else {
        sum = at::vec::fmadd(Vec<A>::loadu(sums), Vec<A>(rescale[i]), sum);
        for (A* o = out(local + i); o < out(local + i + 1); o += Vec<A>::size()) {
          (Vec<A>::loadu(o) * Vec<A>(rescale[i])).store(o);
        }
      }
      sum.store(sums);
      if (shape_.dropout) {
        if (r % 16 == 0) keep_factors(shape_, batch_, head_, r, key, factors_.data());
        drop(scores(i), factors_.data() + r % 16 * kTile, columns(r, key));
      }
    }
  }

  void add_values(int64_t r, int64_t local, int64_t key, const A* weights) {
    product<true, A>({weights, kTile, 1}, {values_.data(), padded_}, {out(local), padded_},
                     {0, padded_ / Vec<A>::size()}, Depths([&](int64_t i) { return shape_.seen_in_tile(r + i, key); }));
  }

  // Makes the scores -inf, which never count, of the columns that the query of row r does not see.
  void hide(int64_t r, int64_t key, A* scores) const {
    const Span vecs = columns(r, key);
    constexpr int64_t width = Vec<A>::size();
    fill_outside(scores, shape_.seen_in_tile(r, key), {vecs.begin * width, vecs.end * width},
                 -std::numeric_limits<A>::infinity());
  }

  // The vectors of columns of the tile at `key` that any query of the four sees to which row r belongs.
  Span columns(int64_t r, int64_t key) const {
    const int64_t first = r / kGroupRows * kGroupRows;
    return covering_vecs<A>(within_tile(shape_.seen({first, first + kGroupRows}), key));
  }

  static void drop(A* weights, const A* factors, Span vecs) {
    for (int64_t i = vecs.begin * Vec<A>::size(); i < vecs.end * Vec<A>::size(); ++i) weights[i] *= factors[i];
  }

  // Divides by the sums and writes the rows and their log-sum-exp.
  void finish(Head<T> to, A* lse, Span rows) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t local = r - rows.begin;
      A* target = destination(to.row(r), out(local));
      const A sum = sum_of(Vec<A>::loadu(sums_.data() + local * Vec<A>::size())), inverse = 1 / sum;
      for_each_vec<A>(shape_.width, [&](int64_t i, auto count) {
        store(load(out(local) + i, count) * Vec<A>(inverse), target + i, count);
      });
      narrow(target, to.row(r), shape_.width);
      lse[r] = maximum_[local] + std::log(sum);
    }
  }

  AttentionShape shape_;
  const AttentionOptions& options_;
  const int64_t padded_;
  int64_t batch_, head_;
  std::vector<A> queries_, out_, rows_, keys_, values_, scores_, factors_, maximum_;
  std::vector<A> sums_;  // of the weights of each query so far, one for each lane; NaN as soon as a score is NaN
};

// All chunks of up to `queries` queries; of a head the last ones, which see most keys, come first.
std::vector<Chunk> chunks(const std::vector<Sequence>& all, int64_t heads, int64_t queries) {
  std::vector<Chunk> found;
  for (const Sequence& each : all) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t first = (each.length - 1) / queries * queries; first >= 0 && each.length > 0; first -= queries) {
        found.push_back({each, head, {first, std::min(each.length, first + queries)}});
      }
    }
  }
  return found;
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const AttentionOptions& options) {
  const AttentionShape shape(q, k, options);
  const ForwardTensors tensors{
      q, k, v, empty_output(q.sizes(), q.options()),
      at::empty({q.size(0), shape.heads, shape.tokens}, q.options().dtype(statistics_type(q)))};
  const std::vector<Sequence> all = sequences(q, options.ends);
  const int64_t longest = all.empty() ? 0 : all[0].length, most_heads = 4 * at::get_num_threads();
  const int64_t most = static_cast<int64_t>(all.size()) * shape.heads < most_heads ? kFewQueries : kMostQueries;
  const int64_t queries = std::clamp(round_up(longest, kTile), kTile, most);
  const std::vector<Chunk> tasks = chunks(all, shape.heads, queries);
  run_tasks(
      static_cast<int64_t>(tasks.size()), shape.threads(all),
      [&] { return ForwardTask<T>(shape, options, queries); },
      [&](ForwardTask<T>& task, int64_t i) { task.run(tensors, tasks[i]); });
  return {tensors.out, tensors.lse};
}

std::tuple<at::Tensor, at::Tensor> causal_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale, std::optional<int64_t> window,
    double dropout_p, const std::optional<at::Tensor>& seed, bool /*deterministic*/, const std::optional<at::Tensor>& ends,
    const std::optional<at::Tensor>& cos, const std::optional<at::Tensor>& sin) {
  const AttentionOptions options{scale, window, dropout_p, seed, ends, cos, sin};
  check_attention(q, k, v, options);
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "causal_attention",
                                         [&] { return forward<scalar_t>(q, k, v, options); });
}

std::tuple<at::Tensor, at::Tensor> causal_attention_qkvpacked(
    const at::Tensor& qkv, double scale, std::optional<int64_t> window, double dropout_p,
    const std::optional<at::Tensor>& seed, bool deterministic, const std::optional<at::Tensor>& cos,
    const std::optional<at::Tensor>& sin) {
  check_packed(qkv);
  return causal_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), scale, window, dropout_p, seed,
                          deterministic, std::nullopt, cos, sin);
}

}  // namespace

void register_attention_forward(torch::Library& m) {
  m.impl("causal_attention", causal_attention);
  m.impl("causal_attention_qkvpacked", causal_attention_qkvpacked);
}

}  // namespace slm::CPU_CAPABILITY
