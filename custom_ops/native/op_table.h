// What the kernels, compiled once per instruction set, give to the registry, and the scratch pool
// that the registry gives to them.
#pragma once
#include "native/abi.h"

namespace edge {

struct KernelTable {
  size_t bytes;
  Status* (*create)(void* memory, const KernelInfoHandle*);
  Status* (*compute)(void* kernel, ContextHandle*);
};

// One op as its spec.py describes it; the compiler driver writes these into ops.inc.
struct OpDescription {
  const char* name;
  size_t inputs;
  size_t outputs;
  size_t bindings;           // ways to choose the op's type variables
  const int32_t* types;      // [bindings][inputs + outputs]
  size_t in_place;
  const int32_t* in_place_inputs;
  const int32_t* in_place_outputs;
};

struct ScratchBlock {
  void* data;  // 64-byte aligned; null when there is no memory
  void* base;
  bool pooled;
};

// Both thread-safe.
ScratchBlock scratch_take(size_t bytes);
void scratch_give(ScratchBlock block);
// Frees what the pool holds, when the last kernel has gone.
void scratch_drain();

}  // namespace edge
