// GatedMatMul: y = activation(x @ gate.T) * (x @ up.T), both weights rows of one packed matrix
// [gate; up]. A task makes the same columns of both products and then their y, in its place.
#include "native/math.h"
#include "native/packed_matmul.h"

namespace edge {
namespace EDGE_ISA {

enum class Activation : int32_t { kSilu, kGelu, kGeluTanh, kCount };

template <Activation kActivation>
static inline F32 activate(F32 gate) {
  if constexpr (kActivation == Activation::kSilu) return silu(gate);
  if constexpr (kActivation == Activation::kGelu) return gelu(gate);
  return gelu_tanh(gate);
}

// gate[n] becomes activation(gate[n]) * up[n].
template <Activation kActivation>
EDGE_OUT_OF_LINE static void gate_row(float* gate, const float* up, size_t size) {
  for (size_t n = 0; n < size; n += kLanes) {
    const F32 g = load_some(gate + n, size - n), u = load_some(up + n, size - n);
    store_some(gate + n, activate<kActivation>(g) * u, size - n);
  }
}

struct GatedProduct {
  const Packed* packed;
  const PackedX* x;
  Activation activation;
  float* y;  // [rows, inner]

  static constexpr size_t kTasks = 16;    // enough that threads which start late still find work
  static constexpr size_t kMostRows = 512;  // of x, so that up's part stays in the cache

  size_t inner() const { return packed->rows / 2; }

  // Whole strips, where both halves begin with one: about 1/kTasks of the columns, or as many as
  // are worth a thread's attention; the many rows of a prompt share what is unpacked once.
  size_t width() const {
    constexpr size_t kBytes = size_t(128) << 10, kBlock = 128;
    if (part(0, 0, 0, x->rows, y, 0).blocked()) return kBlock;
    const size_t most = kBytes / (packed->section_bytes / packed->rows + 1);
    const size_t columns = inner() / kTasks < most ? inner() / kTasks : most;
    return (columns / kStripRows + 1) * kStripRows;
  }

  size_t column_tasks() const { return (inner() + width() - 1) / width(); }

  // Narrow products are cut along the x rows too; each part unpacks the weights again.
  size_t row_tasks() const {
    constexpr size_t kMinimum = 64;
    const size_t needed = (x->rows + kMostRows - 1) / kMostRows;
    const size_t wanted = (kTasks + column_tasks() - 1) / column_tasks();
    const size_t possible = x->rows / kMinimum;
    const size_t cut = wanted < possible ? wanted : possible;
    return cut < needed ? needed : cut;
  }

  size_t tasks() const { return column_tasks() * row_tasks(); }

  Status* run(size_t task) const {
    const size_t n = task / row_tasks() * width(), cut = task % row_tasks();
    const size_t columns = inner() - n < width() ? inner() - n : width();
    const size_t m = x->rows * cut / row_tasks(), rows = x->rows * (cut + 1) / row_tasks() - m;
    Scratch scratch(rows * columns * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    float* gate = y + m * inner() + n;
    float* up = scratch.as<float>();
    EDGE_TRY(part(n, columns, m, rows, gate, inner()).run_whole());
    EDGE_TRY(part(inner() + n, columns, m, rows, up, columns).run_whole());
    for (size_t r = 0; r < rows; r++) gate_one(gate + r * inner(), up + r * columns, columns);
    return nullptr;
  }

 private:
  PackedMatMul part(size_t n, size_t columns, size_t m, size_t rows, float* to,
                    size_t stride) const {
    return {packed, 0, n, columns, x, m, rows, to, stride};
  }

  void gate_one(float* gate, const float* up, size_t size) const {
    switch (activation) {
      case Activation::kSilu: return gate_row<Activation::kSilu>(gate, up, size);
      case Activation::kGelu: return gate_row<Activation::kGelu>(gate, up, size);
      default: return gate_row<Activation::kGeluTanh>(gate, up, size);
    }
  }
};

struct GatedMatMul {
  Activation activation;

  Status* create(const Info& info) {
    constexpr const char* kNames[] = {"silu", "gelu", "gelu_tanh"};
    constexpr size_t kCount = size_t(Activation::kCount);
    char name[16];
    EDGE_TRY(info.text("activation", name, sizeof(name)));
    size_t i = 0;
    while (i < kCount && !equal(name, kNames[i])) i++;
    if (i == kCount) {
      return Message("GatedMatMul: unknown activation ").text(name)
          .text("; silu, gelu or gelu_tanh is required").error();
    }
    activation = Activation(i);
    return nullptr;
  }

  Status* compute(const Context& context) const {
    return with_packed_inputs("GatedMatMul", context, 2, [&](const Packed& packed,
                                                             const PackedX& x, float* y) {
      const GatedProduct product = {&packed, &x, activation, y};
      return context.parallel(product.tasks(), [&](size_t task) { return product.run(task); });
    });
  }
};

EDGE_KERNEL(gated_matmul, GatedMatMul)

}  // namespace EDGE_ISA
}  // namespace edge
