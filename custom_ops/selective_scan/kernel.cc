// SelectiveScan: lanes and tasks are channels, which do not depend on each other.
#include "native/channels.h"
#include "selective_scan/steps.h"

namespace edge {
namespace EDGE_ISA {

struct SelectiveScan {
  Status* create(const Info&) { return nullptr; }

  Status* compute(const Context& context) const {
    Tensor in[kInputs];
    for (size_t i = 0; i < kInputs; i++) EDGE_TRY(context.input(i, &in[i]));
    EDGE_TRY(check(in));
    Tensor y = in[kX], state_out = in[kState];
    EDGE_TRY(context.output(0, &y));
    EDGE_TRY(context.output(1, &state_out));
    const int64_t rows = in[kX].dims[0], steps = in[kX].dims[1], channels = in[kX].dims[2];
    const int64_t states = in[kA].dims[0];
    const auto task = [&](int64_t r, int64_t first, int64_t last) {
      const int64_t wide = r * steps * channels, narrow = r * steps * states;
      const int64_t held = r * states * channels, count = in[kLength].as<int64_t>()[r];
      const scan::Row row = {in[kX].as<float>() + wide, in[kDt].as<float>() + wide,
                             in[kA].as<float>(),        in[kB].as<float>() + narrow,
                             in[kC].as<float>() + narrow, in[kState].as<float>() + held,
                             y.as<float>() + wide,      state_out.as<float>() + held,
                             channels,                  states};
      run(row, first, last, count, steps);
    };
    return for_channels(context, rows, channels, larger(steps, 1) * states, task);
  }

 private:
  enum Input { kX, kDt, kA, kB, kC, kState, kLength, kInputs };

  static Status* check(const Tensor* in) {
    const Checks checks("SelectiveScan");
    constexpr const char* kNames[] = {"x", "dt", "a", "b", "c", "state"};
    constexpr size_t kRanks[] = {3, 3, 2, 3, 3, 3};
    for (size_t i = kX; i <= kState; i++) EDGE_TRY(checks.rank(kNames[i], in[i], kRanks[i]));
    const int64_t rows = in[kX].dims[0], steps = in[kX].dims[1], channels = in[kX].dims[2];
    const int64_t states = in[kA].dims[0];
    if (states == 0) return checks.message("a is empty; at least one state is required").error();
    EDGE_TRY(checks.equal("a", 1, in[kA], channels));
    for (size_t i = kDt; i <= kC; i++) {
      if (i == kA) continue;
      EDGE_TRY(checks.equal(kNames[i], 0, in[i], rows));
      EDGE_TRY(checks.equal(kNames[i], 1, in[i], steps));
      EDGE_TRY(checks.equal(kNames[i], 2, in[i], i == kDt ? channels : states));
    }
    EDGE_TRY(checks.equal("state", 0, in[kState], rows));
    EDGE_TRY(checks.equal("state", 1, in[kState], states));
    EDGE_TRY(checks.equal("state", 2, in[kState], channels));
    return check_lengths(checks, in[kLength], rows, steps);
  }

  static void run(const scan::Row& row, int64_t first, int64_t last, int64_t count,
                  int64_t steps) {
    if (count == 0 && row.state != row.state_out) {
      for (int64_t n = 0; n < row.states; n++) {
        const int64_t at = n * row.channels + first;
        __builtin_memcpy(row.state_out + at, row.state + at, size_t(last - first) * sizeof(float));
      }
    } else if (count == 1) {
      scan::one_step(row, first, last);
    } else {
      scan::many_steps(row, first, last, count);
    }
    clear_steps(row.y, row.channels, count, steps, first, last);
  }
};

EDGE_KERNEL(selective_scan, SelectiveScan)

}  // namespace EDGE_ISA
}  // namespace edge
