// causal_attention on the CPU, backward: scores and softmax are computed again, tile by tile, from the saved log-sum-exp.
//
// A task takes one head of k and v with all query heads that share it, and every split-th tile of keys. For each tile of
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
  BackwardTask(const AttentionShape& shape, const BackwardTensors& tensors)
      : shape_(shape), tensors_(tensors), group_(shape.heads / shape.kv_heads), rows_(shape.tiles() * kTile),
        padded_(round_up(shape.width, Vec<A>::size())), queries_(group_ * rows_ * padded_),
        grads_(group_ * rows_ * padded_), dq_(group_ * rows_ * padded_), lse_(group_ * rows_), delta_(group_ * rows_),
        keys_(kTile * padded_), keys_across_(padded_ * kTile), values_across_(padded_ * kTile), dk_(kTile * padded_),
        dv_(kTile * padded_), weights_(kTile * kTile), score_grads_(kTile * kTile), factors_(kTile * kTile) {}

  // Tiles first, first + splits, … of the keys of one head; write_dq then gives their part of dQ.
  void run(int64_t batch, int64_t kv_head, int64_t first, int64_t splits) {
    batch_ = batch, kv_head_ = kv_head;
    for (int64_t h = 0; h < group_; ++h) pack_queries(h);
    std::fill(dq_.begin(), dq_.end(), A(0));
    for (int64_t tile = first; tile < shape_.tiles(); tile += splits) {
      pack_keys(tile * kTile);
      for (int64_t h = 0; h < group_; ++h) {
        // From the last query back: weights fall with the number of keys seen, and small terms added first lose least.
        const int64_t last = std::min(shape_.length, tile * kTile + kTile + shape_.window - 1);
        for (int64_t row = (last - 1) / kTile * kTile; row >= tile * kTile; row -= kTile) add_tile(h, row, tile * kTile);
      }
      write_rows<T>(dk_.data(), Head<T>(tensors_.dk, batch, kv_head), tile * kTile, A(1));
      write_rows<T>(dv_.data(), Head<T>(tensors_.dv, batch, kv_head), tile * kTile, A(1));
    }
  }

  // Writes this task's part of dQ of query head h of the group.
  template <typename To>
  void write_dq(int64_t h, Head<To> to) {
    for (int64_t row = 0; row < shape_.length; row += kTile) {
      write_rows<To>(at(dq_, h, row), to, row, static_cast<A>(shape_.scale));
    }
  }

 private:
  int64_t query_head(int64_t h) const { return kv_head_ * group_ + h; }
  A* at(std::vector<A>& rows, int64_t h, int64_t row) { return rows.data() + (h * rows_ + row) * padded_; }

  // Packs Q * scale and dO of a query head, and finds delta = sum(dO * O) of every row. Padding rows have zeros: with
  // dO = 0 they add nothing to any gradient.
  void pack_queries(int64_t h) {
    const Head<const T> q(tensors_.q, batch_, query_head(h)), grad(tensors_.grad_out, batch_, query_head(h));
    const Head<const T> out(tensors_.out, batch_, query_head(h));
    const A* lse = tensors_.lse.const_data_ptr<A>() + (batch_ * shape_.heads + query_head(h)) * shape_.length;
    for (int64_t row = 0; row < rows_; row += kTile) {
      pack_rows<T>(q, row, shape_.length, shape_.width, padded_, static_cast<A>(shape_.scale), at(queries_, h, row));
      pack_rows<T>(grad, row, shape_.length, shape_.width, padded_, A(1), at(grads_, h, row));
    }
    for (int64_t row = 0; row < shape_.length; ++row) {
      lse_[h * rows_ + row] = lse[row];
      delta_[h * rows_ + row] = dot(at(grads_, h, row), widen(out.row(row), keys_.data(), shape_.width), shape_.width);
    }
  }

  static A dot(const A* a, const A* b, int64_t size) {
    Vec<A> sum(0);
    for_each_vec<A>(size, [&](int64_t i, auto count) { sum = at::vec::fmadd(load(a + i, count), load(b + i, count), sum); });
    return sum_of(sum);
  }

  void pack_keys(int64_t key) {
    const Head<const T> k(tensors_.k, batch_, kv_head_), v(tensors_.v, batch_, kv_head_);
    pack_rows<T>(v, key, shape_.length, shape_.width, padded_, A(1), keys_.data());
    transpose(keys_.data(), padded_, values_across_.data());
    pack_rows<T>(k, key, shape_.length, shape_.width, padded_, A(1), keys_.data());
    transpose(keys_.data(), padded_, keys_across_.data());
    std::fill(dk_.begin(), dk_.end(), A(0));
    std::fill(dv_.begin(), dv_.end(), A(0));
  }

  // One tile of queries against the packed tile of keys.
  void add_tile(int64_t h, int64_t row, int64_t key) {
    if (shape_.dropout) {
      for (int64_t r = 0; r < kTile; r += 16) {
        keep_factors(shape_, batch_, query_head(h), row + r, key, factors_.data() + r * kTile);
      }
    }
    const int64_t rows = std::min(kTile, shape_.length - row);
    // Step by step over the whole tile: each has the operand that it reads again and again in the first-level cache.
    const Depths width(Span{0, shape_.width});
    const Span all{0, padded_ / Vec<A>::size()};
    for (int64_t r = 0; r < rows; r += kGroupRows) {
      product<false, A>({at(queries_, h, row + r), padded_, 1}, {keys_across_.data(), kTile},
                        {weights_.data() + r * kTile, kTile}, columns(row + r, key), width);
    }
    for (int64_t r = 0; r < rows; r += kGroupRows) {
      product<false, A>({at(grads_, h, row + r), padded_, 1}, {values_across_.data(), kTile},
                        {score_grads_.data() + r * kTile, kTile}, columns(row + r, key), width);
    }
    for (int64_t r = 0; r < rows; ++r) softmax_gradient(h, row, r, key);
    add_products(weights_, at(grads_, h, row), dv_, {row, row + rows}, key);
    add_products(score_grads_, at(queries_, h, row), dk_, {row, row + rows}, key);
    for (int64_t r = 0; r < rows; r += kGroupRows) {
      product<true, A>({score_grads_.data() + r * kTile, kTile, 1}, {keys_.data(), padded_},
                       {at(dq_, h, row + r), padded_}, all,
                       Depths([&](int64_t i) { return shape_.seen_in_tile(row + r + i, key); }));
    }
  }

  // sums (keys x D) += factorsᵀ (keys x queries) * rows (queries x D), over the queries that see a key.
  void add_products(const std::vector<A>& factors, const A* rows, std::vector<A>& sums, Span queries, int64_t key) {
    for (int64_t c = 0; c < kTile; c += kGroupRows) {
      const auto seeing = [&](int64_t i) -> Span {
        const int64_t first = key + c + i;
        return {std::max<int64_t>(0, first - queries.begin), std::min(queries.end, first + shape_.window) - queries.begin};
      };
      product<true, A>({factors.data() + c, 1, kTile}, {rows, padded_}, {sums.data() + c * padded_, padded_},
                       {0, padded_ / Vec<A>::size()}, Depths(seeing));
    }
  }

  // The vectors of columns of the tile at `key` that any of four queries from `row` sees; none where no query does.
  Span columns(int64_t row, int64_t key) const {
    const Span seen = within_tile(shape_.seen({row, row + kGroupRows}), key);
    return seen.begin < seen.end ? covering_vecs<A>(seen) : Span{0, 0};
  }

  // P = exp(S - lse) and dS = P * (dP - delta) of row r of the tile, in place of S and dP; with dropout's factors.
  void softmax_gradient(int64_t h, int64_t row, int64_t r, int64_t key) {
    A *weights = weights_.data() + r * kTile, *score_grads = score_grads_.data() + r * kTile;
    const A* factors = shape_.dropout ? factors_.data() + r * kTile : nullptr;
    const Vec<A> lse(lse_[h * rows_ + row + r]), delta(delta_[h * rows_ + row + r]);
    const Span vecs = columns((row + r) / kGroupRows * kGroupRows, key);
    for (int64_t i = vecs.begin * Vec<A>::size(); i < vecs.end * Vec<A>::size(); i += Vec<A>::size()) {
      const Vec<A> weight = exp_negative(Vec<A>::loadu(weights + i) - lse), grad = Vec<A>::loadu(score_grads + i);
      const Vec<A> factor = factors ? Vec<A>::loadu(factors + i) : Vec<A>(1);
      (weight * (grad * factor - delta)).store(score_grads + i);
      (weight * factor).store(weights + i);
    }
  }

  template <typename To>
  void write_rows(A* from, Head<To> to, int64_t row, A scale) {
    for (int64_t r = row; r < std::min(row + kTile, shape_.length); ++r, from += padded_) {
      for (int64_t i = 0; i < padded_; i += Vec<A>::size()) (Vec<A>::loadu(from + i) * Vec<A>(scale)).store(from + i);
      narrow<To>(from, to.row(r), shape_.width);
    }
  }

  const AttentionShape& shape_;
  const BackwardTensors& tensors_;
  const int64_t group_, rows_, padded_;
  int64_t batch_, kv_head_;
  std::vector<A> queries_, grads_, dq_, lse_, delta_;  // of all rows of the group's heads
  std::vector<A> keys_, keys_across_, values_across_, dk_, dv_;  // of a tile of keys
  std::vector<A> weights_, score_grads_, factors_;  // of a tile of scores
};

