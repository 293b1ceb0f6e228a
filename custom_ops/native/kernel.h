// What a kernel.cc sees of ONNX Runtime: attributes, tensors, errors, scratch memory and threads.
//
// Each kernel.cc is compiled once for every instruction set, with EDGE_ISA as the namespace that
// keeps the copies apart; so nothing inline may live outside that namespace.
#pragma once
#include "native/abi.h"
#include "native/op_table.h"

namespace edge {
namespace EDGE_ISA {

namespace ort {
#define EDGE_SLOT(name, slot, result, ...)                            \
  template <class... A>                                               \
  static inline result name(A... a) {                                 \
    return reinterpret_cast<result (*)(__VA_ARGS__)>(api[slot])(a...); \
  }
EDGE_SLOTS(EDGE_SLOT)
#undef EDGE_SLOT
}  // namespace ort

#define EDGE_TRY(expression)                                  \
  do {                                                        \
    if (Status* edge_status = (expression)) return edge_status; \
  } while (0)

// A one-line error: `return Message("BlockMatMul: x has ").number(k).text(" columns").error();`
class Message {
 public:
  explicit Message(const char* start) { text(start); }

  Message& text(const char* s) {
    while (*s && length_ < sizeof(buffer_) - 1) buffer_[length_++] = *s++;
    buffer_[length_] = 0;
    return *this;
  }

  Message& number(int64_t value) {
    char digits[24];
    char* p = digits + sizeof(digits) - 1;
    *p = 0;
    uint64_t rest = value < 0 ? 0 - uint64_t(value) : uint64_t(value);
    do *--p = char('0' + rest % 10);
    while (rest /= 10);
    if (value < 0) *--p = '-';
    return text(p);
  }

  Status* error() const {
    return ort::CreateStatus(ErrorCode::kInvalidArgument, static_cast<const char*>(buffer_));
  }

 private:
  size_t length_ = 0;
  char buffer_[400];
};

static inline bool equal(const char* a, const char* b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

constexpr size_t kMaxRank = 8;

struct Tensor {
  void* data = nullptr;
  ElementType type = ElementType::kUndefined;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t last() const { return rank ? dims[rank - 1] : 1; }
  // Elements, or elements of the first `n` dimensions. ONNX Runtime has checked the product.
  int64_t count(size_t n) const {
    int64_t product = 1;
    for (size_t i = 0; i < n; i++) product *= dims[i];
    return product;
  }
  int64_t count() const { return count(rank); }
};

// Attributes, while a session is being made.
class Info {
 public:
  explicit Info(const KernelInfoHandle* handle) : handle_(handle) {}

  Status* integer(const char* name, int64_t* value) const {
    return ort::KernelInfoGetAttribute_int64(handle_, name, value);
  }
  Status* real(const char* name, float* value) const {
    return ort::KernelInfoGetAttribute_float(handle_, name, value);
  }
  // `capacity` counts the closing zero.
  Status* text(const char* name, char* value, size_t capacity) const {
    return ort::KernelInfoGetAttribute_string(handle_, name, value, &capacity);
  }

 private:
  const KernelInfoHandle* handle_;
};

// Memory for one thread's intermediate results. Blocks come from a pool that the library keeps
// while it has kernels, so a step costs neither an allocation nor a page fault.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : block_(scratch_take(bytes)) {}
  ~Scratch() {
    if (block_.data) scratch_give(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool failed() const { return block_.data == nullptr; }
  // 64-byte aligned.
  template <class T>
  T* as() const {
    return static_cast<T*>(block_.data);
  }
  static Status* error() {
    return ort::CreateStatus(ErrorCode::kFail,
                             static_cast<const char*>("edgewright: out of memory"));
  }

 private:
  ScratchBlock block_;
};

class Context {
 public:
  explicit Context(ContextHandle* handle) : handle_(handle) {}

  Status* input(size_t index, Tensor* tensor) const {
    const Value* value = nullptr;
    EDGE_TRY(ort::KernelContext_GetInput(handle_, index, &value));
    TypeInfo* info = nullptr;
    EDGE_TRY(ort::GetTensorTypeAndShape(value, &info));
    Status* status = describe(info, tensor);
    ort::ReleaseTensorTypeAndShapeInfo(info);
    EDGE_TRY(status);
    return ort::GetTensorMutableData(const_cast<Value*>(value), &tensor->data);
  }

  // Fills `data` from the `rank` and `dims` already in `tensor`.
  Status* output(size_t index, Tensor* tensor) const {
    Value* value = nullptr;
    const int64_t* dims = tensor->dims;
    EDGE_TRY(ort::KernelContext_GetOutput(handle_, index, dims, tensor->rank, &value));
    return ort::GetTensorMutableData(value, &tensor->data);
  }

  // Calls `task(index)` for 0..total-1 on ONNX Runtime's threads, each index claimed by the next
  // free thread, and returns when all are done. A task reports an error by returning a Status*;
  // one of those errors comes back.
  template <class Task>
  Status* parallel(size_t total, const Task& task) const {
    struct Shared {
      const Task* task;
      Status* error;
    } shared = {&task, nullptr};
    void (*run)(void*, size_t) = [](void* p, size_t index) {
      auto* s = static_cast<Shared*>(p);
      Status* error = (*s->task)(index);
      if (error) error = __atomic_exchange_n(&s->error, error, __ATOMIC_ACQ_REL);
      if (error) ort::ReleaseStatus(error);
    };
    if (total == 1) {
      run(&shared, 0);
    } else if (total > 1) {
      const ContextHandle* handle = handle_;
      EDGE_TRY(ort::KernelContext_ParallelFor(handle, run, total, size_t(0),
                                              static_cast<void*>(&shared)));
    }
    return shared.error;
  }

 private:
  static Status* describe(const TypeInfo* info, Tensor* tensor) {
    EDGE_TRY(ort::GetTensorElementType(info, &tensor->type));
    EDGE_TRY(ort::GetDimensionsCount(info, &tensor->rank));
    if (tensor->rank > kMaxRank) {
      return Message("edgewright: a tensor has ").number(int64_t(tensor->rank))
          .text(" dimensions, at most 8 are supported").error();
    }
    return ort::GetDimensions(info, static_cast<int64_t*>(tensor->dims), tensor->rank);
  }

  ContextHandle* handle_;
};

// Ends a kernel.cc: the class has `Status* create(const Info&)`, called once on a value-initialised
// object, and `Status* compute(const Context&) const`, called from any thread.
#define EDGE_KERNEL(function, Class)                                                           \
  static_assert(__is_trivially_destructible(Class), "kernels are freed, not destroyed");       \
  static Status* function##_create(void* memory, const KernelInfoHandle* info) {              \
    return (new (edge::EDGE_ISA::At{memory}) Class())->create(Info(info));                     \
  }                                                                                            \
  static Status* function##_compute(void* kernel, ContextHandle* context) {                   \
    return static_cast<const Class*>(kernel)->compute(Context(context));                       \
  }                                                                                            \
  extern const KernelTable function##_kernel;                                                 \
  const KernelTable function##_kernel = {sizeof(Class), function##_create, function##_compute};

struct At {
  void* memory;
};

}  // namespace EDGE_ISA
}  // namespace edge

// Placement new without <new>; it takes our own type, so it cannot clash with the standard one.
inline void* operator new(size_t, edge::EDGE_ISA::At at) noexcept { return at.memory; }
