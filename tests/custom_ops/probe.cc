// The vector functions that kernels are made of, over arrays, for test_native.py.
#include "native/int8_row.h"

#define PROBE extern "C" __attribute__((visibility("default")))

#define MAP(name, expression)                                    \
  PROBE void probe_##name(const float* in, float* out, size_t n) { \
    for (size_t i = 0; i < n; i += kLanes) {                     \
      const F32 x = load(in + i);                                \
      store(out + i, expression);                                \
    }                                                            \
  }

using namespace edge::EDGE_ISA;

PROBE void probe_lanes(uint64_t* out) { *out = kLanes; }

MAP(exp, exp(x))
MAP(tanh, tanh(x))
MAP(erf, erf(x))
MAP(sigmoid, sigmoid(x))
MAP(gelu, gelu(x))

PROBE void probe_from_half(const Half* in, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) store(out + i, load(in + i));
}

PROBE void probe_to_half(const float* in, Half* out, size_t n) {
  for (size_t i = 0; i < n; i += kLanes) store(out + i, load(in + i));
}

PROBE void probe_sum(const float* in, float* out) { *out = sum(load(in)); }
PROBE void probe_largest(const float* in, float* out) { *out = largest(load(in)); }

PROBE void probe_parts(const Half* in, float* out, size_t n) {
  store_part(out, load_part(in, n), n);
}

PROBE void probe_encode_rows(const float* from, Int8* to, size_t rows, size_t size) {
  for (size_t r = 0; r < rows; r++) encode_row(from + r * size, size, to + r * size);
}

PROBE void probe_decode_rows(const Int8* from, float* to, size_t rows, size_t size) {
  for (size_t r = 0; r < rows; r++, from += size, to += size) {
    const F32 scale = splat(row_scale(from));
    size_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i) * scale);
    if (i < size) store_part(to + i, load_part(from + i, size - i) * scale, size - i);
  }
}
