// Rows of floats as int8, and back. A row of eight values or more carries its own scale, as a code
// of eight bits in the lowest bits of its first eight bytes, so that no second array has to be kept,
// moved and offloaded beside the rows. int8_rows_torch.py says the same in torch, bit for bit.
#pragma once
#include "native/math.h"

namespace edge {
namespace EDGE_ISA {

constexpr size_t kLeastInt8Row = 8;

// A type of its own, as the 16-bit floats have: a value is this times its row's scale.
struct Int8 {
  int8_t bits;
};

// Whether `load` gives values that still want to be multiplied with their row's scale.
template <class C>
constexpr bool has_row_scale = __is_same(C, Int8);

namespace int8 {

// Code c stands for the scale 2^(c / 8 - 24).
constexpr float kFractions[8] = {0x1.000000p0f, 0x1.172b84p0f, 0x1.306fe0p0f, 0x1.4bfdaep0f,
                                 0x1.6a09e6p0f, 0x1.8ace54p0f, 0x1.ae89fap0f, 0x1.d5818ep0f};
constexpr float kMost = 127.0f;

static inline float scale_of(uint32_t code) {
  const uint32_t bits = (127 - 24 + code / 8) << 23;
  return __builtin_bit_cast(float, bits) * kFractions[code % 8];
}

// The smallest code whose scale brings `peak` to at most 127, or the largest.
static inline uint32_t code_for(float peak) {
  uint32_t code = 0;
  while (code < 248 && peak > kMost * scale_of(code + 7)) code += 8;
  while (code % 8 < 7 && peak > kMost * scale_of(code)) code += 1;
  return code;
}

// The integer nearest to each quotient, ties to even, between low and high.
static inline F32 nearest(F32 x, F32 low, F32 high) {
  const F32 magic = splat(0x1.8p23f);  // adding it rounds at the last place of an integer
  return (min(max(x, low), high) + magic) - magic;
}

static inline F32 without_nan(F32 x) { return select(x == x, x, F32{}); }

}  // namespace int8

// kLanes integers of a row, to be multiplied with its scale.
static inline F32 load(const Int8* p) {
  using I8 = int8_t __attribute__((vector_size(kLanes)));
  return __builtin_convertvector(__builtin_convertvector(read<I8>(p), I32), F32);
}

static inline void store(Int8* p, F32 whole) {
  using I8 = int8_t __attribute__((vector_size(kLanes)));
  write(p, __builtin_convertvector(__builtin_convertvector(whole, I32), I8));
}

// A row's scale; its values are those of `load` times this.
static inline float row_scale(const Int8* row) {
  const uint64_t low_bits = read<uint64_t>(row) & 0x0101010101010101u;
  return int8::scale_of(uint32_t((low_bits * 0x0102040810204080u) >> 56));  // bit i of byte i
}

// Writes `size` >= kLeastInt8Row values. A NaN becomes 0, an infinity the largest value.
static inline void encode_row(const float* from, size_t size, Int8* to) {
  F32 peaks = {};
  for (size_t i = 0; i < size; i += kLanes) {
    const F32 x = load_some(from + i, size - i < kLanes ? size - i : kLanes);
    peaks = max(peaks, abs(int8::without_nan(x)));
  }
  const uint32_t code = int8::code_for(largest(peaks));
  const F32 scale = splat(int8::scale_of(code));
  // The first eight values are even or odd as the code wants: q = step * n + bit.
  constexpr size_t kHead = kLanes > kLeastInt8Row ? kLanes : kLeastInt8Row;
  float bit[kHead], inverse_step[kHead];
  for (size_t i = 0; i < kHead; i++) {
    bit[i] = i < kLeastInt8Row ? float(code >> i & 1) : 0.0f;
    inverse_step[i] = i < kLeastInt8Row ? 0.5f : 1.0f;
  }
  for (size_t i = 0; i < size; i += kLanes) {
    const size_t n = size - i < kLanes ? size - i : kLanes;
    const F32 quotient = int8::without_nan(load_some(from + i, n)) / scale;
    F32 whole = int8::nearest(quotient, splat(-int8::kMost), splat(int8::kMost));
    if (i < kHead) {
      const F32 b = load(bit + i), inverse = load(inverse_step + i);
      const I32 is_half = inverse < splat(1.0f);
      const F32 low = select(is_half, splat(-64.0f), splat(-int8::kMost));
      const F32 high = select(is_half, splat(63.0f), splat(int8::kMost));
      whole = int8::nearest((quotient - b) * inverse, low, high) / inverse + b;
    }
    n < kLanes ? store_part(to + i, whole, n) : store(to + i, whole);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
