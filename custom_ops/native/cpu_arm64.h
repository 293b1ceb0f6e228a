// Which products of bytes an ARM processor has: nothing goes in, the operating system's answer comes
// out. No instruction tells, for programs may not read the processor's own registers.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__APPLE__)
extern "C" int sysctlbyname(const char*, void*, size_t*, void*, size_t);
#elif defined(_WIN32)
extern "C" __declspec(dllimport) int IsProcessorFeaturePresent(unsigned long);
#endif

namespace edge {

struct Arm64Features {
  bool dotprod, i8mm;
};

#if defined(__APPLE__)

static inline Arm64Features arm64_features() {
  const auto has = [](const char* name) {
    int32_t value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  // Every Mac with such a processor has the first, though older systems have no name for it.
  return {true, has("hw.optional.arm.FEAT_I8MM")};
}

#elif defined(_WIN32)

static inline Arm64Features arm64_features() {
  constexpr unsigned long kDotprod = 43, kI8mm = 66;  // PF_ARM_V82_*_INSTRUCTIONS_AVAILABLE
  return {IsProcessorFeaturePresent(kDotprod) != 0, IsProcessorFeaturePresent(kI8mm) != 0};
}

#else

// Of Linux itself, since this library has no C library to ask.
static inline long system_call(long number, long a, const void* b, size_t c) {
  register long x0 __asm__("x0") = a;
  register const void* x1 __asm__("x1") = b;
  register size_t x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = 0;
  register long x8 __asm__("x8") = number;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3), "r"(x8) : "memory", "cc");
  return x0;
}

// The beginning of a file, closed with a zero; the empty text where it cannot be read.
template <size_t kSize>
static inline void read_beginning(const char* path, char (&text)[kSize]) {
  constexpr long kOpenAt = 56, kClose = 57, kRead = 63, kHere = -100, kCloseOnExec = 02000000;
  size_t size = 0;
  const long file = system_call(kOpenAt, kHere, path, kCloseOnExec);
  if (file >= 0) {
    long got;
    while ((got = system_call(kRead, file, text + size, kSize - 1 - size)) > 0) size += size_t(got);
    system_call(kClose, file, nullptr, 0);
  }
  text[size] = 0;
}

// Whether the rest of a line has `word` among those that blanks divide.
static inline bool has_word(const char* line, const char* word) {
  for (bool begins = false; *line && *line != '\n'; line++) {
    size_t n = 0;
    while (begins && word[n] && line[n] == word[n]) n++;
    if (begins && !word[n] && (line[n] == ' ' || line[n] == '\n' || !line[n])) return true;
    begins = *line == ' ';
  }
  return false;
}

// What the kernel's list of features has, the same for all processors of a machine.
static inline Arm64Features arm64_features() {
  char text[2048];
  read_beginning("/proc/cpuinfo", text);
  for (const char* at = text; *at; at++) {
    const char* name = "Features";
    const char* rest = at;
    while (*name && *rest == *name) rest++, name++;
    if (!*name) return {has_word(rest, "asimddp"), has_word(rest, "i8mm")};
  }
  return {};
}

#endif

}  // namespace edge
