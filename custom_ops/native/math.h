// exp, tanh, erf and the activations made of them, on vectors, to within about 1e-7 relative.
#pragma once
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

static inline F32 select(I32 mask, F32 yes, F32 no) { return mask ? yes : no; }

// exp(x) = 2^n * exp(r), r in [-ln2/2, ln2/2], with the Taylor polynomial of degree 7 (its next
// term is below 2^-25). Below -103 it is 0, above 88.7 infinity; a NaN stays one.
static inline F32 exp(F32 x) {
  const F32 clamped = min(max(x, splat(-104.0f)), splat(89.0f));
  // Adding 1.5 * 2^23 rounds to an integer that then sits in the low bits.
  const F32 magic = splat(0x1.8p23f);
  const F32 shifted = multiply_add(clamped, splat(0x1.715476p0f), magic);
  const F32 n = shifted - magic;
  // ln2 in two parts; the first has zeros at the end, so that n * part is exact.
  F32 r = multiply_add(n, splat(-0x1.62e4p-1f), clamped);
  r = multiply_add(n, splat(-0x1.7f7d1cp-20f), r);
  F32 p = splat(1.0f / 5040);
  p = multiply_add(p, r, splat(1.0f / 720));
  p = multiply_add(p, r, splat(1.0f / 120));
  p = multiply_add(p, r, splat(1.0f / 24));
  p = multiply_add(p, r, splat(1.0f / 6));
  p = multiply_add(p, r, splat(0.5f));
  p = multiply_add(p * r, r, r) + splat(1.0f);
  // 2^n in two factors, since n may lie outside the exponents of normal numbers.
  const I32 whole = (I32)shifted - (I32)magic;
  const I32 half = whole >> 1;
  const F32 first = (F32)((half + 127) << 23);
  const F32 second = (F32)((whole - half + 127) << 23);
  return select(x != x, x, p * first * second);
}

static inline F32 abs(F32 x) { return (F32)((I32)x & 0x7fffffff); }

static inline F32 with_sign_of(F32 magnitude, F32 sign) {
  return (F32)((I32)magnitude | ((I32)sign & (int32_t)0x80000000));
}

// 1 / (1 + exp(-x)).
static inline F32 sigmoid(F32 x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }

// Near zero the odd series (truncated at x^13, error below 1e-8 up to 0.4), where 1 - e^-2x would
// cancel; elsewhere by exp.
static inline F32 tanh(F32 x) {
  const F32 a = abs(x);
  const F32 e = exp(a * splat(-2.0f));
  const F32 far = (splat(1.0f) - e) / (splat(1.0f) + e);
  const F32 s = a * a;
  F32 p = splat(21844.0f / 6081075);
  p = multiply_add(p, s, splat(-1382.0f / 155925));
  p = multiply_add(p, s, splat(62.0f / 2835));
  p = multiply_add(p, s, splat(-17.0f / 315));
  p = multiply_add(p, s, splat(2.0f / 15));
  p = multiply_add(p, s, splat(-1.0f / 3));
  const F32 near = multiply_add(p * s, a, a);
  return with_sign_of(select(a < splat(0.4f), near, far), x);
}

// Below 1 the Maclaurin series (to x^19). Above, 1 - erfc, with erfc(a) * exp(a * a) a polynomial
// in t = 1 / (1 + a / 2): a Chebyshev fit over 1 <= a <= 4.2, beyond which erfc is nothing.
static inline F32 erf(F32 x) {
  const F32 a = abs(x);
  const F32 s = a * a;
  F32 p = splat(-1.0f / 6894720);
  p = multiply_add(p, s, splat(1.0f / 685440));
  p = multiply_add(p, s, splat(-1.0f / 75600));
  p = multiply_add(p, s, splat(1.0f / 9360));
  p = multiply_add(p, s, splat(-1.0f / 1320));
  p = multiply_add(p, s, splat(1.0f / 216));
  p = multiply_add(p, s, splat(-1.0f / 42));
  p = multiply_add(p, s, splat(1.0f / 10));
  p = multiply_add(p, s, splat(-1.0f / 3));
  p = multiply_add(p, s, splat(1.0f));
  const F32 near = a * p * splat(1.12837917f);
  const F32 t = splat(1.0f) / multiply_add(a, splat(0.5f), splat(1.0f));
  F32 q = splat(0.119894505f);
  q = multiply_add(q, t, splat(-0.47308308f));
  q = multiply_add(q, t, splat(0.56600821f));
  q = multiply_add(q, t, splat(-0.105786555f));
  q = multiply_add(q, t, splat(0.34881872f));
  q = multiply_add(q, t, splat(0.25940895f));
  q = multiply_add(q, t, splat(0.28495401f));
  q = multiply_add(q, t, splat(-1.5676374e-4f));
  const F32 far = splat(1.0f) - q * exp(-s);
  return with_sign_of(select(a < splat(1.0f), near, far), x);
}

static inline F32 silu(F32 x) { return x * sigmoid(x); }

static inline F32 gelu(F32 x) {
  return x * splat(0.5f) * (splat(1.0f) + erf(x * splat(0.70710678f)));
}

static inline F32 gelu_tanh(F32 x) {
  const F32 inner = x * multiply_add(x * x, splat(0.044715f), splat(1.0f)) * splat(0.79788456f);
  return x * splat(0.5f) * (splat(1.0f) + tanh(inner));
}

}  // namespace EDGE_ISA
}  // namespace edge
