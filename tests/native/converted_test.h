// Tests convolutions of 16-bit numbers, and their conversions, against exact arithmetic in double.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/converted/conversions.h"
#include "kernels/converted/converted.h"
#include "plan/plan.h"

namespace groupwise {

// A format of 16 bits, as its numbers are defined.
struct LowFormat {
  Dtype dtype;
  int fraction, bias;  // bits of the fraction, and what the exponent is counted from

  double value(uint16_t bits) const {
    const int size = bits & 0x7fff, exponent = size >> fraction, part = size & ((1 << fraction) - 1);
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == 0x7fff >> fraction) return part ? std::nan("") : sign * INFINITY;
    return exponent == 0 ? sign * std::ldexp(part, 1 - bias - fraction)
                         : sign * std::ldexp(part + (1 << fraction), exponent - bias - fraction);
  }
  // Returns the nearest number, the even one of two.
  double nearest(double value) const {
    if (!std::isfinite(value) || value == 0) return value;
    const double unit = std::ldexp(1.0, std::max(std::ilogb(value), 1 - bias) - fraction);
    const double found = std::nearbyint(value / unit) * unit;
    return std::abs(found) >= std::ldexp(1.0, bias + 1) ? std::copysign(INFINITY, value) : found;
  }
  double unit() const { return std::ldexp(1.0, -fraction - 1); }
};

constexpr LowFormat kLowFormats[] = {{Dtype::bfloat16, 7, 127}, {Dtype::float16, 10, 15}};

// Widens every number, and rounds floats of all exponents, and those beside and between numbers.
inline bool conversions_agree(const LowFormat& format) {
  const Conversions& conversions = conversions_of(kernels(), format.dtype);
  const auto same = [](double a, double b) {
    return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b);
  };
  std::vector<uint16_t> all(1 << 16);
  for (size_t i = 0; i < all.size(); i++) all[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(all.size());
  conversions.widen(all.data(), 1, wide.data(), static_cast<int64_t>(all.size()));
  for (size_t i = 0; i < all.size(); i++) {
    if (same(wide[i], format.value(all[i]))) continue;
    std::printf("%04zx widens to %g, not %g\n", i, wide[i], format.value(all[i]));
    return false;
  }
  std::mt19937 generator(7);
  std::vector<float> floats;
  for (const float v : wide) {
    uint32_t word;
    std::memcpy(&word, &v, sizeof word);
    // The number, what lies near the middle of it and the next, and any float at all.
    const uint32_t step = 1u << (23 - format.fraction);
    for (const uint32_t w :
         {word, word + step / 2 - 1, word + step / 2, word + step / 2 + 1, static_cast<uint32_t>(generator())}) {
      float f;
      std::memcpy(&f, &w, sizeof f);
      floats.push_back(f);
    }
    if (std::isfinite(v)) floats.push_back(0.5f * v), floats.push_back(1.5f * v);
  }
  std::vector<uint16_t> low(3 * floats.size(), 0x1234);
  conversions.round(floats.data(), low.data(), 3, static_cast<int64_t>(floats.size()));
  for (size_t i = 0; i < floats.size(); i++) {
    const bool untouched = low[3 * i + 1] == 0x1234 && low[3 * i + 2] == 0x1234;
    if (untouched && same(format.value(low[3 * i]), format.nearest(floats[i]))) continue;
    std::printf("%a rounds to %a, not %a\n", floats[i], format.value(low[3 * i]), format.nearest(floats[i]));
    return false;
  }
  return true;
}

// Low numbers of about one, or NaN for a tensor that is written.
inline std::vector<uint16_t> low_numbers(const LowFormat& format, int64_t count, bool random, std::mt19937& generator) {
  std::vector<uint16_t> numbers(count, 0x7fff);
  for (uint16_t& bits : numbers)
    if (random) {
      const uint32_t r = generator();
      bits = static_cast<uint16_t>((r & 0x8000) | (format.bias - 3 + (r >> 16 & 3)) << format.fraction |
                                   (r & ((1 << format.fraction) - 1)));
    }
  return numbers;
}

