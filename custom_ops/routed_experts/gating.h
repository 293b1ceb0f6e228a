// What becomes of an expert's two first products: biases and the activation between them.
#pragma once
#include "native/math.h"

namespace edge {
namespace EDGE_ISA {

enum class Activation : int32_t { kSilu, kGelu, kGeluTanh, kSwigluClamped, kReluSquared };

// hidden = activation(gate) * up, both given their biases already; kReluSquared has no gate.
template <Activation kActivation>
static inline F32 activate(F32 gate, F32 up, float alpha, float limit) {
  if constexpr (kActivation == Activation::kReluSquared) {
    const F32 positive = max(up, splat(0.0f));
    return positive * positive;
  }
  if constexpr (kActivation == Activation::kSilu) return silu(gate) * up;
  if constexpr (kActivation == Activation::kGelu) return gelu(gate) * up;
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh(gate) * up;
  const F32 low = min(gate, splat(limit));
  const F32 bounded = max(min(up, splat(limit)), splat(-limit));
  return (bounded + splat(1.0f)) * low * sigmoid(low * splat(alpha));
}

// [E, N], or one value for all of it.
struct Bias {
  const float* data;
  size_t row_stride;
  bool single;

  F32 at(size_t expert, size_t n, size_t count) const {
    const float* p = data + expert * row_stride;
    if (single) return splat(*p);
    return load_some(p + n, count);
  }
};

struct Gating {
  Activation activation;
  float alpha, limit;
  Bias gate_bias, up_bias;

  bool has_gate() const { return activation != Activation::kReluSquared; }

  // gate[n] becomes the hidden value, for first <= n < last of one expert's row.
  template <Activation kActivation>
  void row_of(size_t expert, float* gate, const float* up, size_t first, size_t last) const {
    for (size_t n = first; n < last; n += kLanes) {
      const size_t rest = last - n < kLanes ? last - n : kLanes;
      F32 g = {};
      if constexpr (kActivation != Activation::kReluSquared) {
        g = load_some(gate + n, rest) + gate_bias.at(expert, n, rest);
      }
      const F32 u = load_some(up + n, rest) + up_bias.at(expert, n, rest);
      store_some(gate + n, activate<kActivation>(g, u, alpha, limit), rest);
    }
  }

  void row(size_t expert, float* gate, const float* up, size_t first, size_t last) const {
    switch (activation) {
      case Activation::kSilu: return row_of<Activation::kSilu>(expert, gate, up, first, last);
      case Activation::kGelu: return row_of<Activation::kGelu>(expert, gate, up, first, last);
      case Activation::kGeluTanh:
        return row_of<Activation::kGeluTanh>(expert, gate, up, first, last);
      case Activation::kSwigluClamped:
        return row_of<Activation::kSwigluClamped>(expert, gate, up, first, last);
      case Activation::kReluSquared:
        return row_of<Activation::kReluSquared>(expert, gate, up, first, last);
    }
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
