// Rotary positions on the CPU, as an op of their own.
//
// The derivation is in docs/kernels/rotary.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "../ops.h"
#include "memory.h"
#include "rotary.h"
#include "rows.h"

namespace slm::CPU_CAPABILITY {
namespace {

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  check_rotary(x, cos, sin);
  const int64_t length = x.size(1), heads = x.size(2), width = x.size(3);
  at::Tensor result = empty_output(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "rotary", [&] {
    using A = compute_t<scalar_t>;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = result.mutable_data_ptr<scalar_t>();
    const Angles<A> angles{cos.const_data_ptr<A>(), sin.const_data_ptr<A>(), width / 2, A(back ? -1 : 1)};
    const int64_t grain = kGrainElements / std::max<int64_t>(1, heads * width) + 1;
    at::parallel_for(0, x.size(0) * length, grain, [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(width);
      for (int64_t token = begin; token < end; ++token) {
        const int64_t b = token / length, t = token % length;
        const Angles<A> mine = angles.from((cos.size(0) == 1 ? 0 : b * length) + t);
        for (int64_t h = 0; h < heads; ++h) {
          scalar_t* row = to + (token * heads + h) * width;
          A* turned = destination(row, scratch.data());
          turn(widen(from + b * x.stride(0) + t * x.stride(1) + h * x.stride(2), scratch.data(), width), mine,
               A(1), turned);
          narrow(turned, row, width);
        }
      }
    });
  });
  return result;
}

}  // namespace

void register_rotary(torch::Library& m) { m.impl("rotary", rotary); }

}  // namespace slm::CPU_CAPABILITY
