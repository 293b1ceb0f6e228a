// The experts' weights, and what multiplies a group's tokens with one of them: stored as they are, or
// packed, in which case the tokens' rows are quantised first.
#pragma once
#include "native/matmul.h"
#include "native/packed_matmul.h"
#include "routed_experts/routing.h"

namespace edge {
namespace EDGE_ISA {

// [experts, n_size, k_size].
template <class W>
struct StoredStack {
  static constexpr bool kQuantises = false;
  using Product = MatMul<W>;

  const W* data;
  size_t n_size, k_size;

  // `x` and `y` begin with the group's first row.
  Product product(const Group& group, const float* x, float* y) const {
    return {x, k_size, data + group.expert * n_size * k_size, y, n_size, group.size, n_size, k_size};
  }
};

// Cuts a product alike whatever its matrix is made of: gate and up may differ in that.
struct RowsProduct {
  PackedMatMul all;

  static constexpr size_t kRows = 128;  // of the matrix, for each task

  size_t tasks() const { return all.m_size == 0 ? 0 : (all.n_size + kRows - 1) / kRows; }

  PackedMatMul::Part part(size_t task) const {
    const size_t n = task * kRows, rest = all.n_size - n;
    return {0, all.m_size, n, rest < kRows ? rest : kRows};
  }

  Status* run(size_t task) const {
    const auto cut = part(task);
    PackedMatMul some = all;
    some.n_first += cut.n;
    some.n_size = cut.columns;
    some.y += cut.n;
    for (size_t i = 0; i < some.tasks(); i++) EDGE_TRY(some.run(i));
    return nullptr;
  }
};

struct PackedStack {
  static constexpr bool kQuantises = true;
  using Product = RowsProduct;

  const Packed* packed;
  const PackedX* x;  // a row for each pair, in expert order

  // Row `i` of x, for one expert.
  void take(size_t expert, size_t i, const float* row) const {
    quantise_row(*packed, expert, row, *x, i);
  }

  // Whether another stack may use the same x.
  bool quantises_like(const Packed& other) const {
    return packed->block == other.block && plain_columns(*packed) && plain_columns(other);
  }

  Product product(const Group& group, const float*, float* y) const {
    const size_t n_size = packed->rows;
    return {{packed, group.expert, 0, n_size, x, group.first, group.size, y, n_size}};
  }

 private:
  static bool plain_columns(const Packed& p) { return !p.has_column_scales && !p.has_column_order; }
};

}  // namespace EDGE_ISA
}  // namespace edge
