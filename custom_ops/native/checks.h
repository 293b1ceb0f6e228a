// What kernels check of their tensors' shapes, and what they say of them.
#pragma once
#include "native/kernel.h"

namespace edge {
namespace EDGE_ISA {

// a * b, or -1, which no dimension is, where that overflows.
static inline int64_t product(int64_t a, int64_t b) {
  int64_t result;
  return __builtin_mul_overflow(a, b, &result) ? -1 : result;
}

struct Checks {
  const char* op;  // begins every message

  explicit Checks(const char* name) : op(name) {}

  Message message(const char* text) const { return Message(op).text(": ").text(text); }

  Status* rank(const char* name, const Tensor& tensor, size_t wanted) const {
    if (tensor.rank == wanted) return nullptr;
    return message(name).text(" has ").number(int64_t(tensor.rank)).text(" dimensions, not ")
        .number(int64_t(wanted)).error();
  }

  Status* equal(const char* name, size_t axis, const Tensor& tensor, int64_t wanted) const {
    if (tensor.dims[axis] == wanted) return nullptr;
    return message("dimension ").number(int64_t(axis)).text(" of ").text(name).text(" is ")
        .number(tensor.dims[axis]).text(", not ").number(wanted).error();
  }

  // Every dimension of a tensor: shape("x", x, batch, seq, width).
  template <class... D>
  Status* shape(const char* name, const Tensor& tensor, D... wanted) const {
    EDGE_TRY(rank(name, tensor, sizeof...(wanted)));
    const int64_t dims[] = {int64_t(wanted)...};
    for (size_t axis = 0; axis < sizeof...(wanted); axis++) {
      EDGE_TRY(equal(name, axis, tensor, dims[axis]));
    }
    return nullptr;
  }

  Status* positive(const char* name, int64_t value) const {
    if (value > 0) return nullptr;
    return message(name).text(" is ").number(value).text(", not positive").error();
  }

  // The real tokens of each row: none beyond the call's steps.
  Status* lengths(const Tensor& length, int64_t batch, int64_t seq) const {
    EDGE_TRY(shape("length", length, batch));
    for (int64_t row = 0; row < batch; row++) {
      const int64_t count = length.as<int64_t>()[row];
      if (count >= 0 && count <= seq) continue;
      return message("length of row ").number(row).text(" is ").number(count)
          .text(", not between 0 and the ").number(seq).text(" steps of this call").error();
    }
    return nullptr;
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
