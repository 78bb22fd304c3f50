// A step of a program: what it calls, on which arguments, and where its result goes.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <optional>
#include <string>
#include <vector>

namespace groupwise {

using Stack = torch::jit::Stack;

// An operator, a method of a custom class, or the choice of one value of several.
class Callee {
 public:
  static Callee of_operator(const std::string& name, const std::string& overload);
  static Callee of_method(const c10::IValue& object, const std::string& method);
  static Callee of_element(int64_t index);

  // Takes the arguments from the stack and leaves the result there.
  void call(Stack& stack) const;
  // Whether it writes to an argument.
  bool writes() const { return writes_; }
  // Whether its result, if that is a view, depends on the values of an argument.
  bool reads(int64_t argument) const;
  // Whether it computes the same shape of the same shapes, and the same values of the same values.
  bool repeatable() const { return repeatable_; }
  // Returns the arguments that it needs: `values` at the places `given`, and defaults. `values` may be of the types that Python has,
  // such as tuples for lists.
  std::vector<c10::IValue> arguments(const std::vector<int64_t>& given, const c10::IValue& values) const;

 private:
  const c10::FunctionSchema& schema() const;

  std::optional<c10::OperatorHandle> operator_;
  torch::jit::Function* method_ = nullptr;
  int64_t element_ = 0;
  bool writes_ = false, repeatable_ = true;
};

// An argument, or an element of one that is a list, that is the value of a slot. `element` is -1 for the whole argument.
struct Fill {
  int64_t argument, element, slot;
};

struct Step {
  Callee callee;
  // Computes the same into a tensor that is one more argument, the last.
  std::optional<Callee> out;
  std::vector<c10::IValue> arguments;
  std::vector<Fill> fills;
  int64_t write;
  // What it overrides dispatch to groupwise's kernels with; 0 for nothing.
  int dispatch = 0;
};

struct Steps {
  std::vector<Step> steps;
  std::vector<std::pair<int64_t, c10::IValue>> constants;
  std::vector<int64_t> inputs, outputs;
  int64_t slots;
};

}  // namespace groupwise
