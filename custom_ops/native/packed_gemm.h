// Many x rows, as int8, times rows of a packed weight: y[m][n] = sum_k x[m][k] * w[n][k].
//
// A group of strips is unpacked once, outliers and all, to bytes in the order of the inner loop,
// and stays in the second-level cache while all x rows pass by. A block's products are summed
// exactly, in int32, and then added up in float32 with the scales of x and of the weight.
#pragma once
#include "native/packed_tile.h"
#include "native/packed_x.h"

namespace edge {
namespace EDGE_ISA {

constexpr size_t kPackedGemmFrom = 8;    // x rows
constexpr size_t kPackedGemmRows = 128;  // weight rows of a task

namespace detail {

constexpr size_t kGemmColumns = 2048;  // of K, at a time
constexpr size_t kGemmBlocks = kGemmColumns / 32;
constexpr size_t kGroupStrips = kPackedGemmRows / kStripRows;
constexpr size_t kGroupStride = kGemmColumns * kStripRows;
// Not a power of two, so that the rows do not fall on one another in the cache.
constexpr size_t kTileXStride = kGemmColumns + 64;

// Where a strip's rows go: row `from` to column `column` of y, the others beside it.
struct Target {
  size_t column, from, count;
};

struct GroupStrip {
  PackedSegment segment;
  PackedStrip strip;
  Target target;

  // What lies between a byte of the panel and its code's value, where the zero point is `zero`.
  int32_t offset(int zero) const {
    const int whole = ((1 << (segment.bits - 1)) - zero) * (1 << segment.shift);
    return whole + (segment.half ? 1 << segment.shift >> 1 : 0) - tile::kPanelBias;
  }
  int32_t offset() const { return offset(1 << (segment.bits - 1)); }
};

// Scratch memory of a task: the group over some columns, and one tile of x.
struct GemmScratch {
  int8_t panel[kGroupStrips * kGroupStride];
  float scale[kGroupStrips][kGemmBlocks][kStripRows];
  int32_t offset[kGroupStrips][kGemmBlocks][kStripRows];  // to be added to every code
  tile::X x[tile::kRows * kTileXStride];
  // -kSmallXBias times the sums of the panel, where its bytes are multiplied as small ones.
  int32_t start[tile::kHasSmall ? kGroupStrips : 1][kGemmBlocks][kStripRows];
  float x_scale[kGemmBlocks][tile::kRows];
  int32_t x_sum[kGemmBlocks][tile::kRows];
};

// The columns [first, first + columns) of K that are in the scratch memory.
struct GemmPiece {
  size_t first, columns, block, blocks;
  bool same_offset;  // of all codes: then it is `offset`
  int32_t offset;
  bool small;  // all bytes of the panels

