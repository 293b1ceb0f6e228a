// What is left, at each step of a chunk, of what each earlier step wrote into a state that decays:
// exp of the sum of the logs between them. Sums are in double, since their differences cancel, and
// no exponent is positive when no log is.
#pragma once
#include "native/math.h"

namespace edge {
namespace EDGE_ISA {

// Products that fade away become zero before they become subnormal, which is slow.
static inline F32 faded(F32 x) { return select(abs(x) < splat(1e-30f), F32{}, x); }

struct Decays {
  // Steps between two rows made by exp. Rows between are made from the row before, which costs a
  // product each; few of them, since each rounds.
  static constexpr size_t kAnchor = 16;

  float* since;   // [all] of each step up to the present, times its weight; zero after it
  float* held;    // [all] of what was there before the chunk
  float* step;    // [all] a step's own
  float* weight;  // [all]
  double* total;  // [all] sums of the logs
  size_t all, steps;

  // `all` is a multiple of kAnchor.
  static constexpr size_t floats(size_t all) { return 6 * all; }

  Decays(float* memory, size_t size)
      : since(memory + 2 * size),
        held(memory + 3 * size),
        step(memory + 4 * size),
        weight(memory + 5 * size),
        total(reinterpret_cast<double*>(memory)),
        all(size),
        steps(0) {}

  // Then add(0) to add(count - 1), and end().
  void begin(size_t count) {
    steps = count;
    for (size_t i = 0; i < all; i++) since[i] = held[i] = step[i] = weight[i] = 0.0f;
    for (size_t i = 0; i < all; i++) total[i] = 0;
  }
  void add(size_t i, double log, float w) {
    total[i] = log + (i ? total[i - 1] : 0.0);
    step[i] = float(log);
    weight[i] = w;
  }
  void end() {
    for (size_t i = 0; i < steps; i++) held[i] = float(total[i]);
    for (size_t i = 0; i < steps; i += kLanes) {
      store(step + i, exp(load(step + i)));
      store(held + i, exp(load(held + i)));
    }
  }

  // From step i - 1 to step i.
  void advance(size_t i) const {
    if (i % kAnchor == 0) {
      anchor(i, i);
    } else {
      const F32 left = splat(step[i]);
      for (size_t j = 0; j < i; j += kLanes) store(since + j, faded(load(since + j) * left));
    }
    since[i] = weight[i];
  }

  // At the last step, with as little error as exp has: what the state after the chunk is made of.
  void finish() const { anchor(steps - 1, steps); }

 private:
  void anchor(size_t i, size_t count) const {
    for (size_t j = 0; j < count; j++) since[j] = float(total[i] - total[j]);
    for (size_t j = 0; j < count; j += kLanes) {
      store(since + j, exp(load(since + j)) * load(weight + j));
    }
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
