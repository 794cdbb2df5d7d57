// causal_attention on the CPU, backward: scores and softmax are computed again, tile by tile, from the saved log-sum-exp.
//
// A task takes one head of k and v of a sequence, or of a document in it, with all query heads that share it, and every
// split-th tile of keys. Rotary positions turn q and k as they are packed, and turn dq and dk back. For each tile of
// keys and each tile of queries that see them it forms the weights P and the score gradients dS (64 x 64), and with them
// dV += Pᵀ dO, dK += dSᵀ Q and dQ += dS K. All sums run in a fixed order: the result is the same every time, for a
// given number of threads. docs/kernels/attention.md derives it.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <tuple>

#include "attention.h"
#include "memory.h"

namespace slm::CPU_CAPABILITY {
namespace {

// What the backward reads and writes, with its outputs: tensors of (B, T, H, D), and lse (B, H, T).
struct BackwardTensors {
  const at::Tensor &grad_out, &q, &k, &v, &out, &lse;
  at::Tensor dq, dk, dv;
};

// The working memory of a thread, and the steps of one task.
template <typename T>
class BackwardTask {
  using A = compute_t<T>;

 public:
  // longest: the most tokens of a sequence.
  BackwardTask(const AttentionShape& shape, const BackwardTensors& tensors, const AttentionOptions& options,
               int64_t longest)
      : shape_(shape), tensors_(tensors), options_(options), group_(shape.heads / shape.kv_heads),
        rows_(round_up(longest, kTile)), padded_(round_up(shape.width, Vec<A>::size())), queries_(rows_ * padded_), grads_(rows_ * padded_),
        dq_(rows_ * padded_), lse_(rows_), delta_(rows_), dk_(rows_ * padded_), dv_(rows_ * padded_),
        keys_(kTile * padded_), keys_across_(padded_ * kTile), values_across_(padded_ * kTile),
        weights_(kTile * kTile), score_grads_(kTile * kTile), factors_(kTile * kTile) {}

  // Tiles first, first + splits, … of the keys of one head, and all heads of queries that share it, one after the other:
  // the memory that this takes does not grow with their number. Calls with_dq(h) when the part of dQ of head h of the
  // group is complete, for it to call write_dq.
  template <typename WithDq>
  void run(const Sequence& at, int64_t kv_head, int64_t first, int64_t splits, const WithDq& with_dq) {
    sequence_ = at, kv_head_ = kv_head, shape_.length = at.length, angles_ = angles<A>(options_, at);
    std::fill(dk_.begin(), dk_.end(), A(0));
    std::fill(dv_.begin(), dv_.end(), A(0));
    for (int64_t h = 0; h < group_; ++h) {
      pack_queries(h);
      std::fill(dq_.begin(), dq_.end(), A(0));
      for (int64_t key = first * kTile; key < shape_.length; key += splits * kTile) {
        pack_keys(key);
        // From the last query back: weights fall with the number of keys seen, and small terms added first lose least.
        const int64_t last = std::min(shape_.length, key + kTile + shape_.window - 1);
        for (int64_t row = (last - 1) / kTile * kTile; row >= key; row -= kTile) add_tile(h, row, key);
      }
      with_dq(h);
    }
    for (int64_t key = first * kTile; key < shape_.length; key += splits * kTile) {
      write_rows<T>(row_of(dk_, key), Head<T>(tensors_.dk, at, kv_head), key, A(1), angles_);
      write_rows<T>(row_of(dv_, key), Head<T>(tensors_.dv, at, kv_head), key, A(1), {});
    }
  }

  // Writes this task's part of dQ of the head of queries at hand.
  template <typename To>
  void write_dq(Head<To> to) {
    for (int64_t row = 0; row < shape_.length; row += kTile) {
      write_rows<To>(row_of(dq_, row), to, row, static_cast<A>(shape_.scale), angles_);
    }
  }

 private:
  int64_t query_head(int64_t h) const { return kv_head_ * group_ + h; }
  A* row_of(std::vector<A>& rows, int64_t row) { return rows.data() + row * padded_; }

  // Packs Q * scale and dO of a query head, and finds delta = sum(dO * O) of every row. Padding rows have zeros: with
  // dO = 0 they add nothing to any gradient.
  void pack_queries(int64_t h) {
    const Head<const T> q(tensors_.q, sequence_, query_head(h)), grad(tensors_.grad_out, sequence_, query_head(h));
    const Head<const T> out(tensors_.out, sequence_, query_head(h));
    const A* lse = tensors_.lse.const_data_ptr<A>() + statistics_offset(shape_, sequence_, query_head(h));
    for (int64_t row = 0; row < shape_.length; row += kTile) {
      pack(q, row, static_cast<A>(shape_.scale), angles_, row_of(queries_, row));
      pack(grad, row, A(1), {}, row_of(grads_, row));
    }
    for (int64_t row = 0; row < shape_.length; ++row) {
      lse_[row] = lse[row];
      delta_[row] = dot(row_of(grads_, row), widen(out.row(row), keys_.data(), shape_.width), shape_.width);
    }
  }

