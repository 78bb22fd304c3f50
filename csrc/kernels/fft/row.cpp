#include "kernels/fft/layout.h"

#include <cmath>

#include "kernels/table.h"

namespace groupwise {

extern const KernelRow kFft;

namespace {

FftRun fft_in_use = nullptr;

// Fewer taps need fewer operations directly: below these no layer was measured at which the FFT is the faster.
constexpr int64_t kLeastTaps = 64;
// Larger buffers of one group take PyTorch's own kernel's memory several times.
constexpr int64_t kMostFloats = int64_t{1} << 27;
// Several groups fill so many floats, so that they stay in the cache and still share the start of a transform.
constexpr int64_t kTarget = int64_t{1} << 19;
// Transforms of more numbers than this slow down, as they leave the L1 cache.
constexpr int64_t kFits = 4096;

bool trivial(const Axis& a) { return a.in == 1 && a.out == 1 && a.kernel == 1; }

const char* refuses(const Request& r) {
  const Problem& p = r.problem;
  if (!fft_in_use) return "this build has no FFT";
  if (!trivial(p.h) && !trivial(p.w))
    return "it computes convolutions along one axis, and the other needs one position and one tap";
  const Axis& a = trivial(p.h) ? p.w : p.h;
  if (a.stride > 1) return "with a stride most of its outputs would not be used";
  if (a.kernel < kLeastTaps) return "a kernel of fewer than 64 taps needs fewer operations directly";
  if (lay_out_fft(r).floats > kMostFloats) return "its spectra would take more than 512 MiB";
  return nullptr;
}

// Keeps a direct kernel too, for tensors with a value that is not finite.
class FftWork : public Work {
 public:
  FftWork(const Request& r, std::unique_ptr<Work> direct) : request_(r), layout_(lay_out_fft(r)), direct_(std::move(direct)) {
    const int64_t chunks = ceil_div(r.problem.groups, layout_.groups);
    facts.tile = "transforms of " + std::to_string(layout_.length) + " numbers";
    facts.block = {layout_.high ? layout_.block : 1, layout_.high ? 1 : layout_.block, layout_.groups};
    facts.tasks = chunks;
    facts.threads = r.threads;
    facts.floats = layout_.floats;
    facts.products = layout_.products;
  }

  void run(const Tensors& tensors, ParallelFor parallel_for) const override {
    if (!fft_in_use(request_, layout_, tensors)) return direct_->run(tensors, parallel_for);
    if (!tensors.epilogue) return;
    const bool forward = request_.direction == Direction::forward;
    for (Correlation c : correlations_of(request_)) {
      c.output = forward ? tensors.y : tensors.x;
      c.epilogue = tensors.epilogue;
      run_tasks(c.batch, facts.threads > 1, parallel_for,
                [&](int64_t begin, int64_t end) { request_.target->finish(c, begin, end); });
    }
  }

 private:
  Request request_;
  FftLayout layout_;
  std::unique_ptr<Work> direct_;
};

std::unique_ptr<Work> fft(const Request& r) {
  for (const KernelRow* row : kernel_table()) {
    // It computes float32.
    if (row == &kFft || row->computes == Computes::bfloat16) continue;
    if (!row->directions[static_cast<int>(r.direction)] || row->refuses(r)) continue;
    if (std::unique_ptr<Work> direct = row->lay_out(r)) return std::make_unique<FftWork>(r, std::move(direct));
  }
  return nullptr;
}

}  // namespace

void use_fft(FftRun run) { fft_in_use = run; }

FftLayout lay_out_fft(const Request& r) {
  const Problem& p = r.problem;
  FftLayout best{};
  best.high = trivial(p.w);
  best.axis = best.high ? p.h : p.w;
  const Axis& a = best.axis;
  best.reach = (a.kernel - 1) * a.dilation + 1;
  const int64_t outputs = r.direction == Direction::grad_input ? a.in : a.out, whole = outputs + best.reach - 1;
  const int64_t pairs = p.in_channels * p.out_channels, weights = p.groups * pairs;
  double least = -1;
  // Lengths of 2**a, 3 * 2**a and 5 * 2**a.
  for (int64_t power = 16; power < 4 * whole; power *= 2) {
    for (const int64_t length : {power, 3 * power / 2, 5 * power / 4}) {
      const int64_t block = length - best.reach + 1;
      // A length that is shorter than the taps leaves no output; of those that take all outputs at once the least is enough.
      if (block < 1 || length >= 4 * whole) continue;
      const int64_t blocks = ceil_div(outputs, block), bins = length / 2 + 1;
      const int64_t rows = p.batch * p.groups * (p.in_channels + p.out_channels) * blocks + weights;
      // Multiply-accumulates of real numbers: a transform of n numbers takes about 1.25 n log2(n), and a copy is as slow as some.
      const double transforms = static_cast<double>(rows * length) * (1.25 * std::log2(static_cast<double>(length)) + 8);
      const double product = 4.0 * static_cast<double>(bins * p.batch * blocks * weights);
      const double slower = 1 + 0.25 * std::max(0.0, std::log2(static_cast<double>(length) / kFits));
      const double cost = transforms * slower + product;
      if (least >= 0 && cost >= least) continue;
      least = cost;
      best.length = length;
      best.block = block;
      best.blocks = blocks;
      best.products = static_cast<int64_t>(transforms + product);
    }
  }
  const int64_t rows = p.batch * (p.in_channels + p.out_channels) * best.blocks + pairs;
  const int64_t each = 2 * rows * best.length;
  best.groups = depthwise(p) ? std::clamp<int64_t>(kTarget / each, 1, p.groups) : 1;
  best.floats = each * best.groups;
  return best;
}

const KernelRow kFft{
    "fft",
    "no vectors of its own: PyTorch's FFT along one axis, in blocks; for kernels of hundreds of taps, if `enable(fft=True)` allows its error",
    {true, true, true},
    refuses,
    fft,
    Computes::float32,
    true};

}  // namespace groupwise