  size_t quads(size_t b) const { return (b + 1 < blocks ? block : columns - b * block) / 4; }
};

template <int kBits>
EDGE_OUT_OF_LINE void unpack_codes(const uint8_t* codes, size_t steps, int shift, int8_t* panel) {
  const uint8_t lift = uint8_t(tile::kPanelBias - (1 << (kBits - 1) << shift));
  for (size_t i = 0; i < steps; i++) {
    for (size_t part = 0; part < kPackedLine; part += sizeof(Bytes)) {
      Bytes quads[kQuadsOfStep];
      unpack_step<kBits>(codes + i * kPackedLine * kBits + part, quads);
#pragma unroll
      for (size_t q = 0; q < kQuadsOfStep; q++) quads[q] = raised(quads[q], shift) + lift;
      tile::write_step(quads, part, panel + i * kQuadsOfStep * kPackedLine);
    }
  }
}

// Returns whether all that they came to is small.
static inline bool add_outliers(const PackedStrip& strip, size_t first_chunk, size_t chunks,
                                int8_t* panel) {
  size_t at = 0;
  int least = 0, most = 0;
  for (size_t c = 0; c < first_chunk; c++) at += strip.counts[c];
  for (size_t c = first_chunk; c < first_chunk + chunks; c++) {
    int8_t* from = panel + (c - first_chunk) * kChunkColumns * kStripRows;
    for (const size_t end = at + strip.counts[c]; at < end; at++) {
      const uint32_t entry = read<uint16_t>(strip.outliers + at);
      const uint32_t row = entry & 15, column = entry >> 4 & 63;
      int8_t& value = from[tile::panel_at(row, column)];
      value = int8_t(value + int(entry >> 10) - 32);
      least = value < least ? value : least;
      most = value > most ? value : most;
    }
  }
  return least >= -tile::kSmall && most <= tile::kSmall;
}

// Returns whether all bytes are small.
static inline bool unpack_strip(const GroupStrip& g, const GemmPiece& piece, size_t i,
                                GemmScratch* scratch) {
  const PackedSegment& s = g.segment;
  bool small = s.bits < 8;
  int8_t* panel = scratch->panel + i * kGroupStride;
  with_bits(s.bits, [&]<int kBits>() {
    const uint8_t* codes = g.strip.codes + piece.first / kPackedStep * kPackedLine * kBits;
    unpack_codes<kBits>(codes, piece.columns / kPackedStep, s.shift, panel);
  });
  if (g.strip.counts) {
    small &= add_outliers(g.strip, piece.first / kChunkColumns,
                          (piece.columns + kChunkColumns - 1) / kChunkColumns, panel);
  }
  const size_t first = piece.first / piece.block;
  const F32 fraction = splat(1.0f / float(1 << s.shift));
  for (size_t b = 0; b < piece.blocks; b++) {
    for (size_t r = 0; r < kStripRows; r += kLanes) {
      store(scratch->scale[i][b] + r, scales_of(s, g.strip, first + b, r) * fraction);
    }
    if (piece.same_offset) continue;
    for (size_t r = 0; r < kStripRows; r++) {
      const uint8_t* zeros = g.strip.zeros;
      scratch->offset[i][b][r] =
          zeros ? g.offset(zeros[(first + b) * kStripRows + r]) : g.offset();
    }
  }
  return small;
}

static inline void sum_panel(const GemmPiece& piece, size_t i, GemmScratch* scratch) {
  if constexpr (tile::kHasSmall) {
    const int8_t* panel = scratch->panel + i * kGroupStride;
    for (size_t b = 0; b < piece.blocks; b++) {
      I32 sums[tile::kStripVectors];
      tile::panel_sums(panel, piece.quads(b), sums);
      for (size_t v = 0; v < tile::kStripVectors; v++) {
        write(scratch->start[i][b] + v * kLanes, sums[v] * -tile::kSmallXBias);
      }
      panel += piece.quads(b) * kPackedLine;
    }
  }
}

static inline void gather_x(const PackedX& x, size_t m, size_t rows, const GemmPiece& piece,
                            GemmScratch* scratch) {
  const size_t first = piece.first / piece.block;
  for (size_t r = 0; r < rows; r++) {
    const int8_t* from = x.q + (m + r) * x.stride + piece.first;
    if (tile::kHasSmall && piece.small) {
      tile::copy_small_x(from, piece.columns,
                         reinterpret_cast<uint8_t*>(scratch->x) + r * kTileXStride);
    } else {
      tile::copy_x<kTileXStride>(from, piece.columns, scratch->x, r);
    }
    const size_t at = (m + r) * x.blocks + first;
    for (size_t b = 0; b < piece.blocks; b++) {
      scratch->x_scale[b][r] = x.scales[at + b];
      scratch->x_sum[b][r] = x.sums[at + b] * (piece.same_offset ? piece.offset : 1);
    }
  }
}

// One x row's totals of a strip.
static inline void put(const F32* totals, const Target& target, bool first, float* y) {
  float* to = y + target.column;
  if (target.count == kStripRows) {
#pragma unroll
    for (size_t v = 0; v < tile::kStripVectors; v++) {
      float* at = to + v * kLanes;
      store(at, first ? totals[v] : load(at) + totals[v]);
    }
    return;
  }
  float row[kStripRows];
  for (size_t v = 0; v < tile::kStripVectors; v++) store(row + v * kLanes, totals[v]);
  for (size_t i = 0; i < target.count; i++) {
    to[i] = row[target.from + i] + (first ? 0.0f : to[i]);
  }
}

template <size_t kR, size_t kS, bool kSameOffset, bool kSmall>
EDGE_OUT_OF_LINE void packed_tile(const GemmScratch& scratch, size_t strip, const GemmPiece& piece,
                                  const GroupStrip* group, float* y, size_t y_stride) {
  constexpr size_t kStripVectors = tile::kStripVectors;
  F32 totals[kR][kS * kStripVectors] = {};
  const int8_t* panel = scratch.panel + strip * kGroupStride;
  for (size_t b = 0; b < piece.blocks; b++) {
    const size_t quads = piece.quads(b);
    tile::Sums<kR, kS> sums;
#pragma unroll
    for (size_t r = 0; r < kR; r++) {
#pragma unroll
      for (size_t v = 0; v < kS * kStripVectors; v++) {
        const int32_t* offset =
            scratch.offset[strip + v / kStripVectors][b] + v % kStripVectors * kLanes;
        const I32 sum = (I32{} + 1) * scratch.x_sum[b][r];
        sums[r][v] = kSameOffset ? sum : sum * read<I32>(offset);
        if constexpr (kSmall) sums[r][v] += read<I32>(scratch.start[strip][b] + v * kLanes);
      }
    }
    if constexpr (kSmall) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(scratch.x) + b * piece.block;
      tile::add_small_products<kTileXStride, kR>(bytes, panel, quads, sums);
    } else {
      const tile::X* x = scratch.x + b * piece.block * tile::kXRows;
      tile::add_products<kTileXStride, kGroupStride, kR, kS>(x, panel, quads, sums);
    }
#pragma unroll
    for (size_t v = 0; v < kS * kStripVectors; v++) {
      const F32 scale =
          load(scratch.scale[strip + v / kStripVectors][b] + v % kStripVectors * kLanes);
#pragma unroll
      for (size_t r = 0; r < kR; r++) {
        const F32 factor = splat(scratch.x_scale[b][r]) * scale;
        totals[r][v] =
            multiply_add(__builtin_convertvector(sums[r][v], F32), factor, totals[r][v]);
      }
    }
    panel += quads * kPackedLine;
  }
  const bool first = piece.first == 0;
  for (size_t s = 0; s < kS; s++) {
    const Target& target = group[strip + s].target;
#pragma unroll
    for (size_t r = 0; r < kR; r++) {
      put(totals[r] + s * kStripVectors, target, first, y + r * y_stride);
    }
  }
}

using PackedTile = void (*)(const GemmScratch&, size_t, const GemmPiece&, const GroupStrip*, float*,
                            size_t);

template <size_t kS, bool kSameOffset, bool kSmall, size_t... kI>
static inline PackedTile packed_tile_of(size_t rows, Lanes<size_t, kI...>) {
  static constexpr PackedTile kTiles[] = {packed_tile<kI + 1, kS, kSameOffset, kSmall>...};
  return kTiles[rows - 1];
}

template <size_t kS>
static inline PackedTile packed_tile_for(size_t rows, const GemmPiece& piece) {
  constexpr auto kAll = __make_integer_seq<Lanes, size_t, tile::kRows>{};
  if constexpr (tile::kHasSmall) {
    if (piece.small && piece.same_offset) return packed_tile_of<kS, true, true>(rows, kAll);
    if (piece.small) return packed_tile_of<kS, false, true>(rows, kAll);
  }
  return piece.same_offset ? packed_tile_of<kS, true, false>(rows, kAll)
                           : packed_tile_of<kS, false, false>(rows, kAll);
}

// All x rows times the strips of one group.
static void multiply_group(const Packed& packed, const GroupStrip* group, size_t strips,
                           const PackedX& x, size_t m_first, size_t m_size, float* y,
                           size_t y_stride, GemmScratch* scratch) {
  const int32_t offset = group[0].offset();
  bool same_offset = true;
  for (size_t i = 0; i < strips; i++) {
    same_offset = same_offset && !group[i].segment.zeros && group[i].offset() == offset;
  }
  const size_t tiles = (m_size + tile::kRows - 1) / tile::kRows;
  for (size_t k = 0; k < packed.padded; k += kGemmColumns) {
    const size_t rest = packed.padded - k;
    const size_t columns = rest < kGemmColumns ? rest : kGemmColumns;
    const size_t blocks = (columns + packed.block - 1) / packed.block;
    GemmPiece piece = {k, columns, packed.block, blocks, same_offset, offset, tile::kHasSmall};
    for (size_t i = 0; i < strips; i++) piece.small &= unpack_strip(group[i], piece, i, scratch);
    for (size_t i = 0; i < strips && piece.small; i++) sum_panel(piece, i, scratch);
    for (size_t t = 0; t < tiles; t++) {
      const size_t m = m_size * t / tiles;
      const size_t rows = m_size * (t + 1) / tiles - m;
      gather_x(x, m_first + m, rows, piece, scratch);
      float* out = y + m * y_stride;
      const auto many = packed_tile_for<tile::kStrips>(rows, piece);
      size_t i = 0;
      for (; i + tile::kStrips <= strips; i += tile::kStrips) {
        many(*scratch, i, piece, group, out, y_stride);
      }
      const auto one = packed_tile_for<1>(rows, piece);
      for (; i < strips; i++) one(*scratch, i, piece, group, out, y_stride);
    }
  }
}

}  // namespace detail

constexpr size_t kPackedGemmScratchBytes = sizeof(detail::GemmScratch);

// y[m * y_stride + n], from (m_first, n_first) on: the x rows [m_first, m_first + m_size) times the
// rows [n_first, n_first + n_size) of one matrix, which may begin and end inside a strip.
static void packed_gemm(const Packed& packed, size_t matrix, size_t n_first, size_t n_size,
                        const PackedX& x, size_t m_first, size_t m_size, float* y, size_t y_stride,
                        void* scratch) {
  using detail::GroupStrip;
  GroupStrip group[detail::kGroupStrips];
  size_t strips = 0;
  const size_t n_end = n_first + n_size;
  const auto multiply = [&] {
    if (strips) {
      detail::multiply_group(packed, group, strips, x, m_first, m_size, y, y_stride,
                             static_cast<detail::GemmScratch*>(scratch));
    }
    strips = 0;
  };
  PackedSegment s = packed.first_segment();
  for (size_t i = 0; i < packed.segments && s.row < n_end; s = packed.segment_after(s, i++)) {
    if (s.row + s.rows <= n_first) continue;
    for (size_t j = n_first > s.row ? (n_first - s.row) / kStripRows : 0; j < s.strips; j++) {
      const size_t row = s.row + j * kStripRows;
      if (row >= n_end) break;
      size_t end = s.row + s.rows < n_end ? s.row + s.rows : n_end;
      if (row + kStripRows < end) end = row + kStripRows;
      const size_t begin = row < n_first ? n_first : row;
      const detail::Target target = {begin - n_first, begin - row, end - begin};
      group[strips++] = {s, packed.strip(matrix, s, j), target};
      if (strips == detail::kGroupStrips) multiply();
    }
  }
  multiply();
}

}  // namespace EDGE_ISA
}  // namespace edge
