// The operators groupwise::batch_norm_act and groupwise::batch_norm_act_backward, for float32 on the CPU. The first
// knows its gradient, which the second computes; its own gradient is in norm_gradient.cpp.
#include <ATen/Parallel.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "kernels/norm/norm.h"
#include "torch/autograd.h"
#include "torch/norm.h"
#include "torch/pool.h"

namespace groupwise {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

constexpr const char* kForward =
    "batch_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, Tensor? residual, "
    "bool training, float eps, str activation, float slope) -> (Tensor, Tensor, Tensor)";
constexpr const char* kBackward =
    "batch_norm_act_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, Tensor? kept, "
    "bool training, float eps, str activation, float slope, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)";

constexpr const char* kTrack =
    "batch_norm_track(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor variance, float momentum, "
    "SymInt count) -> ()";

// The numbers of 2 MiB.
constexpr int64_t kFitsCache = 1 << 19;

Outputs forward(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& running_mean,
                const OptionalTensor& running_var, const OptionalTensor& residual, bool training, double eps,
                std::string_view activation, double slope) {
  Norm n = norm_of(x, activation_of(activation), slope);
  const Tensor from = x.contiguous(x.suggest_memory_format());
  const Tensor w = channel_vector(weight, x, "weight"), b = channel_vector(bias, x, "bias");
  const Tensor added = residual && residual->defined() ? like(*residual, x, "residual") : Tensor();
  const Tensor y = new_like(x), mean = new_vector(x), variance = new_vector(x);
  if (!training) {
    const Tensor m = channel_vector(running_mean, x, "running_mean"), v = channel_vector(running_var, x, "running_var");
    TORCH_CHECK(m.defined() && v.defined(), "groupwise: eval mode needs running_mean and running_var");
    mean.copy_(m);
    variance.copy_(v);
  }
  n.x = read(from);
  n.residual = read(added);
  n.y = written(y);
  norm_forward(n, {read(w), read(b), written(mean), written(variance), eps}, training, {threads_here(), parallel_for});
  return {y, mean, variance};
}

// What `backward` does. The gradient of x takes the memory of the gradient given, if that is `spent` and a sweep may write there.
Grads backward_from(const Tensor& grad, bool spent, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                    const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
                    std::string_view activation, double slope, Wanted wanted) {
  Norm n = norm_of(x, activation_of(activation), slope);
  const Tensor from = x.contiguous(x.suggest_memory_format()), g = like(grad, x, "grad");
  const Tensor w = channel_vector(weight, x, "weight"), b = channel_vector(bias, x, "bias");
  const Tensor m = channel_vector(mean, x, "mean"), v = channel_vector(variance, x, "variance");
  const bool keeps = kept && kept->defined();
  const Tensor other = keeps ? like(*kept, x, "kept") : Tensor();
  const bool over = (spent || !g.is_same(grad)) && rewritable(n.shape);
  const Tensor grad_x = wanted[0] ? (over ? g : new_like(x)) : Tensor(), grad_weight = wanted[1] ? new_vector(x) : Tensor();
  const Tensor grad_bias = wanted[2] ? new_vector(x) : Tensor();
  // The second sweep does not read what is kept, and needs the gradient behind the activation if there is something. To compute
  // an exponential twice takes longer than to keep that gradient, in the place of the one before, or as long as it stays in the cache.
  const bool keeps_passed = keeps || (training && costly(n.activation) && (over || x.numel() <= kFitsCache));
  const bool passes = wanted[3] || (wanted[0] && keeps_passed);
  const Tensor passed = passes ? (over && !wanted[3] ? g : new_like(x)) : Tensor();
  n.x = read(from);
  n.grad = read(g);
  n.kept = read(other);
  if (keeps) n.kind = kept_with_residual(n.activation, n.slope);
  n.passed = written(passed);
  norm_backward(n, {read(w), read(b), written(m), written(v), eps}, training,
                {written(grad_x), written(grad_weight), written(grad_bias)}, {threads_here(), parallel_for});
  return {grad_x, grad_weight, grad_bias, wanted[3] ? passed : Tensor()};
}

Grads backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
               const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
               std::string_view activation, double slope, Wanted wanted) {
  return backward_from(grad, false, x, weight, bias, mean, variance, kept, training, eps, activation, slope, wanted);
}

