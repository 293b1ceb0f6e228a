// Steps go in, and ONNX Runtime for Windows takes them one by one; raw values come out:
//
//   ort_case.exe ONNXRUNTIME_DLL STEPS
//
// A step is a line of the file STEPS, its words parted by tabs:
//
//   option KEY VALUE                    of the session
//   library FILE                        of custom ops
//   profile PREFIX                      of the file that tells which nodes ran
//   open MODEL
//   tensor NAME TYPE FILE [SIZE ...]    an input: raw values of ONNX's element type
//   run OUTPUT ...                      on all inputs there are
//   pass OUTPUT INPUT                   becomes an input, instead of the one there was
//   choose OUTPUT INPUT                 where float32 OUTPUT is greatest becomes an int64 [1, 1]
//   write OUTPUT FILE                   at the end of FILE; stdout has its name, TYPE and sizes
//
// Stdout tells how many seconds `open` took, too. What goes wrong is one line on stderr.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#include "native/abi.h"

using namespace edge;

namespace {

struct Environment;
struct MemoryInfo;
struct Session;

// Slots that our kernels have no use for; tests/custom_ops/test_abi.py checks them, too.
#define LAB_SLOTS(LAB_SLOT)                                                                       \
  LAB_SLOT(GetErrorMessage, 2, const char*, const Status*)                                        \
  LAB_SLOT(CreateEnv, 3, Status*, int32_t, const char*, Environment**)                            \
  LAB_SLOT(CreateSessionFromArray, 8, Status*, const Environment*, const void*, size_t,           \
           const SessionOptions*, Session**)                                                      \
  LAB_SLOT(Run, 9, Status*, Session*, const void*, const char* const*, const Value* const*,       \
           size_t, const char* const*, size_t, Value**)                                           \
  LAB_SLOT(CreateSessionOptions, 10, Status*, SessionOptions**)                                   \
  LAB_SLOT(EnableProfiling, 14, Status*, SessionOptions*, const wchar_t*)                         \
  LAB_SLOT(SetIntraOpNumThreads, 24, Status*, SessionOptions*, int32_t)                           \
  LAB_SLOT(RegisterCustomOpsLibrary, 29, Status*, SessionOptions*, const char*, void**)           \
  LAB_SLOT(CreateTensorWithDataAsOrtValue, 49, Status*, const MemoryInfo*, void*, size_t,         \
           const int64_t*, size_t, ElementType, Value**)                                          \
  LAB_SLOT(CreateCpuMemoryInfo, 69, Status*, int32_t, int32_t, MemoryInfo**)                      \
  LAB_SLOT(ReleaseSession, 95, void, Session*)                                                    \
  LAB_SLOT(AddSessionConfigEntry, 130, Status*, SessionOptions*, const char*, const char*)

Api* table;

#define LAB_CALL(name, slot, result, ...)                                \
  template <class... A>                                                  \
  [[maybe_unused]] result name(A... a) {                                 \
    return reinterpret_cast<result (*)(__VA_ARGS__)>(table[slot])(a...); \
  }
LAB_SLOTS(LAB_CALL)
EDGE_SLOTS(LAB_CALL)

constexpr int32_t kErrorsOnly = 3, kDeviceAllocator = 0, kDefaultMemory = 0;
constexpr size_t kMostWords = 600, kMostValues = 600, kMostSizes = 8;
constexpr size_t kBytes[] = {0, 4, 1, 1, 2, 0, 4, 8, 0, 1, 2};  // of an element, by its type

[[noreturn]] void fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

void check(const char* what, Status* status) {
  if (status) fail(what, GetErrorMessage(status));
}

struct Bytes {
  char* data;
  size_t size;
};

Bytes read_file(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) fail(path, "cannot be opened");
  fseek(file, 0, SEEK_END);
  const size_t size = size_t(_ftelli64(file));
  rewind(file);
  char* data = static_cast<char*>(malloc(size + 1));  // a text ends with a zero
  if (!data || fread(data, 1, size, file) != size || fclose(file)) fail(path, "cannot be read");
  data[size] = 0;
  return {data, size};
}

// Values by name. They live until the process ends: there are few.
struct Values {
  const char* names[kMostValues];
  Value* values[kMostValues];
  size_t count;

  void set(const char* name, Value* value) {
    size_t at = 0;
    while (at < count && strcmp(names[at], name)) at++;
    if (at == kMostValues) fail(name, "there are too many values");
    names[at] = name;
    values[at] = value;
    if (at == count) count++;
  }

  Value* get(const char* name) const {
    for (size_t i = 0; i < count; i++) {
      if (!strcmp(names[i], name)) return values[i];
    }
    fail(name, "no run gave it");
  }
};

struct Shape {
  ElementType type;
  size_t rank, elements = 1;
  int64_t sizes[kMostSizes];
};

Shape shape_of(const char* name, const Value* value) {
  Shape shape{};
  TypeInfo* info = nullptr;
  check(name, GetTensorTypeAndShape(value, &info));
  check(name, GetTensorElementType(info, &shape.type));
  check(name, GetDimensionsCount(info, &shape.rank));
  if (shape.rank > kMostSizes) fail(name, "has too many dimensions");
  check(name, GetDimensions(info, shape.sizes, shape.rank));
  ReleaseTensorTypeAndShapeInfo(info);
  for (size_t i = 0; i < shape.rank; i++) shape.elements *= size_t(shape.sizes[i]);
  return shape;
}

