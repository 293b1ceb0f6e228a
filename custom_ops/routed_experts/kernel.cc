// RoutedExperts: the (token, expert) pairs are sorted by expert, and each expert that has any does
// its products over all of its tokens at once.
#include "routed_experts/gating.h"
#include "routed_experts/stacks.h"

namespace edge {
namespace EDGE_ISA {

template <class Stack>
struct Experts {
  Routing routing;
  size_t width, inner;  // H and I
  const float* x;       // [T, H]
  const float* shares;  // [T, k]
  Stack gate, up, down;
  Gating gating;
  Bias down_bias;
  // Per pair, in expert order: [H], later the result; [I]; [I], the same where there is no gate.
  float *rows, *gated, *upped;
  float* y;

  // The tokens of one expert; a single one is read where it is.
  const float* rows_of(const Group& group) const {
    return group.size == 1 ? x + routing.token(group.first) * width : rows + group.first * width;
  }

  auto into_inner(const Group& group, const Stack& stack, float* out) const {
    return stack.product(group, rows_of(group), out + group.first * inner);
  }

  auto into_width(const Group& group) const {
    return down.product(group, gated + group.first * inner, rows + group.first * width);
  }

  // Calls task(pair's place in expert order), which does work on `size` values.
  template <class Task>
  Status* each_pair(const Context& context, size_t size, const Task& task) const {
    constexpr size_t kTaskValues = 1 << 15;
    const size_t some = kTaskValues / size + 1;
    return context.parallel((routing.pairs() + some - 1) / some, [&](size_t i) -> Status* {
      const size_t end = (i + 1) * some < routing.pairs() ? (i + 1) * some : routing.pairs();
      for (size_t pair = i * some; pair < end; pair++) task(pair);
      return nullptr;
    });
  }

  // The tokens' rows, as the first products take them.
  Status* gather(const Context& context) const {
    if constexpr (Stack::kQuantises) {
      return each_pair(context, width, [&](size_t i) {
        const float* row = x + routing.token(i) * width;
        up.take(routing.expert(i), i, row);
        if (gating.has_gate() && gate.x != up.x) gate.take(routing.expert(i), i, row);
      });
    }
    if (routing.groups == routing.pairs()) return nullptr;
    return context.parallel(routing.groups, [&](size_t g) -> Status* {
      const Group& group = routing.group[g];
      if (group.size == 1) return nullptr;
      for (size_t i = group.first; i < group.first + group.size; i++) {
        __builtin_memcpy(rows + i * width, x + routing.token(i) * width, width * sizeof(float));
      }
      return nullptr;
    });
  }

  Status* hidden(const Group& group, size_t task) const {
    const auto product = into_inner(group, up, upped);
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
    EDGE_TRY(gather(context));
    EDGE_TRY(routing.parallel(
        context, [&](const Group& group) { return into_inner(group, up, upped).tasks(); },
        [&](const Group& group, size_t task) { return hidden(group, task); }));
    if constexpr (Stack::kQuantises) {
      EDGE_TRY(each_pair(context, inner, [&](size_t i) {
        down.take(routing.expert(i), i, gated + i * inner);
      }));
    }
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
    const bool is_packed = inputs[kGate].type == ElementType::kUint8;
    Packed packed[3] = {};
    Tensor shaped[kInputs];
    for (size_t i = 0; i < kInputs; i++) shaped[i] = inputs[i];
    for (size_t i = 0; is_packed && i < 3; i++) {
      EDGE_TRY(Packed::parse("RoutedExperts", inputs[kGate + i], &packed[i]));
      shaped[kGate + i] = described(packed[i]);
    }
    EDGE_TRY(check(shaped));
    Tensor y = inputs[kX];
    EDGE_TRY(context.output(0, &y));
    if (is_packed) return run_packed(context, shaped, packed, y.as<float>());
    return with_weight_type("RoutedExperts", inputs[kGate].type, [&](auto type) {
      return run_stored<decltype(type)>(context, inputs, y.as<float>());
    });
  }

 private:
  enum Input { kX, kIndex, kShares, kGate, kUp, kDown, kGateBias, kUpBias, kDownBias, kInputs };

  // The shape that a packed stack stands for.
  static Tensor described(const Packed& packed) {
    Tensor t;
    t.rank = 3;
    t.dims[0] = int64_t(packed.count);
    t.dims[1] = int64_t(packed.rows);
    t.dims[2] = int64_t(packed.columns);
    return t;
  }

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
  Status* run_stored(const Context& context, const Tensor* in, float* y) const {
    Experts<StoredStack<W>> experts = {};
    const auto stack = [&](Input i) -> StoredStack<W> {
      return {in[i].as<W>(), size_t(in[i].dims[1]), size_t(in[i].dims[2])};
    };
    experts.gate = stack(kGate);
    experts.up = stack(kUp);
    experts.down = stack(kDown);
    return run(context, in, experts, y);
  }

  Status* run_packed(const Context& context, const Tensor* in, const Packed* packed,
                     float* y) const {
    const Packed &gate = packed[0], &up = packed[1], &down = packed[2];
    const size_t pairs = size_t(in[kIndex].count());
    const auto bytes = [&](const Packed& stack) {
      return (PackedX::bytes(stack, pairs) + kPackedLine - 1) / kPackedLine * kPackedLine;
    };
    Scratch memory(bytes(gate) + bytes(up) + bytes(down));
    if (memory.failed()) return Scratch::error();
    char* at = memory.as<char>();
    const PackedX of_gate(gate, pairs, at);
    const PackedX of_up(up, pairs, at + bytes(gate));
    const PackedX of_down(down, pairs, at + bytes(gate) + bytes(up));
    Experts<PackedStack> experts = {};
    experts.up = {&up, &of_up};
    experts.gate = {&gate, experts.up.quantises_like(gate) ? &of_up : &of_gate};
    experts.down = {&down, &of_down};
    return run(context, in, experts, y);
  }

  // Of `experts`, the weights are there.
  template <class Stack>
  Status* run(const Context& context, const Tensor* in, Experts<Stack>& experts, float* y) const {
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
