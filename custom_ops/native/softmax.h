// What a softmax over keys that come in blocks needs.
#pragma once
#include "native/math.h"

namespace edge {
namespace EDGE_ISA {

// Stands for minus infinity where a difference of two must not be NaN.
constexpr float kLowest = -1e30f;

// exp(x) for x <= 0, zero below -87. exp(r) = 1 + r + r^2 q(r) with q fitted at Chebyshev points
// over [-ln2/2, ln2/2] (error 1e-8), times 2^n made in the exponent's bits.
static inline F32 exp_of_negative(F32 x) {
  const F32 magic = splat(0x1.8p23f);  // adding it rounds to an integer, left in the low bits
  const F32 shifted = multiply_add(x, splat(0x1.715476p0f), magic);
  const F32 n = shifted - magic;
  F32 r = multiply_add(n, splat(-0x1.62e4p-1f), x);
  r = multiply_add(n, splat(-0x1.7f7d1cp-20f), r);
  F32 q = splat(0x1.6d4366p-10f);
  q = multiply_add(q, r, splat(0x1.120ba6p-7f));
  q = multiply_add(q, r, splat(0x1.5554e8p-5f));
  q = multiply_add(q, r, splat(0x1.5554dcp-3f));
  q = multiply_add(q, r, splat(0.5f));
  q = multiply_add(q * r, r, r) + splat(1.0f);
  const F32 power = (F32)(((I32)shifted << 23) + 0x3f800000);
  return select(x < splat(-87.0f), F32{}, q * power);
}

}  // namespace EDGE_ISA
}  // namespace edge
