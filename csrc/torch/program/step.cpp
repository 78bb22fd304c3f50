#include "torch/program/step.h"

#include <ATen/ScalarOps.h>
#include <ATen/core/class_type.h>
#include <ATen/core/function.h>
#include <c10/core/Layout.h>
#include <c10/core/MemoryFormat.h>

#include <string_view>

namespace groupwise {
namespace {

using c10::IValue;
using c10::TypeKind;

// Returns the number by which operators know a memory format or a layout.
int64_t code_of(std::string_view name) {
  if (name == "torch.strided") return static_cast<int64_t>(c10::Layout::Strided);
  if (name == "torch.contiguous_format") return static_cast<int64_t>(c10::MemoryFormat::Contiguous);
  if (name == "torch.preserve_format") return static_cast<int64_t>(c10::MemoryFormat::Preserve);
  if (name == "torch.channels_last") return static_cast<int64_t>(c10::MemoryFormat::ChannelsLast);
  if (name == "torch.channels_last_3d") return static_cast<int64_t>(c10::MemoryFormat::ChannelsLast3d);
  TORCH_CHECK(false, "groupwise: a program cannot pass ", name);
}

// Returns a Python value as a value of the type. `length` is that of a list for which one number may stand.
IValue converted(const IValue& value, const c10::TypePtr& type, std::optional<int32_t> length) {
  switch (type->kind()) {
    case TypeKind::OptionalType:
      return value.isNone() ? value : converted(value, type->expectRef<c10::OptionalType>().getElementType(), length);
    case TypeKind::TensorType:
      if (value.isScalar()) {
        at::Tensor number = c10::scalar_to_tensor(value.toScalar());
        number.unsafeGetTensorImpl()->set_wrapped_number(true);
        return number;
      }
      return value;
    case TypeKind::IntType:
      if (value.isString()) return code_of(value.toStringRef());
      return value.isBool() ? IValue(static_cast<int64_t>(value.toBool())) : value;
    case TypeKind::FloatType: return value.isInt() ? IValue(static_cast<double>(value.toInt())) : value;
    case TypeKind::DeviceObjType: return value.isString() ? IValue(c10::Device(value.toStringRef())) : value;
    case TypeKind::ListType: {
      const c10::TypePtr element = type->expectRef<c10::ListType>().getElementType();
      c10::impl::GenericList list(element);
      if (value.isTuple()) {
        for (const IValue& each : value.toTupleRef().elements()) {
          // A tensor that the step reads is not there yet, and a list of tensors holds no None.
          const bool later = each.isNone() && element->kind() == TypeKind::TensorType;
          list.push_back(later ? IValue(at::Tensor()) : converted(each, element, std::nullopt));
        }
      } else {
        for (int32_t i = 0; i < length.value_or(1); i++) list.push_back(converted(value, element, std::nullopt));
      }
      return list;
    }
    default: return value;
  }
}

}  // namespace

Callee Callee::of_operator(const std::string& name, const std::string& overload) {
  Callee made;
  made.operator_ = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
  made.writes_ = made.schema().is_mutable();
  made.repeatable_ =
      !made.operator_->hasTag(at::Tag::dynamic_output_shape) && !made.operator_->hasTag(at::Tag::nondeterministic_seeded);
  return made;
}

Callee Callee::of_method(const IValue& object, const std::string& method) {
  TORCH_CHECK(object.isObject(), "groupwise: a program calls methods of custom classes only");
  Callee made;
  made.method_ = object.toObjectRef().type()->findMethod(method);
  TORCH_CHECK(made.method_, "groupwise: no method ", method);
  // The schema of a method does not say what it writes; its name does.
  made.writes_ = method.ends_with("_out");
  return made;
}

Callee Callee::of_element(int64_t index) {
  Callee made;
  made.element_ = index;
  return made;
}

bool Callee::reads(int64_t argument) const {
  return (operator_ || method_) && schema().arguments().at(argument).alias_info() == nullptr;
}

const c10::FunctionSchema& Callee::schema() const { return operator_ ? operator_->schema() : method_->getSchema(); }

void Callee::call(Stack& stack) const {
  if (operator_) {
    operator_->callBoxed(stack);
    if (schema().returns().size() > 1) stack = {c10::ivalue::Tuple::create(std::move(stack))};
    return;
  }
  if (method_) return method_->run(stack);
  const IValue several = std::move(stack.back());
  stack.back() = several.isTuple() ? several.toTupleRef().elements().at(element_) : IValue(several.toListRef().at(element_));
}

std::vector<IValue> Callee::arguments(const std::vector<int64_t>& given, const IValue& values) const {
  if (!operator_ && !method_) return {IValue()};
  std::vector<IValue> made;
  for (const c10::Argument& argument : schema().arguments()) made.push_back(argument.default_value().value_or(IValue()));
  const auto& elements = values.toTupleRef().elements();
  TORCH_CHECK(elements.size() == given.size(), "groupwise: a program needs a place for each argument");
  for (size_t i = 0; i < given.size(); i++) {
    const c10::Argument& argument = schema().arguments().at(given[i]);
    made[given[i]] = converted(elements[i], argument.type(), argument.N());
  }
  return made;
}

}  // namespace groupwise
