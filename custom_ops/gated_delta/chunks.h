// GatedDelta for many steps, as in prefill. Within a chunk each step's change of the state is
//
//     u[i] = beta[i] * (v[i] - (held[i] k[i])^T state - sum over j < i of (k[i] . decay k[j]) u[j])
//
// a triangular system, solved a tile of rows at a time; with it y and the next state are products:
//
//     y[i] = (held[i] q[i])^T state + sum over j <= i of (q[i] . decay k[j]) u[j]
//     state = held[last] state + sum over j of (decay k[j]) u[j]^T
//
// `decay` is what is left of step j at step i (at the last step, for the state). No exponent is ever
// positive: decays of single channels are carried from step to step with the keys.
#pragma once
#include "gated_delta/inputs.h"
#include "native/decays.h"
#include "native/panel.h"

namespace edge {
namespace EDGE_ISA {
namespace gated_delta {

constexpr size_t kChunk = 32;  // steps
static_assert(kChunk % panel::kWidth == 0 && kChunk % Decays::kAnchor == 0);

using panel::round_up;

// Sizes as they lie in scratch memory: whole tiles of rows, whole vectors.
struct Padded {
  size_t size, width;
  size_t state_floats() const { return size * width; }

  Padded(size_t k, size_t v)
      : size(round_up(k, panel::kRows > kLanes ? panel::kRows : kLanes)),
        width(round_up(v, kLanes)) {}
};

// One chunk's steps of a key head: what its value heads share.
struct Shared {
  float* keys;         // [kChunk][size]
  float* queries;      // [kChunk][size], scaled
  float* transposed;   // keys transposed, in panels [size][kChunk]
  float* key_scores;   // keys by keys, in panels [kChunk][kChunk]
  float* query_scores;  // queries by keys
};

// One chunk's steps of a value head.
struct Work {
  float* held_keys;     // [kChunk][size]
  float* held_queries;  // [kChunk][size]
  float* system;        // [kChunk][kChunk]: minus beta[i] * (k[i] . decay k[j])
  float* mixing;        // [kChunk][kChunk]: q[i] . decay k[j], zero for later j in i's tile
  float* changes;       // u, in panels [kChunk][width]
  float* total;         // [size], what is left of each channel after the chunk
  float* carried;       // by channel: decayed keys, kLanes steps by [size] by kLanes
  float* lasting;       // [kChunk][size]: by channel, exp of each step's decay
  Decays decays;        // by head
};

struct Scratchpad {
  Shared shared;
  Work work;
  float* states;  // each head's in panels [size][width]

