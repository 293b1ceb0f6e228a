// CausalConv: lanes and tasks are channels, which do not depend on each other.
#include "causal_conv/taps.h"
#include "native/channels.h"

namespace edge {
namespace EDGE_ISA {

struct CausalConv {
  bool activates;  // silu

  Status* create(const Info& info) {
    char name[16];
    EDGE_TRY(info.text("activation", name, sizeof(name)));
    activates = equal(name, "silu");
    if (activates || equal(name, "none")) return nullptr;
    return Message("CausalConv: unknown activation ").text(name)
        .text("; none or silu is required").error();
  }

  Status* compute(const Context& context) const {
    Tensor in[kInputs];
    for (size_t i = 0; i < kInputs; i++) EDGE_TRY(context.input(i, &in[i]));
    EDGE_TRY(check(in));
    Tensor y = in[kX], state_out = in[kState];
    EDGE_TRY(context.output(0, &y));
    EDGE_TRY(context.output(1, &state_out));
    const int64_t rows = in[kX].dims[0], steps = in[kX].dims[1], channels = in[kX].dims[2];
    const int64_t taps = in[kWeight].dims[0];
    const auto task = [&](int64_t r, int64_t first, int64_t last) {
      const int64_t at = r * steps * channels, held = r * (taps - 1) * channels;
      const int64_t count = in[kLength].as<int64_t>()[r];
      const conv::Row row = {in[kX].as<float>() + at,       in[kWeight].as<float>(),
                             in[kBias].as<float>(),         in[kState].as<float>() + held,
                             y.as<float>() + at,            state_out.as<float>() + held,
                             channels,                      taps};
      conv::convolve(row, first, last, count, activates);
      conv::keep_inputs(row, first, last, count);
      clear_steps(row.y, channels, count, steps, first, last);
    };
    return for_channels(context, rows, channels, (steps + 1) * taps / 2, task);
  }

 private:
  enum Input { kX, kWeight, kBias, kState, kLength, kInputs };

  static Status* check(const Tensor* in) {
    const Checks checks("CausalConv");
    constexpr const char* kNames[] = {"x", "weight", "bias", "state"};
    constexpr size_t kRanks[] = {3, 2, 1, 3};
    for (size_t i = kX; i <= kState; i++) EDGE_TRY(checks.rank(kNames[i], in[i], kRanks[i]));
    const int64_t rows = in[kX].dims[0], channels = in[kX].dims[2], taps = in[kWeight].dims[0];
    if (taps < 2) {
      return checks.message("weight has ").number(taps).text(" taps; 2 or more are required")
          .error();
    }
    EDGE_TRY(checks.equal("weight", 1, in[kWeight], channels));
    EDGE_TRY(checks.equal("bias", 0, in[kBias], channels));
    EDGE_TRY(checks.equal("state", 0, in[kState], rows));
    EDGE_TRY(checks.equal("state", 1, in[kState], taps - 1));
    EDGE_TRY(checks.equal("state", 2, in[kState], channels));
    return check_lengths(checks, in[kLength], rows, in[kX].dims[1]);
  }
};

EDGE_KERNEL(causal_conv, CausalConv)

}  // namespace EDGE_ISA
}  // namespace edge
