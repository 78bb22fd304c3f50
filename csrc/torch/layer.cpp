#include "torch/layer.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "plan/recording.h"
#include "torch/call.h"
#include "torch/pool.h"

namespace groupwise {

using at::Tensor;

namespace {

// Sources of so many kinds keep their plans and packed weights.
constexpr size_t kMostKept = 8;

std::vector<c10::SymInt> symbolic(const std::vector<int64_t>& numbers) { return {numbers.begin(), numbers.end()}; }

std::string shape_of(const Tensor& t) {
  std::string shape;
  for (const int64_t size : t.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  return "(" + shape + ")";
}

Call call_of(const Tensor& source, const Tensor& weight, const Geometry& g) {
  Call call;
  TORCH_CHECK(plain(source), "groupwise: a layer runs on float32 tensors on the CPU that are not empty");
  TORCH_CHECK(understand(source, weight, symbolic(g.stride), symbolic(g.padding), symbolic(g.dilation), g.transposed,
                         symbolic(g.output_padding), g.groups, &call),
              "groupwise: a layer with a weight of ", shape_of(weight), " cannot run on a tensor of ", shape_of(source));
  return call;
}

// Returns a copy of a weight in which the output channels of a group are neighbours, which is how `groups` packs them.
Tensor by_outputs(const Tensor& weight, const Call& call) {
  const Problem& p = call.problem;
  // The channels of the first dimension are the outputs, or the inputs if it is transposed.
  const Tensor blocks = weight.reshape({p.groups, p.out_channels, p.in_channels, p.h.kernel * p.w.kernel});
  const std::vector<int64_t> order = call.transposed ? std::vector<int64_t>{0, 3, 1, 2} : std::vector<int64_t>{0, 3, 2, 1};
  return blocks.permute(order).contiguous();
}

WeightStrides strides_by_outputs(const Call& call) {
  const Problem& p = call.problem;
  const int64_t out = call.transposed ? p.in_channels : p.out_channels, in = call.transposed ? p.out_channels : p.in_channels;
  WeightStrides s{p.h.kernel * p.w.kernel * in * out, 1, out, p.w.kernel * in * out, in * out};
  // A transposed weight is named as the forward convolution's, whose outputs are this one's inputs.
  if (call.transposed) std::swap(s.o, s.c);
  return s;
}

// Returns rows of features as the pixels of one image of one row, in channels_last.
Tensor as_pixels(const Tensor& t) { return t.reshape({-1, t.size(-1)}).t().unsqueeze(0).unsqueeze(2); }

bool same_place(const Tensor& a, const Tensor& b) { return a.const_data_ptr() == b.const_data_ptr(); }

}  // namespace

// What runs for a source: one plan, with the weight in the order that it reads, and packed if it packs.
struct Layer::Prepared {
  Request request;
  std::shared_ptr<const Plan> plan;
  Tensor weight, packed;
};

Layer::Layer(const Tensor& weight, const std::optional<Tensor>& bias, Geometry geometry, const Activate& before, bool residual,
             const Activate& after, std::string kernel)
    : geometry_(std::move(geometry)), before_(before), after_(after), residual_(residual), kernel_(std::move(kernel)) {
  TORCH_CHECK(plain(weight) && weight.dim() >= 2 && weight.dim() <= 4,
              "groupwise: a layer takes a float32 weight on the CPU of 2, 3 or 4 dimensions");
  linear_ = weight.dim() == 2;
  TORCH_CHECK(geometry_.groups >= 1, "groupwise: a layer has at least one group");
  // An activation after no sum is the one before it.
  if (!residual_) {
    TORCH_CHECK(before_.kind == Activation::none || after_.kind == Activation::none,
                "groupwise: a layer without a residual has one activation");
    if (before_.kind == Activation::none) std::swap(before_, after_);
  }
  const auto& table = kernel_table();
  TORCH_CHECK(
      kernel_.empty() || std::any_of(table.begin(), table.end(), [&](const KernelRow* row) { return row->name == kernel_; }),
      "groupwise: there is no kernel '", kernel_, "'");
  weight_ = weight.detach();
  if (linear_) {
    TORCH_CHECK(geometry_.groups == 1 && !geometry_.transposed, "groupwise: a linear layer has one group");
    geometry_.stride = geometry_.dilation = {1};
    geometry_.padding = geometry_.output_padding = {0};
    weight_ = weight_.contiguous().unsqueeze(2).unsqueeze(3);
  }
  if (bias && bias->defined()) {
    const int64_t outputs = geometry_.transposed ? weight.size(1) * geometry_.groups : weight.size(0);
    TORCH_CHECK(plain(*bias) && bias->dim() == 1 && bias->size(0) == outputs,
                "groupwise: a bias has one float32 an output channel");
    bias_ = bias->detach().contiguous();
  }
}

Layer::~Layer() = default;

namespace {

// `out` is null for a new output.
Request request_of(const Call& call, const Tensor& source, const Tensor* out, const Tensor& weight) {
  const bool transposed = call.transposed;
  const Strides from = read_strides(source, call, !transposed);
  const Strides to = out ? read_strides(*out, call, transposed) : new_strides(call, transposed);
  return {transposed ? Direction::grad_input : Direction::forward,
          call.problem,
          call.channels_last,
          true,
          threads_here(),
          call.dimensions,
          transposed ? to : from,
          transposed ? from : to,
          weight_strides(weight, call),
          transposed};
}

}  // namespace

std::shared_ptr<const Layer::Prepared> Layer::prepared(const Call& call, const Tensor& source, const Tensor& out) const {
  const Request request = request_of(call, source, &out, weight_);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < kept_.size(); i++)
    if (kept_[i]->request == request) {
      std::rotate(kept_.begin(), kept_.begin() + i, kept_.begin() + i + 1);
      return kept_[0];
    }
  auto made = std::make_shared<Prepared>(Prepared{request, plan_of(request, kernel_), {}, {}});
  if (made->plan->work) {
    const char* name = made->plan->name();
    if (name == std::string_view("groups")) {
      Request ordered = request;
      ordered.w_strides = strides_by_outputs(call);
      made->plan = plan_of(ordered, name);
      made->weight = by_outputs(weight_, call);
    } else {
      made->weight = depthwise(call.problem) ? weight_.contiguous() : weight_;
    }
    if (const int64_t floats = made->plan->work->packed_floats(); floats > 0) {
      made->packed = at::empty({floats}, weight_.options());
      made->plan->work->pack(made->weight.const_data_ptr<float>(), made->packed.mutable_data_ptr<float>(), parallel_for);
    }
  }
  if (kept_.size() == kMostKept) kept_.pop_back();
  kept_.insert(kept_.begin(), made);
  return made;
}

std::shared_ptr<const Plan> Layer::plan(const Tensor& source) const {
  const Tensor image = image_of(source);
  const Call call = call_of(image, weight_, geometry_);
  return plan_of(request_of(call, image, nullptr, weight_), kernel_);
}

std::string Layer::kernel(const Tensor& source) const { return plan(source)->name(); }

std::string Layer::why_not(const Plan& plan) const {
  if (kernel_.empty()) return "the planner leaves it to PyTorch";
  for (const auto& [name, why] : plan.refused)
    if (name == kernel_) return why;
  return "it computes other directions";
}

std::string Layer::refuses(const Tensor& source) const {
  try {
    const std::shared_ptr<const Plan> found = plan(source);
    return found->work ? "" : why_not(*found);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

Tensor Layer::image_of(const Tensor& source) const {
  if (!linear_) return source;
  TORCH_CHECK(source.dim() >= 1 && source.numel() > 0 && source.size(-1) == weight_.size(1),
              "groupwise: a linear layer with a weight of ", shape_of(weight_), " cannot run on a tensor of ",
              shape_of(source));
  const at::AutoDispatchBelowADInplaceOrView below;
  return as_pixels(source);
}

Tensor Layer::empty(const Tensor& source) const {
  const at::AutoDispatchBelowADInplaceOrView below;
  const at::TensorOptions options = source.options().requires_grad(false);
  const Call call = call_of(image_of(source), weight_, geometry_);
  if (!linear_) return groupwise::empty(call, call.transposed, options);
  std::vector<int64_t> sizes = source.sizes().vec();
  sizes.back() = weight_.size(0);
  return at::empty(sizes, options);
}

void Layer::run(const Tensor& source, const Tensor& residual, const Tensor& out) const {
  if (!linear_) return run_images(source, residual, out);
  const at::AutoDispatchBelowADInplaceOrView below;
  TORCH_CHECK(out.dim() >= 1 && out.is_contiguous() && out.size(-1) == weight_.size(0),
              "groupwise: a linear layer cannot write its output to a tensor of ", shape_of(out));
  TORCH_CHECK(!residual.defined() || residual.sizes() == out.sizes(), "groupwise: a residual has the output's shape, not ",
              shape_of(residual));
  run_images(image_of(source), residual.defined() ? as_pixels(residual) : residual, as_pixels(out));
}

void Layer::run_images(const Tensor& source, const Tensor& residual, const Tensor& out) const {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Call call = call_of(source, weight_, geometry_);
  const Problem& p = call.problem;
  const auto fits = [&](const Tensor& t) {
    if (!plain(t) || t.dim() != source.dim() || t.size(0) != p.batch) return false;
    if (t.size(1) != (call.transposed ? call.x_channels : call.y_channels)) return false;
    if (t.size(t.dim() - 1) != (call.transposed ? p.w.in : p.w.out)) return false;
    return call.dimensions == 1 || t.size(2) == (call.transposed ? p.h.in : p.h.out);
  };
  TORCH_CHECK(fits(out), "groupwise: a layer cannot write its output to a tensor of ", shape_of(out));
  TORCH_CHECK(residual.defined() == residual_, "groupwise: a layer is run with a residual if it was made with one");
  TORCH_CHECK(!residual_ || fits(residual), "groupwise: a residual has the output's shape, not ", shape_of(residual));
  at::assert_no_overlap(out, source);
  const std::shared_ptr<const Prepared> ready = prepared(call, source, out);
  const Plan& plan = *ready->plan;
  TORCH_CHECK(plan.work, "groupwise: this layer cannot run: ", why_not(plan));
  const Tensor from = as_read(source, call);
  // An output that the kernels cannot write in place, such as every second column of a tensor, is copied to it.
  const bool direct = readable(strides_of(out), call);
  const Tensor to = direct ? out : groupwise::empty(call, call.transposed, source.options().requires_grad(false));
  Epilogue epilogue{before_, nullptr, after_};
  Tensor added = residual;
  if (residual_) {
    const bool begins = before_.kind == Activation::none && plan.work->begins_with_residual();
    if (strides_of(residual) != strides_of(to) || (same_place(residual, to) && !begins)) {
      added = at::empty_strided(to.sizes(), to.strides(), to.options());
      added.copy_(residual);
    }
    epilogue.residual = added.const_data_ptr<float>();
  }
  Tensors t{};
  const Tensor& x = call.transposed ? to : from;
  const Tensor& y = call.transposed ? from : to;
  t.x = const_cast<float*>(x.const_data_ptr<float>());
  t.y = const_cast<float*>(y.const_data_ptr<float>());
  t.w = const_cast<float*>(ready->weight.const_data_ptr<float>());
  t.bias = bias_.defined() ? bias_.const_data_ptr<float>() : nullptr;
  if (residual_ || before_.kind != Activation::none) t.epilogue = &epilogue;
  t.packed = ready->packed.defined() ? ready->packed.const_data_ptr<float>() : nullptr;
  record(ready->plan);
  plan.work->run(t, parallel_for);
  if (!direct) out.copy_(to);
}

constexpr std::string_view kNames[] = {"none",        "relu",    "relu6", "leaky_relu", "silu", "hardswish",
                                       "hardsigmoid", "sigmoid", "tanh",  "hardtanh",   "gelu", "gelu_tanh"};

Activate activate_of(const std::string& name, const std::vector<double>& numbers) {
  for (size_t i = 0; i < std::size(kNames); i++) {
    if (kNames[i] != name) continue;
    const auto kind = static_cast<Activation>(i);
    const size_t wanted = kind == Activation::leaky_relu ? 1 : kind == Activation::hardtanh ? 2 : 0;
    TORCH_CHECK(numbers.size() == wanted, "groupwise: activation '", name, "' takes ", wanted, " numbers");
    return {kind, wanted > 0 ? static_cast<float>(numbers[0]) : 0, wanted > 1 ? static_cast<float>(numbers[1]) : 0};
  }
  TORCH_CHECK(false, "groupwise: activation '", name, "' is not known");
}

namespace {

using Numbers = std::vector<int64_t>;
using Self = c10::intrusive_ptr<Layer>;

Self make_layer(const Tensor& weight, const std::optional<Tensor>& bias, Numbers stride, Numbers padding, Numbers dilation,
                bool transposed, Numbers output_padding, int64_t groups, const std::string& before,
                const std::vector<double>& before_numbers, bool residual, const std::string& after,
                const std::vector<double>& after_numbers, std::string kernel) {
  return c10::make_intrusive<Layer>(
      weight, bias,
      Geometry{std::move(stride), std::move(padding), std::move(dilation), transposed, std::move(output_padding), groups},
      activate_of(before, before_numbers), residual, activate_of(after, after_numbers), std::move(kernel));
}

Tensor run(const Self& self, const Tensor& source, const std::optional<Tensor>& residual) {
  Tensor out = self->empty(source);
  self->run(source, residual.value_or(Tensor()), out);
  return out;
}

Tensor run_out(const Self& self, const Tensor& source, const std::optional<Tensor>& residual, const Tensor& out) {
  self->run(source, residual.value_or(Tensor()), out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  using groupwise::Layer;
  m.class_<Layer>("Layer")
      .def(torch::init(&groupwise::make_layer))
      .def("refuses", [](const groupwise::Self& self, const at::Tensor& source) { return self->refuses(source); })
      .def("kernel", [](const groupwise::Self& self, const at::Tensor& source) { return self->kernel(source); })
      .def("empty", [](const groupwise::Self& self, const at::Tensor& source) { return self->empty(source); })
      .def("run", &groupwise::run)
      .def("run_out", &groupwise::run_out);
}
