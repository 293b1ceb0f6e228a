// Query rows against blocks of keys: scores, the running softmax, and the weighted sum of values.
// Vectors run along the key's and the value's own dimension, so that neither is rearranged and any
// number of rows fills the registers.
#pragma once
#include "native/fold.h"
#include "native/pages.h"
#include "native/softmax.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

constexpr int64_t kBlockKeys = 96;  // between two looks at the running maximum
constexpr int64_t kRowTile = 16;    // rows that pass over a block while it is in the first cache
// What the registers hold at a time: dot products of rows with keys, rows of sums by vectors.
#if defined(__AVX512F__)
constexpr size_t kScoreRows = 4, kScoreKeys = 6, kMixRows = 4, kMixVectors = 4;
#elif defined(__aarch64__)
constexpr size_t kScoreRows = 4, kScoreKeys = 6, kMixRows = 4, kMixVectors = 4;
#else
constexpr size_t kScoreRows = 2, kScoreKeys = 6, kMixRows = 4, kMixVectors = 2;
#endif
static_assert(kBlockKeys % kScoreKeys == 0 && kBlockKeys % kLanes == 0);
static_assert(kRowTile % kScoreRows == 0 && kRowTile % kMixRows == 0);

// Keys that are needed soon, in steps of `element` bytes for each column.
struct Ahead {
  const char* keys[2];
  size_t element;
};

// scores[r][k] = query r times key k.
static inline void score_group(const float* const* queries, const float* const* keys, size_t dim,
                               Ahead ahead, float* scores) {
  constexpr size_t kSums = kScoreRows * kScoreKeys;
  F32 sums[kSums] = {};
  size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    prefetch(ahead.keys[0] + d * ahead.element);
    prefetch(ahead.keys[1] + d * ahead.element);
    F32 q[kScoreRows];
#pragma unroll
    for (size_t r = 0; r < kScoreRows; r++) q[r] = load(queries[r] + d);
#pragma unroll
    for (size_t k = 0; k < kScoreKeys; k++) {
      const F32 key = load(keys[k] + d);
#pragma unroll
      for (size_t r = 0; r < kScoreRows; r++) {
        sums[r * kScoreKeys + k] = multiply_add(q[r], key, sums[r * kScoreKeys + k]);
      }
    }
  }
  if (d < dim) {
#pragma unroll
    for (size_t k = 0; k < kScoreKeys; k++) {
      const F32 key = load_part(keys[k] + d, dim - d);
#pragma unroll
      for (size_t r = 0; r < kScoreRows; r++) {
        const F32 q = load_part(queries[r] + d, dim - d);
        sums[r * kScoreKeys + k] = multiply_add(q, key, sums[r * kScoreKeys + k]);
      }
    }
  }
  alignas(64) float totals[kSums + kLanes];
#pragma unroll
  for (size_t i = 0; i + kLanes <= kSums; i += kLanes) store(totals + i, fold(sums + i));
  if constexpr (kSums % kLanes) {
    store(totals + kSums - kLanes / 2, fold_half(sums + kSums - kLanes / 2));
  }
  for (size_t r = 0; r < kScoreRows; r++) {
    __builtin_memcpy(scores + r * kBlockKeys, totals + r * kScoreKeys, kScoreKeys * sizeof(float));
  }
}

