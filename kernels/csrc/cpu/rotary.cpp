// Rotary positions on the CPU: neighbouring pairs of every head turned by the angle of their token.
//
// The derivation is in docs/kernels/rotary.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "../ops.h"
#include "memory.h"
#include "rows.h"

namespace slm::CPU_CAPABILITY {
namespace {

// One head of one token: (x0, x1) becomes (x0 cos - x1 sin, x0 sin + x1 cos) for each of `pairs` pairs.
template <typename T, typename A>
inline void turn(const T* x, const A* cos, const A* sin, A direction, T* out, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const A even = static_cast<A>(x[2 * i]), odd = static_cast<A>(x[2 * i + 1]), s = sin[i] * direction;
    out[2 * i] = static_cast<T>(even * cos[i] - odd * s);
    out[2 * i + 1] = static_cast<T>(even * s + odd * cos[i]);
  }
}

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  check_rotary(x, cos, sin);
  const int64_t length = x.size(1), heads = x.size(2), pairs = x.size(3) / 2;
  at::Tensor result = empty_output(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rotary", [&] {
    using A = compute_t<scalar_t>;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = result.mutable_data_ptr<scalar_t>();
    const A *cosines = cos.const_data_ptr<A>(), *sines = sin.const_data_ptr<A>();
    const A direction = back ? -1 : 1;
    const int64_t grain = kGrainElements / std::max<int64_t>(1, 2 * heads * pairs) + 1;
    at::parallel_for(0, x.size(0) * length, grain, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t b = token / length, t = token % length;
        const int64_t angle = ((cos.size(0) == 1 ? 0 : b * length) + t) * pairs;
        for (int64_t h = 0; h < heads; ++h) {
          turn(from + b * x.stride(0) + t * x.stride(1) + h * x.stride(2), cosines + angle, sines + angle, direction,
               to + (token * heads + h) * 2 * pairs, pairs);
        }
      }
    });
  });
  return result;
}

}  // namespace

void register_rotary(torch::Library& m) { m.impl("rotary", rotary); }

}  // namespace slm::CPU_CAPABILITY
