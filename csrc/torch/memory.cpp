// Keeps the memory of large tensors from one training step for the next. glibc returns it to the system when a step ends, and
// each of its pages costs a page fault when the next step asks for it. The operators groupwise::keep_memory and
// groupwise::kept_memory.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "forked.h"

namespace groupwise {
namespace {

// Smaller blocks stay in the heap of glibc.
constexpr size_t kLeast = 1 << 20, kPage = 4096;

struct Block {
  void* data;
  size_t size;
};

// PyTorch's allocator of CPU tensors, with a store of free blocks while somebody holds it. Blocks in use and free ones are
// together never more than were in use at once: the store adds nothing to the most memory that a step takes.
class KeptMemory : public c10::Allocator {
 public:
  std::mutex mutex;

  c10::DataPtr allocate(size_t size) override {
    if (size < kLeast || !held()) return base_->allocate(size);
    const size_t rounded = (size + kPage - 1) / kPage * kPage;
    void* data = take(rounded);
    if (!data) {
      try {
        data = c10::alloc_cpu(rounded);
      } catch (const c10::Error&) {
        clear();
        data = c10::alloc_cpu(rounded);
      }
      note(data, rounded);
    }
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  void hold(bool on) {
    if (on) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!base_) {
        base_ = c10::GetCPUAllocator();
        c10::SetCPUAllocator(this);
      }
      holders_++;
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex);
      TORCH_CHECK(holders_ > 0, "groupwise: nobody holds the memory");
      holders_--;
    }
    // What is left asks for its memory anew, so that no network keeps what another needed.
    clear();
  }

  std::vector<int64_t> sizes() {
    const std::lock_guard<std::mutex> lock(mutex);
    return {static_cast<int64_t>(used_), static_cast<int64_t>(free_), static_cast<int64_t>(most_)};
  }

 private:
  bool held() {
    const std::lock_guard<std::mutex> lock(mutex);
    return holders_ > 0;
  }

  // Returns a free block of a size, the one that was freed last; null if there is none.
  void* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), [&](const Block& one) { return one.size == size; });
    if (found == blocks_.rend()) return nullptr;
    void* const data = found->data;
    blocks_.erase(std::next(found).base());
    free_ -= size;
    use(data, size);
    return data;
  }

  void note(void* data, size_t size) {
    std::vector<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      use(data, size);
      while (used_ + free_ > most_) {
        gone.push_back(blocks_.front());
        free_ -= blocks_.front().size;
        blocks_.erase(blocks_.begin());
      }
    }
    for (const Block& one : gone) c10::free_cpu(one.data);
  }

  void use(void* data, size_t size) {
    in_use_[data] = size;
    used_ += size;
    most_ = std::max(most_, used_);
  }

  void clear() {
    std::vector<Block> gone;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      gone.swap(blocks_);
      free_ = 0;
      most_ = used_;
    }
    for (const Block& one : gone) c10::free_cpu(one.data);
  }

  // Takes a block back, or gives to PyTorch's allocator what came from it.
  static void release(void* data) {
    auto& self = forked<KeptMemory>();
    {
      const std::lock_guard<std::mutex> lock(self.mutex);
      const auto found = self.in_use_.find(data);
      if (found == self.in_use_.end()) {
        self.base_->raw_deleter()(data);
        return;
      }
      const size_t size = found->second;
      self.in_use_.erase(found);
      self.used_ -= size;
      c10::profiledCPUMemoryReporter().Delete(data);
      if (self.holders_ > 0) {
        self.blocks_.push_back({data, size});
        self.free_ += size;
        return;
      }
    }
    c10::free_cpu(data);
  }

  c10::Allocator* base_ = nullptr;
  int64_t holders_ = 0;
  std::vector<Block> blocks_;  // free ones, in the order in which they were freed
  std::unordered_map<void*, size_t> in_use_;
  size_t used_ = 0, free_ = 0, most_ = 0;
};

void keep_memory(bool on) { forked<KeptMemory>().hold(on); }
std::vector<int64_t> kept_memory() { return forked<KeptMemory>().sizes(); }

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  // Each call with True is followed by one with False, which frees what is kept.
  m.def("keep_memory(bool on) -> ()", groupwise::keep_memory);
  // Returns bytes: of blocks in use, of free ones, and the most that were in use at once.
  m.def("kept_memory() -> int[]", groupwise::kept_memory);
}
