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

PROBE size_t probe_lanes() { return kLanes; }

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

PROBE float probe_sum(const float* in) { return sum(load(in)); }
PROBE float probe_largest(const float* in) { return largest(load(in)); }

PROBE void probe_parts(const Half* in, float* out, size_t n) {
  store_part(out, load_part(in, n), n);
}

PROBE void probe_encode_row(const float* from, size_t n, Int8* to) { encode_row(from, n, to); }

PROBE void probe_decode_row(const Int8* from, size_t n, float* to) {
  const F32 scale = splat(row_scale(from));
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i) * scale);
  if (i < n) store_part(to + i, load_part(from + i, n - i) * scale, n - i);
}
