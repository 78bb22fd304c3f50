#include "stable/pytorch.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <array>
#include <stdexcept>

#include "binding/lookup.h"

namespace groupwise {
namespace {

namespace stable = torch::stable::detail;

// Each has an answer that is safe where it is missing.
struct Extras {
  void* const* (*tracing)() = look_up<void* const*()>("_ZN5torch3jit6tracer15getTracingStateEv");  // a pointer that may be null
  bool (*in_parallel_region)() = look_up<bool()>("_ZN2at18in_parallel_regionEv");
  void* (*context)() = look_up<void*()>("_ZN2at13globalContextEv");
  bool (*deterministic)(void*) = look_up<bool(void*)>("_ZNK2at7Context23deterministicAlgorithmsEv");
  bool (*onednn)(void*) = look_up<bool(void*)>("_ZNK2at7Context17userEnabledMkldnnEv");
  bool (*profiles)() = look_up<bool()>("_ZN2at12hasCallbacksEv");
  const char* (*message)() = look_up<const char*()>("torch_exception_get_what_without_backtrace");  // from 2.13 on
};

const Extras& extras() {
  static const Extras all;
  return all;
}

bool asks_context(bool (*question)(void*), bool otherwise) {
  return question && extras().context ? question(extras().context()) : otherwise;
}

Stable::Tensor call(const char* name, std::array<StableIValue, 2> stack) {
  check(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return Stable::own(stable::to<AtenTensorHandle>(stack[0]));
}

}  // namespace

void check(AOTITorchError code) {
  if (code == 0) return;
  const char* const said = extras().message ? extras().message() : nullptr;
  throw std::runtime_error(said ? said : "PyTorch refused a convolution, and said why on the standard error stream");
}

Stable::Profiled::Profiled(const Plan& plan, std::initializer_list<const Tensor*> read) {
  if (!extras().profiles || !extras().profiles()) return;
  std::vector<C10IValueHandle> values;
  for (const Tensor* t : read) {
    // A tensor that is missing keeps its place among the shapes.
    const Tensor shown = own(give(*t));
    if (aoti_torch_tensor_to_ivalue(shown.get(), &values.emplace_back()) != 0) values.pop_back();
  }
  // A profile that fails is no reason for a convolution to fail.
  aoti_record_function_start(profile_name(plan.name(), plan.request.direction, *plan.request.target).c_str(), nullptr,
                             values.data(), values.size(), &shown_);
  for (const C10IValueHandle value : values) aoti_torch_delete_c10_value_object(value);
}

Stable::Profiled::~Profiled() {
  if (shown_) aoti_record_function_end(shown_);
}

Stable::Tensor Stable::own(AtenTensorHandle handle) {
  return {handle, [](AtenTensorHandle owned) {
            if (owned) aoti_torch_delete_tensor_object(owned);
          }};
}

AtenTensorHandle Stable::give(const Tensor& t) {
  AtenTensorHandle given = nullptr;
  check(t ? aoti_torch_new_tensor_handle(t.get(), &given) : aoti_torch_new_uninitialized_tensor(&given));
  return given;
}

bool Stable::defined(const Tensor& t) {
  bool found = false;
  if (t) check(aoti_torch_is_defined(t.get(), &found));
  return found;
}

Dtype Stable::dtype_of(const Tensor& t) {
  static const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16(),
                       float16 = aoti_torch_dtype_float16(), float64 = aoti_torch_dtype_float64(),
                       cpu = aoti_torch_device_type_cpu(), strided = aoti_torch_layout_strided();
  if (!defined(t)) return Dtype::other;
  int32_t dtype = 0, device = 0, layout = 0;
  int64_t count = 0;
  check(aoti_torch_get_dtype(t.get(), &dtype));
  check(aoti_torch_get_device_type(t.get(), &device));
  check(aoti_torch_get_layout(t.get(), &layout));
  check(aoti_torch_get_numel(t.get(), &count));
  if (device != cpu || layout != strided || count == 0) return Dtype::other;
  return dtype == float32    ? Dtype::float32
         : dtype == bfloat16 ? Dtype::bfloat16
         : dtype == float16  ? Dtype::float16
         : dtype == float64  ? Dtype::float64
                             : Dtype::other;
}

Strided Stable::strided_of(const Tensor& t) {
  int64_t dimensions = 0, *sizes = nullptr, *strides = nullptr;
  check(aoti_torch_get_dim(t.get(), &dimensions));
  check(aoti_torch_get_sizes(t.get(), &sizes));
  check(aoti_torch_get_strides(t.get(), &strides));
  const auto count = static_cast<size_t>(dimensions);
  return {{sizes, count}, {strides, count}};
}

const float* Stable::read_of(const Tensor& t) {
  const void* data = nullptr;
  check(torch_get_const_data_ptr(t.get(), &data));
  return static_cast<const float*>(data);
}

float* Stable::write_of(const Tensor& t) {
  void* data = nullptr;
  check(torch_get_mutable_data_ptr(t.get(), &data));
  return static_cast<float*>(data);
}

Stable::Tensor Stable::contiguous(const Tensor& t, bool channels_last) {
  const int32_t last =
      strided_of(t).sizes.size() == 5 ? aoti_torch_memory_format_channels_last_3d() : aoti_torch_memory_format_channels_last();
  const int32_t format = channels_last ? last : aoti_torch_memory_format_contiguous_format();
  return call("aten::contiguous", {stable::from(give(t)), stable::from(format)});
}

Stable::Tensor Stable::empty(const Tensor& like, Numbers sizes, bool channels_last) {
  const size_t count = sizes.size();
  int64_t strides[kMostDimensions], step = 1;
  // From the innermost dimension outwards, which is the channels' in channels_last.
  for (size_t i = 0; i < count; i++) {
    const size_t at = !channels_last || i + 1 == count ? count - 1 - i : i == 0 ? 1 : count - i;
    strides[at] = step;
    step *= sizes[at];
  }
  return empty_strided(like, sizes, {strides, count});
}

Stable::Tensor Stable::empty_strided(const Tensor& like, Numbers sizes, Numbers strides) {
  int32_t dtype = 0;
  check(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle made = nullptr;
  check(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                 aoti_torch_device_type_cpu(), 0, &made));
  return own(made);
}

bool Stable::traced() { return *extras().tracing() != nullptr; }
bool Stable::deterministic() { return asks_context(extras().deterministic, true); }
bool Stable::has_onednn() { return asks_context(extras().onednn, false); }

bool Stable::in_parallel_region() {
  if (extras().in_parallel_region) return extras().in_parallel_region();
  uint32_t thread = 0;
  check(torch_get_thread_idx(&thread));
  return thread > 0;
}

int64_t Stable::threads() {
  uint32_t count = 1;
  check(torch_get_num_threads(&count));
  return count;
}

void Stable::parallel_for(int64_t count, void (*fn)(int64_t, int64_t, void*), void* context) {
  const int64_t each = threads();
  check(torch_parallel_for(0, count, (count + each - 1) / each, fn, context));
}

const char* lacks() {
  // Without it a kernel would leave its call out of the graphs that torch.jit.trace records.
  return extras().tracing ? "" : "torch::jit::tracer::getTracingState";
}

}  // namespace groupwise
