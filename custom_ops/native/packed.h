// A packed weight: one uint8 tensor that describes itself (docs/packed-weights.md has its layout).
// Its bytes come in; out come checked views of its segments and strips, for the kernels to read.
//
// A blob is untrusted and may begin at any address: sizes are checked before anything is read
// through them, and what is wider than a byte is read without alignment.
#pragma once
#include "native/kernel.h"
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

constexpr size_t kStripRows = 16;
constexpr size_t kPackedStep = 32;   // columns whose codes lie together: kPackedLine * bits bytes
constexpr size_t kPackedLine = 64;   // bytes of a vector of codes; what sections are padded to
constexpr size_t kChunkColumns = 64;  // columns that share one count of outliers
constexpr size_t kMostSegments = 64;

// What a scale of a block is: a code beside the row's scale, or a 16-bit float by itself.
enum ScaleKind : int { kScaleCodes, kScaleHalf, kScaleBfloat };

// A range of rows with one make-up. `*_at` counts from the beginning of a matrix's section, and
// `*_bytes` are those of one strip.
struct PackedSegment {
  size_t row, rows, strips;
  int bits;
  bool zeros;
  int scale_kind;
  int shift;
  bool half;  // every code stands for half a step more
  size_t codes_at, codes_bytes, meta_at, meta_bytes;
};

// kStripRows rows of one segment. An outlier's column, 64 * its chunk + its bits 4-9, may lie up to
// 63 beyond the last one in a blob that is damaged; everything else stays inside.
struct PackedStrip {
  const uint8_t* codes;         // [padded / 32][64 * bits]
  const uint8_t* row_scales;    // bf16 [16]
  const uint8_t* block_scales;  // [blocks][16] bytes, or 16-bit floats
  const uint8_t* zeros;         // [blocks][16] or null
  const uint8_t* counts;        // [chunks] or null where there are no outliers
  const uint16_t* outliers;     // the strip's entries; perhaps at an odd address
  size_t outlier_count;
};

struct Packed {
  size_t count, rows, columns;    // matrices [rows, columns]
  size_t padded, block, blocks;   // columns with their padding; columns of a block; blocks of a row
  size_t chunks;                  // of 64 columns
  size_t segments;
  bool has_outliers, has_column_scales, has_column_order;
  size_t first_at, section_bytes;  // where the matrices begin, and the step between them
  size_t entries;                  // outliers of all matrices
  const uint8_t* data;
  const uint8_t* outliers;

  static constexpr size_t kHeaderBytes = 64, kSegmentBytes = 16;

  // The columns of block `b`: the last one may be shorter.
  size_t block_columns(size_t b) const { return b + 1 < blocks ? block : padded - b * block; }

  // The one that begins the table.
  PackedSegment first_segment() const { return described(0, 0, codes_at()); }

  // The one after `s`, which is number `i`.
  PackedSegment segment_after(const PackedSegment& s, size_t i) const {
    const size_t end = s.meta_at + up(s.strips * s.meta_bytes, kPackedLine);
    return described(i + 1, s.row + s.rows, end);
  }

  PackedSegment segment(size_t i) const {
    PackedSegment s = first_segment();
    for (size_t at = 0; at < i; at++) s = segment_after(s, at);
    return s;
  }

  const uint8_t* section(size_t matrix) const { return data + first_at + matrix * section_bytes; }

  // bf16 [columns], perhaps at an odd address, or null.
  const uint16_t* column_scales(size_t matrix) const {
    return has_column_scales ? reinterpret_cast<const uint16_t*>(section(matrix)) : nullptr;
  }

  // u32 [columns], which of the matrix's columns each stored one is, perhaps at an odd address; or
  // null. In a blob that is damaged they may be any numbers.
  const uint32_t* column_order(size_t matrix) const {
    if (!has_column_order) return nullptr;
    return reinterpret_cast<const uint32_t*>(section(matrix) + column_scale_bytes());
  }

  PackedStrip strip(size_t matrix, const PackedSegment& s, size_t index) const {
    const uint8_t* base = section(matrix);
    const uint8_t* meta = base + s.meta_at + index * s.meta_bytes;
    PackedStrip strip = {};
    strip.codes = base + s.codes_at + index * s.codes_bytes;
    strip.row_scales = meta;
    strip.block_scales = meta + kRowScaleBytes;
    size_t at = kRowScaleBytes + scale_bytes(s);
    if (s.zeros) {
      strip.zeros = meta + at;
      at += blocks * kStripRows;
    }
    if (!has_outliers) return strip;
    at = up(at, 4);
    const size_t start = read<uint32_t>(meta + at);
    const uint8_t* counts = meta + at + 4;
    size_t total = 0;
    for (size_t c = 0; c < chunks; c++) total += counts[c];
    if (start > entries || total > entries - start) return strip;  // damaged: none
    strip.counts = counts;
    strip.outliers = reinterpret_cast<const uint16_t*>(outliers + start * 2);
    strip.outlier_count = total;
    return strip;
  }

