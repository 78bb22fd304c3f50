#include "kernels/converted/converted.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "kernels/converted/conversions.h"
#include "kernels/converted/cut.h"
#include "kernels/converted/memory.h"
#include "kernels/volume.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// What a thread keeps for its chunks: what they read, what they write, and a weight's gradient of one of them. The thread that
// begins keeps the weight too, or the sums that become its gradient, and the packed weight.
struct Copies {
  Floats read, second, sums, weight, packed;
};
Copies& copies() {
  thread_local Copies kept;
  return kept;
}

// Returns kept memory, or `own` for so many floats that no thread should hold them after the call.
float* kept(Floats& kept, Floats& own, int64_t count) {
  constexpr int64_t kMostKept = int64_t{1} << 22;
  return (count <= kMostKept ? kept : own).of(count);
}

uint16_t* low_of(const float* p) { return reinterpret_cast<uint16_t*>(const_cast<float*>(p)); }

class Converted : public Work {
 public:
  Converted(const Request& r, const Cut& how) : r_(r), cut_(how), conversions_(conversions_of(*r.target, r.dtype)) {}

  // False if the kernel cannot compute a chunk.
  bool lay_out(const KernelRow& row, const char** why) {
    const Problem& p = r_.problem;
    const bool gradient = r_.direction == Direction::grad_weight;
    const int64_t all = rows_written(r_), blocks = ceil_div(all, cut_.rows);
    const int64_t steps = ceil_div(p.batch, cut_.samples) * blocks, length = ceil_div(steps, cut_.parts);
    const int64_t parts = ceil_div(steps, length);
    for (int64_t part = 0; part < parts; part++) {
      for (int64_t group = 0; group < p.groups; group += cut_.groups) {
        const int64_t last = std::min(steps, (part + 1) * length);
        for (int64_t step = part * length; step < last; step++) {
          if (!gradient || step == part * length) tasks_.push_back(static_cast<int64_t>(chunks_.size()));
          const int64_t sample = step / blocks * cut_.samples, first = step % blocks * cut_.rows;
          const Rows rows = *rows_of(r_, first, std::min(cut_.rows, all - first));
          const Kind* kind =
              kind_of(row, std::min(cut_.samples, p.batch - sample), std::min(cut_.groups, p.groups - group), rows, why);
          if (!kind) return false;
          facts.products += kind->work->facts.products;
          chunks_.push_back({kind, sample, group, rows.first, rows.read, packed_at(*kind, group)});
        }
      }
    }
    parts_ = parts;
    tasks_.push_back(static_cast<int64_t>(chunks_.size()));
    const Kind& kind = *chunks_.front().kind;
    const Facts& inner = kind.work->facts;
    facts.block = inner.block;
    facts.threads = cut_.threads;
    facts.tasks = cut_.shared ? static_cast<int64_t>(tasks_.size()) - 1 : inner.tasks;
    facts.floats = inner.floats + kind.x_floats + kind.y_floats;
    facts.tile = inner.tile + ", in float32 by chunks of " + std::to_string(cut_.samples) + " samples, " +
                 std::to_string(cut_.groups) + " groups and " + std::to_string(cut_.rows) + " rows";
    return true;
  }

  void run(const Tensors& t, ParallelFor parallel_for) const override {
    r_.direction == Direction::grad_weight ? run_gradient(t, parallel_for) : correlate(t, parallel_for);
  }

 private:
  // What chunks of the same sizes share.
  struct Kind {
    std::unique_ptr<Work> work;
    ConvertedBlock x, y;
    int64_t x_floats, y_floats, groups;
  };
  struct Chunk {
    const Kind* kind;
    int64_t sample, group, written, read;  // the first of its rows that are written, and read
    int64_t packed;                        // where its packed weight begins
  };

