// Reads and checks the inputs of one CachedAttention call. Graphs and tables come from packages
// that nobody has vouched for: whatever leaves here is in bounds.
#pragma once
#include "native/int8_row.h"
#include "native/paged_inputs.h"

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

struct Inputs : PagedInputs {
  Tensor query, key, value, key_cache, value_cache, sinks;
  int64_t heads, kv_heads, group, dim, v_dim;

  Inputs() : PagedInputs("CachedAttention") {}

  Status* read(const Context& context, const Attributes& attributes) {
    Tensor* const all[] = {&query, &key,   &value,  &key_cache, &value_cache,
                           &table, &start, &length, &sinks};
    for (size_t i = 0; i < 9; i++) EDGE_TRY(context.input(i, all[i]));
    EDGE_TRY(rank("query", query, 3));
    EDGE_TRY(rank("key", key, 3));
    EDGE_TRY(rank("value", value, 3));
    EDGE_TRY(rank("key_cache", key_cache, 4));
    EDGE_TRY(rank("value_cache", value_cache, 4));
    EDGE_TRY(rank("sinks", sinks, 1));
    batch = query.dims[0];
    seq = query.dims[1];
    heads = attributes.num_heads;
    kv_heads = key_cache.dims[1];
    pool = key_cache.dims[0];
    page = key_cache.dims[2];
    dim = key_cache.dims[3];
    v_dim = value_cache.dims[3];
    EDGE_TRY(check_shapes());
    return check_rows();
  }

 private:
  static constexpr int64_t kLeast = int64_t(kLeastInt8Row);

  Status* check_shapes() {
    if (kv_heads < 1 || page < 1 || dim < 1 || v_dim < 1) {
      return Message("CachedAttention: a cache has an empty dimension").error();
    }
    if (key_cache.type == ElementType::kInt8 && (dim < kLeast || v_dim < kLeast)) {
      return Message("CachedAttention: an int8 cache has rows of ").number(dim).text(" and ")
          .number(v_dim).text(" values; at least ").number(kLeast).text(" are required").error();
    }
    if (heads % kv_heads) {
      return Message("CachedAttention: num_heads is ").number(heads)
          .text(", not a multiple of the cache's ").number(kv_heads).text(" heads").error();
    }
    group = heads / kv_heads;
    EDGE_TRY(equal("query", 2, query, product(heads, dim)));
    EDGE_TRY(tokens("key", key, product(kv_heads, dim)));
    EDGE_TRY(tokens("value", value, product(kv_heads, v_dim)));
    for (size_t axis = 0; axis < 3; axis++) {
      EDGE_TRY(equal("value_cache", axis, value_cache, key_cache.dims[axis]));
    }
    return sinks.dims[0] == 1 ? nullptr : equal("sinks", 0, sinks, heads);
  }
};

}  // namespace attention
}  // namespace EDGE_ISA
}  // namespace edge
