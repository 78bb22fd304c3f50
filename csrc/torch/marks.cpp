// Lets the backward of one result be dispatched while the process does not dispatch.
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>

#include "binding/switches.h"

namespace groupwise {
namespace {

using torch::autograd::FunctionPreHook;

// Marks a node of autograd, and changes nothing. The mark belongs to the node, so that a backward that fails leaves nothing behind.
struct Mark : FunctionPreHook {
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& grads) override { return grads; }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}
};

// Tells whether the node whose backward this thread computes is marked.
bool marked() {
  const auto node = torch::autograd::get_current_node();
  if (!node) return false;
  const auto& hooks = node->pre_hooks();
  return std::any_of(hooks.begin(), hooks.end(), [](const auto& hook) { return dynamic_cast<const Mark*>(hook.get()); });
}

void dispatch_backward(const at::Tensor& result) {
  dispatch_where(marked);
  if (const auto& node = result.grad_fn()) node->add_pre_hook(std::make_unique<Mark>());
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) { m.def("dispatch_backward(Tensor result) -> ()", &groupwise::dispatch_backward); }
