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
    if (weight.type == ElementType::kUint8) return multiply_packed(context);
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
  static Status* multiply_packed(const Context& context) {
    return with_packed_inputs("BlockMatMul", context, 1, [&](const Packed& packed,
                                                             const PackedX& x, float* y) {
      const PackedMatMul product = {&packed, 0, 0, packed.rows, &x, 0, x.rows, y, packed.rows};
      return context.parallel(product.tasks(), [&](size_t task) { return product.run(task); });
    });
  }
};

EDGE_KERNEL(block_matmul, BlockMatMul)

}  // namespace EDGE_ISA
}  // namespace edge
