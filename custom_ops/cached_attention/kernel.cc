// CachedAttention: writes the new keys and values into the cache, in place where input and output
// are the same memory, then attends. Work is cut by row, key/value head, block of query rows and,
// where that leaves threads idle, range of keys.
#include "cached_attention/few_rows.h"
#include "cached_attention/inputs.h"
#include "cached_attention/many_rows.h"
#include "native/in_place.h"

namespace edge {
namespace EDGE_ISA {
namespace attention {

constexpr int64_t kTasksWanted = 16;   // enough for any device's threads to share evenly
constexpr int64_t kLeastSplit = 512;   // keys; below that, merging costs more than it brings
constexpr int64_t kInlineBytes = 1 << 15;  // below that, waking threads costs more

// How one row's work is cut. A unit is one block of query rows of one key/value head.
struct RowPlan {
  int64_t first_task, first_unit, rows, block_rows, blocks, splits;

  int64_t units(int64_t kv_heads) const { return blocks * kv_heads; }
};

struct Plan {
  RowPlan* rows;
  int64_t batch, tasks, units, partial_rows;
  double bytes;  // read, roughly
  // Where a unit is split: rows of partial results, and how many splits are done.
  float* partial;
  float* stats;
  int32_t* finished;

  // The row that a task belongs to: the last whose first task is not beyond it.
  int64_t row_of(int64_t task) const {
    int64_t low = 0, high = batch;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (rows[middle].first_task <= task ? low : high) = middle;
    }
    return low;
  }
};

static void plan_rows(const Inputs& in, int64_t window, Plan* plan) {
  int64_t units = 0;
  for (int64_t b = 0; b < in.batch; b++) {
    RowPlan& row = plan->rows[b];
    row.rows = in.row_length(b) * in.group;
    row.block_rows = row.rows <= kMostFewRows ? kMostFewRows : kBlockRows;
    row.blocks = (row.rows + row.block_rows - 1) / row.block_rows;
    units += row.units(in.kv_heads);
  }
  plan->tasks = plan->units = plan->partial_rows = 0;
  plan->bytes = 0;
  for (int64_t b = 0; b < in.batch; b++) {
    RowPlan& row = plan->rows[b];
    const int64_t held = in.row_start(b) + in.row_length(b);
    const int64_t span = window ? smaller(held, window + in.row_length(b)) : held;
    // Prefill has few, long tasks: it is split only where there are hardly any.
    const int64_t wanted = row.rows <= kMostFewRows ? kTasksWanted : kTasksWanted / 2;
    row.splits = larger(1, smaller(span / kLeastSplit, wanted / larger(units, 1)));
    row.first_task = plan->tasks;
    row.first_unit = plan->units;
    plan->tasks += row.units(in.kv_heads) * row.splits;
    plan->units += row.units(in.kv_heads);
    plan->bytes += 4.0 * double(row.units(in.kv_heads)) * double(span) * double(in.dim + in.v_dim);
    if (row.splits > 1) {
      plan->partial_rows = larger(plan->partial_rows, row.splits * smaller(row.rows, row.block_rows));
    }
  }
}

template <class C>
class Call {
 public:
  Call(const Context& context, const Attributes& attributes, const Inputs& in, float* output,
       C* keys, C* values)
      : context_(context), attributes_(attributes), in_(in), output_(output), keys_(keys),
        values_(values) {}

  Status* run() {
    if (in_.batch == 0 || in_.seq == 0) return nullptr;
    EDGE_TRY(append_all());
    Scratch rows(size_t(in_.batch) * sizeof(RowPlan));
    if (rows.failed()) return Scratch::error();
    plan_.rows = rows.as<RowPlan>();
    plan_.batch = in_.batch;
    plan_rows(in_, attributes_.window, &plan_);
    // One unit's partial results after the other's; every unit has room for the largest.
    const int64_t room = plan_.units * plan_.partial_rows;
    const size_t floats = size_t(room * (in_.v_dim + 2) + (room ? plan_.units : 0));
    Scratch partial(floats * sizeof(float));
    if (partial.failed()) return Scratch::error();
    plan_.partial = partial.as<float>();
    plan_.stats = plan_.partial + room * in_.v_dim;
    plan_.finished = reinterpret_cast<int32_t*>(plan_.stats + 2 * room);
    return attend_all();
  }

