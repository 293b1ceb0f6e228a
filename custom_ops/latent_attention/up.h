// The rows of `up`, a head's for its keys and then those for its values: where they lie in the
// checkpoint's own type, or unpacked, a piece at a time.
#pragma once
#include "latent_attention/inputs.h"
#include "native/packed_rows.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

template <class W>
struct StoredUp {
  using Element = W;
  const W* data;
  int64_t rank;

  explicit StoredUp(const Inputs& in) : data(in.up.as<W>()), rank(in.rank_dim) {}

  // What `rows` wants for `count` of them, and how many of `count` a pass takes.
  int64_t floats(int64_t) const { return 0; }
  int64_t piece(int64_t, int64_t count, int64_t) const { return count; }

  const W* rows(int64_t first, int64_t, float*) const { return data + first * rank; }
};

struct PackedUp {
  using Element = float;
  const Packed& packed;
  int64_t rank;

  explicit PackedUp(const Inputs& in) : packed(in.packed), rank(in.rank_dim) {}

  int64_t floats(int64_t count) const { return round_up(count * rank, 16); }

  // At most `most`, to the end of a strip where strips begin at its multiples.
  int64_t piece(int64_t first, int64_t count, int64_t most) const {
    return smaller(count, most - first % int64_t(kStripRows));
  }

  const float* rows(int64_t first, int64_t count, float* memory) const {
    unpack_rows(packed, 0, size_t(first), size_t(count), memory, size_t(rank));
    return memory;
  }
};

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
