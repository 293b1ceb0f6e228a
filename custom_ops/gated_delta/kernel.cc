// GatedDelta: few steps pass over the state one by one, many go through it in chunks.
#include "gated_delta/chunks.h"
#include "gated_delta/inputs.h"
#include "gated_delta/steps.h"
#include "native/head_tasks.h"

namespace edge {
namespace EDGE_ISA {
namespace gated_delta {

constexpr int64_t kFewSteps = 6;  // up to here, chunks cost more than they save

class GatedDelta {
 public:
  Status* create(const Info& info) {
    EDGE_TRY(info.integer("num_heads", &num_heads_));
    EDGE_TRY(info.real("scale", &scale_));
    return Checks("GatedDelta").positive("num_heads", num_heads_);
  }

  Status* compute(const Context& context) const {
    Inputs in;
    EDGE_TRY(in.read(context, num_heads_));
    Tensor y = in.value, states = in.state;
    EDGE_TRY(context.output(0, &y));
    EDGE_TRY(context.output(1, &states));
    const HeadTasks tasks(in.batch, in.key_heads, in.heads_of_key(), in.state_floats(),
                          in.length.as<int64_t>(), kFewSteps);
    return tasks.run(context, [&](const HeadTasks::Part& part) {
      return run(in, part, y.as<float>(), states.as<float>());
    });
  }

 private:
  Status* run(const Inputs& in, const HeadTasks::Part& part, float* y, float* states) const {
    Head heads[HeadTasks::kMostHeads];
    for (size_t h = 0; h < part.count; h++) {
      const Head head(in, scale_, part.row, part.head + int64_t(h), y, states);
      settle_padded(head.y, head.value_stride, head.width, head.steps, size_t(in.seq), head.state,
                    head.state_out, size_t(in.state_floats()));
      heads[h] = head;
    }
    const Padded padded(heads[0].size, heads[0].width);
    const bool is_few = in.row_length(part.row) <= kFewSteps;
    const size_t floats = is_few ? padded.size : Scratchpad::floats(padded, part.count);
    Scratch scratch(floats * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    if (!is_few) run_chunks(heads, part.count, padded, scratch.as<float>());
    for (size_t h = 0; is_few && h < part.count; h++) run_steps(heads[h], scratch.as<float>());
    return nullptr;
  }

  int64_t num_heads_;
  float scale_;
};

}  // namespace gated_delta

EDGE_KERNEL(gated_delta, gated_delta::GatedDelta)

}  // namespace EDGE_ISA
}  // namespace edge
