// Sums of products of a step's codes with x, as integers: the instructions that each processor has
// for it. A vector has the four columns of a quad for kLanes rows.
#pragma once
#include "native/packed_codes.h"
#include "native/packed_x.h"

namespace edge {
namespace EDGE_ISA {

using CodeWords = uint16_t __attribute__((vector_size(kLanes * 4)));

// What is taken from each code before it is multiplied. Codes of 8 bits do not fit signed bytes.
#if defined(EDGE_SCALAR) || defined(__AVX512VNNI__) || defined(__ARM_FEATURE_MATMUL_INT8)
template <int kBits>
constexpr int kCodeCentre = 0;
#elif defined(__AVX2__) || defined(__aarch64__)
template <int kBits>
constexpr int kCodeCentre = kBits == 8 ? 128 : 0;
#else
template <int kBits>
constexpr int kCodeCentre = 0;
#endif

namespace detail {

// Quads whose products sums of 16 bits can hold: two of them to a pair of columns, and twice that
// where halves are added before they are widened.
template <int kBits>
constexpr size_t kNarrowQuads = kBits <= 4 ? 8 : kBits == 5 ? 4 : kBits == 6 ? 2 : 1;

// Fetches a step's codes far ahead into the second cache.
template <int kBits>
static inline void fetch_ahead(const uint8_t* step) {
#pragma unroll
  for (size_t line = 0; line < kBits; line++) {
    __builtin_prefetch(step + line * kPackedLine + 12288, 0, 2);
  }
}

static inline int32_t four(const int8_t* x) { return read<int32_t>(x); }

// Parts of a line whose products are in registers together. What multiplies a quad of x from its
// place in a vector needs all of them: from a loop over them the quads would be spread out first.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr size_t kPartsTogether = kPartsOfLine;
#else
constexpr size_t kPartsTogether = 2;
#endif

#if defined(EDGE_SCALAR)

template <int kBits>
EDGE_OUT_OF_LINE static int32_t row_products(const uint8_t* codes, size_t steps, const int8_t* x) {
  int32_t sum = 0;
  for (; steps; steps--, codes += kBits * kPackedLine, x += kPackedStep) {
    Bytes quads[kQuadsOfStep];
    unpack_step<kBits>(codes, quads);
    for (size_t i = 0; i < kPackedStep; i++) sum += int32_t(quads[i / 4][i % 4]) * x[i];
  }
  return sum;
}

#elif defined(__AVX512VNNI__)

static inline I32 four_products(I32 sums, Bytes codes, const int8_t* x) {
  return (I32)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, _mm512_set1_epi32(four(x)));
}

template <int kBits>
static inline I32 add_products(I32 sums, const Bytes (&codes)[kQuadsOfStep], const int8_t* x) {
  I32 others = {};
#pragma unroll
  for (size_t i = 0; i < kQuadsOfStep; i += 2) {
    sums = four_products(sums, codes[i], x + i * 4);
    others = four_products(others, codes[i + 1], x + i * 4 + 4);
  }
  return sums + others;
}

#elif defined(__AVX2__)

template <int kBits>
static inline I32 add_products(I32 sums, const Bytes (&codes)[kQuadsOfStep], const int8_t* x) {
  constexpr size_t kNarrow = kNarrowQuads<kBits>;
#pragma unroll
  for (size_t i = 0; i < kQuadsOfStep; i += kNarrow) {
    __m256i narrow = _mm256_setzero_si256();
#pragma unroll
    for (size_t j = i; j < i + kNarrow; j++) {
      const __m256i xs = _mm256_set1_epi32(four(x + j * 4));
      __m256i pairs;
      if constexpr (kBits == 8) {
        const __m256i centred = (__m256i)(codes[j] ^ uint8_t(0x80));
        pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(xs, centred));
      } else {
        pairs = _mm256_maddubs_epi16((__m256i)codes[j], xs);
      }
      narrow = _mm256_add_epi16(narrow, pairs);
    }
    sums += (I32)_mm256_madd_epi16(narrow, _mm256_set1_epi16(1));
  }
  return sums;
}

#elif defined(__ARM_FEATURE_DOTPROD)

template <int kBits>
static inline I32 four_products(I32 sums, Bytes codes, I32 x) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (kBits == 8) {
    return (I32)vusdotq_s32((int32x4_t)sums, (uint8x16_t)codes, (int8x16_t)x);
  }
#endif
  const Bytes centred = codes ^ uint8_t(kCodeCentre<kBits>);
  return (I32)vdotq_s32((int32x4_t)sums, (int8x16_t)centred, (int8x16_t)x);
}