  // Checks everything but the outliers' counts, which `strip` sees to, and the order of columns,
  // which is checked as it is used.
  static Status* parse(const char* op, const Tensor& tensor, Packed* out) {
    const auto wrong = [&](const char* what) {
      return Message(op).text(": the packed weight ").text(what).error();
    };
    if (tensor.type != ElementType::kUint8 || tensor.rank != 1) {
      return wrong("has to be a uint8 tensor of one dimension");
    }
    const uint8_t* data = tensor.as<uint8_t>();
    const size_t bytes = size_t(tensor.dims[0]);
    if (bytes < kHeaderBytes + kSegmentBytes) return wrong("is shorter than its header");
    if (read<uint32_t>(data) != kMagic) return wrong("does not begin with EWPM");
    const uint32_t version = read<uint32_t>(data + 4), flags = read<uint32_t>(data + 28);
    if (version != 1 || flags > 7) return wrong("is of a version that this library does not read");
    Packed p = {};
    p.data = data;
    p.count = read<uint32_t>(data + 8);
    p.rows = read<uint32_t>(data + 12);
    p.columns = read<uint32_t>(data + 16);
    p.block = read<uint32_t>(data + 20);
    p.segments = read<uint32_t>(data + 24);
    p.has_column_scales = flags & 1;
    p.has_outliers = flags & 2;
    p.has_column_order = flags & 4;
    if (p.block != 32 && p.block != 64 && p.block != 128) return wrong("has wrong blocks");
    if (p.segments == 0 || p.segments > kMostSegments) return wrong("has no or too many segments");
    if (p.count == 0 || p.rows == 0 || p.columns == 0) return wrong("has no values");
    // A column has two bits in every row, so no more of them fit than there are bytes.
    if (p.columns > bytes || p.rows > bytes) return wrong("is shorter than its shape needs");
    p.padded = up(p.columns, kPackedStep);
    p.blocks = (p.padded + p.block - 1) / p.block;
    p.chunks = (p.padded + kChunkColumns - 1) / kChunkColumns;
    p.first_at = up(kHeaderBytes + p.segments * kSegmentBytes, kPackedLine);
    if (p.first_at > bytes) return wrong("is shorter than its header");
    size_t end = p.codes_at(), row = 0;
    for (size_t i = 0; i < p.segments; i++) {
      const uint8_t* entry = data + kHeaderBytes + i * kSegmentBytes;
      if (!valid_make_up(entry)) return wrong("has a segment of a wrong make-up");
      const PackedSegment s = p.described(i, row, end);
      // Neither factor exceeds `bytes` by more than a small power of two; their product may.
      size_t codes, meta;
      if (s.rows == 0 || s.rows > p.rows - row ||
          __builtin_mul_overflow(s.strips, s.codes_bytes, &codes) || codes > bytes ||
          __builtin_mul_overflow(s.strips, s.meta_bytes, &meta) || meta > bytes) {
        return wrong("has a segment that does not fit");
      }
      end = s.codes_at + codes + up(meta, kPackedLine);
      if (end > bytes) return wrong("is shorter than its segments need");
      row += s.rows;
    }
    if (row != p.rows) return wrong("has segments that are not its rows together");
    p.section_bytes = end;
    size_t sections;
    if (__builtin_mul_overflow(p.count, p.section_bytes, &sections) ||
        sections > bytes - p.first_at) {
      return wrong("is shorter than its matrices need");
    }
    const size_t outliers_at = p.first_at + sections;
    const uint64_t entries = read<uint64_t>(data + 40);
    if (entries > (bytes - outliers_at) / 2 || (entries && !p.has_outliers)) {
      return wrong("is shorter than its outliers need");
    }
    p.entries = size_t(entries);
    p.outliers = data + outliers_at;
    if (up(outliers_at + p.entries * 2, kPackedLine) != bytes ||
        read<uint64_t>(data + 32) != bytes) {
      return wrong("is not as long as it says");
    }
    *out = p;
    return nullptr;
  }

 private:
  static constexpr uint32_t kMagic = 0x4d505745;
  static constexpr size_t kRowScaleBytes = kStripRows * 2;

  static constexpr size_t up(size_t n, size_t step) { return (n + step - 1) / step * step; }

  static bool valid_make_up(const uint8_t* entry) {
    constexpr uint8_t kMostShift[9] = {0, 0, 3, 3, 3, 2, 1, 0, 0};
    const uint8_t bits = entry[4];
    return bits >= 2 && bits <= 8 && bits != 7 && entry[5] <= 1 && entry[6] <= kScaleBfloat &&
           entry[7] <= kMostShift[bits] && entry[8] <= (entry[7] ? 1 : 0) &&
           read<uint64_t>(entry + 8) == entry[8];
  }

  size_t column_scale_bytes() const { return has_column_scales ? up(columns * 2, kPackedLine) : 0; }

  // Where a section's first codes are.
  size_t codes_at() const {
    return column_scale_bytes() + (has_column_order ? up(columns * 4, kPackedLine) : 0);
  }

  size_t scale_bytes(const PackedSegment& s) const {
    return blocks * kStripRows * (s.scale_kind == kScaleCodes ? 1 : 2);
  }

  PackedSegment described(size_t i, size_t row, size_t at) const {
    if (i >= segments) return {};
    const uint8_t* entry = data + kHeaderBytes + i * kSegmentBytes;
    PackedSegment s = {};
    s.row = row;
    s.rows = read<uint32_t>(entry);
    s.strips = (s.rows + kStripRows - 1) / kStripRows;
    s.bits = entry[4];
    s.zeros = entry[5];
    s.scale_kind = entry[6];
    s.shift = entry[7];
    s.half = entry[8];
    s.codes_bytes = padded / kPackedStep * kPackedLine * size_t(s.bits);
    s.meta_bytes = kRowScaleBytes + scale_bytes(s) + (s.zeros ? blocks * kStripRows : 0);
    if (has_outliers) s.meta_bytes = up(s.meta_bytes, 4) + 4 + chunks;
    s.meta_bytes = up(s.meta_bytes, 4);
    s.codes_at = at;
    s.meta_at = at + s.strips * s.codes_bytes;
    return s;
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
