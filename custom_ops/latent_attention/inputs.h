// Reads and checks the inputs of one LatentAttention call.
#pragma once
#include "native/int8_row.h"
#include "native/packed.h"
#include "native/paged_inputs.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

struct Attributes {
  int64_t num_heads = 0, window = 0;
  float scale = 0;

  Status* read(const Info& info) {
    EDGE_TRY(info.integer("num_heads", &num_heads));
    EDGE_TRY(info.integer("window", &window));
    EDGE_TRY(info.real("scale", &scale));
    if (num_heads < 1) {
      return Message("LatentAttention: num_heads is ").number(num_heads).text(", not positive")
          .error();
    }
    if (window < 0) {
      return Message("LatentAttention: window is ").number(window).text(", not 0 or more").error();
    }
    // Wider than any context, and sums with positions stay far from overflowing.
    if (window > int64_t(1) << 48) window = 0;
    return nullptr;
  }
};

struct Inputs : PagedInputs {
  Tensor query, latent, key_rope, up, cache;
  Packed packed;  // `up`, where it is
  int64_t heads, rank_dim, rope_dim, nope_dim, value_dim;

  Inputs() : PagedInputs("LatentAttention") {}

  int64_t width() const { return rank_dim + rope_dim; }        // of a token in the cache
  int64_t query_width() const { return nope_dim + rope_dim; }  // of a head
  int64_t up_rows() const { return nope_dim + value_dim; }      // of a head
  bool is_packed() const { return up.type == ElementType::kUint8; }
  const float* query_at(int64_t row, int64_t step, int64_t head) const {
    return query.as<float>() + ((row * seq + step) * heads + head) * query_width();
  }

  Status* read(const Context& context, const Attributes& attributes) {
    Tensor* const all[] = {&query, &latent, &key_rope, &up, &cache, &table, &start, &length};
    for (size_t i = 0; i < 8; i++) EDGE_TRY(context.input(i, all[i]));
    EDGE_TRY(rank_of_tensors());
    batch = query.dims[0];
    seq = query.dims[1];
    heads = attributes.num_heads;
    rank_dim = latent.dims[2];
    rope_dim = key_rope.dims[2];
    pool = cache.dims[0];
    page = cache.dims[1];
    EDGE_TRY(check_shapes());
    return check_rows();
  }

 private:
  Status* rank_of_tensors() const {
    EDGE_TRY(rank("query", query, 3));
    EDGE_TRY(rank("latent", latent, 3));
    EDGE_TRY(rank("key_rope", key_rope, 3));
    if (!is_packed()) EDGE_TRY(rank("up", up, 2));
    return rank("cache", cache, 3);
  }

  // [rows, rank_dim] whichever way it is kept.
  Status* check_up(int64_t* rows) {
    if (!is_packed()) {
      *rows = up.dims[0];
      return equal("up", 1, up, rank_dim);
    }
    EDGE_TRY(Packed::parse(op, up, &packed));
    *rows = int64_t(packed.rows);
    const bool plain = !packed.has_column_scales && !packed.has_column_order;
    if (packed.count == 1 && int64_t(packed.columns) == rank_dim && plain) return nullptr;
    return message("the packed weight has ").number(int64_t(packed.count)).text(" matrices of ")
        .number(int64_t(packed.columns)).text(plain ? " columns" :
        " columns, with scales or an order").text("; one of ").number(rank_dim)
        .text(" columns, without scales or an order, is required").error();
  }

  Status* check_shapes() {
    constexpr int64_t kMost = int64_t(1) << 31;  // sums and products of two stay within int64
    if (page < 1 || rank_dim < 1 || rope_dim < 1) {
      return message("a page, a latent or the rotated part of a key is empty").error();
    }
    if (rank_dim > kMost || rope_dim > kMost) {
      return message("latents have ").number(rank_dim).text(" columns and rotated keys ")
          .number(rope_dim).text("; at most 2^31 are possible").error();
    }
    EDGE_TRY(tokens("latent", latent, rank_dim));
    EDGE_TRY(tokens("key_rope", key_rope, rope_dim));
    EDGE_TRY(equal("cache", 2, cache, width()));
    int64_t all_rows;
    EDGE_TRY(check_up(&all_rows));
    EDGE_TRY(by_head("dimension 2 of query", query.dims[2]));
    EDGE_TRY(by_head(is_packed() ? "the number of rows of up" : "dimension 0 of up", all_rows));
    nope_dim = query.dims[2] / heads - rope_dim;
    value_dim = all_rows / heads - nope_dim;
    if (nope_dim < 1 || value_dim < 1) {
      return message("a head has ").number(query_width()).text(" query columns, ").number(rope_dim)
          .text(" of them rotated, and ").number(up_rows())
          .text(" rows of up: nothing is left for its keys or its values").error();
    }
    const int64_t least = int64_t(kLeastInt8Row);
    if (cache.type == ElementType::kInt8 && (rank_dim < least || rope_dim < least)) {
      return message("latents have ").number(rank_dim).text(" columns and rotated keys ")
          .number(rope_dim).text("; an int8 cache needs 8 or more of each").error();
    }
    return nullptr;
  }

  Status* by_head(const char* what, int64_t size) const {
    if (size % heads == 0) return nullptr;
    return message(what).text(" is ").number(size).text(", not a multiple of num_heads, ")
        .number(heads).error();
  }
};

}  // namespace latent
}  // namespace EDGE_ISA
}  // namespace edge
