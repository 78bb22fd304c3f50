#include "torch/layer.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "forked.h"
#include "plan/policy.h"
#include "plan/recording.h"
#include "torch/call.h"
#include "torch/packed.h"
#include "torch/pool.h"
#include "torch/profiled.h"

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

// Returns rows of features as the pixels of one image of one row, in channels_last.
Tensor as_pixels(const Tensor& t) { return t.reshape({-1, t.size(-1)}).t().unsqueeze(0).unsqueeze(2); }

bool same_place(const Tensor& a, const Tensor& b) { return a.const_data_ptr() == b.const_data_ptr(); }

}  // namespace

Call call_of(const Tensor& source, const Tensor& weight, const Geometry& g) {
  Call call;
  TORCH_CHECK(plain(source), "groupwise: a layer runs on float32 tensors on the CPU that are not empty");
  TORCH_CHECK(understand(source, weight, symbolic(g.stride), symbolic(g.padding), symbolic(g.dilation), g.transposed,
                         symbolic(g.output_padding), g.groups, &call),
              "groupwise: a layer with a weight of ", shape_of(weight), " cannot run on a tensor of ", shape_of(source));
  return call;
}

// What runs for a source: one plan, with the weight in the order that it reads, and packed if it packs.
struct Layer::Prepared {
  Request request;
  std::shared_ptr<const Plan> plan;
  Tensor weight, packed;
};

namespace {

// The shape and strides of a tensor of the kind that the kernels compute.
struct Form {
  std::vector<int64_t> sizes, strides;

  bool fits(const Tensor& t) const { return plain(t) && t.sizes().equals(sizes) && t.strides().equals(strides); }
};

// The floats that a tensor reaches over.
int64_t reach_of(const Tensor& t) {
  int64_t reach = 1;
  for (int64_t i = 0; i < t.dim(); i++) reach += (t.size(i) - 1) * t.stride(i);
  return reach;
}

bool apart(const float* a, int64_t a_floats, const float* b, int64_t b_floats) {
  return a + a_floats <= b || b + b_floats <= a;
}

}  // namespace

// A source and an output of these forms need no other check, and no copy.
struct Layer::Kept {
  std::shared_ptr<const Prepared> prepared;
  Form source, out;
  int64_t source_floats = 0, out_floats = 0;
  bool known = false;
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

// The output's strides are `to`.
Request request_of(const Call& call, const Tensor& source, const Strides& to, const Tensor& weight, bool bias) {
  const bool transposed = call.transposed;
  const Strides from = read_strides(source, call, !transposed);
  return {transposed ? Direction::grad_input : Direction::forward,
          call.problem,
          call.channels_last,
          Dtype::float32,
          threads_here(),
          call.dimensions,
          transposed ? to : from,
          transposed ? from : to,
          weight_strides(weight, call),
          transposed,
          transposed && bias};
}

}  // namespace

std::shared_ptr<const Layer::Prepared> Layer::prepared(const Call& call, const Tensor& source, const Tensor& out) const {
  const Request request = request_of(call, source, read_strides(out, call, call.transposed), weight_, bias_.defined());
  if (const auto lock = locked_soon(mutex_))
    for (size_t i = 0; i < kept_.size(); i++)
      if (kept_[i].prepared->request == request) return first(i).prepared;
  auto made = std::make_shared<Prepared>(Prepared{request, plan_of_constant(request, call, kernel_), {}, {}});
  if (made->plan->work) {
    made->weight = ordered(*made->plan, call, weight_);
    made->packed = packed(*made->plan, made->weight);
  }
  if (const auto lock = locked_soon(mutex_)) {
    if (kept_.size() == kMostKept) kept_.pop_back();
    kept_.insert(kept_.begin(), Kept{made, {}, {}});
  }
  return made;
}

// Moves a kept form to the first place.
Layer::Kept& Layer::first(size_t i) const {
  std::rotate(kept_.begin(), kept_.begin() + i, kept_.begin() + i + 1);
  return kept_[0];
}

void Layer::remember(const Prepared* ready, const Tensor& source, const Tensor& out) const {
  const auto lock = locked_soon(mutex_);
  if (!lock) return;
  for (Kept& kept : kept_)
    if (kept.prepared.get() == ready)
      kept = {std::move(kept.prepared),
              {source.sizes().vec(), source.strides().vec()},
              {out.sizes().vec(), out.strides().vec()},
              reach_of(source),
              reach_of(out),
              true};
}

// Runs tensors of forms that have run before, which takes a small part of the time that it takes to understand them. False if
// there is something to look at.
bool Layer::run_again(const Tensor& source, const Tensor& residual, const Tensor& out) const {
  if (residual.defined() != residual_) return false;
  std::shared_ptr<const Prepared> ready;
  {
    const int64_t threads = threads_here();
    const Kernels* target = &kernels();
    const auto lock = locked_soon(mutex_);
    for (size_t i = 0; lock && i < kept_.size(); i++) {
      const Kept& kept = kept_[i];
      const Request& request = kept.prepared->request;
      if (!kept.known || request.threads != threads || request.target != target) continue;
      if (!kept.source.fits(source) || !kept.out.fits(out) || (residual_ && !kept.out.fits(residual))) continue;
      const float* to = out.const_data_ptr<float>();
      if (!apart(source.const_data_ptr<float>(), kept.source_floats, to, kept.out_floats)) return false;
      if (residual_ && !same_place(residual, out) &&
          !apart(residual.const_data_ptr<float>(), kept.out_floats, to, kept.out_floats))
        return false;
      ready = first(i).prepared;
      break;
    }
  }
  if (!ready || (residual_ && same_place(residual, out) && !begins_with_residual(*ready))) return false;
  compute(*ready, source, residual, out);
  return true;
}

