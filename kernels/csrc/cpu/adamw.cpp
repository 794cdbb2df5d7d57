// AdamW on the CPU: every parameter in one call, and each number of memory read and written once.
//
// Decoupled weight decay (Loshchilov and Hutter 2017, algorithm 2), in the order of operations of torch.optim.AdamW.
#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "../ops.h"
#include "vec.h"

namespace slm::CPU_CAPABILITY {
namespace {

constexpr int64_t kPiece = 8192;  // numbers that a task moves

struct Piece {
  float *parameter, *mean, *square;
  const float* gradient;
  int64_t size;
};

// The tensors cut into pieces, so that a large one and many small ones are shared out evenly.
std::vector<Piece> pieces(at::TensorList parameters, at::TensorList gradients, at::TensorList means,
                          at::TensorList squares) {
  std::vector<Piece> found;
  for (size_t i = 0; i < parameters.size(); ++i) {
    float* parameter = parameters[i].mutable_data_ptr<float>();
    float *mean = means[i].mutable_data_ptr<float>(), *square = squares[i].mutable_data_ptr<float>();
    const float* gradient = gradients[i].const_data_ptr<float>();
    for (int64_t at = 0, size = parameters[i].numel(); at < size; at += kPiece) {
      found.push_back({parameter + at, mean + at, square + at, gradient + at, std::min(kPiece, size - at)});
    }
  }
  return found;
}

void move(const Piece& piece, const AdamWOptions& o) {
  const Vec<float> beta1(o.beta1), beta2(o.beta2), rest1(1 - o.beta1), rest2(1 - o.beta2);
  const Vec<float> kept(1 - o.lr * o.weight_decay), eps(o.eps), factor(o.gradient_scale);
  const Vec<float> rate(-o.lr / (1 - std::pow(o.beta1, o.step))), root(1 / std::sqrt(1 - std::pow(o.beta2, o.step)));
  for_each_vec<float>(piece.size, [&](int64_t i, auto count) {
    const Vec<float> g = load(piece.gradient + i, count) * factor;
    const Vec<float> mean = at::vec::fmadd(load(piece.mean + i, count), beta1, g * rest1);
    const Vec<float> square = at::vec::fmadd(load(piece.square + i, count), beta2, g * g * rest2);
    const Vec<float> update = mean / at::vec::fmadd(square.sqrt(), root, eps);
    store(mean, piece.mean + i, count);
    store(square, piece.square + i, count);
    store(at::vec::fmadd(rate, update, load(piece.parameter + i, count) * kept), piece.parameter + i, count);
  });
}

void adamw(at::TensorList parameters, at::TensorList gradients, at::TensorList means, at::TensorList squares,
           int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
           double gradient_scale) {
  const AdamWOptions options{lr, beta1, beta2, eps, weight_decay, gradient_scale, step};
  check_adamw(parameters, gradients, means, squares, options);
  const auto all = pieces(parameters, gradients, means, squares);
  at::parallel_for(0, static_cast<int64_t>(all.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) move(all[i], options);
  });
}

}  // namespace

void register_adamw(torch::Library& m) { m.impl("adamw_", adamw); }

}  // namespace slm::CPU_CAPABILITY
