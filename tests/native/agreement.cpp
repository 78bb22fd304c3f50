#include "agreement.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <thread>

namespace groupwise {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <int64_t N>
void split(int64_t count, void (*fn)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> others;
  for (int64_t i = 1; i < N; i++)
    if (count * i / N < count * (i + 1) / N) others.emplace_back(fn, count * i / N, count * (i + 1) / N, context);
  if (count >= N) fn(0, count / N, context);
  for (std::thread& other : others) other.join();
}

// A tensor by its sizes and strides, from the outermost dimension that loops take to the innermost.
struct View {
  std::array<int64_t, 6> sizes, strides;

  // Calls f(offset, channel) for each element; the channel counts the first two dimensions of a weight, and the second of others.
  template <class F>
  void each(F&& f) const {
    std::array<int64_t, 6> at{};
    for (int64_t left = elements(); left > 0; left--) {
      int64_t offset = 0;
      for (int i = 0; i < 6; i++) offset += at[i] * strides[i];
      f(offset, at[1]);
      for (int i = 5; i >= 0 && ++at[i] == sizes[i]; i--) at[i] = 0;
    }
  }
  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    return count;
  }
  int64_t extent() const {
    int64_t last = 0;
    for (int i = 0; i < 6; i++) last += (sizes[i] - 1) * strides[i];
    return last + 1;
  }
};

View view_of_x(const Request& r) {
  const Problem& p = r.problem;
  const Strides& s = r.x_strides;
  return {{p.batch, p.groups * p.in_channels, 1, r.depth.axis.in, p.h.in, p.w.in}, {s.n, s.c, 0, r.depth.x, s.h, s.w}};
}
View view_of_y(const Request& r) {
  const Problem& p = r.problem;
  const Strides& s = r.y_strides;
  return {{p.batch, p.groups * p.out_channels, 1, r.depth.axis.out, p.h.out, p.w.out}, {s.n, s.c, 0, r.depth.y, s.h, s.w}};
}
View view_of_w(const Request& r) {
  const Problem& p = r.problem;
  const WeightStrides& s = r.w_strides;
  return {{p.groups, p.out_channels, p.in_channels, r.depth.axis.kernel, p.h.kernel, p.w.kernel},
          {s.group, s.o, s.c, r.depth.w, s.h, s.w}};
}

// Calls f(output, tap, input) for every tap of an axis inside the input.
template <class F>
void each_tap(const Axis& a, F&& f) {
  for (int64_t o = 0; o < a.out; o++)
    for (int64_t k = 0; k < a.kernel; k++) {
      const int64_t i = o * a.stride + k * a.dilation - a.pad;
      if (i >= 0 && i < a.in) f(o, k, i);
    }
}

// Calls visit(x offset, weight offset, y offset) for every multiplication of the convolution.
template <class F>
void each_product(const Request& r, F&& visit) {
  const Problem& p = r.problem;
  const Strides &xs = r.x_strides, &ys = r.y_strides;
  const WeightStrides& ws = r.w_strides;
  const Depth& depth = r.depth;
  for (int64_t n = 0; n < p.batch; n++)
    for (int64_t g = 0; g < p.groups; g++)
      for (int64_t o = 0; o < p.out_channels; o++)
        for (int64_t c = 0; c < p.in_channels; c++) {
          const int64_t x = n * xs.n + (g * p.in_channels + c) * xs.c, w = g * ws.group + o * ws.o + c * ws.c;
          const int64_t y = n * ys.n + (g * p.out_channels + o) * ys.c;
          each_tap(depth.axis, [&](int64_t od, int64_t kd, int64_t id) {
            each_tap(p.h, [&](int64_t oh, int64_t kh, int64_t ih) {
              each_tap(p.w, [&](int64_t ow, int64_t kw, int64_t iw) {
                visit(x + id * depth.x + ih * xs.h + iw * xs.w, w + kd * depth.w + kh * ws.h + kw * ws.w,
                      y + od * depth.y + oh * ys.h + ow * ys.w);
              });
            });
          });
        }
}

// What an element shall be, and the sum of the absolute values of what it adds.
struct Expected {
  double sum = 0, weight = -1;  // negative: no element, which stays NaN
};

bool close(const Expected& e, float got) {
  if (e.weight < 0) return std::isnan(got);
  // A gap of NaN would pass no other comparison.
  return std::abs(got - e.sum) <= 1e-6 * e.weight + 1e-7;
}

bool fails(const char* what, const Plan& plan) {
  std::printf("%s: %s\n", what, describe(plan).c_str());
  return false;
}

}  // namespace

Guarded::Guarded(int64_t size) : size_(size), all_(size + 2 * kGuard, kMark) {
  std::fill(data(), data() + size, kNan);
  ASAN_POISON_MEMORY_REGION(all_.data(), kGuard * sizeof(float));
  ASAN_POISON_MEMORY_REGION(data() + size, kGuard * sizeof(float));
}

void Guarded::randomize(Random& random) {
  std::uniform_real_distribution<float> values(-1, 1);
  for (int64_t i = 0; i < size_; i++) data()[i] = values(random);
}

