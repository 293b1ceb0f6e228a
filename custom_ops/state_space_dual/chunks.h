// StateSpaceDual for many steps, as in prefill: within a chunk of steps the recurrence is a product
// of matrices, and between chunks the state is carried. With decay[i][j] what is left at step i of
// what step j wrote, held[i] what is left of the state before the chunk,
//
//     y = held * (C state) + (decay * C B^T * dt + skip) x
//     state = held[last] * state + B^T (decay[last] * dt * x)
//
// No exponent is ever positive. C B^T belongs to a group and serves its heads.
#pragma once
#include "native/decays.h"
#include "native/panel.h"
#include "state_space_dual/inputs.h"

namespace edge {
namespace EDGE_ISA {
namespace state_space {

constexpr size_t kChunk = 64;  // steps
static_assert(kChunk % panel::kWidth == 0);

using panel::round_up;

// Sizes as they lie in scratch memory.
struct Padded {
  size_t size, width;  // whole tiles of rows, whole vectors of columns
  size_t state_floats() const { return size * width; }

  explicit Padded(size_t n, size_t p)
      : size(round_up(n, panel::kRows)), width(round_up(p, kLanes)) {}
};

// One chunk's steps of a group: what its heads share.
struct Group {
  float* c;           // [kChunk][size]
  float* b;           // [kChunk][size]
  float* transposed;  // b transposed, in panels [size][kChunk]
  float* scores;      // C B^T in panels [kChunk][kChunk]; zero or finite after the diagonal
};

// One chunk's steps of a head.
struct Work {
  float* mixing;  // [kChunk][kChunk], what y takes of each step's x
  float* x;       // panels [kChunk][width]
  Decays decays;  // each weighed by its step's dt
};

struct Scratchpad {
  Group group;
  Work work;
  float* states;  // each head's in panels [size][width]