template <int kBits>
static inline I32 add_products(I32 sums, const Bytes (&codes)[kQuadsOfStep], const int8_t* x) {
  I32 others = {};
#pragma unroll
  for (size_t i = 0; i < kQuadsOfStep; i += 4) {
    const I32 xs = read<I32>(x + i * 4);  // four quads, each taken from its place in it
#pragma unroll
    for (size_t j = 0; j < 4; j += 2) {
      sums = four_products<kBits>(sums, codes[i + j], I32{} + xs[j]);
      others = four_products<kBits>(others, codes[i + j + 1], I32{} + xs[j + 1]);
    }
  }
  return sums + others;
}

#elif defined(__aarch64__)

template <int kBits>
static inline I32 add_products(I32 sums, const Bytes (&codes)[kQuadsOfStep], const int8_t* x) {
  constexpr size_t kNarrow = kNarrowQuads<kBits>;
#pragma unroll
  for (size_t i = 0; i < kQuadsOfStep; i += kNarrow) {
    int16x8_t low = vdupq_n_s16(0), high = vdupq_n_s16(0);
#pragma unroll
    for (size_t j = i; j < i + kNarrow; j++) {
      const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(four(x + j * 4)));
      const int8x16_t centred = (int8x16_t)(codes[j] ^ uint8_t(kCodeCentre<kBits>));
      low = vmlal_s8(low, vget_low_s8(centred), vget_low_s8(xs));
      high = vmlal_high_s8(high, centred, xs);
    }
    sums = (I32)vpadalq_s16((int32x4_t)sums, vpaddq_s16(low, high));
  }
  return sums;
}

#else

template <int kBits>
static inline I32 add_products(I32 sums, const Bytes (&codes)[kQuadsOfStep], const int8_t* x) {
#pragma unroll
  for (size_t i = 0; i < kQuadsOfStep; i++) {
    __m128i xs = _mm_cvtsi32_si128(four(x + i * 4));
    xs = _mm_srai_epi16(_mm_unpacklo_epi8(xs, xs), 8);
    xs = _mm_shufflelo_epi16(xs, _MM_SHUFFLE(3, 1, 2, 0));  // columns 0, 2, 1, 3
    const CodeWords words = (CodeWords)codes[i];
    const __m128i even = (__m128i)(words & uint16_t(0xff)), odd = (__m128i)(words >> 8);
    sums += (I32)_mm_madd_epi16(even, _mm_shuffle_epi32(xs, 0x00));
    sums += (I32)_mm_madd_epi16(odd, _mm_shuffle_epi32(xs, 0x55));
  }
  return sums;
}

#endif

#if !defined(EDGE_SCALAR)

// The sums of kLanes rows' codes times x over `steps` steps, for each of kM rows of x.
template <int kBits, size_t kM>
static inline void step_products(const uint8_t* codes, size_t steps, const int8_t* x,
                                 size_t x_stride, bool fetch, I32 (&sums)[kPartsOfLine][kM]) {
  for (size_t step = 0; step < steps; step++) {
    if (fetch) fetch_ahead<kBits>(codes + step * kBits * kPackedLine);
#pragma unroll(kPartsTogether)
    for (size_t part = 0; part < kPartsOfLine; part++) {
      Bytes quads[kQuadsOfStep];
      unpack_step<kBits>(codes + step * kBits * kPackedLine + part * sizeof(Bytes), quads);
#pragma unroll
      for (size_t m = 0; m < kM; m++) {
        sums[part][m] =
            add_products<kBits>(sums[part][m], quads, x + m * x_stride + step * kPackedStep);
      }
    }
  }
}

