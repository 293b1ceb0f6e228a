// The recurrence of SelectiveScan in some channels of one row: many steps with the state in
// registers, or one step as a single pass over the state.
#pragma once
#include "native/math.h"
#include "native/pages.h"

namespace edge {
namespace EDGE_ISA {
namespace scan {

// States of a channel that fit in registers beside what a step needs.
constexpr int64_t kHeld = kLanes == 16 ? 16 : 8;
// Steps after which the next channels follow: what they read stays in the first cache.
constexpr int64_t kSteps = 32;

struct Row {
  const float *x, *dt;  // [S, D]
  const float* a;       // [N, D]
  const float *b, *c;   // [S, N]
  const float* state;   // [N, D]
  float* y;             // [S, D]
  float* state_out;     // [N, D]
  int64_t channels;     // D
  int64_t states;       // N
};

// 2^y, which ends at 2^-126 and 2^127. 2^r = 1 + r p(r), with p fitted over [-1/2, 1/2] and exact at 0
// (error 1.1e-7), because the time that a slow decay takes is all in what its factor lacks to 1.
// The whole part of y is added to the exponent's bits. NaN stays one if its low bits are zero.
static inline F32 power_of_two(F32 y) {
  y = min(splat(127.0f), max(splat(-126.0f), y));  // in this order, a NaN passes
  const F32 magic = splat(0x1.8p23f);  // adding it rounds to an integer, left in the low bits
  const F32 shifted = y + magic;
  const F32 r = y - (shifted - magic);
  F32 p = splat(0x1.5caa58p-10f);
  p = multiply_add(p, r, splat(0x1.3cdafep-7f));
  p = multiply_add(p, r, splat(0x1.c6b3a6p-5f));
  p = multiply_add(p, r, splat(0x1.ebf9f2p-3f));
  p = multiply_add(p, r, splat(0x1.62e430p-1f));
  p = multiply_add(p, r, splat(1.0f));
  return (F32)((I32)p + ((I32)shifted << 23));
}

// A NaN with nothing in its low bits, for power_of_two; no other value changes.
static inline F32 plain_nan(F32 x) { return select(x == x, x, splat(__builtin_nanf(""))); }

// exp(dt * a) is 2^(dt * rate). Finite, so that no decay becomes of dt = 0.
static inline F32 rate_of(F32 a) {
  return plain_nan(max(splat(-0x1.fffffep127f), a * splat(0x1.715476p0f)));
}

// kCount states from `n` on of `lanes` channels from `d` on, over steps `from` to `to`. The sums
// over the states collect in y.
template <int64_t kCount, bool kWhole>
EDGE_OUT_OF_LINE static void advance_states(const Row& row, int64_t d, size_t lanes, int64_t n,
                                            int64_t from, int64_t to) {
  const auto get = [&](const float* p) { return kWhole ? load(p) : load_part(p, lanes); };
  const auto put = [&](float* p, F32 v) { kWhole ? store(p, v) : store_part(p, v, lanes); };
  const float* old = from == 0 ? row.state : row.state_out;
  F32 h[kCount], rate[kCount];
  for (int64_t i = 0; i < kCount; i++) {
    h[i] = get(old + (n + i) * row.channels + d);
    rate[i] = rate_of(get(row.a + (n + i) * row.channels + d));
  }
  for (int64_t t = from; t < to; t++) {
    const int64_t at = t * row.channels + d;
    const F32 dt = plain_nan(get(row.dt + at)), x = get(row.x + at);
    const float* b = row.b + t * row.states + n;
    const float* c = row.c + t * row.states + n;
    F32 sum = n ? get(row.y + at) : F32{};
    F32 odd = {};  // two sums, to wait less for each
#pragma unroll
    for (int64_t i = 0; i < kCount; i++) {
      h[i] = multiply_add(power_of_two(dt * rate[i]), h[i], x * splat(b[i]));
      F32& part = i % 2 ? odd : sum;
      part = multiply_add(splat(c[i]), h[i], part);
    }
    put(row.y + at, sum + odd);
  }
  for (int64_t i = 0; i < kCount; i++) put(row.state_out + (n + i) * row.channels + d, h[i]);
}

// All states from `n` on, as many at a time as fit.
template <int64_t kCount, bool kWhole>
static inline void advance(const Row& row, int64_t d, size_t lanes, int64_t n, int64_t from,
                           int64_t to) {
  for (; n + kCount <= row.states; n += kCount) {
    advance_states<kCount, kWhole>(row, d, lanes, n, from, to);
  }
  if constexpr (kCount > 1) advance<kCount / 2, kWhole>(row, d, lanes, n, from, to);
}

// `count` steps in channels `first` to `last`.
static void many_steps(const Row& row, int64_t first, int64_t last, int64_t count) {
  constexpr int64_t kWide = int64_t(kLanes);
  for (int64_t from = 0; from < count; from += kSteps) {
    const int64_t to = smaller(from + kSteps, count);
    int64_t d = first;
    for (; d + kWide <= last; d += kWide) advance<kHeld, true>(row, d, kLanes, 0, from, to);
    if (d < last) advance<4, false>(row, d, size_t(last - d), 0, from, to);
  }
}

// State `n` of `lanes` channels, in one step. The next state is fetched, which lies in a row of its
// own: processors foresee only what follows in the same page.
template <bool kWhole>
static inline void step_channels(const Row& row, int64_t d, size_t lanes, int64_t n) {
  const auto get = [&](const float* p) { return kWhole ? load(p) : load_part(p, lanes); };
  const auto put = [&](float* p, F32 v) { kWhole ? store(p, v) : store_part(p, v, lanes); };
  const int64_t at = n * row.channels + d;
  prefetch(row.a + at + row.channels);
  prefetch(row.state + at + row.channels);
  const F32 decay = power_of_two(plain_nan(get(row.dt + d)) * rate_of(get(row.a + at)));
  const F32 h = multiply_add(decay, get(row.state + at), get(row.x + d) * splat(row.b[n]));
  put(row.state_out + at, h);
  put(row.y + d, multiply_add(splat(row.c[n]), h, n ? get(row.y + d) : F32{}));
}

// One step, reading the state as it lies in memory.
static void one_step(const Row& row, int64_t first, int64_t last) {
  constexpr int64_t kWide = int64_t(kLanes);
  for (int64_t n = 0; n < row.states; n++) {
    int64_t d = first;
    for (; d + kWide <= last; d += kWide) step_channels<true>(row, d, kLanes, n);
    if (d < last) step_channels<false>(row, d, size_t(last - d), n);
  }
}

}  // namespace scan
}  // namespace EDGE_ISA
}  // namespace edge