  void pack(Head<const T> head, int64_t row, A scale, const Angles<A>& by, A* to) const {
    pack_rows<T>(head, row, shape_.length, shape_.width, padded_, scale, by, to);
  }

  static A dot(const A* a, const A* b, int64_t size) {
    Vec<A> sum(0);
    for_each_vec<A>(size, [&](int64_t i, auto count) { sum = at::vec::fmadd(load(a + i, count), load(b + i, count), sum); });
    return sum_of(sum);
  }

  void pack_keys(int64_t key) {
    const Head<const T> k(tensors_.k, sequence_, kv_head_), v(tensors_.v, sequence_, kv_head_);
    pack(v, key, A(1), {}, keys_.data());
    transpose(keys_.data(), padded_, values_across_.data());
    pack(k, key, A(1), angles_, keys_.data());
    transpose(keys_.data(), padded_, keys_across_.data());
  }

  // One tile of queries against the packed tile of keys.
  void add_tile(int64_t h, int64_t row, int64_t key) {
    if (shape_.dropout) {
      for (int64_t r = 0; r < kTile; r += 16) {
        keep_factors(shape_, sequence_.index, query_head(h), row + r, key, factors_.data() + r * kTile);
      }
    }
    const int64_t rows = std::min(kTile, shape_.length - row);
    // Step by step over the whole tile: each has the operand that it reads again and again in the first-level cache.
    const Depths width(Span{0, shape_.width});
    const Span all{0, padded_ / Vec<A>::size()};
    for (int64_t r = 0; r < rows; r += kGroupRows) {
      product<false, A>({row_of(queries_, row + r), padded_, 1}, {keys_across_.data(), kTile},
                        {weights_.data() + r * kTile, kTile}, columns(row + r, key), width);
    }
    for (int64_t r = 0; r < rows; r += kGroupRows) {
      product<false, A>({row_of(grads_, row + r), padded_, 1}, {values_across_.data(), kTile},
                        {score_grads_.data() + r * kTile, kTile}, columns(row + r, key), width);
    }
    for (int64_t r = 0; r < rows; ++r) softmax_gradient(row, r, key);
    add_products(weights_, row_of(grads_, row), row_of(dv_, key), {row, row + rows}, key);
    add_products(score_grads_, row_of(queries_, row), row_of(dk_, key), {row, row + rows}, key);
    for (int64_t r = 0; r < rows; r += kGroupRows) {
      product<true, A>({score_grads_.data() + r * kTile, kTile, 1}, {keys_.data(), padded_},
                       {row_of(dq_, row + r), padded_}, all,
                       Depths([&](int64_t i) { return shape_.seen_in_tile(row + r + i, key); }));
    }
  }

  // sums (keys x D) += factorsᵀ (keys x queries) * rows (queries x D), over the queries that see a key.
  void add_products(const std::vector<A>& factors, const A* rows, A* sums, Span queries, int64_t key) {
    for (int64_t c = 0; c < kTile; c += kGroupRows) {
      const auto seeing = [&](int64_t i) -> Span {
        const int64_t first = key + c + i;
        return {std::max<int64_t>(0, first - queries.begin), std::min(queries.end, first + shape_.window) - queries.begin};
      };
      product<true, A>({factors.data() + c, 1, kTile}, {rows, padded_}, {sums + c * padded_, padded_},
                       {0, padded_ / Vec<A>::size()}, Depths(seeing));
    }
  }

  // The vectors of columns of the tile at `key` that any of four queries from `row` sees; none where no query does.
  Span columns(int64_t row, int64_t key) const {
    const Span seen = within_tile(shape_.seen({row, row + kGroupRows}), key);
    return seen.begin < seen.end ? covering_vecs<A>(seen) : Span{0, 0};
  }

  // P = exp(S - lse) and dS = P * (dP - delta) of row r of the tile, in place of S and dP; with dropout's factors.
  void softmax_gradient(int64_t row, int64_t r, int64_t key) {
    A *weights = weights_.data() + r * kTile, *score_grads = score_grads_.data() + r * kTile;
    const A* factors = shape_.dropout ? factors_.data() + r * kTile : nullptr;
    const Vec<A> lse(lse_[row + r]), delta(delta_[row + r]);
    const Span vecs = columns((row + r) / kGroupRows * kGroupRows, key);
    for (int64_t i = vecs.begin * Vec<A>::size(); i < vecs.end * Vec<A>::size(); i += Vec<A>::size()) {
      const Vec<A> weight = exp_negative(Vec<A>::loadu(weights + i) - lse), grad = Vec<A>::loadu(score_grads + i);
      const Vec<A> factor = factors ? Vec<A>::loadu(factors + i) : Vec<A>(1);
      (weight * (grad * factor - delta)).store(score_grads + i);
      (weight * factor).store(weights + i);
    }
  }