// output[r][c] = output[r][c] * decay[r] + sum over j of weights[r][j] * values[j][c], for kRows
// rows and kVectors vectors of c, or `part` columns of one. Without `decay` there is no output yet.
template <size_t kRows, size_t kVectors, class V>
static inline void mix_columns(const float* weights, size_t weight_stride, const V* const* values,
                               size_t count, size_t at, size_t part, const float* decay,
                               float* output, size_t stride) {
  F32 sums[kRows][kVectors] = {};
  for (size_t j = 0; j < count; j++) {
    const V* p = values[j] + at;
    F32 value[kVectors];
#pragma unroll
    for (size_t v = 0; v < kVectors; v++) {
      value[v] = part ? load_part(p, part) : load(p + v * kLanes);
    }
#pragma unroll
    for (size_t r = 0; r < kRows; r++) {
      const F32 weight = splat(weights[r * weight_stride + j]);
#pragma unroll
      for (size_t v = 0; v < kVectors; v++) {
        sums[r][v] = multiply_add(weight, value[v], sums[r][v]);
      }
    }
  }
#pragma unroll
  for (size_t r = 0; r < kRows; r++) {
#pragma unroll
    for (size_t v = 0; v < kVectors; v++) {
      float* o = output + r * stride + at + v * kLanes;
      if (decay) {
        const F32 before = part ? load_part(o, part) : load(o);
        sums[r][v] = multiply_add(before, splat(decay[r]), sums[r][v]);
      }
      part ? store_part(o, sums[r][v], part) : store(o, sums[r][v]);
    }
  }
}

// All columns of `rows` rows, kRows at a time; there is room for the last ones to be whole.
template <size_t kRows, class V>
EDGE_OUT_OF_LINE static void mix(const float* weights, size_t weight_stride, size_t rows,
                                 const V* const* values, size_t count, size_t columns,
                                 const float* decay, float* output, size_t stride) {
  size_t at = 0;
  for (; at + kMixVectors * kLanes <= columns; at += kMixVectors * kLanes) {
    for (size_t r = 0; r < rows; r += kRows) {
      mix_columns<kRows, kMixVectors>(weights + r * weight_stride, weight_stride, values, count,
                                      at, 0, decay ? decay + r : nullptr, output + r * stride, stride);
    }
  }
  for (; at < columns; at += kLanes) {
    const size_t part = columns - at < kLanes ? columns - at : 0;
    for (size_t r = 0; r < rows; r += kRows) {
      mix_columns<kRows, 1>(weights + r * weight_stride, weight_stride, values, count, at, part,
                            decay ? decay + r : nullptr, output + r * stride, stride);
    }
  }
}

// A row's scores become weights against its running peak, which they raise. Returns what its
// earlier sums are worth now.
static inline float weigh_row(float* scores, float scale, float* peak, float* mass) {
  constexpr size_t kVectors = size_t(kBlockKeys) / kLanes;
  F32 high = splat(*peak);
  for (size_t v = 0; v < kVectors; v++) {
    const F32 scaled = load(scores + v * kLanes) * scale;
    store(scores + v * kLanes, scaled);
    high = max(high, scaled);
  }
  const float top = largest(high);
  F32 total = {};
  for (size_t v = 0; v < kVectors; v++) {
    const F32 weight = exp_of_negative(load(scores + v * kLanes) - top);
    store(scores + v * kLanes, weight);
    total += weight;
  }
  const float decay = exp_of_negative(splat(*peak - top))[0];
  *peak = top;
  *mass = *mass * decay + sum(total);
  return decay;
}

// The rows of one task, each one head of one step: row r is of step (first + r) / group.
struct Rows {
  const float* query;
  int64_t query_stride, count, first, group;
  int64_t start;   // position of step 0
  int64_t window;  // 0: none
  float scale;
  int64_t dim, v_dim;
  // Results so far, with room for whole groups of rows.
  float* output;  // [count][v_dim], not yet divided by mass
  float* peak;
  float* mass;

  static int64_t padded(int64_t count) { return round_up(count, kMixRows); }
  static int64_t floats(int64_t count, int64_t v_dim) {
    return round_up(padded(count) * (v_dim + 2), 16);
  }
  void use(float* memory) {
    output = memory;
    peak = output + padded(count) * v_dim;
    mass = peak + padded(count);
    for (int64_t i = 0; i < padded(count) * v_dim; i++) output[i] = 0.0f;
    for (int64_t i = 0; i < padded(count); i++) peak[i] = kLowest, mass[i] = 0.0f;
  }

