// Reads and checks the inputs of one GatedDelta call, and says where a head's numbers lie. Graphs
// come from packages that nobody has vouched for: whatever leaves here is in bounds.
#pragma once
#include "native/checks.h"

namespace edge {
namespace EDGE_ISA {
namespace gated_delta {

struct Inputs {
  Tensor query, key, value, decay, beta, state, length;
  int64_t batch, seq, heads, key_heads, size, width;  // B, S, H, Hk, Dk, Dv
  bool by_channel;  // decay is [B, S, H*Dk]

  Status* read(const Context& context, int64_t num_heads) {
    Tensor* const all[] = {&query, &key, &value, &decay, &beta, &state, &length};
    for (size_t i = 0; i < 7; i++) EDGE_TRY(context.input(i, all[i]));
    const Checks check("GatedDelta");
    EDGE_TRY(check.rank("key", key, 3));
    EDGE_TRY(check.rank("decay", decay, 3));
    EDGE_TRY(check.rank("state", state, 4));
    batch = key.dims[0];
    seq = key.dims[1];
    heads = num_heads;
    size = state.dims[2];
    width = state.dims[3];
    if (size < 1 || width < 1) return check.message("the state has an empty dimension").error();
    EDGE_TRY(check.shape("state", state, batch, heads, size, width));
    key_heads = key.dims[2] / size;
    if (key.dims[2] % size || key_heads < 1 || heads % key_heads) {
      return check.message("keys of ").number(key.dims[2]).text(" values are no heads of ")
          .number(size).text(" that divide the ").number(heads).text(" value heads").error();
    }
    EDGE_TRY(check.shape("query", query, batch, seq, key.dims[2]));
    EDGE_TRY(check.shape("value", value, batch, seq, product(heads, width)));
    by_channel = size > 1 && decay.dims[2] != heads;
    EDGE_TRY(check.shape("decay", decay, batch, seq, by_channel ? product(heads, size) : heads));
    EDGE_TRY(check.shape("beta", beta, batch, seq, heads));
    return check.lengths(length, batch, seq);
  }

  int64_t heads_of_key() const { return heads / key_heads; }
  int64_t state_floats() const { return size * width; }  // of one head
  int64_t row_length(int64_t row) const { return length.as<int64_t>()[row]; }
};

// One row from step 0 on, as seen by one value head. Steps are `key_stride` and so on apart.
struct Head {
  const float *query, *key, *value, *decay, *beta, *state;
  float *y, *state_out;
  float scale;
  bool by_channel;
  size_t steps, size, width;
  size_t key_stride, value_stride, decay_stride, beta_stride;  // query lies like key, y like value

  Head() = default;
  Head(const Inputs& in, float query_scale, int64_t row, int64_t head, float* out, float* states)
      : scale(query_scale),
        by_channel(in.by_channel),
        steps(size_t(in.row_length(row))),
        size(size_t(in.size)),
        width(size_t(in.width)),
        key_stride(size_t(in.key_heads * in.size)),
        value_stride(size_t(in.heads * in.width)),
        decay_stride(size_t(in.decay.dims[2])),
        beta_stride(size_t(in.heads)) {
    const int64_t step = row * in.seq;
    const int64_t keys = step * int64_t(key_stride) + head / in.heads_of_key() * in.size;
    query = in.query.as<float>() + keys;
    key = in.key.as<float>() + keys;
    const int64_t values = step * int64_t(value_stride) + head * in.width;
    value = in.value.as<float>() + values;
    y = out + values;
    const int64_t channels = in.decay.dims[2] / in.heads;
    decay = in.decay.as<float>() + step * int64_t(decay_stride) + head * channels;
    beta = in.beta.as<float>() + step * in.heads + head;
    const int64_t own = (row * in.heads + head) * in.state_floats();
    state = in.state.as<float>() + own;
    state_out = states + own;
  }
};

}  // namespace gated_delta
}  // namespace EDGE_ISA
}  // namespace edge
