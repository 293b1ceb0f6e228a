// y = x times a weight matrix transposed, cut into tasks that threads can take. matmul.cc, compiled
// once for all kernels, has the loops.
#pragma once
#include "native/kernel.h"
#include "native/vector.h"

namespace edge {
namespace EDGE_ISA {

// x [m_size, k_size] in rows of x_stride; weight [n_size, k_size]; y [m_size, n_size] in rows of
// y_stride.
template <class W>
struct MatMul {
  const float* x;
  size_t x_stride;
  const W* weight;
  float* y;
  size_t y_stride;
  size_t m_size, n_size, k_size;

  bool blocked() const;
  size_t rows_per_task() const;
  size_t column_tasks() const { return (n_size + rows_per_task() - 1) / rows_per_task(); }

  size_t row_tasks() const;
  size_t tasks() const { return m_size == 0 ? 0 : column_tasks() * row_tasks(); }

  // The part of y that a task writes.
  struct Part {
    size_t m, rows, n, columns;
  };

  Part part(size_t task) const {
    const size_t n = task / row_tasks() * rows_per_task();
    const size_t m = m_size * (task % row_tasks()) / row_tasks();
    return {m, m_size * (task % row_tasks() + 1) / row_tasks() - m, n,
            n_size - n < rows_per_task() ? n_size - n : rows_per_task()};
  }

  Status* run(size_t task) const;
};

extern template struct MatMul<float>;
extern template struct MatMul<Half>;
extern template struct MatMul<Bfloat>;

// Calls `use(T{})` with T the element type of a weight tensor; `kernel` begins the error.
template <class Use>
static Status* with_weight_type(const char* kernel, ElementType type, const Use& use) {
  switch (type) {
    case ElementType::kFloat32: return use(float{});
    case ElementType::kFloat16: return use(Half{});
    case ElementType::kBfloat16: return use(Bfloat{});
    default:
      return Message(kernel).text(": the weight has element type ").number(int64_t(type))
          .text("; float32, float16 or bfloat16 is required").error();
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
