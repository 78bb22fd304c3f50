// Tests convolutions of doubles, or of bfloat16 numbers, in every kernel that computes them as they are, direction and format, against
// plain loops of long doubles. Each tensor has memory of its own, so that AddressSanitizer sees what is read or written beyond it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bfloat16.h"
#include "kernels/table.h"
#include "plan/plan.h"

namespace groupwise {

// What tells numbers of one dtype apart: which kernels compute them, and how much a sum and a result may be off.
template <class Number>
struct Kind;
template <>
struct Kind<double> {
  static constexpr Dtype dtype = Dtype::float64;
  static constexpr Computes computes = Computes::float32_and_64;
  static constexpr long double sum = 0x1p-53L, result = 0;
  static constexpr bool epilogue = true;
  static double of(double number) { return number; }
  static double wide(double number) { return number; }
};
template <>
struct Kind<Bfloat16> {
  static constexpr Dtype dtype = Dtype::bfloat16;
  static constexpr Computes computes = Computes::bfloat16;
  static constexpr long double sum = 0x1p-23L, result = 0x1p-8L;
  static constexpr bool epilogue = false;
  static Bfloat16 of(double number) { return rounded(static_cast<float>(number)); }
  static double wide(Bfloat16 number) { return to_float(number); }
};

// Computes random convolutions on one thread and on two.
template <class Number>
class NumbersTest {
 public:
  NumbersTest(ParallelFor serial, ParallelFor in_two) : serial_(serial), in_two_(in_two) {}

  bool agrees(int64_t cases) {
    for (int64_t i = 0; i < cases; i++)
      if (!agrees_once()) return false;
    // Each direction of each kernel ran.
    int64_t expected = 0;
    for (const KernelRow* row : kernel_table())
      for (const bool has : row->directions) expected += has && row->computes == K::computes;
    if (cases < 100 || static_cast<int64_t>(ran_.size()) == expected) return true;
    std::printf("%zu of %ld kernels and directions computed %s\n", ran_.size(), static_cast<long>(expected), kName);
    return false;
  }

 private:
  using K = Kind<Number>;
  using Numbers = std::unique_ptr<Number[]>;
  static constexpr const char* kName = kDtypeNames[static_cast<int>(K::dtype)].data();

  int64_t pick(std::initializer_list<int64_t> values) {
    return values.begin()[std::uniform_int_distribution<size_t>(0, values.size() - 1)(generator_)];
  }

  Axis axis() {
    for (;;) {
      Axis a{pick({1, 2, 5, 7, 8, 9, 14, 17, 33}),
             0,
             pick({1, 2, 3, 3, 5, 7}),
             pick({1, 1, 2, 3}),
             pick({0, 1, 2, 3}),
             pick({1, 1, 2})};
      const int64_t room = a.in + 2 * a.pad - a.dilation * (a.kernel - 1) - 1;
      a.out = room / a.stride + 1;
      if (room >= 0) return a;
    }
  }

  Numbers numbers(int64_t size, bool random) {
    Numbers made(new Number[size]);
    std::uniform_real_distribution<double> distribution(-1, 1);
    for (int64_t i = 0; i < size; i++)
      made[i] = K::of(random ? distribution(generator_) : std::numeric_limits<double>::quiet_NaN());
    return made;
  }

  // Calls visit(x offset, weight offset, y offset) for every multiplication.
  template <class F>
  static void each_product(const Request& r, F&& visit) {
    const Problem& p = r.problem;
    for (int64_t n = 0; n < p.batch; n++)
      for (int64_t g = 0; g < p.groups; g++)
        for (int64_t o = 0; o < p.out_channels; o++)
          for (int64_t c = 0; c < p.in_channels; c++)
            for (int64_t h = 0; h < p.h.out; h++)
              for (int64_t w = 0; w < p.w.out; w++)
                for (int64_t kh = 0; kh < p.h.kernel; kh++)
                  for (int64_t kw = 0; kw < p.w.kernel; kw++) {
                    const int64_t y = h * p.h.stride + kh * p.h.dilation - p.h.pad,
                                  x = w * p.w.stride + kw * p.w.dilation - p.w.pad;
                    if (y < 0 || y >= p.h.in || x < 0 || x >= p.w.in) continue;
                    visit(
                        n * r.x_strides.n + (g * p.in_channels + c) * r.x_strides.c + y * r.x_strides.h + x * r.x_strides.w,
                        g * r.w_strides.group + o * r.w_strides.o + c * r.w_strides.c + kh * r.w_strides.h + kw * r.w_strides.w,
                        n * r.y_strides.n + (g * p.out_channels + o) * r.y_strides.c + h * r.y_strides.h + w * r.y_strides.w);
                  }
  }

