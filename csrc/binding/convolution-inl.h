// The bodies of aten::convolution and aten::convolution_backward, for any interface to PyTorch. An interface `Api` has:
// - Profiled(plan, {&t, ...}), while which lives a profile shows that the plan runs and reads these tensors
// - Tensor, whose default is the undefined one; strided_of(t)
// - dtype_of(t): its dtype if it is on the CPU, strided and not empty, else `other`
// - read_of(t), write_of(t): its numbers, which are floats in name only if they have another dtype
// - contiguous(t, channels_last): a copy in that format unless it has it
// - empty(like, sizes, channels_last), empty_strided(like, sizes, strides)
// - traced(): torch.jit.trace records this thread; deterministic(); has_onednn(): oneDNN is on; in_parallel_region(); threads()
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "binding/switches.h"
#include "binding/tuning.h"
#include "kernels/converted/converted.h"
#include "plan/plan.h"
#include "plan/recording.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {

// Returns the threads that may compute: within a parallel region the others are busy.
template <class Api>
int64_t threads_that_compute() {
  const int64_t threads = Api::threads();
  return threads > 1 && Api::in_parallel_region() ? 1 : threads;
}

template <class Api>
struct Convolution {
  using Tensor = typename Api::Tensor;
  using Three = std::array<Tensor, 3>;

  const Tensor &input, &weight;
  Numbers stride, padding, dilation;
  bool transposed;
  Numbers output_padding;
  int64_t groups;
  // Computes in channels_last, whatever the tensors look like.
  bool last = false;
  Call call{};
  Dtype dtype = Dtype::other;  // of all tensors

  // Tells whether kernels may compute this at all, and reads the arguments.
  bool ours() {
    if (!(dispatched() || dispatched_if_harmful()) || Api::traced()) return false;
    dtype = Api::dtype_of(input);
    if (dtype == Dtype::other || Api::dtype_of(weight) != dtype) return false;
    const bool understood = understand(Api::strided_of(input), Api::strided_of(weight), stride, padding, dilation, transposed,
                                       output_padding, groups, &call);
    call.channels_last |= last;
    return understood;
  }

  bool bias_fits(const Tensor* bias) const {
    if (!bias) return true;
    return Api::dtype_of(*bias) == dtype && Api::strided_of(*bias).sizes.size() == 1 &&
           Api::strided_of(*bias).sizes[0] == (transposed ? call.x_channels : call.y_channels);
  }

  // Tells whether PyTorch computes a gradient of the weight right. Without oneDNN, which has no float64, PyTorch 2.13 takes an
  // unbatched channels_last input, which reaches this as a batch of one with another stride, for contiguous in one place and not
  // in another.
  bool right_in_pytorch(Direction direction) const {
    const Problem& p = call.problem;
    const bool doubtful = direction == Direction::grad_weight && call.channels_last && p.batch == 1 && p.groups > 1;
    return !doubtful || depthwise(p) || (Api::has_onednn() && dtype != Dtype::float64);
  }

  // Plans one direction of the call. The tensors are those that it reads; the one that it writes is null.
  std::shared_ptr<const Plan> decide(Direction direction, const Tensor* x, const Tensor* y, bool bias = false) const {
    const Strided w = Api::strided_of(weight);
    const bool gradient = direction == Direction::grad_weight;
    const std::optional<Strided> x_form = x ? std::optional(Api::strided_of(*x)) : std::nullopt;
    const std::optional<Strided> y_form = y ? std::optional(Api::strided_of(*y)) : std::nullopt;
    Request request{direction,
                    call.problem,
                    call.channels_last,
                    dtype,
                    threads_that_compute<Api>(),
                    call.dimensions,
                    x ? read_strides(*x_form, call, true) : new_strides(call, true),
                    y ? read_strides(*y_form, call, false) : new_strides(call, false),
                    gradient ? gradient_strides(w, call) : weight_strides(w, call),
                    call.transposed,
                    call.transposed && bias,
                    right_in_pytorch(direction)};
    request.depth = depth_of(call, x ? &*x_form : nullptr, y ? &*y_form : nullptr, w, gradient);
    return plan_of(request, forced());
  }

  // Returns the tensor itself if the kernels can read it, else a copy in the call's format.
  Tensor as_read(const Tensor& t) const {
    return readable(strides_of(Api::strided_of(t)), call) ? t : Api::contiguous(t, call.channels_last);
  }

