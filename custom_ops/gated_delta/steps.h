// GatedDelta one step after the other. A block of the state's columns is read for what it knows of
// the key, and again, now near at hand, to be corrected. The form for decoding.
#pragma once
#include "gated_delta/inputs.h"
#include "native/math.h"

namespace edge {
namespace EDGE_ISA {
namespace gated_delta {

// One step on kV vectors of the state's columns, the last of which may be part of one. `left` is
// what the step leaves of each key channel.
template <size_t kV>
static inline void step_columns(const Head& head, size_t step, size_t column, const float* from,
                                const float* left) {
  const size_t width = head.width;
  // Only the last vector of a block of one can be part of one: the others stay plain moves.
  const size_t lanes = kV > 1 ? kLanes : width - column;
  const float* key = head.key + step * head.key_stride;
  const float* query = head.query + step * head.key_stride;
  const float* value = head.value + step * head.value_stride + column;
  const F32 beta = splat(head.beta[step * head.beta_stride]);
  F32 change[kV] = {};
  for (size_t c = 0; c < head.size; c++) {
    const F32 k = splat(key[c] * left[c]);
#pragma unroll
    for (size_t v = 0; v < kV; v++) {
      const F32 s = load_some(from + c * width + column + v * kLanes, lanes);
      change[v] = multiply_add(k, s, change[v]);
    }
  }
  for (size_t v = 0; v < kV; v++) {
    change[v] = beta * (load_some(value + v * kLanes, lanes) - change[v]);
  }
  F32 sums[kV] = {};
  for (size_t c = 0; c < head.size; c++) {
    const F32 kept = splat(left[c]), k = splat(key[c]), q = splat(query[c]);
#pragma unroll
    for (size_t v = 0; v < kV; v++) {
      const size_t at = c * width + column + v * kLanes;
      const F32 s = load_some(from + at, lanes) * kept + k * change[v];
      store_some(head.state_out + at, s, lanes);
      sums[v] = multiply_add(q, s, sums[v]);
    }
  }
  float* y = head.y + step * head.value_stride + column;
  for (size_t v = 0; v < kV; v++) {
    store_some(y + v * kLanes, sums[v] * splat(head.scale), lanes);
  }
}

static void leave(const Head& head, size_t step, float* left) {
  const float* decay = head.decay + step * head.decay_stride;
  if (!head.by_channel) {
    const float all = exp(splat(decay[0]))[0];
    for (size_t c = 0; c < head.size; c++) left[c] = all;
    return;
  }
  for (size_t c = 0; c < head.size; c += kLanes) {
    store_some(left + c, exp(load_some(decay + c, head.size - c)), head.size - c);
  }
}

// All of the row's steps; the first reads the state where it came in. `left` has room for the key
// channels.
static void run_steps(const Head& head, float* left) {
  for (size_t step = 0; step < head.steps; step++) {
    const float* from = step ? head.state_out : head.state;
    leave(head, step, left);
    size_t column = 0;
    for (; column + 8 * kLanes <= head.width; column += 8 * kLanes) {
      step_columns<8>(head, step, column, from, left);
    }
    for (; column + 2 * kLanes <= head.width; column += 2 * kLanes) {
      step_columns<2>(head, step, column, from, left);
    }
    for (; column < head.width; column += kLanes) step_columns<1>(head, step, column, from, left);
  }
}

}  // namespace gated_delta
}  // namespace EDGE_ISA
}  // namespace edge
