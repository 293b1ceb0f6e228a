// Reads and checks the inputs of one CachedAttention call. Graphs and tables come from packages
// that nobody has vouched for: whatever leaves here is in bounds.
#pragma once
#include "native/kernel.h"

namespace edge {
namespace EDGE_ISA {
namespace attention {

struct Attributes {
  int64_t num_heads = 0, window = 0;
  float scale = 0, softcap = 0;

  Status* read(const Info& info) {
    EDGE_TRY(info.integer("num_heads", &num_heads));
    EDGE_TRY(info.integer("window", &window));
    EDGE_TRY(info.real("scale", &scale));
    EDGE_TRY(info.real("softcap", &softcap));
    if (num_heads < 1) {
      return Message("CachedAttention: num_heads is ").number(num_heads).text(", not positive")
          .error();
    }
    if (window < 0) {
      return Message("CachedAttention: window is ").number(window).text(", not 0 or more").error();
    }
    if (!(softcap >= 0)) return Message("CachedAttention: softcap is negative or no number").error();
    // Wider than any context, and sums with positions stay far from overflowing.
    if (window > int64_t(1) << 48) window = 0;
    return nullptr;
  }
};

struct Inputs {
  Tensor query, key, value, key_cache, value_cache, table, start, length, sinks;
  int64_t batch, seq, heads, kv_heads, group, dim, v_dim, page;

  Status* read(const Context& context, const Attributes& attributes) {
    Tensor* const all[] = {&query, &key,   &value,  &key_cache, &value_cache,
                           &table, &start, &length, &sinks};
    for (size_t i = 0; i < 9; i++) EDGE_TRY(context.input(i, all[i]));
    EDGE_TRY(rank("query", query, 3));
    EDGE_TRY(rank("key", key, 3));
    EDGE_TRY(rank("value", value, 3));
    EDGE_TRY(rank("key_cache", key_cache, 4));
    EDGE_TRY(rank("value_cache", value_cache, 4));
    EDGE_TRY(rank("table", table, 2));
    EDGE_TRY(rank("start", start, 1));
    EDGE_TRY(rank("length", length, 1));
    EDGE_TRY(rank("sinks", sinks, 1));
    batch = query.dims[0];
    seq = query.dims[1];
    heads = attributes.num_heads;
    kv_heads = key_cache.dims[1];
    page = key_cache.dims[2];
    dim = key_cache.dims[3];
    v_dim = value_cache.dims[3];
    EDGE_TRY(check_shapes());
    for (int64_t row = 0; row < batch; row++) EDGE_TRY(check_row(row));
    return nullptr;
  }

  int64_t row_start(int64_t row) const { return start.as<int64_t>()[row]; }
  int64_t row_length(int64_t row) const { return length.as<int64_t>()[row]; }
  const int64_t* row_table(int64_t row) const {
    return table.as<int64_t>() + row * table.dims[1];
  }

 private:
  static Status* rank(const char* name, const Tensor& tensor, size_t wanted) {
    if (tensor.rank == wanted) return nullptr;
    return Message("CachedAttention: ").text(name).text(" has ").number(int64_t(tensor.rank))
        .text(" dimensions, not ").number(int64_t(wanted)).error();
  }

  static Status* equal(const char* name, size_t axis, const Tensor& tensor, int64_t wanted) {
    if (tensor.dims[axis] == wanted) return nullptr;
    return Message("CachedAttention: dimension ").number(int64_t(axis)).text(" of ").text(name)
        .text(" is ").number(tensor.dims[axis]).text(", not ").number(wanted).error();
  }

  // a * b, or -1, which no dimension is, where that overflows.
  static int64_t product(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) ? -1 : result;
  }

  Status* check_shapes() {
    if (kv_heads < 1 || page < 1 || dim < 1 || v_dim < 1) {
      return Message("CachedAttention: a cache has an empty dimension").error();
    }
    if (heads % kv_heads) {
      return Message("CachedAttention: num_heads is ").number(heads)
          .text(", not a multiple of the cache's ").number(kv_heads).text(" heads").error();
    }
    group = heads / kv_heads;
    EDGE_TRY(equal("query", 2, query, product(heads, dim)));
    EDGE_TRY(check_tokens("key", key, product(kv_heads, dim)));
    EDGE_TRY(check_tokens("value", value, product(kv_heads, v_dim)));
    for (size_t axis = 0; axis < 3; axis++) {
      EDGE_TRY(equal("value_cache", axis, value_cache, key_cache.dims[axis]));
    }
    EDGE_TRY(equal("table", 0, table, batch));
    EDGE_TRY(equal("start", 0, start, batch));
    EDGE_TRY(equal("length", 0, length, batch));
    return sinks.dims[0] == 1 ? nullptr : equal("sinks", 0, sinks, heads);
  }

  Status* check_tokens(const char* name, const Tensor& tensor, int64_t width) const {
    EDGE_TRY(equal(name, 0, tensor, batch));
    EDGE_TRY(equal(name, 1, tensor, seq));
    return equal(name, 2, tensor, width);
  }

  // Looks at the table entries that the row's tokens need; the others may hold anything.
  Status* check_row(int64_t row) const {
    const int64_t first = row_start(row), count = row_length(row), pages = table.dims[1];
    if (count < 0 || count > seq) {
      return Message("CachedAttention: length of row ").number(row).text(" is ").number(count)
          .text(", not between 0 and the ").number(seq).text(" steps of this call").error();
    }
    if (first < 0 || first > (int64_t(1) << 48) || first + count > saturated_capacity()) {
      return Message("CachedAttention: row ").number(row).text(" starts at ").number(first)
          .text(" and adds ").number(count).text(" tokens; its table has room for ")
          .number(saturated_capacity()).error();
    }
    const int64_t used = (first + count + page - 1) / page;
    for (int64_t i = 0; i < used; i++) {
      const int64_t entry = table.as<int64_t>()[row * pages + i];
      if (entry < 0 || entry >= key_cache.dims[0]) {
        return Message("CachedAttention: page ").number(i).text(" of row ").number(row)
            .text(" is table entry ").number(entry).text("; the cache has ")
            .number(key_cache.dims[0]).text(" pages").error();
      }
    }
    return nullptr;
  }

  int64_t saturated_capacity() const {
    const int64_t all = product(table.dims[1], page);
    return all < 0 ? INT64_MAX : all;
  }
};

}  // namespace attention
}  // namespace EDGE_ISA
}  // namespace edge
