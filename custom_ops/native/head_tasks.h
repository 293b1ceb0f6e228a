// A recurrence's heads, cut into tasks that threads can take: neighbouring heads of one group of
// one row, which share what their group gives.
#pragma once
#include "native/kernel.h"

namespace edge {
namespace EDGE_ISA {

class HeadTasks {
 public:
  static constexpr int64_t kMostHeads = 16;

  struct Part {
    int64_t row, head;  // the first
    size_t count;
  };

  // Rows of up to `few` steps go step by step, which shares nothing and wants many tasks.
  HeadTasks(int64_t batch, int64_t groups, int64_t heads_of_group, int64_t state_floats,
            const int64_t* lengths, int64_t few)
      : groups_(groups), each_(heads_of_group) {
    constexpr int64_t kWanted = 16;              // enough for any device's threads to share evenly
    constexpr int64_t kLeastShared = 4;          // heads, once there is something to share
    constexpr int64_t kCachedFloats = 64 << 10;  // of states, while a chunk goes from head to head
    int64_t longest = 0;
    for (int64_t row = 0; row < batch; row++) {
      if (lengths[row] > longest) longest = lengths[row];
    }
    per_task_ = (batch * groups * each_ + kWanted - 1) / kWanted;
    if (longest > few) {
      if (per_task_ < kLeastShared) per_task_ = kLeastShared;
      if (per_task_ > kCachedFloats / state_floats) per_task_ = kCachedFloats / state_floats;
    }
    if (per_task_ > kMostHeads) per_task_ = kMostHeads;
    if (per_task_ > each_) per_task_ = each_;
    if (per_task_ < 1) per_task_ = 1;
    parts_ = (each_ + per_task_ - 1) / per_task_;
    total_ = batch * groups * parts_;
    floats_ = double(batch * groups * each_) * double(state_floats) * double(longest + 1);
  }

  // Calls task(part) for every part, which returns a Status*.
  template <class Task>
  Status* run(const Context& context, const Task& task) const {
    constexpr double kInlineFloats = 1 << 13;  // below that, waking threads costs more
    if (floats_ > kInlineFloats) {
      return context.parallel(size_t(total_), [&](size_t i) { return task(part(int64_t(i))); });
    }
    for (int64_t i = 0; i < total_; i++) EDGE_TRY(task(part(i)));
    return nullptr;
  }

 private:
  Part part(int64_t index) const {
    const int64_t group = index / parts_, at = index % parts_;  // groups counted through all rows
    const int64_t from = each_ * at / parts_, to = each_ * (at + 1) / parts_;
    return {group / groups_, group % groups_ * each_ + from, size_t(to - from)};
  }

  int64_t groups_, each_, per_task_, parts_, total_;
  double floats_;
};

// What a call leaves of a head's row that it does not compute: padded steps give zeros, and a state
// without steps stays as it is. `y` is the head's part of the row's first step.
static inline void settle_padded(float* y, size_t stride, size_t width, size_t steps, size_t seq,
                                 const float* state, float* state_out, size_t state_floats) {
  for (size_t step = steps; step < seq; step++) {
    for (size_t i = 0; i < width; i++) y[step * stride + i] = 0.0f;
  }
  if (steps == 0 && state != state_out) {
    __builtin_memcpy(state_out, state, state_floats * sizeof(float));
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
