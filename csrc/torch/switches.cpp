#include "torch/switches.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

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
  if (const auto& node = result.grad_fn()) node->add_pre_hook(std::make_unique<Mark>());
}

std::atomic<bool> process_dispatched{false};
thread_local int thread_dispatched = 0;
thread_local std::string thread_forced;

}  // namespace

bool dispatched() {
  if (thread_dispatched != 0) return thread_dispatched > 0;
  return process_dispatched.load(std::memory_order_relaxed) || marked();
}
void dispatch(bool on) { process_dispatched = on; }
int dispatch_thread(int state) { return std::exchange(thread_dispatched, state); }

const std::string& forced() { return thread_forced; }
std::string force(std::string kernel) { return std::exchange(thread_forced, std::move(kernel)); }

}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) { m.def("dispatch_backward(Tensor result) -> ()", &groupwise::dispatch_backward); }
