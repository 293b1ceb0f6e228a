// What one task of CachedAttention works on: some query rows of one key/value head against a range
// of the keys that its cache holds. A query row is one head of one step: row r is head r % group of
// step r / group, so that the heads that share keys are worked on together.
#pragma once
#include "native/math.h"

// Keeps stack frames small, where instances would be inlined into one function.
#define EDGE_OUT_OF_LINE __attribute__((noinline))

namespace edge {
namespace EDGE_ISA {
namespace attention {

// Keys worked on between two looks at the running maximum.
constexpr int64_t kBlockKeys = 64;
// Stands for minus infinity where a difference of two must not be NaN.
constexpr float kLowest = -1e30f;

// The keys (or the values) of one row's one head: position p is at slot p % page of page
// table[p / page].
template <class C>
struct Strip {
  const C* base;  // this head's part of page 0
  int64_t page_stride;
  const int64_t* table;
  int64_t page;
  int64_t dim;

  // Where each of `count` positions lies. The last one is repeated up to `padded`.
  void find(int64_t from, int64_t count, int64_t padded, const C** rows) const {
    int64_t done = 0;
    while (done < count) {
      const int64_t slot = (from + done) % page;
      const C* p = base + table[(from + done) / page] * page_stride + slot * dim;
      const int64_t run = page - slot < count - done ? page - slot : count - done;
      for (int64_t i = 0; i < run; i++) rows[done + i] = p + i * dim;
      done += run;
    }
    for (; done < padded; done++) rows[done] = rows[count - 1];
  }
};

template <class C>
struct Job {
  Strip<C> keys, values;
  const float* query;    // row 0
  int64_t head_stride;   // between the heads of a step
  int64_t query_stride;  // between steps
  int64_t group;
  int64_t first_row, last_row;  // past the end
  int64_t start;                // position of step 0
  int64_t first_key, last_key;  // past the end; wider than the rows see is fine
  int64_t window;               // 0: none
  float scale, softcap;
  const float* sinks;  // or null
  int64_t sink_stride;  // 0: one for all heads

  // Either the finished output, laid out like the query ...
  float* output;
  int64_t output_head_stride, output_step_stride;
  // ... or, when stats is not null, rows without gaps, not yet divided by their mass; stats holds
  // each row's peak and mass.
  float* stats;

  int64_t rows() const { return last_row - first_row; }
  int64_t position(int64_t row) const { return start + row / group; }
  // The keys that a row sees are oldest(row) .. position(row).
  int64_t oldest(int64_t row) const {
    const int64_t p = position(row);
    return window && p >= window ? p - window + 1 : 0;
  }
  const float* query_row(int64_t row) const {
    return query + row / group * query_stride + row % group * head_stride;
  }
  float* output_row(int64_t row) const {
    if (stats) return output + (row - first_row) * values.dim;
    return output + row / group * output_step_stride + row % group * output_head_stride;
  }
  float sink(int64_t row) const { return sinks ? sinks[row % group * sink_stride] : -__builtin_inff(); }
  // A sink starts the running sum as a key of value zero would.
  float first_peak(int64_t row) const { return sink(row) > kLowest ? sink(row) : kLowest; }
  float first_mass(int64_t row) const { return sink(row) > kLowest ? 1.0f : 0.0f; }
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// exp(x) for x <= 0, zero below -87. exp(r) = 1 + r + r^2 q(r) with q fitted at Chebyshev points
// over [-ln2/2, ln2/2] (error 1e-8), times 2^n made in the exponent's bits.
static inline F32 exp_of_negative(F32 x) {
  const F32 magic = splat(0x1.8p23f);  // adding it rounds to an integer, left in the low bits
  const F32 shifted = multiply_add(x, splat(0x1.715476p0f), magic);
  const F32 n = shifted - magic;
  F32 r = multiply_add(n, splat(-0x1.62e4p-1f), x);
  r = multiply_add(n, splat(-0x1.7f7d1cp-20f), r);
  F32 q = splat(0x1.6d4366p-10f);
  q = multiply_add(q, r, splat(0x1.120ba6p-7f));
  q = multiply_add(q, r, splat(0x1.5554e8p-5f));
  q = multiply_add(q, r, splat(0x1.5554dcp-3f));
  q = multiply_add(q, r, splat(0.5f));
  q = multiply_add(q * r, r, r) + splat(1.0f);
  const F32 power = (F32)(((I32)shifted << 23) + 0x3f800000);
  return select(x < splat(-87.0f), F32{}, q * power);
}

static inline F32 soft_cap(F32 x, F32 cap, F32 inverse) { return cap * tanh(x * inverse); }

}  // namespace attention
}  // namespace EDGE_ISA
}  // namespace edge
