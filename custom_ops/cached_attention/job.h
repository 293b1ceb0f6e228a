// What one task of CachedAttention works on: some query rows of one key/value head against a range
// of the keys that its cache holds. A query row is one head of one step: row r is head r % group of
// step r / group, so that the heads that share keys are worked on together.
#pragma once
#include "native/int8_row.h"
#include "native/pages.h"
#include "native/softmax.h"

namespace edge {
namespace EDGE_ISA {
namespace attention {

// Keys worked on between two looks at the running maximum.
constexpr int64_t kBlockKeys = 64;

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

static inline F32 soft_cap(F32 x, F32 cap, F32 inverse) { return cap * tanh(x * inverse); }

}  // namespace attention
}  // namespace EDGE_ISA
}  // namespace edge
