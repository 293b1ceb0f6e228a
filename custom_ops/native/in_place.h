// States that outputs take over from inputs.
#pragma once
#include "native/kernel.h"
#include "native/pages.h"

namespace edge {
namespace EDGE_ISA {

// Copies a state to its output; nothing to do where they are the same memory.
static Status* carry_over(const Context& context, const Tensor& from, const Tensor& to,
                          int64_t element) {
  constexpr int64_t kCopyBytes = 1 << 20;
  if (from.data == to.data) return nullptr;
  const int64_t bytes = from.count() * element;
  const int64_t parts = (bytes + kCopyBytes - 1) / kCopyBytes;
  return context.parallel(size_t(parts), [&](size_t i) -> Status* {
    const int64_t at = int64_t(i) * kCopyBytes;
    const size_t count = size_t(smaller(kCopyBytes, bytes - at));
    __builtin_memcpy(to.as<char>() + at, from.as<char>() + at, count);
    return nullptr;
  });
}

}  // namespace EDGE_ISA
}  // namespace edge
