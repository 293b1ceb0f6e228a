// Products of small matrices in scratch memory, a tile of sums in registers at a time.
//
// What stands on the right, and what comes out, lies in panels: columns q .. q + width - 1 of all
// rows one after the other, so that a panel is one stream that fits the first cache. A matrix of
// `rows` rows and a whole number of vectors of columns has its panel for column q at q * rows.
#pragma once
#include "native/gemm.h"

namespace edge {
namespace EDGE_ISA {
namespace panel {

// Rows by vectors of a tile: enough sums in flight to hide the latency of multiply_add.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t kRows = 8;
#else
constexpr size_t kRows = 4;
#endif
constexpr size_t kVectors = 2;
constexpr size_t kWidth = kVectors * kLanes;

static inline size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

template <size_t kV>
using Tile = F32[kRows][kV];

// kRows rows of the left-hand matrix: element (r, k) is at[r * row + k * step].
struct Left {
  const float* at;
  size_t row, step;
};

// sums += left * panel, over `steps` of the inner dimension.
template <size_t kV>
static inline void add_product(Tile<kV>& sums, Left left, const float* panel, size_t steps) {
  for (size_t k = 0; k < steps; k++) {
    F32 w[kV];
#pragma unroll
    for (size_t v = 0; v < kV; v++) w[v] = load(panel + (k * kV + v) * kLanes);
#pragma unroll
    for (size_t r = 0; r < kRows; r++) {
      const F32 x = splat(left.at[r * left.row + k * left.step]);
#pragma unroll
      for (size_t v = 0; v < kV; v++) sums[r][v] = multiply_add(x, w[v], sums[r][v]);
    }
  }
}

// Calls `task.operator()<vectors>(q)` for each panel of `columns` columns, whole vectors.
template <class Task>
static inline void each_panel(size_t columns, const Task& task) {
  size_t q = 0;
  for (; q + kWidth <= columns; q += kWidth) task.template operator()<kVectors>(q);
  for (; q < columns; q += kLanes) task.template operator()<1>(q);
}

// A tile's rows, one after the other, as they lie in a panel.
template <size_t kV>
static inline void store_tile(const Tile<kV>& sums, float* to) {
#pragma unroll
  for (size_t r = 0; r < kRows; r++) {
#pragma unroll
    for (size_t v = 0; v < kV; v++) store(to + (r * kV + v) * kLanes, sums[r][v]);
  }
}

// The first `n` columns of a tile's rows that exist, to memory with rows of `stride`.
template <size_t kV>
static inline void store_rows(const Tile<kV>& sums, size_t rows, float* to, size_t stride,
                              size_t n) {
  for (size_t r = 0; r < rows; r++) {
    for (size_t v = 0; v < kV && v * kLanes < n; v++) {
      store_some(to + r * stride + v * kLanes, sums[r][v], n - v * kLanes);
    }
  }
}

// [rows][columns] at `stride` to [all][padded]; further rows and columns become zero.
static inline void gather(const float* from, size_t stride, size_t rows, size_t all, size_t columns,
                          size_t padded, float* to) {
  for (size_t r = 0; r < all; r++) {
    const size_t some = r < rows ? columns : 0;
    size_t c = 0;
    for (; c + kLanes <= some; c += kLanes) store(to + r * padded + c, load(from + r * stride + c));
    for (; c < some; c++) to[r * padded + c] = from[r * stride + c];
    for (; c < padded; c++) to[r * padded + c] = 0.0f;
  }
}

// [rows][columns] at `stride` into panels of `all` rows. Further rows and columns become zero.
static inline void pack(const float* from, size_t stride, size_t rows, size_t all, size_t columns,
                        float* to) {
  each_panel(round_up(columns, kLanes), [&]<size_t kV>(size_t q) {
    float* panel = to + q * all;
    for (size_t r = 0; r < all; r++) {
      for (size_t v = 0; v < kV; v++) {
        const size_t at = q + v * kLanes;
        const F32 x = r < rows ? load_some(from + r * stride + at, columns - at) : F32{};
        store(panel + (r * kV + v) * kLanes, x);
      }
    }
  });
}

// The first `rows` of the panels' `all` rows back into [rows][columns] at `stride`.
static inline void unpack(const float* from, size_t rows, size_t all, size_t columns, float* to,
                          size_t stride) {
  each_panel(round_up(columns, kLanes), [&]<size_t kV>(size_t q) {
    const float* panel = from + q * all;
    for (size_t r = 0; r < rows; r++) {
      for (size_t v = 0; v < kV; v++) {
        const size_t at = q + v * kLanes;
        store_some(to + r * stride + at, load(panel + (r * kV + v) * kLanes), columns - at);
      }
    }
  });
}

// [rows][columns] at `stride`, transposed, into panels of `columns` rows: element (c, r) of the
// result is from[r * stride + c]. Rows beyond `rows`, up to a whole vector, become zero.
static inline void pack_transposed(const float* from, size_t stride, size_t rows, size_t columns,
                                   float* to) {
  each_panel(round_up(rows, kLanes), [&]<size_t kV>(size_t q) {
    float* panel = to + q * columns;
    for (size_t v = 0; v < kV; v++) {
      for (size_t c = 0; c < columns; c += kLanes) {
        const size_t n = columns - c < kLanes ? columns - c : kLanes;
        F32 square[kLanes];
        for (size_t i = 0; i < kLanes; i++) {
          const size_t r = q + v * kLanes + i;
          square[i] = r < rows ? load_some(from + r * stride + c, n) : F32{};
        }
        detail::transpose(square);
        for (size_t i = 0; i < n; i++) store(panel + ((c + i) * kV + v) * kLanes, square[i]);
      }
    }
  });
}

}  // namespace panel
}  // namespace EDGE_ISA
}  // namespace edge
