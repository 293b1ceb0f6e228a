// CausalConv in some channels of one row: the window slides through registers.
#pragma once
#include "native/math.h"
#include "native/pages.h"

namespace edge {
namespace EDGE_ISA {
namespace conv {

// Taps whose weights and inputs fit in registers; more are done in several passes.
constexpr int64_t kHeld = 4;
// Steps after which the next channels follow: what they read stays in the first cache.
constexpr int64_t kSteps = 32;
// Steps ahead of which inputs are fetched: they lie in rows of their own, so that processors do not
// foresee them.
constexpr int64_t kAhead = 8;

struct Row {
  const float* x;       // [S, C]
  const float* weight;  // [K, C]
  const float* bias;    // [C]
  const float* state;   // [K-1, C], the inputs before x
  float* y;             // [S, C]
  float* state_out;     // [K-1, C]
  int64_t channels;     // C
  int64_t taps;         // K

  // The input of step t, which may be one of the K-1 before the first.
  const float* input(int64_t t) const {
    return t < 0 ? state + (taps - 1 + t) * channels : x + t * channels;
  }
};

// kCount taps from `tap` on, in `lanes` channels from `c` on, over steps `from` to `to`. The sums
// over the taps collect in y; the last taps also activate.
template <int64_t kCount, bool kWhole>
EDGE_OUT_OF_LINE static void add_taps(const Row& row, int64_t c, size_t lanes, int64_t tap,
                                      int64_t from, int64_t to, bool activates) {
  const auto get = [&](const float* p) { return kWhole ? load(p) : load_part(p, lanes); };
  const int64_t before = row.taps - 1 - tap;  // the first of these taps looks this far back
  F32 weight[kCount], in[kCount];
  for (int64_t k = 0; k < kCount; k++) weight[k] = get(row.weight + (tap + k) * row.channels + c);
  for (int64_t k = 0; k + 1 < kCount; k++) in[k + 1] = get(row.input(from - before + k) + c);
  const F32 bias = get(row.bias + c);
  for (int64_t t = from; t < to; t++) {
#pragma unroll
    for (int64_t k = 0; k + 1 < kCount; k++) in[k] = in[k + 1];
    in[kCount - 1] = get(row.input(t - before + kCount - 1) + c);
    float* y = row.y + t * row.channels + c;
    prefetch(row.x + (t + kAhead) * row.channels + c);
    F32 sum = tap ? get(y) : bias;
#pragma unroll
    for (int64_t k = 0; k < kCount; k++) sum = multiply_add(weight[k], in[k], sum);
    if (activates) sum = silu(sum);
    kWhole ? store(y, sum) : store_part(y, sum, lanes);
  }
}

template <bool kWhole>
static inline void all_taps(const Row& row, int64_t c, size_t lanes, int64_t from, int64_t to,
                            bool activates) {
  for (int64_t tap = 0; tap < row.taps;) {
    const int64_t rest = row.taps - tap;
    const bool acts = activates && rest <= kHeld;
    if (rest >= 4) {
      add_taps<4, kWhole>(row, c, lanes, tap, from, to, acts);
    } else if (rest == 3) {
      add_taps<3, kWhole>(row, c, lanes, tap, from, to, acts);
    } else if (rest == 2) {
      add_taps<2, kWhole>(row, c, lanes, tap, from, to, acts);
    } else {
      add_taps<1, kWhole>(row, c, lanes, tap, from, to, acts);
    }
    tap += kHeld;
  }
}

// `count` steps in channels `first` to `last`.
static void convolve(const Row& row, int64_t first, int64_t last, int64_t count, bool activates) {
  constexpr int64_t kWide = int64_t(kLanes);
  for (int64_t from = 0; from < count; from += kSteps) {
    const int64_t to = smaller(from + kSteps, count);
    int64_t c = first;
    for (; c + kWide <= last; c += kWide) all_taps<true>(row, c, kLanes, from, to, activates);
    if (c < last) all_taps<false>(row, c, size_t(last - c), from, to, activates);
  }
}

// The state after `count` steps: their last K-1 inputs. An input moves to a row before its own, or
// stays, so that it may happen in place.
static void keep_inputs(const Row& row, int64_t first, int64_t last, int64_t count) {
  for (int64_t k = 0; k + 1 < row.taps; k++) {
    const float* from = row.input(count - (row.taps - 1) + k) + first;
    float* to = row.state_out + k * row.channels + first;
    if (from != to) __builtin_memcpy(to, from, size_t(last - first) * sizeof(float));
  }
}

}  // namespace conv
}  // namespace EDGE_ISA
}  // namespace edge
