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

// Reads a strip's outliers from beginning to end. kM rows of x; kSums sums for each of them, those
// of a block's kStripRows rows together.
template <size_t kM, size_t kSums>
class OutlierReader {
 public:
  OutlierReader(const Packed& packed, const PackedStrip& strip)
      : counts_(strip.counts),
        entries_(reinterpret_cast<const uint8_t*>(strip.outliers)),
        log_block_(packed.block == 128 ? 7 : packed.block == 64 ? 6 : 5) {}

  // Reads the entries of chunk number `chunk` after the first one that x and sums begin with; they
  // are in the sums after `finish`.
  void read_chunk(size_t chunk, const int8_t* x, size_t x_stride, int32_t* sums) {
    size_t count = *counts_++;
    do {
      const size_t some = count < kStep ? count : kStep;
      take(some, chunk, found_, x, x_stride);
      found_ += some;
      count -= some;
      if (__builtin_expect(found_ > kMost, 0)) finish(x, x_stride, sums);
    } while (__builtin_expect(count > 0, 0));
  }

  void finish(const int8_t* x, size_t x_stride, int32_t* sums) {
    add_up(found_, x, x_stride, sums);
    found_ = 0;
  }

 private:
  static constexpr size_t kStep = 16, kMost = 64;

#if defined(__AVX512BW__) && !defined(EDGE_SCALAR)

  void take(size_t some, size_t chunk, size_t at, const int8_t* x, size_t x_stride) {
    const __mmask16 mask = __mmask16((uint32_t(1) << some) - 1);
    const __m256i entry = _mm256_maskz_loadu_epi16(mask, entries_);
    entries_ += some * 2;
    const auto all = [](int value) { return _mm256_set1_epi16(short(value)); };
    // Two bytes of x are looked up together; the right one is brought to the top.
    const __m256i pair = _mm256_srli_epi16(entry, 5);
    const __m256i raise = _mm256_andnot_si256(_mm256_srli_epi16(entry, 1), all(8));
    const __m256i value = _mm256_sub_epi16(_mm256_srli_epi16(entry, 10), all(32));
    const __m256i row = _mm256_and_si256(entry, all(kStripRows - 1));
    // A chunk has one block, or two of 32 columns.
    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(entry, 5),
                                            all(log_block_ == 5 ? int(kStripRows) : 0));
    const size_t block = chunk * kChunkColumns >> log_block_;
    const __m256i place = _mm256_add_epi16(_mm256_or_si256(row, second),
                                           all(int(block * kStripRows)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places_ + at), place);
#pragma unroll
    for (size_t m = 0; m < kM; m++) {
      const int8_t* from = x + m * x_stride + chunk * kChunkColumns;
      const __m256i low = read<__m256i>(from), high = read<__m256i>(from + 32);
      const __m256i two = _mm256_permutex2var_epi16(low, pair, high);
      const __m256i one = _mm256_srai_epi16(_mm256_sllv_epi16(two, raise), 8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(products_[m] + at),
                          _mm256_mullo_epi16(one, value));
    }
  }

  void add_up(size_t found, const int8_t*, size_t, int32_t* sums) {
    for (size_t i = 0; i < found; i++) {
      int32_t* sum = sums + places_[i];
#pragma unroll
      for (size_t m = 0; m < kM; m++) sum[m * kSums] += products_[m][i];
    }
  }

  uint16_t places_[kMost + kStep];
  int16_t products_[kM][kMost + kStep];

#else

  void take(size_t some, size_t chunk, size_t at, const int8_t*, size_t) {
    using Copies = uint16_t __attribute__((vector_size(kStep * 2)));
    write(columns_ + at, Copies{} + uint16_t(chunk * kChunkColumns));
    (void)some;
  }

  void add_up(size_t found, const int8_t* x, size_t x_stride, int32_t* sums) {
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

  uint16_t columns_[kMost + kStep];

#endif

  const uint8_t* counts_;
  const uint8_t* entries_;
  int log_block_;
  size_t found_ = 0;
};

}  // namespace detail
}  // namespace EDGE_ISA
}  // namespace edge
