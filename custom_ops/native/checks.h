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
};

}  // namespace EDGE_ISA
}  // namespace edge