  static size_t floats(const Padded& padded, size_t heads) {
    return Decays::floats(kChunk) + kChunk * (7 * padded.size + 4 * kChunk + padded.width) +
           padded.size + heads * padded.state_floats();
  }
  Scratchpad(float* memory, const Padded& padded)
      : work{nullptr, nullptr, nullptr, nullptr, nullptr,
             nullptr, nullptr, nullptr, Decays(memory, kChunk)} {
    float* next = memory + Decays::floats(kChunk);
    const auto take = [&next](size_t floats) {
      float* taken = next;
      next += floats;
      return taken;
    };
    float** const by_size[] = {&shared.keys,       &shared.queries,    &shared.transposed,
                               &work.held_keys,    &work.held_queries, &work.carried,
                               &work.lasting};
    for (float** part : by_size) *part = take(kChunk * padded.size);
    float** const square[] = {&shared.key_scores, &shared.query_scores, &work.system, &work.mixing};
    for (float** part : square) *part = take(kChunk * kChunk);
    work.changes = take(kChunk * padded.width);
    work.total = take(padded.size);
    states = next;
  }
};

static void score(const float* rows, const Head& head, size_t steps, const Padded& padded,
                  const float* transposed, float* scores) {
  panel::each_panel(kChunk, [&]<size_t kV>(size_t q) {
    // Steps look back: what lies wholly after the diagonal is not needed.
    for (size_t i = q; i < steps; i += panel::kRows) {
      panel::Tile<kV> sums = {};
      const panel::Left left = {rows + i * padded.size, padded.size, 1};
      panel::add_product(sums, left, transposed + q * head.size, head.size);
      panel::store_tile(sums, scores + q * kChunk + i * kV * kLanes);
    }
  });
}

static void begin_shared(const Head& head, size_t first, size_t steps, const Padded& padded,
                         const Shared& shared) {
  const size_t at = first * head.key_stride, size = padded.size;
  panel::gather(head.key + at, head.key_stride, steps, kChunk, head.size, size, shared.keys);
  panel::gather(head.query + at, head.key_stride, steps, kChunk, head.size, size, shared.queries);
  const F32 scale = splat(head.scale);
  for (size_t i = 0; i < steps * size; i += kLanes) {
    store(shared.queries + i, load(shared.queries + i) * scale);
  }
  if (head.by_channel) return;
  panel::pack_transposed(shared.keys, size, kChunk, head.size, shared.transposed);
  score(shared.keys, head, steps, padded, shared.transposed, shared.key_scores);
  score(shared.queries, head, steps, padded, shared.transposed, shared.query_scores);
}

static inline void scale_row(const float* from, const float* factor, size_t size, float* to) {
  for (size_t c = 0; c < size; c += kLanes) store(to + c, load(from + c) * load(factor + c));
}

// One decay for all channels.
static void decay_by_head(const Head& head, size_t first, size_t steps, const Padded& padded,
                          const Shared& shared, Work& work) {
  Decays& decays = work.decays;
  decays.begin(steps);
  for (size_t i = 0; i < steps; i++) {
    decays.add(i, head.decay[(first + i) * head.decay_stride], 1.0f);
  }
  decays.end();
  for (size_t i = 0; i < steps; i++) {
    decays.advance(i);
    const F32 beta = splat(-head.beta[(first + i) * head.beta_stride]);
    for (size_t q = 0; q < round_up(i + 1, panel::kRows); q += panel::kWidth) {
      for (size_t j = 0; j < panel::kWidth; j += kLanes) {
        const size_t from = q * kChunk + i * panel::kWidth + j, to = i * kChunk + q + j;
        const F32 since = load(decays.since + q + j);
        store(work.system + to, load(shared.key_scores + from) * since * beta);
        store(work.mixing + to, load(shared.query_scores + from) * since);
      }
    }
    const F32 held = splat(decays.held[i]);
    for (size_t c = i * padded.size; c < (i + 1) * padded.size; c += kLanes) {
      store(work.held_keys + c, load(shared.keys + c) * held);
      store(work.held_queries + c, load(shared.queries + c) * held);
    }
  }
  decays.finish();
  for (size_t c = 0; c < padded.size; c++) work.total[c] = decays.held[steps - 1];
}

// Each channel's decays, their sums, and the keys and queries as the state before the chunk sees
// them.
static void begin_channels(const Head& head, size_t first, size_t steps, const Padded& padded,
                           const Shared& shared, Work& work) {
  const size_t size = padded.size;
  panel::gather(head.decay + first * head.decay_stride, head.decay_stride, steps, kChunk,
                head.size, size, work.lasting);
  for (size_t c = 0; c < size; c += kLanes) {
    F32 sum = {};
    for (size_t i = 0; i < steps; i++) {
      const F32 log = load(work.lasting + i * size + c);
      sum += log;
      const F32 held = exp(sum);
      store(work.lasting + i * size + c, exp(log));
      store(work.held_keys + i * size + c, load(shared.keys + i * size + c) * held);
      store(work.held_queries + i * size + c, load(shared.queries + i * size + c) * held);
      store(work.total + c, held);
    }
  }
}

// The keys of kLanes earlier steps fade by one step and meet its key and its query.
static inline void meet(const float* key, const float* query, const float* lasting, size_t size,
                        float* carried, F32* by_key, F32* by_query) {
  constexpr size_t kShares = 4;  // sums in flight hide latency; size is a multiple of it
  F32 keys[kShares] = {}, queries[kShares] = {};
  for (size_t c = 0; c < size; c += kShares) {
#pragma unroll
    for (size_t s = 0; s < kShares; s++) {
      float* at = carried + (c + s) * kLanes;
      const F32 left = faded(load(at) * splat(lasting[c + s]));
      store(at, left);
      keys[s] = multiply_add(left, splat(key[c + s]), keys[s]);
      queries[s] = multiply_add(left, splat(query[c + s]), queries[s]);
    }
  }
  *by_key = (keys[0] + keys[1]) + (keys[2] + keys[3]);
  *by_query = (queries[0] + queries[1]) + (queries[2] + queries[3]);
}

// A decay for each channel: vectors run along the earlier steps.
static void decay_by_channel(const Head& head, size_t first, size_t steps, const Padded& padded,
                             const Shared& shared, Work& work) {
  const size_t size = padded.size;
  begin_channels(head, first, steps, padded, shared, work);
  for (size_t i = 0; i < kChunk * size; i++) work.carried[i] = 0.0f;
  for (size_t i = 0; i < steps; i++) {
    const float* key = shared.keys + i * size;
    const float* query = shared.queries + i * size;
    const F32 beta = splat(-head.beta[(first + i) * head.beta_stride]);
    float* system = work.system + i * kChunk;
    float* mixing = work.mixing + i * kChunk;
    for (size_t j = 0; j < kChunk; j += kLanes) {
      F32 by_key = {}, by_query = {};
      if (j < i) {
        meet(key, query, work.lasting + i * size, size, work.carried + j * size, &by_key, &by_query);
      }
      store(system + j, by_key * beta);
      store(mixing + j, by_query);
    }
    F32 own = {};
    for (size_t c = 0; c < size; c += kLanes) own = multiply_add(load(key + c), load(query + c), own);
    mixing[i] = sum(own);
    float* place = work.carried + i / kLanes * kLanes * size + i % kLanes;
    for (size_t c = 0; c < size; c++) place[c * kLanes] = key[c];
  }
}

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
