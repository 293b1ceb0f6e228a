// LatentAttention: writes the new latents into the cache, in place where input and output are the
// same memory, then attends, each row of the batch in the cheaper form. Absorbed, queries go through
// `up` first, all heads attend to the latents themselves, and the result goes through `up`; expanded,
// each head's keys and values are made of the latents, a block at a time.
#include "latent_attention/absorb.h"
#include "latent_attention/expand.h"
#include "latent_attention/plan.h"
#include "latent_attention/splits.h"
#include "native/in_place.h"

namespace edge {
namespace EDGE_ISA {
namespace latent {

constexpr double kInlineCost = 1 << 17;  // multiplications; below that, waking threads costs more
constexpr int64_t kAppendSteps = 64;
constexpr int64_t kTokenGroup = 32;      // that share each pass over a head's part of `up`

template <class Up, class C>
class Call {
 public:
  Call(const Context& context, const Attributes& attributes, const Inputs& in, float* output,
       C* cache)
      : context_(context), attributes_(attributes), in_(in), up_(in), output_(output),
        cache_(cache) {}

  Status* run() {
    if (in_.batch == 0 || in_.seq == 0) return nullptr;
    EDGE_TRY(append_all());
    Scratch rows(size_t(in_.batch) * sizeof(RowPlan));
    if (rows.failed()) return Scratch::error();
    plan_.rows = rows.as<RowPlan>();
    plan_.make(in_, attributes_.window);
    // Absorbed queries, which the attended latents take the place of; and the token of each.
    const int64_t floats = product(product(plan_.tokens, in_.heads), in_.width());
    if (floats < 0 || floats >= int64_t(1) << 60) return Scratch::error();
    const int64_t origins = round_up(plan_.tokens, 8);  // whole cache lines
    Scratch tokens(size_t(floats) * sizeof(float) + size_t(origins) * sizeof(int64_t));
    // A split unit's partial results after the other's; each has room for the largest.
    const int64_t room = plan_.split_units * plan_.partial_rows;
    Scratch partial(size_t(Splits::floats(room, in_.rank_dim)) * sizeof(float));
    if (tokens.failed() || partial.failed()) return Scratch::error();
    origin_ = tokens.as<int64_t>();
    absorbed_ = reinterpret_cast<float*>(origin_ + origins);
    splits_.use(partial.as<float>(), room, in_.rank_dim);
    for (int64_t b = 0; b < in_.batch; b++) {
      const RowPlan& row = plan_.rows[b];
      for (int64_t s = 0; row.is_absorbed && s < in_.row_length(b); s++) {
        origin_[row.first_token + s] = b * in_.seq + s;
      }
    }
    EDGE_TRY(absorb_all());
    EDGE_TRY(spread(plan_.tasks, plan_.cost, [this](int64_t i) { return attend(i); }));
    return finish_all();
  }

 private:
  template <class Task>
  Status* spread(int64_t total, double cost, const Task& task) const {
    if (cost > kInlineCost) {
      return context_.parallel(size_t(total), [&](size_t i) { return task(int64_t(i)); });
    }
    for (int64_t i = 0; i < total; i++) EDGE_TRY(task(i));
    return nullptr;
  }

  Strip<C> strip(int64_t b) const {
    return {cache_, in_.page * in_.width(), in_.row_table(b), in_.page, in_.width()};
  }

  // The new tokens go into the cache; padded steps become zeros.
  Status* append_all() const {
    const int64_t parts = (in_.seq + kAppendSteps - 1) / kAppendSteps;
    const double cost = double(in_.batch) * double(in_.seq) * double(in_.width());
    return spread(in_.batch * parts, cost, [&](int64_t i) -> Status* {
      const int64_t b = i / parts, from = i % parts * kAppendSteps;
      append(b, from, smaller(from + kAppendSteps, in_.seq));
      return nullptr;
    });
  }

