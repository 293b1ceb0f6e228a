// A head's queries through its key rows of `up`, and its attended latents through its value rows:
// the same weights, row-major as the checkpoint has them, contracted along either axis.
#pragma once
#include "latent_attention/tile.h"
#include "latent_attention/up.h"
#include "native/matmul.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

// out[c] = sum over d of query[d] * up[d][c], in one pass over the weights as they lie in memory;
// `more` adds to what is there.
template <class W>
static void absorb_one(const float* query, const W* up, size_t rows, size_t rank, bool more,
                       float* out) {
  constexpr size_t kTogether = 4;  // rows whose sum `out` is loaded and stored for
  for (size_t d = 0; d < rows; d += kTogether) {
    const size_t some = rows - d < kTogether ? rows - d : kTogether;
    const W* w[kTogether];
    F32 q[kTogether];
    for (size_t i = 0; i < kTogether; i++) {
      w[i] = up + (d + (i < some ? i : 0)) * rank;
      q[i] = splat(i < some ? query[d + i] : 0.0f);
    }
    size_t c = 0;
    for (; c + kLanes <= rank; c += kLanes) {
      F32 sums = d || more ? load(out + c) : F32{};
#pragma unroll
      for (size_t i = 0; i < kTogether; i++) {
        prefetch(w[i] + c + kTogether * rank);
        sums = multiply_add(q[i], load(w[i] + c), sums);
      }
      store(out + c, sums);
    }
    if (c < rank) {
      F32 sums = d || more ? load_part(out + c, rank - c) : F32{};
      for (size_t i = 0; i < kTogether; i++) {
        sums = multiply_add(q[i], load_part(w[i] + c, rank - c), sums);
      }
      store_part(out + c, sums, rank - c);
    }
  }
}

// What `absorb` needs of memory to take a head's rows.
template <class Up>
static int64_t absorb_floats(const Up& up, int64_t rows, int64_t count) {
  return up.floats(smaller(rows, count == 1 ? int64_t(kStripRows) : kBlockKeys));
}

// The same for `count` rows of queries and of `out`, with rows `first` .. of `up`.
template <class Up>
static void absorb(const float* query, int64_t query_stride, int64_t count, const Up& up,
                   int64_t first, int64_t rows, float* out, int64_t out_stride, float* memory) {
  const size_t rank = size_t(up.rank);
  int64_t some;
  if (count == 1) {
    for (int64_t d = 0; d < rows; d += some) {
      some = up.piece(first + d, rows - d, int64_t(kStripRows));
      const auto* w = up.rows(first + d, some, memory);
      absorb_one(query + d, w, size_t(some), rank, d > 0, out);
    }
    return;
  }
  const float ones[kMixRows] = {1, 1, 1, 1};
  const typename Up::Element* w[kBlockKeys];
  for (int64_t d = 0; d < rows; d += some) {
    some = smaller(up.piece(first + d, rows - d, kBlockKeys), kBlockKeys);
    const auto* piece = up.rows(first + d, some, memory);
    for (int64_t j = 0; j < some; j++) w[j] = piece + j * up.rank;
    const float* decay = d ? ones : nullptr;
    int64_t r = 0;
    for (; r + int64_t(kMixRows) <= count; r += kMixRows) {
      mix<kMixRows>(query + r * query_stride + d, size_t(query_stride), kMixRows, w, size_t(some),
                    rank, decay, out + r * out_stride, size_t(out_stride));
    }
    for (; r < count; r++) {
      mix<1>(query + r * query_stride + d, size_t(query_stride), 1, w, size_t(some), rank, decay,
             out + r * out_stride, size_t(out_stride));
    }
  }
}

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