// Moves running statistics towards those of a batch of `count` values a channel, of which the running variance is not biased.
void track(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& variance, double momentum,
           int64_t count) {
  const int64_t channels = mean.numel();
  for (const Tensor* t : {&running_mean, &running_var, &mean, &variance}) {
    check(*t, "a statistic");
    TORCH_CHECK(t->dim() == 1 && t->size(0) == channels, "groupwise: statistics must have one number a channel");
  }
  TORCH_CHECK(count > 1, "groupwise: a batch of ", count, " values a channel has no variance; it needs two");
  const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
  // Shares of float would not sum to 1, and statistics would settle beside those of the batches.
  const auto moved = [&](float from, double to) { return static_cast<float>((1 - momentum) * from + momentum * to); };
  auto means = running_mean.accessor<float, 1>(), variances = running_var.accessor<float, 1>();
  const auto new_means = mean.accessor<const float, 1>(), new_variances = variance.accessor<const float, 1>();
  for (int64_t c = 0; c < channels; c++) {
    means[c] = moved(means[c], new_means[c]);
    variances[c] = moved(variances[c], new_variances[c] * unbiased);
  }
}

Outputs forward_meta(const Tensor& x, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, bool, double, std::string_view, double) {
  return {new_like(x), new_vector(x), new_vector(x)};
}

void track_meta(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, c10::SymInt) {}

Grads backward_meta(const Tensor&, const Tensor& x, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                    const OptionalTensor&, bool, double, std::string_view, double, Wanted wanted) {
  return {wanted[0] ? new_like(x) : Tensor(), wanted[1] ? new_vector(x) : Tensor(), wanted[2] ? new_vector(x) : Tensor(),
          wanted[3] ? new_like(x) : Tensor()};
}

Outputs call_forward(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                     const OptionalTensor& running_mean, const OptionalTensor& running_var, const OptionalTensor& residual,
                     bool training, double eps, std::string_view activation, double slope) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("groupwise::batch_norm_act", "").typed<decltype(forward)>();
  return op.call(x, weight, bias, running_mean, running_var, residual, training, eps, activation, slope);
}

Grads call_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                    const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
                    std::string_view activation, double slope, Wanted wanted) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("groupwise::batch_norm_act_backward", "").typed<decltype(backward)>();
  return op.call(grad, x, weight, bias, mean, variance, kept, training, eps, activation, slope, wanted);
}

