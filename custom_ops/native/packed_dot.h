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

// Blocks whose outliers are added up together, while the codes of the blocks before them are taken.
// Whole chunks of 64 columns.
template <size_t kM>
constexpr size_t kPieceBlocks = kM == 1 ? 4 : 2;

// What is taken from the sums of codes for each unit of the sum of x: the zero point, less what
// add_products took already.
template <int kBits>
static inline I32 zero_points(const PackedStrip& strip, size_t at) {
  if (strip.zeros == nullptr) return I32{} + ((1 << (kBits - 1)) - kCodeCentre<kBits>);
  using Codes = uint8_t __attribute__((vector_size(kLanes)));
  return __builtin_convertvector(read<Codes>(strip.zeros + at), I32) - kCodeCentre<kBits>;
}

static inline F32 block_scale(int scale_kind, const uint8_t* scales, size_t at) {
  if (scale_kind == kScaleCodes) {
    using Codes = uint8_t __attribute__((vector_size(kLanes)));
    return __builtin_convertvector(__builtin_convertvector(read<Codes>(scales + at), I32), F32);
  }
  const U16 raw = read<U16>(scales + at * 2);
  return scale_kind == kScaleHalf ? from_half(raw) : from_bfloat(raw);
}

static inline void prefetch_bytes(const uint8_t* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kPackedLine) prefetch(from + i);
}

// to[m][16] = rows m0 .. m0 + kM - 1 of x times a strip's rows.
template <int kBits, size_t kM>
static void dot_strip(const Packed& packed, const PackedSegment& segment, const PackedStrip& strip,
                      const PackedX& x, size_t m0, float (*to)[kStripRows]) {
  constexpr size_t kPiece = kPieceBlocks<kM>;
  const bool outliers = strip.outlier_count > 0;
  const Ahead ahead = outliers ? kAheadOfOutliers : kAheadOfCodes;
  const int shift = outliers || segment.half ? segment.shift : 0;
  const int half = segment.half ? 1 << (shift - 1) : 0;  // of each x, after the shift
  OutlierReader<kM, kPiece * kStripRows> reader(packed, strip);
  // The next strip's, which lie behind this one's.
  prefetch_bytes(strip.row_scales + segment.meta_bytes, segment.meta_bytes);
  prefetch_bytes(reinterpret_cast<const uint8_t*>(strip.outliers + strip.outlier_count),
                 strip.outlier_count * 2);

  const uint8_t* codes = strip.codes;
  const int8_t* q = x.row(m0);
  const float* scales = x.scales + m0 * x.blocks;
  const int32_t* x_sums = x.sums + m0 * x.blocks;

  int32_t sums_of[2][kM * kPiece * kStripRows];
  const auto clear = [](int32_t* sums) {
    for (size_t i = 0; i < kM * kPiece * kStripRows; i += kLanes) write(sums + i, I32{});
  };
  const auto read_outliers = [&](size_t b, int32_t* sums) {
    const size_t first = b / kPiece * kPiece * packed.block / kChunkColumns;
    const size_t end =
        b + 1 < packed.blocks ? (b + 1) * packed.block / kChunkColumns : packed.chunks;
    for (size_t chunk = b * packed.block / kChunkColumns; chunk < end; chunk++) {
      reader.read_chunk(chunk - first, q + first * kChunkColumns, x.stride, sums);
    }
    // The last of its piece.
    if ((b + 1) % kPiece == 0 || b + 1 == packed.blocks) {
      reader.finish(q + first * kChunkColumns, x.stride, sums);
    }
  };
  if (outliers) {
    clear(sums_of[0]);
    for (size_t b = 0; b < kPiece && b < packed.blocks; b++) read_outliers(b, sums_of[0]);
  }

  F32 totals[kPartsOfLine][kM] = {};
  for (size_t first = 0; first < packed.blocks; first += kPiece) {
    const size_t blocks = packed.blocks - first < kPiece ? packed.blocks - first : kPiece;
    const int32_t* extra = sums_of[first / kPiece % 2];
    int32_t* next = sums_of[first / kPiece % 2 ^ 1];
    if (outliers) clear(next);
    for (size_t b = first; b < first + blocks; b++) {
      if (outliers && b + kPiece < packed.blocks) read_outliers(b + kPiece, next);
      const size_t columns = packed.block_columns(b);
      const size_t bytes = columns / kPackedStep * kBits * kPackedLine;
      I32 sums[kPartsOfLine][kM];
      code_products<kBits, kM>(codes, columns / kPackedStep, ahead, q + b * packed.block, x.stride,
                               sums);
      codes += bytes;
      for (size_t part = 0; part < kPartsOfLine; part++) {
        const size_t at = b * kStripRows + part * kLanes;
        const I32 zero = zero_points<kBits>(strip, at);
        const F32 scale = block_scale(segment.scale_kind, strip.block_scales, at);
#pragma unroll
        for (size_t m = 0; m < kM; m++) {
          const int32_t x_sum = x_sums[m * x.blocks + b];
          I32 sum = ((sums[part][m] - zero * x_sum) << shift) + half * x_sum;
          if (outliers) {
            sum += read<I32>(extra + (m * kPiece + b - first) * kStripRows + part * kLanes);
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
