// The operator groupwise::squeeze_excite, for float32 and bfloat16 on the CPU, with an output of its own or a given one, which
// may be x. Beside a bfloat16 x the weights and biases may be float32. The gradient of a float32 x reads x and the gradient of
// y in two sweeps; all other gradients, also those of gradients and of tensors that others wrap, are PyTorch's.
#include <ATen/MemoryOverlap.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/hardsigmoid.h>
#include <ATen/ops/hardsigmoid_backward.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardswish_backward.h>
#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/relu6.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "torch/autograd.h"
#include "torch/pool.h"
#include "torch/squeeze.h"

namespace groupwise {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kSchema =
    "squeeze_excite(Tensor x, Tensor? weight1, Tensor? bias1, str activation1, Tensor? weight2, Tensor? bias2, "
    "str activation2) -> Tensor";
constexpr const char* kOutSchema =
    "squeeze_excite.out(Tensor x, Tensor? weight1, Tensor? bias1, str activation1, Tensor? weight2, Tensor? bias2, "
    "str activation2, *, Tensor(a!) out) -> Tensor(a!)";

// The activations that need no number beside their name.
struct Named {
  std::string_view name;
  Activation activation;
  Tensor (*composed)(const Tensor&);
  // Of the gradient of what it returned, of what it was given and of what it returned.
  Tensor (*gradient)(const Tensor&, const Tensor&, const Tensor&);
};
constexpr std::array<Named, 8> kActivationsHere{{
    {"none", Activation::none, [](const Tensor& t) { return t; },
     [](const Tensor& grad, const Tensor&, const Tensor&) { return grad; }},
    {"relu", Activation::relu, [](const Tensor& t) { return at::relu(t); },
     [](const Tensor& grad, const Tensor&, const Tensor& y) { return at::threshold_backward(grad, y, 0); }},
    {"relu6", Activation::relu6, [](const Tensor& t) { return at::relu6(t); },
     [](const Tensor& grad, const Tensor& t, const Tensor&) { return at::hardtanh_backward(grad, t, 0, 6); }},
    {"silu", Activation::silu, [](const Tensor& t) { return at::silu(t); },
     [](const Tensor& grad, const Tensor& t, const Tensor&) { return at::silu_backward(grad, t); }},
    {"hardswish", Activation::hardswish, [](const Tensor& t) { return at::hardswish(t); },
     [](const Tensor& grad, const Tensor& t, const Tensor&) { return at::hardswish_backward(grad, t); }},
    {"hardsigmoid", Activation::hardsigmoid, [](const Tensor& t) { return at::hardsigmoid(t); },
     [](const Tensor& grad, const Tensor& t, const Tensor&) { return at::hardsigmoid_backward(grad, t); }},
    {"sigmoid", Activation::sigmoid, [](const Tensor& t) { return at::sigmoid(t); },
     [](const Tensor& grad, const Tensor&, const Tensor& y) { return at::sigmoid_backward(grad, y); }},
    {"tanh", Activation::tanh, [](const Tensor& t) { return at::tanh(t); },
     [](const Tensor& grad, const Tensor&, const Tensor& y) { return at::tanh_backward(grad, y); }},
}};

const Named& named(std::string_view name) {
  for (const Named& row : kActivationsHere)
    if (row.name == name) return row;
  TORCH_CHECK(false, "groupwise: activation '", std::string(name), "' is not known to squeeze_excite");
}

bool there(const OptionalTensor& t) { return t && t->defined(); }

// `dtype` is that of x. Beside bfloat16 the others may be more exact.
void check(const Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(
      (t.scalar_type() == at::kFloat || (t.scalar_type() == dtype && dtype == at::kBFloat16)) && t.layout() == at::kStrided,
      "groupwise: ", name, " must be a dense float32 tensor, or bfloat16 as x is");
}

// A product by shape: a weight of [outputs, inputs], which may have dimensions of size 1 after these, and a bias of [outputs].
// Without a weight there are as many outputs as inputs.
c10::SymInt outputs_of(const OptionalTensor& weight, const OptionalTensor& bias, const c10::SymInt& inputs,
                       at::ScalarType dtype, const char* which) {
  c10::SymInt outputs = inputs;
  if (there(weight)) {
    check(*weight, dtype, which);
    TORCH_CHECK(weight->dim() >= 2 && weight->sym_size(1) == inputs && weight->sym_numel() == weight->sym_size(0) * inputs,
                "groupwise: ", which, " must have the shape [outputs, inputs] or [outputs, inputs, 1, 1], and ", inputs,
                " inputs, not ", weight->sym_sizes());
    outputs = weight->sym_size(0);
  }
  if (there(bias)) {
    check(*bias, dtype, "a bias");
    TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == outputs, "groupwise: the bias of ", which,
                " must have one number an output");
  }
  return outputs;
}

