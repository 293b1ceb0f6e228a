// Vectors of floats in the width of the instruction set that this file is compiled for: F32 and
// what kernels do with it. Loads and stores need no alignment.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Keeps stack frames small, where instances would be inlined into one function.
#define EDGE_OUT_OF_LINE __attribute__((noinline))

namespace edge {
namespace EDGE_ISA {

#if defined(EDGE_SCALAR)
constexpr size_t kLanes = 1;  // one float at a time: what the others are swept against
#elif defined(__AVX512F__)
constexpr size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr size_t kLanes = 8;
#else
constexpr size_t kLanes = 4;
#endif

using F32 = float __attribute__((vector_size(kLanes * 4)));
using I32 = int32_t __attribute__((vector_size(kLanes * 4)));
using U32 = uint32_t __attribute__((vector_size(kLanes * 4)));
using U16 = uint16_t __attribute__((vector_size(kLanes * 2)));

// 16-bit floats as they lie in memory.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

// Compilers make one unaligned move of it.
template <class V>
static inline V read(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
static inline void write(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// A list of lane numbers to expand.
template <class T, T... kI>
struct Lanes {};
using AllLanes = __make_integer_seq<Lanes, size_t, kLanes>;

namespace detail {
template <size_t... kI>
static inline F32 repeat(float x, Lanes<size_t, kI...>) {
  return F32{(static_cast<void>(kI), x)...};
}
}  // namespace detail

static inline F32 splat(float x) { return detail::repeat(x, AllLanes{}); }

static inline F32 from_half(U16 h) {
#if defined(__F16C__) || defined(__AVX512F__) || defined(__aarch64__)
  using H = _Float16 __attribute__((vector_size(kLanes * 2)));
  return __builtin_convertvector((H)h, F32);
#else
  // Shift exponent and mantissa into place and rescale: exact for subnormals too. Infinity and
  // NaN (exponent 31) are the only ones that the scaling does not carry over.
  const U32 wide = __builtin_convertvector(h, U32);
  const U32 magnitude = (wide & 0x7fff) << 13;
  const F32 scaled = (F32)magnitude * splat(0x1p112f);
  const U32 special = (U32)(magnitude >= 0x0f800000u) & 0x7f800000u;
  return (F32)((U32)scaled | special | (wide & 0x8000) << 16);
#endif
}

static inline F32 from_bfloat(U16 b) { return (F32)(__builtin_convertvector(b, U32) << 16); }

static inline F32 load(const float* p) { return read<F32>(p); }
static inline F32 load(const Half* p) { return from_half(read<U16>(p)); }
static inline F32 load(const Bfloat* p) { return from_bfloat(read<U16>(p)); }

static inline void store(float* p, F32 v) { write(p, v); }

// Rounds to nearest, ties to even; overflow gives infinity and a NaN stays one.
static inline void store(Half* p, F32 v) {
#if defined(__F16C__) || defined(__AVX512F__) || defined(__aarch64__)
  using H = _Float16 __attribute__((vector_size(kLanes * 2)));
  const U16 bits = (U16)__builtin_convertvector(v, H);
#else
  const U32 raw = (U32)v;
  const U32 magnitude = raw & 0x7fffffff;
  // A normal result: rebias the exponent and round at bit 13.
  const U32 normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // A subnormal one: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
  const U32 subnormal = (U32)((F32)magnitude + splat(0.5f)) - 0x3f000000u;
  U32 half = (U32)(magnitude < 0x38800000u) & subnormal;
  half |= (U32)(magnitude >= 0x38800000u) & normal;
  const U32 over = (U32)(magnitude >= 0x477ff000u);
  half = (half & ~over) | (over & 0x7c00);
  half |= (U32)(magnitude > 0x7f800000u) & 0x200;
  const U16 bits = __builtin_convertvector(half | (raw >> 16 & 0x8000), U16);
#endif
  write(p, bits);
}

// The first `n` (< kLanes) elements, the rest zero; reads no byte beyond them.
template <class T>
static inline F32 load_part(const T* p, size_t n) {
  T padded[kLanes] = {};
  __builtin_memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

template <class T>
static inline void store_part(T* p, F32 v, size_t n) {
  T padded[kLanes];
  store(padded, v);
  __builtin_memcpy(p, padded, n * sizeof(T));
}

// `n` <= kLanes elements, whether or not they fill the vector.
static inline F32 load_some(const float* p, size_t n) {
  return n < kLanes ? load_part(p, n) : load(p);
}
static inline void store_some(float* p, F32 v, size_t n) {
  n < kLanes ? store_part(p, v, n) : store(p, v);
}

static inline F32 min(F32 a, F32 b) { return a < b ? a : b; }
static inline F32 max(F32 a, F32 b) { return a > b ? a : b; }

// One rounding where the processor has a fused instruction, two elsewhere (-ffp-contract=fast).
static inline F32 multiply_add(F32 a, F32 b, F32 c) { return a * b + c; }

namespace detail {
template <size_t kN>
static inline float sum_of(float __attribute__((vector_size(kN * 4))) v) {
  if constexpr (kN == 1) {
    return v[0];
  } else {
    using Part = float __attribute__((vector_size(kN * 2)));
    Part low, high;
    __builtin_memcpy(&low, &v, sizeof(low));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return sum_of<kN / 2>(low + high);
  }
}
template <size_t kN>
static inline float max_of(float __attribute__((vector_size(kN * 4))) v) {
  if constexpr (kN == 1) {
    return v[0];
  } else {
    using Part = float __attribute__((vector_size(kN * 2)));
    Part low, high;
    __builtin_memcpy(&low, &v, sizeof(low));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    return max_of<kN / 2>(low > high ? low : high);
  }
}
}  // namespace detail

// Over all lanes, pairwise.
static inline float sum(F32 v) { return detail::sum_of<kLanes>(v); }
static inline float largest(F32 v) { return detail::max_of<kLanes>(v); }

static inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace EDGE_ISA
}  // namespace edge
