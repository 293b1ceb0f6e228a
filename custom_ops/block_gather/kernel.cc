// BlockGather: ids [...] in, rows of a packed matrix as float32 out, [..., K].
#include "native/checks.h"
#include "native/packed_rows.h"

namespace edge {
namespace EDGE_ISA {

struct BlockGather {
  Status* create(const Info&) { return nullptr; }

  Status* compute(const Context& context) const {
    Tensor ids, weight;
    EDGE_TRY(context.input(0, &ids));
    EDGE_TRY(context.input(1, &weight));
    const Checks checks("BlockGather");
    Packed packed;
    EDGE_TRY(Packed::parse(checks.op, weight, &packed));
    if (packed.count != 1) {
      return checks.message("the packed weight has ").number(int64_t(packed.count))
          .text(" matrices; one is required").error();
    }
    if (ids.rank == kMaxRank) {
      return checks.message("ids have ").number(int64_t(ids.rank))
          .text(" dimensions, at most 7 are possible").error();
    }
    const size_t count = size_t(ids.count());
    const int64_t* id = ids.as<int64_t>();
    for (size_t i = 0; i < count; i++) {
      if (id[i] >= 0 && id[i] < int64_t(packed.rows)) continue;
      return checks.message("id ").number(int64_t(i)).text(" is ").number(id[i])
          .text("; the weight has rows 0 to ").number(int64_t(packed.rows) - 1).error();
    }
    Tensor y = ids;
    y.dims[y.rank++] = int64_t(packed.columns);
    EDGE_TRY(context.output(0, &y));
    return gather(context, packed, id, count, y.as<float>());
  }

 private:
  // Of a row, all vectors of its strip's codes come from memory: a few rows are worth a thread.
  static Status* gather(const Context& context, const Packed& packed, const int64_t* id,
                        size_t count, float* y) {
    constexpr size_t kTaskValues = 1 << 14;
    const size_t rows = kTaskValues / packed.columns + 1;
    return context.parallel((count + rows - 1) / rows, [&](size_t task) -> Status* {
      const size_t end = (task + 1) * rows < count ? (task + 1) * rows : count;
      if (packed.has_column_order) return gather_in_order(packed, id, task * rows, end, y);
      for (size_t i = task * rows; i < end; i++) {
        unpack_rows(packed, 0, size_t(id[i]), 1, y + i * packed.columns, packed.columns);
      }
      return nullptr;
    });
  }

  static Status* gather_in_order(const Packed& packed, const int64_t* id, size_t first, size_t end,
                                 float* y) {
    Scratch row(packed.columns * sizeof(float));
    if (row.failed()) return Scratch::error();
    for (size_t i = first; i < end; i++) {
      unpack_row_in_order(packed, 0, size_t(id[i]), row.as<float>(), y + i * packed.columns);
    }
    return nullptr;
  }
};

EDGE_KERNEL(block_gather, BlockGather)

}  // namespace EDGE_ISA
}  // namespace edge