void check_all(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
               const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2) {
  const at::ScalarType dtype = x.scalar_type();
  check(x, dtype, "x");
  TORCH_CHECK(x.dim() >= 3, "groupwise: x must have samples, channels and pixels, not the shape ", x.sym_sizes());
  named(act1), named(act2);
  const c10::SymInt hidden = outputs_of(w1, b1, x.sym_size(1), dtype, "weight1");
  TORCH_CHECK(hidden > 0 || x.sym_size(1) == 0, "groupwise: weight1 must have outputs");
  TORCH_CHECK(outputs_of(w2, b2, hidden, dtype, "weight2") == x.sym_size(1), "groupwise: weight2 must have ", x.sym_size(1),
              " outputs, one a channel");
}

// A memory format that suits the strides of x, also if those leave gaps.
Tensor dense(const Tensor& x) { return x.contiguous(x.suggest_memory_format()); }
Tensor new_like(const Tensor& x) { return at::empty_like(x, x.options(), x.suggest_memory_format()); }

// Computes y, which has the strides of x, both dense; it may be x. Fills `mean` if it is defined.
void compute(const Tensor& x, const Tensor& y, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
             const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2, const Tensor& mean = {}) {
  if (x.numel() == 0) return;
  const Squeeze s = squeeze_of(x, y);
  std::vector<Tensor> kept;
  const auto read = [&](const OptionalTensor& t, bool exact) -> const void* {
    if (!there(t)) return nullptr;
    kept.push_back(exact ? t->contiguous().to(at::kFloat) : t->contiguous());
    return kept.back().const_data_ptr();
  };
  const auto gate = [&](const OptionalTensor& w, const OptionalTensor& b, std::string_view act, int64_t inputs) {
    const bool low = there(w) && w->scalar_type() == at::kBFloat16;
    return Gate{s.samples,
                inputs,
                there(w) ? w->size(0) : inputs,
                read(w, false),
                static_cast<const float*>(read(b, true)),
                low,
                named(act).activation};
  };
  Gate first = gate(w1, b1, act1, s.channels);
  const Gate second = gate(w2, b2, act2, first.outputs);
  if (!first.weight && !first.bias && first.activation == Activation::none) first.outputs = 0;
  squeeze_excite(s, first, second, {threads_here(), parallel_for}, mean.defined() ? mean.mutable_data_ptr<float>() : nullptr);
}

Tensor forward(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
               const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2) {
  check_all(x, w1, b1, act1, w2, b2, act2);
  const Tensor y = new_like(x);
  compute(dense(x), y, w1, b1, act1, w2, b2, act2);
  return y;
}

void check_out(const Tensor& x, const Tensor& out) {
  TORCH_CHECK(out.scalar_type() == x.scalar_type(), "groupwise: out must have the dtype of x, not ", out.scalar_type());
  TORCH_CHECK(out.device() == x.device(), "groupwise: out must be on the device of x");
}

Tensor& forward_out(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
                    const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2, Tensor& out) {
  check_all(x, w1, b1, act1, w2, b2, act2);
  check_out(x, out);
  at::native::resize_output(out, x.sizes());
  at::assert_no_internal_overlap(out);
  at::assert_no_partial_overlap(out, x);
  for (const OptionalTensor* t : {&w1, &b1, &w2, &b2})
    if (there(*t)) at::assert_no_overlap(out, **t);
  const Tensor from = dense(x);
  if (out.strides() == from.strides()) {
    compute(from, out, w1, b1, act1, w2, b2, act2);
  } else {
    const Tensor y = from.is_same(x) ? new_like(x) : from;
    compute(from, y, w1, b1, act1, w2, b2, act2);
    out.copy_(y);
  }
  return out;
}

Tensor forward_meta(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
                    const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2) {
  check_all(x, w1, b1, act1, w2, b2, act2);
  return new_like(x);
}

Tensor& forward_out_meta(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
                         const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2, Tensor& out) {
  check_all(x, w1, b1, act1, w2, b2, act2);
  check_out(x, out);
  at::native::resize_output_symint(out, x.sym_sizes());
  return out;
}