template <typename T>
void backward(const BackwardTensors& tensors, const AttentionShape& shape) {
  using A = compute_t<T>;
  const int64_t heads = shape.batch * shape.kv_heads, group = shape.heads / shape.kv_heads;
  // With fewer heads than threads the keys of a head are shared out, and the parts of dQ are added up afterwards.
  const int64_t wanted = at::get_num_threads() / std::max<int64_t>(1, heads);
  const int64_t splits = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, shape.tiles()));
  at::Tensor parts;  // (splits, B, T, H, D)
  if (splits > 1) {
    parts = at::empty({splits, shape.batch, shape.length, shape.heads, shape.width},
                      tensors.q.options().dtype(statistics_type(tensors.q)));
  }
  at::parallel_for(0, heads * splits, shape.grain(heads * splits), [&](int64_t first, int64_t last) {
    BackwardTask<T> task(shape, tensors);
    for (int64_t i = first; i < last; ++i) {
      const int64_t batch = i / splits / shape.kv_heads, kv_head = i / splits % shape.kv_heads, split = i % splits;
      task.run(batch, kv_head, split, splits);
      for (int64_t h = 0; h < group; ++h) {
        if (splits > 1) {
          task.template write_dq<A>(h, Head<A>(parts.select(0, split), batch, kv_head * group + h));
        } else {
          task.template write_dq<T>(h, Head<T>(tensors.dq, batch, kv_head * group + h));
        }
      }
    }
  });
  if (splits > 1) tensors.dq.copy_(parts.sum(0));
}

