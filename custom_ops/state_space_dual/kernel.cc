// StateSpaceDual: few steps pass over the state one by one, many go through it in chunks. Work is cut
// by row and by neighbouring heads of one group.
#include "state_space_dual/chunks.h"
#include "state_space_dual/inputs.h"
#include "state_space_dual/steps.h"

namespace edge {
namespace EDGE_ISA {
namespace state_space {

constexpr int64_t kFewSteps = 10;    // up to here, chunks cost more than they save
constexpr int64_t kTasksWanted = 16;  // enough for any device's threads to share evenly
constexpr int64_t kLeastHeads = 4;   // that share the products of their group's b and c
constexpr int64_t kMostHeads = 16;
constexpr int64_t kCachedBytes = 256 << 10;  // of states, while a chunk goes from head to head
constexpr int64_t kInlineFloats = 1 << 13;   // below that, waking threads costs more

class Call {
 public:
  Call(const Context& context, const Inputs& in, float* y, float* states)
      : context_(context), in_(in), y_(y), states_(states) {
    for (int64_t row = 0; row < in.batch; row++) {
      if (in.row_length(row) > longest_) longest_ = in.row_length(row);
    }
    const int64_t each = in.heads_of_group();
    per_task_ = (in.batch * in.heads + kTasksWanted - 1) / kTasksWanted;
    if (longest_ > kFewSteps) {
      const int64_t cached = kCachedBytes / 4 / in.state_floats();
      if (per_task_ < kLeastHeads) per_task_ = kLeastHeads;
      if (per_task_ > cached) per_task_ = cached > 1 ? cached : 1;
    }
    if (per_task_ > kMostHeads) per_task_ = kMostHeads;
    if (per_task_ > each) per_task_ = each;
    tasks_of_group_ = (each + per_task_ - 1) / per_task_;
  }

  Status* run() const {
    if (in_.batch == 0) return nullptr;
    const int64_t total = in_.batch * in_.groups * tasks_of_group_;
    const double work = double(in_.batch * in_.heads) * double(in_.state_floats());
    if (work * double(longest_ + 1) > double(kInlineFloats)) {
      return context_.parallel(size_t(total), [this](size_t i) { return task(int64_t(i)); });
    }
    for (int64_t i = 0; i < total; i++) EDGE_TRY(task(i));
    return nullptr;
  }

 private:
  Status* task(int64_t index) const {
    const int64_t each = in_.heads_of_group();
    const int64_t group = index / tasks_of_group_;  // counted through all rows
    const int64_t part = index % tasks_of_group_, row = group / in_.groups;
    const int64_t from = each * part / tasks_of_group_;
    const size_t count = size_t(each * (part + 1) / tasks_of_group_ - from);
    Head heads[kMostHeads];
    for (size_t h = 0; h < count; h++) {
      heads[h] = Head(in_, row, group % in_.groups * each + from + int64_t(h), y_, states_);
      clear_padded(heads[h]);
    }
    if (in_.row_length(row) > kFewSteps) {
      const Padded padded(heads[0].size, heads[0].width);
      Scratch scratch(Scratchpad::floats(padded, count) * sizeof(float));
      if (scratch.failed()) return Scratch::error();
      run_chunks(heads, count, padded, scratch.as<float>());
      return nullptr;
    }
    for (size_t h = 0; h < count; h++) run_steps(heads[h]);
    return nullptr;
  }

  // A row without steps keeps its state.
  void clear_padded(const Head& head) const {
    for (size_t step = head.steps; step < size_t(in_.seq); step++) {
      float* y = head.y + step * head.x_stride;
      for (size_t p = 0; p < head.width; p++) y[p] = 0.0f;
    }
    if (head.steps == 0 && head.state != head.state_out) {
      __builtin_memcpy(head.state_out, head.state, size_t(in_.state_floats()) * sizeof(float));
    }
  }

  const Context& context_;
  const Inputs& in_;
  float* y_;
  float* states_;
  int64_t longest_ = 0, per_task_, tasks_of_group_;
};

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
    return Call(context, in, y.as<float>(), states.as<float>()).run();
  }

 private:
  int64_t groups_;
};

}  // namespace state_space

EDGE_KERNEL(state_space_dual, state_space::StateSpaceDual)

}  // namespace EDGE_ISA
}  // namespace edge