  // Runs a forward, which reads x and returns y, or a grad_input, which reads y and returns x.
  Tensor correlate(const Plan& plan, const Tensor& read, const Tensor* bias) const {
    const bool forward = plan.request.direction == Direction::forward;
    const Tensor from = as_read(read);
    const Tensor w = depthwise(call.problem) ? Api::contiguous(weight, false) : weight;
    const Tensor b = bias ? Api::contiguous(*bias, false) : Tensor();
    int64_t sizes[kMostDimensions];
    const auto count = static_cast<size_t>(sizes_of(call, !forward, sizes));
    const Tensor to = Api::empty(read, Numbers(sizes, count), call.channels_last);
    Tensors t{};
    const Tensor& x = forward ? from : to;
    const Tensor& y = forward ? to : from;
    t.x = const_cast<float*>(Api::read_of(x));
    t.y = const_cast<float*>(Api::read_of(y));
    t.w = const_cast<float*>(Api::read_of(w));
    t.bias = bias ? Api::read_of(b) : nullptr;
    const typename Api::Profiled shown(plan, {&from, &w, &b});
    plan.work->run(t, Api::parallel_for);
    return to;
  }

  // Returns the gradient of the weight, and writes that of the bias if it gets a place for it.
  Tensor grad_weight(const Plan& plan, const Tensor& x, const Tensor& y, float* grad_bias) const {
    const Tensor from = as_read(x), grad = as_read(y);
    const Strided form = Api::strided_of(weight);
    const Tensor to =
        dense(form) ? Api::empty_strided(weight, form.sizes, form.strides) : Api::empty(weight, form.sizes, false);
    Tensors t{};
    t.x = const_cast<float*>(Api::read_of(from));
    t.y = const_cast<float*>(Api::read_of(grad));
    t.w = Api::write_of(to);
    t.grad_bias = grad_bias;
    const typename Api::Profiled shown(plan, {&from, &grad});
    plan.work->run(t, Api::parallel_for);
    return to;
  }