// Compares every kernel and direction with plain loops. `parallel_for` is of `threads`.
inline bool low_layer_agrees(const LowFormat& format, const Problem& p, bool channels_last, int64_t threads, bool gaps,
                             ParallelFor parallel_for) {
  std::mt19937 generator(11);
  // With gaps, the tensors are slices of some of the channels.
  const int64_t beside = gaps ? 3 : 0;
  const auto strides = [&](int64_t channels, int64_t h, int64_t w) {
    return dense_strides(p.batch, channels + beside, h, w, channels_last);
  };
  const int64_t in = p.groups * p.in_channels, out = p.groups * p.out_channels;
  const Strides xs = meaningful(strides(in, p.h.in, p.w.in), p.batch, in, p.h.in, p.w.in);
  const Strides ys = meaningful(strides(out, p.h.out, p.w.out), p.batch, out, p.h.out, p.w.out);
  const WeightStrides ws = dense_weight_strides(p, channels_last && !depthwise(p));
  const int64_t sizes[3] = {p.batch * (in + beside) * p.h.in * p.w.in, out * p.in_channels * p.h.kernel * p.w.kernel,
                            p.batch * (out + beside) * p.h.out * p.w.out};
  for (const Direction direction : {Direction::forward, Direction::grad_input, Direction::grad_weight}) {
    const int written = direction == Direction::forward ? 2 : direction == Direction::grad_input ? 0 : 1;
    std::vector<uint16_t> given[3];
    for (int i = 0; i < 3; i++) given[i] = low_numbers(format, sizes[i], i != written, generator);
    const int64_t outputs = written == 2 ? out : in;
    const std::vector<uint16_t> bias = low_numbers(format, outputs, true, generator);
    std::vector<double> sums(sizes[written]), weight(sizes[written]), counts(sizes[written]);
    const auto add = [&](int64_t at, double product) { sums[at] += product, weight[at] += std::abs(product), counts[at]++; };
    const auto value = [&](int tensor, int64_t at) { return format.value(given[tensor][at]); };
    if (written != 1) {
      const Strides& s = written == 2 ? ys : xs;
      const int64_t h = written == 2 ? p.h.out : p.h.in, w = written == 2 ? p.w.out : p.w.in;
      for (int64_t n = 0; n < p.batch; n++)
        for (int64_t c = 0; c < outputs; c++)
          for (int64_t i = 0; i < h * w; i++) add(n * s.n + c * s.c + i / w * s.h + i % w * s.w, format.value(bias[c]));
    }
    for (int64_t n = 0; n < p.batch; n++)
      for (int64_t o = 0; o < out; o++)
        for (int64_t c = 0; c < p.in_channels; c++)
          for (int64_t tap = 0; tap < p.h.kernel * p.w.kernel; tap++)
            for (int64_t at = 0; at < p.h.out * p.w.out; at++) {
              const int64_t kh = tap / p.w.kernel, kw = tap % p.w.kernel, oh = at / p.w.out, ow = at % p.w.out;
              const int64_t h = oh * p.h.stride + kh * p.h.dilation - p.h.pad,
                            w = ow * p.w.stride + kw * p.w.dilation - p.w.pad;
              if (h < 0 || h >= p.h.in || w < 0 || w >= p.w.in) continue;
              const int64_t g = o / p.out_channels;
              const int64_t x = n * xs.n + (g * p.in_channels + c) * xs.c + h * xs.h + w * xs.w;
              const int64_t y = n * ys.n + o * ys.c + oh * ys.h + ow * ys.w;
              const int64_t j = begin_of(ws, p.out_channels, o) + c * ws.c + kh * ws.h + kw * ws.w;
              if (written == 0) add(x, value(1, j) * value(2, y));
              if (written == 1) add(j, value(0, x) * value(2, y));
              if (written == 2) add(y, value(0, x) * value(1, j));
            }
    const Request r{direction, p, channels_last, format.dtype, threads, 2, xs, ys, ws};
    for (const KernelRow* kernel : kernel_table()) {
      const std::shared_ptr<const Plan> plan = plan_of(r, kernel->name);
      if (!plan->work) continue;
      std::vector<uint16_t> tensors[3] = {given[0], given[1], given[2]};
      const auto floats = [](const std::vector<uint16_t>& low) {
        return reinterpret_cast<float*>(const_cast<uint16_t*>(low.data()));
      };
      Tensors t{floats(tensors[0]), floats(tensors[2]), floats(tensors[1]), written == 1 ? nullptr : floats(bias)};
      plan->work->run(t, parallel_for);
      for (int64_t i = 0; i < sizes[written]; i++) {
        // Nothing is written into the gaps, and no result beside the last numbers of the last sample.
        if (counts[i] == 0 && tensors[written][i] == 0x7fff) continue;
        const double sure = (counts[i] + 16) * 0x1p-23 * weight[i];
        const double bound =
            format.unit() * (std::abs(sums[i]) + sure) + sure + std::ldexp(1.0, -format.bias - format.fraction);
        if (std::abs(format.value(tensors[written][i]) - sums[i]) <= bound) continue;
        std::printf("%g at %ld, not %g: %s\n", format.value(tensors[written][i]), static_cast<long>(i), sums[i],
                    describe(*plan).c_str());
        return false;
      }
      for (int i = 0; i < 3; i++)
        if (i != written && tensors[i] != given[i]) return false;
    }
  }
  std::vector<uint16_t> y = low_numbers(format, sizes[2], true, generator), sums(out, 0x7fff);
  sum_low_channels(format.dtype, p.batch, out, p.h.out, p.w.out, y.data(), ys, sums.data(), threads > 1, parallel_for);
  for (int64_t c = 0; c < out; c++) {
    double sum = 0, weight = 0;
    for (int64_t n = 0; n < p.batch; n++)
      for (int64_t i = 0; i < p.h.out * p.w.out; i++) {
        const double v = format.value(y[n * ys.n + c * ys.c + i / p.w.out * ys.h + i % p.w.out * ys.w]);
        sum += v, weight += std::abs(v);
      }
    if (std::abs(format.value(sums[c]) - sum) <= format.unit() * std::abs(sum) + 1e-5 * weight) continue;
    std::printf("wrong sum of low channel %ld\n", static_cast<long>(c));
    return false;
  }
  return true;
}

