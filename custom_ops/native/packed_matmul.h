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

// What an op makes of its inputs x and weight, one packed matrix with `parts` rows for each column
// of y: use(packed, x's rows, y).
template <class Use>
static inline Status* with_packed_inputs(const char* op, const Context& context, size_t parts,
                                         const Use& use) {
  Tensor x, weight;
  EDGE_TRY(context.input(0, &x));
  EDGE_TRY(context.input(1, &weight));
  Packed packed;
  EDGE_TRY(Packed::parse(op, weight, &packed));
  if (x.rank == 0 || size_t(x.last()) != packed.columns || packed.count != 1 ||
      packed.rows % parts != 0) {
    return Message(op).text(": x has ").number(x.last()).text(" columns and the packed weight ")
        .number(int64_t(packed.columns)).text(" in ").number(int64_t(packed.count))
        .text(" matrices of ").number(int64_t(packed.rows))
        .text(" rows; equal columns and one matrix")
        .text(parts == 1 ? "" : ", its rows in two equal parts,").text(" are required").error();
  }
  Tensor y = x;
  y.dims[y.rank - 1] = int64_t(packed.rows / parts);
  EDGE_TRY(context.output(0, &y));
  const size_t rows = size_t(x.count(x.rank - 1));
  if (rows == 0) return nullptr;
  Scratch memory(PackedX::bytes(packed, rows));
  if (memory.failed()) return Scratch::error();
  const PackedX quantised(packed, rows, memory.as<void>());
  EDGE_TRY(quantise_rows(context, packed, 0, x.as<float>(), packed.columns, quantised));
  return use(packed, quantised, y.as<float>());
}

}  // namespace EDGE_ISA
}  // namespace edge
