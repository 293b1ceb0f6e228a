// What a task makes of its rows: finished, or as one of several splits of their keys, to be merged.
#pragma once
#include "latent_attention/tile.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

static inline void give(const Rows& rows, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows.count; r++) {
    const float factor = 1.0f / rows.mass[r];
    const float* from = rows.output + r * rows.v_dim;
    for (int64_t d = 0; d < rows.v_dim; d++) to[r * stride + d] = from[d] * factor;
  }
}

struct Splits {
  float* output;  // [places][v_dim], not yet divided by mass
  float* stats;   // [places], peak and mass
  int64_t v_dim;

  static int64_t floats(int64_t places, int64_t v_dim) { return places * (v_dim + 2); }
  void use(float* memory, int64_t places, int64_t dim) {
    output = memory;
    stats = output + places * dim;
    v_dim = dim;
  }

  void keep(const Rows& rows, int64_t place) const {
    float* to = output + place * v_dim;
    for (int64_t i = 0; i < rows.count * v_dim; i++) to[i] = rows.output[i];
    for (int64_t r = 0; r < rows.count; r++) {
      stats[2 * (place + r)] = rows.peak[r];
      stats[2 * (place + r) + 1] = rows.mass[r];
    }
  }

  // Weighs `count` splits' results for one row, `step` places apart, against their common peak.
  void merge(int64_t place, int64_t step, int64_t count, float* to) const {
    float top = kLowest, total = 0;
    for (int64_t k = 0; k < count; k++) {
      const float peak = stats[2 * (place + k * step)];
      top = peak > top ? peak : top;
    }
    for (int64_t d = 0; d < v_dim; d++) to[d] = 0;
    for (int64_t k = 0; k < count; k++) {
      const int64_t i = place + k * step;
      const float factor = exp_of_negative(splat(stats[2 * i] - top))[0];
      const float* from = output + i * v_dim;
      total += stats[2 * i + 1] * factor;
      for (int64_t d = 0; d < v_dim; d++) to[d] += factor * from[d];
    }
    for (int64_t d = 0; d < v_dim; d++) to[d] *= 1.0f / total;
  }
};

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
