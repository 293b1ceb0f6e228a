// Reads and checks the inputs of one StateSpaceDual call, and says where a head's numbers lie.
// Graphs come from packages that nobody has vouched for: whatever leaves here is in bounds.
#pragma once
#include "native/checks.h"

namespace edge {
namespace EDGE_ISA {
namespace state_space {

struct Inputs {
  Tensor x, dt, a, b, c, skip, state, length;
  int64_t batch, seq, heads, groups, size, width;  // B, S, H, G, N, P

  Status* read(const Context& context, int64_t group_count) {
    Tensor* const all[] = {&x, &dt, &a, &b, &c, &skip, &state, &length};
    for (size_t i = 0; i < 8; i++) EDGE_TRY(context.input(i, all[i]));
    const Checks check("StateSpaceDual");
    EDGE_TRY(check.rank("x", x, 3));
    EDGE_TRY(check.rank("state", state, 4));
    batch = x.dims[0];
    seq = x.dims[1];
    heads = state.dims[1];
    size = state.dims[2];
    width = state.dims[3];
    groups = group_count;
    if (heads < 1 || size < 1 || width < 1) {
      return check.message("the state has an empty dimension").error();
    }
    if (heads % groups) {
      return check.message("the state has ").number(heads).text(" heads, not a multiple of the ")
          .number(groups).text(" groups").error();
    }
    EDGE_TRY(check.equal("x", 2, x, product(heads, width)));
    EDGE_TRY(check.equal("state", 0, state, batch));
    EDGE_TRY(check.shape("dt", dt, batch, seq, heads));
    EDGE_TRY(check.shape("a", a, heads));
    EDGE_TRY(check.shape("b", b, batch, seq, product(groups, size)));
    EDGE_TRY(check.shape("c", c, batch, seq, product(groups, size)));
    EDGE_TRY(check.shape("skip", skip, heads));
    return check.lengths(length, batch, seq);
  }

  int64_t heads_of_group() const { return heads / groups; }
  int64_t state_floats() const { return size * width; }  // of one head
  int64_t row_length(int64_t row) const { return length.as<int64_t>()[row]; }
};

// One row from step 0 on, as seen by one head. Steps are `x_stride` and so on apart.
struct Head {
  Head() = default;
  const float *x, *dt, *b, *c, *state;
  float *y, *state_out;
  float a, skip;
  size_t steps, size, width;
  size_t x_stride, dt_stride, b_stride;  // y lies like x, c like b

  Head(const Inputs& in, int64_t row, int64_t head, float* out, float* states)
      : a(in.a.as<float>()[head]),
        skip(in.skip.as<float>()[head]),
        steps(size_t(in.row_length(row))),
        size(size_t(in.size)),
        width(size_t(in.width)),
        x_stride(size_t(in.heads * in.width)),
        dt_stride(size_t(in.heads)),
        b_stride(size_t(in.groups * in.size)) {
    const int64_t step = row * in.seq, group = head / in.heads_of_group();
    const int64_t at = step * int64_t(x_stride) + head * in.width;
    x = in.x.as<float>() + at;
    y = out + at;
    dt = in.dt.as<float>() + step * in.heads + head;
    b = in.b.as<float>() + step * int64_t(b_stride) + group * in.size;
    c = in.c.as<float>() + step * int64_t(b_stride) + group * in.size;
    const int64_t own = (row * in.heads + head) * in.state_floats();
    state = in.state.as<float>() + own;
    state_out = states + own;
  }
};

}  // namespace state_space
}  // namespace EDGE_ISA
}  // namespace edge
