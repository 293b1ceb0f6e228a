// Any rows of a packed matrix as float32. A strip's codes become signed bytes, row by row, and those
// (byte + offset) * scale with one rounding, and another one where there are column scales.
#pragma once
#include "native/int8_row.h"
#include "native/packed_codes.h"

namespace edge {
namespace EDGE_ISA {

namespace detail {

// A line of codes, and one row's part of it.
using Line = uint8_t __attribute__((vector_size(kPackedLine)));
using RowPart = uint8_t __attribute__((vector_size(4)));
using LineRows = uint32_t __attribute__((vector_size(kPackedLine)));

// The codes of kPackedStep columns less their middle, as signed bytes.
template <int kBits, class B>
static inline void centred_step(const uint8_t* codes, B (&quads)[kQuadsOfStep]) {
  unpack_step<kBits>(codes, quads);
#pragma unroll
  for (size_t i = 0; i < kQuadsOfStep; i++) quads[i] -= uint8_t(1 << (kBits - 1));
}

// Sixteen rows by sixteen columns: four quads, so transposed that a row's columns lie together.
static inline void store_square(const Line* quads, int8_t* to) {
  const LineRows a = (LineRows)quads[0], b = (LineRows)quads[1];
  const LineRows c = (LineRows)quads[2], d = (LineRows)quads[3];
  const LineRows low_ab =
      __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  const LineRows low_cd =
      __builtin_shufflevector(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  const LineRows high_ab =
      __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  const LineRows high_cd =
      __builtin_shufflevector(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  write(to, __builtin_shufflevector(low_ab, low_cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12,
                                    13, 28, 29));
  write(to + 64, __builtin_shufflevector(low_ab, low_cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                         27, 14, 15, 30, 31));
  write(to + 128, __builtin_shufflevector(high_ab, high_cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24,
                                          25, 12, 13, 28, 29));
  write(to + 192, __builtin_shufflevector(high_ab, high_cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11,
                                          26, 27, 14, 15, 30, 31));
}
constexpr size_t kSquare = 256;

// What is added to their bytes: how far zero points are from the middle, and half a step.
static inline F32 offsets_of(const PackedSegment& s, const PackedStrip& strip, size_t block,
                             size_t r) {
  const float middle = float(1 << (s.bits - 1)), more = s.half ? 0.5f : 0.0f;
  if (!strip.zeros) return splat(more);
  return splat(middle + more) - load_bytes(strip.zeros + block * kStripRows + r);
}

// What a strip's bytes are added to and multiplied with, in one block.
struct BlockScales {
  float scale[kStripRows], offset[kStripRows];

  void fill(const PackedSegment& s, const PackedStrip& strip, size_t block) {
    for (size_t r = 0; r < kStripRows; r += kLanes) {
      store(scale + r, scales_of(s, strip, block, r));
      store(offset + r, offsets_of(s, strip, block, r));
    }
  }
};

struct Outlier {
  size_t row, column;  // in its strip, in its chunk
  float value;         // before the segment's shift

  explicit Outlier(const uint16_t* entry) {
    const uint32_t bits = read<uint16_t>(entry);
    row = bits & 15;
    column = bits >> 4 & 63;
    value = float(int32_t(bits >> 10) - 32);
  }
};

static inline float fraction_of(const PackedSegment& s) { return 1.0f / float(1 << s.shift); }

// The columns of a chunk as bytes, two squares for every step.
constexpr size_t kStepsOfChunk = kChunkColumns / kPackedStep;

struct ChunkBytes {
  alignas(64) int8_t bytes[2 * kStepsOfChunk * kSquare];

  // Sixteen columns of a row.
  const int8_t* row(size_t r, size_t column) const {
    return bytes + column / 16 * kSquare + r % 4 * 64 + r / 4 * 16;
  }
};

// Calls use(first column, how many, number) for each run of a chunk's columns with one scale.
template <class Use>
static inline void each_run(const Packed& w, size_t from, const Use& use) {
  const size_t width = w.block < kChunkColumns ? w.block : kChunkColumns;
  for (size_t c = from, i = 0; c < from + kChunkColumns && c < w.columns; c += width, i++) {
    use(c, w.columns - c < width ? w.columns - c : width, i);
  }
}

// A row's `columns` in one run, of which each sixteen lie kApart bytes behind the others.
template <size_t kApart>
static inline void widen(const int8_t* bytes, F32 scale, F32 offset, size_t columns, float* to) {
  const auto sixteen = [&](size_t k) {
#pragma unroll
    for (size_t i = 0; i < 16; i += kLanes) {
      const auto* from = reinterpret_cast<const Int8*>(bytes + k / 16 * kApart + i);
      store(to + k + i, (load(from) + offset) * scale);
    }
  };
  if (columns == kChunkColumns) {
#pragma unroll
    for (size_t k = 0; k < kChunkColumns; k += 16) sixteen(k);
    return;
  }
  size_t k = 0;
  for (; k + 16 <= columns; k += 16) sixteen(k);
  for (; k < columns; k++) {
    to[k] = (float(bytes[k / 16 * kApart + k % 16]) + offset[0]) * scale[0];
  }
}

// How far before their use codes are fetched; the next strip's follow a strip's.
constexpr size_t kAheadBytes = 2048;

// Rows `first` .. `first + rows` - 1 of a strip, without column scales.
template <int kBits>
EDGE_OUT_OF_LINE static void unpack_strip(const Packed& w, const PackedSegment& s,
                                          const PackedStrip& strip, size_t first, size_t rows,
                                          float* out, size_t stride) {
  const float fraction = fraction_of(s);
  const uint8_t* codes = strip.codes;
  const uint16_t* entry = strip.outliers;
  BlockScales scales[kStepsOfChunk];
  ChunkBytes chunk;
  for (size_t from = 0; from < w.columns; from += kChunkColumns) {
    for (size_t i = 0; i < kStepsOfChunk && from + i * kPackedStep < w.columns; i++) {
#pragma unroll
      for (size_t line = 0; line < kBits; line++) {
        prefetch(codes + kAheadBytes + line * kPackedLine);
      }
      Line quads[kQuadsOfStep];
      centred_step<kBits>(codes, quads);
      store_square(quads, chunk.bytes + 2 * i * kSquare);
      store_square(quads + kQuadsOfStep / 2, chunk.bytes + (2 * i + 1) * kSquare);
      codes += kPackedLine * kBits;
    }
    each_run(w, from, [&](size_t c, size_t columns, size_t i) {
      BlockScales& of = scales[i];
      if (c % w.block == 0) of.fill(s, strip, c / w.block);
      for (size_t r = first; r < first + rows; r++) {
        const F32 scale = splat(of.scale[r]), offset = splat(of.offset[r]);
        widen<kSquare>(chunk.row(r, c - from), scale, offset, columns,
                       out + (r - first) * stride + c);
      }
    });
    if (!strip.counts) continue;
    for (size_t i = strip.counts[from / kChunkColumns]; i > 0; i--, entry++) {
      const Outlier o(entry);
      const size_t r = o.row - first, k = from + o.column;
      if (r >= rows || k >= w.columns) continue;
      const BlockScales& of = scales[w.block < kChunkColumns ? o.column / w.block : 0];
      const float byte = float(chunk.row(o.row, o.column)[o.column % 16]);
      out[r * stride + k] = (byte + of.offset[o.row] + o.value * fraction) * of.scale[o.row];
    }
  }
}

// Row `r` of a strip alone, without column scales.
template <int kBits>
EDGE_OUT_OF_LINE static void unpack_row(const Packed& w, const PackedSegment& s,
                                        const PackedStrip& strip, size_t r, float* out) {
  const float fraction = fraction_of(s);
  const uint8_t* codes = strip.codes + r * sizeof(RowPart);
  const uint16_t* entry = strip.outliers;
  const size_t base = r / kLanes * kLanes;
  float scale[kStepsOfChunk] = {}, offset[kStepsOfChunk] = {};
  RowPart quads[kStepsOfChunk][kQuadsOfStep];
  const auto* bytes = reinterpret_cast<const int8_t*>(quads);
  for (size_t from = 0; from < w.columns; from += kChunkColumns) {
    for (size_t i = 0; i < kStepsOfChunk && from + i * kPackedStep < w.columns; i++) {
      centred_step<kBits>(codes, quads[i]);
      codes += kPackedLine * kBits;
    }
    each_run(w, from, [&](size_t c, size_t columns, size_t i) {
      if (c % w.block == 0) {
        scale[i] = scales_of(s, strip, c / w.block, base)[r - base];
        offset[i] = offsets_of(s, strip, c / w.block, base)[r - base];
      }
      widen<16>(bytes + (c - from), splat(scale[i]), splat(offset[i]), columns, out + c);
    });
    if (!strip.counts) continue;
    for (size_t i = strip.counts[from / kChunkColumns]; i > 0; i--, entry++) {
      const Outlier o(entry);
      const size_t k = from + o.column, run = w.block < kChunkColumns ? o.column / w.block : 0;
      if (o.row != r || k >= w.columns) continue;
      out[k] = (float(bytes[o.column]) + offset[run] + o.value * fraction) * scale[run];
    }
  }
}

// Up to this many rows of a strip are unpacked one by one.
constexpr size_t kFewRows = 3;

template <int kBits>
static inline void unpack_some(const Packed& w, const PackedSegment& s, const PackedStrip& strip,
                               size_t first, size_t rows, float* out, size_t stride) {
  if (rows > kFewRows) return unpack_strip<kBits>(w, s, strip, first, rows, out, stride);
  for (size_t r = 0; r < rows; r++) unpack_row<kBits>(w, s, strip, first + r, out + r * stride);
}

static inline void scale_columns(const uint16_t* scales, size_t columns, float* row) {
  const auto* by = reinterpret_cast<const Bfloat*>(scales);
  size_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) store(row + k, load(row + k) * load(by + k));
  if (k < columns) {
    const size_t n = columns - k;
    store_part(row + k, load_part(row + k, n) * load_part(by + k, n), n);
  }
}

}  // namespace detail

// Calls use(segment, strip, first, rows, done) for each strip with rows of from .. from + count - 1
// of a matrix: rows `first` .. of the strip are rows `done` .. of the range.
template <class Use>
static void each_strip(const Packed& w, size_t matrix, size_t from, size_t count, const Use& use) {
  PackedSegment s = w.first_segment();
  size_t done = 0;
  for (size_t i = 0; done < count && i < w.segments; i++) {
    while (done < count && from + done - s.row < s.rows) {
      const size_t row = from + done - s.row, first = row % kStripRows;
      const size_t whole = kStripRows - first < s.rows - row ? kStripRows - first : s.rows - row;
      const size_t rows = whole < count - done ? whole : count - done;
      use(s, w.strip(matrix, s, row / kStripRows), first, rows, done);
      done += rows;
    }
    s = w.segment_after(s, i);
  }
}

// Rows from .. from + count - 1 of one matrix to out[i * stride + k], their columns as they are
// stored.
static void unpack_rows(const Packed& w, size_t matrix, size_t from, size_t count, float* out,
                        size_t stride) {
  const auto unpack = [&](const PackedSegment& s, const PackedStrip& strip, size_t first,
                          size_t rows, size_t done) {
    with_bits(s.bits, [&]<int kBits>() {
      detail::unpack_some<kBits>(w, s, strip, first, rows, out + done * stride, stride);
    });
  };
  each_strip(w, matrix, from, count, unpack);
  const uint16_t* scales = w.column_scales(matrix);
  for (size_t i = 0; scales && i < count; i++) {
    detail::scale_columns(scales, w.columns, out + i * stride);
  }
}

// One row, its columns as the matrix has them; `memory` holds as many. A damaged order leaves 0 in
// columns that it does not name.
static inline void unpack_row_in_order(const Packed& w, size_t matrix, size_t row, float* memory,
                                       float* out) {
  const uint32_t* order = w.column_order(matrix);
  unpack_rows(w, matrix, row, 1, memory, w.columns);
  for (size_t k = 0; k < w.columns; k++) out[k] = 0.0f;
  for (size_t k = 0; k < w.columns; k++) {
    const size_t column = read<uint32_t>(order + k);
    if (column < w.columns) out[column] = memory[k];
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