  // A tile of rows times `scale`, turned back.
  template <typename To>
  void write_rows(A* from, Head<To> to, int64_t row, A scale, const Angles<A>& by) {
    const Angles<A> back = by.back();
    for (int64_t r = row; r < std::min(row + kTile, shape_.length); ++r, from += padded_) {
      turn_or_scale(from, back, r, scale, shape_.width, from);
      narrow<To>(from, to.row(r), shape_.width);
    }
  }

  AttentionShape shape_;
  const BackwardTensors& tensors_;
  const AttentionOptions& options_;
  const int64_t group_, rows_, padded_;
  Sequence sequence_;
  int64_t kv_head_;
  Angles<A> angles_;
  std::vector<A> queries_, grads_, dq_, lse_, delta_;  // of all rows of a head of queries
  std::vector<A> dk_, dv_;  // of all keys of the head
  std::vector<A> keys_, keys_across_, values_across_;  // of a tile of keys
  std::vector<A> weights_, score_grads_, factors_;  // of a tile of scores
};

template <typename T>
void backward(const BackwardTensors& tensors, const AttentionOptions& options) {
  using A = compute_t<T>;
  const AttentionShape shape(tensors.q, tensors.k, options);
  const std::vector<Sequence> all = sequences(tensors.q, options.ends);
  const int64_t longest = all.empty() ? 0 : all[0].length, group = shape.heads / shape.kv_heads;
  const int64_t heads = static_cast<int64_t>(all.size()) * shape.kv_heads;
  // With fewer heads than threads the keys of a head are shared out, and the parts of dQ are added up afterwards.
  const int64_t wanted = at::get_num_threads() / std::max<int64_t>(1, heads);
  const int64_t splits = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, round_up(longest, kTile) / kTile));
  at::Tensor parts;  // (splits, B, T, H, D)
  if (splits > 1) {
    parts = at::empty({splits, tensors.q.size(0), shape.tokens, shape.heads, shape.width},
                      tensors.q.options().dtype(statistics_type(tensors.q)));
  }
  const auto run = [&](BackwardTask<T>& task, int64_t i) {
    const Sequence& at = all[i / splits / shape.kv_heads];
    const int64_t kv_head = i / splits % shape.kv_heads, split = i % splits;
    task.run(at, kv_head, split, splits, [&](int64_t h) {
      if (splits > 1) {
        task.template write_dq<A>(Head<A>(parts.select(0, split), at, kv_head * group + h));
      } else {
        task.template write_dq<T>(Head<T>(tensors.dq, at, kv_head * group + h));
      }
    });
  };
  run_tasks(
      heads * splits, shape.threads(all), [&] { return BackwardTask<T>(shape, tensors, options, longest); }, run);
  if (splits > 1) tensors.dq.copy_(parts.sum(0));
}

// Checks, makes the gradients contiguous where their strides need it, and runs the dtype's kernel into dq, dk and dv.
void run_backward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& out, const at::Tensor& lse, const AttentionOptions& options, const at::Tensor& dq,
                  const at::Tensor& dk, const at::Tensor& dv) {
  check_attention_backward(grad_out, q, k, v, out, lse, options);
  const at::Tensor grad = unit_stride(grad_out);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "causal_attention_backward", [&] {
    backward<scalar_t>({grad, q, k, v, out, lse, dq, dk, dv}, options);
  });
}

// The CPU's order of sums never varies, so it needs no choice.
std::tuple<at::Tensor, at::Tensor, at::Tensor> causal_attention_backward(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
    const at::Tensor& lse, double scale, std::optional<int64_t> window, double dropout_p,
    const std::optional<at::Tensor>& seed, bool /*deterministic*/, const std::optional<at::Tensor>& ends,
    const std::optional<at::Tensor>& cos, const std::optional<at::Tensor>& sin) {
  at::Tensor dq = empty_output(q.sizes(), q.options()), dk = empty_output(k.sizes(), k.options());
  at::Tensor dv = empty_output(v.sizes(), v.options());
  run_backward(grad_out, q, k, v, out, lse, {scale, window, dropout_p, seed, ends, cos, sin}, dq, dk, dv);
  return {dq, dk, dv};
}

at::Tensor causal_attention_qkvpacked_backward(const at::Tensor& grad_out, const at::Tensor& qkv, const at::Tensor& out,
                                               const at::Tensor& lse, double scale, std::optional<int64_t> window,
                                               double dropout_p, const std::optional<at::Tensor>& seed,
                                               bool /*deterministic*/, const std::optional<at::Tensor>& cos,
                                               const std::optional<at::Tensor>& sin) {
  check_packed(qkv);
  at::Tensor dqkv = empty_output(qkv.sizes(), qkv.options());
  run_backward(grad_out, qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), out, lse,
               {scale, window, dropout_p, seed, std::nullopt, cos, sin}, dqkv.select(2, 0), dqkv.select(2, 1),
               dqkv.select(2, 2));
  return dqkv;
}

}  // namespace

void register_attention_backward(torch::Library& m) {
  m.impl("causal_attention_backward", causal_attention_backward);
  m.impl("causal_attention_qkvpacked_backward", causal_attention_qkvpacked_backward);
}

}  // namespace slm::CPU_CAPABILITY
