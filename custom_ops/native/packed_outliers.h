// What a strip's outliers add to the sums of its blocks: value * x for each entry.
//
// Entries come sorted by chunk of columns, about five to a chunk: a loop of each chunk's own length
// would be mispredicted at every end. So a first loop does without one, and leaves for each entry
// what a second, long one can add up.
#pragma once
#include "native/packed_x.h"

namespace edge {
namespace EDGE_ISA {
namespace detail {

constexpr size_t kSpanColumns = 2 * kChunkColumns;  // read together, or half of them

// Reads a strip's outliers from beginning to end. kM rows of x; kSums sums for each of them, those
// of a block's kStripRows rows together.
template <size_t kM, size_t kSums>
class OutlierReader {
 public:
  OutlierReader(const Packed& packed, const PackedStrip& strip)
      : counts_(strip.counts),
        entries_(reinterpret_cast<const uint8_t*>(strip.outliers)),
        chunks_(packed.chunks),
        log_block_(packed.block == 128 ? 7 : packed.block == 64 ? 6 : 5) {}

  // Reads the entries of the next span, kSpanColumns columns or a chunk, of which the first is number
  // `column` of those that x and sums begin with. They are in the sums after `add_up`.
  void read_span(size_t span, size_t column, const int8_t* x, size_t x_stride, int32_t* sums) {
    size_t first = *counts_++, second = 0;
    if (--chunks_ && span == kSpanColumns) {
      second = *counts_++;
      chunks_--;
    }
    do {
      const size_t some = first + second < kStep ? first + second : kStep;
      const size_t of_first = first < some ? first : some;
      take(some, of_first, column, x, x_stride);
      found_ += some;
      first -= of_first;
      second -= some - of_first;
      if (__builtin_expect(found_ > kMost, 0)) add_up(x, x_stride, sums);
    } while (__builtin_expect(first + second > 0, 0));
  }

  void add_up(const int8_t* x, size_t x_stride, int32_t* sums) {
    add(found_, x, x_stride, sums);
    found_ = 0;
  }

 private:
  static constexpr size_t kStep = 16, kMost = kM <= 2 ? 128 : 64;

#if defined(__AVX512BW__) && !defined(EDGE_SCALAR)

  // Finds the products of `some` entries, the first `of_first` of them in the span's first chunk.
  void take(size_t some, size_t of_first, size_t column, const int8_t* x, size_t x_stride) {
    const auto all = [](size_t value) { return _mm256_set1_epi16(short(value)); };
    const __mmask16 mask = __mmask16((uint32_t(1) << some) - 1);
    const __mmask16 second = __mmask16(~((uint32_t(1) << of_first) - 1));
    const __m256i entry = _mm256_maskz_loadu_epi16(mask, entries_);
    entries_ += some * 2;
    // Two bytes of x are looked up together; the right one is brought to the top.
    __m256i pair = _mm256_and_si256(_mm256_srli_epi16(entry, 5), all(kChunkColumns / 2 - 1));
    pair = _mm256_mask_add_epi16(pair, second, pair, all(kChunkColumns / 2));
    const __m256i raise = _mm256_andnot_si256(_mm256_srli_epi16(entry, 1), all(8));
    const __m256i value = _mm256_sub_epi16(_mm256_srli_epi16(entry, 10), all(32));
    // A chunk is a block, half of one, or two of 32 columns.
    const size_t block = column >> log_block_;
    const size_t second_block = (column + kChunkColumns) >> log_block_;
    const __m256i row = _mm256_and_si256(entry, all(kStripRows - 1));
    const __m256i half = _mm256_and_si256(_mm256_srli_epi16(entry, 5),
                                          all(log_block_ == 5 ? kStripRows : 0));
    const __m256i first_row = _mm256_mask_blend_epi16(second, all(block * kStripRows),
                                                      all(second_block * kStripRows));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places_ + found_),
                        _mm256_add_epi16(_mm256_or_si256(row, half), first_row));
#pragma unroll
    for (size_t m = 0; m < kM; m++) {
      const int8_t* from = x + m * x_stride + column;
      const __m512i two = _mm512_permutex2var_epi16(read<__m512i>(from),
                                                    _mm512_castsi256_si512(pair),
                                                    read<__m512i>(from + kChunkColumns));
      const __m256i one =
          _mm256_srai_epi16(_mm256_sllv_epi16(_mm512_castsi512_si256(two), raise), 8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(products_[m] + found_),
                          _mm256_maskz_mullo_epi16(mask, one, value));
    }
  }

  // From four places of the list in turn: a sum that was just stored is slow to load again. Adds a
  // few more than there are, which are 0.
  void add(size_t found, const int8_t*, size_t, int32_t* sums) {
    constexpr size_t kParts = 4;
    write(places_ + found, uint64_t(0));
#pragma unroll
    for (size_t m = 0; m < kM; m++) write(products_[m] + found, uint64_t(0));
    const size_t step = (found + kParts - 1) / kParts;
    for (size_t i = 0; i < step; i++) {
#pragma unroll
      for (size_t j = 0; j < kParts; j++) {
        int32_t* sum = sums + places_[i + j * step];
#pragma unroll
        for (size_t m = 0; m < kM; m++) sum[m * kSums] += products_[m][i + j * step];
      }
    }
  }

  uint16_t places_[kMost + kStep + 4];
  int16_t products_[kM][kMost + kStep + 4];

#else

  void take(size_t some, size_t of_first, size_t column, const int8_t*, size_t) {
    using Copies = uint16_t __attribute__((vector_size(kStep * 2)));
    write(columns_ + found_, Copies{} + uint16_t(column));
    write(columns_ + found_ + of_first, Copies{} + uint16_t(column + kChunkColumns));
    (void)some;
  }

  void add(size_t found, const int8_t* x, size_t x_stride, int32_t* sums) {
    const uint8_t* entries = entries_;
    const int log_block = log_block_;
    for (size_t i = 0; i < found; i++) {
      const uint32_t entry = read<uint16_t>(entries + i * 2);
      const uint32_t column = columns_[i] + (entry >> 4 & (kChunkColumns - 1));
      int32_t* sum = sums + ((column >> log_block) * kStripRows + entry % kStripRows);
      const int32_t value = int32_t(entry >> 10) - 32;
#pragma unroll
      for (size_t m = 0; m < kM; m++) sum[m * kSums] += value * x[m * x_stride + column];
    }
    entries_ += found * 2;
  }

  uint16_t columns_[kMost + 2 * kStep];

#endif

  const uint8_t* counts_;
  const uint8_t* entries_;
  size_t chunks_;
  int log_block_;
  size_t found_ = 0;
};

}  // namespace detail
}  // namespace EDGE_ISA
}  // namespace edge
