// RoutedExperts: the (token, expert) pairs are sorted by expert, and each expert that has any does
// its products over all of its tokens at once.
#include "native/math.h"
#include "native/matmul.h"
#include "routed_experts/routing.h"

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

template <class W>
struct Experts {
  Routing routing;
  size_t width, inner;  // H and I
  const float* x;       // [T, H]
  const float* shares;  // [T, k]
  const W *gate, *up, *down;
  Gating gating;
  Bias down_bias;
  // Per pair, in expert order: [H], later the result; [I]; [I], the same where there is no gate.
  float *rows, *gated, *upped;
  float* y;

  // The tokens of one expert; a single one is read where it is.
  const float* rows_of(const Group& group) const {
    return group.size == 1 ? x + routing.token(group.first) * width : rows + group.first * width;
  }

  MatMul<W> into_inner(const Group& group, const W* weight, float* out) const {
    return {rows_of(group), width, weight + group.expert * inner * width,
            out + group.first * inner, inner, group.size, inner, width};
  }

  MatMul<W> into_width(const Group& group) const {
    return {gated + group.first * inner, inner, down + group.expert * width * inner,
            rows + group.first * width, width, group.size, width, inner};
  }

  void gather(const Group& group) const {
    if (group.size == 1) return;
    for (size_t i = group.first; i < group.first + group.size; i++) {
      __builtin_memcpy(rows + i * width, x + routing.token(i) * width, width * sizeof(float));
    }
  }

  Status* hidden(const Group& group, size_t task) const {
    const MatMul<W> product = into_inner(group, up, upped);
    EDGE_TRY(product.run(task));
    if (gating.has_gate()) EDGE_TRY(into_inner(group, gate, gated).run(task));
    const auto part = product.part(task);
    for (size_t m = group.first + part.m; m < group.first + part.m + part.rows; m++) {
      gating.row(group.expert, gated + m * inner, upped + m * inner, part.n,
                 part.n + part.columns);
    }
    return nullptr;
  }

  // y[token] = the sum of its pairs, in the order of its choices.
  void combine(size_t token) const {
    float* out = y + token * width;
    for (size_t n = 0; n < width; n += kLanes) {
      const size_t rest = width - n < kLanes ? width - n : kLanes;
      F32 total = {};
      for (size_t j = 0; j < routing.choices; j++) {
        const size_t pair = token * routing.choices + j;
        const F32 value = load_some(rows + routing.position[pair] * width + n, rest) +
                          down_bias.at(size_t(routing.index[pair]), n, rest);
        total = multiply_add(splat(shares[pair]), value, total);
      }
      store_some(out + n, total, rest);
    }
  }

  Status* run(const Context& context) const {
    if (routing.groups < routing.pairs()) {
      EDGE_TRY(context.parallel(routing.groups, [&](size_t g) -> Status* {
        gather(routing.group[g]);
        return nullptr;
      }));
    }
    EDGE_TRY(routing.parallel(
        context, [&](const Group& group) { return into_inner(group, up, upped).tasks(); },
        [&](const Group& group, size_t task) { return hidden(group, task); }));
    EDGE_TRY(routing.parallel(
        context, [&](const Group& group) { return into_width(group).tasks(); },
        [&](const Group& group, size_t task) { return into_width(group).run(task); }));
    constexpr size_t kTokens = 16;
    return context.parallel((routing.tokens + kTokens - 1) / kTokens, [&](size_t block) -> Status* {
      for (size_t t = block * kTokens; t < (block + 1) * kTokens && t < routing.tokens; t++) {
        combine(t);
      }
      return nullptr;
    });
  }
};

struct RoutedExperts {
  Activation activation;
  float alpha, limit;

  Status* create(const Info& info) {
    constexpr const char* kNames[] = {"silu", "gelu", "gelu_tanh", "swiglu_clamped",
                                      "relu_squared"};
    char name[16];
    EDGE_TRY(info.text("activation", name, sizeof(name)));
    size_t i = 0;
    while (i < 5 && !equal(name, kNames[i])) i++;
    if (i == 5) {
      return Message("RoutedExperts: unknown activation ").text(name)
          .text("; silu, gelu, gelu_tanh, swiglu_clamped or relu_squared is required").error();
    }
    activation = Activation(i);
    alpha = limit = 0;
    if (activation != Activation::kSwigluClamped) return nullptr;
    EDGE_TRY(info.real("alpha", &alpha));
    return info.real("limit", &limit);
  }

