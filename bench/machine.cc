// What the machine can do at most, measured: reading memory, and fused multiply-adds.
#include "native/vector.h"

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
