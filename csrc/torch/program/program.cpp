#include "torch/program/program.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "torch/program/arena.h"
#include "torch/program/recorder.h"

namespace groupwise {

using at::Tensor;
using c10::IValue;
using Tensors = std::vector<Tensor>;
using Numbers = std::vector<int64_t>;

Program::Program(int64_t slots, Numbers inputs, Numbers outputs, bool shares) : shares_(shares) {
  steps_.slots = slots;
  steps_.inputs = std::move(inputs);
  steps_.outputs = std::move(outputs);
  for (const int64_t slot : steps_.inputs) check(slot);
  for (const int64_t slot : steps_.outputs) check(slot);
}

Program::~Program() {
  delete layout_.load();
  for (auto& place : free_) delete place.load();
}

void Program::check(int64_t slot) const {
  TORCH_CHECK(slot >= 0 && slot < steps_.slots, "groupwise: a program has no slot ", slot);
}

void Program::add_constant(int64_t slot, IValue value) {
  check(slot);
  steps_.constants.emplace_back(slot, std::move(value));
}

void Program::add_step(Step step) {
  check(step.write);
  for (const Fill& fill : step.fills)
    TORCH_CHECK(fill.slot >= 0 && fill.slot < steps_.slots && fill.argument >= 0 &&
                    fill.argument < static_cast<int64_t>(step.arguments.size()),
                "groupwise: a step reads what is not there");
  steps_.steps.push_back(std::move(step));
}

Tensors Program::run(const Tensors& leaves) const { return run(leaves, nullptr); }

Tensors Program::run(const Tensors& leaves, const Frame::Observer& observer) const {
  // No step needs a gradient, and what runs for one costs time.
  std::optional<at::AutoDispatchBelowADInplaceOrView> below;
  if (!shares_) below.emplace();
  return run_frame(leaves, observer);
}

Tensors Program::run_frame(const Tensors& leaves, const Frame::Observer& observer) const {
  if (std::unique_ptr<Frame> frame = take()) {
    Tensors made = frame->run(leaves, observer);
    // A frame in which a step failed is not used again.
    give_back(std::move(frame));
    return made;
  }
  Recorder recorder(steps_);
  Tensors made = Frame(steps_, Layout(steps_.steps.size())).run(leaves, [&](size_t step, const Frame::Values& values) {
    // Only what the step took counts.
    if (observer) observer(step, values);
    recorder.observe(step, values);
  });
  auto found = std::make_unique<const Layout>(recorder.layout());
  const Layout* none = nullptr;
  if (layout_.compare_exchange_strong(none, found.get())) found.release();
  return made;
}

// Returns a frame for one call, a new one if none waits; null before there is a layout.
std::unique_ptr<Frame> Program::take() const {
  for (auto& place : free_)
    if (Frame* waiting = place.exchange(nullptr)) return std::unique_ptr<Frame>(waiting);
  const Layout* layout = layout_.load();
  return layout ? std::make_unique<Frame>(steps_, *layout) : nullptr;
}

void Program::give_back(std::unique_ptr<Frame> frame) const {
  for (auto& place : free_) {
    Frame* none = nullptr;
    if (place.compare_exchange_strong(none, frame.get())) {
      frame.release();
      return;
    }
  }
}

std::vector<double> Program::time(const Tensors& leaves) const {
  // The first call is slower than those that follow.
  if (arena_bytes() == 0) run(leaves);
  using Clock = std::chrono::steady_clock;
  std::vector<double> seconds(steps_.steps.size());
  Clock::time_point before = Clock::now();
  run(leaves, [&](size_t step, const Frame::Values&) {
    const Clock::time_point now = Clock::now();
    seconds[step] = std::chrono::duration<double>(now - before).count();
    before = Clock::now();
  });
  return seconds;
}

int64_t Program::arena_bytes() const {
  const Layout* layout = layout_.load();
  return layout ? layout->bytes : 0;
}

int64_t Program::frames() const {
  return std::count_if(free_.begin(), free_.end(), [](const auto& place) { return place.load() != nullptr; });
}

void Program::poison() const {
  std::vector<std::unique_ptr<Frame>> waiting;
  for (auto& place : free_)
    if (Frame* frame = place.exchange(nullptr)) waiting.emplace_back(frame)->poison();
  for (auto& frame : waiting) give_back(std::move(frame));
}

namespace {

using Self = c10::intrusive_ptr<Program>;

// Three numbers a fill.
std::vector<Fill> fills_of(const Numbers& numbers) {
  TORCH_CHECK(numbers.size() % 3 == 0, "groupwise: a fill is three numbers");
  std::vector<Fill> fills;
  for (size_t i = 0; i < numbers.size(); i += 3) fills.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
  return fills;
}

void add_operator(const Self& self, const std::string& name, const std::string& overload, const std::optional<std::string>& out,
                  const Numbers& given, const IValue& values, const Numbers& fills, int64_t write, int64_t dispatch) {
  Callee callee = Callee::of_operator(name, overload);
  std::vector<IValue> arguments = callee.arguments(given, values);
  std::optional<Callee> into;
  if (out) into = Callee::of_operator(name, *out);
  self->add_step({callee, into, std::move(arguments), fills_of(fills), write, static_cast<int>(dispatch)});
}

void add_method(const Self& self, const IValue& object, const std::string& name, const std::optional<std::string>& out,
                const Numbers& given, const IValue& values, const Numbers& fills, int64_t write) {
  Callee callee = Callee::of_method(object, name);
  std::vector<IValue> arguments = callee.arguments(given, values);
  arguments[0] = object;
  std::optional<Callee> into;
  if (out) into = Callee::of_method(object, *out);
  self->add_step({callee, into, std::move(arguments), fills_of(fills), write, 0});
}

void add_element(const Self& self, int64_t read, int64_t index, int64_t write) {
  self->add_step({Callee::of_element(index), std::nullopt, {IValue()}, {{0, -1, read}}, write, 0});
}

// The offsets of values in an arena, and its size at the end.
Numbers arena_offsets(const Numbers& first, const Numbers& last, const Numbers& bytes) {
  std::vector<Span> spans;
  for (size_t i = 0; i < first.size(); i++) spans.push_back({first[i], last.at(i), bytes.at(i)});
  Arena arena = pack(spans);
  arena.offsets.push_back(arena.bytes);
  return arena.offsets;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  using namespace groupwise;
  m.class_<Program>("Program")
      .def(torch::init<int64_t, Numbers, Numbers, bool>())
      .def("constant", [](const Self& self, int64_t slot, IValue value) { self->add_constant(slot, std::move(value)); })
      .def("operator", &add_operator)
      .def("method", &add_method)
      .def("element", &add_element)
      .def("run", [](const Self& self, const Tensors& leaves) { return self->run(leaves); })
      .def("time", [](const Self& self, const Tensors& leaves) { return self->time(leaves); })
      .def("arena_bytes", [](const Self& self) { return self->arena_bytes(); })
      .def("frames", [](const Self& self) { return self->frames(); })
      .def("poison", [](const Self& self) { self->poison(); })
      .def_static("offsets", &arena_offsets);
}
