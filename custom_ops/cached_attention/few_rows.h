// Attention for up to eight query rows, as in decoding: each key is read once and multiplied with
// every row, vectors running along the head dimension, so that memory sets the pace.
#pragma once
#include "cached_attention/job.h"
#include "native/fold.h"

namespace edge {
namespace EDGE_ISA {
namespace attention {

constexpr int64_t kMostFewRows = 8;
// Dot products in flight. The rows are padded to 1, 2, 4 or 8, and keys are taken in groups of
// kSums / rows; the scores of a group lie row by row.
constexpr size_t kSums = kLanes == 16 ? 16 : 8;
// Keys are taken in blocks of about this many bytes. While the keys of a block are read, its values
// are fetched, and while its values are read, the next block's keys: far enough ahead for memory,
// and following the table, which the processor cannot do by itself.
constexpr int64_t kFetchBytes = 8192;

// Intermediate results; rows are padded with zeros to whole vectors.
struct FewRows {
  float* query;   // [rows][query_stride], scaled
  float* output;  // [rows][output_stride]
  float* scores;  // [kBlockKeys / keys of a group][kSums]
  float* peak;    // [kMostFewRows]
  float* mass;
  int64_t query_stride, output_stride;

  static size_t floats(int64_t dim, int64_t v_dim) {
    const int64_t row = round_up(dim, kLanes) + round_up(v_dim, kLanes);
    return size_t(kMostFewRows * (row + kBlockKeys + 2));
  }
  FewRows(float* memory, int64_t dim, int64_t v_dim)
      : query_stride(round_up(dim, kLanes)), output_stride(round_up(v_dim, kLanes)) {
    query = memory;
    output = query + kMostFewRows * query_stride;
    scores = output + kMostFewRows * output_stride;
    peak = scores + kMostFewRows * kBlockKeys;
    mass = peak + kMostFewRows;
  }
};

// The scores of kRows rows against one group of keys.
template <size_t kRows, class C>
static inline void group_scores(const float* query, size_t stride, size_t dim,
                                const C* const* keys, const C* const* ahead, float* scores) {
  constexpr size_t kKeys = kSums / kRows;
  F32 sums[kSums] = {};
  size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    F32 key[kKeys];
    for (size_t k = 0; k < kKeys; k++) {
      key[k] = load(keys[k] + d);
      prefetch(ahead[k] + d);
    }
    for (size_t r = 0; r < kRows; r++) {
      const F32 q = load(query + r * stride + d);
      for (size_t k = 0; k < kKeys; k++) {
        sums[r * kKeys + k] = multiply_add(q, key[k], sums[r * kKeys + k]);
      }
    }
  }
  if (d < dim) {
    for (size_t k = 0; k < kKeys; k++) {
      const F32 key = load_part(keys[k] + d, dim - d);
      for (size_t r = 0; r < kRows; r++) {
        sums[r * kKeys + k] = multiply_add(load(query + r * stride + d), key, sums[r * kKeys + k]);
      }
    }
  }
  for (size_t i = 0; i < kSums; i += kLanes) store(scores + i, fold(sums + i));
}

// Scores or weights of one group after the other, times the scales of the rows they belong to.
template <size_t kRows, class C>
static inline void apply_scales(const C* const* rows, size_t groups, float* scores) {
  if constexpr (has_row_scale<C>) {
    constexpr size_t kKeys = kSums / kRows;
    for (size_t g = 0; g < groups; g++) {
      alignas(64) float scales[kSums];
      for (size_t k = 0; k < kKeys; k++) {
        const float scale = row_scale(rows[g * kKeys + k]);
        for (size_t r = 0; r < kRows; r++) scales[r * kKeys + k] = scale;
      }
      for (size_t i = 0; i < kSums; i += kLanes) {
        float* s = scores + g * kSums + i;
        store(s, load(s) * load(scales + i));
      }
    }
  }
}

// Adds the values of `count` keys, weighted, to kVectors vectors of kRows rows of the output.
template <size_t kRows, size_t kVectors, class C>
static inline void add_values(const float* weights, const C* const* values, const C* const* ahead,
                              size_t count, size_t at, size_t part, const float* decay,
                              float* output, size_t stride) {
  constexpr size_t kKeys = kSums / kRows;
  F32 sums[kRows][kVectors] = {};
  for (size_t j = 0; j < count; j++) {
    const float* w = weights + j / kKeys * kSums + j % kKeys;
    F32 value[kVectors];
    for (size_t v = 0; v < kVectors; v++) {
      const C* p = values[j] + at + v * kLanes;
      value[v] = part ? load_part(p, part) : load(p);
      prefetch(ahead[j] + at + v * kLanes);
    }
    for (size_t r = 0; r < kRows; r++) {
      const F32 weight = splat(w[r * kKeys]);
      for (size_t v = 0; v < kVectors; v++) {
        sums[r][v] = multiply_add(weight, value[v], sums[r][v]);
      }
    }
  }
  for (size_t r = 0; r < kRows; r++) {
    for (size_t v = 0; v < kVectors; v++) {
      float* o = output + r * stride + at + v * kLanes;
      store(o, multiply_add(load(o), splat(decay[r]), sums[r][v]));
    }
  }
}

// Removes what a row may not see: keys past the block's end, its own future, beyond its window.
template <size_t kRows, class C>
static void mask_few(const Job<C>& job, int64_t from, int64_t count, float* scores) {
  constexpr int64_t kKeys = kSums / kRows;
  const int64_t padded = round_up(count, kKeys);
  for (int64_t r = 0; r < job.rows(); r++) {
    const int64_t row = job.first_row + r, low = job.oldest(row), high = job.position(row);
    for (int64_t j = 0; j < padded; j++) {
      if (j < count && from + j >= low && from + j <= high) continue;
      scores[j / kKeys * kSums + r * kKeys + j % kKeys] = -__builtin_inff();
    }
  }
}

// Turns scores into weights against the running peak, which it raises; `decay` is what the rows'
// earlier sums are worth now.
template <size_t kRows>
static void weigh_few(float* scores, size_t groups, float* peak, float* mass, float* decay) {
  constexpr size_t kKeys = kSums / kRows;
  constexpr size_t kVectors = kSums / kLanes;
  F32 high[kVectors];
  for (size_t v = 0; v < kVectors; v++) {
    high[v] = splat(kLowest);
    for (size_t g = 0; g < groups; g++) high[v] = max(high[v], load(scores + g * kSums + v * kLanes));
  }
  alignas(64) float items[kSums];
  alignas(64) float drop[kSums] = {};
  for (size_t v = 0; v < kVectors; v++) store(items + v * kLanes, high[v]);
  for (size_t r = 0; r < kRows; r++) {
    float top = peak[r];
    for (size_t k = 0; k < kKeys; k++) top = items[r * kKeys + k] > top ? items[r * kKeys + k] : top;
    drop[r] = peak[r] - top;
    peak[r] = top;
    for (size_t k = 0; k < kKeys; k++) items[r * kKeys + k] = top;
  }
  for (size_t v = 0; v < kVectors; v++) {
    store(drop + v * kLanes, exp_of_negative(load(drop + v * kLanes)));
    const F32 top = load(items + v * kLanes);
    F32 total = {};
    for (size_t g = 0; g < groups; g++) {
      float* s = scores + g * kSums + v * kLanes;
      const F32 weight = exp_of_negative(load(s) - top);
      total += weight;
      store(s, weight);
    }
    store(items + v * kLanes, total);
  }
  for (size_t r = 0; r < kRows; r++) {
    float total = 0;
    for (size_t k = 0; k < kKeys; k++) total += items[r * kKeys + k];
    decay[r] = drop[r];
    mass[r] = mass[r] * drop[r] + total;
  }
}

// The keys and values of one block, and the keys of the next.
template <class C>
struct Block {
  int64_t from, count;
  const C** keys;
  const C** values;
  const C** ahead;
};

// As many vectors at a time as there are registers for.
template <size_t kRows, size_t kVectors, class C>
static inline size_t add_columns(const Job<C>& job, const FewRows& few, const Block<C>& block,
                                 size_t d, const float* decay) {
  const size_t v_dim = size_t(job.values.dim), stride = size_t(few.output_stride);
  if constexpr (kVectors * kRows <= kSums) {
    for (; d + kVectors * kLanes <= v_dim; d += kVectors * kLanes) {
      add_values<kRows, kVectors>(few.scores, block.values, block.ahead, size_t(block.count), d, 0,
                                  decay, few.output, stride);
    }
  }
  if constexpr (kVectors > 1) {
    return add_columns<kRows, kVectors / 2>(job, few, block, d, decay);
  } else {
    if (d < v_dim) {
      add_values<kRows, 1>(few.scores, block.values, block.ahead, size_t(block.count), d,
                           v_dim - d, decay, few.output, stride);
    }
    return v_dim;
  }
}

template <size_t kRows, class C>
EDGE_OUT_OF_LINE static void block_few(const Job<C>& job, const FewRows& few,
                                       const Block<C>& block) {
  constexpr size_t kKeys = kSums / kRows;
  const size_t count = size_t(block.count), groups = (count + kKeys - 1) / kKeys;
  for (size_t g = 0; g < groups; g++) {
    group_scores<kRows>(few.query, size_t(few.query_stride), size_t(job.keys.dim),
                        block.keys + g * kKeys, block.values + g * kKeys,
                        few.scores + g * kSums);
  }
  apply_scales<kRows>(block.keys, groups, few.scores);
  if (job.softcap > 0) {
    const F32 cap = splat(job.softcap), inverse = splat(1.0f / job.softcap);
    for (size_t i = 0; i < groups * kSums; i += kLanes) {
      store(few.scores + i, soft_cap(load(few.scores + i), cap, inverse));
    }
  }
  const bool is_whole = count % kKeys == 0 &&
                        block.from + block.count - 1 <= job.position(job.first_row) &&
                        block.from >= job.oldest(job.last_row - 1);
  if (!is_whole) mask_few<kRows>(job, block.from, block.count, few.scores);
  float decay[kRows];
  weigh_few<kRows>(few.scores, groups, few.peak, few.mass, decay);
  apply_scales<kRows>(block.values, groups, few.scores);
  add_columns<kRows, 8>(job, few, block, 0, decay);
}

// Rows that only fill up are of zeros.
template <class C>
static void begin_few(const Job<C>& job, const FewRows& few) {
  for (int64_t i = 0; i < kMostFewRows * few.query_stride; i++) few.query[i] = 0.0f;
  for (int64_t i = 0; i < kMostFewRows * few.output_stride; i++) few.output[i] = 0.0f;
  for (int64_t i = 0; i < kMostFewRows; i++) {
    const int64_t row = job.first_row + i;
    few.peak[i] = row < job.last_row ? job.first_peak(row) : 0.0f;
    few.mass[i] = row < job.last_row ? job.first_mass(row) : 0.0f;
    if (row >= job.last_row) continue;
    const float* query = job.query_row(row);
    float* to = few.query + i * few.query_stride;
    for (int64_t d = 0; d < job.keys.dim; d++) to[d] = query[d] * job.scale;
  }
}

template <class C>
static void end_few(const Job<C>& job, const FewRows& few) {
  for (int64_t i = 0; i < job.rows(); i++) {
    float* to = job.output_row(job.first_row + i);
    const float factor = job.stats ? 1.0f : 1.0f / few.mass[i];
    const float* from = few.output + i * few.output_stride;
    for (int64_t d = 0; d < job.values.dim; d++) to[d] = from[d] * factor;
    if (job.stats) {
      job.stats[2 * i] = few.peak[i];
      job.stats[2 * i + 1] = few.mass[i];
    }
  }
}

template <size_t kRows, class C>
EDGE_OUT_OF_LINE static void blocks_few(const Job<C>& job, const FewRows& few) {
  constexpr int64_t kKeys = kSums / kRows;
  // More rows make a block's own costs larger: they need more keys.
  constexpr int64_t kLeast = kKeys > 2 * int64_t(kRows) ? kKeys : 2 * kRows;
  const int64_t fitting = kFetchBytes / (job.keys.dim * int64_t(sizeof(C))) / kLeast * kLeast;
  const int64_t step = smaller(larger(fitting, kLeast), kBlockKeys);
  const int64_t low = larger(job.first_key, job.oldest(job.first_row));
  const int64_t high = smaller(job.last_key, job.position(job.last_row - 1) + 1);
  const C* places[3][kBlockKeys];
  Block<C> block = {low, 0, places[0], places[1], places[2]};
  if (low < high) job.keys.find(low, smaller(step, high - low), step, block.ahead);
  for (; block.from < high; block.from += step) {
    const C** keys = block.ahead;
    block.ahead = block.keys;
    block.keys = keys;
    block.count = smaller(step, high - block.from);
    job.values.find(block.from, block.count, step, block.values);
    const int64_t next = smaller(block.from + step, high - 1);  // in range at the end too
    job.keys.find(next, smaller(step, high - next), step, block.ahead);
    // One line of the blocks to come, as they lie where pages are long: it brings the address
    // translation that their fetches would wait for.
    prefetch(block.ahead[0] + 2 * step * job.keys.dim);
    prefetch(block.values[0] + 3 * step * job.values.dim);
    block_few<kRows>(job, few, block);
  }
}

template <class C>
static void attend_few(const Job<C>& job, float* memory) {
  const FewRows few(memory, job.keys.dim, job.values.dim);
  begin_few(job, few);
  if (job.rows() > 4) {
    blocks_few<8>(job, few);
  } else if (job.rows() > 2) {
    blocks_few<4>(job, few);
  } else if (job.rows() > 1) {
    blocks_few<2>(job, few);
  } else {
    blocks_few<1>(job, few);
  }
  end_few(job, few);
}

}  // namespace attention
}  // namespace EDGE_ISA
}  // namespace edge
