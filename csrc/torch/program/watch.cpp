// Notices when one of many tensors is written to or moved.
#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <utility>
#include <vector>

namespace groupwise {
namespace {

class Watch : public torch::CustomClassHolder {
 public:
  explicit Watch(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const at::Tensor& tensor : tensors_) states_.push_back(state(tensor));
  }

  // Tells whether all are as they were when the watch was made.
  bool holds() const {
    for (size_t i = 0; i < tensors_.size(); i++)
      if (state(tensors_[i]) != states_[i]) return false;
    return true;
  }

 private:
  using State = std::pair<const void*, uint32_t>;

  static State state(const at::Tensor& tensor) {
    return {tensor.const_data_ptr(), tensor.unsafeGetTensorImpl()->version_counter().current_version()};
  }

  std::vector<at::Tensor> tensors_;
  std::vector<State> states_;
};

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  using groupwise::Watch;
  m.class_<Watch>("Watch").def(torch::init<std::vector<at::Tensor>>()).def("holds", [](const c10::intrusive_ptr<Watch>& self) {
    return self->holds();
  });
}