std::shared_ptr<const Plan> Layer::plan(const Tensor& source) const {
  const Tensor image = image_of(source);
  const Call call = call_of(image, weight_, geometry_);
  const Problem& p = call.problem;
  // The output of a linear layer has its features side by side.
  const Strides to =
      linear_ ? dense_strides(p.batch, p.out_channels, p.h.out, p.w.out, true) : new_strides(call, call.transposed);
  return plan_of(request_of(call, image, to, weight_, bias_.defined()), kernel_);
}

std::string Layer::kernel(const Tensor& source) const { return plan(source)->name(); }

c10::Dict<std::string, double> Layer::expected(const Tensor& source) const {
  c10::Dict<std::string, double> found;
  const std::shared_ptr<const Plan> planned = plan(source);
  std::vector<std::pair<const char*, std::string>> refused;
  const std::vector<Candidate> candidates = candidates_of(planned->request, &refused);
  const Judgement judgement = judge(planned->request, candidates);
  if (judgement.source != Source::table && judgement.source != Source::measured) return found;
  for (size_t i = 0; i < candidates.size(); i++)
    // Of some kernels nothing is known.
    if (judgement.speedups[i].middle > 0) found.insert(candidates[i].kernel->name, judgement.speedups[i].middle);
  return found;
}

std::string Layer::refuses(const Tensor& source) const {
  try {
    const std::shared_ptr<const Plan> found = plan(source);
    return found->work ? "" : why_not(*found, kernel_);
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
  if (run_again(source, residual, out)) return;
  const at::AutoDispatchBelowADInplaceOrView below;
  std::shared_ptr<const Prepared> ran;
  if (linear_) {
    TORCH_CHECK(out.dim() >= 1 && out.is_contiguous() && out.size(-1) == weight_.size(0),
                "groupwise: a linear layer cannot write its output to a tensor of ", shape_of(out));
    TORCH_CHECK(!residual.defined() || residual.sizes() == out.sizes(), "groupwise: a residual has the output's shape, not ",
                shape_of(residual));
    ran = run_images(image_of(source), residual.defined() ? as_pixels(residual) : residual, as_pixels(out));
    if (!source.is_contiguous()) return;
  } else {
    ran = run_images(source, residual, out);
  }
  if (ran) remember(ran.get(), source, out);
}

std::shared_ptr<const Layer::Prepared> Layer::run_images(const Tensor& source, const Tensor& residual,
                                                         const Tensor& out) const {
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
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, source);
  if (residual_) at::assert_no_partial_overlap(out, residual);
  std::shared_ptr<const Prepared> ready = prepared(call, source, out);
  TORCH_CHECK(ready->plan->work, "groupwise: this layer cannot run: ", why_not(*ready->plan, kernel_));
  const Tensor from = as_read(source, call);
  // An output that the kernels cannot write in place, such as every second column of a tensor, is copied to it.
  const bool direct = readable(strides_of(out), call);
  const Tensor to = direct ? out : groupwise::empty(call, call.transposed, source.options().requires_grad(false));
  Tensor added = residual;
  if (residual_ && (strides_of(residual) != strides_of(to) || (same_place(residual, to) && !begins_with_residual(*ready)))) {
    added = at::empty_strided(to.sizes(), to.strides(), to.options());
    added.copy_(residual);
  }
  compute(*ready, from, added, to);
  if (!direct) out.copy_(to);
  return direct && from.is_same(source) ? ready : nullptr;
}

bool Layer::begins_with_residual(const Prepared& ready) const {
  return before_.kind == Activation::none && ready.plan->work->begins_with_residual();
}

// Computes an output that the kernels write in place, of a source that they read in place. The residual has the output's strides.
void Layer::compute(const Prepared& ready, const Tensor& source, const Tensor& residual, const Tensor& out) const {
  Epilogue epilogue{before_, residual_ ? residual.const_data_ptr<float>() : nullptr, after_};
  const Tensor& x = geometry_.transposed ? out : source;
  const Tensor& y = geometry_.transposed ? source : out;
  Tensors t{};
  float* const written = out.mutable_data_ptr<float>();
  t.x = geometry_.transposed ? written : const_cast<float*>(x.const_data_ptr<float>());
  t.y = geometry_.transposed ? const_cast<float*>(y.const_data_ptr<float>()) : written;
  t.w = const_cast<float*>(ready.weight.const_data_ptr<float>());
  t.bias = bias_.defined() ? bias_.const_data_ptr<float>() : nullptr;
  if (residual_ || before_.kind != Activation::none) t.epilogue = &epilogue;
  t.packed = ready.packed.defined() ? ready.packed.const_data_ptr<float>() : nullptr;
  record(ready.plan);
  const Profiled shown(*ready.plan, {&source, &weight_, &bias_, &residual});
  ready.plan->work->run(t, parallel_for);
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

// The same with an output in channels_last, also for a source that is contiguous.
Tensor run_last(const Self& self, const Tensor& source, const std::optional<Tensor>& residual) {
  Tensor out = self->empty(source);
  TORCH_CHECK(out.dim() == 4, "groupwise: only images are in channels_last");
  out = at::empty(out.sizes(), out.options().memory_format(at::MemoryFormat::ChannelsLast));
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
      .def("expected", [](const groupwise::Self& self, const at::Tensor& source) { return self->expected(source); })
      .def("kernel", [](const groupwise::Self& self, const at::Tensor& source) { return self->kernel(source); })
      .def("empty", [](const groupwise::Self& self, const at::Tensor& source) { return self->empty(source); })
      .def("run", &groupwise::run)
      .def("run_out", &groupwise::run_out)
      .def("run_last", &groupwise::run_last)
      .def("run_last_out", &groupwise::run_out);
}