// One of the two small layers, by PyTorch's operators: what it reads, its product, and the activation of that.
struct SmallLayer {
  const Tensor in, weight, bias;
  const Named& activation;
  const Tensor sum, out;

  SmallLayer(const Tensor& given, const OptionalTensor& w, const OptionalTensor& b, std::string_view act)
      : in(given),
        weight(there(w) ? w->to(given.scalar_type()).flatten(1) : Tensor()),
        bias(there(b) ? b->to(given.scalar_type()) : Tensor()),
        activation(named(act)),
        sum(weight.defined() ? at::linear(in, weight, bias)
            : bias.defined() ? in + bias
                             : in),
        out(activation.composed(sum)) {}

  // Returns the gradients of the input, the weight and the bias that are wanted.
  std::array<Tensor, 3> gradients(const Tensor& of_out, std::array<bool, 3> wants) const {
    const Tensor grad = activation.gradient(of_out, sum, out);
    std::array<Tensor, 3> found;
    if (wants[0]) found[0] = weight.defined() ? grad.mm(weight) : grad;
    if (wants[1]) found[1] = grad.t().mm(in);
    if (wants[2]) found[2] = grad.sum(0);
    return found;
  }
};

Tensor composed(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
                const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2) {
  std::vector<int64_t> others;
  for (int64_t i = 2; i < x.dim(); i++) others.push_back(i);
  const SmallLayer first(x.mean(others), w1, b1, act1);
  Tensor factor = SmallLayer(first.out, w2, b2, act2).out;
  for (size_t i = 0; i < others.size(); i++) factor = factor.unsqueeze(-1);
  return x * factor;
}

// Tells whether memory is all that a tensor is: no tracer, subclass or transform sees what happens to it.
bool bare(const Tensor& t) {
  constexpr c10::DispatchKeySet kBare{c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutogradCPU,
                                      c10::DispatchKey::AutocastCPU};
  // The backend stays in a difference of sets.
  return (t.key_set() - kBare).highestFunctionalityKey() == c10::DispatchKey::Undefined && !t._fw_grad(0).defined();
}

using Variables = torch::autograd::variable_list;

// Returns the gradients of `result` for those of `inputs` that want one, and undefined tensors for the others.
Variables gradients(const Tensor& result, const Variables& inputs, const Tensor& grad, bool create_graph) {
  Variables wanted, found(inputs.size());
  for (const Tensor& t : inputs)
    if (t.defined() && t.requires_grad()) wanted.push_back(t);
  if (wanted.empty()) return found;
  const Variables made = torch::autograd::grad({result}, wanted, {grad}, std::nullopt, create_graph, true);
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); i++)
    if (inputs[i].defined() && inputs[i].requires_grad()) found[i] = made[next++];
  return found;
}

