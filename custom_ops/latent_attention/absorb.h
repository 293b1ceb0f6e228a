// A head's queries through its key rows of `up`, and its attended latents through its value rows:
// the same weights, row-major as the checkpoint has them, contracted along either axis.
#pragma once
#include "latent_attention/tile.h"
#include "native/matmul.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

// out[c] = sum over d of query[d] * up[d][c], in one pass over the weights as they lie in memory.
template <class W>
static void absorb_one(const float* query, const W* up, size_t rows, size_t rank, float* out) {
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
      F32 sums = d ? load(out + c) : F32{};
#pragma unroll
      for (size_t i = 0; i < kTogether; i++) {
        prefetch(w[i] + c + kTogether * rank);
        sums = multiply_add(q[i], load(w[i] + c), sums);
      }
      store(out + c, sums);
    }
    if (c < rank) {
      F32 sums = d ? load_part(out + c, rank - c) : F32{};
      for (size_t i = 0; i < kTogether; i++) {
        sums = multiply_add(q[i], load_part(w[i] + c, rank - c), sums);
      }
      store_part(out + c, sums, rank - c);
    }
  }
}

// The same for `count` rows of queries and of `out`.
template <class W>
static void absorb(const float* query, size_t query_stride, size_t count, const W* up, size_t rows,
                   size_t rank, float* out, size_t out_stride) {
  if (count == 1) return absorb_one(query, up, rows, rank, out);
  const float ones[kMixRows] = {1, 1, 1, 1};
  const W* w[kBlockKeys];
  for (size_t d = 0; d < rows; d += kBlockKeys) {
    const size_t some = rows - d < kBlockKeys ? rows - d : kBlockKeys;
    for (size_t j = 0; j < some; j++) w[j] = up + (d + j) * rank;
    const float* decay = d ? ones : nullptr;
    size_t r = 0;
    for (; r + kMixRows <= count; r += kMixRows) {
      mix<kMixRows>(query + r * query_stride + d, query_stride, kMixRows, w, some, rank, decay,
                    out + r * out_stride, out_stride);
    }
    for (; r < count; r++) {
      mix<1>(query + r * query_stride + d, query_stride, 1, w, some, rank, decay,
             out + r * out_stride, out_stride);
    }
  }
}

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
