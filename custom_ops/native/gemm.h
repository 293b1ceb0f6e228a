// Many x rows times a block of weight rows: y[m][n] = sum_k x[m][k] * weight[n][k].
//
// A block of the weights is converted to float32 once, transposed into panels that lie as the inner
// loop reads them, and stays in the second-level cache while all x rows pass by. K is cut into
// chunks whose sums are added up in y; that also keeps the rounding error of long sums small.
#pragma once
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

// The inner tile: kTileRows x rows times kTileVectors vectors of columns, all sums in registers.
#if defined(__AVX512F__)
constexpr size_t kTileRows = 14, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr size_t kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX2__)
constexpr size_t kTileRows = 6, kTileVectors = 2;
#else
constexpr size_t kTileRows = 4, kTileVectors = 2;
#endif

constexpr size_t kPanelWidth = kTileVectors * kLanes;
constexpr size_t kBlockColumns = 256;  // weight rows that one task converts and keeps
constexpr size_t kChunk = 512;         // of K
// x rows are copied to this stride: at their own, often a power of two, they would fall on one
// another in the cache.
constexpr size_t kXStride = kChunk + kLanes;

static_assert(kBlockColumns % kPanelWidth == 0 && kChunk % kLanes == 0);

constexpr size_t kGemmScratchBytes =
    (kBlockColumns * kChunk + kTileRows * kXStride) * sizeof(float);

namespace detail {

// Of two rows, the lanes without the bit kStep of both, and then those with it.
template <size_t kStep, size_t... kI>
static inline void swap_halves(F32* a, F32* b, Lanes<size_t, kI...>) {
  const F32 low = __builtin_shufflevector(*a, *b, (kI & kStep ? kLanes + kI - kStep : kI)...);
  *b = __builtin_shufflevector(*a, *b, (kI & kStep ? kLanes + kI : kI + kStep)...);
  *a = low;
}

// rows[i][j] becomes rows[j][i], by swapping ever larger off-diagonal squares.
template <size_t kStep = 1>
static inline void transpose(F32 (&rows)[kLanes]) {
  if constexpr (kStep < kLanes) {
#pragma unroll
    for (size_t i = 0; i < kLanes; i++) {
      if (!(i & kStep)) swap_halves<kStep>(&rows[i], &rows[i + kStep], AllLanes{});
    }
    transpose<kStep * 2>(rows);
  }
}

// Writes panel[k][column] for kLanes weight rows, of which `rows` exist, and `size` steps of K.
template <class W>
static void pack_rows(const W* weight, size_t w_stride, size_t rows, size_t size, float* panel) {
  for (size_t k = 0; k < size; k += kLanes) {
    const size_t n = size - k < kLanes ? size - k : kLanes;
    F32 square[kLanes];
    if (rows == kLanes && n == kLanes) {
#pragma unroll
      for (size_t r = 0; r < kLanes; r++) square[r] = load(weight + r * w_stride + k);
    } else {
      for (size_t r = 0; r < kLanes; r++) {
        square[r] = r < rows ? load_part(weight + r * w_stride + k, n) : F32{};
      }
    }
    transpose(square);
#pragma unroll
    for (size_t j = 0; j < kLanes; j++) store(panel + (k + j) * kPanelWidth, square[j]);
  }
}

// One panel after the other, each [K][kPanelWidth]; columns beyond `columns` are zero.
template <class W>
static void pack_block(const W* weight, size_t w_stride, size_t columns, size_t size,
                       float* panels) {
  for (size_t n = 0; n < columns; n += kPanelWidth) {
    for (size_t v = 0; v < kTileVectors; v++) {
      const size_t row = n + v * kLanes;
      const size_t rows = row >= columns ? 0 : columns - row < kLanes ? columns - row : kLanes;
      pack_rows(weight + (rows ? row : 0) * w_stride, w_stride, rows, size,
                panels + n * kChunk + v * kLanes);
    }
  }
}

static inline void pack_x(const float* x, size_t x_stride, size_t rows, size_t size, float* out) {
  for (size_t r = 0; r < rows; r++) {
    size_t k = 0;
    for (; k + kLanes <= size; k += kLanes) {
      store(out + r * kXStride + k, load(x + r * x_stride + k));
    }
    for (; k < size; k++) out[r * kXStride + k] = x[r * x_stride + k];
  }
}

static inline void prefetch_x(const float* x, size_t x_stride, size_t rows, size_t size) {
  for (size_t r = 0; r < rows; r++) {
    for (size_t k = 0; k < size; k += 64 / sizeof(float)) prefetch(x + r * x_stride + k);
  }
}

template <size_t kRows>
static void gemm_tile(const float* x, const float* panel, size_t size, bool first, float* y,
                      size_t y_stride, size_t columns) {
  F32 sums[kRows][kTileVectors] = {};
  for (size_t r = 0; r < kRows; r++) prefetch(y + r * y_stride);  // needed at the end
  for (size_t k = 0; k < size; k++) {
    F32 w[kTileVectors];
#pragma unroll
    for (size_t v = 0; v < kTileVectors; v++) w[v] = load(panel + k * kPanelWidth + v * kLanes);
#pragma unroll
    for (size_t r = 0; r < kRows; r++) {
      const F32 xs = splat(x[r * kXStride + k]);
#pragma unroll
      for (size_t v = 0; v < kTileVectors; v++) sums[r][v] = multiply_add(xs, w[v], sums[r][v]);
    }
  }
#pragma unroll
  for (size_t r = 0; r < kRows; r++) {
#pragma unroll
    for (size_t v = 0; v < kTileVectors; v++) {
      float* out = y + r * y_stride + v * kLanes;
      if ((v + 1) * kLanes <= columns) {
        store(out, first ? sums[r][v] : load(out) + sums[r][v]);
      } else if (v * kLanes < columns) {
        const size_t n = columns - v * kLanes;
        store_part(out, first ? sums[r][v] : load_part(out, n) + sums[r][v], n);
      }
    }
  }
}

using GemmTile = void (*)(const float*, const float*, size_t, bool, float*, size_t, size_t);

template <size_t... kI>
static inline GemmTile gemm_tile_for(size_t rows, Lanes<size_t, kI...>) {
  static constexpr GemmTile kTiles[] = {gemm_tile<kI + 1>...};
  return kTiles[rows - 1];
}

}  // namespace detail