class SqueezeExcite : public torch::autograd::Function<SqueezeExcite> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x, const OptionalTensor& w1,
                        const OptionalTensor& b1, std::string act1, const OptionalTensor& w2, const OptionalTensor& b2,
                        std::string act2) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor y = new_like(x), mean = at::empty({x.size(0), x.size(1)}, x.options());
    compute(dense(x), y, w1, b1, act1, w2, b2, act2, mean);
    const auto given = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    context->save_for_backward({x, given(w1), given(b1), given(w2), given(b2), mean});
    context->saved_data["act1"] = act1;
    context->saved_data["act2"] = act2;
    return y;
  }

  static Variables backward(torch::autograd::AutogradContext* context, const Variables& grads) {
    Variables results(7);
    if (!grads[0].defined()) return results;
    const Variables saved = context->get_saved_variables();
    const std::string act1 = context->saved_data.at("act1").toStringRef(), act2 = context->saved_data.at("act2").toStringRef();
    const bool again = at::GradMode::is_enabled() || !bare(grads[0]) || !bare(saved[0]);
    const Variables found =
        again ? by_pytorch(saved, act1, act2, grads[0]) : by_sweeps(saved, act1, act2, grads[0], context->needs_input_grad(0));
    results[0] = found[0];
    results[1] = found[1];
    results[2] = found[2];
    results[4] = found[3];
    results[5] = found[4];
    return results;
  }

 private:
  static Variables by_pytorch(const Variables& saved, const std::string& act1, const std::string& act2, const Tensor& grad) {
    const bool create_graph = at::GradMode::is_enabled();
    const at::AutoGradMode on(true);
    const Tensor y = composed(saved[0], saved[1], saved[2], act1, saved[3], saved[4], act2);
    return gradients(y, {saved.begin(), saved.begin() + 5}, grad, create_graph);
  }

  static Variables by_sweeps(const Variables& saved, const std::string& act1, const std::string& act2, const Tensor& given,
                             bool wants_x) {
    const Tensor x = dense(saved[0]), grad = given.contiguous(x.suggest_memory_format());
    const NormRun run{threads_here(), parallel_for};
    const Tensor dots = at::empty_like(saved[5]);
    Squeeze sums = squeeze_of(x, {});
    sums.other = grad.const_data_ptr<float>();
    squeeze_dots(sums, dots.mutable_data_ptr<float>(), run);
    // The products are small, and so computed again, in float32 under autocast too.
    const c10::impl::ExcludeDispatchKeyGuard exact(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowADInplaceOrView below;
    const SmallLayer first(saved[5], saved[1], saved[2], act1), second(first.out, saved[3], saved[4], act2);
    const auto wants = [&](int i) { return saved[i].defined() && saved[i].requires_grad(); };
    const auto [of_first, weight2, bias2] = second.gradients(dots, {wants_x || wants(1) || wants(2), wants(3), wants(4)});
    Variables found(5);
    found[3] = wants(3) ? weight2.reshape(saved[3].sizes()) : Tensor();
    found[4] = bias2;
    if (!of_first.defined()) return found;
    const auto [of_mean, weight1, bias1] = first.gradients(of_first, {wants_x, wants(1), wants(2)});
    found[1] = wants(1) ? weight1.reshape(saved[1].sizes()) : Tensor();
    found[2] = bias1;
    if (!wants_x) return found;
    const Tensor added = of_mean.div_(x.numel() / x.size(0) / x.size(1)).contiguous(), factor = second.out.contiguous();
    found[0] = new_like(x);
    Squeeze pass = squeeze_of(grad, found[0]);
    pass.rows = sums.rows;
    pass.gate = factor.const_data_ptr<float>();
    pass.added = added.const_data_ptr<float>();
    squeeze_pass(pass, run);
    return found;
  }
};

Tensor forward_autograd(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
                        const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2) {
  // A wrapped tensor may not know its size.
  bool wants = false, all_bare = bare(x) && x.numel() > 0 && x.scalar_type() == at::kFloat;
  for (const OptionalTensor& t : {OptionalTensor(x), w1, b1, w2, b2}) {
    wants |= differentiates(t);
    all_bare &= !there(t) || bare(*t);
  }
  if (wants) {
    check_all(x, w1, b1, act1, w2, b2, act2);
    if (!all_bare) return composed(x, w1, b1, act1, w2, b2, act2);
    return SqueezeExcite::apply(x, w1, b1, std::string(act1), w2, b2, std::string(act2));
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  static const auto op = operator_named<decltype(forward)>("groupwise::squeeze_excite", "");
  return op.call(x, w1, b1, act1, w2, b2, act2);
}

Tensor& forward_out_autograd(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1, std::string_view act1,
                             const OptionalTensor& w2, const OptionalTensor& b2, std::string_view act2, Tensor& out) {
  check_no_gradient("squeeze_excite", {x, w1, b1, w2, b2, out});
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = operator_named<decltype(forward_out)>("groupwise::squeeze_excite", "out");
    op.call(x, w1, b1, act1, w2, b2, act2, out);
  }
  count_write(out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  m.def(groupwise::kSchema, {at::Tag::pt2_compliant_tag, at::Tag::flexible_layout});
  // torch.compile takes no operator of others that returns what it writes to.
  m.def(groupwise::kOutSchema, {at::Tag::flexible_layout});
}
TORCH_LIBRARY_IMPL(groupwise, CPU, m) {
  m.impl("squeeze_excite", &groupwise::forward);
  m.impl("squeeze_excite.out", &groupwise::forward_out);
}
TORCH_LIBRARY_IMPL(groupwise, Meta, m) {
  m.impl("squeeze_excite", &groupwise::forward_meta);
  m.impl("squeeze_excite.out", &groupwise::forward_out_meta);
}
TORCH_LIBRARY_IMPL(groupwise, Autograd, m) {
  m.impl("squeeze_excite", &groupwise::forward_autograd);
  m.impl("squeeze_excite.out", &groupwise::forward_out_autograd);
}
