// The library's entry point: hands ONNX Runtime every op of ops.inc, in the version for the best
// instruction set of this processor, or for a lower one that the session asks for.
#include "native/cpu.h"
#include "native/op_table.h"

// The compiler driver writes ops.inc from the specs: EDGE_OPS(X) with X(function) for each op,
// EDGE_BYTE_OPS(X) for those that byte ISAs have a version of, and `kDescriptions`, `kOpCount`,
// `kEntryCount` (ops times their bindings) in the same order.
#include "ops.inc"

#if defined(_WIN32)
#define EDGE_EXPORT extern "C" __declspec(dllexport)
#else
#define EDGE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define EDGE_TRY(expression)                                    \
  do {                                                          \
    if (Status* edge_status = (expression)) return edge_status; \
  } while (0)

namespace edge {

Api* api = nullptr;

namespace {

#define EDGE_SLOT(name, slot, result, ...)       \
  template <class... A>                          \
  result name(A... a) {                          \
    return reinterpret_cast<result (*)(__VA_ARGS__)>(api[slot])(a...); \
  }
EDGE_SLOTS(EDGE_SLOT)
#undef EDGE_SLOT

}  // namespace

#define EDGE_DECLARE(function) extern const KernelTable function##_kernel;
#define EDGE_POINT(function) &function##_kernel,
#define EDGE_ISA_KERNELS(isa)                                          \
  namespace isa {                                                      \
  EDGE_OPS(EDGE_DECLARE)                                               \
  static const KernelTable* const kKernels[] = {EDGE_OPS(EDGE_POINT)}; \
  }
#define EDGE_BYTE_ISA_KERNELS(isa, base)                               \
  namespace isa {                                                      \
  using namespace base;                                                \
  EDGE_BYTE_OPS(EDGE_DECLARE)                                          \
  static const KernelTable* const kKernels[] = {EDGE_OPS(EDGE_POINT)}; \
  }
EDGE_FULL_ISAS(EDGE_ISA_KERNELS)
EDGE_BYTE_ISAS(EDGE_BYTE_ISA_KERNELS)

namespace {

#define EDGE_ISA_TABLE(isa, ...) isa::kKernels,
#define EDGE_INDEX(function) k_##function,
#define EDGE_IN_PLACE(function) in_place<k_##function>,
const KernelTable* const* const kKernelsByIsa[] = {EDGE_ISAS(EDGE_ISA_TABLE)};

constexpr size_t kIsaCount = size_t(Isa::kCount);

// One kernel that ONNX Runtime may choose: an op with its type variables bound.
struct Entry : CustomOp {
  const OpDescription* op;
  const int32_t* types;
  const KernelTable* kernel;
};

struct Registration {
  Domain* domain;
  Entry entries[kEntryCount];
};

// ONNX Runtime keeps pointers to these for as long as the library is loaded.
Registration registrations[kIsaCount];
int32_t registering;

enum { EDGE_OPS(EDGE_INDEX) };

// ONNX Runtime asks without saying which op it asks about.
template <size_t kOp>
size_t in_place(int32_t** inputs, int32_t** outputs) {
  *inputs = const_cast<int32_t*>(kDescriptions[kOp].in_place_inputs);
  *outputs = const_cast<int32_t*>(kDescriptions[kOp].in_place_outputs);
  return kDescriptions[kOp].in_place;
}

size_t (*const kInPlace[])(int32_t**, int32_t**) = {EDGE_OPS(EDGE_IN_PLACE)};

const Entry& entry(const CustomOp* op) { return *static_cast<const Entry*>(op); }

int32_t live_kernels;

// A kernel's memory begins with its table, so that compute and destroy need nothing else.
struct alignas(16) KernelHeader {
  const KernelTable* table;
};

Status* create_kernel(const CustomOp* op, Api*, const KernelInfoHandle* info, void** kernel) {
  const KernelTable* table = entry(op).kernel;
  AllocatorHandle* allocator = nullptr;
  EDGE_TRY(GetAllocatorWithDefaultOptions(&allocator));
  void* memory = nullptr;
  EDGE_TRY(AllocatorAlloc(allocator, sizeof(KernelHeader) + table->bytes, &memory));
  if (!memory) return CreateStatus(ErrorCode::kFail, "edgewright: out of memory");
  static_cast<KernelHeader*>(memory)->table = table;
  if (Status* status = table->create(static_cast<KernelHeader*>(memory) + 1, info)) {
    if (Status* second = AllocatorFree(allocator, memory)) ReleaseStatus(second);
    return status;
  }
  __atomic_add_fetch(&live_kernels, 1, __ATOMIC_ACQ_REL);
  *kernel = memory;
  return nullptr;
}

Status* compute(void* kernel, ContextHandle* context) {
  auto* header = static_cast<KernelHeader*>(kernel);
  return header->table->compute(header + 1, context);
}

void destroy_kernel(void* kernel) {
  AllocatorHandle* allocator = nullptr;
  Status* status = GetAllocatorWithDefaultOptions(&allocator);
  if (!status) status = AllocatorFree(allocator, kernel);
  if (status) ReleaseStatus(status);
  if (__atomic_sub_fetch(&live_kernels, 1, __ATOMIC_ACQ_REL) == 0) scratch_drain();
}

void fill(Entry* e, const OpDescription* op, size_t binding, const KernelTable* kernel) {
  e->op = op;
  e->types = op->types + binding * (op->inputs + op->outputs);
  e->kernel = kernel;
  e->version = kApiVersion;
  e->get_name = [](const CustomOp* o) { return entry(o).op->name; };
  e->get_execution_provider_type = [](const CustomOp*) -> const char* { return nullptr; };
  e->get_input_type = [](const CustomOp* o, size_t i) { return ElementType(entry(o).types[i]); };
  e->get_input_type_count = [](const CustomOp* o) { return entry(o).op->inputs; };
  e->get_output_type = [](const CustomOp* o, size_t i) {
    return ElementType(entry(o).types[entry(o).op->inputs + i]);
  };
  e->get_output_type_count = [](const CustomOp* o) { return entry(o).op->outputs; };
  e->kernel_destroy = destroy_kernel;
  e->get_input_characteristic = [](const CustomOp*, size_t) { return 0; };  // required
  e->get_output_characteristic = [](const CustomOp*, size_t) { return 0; };
  e->get_input_memory_type = [](const CustomOp*, size_t) { return 0; };  // the provider's own
  e->get_variadic_input_min_arity = [](const CustomOp*) { return 1; };
  e->get_variadic_input_homogeneity = [](const CustomOp*) { return 1; };
  e->get_variadic_output_min_arity = [](const CustomOp*) { return 1; };
  e->get_variadic_output_homogeneity = [](const CustomOp*) { return 1; };
  e->create_kernel_v2 = create_kernel;
  e->kernel_compute_v2 = compute;
  e->get_start_version = [](const CustomOp*) { return 1; };
  e->get_end_version = [](const CustomOp*) { return INT32_MAX; };
  if (op->in_place == 0) return;
  e->get_may_inplace = kInPlace[op - kDescriptions];
  e->release_may_inplace = [](int32_t*, int32_t*) {};  // the indices are static
}

Status* make_domain(Registration* r, const KernelTable* const* kernels) {
  Domain* domain = nullptr;
  EDGE_TRY(CreateCustomOpDomain("ai.edgewright", &domain));
  Entry* next = r->entries;
  for (size_t i = 0; i < kOpCount; i++) {
    for (size_t binding = 0; binding < kDescriptions[i].bindings; binding++, next++) {
      fill(next, &kDescriptions[i], binding, kernels[i]);
      EDGE_TRY(CustomOpDomain_Add(domain, next));
    }
  }
  r->domain = domain;
  return nullptr;
}

bool equal(const char* a, const char* b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

// The session option `edgewright.isa` lowers the choice; sweeps hold every version together so.
Status* choose_isa(const SessionOptions* options, Isa* isa) {
  constexpr const char* kKey = "edgewright.isa";
  *isa = best_isa();
  int32_t asked = 0;
  EDGE_TRY(HasSessionConfigEntry(options, kKey, &asked));
  if (!asked) return nullptr;
  char name[16];
  size_t size = sizeof(name);
  EDGE_TRY(GetSessionConfigEntry(options, kKey, static_cast<char*>(name), &size));
  for (size_t i = 0; i <= size_t(*isa); i++) {
    if (equal(name, kIsaNames[i])) {
      *isa = Isa(i);
      return nullptr;
    }
  }
  return CreateStatus(ErrorCode::kInvalidArgument,
                      "edgewright: session option edgewright.isa names an instruction set that "
                      "this processor or this library does not have");
}

}  // namespace
}  // namespace edge

EDGE_EXPORT edge::Status* RegisterCustomOps(edge::SessionOptions* options,
                                            const edge::ApiBase* base) {
  using namespace edge;
  Api* table = base->get_api(kApiVersion);
  if (!table) return nullptr;  // ONNX Runtime older than 1.18: the function bodies run
  __atomic_store_n(&api, table, __ATOMIC_RELEASE);
  Isa isa;
  EDGE_TRY(choose_isa(options, &isa));
  Registration* r = &registrations[size_t(isa)];
  while (__atomic_exchange_n(&registering, 1, __ATOMIC_ACQUIRE)) {
  }
  Status* status = r->domain ? nullptr : make_domain(r, kKernelsByIsa[size_t(isa)]);
  __atomic_store_n(&registering, 0, __ATOMIC_RELEASE);
  EDGE_TRY(status);
  return AddCustomOpDomain(options, r->domain);
}

// The instruction set that a session gets when it asks for none.
EDGE_EXPORT const char* edgewright_isa() { return edge::kIsaNames[size_t(edge::best_isa())]; }

#if defined(_WIN32)
// Without a C runtime nobody else provides the DLL's entry point; there is nothing to do in it.
extern "C" int DllMainCRTStartup(void*, unsigned, void*) { return 1; }
#endif
