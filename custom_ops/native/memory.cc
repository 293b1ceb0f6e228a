// The memory functions that compilers call by themselves: the library links against nothing, so
// that one file serves every C library.
#include <stddef.h>
#include <stdint.h>

// Hidden, so that they serve this library alone. Kernels move large blocks with vectors of their
// own; what arrives here is small.
#define EDGE_C_FUNCTION extern "C" __attribute__((visibility("hidden"), used))

EDGE_C_FUNCTION void* memcpy(void* to, const void* from, size_t bytes) {
  auto* out = static_cast<uint8_t*>(to);
  auto* in = static_cast<const uint8_t*>(from);
  for (; bytes >= 16; bytes -= 16, out += 16, in += 16) __builtin_memcpy_inline(out, in, 16);
  while (bytes--) *out++ = *in++;
  return to;
}

EDGE_C_FUNCTION void* memmove(void* to, const void* from, size_t bytes) {
  auto* out = static_cast<uint8_t*>(to);
  auto* in = static_cast<const uint8_t*>(from);
  if (out <= in || out >= in + bytes) {
    while (bytes--) *out++ = *in++;
  } else {
    while (bytes--) out[bytes] = in[bytes];
  }
  return to;
}

EDGE_C_FUNCTION void* memset(void* to, int value, size_t bytes) {
  auto* out = static_cast<uint8_t*>(to);
  const uint64_t eight = uint64_t(uint8_t(value)) * 0x0101010101010101u;
  for (; bytes >= 8; bytes -= 8, out += 8) __builtin_memcpy_inline(out, &eight, 8);
  while (bytes--) *out++ = uint8_t(value);
  return to;
}
