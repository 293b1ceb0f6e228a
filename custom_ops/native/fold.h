// kLanes vectors go in; the sum over each one's lanes comes out, one lane for each vector.
#pragma once
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

namespace detail {

// Of a and b one after the other, cut into pieces of kPiece lanes: the even pieces plus the odd.
template <size_t kPiece, size_t... i>
static inline F32 add_pieces(F32 a, F32 b, Lanes<size_t, i...>) {
  return __builtin_shufflevector(a, b, (2 * (i / kPiece) * kPiece + i % kPiece)...) +
         __builtin_shufflevector(a, b, ((2 * (i / kPiece) + 1) * kPiece + i % kPiece)...);
}

}  // namespace detail

template <size_t kCount = kLanes>
static inline F32 fold(const F32* v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    const F32 a = fold<kCount / 2>(v), b = fold<kCount / 2>(v + kCount / 2);
    return detail::add_pieces<kLanes / kCount>(a, b, AllLanes{});
  }
}

// kLanes / 2 vectors go in; the first half of what comes out are their sums.
template <size_t kCount = kLanes>
static inline F32 fold_half(const F32* v) {
  if constexpr (kCount == 1) {
    return v[0];  // there is no half of one lane, and nobody asks for it
  } else {
    const F32 pairs = fold<kCount / 2>(v);
    return detail::add_pieces<1>(pairs, pairs, AllLanes{});
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
