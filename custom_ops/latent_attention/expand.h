// Latents of the cache go in; one head's keys and values come out, a chunk of tokens at a time.
#pragma once
#include "latent_attention/cache_rows.h"
#include "latent_attention/inputs.h"
#include "native/gemm.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

constexpr int64_t kChunkKeys = 2 * kBlockKeys;

// Rows of [nope | rope | value], and what is needed to make them.
struct Expanded {
  float* rows;     // [kChunkKeys][width]
  float* latents;  // [kChunkKeys][rank]
  float* scratch;
  int64_t width, dim;  // of a row, and of its key

  static int64_t width_of(const Inputs& in) {
    return round_up(in.query_width() + in.value_dim, 16);
  }
  static int64_t floats(const Inputs& in) {
    return kChunkKeys * (width_of(in) + round_up(in.rank_dim, 16)) +
           int64_t(kGemmScratchBytes / sizeof(float));
  }
  Expanded(const Inputs& in, float* memory)
      : rows(memory), width(width_of(in)), dim(in.query_width()) {
    latents = rows + kChunkKeys * width;
    scratch = latents + kChunkKeys * round_up(in.rank_dim, 16);
  }

  // Where a block's keys and values are; the last ones are repeated.
  void places(int64_t at, int64_t count, const float** keys, const float** values) const {
    for (int64_t j = 0; j < kBlockKeys; j++) {
      keys[j] = rows + (at + smaller(j, count - 1)) * width;
      values[j] = keys[j] + dim;
    }
  }
};

// to[m][n] = latent m times row n of a weight, for `columns` of its rows.
template <class W>
static void expand_part(const Expanded& out, int64_t count, const W* weight, int64_t columns,
                        int64_t rank, float* to) {
  const int64_t most = int64_t(kBlockColumns);
  for (int64_t n = 0; n < columns; n += most) {
    gemm_block(out.latents, size_t(count), size_t(rank), weight + n * rank,
               size_t(smaller(most, columns - n)), size_t(rank), to + n, size_t(out.width),
               out.scratch);
  }
}

// The `count` tokens from position `from` on, through a head's rows of `up`.
template <class W, class C>
EDGE_OUT_OF_LINE static void expand(const Inputs& in, const Strip<C>& strip, const W* up,
                                    int64_t from, int64_t count, const Expanded& out) {
  const C* found[kChunkKeys];
  strip.find(from, count, count, found);
  widen_rows(found, count, in.rank_dim, out.latents, in.rank_dim);
  for (int64_t j = 0; j < count; j++) found[j] += in.rank_dim;
  widen_rows(found, count, in.rope_dim, out.rows + in.nope_dim, out.width);
  expand_part(out, count, up, in.nope_dim, in.rank_dim, out.rows);
  expand_part(out, count, up + in.nope_dim * in.rank_dim, in.value_dim, in.rank_dim,
              out.rows + out.dim);
}

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
