// Tokens as the cache keeps them, a latent and then the rotated part of a key, and as float32.
#pragma once
#include "latent_attention/tile.h"
#include "native/int8_row.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

template <class C>
static inline void narrow(const float* from, int64_t size, C* to) {
  int64_t d = 0;
  for (; d + int64_t(kLanes) <= size; d += kLanes) store(to + d, load(from + d));
  if (d < size) store_part(to + d, load_part(from + d, size_t(size - d)), size_t(size - d));
}
static inline void narrow(const float* from, int64_t size, Int8* to) {
  encode_row(from, size_t(size), to);
}

template <class C>
static inline void widen(const C* from, int64_t size, F32 scale, float* to) {
  int64_t d = 0;
  for (; d + int64_t(kLanes) <= size; d += kLanes) store(to + d, load(from + d) * scale);
  if (d < size) {
    const size_t n = size_t(size - d);
    store_part(to + d, load_part(from + d, n) * scale, n);
  }
}

template <class C>
static inline float scale_of_row(const C*) {
  return 1.0f;
}
static inline float scale_of_row(const Int8* row) { return row_scale(row); }

// The first `size` columns of `count` rows.
template <class C>
static void widen_rows(const C* const* rows, int64_t count, int64_t size, float* to,
                       int64_t stride) {
  for (int64_t j = 0; j < count; j++) {
    widen(rows[j], size, splat(scale_of_row(rows[j])), to + j * stride);
  }
}

// A block of whole tokens as float32. Those of float32 stay where they lie.
template <class C>
struct Tokens {
  const C* const* rows;
  int64_t count, rank, rope;
  float* memory;  // kBlockKeys rows
  int64_t done = 0;

  static int64_t floats(int64_t rank, int64_t rope) { return kBlockKeys * (rank + rope); }

  void places(const float** out) const {
    for (int64_t j = 0; j < kBlockKeys; j++) {
      out[j] = memory + smaller(j, count - 1) * (rank + rope);
    }
  }

  // Converts the rows before `end`: late, so that they are in the first cache when they are used.
  void need(int64_t end) {
    for (; done < smaller(end, count); done++) {
      float* to = memory + done * (rank + rope);
      const C* key = rows[done] + rank;
      widen(rows[done], rank, splat(scale_of_row(rows[done])), to);
      widen(key, rope, splat(scale_of_row(key)), to + rank);
    }
  }
};

template <>
struct Tokens<float> : Ready {
  const float* const* rows;

  Tokens(const float* const* found, int64_t, int64_t, int64_t, float*) : rows(found) {}
  static int64_t floats(int64_t, int64_t) { return 0; }
  void places(const float** out) const {
    for (int64_t j = 0; j < kBlockKeys; j++) out[j] = rows[j];
  }
};

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
