// The integer products of a few x rows with a panel of weights, in the instructions that each
// processor has for bytes.
//
// A panel is a strip as signed bytes, [quads][16 rows][4 columns]; where the processor multiplies
// unsigned with signed bytes, kPanelBias is added to each, and the caller takes it back. Where it
// multiplies squares, two rows by two of eight columns, kColumns is 8: [octets][16 rows][8 columns].
#pragma once
#include "native/packed_codes.h"

#if defined(EDGE_SCALAR)
#elif defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edge {
namespace EDGE_ISA {
namespace tile {

constexpr size_t kStripVectors = kStripRows / kLanes;

// kRows x rows times kStrips strips: all sums in registers, and where there are enough of those,
// the float totals over all blocks too.
#if defined(EDGE_SCALAR)
using X = int8_t;
constexpr size_t kRows = 2, kStrips = 1;
constexpr int kPanelBias = 0;
#elif defined(__AVX512VNNI__)
using X = int8_t;
constexpr size_t kRows = 7, kStrips = 2;
constexpr int kPanelBias = 128;
#elif defined(__x86_64__)
using X = int16_t;  // of each quad the columns 0, 2, 1, 3
constexpr size_t kRows = 4, kStrips = 1;
constexpr int kPanelBias = 0;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
using X = int8_t;
constexpr size_t kRows = 6, kStrips = 1;
constexpr int kPanelBias = 0;
#elif defined(__ARM_FEATURE_DOTPROD)
using X = int8_t;
constexpr size_t kRows = 4, kStrips = 1;
constexpr int kPanelBias = 0;
#else
using X = int8_t;
constexpr size_t kRows = 2, kStrips = 1;
constexpr int kPanelBias = 0;
#endif

// Columns of a panel that lie together, and rows of x that do, so many columns of each by turns.
#if defined(__ARM_FEATURE_MATMUL_INT8) && !defined(EDGE_SCALAR)
constexpr size_t kColumns = 8, kXRows = 2;
#else
constexpr size_t kColumns = 4, kXRows = 1;
#endif
static_assert(kRows % kXRows == 0);

// Where a panel has one of its strip's bytes.
static inline size_t panel_at(size_t row, size_t column) {
  return column / kColumns * (kStripRows * kColumns) + row * kColumns + column % kColumns;
}

// Bytes of the panel within +-64 can be multiplied with x + 128 as they are: two such products fit
// a word. The caller takes 128 times the panel's sum back.
#if !defined(EDGE_SCALAR) && defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr bool kHasSmall = true;
#else
constexpr bool kHasSmall = false;
#endif
constexpr int kSmall = 64, kSmallXBias = 128;

// One step of a panel, of the rows that a part of a line of codes has: `part` bytes into it.
static inline void write_step(const Bytes (&quads)[kQuadsOfStep], size_t part, int8_t* to) {
#if defined(__ARM_FEATURE_MATMUL_INT8) && !defined(EDGE_SCALAR)
#pragma unroll
  for (size_t q = 0; q < kQuadsOfStep; q += 2) {
    const uint32x4_t a = (uint32x4_t)quads[q], b = (uint32x4_t)quads[q + 1];
    write(to + q * kPackedLine + 2 * part, vzip1q_u32(a, b));
    write(to + q * kPackedLine + 2 * part + 16, vzip2q_u32(a, b));
  }
#else
#pragma unroll
  for (size_t q = 0; q < kQuadsOfStep; q++) write(to + q * kPackedLine + part, quads[q]);
#endif
}

template <size_t kR, size_t kS>
using Sums = I32[kR][kS * kStripVectors];

// Defined where kHasSmall: as add_products, for x of bytes.
template <size_t kXStride, size_t kR>
static inline void add_small_products(const uint8_t* x, const int8_t* panel, size_t quads,
                                      Sums<kR, 1>& sums);
// Of one block of a panel, for each row.
static inline void panel_sums(const int8_t* panel, size_t quads, I32 (&sums)[kStripVectors]);

#if !defined(EDGE_SCALAR) && defined(__AVX2__) && !defined(__AVX512VNNI__)
static inline I32 byte_products(__m256i unsigned_bytes, __m256i signed_bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

template <size_t kXStride, size_t kR>
static inline void add_small_products(const uint8_t* x, const int8_t* panel, size_t quads,
                                      Sums<kR, 1>& sums) {
  for (size_t q = 0; q < quads; q++) {
    __m256i w[kStripVectors];
#pragma unroll
    for (size_t v = 0; v < kStripVectors; v++) {
      w[v] = read<__m256i>(panel + q * kPackedLine + v * kLanes * 4);
    }
#pragma unroll
    for (size_t r = 0; r < kR; r++) {
      const __m256i xs = _mm256_set1_epi32(read<int32_t>(x + r * kXStride + q * 4));
#pragma unroll
      for (size_t v = 0; v < kStripVectors; v++) sums[r][v] += byte_products(xs, w[v]);
    }
  }
}

static inline void panel_sums(const int8_t* panel, size_t quads, I32 (&sums)[kStripVectors]) {
  for (size_t v = 0; v < kStripVectors; v++) {
    sums[v] = I32{};
    for (size_t q = 0; q < quads; q++) {
      const int8_t* from = panel + q * kPackedLine + v * kLanes * 4;
      sums[v] += byte_products(_mm256_set1_epi8(1), read<__m256i>(from));
    }
  }
}
#endif

// sums += kR rows of x, kXStride apart, times kS strips, kPanelStride bytes apart, over `quads`
// (those of whole steps) of 4 columns.
template <size_t kXStride, size_t kPanelStride, size_t kR, size_t kS>
static inline void add_products(const X* x, const int8_t* panel, size_t quads, Sums<kR, kS>& sums) {
#if defined(EDGE_SCALAR)
  for (size_t q = 0; q < quads; q++) {
    for (size_t r = 0; r < kR; r++) {
      for (size_t n = 0; n < kStripRows; n++) {
        for (size_t k = 0; k < 4; k++) {
          sums[r][n] += x[r * kXStride + q * 4 + k] * panel[q * kPackedLine + n * 4 + k];
        }
      }
    }
  }
#elif defined(__AVX512VNNI__)
  for (size_t q = 0; q < quads; q++) {
    __m512i w[kS];
#pragma unroll
    for (size_t s = 0; s < kS; s++) {
      w[s] = _mm512_loadu_si512(panel + s * kPanelStride + q * kPackedLine);
    }
#pragma unroll
    for (size_t r = 0; r < kR; r++) {
      const __m512i xs = _mm512_set1_epi32(read<int32_t>(x + r * kXStride + q * 4));
#pragma unroll
      for (size_t s = 0; s < kS; s++) {
        sums[r][s] = (I32)_mm512_dpbusd_epi32((__m512i)sums[r][s], w[s], xs);
      }
    }
  }
#elif defined(__x86_64__)
  // Bytes as words: the even ones are shifted up and down again, the odd ones only down.
  using I16 = int16_t __attribute__((vector_size(kLanes * 4)));
  const auto pairs = [](int32_t x, I16 w) {
#if defined(__AVX2__)
    return (I32)_mm256_madd_epi16(_mm256_set1_epi32(x), (__m256i)w);
#else
    return (I32)_mm_madd_epi16(_mm_set1_epi32(x), (__m128i)w);
#endif
  };
  for (size_t q = 0; q < quads; q++) {
    I16 even[kStripVectors], odd[kStripVectors];
#pragma unroll
    for (size_t v = 0; v < kStripVectors; v++) {
      const I16 w = read<I16>(panel + q * kPackedLine + v * kLanes * 4);
      even[v] = (w << 8) >> 8;
      odd[v] = w >> 8;
    }
#pragma unroll
    for (size_t r = 0; r < kR; r++) {
      const X* from = x + r * kXStride + q * 4;
      const int32_t x02 = read<int32_t>(from), x13 = read<int32_t>(from + 2);
#pragma unroll
      for (size_t v = 0; v < kStripVectors; v++) {
        sums[r][v] += pairs(x02, even[v]) + pairs(x13, odd[v]);
      }
    }
  }
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  // Of two rows of x the products with two rows of the panel make up a square.
  constexpr size_t kPairs = (kR + 1) / 2, kSquares = 2 * kStripVectors;
  int32x4_t squares[kPairs][kSquares];
#pragma unroll
  for (size_t p = 0; p < kPairs; p++) {
#pragma unroll
    for (size_t v = 0; v < kStripVectors; v++) {
      const int64x2_t a = (int64x2_t)sums[2 * p][v];
      const int64x2_t b = (int64x2_t)(2 * p + 1 < kR ? sums[2 * p + 1][v] : I32{});
      squares[p][2 * v] = (int32x4_t)vzip1q_s64(a, b);
      squares[p][2 * v + 1] = (int32x4_t)vzip2q_s64(a, b);
    }
  }
  for (size_t q = 0; q < quads; q += 2) {
    int8x16_t xs[kPairs];
#pragma unroll
    for (size_t p = 0; p < kPairs; p++) xs[p] = vld1q_s8(x + p * 2 * kXStride + q * 8);
#pragma unroll
    for (size_t i = 0; i < kSquares; i++) {
      const int8x16_t w = vld1q_s8(panel + q * kPackedLine + i * 16);
#pragma unroll
      for (size_t p = 0; p < kPairs; p++) squares[p][i] = vmmlaq_s32(squares[p][i], xs[p], w);
    }
  }
#pragma unroll
  for (size_t r = 0; r < kR; r++) {
#pragma unroll
    for (size_t v = 0; v < kStripVectors; v++) {
      const int64x2_t a = (int64x2_t)squares[r / 2][2 * v];
      const int64x2_t b = (int64x2_t)squares[r / 2][2 * v + 1];
      sums[r][v] = (I32)(r % 2 ? vzip2q_s64(a, b) : vzip1q_s64(a, b));
    }
  }
#elif defined(__ARM_FEATURE_DOTPROD)
  for (size_t q = 0; q < quads; q += 4) {
    I32 xs[kR];  // four quads
#pragma unroll
    for (size_t r = 0; r < kR; r++) xs[r] = read<I32>(x + r * kXStride + q * 4);
#pragma unroll
    for (size_t i = 0; i < 4; i++) {
#pragma unroll
      for (size_t v = 0; v < kStripVectors; v++) {
        const int8x16_t w = vld1q_s8(panel + (q + i) * kPackedLine + v * 16);
#pragma unroll
        for (size_t r = 0; r < kR; r++) {
          const int8x16_t four = (int8x16_t)(I32{} + xs[r][i]);
          sums[r][v] = (I32)vdotq_s32((int32x4_t)sums[r][v], w, four);
        }
      }
    }
  }
#else
  // Two products of a byte of at most 128 and one of at most 127 still fit a word.
  int32x4_t halves[kR][2 * kStripVectors] = {};  // of a row the columns 0 and 1, and 2 and 3
  for (size_t q = 0; q < quads; q += 2) {
#pragma unroll
    for (size_t v = 0; v < kStripVectors; v++) {
      const int8x16_t w0 = vld1q_s8(panel + q * kPackedLine + v * 16);
      const int8x16_t w1 = vld1q_s8(panel + (q + 1) * kPackedLine + v * 16);
#pragma unroll
      for (size_t r = 0; r < kR; r++) {
        const X* from = x + r * kXStride + q * 4;
        const int8x16_t x0 = vreinterpretq_s8_s32(vdupq_n_s32(read<int32_t>(from)));
        const int8x16_t x1 = vreinterpretq_s8_s32(vdupq_n_s32(read<int32_t>(from + 4)));
        int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
        low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1));
        halves[r][2 * v] = vpadalq_s16(halves[r][2 * v], low);
        const int16x8_t high = vmlal_high_s8(vmull_high_s8(w0, x0), w1, x1);
        halves[r][2 * v + 1] = vpadalq_s16(halves[r][2 * v + 1], high);
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t v = 0; v < kStripVectors; v++) {
      sums[r][v] += (I32)vpaddq_s32(halves[r][2 * v], halves[r][2 * v + 1]);
    }
  }
#endif
}

// Row `r` of int8 as add_products wants it, to x whose rows are kXStride apart; `columns` is a
// multiple of 32.
template <size_t kXStride>
static inline void copy_x(const int8_t* from, size_t columns, X* x, size_t r) {
  X* to = x + r / kXRows * kXRows * kXStride + r % kXRows * kColumns;
#if defined(__ARM_FEATURE_MATMUL_INT8) && !defined(EDGE_SCALAR)
  for (size_t k = 0; k < columns; k += 8) vst1_s8(to + k * 2, vld1_s8(from + k));
#elif defined(__x86_64__) && !defined(EDGE_SCALAR) && !defined(__AVX512VNNI__)
  using Pairs = int32_t __attribute__((vector_size(16)));
  using I16 = int16_t __attribute__((vector_size(16)));
  for (size_t k = 0; k < columns; k += 16) {
    const I16 bytes = read<I16>(from + k);
    const Pairs even = (Pairs)((bytes << 8) >> 8), odd = (Pairs)(bytes >> 8);
    write(to + k, __builtin_shufflevector(even, odd, 0, 4, 1, 5));
    write(to + k + 8, __builtin_shufflevector(even, odd, 2, 6, 3, 7));
  }
#else
  for (size_t k = 0; k < columns; k += kPackedStep) {
    using Step = int8_t __attribute__((vector_size(16)));
    write(to + k, read<Step>(from + k));
    write(to + k + 16, read<Step>(from + k + 16));
  }
#endif
}

// The same for small bytes, kSmallXBias added.
static inline void copy_small_x(const int8_t* from, size_t columns, uint8_t* to) {
  using Step = uint8_t __attribute__((vector_size(kPackedStep)));
  for (size_t k = 0; k < columns; k += kPackedStep) {
    write(to + k, read<Step>(from + k) + uint8_t(kSmallXBias));
  }
}

}  // namespace tile
}  // namespace EDGE_ISA
}  // namespace edge