// Tests both formats by the instruction set in use.
inline bool low_dtypes_agree(ParallelFor serial, ParallelFor in_two) {
  const auto axis = [](int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    return Axis{in, (in + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1, kernel, stride, pad, dilation};
  };
  const Problem layers[] = {
      {1, 1, 1, 1, axis(1, 1, 1, 0, 1), axis(1, 1, 1, 0, 1)},    {5, 19, 1, 1, axis(9, 3, 1, 1, 1), axis(12, 3, 1, 1, 1)},
      {2, 48, 1, 1, axis(56, 3, 1, 1, 1), axis(57, 3, 1, 1, 1)}, {2, 5, 4, 8, axis(11, 3, 2, 1, 1), axis(9, 2, 1, 0, 2)},
      {3, 1, 20, 24, axis(7, 3, 1, 1, 1), axis(8, 3, 1, 1, 1)},  {1, 40, 2, 4, axis(1, 1, 1, 0, 1), axis(70, 5, 1, 2, 1)},
      {1, 3, 4, 4, axis(61, 5, 2, 2, 1), axis(17, 3, 1, 1, 1)},  {1, 6, 1, 2, axis(70, 2, 3, 1, 1), axis(9, 3, 2, 1, 1)},
      {1, 4, 1, 1, axis(90, 3, 1, 4, 4), axis(21, 3, 1, 1, 1)},  {1, 1, 5, 3, axis(64, 1, 3, 2, 1), axis(33, 1, 1, 0, 1)},
      {7, 2, 16, 16, axis(6, 1, 1, 0, 1), axis(5, 1, 1, 0, 1)},  {2, 12, 3, 2, axis(75, 1, 1, 0, 1), axis(76, 3, 2, 1, 1)},
  };
  for (const LowFormat& format : kLowFormats) {
    if (!conversions_agree(format)) return false;
    for (const Problem& p : layers)
      for (const bool channels_last : {false, true})
        for (const int64_t threads : {1, 2, 5})
          if (!low_layer_agrees(format, p, channels_last, threads, threads == 2, threads > 1 ? in_two : serial)) return false;
  }
  return true;
}

}  // namespace groupwise
