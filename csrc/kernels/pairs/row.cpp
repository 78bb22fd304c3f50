#include <vector>

#include "kernels/kernels.h"
#include "kernels/low/gradient.h"
#include "kernels/low/low.h"
#include "kernels/pairs/gradient.h"
#include "kernels/table.h"
#include "products.h"

namespace groupwise {
namespace {

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  const int64_t in = forward ? p.in_channels : p.out_channels, out = forward ? p.out_channels : p.in_channels;
  const int64_t lanes = r.target->lanes;
  if (r.x_strides.c != 1 || r.y_strides.c != 1)
    return "its vectors along the channels need them side by side in the tensors (channels_last)";
  if (depthwise(p)) return nullptr;
  if (r.direction == Direction::grad_weight) return refuses_low_gradient(p, lanes);
  if (in % 2 != 0) return "it multiplies pairs of input channels of a group";
  const bool shared = out < lanes && lanes % out == 0 && in == out && p.groups * out >= lanes;
  return out >= lanes || shared ? nullptr
                                : "its vectors need as many output channels of a group, or whole groups of as many inputs";
}

// Returns an axis that a phase describes: its outputs are every `step`-th one.
Axis axis_of(const Phase& s) { return {s.in, s.out, s.taps, s.stride, -s.low, s.spacing}; }

// A forward, or one phase of the rows and of the columns of a grad_input.
struct Part {
  LowGrouped work;
  WeightStrides strides;
  int64_t weight, output;  // where its taps and its outputs begin
  int64_t packed;          // where its packed weight begins, in bytes
};

class Pairs : public Work {
 public:
  explicit Pairs(const Request& r) : target_(r.target), forward_(r.direction == Direction::forward) {
    const Problem& p = r.problem;
    const std::vector<Phase> rows = forward_ ? std::vector<Phase>{forward_phase(p.h)} : grad_input_phases(p.h);
    const std::vector<Phase> columns = forward_ ? std::vector<Phase>{forward_phase(p.w)} : grad_input_phases(p.w);
    facts.threads = threads_worth(r);
    for (const Phase& h : rows)
      for (const Phase& w : columns) add(r, h, w);
    const LowGrouped& first = parts_.front().work;
    facts.block = {std::max<int64_t>(1, first.rows), first.w.out, p.groups};
    facts.tasks = first.tasks();
    facts.tile = tile_of(first);
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    const TensorsOf<Bfloat16> t = named<Bfloat16>(tensors);
    const int64_t lanes = target_->lanes, channels = parts_.front().work.channels;
    std::vector<float> bias(round_up(channels, lanes));
    for (int64_t i = 0; t.bias && i < channels; i++) bias[i] = to_float(t.bias[i]);
    const std::unique_ptr<char[]> packed(new char[bytes_]);
    for (const Part& part : parts_) {
      LowGrouped work = part.work;
      work.x = forward_ ? t.x : t.y;
      work.y = (forward_ ? t.y : t.x) + part.output;
      work.bias = bias.data();
      const Bfloat16* weight = t.w + part.weight;
      if (work.group == 1) {
        auto* to = reinterpret_cast<float*>(packed.get() + part.packed);
        pack_low(work, lanes, weight, part.strides, bias.data(), to);
        work.packed = to;
      } else {
        auto* to = reinterpret_cast<Bfloat16*>(packed.get() + part.packed);
        run_tasks(work.vectors(lanes), facts.threads > 1, parallel_for,
                  [&](int64_t begin, int64_t end) { pack_low_pairs(work, lanes, weight, part.strides, {begin, end}, to); });
        work.pairs = to;
      }
      correlate_low_on(work, *target_, {facts.threads, parallel_for});
    }
  }

 private:
  std::string tile_of(const LowGrouped& work) const {
    const int64_t lanes = target_->lanes;
    if (work.group == 1) return std::to_string(low_pixels(lanes)) + " pixels x " + std::to_string(2 * lanes) + " channels";
    if (work.rows > 0) return "16 pixels x 16 output channels by AMX";
    return std::to_string(kGroupedPixels) + " pixels x " +
           std::to_string(std::min<int64_t>(kGroupedVectors, work.vectors(lanes)) * lanes) +
           " output channels, by pairs of input channels";
  }

  void add(const Request& r, const Phase& h, const Phase& w) {
    const Problem& p = r.problem;
    const int64_t lanes = target_->lanes;
    Part part{};
    LowGrouped& work = part.work;
    work.batch = p.batch;
    work.group = forward_ ? p.out_channels : p.in_channels;
    work.inputs = forward_ ? p.in_channels : p.out_channels;
    work.channels = p.groups * work.group;
    work.h = axis_of(h);
    work.w = axis_of(w);
    work.x_strides = forward_ ? r.x_strides : r.y_strides;
    const Strides& written = forward_ ? r.y_strides : r.x_strides;
    work.y_strides = {written.n, 1, written.h * h.step, written.w * w.step};
    work.x_strides.c = 1;
    part.output = h.first * written.h + w.first * written.w;
    const WeightStrides& s = r.w_strides;
    part.weight = h.index * s.h + w.index * s.w;
    part.strides = {s.group, forward_ ? s.o : s.c, forward_ ? s.c : s.o, s.h * h.index_step, s.w * w.index_step};
    part.packed = bytes_;
    const int64_t bytes = work.group == 1 ? packed_low_floats(lanes, work) * static_cast<int64_t>(sizeof(float))
                                          : packed_low_pairs(lanes, work) * static_cast<int64_t>(sizeof(Bfloat16));
    bytes_ += round_up(bytes, 64);
    work = shared_out(work, *target_, facts.threads);
    facts.products += executed_products(work, lanes);
    parts_.push_back(part);
  }

  const Kernels* target_;
  bool forward_;
  int64_t bytes_ = 0;
  std::vector<Part> parts_;
};

std::unique_ptr<Work> pairs(const Request& r) {
  if (r.direction == Direction::grad_weight) return pairs_gradient(r);
  return std::make_unique<Pairs>(r);
}

}  // namespace

extern const KernelRow kPairs;
const KernelRow kPairs{
    "pairs",
    "vectors along the channels of channels_last bfloat16 tensors, which it reads and writes as they are; "
    "products of pairs of input channels, or of positions, by one instruction where the processor has AVX512-BF16 or AMX",
    {true, true, true},
    refuses,
    pairs,
    Computes::bfloat16};

}  // namespace groupwise
