// The loops behind MatMul: dot products for few x rows, converted blocks for many.
#include "native/matmul.h"

#include "native/dot.h"
#include "native/gemm.h"

namespace edge {
namespace EDGE_ISA {

// Below this many x rows, transposing a block costs more than it saves. Dot products take weights
// of 16 bits from the cache twice as fast.
template <class W>
constexpr size_t kGemmFrom = sizeof(W) == 4 ? 24 : 48;

constexpr size_t kTasks = 16;  // enough that threads which start late still find work

template <class W>
bool MatMul<W>::blocked() const {
  return m_size >= kGemmFrom<W>;
}

// Enough weight rows to be worth a thread's attention, few enough that all threads end together.
template <class W>
size_t MatMul<W>::rows_per_task() const {
  if (blocked()) return kBlockColumns;
  constexpr size_t kBytes = size_t(256) << 10;
  const size_t row_bytes = k_size * sizeof(W) + 1;
  size_t rows = n_size / kTasks < kBytes / row_bytes ? n_size / kTasks : kBytes / row_bytes;
  if (n_size * row_bytes < kBytes / 4) rows = n_size;
  return (rows / kDotGroup + 1) * kDotGroup;
}

// Narrow outputs are cut along the x rows too; each part converts the weights again.
template <class W>
size_t MatMul<W>::row_tasks() const {
  constexpr size_t kMinimum = 64;
  if (!blocked() || column_tasks() == 0 || column_tasks() >= kTasks) return 1;
  const size_t wanted = (kTasks + column_tasks() - 1) / column_tasks();
  const size_t possible = m_size / kMinimum;
  return possible < 1 ? 1 : wanted < possible ? wanted : possible;
}

template <class W>
Status* MatMul<W>::run(size_t task) const {
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

template struct MatMul<float>;
template struct MatMul<Half>;
template struct MatMul<Bfloat>;

}  // namespace EDGE_ISA
}  // namespace edge
