// How keys and queries of a chunk meet: the products of each step's key and query with the keys
// before it, faded by the decays between, and what the state before the chunk sees of them. No
// exponent is ever positive: decays of single channels are carried from step to step with the keys.
#pragma once
#include "gated_delta/chunk.h"
#include "gated_delta/inputs.h"

namespace edge {
namespace EDGE_ISA {
namespace gated_delta {

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
        const float* lasting = work.lasting + i * size;
        meet(key, query, lasting, size, work.carried + j * size, &by_key, &by_query);
      }
      store(system + j, by_key * beta);
      store(mixing + j, by_query);
    }
    F32 own = {};
    for (size_t c = 0; c < size; c += kLanes) {
      own = multiply_add(load(key + c), load(query + c), own);
    }
    mixing[i] = sum(own);
    float* place = work.carried + i / kLanes * kLanes * size + i % kLanes;
    for (size_t c = 0; c < size; c++) place[c * kLanes] = key[c];
  }
}

}  // namespace gated_delta
}  // namespace EDGE_ISA
}  // namespace edge
