// The loops behind PackedMatMul.
#include "native/packed_matmul.h"

#include "native/packed_dot.h"
#include "native/packed_gemm.h"

namespace edge {
namespace EDGE_ISA {

constexpr size_t kTasks = 16;  // enough that threads which start late still find work

bool PackedMatMul::blocked() const { return m_size >= kPackedGemmFrom; }

// Calls `use(segment, strip's index in it, first row of it that is wanted, how many rows)` for
// `count` strips of this product from the `first` one on.
template <class Use>
void PackedMatMul::each_strip(size_t first, size_t count, const Use& use) const {
  const size_t n_end = n_first + n_size;
  PackedSegment s = packed->first_segment();
  for (size_t i = 0; i < packed->segments && count; s = packed->segment_after(s, i++)) {
    const size_t from = s.row > n_first ? s.row : n_first;
    const size_t end = s.row + s.rows < n_end ? s.row + s.rows : n_end;
    if (from >= end) continue;
    const size_t begin = (from - s.row) / kStripRows;
    const size_t strips = (end - s.row - 1) / kStripRows + 1 - begin;
    if (first >= strips) {
      first -= strips;
      continue;
    }
    for (; first < strips && count; first++, count--) {
      const size_t row = s.row + (begin + first) * kStripRows;
      const size_t low = row > from ? row : from;
      const size_t high = row + kStripRows < end ? row + kStripRows : end;
      use(s, begin + first, low, high - low);
    }
    first = 0;
  }
}

size_t PackedMatMul::strips() const {
  const size_t n_end = n_first + n_size;
  size_t total = 0;
  PackedSegment s = packed->first_segment();
  for (size_t i = 0; i < packed->segments; s = packed->segment_after(s, i++)) {
    const size_t from = s.row > n_first ? s.row : n_first;
    const size_t end = s.row + s.rows < n_end ? s.row + s.rows : n_end;
    if (from < end) total += (end - s.row - 1) / kStripRows + 1 - (from - s.row) / kStripRows;
  }
  return total;
}

// Enough strips to be worth a thread's attention, few enough that all threads end together.
size_t PackedMatMul::strips_per_task() const {
  constexpr size_t kBytes = size_t(256) << 10;
  if (blocked()) return kPackedGemmRows / kStripRows;
  const PackedSegment s = packed->first_segment();
  const size_t bytes = s.codes_bytes + s.meta_bytes, all = strips();
  if (all * bytes < kBytes / 4) return all ? all : 1;
  const size_t most = kBytes / bytes;
  return (all / kTasks < most ? all / kTasks : most) + 1;
}

// Narrow outputs are cut along the x rows too; each part unpacks the weights again.
size_t PackedMatMul::row_tasks() const {
  constexpr size_t kMinimum = 64;
  const size_t columns = column_tasks();
  if (!blocked() || columns == 0 || columns >= kTasks) return 1;
  const size_t wanted = (kTasks + columns - 1) / columns, possible = m_size / kMinimum;
  return possible < 1 ? 1 : wanted < possible ? wanted : possible;
}

size_t PackedMatMul::column_tasks() const {
  const size_t step = strips_per_task();
  return (strips() + step - 1) / step;
}

PackedMatMul::Part PackedMatMul::part(size_t task) const {
  const size_t step = strips_per_task(), tasks = row_tasks();
  const size_t m = m_size * (task % tasks) / tasks, end = m_size * (task % tasks + 1) / tasks;
  Part part = {m, end - m, 0, 0};
  const auto add = [&](const PackedSegment&, size_t, size_t row, size_t rows) {
    if (part.columns == 0) part.n = row - n_first;
    part.columns += rows;
  };
  each_strip(task / tasks * step, step, add);
  return part;
}

Status* PackedMatMul::run(size_t task) const {
  if (blocked()) return run_blocked(part(task));
  const size_t step = strips_per_task();
  run_strips(task * step, step);
  return nullptr;
}

Status* PackedMatMul::run_whole() const {
  if (blocked()) return run_blocked({0, m_size, 0, n_size});
  run_strips(0, strips());
  return nullptr;
}

Status* PackedMatMul::run_blocked(const Part& to) const {
  Scratch scratch(kPackedGemmScratchBytes);
  if (scratch.failed()) return Scratch::error();
  packed_gemm(*packed, matrix, n_first + to.n, to.columns, *x, m_first + to.m, to.rows,
              y + to.m * y_stride + to.n, y_stride, scratch.as<void>());
  return nullptr;
}

void PackedMatMul::run_strips(size_t first, size_t count) const {
  each_strip(first, count, [&](const PackedSegment& s, size_t i, size_t row, size_t rows) {
    const PackedStrip strip = packed->strip(matrix, s, i);
    const size_t skipped = row - (s.row + i * kStripRows);
    // Passes of about equal height.
    const size_t passes = (m_size + kPackedDotRows - 1) / kPackedDotRows;
    for (size_t pass = 0; pass < passes; pass++) {
      const size_t m = m_size * pass / passes, end = m_size * (pass + 1) / passes;
      float to[kPackedDotRows][kStripRows];
      detail::dot_strip_for(s.bits, end - m)(*packed, s, strip, *x, m_first + m, to);
      for (size_t i = m; i < end; i++) {
        float* out = y + i * y_stride + (row - n_first);
        for (size_t r = 0; r < rows; r++) out[r] = to[i - m][skipped + r];
      }
    }
  });
}

}  // namespace EDGE_ISA
}  // namespace edge
