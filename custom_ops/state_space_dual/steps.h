// StateSpaceDual one step after the other: one pass over the state, which is read once, written
// once and used while it is in registers. The form for decoding.
#pragma once
#include "native/math.h"
#include "state_space_dual/inputs.h"

namespace edge {
namespace EDGE_ISA {
namespace state_space {

// One step on kV vectors of the state's columns, the last of which may be part of one.
template <size_t kV>
static inline void step_columns(const Head& head, size_t step, size_t column, const float* from,
                                float decay) {
  const size_t width = head.width;
  const float* b = head.b + step * head.b_stride;
  const float* c = head.c + step * head.b_stride;
  const float* x = head.x + step * head.x_stride + column;
  const float dt = head.dt[step * head.dt_stride];
  const F32 kept = splat(decay);
  F32 xs[kV], sums[kV];
  for (size_t v = 0; v < kV; v++) {
    xs[v] = load_some(x + v * kLanes, width - column - v * kLanes);
    sums[v] = xs[v] * splat(head.skip);
  }
  for (size_t n = 0; n < head.size; n++) {
    const float* old = from + n * width + column;
    float* to = head.state_out + n * width + column;
    const F32 write = splat(dt * b[n]), read = splat(c[n]);
#pragma unroll
    for (size_t v = 0; v < kV; v++) {
      // Only the last vector of a block of one can be part of one: the others stay plain moves.
      const size_t left = kV > 1 ? kLanes : width - column;
      const F32 s = load_some(old + v * kLanes, left) * kept + write * xs[v];
      store_some(to + v * kLanes, s, left);
      sums[v] = multiply_add(read, s, sums[v]);
    }
  }
  float* y = head.y + step * head.x_stride + column;
  for (size_t v = 0; v < kV; v++) {
    store_some(y + v * kLanes, sums[v], width - column - v * kLanes);
  }
}

static void one_step(const Head& head, size_t step, const float* from) {
  const float decay = exp(splat(head.dt[step * head.dt_stride] * head.a))[0];
  size_t column = 0;
  for (; column + 8 * kLanes <= head.width; column += 8 * kLanes) {
    step_columns<8>(head, step, column, from, decay);
  }
  for (; column + 4 * kLanes <= head.width; column += 4 * kLanes) {
    step_columns<4>(head, step, column, from, decay);
  }
  for (; column + 2 * kLanes <= head.width; column += 2 * kLanes) {
    step_columns<2>(head, step, column, from, decay);
  }
  for (; column < head.width; column += kLanes) step_columns<1>(head, step, column, from, decay);
}

// All of the row's steps; the first reads the state where it came in.
static inline void run_steps(const Head& head) {
  for (size_t step = 0; step < head.steps; step++) {
    one_step(head, step, step ? head.state_out : head.state);
  }
}

}  // namespace state_space
}  // namespace EDGE_ISA
}  // namespace edge