void* data_of(const char* name, Value* value) {
  void* data = nullptr;
  check(name, GetTensorMutableData(value, &data));
  return data;
}

struct Runner {
  Environment* environment;
  SessionOptions* options;
  Session* session;
  Values inputs, outputs;

  void begin() {
    check("CreateEnv", CreateEnv(kErrorsOnly, "lab", &environment));
    check("CreateSessionOptions", CreateSessionOptions(&options));
    check("SetIntraOpNumThreads", SetIntraOpNumThreads(options, 1));
  }

  void open(const char* path) {
    const ULONGLONG began = GetTickCount64();
    const Bytes model = read_file(path);
    check(path, CreateSessionFromArray(environment, model.data, model.size, options, &session));
    printf("opened\t%.3f\n", double(GetTickCount64() - began) / 1000);
  }

  void tensor(const char* name, ElementType type, Bytes raw, const int64_t* sizes, size_t rank) {
    Value* value = nullptr;
    MemoryInfo* memory = nullptr;
    check(name, CreateCpuMemoryInfo(kDeviceAllocator, kDefaultMemory, &memory));
    check(name, CreateTensorWithDataAsOrtValue(memory, static_cast<void*>(raw.data), raw.size,
                                               sizes, rank, type, &value));
    inputs.set(name, value);
  }

  void read(char* const* words, size_t rank) {
    int64_t sizes[kMostSizes];
    if (rank > kMostSizes) fail(words[1], "has too many dimensions");
    for (size_t i = 0; i < rank; i++) sizes[i] = _atoi64(words[4 + i]);
    tensor(words[1], ElementType(atoi(words[2])), read_file(words[3]), sizes, rank);
  }

  void run(char* const* names, size_t count) {
    Value* found[kMostWords] = {};
    check("run", Run(session, nullptr, inputs.names, inputs.values, inputs.count, names, count,
                     static_cast<Value**>(found)));
    for (size_t i = 0; i < count; i++) outputs.set(names[i], found[i]);
  }

  void choose(const char* from, const char* to) {
    Value* value = outputs.get(from);
    const Shape shape = shape_of(from, value);
    auto* scores = static_cast<const float*>(data_of(from, value));
    auto* best = static_cast<int64_t*>(calloc(1, sizeof(int64_t)));
    const int64_t sizes[] = {1, 1};
    for (size_t i = 1; i < shape.elements; i++)
      if (scores[i] > scores[*best]) *best = int64_t(i);
    tensor(to, ElementType::kInt64, {reinterpret_cast<char*>(best), sizeof(*best)}, sizes, 2);
  }

  void write(const char* name, const char* path) {
    Value* value = outputs.get(name);
    const Shape shape = shape_of(name, value);
    const size_t type = size_t(shape.type), types = sizeof(kBytes) / sizeof(*kBytes);
    const size_t bytes = type < types ? kBytes[type] : 0;
    if (!bytes) fail(name, "is of a type that no case has");
    FILE* file = fopen(path, "ab");
    if (!file || fwrite(data_of(name, value), bytes, shape.elements, file) != shape.elements ||
        fclose(file))
      fail(path, "cannot be written");
    printf("%s\t%d", name, int32_t(shape.type));
    for (size_t i = 0; i < shape.rank; i++) printf("\t%d", int32_t(shape.sizes[i]));
    printf("\n");
  }

  void step(char** words, size_t count) {
    const auto is = [&](const char* verb, size_t needed) {
      return !strcmp(words[0], verb) && count >= needed;
    };
    wchar_t wide[MAX_PATH] = {};
    void* handle = nullptr;
    if (is("option", 3)) return check(words[1], AddSessionConfigEntry(options, words[1], words[2]));
    if (is("library", 2))
      return check(words[1], RegisterCustomOpsLibrary(options, words[1], &handle));
    if (is("profile", 2) && MultiByteToWideChar(CP_UTF8, 0, words[1], -1, wide, MAX_PATH))
      return check(words[1], EnableProfiling(options, static_cast<const wchar_t*>(wide)));
    if (is("open", 2)) return open(words[1]);
    if (is("tensor", 4)) return read(words, count - 4);
    if (is("run", 2)) return run(words + 1, count - 1);
    if (is("pass", 3)) return inputs.set(words[2], outputs.get(words[1]));
    if (is("choose", 3)) return choose(words[1], words[2]);
    if (is("write", 3)) return write(words[1], words[2]);
    fail(words[0], "no such step, or not all of it");
  }
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) fail("usage", "ort_case.exe ONNXRUNTIME_DLL STEPS");
  HMODULE module = LoadLibraryExA(arguments[1], nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
  auto* entry = reinterpret_cast<void*>(GetProcAddress(module, "OrtGetApiBase"));
  if (entry) table = reinterpret_cast<const ApiBase* (*)()>(entry)()->get_api(kApiVersion);
  if (!table) fail(arguments[1], "cannot be loaded, or is no ONNX Runtime of 1.18 or newer");
  static Runner runner;  // begins as zeros
  runner.begin();
  for (char* line = read_file(arguments[2]).data; *line;) {
    char* next = line + strcspn(line, "\n");
    if (*next) *next++ = 0;
    char* words[kMostWords];
    size_t many = 0;
    for (char* word = strtok(line, "\t"); word && many < kMostWords; word = strtok(nullptr, "\t"))
      words[many++] = word;
    if (many) runner.step(static_cast<char**>(words), many);
    line = next;
  }
  if (runner.session) ReleaseSession(runner.session);  // it writes the profile
  return 0;
}