  int64_t position(int64_t row) const { return start + (first + row) / group; }
  // The keys that a row sees are oldest(row) .. position(row).
  int64_t oldest(int64_t row) const {
    const int64_t p = position(row);
    return window && p >= window ? p - window + 1 : 0;
  }
};

// A block of keys and the values that belong to them, and the keys of the next block as they lie in
// the cache; pointers are repeated up to kBlockKeys.
struct Block {
  int64_t from, count;
  const float* const* keys;
  const float* const* values;
  const char* const* ahead;
  size_t element;  // bytes
};

// A block whose keys and values are there. Others are made as they are first needed.
struct Ready {
  void need(int64_t) {}
};

// Rows beyond the last one repeat it; their results are not looked at.
template <class Source>
static inline void score_rows(const Rows& rows, int64_t row, int64_t count, const Block& block,
                              int64_t keys, Source& source, float* scores) {
  for (int64_t k = 0; k < keys; k += kScoreKeys) {
    source.need(k + int64_t(kScoreKeys));
    for (int64_t r = 0; r < count; r += kScoreRows) {
      const float* queries[kScoreRows];
      for (size_t i = 0; i < kScoreRows; i++) {
        queries[i] = rows.query + smaller(row + r + int64_t(i), rows.count - 1) * rows.query_stride;
      }
      // While a group of keys is multiplied, as many of the next block are fetched.
      const char* const* next = block.ahead + k;
      const size_t i = size_t(r) / kScoreRows * 2;
      const Ahead ahead = {{next[i % kScoreKeys], next[(i + 1) % kScoreKeys]}, block.element};
      score_group(queries, block.keys + k, size_t(rows.dim), ahead, scores + r * kBlockKeys + k);
    }
  }
}

// Removes what a row may not see, and what lies beyond the block's end.
static inline void mask_rows(const Rows& rows, int64_t row, int64_t count, const Block& block,
                             int64_t keys, float* scores) {
  for (int64_t r = 0; r < count; r++) {
    const int64_t at = smaller(row + r, rows.count - 1);
    const int64_t low = larger(rows.oldest(at) - block.from, 0);
    const int64_t high = larger(smaller(rows.position(at) + 1 - block.from, keys), 0);
    float* s = scores + r * kBlockKeys;
    for (int64_t k = 0; k < smaller(low, kBlockKeys); k++) s[k] = -__builtin_inff();
    for (int64_t k = high; k < kBlockKeys; k++) s[k] = -__builtin_inff();
  }
}

// `scores` has kTileScores floats.
constexpr int64_t kTileScores = kRowTile * kBlockKeys;

template <class Source>
EDGE_OUT_OF_LINE static void attend_tile(const Rows& rows, int64_t row, const Block& block,
                                         Source& source, float* scores) {
  const int64_t real = smaller(rows.count - row, kRowTile), count = Rows::padded(real);
  const int64_t last = row + real - 1;
  const int64_t keys = smaller(block.count, rows.position(last) + 1 - block.from);
  if (keys <= 0 || block.from + keys <= rows.oldest(row)) return;
  score_rows(rows, row, count, block, keys, source, scores);
  const bool is_whole = keys == kBlockKeys && block.from + keys - 1 <= rows.position(row) &&
                        block.from >= rows.oldest(last);
  if (!is_whole) mask_rows(rows, row, count, block, keys, scores);
  float decay[kRowTile];
  for (int64_t r = 0; r < count; r++) {
    decay[r] = weigh_row(scores + r * kBlockKeys, rows.scale, rows.peak + row + r,
                         rows.mass + row + r);
  }
  mix<kMixRows>(scores, size_t(kBlockKeys), size_t(count), block.values, size_t(keys),
                size_t(rows.v_dim), decay, rows.output + row * rows.v_dim, size_t(rows.v_dim));
}

template <class Source>
static inline void attend_block(const Rows& rows, const Block& block, Source& source,
                                float* scores) {
  for (int64_t row = 0; row < rows.count; row += kRowTile) {
    attend_tile(rows, row, block, source, scores);
  }
}

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