bool Guarded::intact() const {
  ASAN_UNPOISON_MEMORY_REGION(all_.data(), all_.size() * sizeof(float));
  for (int64_t i = 0; i < kGuard; i++)
    if (all_[i] != kMark || all_[all_.size() - 1 - i] != kMark) return false;
  return true;
}

ParallelFor on_threads(int64_t threads) {
  constexpr ParallelFor kSplits[] = {split<1>, split<2>, split<3>, split<4>};
  return kSplits[std::clamp<int64_t>(threads, 1, 4) - 1];
}

void multiply(int64_t m, int64_t n, int64_t k, int64_t a_row, int64_t b_row, int64_t c_row, bool add, const float* a,
              const float* b, float* c) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t l = 0; l < k; l++) sum += a[i * a_row + l] * b[l * b_row + j];
      c[i * c_row + j] = add ? c[i * c_row + j] + sum : sum;
    }
}

bool channels_close(const Request& r, const float* y, const float* sums) {
  const View view = view_of_y(r);
  std::vector<double> expected(view.sizes[1]);
  view.each([&](int64_t at, int64_t channel) { expected[channel] += y[at]; });
  const double values = static_cast<double>(view.elements() / view.sizes[1]);
  for (size_t c = 0; c < expected.size(); c++) {
    if (std::abs(sums[c] - expected[c]) <= 1e-6 * values) continue;
    std::printf("wrong sum of channel %zu\n", c);
    return false;
  }
  return true;
}

bool agrees(const Plan& plan, const Extras& extras, Random& random) {
  const Request& r = plan.request;
  const Problem& p = r.problem;
  const View views[3] = {view_of_x(r), view_of_w(r), view_of_y(r)};
  const int written = r.direction == Direction::forward ? 2 : r.direction == Direction::grad_input ? 0 : 1;
  Guarded x(views[0].extent()), w(views[1].extent()), y(views[2].extent()), residual(views[written].extent());
  Guarded* const tensors[3] = {&x, &w, &y};
  std::uniform_real_distribution<float> values(-1, 1);
  // What lies between the elements stays NaN, which no result may have met.
  for (int i = 0; i < 3; i++)
    if (i != written) views[i].each([&](int64_t at, int64_t) { tensors[i]->data()[at] = values(random); });
  views[written].each([&](int64_t at, int64_t) { residual.data()[at] = values(random); });
  const bool gradient = written == 1;
  Guarded bias(views[written].sizes[1]), grad_bias(p.groups * p.out_channels);
  bias.randomize(random);
  Tensors t{x.data(), y.data(), w.data(), extras.bias && !gradient ? bias.data() : nullptr};
  const Epilogue epilogue{{Activation::leaky_relu, 0.5f, 0}, residual.data(), {Activation::relu, 0, 0}};
  if (extras.epilogue && !gradient) t.epilogue = &epilogue;
  const bool sums_y = extras.sums && plan.work->sums_grad_output();
  if (sums_y) t.grad_bias = grad_bias.data();
  const int64_t floats = plan.work->packed_floats();
  Guarded packed(std::max<int64_t>(1, floats));
  const ParallelFor parallel_for = on_threads(r.threads);
  if (floats > 0 && extras.packed) {
    plan.work->pack(w.data(), packed.data(), parallel_for);
    t.packed = packed.data();
  }
  plan.work->run(t, parallel_for);

  if (sums_y && !channels_close(r, y.data(), grad_bias.data())) return fails("beside", plan);
  std::vector<Expected> expected(tensors[written]->size());
  views[written].each([&](int64_t at, int64_t channel) {
    expected[at] = {t.bias ? bias.data()[channel] : 0.0, t.bias ? std::abs(bias.data()[channel]) : 0.0};
  });
  int64_t useful = 0;
  each_product(r, [&](int64_t i, int64_t j, int64_t k) {
    useful++;
    const double product = written == 0   ? double(w.data()[j]) * y.data()[k]
                           : written == 1 ? double(x.data()[i]) * y.data()[k]
                                          : double(x.data()[i]) * w.data()[j];
    Expected& e = expected[written == 0 ? i : written == 1 ? j : k];
    e.sum += product;
    e.weight += std::abs(product);
  });
  for (size_t i = 0; i < expected.size(); i++) {
    Expected& e = expected[i];
    if (t.epilogue && e.weight >= 0) {
      e.sum = std::max(0.0, (e.sum > 0 ? e.sum : 0.5 * e.sum) + residual.data()[i]);
      e.weight += std::abs(residual.data()[i]);
    }
    if (close(e, tensors[written]->data()[i])) continue;
    std::printf("%.9g and not %.9g at %zu; ", tensors[written]->data()[i], e.sum, i);
    return fails(e.weight < 0 ? "wrote between the elements of its result" : "wrong", plan);
  }
  if (plan.work->facts.products < useful) return fails("counted fewer products than there are", plan);
  for (const Guarded* one : {&x, &w, &y, &residual, &bias, &packed, &grad_bias})
    if (!one->intact()) return fails("wrote outside a tensor", plan);
  return true;
}

}  // namespace groupwise
