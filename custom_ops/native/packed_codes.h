// Codes of a packed weight as they lie in memory, and the bytes that they are: 32 columns of a
// strip, 64 * bits bytes, become 8 quads of 64 bytes (byte r * 4 + k for row r and column k of 4).
#pragma once
#include "native/packed.h"

namespace edge {
namespace EDGE_ISA {

// A part of a line of codes, as wide as the other vectors.
using Bytes = uint8_t __attribute__((vector_size(kLanes * 4)));
template <class B>
using WordsOf = uint16_t __attribute__((vector_size(sizeof(B))));

constexpr size_t kQuadsOfStep = kPackedStep / 4;
constexpr size_t kPartsOfLine = kPackedLine / sizeof(Bytes);

// Both shift in words of 16 bits, since x86 has it for no bytes; `lower_bits` masks off what came
// over from the next byte, `raised` is for codes so small that nothing leaves theirs.
template <int kBits, class B>
static inline B lower_bits(B v, int by) {
#if defined(__aarch64__)
  const B lower = v >> uint8_t(by);  // the uppermost bits need no mask then
#else
  const B lower = (B)((WordsOf<B>)v >> by);
#endif
  return lower & uint8_t((1 << kBits) - 1);
}
template <class B>
static inline B raised(B v, int by) {
  return (B)((WordsOf<B>)v << by);
}

// `from` is the part of the step's first line that is wanted of every line.
template <int kBits, class B>
static inline void unpack_step(const uint8_t* from, B (&quads)[kQuadsOfStep]) {
  const auto line = [&](size_t i) { return read<B>(from + i * kPackedLine); };
  if constexpr (kBits == 2) {
#pragma unroll
    for (size_t i = 0; i < 8; i++) quads[i] = lower_bits<2>(line(i / 4), 2 * int(i % 4));
  } else if constexpr (kBits == 3) {
    const B v[3] = {line(0), line(1), line(2)};
#pragma unroll
    for (size_t i = 0; i < 6; i++) quads[i] = lower_bits<3>(v[i / 2], 3 * int(i % 2));
    quads[6] = lower_bits<2>(v[0], 6) | (lower_bits<3>(v[2], 4) & uint8_t(4));
    quads[7] = lower_bits<2>(v[1], 6) | (lower_bits<3>(v[2], 5) & uint8_t(4));
  } else if constexpr (kBits == 4) {
#pragma unroll
    for (size_t i = 0; i < 8; i++) quads[i] = lower_bits<4>(line(i / 2), 4 * int(i % 2));
  } else if constexpr (kBits == 5) {
    const B high = line(4);
#pragma unroll
    for (size_t i = 0; i < 8; i++) {
      const auto low = lower_bits<4>(line(i / 2), 4 * int(i % 2));
      quads[i] = low | raised(lower_bits<1>(high, int(i)), 4);
    }
  } else if constexpr (kBits == 6) {
#pragma unroll
    for (size_t g = 0; g < 2; g++) {
      const B v[3] = {line(3 * g), line(3 * g + 1), line(3 * g + 2)};
#pragma unroll
      for (size_t j = 0; j < 3; j++) quads[4 * g + j] = lower_bits<6>(v[j], 0);
      quads[4 * g + 3] = lower_bits<2>(v[0], 6) | raised(lower_bits<2>(v[1], 6), 2) |
                         raised(lower_bits<2>(v[2], 6), 4);
    }
  } else {
#pragma unroll
    for (size_t i = 0; i < 8; i++) quads[i] = line(i);
  }
}

// Calls `use.operator()<bits>()` for the width of a segment.
template <class Use>
static inline void with_bits(int bits, const Use& use) {
  switch (bits) {
    case 2: return use.template operator()<2>();
    case 3: return use.template operator()<3>();
    case 4: return use.template operator()<4>();
    case 5: return use.template operator()<5>();
    case 6: return use.template operator()<6>();
    default: return use.template operator()<8>();
  }
}

// kLanes values of a table of bytes.
static inline I32 bytes_of(const uint8_t* from) {
  using Bytes = uint8_t __attribute__((vector_size(kLanes)));
  return __builtin_convertvector(read<Bytes>(from), I32);
}

static inline F32 load_bytes(const uint8_t* from) {
  return __builtin_convertvector(bytes_of(from), F32);
}

// kLanes values of a table of block scales; where those are codes, without the scales of the rows.
static inline F32 block_scale(int scale_kind, const uint8_t* scales, size_t at) {
  if (scale_kind == kScaleCodes) return load_bytes(scales + at);
  const U16 raw = read<U16>(scales + at * 2);
  return scale_kind == kScaleHalf ? from_half(raw) : from_bfloat(raw);
}

// The scales of kLanes rows of a strip, from row r on, in one block.
static inline F32 scales_of(const PackedSegment& s, const PackedStrip& strip, size_t block,
                            size_t r) {
  const F32 scale = block_scale(s.scale_kind, strip.block_scales, block * kStripRows + r);
  return s.scale_kind == kScaleCodes ? from_bfloat(read<U16>(strip.row_scales + r * 2)) * scale
                                     : scale;
}

}  // namespace EDGE_ISA
}  // namespace edge