  Status* compute(const Context& context) const {
    Tensor inputs[kInputs];
    for (size_t i = 0; i < kInputs; i++) EDGE_TRY(context.input(i, &inputs[i]));
    EDGE_TRY(check(inputs));
    Tensor y = inputs[kX];
    EDGE_TRY(context.output(0, &y));
    return with_weight_type("RoutedExperts", inputs[kGate].type, [&](auto type) {
      return run<decltype(type)>(context, inputs, y.as<float>());
    });
  }

 private:
  enum Input { kX, kIndex, kShares, kGate, kUp, kDown, kGateBias, kUpBias, kDownBias, kInputs };

  static bool is(const Tensor& t, int64_t a, int64_t b) {
    return t.rank == 2 && t.dims[0] == a && t.dims[1] == b;
  }
  static bool is(const Tensor& t, int64_t a, int64_t b, int64_t c) {
    return t.rank == 3 && t.dims[0] == a && t.dims[1] == b && t.dims[2] == c;
  }

  static Status* check(const Tensor* in) {
    const int64_t width = in[kX].last();
    const int64_t experts = in[kGate].rank ? in[kGate].dims[0] : 0;
    const int64_t inner = in[kGate].rank > 1 ? in[kGate].dims[1] : 0;
    bool leading = in[kX].rank > 0;
    for (int i = kIndex; i <= kShares; i++) {
      leading = leading && in[i].rank == in[kX].rank && in[i].last() == in[kIndex].last();
      for (size_t d = 0; leading && d + 1 < in[kX].rank; d++) {
        leading = in[i].dims[d] == in[kX].dims[d];
      }
    }
    const char* wrong = nullptr;
    if (!leading) wrong = "expert_index and expert_weight have to be [..., k] beside x [..., H]";
    if (!is(in[kGate], experts, inner, width)) wrong = "gate has to be [E, I, H]";
    if (!is(in[kUp], experts, inner, width)) wrong = "up has to be [E, I, H] like gate";
    if (!is(in[kDown], experts, width, inner)) wrong = "down has to be [E, H, I]";
    const int64_t sizes[] = {inner, inner, width};
    for (size_t i = 0; i < 3; i++) {
      const Tensor& bias = in[kGateBias + i];
      if (!is(bias, experts, sizes[i]) && !is(bias, 1, 1)) {
        wrong = "biases have to be [E, I], [E, I] and [E, H], or [1, 1]";
      }
    }
    if (!wrong) return nullptr;
    return Message("RoutedExperts: ").text(wrong).text("; E is ").number(experts).text(", I ")
        .number(inner).text(", H ").number(width).error();
  }

  static Bias bias(const Tensor& t) {
    const bool shared_row = t.dims[0] == 1, single = t.dims[1] == 1;
    return {t.as<float>(), shared_row ? 0 : size_t(t.dims[1]), single};
  }

  template <class W>
  Status* run(const Context& context, const Tensor* in, float* y) const {
    Experts<W> experts = {};
    Routing& routing = experts.routing;
    routing.index = in[kIndex].as<int64_t>();
    routing.tokens = size_t(in[kX].count(in[kX].rank - 1));
    routing.choices = size_t(in[kIndex].last());
    routing.experts = size_t(in[kGate].dims[0]);
    if (routing.tokens == 0) return nullptr;
    experts.width = size_t(in[kX].last());
    experts.inner = size_t(in[kGate].dims[1]);
    Scratch order(routing.bytes());
    experts.gating = {activation, alpha, limit, bias(in[kGateBias]), bias(in[kUpBias])};
    const bool has_gate = experts.gating.has_gate();
    const size_t per_pair = experts.width + (has_gate ? 2 : 1) * experts.inner;
    Scratch sums(routing.pairs() * per_pair * sizeof(float));
    if (order.failed() || sums.failed()) return Scratch::error();
    EDGE_TRY(routing.sort(order.as<void>()));
    experts.x = in[kX].as<float>();
    experts.shares = in[kShares].as<float>();
    experts.gate = in[kGate].as<W>();
    experts.up = in[kUp].as<W>();
    experts.down = in[kDown].as<W>();
    experts.down_bias = bias(in[kDownBias]);
    experts.rows = sums.as<float>();
    experts.gated = experts.rows + routing.pairs() * experts.width;
    experts.upped = experts.gated + (has_gate ? routing.pairs() * experts.inner : 0);
    experts.y = y;
    return experts.run(context);
  }
};

EDGE_KERNEL(routed_experts, RoutedExperts)

}  // namespace EDGE_ISA
}  // namespace edge
