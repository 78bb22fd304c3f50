#include "torch/chain.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "bands.h"
#include "forked.h"
#include "plan/recording.h"
#include "sharing.h"
#include "torch/packed.h"
#include "torch/pool.h"
#include "torch/profiled.h"

namespace groupwise {

using at::Tensor;

namespace {

constexpr size_t kMostKept = 8;

// One shape of a band of a layer.
struct Shape {
  int64_t reads, makes, pad;  // rows
  std::shared_ptr<const Plan> plan;
  Tensor packed;
};

// A layer of a chain.
struct Link {
  Call call;
  Strides from, to;    // of its input and output, in one image
  int64_t row_floats;  // of its output
  int64_t window = 0;  // where its output's window begins, in floats
  std::vector<Shape> shapes;
  Tensor weight;
};

int64_t pad_of(const Axis& h, const BandStep& step) { return step.reads.first - (step.makes.first * h.stride - h.pad); }

const Shape* shape_for(const Link& link, const BandStep& step) {
  const int64_t reads = step.reads.last - step.reads.first, makes = step.makes.last - step.makes.first;
  const int64_t pad = pad_of(link.call.problem.h, step);
  for (const Shape& shape : link.shapes)
    if (shape.reads == reads && shape.makes == makes && shape.pad == pad) return &shape;
  return nullptr;
}

// Returns the request of a band of a layer, on one thread.
Request request_of(const Link& link, const BandStep& step, const Tensor& weight) {
  Problem p = link.call.problem;
  p.batch = 1;
  p.h.pad = pad_of(p.h, step);
  p.h.in = step.reads.last - step.reads.first;
  p.h.out = step.makes.last - step.makes.first;
  return {Direction::forward,
          p,
          true,
          Dtype::float32,
          1,
          2,
          meaningful(link.from, 1, link.call.x_channels, p.h.in, p.w.in),
          meaningful(link.to, 1, link.call.y_channels, p.h.out, p.w.out),
          weight_strides(weight, link.call)};
}

// Tells whether outputs of this axis read padding alone: a band of them would have no input.
bool sees_padding_alone(const Axis& h) { return h.pad > (h.kernel - 1) * h.dilation || (h.out - 1) * h.stride - h.pad >= h.in; }

struct Freed {
  void operator()(float* p) const { std::free(p); }
};

// Returns memory of this thread for windows, which all chains share: so it is in the cache.
float* windows(int64_t floats) {
  thread_local std::unique_ptr<float, Freed> memory;
  thread_local int64_t size = 0;
  if (size < floats) {
    void* p = nullptr;
    // One vector beyond the end is for loads whose last lanes are not used.
    if (posix_memalign(&p, 64, floats * sizeof(float) + 64) != 0) throw std::bad_alloc();
    memory.reset(static_cast<float*>(p));
    size = floats;
  }
  return memory.get();
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.defined() && b.defined() && a.numel() == b.numel() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace

// What runs for a source and an output of these sizes and strides.
struct Chain::Ready {
  std::vector<int64_t> sizes, strides, out_strides;
  int64_t threads;
  const Kernels* target;
  std::vector<Link> links;
  std::vector<Axis> heights;
  int64_t rows, parts, floats = 0;

  bool is_for(const Tensor& source, const Tensor& out) const {
    return source.sizes() == sizes && source.strides() == strides && out.strides() == out_strides &&
           threads == threads_here() && target == &kernels();
  }
  // Returns the rows of one part, where those of all images are counted together.
  Range part(int64_t number) const {
    const int64_t all = links.front().call.problem.batch * heights.back().out;
    return {all * number / parts, all * (number + 1) / parts};
  }
  template <class F>
  void each_step(int64_t number, F&& f) const {
    each_band_step(heights, part(number), rows, f);
  }
};

Chain::Chain(Layers layers, int64_t rows) : layers_(std::move(layers)), rows_(rows) {
  TORCH_CHECK(layers_.size() >= 2, "groupwise: a chain has two layers or more");
  TORCH_CHECK(rows >= 0, "groupwise: a band has at least one row");
  for (size_t i = 0; i < layers_.size(); i++) {
    const Layer& layer = *layers_[i];
    TORCH_CHECK(layer.weight_.dim() == 4 && !layer.linear_ && !layer.geometry_.transposed,
                "groupwise: a chain is made of 2-D convolutions");
    TORCH_CHECK(!layer.residual_ || i + 1 == layers_.size(), "groupwise: only the last layer of a chain may have a residual");
  }
}

Chain::~Chain() = default;

std::shared_ptr<Chain::Ready> Chain::laid_out(const Tensor& source, const Tensor* given) const {
  auto made = std::make_shared<Ready>();
  std::vector<int64_t> row_floats;
  Tensor image = source;
  int64_t products = 0;
  for (const auto& layer : layers_) {
    Link link;
    link.call = call_of(image, layer->weight_, layer->geometry_);
    // PyTorch would compute in channels_last if the weight alone were in it.
    link.call.channels_last = true;
    const Problem& p = link.call.problem;
    TORCH_CHECK(strides_of(image).c == 1, "groupwise: a chain runs channels_last images");
    TORCH_CHECK(!sees_padding_alone(p.h), "groupwise: outputs of a layer of a chain see padding alone");
    products += products_of(p);
    link.from = strides_of(image);
    // Its memory is never touched.
    image = groupwise::empty(link.call, false, source.options().requires_grad(false));
    link.to = strides_of(image);
    link.row_floats = p.w.out * link.call.y_channels;
    // Where there is one row, its stride says nothing.
    link.to.h = link.row_floats;
    if (!made->links.empty()) link.from = made->links.back().to;
    made->heights.push_back(p.h);
    row_floats.push_back(link.row_floats);
    made->links.push_back(std::move(link));
  }
  if (given) {
    TORCH_CHECK(given->sizes() == image.sizes() && plain(*given), "groupwise: a chain cannot write its output there");
    image = *given;
  }
  TORCH_CHECK(strides_of(image).c == 1, "groupwise: a chain writes channels_last images");
  made->links.back().to = strides_of(image);
  made->sizes = source.sizes().vec();
  made->strides = source.strides().vec();
  made->out_strides = image.strides().vec();
  made->threads = threads_here();
  made->target = &kernels();
  const int64_t all = source.size(0) * made->heights.back().out;
  const bool shared = static_cast<double>(products) >= shared_from(*made->target, made->threads);
  made->parts = shared ? std::min(made->threads, all) : 1;
  // The kernels' own scratch takes the other half of the cache.
  made->rows = rows_ > 0 ? std::min(rows_, made->heights.back().out) : rows_within(made->heights, row_floats, kScratchFloats);
  const std::vector<int64_t> rows = windows_of(made->heights, made->rows);
  for (size_t i = 0; i < rows.size(); i++) {
    made->links[i].window = made->floats;
    made->floats += round_up(rows[i] * row_floats[i], 16);
  }
  for (int64_t part = 0; part < made->parts; part++)
    made->each_step(part, [&](const BandStep& step) {
      Link& link = made->links[step.layer];
      if (shape_for(link, step)) return;
      const Layer& layer = *layers_[step.layer];
      const auto plan = plan_of_constant(request_of(link, step, layer.weight_), link.call, layer.kernel_);
      TORCH_CHECK(plan->work, "groupwise: a band of ", step.makes.last - step.makes.first, " rows of layer ", step.layer,
                  " cannot run: ", why_not(*plan, layer.kernel_));
      link.shapes.push_back({step.reads.last - step.reads.first,
                             step.makes.last - step.makes.first,
                             pad_of(link.call.problem.h, step),
                             plan,
                             {}});
    });
  return made;
}

std::shared_ptr<const Chain::Ready> Chain::ready(const Tensor& source, const Tensor& out) const {
  if (const auto lock = locked_soon(mutex_))
    for (size_t i = 0; i < kept_.size(); i++)
      if (kept_[i]->is_for(source, out)) {
        std::rotate(kept_.begin(), kept_.begin() + i, kept_.begin() + i + 1);
        return kept_[0];
      }
  const std::shared_ptr<Ready> made = laid_out(source, &out);
  std::vector<std::shared_ptr<const Ready>> earlier;
  if (const auto lock = locked_soon(mutex_)) earlier.assign(kept_.begin(), kept_.end());
  for (size_t i = 0; i < layers_.size(); i++) {
    Link& link = made->links[i];
    link.weight = ordered(*link.shapes.front().plan, link.call, layers_[i]->weight_);
    // Most shapes of bands read the same weights, and so do sources of other sizes.
    std::vector<Tensor> there;
    for (const auto& other : earlier) {
      if (same_bytes(other->links[i].weight, link.weight)) link.weight = other->links[i].weight;
      for (const Shape& shape : other->links[i].shapes) there.push_back(shape.packed);
    }
    for (Shape& shape : link.shapes) {
      shape.packed = packed(*shape.plan, link.weight);
      const auto same = std::find_if(there.begin(), there.end(), [&](const Tensor& t) { return same_bytes(t, shape.packed); });
      if (same != there.end())
        shape.packed = *same;
      else
        there.push_back(shape.packed);
    }
  }
  if (const auto lock = locked_soon(mutex_)) {
    if (kept_.size() == kMostKept) kept_.pop_back();
    kept_.insert(kept_.begin(), made);
  }
  return made;
}

std::string Chain::refuses(const Tensor& source) const {
  try {
    laid_out(source, nullptr);
    return "";
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

int64_t Chain::rows(const Tensor& source) const { return laid_out(source, nullptr)->rows; }

Tensor Chain::empty(const Tensor& source) const {
  const at::AutoDispatchBelowADInplaceOrView below;
  Tensor image = source;
  for (const auto& layer : layers_) {
    Call call = call_of(image, layer->weight_, layer->geometry_);
    call.channels_last = true;
    image = groupwise::empty(call, false, source.options().requires_grad(false));
  }
  return image;
}

void Chain::run(const Tensor& source, const Tensor& residual, const Tensor& out) const {
  const at::AutoDispatchBelowADInplaceOrView below;
  TORCH_CHECK(plain(source) && plain(out), "groupwise: a chain runs on float32 tensors on the CPU that are not empty");
  const std::shared_ptr<const Ready> found = ready(source, out);
  const Layer& last = *layers_.back();
  TORCH_CHECK(residual.defined() == last.residual_, "groupwise: a chain is run with a residual if it was made with one");
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, source);
  Tensor added = residual;
  if (residual.defined()) {
    TORCH_CHECK(plain(residual) && residual.sizes() == out.sizes(), "groupwise: a residual has the output's shape");
    at::assert_no_overlap(out, residual);
    if (strides_of(residual) != strides_of(out)) {
      added = at::empty_strided(out.sizes(), out.strides(), out.options());
      added.copy_(residual);
    }
  }
  const float* from = source.const_data_ptr<float>();
  const float* beside = added.defined() ? added.const_data_ptr<float>() : nullptr;
  float* to = out.mutable_data_ptr<float>();
  const Profiled shown("chain", *found->target, {&source, &residual});
  for (const Link& link : found->links) record(link.shapes.front().plan);
  run_tasks(found->parts, found->parts > 1, parallel_for, [&](int64_t begin, int64_t end) {
    float* memory = windows(found->floats);
    for (int64_t part = begin; part < end; part++)
      found->each_step(part, [&](const BandStep& step) {
        const Link& link = found->links[step.layer];
        const Layer& layer = *layers_[step.layer];
        const bool inside = step.layer + 1 < layers_.size();
        Epilogue epilogue{layer.before_, nullptr, layer.after_};
        Tensors t{};
        if (step.layer == 0) {
          t.x = const_cast<float*>(from) + step.image * link.from.n + step.reads.first * link.from.h;
        } else {
          const Link& before = found->links[step.layer - 1];
          t.x = memory + before.window + (step.reads.first - step.read_from) * before.row_floats;
        }
        if (inside) {
          float* window = memory + link.window;
          const int64_t there = step.makes.first - step.window.first;
          if (step.moved > 0)
            std::memmove(window, window + step.moved * link.row_floats, there * link.row_floats * sizeof(float));
          t.y = window + there * link.row_floats;
        } else {
          const int64_t place = step.image * link.to.n + step.makes.first * link.to.h;
          t.y = to + place;
          if (beside) epilogue.residual = beside + place;
        }
        const Shape& shape = *shape_for(link, step);
        t.w = const_cast<float*>(link.weight.const_data_ptr<float>());
        t.bias = layer.bias_.defined() ? layer.bias_.const_data_ptr<float>() : nullptr;
        if (epilogue.residual || epilogue.before.kind != Activation::none) t.epilogue = &epilogue;
        t.packed = shape.packed.defined() ? shape.packed.const_data_ptr<float>() : nullptr;
        shape.plan->work->run(t, parallel_for);
      });
  });
}

namespace {

using Self = c10::intrusive_ptr<Chain>;

// Takes a tuple of layers.
Self make_chain(const c10::IValue& layers, int64_t rows) {
  Chain::Layers found;
  for (const c10::IValue& each : layers.toTupleRef().elements()) found.push_back(each.toCustomClass<Layer>());
  return c10::make_intrusive<Chain>(std::move(found), rows);
}

Tensor run_out(const Self& self, const Tensor& source, const std::optional<Tensor>& residual, const Tensor& out) {
  self->run(source, residual.value_or(Tensor()), out);
  return out;
}

}  // namespace
}  // namespace groupwise

TORCH_LIBRARY_FRAGMENT(groupwise, m) {
  using groupwise::Chain;
  m.class_<Chain>("Chain")
      .def(torch::init(&groupwise::make_chain))
      .def("refuses", [](const groupwise::Self& self, const at::Tensor& source) { return self->refuses(source); })
      .def("rows", [](const groupwise::Self& self, const at::Tensor& source) { return self->rows(source); })
      .def("empty", [](const groupwise::Self& self, const at::Tensor& source) { return self->empty(source); })
      .def("run",
           [](const groupwise::Self& self, const at::Tensor& source, const std::optional<at::Tensor>& residual) {
             return groupwise::run_out(self, source, residual, self->empty(source));
           })
      .def("run_out", &groupwise::run_out);
}
