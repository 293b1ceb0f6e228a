// Rows of x as int8, in blocks that each carry a scale: what packed weights are multiplied with.
// For a block of x^ = x * column scale, in the order of the stored columns, with the largest
// magnitude `peak`:
//
//   q = nearest integer to x^ * (127 / peak), ties to even;  x^ is about q * (peak / 127)
//
// which every instruction set rounds alike. The product is made an integer without an addition
// behind it, because the compiler would make both one operation with one rounding.
#pragma once
#include "native/packed.h"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace edge {
namespace EDGE_ISA {

// Rows of one matrix's x; all of its tasks read the same.
struct PackedX {
  size_t rows, blocks;
  size_t stride;     // from row to row of q
  int8_t* q;         // [rows][stride], zero from the last column to the end of its chunk
  float* scales;     // [rows][blocks]; NaN where x has one, or an infinity
  int32_t* sums;     // [rows][blocks] of q

  // Room between the rows keeps them from falling on one another in the cache.
  static size_t stride_of(const Packed& packed) { return (packed.chunks + 1) * kChunkColumns; }

  // Scratch memory for `rows` rows.
  static size_t bytes(const Packed& packed, size_t rows) {
    return rows * (stride_of(packed) + packed.blocks * (sizeof(float) + sizeof(int32_t)));
  }

  PackedX(const Packed& packed, size_t row_count, void* memory)
      : rows(row_count),
        blocks(packed.blocks),
        stride(stride_of(packed)),
        q(static_cast<int8_t*>(memory)),
        scales(reinterpret_cast<float*>(q + rows * stride)),
        sums(reinterpret_cast<int32_t*>(scales + rows * blocks)) {}

  const int8_t* row(size_t m) const { return q + m * stride; }
};

namespace detail {

constexpr size_t kMostBlock = 128;

static inline I32 nearest_integer(F32 x) {
#if defined(__AVX512F__)
  return (I32)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (I32)_mm256_cvtps_epi32((__m256)x);
#elif defined(EDGE_SCALAR) && defined(__x86_64__)
  return I32{_mm_cvtss_si32(_mm_set_ss(x[0]))};
#elif defined(EDGE_SCALAR)
  return I32{vcvtns_s32_f32(x[0])};
#elif defined(__x86_64__)
  return (I32)_mm_cvtps_epi32((__m128)x);
#else
  return (I32)vcvtnq_s32_f32((float32x4_t)x);
#endif
}

static inline I32 larger(I32 a, I32 b) { return a > b ? a : b; }
static inline I32 smaller(I32 a, I32 b) { return a < b ? a : b; }

// `x` has kMostBlock values, zero from the block's end on; so has `q` then, of `size` columns.
static inline void quantise_block(const float* x, size_t size, int8_t* q, float* scale,
                                  int32_t* sum) {
  using I8 = int8_t __attribute__((vector_size(kLanes)));
  I32 peaks = {};  // as bits: magnitudes order like integers, NaN above infinity above the rest
  for (size_t k = 0; k < size; k += kLanes) {
    peaks = larger(peaks, (I32)load(x + k) & 0x7fffffff);
  }
  int32_t bits = 0;
  for (size_t i = 0; i < kLanes; i++) bits = peaks[i] > bits ? peaks[i] : bits;
  const float peak = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000;
  *scale = finite ? 0.0f : __builtin_nanf("");
  *sum = 0;
  if (!finite || peak < 0x1p-100f) {
    for (size_t k = 0; k < size; k += kLanes) write(q + k, I8{});
    return;
  }
  *scale = peak / 127.0f;
  const F32 inverse = splat(127.0f / peak);
  I32 sums = {};
  for (size_t k = 0; k < size; k += kLanes) {
    const I32 whole = nearest_integer(load(x + k) * inverse);
    const I32 bounded = smaller(larger(whole, I32{} - 127), I32{} + 127);
    write(q + k, __builtin_convertvector(bounded, I8));
    sums += bounded;
  }
  for (size_t i = 0; i < kLanes; i++) *sum += sums[i];
}

// A number that is no column of x, in a blob that is damaged, counts as column 0.
static inline void ordered_columns(const float* x, size_t columns, const uint32_t* order, size_t n,
                                   float* to) {
  for (size_t k = 0; k < n; k++) {
    const size_t column = read<uint32_t>(order + k);
    to[k] = x[column < columns ? column : 0];
  }
}

// x^ of `n` columns, and zeros up to a whole block.
static inline void scaled_columns(const float* x, const uint16_t* column_scales, size_t n,
                                  float* to) {
  size_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    const F32 v = load(x + k);
    store(to + k, column_scales ? v * from_bfloat(read<U16>(column_scales + k)) : v);
  }
  for (; k < n; k++) {
    float scale = 1.0f;
    if (column_scales) {
      const uint32_t bits = uint32_t(read<uint16_t>(column_scales + k)) << 16;
      scale = __builtin_bit_cast(float, bits);
    }
    to[k] = x[k] * scale;
  }
  for (; k < kMostBlock; k++) to[k] = 0.0f;
}

}  // namespace detail

// Row `m` of `to` from one row of x, `packed.columns` floats, for one matrix of the stack.
static inline void quantise_row(const Packed& packed, size_t matrix, const float* x,
                                const PackedX& to, size_t m) {
  const uint16_t* column_scales = packed.column_scales(matrix);
  const uint32_t* order = packed.column_order(matrix);
  int8_t* q = to.q + m * to.stride;
  float block[detail::kMostBlock];
  for (size_t b = 0; b < packed.blocks; b++) {
    const size_t k = b * packed.block, size = packed.block_columns(b);
    const size_t real = packed.columns - k < size ? packed.columns - k : size;
    const float* from = x + k;
    if (order) {
      detail::ordered_columns(x, packed.columns, order + k, real, block);
      from = block;
    }
    if (column_scales || real < size) {
      detail::scaled_columns(from, column_scales ? column_scales + k : nullptr, real, block);
      from = block;
    }
    detail::quantise_block(from, size, q + k, to.scales + m * to.blocks + b,
                           to.sums + m * to.blocks + b);
  }
  for (size_t k = packed.padded; k < packed.chunks * kChunkColumns; k++) q[k] = 0;
}

// All rows of `to`, on all threads.
static inline Status* quantise_rows(const Context& context, const Packed& packed,
                                    size_t matrix, const float* x, size_t x_stride,
                                    const PackedX& to) {
  constexpr size_t kValues = 32768;  // of one task
  const size_t rows = kValues / packed.padded + 1;
  return context.parallel((to.rows + rows - 1) / rows, [&](size_t task) -> Status* {
    const size_t end = (task + 1) * rows < to.rows ? (task + 1) * rows : to.rows;
    for (size_t m = task * rows; m < end; m++) {
      quantise_row(packed, matrix, x + m * x_stride, to, m);
    }
    return nullptr;
  });
}

}  // namespace EDGE_ISA
}  // namespace edge
