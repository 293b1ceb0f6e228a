// Which instruction sets this processor and its operating system let us use.
#pragma once
#include <stddef.h>
#include <stdint.h>

// The instruction sets that kernels are compiled for, worst first; compiler.py knows the flags.
// `scalar` is one float at a time, for comparison: no processor gets it without being asked.
// A byte ISA, X(name, base), is its base with other products of bytes: kernels that make none have
// no version for it, and the base's serve.
#if defined(__x86_64__)
#define EDGE_FULL_ISAS(X) X(scalar) X(sse2) X(avx2) X(avx512)
#define EDGE_BYTE_ISAS(X)
#elif defined(__aarch64__)
#include "native/cpu_arm64.h"
#define EDGE_FULL_ISAS(X) X(scalar) X(neon)
#define EDGE_BYTE_ISAS(X) X(neon_dot, neon) X(neon_i8mm, neon)
#else
#error "edgewright has kernels for x86_64 and aarch64"
#endif
#define EDGE_ISAS(X) EDGE_FULL_ISAS(X) EDGE_BYTE_ISAS(X)

namespace edge {

enum class Isa : int32_t {
#define EDGE_ISA_ENUM(name, ...) k_##name,
  EDGE_ISAS(EDGE_ISA_ENUM)
#undef EDGE_ISA_ENUM
  kCount,
};

constexpr const char* kIsaNames[] = {
#define EDGE_ISA_NAME(name, ...) #name,
    EDGE_ISAS(EDGE_ISA_NAME)
#undef EDGE_ISA_NAME
};

#if defined(__x86_64__)

struct CpuidResult {
  uint32_t eax, ebx, ecx, edx;
};

static inline CpuidResult cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidResult r;
  __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                   : "a"(leaf), "c"(subleaf));
  return r;
}

// Register state that the operating system saves: bits 1-2 SSE and AVX, 5-7 AVX-512.
static inline uint32_t saved_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static inline Isa best_isa() {
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kF16c = 1u << 29;         // 1: ecx
  constexpr uint32_t kAvx2 = 1u << 5;                                                // 7: ebx
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;            // F DQ BW VL
  constexpr uint32_t kVnni = 1u << 11;                                               // 7: ecx
  constexpr uint32_t kAvxState = 0x06, kAvx512State = 0xe6;
  if (cpuid(0, 0).eax < 7) return Isa::k_sse2;
  const CpuidResult one = cpuid(1, 0);
  const uint32_t needed = kFma | kOsxsave | kF16c;
  if ((one.ecx & needed) != needed) return Isa::k_sse2;
  const uint32_t state = saved_state();
  const CpuidResult seven = cpuid(7, 0);
  if ((state & kAvxState) != kAvxState || !(seven.ebx & kAvx2)) return Isa::k_sse2;
  const bool wide = (state & kAvx512State) == kAvx512State && (seven.ebx & kAvx512) == kAvx512;
  return wide && (seven.ecx & kVnni) ? Isa::k_avx512 : Isa::k_avx2;
}

#else

static inline Isa best_isa() {
  const Arm64Features has = arm64_features();
  return !has.dotprod ? Isa::k_neon : has.i8mm ? Isa::k_neon_i8mm : Isa::k_neon_dot;
}

#endif

}  // namespace edge
