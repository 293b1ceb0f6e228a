// The scratch pool: blocks from ONNX Runtime's own allocator, kept while the library has kernels.
#include "native/op_table.h"

namespace edge {
namespace {

constexpr size_t kAlignment = 64;
// One block serves a matrix multiplication's panels. Its pages cost memory only once touched.
constexpr size_t kPooledBytes = size_t(1) << 20;
constexpr size_t kSlots = 128;

void* slots_[kSlots];

template <size_t kSlot, class R, class... A>
R call(A... a) {
  return reinterpret_cast<R (*)(A...)>(api[kSlot])(a...);
}

void release(Status* status) {
  if (status) call<slots::ReleaseStatus, void>(status);
}

AllocatorHandle* allocator() {
  AllocatorHandle* handle = nullptr;
  release(call<slots::GetAllocatorWithDefaultOptions, Status*>(&handle));
  return handle;
}

void* allocate(size_t bytes) {
  AllocatorHandle* handle = allocator();
  void* memory = nullptr;
  if (handle) release(call<slots::AllocatorAlloc, Status*>(handle, bytes, &memory));
  return memory;
}

void release_memory(void* memory) {
  if (AllocatorHandle* handle = allocator()) {
    release(call<slots::AllocatorFree, Status*>(handle, memory));
  }
}

}  // namespace

ScratchBlock scratch_take(size_t bytes) {
  const bool pooled = bytes <= kPooledBytes;
  void* base = nullptr;
  for (size_t i = 0; pooled && !base && i < kSlots; i++) {
    if (__atomic_load_n(&slots_[i], __ATOMIC_RELAXED)) {
      base = __atomic_exchange_n(&slots_[i], nullptr, __ATOMIC_ACQ_REL);
    }
  }
  if (!base) base = allocate((pooled ? kPooledBytes : bytes) + kAlignment);
  const uintptr_t aligned = (uintptr_t(base) + kAlignment - 1) & ~uintptr_t(kAlignment - 1);
  return {base ? reinterpret_cast<void*>(aligned) : nullptr, base, pooled};
}

void scratch_give(ScratchBlock block) {
  for (size_t i = 0; block.pooled && i < kSlots; i++) {
    void* empty = nullptr;
    if (__atomic_compare_exchange_n(&slots_[i], &empty, block.base, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED)) {
      return;
    }
  }
  release_memory(block.base);
}

void scratch_drain() {
  for (void*& slot : slots_) {
    if (void* base = __atomic_exchange_n(&slot, nullptr, __ATOMIC_ACQ_REL)) release_memory(base);
  }
}

}  // namespace edge