OptionalTensor some(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

bool needs_grad(const OptionalTensor& t) { return t && t->defined() && t->requires_grad(); }

class BatchNormAct : public torch::autograd::Function<BatchNormAct> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const Tensor& x,
                                                const OptionalTensor& weight, const OptionalTensor& bias,
                                                const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                                const OptionalTensor& residual, bool training, double eps,
                                                std::string activation, double slope) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [y, mean, variance] =
        call_forward(x, weight, bias, running_mean, running_var, residual, training, eps, activation, slope);
    Tensor kept;
    if (residual && residual->defined()) {
      const Kept kind = kept_with_residual(activation_of(activation), static_cast<float>(slope));
      if (kind == Kept::residual) kept = *residual;
      if (kind == Kept::output) kept = y;
    }
    context->save_for_backward({x, weight.value_or(Tensor()), bias.value_or(Tensor()), mean, variance, kept});
    context->mark_non_differentiable({mean, variance});
    const auto there = [](const OptionalTensor& t) { return t && t->defined(); };
    context->saved_data["statistics"] = int64_t{there(running_mean)} + int64_t{there(running_var)};
    context->saved_data["adds"] = there(residual);
    context->saved_data["training"] = training;
    context->saved_data["eps"] = eps;
    context->saved_data["activation"] = activation;
    context->saved_data["slope"] = slope;
    return {y, mean, variance};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    torch::autograd::variable_list results(10);
    if (!grads[0].defined()) return results;
    const auto saved = context->get_saved_variables();
    const auto& data = context->saved_data;
    const std::string activation = data.at("activation").toStringRef();
    // The edges of the graph are of the tensors that there are, in their order.
    size_t edge = 0;
    const auto next = [&](bool there) { return there && context->needs_input_grad(edge++); };
    Wanted wanted{next(true), next(saved[1].defined()), next(saved[2].defined()), false};
    edge += data.at("statistics").toInt();
    wanted[3] = next(data.at("adds").toBool());
    // A sum hands its gradient on as it is.
    const bool plain_sum = wanted[3] && activation == "none";
    if (plain_sum) {
      results[5] = grads[0];
      wanted[3] = false;
    }
    if (!wanted[0] && !wanted[1] && !wanted[2] && !wanted[3]) return results;
    const auto differentiate = [&](auto&& how) {
      return how(saved[0], some(saved[1]), some(saved[2]), saved[3], saved[4], some(saved[5]), data.at("training").toBool(),
                 data.at("eps").toDouble(), activation, data.at("slope").toDouble(), wanted);
    };
    // The operator's schema promises that it changes nothing, so that this is not a call of it.
    const auto [x, weight, bias, other] = differentiate([&](const auto&... rest) {
      if (plain_sum || !is_spent(grads[0]) || at::areAnyTensorSubclassLike(saved)) return call_backward(grads[0], rest...);
      RECORD_FUNCTION("groupwise::batch_norm_act_backward", c10::ArrayRef<const c10::IValue>{});
      const at::AutoDispatchBelowADInplaceOrView below;
      return backward_from(grads[0], true, rest...);
    });
    results[0] = x;
    results[1] = weight;
    results[2] = bias;
    if (!plain_sum) results[5] = other;
    return results;
  }
};

Outputs forward_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& running_mean, const OptionalTensor& running_var, const OptionalTensor& residual,
                         bool training, double eps, std::string_view activation, double slope) {
  if (at::GradMode::is_enabled() && (needs_grad(x) || needs_grad(weight) || needs_grad(bias) || needs_grad(residual))) {
    const auto out = BatchNormAct::apply(x, weight, bias, running_mean, running_var, residual, training, eps,
                                         std::string(activation), slope);
    return {out[0], out[1], out[2]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_forward(x, weight, bias, running_mean, running_var, residual, training, eps, activation, slope);
}

Grads backward_autograd(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                        const Tensor& mean, const Tensor& variance, const OptionalTensor& kept, bool training, double eps,
                        std::string_view activation, double slope, Wanted wanted) {
  if (differentiates(grad) || differentiates(x) || differentiates(weight) || differentiates(bias) || differentiates(kept))
    return differentiable_backward(grad, x, weight, bias, mean, variance, kept, training, eps, activation_of(activation), slope,
                                   wanted);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad, x, weight, bias, mean, variance, kept, training, eps, activation, slope, wanted);
}

}  // namespace
}  // namespace groupwise

// A fragment, since other files may define operators of the same library. Memory formats are the inputs' own, whichever Inductor
// gives them.
TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  m.def(groupwise::kForward, {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  m.def(groupwise::kBackward, {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  m.def(groupwise::kTrack, {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("batch_norm_act", &groupwise::forward);
  m.impl("batch_norm_act_backward", &groupwise::backward);
  m.impl("batch_norm_track", &groupwise::track);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("batch_norm_act", &groupwise::forward_meta);
  m.impl("batch_norm_act_backward", &groupwise::backward_meta);
  m.impl("batch_norm_track", &groupwise::track_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("batch_norm_act", &groupwise::forward_autograd);
  m.impl("batch_norm_act_backward", &groupwise::backward_autograd);
}