  // Null if the kernel cannot compute such chunks.
  const Kind* kind_of(const KernelRow& row, int64_t samples, int64_t groups, const Rows& rows, const char** why) {
    std::unique_ptr<Kind>& kind = kinds_[{samples, groups, rows.count, rows.reads, rows.pad}];
    if (kind) return kind.get();
    const Request one = in_float32(r_, samples, groups, rows, cut_.shared ? 1 : cut_.threads);
    std::unique_ptr<Work> work = groupwise::lay_out(row, one, why);
    if (!work) return nullptr;
    const int64_t x = groups * channels(true), y = groups * channels(false);
    kind.reset(new Kind{std::move(work), image(one, true), image(one, false), samples * x * pixels(one, true),
                        samples * y * pixels(one, false), groups});
    return kind.get();
  }

  // Chunks of the same groups read one packed weight.
  int64_t packed_at(const Kind& kind, int64_t group) {
    const auto [found, is_new] = packed_.try_emplace({&kind, group}, packed_floats_);
    if (is_new) packed_floats_ += round_up(kind.work->packed_floats(), 16);
    return found->second;
  }

  int64_t channels(bool x) const { return x ? r_.problem.in_channels : r_.problem.out_channels; }

  ConvertedBlock image(const Request& one, bool x) const {
    const Problem& p = one.problem;
    const Strides &low = x ? r_.x_strides : r_.y_strides, &wide = x ? one.x_strides : one.y_strides;
    const Depth &from = r_.depth, &to = one.depth;
    return {{{p.batch, low.n, wide.n},
             {p.groups * channels(x), low.c, wide.c},
             {x ? to.axis.in : to.axis.out, x ? from.x : from.y, x ? to.x : to.y},
             {x ? p.h.in : p.h.out, low.h, wide.h},
             {x ? p.w.in : p.w.out, low.w, wide.w}},
            conversions_};
  }
  // Where a chunk of x, or y, begins.
  uint16_t* start_of(const Chunk& c, bool x, const Tensors& t) const {
    const Strides& low = x ? r_.x_strides : r_.y_strides;
    const int64_t row = x == (r_.direction == Direction::grad_input) ? c.written : c.read;
    return low_of(x ? t.x : t.y) + c.sample * low.n + c.group * channels(x) * low.c + row * low.h;
  }

  int64_t weights() const { return r_.problem.groups * weights_of(r_); }
  ConvertedBlock weight() const {
    const Problem& p = r_.problem;
    const Request one = in_float32(r_);
    const WeightStrides &low = r_.w_strides, &wide = one.w_strides;
    return {{{p.groups, low.group, wide.group},
             {p.out_channels, low.o, wide.o},
             {p.in_channels, low.c, wide.c},
             {one.depth.axis.kernel, r_.depth.w, one.depth.w},
             {p.h.kernel, low.h, wide.h},
             {p.w.kernel, low.w, wide.w}},
            conversions_};
  }

