// Attention for many query rows, as in prefill: vectors run along the rows, so that softmax needs no
// sums across lanes and keys and values are used as they lie in the cache, one element at a time.
#pragma once
#include "cached_attention/job.h"

namespace edge {
namespace EDGE_ISA {
namespace attention {

// A tile is up to kTileVectors vectors of rows; kStep keys (or output columns) by a tile fill the
// registers with running sums.
constexpr size_t kTileVectors = 3;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t kStep = 8;
#else
constexpr size_t kStep = 4;
#endif
// Rows that share each block of keys while it is in the first cache.
constexpr int64_t kBlockRows = 96;

// Intermediate results. A tile's part of an array [rows] begins at its first row, and of an array
// [x][rows] at x times its first row.
struct ManyRows {
  float* query;   // [dim][rows], scaled
  float* output;  // [v_dim][rows]
  float* peak;    // [rows]
  float* mass;
  int32_t* step;   // [rows], counted from the tile's first row
  float* decay;    // [tile]
  float* scores;   // [kBlockKeys][tile]
  float* keys;     // [kBlockKeys][dim], used where the cache is not float32
  float* values;   // [kBlockKeys][v_dim]

  static int64_t padded_rows(int64_t rows) { return round_up(rows, kLanes); }
  static size_t floats(int64_t rows, int64_t dim, int64_t v_dim) {
    constexpr int64_t kTileRows = kTileVectors * kLanes;
    const int64_t strip = round_up(dim, kLanes) + round_up(v_dim, kLanes);
    return size_t(padded_rows(rows) * (dim + v_dim + 3) + kTileRows * (1 + kBlockKeys) +
                  kBlockKeys * strip);
  }
  ManyRows(float* memory, int64_t rows, int64_t dim, int64_t v_dim) {
    constexpr int64_t kTileRows = kTileVectors * kLanes;
    const int64_t padded = padded_rows(rows);
    query = memory;
    output = query + padded * dim;
    peak = output + padded * v_dim;
    mass = peak + padded;
    step = reinterpret_cast<int32_t*>(mass + padded);
    decay = mass + 2 * padded;
    scores = decay + kTileRows;
    keys = scores + kTileRows * kBlockKeys;
    values = keys + kBlockKeys * round_up(dim, kLanes);
  }
};

struct Tile {
  int64_t row;   // within the job
  int64_t rows;  // that exist
  float *query, *output, *peak, *mass;
  int32_t* step;
};

// scores[j][r] = sum over d of keys[j][d] * query[d][r], for kStep keys.
template <size_t kVectors>
static inline void tile_scores(const float* query, size_t dim, const float* const* keys,
                               float* scores) {
  constexpr size_t kWidth = kVectors * kLanes;
  F32 sums[kStep][kVectors] = {};
  const float* key[kStep];
  for (size_t j = 0; j < kStep; j++) key[j] = keys[j];
  for (size_t d = 0; d < dim; d++) {
    F32 q[kVectors];
    for (size_t v = 0; v < kVectors; v++) q[v] = load(query + d * kWidth + v * kLanes);
    for (size_t j = 0; j < kStep; j++) {
      const F32 k = splat(key[j][d]);
      for (size_t v = 0; v < kVectors; v++) sums[j][v] = multiply_add(k, q[v], sums[j][v]);
    }
  }
  for (size_t j = 0; j < kStep; j++) {
    for (size_t v = 0; v < kVectors; v++) store(scores + j * kWidth + v * kLanes, sums[j][v]);
  }
}

// output[d][r] = output[d][r] * decay[r] + sum over j of values[j][d] * weights[j][r], for kColumns
// values of d.
template <size_t kVectors, size_t kColumns>
static inline void tile_values(const float* weights, const float* const* values, size_t count,
                               size_t at, const float* decay, float* output) {
  constexpr size_t kWidth = kVectors * kLanes;
  F32 sums[kColumns][kVectors] = {};
  for (size_t j = 0; j < count; j++) {
    const float* value = values[j] + at;
    F32 w[kVectors];
    for (size_t v = 0; v < kVectors; v++) w[v] = load(weights + j * kWidth + v * kLanes);
    for (size_t i = 0; i < kColumns; i++) {
      const F32 x = splat(value[i]);
      for (size_t v = 0; v < kVectors; v++) sums[i][v] = multiply_add(x, w[v], sums[i][v]);
    }
  }
  for (size_t i = 0; i < kColumns; i++) {
    for (size_t v = 0; v < kVectors; v++) {
      float* o = output + (at + i) * kWidth + v * kLanes;
      store(o, multiply_add(load(o), load(decay + v * kLanes), sums[i][v]));
    }
  }
}

template <size_t kVectors>
static void cap_tile(float softcap, size_t count, float* scores) {
  const F32 cap = splat(softcap), inverse = splat(1.0f / softcap);
  for (size_t i = 0; i < count * kVectors * kLanes; i += kLanes) {
    store(scores + i, soft_cap(load(scores + i), cap, inverse));
  }
}

// Removes each row's future and what lies beyond its window.
template <size_t kVectors, class C>
static void mask_tile(const Job<C>& job, const Tile& tile, int64_t from, int64_t count,
                      float* scores) {
  constexpr int64_t kFar = 1 << 30;
  const int64_t origin = job.position(job.first_row + tile.row);
  for (int64_t j = 0; j < count; j++) {
    // Row r sees this key when least <= step[r] < most.
    const int64_t least = larger(from + j - origin, -1);
    const int64_t most = job.window ? smaller(larger(from + j - origin + job.window, -1), kFar) : kFar;
    for (size_t v = 0; v < kVectors; v++) {
      float* s = scores + (size_t(j) * kVectors + v) * kLanes;
      I32 step;
      __builtin_memcpy(&step, tile.step + v * kLanes, sizeof(step));
      const I32 seen = (step >= int32_t(least)) & (step < int32_t(most));
      store(s, select(seen, load(s), splat(-__builtin_inff())));
    }
  }
}

// Turns scores into weights against the running peak, which it raises; `decay` is what the rows'
// earlier sums are worth now.
template <size_t kVectors>
static void weigh_tile(float* scores, size_t count, const Tile& tile, float* decay) {
  constexpr size_t kWidth = kVectors * kLanes;
  for (size_t v = 0; v < kVectors; v++) {
    float* column = scores + v * kLanes;
    const F32 before = load(tile.peak + v * kLanes);
    F32 top = before;
    for (size_t j = 0; j < count; j++) top = max(load(column + j * kWidth), top);
    F32 total = {};
    for (size_t j = 0; j < count; j++) {
      const F32 weight = exp_of_negative(load(column + j * kWidth) - top);
      total += weight;
      store(column + j * kWidth, weight);
    }
    const F32 drop = exp_of_negative(before - top);
    store(decay + v * kLanes, drop);
    store(tile.peak + v * kLanes, top);
    store(tile.mass + v * kLanes, multiply_add(load(tile.mass + v * kLanes), drop, total));
  }
}

// One tile against the keys from .. from + count - 1, as far as its rows see them.
template <size_t kVectors, class C>
EDGE_OUT_OF_LINE static void block_many(const Job<C>& job, const ManyRows& many, const Tile& tile, int64_t from,
                       int64_t count, const float* const* keys, const float* const* values) {
  const int64_t first = job.first_row + tile.row, last = first + tile.rows - 1;
  count = smaller(count, job.position(last) + 1 - from);
  if (count <= 0 || from + count <= job.oldest(first)) return;
  const size_t dim = size_t(job.keys.dim), v_dim = size_t(job.values.dim);
  for (size_t j = 0; j < size_t(count); j += kStep) {
    tile_scores<kVectors>(tile.query, dim, keys + j, many.scores + j * kVectors * kLanes);
  }
  if (job.softcap > 0) cap_tile<kVectors>(job.softcap, size_t(count), many.scores);
  if (from + count - 1 > job.position(first) || from < job.oldest(last)) {
    mask_tile<kVectors>(job, tile, from, count, many.scores);
  }
  weigh_tile<kVectors>(many.scores, size_t(count), tile, many.decay);
  size_t d = 0;
  for (; d + kStep <= v_dim; d += kStep) {
    tile_values<kVectors, kStep>(many.scores, values, size_t(count), d, many.decay, tile.output);
  }
  for (; d < v_dim; d++) {
    tile_values<kVectors, 1>(many.scores, values, size_t(count), d, many.decay, tile.output);
  }
}

// The rows of a block as float32: where they lie, or converted.
static inline void as_float32(const float* const* rows, int64_t, int64_t, float*,
                              const float** out) {
  for (int64_t j = 0; j < kBlockKeys; j++) out[j] = rows[j];
}
template <class C>
static inline void as_float32(const C* const* rows, int64_t count, int64_t dim, float* memory,
                              const float** out) {
  const int64_t stride = round_up(dim, kLanes);
  for (int64_t j = 0; j < kBlockKeys; j++) {
    float* to = memory + smaller(j, count - 1) * stride;
    out[j] = to;
    if (j >= count) continue;
    F32 scale = splat(1.0f);
    if constexpr (has_row_scale<C>) scale = splat(row_scale(rows[j]));
    int64_t d = 0;
    for (; d + int64_t(kLanes) <= dim; d += kLanes) store(to + d, load(rows[j] + d) * scale);
    if (d < dim) store(to + d, load_part(rows[j] + d, size_t(dim - d)) * scale);
  }
}

static inline Tile tile_at(const ManyRows& many, int64_t row, int64_t rows, int64_t dim,
                           int64_t v_dim) {
  return {row,
          smaller(rows - row, kTileVectors * kLanes),
          many.query + row * dim,
          many.output + row * v_dim,
          many.peak + row,
          many.mass + row,
          many.step + row};
}

template <class C>
static void begin_tile(const Job<C>& job, const Tile& tile) {
  const int64_t width = round_up(tile.rows, kLanes), first = job.first_row + tile.row;
  for (int64_t i = 0; i < width; i++) {
    // Lanes without a row of their own work on the last row, and are not looked at.
    const int64_t row = first + smaller(i, tile.rows - 1);
    const float* query = job.query_row(row);
    for (int64_t d = 0; d < job.keys.dim; d++) tile.query[d * width + i] = query[d] * job.scale;
    tile.peak[i] = job.first_peak(row);
    tile.mass[i] = job.first_mass(row);
    tile.step[i] = int32_t(job.position(row) - job.position(first));
  }
  for (int64_t i = 0; i < width * job.values.dim; i++) tile.output[i] = 0.0f;
}

template <class C>
static void end_tile(const Job<C>& job, const Tile& tile) {
  const int64_t width = round_up(tile.rows, kLanes);
  for (int64_t i = 0; i < tile.rows; i++) {
    float* to = job.output_row(job.first_row + tile.row + i);
    const float factor = job.stats ? 1.0f : 1.0f / tile.mass[i];
    for (int64_t d = 0; d < job.values.dim; d++) to[d] = tile.output[d * width + i] * factor;
    if (job.stats) {
      job.stats[2 * (tile.row + i)] = tile.peak[i];
      job.stats[2 * (tile.row + i) + 1] = tile.mass[i];
    }
  }
}

template <class C>
static void block_of_any_width(const Job<C>& job, const ManyRows& many, const Tile& tile,
                               int64_t from, int64_t count, const float* const* keys,
                               const float* const* values) {
  static_assert(kTileVectors == 3);
  switch ((tile.rows - 1) / int64_t(kLanes)) {
    case 0: return block_many<1>(job, many, tile, from, count, keys, values);
    case 1: return block_many<2>(job, many, tile, from, count, keys, values);
    default: return block_many<3>(job, many, tile, from, count, keys, values);
  }
}

template <class C>
EDGE_OUT_OF_LINE static void attend_many(const Job<C>& job, float* memory) {
  const int64_t dim = job.keys.dim, v_dim = job.values.dim, rows = job.rows();
  constexpr int64_t kTileRows = kTileVectors * kLanes;
  const ManyRows many(memory, rows, dim, v_dim);
  for (int64_t r = 0; r < rows; r += kTileRows) begin_tile(job, tile_at(many, r, rows, dim, v_dim));

  const int64_t low = larger(job.first_key, job.oldest(job.first_row));
  const int64_t high = smaller(job.last_key, job.position(job.last_row - 1) + 1);
  for (int64_t from = low; from < high; from += kBlockKeys) {
    const int64_t count = smaller(kBlockKeys, high - from);
    const C* found[kBlockKeys];
    const float* keys[kBlockKeys];
    const float* values[kBlockKeys];
    job.keys.find(from, count, kBlockKeys, found);
    as_float32(found, count, dim, many.keys, keys);
    job.values.find(from, count, kBlockKeys, found);
    as_float32(found, count, v_dim, many.values, values);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const Tile tile = tile_at(many, r, rows, dim, v_dim);
      block_of_any_width(job, many, tile, from, count, keys, values);
    }
  }
  for (int64_t r = 0; r < rows; r += kTileRows) end_tile(job, tile_at(many, r, rows, dim, v_dim));
}

}  // namespace attention
}  // namespace EDGE_ISA
}  // namespace edge
