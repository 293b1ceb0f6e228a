// What the machine can do at most, measured: reading memory, fused multiply-adds, and products of
// bytes summed in 32 bits.
#include "native/vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#define BENCH extern "C" __attribute__((visibility("default")))

using namespace edge::EDGE_ISA;

// The sum is returned so that no read can be left out.
BENCH float bench_read(const float* p, size_t count) {
  constexpr size_t kUnroll = 8, kAhead = 1024;  // floats: 4 KiB
  F32 sums[kUnroll] = {};
  for (size_t i = 0; i + kUnroll * kLanes <= count; i += kUnroll * kLanes) {
#pragma unroll
    for (size_t u = 0; u < kUnroll; u++) {
      prefetch(p + i + u * kLanes + kAhead);
      sums[u] += load(p + i + u * kLanes);
    }
  }
  for (size_t u = 1; u < kUnroll; u++) sums[0] += sums[u];
  return sum(sums[0]);
}

// 2 * 12 * kLanes operations in every round, all in registers.
BENCH float bench_multiply_add(size_t rounds) {
  constexpr size_t kChains = 12;
  F32 sums[kChains];
  for (size_t c = 0; c < kChains; c++) sums[c] = splat(float(c));
  F32 factor = splat(0.999f), term = splat(0.001f);
  for (size_t i = 0; i < rounds; i++) {
#pragma unroll
    for (size_t c = 0; c < kChains; c++) {
      sums[c] = multiply_add(sums[c], factor, term);
#if defined(__x86_64__)
      __asm__ volatile("" : "+v"(sums[c]));  // or the compiler would find the closed form
#else
      __asm__ volatile("" : "+w"(sums[c]));
#endif
    }
  }
  for (size_t c = 1; c < kChains; c++) sums[0] += sums[c];
  return sum(sums[0]);
}

BENCH size_t bench_operations_per_round() { return 2 * 12 * kLanes; }

// One step of a chain: kByteProducts products of bytes into each of kLanes sums.
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr size_t kByteProducts = 8;
#else
constexpr size_t kByteProducts = 4;
#endif

static inline I32 add_byte_products(I32 sums, const I32 a, const I32 b) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
  return sums + (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__x86_64__)
  return sums + (I32)_mm_madd_epi16((__m128i)a, (__m128i)b) +
         (I32)_mm_madd_epi16((__m128i)b, (__m128i)a);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return (I32)vmmlaq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)b);
#elif defined(__ARM_FEATURE_DOTPROD)
  return (I32)vdotq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)b);
#else
  const int8x16_t x = (int8x16_t)a, y = (int8x16_t)b;
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y));
  return (I32)vpadalq_s16((int32x4_t)sums, vmlal_high_s8(low, x, y));
#endif
}

// 2 * 12 * kByteProducts * kLanes operations in every round, all in registers.
BENCH int bench_multiply_bytes(size_t rounds) {
  constexpr size_t kChains = 12;
  I32 sums[kChains] = {};
  I32 a = I32{} + 0x01020304;
  const I32 b = I32{} + 0x05060708;
  for (size_t i = 0; i < rounds; i++) {
#pragma unroll
    for (size_t c = 0; c < kChains; c++) {
#if defined(__x86_64__)
      __asm__ volatile("" : "+v"(sums[c]), "+v"(a));  // or the product would be made but once
#else
      __asm__ volatile("" : "+w"(sums[c]), "+w"(a));
#endif
      sums[c] = add_byte_products(sums[c], a, b);
    }
  }
  for (size_t c = 1; c < kChains; c++) sums[0] += sums[c];
  return sums[0][0];
}

BENCH size_t bench_byte_operations_per_round() { return 2 * 12 * kByteProducts * kLanes; }
