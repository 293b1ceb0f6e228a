// Which tokens go to which expert: the (token, choice) pairs in expert order, and work shared out
// over all experts at once.
#pragma once
#include "native/kernel.h"

namespace edge {
namespace EDGE_ISA {

// The pairs first .. first + size - 1 of the sorted order belong to one expert.
struct Group {
  size_t expert, first, size;
};

struct Routing {
  const int64_t* index;  // [tokens, choices]
  size_t tokens, choices, experts;
  size_t groups;       // experts that have any pair
  Group* group;        // [groups], by expert
  size_t* pair;        // sorted order -> token * choices + choice
  size_t* position;    // and back
  size_t* first_task;  // [groups + 1]

  size_t pairs() const { return tokens * choices; }
  size_t most_groups() const { return experts < pairs() ? experts : pairs(); }
  size_t token(size_t i) const { return pair[i] / choices; }
  size_t expert(size_t i) const { return size_t(index[pair[i]]); }

  size_t bytes() const {
    return most_groups() * sizeof(Group) +
           (2 * pairs() + most_groups() + 1 + experts + 1) * sizeof(size_t);
  }

  // A counting sort in `memory` of bytes(), stable, so that results do not depend on threads.
  Status* sort(void* memory) {
    group = static_cast<Group*>(memory);
    pair = reinterpret_cast<size_t*>(group + most_groups());
    position = pair + pairs();
    first_task = position + pairs();
    size_t* next = first_task + most_groups() + 1;  // [experts + 1]
    for (size_t e = 0; e <= experts; e++) next[e] = 0;
    for (size_t i = 0; i < pairs(); i++) {
      if (index[i] < 0 || index[i] >= int64_t(experts)) {
        return Message("RoutedExperts: expert_index has ").number(index[i])
            .text("; there are experts 0 to ").number(int64_t(experts) - 1).error();
      }
      next[index[i] + 1]++;
    }
    groups = 0;
    for (size_t e = 0; e < experts; e++) {
      if (next[e + 1]) group[groups++] = {e, next[e], next[e + 1]};
      next[e + 1] += next[e];
    }
    for (size_t i = 0; i < pairs(); i++) {
      position[i] = next[index[i]]++;
      pair[position[i]] = i;
    }
    return nullptr;
  }

  // Calls run(group, task) for every task 0 .. count(group) - 1 of every group.
  template <class Count, class Run>
  Status* parallel(const Context& context, const Count& count, const Run& run) const {
    first_task[0] = 0;
    for (size_t g = 0; g < groups; g++) first_task[g + 1] = first_task[g] + count(group[g]);
    return context.parallel(first_task[groups], [&](size_t task) -> Status* {
      size_t low = 0, high = groups;  // the last group that begins at or before the task
      while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        (first_task[middle] <= task ? low : high) = middle;
      }
      return run(group[low], task - first_task[low]);
    });
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
