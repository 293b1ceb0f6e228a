// Which form each row of the batch takes, and how the work is cut.
#pragma once
#include "latent_attention/inputs.h"
#include "latent_attention/tile.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

constexpr int64_t kTasksWanted = 16;    // enough for any device's threads to share evenly
constexpr int64_t kLeastSplit = 2 * kBlockKeys;  // keys; below that, merging costs too much
constexpr int64_t kAbsorbedRows = 4 * kRowTile;  // that share each conversion of a block of keys
// Queries that share each expansion of a block of keys, and the least worth a task of their own.
constexpr int64_t kMostExpanded = 2048, kLeastExpanded = 256;

// Multiplications that a row of the batch takes in each form: absorbed, a key costs 2R + Dr per
// query, and every query and output passes through `up`; expanded, Dn + Dr + Dv, and every key does.
struct Costs {
  double absorbed, expanded;

  Costs(const Inputs& in, int64_t row, int64_t window) {
    const double count = double(in.row_length(row)), start = double(in.row_start(row));
    double seen = start + (count + 1) / 2;  // keys of an average query
    double span = start + count;            // keys that some query sees
    if (window && seen > double(window)) seen = double(window);
    if (window && span > double(window) + count - 1) span = double(window) + count - 1;
    const double pairs = count * seen, up = double(in.rank_dim) * double(in.up_rows());
    absorbed = pairs * double(2 * in.rank_dim + in.rope_dim) + count * up;
    expanded = pairs * double(in.query_width() + in.value_dim) + span * up;
  }
};

// How one row of the batch is worked on. A unit is a block of rows of queries: of one head where
// expanded, of all of them, step by step, where absorbed.
struct RowPlan {
  bool is_absorbed;
  int64_t first_token;  // among those of all absorbed rows
  int64_t rows, block_rows, blocks, splits;
  int64_t first_task;
  int64_t first_unit;  // among those that are split
};

struct Plan {
  RowPlan* rows;
  int64_t batch, tasks = 0, tokens = 0;
  int64_t split_units = 0, partial_rows = 0;  // that each of them has room for, all splits together
  double cost = 0;

  // The row that a task belongs to: the last whose first task is not beyond it.
  int64_t row_of(int64_t task) const {
    int64_t low = 0, high = batch;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (rows[middle].first_task <= task ? low : high) = middle;
    }
    return low;
  }

  void make(const Inputs& in, int64_t window) {
    batch = in.batch;
    int64_t absorbed_units = 0, expanded_rows = 0;
    for (int64_t b = 0; b < batch; b++) {
      RowPlan& row = rows[b];
      const Costs costs(in, b, window);
      row = {};
      row.is_absorbed = costs.absorbed <= costs.expanded;
      row.first_token = tokens;
      cost += row.is_absorbed ? costs.absorbed : costs.expanded;
      if (row.is_absorbed) {
        row.rows = in.row_length(b) * in.heads;
        row.block_rows = kAbsorbedRows;
        absorbed_units += (row.rows + kAbsorbedRows - 1) / kAbsorbedRows;
        tokens += in.row_length(b);
      } else {
        row.rows = in.row_length(b);
        expanded_rows += 1;
      }
    }
    cost *= double(in.heads);
    for (int64_t b = 0; b < batch; b++) {
      RowPlan& row = rows[b];
      if (!row.is_absorbed) row.block_rows = expanded_block(row.rows, expanded_rows * in.heads);
      row.blocks = row.rows ? (row.rows + row.block_rows - 1) / row.block_rows : 0;
      row.splits = row.is_absorbed ? splits(in, b, window, absorbed_units) : 1;
      row.first_task = tasks;
      row.first_unit = split_units;
      const int64_t of_row = row.blocks * (row.is_absorbed ? 1 : in.heads);
      tasks += of_row * row.splits;
      if (row.splits > 1) {
        split_units += of_row;
        const int64_t all = row.splits * smaller(row.rows, row.block_rows);
        partial_rows = larger(partial_rows, all);
      }
    }
  }

 private:
  // Long enough for the expansion of the keys to pay, unless there would be fewer tasks than threads.
  static int64_t expanded_block(int64_t rows, int64_t heads) {
    const int64_t wanted = (kTasksWanted / 2 + heads - 1) / heads;
    const int64_t fair = larger((rows + wanted - 1) / wanted, kLeastExpanded);
    return smaller(fair, kMostExpanded);
  }

  static int64_t splits(const Inputs& in, int64_t b, int64_t window, int64_t units) {
    const int64_t held = in.row_start(b) + in.row_length(b);
    const int64_t span = window ? smaller(held, window + in.row_length(b)) : held;
    return larger(1, smaller(span / kLeastSplit, kTasksWanted / larger(units, 1)));
  }
};

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
