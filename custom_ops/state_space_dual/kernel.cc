// StateSpaceDual: few steps pass over the state one by one, many go through it in chunks.
#include "native/head_tasks.h"
#include "state_space_dual/chunks.h"
#include "state_space_dual/inputs.h"
#include "state_space_dual/steps.h"

namespace edge {
namespace EDGE_ISA {
namespace state_space {

constexpr int64_t kFewSteps = 10;  // up to here, chunks cost more than they save

class StateSpaceDual {
 public:
  Status* create(const Info& info) {
    EDGE_TRY(info.integer("groups", &groups_));
    return Checks("StateSpaceDual").positive("groups", groups_);
  }

  Status* compute(const Context& context) const {
    Inputs in;
    EDGE_TRY(in.read(context, groups_));
    Tensor y = in.x, states = in.state;
    EDGE_TRY(context.output(0, &y));
    EDGE_TRY(context.output(1, &states));
    const HeadTasks tasks(in.batch, in.groups, in.heads_of_group(), in.state_floats(),
                          in.length.as<int64_t>(), kFewSteps);
    return tasks.run(context, [&](const HeadTasks::Part& part) {
      return run(in, part, y.as<float>(), states.as<float>());
    });
  }

 private:
  static Status* run(const Inputs& in, const HeadTasks::Part& part, float* y, float* states) {
    Head heads[HeadTasks::kMostHeads];
    for (size_t h = 0; h < part.count; h++) {
      const Head head(in, part.row, part.head + int64_t(h), y, states);
      settle_padded(head.y, head.x_stride, head.width, head.steps, size_t(in.seq), head.state,
                    head.state_out, size_t(in.state_floats()));
      heads[h] = head;
    }
    if (in.row_length(part.row) <= kFewSteps) {
      for (size_t h = 0; h < part.count; h++) run_steps(heads[h]);
      return nullptr;
    }
    const Padded padded(heads[0].size, heads[0].width);
    Scratch scratch(Scratchpad::floats(padded, part.count) * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    run_chunks(heads, part.count, padded, scratch.as<float>());
    return nullptr;
  }

  int64_t groups_;
};

}  // namespace state_space

EDGE_KERNEL(state_space_dual, state_space::StateSpaceDual)

}  // namespace EDGE_ISA
}  // namespace edge
