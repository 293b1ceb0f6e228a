// Work on [rows, channels] in which no channel needs another: tasks of some channels of one row.
#pragma once
#include "native/checks.h"
#include "native/pages.h"

namespace edge {
namespace EDGE_ISA {

// A task takes at least about this much work, a unit being a handful of instructions on one value:
// enough to be worth waking a thread for.
constexpr int64_t kTaskWork = 1 << 13;
// Channels are cut into multiples of a cache line, and into several of them where there is enough
// work, since memory is fetched by more than one line.
constexpr int64_t kLineChannels = 16, kTaskChannels = 64;

// Calls `task(row, first, last)` for channels first <= c < last; `work` is that of one channel.
template <class Task>
static Status* for_channels(const Context& context, int64_t rows, int64_t channels, int64_t work,
                            const Task& task) {
  if (rows == 0 || channels == 0) return nullptr;
  const int64_t least = larger(kTaskChannels, kTaskWork / larger(work, 1));
  const int64_t wanted = larger(channels / least, 1);
  const int64_t width = round_up((channels + wanted - 1) / wanted, kLineChannels);
  const int64_t parts = (channels + width - 1) / width;
  const auto run = [&](size_t index) -> Status* {
    const int64_t first = int64_t(index) % parts * width;
    task(int64_t(index) / parts, first, smaller(first + width, channels));
    return nullptr;
  };
  // Rows too small to be tasks of their own are done here.
  if (rows * channels * larger(work, 1) < 2 * kTaskWork) {
    for (int64_t i = 0; i < rows * parts; i++) run(size_t(i));
    return nullptr;
  }
  return context.parallel(size_t(rows * parts), run);
}

// `length` [B]: how many of the steps of each row are real.
static inline Status* check_lengths(const Checks& checks, const Tensor& length, int64_t rows,
                                    int64_t steps) {
  EDGE_TRY(checks.rank("length", length, 1));
  EDGE_TRY(checks.equal("length", 0, length, rows));
  for (int64_t row = 0; row < rows; row++) {
    const int64_t count = length.as<int64_t>()[row];
    if (count >= 0 && count <= steps) continue;
    return checks.message("length of row ").number(row).text(" is ").number(count)
        .text("; 0 to ").number(steps).text(" is required").error();
  }
  return nullptr;
}

// Steps `from` to `to` of a row of [steps, channels], in some channels.
static inline void clear_steps(float* row, int64_t channels, int64_t from, int64_t to,
                               int64_t first, int64_t last) {
  for (int64_t t = from; t < to; t++) {
    __builtin_memset(row + t * channels + first, 0, size_t(last - first) * sizeof(float));
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
