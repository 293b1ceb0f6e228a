// GatedDelta for many steps, as in prefill. Within a chunk each step's change of the state is
//
//     u[i] = beta[i] * (v[i] - (held[i] k[i])^T state - sum over j < i of (k[i] . faded k[j]) u[j])
//
// a triangular system, solved a tile of rows at a time; with it y and the next state are products:
//
//     y[i] = (held[i] q[i])^T state + sum over j <= i of (q[i] . faded k[j]) u[j]
//     state = held[last] state + sum over j of (faded k[j]) u[j]^T
//
// held[i] is what is left at step i of the state before the chunk; a faded k[j] is what is left of
// it at step i, or at the last step for the state.
#pragma once
#include "gated_delta/fading.h"

namespace edge {
namespace EDGE_ISA {
namespace gated_delta {

// u of a tile of rows: what values and state give, less what the earlier rows' u explain.
template <size_t kV>
static inline void solve(const Head& head, size_t first, size_t i, size_t rows, size_t q,
                         const Padded& padded, const Work& work, const float* state, float* u) {
  const float* value = head.value + (first + i) * head.value_stride + q;
  for (size_t r = 0; r < rows; r++) prefetch(value + r * head.value_stride);
  panel::Tile<kV> sums = {};
  panel::add_product(sums, {work.held_keys + i * padded.size, padded.size, 1}, state, head.size);
#pragma unroll  // or the sums would leave their registers
  for (size_t r = 0; r < panel::kRows; r++) {
    if (r >= rows) break;
    const F32 beta = splat(head.beta[(first + i + r) * head.beta_stride]);
#pragma unroll
    for (size_t v = 0; v < kV; v++) {
      const size_t at = v * kLanes;
      const F32 x = load_some(value + r * head.value_stride + at, head.width - q - at);
      sums[r][v] = beta * (x - sums[r][v]);
    }
  }
  const float* system = work.system + i * kChunk;
  panel::add_product(sums, {system, kChunk, 1}, u, i);
#pragma unroll
  for (size_t r = 1; r < panel::kRows; r++) {
#pragma unroll
    for (size_t s = 0; s < r; s++) {
      const F32 factor = splat(system[r * kChunk + i + s]);
#pragma unroll
      for (size_t v = 0; v < kV; v++) {
        sums[r][v] = multiply_add(factor, sums[s][v], sums[r][v]);
      }
    }
  }
  panel::store_tile(sums, u + i * kV * kLanes);
}

template <size_t kV>
static inline void outputs(const Head& head, size_t first, size_t i, size_t rows, size_t q,
                           const Padded& padded, const Work& work, const float* state,
                           const float* u) {
  float* y = head.y + (first + i) * head.value_stride + q;
  for (size_t r = 0; r < rows; r++) prefetch(y + r * head.value_stride);
  panel::Tile<kV> sums = {};
  panel::add_product(sums, {work.held_queries + i * padded.size, padded.size, 1}, state, head.size);
  panel::add_product(sums, {work.mixing + i * kChunk, kChunk, 1}, u, i + rows);
  panel::store_rows(sums, rows, y, head.value_stride, head.width - q);
}

template <size_t kV>
static inline void update(const Head& head, size_t steps, const Padded& padded,
                          const Shared& shared, const Work& work, float* state, float* u) {
  for (size_t i = 0; !head.by_channel && i < steps; i++) {
    const F32 left = splat(work.decays.since[i]);
    for (size_t v = 0; v < kV; v++) {
      float* at = u + (i * kV + v) * kLanes;
      store(at, load(at) * left);
    }
  }
  for (size_t c = 0; c < padded.size; c += panel::kRows) {
    panel::Tile<kV> sums = {};
    if (head.by_channel) {
      for (size_t j = 0; j < steps; j += kLanes) {
        const panel::Left left = {work.carried + j * padded.size + c * kLanes, kLanes, 1};
        const size_t count = steps - j < kLanes ? steps - j : kLanes;
        panel::add_product(sums, left, u + j * kV * kLanes, count);
      }
    } else {
      panel::add_product(sums, {shared.keys + c, 1, padded.size}, u, steps);
    }
#pragma unroll
    for (size_t r = 0; r < panel::kRows; r++) {
      const F32 left = splat(work.total[c + r]);
#pragma unroll
      for (size_t v = 0; v < kV; v++) {
        float* at = state + ((c + r) * kV + v) * kLanes;
        store(at, multiply_add(load(at), left, sums[r][v]));
      }
    }
  }
}

EDGE_OUT_OF_LINE static void chunk_of_head(const Head& head, size_t first, size_t steps,
                                           const Padded& padded, Scratchpad& pad, float* state) {
  const Shared& shared = pad.shared;
  Work& work = pad.work;
  (head.by_channel ? decay_by_channel : decay_by_head)(head, first, steps, padded, shared, work);
  panel::each_panel(padded.width, [&]<size_t kV>(size_t q) {
    float* own = state + q * padded.size;
    float* u = work.changes + q * kChunk;
    for (size_t i = 0; i < steps; i += panel::kRows) {
      const size_t rows = steps - i < panel::kRows ? steps - i : panel::kRows;
      solve<kV>(head, first, i, rows, q, padded, work, own, u);
      outputs<kV>(head, first, i, rows, q, padded, work, own, u);
    }
    update<kV>(head, steps, padded, shared, work, own, u);
  });
}

// Value heads of one key head through all chunks of their row.
EDGE_OUT_OF_LINE static void run_chunks(const Head* heads, size_t count, const Padded& padded,
                                        float* memory) {
  Scratchpad pad(memory, padded);
  const Head& any = heads[0];
  for (size_t i = 0; i < kChunk * kChunk; i++) {
    pad.shared.key_scores[i] = pad.shared.query_scores[i] = 0.0f;
  }
  for (size_t h = 0; h < count; h++) {
    float* state = pad.states + h * padded.state_floats();
    panel::pack(heads[h].state, any.width, any.size, padded.size, any.width, state);
  }
  for (size_t first = 0; first < any.steps; first += kChunk) {
    const size_t steps = any.steps - first < kChunk ? any.steps - first : kChunk;
    begin_shared(any, first, steps, padded, pad.shared);
    for (size_t h = 0; h < count; h++) {
      chunk_of_head(heads[h], first, steps, padded, pad, pad.states + h * padded.state_floats());
    }
  }
  for (size_t h = 0; h < count; h++) {
    const float* state = pad.states + h * padded.state_floats();
    panel::unpack(state, any.size, padded.size, any.width, heads[h].state_out, any.width);
  }
}

}  // namespace gated_delta
}  // namespace EDGE_ISA
}  // namespace edge