  void append(int64_t b, int64_t from, int64_t to) const {
    const Strip<C> tokens = strip(b);
    for (int64_t s = from; s < to; s++) {
      const int64_t at = b * in_.seq + s;
      if (s < in_.row_length(b)) {
        const C* found;
        tokens.find(in_.row_start(b) + s, 1, 1, &found);
        C* token = const_cast<C*>(found);
        narrow(in_.latent.as<float>() + at * in_.rank_dim, in_.rank_dim, token);
        narrow(in_.key_rope.as<float>() + at * in_.rope_dim, in_.rope_dim, token + in_.rank_dim);
      } else {
        const int64_t width = in_.heads * in_.value_dim;
        for (int64_t i = 0; i < width; i++) output_[at * width + i] = 0.0f;
      }
    }
  }

  float* absorbed(int64_t token, int64_t head) const {
    return absorbed_ + (token * in_.heads + head) * in_.width();
  }

  Status* absorb_all() const {
    const int64_t groups = (plan_.tokens + kTokenGroup - 1) / kTokenGroup;
    const double cost = double(plan_.tokens) * double(in_.heads) * double(in_.nope_dim) *
                        double(in_.rank_dim);
    // Groups of one head follow one another: they find its weights in the cache.
    return spread(in_.heads * groups, cost, [&](int64_t i) {
      const int64_t from = i % groups * kTokenGroup;
      return absorb_group(i / groups, from, smaller(kTokenGroup, plan_.tokens - from));
    });
  }

