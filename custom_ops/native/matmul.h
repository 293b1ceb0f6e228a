// y = x times a weight matrix transposed: the choice between dot products and blocks, and the cut
// into tasks that threads can take.
#pragma once
#include "native/dot.h"
#include "native/gemm.h"
#include "native/kernel.h"

namespace edge {
namespace EDGE_ISA {

// Below this many x rows, converting and transposing a block costs more than it saves.
constexpr size_t kGemmFrom = 17;

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

  bool blocked() const { return m_size >= kGemmFrom; }

  // How many weight rows a task takes: enough to be worth a thread's attention, few enough that all
  // threads end together.
  size_t rows_per_task() const {
    if (blocked()) return kBlockColumns;
    constexpr size_t kBytes = size_t(256) << 10, kTasks = 16;
    const size_t row_bytes = k_size * sizeof(W) + 1;
    size_t rows = n_size / kTasks < kBytes / row_bytes ? n_size / kTasks : kBytes / row_bytes;
    if (n_size * row_bytes < kBytes / 4) rows = n_size;
    return (rows / kDotGroup + 1) * kDotGroup;
  }

  size_t column_tasks() const { return (n_size + rows_per_task() - 1) / rows_per_task(); }

  // Narrow outputs are cut along the x rows too; each part converts the weights again.
  size_t row_tasks() const {
    constexpr size_t kTasks = 16, kMinimum = 64;
    if (!blocked() || column_tasks() == 0 || column_tasks() >= kTasks) return 1;
    const size_t wanted = (kTasks + column_tasks() - 1) / column_tasks();
    const size_t possible = m_size / kMinimum;
    return possible < 1 ? 1 : wanted < possible ? wanted : possible;
  }

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

  Status* run(size_t task) const {
    const auto [m, rows, n, columns] = part(task);
    const float* xs = x + m * x_stride;
    const W* w = weight + n * k_size;
    float* ys = y + m * y_stride + n;
    if (!blocked()) {
      dot_rows(xs, rows, x_stride, w, columns, k_size, ys, y_stride);
      return nullptr;
    }
    Scratch scratch(kGemmScratchBytes);
    if (scratch.failed()) return Scratch::error();
    gemm_block(xs, rows, x_stride, w, columns, k_size, ys, y_stride, scratch.as<float>());
    return nullptr;
  }
};

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