  bool agrees_once() {
    Problem p{pick({1, 2}), pick({1, 2, 5, 16, 19}), pick({1, 2, 4, 8, 9, 20}), pick({1, 2, 4, 8, 16, 24}), axis(), axis()};
    if (pick({0, 1})) p.in_channels = p.out_channels = 1;
    if (pick({0, 0, 1})) p.h = {1, 1, 1, 1, 0, 1};
    // Some kernels compute one tap and no few channels, which would be drawn seldom.
    if (pick({0, 0, 0, 1})) {
      for (Axis* a : {&p.h, &p.w}) *a = {a->in, (a->in - 1) / a->stride + 1, 1, a->stride, 0, 1};
      p.in_channels = pick({8, 9, 20}), p.out_channels = pick({8, 16, 24});
    }
    // Rows by rows of taps, which may be read in place.
    if (pick({0, 0, 0, 0, 0, 1})) {
      Axis w{pick({96, 130, 257, 400}), 0, pick({2, 3, 6, 9, 17}), pick({1, 1, 2, 3, 4}), pick({0, 1, 2}), 1};
      w.out = (w.in + 2 * w.pad - w.kernel) / w.stride + 1;
      p.h = {1, 1, 1, 1, 0, 1}, p.w = w;
      p.in_channels = 1, p.out_channels = pick({1, 1, 2});
    }
    // Groups of some vectors, in small images.
    if (pick({0, 0, 0, 1})) {
      p.in_channels = p.out_channels = pick({16, 24, 32, 48});
      for (Axis* a : {&p.h, &p.w})
        if (a->in > 9) *a = {9, 9, 3, 1, 1, 1};
    }
    while (products_of(p) > 400'000 && p.groups > 1) p.groups /= 2;
    const bool channels_last = pick({0, 1}), weight_last = channels_last && !depthwise(p) && pick({0, 1}), two = pick({0, 1});
    for (const Direction direction : {Direction::forward, Direction::grad_input, Direction::grad_weight}) {
      const Request r{direction,
                      p,
                      channels_last,
                      K::dtype,
                      two ? 2 : 1,
                      2,
                      dense_strides(p.batch, p.groups * p.in_channels, p.h.in, p.w.in, channels_last),
                      dense_strides(p.batch, p.groups * p.out_channels, p.h.out, p.w.out, channels_last),
                      dense_weight_strides(p, weight_last)};
      for (const KernelRow* row : kernel_table()) {
        if (row->computes != K::computes) continue;
        const std::shared_ptr<const Plan> plan = plan_of(r, row->name);
        if (!plan->work) continue;
        if (!agrees_by(*plan, two ? in_two_ : serial_)) {
          std::printf("wrong in %s: %s\n", kName, describe(*plan).c_str());
          return false;
        }
        const std::string name = std::string(row->name) + " " + kDirectionNames[static_cast<int>(direction)];
        if (std::find(ran_.begin(), ran_.end(), name) == ran_.end()) ran_.push_back(name);
      }
    }
    return true;
  }

  bool agrees_by(const Plan& plan, ParallelFor parallel_for) {
    const Request& r = plan.request;
    const Problem& p = r.problem;
    const int written = r.direction == Direction::forward ? 2 : r.direction == Direction::grad_input ? 0 : 1;
    const int64_t sizes[3] = {p.batch * p.groups * p.in_channels * p.h.in * p.w.in,
                              p.groups * p.out_channels * p.in_channels * p.h.kernel * p.w.kernel,
                              p.batch * p.groups * p.out_channels * p.h.out * p.w.out};
    Numbers x = numbers(sizes[0], written != 0), w = numbers(sizes[1], written != 1), y = numbers(sizes[2], written != 2);
    const int64_t size = sizes[written], outputs = p.groups * (written == 0 ? p.in_channels : p.out_channels);
    Numbers bias = numbers(outputs, true), residual = numbers(size, true),
            grad_bias = numbers(p.groups * p.out_channels, false);
    const bool sums = written == 1 && plan.work->sums_grad_output() && pick({0, 1});
    const bool biased = written != 1 && pick({0, 1}), adds = K::epilogue && written != 1 && pick({0, 1});
    const EpilogueOf<Number> epilogue{{}, residual.get(), {}};
    TensorsOf<Number> t{x.get(), y.get(), w.get(), biased ? bias.get() : nullptr};
    if (adds) t.epilogue = &epilogue;
    if (sums) t.grad_bias = grad_bias.get();
    const int64_t packed_size = plan.work->packed_floats();
    Numbers packed = numbers(std::max<int64_t>(1, packed_size), false);
    if (packed_size > 0 && pick({0, 1})) {
      plan.work->pack(reinterpret_cast<float*>(w.get()), reinterpret_cast<float*>(packed.get()), parallel_for);
      t.packed = packed.get();
    }
    plan.work->run(named<float>(t), parallel_for);

    // Each sum, that of its absolute values, and how many products it has.
    std::vector<long double> sum(size), weight(size), count(size, 16);
    each_product(r, [&](int64_t i, int64_t j, int64_t k) {
      const long double product = written == 0   ? static_cast<long double>(K::wide(w[j])) * K::wide(y[k])
                                  : written == 1 ? static_cast<long double>(K::wide(x[i])) * K::wide(y[k])
                                                 : static_cast<long double>(K::wide(x[i])) * K::wide(w[j]);
      const int64_t at = written == 0 ? i : written == 1 ? j : k;
      sum[at] += product;
      weight[at] += std::abs(product);
      count[at] += 1;
    });
    const Strides& s = written == 0 ? r.x_strides : r.y_strides;
    const int64_t height = written == 0 ? p.h.in : p.h.out, width = written == 0 ? p.w.in : p.w.out;
    for (int64_t n = 0; written != 1 && n < p.batch; n++)
      for (int64_t c = 0; c < outputs; c++)
        for (int64_t h = 0; h < height; h++)
          for (int64_t v = 0; v < width; v++) {
            const int64_t at = n * s.n + c * s.c + h * s.h + v * s.w;
            const double first = biased ? K::wide(bias[c]) : 0.0, second = adds ? K::wide(residual[at]) : 0.0;
            sum[at] += first + static_cast<long double>(second);
            weight[at] += std::abs(first) + std::abs(second);
          }
    const Number* result = written == 0 ? x.get() : written == 1 ? w.get() : y.get();
    for (int64_t i = 0; i < size; i++)
      if (!(std::abs(K::wide(result[i]) - sum[i]) <= count[i] * K::sum * weight[i] + K::result * std::abs(sum[i])))
        return false;
    for (int64_t c = 0; sums && c < outputs; c++) {
      long double total = 0, most = 0;
      for (int64_t n = 0; n < p.batch; n++)
        for (int64_t h = 0; h < p.h.out; h++)
          for (int64_t v = 0; v < p.w.out; v++) {
            const double one = K::wide(y[n * r.y_strides.n + c * r.y_strides.c + h * r.y_strides.h + v * r.y_strides.w]);
            total += one;
            most += std::abs(one);
          }
      if (!(std::abs(K::wide(grad_bias[c]) - total) <= (16 + p.batch * p.h.out * p.w.out) * 0x1p-53L * most)) return false;
    }
    return true;
  }

  ParallelFor serial_, in_two_;
  std::mt19937 generator_{64};
  std::vector<std::string> ran_;
};

}  // namespace groupwise
