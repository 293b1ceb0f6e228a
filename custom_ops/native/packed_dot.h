// Few rows of x times the strips of a packed weight, at the speed of memory: the codes are one
// stream from end to end, multiplied as integers; scales come in once a block.
#pragma once
#include "native/packed_outliers.h"
#include "native/packed_products.h"

namespace edge {
namespace EDGE_ISA {

// The most rows of x that one pass over a strip serves.
#if defined(EDGE_SCALAR)
constexpr size_t kPackedDotRows = 1;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr size_t kPackedDotRows = 4;
#else
constexpr size_t kPackedDotRows = 2;
#endif

namespace detail {

// Blocks whose outliers are added up together, before their codes are multiplied: whole chunks of
// columns.
template <size_t kM>
constexpr size_t kPieceBlocks = kM <= 2 ? 8 : 4;

// Lines of a piece's codes that are fetched with each span of its outliers: the memory goes on while
// those are added up, and when their turn comes, the processor follows the codes by itself.
constexpr size_t kLinesASpan = 4;

static inline void prefetch_bytes(const uint8_t* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kPackedLine) prefetch(from + i);
}

// to[m][16] = rows m0 .. m0 + kM - 1 of x times a strip's rows.
template <int kBits, size_t kM>
static void dot_strip(const Packed& packed, const PackedSegment& segment, const PackedStrip& strip,
                      const PackedX& x, size_t m0, float (*to)[kStripRows]) {
  constexpr size_t kPiece = kPieceBlocks<kM>, kSums = kPiece * kStripRows;
  constexpr int kCentre = kCodeCentre<kBits>;
  const bool outliers = strip.outlier_count > 0;
  const int shift = outliers || segment.half ? segment.shift : 0;
  // What the sums of codes lack for each unit of the sum of x, but for zero points of their own.
  const int half = segment.half ? 1 << (shift - 1) : 0;
  const int zero = strip.zeros ? 0 : 1 << (kBits - 1);
  const int offset = half - ((zero - kCentre) << shift);
  // The next strip's, which lie behind this one's.
  prefetch_bytes(strip.row_scales + segment.meta_bytes, segment.meta_bytes);
  prefetch_bytes(reinterpret_cast<const uint8_t*>(strip.outliers + strip.outlier_count),
                 strip.outlier_count * 2);

  const uint8_t* codes = strip.codes;
  const int8_t* q = x.row(m0);
  const float* scales = x.scales + m0 * x.blocks;
  const int32_t* x_sums = x.sums + m0 * x.blocks;

  OutlierReader<kM, kSums> reader(packed, strip);
  // The processor follows codes by itself, and better, unless it falls behind: with several rows of x,
  // or if rows so long that the codes drive them from the first cache meet small ones.
  const bool fetch = kM > 1 || (kBits <= 3 && packed.padded > 4096);
  const size_t piece = kPiece * packed.block;
  const size_t span = piece < kSpanColumns ? piece : kSpanColumns;
  int32_t extra[kM * kSums];

  F32 totals[kPartsOfLine][kM] = {};
  for (size_t first = 0; first < packed.padded; first += piece) {
    const size_t end = first + piece < packed.padded ? first + piece : packed.padded;
    if (outliers) {
      for (size_t i = 0; i < kM * kSums; i += kLanes) write(extra + i, I32{});
      const uint8_t* ahead = codes;
      for (size_t k = first; k < end; k += span, ahead += kLinesASpan * kPackedLine) {
        prefetch_bytes(ahead, kLinesASpan * kPackedLine);
        reader.read_span(span, k - first, q + first, x.stride, extra);
      }
      reader.add_up(q + first, x.stride, extra);
    }
    for (size_t k = first; k < end; k += packed.block) {
      const size_t b = k / packed.block, columns = packed.block_columns(b);
      I32 sums[kPartsOfLine][kM];
      code_products<kBits, kM>(codes, columns / kPackedStep, q + k, x.stride, fetch, sums);
      codes += columns / kPackedStep * kBits * kPackedLine;
      for (size_t part = 0; part < kPartsOfLine; part++) {
        const size_t at = b * kStripRows + part * kLanes;
        const F32 scale = block_scale(segment.scale_kind, strip.block_scales, at);
#pragma unroll
        for (size_t m = 0; m < kM; m++) {
          const int32_t x_sum = x_sums[m * x.blocks + b];
          I32 sum = (sums[part][m] << shift) + offset * x_sum;
          if (strip.zeros) sum -= bytes_of(strip.zeros + at) * (x_sum << shift);
          if (outliers) {
            sum += read<I32>(extra + m * kSums + (b % kPiece) * kStripRows + part * kLanes);
          }
          const F32 factor = scale * splat(scales[m * x.blocks + b]);
          totals[part][m] = multiply_add(__builtin_convertvector(sum, F32), factor,
                                         totals[part][m]);
        }
      }
    }
  }
  const float unit = 1.0f / float(1 << shift);
  for (size_t part = 0; part < kPartsOfLine; part++) {
    F32 scale = splat(unit);
    if (segment.scale_kind == kScaleCodes) {
      scale = scale * from_bfloat(read<U16>(strip.row_scales + part * kLanes * 2));
    }
    for (size_t m = 0; m < kM; m++) store(to[m] + part * kLanes, totals[part][m] * scale);
  }
}

using DotStrip = void (*)(const Packed&, const PackedSegment&, const PackedStrip&, const PackedX&,
                          size_t, float (*)[kStripRows]);

template <int kBits, size_t... kI>
static inline DotStrip dot_strip_of(size_t rows, Lanes<size_t, kI...>) {
  static constexpr DotStrip kStrips[] = {dot_strip<kBits, kI + 1>...};
  return kStrips[rows - 1];
}

// For `rows` <= kPackedDotRows.
static inline DotStrip dot_strip_for(int bits, size_t rows) {
  DotStrip found = nullptr;
  with_bits(bits, [&]<int kBits>() {
    found = dot_strip_of<kBits>(rows, __make_integer_seq<Lanes, size_t, kPackedDotRows>{});
  });
  return found;
}

}  // namespace detail
}  // namespace EDGE_ISA
}  // namespace edge