 private:
  // The new tokens of one row's head go into the cache; the row's padded steps become zeros.
  void append(int64_t b, int64_t kv) const {
    const int64_t length = in_.row_length(b), seq = in_.seq;
    append(strip(keys_, b, kv, in_.dim), in_.key.as<float>(), b, kv);
    append(strip(values_, b, kv, in_.v_dim), in_.value.as<float>(), b, kv);
    const int64_t width = in_.group * in_.v_dim;
    for (int64_t s = length; s < seq; s++) {
      float* to = output_ + ((b * seq + s) * in_.kv_heads + kv) * width;
      for (int64_t i = 0; i < width; i++) to[i] = 0.0f;
    }
  }

  void append(const Strip<C>& strip, const float* tokens, int64_t b, int64_t kv) const {
    const size_t dim = size_t(strip.dim);
    for (int64_t s = 0; s < in_.row_length(b); s++) {
      const float* from = tokens + ((b * in_.seq + s) * in_.kv_heads + kv) * strip.dim;
      const C* found;
      strip.find(in_.row_start(b) + s, 1, 1, &found);
      C* to = const_cast<C*>(found);
      if constexpr (has_row_scale<C>) {
        encode_row(from, dim, to);
      } else {
        size_t d = 0;
        for (; d + kLanes <= dim; d += kLanes) store(to + d, load(from + d));
        if (d < dim) store_part(to + d, load_part(from + d, dim - d), dim - d);
      }
    }
  }

  Status* append_all() const {
    const int64_t heads = in_.batch * in_.kv_heads;
    const double bytes = 4.0 * double(heads * in_.seq) * double(in_.dim + in_.v_dim);
    return spread(heads, bytes, [this](size_t i) -> Status* {
      append(int64_t(i) / in_.kv_heads, int64_t(i) % in_.kv_heads);
      return nullptr;
    });
  }

  Status* attend_all() const {
    for (int64_t u = 0; plan_.partial_rows && u < plan_.units; u++) plan_.finished[u] = 0;
    return spread(plan_.tasks, plan_.bytes,
                  [this](size_t i) -> Status* { return attend(int64_t(i)); });
  }

  template <class Task>
  Status* spread(int64_t total, double bytes, const Task& task) const {
    if (bytes > kInlineBytes) return context_.parallel(size_t(total), task);
    for (int64_t i = 0; i < total; i++) EDGE_TRY(task(size_t(i)));
    return nullptr;
  }

  template <class T>
  Strip<C> strip(T* cache, int64_t b, int64_t kv, int64_t dim) const {
    const int64_t head = in_.page * dim;
    return {cache + kv * head, in_.kv_heads * head, in_.row_table(b), in_.page, dim};
  }

  Status* attend(int64_t task) const {
    const int64_t b = plan_.row_of(task);
    const RowPlan& row = plan_.rows[b];
    const int64_t split = (task - row.first_task) % row.splits;
    const int64_t unit = (task - row.first_task) / row.splits;
    // The last steps see most keys: they go first, so that no thread is left with a long one.
    const int64_t block = row.blocks - 1 - unit / in_.kv_heads;

    Job<C> job = job_for(b, unit % in_.kv_heads);
    job.first_row = block * row.block_rows;
    job.last_row = smaller(row.rows, job.first_row + row.block_rows);
    if (row.splits == 1) return attend(job);
    EDGE_TRY(attend(part_of(job, row.splits, row.first_unit + unit, split)));
    int32_t* finished = plan_.finished + row.first_unit + unit;
    if (__atomic_add_fetch(finished, 1, __ATOMIC_ACQ_REL) == row.splits) {
      merge(job, row.splits, row.first_unit + unit);
    }
    return nullptr;
  }

  Status* attend(const Job<C>& job) const {
    const int64_t rows = job.rows();
    const bool is_few = rows <= kMostFewRows;
    Scratch scratch(4 * (is_few ? FewRows::floats(in_.dim, in_.v_dim)
                                : ManyRows::floats(rows, in_.dim, in_.v_dim)));
    if (scratch.failed()) return Scratch::error();
    is_few ? attend_few(job, scratch.as<float>()) : attend_many(job, scratch.as<float>());
    return nullptr;
  }

