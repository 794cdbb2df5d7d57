// Output tensors for large results.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "level.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace slm::CPU_CAPABILITY {

// Asks Linux to back a large tensor by huge pages: a fresh output of 25 MB otherwise costs 6,000 page faults, which take
// longer than the layer norm that fills it. The advice is only that; memory that has its pages already is not changed by it.
inline void prefer_huge_pages(const at::Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096, kHugePage = 2 << 20;
  if (x.nbytes() >= 2 * kHugePage) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
    uintptr_t end = (begin + x.nbytes()) / kPage * kPage;
    begin = (begin + kPage - 1) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

// An uninitialised contiguous tensor.
inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const at::Tensor out = at::empty(sizes, options);
  prefer_huge_pages(out);
  return out;
}

}  // namespace slm::CPU_CAPABILITY
