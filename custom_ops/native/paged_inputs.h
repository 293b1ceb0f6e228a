// Reads and checks what every op with a paged cache takes: table, start and length. Graphs and
// tables come from packages that nobody has vouched for: whatever leaves here is in bounds.
#pragma once
#include "native/checks.h"
#include "native/pages.h"

namespace edge {
namespace EDGE_ISA {

// Ops add their own tensors, and set the sizes before check_rows.
struct PagedInputs : Checks {
  Tensor table, start, length;
  int64_t batch, seq;  // of this call
  int64_t pool, page;  // pages in the cache, and tokens in each

  explicit PagedInputs(const char* name) : Checks(name) {}

  int64_t row_start(int64_t row) const { return start.as<int64_t>()[row]; }
  int64_t row_length(int64_t row) const { return length.as<int64_t>()[row]; }
  const int64_t* row_table(int64_t row) const {
    return table.as<int64_t>() + row * table.dims[1];
  }

  // [batch, seq, width].
  Status* tokens(const char* name, const Tensor& tensor, int64_t width) const {
    EDGE_TRY(rank(name, tensor, 3));
    EDGE_TRY(equal(name, 0, tensor, batch));
    EDGE_TRY(equal(name, 1, tensor, seq));
    return equal(name, 2, tensor, width);
  }

  Status* check_rows() const {
    EDGE_TRY(rank("table", table, 2));
    EDGE_TRY(rank("start", start, 1));
    EDGE_TRY(rank("length", length, 1));
    EDGE_TRY(equal("table", 0, table, batch));
    EDGE_TRY(equal("start", 0, start, batch));
    EDGE_TRY(equal("length", 0, length, batch));
    for (int64_t row = 0; row < batch; row++) EDGE_TRY(check_row(row));
    return nullptr;
  }

 private:
  // Looks at the table entries that the row's tokens need; the others may hold anything.
  Status* check_row(int64_t row) const {
    const int64_t first = row_start(row), count = row_length(row);
    if (count < 0 || count > seq) {
      return message("length of row ").number(row).text(" is ").number(count)
          .text(", not between 0 and the ").number(seq).text(" steps of this call").error();
    }
    if (first < 0 || first > (int64_t(1) << 48) || first + count > capacity()) {
      return message("row ").number(row).text(" starts at ").number(first).text(" and adds ")
          .number(count).text(" tokens; its table has room for ").number(capacity()).error();
    }
    const int64_t used = (first + count + page - 1) / page;
    for (int64_t i = 0; i < used; i++) {
      const int64_t entry = row_table(row)[i];
      if (entry < 0 || entry >= pool) {
        return message("page ").number(i).text(" of row ").number(row).text(" is table entry ")
            .number(entry).text("; the cache has ").number(pool).text(" pages").error();
      }
    }
    return nullptr;
  }

  int64_t capacity() const {
    const int64_t all = product(table.dims[1], page);
    return all < 0 ? INT64_MAX : all;
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
