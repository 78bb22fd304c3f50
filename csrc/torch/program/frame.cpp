#include "torch/program/frame.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>

#include "binding/switches.h"

namespace groupwise {
namespace {

using at::Tensor;
using c10::IValue;

// Overrides dispatch while it lives.
struct Override {
  explicit Override(int state) : state(state), before(state == 0 ? 0 : dispatch_thread(state)) {}
  ~Override() {
    if (state != 0) dispatch_thread(before);
  }
  int state, before;
};

void put(std::vector<IValue>* arguments, const Fill& fill, const IValue& value) {
  IValue& argument = (*arguments)[fill.argument];
  if (fill.element < 0)
    argument = value;
  else
    argument.toList().set(fill.element, value);
}

IValue copy_of_list(const IValue& list) { return list.toList().copy(); }

}  // namespace

Frame::Frame(const Steps& steps, const Layout& layout) : steps_(&steps), values_(steps.slots), kept_(steps.slots, false) {
  // The frame outlives the call that makes it, and with it the mode of that call.
  const c10::InferenceMode normal(false);
  const at::AutoDispatchBelowADInplaceOrView below;
  arena_ = at::empty({layout.bytes}, at::kByte);
  for (const auto& [slot, value] : steps.constants) {
    values_[slot] = value;
    kept_[slot] = true;
  }
  for (size_t i = 0; i < steps.steps.size(); i++) {
    const Step& step = steps.steps[i];
    Call call{i, &step.callee, step.arguments, step.fills, {}, step.write, step.dispatch, {}};
    fill(&call);
    if (const auto& place = layout.places[i]) {
      // Each tensor has a storage of its own, which keeps the arena alive.
      void* data = static_cast<char*>(arena_.mutable_data_ptr()) + place->offset;
      values_[step.write] = at::from_blob(data, place->sizes, place->strides, [arena = arena_](void*) {}, place->dtype);
      call.callee = &*step.out;
      call.arguments.push_back(values_[step.write]);
      call.write = -1;
    } else if (layout.once[i]) {
      Stack stack = std::move(call.arguments);
      call.callee->call(stack);
      values_[step.write] = std::move(stack.back());
    } else if (layout.same[i] >= 0 && kept_[layout.same[i]]) {
      values_[step.write] = values_[layout.same[i]];
      call.write = -1;
    }
    kept_[step.write] = call.write < 0 || layout.once[i];
    if (!layout.once[i]) calls_.push_back(std::move(call));
  }
  drop_dead();
}

// Puts what the frame holds among the arguments.
void Frame::fill(Call* call) const {
  std::vector<Fill> left;
  // Steps are shared by frames, and lists by copies of them.
  for (const Fill& each : call->fills)
    if (each.element >= 0 && std::find(call->lists.begin(), call->lists.end(), each.argument) == call->lists.end()) {
      call->arguments[each.argument] = copy_of_list(call->arguments[each.argument]);
      call->lists.push_back(each.argument);
    }
  for (const Fill& each : call->fills) {
    if (kept_[each.slot])
      put(&call->arguments, each, values_[each.slot]);
    else
      left.push_back(each);
  }
  call->fills = std::move(left);
  std::erase_if(call->lists, [&](int64_t list) {
    return std::none_of(call->fills.begin(), call->fills.end(), [&](const Fill& f) { return f.argument == list; });
  });
}

// Says for each slot after which call nothing reads it.
void Frame::drop_dead() {
  std::vector<Call*> last(values_.size(), nullptr);
  for (Call& call : calls_) {
    if (call.write >= 0) last[call.write] = &call;
    for (const Fill& fill : call.fills) last[fill.slot] = &call;
  }
  for (const int64_t slot : steps_->outputs) last[slot] = nullptr;
  for (size_t slot = 0; slot < last.size(); slot++)
    if (last[slot] && !kept_[slot]) last[slot]->dead.push_back(static_cast<int64_t>(slot));
}

std::vector<Tensor> Frame::run(const std::vector<Tensor>& leaves, const Observer& observer) {
  // Holds nothing of this call afterwards, whether it fails or not.
  struct Cleared {
    Frame* frame;
    ~Cleared() {
      for (size_t slot = 0; slot < frame->values_.size(); slot++)
        if (!frame->kept_[slot]) frame->values_[slot] = IValue();
    }
  } const cleared{this};
  TORCH_CHECK(leaves.size() == steps_->inputs.size(), "groupwise: a program takes ", steps_->inputs.size(), " tensors");
  for (size_t i = 0; i < leaves.size(); i++) values_[steps_->inputs[i]] = leaves[i];
  Stack stack;
  for (const Call& call : calls_) {
    stack.assign(call.arguments.begin(), call.arguments.end());
    for (const int64_t list : call.lists) stack[list] = copy_of_list(stack[list]);
    for (const Fill& fill : call.fills) put(&stack, fill, values_[fill.slot]);
    {
      const Override override(call.dispatch);
      call.callee->call(stack);
    }
    if (call.write >= 0) values_[call.write] = stack.empty() ? IValue() : std::move(stack.back());
    stack.clear();
    if (observer) observer(call.step, values_);
    for (const int64_t slot : call.dead) values_[slot] = IValue();
  }
  std::vector<Tensor> outputs;
  for (const int64_t slot : steps_->outputs) outputs.push_back(values_[slot].toTensor());
  return outputs;
}

void Frame::poison() {
  if (arena_.numel() > 0) std::memset(arena_.mutable_data_ptr(), 0xff, arena_.numel());
}

}  // namespace groupwise