  // Measures the kernels that can compute what was planned, if that was asked for and not done before, and plans anew.
  // `ours(plan)` and `theirs()` compute it.
  template <class Ours, class Theirs>
  static std::shared_ptr<const Plan> tuned(std::shared_ptr<const Plan> plan, Ours&& ours, Theirs&& theirs) {
    if (!plan->open || !measures(plan->in_table)) return plan;
    // PyTorch's kernel may end the process, or never end itself.
    if (!plan->safe) return plan;
    // Other threads would be measured too, and a choice by time is no deterministic one.
    if (Api::in_parallel_region() || Api::deterministic()) return plan;
    const Request& request = plan->request;
    std::vector<Contender> contenders{{kPyTorch, theirs}};
    std::vector<std::pair<const char*, std::string>> refused;
    const std::vector<Candidate> candidates = candidates_of(request, &refused);
    // The budget may end before the last: those that are expected to be the fastest come first.
    const std::vector<Speedup> expected = judge(request, candidates).speedups;
    std::vector<size_t> order = left_out(candidates, remembered(request));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return expected[a].middle > expected[b].middle; });
    for (const size_t i : order) {
      Plan one = *plan;
      one.kernel = candidates[i].kernel;
      one.work = candidates[i].work;
      contenders.push_back({candidates[i].kernel->name, [&ours, one] { ours(one); }});
    }
    return measure(request, contenders, plan->tries, plan->in_table) ? plan_again(request) : plan;
  }

  // Returns the plan of the kernel that computes what was planned, and records that it was planned; null for PyTorch's own.
  template <class Ours, class Theirs>
  static std::shared_ptr<const Plan> chosen(std::shared_ptr<const Plan> plan, Ours&& ours, Theirs&& theirs) {
    if (!dispatched_if_harmful()) {
      plan = tuned(std::move(plan), ours, theirs);
    } else if (!plan->hazard || !plan->work) {
      return nullptr;
    }
    record(plan);
    return plan->work ? plan : nullptr;
  }

  // Returns the output. `bias` may be null, and `theirs()` is PyTorch's own.
  template <class Theirs>
  Tensor forward(const Tensor* bias, Theirs&& theirs) {
    if (ours() && bias_fits(bias)) {
      const auto run = [&](const Plan& plan) { return correlate(plan, input, bias); };
      const auto plan = chosen(decide(transposed ? Direction::grad_input : Direction::forward, transposed ? nullptr : &input,
                                      transposed ? &input : nullptr, bias),
                               run, theirs);
      if (plan) return run(*plan);
    }
    return theirs();
  }

  // Returns the gradients of input, weight and bias that `mask` asks for. `theirs(mask)` is PyTorch's own.
  template <class Theirs>
  Three backward(const Tensor& grad_output, std::array<bool, 3> mask, Theirs&& theirs) {
    Three grads;
    std::array<bool, 3> left = mask;
    if (ours() && Api::dtype_of(grad_output) == dtype && matches(Api::strided_of(grad_output), Api::strided_of(input), call)) {
      if (mask[0]) {
        const auto run = [&](const Plan& plan) { return correlate(plan, grad_output, nullptr); };
        const auto plan = chosen(decide(transposed ? Direction::forward : Direction::grad_input,
                                        transposed ? &grad_output : nullptr, transposed ? nullptr : &grad_output),
                                 run, [&] { theirs({true, false, false}); });
        if (plan) {
          grads[0] = run(*plan);
          left[0] = false;
        }
      }
      // Whether threads share the gradient of the weight, and are awake when the bias's follows.
      bool shared = false;
      if (mask[1]) {
        float* sums = nullptr;
        const Tensor &x = transposed ? grad_output : input, &y = transposed ? input : grad_output;
        const auto run = [&](const Plan& plan) { return grad_weight(plan, x, y, sums); };
        const auto plan = chosen(decide(Direction::grad_weight, &x, &y), run, [&] { theirs({false, true, false}); });
        if (plan) {
          shared = plan->work->facts.threads > 1;
          if (mask[2] && !transposed && plan->work->sums_grad_output()) {
            grads[2] = Api::empty(weight, Numbers(&call.y_channels, 1), false);
            sums = Api::write_of(grads[2]);
            left[2] = false;
          }
          grads[1] = run(*plan);
          left[1] = false;
        }
      }
      // PyTorch sums the bias's gradient in the pass that makes the weight's, and would run that pass for the bias alone.
      if (left[2] && !left[1]) {
        grads[2] = grad_bias(grad_output, shared);
        left[2] = false;
      }
    }
    if (left[0] || left[1] || left[2]) {
      Three rest = theirs(left);
      for (int i = 0; i < 3; i++)
        if (left[i]) grads[i] = std::move(rest[i]);
    }
    return grads;
  }

 private:
  Tensor grad_bias(const Tensor& grad_output, bool shared) const {
    Tensor from = as_read(grad_output);
    Strided form = Api::strided_of(from);
    // The rows of all planes are summed as those of one, which they are in the call's format.
    if (call.dimensions == 3 && form.sizes[2] > 1 && form.strides[2] != form.sizes[3] * form.strides[3]) {
      from = Api::contiguous(from, call.channels_last);
      form = Api::strided_of(from);
    }
    const Numbers sizes = form.sizes;
    int64_t height = 1;
    for (size_t i = 2; i + 1 < sizes.size(); i++) height *= sizes[i];
    Strides strides = strides_of(form);
    if (call.dimensions == 3) strides.h = form.strides[sizes[3] > 1 ? 3 : 2];
    const double numbers = static_cast<double>(sizes[0] * sizes[1]) * static_cast<double>(height * sizes.back());
    const Tensor to = Api::empty(weight, sizes.subspan(1, 1), false);
    const bool threaded = shared || numbers >= shared_from(kernels(), Api::threads());
    const float* const read = Api::read_of(from);
    float* const written = Api::write_of(to);
    if (is_low(dtype)) {
      sum_low_channels(dtype, sizes[0], sizes[1], height, sizes.back(), reinterpret_cast<const uint16_t*>(read), strides,
                       reinterpret_cast<uint16_t*>(written), threaded, Api::parallel_for);
    } else if (dtype == Dtype::float64) {
      sum_channels(sizes[0], sizes[1], height, sizes.back(), reinterpret_cast<const double*>(read), strides,
                   reinterpret_cast<double*>(written), threaded, Api::parallel_for);
    } else {
      sum_channels(sizes[0], sizes[1], height, sizes.back(), read, strides, written, threaded, Api::parallel_for);
    }
    return to;
  }
};

}  // namespace groupwise