// Checks, makes the gradients contiguous where their strides need it, and runs the dtype's kernel into dq, dk and dv.
void run_backward(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& out, const at::Tensor& lse, const AttentionOptions& options, const at::Tensor& dq,
                  const at::Tensor& dk, const at::Tensor& dv) {
  check_attention_backward(grad_out, q, k, v, out, lse, options);
  const at::Tensor grad = unit_stride(grad_out);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "causal_attention_backward", [&] {
    backward<scalar_t>({grad, q, k, v, out, lse, dq, dk, dv}, AttentionShape(q, k, options));
  });
}

// The CPU's order of sums never varies, so it needs no choice.
std::tuple<at::Tensor, at::Tensor, at::Tensor> causal_attention_backward(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
    const at::Tensor& lse, double scale, std::optional<int64_t> window, double dropout_p,
    const std::optional<at::Tensor>& seed, bool /*deterministic*/) {
  at::Tensor dq = empty_output(q.sizes(), q.options()), dk = empty_output(k.sizes(), k.options());
  at::Tensor dv = empty_output(v.sizes(), v.options());
  run_backward(grad_out, q, k, v, out, lse, {scale, window, dropout_p, seed}, dq, dk, dv);
  return {dq, dk, dv};
}

at::Tensor causal_attention_qkvpacked_backward(const at::Tensor& grad_out, const at::Tensor& qkv, const at::Tensor& out,
                                               const at::Tensor& lse, double scale, std::optional<int64_t> window,
                                               double dropout_p, const std::optional<at::Tensor>& seed,
                                               bool /*deterministic*/) {
  check_packed(qkv);
  at::Tensor dqkv = empty_output(qkv.sizes(), qkv.options());
  run_backward(grad_out, qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), out, lse,
               {scale, window, dropout_p, seed}, dqkv.select(2, 0), dqkv.select(2, 1), dqkv.select(2, 2));
  return dqkv;
}

}  // namespace

void register_attention_backward(torch::Library& m) {
  m.impl("causal_attention_backward", causal_attention_backward);
  m.impl("causal_attention_qkvpacked_backward", causal_attention_qkvpacked_backward);
}

}  // namespace slm::CPU_CAPABILITY
