#include "torch/program/recorder.h"

#include <algorithm>

#include "torch/program/arena.h"

namespace groupwise {
namespace {

using at::Tensor;
using c10::IValue;

// Calls f for each tensor of a value.
template <class F>
void each_tensor(const IValue& value, F&& f) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) f(value.toTensor());
  } else if (value.isTuple()) {
    for (const IValue& each : value.toTupleRef().elements()) each_tensor(each, f);
  } else if (value.isList()) {
    for (const IValue& each : value.toListRef()) each_tensor(each, f);
  }
}

bool shares(const Tensor& a, const IValue& value) {
  bool found = false;
  each_tensor(value, [&](const Tensor& b) { found = found || (b.has_storage() && b.storage().is_alias_of(a.storage())); });
  return found;
}

// Tells whether a tensor of memory of its own, without gaps, says all about a result.
bool plain(const Tensor& t) {
  return t.defined() && t.layout() == at::kStrided && t.device().is_cpu() && t.numel() > 0 && t.storage_offset() == 0 &&
         t.is_non_overlapping_and_dense() && !t.is_conj() && !t.is_neg() && !t.unsafeGetTensorImpl()->is_wrapped_number();
}

}  // namespace

Recorder::Recorder(const Steps& steps)
    : steps_(&steps), memory_of_(steps.slots), same_(steps.steps.size(), -1), view_(steps.steps.size(), false) {
  for (const auto& [slot, value] : steps.constants) add_root(slot, true);
  for (const int64_t slot : steps.inputs) add_root(slot, false);
}

void Recorder::add_root(int64_t slot, bool held) {
  memory_of_[slot] = {memories_.size()};
  memories_.emplace_back().held = held;
}

void Recorder::observe(size_t number, const Frame::Values& values) {
  const Step& step = steps_->steps[number];
  for (const Fill& fill : step.fills)
    for (const size_t memory : memory_of_[fill.slot]) memories_[memory].last = static_cast<int64_t>(number);
  const IValue& made = values[step.write];
  std::vector<size_t>& found = memory_of_[step.write];
  bool fresh = false;
  each_tensor(made, [&](const Tensor& tensor) {
    const size_t before = found.size();
    if (tensor.has_storage())
      for (size_t slot = 0; slot < values.size(); slot++)
        if (static_cast<int64_t>(slot) != step.write && shares(tensor, values[slot]))
          found.insert(found.end(), memory_of_[slot].begin(), memory_of_[slot].end());
    fresh = fresh || found.size() == before;
  });
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  if (fresh) {
    // A result of which a part only is fresh stays out of the arena.
    Memory memory;
    memory.step = memory.last = static_cast<int64_t>(number);
    if (found.empty() && step.out && step.callee.repeatable() && made.isTensor() && plain(made.toTensor())) {
      const Tensor& tensor = made.toTensor();
      memory.held = true;
      memory.bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
      memory.place = {tensor.sizes().vec(), tensor.strides().vec(), tensor.scalar_type(), 0};
    }
    found.push_back(memories_.size());
    memories_.push_back(memory);
  } else if (!found.empty()) {
    // A view may begin where the value of another tensor says.
    const bool looks =
        std::any_of(step.fills.begin(), step.fills.end(), [&](const Fill& f) { return step.callee.reads(f.argument); });
    view_[number] = !step.callee.writes() && step.callee.repeatable() && !looks;
    if (step.callee.writes() && made.isTensor())
      for (const Fill& fill : step.fills)
        if (values[fill.slot].isTensor() && values[fill.slot].toTensor().is_same(made.toTensor())) same_[number] = fill.slot;
  }
}

// A frame holds constants, and results that do not leave the network.
std::vector<bool> Recorder::in_arena() const {
  std::vector<bool> held(memories_.size());
  for (size_t i = 0; i < held.size(); i++) held[i] = memories_[i].held;
  for (const int64_t slot : steps_->outputs)
    for (const size_t memory : memory_of_[slot])
      if (memories_[memory].step >= 0) held[memory] = false;
  return held;
}

Layout Recorder::layout() const {
  const std::vector<bool> held = in_arena();
  Layout made(steps_->steps.size());
  std::vector<Span> spans;
  std::vector<const Memory*> placed;
  for (size_t i = 0; i < memories_.size(); i++) {
    const Memory& memory = memories_[i];
    if (!held[i] || memory.step < 0) continue;
    spans.push_back({memory.step, memory.last, memory.bytes});
    placed.push_back(&memory);
  }
  const Arena arena = pack(spans);
  for (size_t i = 0; i < placed.size(); i++) {
    auto& place = made.places[placed[i]->step];
    place = placed[i]->place;
    place->offset = arena.offsets[i];
  }
  made.bytes = arena.bytes;
  std::vector<bool> kept(steps_->slots, false);
  for (const auto& [slot, value] : steps_->constants) kept[slot] = true;
  for (size_t i = 0; i < steps_->steps.size(); i++) {
    const Step& step = steps_->steps[i];
    const auto& memory = memory_of_[step.write];
    const bool known = std::all_of(step.fills.begin(), step.fills.end(), [&](const Fill& f) { return kept[f.slot]; });
    const bool inside = std::all_of(memory.begin(), memory.end(), [&](size_t m) { return held[m]; });
    made.once[i] = view_[i] && known && inside;
    if (same_[i] >= 0 && inside) made.same[i] = same_[i];
    kept[step.write] = made.places[i] || made.once[i] || (made.same[i] >= 0 && kept[made.same[i]]);
  }
  return made;
}

}  // namespace groupwise