  Status* absorb_group(int64_t head, int64_t from, int64_t count) const {
    const int64_t own = round_up(count * in_.nope_dim, 16);
    const int64_t unpacked = absorb_floats(up_, in_.nope_dim, count);
    Scratch scratch(size_t(own + unpacked) * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    float* queries = scratch.as<float>();
    for (int64_t i = 0; i < count; i++) {
      const float* query = in_.query_at(0, origin_[from + i], head);
      float* rotated = absorbed(from + i, head) + in_.rank_dim;
      for (int64_t d = 0; d < in_.nope_dim; d++) queries[i * in_.nope_dim + d] = query[d];
      for (int64_t d = 0; d < in_.rope_dim; d++) rotated[d] = query[in_.nope_dim + d];
    }
    absorb(queries, in_.nope_dim, count, up_, first_row(head), in_.nope_dim, absorbed(from, head),
           in_.heads * in_.width(), queries + own);
    return nullptr;
  }

  int64_t first_row(int64_t head) const { return head * in_.up_rows(); }

  Status* attend(int64_t task) const {
    const int64_t b = plan_.row_of(task);
    const RowPlan& row = plan_.rows[b];
    const int64_t split = (task - row.first_task) % row.splits;
    const int64_t unit = (task - row.first_task) / row.splits;
    const int64_t heads = row.is_absorbed ? 1 : in_.heads;
    // The last steps see most keys: they go first, so that no thread is left with a long one.
    const int64_t block = row.blocks - 1 - unit / heads;
    Rows rows = {};
    rows.first = block * row.block_rows;
    rows.count = smaller(row.rows - rows.first, row.block_rows);
    rows.group = row.is_absorbed ? in_.heads : 1;
    rows.start = in_.row_start(b);
    rows.window = attributes_.window;
    rows.scale = attributes_.scale;
    if (!row.is_absorbed) return attend_expanded(b, unit % heads, rows);
    return attend_absorbed(b, rows, block, split);
  }

  Status* attend_absorbed(int64_t b, Rows rows, int64_t block, int64_t split) const {
    const RowPlan& row = plan_.rows[b];
    float* queries = absorbed_ + (row.first_token * in_.heads + rows.first) * in_.width();
    rows.query = queries;
    rows.query_stride = rows.dim = in_.width();
    rows.v_dim = in_.rank_dim;
    const int64_t own = Rows::floats(rows.count, rows.v_dim);
    const int64_t converted = Tokens<C>::floats(in_.rank_dim, in_.rope_dim);
    Scratch scratch(size_t(own + kTileScores + converted) * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    float* scores = scratch.as<float>() + own;
    rows.use(scratch.as<float>());

    int64_t low = rows.oldest(0), high = rows.position(rows.count - 1) + 1;
    const int64_t share = round_up((high - low + row.splits - 1) / row.splits, kBlockKeys);
    low = smaller(low + split * share, high);
    high = smaller(low + share, high);
    const Strip<C> strip = this->strip(b);
    const C* places[2][kBlockKeys];
    const C **found = places[0], **next = places[1];
    if (low < high) {
      strip.find(low, smaller(kBlockKeys, high - low), kBlockKeys, next);
      fetch(next);
    }
    for (int64_t from = low; from < high; from += kBlockKeys) {
      const C** rest = found;
      found = next;
      next = rest;
      const int64_t count = smaller(kBlockKeys, high - from);
      const int64_t after = smaller(from + kBlockKeys, high - 1);  // in range at the end too
      strip.find(after, smaller(kBlockKeys, high - after), kBlockKeys, next);
      Tokens<C> tokens{found, count, in_.rank_dim, in_.rope_dim, scores + kTileScores};
      const float* keys[kBlockKeys];
      tokens.places(keys);
      const auto ahead = reinterpret_cast<const char* const*>(next);
      attend_block(rows, {from, count, keys, keys, ahead, sizeof(C)}, tokens, scores);
    }
    if (row.splits == 1) {
      give(rows, queries, in_.width());
    } else {
      splits_.keep(rows, first_place(row, block) + split * rows.count);
    }
    return nullptr;
  }

  // The first block of a task, which no block before it has fetched.
  void fetch(const C* const* rows) const {
    const int64_t bytes = in_.width() * int64_t(sizeof(C));
    for (int64_t j = 0; j < kBlockKeys; j++) {
      const char* row = reinterpret_cast<const char*>(rows[j]);
      for (int64_t i = 0; i < bytes; i += 64) prefetch(row + i);
    }
  }

  // One head's keys and values, made of the latents a chunk at a time for all rows of the task.
  Status* attend_expanded(int64_t b, int64_t head, Rows rows) const {
    rows.query = in_.query_at(b, rows.first, head);
    rows.query_stride = in_.heads * in_.query_width();
    rows.dim = in_.query_width();
    rows.v_dim = in_.value_dim;
    const int64_t own = Rows::floats(rows.count, rows.v_dim) + kTileScores;
    const int64_t made = own + Expanded::floats(in_);
    Scratch scratch(size_t(made + up_.floats(in_.up_rows())) * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    rows.use(scratch.as<float>() + kTileScores);
    const Expanded expanded(in_, scratch.as<float>() + own);
    const auto* up = up_.rows(first_row(head), in_.up_rows(), scratch.as<float>() + made);

    const int64_t low = rows.oldest(0), high = rows.position(rows.count - 1) + 1;
    for (int64_t from = low; from < high; from += kChunkKeys) {
      const int64_t chunk = smaller(kChunkKeys, high - from);
      expand(in_, strip(b), up, from, chunk, expanded);
      for (int64_t at = 0; at < chunk; at += kBlockKeys) {
        const float* keys[kBlockKeys];
        const float* values[kBlockKeys];
        const int64_t count = smaller(kBlockKeys, chunk - at);
        expanded.places(at, count, keys, values);
        const auto ahead = reinterpret_cast<const char* const*>(keys);  // they are near already
        Ready ready;
        attend_block(rows, {from + at, count, keys, values, ahead, sizeof(float)}, ready,
                     scratch.as<float>());
      }
    }
    const int64_t at = ((b * in_.seq + rows.first) * in_.heads + head) * in_.value_dim;
    give(rows, output_ + at, in_.heads * in_.value_dim);
    return nullptr;
  }

  Status* finish_all() const {
    const double cost = double(plan_.tokens) * double(in_.heads) * double(in_.value_dim) *
                        double(in_.rank_dim);
    return spread(plan_.tokens ? in_.heads : 0, cost, [this](int64_t head) {
      for (int64_t b = 0; b < in_.batch; b++) {
        const RowPlan& row = plan_.rows[b];
        for (int64_t s = 0; row.splits > 1 && s < in_.row_length(b); s++) merge(row, s, head);
      }
      return project(head);
    });
  }

  void merge(const RowPlan& row, int64_t step, int64_t head) const {
    const int64_t at = step * in_.heads + head, block = at / row.block_rows;
    const int64_t rows = smaller(row.rows - block * row.block_rows, row.block_rows);
    const int64_t place = first_place(row, block) + at % row.block_rows;
    splits_.merge(place, rows, row.splits, absorbed(row.first_token + step, head));
  }

  // Where the results of a block's splits begin.
  int64_t first_place(const RowPlan& row, int64_t block) const {
    return (row.first_unit + row.blocks - 1 - block) * plan_.partial_rows;
  }

  // A head's attended latents through its value rows of `up`, as many tokens at a time as lie
  // evenly in the output.
  Status* project(int64_t head) const {
    // Few tokens find a strip in the first cache; many want a whole block for each panel.
    const int64_t most = plan_.tokens < kTokenGroup ? int64_t(kStripRows) : int64_t(kBlockColumns);
    Scratch scratch(size_t(up_.floats(smaller(most, in_.value_dim))) * sizeof(float));
    if (scratch.failed()) return Scratch::error();
    int64_t some;
    for (int64_t n = 0; n < in_.value_dim; n += some) {
      const int64_t row = first_row(head) + in_.nope_dim + n;
      some = up_.piece(row, in_.value_dim - n, most);
      EDGE_TRY(project_rows(head, up_.rows(row, some, scratch.as<float>()), n, some));
    }
    return nullptr;
  }

  template <class W>
  Status* project_rows(int64_t head, const W* rows, int64_t n, int64_t count) const {
    MatMul<W> product = {};
    product.x_stride = size_t(in_.heads * in_.width());
    product.weight = rows;
    product.y_stride = size_t(in_.heads * in_.value_dim);
    product.n_size = size_t(count);
    product.k_size = size_t(in_.rank_dim);
    for (int64_t from = 0, to; from < plan_.tokens; from = to) {
      for (to = from + 1; to < plan_.tokens && origin_[to] == origin_[to - 1] + 1;) to++;
      product.x = absorbed(from, head);
      product.y = output_ + (origin_[from] * in_.heads + head) * in_.value_dim + n;
      product.m_size = size_t(to - from);
      for (size_t task = 0; task < product.tasks(); task++) EDGE_TRY(product.run(task));
    }
    return nullptr;
  }

  const Context& context_;
  const Attributes& attributes_;
  const Inputs& in_;
  const Up up_;
  float* output_;
  C* cache_;
  Plan plan_ = {};
  float* absorbed_ = nullptr;  // [tokens][heads][width]
  int64_t* origin_ = nullptr;  // [tokens], row * seq + step
  Splits splits_ = {};
};

class LatentAttention {
 public:
  Status* create(const Info& info) { return attributes_.read(info); }

  Status* compute(const Context& context) const {
    Inputs in;
    EDGE_TRY(in.read(context, attributes_));
    Tensor output = in.query, cache = in.cache;
    output.dims[2] = in.heads * in.value_dim;
    EDGE_TRY(context.output(0, &output));
    EDGE_TRY(context.output(1, &cache));
    if (in.is_packed()) return with_cache_type<PackedUp>(context, in, output, cache);
    return with_weight_type("LatentAttention", in.up.type, [&](auto weight) {
      return with_cache_type<StoredUp<decltype(weight)>>(context, in, output, cache);
    });
  }

 private:
  template <class Up>
  Status* with_cache_type(const Context& context, const Inputs& in, const Tensor& output,
                          const Tensor& cache) const {
    switch (in.cache.type) {
      case ElementType::kFloat32: return run<Up, float>(context, in, output, cache);
      case ElementType::kFloat16: return run<Up, Half>(context, in, output, cache);
      default: return run<Up, Int8>(context, in, output, cache);
    }
  }

  template <class Up, class C>
  Status* run(const Context& context, const Inputs& in, const Tensor& output,
              const Tensor& cache) const {
    EDGE_TRY(carry_over(context, in.cache, cache, sizeof(C)));
    return Call<Up, C>(context, attributes_, in, output.as<float>(), cache.as<C>()).run();
  }

  Attributes attributes_;
};

}  // namespace latent

EDGE_KERNEL(latent_attention, latent::LatentAttention)

}  // namespace EDGE_ISA
}  // namespace edge
