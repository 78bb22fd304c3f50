#include "run.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include "targets/isa.h"

namespace groupwise {
namespace {

struct Freed {
  void operator()(float* p) const { std::free(p); }
};

// Returns this thread's scratch, which lives as long as the thread, so that its pages are faulted in once.
float* scratch() {
  thread_local std::unique_ptr<float, Freed> memory;
  if (!memory) {
    void* p = nullptr;
    // One vector beyond the end is for loads whose last lanes are not used.
    if (posix_memalign(&p, 64, kScratchFloats * sizeof(float) + 64) != 0) throw std::bad_alloc();
    memory.reset(static_cast<float*>(p));
  }
  return memory.get();
}

template <class F>
void run_tasks(int64_t tasks, bool worth, ParallelFor parallel_for, F&& f) {
  if (!worth || tasks < 2) {
    if (tasks > 0) f(int64_t{0}, tasks);
    return;
  }
  parallel_for(tasks, [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); }, &f);
}

// Guards the scratch: the planner refuses every kernel whose block does not fit it.
void expect(bool fits) {
  if (!fits) throw std::logic_error("groupwise: a kernel was planned that does not fit its scratch");
}

void correlate(const Request& r, Kernel kernel, const Tensors& t, ParallelFor parallel_for) {
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  const int64_t lanes = kernels().lanes, threads = threads_worth(r);
  for (Correlation& c : correlations_of(r)) {
    c.input = forward ? t.x : t.y;
    c.output = forward ? t.y : t.x;
    c.weight = t.w;
    c.bias = t.bias;
    const auto with = [&](const auto& layout, auto kernel_of) {
      run_tasks(layout.tasks(c), threads > 1, parallel_for,
                [&](int64_t begin, int64_t end) { kernel_of(c, layout, begin, end, scratch()); });
    };
    if (kernel == Kernel::planar) {
      CorrelationLayout l;
      expect(lay_out(c, lanes, threads, &l));
      with(l, kernels().correlate_planar);
    } else {
      const ChannelsForm form = channels_form(c, lanes);
      ChannelsLayout l;
      expect(lay_out_channels_of(c, p.h.kernel, p.w.kernel, lanes, threads, &l));
      with(l, form == ChannelsForm::narrow ? kernels().correlate_channels
              : form == ChannelsForm::dots ? kernels().correlate_dots
                                           : kernels().correlate_groups);
    }
  }
}

// Sums the parts in their order, so that the result has the same bits on every run.
void add_parts(const GradWeight& work, const float* parts, int64_t count) {
  const Problem& p = work.problem;
  const WeightStrides& s = work.weight_strides;
  const int64_t floats = p.groups * p.out_channels * p.in_channels * p.h.kernel * p.w.kernel;
  for (int64_t g = 0; g < p.groups; g++)
    for (int64_t o = 0; o < p.out_channels; o++)
      for (int64_t c = 0; c < p.in_channels; c++)
        for (int64_t kh = 0; kh < p.h.kernel; kh++)
          for (int64_t kw = 0; kw < p.w.kernel; kw++, parts++) {
            float sum = 0.0f;
            for (int64_t part = 0; part < count; part++) sum += parts[part * floats];
            work.grad_weight[g * s.group + o * s.o + c * s.c + kh * s.h + kw * s.w] = sum;
          }
}

void grad_weight(const Request& r, Kernel kernel, const Tensors& t, ParallelFor parallel_for) {
  const Problem& p = r.problem;
  const int64_t threads = threads_worth(r);
  const GradWeight work{p, t.x, r.x_strides, t.y, r.y_strides, t.w, r.w_strides};
  const int64_t floats = p.groups * p.out_channels * p.in_channels * p.h.kernel * p.w.kernel;
  const auto with = [&](auto layout, auto kernel_of) {
    expect(lay_out(work, kernels().lanes, threads, &layout));
    std::vector<float> parts(layout.parts > 1 ? layout.parts * floats : 0);
    run_tasks(layout.tasks(p), threads > 1, parallel_for,
              [&](int64_t begin, int64_t end) { kernel_of(work, layout, begin, end, scratch(), parts.data()); });
    if (layout.parts > 1) add_parts(work, parts.data(), layout.parts);
  };
  if (kernel == Kernel::planar) {
    with(GradWeightLayout{}, kernels().grad_weight_planar);
  } else if (narrow(work, kernels().lanes)) {
    with(GradWeightNarrowLayout{}, kernels().grad_weight_narrow);
  } else {
    with(GradWeightChannelsLayout{}, kernels().grad_weight_channels);
  }
}

}  // namespace

void run(const Request& r, Kernel kernel, const Tensors& t, ParallelFor parallel_for) {
  if (r.direction == Direction::grad_weight) return grad_weight(r, kernel, t, parallel_for);
  correlate(r, kernel, t, parallel_for);
}

void sum_channels(int64_t batch, int64_t channels, int64_t h, int64_t w, const float* tensor, const Strides& s, float* sums,
                  ParallelFor parallel_for) {
  const int64_t tasks = ceil_div(channels, kChannelBlock);
  run_tasks(tasks, batch * channels * h * w >= kWorthAThread / 4, parallel_for,
            [&](int64_t begin, int64_t end) { kernels().sum_channels(batch, channels, h, w, tensor, s, sums, begin, end); });
}

}  // namespace groupwise