  static size_t floats(const Padded& padded, size_t heads) {
    return Decays::floats(kChunk) +
           kChunk * (3 * padded.size + 2 * kChunk + padded.width) +
           heads * padded.state_floats();
  }
  Scratchpad(float* memory, const Padded& padded)
      : work{nullptr, nullptr, Decays(memory, kChunk)} {
    group.c = memory + Decays::floats(kChunk);
    group.b = group.c + kChunk * padded.size;
    group.transposed = group.b + kChunk * padded.size;
    group.scores = group.transposed + kChunk * padded.size;
    work.mixing = group.scores + kChunk * kChunk;
    work.x = work.mixing + kChunk * kChunk;
    states = work.x + kChunk * padded.width;
  }
};

static void begin_group(const Head& head, size_t first, size_t steps, const Padded& padded,
                        const Group& group) {
  const size_t at = first * head.b_stride;
  panel::gather(head.c + at, head.b_stride, steps, kChunk, head.size, padded.size, group.c);
  panel::gather(head.b + at, head.b_stride, steps, kChunk, head.size, padded.size, group.b);
  panel::pack_transposed(group.b, padded.size, kChunk, head.size, group.transposed);
  panel::each_panel(kChunk, [&]<size_t kV>(size_t q) {
    // Steps look back: what lies wholly after the diagonal is not needed.
    for (size_t i = q / panel::kRows * panel::kRows; i < steps; i += panel::kRows) {
      panel::Tile<kV> sums = {};
      const panel::Left left = {group.c + i * padded.size, padded.size, 1};
      panel::add_product(sums, left, group.transposed + q * head.size, head.size);
      panel::store_tile(sums, group.scores + q * kChunk + i * kV * kLanes);
    }
  });
}

static void begin_decays(const Head& head, size_t first, size_t steps, Decays& decays) {
  decays.begin(steps);
  for (size_t i = 0; i < steps; i++) {
    const float dt = head.dt[(first + i) * head.dt_stride];
    decays.add(i, double(dt) * double(head.a), dt);
  }
  decays.end();
}

// Meanwhile the steps of the next head, from `next` on, are fetched: they lie far apart.
static void mix(const Head& head, const float* next, size_t steps, const float* scores,
                const Work& work) {
  for (size_t i = 0; i < steps; i++) {
    for (size_t p = 0; p < head.width; p += 64 / sizeof(float)) {
      prefetch(next + i * head.x_stride + p);
    }
    work.decays.advance(i);
    float* row = work.mixing + i * kChunk;
    // As far as the tile of this row looks.
    const size_t end = round_up(i + 1, panel::kRows);
    for (size_t q = 0; q < end; q += panel::kWidth) {
      const float* score = scores + q * kChunk + i * panel::kWidth;
      for (size_t j = 0; j < panel::kWidth; j += kLanes) {
        store(row + q + j, load(score + j) * load(work.decays.since + q + j));
      }
    }
    row[i] += head.skip;
  }
}

template <size_t kV>
static inline void outputs(const Head& head, size_t first, size_t steps, size_t q,
                           const Padded& padded, const Group& group, const Work& work,
                           const float* state) {
  const float* x = work.x + q * steps;
  for (size_t i = 0; i < steps; i += panel::kRows) {
    const size_t rows = steps - i < panel::kRows ? steps - i : panel::kRows;
    float* y = head.y + (first + i) * head.x_stride + q;
    for (size_t r = 0; r < rows; r++) prefetch(y + r * head.x_stride);
    panel::Tile<kV> sums = {};
    panel::add_product(sums, {group.c + i * padded.size, padded.size, 1}, state, head.size);
#pragma unroll
    for (size_t r = 0; r < panel::kRows; r++) {
      const F32 held = splat(work.decays.held[i + r]);
#pragma unroll
      for (size_t v = 0; v < kV; v++) sums[r][v] *= held;
    }
    panel::add_product(sums, {work.mixing + i * kChunk, kChunk, 1}, x, i + rows);
    panel::store_rows(sums, rows, y, head.x_stride, head.width - q);
  }
}

template <size_t kV>
static inline void update(size_t steps, size_t q, const Padded& padded, const Group& group,
                          const Work& work, float* state) {
  const F32 held = splat(work.decays.held[steps - 1]);
  float* x = work.x + q * steps;
  for (size_t i = 0; i < steps; i++) {
    const F32 left = splat(work.decays.since[i]);
    for (size_t v = 0; v < kV; v++) {
      float* at = x + (i * kV + v) * kLanes;
      store(at, load(at) * left);
    }
  }
  for (size_t n = 0; n < padded.size; n += panel::kRows) {
    panel::Tile<kV> sums = {};
    panel::add_product(sums, {group.b + n, 1, padded.size}, x, steps);
#pragma unroll
    for (size_t r = 0; r < panel::kRows; r++) {
#pragma unroll
      for (size_t v = 0; v < kV; v++) {
        float* at = state + ((n + r) * kV + v) * kLanes;
        store(at, multiply_add(load(at), held, sums[r][v]));
      }
    }
  }
}

EDGE_OUT_OF_LINE static void chunk_of_head(const Head& head, const Head& next, size_t first,
                                           size_t steps, const Padded& padded, Scratchpad& pad,
                                           float* state) {
  Work& work = pad.work;
  begin_decays(head, first, steps, work.decays);
  panel::pack(head.x + first * head.x_stride, head.x_stride, steps, steps, head.width, work.x);
  mix(head, next.x + first * next.x_stride, steps, pad.group.scores, work);
  work.decays.finish();
  panel::each_panel(padded.width, [&]<size_t kV>(size_t q) {
    float* own = state + q * padded.size;
    outputs<kV>(head, first, steps, q, padded, pad.group, work, own);
    update<kV>(steps, q, padded, pad.group, work, own);
  });
}

// Neighbouring heads of one group through all chunks of their row.
EDGE_OUT_OF_LINE static void run_chunks(const Head* heads, size_t count, const Padded& padded,
                                        float* memory) {
  Scratchpad pad(memory, padded);
  const Head& any = heads[0];
  for (size_t i = 0; i < kChunk * kChunk; i++) pad.group.scores[i] = 0.0f;
  for (size_t h = 0; h < count; h++) {
    float* state = pad.states + h * padded.state_floats();
    panel::pack(heads[h].state, any.width, any.size, padded.size, any.width, state);
  }
  for (size_t first = 0; first < any.steps; first += kChunk) {
    const size_t steps = any.steps - first < kChunk ? any.steps - first : kChunk;
    begin_group(any, first, steps, padded, pad.group);
    for (size_t h = 0; h < count; h++) {
      const Head& next = heads[h + 1 < count ? h + 1 : h];
      float* state = pad.states + h * padded.state_floats();
      chunk_of_head(heads[h], next, first, steps, padded, pad, state);
    }
  }
  for (size_t h = 0; h < count; h++) {
    const float* state = pad.states + h * padded.state_floats();
    panel::unpack(state, any.size, padded.size, any.width, heads[h].state_out, any.width);
  }
}

}  // namespace state_space
}  // namespace EDGE_ISA
}  // namespace edge
