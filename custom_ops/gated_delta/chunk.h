// Where the intermediate results of a chunk of GatedDelta's steps lie in scratch memory.
#pragma once
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

}  // namespace gated_delta
}  // namespace EDGE_ISA
}  // namespace edge
