// ONNX Runtime's C interface as far as our kernels use it: slots of its append-only function table
// and the layout of OrtCustomOp as of 1.18. tests/custom_ops/test_abi.py holds this file against
// the official header.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edge {

struct Status;
struct Value;
struct SessionOptions;
struct Domain;
struct KernelInfoHandle;
struct ContextHandle;
struct TypeInfo;
struct AllocatorHandle;

using Api = void* const;  // the function table

struct ApiBase {
  Api* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

// The oldest table that has every slot below and the whole of CustomOp.
constexpr uint32_t kApiVersion = 18;

enum class ElementType : int32_t {
  kUndefined = 0,
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
};

enum class ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2 };

struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, Api*, const KernelInfoHandle*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider_type)(const CustomOp*);
  ElementType (*get_input_type)(const CustomOp*, size_t);
  size_t (*get_input_type_count)(const CustomOp*);
  ElementType (*get_output_type)(const CustomOp*, size_t);
  size_t (*get_output_type_count)(const CustomOp*);
  void (*kernel_compute)(void*, ContextHandle*);
  void (*kernel_destroy)(void*);
  int32_t (*get_input_characteristic)(const CustomOp*, size_t);
  int32_t (*get_output_characteristic)(const CustomOp*, size_t);
  int32_t (*get_input_memory_type)(const CustomOp*, size_t);
  int32_t (*get_variadic_input_min_arity)(const CustomOp*);
  int32_t (*get_variadic_input_homogeneity)(const CustomOp*);
  int32_t (*get_variadic_output_min_arity)(const CustomOp*);
  int32_t (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, Api*, const KernelInfoHandle*, void**);
  Status* (*kernel_compute_v2)(void*, ContextHandle*);
  Status* (*infer_output_shape)(const CustomOp*, void*);
  int32_t (*get_start_version)(const CustomOp*);
  int32_t (*get_end_version)(const CustomOp*);
  size_t (*get_may_inplace)(int32_t**, int32_t**);
  void (*release_may_inplace)(int32_t*, int32_t*);
  size_t (*get_alias_map)(int32_t**, int32_t**);
  void (*release_alias_map)(int32_t*, int32_t*);
};

// EDGE_SLOT(name, slot, result, arguments): `slots::name` is the position in the table,
// `ort::name` calls it.
#define EDGE_SLOTS(EDGE_SLOT)                                                                     \
  EDGE_SLOT(CreateStatus, 0, Status*, ErrorCode, const char*)                                     \
  EDGE_SLOT(CreateCustomOpDomain, 26, Status*, const char*, Domain**)                             \
  EDGE_SLOT(CustomOpDomain_Add, 27, Status*, Domain*, const CustomOp*)                            \
  EDGE_SLOT(AddCustomOpDomain, 28, Status*, SessionOptions*, Domain*)                             \
  EDGE_SLOT(GetTensorMutableData, 51, Status*, Value*, void**)                                    \
  EDGE_SLOT(GetTensorElementType, 60, Status*, const TypeInfo*, ElementType*)                     \
  EDGE_SLOT(GetDimensionsCount, 61, Status*, const TypeInfo*, size_t*)                            \
  EDGE_SLOT(GetDimensions, 62, Status*, const TypeInfo*, int64_t*, size_t)                        \
  EDGE_SLOT(GetTensorTypeAndShape, 65, Status*, const Value*, TypeInfo**)                         \
  EDGE_SLOT(AllocatorAlloc, 75, Status*, AllocatorHandle*, size_t, void**)                        \
  EDGE_SLOT(AllocatorFree, 76, Status*, AllocatorHandle*, void*)                                  \
  EDGE_SLOT(GetAllocatorWithDefaultOptions, 78, Status*, AllocatorHandle**)                       \
  EDGE_SLOT(KernelInfoGetAttribute_float, 85, Status*, const KernelInfoHandle*, const char*,      \
            float*)                                                                               \
  EDGE_SLOT(KernelInfoGetAttribute_int64, 86, Status*, const KernelInfoHandle*, const char*,      \
            int64_t*)                                                                             \
  EDGE_SLOT(KernelInfoGetAttribute_string, 87, Status*, const KernelInfoHandle*, const char*,     \
            char*, size_t*)                                                                       \
  EDGE_SLOT(KernelContext_GetInput, 90, Status*, const ContextHandle*, size_t, const Value**)     \
  EDGE_SLOT(KernelContext_GetOutput, 91, Status*, ContextHandle*, size_t, const int64_t*, size_t, \
            Value**)                                                                              \
  EDGE_SLOT(ReleaseStatus, 93, void, Status*)                                                     \
  EDGE_SLOT(ReleaseTensorTypeAndShapeInfo, 99, void, TypeInfo*)                                   \
  EDGE_SLOT(HasSessionConfigEntry, 237, Status*, const SessionOptions*, const char*, int32_t*)    \
  EDGE_SLOT(GetSessionConfigEntry, 238, Status*, const SessionOptions*, const char*, char*,       \
            size_t*)                                                                              \
  EDGE_SLOT(KernelContext_ParallelFor, 274, Status*, const ContextHandle*,                        \
            void (*)(void*, size_t), size_t, size_t, void*)

namespace slots {
#define EDGE_SLOT(name, slot, ...) constexpr size_t name = slot;
EDGE_SLOTS(EDGE_SLOT)
#undef EDGE_SLOT
}  // namespace slots

extern Api* api;  // set when the library is registered

}  // namespace edge
