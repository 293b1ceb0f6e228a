// BlockMatMul: x [..., K] times weight [N, K] transposed, the weight in the checkpoint's own bytes or
// packed to few bits.
#include "native/matmul.h"
#include "native/packed_matmul.h"

namespace edge {
namespace EDGE_ISA {

struct BlockMatMul {
  Status* create(const Info&) { return nullptr; }

  Status* compute(const Context& context) const {
    Tensor x, weight;
    EDGE_TRY(context.input(0, &x));
    EDGE_TRY(context.input(1, &weight));
    if (weight.type == ElementType::kUint8) return multiply_packed(context, x, weight);
    if (x.rank == 0 || weight.rank != 2 || x.last() != weight.dims[1]) {
      return Message("BlockMatMul: x has ").number(x.last()).text(" columns and weight rank ")
          .number(int64_t(weight.rank)).text(" with ").number(weight.last())
          .text(" columns; rank 2 and equal columns are required").error();
    }
    Tensor y = x;
    y.dims[y.rank - 1] = weight.dims[0];
    EDGE_TRY(context.output(0, &y));
    return with_weight_type("BlockMatMul", weight.type, [&](auto type) -> Status* {
      using W = decltype(type);
      const size_t n_size = size_t(weight.dims[0]), k_size = size_t(x.last());
      const MatMul<W> product = {
          x.as<float>(), k_size, weight.as<W>(), y.as<float>(), n_size,
          size_t(x.count(x.rank - 1)), n_size, k_size};
      return context.parallel(product.tasks(), [&](size_t task) { return product.run(task); });
    });
  }

 private:
  static Status* multiply_packed(const Context& context, const Tensor& x, const Tensor& weight) {
    Packed packed;
    EDGE_TRY(Packed::parse("BlockMatMul", weight, &packed));
    if (x.rank == 0 || packed.count != 1 || size_t(x.last()) != packed.columns) {
      return Message("BlockMatMul: x has ").number(x.last()).text(" columns and the packed weight ")
          .number(int64_t(packed.columns)).text(" in ").number(int64_t(packed.count))
          .text(" matrices; equal columns and one matrix are required").error();
    }
    Tensor y = x;
    y.dims[y.rank - 1] = int64_t(packed.rows);
    EDGE_TRY(context.output(0, &y));
    const size_t rows = size_t(x.count(x.rank - 1));
    if (rows == 0) return nullptr;
    Scratch memory(PackedX::bytes(packed, rows));
    if (memory.failed()) return Scratch::error();
    const PackedX quantised(packed, rows, memory.as<void>());
    EDGE_TRY(quantise_rows(context, packed, 0, x.as<float>(), packed.columns, quantised));
    const PackedMatMul product = {&packed, 0, 0, packed.rows, &quantised, 0, rows, y.as<float>(),
                                  packed.rows};
    return context.parallel(product.tasks(), [&](size_t task) { return product.run(task); });
  }
};

EDGE_KERNEL(block_matmul, BlockMatMul)

}  // namespace EDGE_ISA
}  // namespace edge
