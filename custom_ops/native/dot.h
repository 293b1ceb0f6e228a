// Few x rows times many weight rows in the checkpoint's own layout, at the speed of memory:
// y[m][n] = sum_k x[m][k] * weight[n][k].
#pragma once
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

constexpr size_t kCacheLine = 64;
constexpr size_t kDotRows = 4;    // the most x rows that one pass over the weights serves
constexpr size_t kDotGroup = 16;  // weight rows whose pieces are taken before K advances

namespace detail {

// Weight rows that a tile takes at once. One row is one sequential stream, which memory likes best;
// from three x rows on, the arithmetic needs each x loaded for several weight rows.
template <size_t kM>
constexpr size_t dot_weight_rows() {
  return kM <= 2 ? 1 : kLanes == 16 ? 4 : 2;
}

// K is cut so that the x rows of a piece stay in the first-level cache beside the weight stream.
// A single x row may as well come from the second: the weights are then one stream from end to end.
template <size_t kM>
constexpr size_t dot_piece() {
  return kM == 1 ? 16384 : kM == 2 ? 2048 : 1024;
}

// Adds one piece of K to kM x kR sums. `ahead` is what the same place of a later piece is fetched
// from, by the time that this one is done.
template <size_t kM, size_t kR, class W>
static inline void dot_tile(const float* x, size_t x_stride, const W* weight, size_t w_stride,
                            size_t size, const W* ahead, bool first, float* y, size_t y_stride) {
  constexpr size_t kShares = kM * kR >= 8 ? 1 : 8 / (kM * kR);  // sums in flight hide latency
  constexpr size_t kLine = kCacheLine / (kLanes * sizeof(W));
  constexpr size_t kSteps = kShares > kLine ? kShares : kLine ? kLine : 1;
  constexpr size_t kLines = (kSteps * kLanes * sizeof(W) + kCacheLine - 1) / kCacheLine;
  F32 sums[kShares][kM][kR] = {};
  size_t k = 0;
  for (; k + kSteps * kLanes <= size; k += kSteps * kLanes) {
#pragma unroll
    for (size_t r = 0; r < kR; r++) {
#pragma unroll
      for (size_t line = 0; line < kLines; line++) {
        prefetch(reinterpret_cast<const char*>(ahead + r * w_stride + k) + line * kCacheLine);
      }
    }
#pragma unroll
    for (size_t s = 0; s < kSteps; s++) {
      F32 xs[kM];
#pragma unroll
      for (size_t m = 0; m < kM; m++) xs[m] = load(x + m * x_stride + k + s * kLanes);
#pragma unroll
      for (size_t r = 0; r < kR; r++) {
        const F32 w = load(weight + r * w_stride + k + s * kLanes);
#pragma unroll
        for (size_t m = 0; m < kM; m++) {
          F32& sum = sums[s % kShares][m][r];
          sum = multiply_add(xs[m], w, sum);
        }
      }
    }
  }
  for (; k < size; k += kLanes) {
    const size_t n = size - k < kLanes ? size - k : kLanes;
    for (size_t r = 0; r < kR; r++) {
      const F32 w = load_part(weight + r * w_stride + k, n);
      for (size_t m = 0; m < kM; m++) {
        sums[0][m][r] = multiply_add(load_part(x + m * x_stride + k, n), w, sums[0][m][r]);
      }
    }
  }
  for (size_t m = 0; m < kM; m++) {
    for (size_t r = 0; r < kR; r++) {
      F32 total = sums[0][m][r];
      for (size_t s = 1; s < kShares; s++) total += sums[s][m][r];
      float* out = y + m * y_stride + r;
      *out = sum(total) + (first ? 0.0f : *out);
    }
  }
}

// kM x rows times the rows of one group. `more` says that another group lies behind it.
template <size_t kM, class W>
static void dot_group(const float* x, size_t x_stride, const W* weight, size_t rows, bool more,
                      size_t k_size, float* y, size_t y_stride) {
  constexpr size_t kR = dot_weight_rows<kM>();
  constexpr size_t kAhead = 4;  // rows; about the bytes that memory takes to answer
  constexpr size_t kStreamAhead = 4096 / sizeof(W);
  constexpr size_t kPiece = dot_piece<kM>();
  for (size_t k = 0; k == 0 || k < k_size; k += kPiece) {
    const size_t size = k_size - k < kPiece ? k_size - k : kPiece;
    const bool last = k + kPiece >= k_size;
    for (size_t row = 0; row < rows;) {
      // What comes kAhead rows later: further down, at the top of the next piece of K, or in the
      // next group.
      size_t row_ahead = row + kAhead, k_ahead = k;
      if (row_ahead >= rows) {
        row_ahead = last ? (more ? row_ahead : row) : row_ahead - rows;
        k_ahead = last ? 0 : k + kPiece;
      }
      const W* w = weight + row * k_size + k;
      const W* ahead = kM == 1 ? w + kStreamAhead : weight + row_ahead * k_size + k_ahead;
      if (row + kR <= rows) {
        dot_tile<kM, kR>(x + k, x_stride, w, k_size, size, ahead, k == 0, y + row, y_stride);
        row += kR;
      } else {
        dot_tile<kM, 1>(x + k, x_stride, w, k_size, size, ahead, k == 0, y + row, y_stride);
        row += 1;
      }
    }
  }
}

}  // namespace detail

// y[m * y_stride + n] for n < rows and m < m_size, where `weight` points to row 0 of `rows`. From
// the second handful of x rows on, the weights of a group come from the cache.
template <class W>
static void dot_rows(const float* x, size_t m_size, size_t x_stride, const W* weight, size_t rows,
                     size_t k_size, float* y, size_t y_stride) {
  for (size_t first = 0; first < rows; first += kDotGroup) {
    const size_t group = rows - first < kDotGroup ? rows - first : kDotGroup;
    const bool more = first + group < rows;
    const W* w = weight + first * k_size;
    for (size_t m = 0; m < m_size; m += kDotRows) {
      const float* xs = x + m * x_stride;
      float* ys = y + m * y_stride + first;
      const auto some = m_size - m == 1   ? detail::dot_group<1, W>
                        : m_size - m == 2 ? detail::dot_group<2, W>
                        : m_size - m == 3 ? detail::dot_group<3, W>
                                          : detail::dot_group<4, W>;
      some(xs, x_stride, w, group, more, k_size, ys, y_stride);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