// y[m * y_stride + n] for n < columns <= kBlockColumns; `scratch` has kGemmScratchBytes.
template <class W>
static void gemm_block(const float* x, size_t m_size, size_t x_stride, const W* weight,
                       size_t columns, size_t k_size, float* y, size_t y_stride, float* scratch) {
  float* panels = scratch;
  float* x_tile = scratch + kBlockColumns * kChunk;
  // Tiles of about equal height: 14 + 14 + 5 would leave most of the last one's registers idle.
  const size_t tiles = (m_size + kTileRows - 1) / kTileRows;
  for (size_t k = 0; k == 0 || k < k_size; k += kChunk) {
    const size_t size = k_size - k < kChunk ? k_size - k : kChunk;
    detail::pack_block(weight + k, k_size, columns, size, panels);
    for (size_t t = 0; t < tiles; t++) {
      const size_t m = m_size * t / tiles;
      const size_t rows = m_size * (t + 1) / tiles - m;
      detail::pack_x(x + m * x_stride + k, x_stride, rows, size, x_tile);
      const auto tile =
          detail::gemm_tile_for(rows, __make_integer_seq<Lanes, size_t, kTileRows>{});
      for (size_t n = 0; n < columns; n += kPanelWidth) {
        if (t + 1 < tiles) {
          // The next tile's x, in as many parts as there are panels.
          const size_t part = kChunk * kPanelWidth / kBlockColumns, from = part * (n / kPanelWidth);
          detail::prefetch_x(x + (m + rows) * x_stride + k + from, x_stride, rows,
                             from + part < size ? part : from < size ? size - from : 0);
        }
        tile(x_tile, panels + n * kChunk, size, k == 0, y + m * y_stride + n, y_stride,
             columns - n);
      }
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