  // All of a row's head.
  Job<C> job_for(int64_t b, int64_t kv) const {
    Job<C> job = {};
    job.keys = strip(keys_, b, kv, in_.dim);
    job.values = strip(values_, b, kv, in_.v_dim);
    job.group = in_.group;
    job.head_stride = in_.dim;
    job.query_stride = in_.heads * in_.dim;
    job.query = in_.query.as<float>() + b * in_.seq * job.query_stride + kv * in_.group * in_.dim;
    job.output_head_stride = in_.v_dim;
    job.output_step_stride = in_.heads * in_.v_dim;
    job.output = output_ + b * in_.seq * job.output_step_stride + kv * in_.group * in_.v_dim;
    job.start = in_.row_start(b);
    job.last_key = job.start + in_.row_length(b);
    job.window = attributes_.window;
    job.scale = attributes_.scale;
    job.softcap = attributes_.softcap;
    const bool is_shared = in_.sinks.dims[0] == 1;
    job.sinks = in_.sinks.as<float>() + (is_shared ? 0 : kv * in_.group);
    job.sink_stride = is_shared ? 0 : 1;
    return job;
  }

  // One range of the job's keys, whose results are partial.
  Job<C> part_of(Job<C> job, int64_t splits, int64_t unit, int64_t split) const {
    const int64_t low = job.oldest(job.first_row), high = job.position(job.last_row - 1) + 1;
    const int64_t keys = round_up((high - low + splits - 1) / splits, kBlockKeys);
    job.first_key = smaller(low + split * keys, high);
    job.last_key = smaller(job.first_key + keys, high);
    if (split > 0) job.sinks = nullptr;  // it counts once
    const int64_t at = unit * plan_.partial_rows + split * job.rows();
    job.output = plan_.partial + at * in_.v_dim;
    job.stats = plan_.stats + 2 * at;
    return job;
  }

  // Weighs the parts' results against their common peak.
  void merge(const Job<C>& job, int64_t splits, int64_t unit) const {
    const int64_t rows = job.rows(), v_dim = in_.v_dim;
    const float* partial = plan_.partial + unit * plan_.partial_rows * v_dim;
    const float* stats = plan_.stats + 2 * unit * plan_.partial_rows;
    for (int64_t r = 0; r < rows; r++) {
      float top = kLowest, total = 0;
      for (int64_t i = r; i < splits * rows; i += rows) {
        top = stats[2 * i] > top ? stats[2 * i] : top;
      }
      for (int64_t i = r; i < splits * rows; i += rows) {
        total += stats[2 * i + 1] * exp_of_negative(splat(stats[2 * i] - top))[0];
      }
      float* to = job.output_row(job.first_row + r);
      for (int64_t d = 0; d < v_dim; d++) to[d] = 0;
      for (int64_t i = r; i < splits * rows; i += rows) {
        const float factor = exp_of_negative(splat(stats[2 * i] - top))[0] / total;
        for (int64_t d = 0; d < v_dim; d++) to[d] += factor * partial[i * v_dim + d];
      }
    }
  }

  const Context& context_;
  const Attributes& attributes_;
  const Inputs& in_;
  float* output_;
  C* keys_;
  C* values_;
  Plan plan_ = {};
};

class CachedAttention {
 public:
  Status* create(const Info& info) { return attributes_.read(info); }

  Status* compute(const Context& context) const {
    Inputs in;
    EDGE_TRY(in.read(context, attributes_));
    Tensor output = in.query, keys = in.key_cache, values = in.value_cache;
    output.dims[2] = in.heads * in.v_dim;
    EDGE_TRY(context.output(0, &output));
    EDGE_TRY(context.output(1, &keys));
    EDGE_TRY(context.output(2, &values));
    switch (in.key_cache.type) {
      case ElementType::kFloat32: return run<float>(context, in, output, keys, values);
      case ElementType::kFloat16: return run<Half>(context, in, output, keys, values);
      default: return run<Int8>(context, in, output, keys, values);
    }
  }

 private:
  template <class C>
  Status* run(const Context& context, const Inputs& in, const Tensor& output, const Tensor& keys,
              const Tensor& values) const {
    EDGE_TRY(carry_over(context, in.key_cache, keys, sizeof(C)));
    EDGE_TRY(carry_over(context, in.value_cache, values, sizeof(C)));
    return Call<C>(context, attributes_, in, output.as<float>(), keys.as<C>(), values.as<C>())
        .run();
  }

  Attributes attributes_;
};

}  // namespace attention

EDGE_KERNEL(cached_attention, attention::CachedAttention)

}  // namespace EDGE_ISA
}  // namespace edge
