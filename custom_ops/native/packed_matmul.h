// y = x times rows of a packed weight, transposed, cut into tasks that threads can take.
// packed_matmul.cc, compiled once for all kernels, has the loops.
#pragma once
#include "native/packed_x.h"

namespace edge {
namespace EDGE_ISA {

// y [m_size, n_size] in rows of y_stride, from rows m_first .. of x and rows n_first .. of a matrix
// of the stack.
struct PackedMatMul {
  const Packed* packed;
  size_t matrix, n_first, n_size;
  const PackedX* x;
  size_t m_first, m_size;
  float* y;
  size_t y_stride;

  bool blocked() const;
  size_t tasks() const { return m_size == 0 ? 0 : column_tasks() * row_tasks(); }

  // The part of y that a task writes.
  struct Part {
    size_t m, rows, n, columns;
  };
  Part part(size_t task) const;

  Status* run(size_t task) const;

  // All of it, on this thread.
  Status* run_whole() const;

 private:
  size_t strips() const;
  size_t strips_per_task() const;
  size_t column_tasks() const;
  size_t row_tasks() const;
  Status* run_blocked(const Part& to) const;
  void run_strips(size_t first, size_t count) const;
  template <class Use>
  void each_strip(size_t first, size_t count, const Use& use) const;
};

}  // namespace EDGE_ISA
}  // namespace edge
