// The integer products of a few x rows with a panel of weights, in the instructions that each
// processor has for bytes.
//
// A panel is a strip as signed bytes, [quads][16 rows][4 columns]; where the processor multiplies
// unsigned with signed bytes, kPanelBias is added to each, and the caller takes it back.
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
#else
using X = int8_t;
constexpr size_t kRows = 2, kStrips = 1;
constexpr int kPanelBias = 0;
#endif

// Bytes of the panel within +-64 can be multiplied with x + 128 as they are: two such products fit
// a word. The caller takes 128 times the panel's sum back.
#if !defined(EDGE_SCALAR) && defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr bool kHasSmall = true;
#else
constexpr bool kHasSmall = false;
#endif
constexpr int kSmall = 64, kSmallXBias = 128;

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
// (an even number) of 4 columns.
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

// One row of int8 as add_products wants it; `columns` is a multiple of 32.
static inline void copy_x(const int8_t* from, size_t columns, X* to) {
#if defined(__x86_64__) && !defined(EDGE_SCALAR) && !defined(__AVX512VNNI__)
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