  // Calls f(first chunk, end, ...) of each task, on threads if they share tasks.
  template <class F>
  void each_task(ParallelFor parallel_for, F&& f) const {
    run_tasks(static_cast<int64_t>(tasks_.size()) - 1, cut_.shared, parallel_for, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; task++) f(task, tasks_[task], tasks_[task + 1]);
    });
  }

  // A chunk that threads share is converted by all of them.
  bool threaded() const { return !cut_.shared && cut_.threads > 1; }

  void correlate(const Tensors& t, ParallelFor parallel_for) const {
    const bool forward = r_.direction == Direction::forward;
    const ParallelFor inner = cut_.shared ? here : parallel_for;
    Floats bias_memory, own_weight, own_packed;
    float* const w = kept(copies().weight, own_weight, weights());
    weight().widen(low_of(t.w), w, cut_.threads > 1, parallel_for);
    const int64_t outputs = channels(!forward), per_group = weights_of(r_);
    float* bias = nullptr;
    if (t.bias) {
      bias = bias_memory.of(r_.problem.groups * outputs);
      conversions_.widen(low_of(t.bias), 1, bias, r_.problem.groups * outputs);
    }
    float* const packed = packed_floats_ > 0 ? kept(copies().packed, own_packed, packed_floats_) : nullptr;
    if (packed)
      for (const auto& [of, at] : packed_) of.first->work->pack(w + of.second * per_group, packed + at, parallel_for);
    each_task(parallel_for, [&](int64_t, int64_t first, int64_t last) {
      Copies& mine = copies();
      Floats own_read, own_second;
      for (int64_t i = first; i < last; i++) {
        const Chunk& chunk = chunks_[i];
        const Kind& kind = *chunk.kind;
        const ConvertedBlock &from = forward ? kind.x : kind.y, &to = forward ? kind.y : kind.x;
        Tensors one{};
        float*& read = forward ? one.x : one.y;
        float*& written = forward ? one.y : one.x;
        read = kept(mine.read, own_read, forward ? kind.x_floats : kind.y_floats);
        written = kept(mine.second, own_second, forward ? kind.y_floats : kind.x_floats);
        one.w = w + chunk.group * per_group;
        one.bias = bias ? bias + chunk.group * outputs : nullptr;
        one.packed = packed && kind.work->packed_floats() > 0 ? packed + chunk.packed : nullptr;
        from.widen(start_of(chunk, forward, t), read, threaded(), parallel_for);
        kind.work->run(one, inner);
        to.round(written, start_of(chunk, !forward, t), threaded(), parallel_for);
      }
    });
  }

  void run_gradient(const Tensors& t, ParallelFor parallel_for) const {
    const ParallelFor inner = cut_.shared ? here : parallel_for;
    const int64_t count = weights(), per_group = weights_of(r_);
    const int64_t tasks_a_part = (static_cast<int64_t>(tasks_.size()) - 1) / parts_;
    Floats own;
    float* const sums = kept(copies().weight, own, parts_ * count);
    each_task(parallel_for, [&](int64_t task, int64_t first, int64_t last) {
      Copies& mine = copies();
      Floats own_x, own_y, own_sums;
      for (int64_t i = first; i < last; i++) {
        const Chunk& chunk = chunks_[i];
        const Kind& kind = *chunk.kind;
        float* const total = sums + task / tasks_a_part * count + chunk.group * per_group;
        const int64_t some = kind.groups * per_group;
        Tensors one{};
        one.x = kept(mine.read, own_x, kind.x_floats);
        one.y = kept(mine.second, own_y, kind.y_floats);
        one.w = i == first ? total : kept(mine.sums, own_sums, some);
        kind.x.widen(start_of(chunk, true, t), one.x, threaded(), parallel_for);
        kind.y.widen(start_of(chunk, false, t), one.y, threaded(), parallel_for);
        kind.work->run(one, inner);
        if (i > first)
          for (int64_t k = 0; k < some; k++) total[k] += one.w[k];
      }
    });
    for (int64_t part = 1; part < parts_; part++)
      for (int64_t k = 0; k < count; k++) sums[k] += sums[part * count + k];
    weight().round(sums, low_of(t.w), cut_.threads > 1, parallel_for);
  }

  Request r_;
  Cut cut_;
  const Conversions& conversions_;
  int64_t parts_ = 1;
  std::map<std::array<int64_t, 5>, std::unique_ptr<Kind>> kinds_;  // by samples, groups and rows
  std::map<std::pair<const Kind*, int64_t>, int64_t>
      packed_;  // of each kind, by the first group: where its packed weight begins
  int64_t packed_floats_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<int64_t> tasks_;  // where each begins among the chunks, and their end
};

}  // namespace

std::unique_ptr<Work> lay_out_converted(const KernelRow& row, const Request& request, const char** why) {
  if (row.by_norm) {
    *why = "computes in float32 only";
    return nullptr;
  }
  auto work = std::make_unique<Converted>(request, cut(request));
  return work->lay_out(row, why) ? std::move(work) : nullptr;
}

}  // namespace groupwise