#endif

#if defined(__AVX512VNNI__) && !defined(EDGE_SCALAR)

// For a single row of x, shifting codes into place costs as much as multiplying them. They are
// multiplied where they stand instead, and the sums of each place are shifted once.
template <int kBits>
struct MaskedProducts {
  static constexpr size_t kPlaces = kBits == 3 ? 8 : 4;
  I32 at[kPlaces] = {};

  void add_step(const uint8_t* codes, const int8_t* x) {
    Bytes c[kBits];
#pragma unroll
    for (size_t i = 0; i < kBits; i++) c[i] = read<Bytes>(codes + i * kPackedLine);
    const auto add = [&](size_t place, Bytes some, size_t quad) {
      at[place] = four_products(at[place], some, x + quad * 4);
    };
    if constexpr (kBits == 2) {
#pragma unroll
      for (size_t i = 0; i < 8; i++) add(i % 4, c[i / 4] & uint8_t(3 << i % 4 * 2), i);
    } else if constexpr (kBits == 3) {
#pragma unroll
      for (size_t i = 0; i < 6; i++) add(i, c[i / 2] & uint8_t(i % 2 ? 0x38 : 0x07), i);
#pragma unroll
      for (size_t i = 6; i < 8; i++) {  // bits 6-7 to 4-5, beside bit 6 from the third line
        const Bytes two = (Bytes)((CodeWords)c[i - 6] >> 2) & uint8_t(0x30);
        const Bytes one = (i == 7 ? (Bytes)((CodeWords)c[2] >> 1) : c[2]) & uint8_t(0x40);
        add(i, two | one, i);
      }
    } else {
#pragma unroll
      for (size_t i = 0; i < 8; i++) add(i % 4, c[i / 2] & uint8_t(i % 2 ? 0xf0 : 0x0f), i);
    }
  }

  I32 total() const {
    if constexpr (kBits == 2) return (at[0] + (at[1] >> 2)) + ((at[2] >> 4) + (at[3] >> 6));
    if constexpr (kBits == 4) return (at[0] + at[2]) + ((at[1] + at[3]) >> 4);
    if constexpr (kBits == 3) {
      return (at[0] + at[2] + at[4]) + ((at[1] + at[3] + at[5]) >> 3) + ((at[6] + at[7]) >> 4);
    }
    return I32{};
  }
};

template <int kBits>
static inline I32 masked_products(const uint8_t* codes, size_t steps, const int8_t* x,
                                  bool fetch) {
  MaskedProducts<kBits> products;
#pragma unroll 2
  for (size_t i = 0; i < steps; i++) {
    if (fetch) fetch_ahead<kBits>(codes);
    products.add_step(codes, x);
    codes += kBits * kPackedLine;
    x += kPackedStep;
  }
  return products.total();
}

#endif

// sum over the columns of `steps` steps of (code - kCodeCentre) * x: [rows / kLanes][kM]. With
// `fetch`, what comes next is fetched ahead.
template <int kBits, size_t kM>
static inline void code_products(const uint8_t* codes, size_t steps, const int8_t* x,
                                 size_t x_stride, bool fetch, I32 (&sums)[kPartsOfLine][kM]) {
#if defined(EDGE_SCALAR)
  static_assert(kM == 1);
  (void)x_stride, (void)fetch;
  for (size_t r = 0; r < kStripRows; r++) {
    sums[r][0] = I32{row_products<kBits>(codes + r * sizeof(Bytes), steps, x)};
  }
#else
#if defined(__AVX512VNNI__)
  if constexpr (kM == 1 && kBits <= 4) {
    sums[0][0] = masked_products<kBits>(codes, steps, x, fetch);
    return;
  }
#endif
#pragma unroll
  for (size_t part = 0; part < kPartsOfLine; part++) {
#pragma unroll
    for (size_t m = 0; m < kM; m++) sums[part][m] = I32{};
  }
  step_products<kBits, kM>(codes, steps, x, x_stride, fetch, sums);
#endif
}

}  // namespace detail
}  // namespace EDGE_ISA
}  // namespace edge
