// Caches in pages: where positions lie.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edge {
namespace EDGE_ISA {

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// One row's part of a paged cache, or one head's of it: position p is at slot p % page of page
// table[p / page].
template <class C>
struct Strip {
  const C* base;  // its part of page 0
  int64_t page_stride;
  const int64_t* table;
  int64_t page;
  int64_t dim;

  // Where each of `count` positions lies. The last one is repeated up to `padded`.
  void find(int64_t from, int64_t count, int64_t padded, const C** rows) const {
    int64_t done = 0;
    while (done < count) {
      const int64_t slot = (from + done) % page;
      const C* p = base + table[(from + done) / page] * page_stride + slot * dim;
      const int64_t run = page - slot < count - done ? page - slot : count - done;
      for (int64_t i = 0; i < run; i++) rows[done + i] = p + i * dim;
      done += run;
    }
    for (; done < padded; done++) rows[done] = rows[count - 1];
  }
};

}  // namespace EDGE_ISA
}  // namespace edge
